"""What the linter finds in the parts of the language beyond names: reach, conditions, obligations."""

from __future__ import annotations

import re

import pytest

from comity_node.policy import asked, findings
from comity_node.policy.conditions import LABELS
from comity_node.policy.lint import Finding, lint
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import ACTIONS, KINDS

NOW_MS = 1_790_000_000_000  # September 2026
TOP = """\
version: 1
organization: mercy.example
organizations: {stlukes.example: {jurisdiction: EU}, hope.example: {jurisdiction: US}}
groups: {partners: {organization: [stlukes.example, hope.example]}}
purposes: {research: {}}
datasets:
  tumours:
    classification: confidential
    schema:
      age: {type: integer, min: 0, max: 120}
      size: {type: number}
      note: {type: string, personal: false}
      grade: {type: string, values: [a, b]}
      name: {type: string}
rules:
"""
MEMBERS = ["mercy.example", "stlukes.example", "hope.example"]
TO = "effect: allow, action: record.send, to: {group: partners}, purpose: [research]"
SEND = f"{TO}, data: {{dataset: tumours, kind: synthetic}}"


def found(*rules: str, top: str = TOP) -> dict[str, Finding]:
    policy = loads_policy(top + "".join(f"  - {{{rule}}}\n" for rule in rules), file="p.yaml")
    return {each.code: each for each in lint(policy, MEMBERS, now_ms=NOW_MS)}


def sending(obligations: str = "", when: str = "", more: str = "drop_personal: true") -> str:
    duties = ", ".join(part for part in (more, obligations) if part)
    return f"id: x, {SEND}, when: {{{when}}}, obligations: {{{duties}}}"


def test_a_sound_policy_has_no_findings() -> None:
    assert found(sending("retain: 30d", "records: {max: 5}, time: {from: '08:00', to: '18:00'}")) == {}


@pytest.mark.parametrize(
    ("rule", "code", "level", "says"),
    [
        (sending(when="score: {min: 2}"), "never-met", "warning", "wants score at least 2, and it is from 0 to 1"),
        (sending(when="records: {max: -1}"), "never-met", "warning", "wants records at most -1"),
        (f"id: x, {TO.replace('group: partners', 'group: partners, skill: [a]')}, data: {{dataset: tumours, kind: "
         "synthetic}, when: {skill: [b]}, obligations: {drop_personal: true}",
         "never-met", "warning", "two different words for skill"),
        (f"id: x, {SEND.replace('group: partners', 'organization: [stlukes.example]')}, when: {{jurisdiction: US}}, "
         "obligations: {drop_personal: true}", "never-met", "warning", "none is in US"),
        (f"id: x, {SEND.replace('group: partners', 'organization: [new.example]')}, when: {{jurisdiction: US}}, "
         "obligations: {drop_personal: true}", "undecidable", "warning", "jurisdiction of new.example"),
        (sending(when="time: {from: '08:00', to: '09:00'}, time_ms: {min: 1790000000000, max: 1790000060000}"),
         "never-open", "warning", "not open in its range"),
        (sending().replace("group: partners", "group: partners, skill: [review]"), "never-stated", "warning",
         "asks for the label skill, which requests about record.send do not state"),
        ("id: x, effect: allow, action: review.send, to: {group: partners}, when: {quorum: {min: 2}}",
         "never-stated", "warning", "the label quorum"),
        ("id: x, effect: forbid, action: record.review, from: {group: partners}", "never-asked", "warning",
         "record.review, which no node asks about: it stops nothing; record.receive does"),
        ("id: x, effect: allow, action: record.review, from: {group: partners}, data: {dataset: tumours}",
         "never-asked", "warning", "it allows nothing; record.receive does"),
        (sending(when="tunnel: [x]"), "never-stated", "warning", "requests about record.send do not state"),
        (sending(when="norm: {max: 1}"), "never-stated", "warning", "the label norm"),
        (f"id: x, {TO}, data: {{dataset: tumours, kind: certified}}, obligations: {{drop_personal: true}}",
         "never-asked", "warning", "state only synthetic"),
        ("id: x, effect: allow, action: tunnel.open, to: {group: partners}, purpose: [research]",
         "never-asked", "warning", "asks for the purpose research; requests about tunnel.open state none"),
        ("id: x, effect: forbid, action: tunnel.open, data: {kind: raw}", "never-asked", "note", "state none"),
        (sending("generalize: {age: 200}"), "bad-grid", "note", "nothing is left"),
        (sending("generalize: {grade: 2}"), "bad-grid", "warning", "grade is of type string"),
        (sending("mask: {age: 2}"), "bad-form", "warning", "masks age, which is of type integer"),
        (sending("hash: [grade]"), "bad-form", "warning", "closed list of values"),
        (sending("noise: {note: {epsilon: 1, lower: 0, upper: 1}}, budget: {epsilon: 5}"),
         "bad-form", "warning", "adds noise to note"),
        (sending("noise: {size: {epsilon: 1, lower: 0, upper: 1}}"), "noise-unbounded", "warning", "without a budget"),
        (sending("budget: {epsilon: 5}"), "budget-unused", "note", "nothing is spent"),
        (sending("k_anonymity: {k: 5, fields: [age, zip]}"), "unknown-field", "warning", "a field zip"),
        (sending("quota: {records: 0}"), "nothing-left", "warning", "limit of 0"),
        (sending("rate: {records: 0, per: 1h}"), "nothing-left", "warning", "limit of 0"),
        (sending("approval: {within: 1d}"), "approval-unannounced", "note", "tells nobody"),
        (sending("expire: 2025-01-01"), "expired", "warning", "gone by 2025-01-01"),
        (sending(more=""), "personal-unsettled", "warning", "name of tumours"),
    ],
)  # fmt: skip
def test_it_finds(rule: str, code: str, level: str, says: str) -> None:
    codes = found(rule)
    assert code in codes, codes
    assert (codes[code].level, codes[code].place.startswith("p.yaml:")) == (level, True)
    assert says in codes[code].message


