"""An agreement is terms that make sense, signed by every participant over the very same bytes."""

from __future__ import annotations

from typing import Any

import pytest

from comity.agreement import MAX_RECORDS, check_signature, conclude, open_agreement, parse_terms, sign_terms
from comity.errors import AgreementError, ComityError, TrustError
from comity.v1.agreement_pb2 import Agreement, Obligations, ReviewTerms
from kit.consortium import NOW_MS, Consortium, consortium, names
from kit.documents import agree, make_agreement, make_terms

MEMBERS = names(5)


@pytest.fixture(scope="module")
def lab() -> Consortium:
    return consortium(*MEMBERS)


def test_an_agreement(lab: Consortium) -> None:
    agreed = agree(lab)
    assert agreed.participants == frozenset(MEMBERS)
    assert agreed.reviewers(MEMBERS[0]) == frozenset(MEMBERS[1:])
    assert (agreed.rule.eligible, agreed.rule.faulty, agreed.rule.quorum) == (4, 1, 3)
    agreed.check_active(NOW_MS)
    with pytest.raises(AgreementError, match="has expired"):
        agreed.check_active(agreed.terms.expires_ms)
    with pytest.raises(AgreementError, match="has not begun"):
        agreed.check_active(agreed.terms.issued_ms - 60_000)


def test_an_agreement_is_in_force_from_its_first_millisecond_to_its_last_but_for_slow_clocks(lab: Consortium) -> None:
    agreed = agree(lab)
    first, over = agreed.terms.issued_ms - 30_000, agreed.terms.expires_ms
    agreed.check_active(first)
    agreed.check_active(over - 1)
    for at_ms in (first - 1, over, over + 1):
        with pytest.raises(AgreementError):
            agreed.check_active(at_ms)


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("missing", MEMBERS)
def test_everybody_has_to_sign(lab: Consortium, missing: str) -> None:
    signers = [name for name in MEMBERS if name != missing]
    with pytest.raises(AgreementError, match="one signature of each participant"):
        open_agreement(make_agreement(lab, signers=signers), lab.trust)
    twice = [*signers, signers[0]]
    with pytest.raises(AgreementError, match=f"not signed by {missing}"):
        open_agreement(make_agreement(lab, signers=twice), lab.trust)


@pytest.mark.invariant("S1")
def test_who_signs_twice_or_unasked(lab: Consortium) -> None:
    with pytest.raises(AgreementError, match="one signature of each participant"):
        open_agreement(make_agreement(lab, signers=[*MEMBERS, MEMBERS[0]]), lab.trust)
    review = ReviewTerms(eligible=3, quorum=2)
    few = make_terms(lab, MEMBERS[:4], review=review)
    with pytest.raises(AgreementError, match="one signature of each participant"):
        open_agreement(make_agreement(lab, few, signers=MEMBERS), lab.trust)
    open_agreement(make_agreement(lab, few), lab.trust)


@pytest.mark.invariant("S1")
def test_a_signature_over_other_terms(lab: Consortium) -> None:
    terms, other = make_terms(lab).SerializeToString(), make_terms(lab, purpose="marketing").SerializeToString()
    signatures = [sign_terms(lab.nodes[name], terms) for name in MEMBERS]
    signatures[2] = sign_terms(lab.nodes[MEMBERS[2]], other)
    with pytest.raises(AgreementError, match=f"{MEMBERS[2]} signed other terms"):
        open_agreement(conclude(terms, signatures), lab.trust)


@pytest.mark.invariant("S1")
def test_a_signature_in_the_name_of_another(lab: Consortium) -> None:
    terms = make_terms(lab).SerializeToString()
    liar = sign_terms(lab.nodes[MEMBERS[1]], terms)
    liar.organization = MEMBERS[2]
    with pytest.raises(AgreementError, match=f"{MEMBERS[2]} was made by somebody else"):
        check_signature(liar, terms, lab.trust, NOW_MS)
    borrowed = sign_terms(lab.nodes[MEMBERS[1]], terms)
    borrowed.organization = MEMBERS[2]
    del borrowed.chain[:]
    borrowed.chain.extend(lab.nodes[MEMBERS[2]].chain)
    with pytest.raises(AgreementError, match="made by somebody else"):
        check_signature(borrowed, terms, lab.trust, NOW_MS)


