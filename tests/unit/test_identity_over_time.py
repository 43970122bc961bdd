"""Certificates are renewed, roots change, members leave: what was signed stays good, and nothing else becomes so."""

from __future__ import annotations

import json
import runpy
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path

import pytest

from comity.agreement import Agreed, conclude, open_agreement, sign_terms
from comity.bundle import read_bundle, remove_member, remove_root, verify_bundle
from comity.certificate import LINGER_MS, CheckedReview, build_certificate, check_review
from comity.digest import hex_digest
from comity.errors import (
    AgreementError,
    BundleInvalid,
    CertificateInvalid,
    ChainInvalid,
    ComityError,
    RevocationInvalid,
)
from comity.hops import RELEASE, SEND
from comity.provenance import make_provenance, verify_provenance
from comity.revocation import sign_revocation, verify_revocation
from comity.statement import PREDICATE_CERTIFIED_RECORD, Statement, Subject, ed25519_signer, sign_statement
from comity.trust import HANDOVER_MS, NodeIdentity, TrustStore
from comity.v1.task_pb2 import CertifiedRecord, Task
from kit.consortium import Consortium
from kit.documents import RECORD, TASK_ID, make_history, make_passage, make_review, make_terms, sign_review
from kit.epochs import BEGIN_MS, DAY_MS, authority, first, node_of, signed, with_root

A, B, C, D = (authority(name) for name in "abcd")
NEXT_A = authority("a", 1)
HOME, HOLDER, *VOTERS = (ca.organization for ca in (A, B, C, D))
ISSUED_MS = BEGIN_MS + DAY_MS
EXPIRES_MS = BEGIN_MS + 31 * DAY_MS

Nodes = Mapping[str, NodeIdentity]


def day(number: float) -> int:
    return BEGIN_MS + round(number * DAY_MS)


#: Certified for 15 days at the beginning, and again, with the same keys, on the tenth day.
OLD: Nodes = {ca.organization: node_of(ca, days=15) for ca in (A, B, C, D)}
NEW: Nodes = {ca.organization: node_of(ca, at_ms=day(10), key=OLD[ca.organization].key) for ca in (A, B, C, D)}
RAW = first("a", "b", "c", "d")


def store(raw: bytes = RAW, at_ms: int = day(40)) -> TrustStore:
    return TrustStore(verify_bundle(raw, now_ms=at_ms, own_ca=None))


def agreement(signers: Nodes = OLD) -> tuple[Agreed, bytes]:
    lab = Consortium(store(), RAW, OLD)
    terms = make_terms(lab, issued_ms=ISSUED_MS, expires_ms=EXPIRES_MS).SerializeToString()
    data = conclude(terms, [sign_terms(node, terms) for node in signers.values()])
    return open_agreement(data, store()), data


def certified(
    agreed: Agreed, nodes: Nodes, at_ms: int, *, made_ms: int | None = None, vote_ms: int | None = None
) -> CertifiedRecord:
    """A record that was made, voted on and released at a time (or with hops and votes dated otherwise)."""
    passages = [
        make_passage(at_ms=at_ms if made_ms is None else made_ms),
        *(make_passage(SEND, to=voter, at_ms=at_ms) for voter in (HOLDER, *VOTERS)),
        make_passage(RELEASE, to=HOLDER, at_ms=at_ms),
    ]
    votes = []
    for voter in (HOLDER, *VOTERS):
        review = make_review(agreed, voter, 9000, at_ms=at_ms if vote_ms is None else vote_ms, author=HOME)
        envelope = sign_review(nodes[voter], review)
        # Not checked here: what is signed now is judged by what verifies it later.
        votes.append(CheckedReview(review, envelope, nodes[voter].chain))
    task = Task(
        id=TASK_ID,
        agreement_digest=agreed.digest,
        home=HOME,
        record=RECORD,
        hops=make_history(nodes[HOME], passages),
    )
    certificate = build_certificate(votes, author=HOME, rule=agreed.rule, accept=True)
    return CertifiedRecord(task=task, certificate=certificate, home_chain=nodes[HOME].chain)


def proof(nodes: Nodes, at_ms: int, *, signed_ms: int | None = None, **dated: int) -> bytes:
    agreed, data = agreement()
    made = certified(agreed, nodes, at_ms, **dated)
    return make_provenance(nodes[HOLDER], made, data, at_ms=at_ms if signed_ms is None else signed_ms)


