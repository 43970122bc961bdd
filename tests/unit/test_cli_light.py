"""The light install: what needs an extra names it, in one line, instead of a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from comity_node.cli import main

#: What `pip install comity` does not bring.
ABSENT = ("trio", "libp2p", "multiaddr", "yaml", "numpy", "onnx", "onnxruntime", "pyarrow", "sklearn", "scipy", "rich",
          "flwr", "h11", "skl2onnx", "grpc_health", "grpc_reflection")  # fmt: skip

SCRIPT = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in {ABSENT!r}
        return None if absent else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from comity_node.cli import main
sys.exit(main(sys.argv[1:]))
"""


def light(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("home")
    assert main(["--home", str(path), "init", "--organization", "mercy.example"]) == 0
    return path


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("node", "run"), "node"),
        (("cert", "request"), "node"),
        (("init", "--organization", "other.example"), "node"),
        (("policy", "lint", "policy.yaml"), "node"),
        (("demo",), "demo"),
    ],
)
def test_a_missing_extra_is_named(home: Path, command: tuple[str, ...], extra: str) -> None:
    result = light("--home", home, *command)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: this needs ")
    assert f"pip install 'comity[{extra}]'" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("--help",), ("--version",), ("records", "verify", "--help")])
def test_help_needs_nothing(command: tuple[str, ...]) -> None:
    result = light(*command)
    assert (result.returncode, result.stderr) == (0, "")


def test_what_needs_no_extra_works(home: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.json"
    assert light("--home", home, "consortium", "create", bundle, "--name", "tumours").returncode == 0
    assert light("--home", home, "consortium", "sign", bundle).returncode == 0
    assert light("--home", home, "consortium", "verify", bundle).returncode == 0


def test_the_doctor_names_what_is_missing(home: Path) -> None:
    result = light("--home", home, "doctor")
    assert result.returncode == 1
    assert "pip install 'comity[node]'" in result.stdout
    assert "Traceback" not in result.stderr
