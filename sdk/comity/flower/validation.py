"""Held-out validation of an update by ONNX Runtime.

The graph is ours, an update's weights are only its constants: no graph of a peer is ever opened. numpy is needed
on import; onnx and onnxruntime (extra `node`) only when a model is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from comity.errors import InvalidRecord, MissingExtra
from comity.flower.scoring import Validation, validate

#: Names of a logistic regression's arrays in an update: shape (d,) and shape (1,).
COEFFICIENTS = "coefficients"
INTERCEPT = "intercept"


class Validator(Protocol):
    """Says how good the model of an update is on rows that nobody trained on."""

    def __call__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Validation:
        """Return the scores of the model with these parameters."""


class LogisticValidator:
    """Validates logistic regressions: MatMul, Add and Sigmoid in ONNX, on fixed rows.

    Args:
        rows: shape (n, d), standardized like the rows that members train on.
        labels: shape (n,), 0 or 1; both classes must occur.

    Raises:
        InvalidRecord: the rows are not finite, have no labels of both classes, or the shapes do not fit.
    """

    def __init__(self, rows: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        self._rows = np.ascontiguousarray(rows, dtype=np.float32)
        self._labels = np.asarray(labels)
        if self._rows.ndim != 2 or self._labels.shape != (len(self._rows),):
            raise InvalidRecord("held-out rows need the shape (n, d) and labels the shape (n,)")
        if not np.isfinite(self._rows).all() or set(np.unique(self._labels)) != {0, 1}:
            raise InvalidRecord("held-out rows must be finite and labelled 0 and 1, with both labels present")

    def __call__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Validation:
        """Return the scores of the logistic regression in `arrays`.

        Raises:
            InvalidRecord: the arrays are not those of a logistic regression over these rows.
        """
        coefficients, intercept = arrays.get(COEFFICIENTS), arrays.get(INTERCEPT)
        if coefficients is None or coefficients.shape != (self._rows.shape[1],):
            raise InvalidRecord(f"an update needs {COEFFICIENTS!r} of shape ({self._rows.shape[1]},)")
        if intercept is None or intercept.shape != (1,):
            raise InvalidRecord(f"an update needs {INTERCEPT!r} of shape (1,)")
        return validate(predict(coefficients, intercept, self._rows), self._labels)


def predict(
    coefficients: npt.NDArray[Any], intercept: npt.NDArray[Any], rows: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Run a logistic regression in ONNX Runtime on the CPU: `rows` (n, d) to probabilities (n,).

    Raises:
        MissingExtra: onnx or onnxruntime is not installed.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingExtra("node", "onnxruntime") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = logistic_model(coefficients, intercept)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probability"], {"rows": rows})
    result: npt.NDArray[np.float32] = probabilities[:, 0]
    return result


def logistic_model(coefficients: npt.NDArray[Any], intercept: npt.NDArray[Any]) -> bytes:
    """Return a logistic regression as a serialized ONNX model (opset 17, input `rows`, output `probability`).

    Raises:
        MissingExtra: onnx is not installed.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise MissingExtra("node", "onnx") from error
    weights = np.asarray(coefficients, dtype=np.float32).reshape(-1, 1)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["rows", "weights"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["probability"]),
        ],
        "logistic",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, len(weights)])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, [None, 1])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.asarray(intercept, dtype=np.float32).reshape(1), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized
