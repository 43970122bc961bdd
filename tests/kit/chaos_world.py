"""Plays a fault plan in one process: real runtimes, gates, signatures and databases; virtual time; a faulty network.

A kill is a `kill -9`: the database's files are copied at that very moment, nothing that the node still does counts, and
it starts again from the copy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from unittest.mock import patch

import trio

from comity.errors import ComityError
from comity.signing import PrivateKey
from comity.trust import TrustStore
from kit.chaos_member import Member
from kit.chaos_net import DETECT_S, Left, Wire
from kit.chaos_plan import ALL, OF_MESSAGES, ON_EVENTS, Fault, Kind, On, Plan
from kit.chaos_virtual import run
from kit.chaos_work import Reviews, Workload
from kit.consortium import Consortium, consortium, names

#: Seconds of the world until everything has to be at its end; faults last seconds, the longest back-off
#: is 15 s, and a message that was put off by a clock that was ahead waits until that time comes.
PATIENCE_S = 500.0
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a plan.

    Attributes:
        plan: that was played.
        directory: with a database for each organization.
        trust: the consortium.
        chains: of the nodes, by key.
        names: the organizations, by number.
        left: the messages that have left their senders.
        submitted: ids of workflows that were acknowledged.
        open: what was not at its end when patience was; empty if all was.
        took_s: seconds of the world.
        hit: how often each kind of fault happened.
        trace: what happened when, the same for the same plan.
    """

    plan: Plan
    directory: Path
    trust: TrustStore
    chains: Mapping[bytes, Sequence[bytes]]
    names: tuple[str, ...]
    left: tuple[Left, ...]
    submitted: tuple[str, ...]
    open: tuple[str, ...]
    took_s: float
    hit: Mapping[str, int]
    trace: tuple[str, ...]

    def file(self, name: str) -> Path:
        """Return the database of an organization."""
        return self.directory / name / "node.db"


def same_consortium(count: int) -> Consortium:
    """Return a consortium whose nodes have the same keys in every run: what follows from keys is the same, too."""
    draws = Random(f"keys {count}")
    with patch.object(PrivateKey, "generate", lambda: PrivateKey(draws.randbytes(32))):
        return consortium(*names(count), name="chaos")


