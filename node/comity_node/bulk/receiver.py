"""The receiving side: decides on what a peer offers, takes it chunk by chunk, and signs for what is complete.

An offer passes these steps in this order, stopping at the first that fails (S1, S2):

1. the manifest's signature, by the attested peer's own key; 2. its bounds, that it is by them, for us and fresh;
3. whether it is known already; 4. room: transfers, quotas, disk; 5. agreement; 6. policy; 7. that the sender has done
to the rows what is asked for here, as far as the manifest can say.

Then it is journaled, and only then a chunk can come. What is complete is read once more from the disk, against the
tree, as Arrow in bounded batches, against schema and obligations; only then it moves into the inbox, is journaled and
signed for.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from dataclasses import dataclass, replace

import trio

from comity.envelope import open_document
from comity.errors import (
    Busy,
    ComityError,
    LinkError,
    PolicyDenied,
    SignatureInvalid,
    StaleMessage,
    StorageFull,
    TransferFailed,
    UnexpectedMessage,
    WrongAudience,
)
from comity.trust import Attested
from comity_node.admission import Question
from comity_node.bulk import shape
from comity_node.bulk.channel import Channel
from comity_node.bulk.common import (
    Stream,
    Surroundings,
    agreed_obligations,
    classification_of,
    describe,
    make_request,
    transfer_id_of,
)
from comity_node.bulk.intake import Intake
from comity_node.bulk.prepare import new_row
from comity_node.policy import obligations as duties
from comity_node.policy.model import CLASSIFICATIONS, Obligations
from comity_node.protocol.bulk import Receiver
from comity_node.protocol.bulk_events import Aborted, Offered, ReceiverEvent
from comity_node.protocol.bulk_manifest import MANIFEST_KIND, SKEW_MS, Manifest, parse_manifest
from comity_node.storage import audit
from comity_node.storage import bulk as journal
from comity_node.storage.bulk import BulkRow

_RETRY_MS = 5_000


@dataclass(frozen=True, slots=True)
class _Offer:
    """A manifest that passed steps 1 and 2."""

    transfer_id: bytes
    manifest: Manifest
    envelope: bytes
    sender: str


@dataclass(slots=True, eq=False)
class _Running:
    """A try that is under way."""

    offer: _Offer
    scope: trio.CancelScope
    over: trio.Event
    why: ComityError | None = None


class BulkReceiver:
    """Receives the transfers of one node."""

    def __init__(self, parts: Surroundings) -> None:
        self._parts = parts
        self._running: dict[bytes, _Running] = {}

    def is_running(self, transfer_id: bytes) -> bool:
        """Whether a transfer is under way."""
        return transfer_id in self._running

    async def stop(self, transfer_id: bytes) -> None:
        """End a try that is under way, and wait until it has let go of its files."""
        while (running := self._running.get(transfer_id)) is not None:
            running.scope.cancel()
            await running.over.wait()

    async def look_again(self) -> None:
        """Cut the transfers that the policy and the agreements of now do not take in; they stay open."""
        for running in list(self._running.values()):
            transfer_id = running.offer.transfer_id
            try:
                known = await self._parts.database.read(lambda c: journal.get_bulk(c, transfer_id))  # noqa: B023
                if known is not None and known.state == "open":  # else it is decided on by the policy of now, or over
                    await self._decide(running.offer, known)
            except ComityError as error:
                running.why = error
                running.scope.cancel()

    async def serve(self, sender: Attested, stream: Stream) -> None:
        """Serve a tunnel that an attested peer has opened; returns when the transfer is over or refused.

        Raises:
            ComityError: it broke off; the peer knows, if it can be told.
        """
        session = Receiver()
        channel: Channel[ReceiverEvent] = Channel(stream, session.receive_data, self._parts.limits.silence_s)
        try:
            offered = await channel.next_event()
            if isinstance(offered, Aborted):
                return
            if not isinstance(offered, Offered):
                raise UnexpectedMessage(f"{type(offered).__name__} instead of a manifest")
            try:
                await self._take(sender, offered.envelope, session, channel)
            except ComityError as error:
                with suppress(LinkError):  # whoever is gone need not be told
                    await channel.send(self._last_word(session, error))
                raise
            finally:
                await stream.aclose()
        finally:
            stream.reset()  # no effect on one that is closed

    async def _take(
        self, sender: Attested, envelope: bytes, session: Receiver, channel: Channel[ReceiverEvent]
    ) -> None:
        offer = self._open(sender, envelope)
        await self.stop(offer.transfer_id)  # an older try, whose end has not been noticed here yet
        running = _Running(offer, trio.CancelScope(), trio.Event())
        self._check_busy(sender.organization)
        self._running[offer.transfer_id] = running
        try:
            with running.scope:
                await self._decide_and_receive(offer, session, channel)
        finally:
            del self._running[offer.transfer_id]
            running.over.set()
        if running.scope.cancelled_caught:
            raise running.why or Busy("a newer try of the same transfer has taken over", retry_after_ms=_RETRY_MS)

    async def _decide_and_receive(self, offer: _Offer, session: Receiver, channel: Channel[ReceiverEvent]) -> None:
        known = await self._parts.database.read(lambda c: journal.get_bulk(c, offer.transfer_id))
        if known is not None and known.state == "done":
            await channel.send(session.receipt(known.receipt))
            return
        if known is not None and known.state != "open":
            raise TransferFailed(f"it was given up here: {known.reason or known.state}")
        policy = None
        while policy is not self._parts.gate.policy:  # it may be replaced while it is asked
            policy = self._parts.gate.policy
            row, owed = await self._decide(offer, known)
            known = row
        intake = Intake(self._parts, row, offer.manifest, owed, session, channel)
        try:
            await intake.run()
        except ComityError as error:
            if intake.is_bad:
                await self._fail(row, str(error))
                raise TransferFailed(str(error)) from error
            now_ms = self._parts.gate.now_ms()
            reason = str(error)
            await self._parts.database.transact(lambda c: journal.note_broken(c, row.transfer_id, reason, now_ms))
            raise

    def _open(self, sender: Attested, envelope: bytes) -> _Offer:
        """Steps 1 and 2."""
        document = open_document(envelope, MANIFEST_KIND)
        if document.signer != sender.public_key:
            raise SignatureInvalid(f"{sender.organization} offers a manifest that somebody else signed")
        manifest = parse_manifest(document.body)
        if manifest.organization != sender.organization:
            raise WrongAudience(f"{sender.organization} offers a transfer of {manifest.organization}")
        if manifest.to_organization != self._parts.identity.organization:
            raise WrongAudience(f"the transfer is for {manifest.to_organization}")
        now_ms = self._parts.gate.now_ms()
        if not manifest.issued_ms - SKEW_MS <= now_ms < manifest.expires_ms:
            raise StaleMessage("the transfer has expired, or the clocks differ: send the table again")
        if manifest.geometry.length > self._parts.limits.max_bytes:
            raise StorageFull(f"at most {self._parts.limits.max_bytes} bytes are taken in one transfer")
        return _Offer(transfer_id_of(envelope), manifest, envelope, sender.organization)

    def _check_busy(self, organization: str) -> None:
        limits = self._parts.limits
        of_one = sum(one.offer.sender == organization for one in self._running.values())
        if len(self._running) >= limits.transfers or of_one >= limits.transfers_per_organization:
            raise Busy("as many transfers as may are under way", retry_after_ms=_RETRY_MS)

    async def _decide(self, offer: _Offer, known: BulkRow | None) -> tuple[BulkRow, Obligations]:
        """Steps 4 to 7; returns the journaled transfer, and what has to hold of its rows."""
        parts, manifest = self._parts, offer.manifest
        await self._check_room(offer, known)
        agreed = agreed_obligations(parts, manifest.agreement_digest, offer.sender, manifest.dataset, manifest.purpose)
        allowed = await self._ask(offer, known)
        declared = shape.read_declared(manifest.obligations)
        needed = duties.merge(agreed, allowed)
        self._check_schema(manifest, duties.merge(declared, needed))
        shape.check_declared(needed, declared, manifest.columns, manifest.kind)
        both = duties.merge(declared, needed)
        if both.expire_ms is not None and both.expire_ms <= parts.gate.now_ms():
            raise PolicyDenied("its obligations say that it must be gone by now (expire)")
        row = known if known is not None else await self._journal(offer)  # looks for room once more
        return row, duties.merge(declared, needed)

    async def _check_room(self, offer: _Offer, known: BulkRow | None) -> None:
        parts, length = self._parts, offer.manifest.geometry.length
        if known is None:
            await parts.database.read(lambda c: self._check_quotas(c, offer))
        await parts.in_thread(lambda: parts.spool.check_room(length))

    def _check_quotas(self, connection: sqlite3.Connection, offer: _Offer) -> None:
        limits, length = self._parts.limits, offer.manifest.geometry.length
        used = journal.usage(connection, "in", offer.sender)
        if used.open_of_one >= limits.open_per_organization:
            raise Busy(f"{used.open_of_one} transfers of yours are open here: resume or drop them first")
        if used.bytes_of_one + length > limits.quota_per_organization:
            raise StorageFull(f"{offer.sender} has used up its share of the spool here")
        if used.bytes_of_all + length > limits.quota_bytes:
            raise StorageFull("the spool's quota is used up here")

    async def _ask(self, offer: _Offer, known: BulkRow | None) -> Obligations:
        """Step 6. The rows are reserved once, when the transfer is new; the policy of today is asked each time."""
        gate, manifest = self._parts.gate, offer.manifest
        request = make_request(
            "bulk.receive", offer.sender, purpose=manifest.purpose, dataset=manifest.dataset, kind=manifest.kind,
            fields=manifest.fields, labels={"records": manifest.rows, "bytes": manifest.geometry.length},
        )  # fmt: skip
        decision = gate.consider(request)
        if known is None or not decision.allowed:
            question = Question(request, manifest.root, manifest.agreement_digest, max(manifest.rows, 1))
            decision = await gate.demand(question)
        own = classification_of(self._parts, manifest.dataset)
        if own and CLASSIFICATIONS.index(own) < CLASSIFICATIONS.index(manifest.classification or own):
            raise PolicyDenied(
                f"{manifest.dataset!r} is {manifest.classification} at {offer.sender} and only {own} here"
            )
        return decision.obligations

    def _check_schema(self, manifest: Manifest, owed: Obligations) -> None:
        dataset = self._parts.datasets.get(manifest.dataset)
        if dataset is not None and manifest.kind != "certified":
            texts = shape.texts(owed)
            kept = [column for column in manifest.columns if column.name not in texts]
            shape.check_columns(dataset.schema.without(owed.redact | texts), kept)

    async def _journal(self, offer: _Offer) -> BulkRow:
        now_ms = self._parts.gate.now_ms()
        row = new_row("in", offer.manifest, offer.envelope, offer.sender, now_ms)
        row = replace(row, expires_ms=min(row.expires_ms, now_ms + self._parts.limits.lifetime_ms))

        def write(connection: sqlite3.Connection) -> None:
            self._check_quotas(connection, offer)  # again, with the row: two offers may have looked at the same time
            audit.append(connection, self._entry(row, "bulk.accepted"), now_ms)
            journal.put_bulk(connection, row)

        await self._parts.database.transact(write)
        return row

    async def _fail(self, row: BulkRow, reason: str) -> None:
        parts, now_ms = self._parts, self._parts.gate.now_ms()
        entry = self._entry(row, "bulk.rejected")
        entry = replace(entry, detail={**entry.detail, "reason": reason[:500]})

        def write(connection: sqlite3.Connection) -> None:
            if journal.end_bulk(connection, row.transfer_id, "failed", reason, now_ms):
                audit.append(connection, entry, now_ms)

        await parts.database.transact(write)
        await parts.in_thread(lambda: parts.spool.drop_incoming(row.transfer_id))

    def _entry(self, row: BulkRow, action: str) -> audit.AuditEntry:
        return audit.AuditEntry(
            kind="effect",
            action=action,
            peer=row.organization,
            subject=row.root,
            policy=self._parts.gate.policy.digest,
            agreement=row.agreement_digest,
            detail=describe(row),
        )

    def _last_word(self, session: Receiver, error: ComityError) -> bytes:
        """Return the frame that tells the sender why: a refusal before an answer was given, an abort after it.

        Where the spool lies is no business of a peer's.
        """
        rules, told = (error.rules, error.told) if isinstance(error, PolicyDenied) else ((), str(error))
        reason = told.replace(str(self._parts.spool.home), "the spool")
        retry_ms = error.retry_after_ms if isinstance(error, Busy) else 0
        try:
            return session.refuse(error.code, reason, rules, retry_ms)
        except UnexpectedMessage:
            return session.abort(error.code, reason)
