"""The layer contracts of pyproject.toml hold, and each one turns red when it is broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter over the packages of `tree`, and nothing that is installed."""
    script = (
        "import sys; from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(config_filename='pyproject.toml', no_cache=True))"
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(tree / name) for name in ("sdk", "node"))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources that a test may spoil."""
    for name in ("sdk", "node"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def append(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(f"\n{line}\n")


def test_the_contracts_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("sdk/comity/digest.py", "import comity_node.protocol", "the SDK never imports the node"),
        ("sdk/comity/errors.py", "import comity.signing", "layers of the SDK"),
        ("sdk/comity/unplaced.py", "", "layers of the SDK"),
        ("node/comity_node/storage/__init__.py", "import comity_node.transport", "layers of the node"),
        ("node/comity_node/unplaced.py", "", "layers of the node"),
        ("sdk/comity/ids.py", "import trio", "the SDK needs no libp2p"),
        ("sdk/comity/models/gate.py", "import ray", "the SDK needs no libp2p"),
        ("node/comity_node/control/__init__.py", "import libp2p.host", "one place knows libp2p"),
        ("node/comity_node/control/__init__.py", "import yaml", "one place knows YAML"),
        ("node/comity_node/protocol/__init__.py", "from time import monotonic", "know no socket, no clock"),
        ("sdk/comity/envelope.py", "import os", "know no socket, no clock"),
        ("node/comity_node/policy/engine.py", "import random", "know no socket, no clock"),
    ],
)
def test_a_violation_is_red(tree: Path, module: str, line: str, contract: str) -> None:
    append(tree / module, line)
    result = lint_imports(tree)
    assert result.returncode == 1, result.stdout + result.stderr
    broken = result.stdout.partition("Broken contracts")[2]
    assert contract in " ".join(broken.split()), result.stdout
