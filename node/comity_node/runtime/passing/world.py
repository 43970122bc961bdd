"""Many organizations in one process, with a network between them that can be made to fail, and crashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

import trio

from comity.digest import sha256
from comity.errors import DeadlineExceeded, LinkClosed, LinkError, PeerUnreachable
from comity_node.protocol.flow import Flow
from comity_node.protocol.token import Key, Token
from comity_node.runtime.passing.codec import Codec, Values
from comity_node.runtime.passing.engine import Engine, Ports
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.memory import MemoryJournal, MemoryLedger, MemoryPacts, MemoryStore, OpenGateway, Turns
from comity_node.runtime.passing.ports import (
    Ending,
    Gateway,
    Held,
    Journal,
    Ledger,
    LedgerRecovery,
    Move,
    Note,
    Outgoing,
    Pact,
    Recovery,
    Routing,
    Verdict,
    Workers,
)
from comity_node.runtime.seams import TaskStatus

_EPOCH_MS = 1_700_000_000_000


@dataclass(frozen=True, slots=True)
class Faults:
    """What a network does to messages; a chance is 0 to 1.

    Attributes:
        lose: a request is lost on its way.
        lose_answer: an answer is lost on its way back.
        twice: a request comes twice.
        delay_s: a message takes up to so long, drawn evenly: so they overtake each other.
        late_s: the second copy comes up to so much later.
        timeout_s: how long a sender waits for the answer.
        disk_s: a transaction takes up to so long before it counts, and as long until it is known to count.
    """

    lose: float = 0.0
    lose_answer: float = 0.0
    twice: float = 0.0
    delay_s: float = 0.0
    late_s: float = 0.0
    timeout_s: float = 1.0
    disk_s: float = 0.0


class MemoryNetwork:
    """Brings tokens and notes from engine to engine."""

    def __init__(self, faults: Faults | None, random: Random) -> None:
        """Treat messages as `faults` says; None: bring each at once."""
        self.faults = faults
        self.engines: dict[str, Engine] = {}
        self.cut: set[frozenset[str]] = set()
        self.nursery: trio.Nursery | None = None
        self.delivered = 0
        self._random = random

    def reach(self, sender: str, to: str) -> Engine:
        """Return the engine of an organization.

        Raises:
            PeerUnreachable: it is down, or the way to it is cut.
        """
        engine = self.engines.get(to)
        if engine is None or (self.cut and frozenset((sender, to)) in self.cut):
            raise PeerUnreachable(f"{to} does not answer")
        return engine

    async def deliver(self, sender: str, to: str, tokens: Sequence[Token]) -> Sequence[Verdict]:
        """Bring tokens and return the verdicts."""
        engine = self.reach(sender, to)
        if self.faults is None or self.nursery is None:
            self.delivered += len(tokens)
            return await engine.take(sender, tokens)
        faults, random = self.faults, self._random
        answer, answered = trio.open_memory_channel[Sequence[Verdict] | LinkError](2)
        self.nursery.start_soon(self._carry, sender, to, tokens, answer, random.random() * faults.delay_s)
        if random.random() < faults.twice:
            late_s = random.random() * (faults.delay_s + faults.late_s)
            self.nursery.start_soon(self._carry, sender, to, tokens, answer, late_s)
        with trio.move_on_after(faults.timeout_s):
            verdicts = await answered.receive()
            if isinstance(verdicts, LinkError):
                raise verdicts
            return verdicts
        raise DeadlineExceeded(f"{to} did not answer in time")

    async def _carry(
        self, sender: str, to: str, tokens: Sequence[Token],
        answer: trio.MemorySendChannel[Sequence[Verdict] | LinkError], delay_s: float,
    ) -> None:  # fmt: skip
        assert self.faults is not None
        await trio.sleep(delay_s)
        if self._random.random() < self.faults.lose:
            return
        result: Sequence[Verdict] | LinkError
        try:
            self.delivered += len(tokens)
            result = await self.reach(sender, to).take(sender, tokens)
        except LinkError as error:
            result = error
        await trio.sleep(self._random.random() * self.faults.delay_s)
        if self._random.random() >= self.faults.lose_answer:
            with suppress(trio.WouldBlock, trio.BrokenResourceError):
                answer.send_nowait(result)

    async def tell(self, sender: str, to: str, notes: Sequence[Note]) -> None:
        """Bring notes."""
        engine = self.reach(sender, to)
        await trio.lowlevel.checkpoint()
        if self.faults is None or self._random.random() >= self.faults.lose:
            engine.told(sender, notes)


class MemoryCarrier:
    """One organization's way into a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, me: str) -> None:
        """Send as `me`."""
        self._network = network
        self._me = me

    async def deliver(self, to: str, rows: Sequence[Outgoing]) -> Sequence[Verdict]:
        """Bring tokens."""
        tokens = [row.passed for row in rows if row.passed is not None]
        return await self._network.deliver(self._me, to, tokens)

    async def tell(self, to: str, notes: Sequence[Note]) -> None:
        """Bring notes."""
        await self._network.tell(self._me, to, notes)