class World:
    """The members of a plan, and what happens to them."""

    def __init__(self, plan: Plan, directory: Path, workload: Workload) -> None:
        """Make the organizations; they run when `play` does."""
        self.plan = plan
        made = same_consortium(plan.organizations)
        self.trust = made.trust
        self.members: dict[str, Member] = {}
        self.wire = Wire(plan, self.members, self._since_ms)
        self.workload = workload
        for number, (name, identity) in enumerate(made.nodes.items()):
            home = directory / name
            home.mkdir(parents=True)
            self.members[name] = Member(
                number, identity, made.trust, home, self.wire, workload, plan.seed, self._happens
            )
        self.by_number = tuple(self.members.values())
        self._armed = [fault for fault in plan.faults if fault.on is not On.TIME]
        self._nursery: trio.Nursery | None = None
        self._mending = 0
        self.patience_s = PATIENCE_S
        self.submitted: list[str] = []
        self.trace: list[str] = []

    def _since_ms(self) -> int:
        return int(trio.current_time() * 1000)

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{trio.current_time():.4f} {text}")

    # -- the run ---------------------------------------------------------------------------------------------------

    async def play(self) -> tuple[tuple[str, ...], float]:
        """Play the plan; returns what is open at the end, and after how many seconds of the world that was."""
        async with trio.open_nursery() as nursery:
            await self.begin(nursery)
            still = await self.settle()
            took_s = trio.current_time()
            nursery.cancel_scope.cancel()
        return still, took_s

    async def begin(self, nursery: trio.Nursery) -> None:
        """Start everybody, arm the plan's faults, and submit the workflow."""
        self._nursery = nursery
        for member in self.by_number:
            await nursery.start(member.live)
        for member in self.by_number:
            self.wire.relink(member)
        for fault in self.plan.faults:
            if fault.on is On.TIME and fault.kind not in OF_MESSAGES:
                self.happen(fault)
        await self._submit()

    def happen(self, fault: Fault) -> None:
        """Have a fault happen in `fault.at` milliseconds; not one of messages."""
        assert self._nursery is not None
        self._mending += 1
        self._nursery.start_soon(self._on_time, fault)

    async def _submit(self) -> None:
        """Submit the workflow at the first organization until it says that it has it."""
        first = self.by_number[0]
        document = json.dumps(self.workload.document(self.plan)).encode()
        while True:
            if (node := first.node) is not None and first.alive:
                try:
                    workflow_id = await node.within(partial(node.runtime.workflows.submit, document))
                except ComityError as error:
                    self.note(f"not submitted: {error.code}")
                else:
                    self.submitted.append(workflow_id)
                    return
            await trio.sleep(_LOOK_S)

    async def settle(self) -> tuple[str, ...]:
        """Wait until nothing is under way any more; returns what still is when patience is at its end."""
        still: tuple[str, ...] = ("nothing was looked at",)
        until_s = trio.current_time() + self.patience_s
        while trio.current_time() < until_s:
            await trio.sleep(_LOOK_S)
            if self._mending or self._since_ms() < self._last_ms():
                continue
            still = tuple(line for member in self.by_number for line in under_way(member))
            if not still:
                if await self._try_again():
                    continue
                return ()
        return still

    def _last_ms(self) -> int:
        return max([f.at + f.for_ms for f in self.plan.faults if f.kind in OF_MESSAGES], default=0)

    async def _try_again(self) -> bool:
        """Submit once more what was not agreed upon: too many were away. Returns whether it was."""
        first = self.by_number[0]
        states = [state for (state,) in first.rows("SELECT state FROM workflows")]
        if "done" in states or len(self.submitted) > 5:
            return False
        await self._submit()
        return True

    # -- what goes wrong -------------------------------------------------------------------------------------------

    def _happens(self, member: Member, on: On) -> None:
        """Hear of an event at a member; faults that wait for it happen now."""
        if not member.alive:
            return
        member.events[on] += 1
        for fault in tuple(self._armed):
            if (fault.who, fault.on, fault.at) == (member.number, on, member.events[on] - 1):
                self._armed.remove(fault)
                self._strike(fault, member)

    async def _on_time(self, fault: Fault) -> None:
        member = self.by_number[fault.who]
        await trio.sleep(fault.at / 1000)
        if fault.kind in ON_EVENTS:
            self._strike(fault, member)
        else:
            self.note(f"{fault.kind} {member.number}")
            self.wire.hit[fault.kind] += 1
            await self._lasting(fault, member)
        self._mending -= 1

    def _strike(self, fault: Fault, member: Member) -> None:
        """Kill, stop or freeze a member, at once: this is called in the middle of what it does."""
        node, nursery = member.node, self._nursery
        if node is None or not member.alive or nursery is None:
            return  # it is down already
        self.note(f"{fault.kind} {member.number} on {fault.on} {fault.at}")
        self.wire.hit[fault.kind] += 1
        self._mending += 1
        if fault.kind is Kind.FREEZE:
            nursery.start_soon(self._frozen, fault, member)
            return
        kept = member.snapshot() if fault.kind is Kind.KILL else None
        node.scope.cancel()
        self.wire.drop_all(member)
        self._thaw(member)
        nursery.start_soon(self._restart, member, fault.for_ms, kept)

    async def _restart(self, member: Member, after_ms: int, kept: Path | None) -> None:
        node, nursery = member.node, self._nursery
        assert nursery is not None
        if node is not None:
            await node.gone.wait()
        await trio.sleep(after_ms / 1000)
        if kept is not None:
            member.restore(kept)
        await nursery.start(member.live)
        self.note(f"up {member.number}")
        self.wire.relink(member)
        self._mending -= 1

    async def _frozen(self, fault: Fault, member: Member) -> None:
        if member.thawed is None:
            member.thawed = trio.Event()
            pairs = self._pairs(member, ALL)
            await trio.sleep(min(DETECT_S, fault.for_ms / 1000))
            if (rest_s := fault.for_ms / 1000 - DETECT_S) > 0:
                self._cut(pairs)
                await trio.sleep(rest_s)
            self._thaw(member)
            self.wire.cut -= pairs
            self.wire.relink(member)
        self._mending -= 1

    def _thaw(self, member: Member) -> None:
        if member.thawed is not None:
            member.thawed.set()
            member.thawed = None

    def _pairs(self, member: Member, other: int) -> set[frozenset[str]]:
        others = [each for each in self.by_number if each is not member and other in (ALL, each.number)]
        return {frozenset({member.name, each.name}) for each in others}

    def _cut(self, pairs: set[frozenset[str]]) -> None:
        """Find links dead."""
        self.wire.cut |= pairs
        for pair in pairs:
            self.wire.drop(pair)

    async def _lasting(self, fault: Fault, member: Member) -> None:
        """Let something be wrong for a while."""
        begin, end = self._ways()[fault.kind]
        begin(fault, member)
        try:
            if fault.kind is Kind.PARTITION and fault.for_ms > DETECT_S * 1000:
                await trio.sleep(DETECT_S)
                self._cut(self._pairs(member, fault.other))
                await trio.sleep(fault.for_ms / 1000 - DETECT_S)
            else:
                await trio.sleep(fault.for_ms / 1000)
        finally:
            end(fault, member)

    def _ways(self) -> Mapping[Kind, tuple[Callable[[Fault, Member], None], Callable[[Fault, Member], None]]]:
        def step(fault: Fault, member: Member, sign: int) -> None:
            member.offset_ms += sign * fault.amount

        def heal(fault: Fault, member: Member) -> None:
            pairs = self._pairs(member, fault.other)
            self.wire.silent.subtract(pairs)
            self.wire.cut -= {pair for pair in pairs if not self.wire.silent[pair]}
            self.wire.relink(member)

        def back(fault: Fault, member: Member) -> None:
            member.worker_down = False

        return {
            Kind.PARTITION: (lambda fault, member: self.wire.silent.update(self._pairs(member, fault.other)), heal),
            Kind.WORKER: (lambda fault, member: member.lose_worker(), back),
            Kind.DISK: (lambda fault, member: member.fill(True), lambda fault, member: member.fill(False)),
            Kind.CLOCK: (partial(step, sign=1), partial(step, sign=-1)),
        }


