"""The engine of tasks under way: one organization's holder and keeper, with the lanes between them and the others.

It has no I/O of its own, no clock but trio's and the one that it is given, and no orchestrator: what a task needs to
go on travels with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import trio

from comity.errors import LinkError, StorageError
from comity_node.protocol.flow import Outcome
from comity_node.protocol.token import Token
from comity_node.runtime.passing.bell import Bell
from comity_node.runtime.passing.calls import Calls
from comity_node.runtime.passing.codec import Bytes, Codec
from comity_node.runtime.passing.desk import Desk
from comity_node.runtime.passing.holder import Holder
from comity_node.runtime.passing.keeper import Keeper
from comity_node.runtime.passing.lanes import Lanes, Owner
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.ports import (
    Answer,
    Carrier,
    Gateway,
    Journal,
    Ledger,
    Note,
    Pacts,
    Refusal,
    Routing,
    Sink,
    Told,
    Verdict,
    Verdicts,
    Workers,
)
from comity_node.runtime.passing.visit import Parcel, Visit
from comity_node.runtime.passing.ways import Ways
from comity_node.runtime.seams import TaskStatus


@dataclass(frozen=True, slots=True)
class Ports:
    """What the engine stands on; see `ports`."""

    journal: Journal
    ledger: Ledger
    gateway: Gateway
    carrier: Carrier
    workers: Workers
    routing: Routing
    pacts: Pacts
    sink: Sink


@dataclass(frozen=True, slots=True)
class Counts:
    """What is where now.

    Attributes:
        open_tasks: of this home, not over.
        custody: tokens of other homes, here or on their way out.
        waiting: for an agent.
        running: calls of agents.
        outgoing: tokens on their way out.
        taken_over: tasks whose lease ran out, so far.
        hedged: stragglers that a second one was asked for, so far.
        called_twice: calls of own agents that were made a second time beside the first, so far.
    """

    open_tasks: int
    custody: int
    waiting: int
    running: int
    outgoing: int
    taken_over: int = 0
    hedged: int = 0
    called_twice: int = 0


class Engine:
    """Holds, works on, passes on and keeps tasks for one organization."""

    def __init__(
        self, me: str, peer: str, ports: Ports, *, random: Random, now_ms: Callable[[], int],
        limits: PassingLimits | None = None, codec: Codec | None = None,
    ) -> None:  # fmt: skip
        """Work for organization `me`, whose node is `peer`.

        Args:
            me: the organization.
            peer: the id of its node.
            ports: what the engine stands on.
            random: for pauses.
            now_ms: the time in milliseconds since 1970.
            limits: what tasks may cost, and how patient the engine is.
            codec: how cursors and states are put into tokens: as bytes that are checked, if nothing is said.
        """
        codec = codec or Bytes()
        self._me = me
        self._ports = ports
        self._limits = limits = limits or PassingLimits()
        self._notes: dict[str, list[Note]] = {}
        self._notes_bell = Bell()
        self._telling: set[str] = set()
        self._up = trio.Event()
        ways = Ways(me, ports.pacts, ports.routing)
        self._lanes = Lanes(
            gateway=ports.gateway, carrier=ports.carrier, journal=ports.journal, routing=ports.routing, random=random,
            limits=limits, owner=self._owner,
        )  # fmt: skip
        self._desk = Desk(ports.journal, self._lanes, limits.backoff_most_s)
        self._calls = Calls(me, ports.workers, limits, now_ms, self)
        self._holder = Holder(
            me=me, pacts=ports.pacts, journal=ports.journal, ways=ways, calls=self._calls, desk=self._desk,
            lanes=self._lanes, limits=limits, now_ms=now_ms, codec=codec,
        )  # fmt: skip
        self._keeper = Keeper(
            me=me, peer=peer, pacts=ports.pacts, ledger=ports.ledger, ways=ways, routing=ports.routing,
            calls=self._calls, desk=self._desk, lanes=self._lanes, sink=ports.sink, limits=limits, now_ms=now_ms,
            tell=self._tell, codec=codec,
        )  # fmt: skip

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Recover what an earlier run left (R1, R5), then work until cancelled.

        `open` waits for that; who brings tokens before is told to come again.
        """
        recovery = await self._ports.journal.recover()
        self._keeper.recover(await self._ports.ledger.recover())
        self._holder.recover(recovery)
        for row in recovery.outgoing:
            if row.token.home == self._me and not self._keeper.wants(row.token):
                self._desk.drop(row.token.key)
            else:
                self._lanes.put(row)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._lanes.run)
            self._desk.begin(nursery)
            nursery.start_soon(self._calls.run)
            nursery.start_soon(self._keeper.run)
            nursery.start_soon(self._holder.run, self._tell)
            nursery.start_soon(self._tell_all)
            self._up.set()
            task_status.started()

    @property
    def counts(self) -> Counts:
        """What is where now."""
        return Counts(
            self._keeper.open_tasks,
            self._holder.custody,
            len(self._calls),
            self._calls.running,
            len(self._lanes),
            self._keeper.taken_over,
            self._keeper.hedged,
            self._calls.hedged,
        )

    # What this organization wants.

    async def open(self, agreement: bytes, rows: Sequence[tuple[bytes, Mapping[str, Any]]]) -> int:
        """Open tasks of this home: see `Keeper.open`."""
        if not self._up.is_set():
            await self._up.wait()
        return await self._keeper.open(agreement, rows)

    def cancel(self, agreement: bytes, tasks: Iterable[bytes] | None = None, reason: str = "cancelled") -> int:
        """End tasks of this home, all of an agreement or those that are named; returns how many were open."""
        return self._keeper.cancel(agreement, tasks, reason)

    def let_go(self, agreement: bytes) -> int:
        """Drop what is here of other homes under an agreement that is over; returns how many tokens there were."""
        return self._holder.let_go(agreement)

    def workers_changed(self) -> None:
        """Hear that other agents are connected now."""
        self._holder.workers_changed()

    # What others bring.

    async def take(self, sender: str, tokens: Sequence[Token]) -> Verdicts:
        """Take what another organization brings: tokens for this holder, and tasks of this home that come back.

        Returns:
            A verdict for each; what is taken is in the journal by then. With them, how loaded the own agents are.
        """
        if not self._up.is_set():
            return Verdicts([Verdict(Answer.BUSY, "starting", self._limits.retry_after_s)] * len(tokens))
        verdicts: list[Verdict | None] = [None] * len(tokens)
        let_in = await self._ports.gateway.arrive(sender, tokens)
        home: list[int] = []
        held: list[int] = []
        for number, (token, refusal) in enumerate(zip(tokens, let_in, strict=True)):
            if isinstance(refusal, Refusal):
                answer = Answer.BUSY if refusal.retry_after_s else Answer.REFUSED
                verdicts[number] = Verdict(answer, refusal.reason, refusal.retry_after_s)
            else:
                (home if token.home == self._me else held).append(number)
        if home:
            for number, verdict in zip(
                home, await self._keeper.returned([tokens[n] for n in home], sender), strict=True
            ):
                verdicts[number] = verdict
        if held:
            for number, verdict in zip(held, await self._holder.take([tokens[n] for n in held], sender), strict=True):
                verdicts[number] = verdict
        return Verdicts([verdict for verdict in verdicts if verdict is not None], self._calls.wait_s())

    def told(self, sender: str, notes: Sequence[Note]) -> None:
        """Hear another organization's notes."""
        self._keeper.holding([note for note in notes if note.told is Told.HOLDING and note.home == self._me], sender)
        self._holder.cancel([note for note in notes if note.told is Told.CANCEL], sender)

    # Between the parts.

    def worked(self, visit: Visit, outcome: Outcome) -> None:
        """Pass on what came of a step."""
        (self._holder if visit.task is None else self._keeper).worked(visit, outcome)

    def unable(self, visit: Visit, reason: str) -> None:
        """Pass on that nobody here does a step."""
        (self._holder if visit.task is None else self._keeper).unable(visit, reason)

    def _owner(self, parcel: Parcel) -> Owner:
        return self._keeper if parcel.row.token.home == self._me else self._holder

    def _tell(self, to: str, notes: Sequence[Note]) -> None:
        waiting = self._notes.setdefault(to, [])
        waiting += notes
        del waiting[self._limits.custody :]  # a note that is lost costs no more than a lease
        self._notes_bell.ring()

    async def _tell_all(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await self._notes_bell.wait()
                for to in self._notes.keys() - self._telling:
                    self._telling.add(to)
                    nursery.start_soon(self._tell_one, to, self._notes.pop(to))

    async def _tell_one(self, to: str, notes: list[Note]) -> None:
        try:
            await self._ports.carrier.tell(to, notes)
        except (LinkError, StorageError):
            pass  # a note that is lost costs no more than a lease
        finally:
            self._telling.discard(to)
            if to in self._notes:
                self._notes_bell.ring()