@pytest.mark.parametrize(
    "rule",
    [
        sending("mask: {note: 2}"),
        sending("hash: [age]"),  # what is hashed is not measured by the schema
        sending("generalize: {age: 5}, noise: {size: {epsilon: 1, lower: 0, upper: 9}}, budget: {epsilon: 5}"),
        sending("approval: {within: 1d}, notify: [steward]"),
        sending("expire: 2030-01-01"),
        sending("redact: [name]", more=""),
        sending(more="").replace("kind: synthetic", "kind: synthetic, personal: [name]"),
        sending(more="").replace("kind: synthetic", "kind: synthetic, fields: [age]"),
        sending(when="time: {from: '22:00', to: '06:00'}, time_ms: {min: 1790000000000}"),
        sending(when="distance: {min: 0.2}, reliability: {min: 0.5}"),
    ],
)
def test_it_leaves_alone_what_is_sound(rule: str) -> None:
    assert found(rule) == {}


def test_two_rules_that_say_the_opposite_of_each_other() -> None:
    forbid = f"id: y, {SEND}".replace("allow", "forbid")
    codes = found(sending(), forbid)
    assert "allows exactly what y (p.yaml:" in codes["contradiction"].message
    wider = forbid.replace(", purpose: [research]", "")
    assert "y forbids all of it" in found(sending(), wider)["unreachable"].message


ALL = {
    "organization": "to: {organization: [stlukes.example]}", "role": "role: [validator]", "skill": "skill: [a]",
    "dataset": "dataset: tumours", "kind": "kind: synthetic", "classification": "classification: confidential",
    "purpose": "purpose: [research]", "jurisdiction": "jurisdiction: EU", "number": "records: {min: 2, max: 5}",
    "flag": "distinct_organizations: true", "time": "time: {from: '08:00', to: '18:00', days: [mon, tue]}",
}  # fmt: skip
OTHER = {
    "organization": "to: {organization: [hope.example]}", "role": "role: [other]", "skill": "skill: [b]",
    "dataset": "dataset: letters", "kind": "kind: certified", "classification": "classification: public",
    "purpose": "purpose: [billing]", "jurisdiction": "jurisdiction: US", "number": "records: {min: 2, max: 4}",
    "flag": "distinct_organizations: false", "time": "time: {from: '08:00', to: '18:00', days: [mon]}",
}  # fmt: skip
MANY = TOP.replace("research: {}", "research: {}, billing: {}").replace(
    "rules:", "  letters: {classification: public, schema: {age: {type: integer}}}\nrules:"
)


