"""What every file of the repository keeps to."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("sdk", "node", "tests", "examples", "scripts", "bench")

#: Hosts that packages come from, and places of one person's machine. Split, so that this file does not name them.
_HOSTS = re.compile(
    r"pypi" + r"\.org|files\.python" + r"hosted|deb\.debian" + r"\.org|registry\.npm" + r"js|crates" + r"\.io", re.I
)
_PATHS = re.compile(r"(?<![\w.])/(?:home/\w+|root|Users/\w+|work/\w+|opt/\w+)/")
_BROAD = ("Exception", "BaseException")


def tracked() -> list[Path]:
    """Files under version control, and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        timeout=30,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    data = path.read_bytes()
    if b"\0" not in data:
        yield from enumerate(data.decode("utf-8", errors="replace").splitlines(), 1)


def python_files() -> list[Path]:
    return [path for name in SOURCES for path in sorted((ROOT / name).rglob("*.py")) if "_pb2" not in path.name]


def test_no_file_names_a_registry_or_somebodys_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in tracked()
        for number, line in text_lines(path)
        if _HOSTS.search(line) or _PATHS.search(line)
    ]
    assert not found, "\n".join(found)


def broad_excepts(text: str) -> list[int]:
    """Lines of handlers that catch everything, do not end by raising it again, and do not say why beside it."""
    lines = text.splitlines()
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        kinds = [node.type] if not isinstance(node.type, ast.Tuple) else node.type.elts
        broad = any(kind is None or (isinstance(kind, ast.Name) and kind.id in _BROAD) for kind in kinds)
        last = node.body[-1]
        raised = isinstance(last, ast.Raise) and last.exc is None
        beside = lines[node.lineno - 1 : node.body[0].lineno]
        comments = [line.partition("#")[2].replace("noqa: BLE001", "") for line in beside]
        if broad and not raised and max(len(comment.strip()) for comment in comments) < 10:
            found.append(node.lineno)
    return found


def test_a_broad_except_says_why() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in python_files()
        for line in broad_excepts(path.read_text(encoding="utf-8"))
    ]
    assert not found, "a comment with the reason, please:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("handler", "broad"),
    [
        ("except Exception:\n    pass", True),
        ("except (ValueError, BaseException) as error:\n    raise OSError from error", True),
        ("except:\n    pass", True),
        ("except Exception:  # noqa: BLE001\n    pass", True),
        ("except Exception:\n    # what a plug-in raises is its own affair\n    pass", False),
        ("except Exception:  # whatever a plug-in raises\n    pass", False),
        ("except BaseException:\n    done = True\n    raise", False),
        ("except ValueError:\n    pass", False),
    ],
)
def test_the_search_for_broad_excepts_finds_them(handler: str, broad: bool) -> None:
    assert bool(broad_excepts(f"try:\n    pass\n{handler}\n")) is broad


@pytest.mark.invariant("S6")
def test_nothing_unpickles_or_evaluates() -> None:
    banned_modules = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    found = []
    for path in python_files():
        if path.relative_to(ROOT).parts[0] not in ("sdk", "node"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names} & banned_modules
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]} & banned_modules
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = {node.func.id} & {"eval", "exec", "compile", "__import__"}
            found += [f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {name}" for name in sorted(names)]
    assert not found, "\n".join(found)


def test_the_stubs_are_those_of_the_schemas() -> None:
    result = subprocess.run(
        [sys.executable, "scripts/gen_proto.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


HEAVY = ("libp2p", "trio", "onnxruntime", "onnx", "yaml", "numpy", "sklearn", "pyarrow", "flwr", "rich")


def imported_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `statement`."""
    script = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_the_sdk_is_light() -> None:
    modules = sorted(path.stem for path in (ROOT / "sdk" / "comity").glob("*.py") if path.stem != "__init__")
    statement = "\n".join(["import comity", *(f"import comity.{name}" for name in modules)])
    assert not imported_by(statement) & set(HEAVY)


def test_the_command_is_light_and_does_not_configure_logging() -> None:
    statement = (
        "import logging\nimport comity_node.cli\n"
        "assert not logging.getLogger().handlers, 'logging was configured on import'"
    )
    assert not imported_by(statement) & set(HEAVY)