_UNDER_WAY = {
    "workflow": "workflow_id || ' is ' || state AS line FROM workflows WHERE state IN ('negotiating', 'running')",
    "task": "lower(hex(task_id)) || ' is ' || state AS line FROM tasks"
    " WHERE state NOT IN ('certified', 'rejected', 'undecided', 'refused')",
    "message": "dedup_key || ' waits: ' || reason AS line FROM outbox WHERE state IN ('pending', 'sent')",
    "journey": "lower(hex(task_id)) || ' is at ' || held_by AS line FROM journeys WHERE ending = ''",
    "token": "lower(hex(task_id)) || ' is held' AS line FROM tokens_held",
    "outgoing token": "lower(hex(task_id)) || ' waits for ' || to_organization AS line FROM tokens_out",
    "batch": "lower(hex(digest)) || ' is held' AS line FROM inbox WHERE state = 'held'",
}


def under_way(member: Member) -> list[str]:
    """Return what is not at its end at a member."""
    if not member.alive:
        return [f"{member.name} is down"]
    every = " UNION ALL ".join(f"SELECT '{what} ' || line FROM (SELECT {sql})" for what, sql in _UNDER_WAY.items())
    return [f"{member.name}: {text}" for (text,) in member.rows(every)]


def play(
    plan: Plan, directory: Path, workload: Callable[[Plan], Workload] = Reviews, *, patience_s: float = PATIENCE_S
) -> Played:
    """Play a plan in an empty directory, and return what came of it."""
    world = World(plan, directory, workload(plan))
    world.patience_s = patience_s
    still, took_s = run(world.play, plan.seed)
    return played_of(world, directory, still, took_s)


def played_of(world: World, directory: Path, still: tuple[str, ...], took_s: float) -> Played:
    """Return what came of a world that is over."""
    return Played(
        plan=world.plan,
        directory=directory,
        trust=world.trust,
        chains={one.identity.key.public_key: one.identity.chain for one in world.by_number},
        names=tuple(world.members),
        left=tuple(world.wire.left),
        submitted=tuple(world.submitted),
        open=still,
        took_s=took_s,
        hit=dict(world.wire.hit),
        trace=tuple(world.trace),
    )