@pytest.mark.invariant("S9")
def test_records_of_before_and_after_a_renewal_verify_for_ever() -> None:
    for at_ms in (day(12), day(16), day(40), day(80)):  # the first certificates expired on the fifteenth day
        trust = store(at_ms=at_ms)
        assert verify_provenance(proof(OLD, day(2)), trust).holder == HOLDER
        assert verify_provenance(proof(NEW, day(12)), trust).holder == HOLDER
        assert verify_provenance(proof(NEW, day(20)), trust).author == HOME


@pytest.mark.invariant("S9")
def test_a_home_that_renews_its_certificate_while_a_task_is_under_way() -> None:
    verify_provenance(proof({**OLD, HOME: NEW[HOME]}, day(11), made_ms=day(9)), store())
    with pytest.raises(CertificateInvalid, match="dated before the one that it follows"):
        verify_provenance(proof({**OLD, HOME: NEW[HOME]}, day(11), made_ms=day(12)), store())


@pytest.mark.invariant("S9")
def test_a_home_that_renews_its_certificate_between_its_last_hop_and_the_statement() -> None:
    nodes = {**OLD, HOME: NEW[HOME]}
    verify_provenance(proof(nodes, day(9.9), signed_ms=day(10.1)), store())
    with pytest.raises(ChainInvalid, match=r"a\.example.*not valid yet"):
        verify_provenance(proof(nodes, day(9.9), signed_ms=day(9.95)), store())


@pytest.mark.invariant("S9")
@pytest.mark.parametrize(
    ("nodes", "at_ms", "dated", "reason"),
    [
        ({**OLD, HOME: OLD[HOME]}, day(15.5), {}, "expired"),
        ({**NEW, HOME: OLD[HOME]}, day(16), {}, "a.example.*has expired"),
        ({**NEW, HOLDER: OLD[HOLDER]}, day(16), {"vote_ms": day(16)}, "expired"),
        ({**NEW, HOME: NEW[HOME]}, day(9), {}, "not valid yet"),
        ({**OLD, VOTERS[0]: NEW[VOTERS[0]]}, day(9), {}, "c.example.*not valid yet"),
        (NEW, day(12), {"vote_ms": day(9)}, "not valid yet"),
        (OLD, day(2), {"vote_ms": ISSUED_MS - 60_001}, "a review is dated outside"),
        (NEW, day(12), {"vote_ms": EXPIRES_MS + LINGER_MS + 1}, "a review is dated outside"),
        (OLD, day(2), {"made_ms": ISSUED_MS - 60_001}, "hop 0 is dated outside"),
        (
            NEW,
            EXPIRES_MS + LINGER_MS + 1,
            {"made_ms": day(12), "vote_ms": day(12), "signed_ms": day(12)},
            "hop 1 is dated outside",
        ),
        (OLD, day(2), {"signed_ms": ISSUED_MS - 60_001}, "the statement is dated outside"),
        (NEW, day(12), {"signed_ms": EXPIRES_MS + LINGER_MS + 1}, "the statement is dated outside"),
        (OLD, day(2), {"signed_ms": day(15.1)}, "expired"),
        (NEW, day(12), {"signed_ms": day(9)}, "not valid yet"),
    ],
)
def test_a_signature_dated_outside_of_its_certificates_or_agreements_time_is_refused(
    nodes: Nodes, at_ms: int, dated: dict[str, int], reason: str
) -> None:
    with pytest.raises(ComityError, match=reason):
        verify_provenance(proof(nodes, at_ms, **dated), store())


@pytest.mark.invariant("S9")
def test_at_the_edges_of_an_agreements_time() -> None:
    verify_provenance(proof(OLD, day(2), made_ms=ISSUED_MS - 60_000), store())
    verify_provenance(proof(NEW, EXPIRES_MS + LINGER_MS), store())


@pytest.mark.invariant("S9")
@pytest.mark.parametrize("who", [HOME, HOLDER, VOTERS[0]])
def test_what_is_dated_after_a_revocation_is_refused_and_what_was_before_stays(who: str) -> None:
    trust = store()
    trust.revoke(OLD[who].chain[0], day(3))
    verify_provenance(proof(OLD, day(2)), trust)
    with pytest.raises(ComityError, match="revoked"):
        verify_provenance(proof(OLD, day(3)), trust)
    verify_provenance(proof(NEW, day(12)), trust)


