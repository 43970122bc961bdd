"""Bulk transfers against members with valid keys and clients of the node's own who mean ill, or are unlucky."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest
import trio

from comity.envelope import open_document, sign_document
from comity.errors import (
    Busy,
    CertificateInvalid,
    ComityError,
    ConfigError,
    DeadlineExceeded,
    LinkClosed,
    PeerRefused,
    PolicyDenied,
    StorageFull,
    TransferFailed,
)
from comity.v1.agreement_pb2 import Obligations as Terms
from comity.v1.bulk_pb2 import BulkAnswer, BulkProgress, BulkRefusal
from comity_node.bulk import sender as sending
from comity_node.bulk import shape
from comity_node.bulk.certified import Verifier
from comity_node.bulk.check import TableCheck
from comity_node.bulk.common import PROVENANCE, make_request, transfer_id_of
from comity_node.bulk.spool import Spool, Spooled
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Obligations
from comity_node.protocol.bulk import Frame, Sender
from comity_node.protocol.bulk_events import Declined
from comity_node.protocol.bulk_manifest import Column, Geometry, Manifest, parse_manifest
from comity_node.protocol.framing import encode_frame
from comity_node.storage import bulk as journal
from comity_node.storage.bulk import BulkRow
from kit.bulk import LIMITS, Pair, Party, Tap, policy, table
from kit.consortium import consortium, names
from kit.documents import DATASET, make_agreement, make_certified, make_terms
from kit.lab import now_ms, run

ROWS = 40_000
CHUNK = LIMITS.chunk_bytes
ONWARD = "obligations: {onward: allowed}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(sending, "_LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(sending, "_LAST_WORDS_S", 0.05)


async def prepared(pair: Pair, rows: int = 2000, seed: int = 0) -> BulkRow:
    order = pair.sender.order(pair.sender.write(rows, seed), pair.receiver.name)
    return await pair.sender.service._preparer.prepare(order, lambda progress: None)


def manifest_of(row: BulkRow) -> Manifest:
    return parse_manifest(open_document(row.manifest, "bulk").body)


async def forged(pair: Pair, row: BulkRow, **changes: Any) -> BulkRow:
    """The same file under another manifest of the sender's, journaled there: `resume` sends it."""
    manifest = replace(manifest_of(row), **changes)
    envelope = sign_document(pair.sender.identity.key, "bulk", manifest.encode())
    made = replace(row, manifest=envelope, transfer_id=transfer_id_of(envelope))
    await pair.sender.database.transact(lambda c: journal.put_bulk(c, made))
    return made


async def resume(pair: Pair, row: BulkRow) -> BulkRow:
    return await pair.sender.service.resume(row.transfer_id.hex(), pair.sender.reports.append)


# What the policies are told, and asked again.


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("action", ["bulk.send", "bulk.receive"])
def test_a_column_does_not_hide_behind_the_name_of_the_proofs(action: str) -> None:
    ask = partial(make_request, action, "b.example", purpose="p", dataset="d", fields=frozenset({"x", PROVENANCE}))
    assert ask(kind="synthetic", labels={}).fields == {"x", PROVENANCE}
    assert ask(kind="raw", labels={}).fields == {"x", PROVENANCE}
    assert ask(kind="certified", labels={}).fields == {"x"}


