"""The published JSON Schema takes what the loader takes, refuses what has another shape, and is the current one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from comity.errors import ConfigError
from comity_node.policy import cases
from comity_node.policy.json_schema import cases_schema, policy_schema
from comity_node.policy.model import ACTIONS, LABELS
from comity_node.policy.read_duties import OBLIGATIONS
from comity_node.strictyaml import load, loads
from kit.bad_policies import DATA, FILES, HEAD, MORE, ONE_RULE, RULE, RULES, START, TOPS, WHOLE_RULES

ROOT = Path(__file__).parents[2]
VALIDATOR = Draft202012Validator(policy_schema())
CASES = Draft202012Validator(cases_schema())
HEADER = "version: 1\norganization: mercy.example\n"

#: What a schema cannot see: something that is said elsewhere, that contradicts itself, or that is no JSON.
BEYOND = [
    "unknown (group|dataset|jurisdiction|purpose)", "holds itself", "own ancestor", "min is above max", "min is above",
    "already (there|taken)", "no such file", "anchors", "tags", "second document", "listed twice.*",
    "are the same", "cannot begin", "masked and hashed", "all the forms", "lower is not below", "six decimals",
    "from 1s", "before 1970", "no day such", "known: g", "known: a",
]  # fmt: skip


def refusals() -> list[tuple[str, str]]:
    """Every policy that a test of the loader has refused, and what is said about it."""
    found = [(HEAD + RULE.format(rest=rest), message) for rest, message in RULES]
    found += [(START + more, message) for more, message in TOPS]
    found += [(f"{HEADER}{DATA}\nrules:\n{ONE_RULE.format(more=more)}", message) for more, message in MORE]
    found += [(f"{HEADER}rules:\n  - {rule}", message) for rule, message in WHOLE_RULES]
    return [(text.replace("@", ""), message) for text, message in found] + list(FILES)


@pytest.mark.parametrize(("name", "make"), [("policy.schema.json", policy_schema), ("cases.schema.json", cases_schema)])
def test_the_published_schema_is_current(name: str, make: Callable[[], dict[str, Any]]) -> None:
    published = (ROOT / "policies" / name).read_text(encoding="utf-8")
    assert published == json.dumps(make(), indent=1) + "\n", "run scripts/gen_policy_schema.py"
    Draft202012Validator.check_schema(make())


@pytest.mark.parametrize("path", sorted((ROOT / "policies").glob("*.tests.yaml")))
def test_the_cases_of_the_packs_have_the_shape(path: Path) -> None:
    assert [error.message for error in CASES.iter_errors(load(path).data())] == []


def test_a_file_of_cases_has_the_keys_that_are_read() -> None:
    case = cases_schema()["properties"]["cases"]["items"]["properties"]
    assert tuple(case) == cases._CASE
    assert tuple(case["request"]["properties"]) == cases._REQUEST


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    "case",
    [
        "{}",
        "{name: n, request: {action: record.send, organization: a.example}}",
        "{name: n, request: {action: record.send}, expect: allow}",
        "{name: n, request: {action: record.sned, organization: a.example}, expect: allow}",
        "{name: n, request: {action: record.send, organization: a.example, labels: {sice: 1}}, expect: allow}",
        "{name: n, request: {action: record.send, organization: a.example, labels: {k: many}}, expect: allow}",
        "{name: n, request: {action: record.send, organization: a.example}, expect: no}",
        "{name: n, request: {action: news.send, organization: a.example}, expect: deny, obligations: {onward: never}}",
        "{name: n, request: {action: news.send, organization: a.example}, expect: allow, obligations: {redacts: [a]}}",
    ],
)
def test_a_case_of_another_shape_is_refused_by_both(case: str, tmp_path: Path) -> None:
    text = f"version: 1\npolicy: p.yaml\ncases:\n  - {case}\n"
    (tmp_path / "p.yaml").write_text(START)
    (tmp_path / "p.tests.yaml").write_text(text)
    assert not CASES.is_valid(loads(text).data())
    with pytest.raises(ConfigError):
        cases.run(tmp_path / "p.tests.yaml")


@pytest.mark.parametrize(
    "path", sorted(path for path in (ROOT / "policies").glob("*.yaml") if not path.name.endswith(".tests.yaml"))
)
def test_the_packs_have_the_shape(path: Path) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(load(path).data())] == []


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(("text", "message"), refusals())
def test_what_the_loader_refuses_for_its_shape_the_schema_refuses(text: str, message: str) -> None:
    try:
        data = loads(text).data()
    except ConfigError:
        return
    if VALIDATOR.is_valid(data):
        assert any(re.search(pattern, message) for pattern in BEYOND), text


def test_most_of_what_is_refused_is_refused_by_the_schema() -> None:
    texts = [text for text, _ in refusals()]
    assert len(texts) > 130
    seen = 0
    for text in texts:
        try:
            seen += not VALIDATOR.is_valid(loads(text).data())
        except ConfigError:
            seen += 1
    assert seen > 0.75 * len(texts)


def test_an_editor_offers_every_word_of_the_language() -> None:
    rule = policy_schema()["properties"]["rules"]["items"]["properties"]

    def enum(schema: Any) -> set[str]:
        if isinstance(schema, dict):
            return set(schema.get("enum", ())).union(*(enum(value) for value in schema.values()))
        return set[str]().union(*(enum(value) for value in schema)) if isinstance(schema, list) else set()

    assert enum(rule["action"]) == set(ACTIONS)
    assert set(rule["when"]["properties"]) == {*LABELS, "time", "jurisdiction"}
    assert set(rule["obligations"]["properties"]) == set(OBLIGATIONS)
    assert all("description" in each for each in rule["obligations"]["properties"].values())
