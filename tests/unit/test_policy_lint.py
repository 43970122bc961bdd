"""What the linter finds, and what a file of cases reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from comity.errors import ConfigError
from comity_node.policy import cases
from comity_node.policy.lint import lint
from comity_node.policy.loader import loads_policy
from comity_node.strictyaml import loads

TOP = """\
version: 1
organization: mercy.example
purposes: {research: {}, screening: {parent: research}}
datasets:
  tumours:
    classification: confidential
    schema: {age: {type: integer}, size: {type: number}, t.x: {type: string, personal: false}}
rules:
  - id: base
    effect: allow
    action: record.send
    to: {organization: [stlukes.example]}
    data: {dataset: tumours, kind: synthetic}
"""


def findings(rules: str, top: str = TOP) -> list[tuple[str, str]]:
    policy = loads_policy(top + rules, file="p.yaml")
    return [(each.code, each.message) for each in lint(policy, ["mercy.example", "stlukes.example", "hope.example"])]


def test_nothing_to_find() -> None:
    assert findings("") == []


SEND = "effect: allow, action: record.send, to: {organization: [stlukes.example]}"
SAME = f"{SEND}, data: {{dataset: tumours, kind: synthetic}}"


@pytest.mark.parametrize(
    ("rule", "code", "message"),
    [
        ("{id: x, effect: allow, action: agent.discover, to: {organization: [stluke.example]}}",
         "unknown-organization", 'stluke.example, which is no member; did you mean "stlukes.example"'),
        ("{id: x, effect: allow, action: agent.discover, to: {organization: [mercy.example]}}",
         "own-organization", "as the other side"),
        ("{id: x, effect: forbid, action: '*'}", "forbids-all", "x forbids everything"),
        ("{id: x, effect: forbid, action: [tunnel.open]}", "forbids-all", "every tunnel.open"),
        ("{id: x, effect: forbid, action: record.send, data: {kind: synthetic}}",
         "unreachable", "base never allows anything: x forbids all of it"),
        ("{id: x, effect: allow, action: record.send, to: {organization: '*'}, data: {kind: synthetic}}",
         "shadowed", "base changes nothing: x matches wherever it does"),
        (f"{{id: x, {SAME}, purpose: [screening], when: {{records: {{max: 5}}}}}}",
         "shadowed", "x changes nothing: base matches"),
        (f"{{id: x, {SAME}}}", "shadowed", "x changes nothing: base matches"),
        (f"{{id: x, {SEND}}}", "any-kind", "raw ones too"),
        ("{id: x, effect: allow, action: '*', with: {organization: '*'}, data: {kind: update}}",
         "any-action", "every action"),
        (f"{{id: x, {SEND}, data: {{kind: synthetic, dataset: tumours, classification: public}}}}",
         "unmeetable", "x asks for a classification that none of its datasets has"),
        (f"{{id: x, {SEND}, data: {{kind: synthetic}}, obligations: {{redact: [agee]}}}}",
         "unknown-field", 'has a field agee; did you mean "age"'),
        (f"{{id: x, {SEND}, data: {{kind: synthetic}}, obligations: {{generalize: {{age: 0.5}}}}}}",
         "bad-grid", "age is of type integer"),
        (f"{{id: x, {SEND}, data: {{kind: synthetic}}, obligations: {{generalize: {{t.x: 2}}}}}}",
         "bad-grid", "t.x is of type string"),
    ],
)  # fmt: skip
def test_found(rule: str, code: str, message: str) -> None:
    found = findings(f"  - {rule}\n")
    assert any(code == each and message in text for each, text in found), found


@pytest.mark.parametrize(
    "rule",
    [
        f"{{id: x, {SEND}, data: {{kind: synthetic}}, obligations: {{redact: [t]}}}}",
        f"{{id: x, {SAME}, obligations: {{rate: {{records: 1, per: 1s}}}}}}",
        f"{{id: x, {SAME}, obligations: {{onward: allowed}}}}",
        f"{{id: x, {SEND}, data: {{dataset: tumours, kind: certified}}}}",
        "{id: x, effect: forbid, action: record.send, data: {kind: synthetic}, when: {records: {min: 5}}}",
        "{id: x, effect: forbid, action: record.send, data: {kind: synthetic}, purpose: [screening]}",
    ],
)
def test_rules_that_do_change_something_are_left_alone(rule: str) -> None:
    codes = {code for code, _ in findings(f"  - {rule}\n")}
    assert not codes & {"unreachable", "unknown-field", "forbids-all"}
    assert ("shadowed", "x changes nothing: base matches wherever it does") not in findings(f"  - {rule}\n")


def test_datasets_and_nothing_allowed() -> None:
    top = TOP.split("rules:")[0].replace("tumours:", "old:").replace("    schema", "    subject: x\n    schema")
    found = findings("", top + "rules: []\n")
    assert [code for code, _ in found] == ["nothing-allowed", "unused-purpose", "unused-purpose", "unused-dataset"]
    bare = "version: 1\norganization: mercy.example\ndatasets: {d: {classification: public}}\n"
    found = findings("  - {id: a, effect: forbid, action: update.send, data: {dataset: d}}\n", bare + "rules:\n")
    assert [code for code, _ in found] == ["nothing-allowed", "no-schema"]


def test_the_policys_own_name_is_checked_too() -> None:
    policy = loads_policy(TOP.replace("mercy.example", "mercyy.example"), file="p.yaml")
    (finding,) = lint(policy, ["mercy.example", "stlukes.example"])
    assert str(finding).endswith(
        'mercyy.example, which is no member; did you mean "mercy.example"? [unknown-organization]'
    )
    assert finding.to_json()["code"] == "unknown-organization"
    assert lint(policy) == ()


def test_what_no_agreement_promises_cannot_be_asked_of_records() -> None:
    from_all = "from: {organization: '*'}, data: {kind: synthetic}, obligations:"
    sign = f"  - {{id: sign, effect: allow, action: agreement.accept, {from_all} {{generalize: {{size: 10}}}}}}\n"
    take = f"  - {{id: take, effect: allow, action: record.receive, {from_all} %s}}\n"
    assert findings(sign + take % "{generalize: {size: 5}, min_distance_to_private: 3}") == []
    assert [code for code, _ in findings(sign + take % "{generalize: {size: 3}}")] == ["beyond-agreement"]
    assert [code for code, _ in findings(sign + take % "{redact: [age]}")] == ["beyond-agreement"]


CASES = """\
version: 1
policy: p.yaml
cases:
  - name: good
    request: {action: record.send, organization: stlukes.example, purpose: screening, dataset: tumours, kind: synthetic}
    expect: allow
    rules: [base]
    obligations: {onward: never}
  - name: wrong outcome
    request: {action: record.send, organization: hope.example, purpose: screening, dataset: tumours, kind: synthetic}
    expect: allow
  - name: wrong rules
    request: {action: record.send, organization: stlukes.example, dataset: tumours, labels: {records: 3}}
    expect: deny
    rules: []
  - name: looser
    request: {action: record.send, organization: stlukes.example, purpose: screening, dataset: tumours, kind: synthetic}
    expect: allow
    obligations: {redact: [age]}
