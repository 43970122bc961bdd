from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from comity.errors import ConfigError, MissingExtra, ModelError
from comity_node.validators import runtime
from comity_node.validators.runtime import Manifest, Model, array_bytes, check_installation, load_array, open_model


def doubler(factor: float = 2.0) -> bytes:
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, 2])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, 2])
    scale = numpy_helper.from_array(np.array([factor], np.float32), "scale")
    graph = helper.make_graph([helper.make_node("Mul", ["rows", "scale"], ["out"])], "g", [rows], [out], [scale])
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    return data


def pinned(directory: Path, data: bytes) -> Manifest:
    (directory / "m.onnx").write_bytes(data)
    return Manifest.of({"m.onnx": data})


def test_a_pinned_model_runs(tmp_path: Path) -> None:
    model = open_model(tmp_path, pinned(tmp_path, doubler()), "m.onnx", provider="cpu")
    np.testing.assert_array_equal(model.run(np.ones((3, 2), np.float32))[0], np.full((3, 2), 2, np.float32))
    assert model.providers == ("CPUExecutionProvider",)


@pytest.mark.invariant("S6")
def test_a_changed_model_is_not_opened(tmp_path: Path) -> None:
    manifest = pinned(tmp_path, doubler())
    for data in (doubler(3.0), doubler() + b"\0", b""):
        (tmp_path / "m.onnx").write_bytes(data)
        with pytest.raises(ModelError, match=r"not the pinned|larger"):
            open_model(tmp_path, manifest, "m.onnx")


@pytest.mark.invariant("S6")
def test_only_names_in_the_manifest_are_opened(tmp_path: Path) -> None:
    manifest = pinned(tmp_path, doubler())
    (tmp_path / "other.onnx").write_bytes(doubler())
    for name in ("other.onnx", "../m.onnx", str(tmp_path / "m.onnx")):
        with pytest.raises(ModelError, match="not in the manifest"):
            open_model(tmp_path, manifest, name)
    with pytest.raises(ModelError, match="not in the manifest"):
        Manifest.of({"../m.onnx": doubler()}).read(tmp_path, "../m.onnx")


@pytest.mark.invariant("S6")
def test_a_pinned_model_that_is_unsafe_is_not_opened(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])
    graph = helper.make_graph([helper.make_node("Expand", ["x", "x"], ["y"])], "g", [value], [value])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    with pytest.raises(ModelError, match="Expand is not allowed"):
        open_model(tmp_path, pinned(tmp_path, data), "m.onnx")


@pytest.mark.invariant("S6")
def test_the_bytes_that_were_verified_are_the_bytes_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = pinned(tmp_path, doubler())
    read = Manifest.read

    def swap_after_reading(self: Manifest, directory: Path, name: str) -> bytes:
        data = read(self, directory, name)
        (directory / name).write_bytes(doubler(-1.0))
        return data

    monkeypatch.setattr(Manifest, "read", swap_after_reading)
    model = open_model(tmp_path, manifest, "m.onnx", provider="cpu")
    assert model.run(np.ones((1, 2), np.float32))[0][0, 0] == 2.0


@pytest.mark.invariant("S7")
def test_a_run_cannot_take_more_memory_than_the_arena_has(tmp_path: Path) -> None:
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, 2])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Transpose", ["rows"], ["t"]), helper.make_node("MatMul", ["rows", "t"], ["out"])]
    data = helper.make_model(
        helper.make_graph(nodes, "g", [rows], [out]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    model = Model("grow", data, provider="cpu")
    assert model.run(np.ones((100, 2), np.float32))[0].shape == (100, 100)
    with pytest.raises(ModelError, match="the run failed"):
        model.run(np.ones((20_000, 2), np.float32))


def test_wrong_input_is_our_error() -> None:
    with pytest.raises(ModelError, match="the run failed"):
        Model("m", doubler(), provider="cpu").run(np.ones((1, 3), np.float32))


def test_cuda_without_a_device_is_refused_and_auto_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "has_cuda", lambda: False)
    with pytest.raises(ModelError, match="no CUDA device"):
        Model("m", doubler(), provider="cuda")
    assert Model("m", doubler(), provider="auto").providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize(
    ("installed", "result"),
    [(["numpy", "onnxruntime"], "onnxruntime"), (["onnxruntime_gpu", "onnx"], "onnxruntime-gpu")],
)
def test_one_runtime_is_installed(installed: list[str], result: str) -> None:
    assert check_installation(installed) == result


def test_two_runtimes_are_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"onnxruntime and onnxruntime-gpu .* pip uninstall"):
        check_installation(["onnxruntime", "onnxruntime-gpu"])


def test_no_runtime_names_the_extra() -> None:
    with pytest.raises(MissingExtra, match=r"comity\[node\]"):
        check_installation(["numpy"])


def test_this_environment_has_one_runtime() -> None:
    assert check_installation() in ("onnxruntime", "onnxruntime-gpu")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2, "files": {}}', '{"version": 1, "files": {"a": 1}}'])
def test_malformed_manifests(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(ModelError):
        Manifest.load(path)
    with pytest.raises(ModelError, match="cannot read"):
        Manifest.load(tmp_path / "none.json")


class _Boom:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("exit 1",)


@pytest.mark.invariant("S6")
def test_arrays_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([_Boom()], dtype=object), allow_pickle=True)
    with pytest.raises(ModelError, match="cannot be read"):
        load_array((tmp_path / "a.npy").read_bytes())
    np.testing.assert_array_equal(load_array(array_bytes(np.arange(3.0))), np.arange(3.0))
