"""Groups, jurisdictions, skills, fields, times and the obligations of rules: from YAML to a decision."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from comity.errors import ConfigError
from comity_node.policy.engine import Policy
from comity_node.policy.explain import explain
from comity_node.policy.loader import loads_policy
from comity_node.policy.matching import examine
from comity_node.policy.model import LABELS, PERSONAL, Decision, LabelValue, Request, TextCondition, TimeCondition
from comity_node.policy.obligations import (
    Approval,
    Budget,
    KAnonymity,
    Noise,
    Obligations,
    Onward,
    Quota,
    covers,
)

TOP = """\
version: 1
organization: own.example
organizations:
  a.example: {jurisdiction: EU}
  b.example: {jurisdiction: [EU, DE]}
  u.example: {jurisdiction: US}
groups:
  partners: {organization: [x.example], group: [hospitals, banks]}
  hospitals: {organization: [a.example, b.example]}
  banks: {organization: u.example}
datasets:
  people:
    classification: restricted
    schema: {name: {type: string}, age: {type: integer}, zip: {type: string, values: ["1", "2"]}, size: {type: number}}
  letters: {classification: internal}
rules:
"""


def policy(*rules: str) -> Policy:
    return loads_policy(TOP + "".join(f"  - {{{rule}}}\n" for rule in rules), file="p.yaml")


def allow(rest: str, to: str = 'organization: "*"') -> str:
    return f"id: r, effect: allow, action: record.send, to: {{{to}}}{rest}"


def ask(
    decider: Policy,
    organization: str = "a.example",
    *,
    dataset: str = "people",
    fields: str = "age",
    **labels: LabelValue,
) -> Decision:
    return asked_with(decider, labels, organization, dataset, fields)


def asked_with(
    decider: Policy, labels: dict[str, LabelValue], organization: str = "a.example", dataset: str = "people",
    fields: str = "age",
) -> Decision:  # fmt: skip
    names = frozenset(fields.split())
    return decider.decide(Request("record.send", organization, "", "p", dataset, "synthetic", names, labels))


def test_a_group_stands_for_its_organizations_and_those_of_the_groups_in_it() -> None:
    for to, members in {
        "group: hospitals": "ab",
        "group: [hospitals, banks]": "abu",
        "group: partners": "abux",
        "group: banks, organization: [z.example]": "uz",
    }.items():
        decider = policy(allow("", to))
        (rule,) = decider.document.rules
        assert rule.organizations == frozenset(f"{member}.example" for member in members)
        assert [name for name in "abuxz" if ask(decider, f"{name}.example").allowed] == list(members)
    assert rule.groups == {"banks"}
    assert decider.document.groups["partners"] == {"a.example", "b.example", "u.example", "x.example"}


def test_a_group_may_be_forbidden_too() -> None:
    decider = policy(allow(""), "id: no, effect: forbid, action: record.send, to: {group: hospitals}")
    assert ask(decider, "b.example").rules == ("no",)
    assert ask(decider, "u.example").allowed


@pytest.mark.invariant("S3")
def test_a_jurisdiction_that_is_not_known_denies() -> None:
    decider = policy(allow(", when: {jurisdiction: [DE, US]}"))
    assert [name for name in "abux" if ask(decider, f"{name}.example").allowed] == ["b", "u"]
    assert ask(decider, "a.example").near_misses[0].mismatches[0].condition == "jurisdiction"
    unknown = ask(decider, "x.example")
    assert (unknown.allowed, unknown.rules) == (False, ("r",))
    assert "the policy states no jurisdiction of x.example" in unknown.reason
    forbidding = policy(allow(""), "id: no, effect: forbid, action: '*', when: {jurisdiction: US}")
    assert [name for name in "abux" if ask(forbidding, f"{name}.example").allowed] == ["a", "b"]


@pytest.mark.invariant("S3")
def test_a_skill_is_of_the_other_side() -> None:
    decider = policy(allow("", 'organization: "*", skill: [review, train]'))
    assert decider.document.rules[0].conditions == (TextCondition("skill", frozenset({"review", "train"})),)
    assert ask(decider, skill="review").allowed
    assert not ask(decider, skill="other").rules
    assert ask(decider).rules == ("r",)


@pytest.mark.invariant("S3")
def test_an_allow_rule_for_fields_lets_only_these_pass() -> None:
    decider = policy(allow(", data: {fields: [age, zip], dataset: people}, obligations: {drop_personal: true}"))
    assert ask(decider, fields="age zip").allowed
    assert ask(decider, fields="age name").obligations.redact == {"name"}
    missed = ask(decider, fields="age size")
    assert [str(each) for each in missed.near_misses] == ["r (fields is size, wanted only age or zip)"]
    assert "the request does not state its fields" in ask(decider, fields="").reason
    assert ask(decider, fields="").rules == ("r",)


@pytest.mark.invariant("S3")
def test_a_forbid_rule_for_fields_matches_as_soon_as_one_is_there() -> None:
    forbid = "id: no, effect: forbid, action: record.send, data: {fields: [size, deep.part]}"
    decider = policy(allow(""), forbid)
    assert ask(decider, dataset="letters", fields="age zip").allowed
    for fields in ("age size", "deep.part", "deep", "deep.part.more"):
        assert ask(decider, dataset="letters", fields=fields).rules == ("no",), fields
    assert "cannot be decided" in ask(decider, dataset="letters", fields="").reason


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ('from: "08:00", to: "18:00"', ["2026-11-23T08:00+00:00", "2026-11-22T17:59:59.999+00:00"],
         ["2026-11-23T07:59:59.999+00:00", "2026-11-23T18:00+00:00"]),
        ('from: "08:00", to: "18:00", zone: "+01:00"', ["2026-11-23T07:00+00:00"], ["2026-11-23T17:00+00:00"]),
        ('from: "08:00", to: "18:00", zone: "-05:30"', ["2026-11-23T13:30+00:00"], ["2026-11-23T13:29+00:00"]),
        ("days: [mon, tue]", ["2026-11-23T00:00+00:00", "2026-11-24T23:59+00:00"],
         ["2026-11-22T23:59+00:00", "2026-11-25T00:00+00:00"]),
        ('days: mon, zone: "+01:00"', ["2026-11-22T23:00+00:00"], ["2026-11-23T23:00+00:00"]),
        ('from: "22:00", to: "06:00", days: [fri]', ["2026-11-27T22:00+00:00", "2026-11-28T05:59+00:00"],
         ["2026-11-27T05:59+00:00", "2026-11-28T06:00+00:00", "2026-11-28T22:00+00:00"]),
        ('from: "22:00", to: "06:00", days: [sun]', ["2026-11-23T05:00+00:00"], ["2026-11-22T05:00+00:00"]),
        ('from: "12:00", to: "24:00"', ["2026-11-23T23:59+00:00"], ["2026-11-23T00:00+00:00"]),
    ],
)  # fmt: skip
def test_a_window_of_time(window: str, inside: list[str], outside: list[str]) -> None:
    decider = policy(allow(f", when: {{time: {{{window}}}}}"))
    (condition,) = decider.document.rules[0].conditions
    assert isinstance(condition, TimeCondition)
    for text in inside:
        assert ask(decider, time_ms=at(text)).allowed, text
    for text in outside:
        denied = ask(decider, time_ms=at(text))
        assert not denied.allowed
        assert denied.near_misses[0].mismatches[0].condition == "label time_ms"


def test_a_window_is_what_a_calendar_says() -> None:
    decider = policy(allow(', when: {time: {from: "21:30", to: "02:15", days: [wed, sun], zone: "-03:30"}}'))
    zone = timezone(timedelta(hours=-3, minutes=-30))
    for hour in range(24 * 15):
        for minute in (14, 15, 29, 30):
            moment = datetime(2026, 2, 20, tzinfo=UTC) + timedelta(hours=hour, minutes=minute)
            local = moment.astimezone(zone)
            clock = (local.hour, local.minute)
            evening = clock >= (21, 30) and local.weekday() in (2, 6)
            night = clock < (2, 15) and (local - timedelta(days=1)).weekday() in (2, 6)
            asked = ask(decider, time_ms=int(moment.timestamp() * 1000))
            assert asked.allowed == (evening or night), local


@pytest.mark.invariant("S3")
@pytest.mark.parametrize("time", [None, "08:00", True, -1, float("nan"), 10**18])
def test_without_a_sound_time_a_window_denies(time: LabelValue | None) -> None:
    decider = policy(allow(', when: {time: {from: "00:00", to: "24:00"}}'))
    labels: dict[str, LabelValue] = {} if time is None else {"time_ms": time}
    assert asked_with(decider, labels).rules == ("r",)
    assert "cannot be decided" in asked_with(decider, labels).reason


def test_a_near_miss_tells_the_time_as_the_rule_sees_it() -> None:
    decider = policy(allow(', when: {time: {from: "08:00", to: "18:00", days: [mon, fri], zone: "+01:00"}}'))
    (miss,) = ask(decider, time_ms=at("2026-11-22T12:00+00:00")).near_misses
    said = "label time_ms is sun 13:00 (+01:00), wanted from 08:00 to 18:00 on mon, fri (+01:00)"
    assert str(miss) == f"r ({said})"


@pytest.mark.invariant("S3")
@pytest.mark.parametrize("label", sorted(LABELS))
def test_a_label_that_a_rule_asks_about_and_nobody_states_denies(label: str) -> None:
    wanted = {"number": "{min: 0}", "text": "[x]", "flag": "true"}[LABELS[label].value]
    asked = ask(policy(allow(f", when: {{{label}: {wanted}}}")))
    assert (asked.allowed, asked.rules) == (False, ("r",))
    assert f"the request has no label '{label}'" in asked.reason


DUTIES = """, obligations: {redact: [notes], drop_personal: true, generalize: {age: 5}, mask: {phone: 4},
  hash: [patient], noise: {size: {epsilon: 0.5, lower: 0, upper: 10}}, budget: {epsilon: 3, per: [recipient, purpose]},
  k_anonymity: {k: 5, fields: [age, zip]}, quota: {records: 1000}, expire: 2027-01-01, notify: [dpo, desk],
  approval: {within: 24h}, onward: with_consent}"""


def test_all_obligations_are_read() -> None:
    decider = policy(allow(DUTIES))
    (rule,) = decider.document.rules
    assert rule.obligations == Obligations(
        redact=frozenset({"notes"}),
        drop_personal=True,
        generalize={"age": 5},
        mask={"phone": 4},
        hash=frozenset({"patient"}),
        noise={"size": Noise(0.5, 0, 10)},
        budgets=(Budget(3, ("purpose", "recipient"), "r"),),
        k_anonymity=KAnonymity(5, frozenset({"age", "zip"})),
        quotas=(Quota(1000, "r"),),
        expire_ms=at("2027-01-01T00:00+00:00"),
        notify=frozenset({"dpo", "desk"}),
        approvals=(Approval(24 * 3_600_000, "r"),),
        onward=Onward.WITH_CONSENT,
    )
    asked = ask(decider, fields="age name").obligations
    assert asked.redact == {"name", "notes"}
    assert not asked.drop_personal


@pytest.mark.parametrize(("text", "moment"), [
    ("2027-01-01T12:30:00Z", "2027-01-01T12:30+00:00"), ('"2027-06-30"', "2027-06-30T00:00+00:00"),
])  # fmt: skip
def test_a_time_of_expiry(text: str, moment: str) -> None:
    decider = policy(allow(f", obligations: {{expire: {text}}}"))
    assert ask(decider).obligations.expire_ms == at(moment)


@pytest.mark.invariant("S3")
@pytest.mark.parametrize("dataset", ["letters", "nowhere"])
def test_personal_fields_that_nobody_knows_cannot_be_dropped(dataset: str) -> None:
    decider = policy(allow(", obligations: {drop_personal: true}"))
    for fields in ("age", ""):
        asked = ask(decider, dataset=dataset, fields=fields)
        assert (asked.allowed, asked.rules) == (False, (PERSONAL,))
        assert f"the dataset '{dataset}' has no schema" in asked.reason
    cards = policy(
        'id: c, effect: allow, action: agent.discover, to: {organization: "*"}, obligations: {drop_personal: true}'
    )
    assert "there is no dataset" in cards.decide(Request("agent.discover", "a.example")).reason


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("form", ["mask: {name: 2}", "hash: [name]", "k_anonymity: {k: 2, fields: [name]}"])
def test_a_pseudonym_is_still_personal(form: str) -> None:
    assert ask(policy(allow(f", obligations: {{{form}}}")), fields="name").rules == (PERSONAL,)
    by_name = policy(allow(f", data: {{personal: [name]}}, obligations: {{{form}}}"))
    assert covers(ask(by_name, fields="name").obligations, by_name.document.rules[0].obligations)


@pytest.mark.invariant("S1")
def test_forms_that_clash_redact_a_personal_field_but_do_not_let_it_pass() -> None:
    grid = allow(", obligations: {generalize: {name: 1}}").replace("r,", "s,", 1)
    two = policy(allow(", obligations: {hash: [name]}"), grid)
    assert ask(two, fields="name").rules == (PERSONAL,)
    assert ask(two, fields="age").obligations.redact == {"name"}


@pytest.mark.invariant("S1")
def test_every_dataset_has_its_own_personal_fields() -> None:
    letters = "letters: {classification: internal"
    top = TOP.replace(letters, f"{letters}, schema: {{to: {{type: string}}}}")
    decider = loads_policy(f"{top}  - {{{allow(', obligations: {drop_personal: true}')}}}\n")
    assert ask(decider, dataset="people", fields="age").obligations.redact == {"name"}
    assert ask(decider, dataset="letters", fields="to").obligations.redact == {"to"}
    assert ask(decider, dataset="people", fields="name").obligations.redact == {"name"}


def test_explain_tells_what_the_engine_does() -> None:
    decider = policy(allow(", data: {fields: [age]}, when: {jurisdiction: EU}", "group: partners"))
    request = Request("record.send", "u.example", "", "p", "people", "synthetic", frozenset({"size"}))
    examined = examine(decider.document, decider.document.rules[0], request)
    assert [each.condition for each in examined.mismatches] == ["jurisdiction", "fields"]
    assert "jurisdiction is US, wanted EU" in explain(decider, request).text()


PURPOSES = """
version: 1
organization: own.example
purposes: {care: {}, marketing: {}}
rules:
  - {id: all, effect: allow, action: tunnel.open, to: {organization: "*"}}
  - {id: records, effect: allow, action: record.send, to: {organization: "*"}}
  - {id: never, effect: forbid, action: "*", purpose: marketing}