"""


def test_a_report_names_what_failed_and_what_no_case_tests(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(TOP + "  - {id: unused, effect: forbid, action: tunnel.open}\n")
    path = tmp_path / "p.tests.yaml"
    path.write_text(CASES)
    report = cases.run(path)
    assert not report.passed
    assert [result.problem == "" for result in report.results] == [True, False, False, False]
    outcome, rules, looser = (str(failure) for failure in report.failures)
    assert outcome.startswith(
        f"{path}:9:5: wrong outcome: expected allow, but: no rule allows record.send to hope.example"
    )
    assert "expected it to be determined by the default, but it was by comity.incomplete-request" in rules
    assert "the obligations are looser than expected: {'onward': 'never'}" in looser
    assert report.untested == ("unused",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("policy: p.yaml", "policy: q.yaml", "no such file"),
        ("rules: [base]", "rules: [bass]", 'did you mean "base"'),
        ("expect: deny", "expect: no", 'unknown outcome "no"'),
        ("labels: {records: 3}", "labels: {record: 3}", 'did you mean "records"'),
        ("labels: {records: 3}", "labels: {records: x}", "expected a number"),
        ("labels: {records: 3}", "field: [a]", 'did you mean "fields"'),
        ("expect: deny", "expect: deny\n    obligations: {}", "a denial has no obligations"),
    ],
)
def test_a_file_of_cases_is_read_strictly(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(TOP)
    path = tmp_path / "p.tests.yaml"
    path.write_text(CASES.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        cases.run(path)


def test_a_request_is_read_from_yaml_or_json() -> None:
    labels = '{"tunnel": "a", "records": 2, "distinct_organizations": true}'
    request = cases.read_request(loads(f'{{"action": "tunnel.open", "organization": "b.example", "labels": {labels}}}'))
    assert request.labels == {"tunnel": "a", "records": 2.0, "distinct_organizations": True}
    assert (request.kind, request.fields) == ("", frozenset())
    with pytest.raises(ConfigError, match="unknown action"):
        cases.read_request(loads("{action: record.sell, organization: b.example}"))