@pytest.mark.invariant("S9")
def test_a_statement_says_when_it_was_signed_in_whole_milliseconds() -> None:
    payload = json.loads(b64decode(json.loads(proof(OLD, day(2)))["payload"]))
    subject = Subject(payload["subject"][0]["name"], hex_digest(RECORD))

    def again(**changes: object) -> bytes:
        predicate = {**payload["predicate"], **changes}
        if changes.get("signedMs") is None:
            del predicate["signedMs"]
        statement = Statement((subject,), PREDICATE_CERTIFIED_RECORD, predicate)
        return sign_statement(statement, [ed25519_signer(OLD[HOLDER].key)])

    verify_provenance(again(signedMs=day(4)), store())
    verify_provenance(again(signedMs=None), store())  # made before it was said: the last hop's time counts
    for wrong in ("4", 4.5, True, [day(4)]):
        with pytest.raises(CertificateInvalid, match="whole number"):
            verify_provenance(again(signedMs=wrong), store())


@pytest.mark.invariant("S9")
def test_an_agreement_is_signed_while_it_is_good() -> None:
    """Terms say nothing of when they were signed: a participant may renew its certificate before it signs."""
    late = node_of(B, at_ms=day(5), key=OLD[B.organization].key)
    assert agreement({**OLD, B.organization: late})[0].participants == set(OLD)
    trust = store()
    trust.revoke(late.chain[0], day(4))
    _, data = agreement({**OLD, B.organization: late})
    with pytest.raises(AgreementError, match="revoked"):
        open_agreement(data, trust)
    too_late = node_of(B, at_ms=EXPIRES_MS + DAY_MS, key=OLD[B.organization].key)
    with pytest.raises(AgreementError, match="not valid yet"):
        agreement({**OLD, B.organization: too_late})
    too_early = node_of(B, at_ms=BEGIN_MS - DAY_MS, days=1, key=OLD[B.organization].key)
    with pytest.raises(AgreementError, match="expired"):
        agreement({**OLD, B.organization: too_early})


#: Epoch 2, on the fifth day: both roots of a. Epoch 3, on the fourteenth: without the old one, and without d.
TWO = with_root(RAW, NEXT_A, A, NEXT_A, B, C, at_ms=day(5))
THREE_DRAFT = remove_root(TWO, A.certificate.fingerprint, issued_ms=day(14), expires_ms=day(300))
THREE = signed(remove_member(THREE_DRAFT, "d.example", issued_ms=day(14), expires_ms=day(300)), (NEXT_A, B, C))
ROTATED: Nodes = {**NEW, HOME: node_of(NEXT_A, at_ms=day(10), key=OLD[HOME].key)}


@pytest.mark.invariant("S9")
def test_after_a_change_of_root_an_auditor_with_the_history_verifies_what_was_before_and_what_comes_after() -> None:
    assert set(read_bundle(THREE).members) == {"a.example", "b.example", "c.example"}
    trust = store(THREE)
    verify_provenance(proof(OLD, day(2)), trust)
    verify_provenance(proof(ROTATED, day(12)), trust)
    with pytest.raises(ComityError, match=r"second certificate is no root of a\.example|not lead to a root"):
        verify_provenance(proof(ROTATED, day(12)), store())  # epoch 1 does not know the next root
    alone = TrustStore(read_bundle(read_bundle(THREE).envelope.encode()))
    with pytest.raises(ComityError, match=r"d\.example is no member|no root of a\.example"):
        verify_provenance(proof(OLD, day(2)), alone)


@pytest.mark.invariant("S9")
def test_an_old_root_and_an_expelled_member_count_for_their_time_only() -> None:
    trust = store(THREE)
    old_root, expelled = NEW[HOME].chain, NEW["d.example"].chain
    for chain in (old_root, expelled):
        trust.verify_signed(chain, day(12))
        trust.verify_signed(chain, day(14) + HANDOVER_MS - 1)
        with pytest.raises(ChainInvalid):
            trust.verify_signed(chain, day(14) + HANDOVER_MS)
        with pytest.raises(ChainInvalid):
            trust.verify_chain(chain, day(15))  # of whom one deals with now, the epoch in force alone decides
        with pytest.raises(ChainInvalid):
            trust.verify_chain(chain, day(12))
    fresh = node_of(NEXT_A, at_ms=BEGIN_MS).chain
    trust.verify_signed(fresh, day(5) - 60_000)
    with pytest.raises(ChainInvalid, match="no root of a"):
        trust.verify_signed(fresh, day(5) - 60_001)