"""


@pytest.mark.invariant("S3")
@pytest.mark.parametrize("purpose", ["Marketing", "marketing ", "sales"])
def test_where_purposes_are_declared_another_word_is_none(purpose: str) -> None:
    policy = loads_policy(PURPOSES)
    said = Request("record.send", "peer.example", dataset="rows", kind="synthetic")
    decision = policy.decide(replace(said, purpose=purpose))
    assert (decision.allowed, decision.rules) == (False, ("comity.incomplete-request",))
    assert not policy.decide(replace(said, purpose="marketing")).allowed
    assert policy.decide(replace(said, purpose="care")).allowed
    assert policy.decide(Request(action="tunnel.open", organization="peer.example")).allowed  # which has no purpose


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    "duty",
    ['redact: "*"', 'redact: ["notes.*"]', 'k_anonymity: {k: 5, fields: "*"}', 'mask: {"*": 2}', 'hash: ["*"]'],
)
def test_a_star_does_not_pass_for_all_fields(duty: str) -> None:
    text = f"""
version: 1
organization: own.example
rules:
  - {{id: all, effect: allow, action: record.send, to: {{organization: "*"}}, obligations: {{{duty}}}}}
"""
    with pytest.raises(ConfigError, match="does not stand for all"):
        loads_policy(text)