@pytest.mark.invariant("S1")
def test_what_was_prepared_under_a_looser_policy_stays(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        row = await prepared(pair)
        gate = pair.sender.parts.gate
        stricter = ("{redact: [age]}", "{generalize: {size: 5}}", "{min_distance_to_private: 1}", "{retain: 1d}")
        for owed in (*stricter, "{review: {quorum: 2}}"):
            gate.policy = loads_policy(policy(pair.sender.name, send=f"obligations: {owed}"))
            with pytest.raises(PolicyDenied, match=r"the policy has changed.*bulk remove"):
                await resume(pair, row)
        assert pair.opened == 0
        gate.policy = loads_policy(policy(pair.sender.name, send="purpose: [screening]"))
        assert (await resume(pair, row)).state == "done", "another policy that asks for no more is none in the way"

    run(main)


@pytest.mark.invariant("S1")
def test_the_policy_is_asked_before_each_try(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)

        def broken(stream: Any) -> Tap:
            pair.sender.parts.gate.policy = loads_policy(f"version: 1\norganization: {pair.sender.name}\nrules: []\n")
            return Tap(stream, breaks_after=3 * CHUNK)

        pair.at_sender = broken
        await pair.start(nursery)
        with pytest.raises(PolicyDenied):
            await pair.send(pair.sender.write(ROWS))
        assert pair.opened == 1

    run(main)


# Onward.


def linked_to(path: Path, link: Callable[[Path, Path], None], name: Path) -> Path:
    link(path, name)
    return name


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("way", ["as it lies", "symbolic link", "hard link", "exported"])
def test_a_received_table_is_not_passed_on_unless_its_sender_lets_it(tmp_path: Path, way: str) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path, count=3)
        middle, third = pair.receiver, list(pair.parties.values())[2]
        await pair.start(nursery)

        async def pass_on(row: BulkRow) -> BulkRow:
            path = middle.home / "bulk" / "inbox" / f"{row.transfer_id.hex()}.arrow"
            found = middle.home / f"{row.transfer_id.hex()}-link.arrow"
            if way == "symbolic link":
                found.symlink_to(path)
            elif way == "hard link":
                os.link(path, found)
            elif way == "exported":
                found.write_bytes(path.read_bytes())
            else:
                found = path
            return await middle.service.send(middle.order(found, third.name), middle.reports.append)

        kept = await pair.send(pair.sender.write(1000))
        with pytest.raises(PolicyDenied, match=r"came from org00\.example, whose obligations say onward: never"):
            await pass_on(kept)
        assert pair.opened == 1
        assert [row.direction for row in await middle.rows()] == ["in"]
        pair.sender.parts.gate.policy = loads_policy(policy(pair.sender.name, send=ONWARD))
        free = await pair.send(pair.sender.write(1000, seed=1))
        assert (await pass_on(free)).state == "done"

    run(main)


def test_who_sent_a_table_first_is_not_bound_by_who_sends_it_back(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path, count=3)
        middle, third = pair.receiver, list(pair.parties.values())[2]
        pair.sender.policy = policy(pair.sender.name, send=ONWARD)
        await pair.start(nursery)
        path = pair.sender.write(1000)
        row = await pair.send(path)
        inbox = middle.home / "bulk" / "inbox" / f"{row.transfer_id.hex()}.arrow"
        await middle.service.send(middle.order(inbox, pair.sender.name), middle.reports.append)  # says: never
        assert [one.direction for one in await pair.sender.rows()].count("in") == 1
        done = await pair.sender.service.send(pair.sender.order(path, third.name), pair.sender.reports.append)
        assert done.state == "done"

    run(main)


