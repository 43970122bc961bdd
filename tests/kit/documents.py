"""Terms, agreements, hops, reviews, certificates and certified records, signed by whoever the test says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comity.agreement import Agreed, conclude, open_agreement, sign_terms
from comity.certificate import CheckedReview, QuorumRule, build_certificate, check_review
from comity.digest import canonical_json, sha256
from comity.envelope import sign_document
from comity.hops import CREATE, RELEASE, Passage, sign_hop
from comity.trust import NodeIdentity
from comity.v1.agreement_pb2 import Obligations, ReviewTerms, Terms
from comity.v1.task_pb2 import CertifiedRecord, Review, Task
from kit.consortium import NOW_MS, Consortium

PURPOSE = "screening"
DATASET = "rows"
RECORD = canonical_json({"label": 1, "x": 2.5})
TASK_ID = bytes(range(16))
MIN_SCORE = 5000


def make_terms(lab: Consortium, members: Sequence[str] = (), /, **changes: Any) -> Terms:
    """Terms among `members` (everybody, if none are named), with some fields changed."""
    members = sorted(members or lab.names)
    rule = QuorumRule.of(len(members) - 1)
    terms = Terms(
        id="0a" * 16,
        consortium=lab.trust.bundle.consortium,
        bundle_epoch=lab.trust.bundle.epoch,
        initiator=members[0],
        participants=members,
        purpose=PURPOSE,
        dataset=DATASET,
        records_per_organization=20,
        batch_records=10,
        repair_rounds=1,
        review=ReviewTerms(eligible=rule.eligible, faulty=rule.faulty, quorum=rule.quorum, min_score=MIN_SCORE),
        obligations=Obligations(onward="never"),
        lease_seconds=30,
        issued_ms=NOW_MS,
        expires_ms=NOW_MS + 3_600_000,
        workflow_digest=sha256(b"a workflow"),
    )
    for name, value in changes.items():
        field = getattr(terms, name)
        if hasattr(field, "CopyFrom"):
            field.CopyFrom(value)
        elif hasattr(field, "extend"):
            del field[:]
            field.extend(value)
        else:
            setattr(terms, name, value)
    return terms


def make_agreement(consortium: Consortium, terms: Terms | None = None, signers: Sequence[str] | None = None) -> bytes:
    """The agreement over `terms`, signed by `signers` (all participants, if none are named)."""
    wanted = terms or make_terms(consortium)
    data = wanted.SerializeToString()
    names = wanted.participants if signers is None else signers
    return conclude(data, [sign_terms(consortium.nodes[name], data) for name in names])


def agree(consortium: Consortium, **changes: Any) -> Agreed:
    """A verified agreement among everybody, with `changes` to its terms."""
    return open_agreement(make_agreement(consortium, make_terms(consortium, **changes)), consortium.trust)


def make_review(agreed: Agreed, organization: str, score: int, **changes: Any) -> Review:
    """What `organization` says about `RECORD`, whose author is the initiator unless `changes` say otherwise."""
    review = Review(
        task_id=TASK_ID,
        record_digest=sha256(RECORD),
        agreement_digest=agreed.digest,
        bundle_epoch=agreed.terms.bundle_epoch,
        organization=organization,
        reviewer=f"spiffe://{organization}/agent/validator",
        accept=score >= agreed.terms.review.min_score,
        score=score,
        axes={"range": score},
        validator="kit",
        at_ms=NOW_MS + 1000,
        author=agreed.terms.initiator,
    )
    for name, value in changes.items():
        setattr(review, name, value)
    return review


def sign_review(identity: NodeIdentity, review: Review) -> bytes:
    return sign_document(identity.key, "review", review.SerializeToString())


def make_vote(consortium: Consortium, agreed: Agreed, organization: str, score: int, **changes: Any) -> CheckedReview:
    """A vote of `organization` whose signature was checked."""
    identity = consortium.nodes[organization]
    envelope = sign_review(identity, make_review(agreed, organization, score, **changes))
    return check_review(envelope, identity.chain, consortium.trust)


def make_passage(action: str = CREATE, *, to: str = "", record: bytes = RECORD, **changes: Any) -> Passage:
    values: dict[str, Any] = {
        "task_id": TASK_ID,
        "revision": 0,
        "record_digest": sha256(record),
        "action": action,
        "purpose": PURPOSE,
        "policy_digest": sha256(b"a policy"),
        "at_ms": NOW_MS + 500,
        "to_organization": to,
        "rules": ("send-synthetic",),
    }
    return Passage(**{**values, **changes})


def make_history(home: NodeIdentity, passages: Sequence[Passage]) -> list[bytes]:
    """Hops of one node, each after the other."""
    history: list[bytes] = []
    for passage in passages:
        history.append(sign_hop(home, passage, history))
    return history


def make_certified(
    consortium: Consortium, agreed: Agreed, *, author: str, holder: str, scores: Mapping[str, int], accept: bool = True
) -> CertifiedRecord:
    """A record of `author`, certified (or rejected) after one repair, on its way to `holder`."""
    home = consortium.nodes[author]
    passages = [
        make_passage(record=canonical_json({"label": 1, "x": -2.5})),
        make_passage(revision=1),
        *(make_passage("record.send", to=voter, revision=1) for voter in sorted(scores)),
        make_passage(RELEASE, to=holder, revision=1),
    ]
    votes = [make_vote(consortium, agreed, voter, score, author=author, revision=1) for voter, score in scores.items()]
    return CertifiedRecord(
        task=Task(
            id=TASK_ID,
            agreement_digest=agreed.digest,
            home=author,
            revision=1,
            record=RECORD,
            hops=make_history(home, passages),
        ),
        certificate=build_certificate(votes, author=author, rule=agreed.rule, accept=accept),
        home_chain=home.chain,
    )