@pytest.mark.invariant("S1")
def test_signatures_of_another_consortium(lab: Consortium) -> None:
    others = consortium(*MEMBERS, name="elsewhere")
    with pytest.raises(AgreementError, match="of the consortium 'elsewhere'"):
        open_agreement(make_agreement(others), lab.trust)
    with pytest.raises(AgreementError, match="does not verify"):
        open_agreement(make_agreement(others, make_terms(lab)), lab.trust)
    twin = sign_terms(others.nodes[MEMBERS[0]], make_terms(lab).SerializeToString())
    with pytest.raises(TrustError):
        check_signature(twin, make_terms(lab).SerializeToString(), lab.trust, NOW_MS)


@pytest.mark.invariant("S2")
def test_any_changed_byte_is_refused(lab: Consortium) -> None:
    data = make_agreement(lab)
    for position in range(0, len(data), 13):
        changed = bytearray(data)
        changed[position] ^= 0x04
        try:
            read = open_agreement(bytes(changed), lab.trust)
        except ComityError:
            continue
        assert read.digest == agree(lab).digest, "only what nobody relies on may differ"
    for garbage in (b"", b"\xff", b"garbage", data[: len(data) // 2]):
        with pytest.raises(AgreementError):
            open_agreement(garbage, lab.trust)
    doubled = Agreement.FromString(data)
    doubled.terms += b"\x08\x01"
    with pytest.raises(AgreementError):
        open_agreement(doubled.SerializeToString(), lab.trust)


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"participants": list(reversed(MEMBERS))}, "sorted, distinct"),
        ({"participants": [*MEMBERS, MEMBERS[4]]}, "sorted, distinct"),
        ({"participants": MEMBERS[:1]}, "from 2 to 256"),
        ({"participants": ["Org.example", *MEMBERS[1:]]}, "no organization name"),
        ({"initiator": "nobody.example"}, "initiator does not take part"),
        ({"review": ReviewTerms(eligible=4, faulty=1, quorum=2)}, "quorum of 2 does not fit"),
        ({"review": ReviewTerms(eligible=4, faulty=2, quorum=4)}, "cannot bear 2 faulty"),
        ({"review": ReviewTerms(eligible=5, faulty=1, quorum=4)}, "author does not vote"),
        ({"review": ReviewTerms(eligible=4, faulty=1, quorum=3, min_score=10_001)}, "over 10000"),
        ({"records_per_organization": 0}, "records_per_organization"),
        ({"records_per_organization": MAX_RECORDS + 1}, "records_per_organization"),
        ({"purpose": "x" * 129}, "over 128 characters"),
        ({"dataset": "x" * 129}, "over 128 characters"),
        ({"id": "x" * 129}, "over 128 characters"),
        ({"batch_records": 0}, "batch_records"),
        ({"batch_records": 257}, "batch_records"),
        ({"repair_rounds": 11}, "repair_rounds"),
        ({"lease_seconds": 0}, "lease_seconds"),
        ({"lease_seconds": 3601}, "lease_seconds"),
        ({"expires_ms": NOW_MS}, "does not last"),
        ({"expires_ms": NOW_MS + 367 * 86_400_000}, "does not last"),
        ({"obligations": Obligations(onward="sometimes")}, "onward"),
        ({"obligations": Obligations(generalize={"x": 0.0})}, "grid"),
        ({"obligations": Obligations(generalize={"x": float("nan")})}, "grid"),
        ({"obligations": Obligations(min_distance_to_private=-1.0)}, "min_distance"),
        ({"obligations": Obligations(min_distance_to_private=float("nan"))}, "min_distance"),
        ({"obligations": Obligations(retain_seconds=2**63)}, "retain_seconds"),
        ({"obligations": Obligations(redact=[f"f{number}" for number in range(257)])}, "over 256 fields"),
    ],
)
def test_terms_that_make_no_sense(lab: Consortium, changes: dict[str, Any], reason: str) -> None:
    """However many sign them."""
    terms = make_terms(lab, **changes)
    with pytest.raises(AgreementError, match=reason):
        parse_terms(terms.SerializeToString())
    signers = [name for name in MEMBERS if name in terms.participants]
    with pytest.raises(AgreementError, match=reason):
        open_agreement(make_agreement(lab, terms, signers=signers), lab.trust)


@pytest.mark.invariant("S7")
def test_signatures_are_not_verified_before_there_is_one_of_each_participant(monkeypatch: pytest.MonkeyPatch) -> None:
    """One member can make any number of good signatures of its own: they cost nothing."""
    lab = consortium(*names(4))
    terms = make_terms(lab).SerializeToString()
    own = sign_terms(lab.nodes[names(4)[0]], terms)
    monkeypatch.setattr("comity.agreement.check_signature", None)
    with pytest.raises(AgreementError, match="not signed by"):
        open_agreement(conclude(terms, [own] * 4), lab.trust)