class CrashingStore:
    """Journal and ledger of one run of an engine: slow, and with no effect any more once the run has crashed."""

    def __init__(self, store: MemoryStore, disk_s: float, random: Random) -> None:
        """Write to `store`; each transaction counts somewhere within `disk_s`."""
        self._store = store
        self._journal: Journal = MemoryJournal(store)
        self._ledger: Ledger = MemoryLedger(store)
        self._disk_s = disk_s
        self._random = random
        self.crashed = False

    async def _slowly(self, write: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401  (whatever `write` returns)
        await trio.sleep(self._random.random() * self._disk_s)
        self._alive()
        result = await write()
        await trio.sleep(self._random.random() * self._disk_s)
        self._alive()
        return result

    def _alive(self) -> None:
        if self.crashed:
            raise LinkClosed("the node has crashed")

    async def take(self, visits: Sequence[Held]) -> None:
        """See `Journal.take`."""
        await self._slowly(lambda: self._journal.take(visits))

    async def finish(self, moves: Sequence[Move]) -> None:
        """See `Journal.finish`."""
        await self._slowly(lambda: self._journal.finish(moves))

    async def let_go(self, keys: Sequence[Key]) -> None:
        """See `Journal.let_go`."""
        await self._slowly(lambda: self._journal.let_go(keys))

    async def recover(self) -> Recovery:
        """See `Journal.recover`."""
        return await self._journal.recover()


class CrashingLedger(CrashingStore):
    """The ledger of one run of an engine."""

    async def open(self, tokens: Sequence[Token]) -> Sequence[bool]:
        """See `Ledger.open`."""
        new: Sequence[bool] = await self._slowly(lambda: self._ledger.open(tokens))
        return new

    async def checkpoint(self, tokens: Sequence[Token]) -> None:
        """See `Ledger.checkpoint`."""
        await self._slowly(lambda: self._ledger.checkpoint(tokens))

    async def end(self, endings: Sequence[Ending]) -> None:
        """See `Ledger.end`."""
        await self._slowly(lambda: self._ledger.end(endings))

    async def heard(self, tasks: Sequence[bytes]) -> None:
        """See `Ledger.heard`."""
        await self._slowly(lambda: self._ledger.heard(tasks))

    async def recover(self) -> LedgerRecovery:  # type: ignore[override]
        """See `Ledger.recover`."""
        return await self._ledger.recover()


class MemorySink:
    """Remembers the first end of each task, and how often it was told."""

    def __init__(self) -> None:
        """Know of none."""
        self.ends: dict[bytes, Ending] = {}
        self.told: Counter[bytes] = Counter()
        self._news = trio.Event()

    async def ended(self, endings: Sequence[Ending]) -> None:
        """Take ends."""
        for ending in endings:
            self.ends.setdefault(ending.task_id, ending)
            self.told[ending.task_id] += 1
        self._news.set()
        self._news = trio.Event()

    async def wait(self, count: int) -> None:
        """Wait until so many tasks are over."""
        while len(self.ends) < count:
            await self._news.wait()


class MemoryWorld:
    """Organizations with one flow, in one process.

    `async with trio.open_nursery() as nursery: await nursery.start(world.run)`; then `open`, `crash`, `restart`.
    """

    def __init__(
        self, agents: Mapping[str, Workers], flow: Flow, *, seed: int = 0, limits: PassingLimits | None = None,
        faults: Faults | None = None, onward: bool = False,
        routing: Callable[[str, Random], Routing] = lambda _, random: Turns(random),
        denied: Callable[[str, str, Token], str] | None = None, codec: Codec | None = None,
        gateway: Callable[[str, Gateway], Gateway] = lambda _, inner: inner,
    ) -> None:  # fmt: skip
        """Have the organizations that are the keys of `agents`, each with its agents.

        Args:
            agents: of each organization.
            flow: of the one agreement that there is.
            seed: of all chance: the same seed repeats everything.
            limits: of each engine.
            faults: what the network and the disk do; None: nothing goes wrong, and nothing takes time.
            onward: whether tokens may go on to a third organization.
            routing: makes an organization's router.
            denied: says why a token (to, role, token) may not leave; empty: it may.
            codec: of each engine: values pass as they are, if nothing is said.
            gateway: puts another one around an organization's gateway.
        """
        self._gateway = gateway
        self._codec = codec or Values()
        self.agents = dict(agents)
        self.pact = Pact(sha256(flow.document), flow, onward)
        self.offering: dict[str, list[str]] = {}
        for organization, workers in agents.items():
            for skill in workers.skills():
                self.offering.setdefault(skill, []).append(organization)
        self._limits = limits or PassingLimits()
        self._faults = faults
        self._random = Random(seed)
        self._routing = routing
        self._denied = denied
        self._pacts = MemoryPacts([self.pact], self.offering)
        self.network = MemoryNetwork(faults, self._random)
        self.stores = {organization: MemoryStore(organization) for organization in agents}
        self.sinks = {organization: MemorySink() for organization in agents}
        self._runs: dict[str, tuple[trio.CancelScope, list[CrashingStore]]] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Run all organizations until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = self.network.nursery = nursery
            for organization in self.agents:
                await self.restart(organization)
            task_status.started()
            await trio.sleep_forever()

    def engine(self, organization: str) -> Engine:
        """Return the engine of an organization that is up."""
        return self.network.engines[organization]

    async def open(self, home: str, rows: Sequence[tuple[bytes, Mapping[str, Any]]]) -> int:
        """Open tasks of a home that is up."""
        return await self.engine(home).open(self.pact.agreement, rows)

    def crash(self, organization: str) -> None:
        """Kill an organization's engine where it stands; its store stays."""
        del self.network.engines[organization]
        scope, stores = self._runs.pop(organization)
        for store in stores:
            store.crashed = True
        scope.cancel()

    async def restart(self, organization: str) -> None:
        """Start an organization's engine on its store."""
        assert self._nursery is not None, "the world runs"
        await self._nursery.start(self._run, organization)

    async def _run(self, organization: str, *, task_status: TaskStatus) -> None:
        store, journal, ledger = self.stores[organization], MemoryJournal(self.stores[organization]), None
        stores: list[CrashingStore] = []
        ports_journal: Journal = journal
        ports_ledger: Ledger = MemoryLedger(store)
        if self._faults is not None:
            slow = CrashingStore(store, self._faults.disk_s, self._random)
            ledger = CrashingLedger(store, self._faults.disk_s, self._random)
            stores = [slow, ledger]
            ports_journal, ports_ledger = slow, ledger
        engine = Engine(
            organization,
            f"peer of {organization}",
            Ports(
                ports_journal, ports_ledger, self._gateway(organization, OpenGateway(store, self._denied)),
                MemoryCarrier(self.network, organization), self.agents[organization],
                self._routing(organization, self._random), self._pacts, self.sinks[organization],
            ),
            random=self._random, now_ms=now_ms, limits=self._limits, codec=self._codec,
        )  # fmt: skip
        with trio.CancelScope() as scope:
            self._runs[organization] = (scope, stores)
            self.network.engines[organization] = engine
            await engine.run(task_status=task_status)


def now_ms() -> int:
    """The time of trio's clock as if it were milliseconds since 1970."""
    return _EPOCH_MS + int(trio.current_time() * 1000)


def task_ids(count: int, seed: bytes = b"") -> list[bytes]:
    """Return ids for tasks."""
    return [sha256(seed + number.to_bytes(8, "big"))[:16] for number in range(count)]
