"""The pins fit what is declared, and the wheel holds what it should."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PINS = ("constraints.txt", "constraints-build.txt")
_PIN = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>[^ ;]+)(?: ; (?P<marker>.*?))? \\$")
_HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins(name: str) -> dict[str, list[Version]]:
    """Pinned versions by package; one that depends on the Python version has several."""
    found: dict[str, list[Version]] = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if match := _PIN.match(line):
            found.setdefault(match["name"], []).append(Version(match["version"]))
    return found


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", PINS)
def test_every_line_is_a_pin_or_its_hash(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    other = [line for line in lines if not (_PIN.match(line) or _HASH.match(line) or line.startswith("#"))]
    assert not other
    for above, line in itertools.pairwise(lines):
        assert not _PIN.match(above) or _HASH.match(line), f"{above} has no hash"


def test_every_dependency_is_pinned_within_what_is_declared() -> None:
    declared, pinned = project(), pins("constraints.txt")
    extras = declared["project"]["optional-dependencies"]
    wanted = [*declared["project"]["dependencies"], *declared["dependency-groups"]["dev"]]
    wanted += [line for name in ("node", "flower", "demo") for line in extras[name]]
    wrong = []
    for line in wanted:
        requirement = Requirement(line)
        name = normalized(requirement.name)
        versions = pinned.get(name, [])
        if name != "comity" and not (versions and all(requirement.specifier.contains(each) for each in versions)):
            wrong.append(f"{line}: pinned {[str(each) for each in versions]}; run `make lock`")
    assert not wrong, "\n".join(wrong)


def test_the_build_tools_are_pinned_as_everything_else() -> None:
    everything = pins("constraints.txt")
    build = pins("constraints-build.txt")
    assert set(project()["build-system"]["requires"][0].split(">")[0:1]) <= set(build)
    assert all(everything[name] == versions for name, versions in build.items())


def test_what_is_imported_at_run_time_is_no_development_package() -> None:
    declared = project()
    development = {normalized(Requirement(line).name) for line in declared["dependency-groups"]["dev"]}
    run_time = {normalized(Requirement(line).name) for line in declared["project"]["dependencies"]}
    assert not development & run_time


def test_the_wheel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "comity = comity_node.cli:main" in archive.read(entry_points).decode()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"comity", "comity_node"}
    for wanted in ("comity/py.typed", "comity_node/py.typed", "comity/v1/control_pb2.pyi", "comity_node/cli/app.py"):
        assert wanted in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".key", ".pem", ".db"))]
