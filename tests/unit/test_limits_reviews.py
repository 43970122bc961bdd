"""What commitments, evidence and panels may cost: docs/limits.md names these tests."""

from __future__ import annotations

import pytest

from comity.agreement import parse_terms
from comity.commitment import commit, read_commitment
from comity.draw import bound, own_commitment
from comity.envelope import sign_document
from comity.errors import AgreementError, CertificateInvalid
from comity.evidence import make_evidence, verify_evidence
from comity.v1.agreement_pb2 import ReviewTerms, Terms
from comity.v1.task_pb2 import Commitment, Evidence
from kit.consortium import NOW_MS, consortium, names
from kit.documents import MIN_SCORE, agree, make_review, make_terms, make_vote

SEVEN = names(7)
LAB = consortium(*SEVEN)


def test_a_commitment_is_to_256_tasks_and_has_32_kib() -> None:
    agreed, node = agree(LAB), LAB.nodes[SEVEN[1]]

    def made(count: int) -> bytes:
        reviews = [make_review(agreed, SEVEN[1], 9000, task_id=number.to_bytes(16, "big")) for number in range(count)]
        return commit(node, reviews, b"n" * 32, batch=b"b" * 16, at_ms=NOW_MS).envelope

    assert len(read_commitment(made(256))[0].tasks) == 256
    with pytest.raises(CertificateInvalid, match="256 tasks"):
        read_commitment(made(257))
    padded = Commitment(organization="x" * 33_000).SerializeToString()
    with pytest.raises(CertificateInvalid, match="bytes; at most"):
        read_commitment(sign_document(node.key, "commitment", padded))


def test_an_evidence_has_128_kib_and_chains_of_eight() -> None:
    agreed = agree(LAB)
    one, other = make_vote(LAB, agreed, SEVEN[1], 9000), make_vote(LAB, agreed, SEVEN[1], 100)
    raw = make_evidence(one.envelope, one.chain, other.envelope, other.chain)
    assert verify_evidence(raw, LAB.trust)
    long = Evidence.FromString(raw)
    long.first_chain.extend([b"x"] * 9)
    with pytest.raises(CertificateInvalid, match="too long"):
        verify_evidence(long.SerializeToString(), LAB.trust)
    large = Evidence.FromString(raw)
    large.second += b"x" * 131_072
    with pytest.raises(CertificateInvalid, match="an evidence of"):
        verify_evidence(large.SerializeToString(), LAB.trust)


def test_with_a_panel_an_author_has_65536_batches() -> None:
    def terms(batches: int) -> bytes:
        review = ReviewTerms(eligible=4, faulty=1, quorum=3, min_score=MIN_SCORE, panel=4)
        made = make_terms(LAB, review=review, records_per_organization=batches, batch_records=1)
        return bound(made, {name: own_commitment(LAB.nodes[name].key, made) for name in SEVEN})

    assert parse_terms(terms(65_536)).batches == 65_536
    with pytest.raises(AgreementError, match="batches"):
        parse_terms(terms(65_537))
    steps = Terms.FromString(terms(65_536))
    steps.batch_records, steps.flow = 10, b"{}"
    assert parse_terms(steps.SerializeToString()).batches == 65_536, "each record can be a batch of its own"
