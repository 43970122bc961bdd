"""A consortium of two organizations, whose keys are all at hand: what a member could sign, a fuzzer can sign."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from comity.agreement import conclude, sign_terms
from comity.bundle import new_bundle, sign_bundle, verify_bundle
from comity.ca import CaCertificate, OrganizationCa, _self_signed, certificate_request, read_certificates
from comity.certificate import QuorumRule, build_certificate, check_review
from comity.digest import canonical_json, sha256
from comity.envelope import sign_document
from comity.hops import CREATE, SEND, Passage, sign_hop
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import NodeIdentity, TrustStore
from comity.v1.agreement_pb2 import Obligations, ReviewTerms, Terms
from comity.v1.task_pb2 import CertifiedRecord, Review, Task

NOW_MS = 1_790_000_000_000
NOW = datetime.fromtimestamp(NOW_MS / 1000, UTC)
HOME, OTHER = "home.example", "other.example"
#: An hour in which everything is valid.
END_MS = NOW_MS + 3_600_000


def _kept(name: str, make: Callable[[], list[bytes]]) -> list[bytes]:
    """Return what an earlier run made, where one has said to keep it (`COMITY_FUZZ_WORLD`, a folder).

    CAs draw serial numbers, and ECDSA draws for each signature: a corpus is of one world, and in another one what was
    genuine looks forged.
    """
    folder = os.environ.get("COMITY_FUZZ_WORLD", "")
    path = Path(folder) / f"{name}.json"
    if folder and path.exists():
        return [bytes.fromhex(each) for each in json.loads(path.read_text(encoding="ascii"))]
    made = make()
    if folder:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([each.hex() for each in made]), encoding="ascii")
    return made


def _authority(organization: str, number: int) -> OrganizationCa:
    key = ec.derive_private_key(number, ec.SECP256R1())

    def make() -> list[bytes]:
        return [_self_signed(key, organization, NOW, timedelta(days=3650)).public_bytes(Encoding.DER)]

    return OrganizationCa(key, CaCertificate.parse(_kept(organization, make)[0]))


def _node(ca: OrganizationCa, seed: int) -> NodeIdentity:
    key = PrivateKey(bytes([seed]) * 32)
    request = certificate_request(key, SpiffeId(ca.organization, "node", "n1"))

    def make() -> list[bytes]:
        return list(read_certificates(ca.issue(request, now=NOW)))

    return NodeIdentity.of(key, _kept(f"{ca.organization}-node", make))


AUTHORITIES = (_authority(HOME, 1001), _authority(OTHER, 1002))
HOME_NODE, OTHER_NODE = (_node(ca, seed) for seed, ca in enumerate(AUTHORITIES, start=1))


def _bundle() -> bytes:
    roots = [ca.certificate_pem for ca in AUTHORITIES]
    raw = new_bundle("lab", roots, issued_ms=NOW_MS - 1000, expires_ms=END_MS)
    for ca in AUTHORITIES:
        raw = sign_bundle(raw, ca)
    return raw


BUNDLE = _kept("bundle", lambda: [_bundle()])[0]
TRUST = TrustStore(verify_bundle(BUNDLE, now_ms=NOW_MS, own_ca=None))
RULE = QuorumRule.of(1)
TERMS = Terms(
    id="0a" * 16, consortium="lab", bundle_epoch=TRUST.bundle.epoch, initiator=HOME, participants=[HOME, OTHER],
    purpose="screening", dataset="rows", records_per_organization=20, batch_records=10, repair_rounds=1,
    review=ReviewTerms(eligible=RULE.eligible, faulty=RULE.faulty, quorum=RULE.quorum, min_score=5000),
    obligations=Obligations(onward="never"), lease_seconds=30, issued_ms=NOW_MS, expires_ms=END_MS,
    workflow_digest=sha256(b"a workflow"),
).SerializeToString()  # fmt: skip


def agreement_over(terms: bytes) -> bytes:
    """An agreement over whatever terms, signed by both."""
    return conclude(terms, [sign_terms(node, terms) for node in (HOME_NODE, OTHER_NODE)])


AGREEMENT = agreement_over(TERMS)


def certified_record() -> CertifiedRecord:
    """A record of the one that the other has accepted."""
    record, task, digest = canonical_json({"label": 1, "x": 2.5}), bytes(range(16)), sha256(TERMS)
    history: list[bytes] = []
    for action, to in ((CREATE, ""), (SEND, OTHER)):
        passage = Passage(task, 0, sha256(record), action, "screening", b"", NOW_MS + 500, to, ("rule",))
        history.append(sign_hop(HOME_NODE, passage, history))
    review = Review(
        task_id=task, record_digest=sha256(record), agreement_digest=digest, bundle_epoch=TRUST.bundle.epoch,
        organization=OTHER, accept=True, score=9000, at_ms=NOW_MS + 1000, author=HOME,
    )  # fmt: skip
    envelope = sign_document(OTHER_NODE.key, "review", review.SerializeToString())
    vote = check_review(envelope, OTHER_NODE.chain, TRUST)
    return CertifiedRecord(
        task=Task(id=task, agreement_digest=digest, home=HOME, record=record, hops=history),
        certificate=build_certificate([vote], author=HOME, rule=RULE, accept=True),
        home_chain=HOME_NODE.chain,
    )
