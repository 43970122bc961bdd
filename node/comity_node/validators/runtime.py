"""ONNX Runtime sessions over files whose digests are pinned.

Opening a model:
1. its name is in the manifest, and its size is the manifest's;
2. it is read once, and the SHA-256 of what was read is the pinned one;
3. `onnxcheck` finds nothing in those bytes that could do more than arithmetic;
4. those same bytes, not the file, go to ONNX Runtime: one thread, an arena with a cap, the CPU provider or CUDA where
   a device is really there.

Scores are float32 on the CPU by default: over threads, batch sizes and machines they differ by at most 2e-7, which
rounding to 1e-4 hides but for ties.
"""

from __future__ import annotations

import functools
import importlib.metadata
import io
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from comity.digest import canonical_json, hex_digest
from comity.errors import ConfigError, MissingExtra, ModelError
from comity_node.validators.onnxcheck import ModelLimits, check_model

MANIFEST_FILE = "manifest.json"
PRECISION = "float32"
ProviderChoice = Literal["cpu", "cuda", "auto"]

_ARENA_BYTES = 512 * 1024 * 1024
_MAX_MANIFEST_BYTES = 1024 * 1024
_MAX_FILE_BYTES = 1024 * 1024 * 1024
#: Distributions that all own the module directory `onnxruntime`.
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")


def check_installation(installed: Iterable[str] | None = None) -> str:
    """Return the one ONNX Runtime distribution that is installed.

    Args:
        installed: names of installed distributions; by default those of this environment.

    Raises:
        MissingExtra: there is none.
        ConfigError: there are several. They overwrite each other's files, the last one wins, and `pip check` is silent.
    """
    names = _distributions() if installed is None else installed
    found = sorted({name.lower().replace("_", "-") for name in names} & set(_RUNTIMES))
    if not found:
        raise MissingExtra("node", "onnxruntime")
    if len(found) > 1:
        both, keep = " and ".join(found), found[-1]
        raise ConfigError(
            f"{both} are installed together and overwrite each other's files; "
            f"run: pip uninstall -y {' '.join(found)} && pip install {keep}"
        )
    return found[0]


def _distributions() -> list[str]:
    return [str(name) for entry in importlib.metadata.distributions() if (name := entry.metadata["Name"])]


@dataclass(frozen=True, slots=True)
class Pin:
    """A file's size in bytes and SHA-256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a validator's directory, pinned."""

    files: Mapping[str, Pin]

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the manifest's canonical JSON: pins everything at once."""
        return hex_digest(canonical_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"version": 1, "files": {n: {"size": p.size, "sha256": p.sha256} for n, p in self.files.items()}}

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> Manifest:
        """Pin these contents."""
        return cls({name: Pin(len(data), hex_digest(data)) for name, data in sorted(files.items())})

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            ModelError: it is missing or malformed.
        """
        try:
            value = json.loads(_read(path, _MAX_MANIFEST_BYTES))
            if set(value) != {"version", "files"} or value["version"] != 1:
                raise ModelError(f"{path}: not a manifest of version 1")
            return cls({str(n): Pin(int(p["size"]), str(p["sha256"])) for n, p in value["files"].items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: the manifest is malformed") from error

    def read(self, directory: Path, name: str) -> bytes:
        """Return the bytes of a pinned file, read once and verified.

        Raises:
            ModelError: the name is not pinned, the file is missing, or it is not the pinned one.
        """
        pin = self.files.get(name)
        if pin is None or Path(name).name != name:
            raise ModelError(f"{name!r} is not in the manifest; only pinned files are opened")
        data = _read(directory / name, min(pin.size, _MAX_FILE_BYTES))
        if hex_digest(data) != pin.sha256:
            raise ModelError(f"{directory / name} is not the pinned file: its SHA-256 differs")
        return data


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > limit:
        raise ModelError(f"{path} is larger than the {limit} bytes it may have")
    return data


def array_bytes(array: NDArray[Any]) -> bytes:
    """Return an array in NumPy's file format, for a pinned file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def load_array(data: bytes) -> NDArray[Any]:
    """Read what `array_bytes` wrote; never unpickles.

    Raises:
        ModelError: the bytes are no such array.
    """
    try:
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ModelError("a pinned array cannot be read") from error
    return array


_setup_lock = threading.Lock()


@functools.cache
def _runtime() -> Any:  # noqa: ANN401  (onnxruntime ships no types)
    """Import ONNX Runtime once: checked installation, quiet, no telemetry, one arena with a cap for all sessions."""
    check_installation()
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    onnxruntime.disable_telemetry_events()
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(_ARENA_BYTES, 1, -1, -1))
    return onnxruntime


def runtime() -> Any:  # noqa: ANN401
    """Return the `onnxruntime` module, set up.

    Raises:
        ConfigError: none or more than one of its distributions is installed.
    """
    with _setup_lock:
        return _runtime()


def has_cuda() -> bool:
    """Say whether a CUDA device is really there; the list of compiled-in providers does not tell."""
    return any(device.ep_name == "CUDAExecutionProvider" for device in runtime().get_ep_devices())


class Model:
    """One open session. Safe to use from several threads.

    Args:
        name: for messages.
        data: the model's bytes; verify them first (`Manifest.read`).
        provider: "cpu"; "cuda", which fails where there is no device; or "auto": CUDA where there is one.
        limits: caps of `onnxcheck`.

    Raises:
        ModelError: the model is unsafe or ONNX Runtime refuses it, or CUDA was asked for and is not there.
    """

    def __init__(
        self, name: str, data: bytes, *, provider: ProviderChoice = "auto", limits: ModelLimits | None = None
    ) -> None:
        check_model(data, limits)
        ort = runtime()
        self.name = name
        self.digest = hex_digest(data)
        cuda = provider != "cpu" and has_cuda()
        if provider == "cuda" and not cuda:
            raise ModelError(f"{name}: the CUDA provider was asked for and no CUDA device is there")
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]
        try:
            self._session = ort.InferenceSession(data, sess_options=_options(ort), providers=providers)
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception; re-raised as ours
            raise ModelError(f"{name}: ONNX Runtime refuses the model: {_first_line(error)}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise ModelError(f"{name}: one input is expected, the model has {len(inputs)}")
        self._input = str(inputs[0].name)

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that the session really uses, in order."""
        return tuple(self._session.get_providers())

    def run(self, rows: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Return the model's outputs for a batch of rows (n x features, float32), in one run.

        Raises:
            ModelError: ONNX Runtime fails, for instance because the arena's cap is reached.
        """
        try:
            outputs: list[NDArray[Any]] = self._session.run(None, {self._input: rows})
        except Exception as error:  # as above: no common base class; re-raised as ours
            raise ModelError(f"{self.name}: the run failed: {_first_line(error)}") from error
        return outputs


def _options(ort: Any) -> Any:  # noqa: ANN401
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def open_model(directory: Path, manifest: Manifest, name: str, *, provider: ProviderChoice = "auto") -> Model:
    """Open a pinned model: the bytes that were verified are the bytes that run.

    Raises:
        ModelError: see `Manifest.read` and `Model`.
    """
    return Model(name, manifest.read(directory, name), provider=provider)