def written(effect: str, said: dict[str, str]) -> str:
    def part(*names: str) -> str:
        return ", ".join(said[name] for name in names if name in said)

    side = said.get("organization", "to: {organization: '*'}").removesuffix("}")
    more = part("role", "skill")
    rule = [f"id: {effect}, effect: {effect}, action: record.send, {side}{', ' if more else ''}{more}}}"]
    rule += [f"data: {{{part('dataset', 'kind', 'classification')}}}"]
    rule += [f"when: {{{part('jurisdiction', 'number', 'flag', 'time')}}}", part("purpose")]
    return ", ".join(each for each in rule if each)


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_forbid_covers_an_allow_only_if_it_does_in_every_respect(name: str) -> None:
    allow = written("allow", ALL)
    without = {key: value for key, value in ALL.items() if key != name}
    assert "contradiction" in found(allow, written("forbid", ALL), top=MANY)
    assert "unreachable" in found(allow, written("forbid", without), top=MANY), "it asks for less, so it covers more"
    other = found(allow, written("forbid", {**ALL, name: OTHER[name]}), top=MANY)
    assert not {"contradiction", "unreachable"} & set(other)
    wider = found(written("allow", without), written("forbid", ALL), top=MANY)
    assert not {"contradiction", "unreachable"} & set(wider)


def test_a_forbid_about_fields_covers_no_allow() -> None:
    forbid = f"id: y, {SEND}".replace("allow", "forbid").replace("synthetic", "synthetic, fields: [age]")
    assert not {"contradiction", "unreachable"} & set(found(sending(), forbid))
    narrow = sending().replace("synthetic", "synthetic, fields: [age]")
    assert not {"contradiction", "unreachable"} & set(found(narrow, forbid))
    within = forbid.replace("id: y", "id: z").replace("fields: [age]", "fields: [age, size]")
    assert found(sending(), forbid, within)["shadowed"].message.startswith("y changes nothing: z")


def test_a_window_within_another_is_shadowed() -> None:
    day = sending(when="time: {from: '08:00', to: '18:00'}")
    noon = day.replace("id: x", "id: y").replace("'08:00', to: '18:00'", "'11:00', to: '12:00', zone: '+01:00'")
    assert "y changes nothing" in found(day, noon)["shadowed"].message
    assert "shadowed" not in found(day, noon.replace("'11:00'", "'08:30'"))
    assert "shadowed" not in found(day, noon.replace("true}", "true, quota: {records: 5}}"))


def test_forms_that_clash_where_rules_match_together() -> None:
    codes = found(sending("generalize: {age: 5}"), sending("hash: [age]").replace("id: x", "id: y"))
    assert codes["clash"].message.startswith("y and x ask for forms of age that no value has")


def test_groups_and_purposes_that_nobody_needs() -> None:
    top = TOP.replace("research: {}", "research: {}, billing: {}").replace(
        "groups: {", "groups: {others: {organization: [a.example]}, "
    )
    codes = found(sending(), top=top)
    assert "no rule names the group others" in codes["unused-group"].message
    assert "no rule is for the purpose billing" in codes["unused-purpose"].message
    assert "the group others has a.example, which is no member" in codes["unknown-organization"].message


def test_every_code_says_what_to_do() -> None:
    import inspect

    from comity_node.policy import lint_duties, lint_names, lint_reach, scopes

    text = "".join(map(inspect.getsource, (lint_names, lint_reach, lint_duties, scopes)))
    used = set(re.findall(r'(?:warn|note)\(\s*"([a-z-]+)"', text)) | set(re.findall(r'yield "([a-z-]+)"', text))
    assert used == set(findings.TODO)


def test_the_table_of_what_is_asked_speaks_the_language() -> None:
    assert set(asked.ASKED) <= set(ACTIONS)
    for each in asked.ASKED.values():
        assert each.labels <= set(LABELS)
        assert each.kinds <= set(KINDS)
