"""Large files are read with libyaml where it reads as PyYAML does: both give the same nodes and the same refusals."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comity.errors import ConfigError
from comity_node import strictyaml
from comity_node.strictyaml import Node, loads

ROOT = Path(__file__).parents[2]
SEEDS = [
    "a: {b: [c, 'd', \"e\"]}\n",
    "- a\n- b: c\n  d: ~\n",
    "a: 1 # c\nb: it's\n",
    "{a:b, c: 'it''s'}\n",
    "a: &x 1\nb: *x\n",
    "--- a\n...\n",
    "a:\n- b\n- c\n",
    "a: b\n  c d\n\n  e\nf: 'g\n\n  h'\n",
    *((ROOT / "policies" / name).read_text(encoding="utf-8") for name in ("telco.yaml", "telco.tests.yaml")),
]
#: Characters that both take, and some of those for which only one of them is asked.
CHARACTERS = ":-{}[],'\"#&*@`\n  ~.abno01/$^_;<()+=" + "?!%\\|>\té"


def mutated(seed: int) -> str:
    chance = random.Random(seed)
    text = chance.choice(SEEDS)
    if len(text) > 300:
        start = chance.randrange(len(text) - 200)
        text = text[start : start + 200]
    letters = list(text)
    for _ in range(chance.randrange(5)):
        position = chance.randrange(len(letters) + 1)
        letters[position : position + chance.randrange(2)] = chance.choice(["", chance.choice(CHARACTERS)])
    return "".join(letters)


def outcome(text: str) -> Node | str:
    try:
        return loads(text, "f")
    except ConfigError as error:
        return str(error)


def describe(read: Node | str) -> object:
    """Return all of a node, with the places of keys and of values that are there, or a refusal's text."""
    if isinstance(read, str):
        return read
    if isinstance(read.value, dict):
        return str(read.mark), [(key, str(mark), describe(value)) for key, (mark, value) in read.value.items()]
    if isinstance(read.value, tuple):
        return str(read.mark), [describe(item) for item in read.value]
    return "" if read.is_empty else str(read.mark), read.value, read.plain


@given(st.integers(0, 2**64 - 1))
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
def test_both_parsers_read_the_same(seed: int) -> None:
    text = mutated(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strictyaml, "_LARGE", 1 << 30)
        slow = describe(outcome(text))
        patch.setattr(strictyaml, "_LARGE", 0)
        assert describe(outcome(text)) == slow


def test_both_parsers_are_compared() -> None:
    texts = [mutated(seed) for seed in range(2000)]
    alike = [text for text in texts if strictyaml._ALIKE.fullmatch(text)]
    assert yaml.__with_libyaml__
    assert len(alike) > 500
    assert sum(isinstance(outcome(text), str) for text in alike) > 100
    assert sum(not isinstance(outcome(text), str) for text in alike) > 100


def test_a_large_file_is_read_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    real = strictyaml._Builder.__init__

    def note(self: strictyaml._Builder, text: str, file: str, loader: object) -> None:
        asked.append(loader)
        real(self, text, file, loader)

    monkeypatch.setattr(strictyaml._Builder, "__init__", note)
    rules = "".join(f"- {{id: r{number}, text: 'it is {number}'}}\n" for number in range(2000))
    assert len(loads(rules).items()) == 2000
    assert len(loads(rules + "- why?\n").items()) == 2001
    with pytest.raises(ConfigError, match="is no YAML"):
        loads(rules + "- {\n")
    assert asked == [yaml.CSafeLoader, yaml.SafeLoader, yaml.CSafeLoader, yaml.SafeLoader]