def test_other_files_of_the_spool_are_no_tables(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        row = await prepared(pair)
        with pytest.raises(ConfigError, match="a file of the node's spool"):
            await pair.send(pair.sender.home / "bulk" / "out" / f"{row.root.hex()}.arrow")

    run(main)


ORGANIZATIONS = names(5)


def certified_row(onward: str) -> tuple[bytes, Any]:
    """A proof of a record of the first organization that the second holds, and the trust store."""
    from comity.provenance import make_provenance

    lab = consortium(*ORGANIZATIONS)
    terms = make_terms(lab, obligations=Terms(onward=onward, retain_seconds=3600))
    agreement = make_agreement(lab, terms)
    from comity.agreement import open_agreement

    agreed = open_agreement(agreement, lab.trust)
    scores = dict.fromkeys(ORGANIZATIONS[2:], 9000)
    made = make_certified(lab, agreed, author=ORGANIZATIONS[0], holder=ORGANIZATIONS[1], scores=scores)
    return make_provenance(lab.nodes[ORGANIZATIONS[1]], made, agreement), lab.trust


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("onward", ["never", "with_consent", "allowed"])
def test_a_certified_record_of_another_stays_among_its_agreements_participants(onward: str) -> None:
    proof, trust = certified_row(onward)
    batch = pa.RecordBatch.from_pylist([{"label": 1, "x": 2.5, PROVENANCE: proof}])

    def check(giver: str, taker: str) -> Verifier:
        verifier = Verifier(trust, Obligations(), DATASET, giver, taker)
        verifier.check(batch)
        return verifier

    assert check(ORGANIZATIONS[1], ORGANIZATIONS[4]).retain_ms == 3_600_000, "its own terms bound how long it is kept"
    check(ORGANIZATIONS[0], "stranger.example")  # its author's is its author's
    if onward == "allowed":
        check(ORGANIZATIONS[1], "stranger.example")
        return
    with pytest.raises(PolicyDenied, match=r"does not let org01\.example pass it on to stranger\.example"):
        check(ORGANIZATIONS[1], "stranger.example")


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"x": pa.array([1.0]), PROVENANCE: pa.array(["text"])}, PROVENANCE),
        ({"x": pa.array([1.0]), PROVENANCE: pa.array([7])}, PROVENANCE),
        ({"x": pa.array([2**62], pa.timestamp("s")), PROVENANCE: pa.array([b""])}, "x"),
        ({"x": pa.array([2**31 - 1], pa.date32()), PROVENANCE: pa.array([b""])}, "x"),
        ({"x": pa.array([1], pa.timestamp("ns")), PROVENANCE: pa.array([b""])}, "x"),
    ],
)
def test_a_certified_table_with_columns_of_other_types_is_refused(columns: dict[str, Any], name: str) -> None:
    verifier = Verifier(consortium(*ORGANIZATIONS).trust, Obligations(), DATASET, *ORGANIZATIONS[:2])
    with pytest.raises(CertificateInvalid, match=f"no certified record has a column '{name}'"):
        verifier.check(pa.RecordBatch.from_pydict(columns))


# Manifests and answers that would cost too much, or for ever.


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    "terms",
    [
        Terms(onward="never", redact=["a." * 100_000 + "a"]),
        Terms(onward="never", generalize={"a." * 100_000 + "a": 1.0}),
        Terms(onward="never", redact=[""]),
        Terms(onward="never", redact=[f"f{number}" for number in range(1001)]),
    ],
)
def test_a_manifest_whose_paths_would_cost_minutes_is_malformed(tmp_path: Path, terms: Terms) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        row = await forged(pair, await prepared(pair), obligations=terms)
        stream = await pair.open(pair.sender, pair.receiver.identity.peer_id)
        await stream.send(encode_frame(Frame.MANIFEST, row.manifest))
        assert b"envelope_malformed" in await stream.receive()
        assert await pair.receiver.rows() == []

    run(main)


