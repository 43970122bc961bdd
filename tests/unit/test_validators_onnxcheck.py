"""What a model may not be, each with a model that is it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from comity.errors import ModelError
from comity_node.validators.onnxcheck import ModelLimits, check_model

Graph = Any


def model(nodes: list[Any], *, initializers: list[Any] | None = None, domain: str = "") -> Any:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [value], [result], initializer=initializers or [])
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets)


def subgraph(op: str) -> Any:
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node(op, ["x"], ["z"])], "inner", [], [out])


def external(tensor: Any) -> Any:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "secret.key"
    return tensor


def weight() -> Any:
    return numpy_helper.from_array(np.ones((2, 2), np.float32), "w")


def test_plain_arithmetic_passes() -> None:
    check_model(model([helper.make_node("MatMul", ["x", "w"], ["y"])], initializers=[weight()]).SerializeToString())


def _if() -> Any:
    branch = subgraph("Relu")
    return model([helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)])


def _subgraph_on_an_allowed_operator() -> Any:
    node = helper.make_node("Relu", ["x"], ["y"])
    node.attribute.append(helper.make_attribute("body", subgraph("Relu")))
    return model([node])


def _subgraphs_on_an_allowed_operator() -> Any:
    node = helper.make_node("Relu", ["x"], ["y"])
    node.attribute.append(helper.make_attribute("bodies", [subgraph("Relu")]))
    return model([node])


def _external_constant() -> Any:
    return model([helper.make_node("Constant", [], ["y"], value=external(weight()))])


def _external_sparse() -> Any:
    made = model([helper.make_node("Relu", ["x"], ["y"])])
    sparse = made.graph.sparse_initializer.add()
    sparse.values.CopyFrom(external(weight()))
    return made


def _location_without_the_flag() -> Any:
    tensor = weight()
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "secret.key"
    return model([helper.make_node("Relu", ["x"], ["y"])], initializers=[tensor])


def _functions() -> Any:
    made = model([helper.make_node("Relu", ["x"], ["y"])])
    node = helper.make_node("Relu", ["a"], ["b"])
    made.functions.append(helper.make_function("", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 17)]))
    return made


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "if": (_if, "If is not allowed"),
    "loop": (lambda: model([helper.make_node("Loop", ["x"], ["y"], body=subgraph("Relu"))]), "Loop is not allowed"),
    "scan": (lambda: model([helper.make_node("Scan", ["x"], ["y"], body=subgraph("Relu"))]), "Scan is not allowed"),
    "constant of shape": (lambda: model([helper.make_node("ConstantOfShape", ["x"], ["y"])]), "ConstantOfShape"),
    "expand": (lambda: model([helper.make_node("Expand", ["x", "x"], ["y"])]), "Expand"),
    "subgraph": (_subgraph_on_an_allowed_operator, "subgraph"),
    "subgraphs": (_subgraphs_on_an_allowed_operator, "subgraph"),
    "external weights": (
        lambda: model([helper.make_node("Relu", ["x"], ["y"])], initializers=[external(weight())]),
        "outside the model",
    ),
    "external constant": (_external_constant, "outside the model"),
    "external sparse": (_external_sparse, "outside the model"),
    "location without the flag": (_location_without_the_flag, "outside the model"),
    "custom domain": (
        lambda: model([helper.make_node("Run", ["x"], ["y"], domain="evil")], domain="evil"),
        "domain 'evil'",
    ),
    "custom operator": (lambda: model([helper.make_node("Run", ["x"], ["y"], domain="evil")]), "evil.Run"),
    "functions": (_functions, "functions"),
}


@pytest.mark.invariant("S6")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(ModelError, match=reason):
        check_model(make().SerializeToString())


@pytest.mark.invariant("S7")
def test_caps() -> None:
    chain = model([helper.make_node("Relu", [f"v{n}" if n else "x"], [f"v{n + 1}"]) for n in range(6)])
    data = chain.SerializeToString()
    check_model(data, ModelLimits(max_nodes=6))
    with pytest.raises(ModelError, match="more than 5 nodes"):
        check_model(data, ModelLimits(max_nodes=5))
    with pytest.raises(ModelError, match="bytes"):
        check_model(data, ModelLimits(max_bytes=len(data) - 1))


@pytest.mark.invariant("S7")
def test_doubling_concatenation_is_refused() -> None:
    def doubling(times: int) -> bytes:
        names = ["x", *(f"v{n}" for n in range(times))]
        pairs = pairwise(names)
        made = model([helper.make_node("Concat", [a, a], [b], axis=0) for a, b in pairs])
        data: bytes = made.SerializeToString()
        return data

    check_model(doubling(16))
    with pytest.raises(ModelError, match="concatenates"):
        check_model(doubling(17))


def test_garbage_is_refused() -> None:
    for data in (b"", b"not a model", b"\x0a\xff\xff\xff", onnx.ModelProto().SerializeToString()):
        with pytest.raises(ModelError, match="no ONNX model"):
            check_model(data)
