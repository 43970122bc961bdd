"""The sending side: offers a prepared transfer until the receiver has signed for it."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass, replace
from typing import Final

import trio
from google.protobuf.message import DecodeError

from comity.envelope import open_document
from comity.errors import (
    Busy,
    ChunkInvalid,
    ComityError,
    DeadlineExceeded,
    EnvelopeMalformed,
    LinkClosed,
    PeerRefused,
    PeerUnreachable,
    PolicyDenied,
    SignatureInvalid,
    TransferFailed,
    UnexpectedMessage,
)
from comity.trust import Attested
from comity.v1.bulk_pb2 import BulkReceipt
from comity_node.admission import Question
from comity_node.bulk import shape
from comity_node.bulk.channel import Channel, flat_nursery
from comity_node.bulk.common import (
    OpenStream,
    Peers,
    Progress,
    Report,
    Surroundings,
    agreed_obligations,
    check_budget_s,
    describe,
    make_request,
)
from comity_node.policy import obligations as duties
from comity_node.protocol.bulk import Sender
from comity_node.protocol.bulk_events import (
    Aborted,
    Declined,
    Granted,
    Progressed,
    Receipted,
    SenderEvent,
)
from comity_node.protocol.bulk_manifest import RECEIPT_KIND, Geometry, Manifest, parse_manifest
from comity_node.storage import audit
from comity_node.storage import bulk as journal
from comity_node.storage.bulk import BulkRow

#: Bytes that are read from the disk at a time.
_PIECE: Final = 4 * 1024 * 1024
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 15.0
_LAST_WORDS_S: Final = 1.0
#: After these the same transfer may work later; after any other error a person has to look.
_PASSING: Final = (LinkClosed, PeerUnreachable, DeadlineExceeded, Busy)
#: What the receiver calls a transfer that cannot become good any more.
_FOR_GOOD: Final = frozenset({TransferFailed.code, ChunkInvalid.code})

Frames = tuple[bytes, ...]


@dataclass(slots=True, eq=False)
class _Sending:
    """A transfer that is being sent: the try that is under way, and why it was cut if it was."""

    row: BulkRow
    scope: trio.CancelScope | None = None
    why: ComityError | None = None


class BulkSender:
    """Sends the transfers of one node."""

    def __init__(self, parts: Surroundings, peers: Peers, open_stream: OpenStream) -> None:
        """Send to `peers`, over tunnels that `open_stream` opens."""
        self._parts, self._peers, self._open_stream = parts, peers, open_stream
        self._running: dict[bytes, _Sending] = {}

    def is_running(self, transfer_id: bytes) -> bool:
        """Whether a transfer is under way."""
        return transfer_id in self._running

    async def send(self, row: BulkRow, report: Report) -> BulkRow:
        """Send an open transfer, again and again where the link breaks; returns its row when it is done.

        Raises:
            PolicyDenied: this organization's policy does not let it leave any more.
            PeerRefused: the receiver does not take it; `remote_code` says why.
            LinkError: no progress for `retry_s` seconds. The transfer stays open.
            TransferFailed: it has come to nothing.
            Busy: as many transfers as may are under way, or this one is.
        """
        self._take_place(row)
        try:
            return await self._keep_trying(row, report)
        finally:
            del self._running[row.transfer_id]

    def _take_place(self, row: BulkRow) -> None:
        limits = self._parts.limits
        others = [one.row.organization for one in self._running.values()]
        if row.transfer_id in self._running:
            raise Busy(f"transfer {row.transfer_id.hex()[:16]} is under way already")
        if len(others) >= limits.transfers or others.count(row.organization) >= limits.transfers_per_organization:
            raise Busy("as many transfers as may are under way; resume this one later", retry_after_ms=5000)
        self._running[row.transfer_id] = _Sending(row)

    async def look_again(self) -> None:
        """Cut the transfers that the policy and the agreements of now do not let leave; they stay open."""
        for sending in list(self._running.values()):
            try:
                await self._ask_again(sending.row)
            except ComityError as error:
                sending.why = error
                if sending.scope is not None:
                    sending.scope.cancel()

    async def _try(self, attempt: _Attempt, row: BulkRow) -> bytes:
        sending = self._running[row.transfer_id]
        sending.why = None
        with trio.CancelScope() as sending.scope:
            return await attempt.run(self._peer(row), self._open_stream)
        raise sending.why or LinkClosed("the transfer was cut")

    async def _ask_again(self, row: BulkRow) -> None:
        """Ask the policy of this moment about a transfer that was allowed when it was prepared. Its rows are reserved.

        What was done to them then has to be enough now. A review is not stated in the manifest: where one is asked for,
        it has to be the same policy.
        """
        parts, manifest = self._parts, parse_manifest(_body(row))
        agreed = agreed_obligations(parts, row.agreement_digest, row.organization, row.dataset, row.purpose)
        request = make_request(
            "bulk.send", row.organization, purpose=row.purpose, dataset=row.dataset, kind=row.kind,
            fields=manifest.fields, labels={"records": row.row_count, "bytes": row.byte_count},
        )  # fmt: skip
        decision = parts.gate.consider(request)
        if not decision.allowed:
            await parts.gate.demand(Question(request, row.root, row.agreement_digest, max(row.row_count, 1)))
            raise PolicyDenied(decision.reason, rules=decision.rules)
        if manifest.policy_digest == parts.gate.policy.digest:
            return
        owed = replace(duties.merge(agreed, decision.obligations), rates=())
        if not duties.covers(shape.read_declared(manifest.obligations), owed):
            name = row.transfer_id.hex()[:16]
            raise PolicyDenied(
                "the policy has changed, and asks more of these rows than was done when they were prepared: give the"
                f" transfer up (comity bulk remove {name}) and send the table again",
                rules=decision.rules,
            )

    async def _keep_trying(self, row: BulkRow, report: Report) -> BulkRow:
        parts = self._parts
        best, wait_s, until = -1, _FIRST_WAIT_S, trio.current_time() + parts.limits.retry_s
        while True:
            attempt = _Attempt(parts, row, report)
            try:
                await self._ask_again(row)  # each time: hours may lie between two tries
                return await self._finish(row, await self._try(attempt, row))
            except _PASSING as error:
                now = trio.current_time()
                if attempt.stored > best:
                    best, wait_s, until = attempt.stored, _FIRST_WAIT_S, now + parts.limits.retry_s
                await self._note(row, str(error))
                if now + wait_s > until or parts.gate.now_ms() >= row.expires_ms:
                    raise
                note = f"{error}; trying again"
                report(_progress(row, "waiting", max(attempt.stored, 0), note))
                asked_s = error.retry_after_ms / 1000 if isinstance(error, Busy) else 0.0
                await trio.sleep(max(wait_s, min(asked_s, _LONGEST_WAIT_S)))  # a peer names it, and may name years
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            except ComityError as error:
                if isinstance(error, TransferFailed):
                    await self._fail(row, str(error))
                else:
                    await self._note(row, str(error))
                raise

    def _peer(self, row: BulkRow) -> Attested:
        peer = self._peers.peer(row.organization)
        if peer is None:
            raise PeerUnreachable(f"no node of {row.organization} is linked")
        return peer

    async def _finish(self, row: BulkRow, receipt: bytes) -> BulkRow:
        parts, now_ms = self._parts, self._parts.gate.now_ms()
        entry = self._entry(row, "bulk.sent")

        def write(connection: sqlite3.Connection) -> bool:
            if journal.finish_bulk(connection, row.transfer_id, receipt, None, now_ms):
                audit.append(connection, entry, now_ms)
            return journal.is_wanted(connection, row.root)

        if not await parts.database.transact(write):
            await parts.in_thread(lambda: parts.spool.drop_outgoing(row.root))
        return replace(row, state="done", receipt=receipt, reason="", updated_ms=now_ms)

    async def _fail(self, row: BulkRow, reason: str) -> None:
        parts, now_ms = self._parts, self._parts.gate.now_ms()
        entry = self._entry(row, "bulk.failed", reason=reason[:500])

        def write(connection: sqlite3.Connection) -> bool:
            if journal.end_bulk(connection, row.transfer_id, "failed", reason, now_ms):
                audit.append(connection, entry, now_ms)
            return journal.is_wanted(connection, row.root)

        if not await parts.database.transact(write):
            await parts.in_thread(lambda: parts.spool.drop_outgoing(row.root))

    async def _note(self, row: BulkRow, reason: str) -> None:
        now_ms = self._parts.gate.now_ms()
        await self._parts.database.transact(lambda c: journal.note_broken(c, row.transfer_id, reason, now_ms))

    def _entry(self, row: BulkRow, action: str, **more: str) -> audit.AuditEntry:
        return audit.AuditEntry(
            kind="effect",
            action=action,
            peer=row.organization,
            subject=row.root,
            agreement=row.agreement_digest,
            detail={**describe(row), **more},
        )


class _Attempt:
    """One try, on one tunnel."""

    def __init__(self, parts: Surroundings, row: BulkRow, report: Report) -> None:
        self._parts, self._row, self._report = parts, row, report
        self._manifest: Manifest = parse_manifest(_body(row))
        self._geometry: Geometry = self._manifest.geometry
        self._session = Sender(self._geometry)
        self._sent = 0
        #: Chunks that the receiver has said are on its disk; -1 before it has said anything.
        self.stored = -1

    async def run(self, peer: Attested, open_stream: OpenStream) -> bytes:
        """Return the receipt's envelope, verified."""
        parts, row = self._parts, self._row
        self._report(_progress(row, "waiting", 0, f"asking {row.organization}"))
        descriptor, leaves = await parts.in_thread(lambda: parts.spool.outgoing(row.root, self._geometry))
        try:
            stream = await open_stream(peer.peer_id)
            try:
                channel: Channel[SenderEvent] = Channel(stream, self._session.receive_data, parts.limits.silence_s)
                await channel.send(self._session.offer(row.manifest))
                receipt = await self._talk(channel, descriptor, leaves)
                self._check_receipt(receipt, peer)
                await stream.aclose()
            finally:
                stream.reset()  # no effect on one that is closed
        finally:
            os.close(descriptor)
        return receipt

    async def _talk(self, channel: Channel[SenderEvent], descriptor: int, leaves: bytes) -> bytes:
        match await channel.next_event():
            case Receipted(envelope):
                return envelope
            case Granted(next_chunk, leaves_known):
                self._sent = self.stored = next_chunk
            case Declined(code, reason, rules, retry_after_ms):
                raise self._refusal(code, reason, rules, retry_after_ms)
            case Aborted(code, reason):
                raise self._refusal(code, reason, (), 0)
            case event:
                raise UnexpectedMessage(f"{type(event).__name__} instead of an answer")
        return await self._send_rest(channel, descriptor, b"" if leaves_known else leaves)

    async def _send_rest(self, channel: Channel[SenderEvent], descriptor: int, leaves: bytes) -> bytes:
        """Send what is missing, while the receiver's words come in; returns the receipt."""
        outcome: list[bytes | ComityError] = []

        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                outcome.append(await self._listen(channel))
                nursery.cancel_scope.cancel()

            async def speak() -> None:
                try:
                    await self._speak(channel, descriptor, leaves)
                    await trio.sleep(check_budget_s(self._manifest) + self._parts.limits.silence_s)
                    raise DeadlineExceeded(f"{self._row.organization} does not come to an end with checking the rows")
                except ComityError as error:
                    await trio.sleep(_LAST_WORDS_S)  # the receiver may have said why before it closed
                    outcome.append(error)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            nursery.start_soon(speak)
        first = outcome[0]
        if isinstance(first, ComityError):
            raise first
        return first

    async def _listen(self, channel: Channel[SenderEvent]) -> bytes | ComityError:
        try:
            while True:
                sent = self._sent
                try:
                    event = await channel.next_event()
                except DeadlineExceeded:
                    if self._sent > sent:  # the receiver has been taking chunks, and need not say so often
                        continue
                    raise
                match event:
                    case Progressed(stored, checked):
                        self._heard(stored, checked)
                    case Receipted(envelope):
                        return envelope
                    case Aborted(code, reason):
                        return self._refusal(code, reason, (), 0)
                    case other:
                        return UnexpectedMessage(f"{type(other).__name__} in the middle of a transfer")
        except ComityError as error:
            return error

    def _heard(self, stored: int, checked: int) -> None:
        self.stored = max(self.stored, stored)
        if checked:
            self._report(_progress(self._row, "checking", self._bytes(checked)))

    async def _speak(self, channel: Channel[SenderEvent], descriptor: int, leaves: bytes) -> None:
        if leaves:
            await channel.send(self._session.leaves(leaves))
        send, receive = trio.open_memory_channel[tuple[int, Frames]](1)
        async with flat_nursery() as nursery:
            nursery.start_soon(self._read_ahead, descriptor, send)
            async for count, frames in receive:  # not closed here: the reader is cancelled when this fails
                await channel.send(*frames)
                self._sent += count
                self._report(_progress(self._row, "sending", self._bytes(self._sent)))

    async def _read_ahead(self, descriptor: int, send: trio.MemorySendChannel[tuple[int, Frames]]) -> None:
        """Read the next piece while the last one is being sent; at most three pieces are in memory."""
        most = max(1, _PIECE // self._geometry.chunk_bytes)
        async with send:
            while heads := self._session.next_chunks(most):
                frames = await self._parts.in_thread(lambda: self._read(descriptor, heads))
                await send.send((len(heads), frames))

    def _read(self, descriptor: int, heads: list[tuple[int, bytes]]) -> Frames:
        frames = []
        for index, head in heads:
            size = self._geometry.size(index)
            data = self._parts.spool.read_at(descriptor, size, index * self._geometry.chunk_bytes)
            if len(data) != size:
                raise TransferFailed(f"the spooled file ends before chunk {index}; send the table again")
            frames.append(b"".join((head, data)))
        return tuple(frames)

    def _refusal(self, code: str, reason: str, rules: tuple[str, ...], retry_after_ms: int) -> ComityError:
        """Return what the receiver's no means here."""
        who = self._row.organization
        if code == Busy.code:
            return Busy(f"{who} is busy: {reason}", retry_after_ms=max(retry_after_ms, 1000))
        if code in _FOR_GOOD:
            return TransferFailed(f"{who} gave the transfer up for good: {reason}")
        by = f" by {', '.join(rules)}" if rules else ""
        return PeerRefused(f"{who} refuses the transfer ({code}{by}): {reason}", remote_code=code)

    def _check_receipt(self, envelope: bytes, peer: Attested) -> None:
        document = open_document(envelope, RECEIPT_KIND)
        if document.signer != peer.public_key:
            raise SignatureInvalid(f"the receipt is not signed by the node of {peer.organization}")
        try:
            receipt = BulkReceipt.FromString(document.body)
        except DecodeError as error:
            raise EnvelopeMalformed("the receipt does not parse") from error
        manifest = self._manifest
        said = (receipt.transfer_id, receipt.root, receipt.rows, receipt.bytes)
        if said != (self._row.transfer_id, manifest.root, manifest.rows, manifest.geometry.length):
            raise UnexpectedMessage("the receipt is of another transfer")

    def _bytes(self, chunks: int) -> int:
        return min(chunks * self._geometry.chunk_bytes, self._geometry.length)


def _body(row: BulkRow) -> bytes:
    """The manifest that this node signed itself."""
    return open_document(row.manifest, "bulk").body


def _progress(row: BulkRow, state: str, done: int, note: str = "") -> Progress:
    return Progress(row.transfer_id.hex(), state, row.row_count, row.byte_count, done, note)
