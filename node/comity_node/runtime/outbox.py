"""The outbox: messages that stay in the journal until their recipient has them on disk.

One courier for each organization. A message is sealed anew at each attempt, so a slow way or a restart never makes it
stale; what it says does not change, and the recipient knows it by its content (R2).

What the policy, the trust bundle and the agreements of now do not let pass is not sent because those of an earlier time
did (S1): each message that is older than the last change is looked at again before it leaves, and `look_over` drops at
once what may not, one that is on its way too.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable
from random import Random
from typing import Protocol

import trio

from comity.errors import ComityError, EnvelopeError, LinkError, OwnCertificateExpired, PolicyDenied, StorageFull
from comity.v1.task_pb2 import Receipt
from comity_node.runtime.messenger import Messenger
from comity_node.runtime.patience import patiently
from comity_node.runtime.recheck import Objection
from comity_node.runtime.seams import TaskStatus
from comity_node.storage import audit, journal
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

#: Called with the item and the receipt when an item is over: delivered, refused, or expired (None).
Outcome = Callable[[journal.OutboxRow, Receipt | None], Awaitable[None]]

_BATCH = 16
_IDLE_S = 5.0
#: Between looks, in seconds: while the recipient is not linked, and while the disk is full.
_AWAY_S = 1.0
_FULL_S = 2.0
_FIRST_BACKOFF_MS = 200
_MAX_BACKOFF_MS = 15_000
#: The longest that a peer can have a message wait for it.
_MAX_RETRY_AFTER_MS = 600_000
#: Seconds between looks for what has expired.
_EXPIRE_EVERY_S = 2.0
_EXPIRE_AT_ONCE = 64
#: Messages that are looked at again at a time, and how long one waits whose agreement is suspended.
_LOOK_AT_ONCE = 64
_SUSPENDED_MS = 5_000


class Censor(Protocol):
    """Says of messages that were let pass before whether they may leave now (`recheck.Recheck`)."""

    @property
    def version(self) -> int:
        """Grows with each change that answers of before do not know of."""

    def message(self, item: journal.OutboxRow) -> Objection | None:
        """Return why a message may not leave now, None if it may."""

    def dropped(self, item: journal.OutboxRow, reason: str) -> audit.AuditEntry:
        """Return the audit entry of a message that is not delivered."""


class _NoChange:
    """Nothing changes while the node runs, and nothing has before."""

    version = -1

    def message(self, item: journal.OutboxRow) -> Objection | None:
        """Let everything pass: it was let pass when it was enqueued."""

    def dropped(self, item: journal.OutboxRow, reason: str) -> audit.AuditEntry:
        """Say that a message is not delivered."""
        return audit.AuditEntry(kind="effect", action="message.dropped", peer=item.organization)


class Outbox:
    """Delivers what the journal's outbox holds, at least once, until it is acknowledged."""

    def __init__(
        self, database: Database, messenger: Messenger, *, now_ms: Callable[[], int], random: Random, outcome: Outcome,
        censor: Censor | None = None,
    ) -> None:  # fmt: skip
        """Deliver through `messenger`; `outcome` hears how each message ended, `censor` may have it end before."""
        self._database = database
        self._messenger = messenger
        self._now_ms = now_ms
        self._random = random
        self._outcome = outcome
        self._news: dict[str, trio.Event] = {}
        self._under_way: dict[bytes, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._censor: Censor = censor or _NoChange()
        #: Under which version a message that waits was looked at last.
        self._passed: dict[bytes, int] = {}
        self._began_ms = now_ms()
        self._once_more = False

    def kick(self, organization: str) -> None:
        """Look again for messages to `organization`: one was added, or its link came up."""
        event = self._news.get(organization)
        if event is not None:
            event.set()
        elif self._nursery is not None:
            self._news[organization] = trio.Event()
            self._nursery.start_soon(self._courier, organization)

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until cancelled; begins with what an earlier run left."""
        async with trio.open_nursery() as self._nursery:
            try:
                for organization in await self._database.read(journal.count_open):
                    self.kick(organization)
                task_status.started()
                await self._expire_forever()
            finally:
                self._nursery = None  # what still comes at the end is for the next run

    async def _courier(self, organization: str) -> None:
        while True:
            event = self._news[organization] = trio.Event()
            wait_s = await self._deliver_due(organization)
            with trio.move_on_after(wait_s):
                await event.wait()

    async def _deliver_due(self, organization: str) -> float:
        """Deliver what is due and return how long to sleep when there is no news."""
        while self._messenger.reachable(organization):
            now_ms = self._now_ms()
            items = await self._database.read(lambda c: journal.due(c, organization, now_ms, limit=_BATCH))  # noqa: B023
            if not items:
                break
            async with trio.open_nursery() as nursery:
                for item in items:
                    nursery.start_soon(self._deliver_patiently, item)
        if not self._messenger.reachable(organization):
            return _AWAY_S  # whoever sees the link come up kicks
        now_ms = self._now_ms()
        upcoming = await self._database.read(lambda c: journal.next_due_ms(c, organization, now_ms))
        if upcoming is None:
            return _IDLE_S
        return min(_IDLE_S, max(0.05, (upcoming - self._now_ms()) / 1000))

    async def _expire_forever(self) -> None:
        while True:
            if self._once_more:
                self._once_more = False
                await patiently(self._look_over, "what waits in the outbox")
            await patiently(self._expire, "what has expired in the outbox")
            await trio.sleep(_EXPIRE_EVERY_S)

    async def _expire(self) -> None:
        """End what is past its time; here and nowhere else, so that its owner hears of it once.

        A message that is on its way right now is left: how that ends is its end, or it is met here the next time.
        """
        now_ms, under_way = self._now_ms(), set(self._under_way)
        for item in await self._database.read(lambda c: journal.expired(c, now_ms, limit=_EXPIRE_AT_ONCE)):
            if item.message_id not in under_way | self._under_way.keys():
                reason = f"expired: {item.reason or 'never delivered'}"
                await self._end(item, None, reason)

    async def _deliver_patiently(self, item: journal.OutboxRow) -> None:
        if item.message_id in self._under_way or self._now_ms() >= item.expires_ms:
            return
        scope = self._under_way[item.message_id] = trio.CancelScope()
        try:
            if not await self._is_held_back(item):
                with scope:
                    await self._deliver(item)
        except StorageFull as error:  # what became of it cannot be written down: it is delivered again, which is safe
            log.error("a %s to %s waits: %s", item.kind, item.organization, error.diagnostics())  # noqa: TRY400
            await trio.sleep(_FULL_S)
        finally:
            self._under_way.pop(item.message_id, None)

    # -- what may not leave any more -------------------------------------------------------------------------------

    async def look_over(self) -> None:
        """Look at every message that waits or is on its way, and drop those that may not leave now.

        Once more after `_EXPIRE_EVERY_S`: what was decided on before the change may be enqueued after it.
        """
        self._once_more = True
        await self._look_over()

    async def _look_over(self) -> None:
        after = b""
        while page := await self._database.read(
            lambda c: journal.open_messages(c, after=after, limit=_LOOK_AT_ONCE)  # noqa: B023
        ):
            for item in page:
                await self._is_held_back(item)
            after = page[-1].message_id
        for organization in list(self._news):
            self.kick(organization)

    async def _is_held_back(self, item: journal.OutboxRow) -> bool:
        """Look at a message again, unless nothing has changed since it was let pass; one that may not leave ends."""
        version = self._censor.version
        if self._passed.get(item.message_id, 0 if item.created_ms >= self._began_ms else -1) >= version:
            return False
        objection = self._censor.message(item)
        if objection is None:
            self._passed[item.message_id] = version
            return False
        if (scope := self._under_way.get(item.message_id)) is not None:
            scope.cancel()
        if objection.waits:
            until_ms = self._now_ms() + _SUSPENDED_MS
            await self._database.transact(
                lambda c: journal.defer(c, item.message_id, until_ms=until_ms, reason=objection.reason)
            )
        else:
            await self._drop(item, objection.reason)
        return True

    async def _drop(self, item: journal.OutboxRow, reason: str) -> None:
        log.warning("a %s to %s is not delivered: %s", item.kind, item.organization, reason)
        await self._outcome(item, Receipt(status=Receipt.STATUS_REFUSED, code=PolicyDenied.code, reason=reason))
        entry, now_ms = self._censor.dropped(item, reason), self._now_ms()

        def write(connection: sqlite3.Connection) -> None:
            if journal.mark_failed(connection, item.message_id, reason):
                audit.append(connection, entry, now_ms)

        await self._database.transact(write)
        self._passed.pop(item.message_id, None)

    # -- what may --------------------------------------------------------------------------------------------------

    async def _deliver(self, item: journal.OutboxRow) -> None:
        try:
            receipt = await self._messenger.ask(item.organization, item.kind, item.body)
        except (LinkError, EnvelopeError, OwnCertificateExpired) as error:
            await self._later(item, str(error), 0)
            return
        except ComityError as error:  # the answer does not verify: the peer is at fault, the message stays
            log.warning("%s answered a %s badly: %s", item.organization, item.kind, error)
            await self._later(item, str(error), 0)
            return
        if receipt.status == Receipt.STATUS_BUSY:
            await self._later(item, receipt.reason, receipt.retry_after_ms)
        else:
            await self._end(item, receipt, receipt.reason)

    async def _later(self, item: journal.OutboxRow, reason: str, retry_after_ms: int) -> None:
        backoff = min(_MAX_BACKOFF_MS, _FIRST_BACKOFF_MS * 2 ** min(item.attempts, 10))
        delay_ms = max(min(retry_after_ms, _MAX_RETRY_AFTER_MS), int(backoff * self._random.uniform(0.5, 1.0)))
        not_before_ms = self._now_ms() + delay_ms
        log.debug("a %s to %s waits %d ms: %s", item.kind, item.organization, delay_ms, reason)

        def write(connection: sqlite3.Connection) -> None:
            journal.mark_sent(connection, item.message_id, retry_at_ms=not_before_ms)
            journal.defer(connection, item.message_id, until_ms=not_before_ms, reason=reason)

        await self._database.transact(write)

    async def _end(self, item: journal.OutboxRow, receipt: Receipt | None, reason: str) -> None:
        done = receipt is not None and receipt.status == Receipt.STATUS_ACCEPTED
        if not done:
            log.warning("a %s to %s was not taken: %s", item.kind, item.organization, reason)
        await self._outcome(item, receipt)
        self._passed.pop(item.message_id, None)
        if done:
            await self._database.transact(lambda c: journal.mark_done(c, item.message_id))
        else:
            await self._database.transact(lambda c: journal.mark_failed(c, item.message_id, reason))
