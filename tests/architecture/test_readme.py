"""The README's commands are ones that there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from comity_node.cli.app import build_parser
from comity_node.cli.context import UsageError

ROOT = Path(__file__).resolve().parents[2]
FILES = ("README.md", "SECURITY.md", "CHANGELOG.md")


def commands(text: str) -> Iterator[str]:
    """Lines of the shell blocks, continued lines joined, comments left out."""
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if words := line.partition("#")[0].strip():
                yield words


COMMANDS = list(commands((ROOT / "README.md").read_text(encoding="utf-8")))


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("comity ")])
def test_the_command_line_takes_it(command: str) -> None:
    assert build_parser().parse_args(shlex.split(command)[1:]).run


def test_one_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError):
        build_parser().parse_args(["policy", "explian"])


def test_make_has_its_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    asked = {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    asked |= {
        word for name in FILES for word in re.findall(r"`make ([a-z-]+)", (ROOT / name).read_text(encoding="utf-8"))
    }
    assert {"demo", "test"} <= asked <= targets


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_named_are_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    quoted = re.findall(r"`((?:node|sdk|tests|docs|proto|policies|scripts|examples)/[\w./-]+)`", text)
    assert not [path for path in (*linked, *quoted) if not (ROOT / path).exists()]
