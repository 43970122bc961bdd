"""Is an ONNX file safe to open? Checked on its bytes, before any runtime sees them.

A pinned digest says that a file is the one somebody chose; these checks bound what a wrong choice can cost. ONNX
Runtime and onnx's own checker accept models that read files by a hard link, loop for ever or allocate all memory, so:
no external data anywhere, a closed list of operators without control flow or shape-made tensors, and caps on size.
What shapes can still do at run time is bounded by the arena cap of `runtime`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from comity.errors import ModelError

#: Standard operators that classical models and plain networks need. Left out on purpose: Loop, If, Scan, SequenceMap
#: (control flow), ConstantOfShape, Expand, Tile, Range, Pad, Resize, OneHot, Random* (size from data, or chance).
ALLOWED_OPS = frozenset(
    """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant Conv Div Dropout
    Elu Equal Erf Exp Flatten Floor Gather GatherElements Gelu Gemm GlobalAveragePool GlobalMaxPool Greater
    GreaterOrEqual HardSigmoid Identity IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    MatMul Max MaxPool Mean Min Mod Mul Neg Not Or PRelu Pow Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round Selu
    Shape Sigmoid Sign Slice Softmax Softplus Softsign Split Sqrt Squeeze Sub Sum Tanh TopK Transpose
    Unsqueeze Where Xor
    """.split()
)
ALLOWED_ML_OPS = frozenset(
    """
    ArrayFeatureExtractor Binarizer FeatureVectorizer Imputer LinearClassifier LinearRegressor Normalizer
    SVMClassifier SVMRegressor Scaler TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor ZipMap
    """.split()
)
_DOMAINS = {"": ALLOWED_OPS, "ai.onnx": ALLOWED_OPS, "ai.onnx.ml": ALLOWED_ML_OPS}


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Caps on a model.

    Attributes:
        max_bytes: size of the file.
        max_nodes: operators in all.
        max_growth: product of all Concat nodes' input counts, which bounds what chained concatenation can make.
    """

    max_bytes: int = 64 * 1024 * 1024
    max_nodes: int = 5_000
    max_growth: int = 65_536


def check_model(data: bytes, limits: ModelLimits | None = None) -> None:
    """Refuse a model that is malformed, too large, or could do more than arithmetic on its input.

    Raises:
        ModelError: and why.
    """
    caps = limits or ModelLimits()
    if len(data) > caps.max_bytes:
        raise ModelError(f"the model has {len(data)} bytes, {caps.max_bytes} are allowed")
    model = _parse(data)
    for entry in model.opset_import:
        if entry.domain not in _DOMAINS:
            raise ModelError(f"the model uses the operator domain {entry.domain!r}, which is not allowed")
    if len(model.functions) or len(model.training_info):
        raise ModelError("the model defines functions or training graphs, which are not allowed")
    _check_graph(model.graph, caps)


def _parse(data: bytes) -> Any:  # noqa: ANN401  (onnx ships no types)
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError("the file is no ONNX model") from error
    if not model.HasField("graph") or not len(model.opset_import):
        raise ModelError("the file is no ONNX model: it has no graph or no operator set")
    return model


def _check_graph(graph: Any, caps: ModelLimits) -> None:  # noqa: ANN401
    nodes, growth = 0, 1
    for tensor in _tensors(graph):
        _check_tensor(tensor)
    for node in graph.node:
        nodes += 1
        if nodes > caps.max_nodes:
            raise ModelError(f"the model has more than {caps.max_nodes} nodes")
        if node.op_type not in _DOMAINS.get(node.domain, frozenset()):
            raise ModelError(f"the operator {node.domain or 'ai.onnx'}.{node.op_type} is not allowed")
        if node.op_type == "Concat":
            growth *= max(1, len(node.input))
            if growth > caps.max_growth:
                raise ModelError("the model concatenates more than its caps allow")
        for attribute in node.attribute:
            if attribute.HasField("g") or len(attribute.graphs):
                raise ModelError(f"the operator {node.op_type} carries a subgraph, which is not allowed")


def _tensors(graph: Any) -> Iterator[Any]:  # noqa: ANN401
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            sparse_tensors = [*attribute.sparse_tensors]
            if attribute.HasField("sparse_tensor"):
                sparse_tensors.append(attribute.sparse_tensor)
            for sparse in sparse_tensors:
                yield from (sparse.values, sparse.indices)


def _check_tensor(tensor: Any) -> None:  # noqa: ANN401
    # 1 is TensorProto.EXTERNAL; a location without the flag is refused too, as readers differ in which they obey.
    if tensor.data_location == 1 or len(tensor.external_data):
        raise ModelError(f"the tensor {tensor.name!r} keeps its data outside the model, which is not allowed")
