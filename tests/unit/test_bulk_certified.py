"""Certified records in bulk: every row brings its proof, and the receiver believes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import trio

from comity.digest import canonical_json, sha256
from comity.errors import InvalidRecord, PeerRefused, PolicyDenied, TransferFailed
from comity.provenance import make_provenance, verify_provenance
from comity_node.bulk import certified
from comity_node.bulk.certified import Verifier
from comity_node.storage import records
from kit.bulk import Pair, policy
from kit.consortium import consortium, names
from kit.documents import DATASET, PURPOSE, RECORD, TASK_ID, agree, make_agreement, make_certified, make_terms
from kit.lab import run

ORGANIZATIONS = names(5)
HOLDER, OTHER = ORGANIZATIONS[:2]


def certified_rows() -> list[records.CertifiedRecord]:
    """A record of each organization, certified by three others; the holder keeps them all."""
    lab, agreed = consortium(*ORGANIZATIONS), agree(consortium(*ORGANIZATIONS))
    agreement = make_agreement(lab, make_terms(lab))
    found = []
    for author in ORGANIZATIONS:
        voters = [name for name in ORGANIZATIONS if name != author][:3]
        scores = dict.fromkeys(voters, 9000)
        made = make_certified(lab, agreed, author=author, holder=HOLDER, scores=scores)
        proof = make_provenance(lab.nodes[HOLDER], made, agreement)
        found.append(
            records.CertifiedRecord(
                task_id=TASK_ID,
                agreement_digest=agreed.digest,
                dataset=DATASET,
                author=author,
                record=RECORD,
                record_digest=sha256(RECORD),
                score=9000,
                stored_ms=1,
                retain_until_ms=None,
                certificate=made.certificate.SerializeToString(),
                provenance=proof,
            )
        )
    return found


ROWS = certified_rows()


async def started(pair: Pair, nursery: trio.Nursery, rows: list[records.CertifiedRecord] = ROWS) -> None:
    await pair.start(nursery)

    def put(connection: Any) -> None:
        for row in rows:
            records.put_record(connection, row)

    await pair.sender.database.transact(put)


def send(pair: Pair, **changes: Any) -> Any:
    return pair.send(None, kind="certified", dataset=DATASET, purpose=PURPOSE, **changes)


@pytest.mark.invariant("S9")
def test_certified_records_arrive_with_their_proofs(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path, count=5)
        owed = "obligations: {review: {quorum: 3, min_score: 0.5}, generalize: {x: 0.5}}"
        pair.sender.policy = policy(pair.sender.name, send=owed)
        pair.receiver.policy = policy(pair.receiver.name, receive=owed)
        await started(pair, nursery)
        assert (await send(pair)).row_count == 5
        (row,) = await pair.receiver.rows()
        table = await pair.receiver.read(row)
        assert table.column("x").to_pylist() == [2.5] * 5
        trust = pair.receiver.trust
        proven = [verify_provenance(proof, trust) for proof in table.column("comity_provenance").to_pylist()]
        assert [one.author for one in proven] == list(ORGANIZATIONS)

    run(main)


@pytest.mark.parametrize(
    ("owed", "match"),
    [
        ("obligations: {redact: [x]}", "has to be redacted, and a certificate is about the whole record"),
        ("obligations: {generalize: {x: 2}}", "should have been rounded"),
        ("obligations: {review: {quorum: 4}}", "smaller quorum"),
        ("obligations: {review: {quorum: 3, min_score: 0.9}}", "for a lower score"),
        ("obligations: {min_distance_to_private: 0.2}", "smaller distance"),
    ],
)
def test_what_was_certified_for_less_stays(tmp_path: Path, owed: str, match: str) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path, count=5)
        pair.sender.policy = policy(pair.sender.name, send=owed)
        await started(pair, nursery)
        with pytest.raises(PolicyDenied, match=match):
            await send(pair)
        assert pair.opened == 0
        # And what the receiver asks for, it checks itself.
        await pair.stop(pair.sender)
        await pair.stop(pair.receiver)
        pair.sender.policy = policy(pair.sender.name)
        pair.receiver.policy = policy(pair.receiver.name, receive=owed)
        await pair.start(nursery, pair.sender, pair.receiver)
        with pytest.raises((TransferFailed, PeerRefused), match=match.split(",")[0]):
            await send(pair)

    run(main)


@pytest.mark.invariant("S9")
@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda batch: batch.set_column(1, "x", pa.array([99.0] * len(batch))), "is not the record that was certified"),
        (
            lambda batch: batch.set_column(2, "comity_provenance", pa.array([b"{}"] * len(batch))),
            "DSSE",
        ),
        (
            lambda batch: batch.set_column(2, "comity_provenance", pa.array([None] * len(batch), pa.binary())),
            "DSSE",
        ),
        (lambda batch: batch.select(["label", "x"]), "have no column"),
    ],
)
def test_a_row_that_its_proof_does_not_prove_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], Any], match: str
) -> None:
    honest = Verifier.check

    def check(self: Verifier, batch: Any) -> None:
        honest(self, spoil(batch))

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path, count=5)
        await started(pair, nursery)
        order = pair.sender.order(None, pair.receiver.name, kind="certified", dataset=DATASET, purpose=PURPOSE)
        row = await pair.sender.service._preparer.prepare(order, lambda progress: None)
        monkeypatch.setattr(Verifier, "check", check)
        with pytest.raises(TransferFailed, match=match):
            await pair.sender.service.resume(row.transfer_id.hex(), print)
        assert pair.receiver.files() == []

    run(main)


def test_records_with_other_fields_make_no_table(tmp_path: Path) -> None:
    from dataclasses import replace

    other = canonical_json({"label": 1, "y": 2.5})
    odd = replace(ROWS[1], record=other, record_digest=sha256(other))

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path, count=5)
        await started(pair, nursery, [ROWS[0], odd])
        with pytest.raises(InvalidRecord, match="differ in their fields"):
            await send(pair)

    run(main)


def test_pages_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certified, "_PAGE", 2)

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path, count=5)
        await started(pair, nursery)
        assert (await send(pair)).row_count == 5
        (row,) = await pair.receiver.rows()
        assert (await pair.receiver.read(row)).num_rows == 5

    run(main)
