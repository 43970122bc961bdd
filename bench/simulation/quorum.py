"""What a certificate costs as reviewers become more: real reviews, signed and verified, counted by the ballot.

Real are keys, certificates, reviews, the ballot, the certificate and its verification; only time is virtual.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from bench.simulation.world import Figure, Figures
from comity.bundle import new_bundle, sign_bundle, verify_bundle
from comity.ca import OrganizationCa, certificate_request, read_certificates
from comity.certificate import CheckedReview, QuorumRule, check_review, verify_certificate
from comity.digest import sha256
from comity.envelope import sign_document
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import NodeIdentity, TrustStore
from comity.v1.task_pb2 import Certificate, Review, Vote
from comity_node.protocol.quorum import Ballot, Outcome
from comity_node.runtime.router import Candidate, Router

_NOW = datetime(2030, 1, 1, tzinfo=UTC)
_NOW_MS = int(_NOW.timestamp() * 1000)
_DAY_MS = 86_400_000
_RECORD = b'{"label":1,"x":2.5}'
_MIN_SCORE = 5000
#: Bytes of an ECDSA P-256 signature: 70 to 72, at random. All certificates here have as many, and a serial number of
#: full length, so that the same seed gives the same bytes.
_SIGNATURE_BYTES = 71
_SERIAL_BITS = 153


@dataclass(frozen=True, slots=True)
class QuorumWorld:
    """What is reviewed, and how long reviewers take.

    Attributes:
        records: of each size and arm.
        median_ms: of an answer's time, which is lognormal.
        sigma: of its logarithm.
    """

    records: int = 5
    median_ms: float = 1000.0
    sigma: float = 0.5


class Jury:
    """Organizations with their nodes' identities, and the trust store in which all of them are."""

    def __init__(self, organizations: int, random: Random) -> None:
        self.names = [f"org{number:03}.example" for number in range(organizations)]
        authorities = [
            OrganizationCa.self_signed(name, ec.generate_private_key(ec.SECP256R1()), _NOW) for name in self.names
        ]
        raw = new_bundle(
            "lab", [ca.certificate_pem for ca in authorities], issued_ms=_NOW_MS - 1000, expires_ms=_NOW_MS + _DAY_MS
        )
        for ca in authorities:
            raw = sign_bundle(raw, ca)
        self.trust = TrustStore(verify_bundle(raw, now_ms=_NOW_MS, own_ca=None))
        self.nodes = {ca.organization: _node(ca, random) for ca in authorities}

    def vote(self, voter: str, author: str, score: int) -> CheckedReview:
        """Return a review that `voter` has signed, checked as the author's home does."""
        review = Review(
            task_id=bytes(16),
            record_digest=sha256(_RECORD),
            agreement_digest=bytes(32),
            bundle_epoch=1,
            organization=voter,
            reviewer=f"spiffe://{voter}/agent/validator",
            accept=score >= _MIN_SCORE,
            score=score,
            axes={"range": score},
            validator="simulated",
            at_ms=_NOW_MS + 1000,
            author=author,
        )
        identity = self.nodes[voter]
        signed = sign_document(identity.key, "review", review.SerializeToString(deterministic=True))
        return check_review(signed, identity.chain, self.trust)


def _node(ca: OrganizationCa, random: Random) -> NodeIdentity:
    key = PrivateKey(random.randbytes(32))
    request = certificate_request(key, SpiffeId(ca.organization, "node", "n1"))
    while True:
        chain = read_certificates(ca.issue(request, now=_NOW))
        leaf = x509.load_der_x509_certificate(chain[0])
        if len(leaf.signature) == _SIGNATURE_BYTES and leaf.serial_number.bit_length() >= _SERIAL_BITS:
            return NodeIdentity.of(key, chain)


@dataclass(frozen=True, slots=True)
class _Course:
    """What became of one record."""

    certificate: Certificate
    votes: int
    bytes_in: int
    took_ms: float
    asked: int


def measure(jury: Jury, eligible: int, seed: int, world: QuorumWorld, *, liars: bool) -> list[Figure]:
    """Certify records among `eligible` reviewers; with `liars`, as many as the rule bears say the opposite.

    Args:
        jury: with at least one organization more than are eligible.
        eligible: reviewers.
        seed: of all randomness.
        world: what is reviewed.
        liars: whether any lie.
    """
    random = Random(f"{seed}/{eligible}/{liars}")
    author, *reviewers = jury.names[: eligible + 1]
    rule = QuorumRule.of(eligible)
    bad = set(random.sample(reviewers, rule.faulty if liars else 0))
    votes = {name: jury.vote(name, author, 0 if name in bad else 9000) for name in reviewers}
    courses = [_certify(author, votes, rule, random, world) for _ in range(world.records)]
    verified = [
        len(verify_certificate(
            course.certificate, record=_RECORD, participants=[author, *reviewers], rule=rule, min_score=_MIN_SCORE,
            trust=jury.trust,
        ))
        for course in courses
    ]  # fmt: skip
    figures = Figures("quorum/liars" if liars else "quorum", eligible, "reviewers")
    figures.one("quorum", "votes", rule.quorum)
    figures.mean("asked", "reviewers", [course.asked for course in courses])
    figures.mean("votes-until-certified", "votes", [course.votes for course in courses])
    figures.mean("verifications-by-author", "signatures", [course.votes for course in courses])
    figures.mean("verifications-by-each-holder", "signatures", verified)
    figures.mean("bytes-of-certificate", "bytes", [course.certificate.ByteSize() for course in courses])
    figures.mean("bytes-of-votes", "bytes", [course.bytes_in for course in courses])
    figures.mean("offers-and-releases", "messages", [course.asked + eligible for course in courses])
    figures.mean("time-to-certificate", "ms", [course.took_ms for course in courses])
    return figures.all


def _certify(
    author: str, votes: dict[str, CheckedReview], rule: QuorumRule, random: Random, world: QuorumWorld
) -> _Course:  # fmt: skip
    """Ask as many as a quorum takes, and one more for each vote against the most, as `runtime.offering` does."""
    ballot = Ballot(
        task_id=bytes(16), record_digest=sha256(_RECORD), agreement_digest=bytes(32), epoch=1, author=author,
        eligible=frozenset(votes), rule=rule, min_score=_MIN_SCORE,
    )  # fmt: skip
    order = Router(random).draw([Candidate(name) for name in votes], len(votes), 0.0)
    under_way: list[tuple[float, str]] = []
    asked, bytes_in, now_ms = 0, 0, 0.0
    while ballot.outcome() is Outcome.OPEN:
        most = max(len(ballot.votes(True)), len(ballot.votes(False)))
        while most + len(under_way) < rule.quorum and asked < len(order):
            heapq.heappush(under_way, (now_ms + world.median_ms * random.lognormvariate(0, world.sigma), order[asked]))
            asked += 1
        now_ms, name = heapq.heappop(under_way)
        vote = votes[name]
        ballot.add(vote)
        bytes_in += Vote(review=vote.envelope, chain=vote.chain).ByteSize()
    return _Course(ballot.certificate(), len(ballot.voted), bytes_in, now_ms, asked)