@pytest.mark.invariant("S7")
def test_a_retention_without_end_fits_journal_and_receipt(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        row = await forged(pair, await prepared(pair), obligations=Terms(onward="never", retain_seconds=2**64 - 1))
        assert (await resume(pair, row)).state == "done"
        (received,) = await pair.receiver.rows()
        assert received.retain_until_ms == 2**53

    run(main)


@pytest.mark.invariant("S7")
def test_an_open_transfer_is_kept_for_this_nodes_time_and_not_for_the_senders(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.sender.limits = replace(LIMITS, retry_s=0.0)
        pair.receiver.limits = replace(LIMITS, lifetime_ms=3_600_000)
        pair.at_sender = lambda stream: Tap(stream, breaks_after=3 * CHUNK)
        await pair.start(nursery)
        with pytest.raises(LinkClosed):
            await pair.send(pair.sender.write(ROWS))
        (row,) = await pair.receiver.rows()
        assert row.expires_ms <= now_ms() + 3_600_000

    run(main)


@pytest.mark.invariant("R3")
def test_a_peer_that_is_busy_for_years_is_not_waited_for(tmp_path: Path) -> None:
    busy = BulkRefusal(code=Busy.code, reason="later", retry_after_ms=2**32 - 1)

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.sender.limits = replace(LIMITS, retry_s=0.05)
        await pair.start(nursery)
        answer(pair, encode_frame(Frame.REFUSAL, busy.SerializeToString()))
        with trio.fail_after(20), pytest.raises(Busy):
            await pair.send(pair.sender.write(100))
        assert pair.opened > 1, "it was asked again"

    run(main)


@pytest.mark.invariant("R3")
def test_a_peer_that_checks_for_ever_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "check_budget_s", lambda manifest: 0.1)
    granted = encode_frame(Frame.ANSWER, BulkAnswer(next_chunk=0, leaves_known=True).SerializeToString())
    checking = encode_frame(Frame.PROGRESS, BulkProgress(stored=0, checked=1).SerializeToString())

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.sender.limits = replace(LIMITS, retry_s=0.0, silence_s=0.5)
        await pair.start(nursery)
        answer(pair, granted, for_ever=checking)
        with trio.fail_after(20), pytest.raises(DeadlineExceeded, match="does not come to an end with checking"):
            await pair.send(pair.sender.write(100))
        assert not pair.sender.service._sender.is_running((await pair.sender.rows())[0].transfer_id)

    run(main)


def answer(pair: Pair, first: bytes, *, for_ever: bytes = b"") -> None:
    """Have a peer that says this to every offer, whatever comes, and then the other thing again and again."""

    async def open_(party: Party, peer_id: str) -> Any:
        await trio.lowlevel.checkpoint()
        pair.opened += 1
        ours, theirs = pair.network.connect(party.identity.peer_id, peer_id)

        async def swallow() -> None:
            while await theirs.receive():
                pass

        async def talk() -> None:
            await theirs.send(first)
            while for_ever:
                await theirs.send(for_ever)
                await trio.sleep(0.05)  # well within the silence that is tolerated

        async def serve() -> None:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(swallow)
                    nursery.start_soon(talk)
            except* LinkClosed:
                pass

        pair._nursery.start_soon(serve)
        return ours

    pair.open = open_  # type: ignore[method-assign]


def test_a_peers_words_are_one_line_and_steer_no_terminal() -> None:
    session = Sender(Geometry(10, CHUNK))
    session.offer(b"manifest")
    refusal = BulkRefusal(code="no\n", reason="\x1b[2Jall\nfine", rules=["a\rb"])
    (event,) = session.receive_data(encode_frame(Frame.REFUSAL, refusal.SerializeToString()))
    assert event == Declined("no ", " [2Jall fine", ("a b",), 0)


def test_a_refusal_does_not_say_where_the_spool_lies(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.receiver.limits = replace(LIMITS, keep_free_bytes=2**60)
        await pair.start(nursery)
        with pytest.raises(PeerRefused, match="the spool has no room") as refused:
            await pair.send(pair.sender.write(100))
        assert str(tmp_path) not in str(refused.value)

    run(main)


# Disk, memory, threads.


@pytest.mark.invariant("S7")
def test_the_disk_is_looked_at_before_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Spool.check_room
    asked: list[int] = []

    def check(self: Spool, more_bytes: int) -> None:
        if self.home.parent.name == names(2)[1]:
            asked.append(more_bytes)
            if len(asked) == 3:  # somebody else fills the disk
                raise StorageFull("no room")
        honest(self, more_bytes)

    monkeypatch.setattr(Spool, "check_room", check)

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        with pytest.raises(PeerRefused, match="no room"):
            await pair.send(pair.sender.write(400_000))
        (row,) = await pair.sender.rows()
        assert (await resume(pair, row)).state == "done"

    run(main)


@pytest.mark.invariant("S7")
def test_offers_that_come_together_do_not_share_the_same_room(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        rows = [await prepared(pair, ROWS, seed) for seed in range(2)]
        quota = int(1.5 * rows[0].byte_count)
        receiver = pair.receiver.service._receiver
        object.__setattr__(pair.receiver.parts, "limits", replace(LIMITS, quota_per_organization=quota))
        refused: list[ComityError] = []
        both = trio.Event()
        waiting: list[None] = []
        journaled = receiver._journal

        async def together(offer: Any) -> BulkRow:  # both have looked for room by now
            waiting.append(None)
            if len(waiting) == 2:
                both.set()
            await both.wait()
            return await journaled(offer)

        receiver._journal = together  # type: ignore[method-assign]

        async def send(row: BulkRow) -> None:
            try:
                await resume(pair, row)
            except ComityError as error:
                refused.append(error)

        async with trio.open_nursery() as inner:
            for row in rows:
                inner.start_soon(send, row)
        assert [one.state for one in await pair.receiver.rows()] == ["done"]
        (error,) = refused
        assert "its share of the spool" in str(error)

    run(main)


@pytest.mark.invariant("S7")
def test_a_list_of_transfers_leaves_the_envelopes_out(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        await pair.send(pair.sender.write(100))
        for party in pair.parties.values():
            (listed,) = await party.service.list()
            assert (listed.row.manifest, listed.row.receipt) == (b"", b"")
            late = listed.row.expires_ms + 1
            overdue = await party.database.read(partial(journal.overdue, now_ms=late))
            assert all(row.manifest == b"" for row in overdue)
            (full,) = await party.rows()
            assert full.manifest
            assert full.receipt

    run(main)


@pytest.mark.invariant("S7")
def test_a_file_full_of_empty_batches_lets_go_of_its_thread(tmp_path: Path) -> None:
    schema = pa.schema([("x", pa.float64())])
    spool = Spool(tmp_path / "bulk")
    spool.prepare()
    writer = spool.writer(CHUNK, 2**30)
    with pa.ipc.new_stream(writer, schema) as stream:
        for _ in range(2000):
            stream.write_batch(pa.RecordBatch.from_pylist([], schema=schema))
    spooled: Spooled = writer.finish()
    lab = consortium(*names(2))
    manifest = Manifest(
        id=bytes(16), organization=names(2)[0], to_organization=names(2)[1], dataset="d", kind="synthetic",
        classification="", purpose="p", agreement_digest=b"", columns=(Column("x", "double"),), rows=0,
        geometry=spooled.geometry, root=spooled.root, obligations=Terms(), policy_digest=bytes(32), issued_ms=1,
        expires_ms=2,
    )  # fmt: skip
    part = spool.part(b"t" * 32, spooled.geometry)
    try:
        data = (tmp_path / "bulk" / "out" / f"{spooled.root.hex()}.arrow").read_bytes()
        for index in range(spooled.geometry.chunks):
            part.write(index, data[index * CHUNK : (index + 1) * CHUNK])
        check = TableCheck(manifest, spooled.leaves, part, Obligations(), None, lab.trust)
        assert len(list(check.steps(2**30))) == 2000 // 256
    finally:
        part.close()


def test_many_grids_and_many_columns_are_matched_by_name() -> None:
    owed = Obligations(generalize={f"f{number}": 1.0 for number in range(1000)})
    columns = [Column(f"f{number}", "double") for number in range(500, 1500)]
    assert shape.generalized(owed, columns) == {f"f{number}": 1.0 for number in range(500, 1000)}
    with pytest.raises(PolicyDenied, match=r"'f7' is to be rounded, but 'f7\.g' is no number"):
        shape.generalized(owed, [Column("f7.g", "double")])
    with pytest.raises(PolicyDenied, match=r"'a\.b' is to be rounded, but 'a\.b\.c' is no number"):
        shape.generalized(Obligations(generalize={"a.b": 1.0}), [Column("a.b.c", "double")])


# Crashes and bad luck.


@pytest.mark.invariant("R1")
def test_a_table_that_could_not_be_journaled_is_not_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = journal.finish_bulk
    failed: list[str] = []
    taps: list[Tap] = []

    def finish(*arguments: Any) -> bool:
        if not failed:
            failed.append("once")
            raise StorageFull("node.db: the disk is full")
        return honest(*arguments)

    monkeypatch.setattr(journal, "finish_bulk", finish)

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.at_sender = lambda stream: taps.append(Tap(stream)) or taps[-1]  # type: ignore[func-returns-value]
        await pair.start(nursery)
        with pytest.raises(PeerRefused, match="the disk is full"):
            await pair.send(pair.sender.write(ROWS))
        assert not [name for name in pair.receiver.files() if "inbox" in name], "what is not journaled is not there"
        (row,) = await pair.sender.rows()
        assert (await resume(pair, row)).state == "done"
        assert taps[1].sent < CHUNK
        assert await pair.receiver.read(row) == table(ROWS)

    run(main)


def test_a_transfer_that_was_given_up_is_not_signed_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Spool.promote

    def promote(self: Spool, transfer_id: bytes) -> None:
        import sqlite3

        with sqlite3.connect(self.home.parent / "node.db") as connection:  # whatever else may end it
            connection.execute("UPDATE bulk SET state = 'failed' WHERE direction = 'in'")
        connection.close()
        honest(self, transfer_id)

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        monkeypatch.setattr(Spool, "promote", promote)
        with pytest.raises(TransferFailed, match="given up here before it was complete"):
            await pair.send(pair.sender.write(100))
        assert not [name for name in pair.receiver.files() if "inbox" in name]

    run(main)


def test_a_transfer_that_completed_meanwhile_has_not_expired(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        sent = await pair.send(pair.sender.write(100))
        (row,) = await pair.receiver.rows()
        seen = replace(row, state="open")  # as a sweep saw it, just before
        await pair.receiver.service._delete(seen, "bulk.expired", "failed", "it was not completed in time")
        assert [one.state for one in await pair.receiver.rows()] == ["done"]
        assert (await pair.receiver.read(sent)).num_rows == 100

    run(main)


def test_a_spooled_file_that_is_gone_ends_the_transfer(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        row = await prepared(pair)
        pair.sender.parts.spool.drop_outgoing(row.root)
        with pytest.raises(TransferFailed, match="is gone; send the table again"):
            await resume(pair, row)
        assert [one.state for one in await pair.sender.rows()] == ["failed"]

    run(main)


def test_giving_up_at_the_last_moment_leaves_no_file(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        with trio.CancelScope() as scope:

            async def demand(question: Any) -> Any:
                scope.cancel()
                await trio.lowlevel.checkpoint()

            pair.sender.parts.gate.demand = demand  # type: ignore[method-assign]
            await pair.send(pair.sender.write(100))
        assert scope.cancelled_caught
        assert pair.sender.files() == []

    run(main)


@pytest.mark.parametrize("name", ["x" * 300 + ".parquet", "rows\0.parquet"])
def test_a_path_that_the_system_does_not_take_is_named(tmp_path: Path, name: str) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        with pytest.raises(ConfigError):
            await pair.send(tmp_path / name)

    run(main)


@pytest.mark.invariant("S6")
def test_a_file_with_offsets_that_point_outside_is_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    schema = pa.schema([("s", pa.string())])
    with pa.ipc.new_stream(str(path), schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pydict({"s": ["ab", "cd", "ef"]}, schema=schema))
    data = bytearray(path.read_bytes())
    at = bytes(data).rindex(struct.pack("<iiii", 0, 2, 4, 6))
    data[at + 4 : at + 16] = struct.pack("<iii", 1_000, 2_000, 3_000)
    path.write_bytes(data)

    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        await pair.start(nursery)
        with pytest.raises(ConfigError, match="cannot be read as a table"):
            await pair.send(path)
        assert pair.opened == 0

    run(main)
