"""The agreements that this node takes part in: from the journal, verified once, kept in memory.

An agreement is in force, suspended, or over. Suspended is one that this organization's policy does not carry at the
moment: nothing is sent, taken in or judged under it, and its open tasks are refused; a later policy can put it in force
again. Over is one that has expired, was withdrawn, or does not verify any more: nothing revives it. What is known of a
stop is in memory at once, before anything else can happen; the journal follows (`settle`), and is brought in line again
at the next start, so that a crash in between undoes no stop.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

import trio

from comity.agreement import Agreed, open_agreement, read_terms
from comity.errors import AgreementError, AgreementStopped, Busy, ComityError
from comity.trust import TrustStore
from comity_node.protocol.task import State
from comity_node.runtime import stops
from comity_node.storage import audit, journal
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

_MAX_AGREEMENTS = 1_000
#: That one organization may have initiated and that are in force.
_MAX_OF_ONE = 100
#: How long one that is over is still known, for what is under way.
_LINGER_MS = 3_600_000
_VOID = "void"
_OVER = "over"
_REASON_CHARS = 500
#: What a peer is told while this node cannot sign: its certificate is renewed by a person.
_HALTED_RETRY_MS = 60_000

#: Says why an agreement may not go on now, "" if it may.
Judge = Callable[[Agreed], str]


async def _nothing() -> None:
    """Nobody has to hear of it."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """An agreement as it is now.

    Attributes:
        agreed: its terms.
        raw: as it was signed.
        stopped: why nothing happens under it; "" while it is in force.
        is_over: it does not come back.
        noted: the reason that the journal has; None if the journal has to be brought in line whatever it has.
    """

    agreed: Agreed
    raw: bytes
    stopped: str = ""
    is_over: bool = False
    noted: str | None = ""


class Agreements:
    """Agreements by digest."""

    def __init__(self, database: Database, trust: TrustStore, organization: str, now_ms: Callable[[], int]) -> None:
        """Keep those of `organization`."""
        self._database = database
        self._trust = trust
        self._organization = organization
        self._now_ms = now_ms
        self._known: dict[bytes, _Kept] = {}
        self._changed = trio.Event()
        #: Grows when something has stopped, or goes on.
        self.version = 0
        self._halted = ""
        #: Those that another node of this organization has signed, and this one not: under them nothing is begun or
        #: judged here, only tokens are worked on (`sharing`).
        self.shared: set[bytes] = set()
        #: Asked of every agreement when it is added, and by `look_again`.
        self.judge: Judge = lambda agreed: ""
        #: Awaited after an agreement was stopped: drops what is under way under it.
        self.on_stopped: Callable[[], Awaitable[None]] = _nothing

    # -- a start ---------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read what an earlier run left.

        One that does not verify any more, because a participant is no member now or has another root, is void: its open
        tasks end undecided, and batches that came in under it are given back unjudged.
        """
        now_ms = self._now_ms()
        read = self._database.read
        for row in await read(lambda c: journal.list_agreements(c, valid_at_ms=now_ms, limit=_MAX_AGREEMENTS)):
            if row.state in stops.ENDED:
                self._remember_over(row)
        for state in (stops.ACTIVE, stops.SUSPENDED):
            for row in await read(lambda c: journal.list_agreements(c, state=state, limit=_MAX_AGREEMENTS)):  # noqa: B023
                await self._load(row)

    async def _load(self, row: journal.AgreementRow) -> None:
        if row.expires_ms + _LINGER_MS < self._now_ms():
            await self._close(row.digest, _OVER, "the agreement has expired")
            return
        try:
            agreed = self._verify(row.agreement)
        except ComityError as error:
            log.warning("agreement %s is void: %s", row.digest.hex()[:12], error)
            await self._close(row.digest, _VOID, f"the agreement is void: {error}")
            self._remember_over(replace(row, state=_VOID))
            return
        # One that was suspended is not known to be so in this run: `look_again` says, and the journal follows.
        self._known[row.digest] = _Kept(agreed, row.agreement, noted="" if row.state == stops.ACTIVE else None)

    def _remember_over(self, row: journal.AgreementRow) -> None:
        """Know an agreement that was ended before its time, so that whoever goes by it still is told so."""
        try:
            agreed = read_terms(row.agreement)
        except AgreementError as error:  # of another version of this software: then it is unknown, which refuses too
            log.warning("agreement %s cannot be read: %s", row.digest.hex()[:12], error)
            return
        self._known[row.digest] = _Kept(agreed, row.agreement, f"it is {row.state}", is_over=True)

    # -- what is known ---------------------------------------------------------------------------------------------

    def all(self) -> list[Agreed]:
        """Return all agreements of this node that are in force or suspended, or were until lately."""
        return [kept.agreed for kept in self._known.values() if not kept.is_over]

    def find(self, digest: bytes) -> Agreed | None:
        """Return the agreement with this digest, stopped or not; None if it is not (or no more) known."""
        kept = self._known.get(digest)
        return kept.agreed if kept is not None else None

    def get(self, digest: bytes) -> Agreed:
        """Return the agreement with this digest, to do something under it.

        Raises:
            AgreementError: this node takes part in no such agreement.
            AgreementStopped: it is suspended or over.
            Busy: nothing can be signed here at the moment.
        """
        kept = self._find(digest)
        if kept.stopped:
            raise AgreementStopped(f"agreement {digest.hex()[:12]} is {_word(kept)}: {kept.stopped}")
        if self._halted:
            raise Busy(self._halted, retry_after_ms=_HALTED_RETRY_MS)
        return kept.agreed

    def raw(self, digest: bytes) -> bytes:
        """Return the agreement's bytes, with all signatures.

        Raises:
            AgreementError: this node takes part in no such agreement.
        """
        return self._find(digest).raw

    def why_stopped(self, digest: bytes) -> str:
        """Return why nothing happens under an agreement now; "" if it is in force, or not known."""
        kept = self._known.get(digest)
        return kept.stopped if kept is not None else ""

    def is_over(self, digest: bytes) -> bool:
        """Return whether an agreement does not come back; one that is not known does not."""
        kept = self._known.get(digest)
        return kept is None or kept.is_over

    def suspended(self) -> dict[bytes, str]:
        """Return the agreements that are suspended, with the reasons."""
        return {digest: kept.stopped for digest, kept in self._known.items() if kept.stopped and not kept.is_over}

    async def until_in_force(self, digest: bytes) -> bool:
        """Wait until something may happen under an agreement; returns whether that is so, or it is over.

        One that expires while it is suspended is in force again for whoever ends what is open under it.
        """
        while (kept := self._known.get(digest)) is not None and not kept.is_over:
            changed, left_s = self._changed, (kept.agreed.terms.expires_ms - self._now_ms()) / 1000
            if not (kept.stopped or self._halted) or left_s <= 0:
                return True
            with trio.move_on_after(left_s):
                await changed.wait()
        return False

    def _find(self, digest: bytes) -> _Kept:
        try:
            return self._known[digest]
        except KeyError:
            raise AgreementError(f"no agreement {digest.hex()[:12]} here") from None

    def _news(self) -> None:
        self.version += 1
        self._changed.set()
        self._changed = trio.Event()

    # -- stopping and going on -------------------------------------------------------------------------------------

    def look_again(self) -> Mapping[bytes, str]:
        """Ask `judge` about every agreement that is not over; takes effect at once, in memory.

        Returns:
            Those that have changed, each with the reason why it is stopped now ("": it goes on). `settle` writes down
            what has become of them.
        """
        changed: dict[bytes, str] = {}
        for digest, kept in self._known.items():
            if kept.is_over or (reason := self.judge(kept.agreed)[:_REASON_CHARS]) == kept.stopped:
                continue
            changed[digest] = reason
            self._known[digest] = replace(kept, stopped=reason)
        if changed:
            self._news()
        return changed

    async def settle(self) -> None:
        """Bring the journal in line with `look_again`: audit entries, and the ends of what was open under the stopped.

        Raises:
            StorageError: not all of it is written down; to be called again.
        """
        for digest in list(self._known):
            kept = self._known.get(digest)  # as it is now: it may have ended while another one was written down
            if kept is None or kept.is_over or kept.noted == kept.stopped:
                continue
            await (self._suspend(digest, kept.stopped) if kept.stopped else self._resume(digest))
            now = self._known.get(digest)
            if now is not None and not now.is_over:
                self._known[digest] = replace(now, noted=kept.stopped)

    def halt(self, reason: str) -> None:
        """Let nothing begin under any agreement until `halt("")`; what is open stays open."""
        if reason != self._halted:
            self._halted = reason
            self._news()

    async def end(self, digest: bytes, state: str, reason: str) -> bool:
        """End an agreement before its time, and everything under it. Nothing is sent or judged under it from here on.

        Open tasks end undecided, batches in custody are given back unjudged, messages that wait are dropped, transfers
        are cut.

        Args:
            digest: which.
            state: what it is from now on: one of `stops.ENDED`.
            reason: for the audit log, the tasks, and whoever comes by it.

        Returns:
            False, and nothing changed, if it is over already.

        Raises:
            AgreementError: this node takes part in no such agreement.
            StorageError: it is stopped, but that is not on disk: to be called again.
        """
        if state not in stops.ENDED:
            raise AgreementError(f"an agreement ends {', '.join(sorted(stops.ENDED))}, not {state!r}")
        kept = self._find(digest)
        if kept.is_over and kept.noted is not None:
            return False
        reason = (reason or f"the agreement is {state}")[:_REASON_CHARS]
        self._known[digest] = replace(kept, stopped=reason, is_over=True, noted=None)
        self._news()
        await self._close(digest, state, reason)
        self._known[digest] = replace(kept, stopped=reason, is_over=True, noted=reason)
        await self.on_stopped()
        return True

    async def end_unverifiable(self) -> None:
        """End those that do not verify any more under the trust bundle of now: a participant has left, or its root."""
        for digest, kept in list(self._known.items()):
            if kept.is_over:
                continue
            try:
                await trio.to_thread.run_sync(self._verify, kept.raw)
            except ComityError as error:
                log.warning("agreement %s is void: %s", digest.hex()[:12], error)
                await self.end(digest, _VOID, f"the agreement is void: {error}")

    def _verify(self, data: bytes) -> Agreed:
        agreed = open_agreement(data, self._trust)
        if gone := sorted(agreed.participants - set(self._trust.bundle.members)):
            raise AgreementError(f"{', '.join(gone)} left the consortium")
        return agreed

    async def _suspend(self, digest: bytes, reason: str) -> None:
        log.warning("agreement %s is suspended: %s", digest.hex()[:12], reason)
        now_ms = self._now_ms()
        await self._database.transact(
            lambda c: stops.stop(c, digest, stops.SUSPENDED, reason, now_ms, tasks=State.REFUSED, workflow="running")
        )

    async def _close(self, digest: bytes, state: str, reason: str) -> None:
        """End what is open under an agreement that is over."""
        now_ms, reason = self._now_ms(), reason[:_REASON_CHARS]
        await self._database.transact(
            lambda c: stops.stop(c, digest, state, reason, now_ms, tasks=State.UNDECIDED, workflow="done")
        )

    async def _resume(self, digest: bytes) -> None:
        now_ms = self._now_ms()
        await self._database.transact(lambda c: stops.resume(c, digest, now_ms))
        log.info("agreement %s goes on", digest.hex()[:12])

    # -- new ones --------------------------------------------------------------------------------------------------

    def check_room(self, agreed: Agreed) -> None:
        """Refuse terms for which there is no room, or whose id another agreement has.

        Raises:
            AgreementError: the id is taken.
            Busy: this node, or the initiator, has as many agreements in force as it may.
        """
        now_ms = self._now_ms()
        live = [one for one in self.all() if one.terms.expires_ms > now_ms]
        if any(
            kept.agreed.terms.id == agreed.terms.id and digest != agreed.digest for digest, kept in self._known.items()
        ):
            raise AgreementError(f"another agreement has the id {agreed.terms.id!r}")
        initiator = agreed.terms.initiator
        if Counter(one.terms.initiator for one in live)[initiator] >= _MAX_OF_ONE and initiator != self._organization:
            raise Busy(f"{initiator} has {_MAX_OF_ONE} agreements in force here", retry_after_ms=60_000)
        if len(live) >= _MAX_AGREEMENTS:
            raise Busy(f"this node has {_MAX_AGREEMENTS} agreements in force", retry_after_ms=60_000)

    async def add(self, data: bytes, also: Callable[[sqlite3.Connection], object] | None = None) -> Agreed:
        """Verify a concluded agreement and keep it; the same one twice is the same as once.

        One that the policy does not carry any more when it comes is kept suspended.

        Args:
            data: the agreement.
            also: is written in the same transaction, if it is new.

        Raises:
            AgreementError: it does not verify, is over, or this organization does not take part.
            AgreementStopped: it was ended here before.
            Busy: there is no room.
        """
        bundle = self._trust.bundle
        agreed = await trio.to_thread.run_sync(self._verify, data)
        now_ms = self._now_ms()
        agreed.check_active(now_ms)
        if self._organization not in agreed.participants:
            raise AgreementError(f"{self._organization} does not take part in this agreement")
        if (known := self._known.get(agreed.digest)) is not None:
            if known.is_over:
                raise AgreementStopped(f"agreement {agreed.digest.hex()[:12]} is over here: {known.stopped}")
            return known.agreed
        self._forget_old(now_ms)
        self.check_room(agreed)
        terms = agreed.terms
        row = journal.AgreementRow(
            digest=agreed.digest,
            agreement=data,
            initiator=terms.initiator,
            purpose=terms.purpose,
            dataset=terms.dataset,
            expires_ms=terms.expires_ms,
            state=stops.ACTIVE,
            created_ms=now_ms,
        )
        entry = audit.AuditEntry(
            kind="effect",
            action="agreement.concluded",
            peer=terms.initiator,
            subject=agreed.digest,
            agreement=agreed.digest,
            detail={"participants": list(terms.participants), "purpose": terms.purpose, "dataset": terms.dataset},
        )

        def write(connection: sqlite3.Connection) -> None:
            audit.append(connection, entry, now_ms)
            journal.put_agreement(connection, row)
            if also is not None:
                also(connection)

        await self._database.transact(write)
        if (known := self._known.get(agreed.digest)) is None:
            self._known[agreed.digest] = _Kept(agreed, data, self.judge(agreed)[:_REASON_CHARS])
            if self._known[agreed.digest].stopped:
                await self.settle()
            if self._trust.bundle is not bundle:  # what was looked at under the new one did not have this one yet
                await self.end_unverifiable()
        return agreed

    def _forget_old(self, now_ms: int) -> None:
        over = [d for d, kept in self._known.items() if kept.agreed.terms.expires_ms + _LINGER_MS < now_ms]
        for digest in over:
            del self._known[digest]
            self.shared.discard(digest)


def _word(kept: _Kept) -> str:
    return "over" if kept.is_over else "suspended"
