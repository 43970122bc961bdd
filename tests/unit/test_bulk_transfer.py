"""Transfers between two organizations in one process: the whole way, and every way in which it may not go."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trio

from comity.envelope import open_document, sign_document
from comity.errors import (
    AgreementError,
    Busy,
    ConfigError,
    InvalidRecord,
    LinkClosed,
    NotFound,
    PeerRefused,
    PolicyDenied,
    StorageError,
    StorageFull,
    TransferFailed,
)
from comity.v1.agreement_pb2 import Obligations
from comity.v1.bulk_pb2 import BulkReceipt
from comity_node.admission.records import Dataset
from comity_node.bulk import sender as sending
from comity_node.bulk import shape
from comity_node.protocol.bulk_manifest import parse_manifest
from comity_node.storage import audit
from comity_node.storage import bulk as journal
from comity_node.storage.bulk import BulkRow
from comity_node.validators.distance import PrivateReference
from kit.bulk import DATASET, LIMITS, PURPOSE, SCHEMA, Pair, Party, Tap, policy, table, unknown_agreement
from kit.documents import agree
from kit.lab import now_ms, run, until

ROWS = 40_000
CHUNK = LIMITS.chunk_bytes


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(sending, "_LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(sending, "_LAST_WORDS_S", 0.05)


def audited(party: Party) -> list[dict[str, Any]]:
    report = audit.verify_file(party.home / "node.db", None)
    entries = []
    with journal_of(party) as connection:
        for stored in audit.entries(connection, start=0, limit=max(report.entries, 1)):
            entries.append(json.loads(stored.data))
    return entries


def journal_of(party: Party) -> Any:
    from contextlib import closing

    from comity_node.storage.connections import connect_readonly

    return closing(connect_readonly(party.home / "node.db"))


def actions(party: Party) -> list[tuple[str, str]]:
    return [(entry.get("action", ""), entry.get("decision", "")) for entry in audited(party)]


@pytest.mark.invariant("S1")
@pytest.mark.invariant("S8")
def test_a_table_arrives_as_it_was_sent_and_is_signed_for(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        sent = await pair.send(pair.sender.write(ROWS))
        (received,) = await pair.receiver.rows()
        assert (sent.state, received.state) == ("done", "done")
        assert sent.transfer_id == received.transfer_id
        assert await pair.receiver.read(received) == table(ROWS)
        receipt = BulkReceipt.FromString(open_document(sent.receipt, "bulk-receipt").body)
        assert (receipt.rows, receipt.root) == (ROWS, sent.root)
        assert [one.state for one in pair.sender.reports][:1] == ["preparing"]
        assert pair.sender.reports[-1].state == "done"
        assert pair.sender.files() == [], "what was signed for is not kept"
        assert pair.receiver.files() == [f"inbox/{sent.transfer_id.hex()}.arrow"]
        assert actions(pair.sender) == [("bulk.send", "allow"), ("bulk.prepared", ""), ("bulk.sent", "")]
        assert actions(pair.receiver) == [("bulk.receive", "allow"), ("bulk.accepted", ""), ("bulk.received", "")]

    run(main)
    for path in (tmp_path / "org01.example" / "bulk").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


@pytest.mark.invariant("R1")
def test_a_link_that_breaks_again_and_again_is_made_up_for(tmp_path: Path) -> None:
    taps: list[Tap] = []
    breaks = [0, 10, 700, 3 * CHUNK, 1000 + 2 * CHUNK, CHUNK, 5 * CHUNK + 1]

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)

        def tapped(stream: Any) -> Tap:
            taps.append(Tap(stream, breaks_after=breaks[len(taps)] if len(taps) < len(breaks) else None))
            return taps[-1]

        pair.at_sender = tapped
        await pair.start(nursery)
        sent = await pair.send(pair.sender.write(ROWS))
        (received,) = await pair.receiver.rows()
        assert await pair.receiver.read(received) == table(ROWS)
        assert len(taps) == len(breaks) + 1
        again = sum(tap.sent for tap in taps) - sent.byte_count
        # Of each try at most the manifest, the leaves and what was on its way are sent again.
        assert again < len(taps) * (6 * CHUNK), "what was verified is not sent again"

    run(main)


@pytest.mark.invariant("R1")
def test_a_transfer_that_was_interrupted_is_resumed_where_it_was(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        path = pair.sender.write(400_000)
        total = 0

        def watch(stream: Any) -> Tap:
            return Tap(stream, change=seen)

        def seen(data: bytes) -> bytes:
            nonlocal total
            total += len(data)
            return data

        async def stored() -> int:
            return max([row.stored_chunks for row in await pair.receiver.rows()], default=0)

        pair.at_sender = watch
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(pair.send, path)
                while await stored() < 20:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        (row,) = await pair.sender.rows()
        assert row.state == "open"
        await pair.stop(pair.receiver)  # and the other side's node, too
        await pair.start(nursery, pair.receiver)
        before = total
        done = await pair.sender.service.resume(row.transfer_id.hex()[:10], pair.sender.reports.append)
        assert done.state == "done"
        assert total - before < done.byte_count - 20 * CHUNK, "the first part was not sent again"
        (received,) = await pair.receiver.rows()
        assert await pair.receiver.read(received) == table(400_000)
        assert actions(pair.receiver).count(("bulk.receive", "allow")) == 1, "rows are reserved once"

    run(main)


async def is_running(party: Party) -> bool:
    return any(one.running for one in await party.service.list())


async def is_done(party: Party) -> bool:
    return [one.state for one in await party.rows()] == ["done"]


# Policy.


@pytest.mark.invariant("S1")
@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    ("rules", "changes"),
    [
        ("version: 1\norganization: org00.example\nrules: []\n", {}),
        (policy("org00.example", send="data: {kind: synthetic}"), {"kind": "raw"}),
        (policy("org00.example", send="purpose: [billing]"), {}),
        (policy("org00.example", send="when: {records: {max: 10}}"), {}),
        (policy("org00.example", send="when: {bytes: {max: 10}}"), {}),
        (policy("org00.example", send="obligations: {rate: {records: 10, per: 1h}}"), {}),
        (policy("org00.example", send="obligations: {review: {quorum: 2}}"), {}),
        (policy("org00.example", send="obligations: {min_distance_to_private: 0.5}"), {}),
        (policy("org00.example", send="obligations: {redact: [age, size, label]}"), {}),
        (
            policy(
                "org00.example",
                more='  - {id: never-raw-rows, effect: forbid, action: "*", data: {kind: raw}}\n',
            ),
            {"kind": "raw"},
        ),
    ],
)
def test_what_the_senders_policy_does_not_let_go_stays(tmp_path: Path, rules: str, changes: dict[str, Any]) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.sender.policy = rules
        await pair.start(nursery)
        with pytest.raises((PolicyDenied, InvalidRecord)):
            await pair.send(pair.sender.write(100), **changes)
        assert pair.opened == 0, "not a byte has left"
        assert pair.sender.files() == []
        assert await pair.sender.rows() == []

    run(main)


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ("version: 1\norganization: org01.example\nrules: []\n", "policy_denied"),
        (policy("org01.example", receive="data: {kind: certified}"), "policy_denied"),
        (policy("org01.example", receive="obligations: {redact: [size]}"), "policy_denied"),
        (policy("org01.example", receive="obligations: {generalize: {age: 5}}"), "policy_denied"),
        (policy("org01.example", receive="obligations: {min_distance_to_private: 0.1}"), "policy_denied"),
        (policy("org01.example", receive="obligations: {review: {quorum: 2}}"), "policy_denied"),
        (policy("org01.example", receive="obligations: {rate: {records: 99, per: 1h}}"), "policy_denied"),
    ],
)
def test_what_the_receivers_policy_does_not_take_never_comes(tmp_path: Path, rules: str, code: str) -> None:
    taps: list[Tap] = []

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.receiver.policy = rules
        pair.at_sender = lambda stream: taps.append(Tap(stream)) or taps[-1]  # type: ignore[func-returns-value]
        await pair.start(nursery)
        with pytest.raises(PeerRefused) as refused:
            await pair.send(pair.sender.write(100))
        assert refused.value.remote_code == code
        (row,) = await pair.sender.rows()
        assert taps[0].sent == len(row.manifest) + 5, "nothing but the manifest has left"
        assert pair.receiver.files() == []
        assert await pair.receiver.rows() == []
        assert row.state == "open"
        assert row.reason
        # The other side changes its policy: the same transfer goes through.
        await pair.stop(pair.receiver)
        pair.receiver.policy = policy(pair.receiver.name)
        await pair.start(nursery, pair.receiver)
        assert (await pair.sender.service.resume(row.transfer_id.hex(), print)).state == "done"

    run(main)


def test_obligations_are_met_on_the_way_out_and_checked_on_the_way_in(tmp_path: Path) -> None:
    owed = "obligations: {redact: [size], generalize: {age: 5}, retain: 30d}"

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.sender.policy = policy(pair.sender.name, send=owed)
        pair.receiver.policy = policy(pair.receiver.name, receive="obligations: {generalize: {age: 2.5}, retain: 1d}")
        await pair.start(nursery)
        begun = now_ms()
        await pair.send(pair.sender.write(1000))
        (row,) = await pair.receiver.rows()
        expected = [{"age": round(one["age"] / 5) * 5, "label": one["label"]} for one in table(1000).to_pylist()]
        assert (await pair.receiver.read(row)).to_pylist() == expected
        assert row.retain_until_ms is not None
        assert 0 <= row.retain_until_ms - begun - 24 * 3600_000 < 60_000, "the shorter of the two"

    run(main)


@pytest.mark.invariant("S1")
def test_a_sender_that_only_says_it_has_rounded_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape.Shaper, "apply", lambda self, batch: batch)

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.sender.policy = policy(pair.sender.name, send="obligations: {generalize: {age: 5}}")
        await pair.start(nursery)
        with pytest.raises(TransferFailed, match="should have been rounded to multiples of 5"):
            await pair.send(pair.sender.write(1000))
        for party in pair.parties.values():
            (row,) = await party.rows()
            assert row.state == "failed"
            assert "should have been rounded" in row.reason
            assert party.files() == []
        assert actions(pair.receiver)[-1] == ("bulk.rejected", "")
        with pytest.raises(TransferFailed, match="is failed"):
            await pair.sender.service.resume(row.transfer_id.hex(), print)

    run(main)


def test_rows_that_do_not_fit_the_schema_are_refused_on_both_sides(tmp_path: Path) -> None:
    bad = pa.table({"age": [1, 500], "size": [1.0, 2.0], "label": [0, 1]})

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.sender.datasets = {DATASET: Dataset(SCHEMA, None)}
        await pair.start(nursery)
        path = pair.sender.home / "bad.parquet"
        pq.write_table(bad, path)
        with pytest.raises(InvalidRecord, match="'age' has values outside"):
            await pair.send(path)
        pq.write_table(bad.drop_columns(["size"]), path)
        with pytest.raises(InvalidRecord, match="'size' is missing"):
            await pair.send(path)
        # The sender knows no schema; the receiver does.
        await pair.stop(pair.sender)
        pair.sender.datasets, pair.receiver.datasets = {}, {DATASET: Dataset(SCHEMA, None)}
        await pair.stop(pair.receiver)
        await pair.start(nursery)
        with pytest.raises(PeerRefused, match="'size' is missing"):
            await pair.send(path)
        pq.write_table(bad, path)
        with pytest.raises(TransferFailed, match="'age' has values outside"):
            await pair.send(path)

    run(main)


def test_rows_too_close_to_private_ones_stay(tmp_path: Path) -> None:
    private = table(50, seed=9)
    matrix = shape.matrix(private.to_batches()[0], SCHEMA.features)

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.sender.datasets = {DATASET: Dataset(SCHEMA, PrivateReference(SCHEMA, matrix))}
        pair.sender.policy = policy(pair.sender.name, send="obligations: {min_distance_to_private: 0.001}")
        pair.receiver.policy = policy(pair.receiver.name, receive="obligations: {min_distance_to_private: 0.0005}")
        await pair.start(nursery)
        path = pair.sender.home / "t.parquet"
        pq.write_table(private.slice(3, 1), path)
        with pytest.raises(PolicyDenied, match=r"lies 0\.000 from a private one"):
            await pair.send(path)
        pq.write_table(pa.table({"age": [0], "size": [50.0], "label": [0]}), path)
        assert (await pair.send(path)).state == "done"

    run(main)


def test_a_dataset_is_not_sent_to_who_holds_it_for_less(tmp_path: Path) -> None:
    def declared(name: str, classification: str) -> str:
        return policy(name) + f"datasets:\n  {DATASET}: {{classification: {classification}}}\n"

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.sender.policy = declared(pair.sender.name, "restricted")
        pair.receiver.policy = declared(pair.receiver.name, "internal")
        await pair.start(nursery)
        with pytest.raises(PeerRefused, match=r"is restricted at org00\.example and only internal here"):
            await pair.send(pair.sender.write(10))

    run(main)


def test_rates_count_rows_once_however_often_the_link_breaks(tmp_path: Path) -> None:
    limited = "obligations: {rate: {records: 1500, per: 1h}}"
    breaks = iter([100, 2000])

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.sender.policy = policy(pair.sender.name, send=limited)
        pair.receiver.policy = policy(pair.receiver.name, receive=limited)
        pair.at_sender = lambda stream: Tap(stream, breaks_after=next(breaks, None))
        await pair.start(nursery)
        await pair.send(pair.sender.write(1000))
        with pytest.raises(PolicyDenied, match="rate of rule send is used up"):
            await pair.send(pair.sender.write(1000, seed=1))
        await pair.send(pair.sender.write(500, seed=2))

    run(main)


def test_an_agreement_has_to_fit(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path, count=3)
        from kit.consortium import consortium, names

        owed = Obligations(generalize={"age": 10}, onward="never")
        terms = agree(consortium(*names(3)), dataset=DATASET, obligations=owed)
        for party in pair.parties.values():
            party.agreement = {terms.digest: terms}.__getitem__
        await pair.start(nursery)
        path = pair.sender.write(100)
        await pair.send(path, agreement=terms.digest)
        (row,) = await pair.receiver.rows()
        assert {one["age"] % 10 for one in (await pair.receiver.read(row)).to_pylist()} == {0}
        with pytest.raises(AgreementError, match="is about"):
            await pair.send(path, agreement=terms.digest, purpose="billing")
        with pytest.raises(ConfigError, match="64 hex digits"):
            await pair.send(path, agreement=b"short")
        await pair.stop(pair.receiver)
        pair.receiver.agreement = unknown_agreement
        await pair.start(nursery, pair.receiver)
        with pytest.raises(PeerRefused, match="no agreement") as refused:
            await pair.send(path, agreement=terms.digest)
        assert refused.value.remote_code == "agreement_violated"

    assert PURPOSE == "screening"
    run(main)


# What a person gets wrong.


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"to": "not a name"}, ConfigError, "no organization name"),
        ({"to": "org00.example"}, ConfigError, "not to oneself"),
        ({"to": "stranger.example"}, ConfigError, "is no member of the consortium"),
        ({"kind": "real"}, ConfigError, "no kind of rows"),
        ({"kind": "certified"}, ConfigError, "give no file"),
        ({"dataset": ""}, ConfigError, "the dataset has"),
        ({"purpose": "x" * 200}, ConfigError, "the purpose has"),
        ({"path": Path("/nowhere/t.parquet")}, ConfigError, "no such file"),
    ],
)
def test_an_order_that_makes_no_sense(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], match: str
) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        order = replace(pair.sender.order(pair.sender.write(10), pair.receiver.name), **changes)
        with pytest.raises(error, match=match):
            await pair.sender.service.send(order, print)

    run(main)


def test_a_table_without_rows_is_not_sent(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        with pytest.raises(InvalidRecord, match="no rows"):
            await pair.send(pair.sender.write(0))
        with pytest.raises(InvalidRecord, match="no certified records of 'tumours': nothing to send"):
            await pair.send(None, kind="certified")

    run(main)


# Hostile senders and receivers.


def forge(pair: Pair, row: BulkRow, **changes: Any) -> BulkRow:
    """The same transfer with another manifest, signed by the sender."""
    manifest = replace(parse_manifest(open_document(row.manifest, "bulk").body), **changes)
    envelope = sign_document(pair.sender.identity.key, "bulk", manifest.encode())
    return replace(row, manifest=envelope)


async def prepared(pair: Pair, rows: int = 2000) -> BulkRow:
    order = pair.sender.order(pair.sender.write(rows), pair.receiver.name)
    return await pair.sender.service._preparer.prepare(order, lambda progress: None)


async def offer(pair: Pair, row: BulkRow) -> bytes:
    """Send a manifest as it is, and return what the receiver answers, up to the end."""
    stream = await pair.open(pair.sender, pair.receiver.identity.peer_id)
    await stream.send(len(row.manifest).__add__(1).to_bytes(4, "big") + b"\x01" + row.manifest)
    said = b""
    while data := await stream.receive():
        said += data
    return said


@pytest.mark.invariant("S2")
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"to_organization": "org02.example"}, b"wrong_audience"),
        ({"organization": "org02.example"}, b"wrong_audience"),
        ({"issued_ms": now_ms() + 3_600_000, "expires_ms": now_ms() + 7_200_000}, b"stale"),
        ({"issued_ms": 1000, "expires_ms": 2000}, b"stale"),
        ({"obligations": Obligations(onward="sideways")}, b"policy_denied"),
        ({"rows": 2**60}, b"envelope_malformed"),
        ({"root": b"short"}, b"envelope_malformed"),
        ({"columns": ()}, b"envelope_malformed"),
        ({"organization": "../../etc"}, b"envelope_malformed"),
        ({"dataset": "d" * 1000}, b"envelope_malformed"),
        ({"kind": "update"}, b"envelope_malformed"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], code: bytes) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        said = await offer(pair, forge(pair, await prepared(pair), **changes))
        assert code in said
        assert pair.receiver.files() == []
        assert await pair.receiver.rows() == []

    run(main)


@pytest.mark.invariant("S2")
def test_a_manifest_that_somebody_else_signed_is_refused(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path, count=3)
        await pair.start(nursery)
        row = await prepared(pair)
        _, _, third = pair.parties.values()
        body = open_document(row.manifest, "bulk").body
        said = await offer(pair, replace(row, manifest=sign_document(third.identity.key, "bulk", body)))
        assert b"signature_invalid" in said
        said = await offer(pair, replace(row, manifest=row.manifest[:-1] + bytes((row.manifest[-1] ^ 1,))))
        assert b"signature_invalid" in said

    run(main)


def test_a_wrong_chunk_ends_it_and_is_named(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        row = await prepared(pair, ROWS)
        path = pair.sender.home / "bulk" / "out" / f"{row.root.hex()}.arrow"
        data = bytearray(path.read_bytes())
        data[5 * CHUNK + 7] ^= 1
        path.write_bytes(data)
        with pytest.raises(TransferFailed, match=r"chunk 5 of org00\.example is not the one"):
            await pair.sender.service.resume(row.transfer_id.hex(), print)
        for party in pair.parties.values():
            (found,) = await party.rows()
            assert found.state == "failed"
            assert "chunk 5" in found.reason
            assert party.files() == []

    run(main)


def test_leaves_that_do_not_lead_to_the_root_end_it(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        row = await prepared(pair)
        geometry = parse_manifest(open_document(row.manifest, "bulk").body).geometry
        lying = forge(pair, row, root=b"r" * 32)
        stream = await pair.open(pair.sender, pair.receiver.identity.peer_id)
        from comity_node.protocol.bulk import Sender

        session = Sender(geometry)
        await stream.send(session.offer(lying.manifest))
        session.receive_data(await stream.receive())
        await stream.send(session.leaves(bytes(32 * geometry.chunks)))
        assert b"do not lead to the root" in await stream.receive()
        (found,) = await pair.receiver.rows()
        assert found.state == "failed"

    run(main)


@pytest.mark.invariant("S7")
def test_a_file_that_is_no_arrow_is_refused_when_it_is_complete(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        from comity.merkle import leaf_hash, root_of
        from comity_node.bulk.common import transfer_id_of
        from comity_node.protocol.bulk_manifest import Geometry

        pair = Pair(tmp_path)
        await pair.start(nursery)
        row = await prepared(pair)
        data = os.urandom(3 * CHUNK)
        leaves = [leaf_hash(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]
        root = root_of(leaves)
        pair.sender.parts.spool.keep_leaves(root, b"".join(leaves))
        for name, content in ((".arrow", data), (".leaves", b"".join(leaves))):
            (pair.sender.home / "bulk" / "out" / f"{root.hex()}{name}").write_bytes(content)
        forged = forge(pair, row, root=root, geometry=Geometry(len(data), CHUNK))
        forged = replace(forged, root=root, byte_count=len(data), transfer_id=transfer_id_of(forged.manifest))
        await pair.sender.database.transact(lambda c: journal.put_bulk(c, forged))
        with pytest.raises(TransferFailed, match="no Arrow IPC stream"):
            await pair.sender.service.resume(forged.transfer_id.hex(), print)
        assert not [name for name in pair.receiver.files() if "inbox" in name]

    run(main)


@pytest.mark.parametrize(
    "change",
    [
        lambda receipt: receipt.MergeFrom(BulkReceipt(rows=receipt.rows + 1)),
        lambda receipt: receipt.MergeFrom(BulkReceipt(transfer_id=bytes(32))),
        lambda receipt: receipt.MergeFrom(BulkReceipt(root=bytes(32))),
    ],
)
def test_a_receipt_of_something_else_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[BulkReceipt], None]
) -> None:
    from comity_node.bulk.intake import Intake

    honest = Intake._receipt

    def lie(self: Intake, at_ms: int, until_ms: int | None) -> bytes:
        receipt = BulkReceipt.FromString(open_document(honest(self, at_ms, until_ms), "bulk-receipt").body)
        change(receipt)
        return sign_document(self._parts.identity.key, "bulk-receipt", receipt.SerializeToString())

    monkeypatch.setattr(Intake, "_receipt", lie)

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        with pytest.raises(Exception, match="the receipt is of another transfer"):
            await pair.send(pair.sender.write(100))
        (row,) = await pair.sender.rows()
        assert row.state == "open", "nobody has signed for it"

    run(main)


# Room.


@pytest.mark.invariant("S7")
def test_room_is_bounded_for_each_organization_and_for_all(tmp_path: Path) -> None:
    size = 0

    async def main(nursery: trio.Nursery) -> None:
        nonlocal size
        pair = Pair(tmp_path)
        await pair.start(nursery)
        size = (await pair.send(pair.sender.write(ROWS))).byte_count
        for limits, match in (
            (replace(LIMITS, quota_per_organization=int(1.5 * size)), "its share of the spool"),
            (replace(LIMITS, quota_bytes=int(1.5 * size)), "quota is used up"),
            (replace(LIMITS, max_bytes=size - 1), "are taken in one transfer"),
            (replace(LIMITS, keep_free_bytes=2**60), "has no room"),
        ):
            await pair.stop(pair.receiver)
            pair.receiver.limits = limits
            await pair.start(nursery, pair.receiver)
            with pytest.raises(PeerRefused, match=match) as refused:
                await pair.send(pair.sender.write(ROWS, seed=1))
            assert refused.value.remote_code == "storage_full"
        assert len(await pair.receiver.rows()) == 1

    run(main)


@pytest.mark.invariant("S7")
def test_the_senders_own_room_is_bounded(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.sender.limits = replace(LIMITS, max_bytes=CHUNK)
        await pair.start(nursery)
        with pytest.raises(StorageFull, match="has more than"):
            await pair.send(pair.sender.write(ROWS))
        assert pair.sender.files() == []
        await pair.stop(pair.sender)
        pair.sender.limits = replace(LIMITS, keep_free_bytes=2**60)
        await pair.start(nursery, pair.sender)
        with pytest.raises(StorageFull, match="no room"):
            await pair.send(pair.sender.write(ROWS))
        assert pair.sender.files() == []

    run(main)


@pytest.mark.invariant("S7")
def test_open_transfers_of_one_organization_are_bounded(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.receiver.limits = replace(LIMITS, open_per_organization=2)
        pair.sender.limits = replace(LIMITS, retry_s=0.0)
        pair.at_sender = lambda stream: Tap(stream, breaks_after=3000)
        await pair.start(nursery)
        for seed in range(2):
            with pytest.raises(LinkClosed):
                await pair.send(pair.sender.write(ROWS, seed))
        pair.at_sender = lambda stream: stream
        with pytest.raises(Busy, match="are open here"):
            await pair.send(pair.sender.write(ROWS, 3))
        for one in (await pair.sender.rows())[1:]:
            assert (await pair.sender.service.resume(one.transfer_id.hex(), print)).state == "done"

    run(main)


@pytest.mark.invariant("S7")
def test_transfers_at_a_time_are_bounded_on_both_sides(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.sender.limits = replace(LIMITS, transfers_per_organization=2, retry_s=0.0)
        pair.receiver.limits = replace(LIMITS, transfers_per_organization=1)
        await pair.start(nursery)
        rows = [await prepared(pair, 100 + number) for number in range(3)]
        hold = trio.Event()

        class Held(Tap):
            async def send(self, data: bytes) -> None:
                if data[4] == 4:  # the leaves: by then the receiver has taken the transfer
                    await hold.wait()
                await super().send(data)

        pair.at_sender = lambda stream: Held(stream)
        resume = pair.sender.service.resume
        nursery.start_soon(resume, rows[0].transfer_id.hex(), print)
        await until(lambda: is_running(pair.receiver), "the receiver has taken it")
        with pytest.raises(Busy, match="is busy: as many transfers"):
            await resume(rows[1].transfer_id.hex(), print)
        with pytest.raises(Busy, match="is under way already"):
            await resume(rows[0].transfer_id.hex(), print)
        with pytest.raises(Busy, match="being sent"):
            await pair.sender.service.remove(rows[0].transfer_id.hex())
        running = pair.sender.service._sender._running
        running[b"another"] = running[rows[0].transfer_id]
        with pytest.raises(Busy, match="as many transfers as may"):
            await resume(rows[2].transfer_id.hex(), print)
        hold.set()
        await until(lambda: is_done(pair.receiver), "it is done")

    run(main)


def test_a_full_disk_ends_a_try_and_not_the_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    left = 3

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)

    async def main(nursery: trio.Nursery) -> None:
        nonlocal left
        pair = Pair(tmp_path)
        await pair.start(nursery)
        with pytest.raises(PeerRefused, match="the disk is full") as refused:
            await pair.send(pair.sender.write(ROWS))
        assert refused.value.remote_code == "storage_full"
        (row,) = await pair.sender.rows()
        assert row.state == "open"
        left = 10**9
        assert (await pair.sender.service.resume(row.transfer_id.hex(), print)).state == "done"
        (received,) = await pair.receiver.rows()
        assert await pair.receiver.read(received) == table(ROWS)

    run(main)


def test_a_disk_that_loses_a_chunk_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from comity_node.bulk.spool import PartFile

    real = PartFile.write
    lose = [4]

    def write(self: PartFile, index: int, data: bytearray | bytes) -> None:
        real(self, index, bytes(len(data)) if [index] == lose else data)

    monkeypatch.setattr(PartFile, "write", write)

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        with pytest.raises(PeerRefused, match="chunk 4 on this disk"):
            await pair.send(pair.sender.write(ROWS))
        lose.clear()
        (row,) = await pair.sender.rows()
        assert (await pair.sender.service.resume(row.transfer_id.hex(), print)).state == "done"

    run(main)


def test_silence_is_not_waited_out_for_ever(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.sender.limits = replace(LIMITS, silence_s=0.1, retry_s=0.0)
        pair.receiver.limits = replace(LIMITS, silence_s=0.1)
        await pair.start(nursery)

        class Deaf(Tap):
            async def send(self, data: bytes) -> None:
                self.sent += len(data)

        pair.at_sender = lambda stream: Deaf(stream)
        with pytest.raises(Exception, match="has said nothing for"):
            await pair.send(pair.sender.write(100))

    run(main)


# Keeping, deleting, recovering.


def test_what_may_no_longer_be_kept_is_deleted(tmp_path: Path) -> None:
    clock = [now_ms()]

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.receiver.policy = policy(pair.receiver.name, receive="obligations: {retain: 1d}")
        pair.receiver.clock = lambda: clock[0]
        await pair.start(nursery)
        row = await pair.send(pair.sender.write(100))
        await pair.receiver.service.sweep()
        assert len(pair.receiver.files()) == 1
        clock[0] += 24 * 3600_000 + 60_000
        await pair.receiver.service.sweep()
        assert pair.receiver.files() == []
        (gone,) = await pair.receiver.rows()
        assert (gone.state, gone.reason) == ("deleted", "its retention is over")
        entry = audited(pair.receiver)[-1]
        assert (entry["kind"], entry["action"]) == ("deletion", "bulk.retention")
        assert entry["subject"] == row.root.hex()
        with pytest.raises(NotFound, match="has no table here"):
            await pair.receiver.read(gone)
        clock[0] += LIMITS.remember_ms + 1
        await pair.receiver.service.sweep()
        assert await pair.receiver.rows() == []

    run(main)


def test_what_is_never_completed_goes(tmp_path: Path) -> None:
    clock = [now_ms()]

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        for party in pair.parties.values():
            party.clock = lambda: clock[0]
            party.limits = replace(LIMITS, retry_s=0.0)
        pair.at_sender = lambda stream: Tap(stream, breaks_after=4 * CHUNK)
        await pair.start(nursery)
        with pytest.raises(LinkClosed):
            await pair.send(pair.sender.write(ROWS))
        assert pair.sender.files()
        assert pair.receiver.files()
        clock[0] += LIMITS.lifetime_ms + 1
        for party in pair.parties.values():
            await party.service.sweep()
            assert party.files() == []
            (row,) = await party.rows()
            assert row.state == "failed"
            assert audited(party)[-1]["action"] == "bulk.expired"

    run(main)


def test_a_table_or_an_open_transfer_is_removed_by_hand(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        row = await pair.send(pair.sender.write(100))
        name = row.transfer_id.hex()
        await pair.receiver.service.remove(name[:8])
        assert pair.receiver.files() == []
        assert audited(pair.receiver)[-1]["action"] == "bulk.removed"
        open_ = await prepared(pair)
        await pair.sender.service.remove(open_.transfer_id.hex())
        assert pair.sender.files() == []
        with pytest.raises(TransferFailed, match="is deleted: removed by hand"):
            await pair.sender.service.resume(open_.transfer_id.hex(), print)
        for wrong, error in (("abc", ConfigError), ("zz" * 8, ConfigError), ("00" * 32, NotFound)):
            with pytest.raises(error):
                await pair.sender.service.remove(wrong)
        with pytest.raises(TransferFailed, match="theirs to resume"):
            await pair.receiver.service.resume(name, print)

    run(main)


def test_two_transfers_of_the_same_rows_share_a_file(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        first, second = await prepared(pair), await prepared(pair)
        assert first.root == second.root
        assert len(pair.sender.files()) == 2
        await pair.sender.service.resume(first.transfer_id.hex(), print)
        assert len(pair.sender.files()) == 2, "the second still needs it"
        await pair.sender.service.resume(second.transfer_id.hex(), print)
        assert pair.sender.files() == []

    run(main)


@pytest.mark.invariant("R1")
def test_a_start_puts_right_what_a_crash_left(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.sender.limits = replace(LIMITS, retry_s=0.0)
        pair.at_sender = lambda stream: Tap(stream, breaks_after=4 * CHUNK)
        await pair.start(nursery)
        with pytest.raises(LinkClosed):
            await pair.send(pair.sender.write(ROWS))
        await pair.stop(pair.receiver)
        (row,) = await pair.sender.rows()
        spool = pair.receiver.home / "bulk"
        name = row.transfer_id.hex()
        (spool / "in" / f"{name}.part").rename(spool / "inbox" / f"{name}.arrow")  # moved, and not journaled
        for stray in ("out/new-1234", f"in/{'ab' * 32}.part", f"inbox/{'cd' * 32}.arrow", "in/x.leaves.new"):
            (spool / stray).write_bytes(b"left by a crash")
        await pair.start(nursery, pair.receiver)
        assert pair.receiver.files() == [f"in/{name}.leaves", f"in/{name}.part"]
        pair.at_sender = lambda stream: stream
        assert (await pair.sender.service.resume(name, print)).state == "done"

    run(main)


def test_a_receipt_that_was_lost_is_asked_for_again(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        lost = [True]

        def lossy(stream: Any) -> Any:
            def change(data: bytes) -> bytes:
                if data[4] == 7 and lost.pop():  # the receipt
                    stream.reset()
                    raise LinkClosed("the receipt is lost")
                return data

            return Tap(stream, change=change) if lost else stream

        pair.at_receiver = lossy
        await pair.start(nursery)
        assert (await pair.send(pair.sender.write(1000))).state == "done"
        assert pair.opened == 2
        assert actions(pair.receiver).count(("bulk.received", "")) == 1

    run(main)


def test_the_spool_is_no_link(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (pair.sender.home / "bulk").mkdir()
    (pair.sender.home / "bulk" / "in").symlink_to(tmp_path / "elsewhere")

    async def main(nursery: trio.Nursery) -> None:
        with pytest.raises(StorageError, match="is a link"):
            await pair.start(nursery, pair.sender)

    run(main)


def test_a_link_in_place_of_a_part_is_not_followed(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        row = await prepared(pair)
        secret = tmp_path / "secret"
        secret.write_text("untouched")
        (pair.receiver.home / "bulk" / "in" / f"{row.transfer_id.hex()}.part").symlink_to(secret)
        with pytest.raises(PeerRefused) as refused:
            await pair.sender.service.resume(row.transfer_id.hex(), print)
        assert refused.value.remote_code == "storage_error"
        assert secret.read_text() == "untouched"

    run(main)