@pytest.mark.invariant("S2")
def test_a_store_follows_its_bundle_at_once_keeps_revocations_and_tells_who_asked() -> None:
    trust = TrustStore(read_bundle(RAW))
    told: list[tuple[int, int]] = []
    end = trust.observe(lambda before, after: told.append((before.epoch, after.epoch)))
    chain, node = NEW["d.example"].chain, NEW["b.example"].chain
    trust.verify_chain(chain, day(15))
    trust.revoke(node[0], day(11))
    assert trust.replace(read_bundle(TWO))
    assert not trust.replace(read_bundle(TWO))
    trust.verify_chain(chain, day(15))
    assert trust.replace(read_bundle(THREE))
    with pytest.raises(ChainInvalid, match="no member"):
        trust.verify_chain(chain, day(15))
    with pytest.raises(ChainInvalid, match="revoked"):
        trust.verify_chain(node, day(15))
    with pytest.raises(ComityError, match="older than epoch 3"):
        trust.replace(read_bundle(TWO))
    assert trust.bundle.epoch == 3
    assert told == [(1, 2), (2, 3)]
    end()
    end()


@pytest.mark.invariant("S9")
def test_a_review_is_verified_at_its_own_time() -> None:
    agreed, _ = agreement()
    review = sign_review(OLD[HOLDER], make_review(agreed, HOLDER, 9000, at_ms=day(2)))
    assert check_review(review, OLD[HOLDER].chain, store()).organization == HOLDER
    with pytest.raises(CertificateInvalid, match="outside"):
        check_review(review, OLD[HOLDER].chain, store(), window=(day(3), day(4)))


@pytest.mark.invariant("S9")
def test_revocations_outlive_the_root_that_signed_them_for_what_it_issued_itself() -> None:
    two, three = read_bundle(TWO), read_bundle(THREE)
    renewed = node_of(NEXT_A, at_ms=day(6))
    lost = sign_revocation(A, OLD[HOME].chain[0], issued_ms=day(3), reason="lost")
    assert verify_revocation(lost, two, now_ms=day(20)).is_of(two)
    with pytest.raises(RevocationInvalid, match="by no CA of this organization"):
        verify_revocation(lost, three, now_ms=day(20))
    kept = verify_revocation(lost, three, now_ms=day(20), past=True)
    assert (kept.certificate, kept.is_of(three)) == (OLD[HOME].chain[0], False)
    with pytest.raises(RevocationInvalid, match="issued by somebody else"):
        sign_revocation(NEXT_A, OLD[HOME].chain[0], issued_ms=day(3), reason="lost")
    again = sign_revocation(NEXT_A, OLD[HOME].chain[0], issued_ms=day(3), reason="lost", before=[A.certificate])
    assert verify_revocation(again, three, now_ms=day(20)).is_of(three), "the root of today speaks for those before"
    with pytest.raises(RevocationInvalid, match="issued by somebody else"):
        verify_revocation(again, read_bundle(with_root(first("c", "d"), NEXT_A, C, D, NEXT_A)), now_ms=day(20))
    stolen = sign_revocation(A, renewed.chain[0], issued_ms=day(20), reason="x", before=[NEXT_A.certificate])
    for past in (False, True):
        with pytest.raises(RevocationInvalid):
            verify_revocation(stolen, three, now_ms=day(20), past=past)
    in_time = sign_revocation(A, renewed.chain[0], issued_ms=day(7), reason="x", before=[NEXT_A.certificate])
    verify_revocation(in_time, two, now_ms=day(8))
    assert not verify_revocation(in_time, three, now_ms=day(20), past=True).is_of(three), "it does not lapse"
    with pytest.raises(RevocationInvalid, match="by no CA of this organization"):
        verify_revocation(in_time, three, now_ms=day(20))
    with pytest.raises(RevocationInvalid, match="from the future"):
        verify_revocation(in_time, two, now_ms=day(6))
    assert verify_revocation(in_time, two, now_ms=day(6), past=True), "a clock that was put back takes nothing back"
    expelled = sign_revocation(D, OLD["d.example"].chain[0], issued_ms=day(3), reason="lost")
    assert verify_revocation(expelled, three, now_ms=day(20), past=True).organization == "d.example"
    with pytest.raises(RevocationInvalid, match="no member"):
        verify_revocation(expelled, three, now_ms=day(20))


