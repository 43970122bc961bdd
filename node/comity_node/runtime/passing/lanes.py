"""Tokens on their way out: in batches, per organization, again and again until somebody else has them in custody.

Invariants
  R1  a token leaves the journal only when its receiver said that it has it (or needs it no longer).
  R4  one that is busy or cannot be reached holds up only what is for it, and that is sent another way in time.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from random import Random
from typing import Protocol

import trio

from comity.errors import Busy, LinkError, StorageError
from comity_node.protocol.token import HOME, Key
from comity_node.runtime.passing.crew import Crew
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.ports import (
    Answer,
    Carrier,
    Gateway,
    Journal,
    Outgoing,
    Refusal,
    Routing,
    Verdict,
    Verdicts,
)
from comity_node.runtime.passing.visit import Parcel

log = logging.getLogger(__name__)

#: Who is told to come again after so many seconds is told it of the token (a rate, an approval, an agreement that is
#: suspended): others need not wait for it. For less there is no room, which all wait for.
_OF_TOKEN_S = 1.0
#: The longest that one token waits between two tries.
_LONGEST_S = 60.0
#: Only of more tokens in a lane than so many it is looked whether they are wanted still.
_SWEEP_FROM = 1024


class Owner(Protocol):
    """Who put a token out, and is told what became of it."""

    def delivered(self, parcel: Parcel, verdict: Verdict) -> None:
        """Hear that somebody else answers for it now."""

    def refused(self, parcel: Parcel, reason: str) -> None:
        """Hear that it is not taken, by policy: it needs another way."""

    def waited(self, parcel: Parcel) -> None:
        """Hear that it has waited too long for who is busy or cannot be reached; it still waits, if nothing is done."""


class _Lane:
    """What is for one organization."""

    __slots__ = ("crew", "failures", "queue", "sweep_at", "until_s")

    def __init__(self, most: int, work: Callable[[_Lane, trio.CancelScope], Awaitable[bool]]) -> None:
        self.queue: deque[Parcel] = deque()
        self.crew = Crew(most, partial(work, self))
        self.until_s = 0.0
        self.failures = 0
        self.sweep_at = _SWEEP_FROM

    def put(self, parcel: Parcel) -> None:
        """Add a parcel; those that nobody wants any longer make room, so that the lane is bounded by those that are."""
        if len(self.queue) >= self.sweep_at:
            self.queue = deque(each for each in self.queue if not each.dead)
            self.sweep_at = max(_SWEEP_FROM, 2 * len(self.queue))
        self.queue.append(parcel)
        self.crew.call()


class Lanes:
    """Delivers what is put in."""

    def __init__(
        self, *, gateway: Gateway, carrier: Carrier, journal: Journal, routing: Routing, random: Random,
        limits: PassingLimits, owner: Callable[[Parcel], Owner],
    ) -> None:  # fmt: skip
        """Deliver by `carrier` what `gateway` lets pass, and tell `owner` of each what became of it."""
        self._gateway = gateway
        self._carrier = carrier
        self._journal = journal
        self._routing = routing
        self._random = random
        self._limits = limits
        self._owner = owner
        self._lanes: dict[str, _Lane] = {}
        self._parcels: dict[Key, Parcel] = {}
        self._nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        """Return how many tokens are on their way out."""
        return len(self._parcels)

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for lane in self._lanes.values():
                lane.crew.begin(nursery)
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None  # what is put in from now on waits in the journal for the next run

    def put(self, row: Outgoing) -> None:
        """Deliver a journaled token; it replaces one of the same key."""
        parcel = Parcel(row, trio.current_time())
        if (old := self._parcels.get(parcel.key)) is not None:
            old.dead = True
        self._parcels[parcel.key] = parcel
        lane = self._lanes.get(row.to)
        if lane is None:
            lane = self._lanes[row.to] = _Lane(self._limits.lanes, partial(self._work, row.to))
            if self._nursery is not None:
                lane.crew.begin(self._nursery)
        lane.put(parcel)

    def backlog(self, to: str) -> int:
        """Return how many places of the lane to an organization are taken; dead parcels may be among them."""
        lane = self._lanes.get(to)
        return 0 if lane is None else len(lane.queue)

    def parcels(self) -> Iterator[Parcel]:
        """Return what is on its way out now."""
        return iter(list(self._parcels.values()))

    def get(self, key: Key) -> Parcel | None:
        """Return the token of a key, if it is on its way out."""
        return self._parcels.get(key)

    def drop(self, parcel: Parcel) -> None:
        """Deliver a token no longer; its row in the journal is the caller's."""
        parcel.dead = True
        if self._parcels.get(parcel.key) is parcel:
            del self._parcels[parcel.key]

    async def _work(self, to: str, lane: _Lane, _: trio.CancelScope) -> bool:
        if lane.until_s and lane.until_s > trio.current_time():
            await trio.sleep_until(lane.until_s)
            return True
        batch = self._next(lane)
        if lane.queue:
            lane.crew.call()
        if batch and (batch := await self._pass(to, lane, batch)):
            await self._deliver(to, lane, batch)
        return bool(lane.queue)

    def _next(self, lane: _Lane) -> list[Parcel]:
        batch: list[Parcel] = []
        most = 1 if lane.failures else self._limits.batch
        while lane.queue and len(batch) < most:
            parcel = lane.queue.popleft()
            if not parcel.dead:
                batch.append(parcel)
        return batch

    async def _pass(self, to: str, lane: _Lane, batch: list[Parcel]) -> list[Parcel]:
        """Have the gate decide on those that it has not decided on; return those that may go."""
        undecided = [parcel for parcel in batch if parcel.row.passed is None]
        if not undecided:
            return batch
        try:
            passed = await self._gateway.leave(to, [parcel.row for parcel in undecided])
        except StorageError as error:
            log.error("tokens for %s wait: %s", to, error.diagnostics())  # noqa: TRY400  (no bug, so no traceback)
            self._pause(lane, batch, self._limits.backoff_most_s)
            return []
        late: list[tuple[Parcel, float]] = []
        for parcel, one in zip(undecided, passed, strict=True):
            if isinstance(one, Refusal):
                if one.retry_after_s > 0:
                    late.append((parcel, one.retry_after_s))
                elif not parcel.dead:
                    self._owner(parcel).refused(parcel, one.reason)
            else:
                row = parcel.row
                parcel.row = Outgoing(row.token, row.to, row.role, one)
        if late:
            self._later(lane, late)
        return [parcel for parcel in batch if parcel.row.passed is not None and not parcel.dead]

    async def _deliver(self, to: str, lane: _Lane, batch: list[Parcel]) -> None:
        try:
            verdicts = await self._carrier.deliver(to, [parcel.row for parcel in batch])
        except Busy as error:
            self._busy(to, lane, batch, error.retry_after_ms / 1000)
            return
        except LinkError as error:
            lane.failures += 1
            pause = min(self._limits.backoff_s * 2 ** min(lane.failures - 1, 16), self._limits.backoff_most_s)
            log.debug("tokens for %s wait %.2f s: %s", to, pause, error)
            for parcel in batch:
                parcel.sent = True
            self._pause(lane, batch, pause * (0.5 + self._random.random()))
            return
        lane.failures = 0
        if isinstance(verdicts, Verdicts) and verdicts.wait_s is not None:
            self._routing.hinted(to, verdicts.wait_s)
        await self._settle(to, lane, batch, verdicts)

    async def _settle(self, to: str, lane: _Lane, batch: list[Parcel], verdicts: Sequence[Verdict]) -> None:
        gone = [
            parcel.key for parcel, verdict in zip(batch, verdicts, strict=True) if not parcel.dead and verdict.lets_go
        ]
        if gone:
            try:
                await self._journal.let_go(gone)
            except StorageError as error:
                log.error("receipts of %s wait: %s", to, error.diagnostics())  # noqa: TRY400  (no bug, so no traceback)
                self._pause(lane, batch, self._limits.backoff_most_s)  # delivered again, and known there
                return
        busy, again, late = 0.0, [], []
        for parcel, verdict in zip(batch, verdicts, strict=True):
            if parcel.dead:
                continue
            parcel.sent = parcel.sent or verdict.unsure
            if verdict.lets_go:
                self.drop(parcel)
                self._owner(parcel).delivered(parcel, verdict)
            elif verdict.answer is Answer.BUSY and verdict.retry_after_s >= _OF_TOKEN_S:
                late.append((parcel, verdict.retry_after_s))
            elif verdict.answer is Answer.BUSY:
                busy = max(busy, verdict.retry_after_s, 0.001)
                again.append(parcel)
            else:
                self._owner(parcel).refused(parcel, verdict.reason)
        if late:
            self._later(lane, late)
        if again:
            self._busy(to, lane, again, busy)

    def _later(self, lane: _Lane, late: Sequence[tuple[Parcel, float]]) -> None:
        """Bring tokens later, each of which has to wait so many seconds, and let the others of the lane go on."""
        now = trio.current_time()
        waiting = []
        for parcel, pause_s in late:
            if not parcel.dead and now - parcel.since_s >= self._limits.patience_s:
                self._owner(parcel).waited(parcel)
            if not parcel.dead:
                waiting.append((parcel, pause_s))
        if waiting and self._nursery is not None:
            pause_s = min(_LONGEST_S, max(pause_s for _, pause_s in waiting))
            self._nursery.start_soon(self._put_back, lane, [parcel for parcel, _ in waiting], pause_s)

    async def _put_back(self, lane: _Lane, parcels: Sequence[Parcel], pause_s: float) -> None:
        await trio.sleep(pause_s)
        lane.queue.extend(parcel for parcel in parcels if not parcel.dead)
        lane.crew.call()

    def _busy(self, to: str, lane: _Lane, batch: list[Parcel], retry_after_s: float) -> None:
        pause = min(retry_after_s, self._limits.backoff_most_s)
        if any(parcel.row.role != HOME for parcel in batch):
            self._routing.busy(to, pause)
        self._pause(lane, batch, pause)

    def _pause(self, lane: _Lane, batch: list[Parcel], pause_s: float) -> None:
        """Put a batch back to the front, and say of those that have waited too long that they have."""
        now = trio.current_time()
        lane.until_s = max(lane.until_s, now + pause_s)
        lane.queue.extendleft(reversed(batch))
        for parcel in list(lane.queue):
            if now - parcel.since_s < self._limits.patience_s:
                break
            if not parcel.dead:
                self._owner(parcel).waited(parcel)
