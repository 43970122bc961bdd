"""How terms get stricter, and how strict they may get: one that asks for the impossible is out, not all the others."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from comity.errors import AgreementError, ConfigError
from comity.v1.agreement_pb2 import KAnonymity, Obligations, ReviewTerms, Terms
from comity_node.policy import obligations as duties
from comity_node.policy.model import LABELS, Effect, Label, NumberCondition, Rule
from comity_node.policy.model import Obligations as Owed
from comity_node.policy.model import ReviewTerms as OwedReview
from comity_node.runtime import bargain
from comity_node.runtime.bargain import Bounds
from comity_node.runtime.stricter import stricter
from comity_node.runtime.workflow import amendment, parse_workflow
from kit.consortium import NOW_MS, Consortium, consortium, names
from kit.documents import make_terms
from kit.lab import WORKFLOW

MEMBERS = names(5)
ME, *OTHERS = MEMBERS


@pytest.fixture(scope="module")
def lab() -> Consortium:
    return consortium(*MEMBERS)


def workflow(**changes: Any) -> bytes:
    return json.dumps({**WORKFLOW, **changes}).encode()


def bounds(**limits: Any) -> Bounds:
    return parse_workflow(workflow(records_per_organization=20, limits=limits)).bounds("label")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"records_per_organization": 1}, "1 records, at least 2"),
        ({"review": ReviewTerms(eligible=4, faulty=1, quorum=3, min_score=9_501)}, "min_score of 9501"),
        ({"review": ReviewTerms(eligible=4, faulty=1, quorum=4, min_score=5_000)}, "quorum of 4 of 4, at most 3"),
        ({"obligations": Obligations(redact=["label"])}, "label"),
        ({"obligations": Obligations(hash=["label"])}, "label"),
        ({"obligations": Obligations(mask={"label": 2})}, "label"),
        ({"obligations": Obligations(retain_seconds=59)}, "kept 59 s"),
        ({"obligations": Obligations(expire_ms=NOW_MS + 59_999)}, "gone before"),
        ({"obligations": Obligations(k_anonymity=KAnonymity(k=11, fields=["x"]))}, "11 alike"),
    ],
)
def test_what_is_too_strict_without_a_word_from_the_workflow(
    lab: Consortium, changes: dict[str, Any], reason: str
) -> None:
    assert bounds().exceeded_by(make_terms(lab)) == ""
    assert reason in bounds().exceeded_by(make_terms(lab, **changes))


@pytest.mark.parametrize(
    ("limits", "changes"),
    [
        ({"minimum_records": 20}, {"records_per_organization": 19}),
        ({"maximum_min_score": 5_000}, {"review": ReviewTerms(eligible=4, faulty=1, quorum=3, min_score=5_001)}),
        ({"maximum_distance": 0.5}, {"obligations": Obligations(min_distance_to_private=0.6)}),
        ({"minimum_retain_seconds": 100}, {"obligations": Obligations(retain_seconds=99)}),
        ({"maximum_grid": {"x": 5}}, {"obligations": Obligations(generalize={"x": 6})}),
        ({"keep": ["x"]}, {"obligations": Obligations(redact=["x"])}),
        ({"keep": ["notes"]}, {"obligations": Obligations(redact=["notes.free_text"])}),
    ],
)
def test_what_the_workflow_says_it_can_live_with(
    lab: Consortium, limits: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert bounds().exceeded_by(make_terms(lab, **changes)) == ""
    assert bounds(**limits).exceeded_by(make_terms(lab)) == ""
    assert bounds(**limits).exceeded_by(make_terms(lab, **changes)) != ""


def test_a_workflow_can_bear_more_than_usual(lab: Consortium) -> None:
    all_of_them = ReviewTerms(eligible=4, faulty=1, quorum=4, min_score=9_900)
    terms = make_terms(lab, review=all_of_them, obligations=Obligations(redact=["label"]))
    assert bounds(maximum_quorum=4, maximum_min_score=9_900, keep=[]).exceeded_by(terms) == ""


@pytest.mark.parametrize(
    "limits",
    [
        7,
        {"minimum_recods": 1},
        {"minimum_records": 0},
        {"minimum_records": 1.5},
        {"minimum_records": True},
        {"maximum_distance": -1},
        {"maximum_distance": "0.1"},
        {"keep": "label"},
        {"keep": [""]},
        {"keep": [7]},
        {"maximum_grid": ["x"]},
        {"maximum_grid": {"x": "5"}},
    ],
)
def test_limits_that_are_none(limits: Any) -> None:
    with pytest.raises(ConfigError, match="limits"):
        parse_workflow(workflow(limits=limits))


def test_a_workflow_names_256_fields_that_stay() -> None:
    assert len(parse_workflow(workflow(limits={"keep": ["x"] * 256})).limits) == 1
    with pytest.raises(ConfigError, match="256 fields"):
        parse_workflow(workflow(limits={"keep": ["x"] * 257}))


def countered(terms: Terms, **changes: Any) -> bytes:
    counter = Terms.FromString(terms.SerializeToString())
    for name, value in changes.items():
        getattr(counter, name).CopyFrom(value) if hasattr(value, "CopyFrom") else setattr(counter, name, value)
    return counter.SerializeToString()


@pytest.mark.invariant("S9")
def test_the_strictest_of_all_is_what_everybody_signs_but_for_the_impossible(lab: Consortium) -> None:
    terms = make_terms(lab)
    counters = {
        OTHERS[0]: countered(terms, obligations=Obligations(onward="never", generalize={"x": 5})),
        OTHERS[1]: countered(terms, obligations=Obligations(onward="never", redact=["label"])),
        OTHERS[2]: countered(terms, records_per_organization=10),
    }
    stay = tuple(OTHERS)
    made = bargain.revise(terms.SerializeToString(), counters, stay, bounds(), "")
    assert list(made.out) == [OTHERS[1]]
    assert "label" in made.out[OTHERS[1]]
    revised = Terms.FromString(made.terms)
    assert revised.obligations.generalize["x"] == 5
    assert not revised.obligations.redact
    assert (revised.revision, revised.records_per_organization, revised.id) == (1, 10, terms.id)
    for name in (OTHERS[0], OTHERS[2]):
        floor = Terms.FromString(counters[name])
        assert duties.covers(duties.from_terms(revised.obligations), duties.from_terms(floor.obligations))


@pytest.mark.invariant("S9")
def test_two_that_can_be_borne_alone_and_not_together(lab: Consortium) -> None:
    """Grids of 999,983 and 999,979 have no common one up to 1e9: the field would be redacted."""
    terms = make_terms(lab)
    first, second = (
        countered(terms, obligations=Obligations(onward="never", generalize={"label": grid}))
        for grid in (999_983.0, 999_979.0)
    )
    made = bargain.revise(
        terms.SerializeToString(), {OTHERS[1]: second, OTHERS[0]: first}, tuple(OTHERS), bounds(), "f"
    )
    assert list(made.out) == [OTHERS[1]]
    revised = Terms.FromString(made.terms)
    assert dict(revised.obligations.generalize) == {"label": 999_983.0}
    assert revised.id == "f"


def test_terms_for_fewer_have_a_quorum_of_fewer(lab: Consortium) -> None:
    made = bargain.revise(make_terms(lab).SerializeToString(), {}, tuple(OTHERS[:2]), bounds(), "")
    revised = Terms.FromString(made.terms)
    assert list(revised.participants) == [ME, *OTHERS[:2]]
    assert (revised.review.eligible, revised.review.faulty, revised.review.quorum) == (2, 0, 2)


def test_counter_offers_that_are_looser_or_about_something_else(lab: Consortium) -> None:
    terms = make_terms(lab, obligations=Obligations(onward="never", redact=["name"]))
    bargain.check_counter(terms, terms)
    for changes in (
        {"purpose": "marketing"},
        {"id": "other"},
        {"expires_ms": terms.expires_ms + 1},
        {"batch_records": 1},
        {"replaces": bytes(32)},
        {"records_per_organization": 21},
        {"obligations": Obligations(onward="never")},
        {"review": ReviewTerms(eligible=4, faulty=1, quorum=2, min_score=5_000)},
        {"review": ReviewTerms(eligible=4, faulty=1, quorum=3, min_score=4_999)},
    ):
        with pytest.raises(AgreementError):
            bargain.check_counter(terms, Terms.FromString(countered(terms, **changes)))


def test_terms_are_brought_up_to_what_is_owed_and_never_down(lab: Consortium) -> None:
    terms = make_terms(lab, obligations=Obligations(onward="never", redact=["name"]))
    bargain.tighten(terms, Owed(redact=frozenset({"age"}), review=OwedReview(quorum=4, min_score=0.2)))
    assert sorted(terms.obligations.redact) == ["age", "name"]
    assert (terms.review.quorum, terms.review.min_score) == (4, 5_000)
    with pytest.raises(AgreementError, match="a quorum of 9"):
        bargain.tighten(terms, Owed(review=OwedReview(quorum=9)))


def test_a_policy_can_ask_for_everything_that_terms_say(lab: Consortium) -> None:
    labels = bargain.labels_of(make_terms(lab))
    assert set(labels) <= set(LABELS)
    assert {name for name in labels if LABELS[name] is Label.FLAG} == {"distinct_organizations"}
    assert labels["lifetime_seconds"] == 3_600
    assert labels["min_score"] == 0.5
    assert (labels["eligible"], labels["faulty"], labels["quorum"], labels["participants"]) == (4, 1, 3, 5)


def test_an_amendment_is_the_old_terms_but_for_what_it_says(lab: Consortium) -> None:
    terms, digest = make_terms(lab), bytes(range(32))
    spec = parse_workflow(amendment(terms, digest, b'{"min_score": 600, "limits": {"minimum_records": 5}}', OTHERS[0]))
    assert spec.replaces == digest
    assert spec.participants == tuple(name for name in MEMBERS if name != OTHERS[0])
    assert spec.numbers["min_score"] == 600
    assert spec.numbers["minimum_participants"] == len(MEMBERS)
    kept = ("records_per_organization", "batch_records", "repair_rounds", "lease_seconds")
    assert [spec.numbers[name] for name in kept] == [getattr(terms, name) for name in kept]
    for changes in (b"{}", b"[]", b"{", b'{"participants": []}', b'{"dataset": "other"}', b'{"min_score": -1}'):
        with pytest.raises(ConfigError):
            amendment(terms, digest, changes, OTHERS[0])
    for replaces in ("zz", "00", 7):
        with pytest.raises(ConfigError, match="replaces"):
            parse_workflow(workflow(replaces=replaces))


def test_a_counter_offer_in_words(lab: Consortium) -> None:
    terms = make_terms(lab)
    wanted = Obligations(onward="never", redact=["name"], min_distance_to_private=0.3, retain_seconds=60)
    counter = Terms.FromString(countered(terms, obligations=wanted, records_per_organization=7))
    assert bargain.wishes(terms, counter) == (
        "would sign: min_distance_to_private 0.3; redact name; a stricter retain; 7 records"
    )


def test_a_negotiation_ends_before_its_terms_do() -> None:
    assert bargain.lasting(10, 1_000, 60_000) == 11_000
    assert bargain.lasting(3_600, 1_000, 60_000) == 60_000


def test_what_a_rule_would_accept_instead(lab: Consortium) -> None:
    def rule(*conditions: NumberCondition, effect: Effect = Effect.ALLOW, action: str = "agreement.accept") -> Rule:
        return Rule("r", effect, frozenset({action}), conditions=conditions)

    few, many = NumberCondition("records", -math.inf, 7.5), NumberCondition("quorum", 4, math.inf)
    terms = make_terms(lab)
    assert list(stricter(terms, [rule(), rule(few, effect=Effect.FORBID), rule(few, action="record.send")])) == []
    (fewer,) = stricter(terms, [rule(few)])
    assert fewer.records_per_organization == 7
    fewer.records_per_organization = terms.records_per_organization
    assert fewer == terms, "nothing else is another"
    (more,) = stricter(terms, [rule(many, NumberCondition("min_score", 0.61, 1))])
    assert (more.review.quorum, more.review.min_score) == (4, 6_100)
    for limit in (
        NumberCondition("quorum", 5, math.inf),  # of four reviewers
        NumberCondition("records", -math.inf, 0.5),
        NumberCondition("participants", -math.inf, 3),  # not for a counter-offer to say
        NumberCondition("records", 100, math.inf),  # looser
    ):
        assert list(stricter(terms, [rule(limit)])) == []
    assert len(list(stricter(terms, [rule(few)] * 100))) == 64
