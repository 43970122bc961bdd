"""docs/policy.md: its examples load, and it names every word of the language."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from comity_node.policy.asked import UNASKED, asked
from comity_node.policy.json_schema import policy_schema
from comity_node.policy.lint import lint
from comity_node.policy.loader import DATA_KEYS, RULE_KEYS, TOP_KEYS, loads_policy
from comity_node.policy.model import ACTIONS, KINDS, LABELS, Direction, Request
from comity_node.policy.read_duties import (
    ANONYMITY_KEYS,
    APPROVAL_KEYS,
    BUDGET_KEYS,
    NOISE_KEYS,
    OBLIGATIONS,
    QUOTA_KEYS,
    RATE_KEYS,
    REVIEW_KEYS,
)
from comity_node.policy.read_schema import FIELD_KEYS
from comity_node.policy.read_sides import FACT_KEYS, GROUP_KEYS, SIDE_KEYS
from comity_node.policy.read_when import JURISDICTION_KEY, NUMBER_KEYS, TIME_KEY, TIME_KEYS
from comity_node.strictyaml import loads

TEXT = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
WORDS = {
    *TOP_KEYS, *RULE_KEYS, *DATA_KEYS, *SIDE_KEYS, *GROUP_KEYS, *FACT_KEYS, *FIELD_KEYS, *OBLIGATIONS, *RATE_KEYS,
    *QUOTA_KEYS, *NOISE_KEYS, *BUDGET_KEYS, *ANONYMITY_KEYS, *REVIEW_KEYS, *APPROVAL_KEYS, *TIME_KEYS, *NUMBER_KEYS,
    TIME_KEY, JURISDICTION_KEY, *LABELS, *ACTIONS, *KINDS,
}  # fmt: skip


def whole(example: str) -> str:
    """Return an example as a policy: rules get the head of the first one."""
    return example if example.startswith("version") else EXAMPLES[0].partition("rules:\n")[0] + "rules:\n" + example


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_loads_has_the_shape_and_allows_something(example: str) -> None:
    policy = loads_policy(whole(example), file="docs/policy.md")
    assert policy.document.rules
    assert Draft202012Validator(policy_schema()).is_valid(loads(whole(example)).data())
    assert not [each for each in lint(policy) if each.code in ("unreachable", "never-met", "unknown-field")]


def test_what_no_node_asks_is_said_to_be_asked_by_none() -> None:
    """And the action that decides instead states all that a rule for it can ask about."""
    for action, instead in UNASKED.items():
        assert f"| `{action}` | from | nothing: no node asks this" in TEXT
        assert f"A node asks `{instead}`" in TEXT
        mine, theirs = asked(action), asked(instead)
        assert mine.kinds <= theirs.kinds
        assert mine.labels <= theirs.labels


def test_the_examples_use_every_obligation() -> None:
    used = {key for example in EXAMPLES for key in OBLIGATIONS if re.search(rf"\b{key}:", example)}
    assert used == set(OBLIGATIONS)


@pytest.mark.parametrize("word", sorted(WORDS))
def test_a_word_of_the_language_is_explained(word: str) -> None:
    assert re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", TEXT), word


def test_the_actions_are_those_of_the_language_in_their_direction() -> None:
    rows = re.findall(r"^\| (`[a-z.]+`(?: / `[a-z.]+`)?) \| ([a-z]+(?: / [a-z]+)?) \|", TEXT, re.M)
    said = {
        action.strip("`"): Direction(key)
        for actions, keys in rows
        for action, key in zip(actions.split(" / "), keys.split(" / "), strict=True)
    }
    assert said == ACTIONS


def test_what_the_first_example_says_is_so() -> None:
    policy = loads_policy(EXAMPLES[0])
    request = Request(
        "record.send", "stlukes.example", "validator", "breast-cancer-screening", "tumours", "synthetic",
        frozenset({"age", "name"}), {"records": 500},
    )  # fmt: skip
    assert policy.decide(request).obligations.redact == {"name", "phone"}