@pytest.mark.invariant("S3")
def test_a_node_that_wants_young_certificates_trusts_no_stolen_key_for_longer() -> None:
    """The news of the revocation is kept from it; its certificates are from the beginning and the tenth day."""
    trust = TrustStore(read_bundle(RAW), certificates_within_ms=5 * DAY_MS)
    begins = -60_000  # certificates begin a minute before they are issued
    trust.verify_chain(OLD[HOME].chain, day(5) + begins)
    for at_ms in (day(5) + begins + 1, day(14)):
        with pytest.raises(ChainInvalid, match=r"issued over 120 hours ago.*certificates_within.*has to renew it"):
            trust.verify_chain(OLD[HOME].chain, at_ms)
    assert trust.verify_chain(NEW[HOME].chain, day(14)).organization == HOME
    trust.verify_signed(OLD[HOME].chain, day(14))
    TrustStore(read_bundle(RAW)).verify_chain(OLD[HOME].chain, day(14))


class Script:
    """`examples/verify-provenance`, which has nothing of Comity."""

    def __init__(self, raw: bytes) -> None:
        path = Path(__file__).resolve().parents[2] / "examples" / "verify-provenance" / "verify.py"
        self._names = runpy.run_path(str(path))
        self._refusals = (self._names["Unproven"], *self._names["MALFORMED"])
        self._epochs = self._names["read_bundle"](raw)

    def proves(self, data: bytes) -> bool:
        try:
            self._names["verify_record"](data, self._epochs)
        except self._refusals:
            return False
        return True


def _comity_proves(data: bytes, raw: bytes) -> bool:
    try:
        verify_provenance(data, store(raw))
    except ComityError:
        return False
    return True


@pytest.mark.invariant("S9")
@pytest.mark.parametrize(
    ("nodes", "at_ms", "signed_ms", "raw", "good"),
    [
        (OLD, day(2), None, RAW, True),
        (NEW, day(12), None, RAW, True),
        ({**OLD, HOME: NEW[HOME]}, day(9.9), day(10.1), RAW, True),  # the home renewed before it showed the record
        ({**OLD, HOME: NEW[HOME]}, day(9.9), day(9.95), RAW, False),
        (OLD, day(15.5), None, RAW, False),
        (OLD, day(2), None, THREE, True),
        (ROTATED, day(12), None, THREE, True),
        (NEW, day(20), None, THREE, True),  # the old root and the member that left count for a week more
        (NEW, day(22), None, THREE, False),
        ({**ROTATED, "d.example": NEW["d.example"]}, day(22), None, THREE, False),
        ({**NEW, HOME: node_of(NEXT_A, key=OLD[HOME].key)}, day(4), None, THREE, False),  # before its root was known
        # The next root issued it before the epoch was proposed, and the home showed it after.
        ({**OLD, HOME: node_of(NEXT_A, at_ms=day(4), key=OLD[HOME].key)}, day(3), day(6), THREE, True),
        ({**OLD, HOME: node_of(NEXT_A, at_ms=day(4), key=OLD[HOME].key)}, day(3), day(4.5), THREE, False),
    ],
)
def test_who_verifies_without_comity_comes_to_the_same(
    nodes: Nodes, at_ms: int, signed_ms: int | None, raw: bytes, good: bool
) -> None:
    data = proof(nodes, at_ms, signed_ms=signed_ms)
    assert _comity_proves(data, raw) is good
    assert Script(raw).proves(data) is good


@pytest.mark.invariant("S9")
def test_a_participant_that_renews_before_it_signs_the_terms_is_proved_without_comity_too() -> None:
    late = node_of(B, at_ms=day(1.5), key=OLD[B.organization].key)
    _, data = agreement({**OLD, B.organization: late})
    agreed = open_agreement(data, store())
    made = make_provenance(OLD[HOLDER], certified(agreed, OLD, day(2)), data, at_ms=day(2))
    assert _comity_proves(made, RAW)
    assert Script(RAW).proves(made)


@pytest.mark.invariant("S9")
def test_a_member_that_signs_its_own_leave_leaves_a_bundle_that_everybody_reads() -> None:
    one = first("a", "b", "c", threshold=2)
    two = signed(remove_member(one, "c.example", issued_ms=day(5), expires_ms=day(300)), (B, C))
    verify_bundle(two, now_ms=day(6), own_ca=None)
    Script(two)
    fork = json.loads(two)
    fork["history"] = [json.loads(first("a", "b", "c", threshold=3))]  # another first epoch of the same members
    with pytest.raises(BundleInvalid, match="does not follow"):
        verify_bundle(json.dumps(fork).encode(), now_ms=day(6), own_ca=None)
    with pytest.raises(Exception, match="does not follow"):
        Script(json.dumps(fork).encode())
