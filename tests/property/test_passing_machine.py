"""Tasks under way as a state machine: whatever befalls them, in whatever order, each is accounted for after each step.

Time stands still between rules: trio runs as a guest of the machine, on a clock that only `Loop.advance` moves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from outcome import Outcome

from comity.errors import LinkError
from comity_node.protocol.token import Key, Token, decode_state
from comity_node.runtime.passing.codec import Bytes
from comity_node.runtime.passing.engine import Engine
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.ports import Answer, End, Ending, Note, Verdict
from comity_node.runtime.passing.world import Faults, MemoryWorld
from kit.passing import A, B, C, Colleagues, at_random, rows, trip

HOMES = (A, B, C)
STEPS = ("others", "any", "home")
LIMITS = PassingLimits(
    lease_s=2.0, attempts=1000, patience_s=0.5, hedge_least_s=0.3, hedge_share=0.5, custody=8, custody_per_home=5,
    window=3, open_tasks=7,
)  # fmt: skip
CALM = Faults(timeout_s=0.5)
homes = st.sampled_from(HOMES)


class Loop:
    """A trio loop that runs only while it is told to."""

    def __init__(self, main: Callable[[Callable[[], None]], Coroutine[Any, Any, None]]) -> None:
        """Run `main(ready)` until it has called `ready`; then whenever `do` is called, until `stop`."""
        self.clock = trio.testing.MockClock()
        self._turns: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._ended: Outcome[None] | None = None
        self._ready = False
        self._scope = trio.CancelScope()
        self._send, self._receive = trio.open_memory_channel[Callable[[], Awaitable[None]]](1)
        trio.lowlevel.start_guest_run(
            self._run, main, run_sync_soon_threadsafe=self._turns.put, done_callback=self._done, clock=self.clock,
            host_uses_signal_set_wakeup_fd=True,
        )  # fmt: skip
        self._pump(lambda: self._ready)

    async def _run(self, main: Callable[[Callable[[], None]], Coroutine[Any, Any, None]]) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(main, self._is_ready)
                async for each in self._receive:
                    await each()

    def _is_ready(self) -> None:
        self._ready = True

    def _done(self, ended: Outcome[None]) -> None:
        self._ended = ended

    def _pump(self, until: Callable[[], bool]) -> None:
        while not until() and self._ended is None:
            self._turns.get(timeout=20.0)()
        self._check()

    def _check(self) -> None:
        if self._ended is not None:
            self._ended.unwrap()

    def do(self, what: Callable[[], Awaitable[None]]) -> None:
        """Run `what` to its end, and all others as far as they come without time."""
        over = False

        async def wrapped() -> None:
            nonlocal over
            await what()
            await trio.testing.wait_all_tasks_blocked()
            over = True

        self._turns.put(lambda: self._send.send_nowait(wrapped))
        self._pump(lambda: over)

    def advance(self, seconds: float) -> None:
        """Let so much time go by, deadline by deadline."""
        self.do(lambda: self._advance(seconds))

    async def _advance(self, seconds: float) -> None:
        end = trio.current_time() + seconds
        while (left := end - trio.current_time()) > 0:
            step = trio.lowlevel.current_statistics().seconds_to_next_deadline
            self.clock.jump(min(left, max(step, 1e-6)))
            await trio.testing.wait_all_tasks_blocked()

    def stop(self) -> None:
        """End the loop."""
        if self._ended is None:
            self._turns.put(self._scope.cancel)
            while self._ended is None:
                self._turns.get(timeout=20.0)()
        self._check()


class Recorder:
    """Stands before an engine and checks what it says of tokens.

    R2: nothing is taken twice, nor what a later attempt has overtaken there; a restart changes nothing of that.
    """

    def __init__(self, engine: Engine, to: str, taken: dict[tuple[str, Key], Token], last: dict[Any, int]) -> None:
        """Watch the engine of `to`; `taken` and `last` outlive it."""
        self._engine = engine
        self._to = to
        self._taken = taken
        self._last = last

    async def take(self, sender: str, tokens: Sequence[Token]) -> list[Verdict]:
        verdicts = await self._engine.take(sender, tokens)
        for token, verdict in zip(tokens, verdicts, strict=True):
            if verdict.answer is Answer.TAKEN:
                task = (self._to, token.home, token.task_id)
                assert (self._to, token.key) not in self._taken, "taken twice"
                assert self._to == token.home or token.attempt >= self._last.get(task, 0), "overtaken, and taken"
                self._taken[self._to, token.key] = token
                self._last[task] = token.attempt
        return verdicts

    def told(self, sender: str, notes: Sequence[Note]) -> None:
        self._engine.told(sender, notes)


class UnderWay(RuleBasedStateMachine):
    """Three organizations that pass each other's tasks round."""

    def __init__(self) -> None:
        """Begin with nothing open."""
        super().__init__()
        self.opened: dict[bytes, str] = {}
        self.cancelled: set[bytes] = set()
        self.ends: dict[bytes, Ending] = {}
        self.far: dict[bytes, tuple[int, int]] = {}
        self.taken: dict[tuple[str, Key], Token] = {}
        self.last: dict[Any, int] = {}
        self.loop: Loop | None = None

    @initialize(seed=st.integers(0, 1 << 16), onward=st.booleans(), rough=st.booleans())
    def begin(self, seed: int, onward: bool, rough: bool) -> None:
        delay_s = at_random(seed, 0.8)
        agents = {home: Colleagues(*[f"s{n}" for n in range(len(STEPS))], delay_s=delay_s) for home in HOMES}
        self.world = world = MemoryWorld(
            agents, trip(STEPS), seed=seed, limits=LIMITS, faults=CALM, onward=onward, codec=Bytes()
        )

        async def main(ready: Callable[[], None]) -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(world.run)
                ready()

        reach = world.network.reach

        def recorded(sender: str, to: str) -> Any:
            return Recorder(reach(sender, to), to, self.taken, self.last)

        world.network.reach = recorded  # type: ignore[method-assign]
        self.loop = Loop(main)
        if rough:
            self.weather(0.3, 1.0, 0.2, 0.05)
        for home in HOMES:
            self.open(home, 3)

    def _do(self, what: Callable[[], Awaitable[None]]) -> None:
        assert self.loop is not None
        self.loop.do(what)

    def _up(self, home: str) -> bool:
        return home in self.world.network.engines

    @rule(home=homes, count=st.integers(1, 4))
    def open(self, home: str, count: int) -> None:
        if not self._up(home):
            return
        batch = rows(count, len(self.opened))
        before = len(self.opened)

        async def opening() -> None:
            assert self.loop is not None
            with trio.move_on_after(0.5), suppress(LinkError):
                self.world._nursery and self.world._nursery.start_soon(self.loop._advance, 0.6)
                await self.world.open(home, batch)

        self._do(opening)
        store = self.world.stores[home]
        self.opened |= {task: home for task, _ in batch if task in store.tasks or task in store.ends}
        for number in range(before, before + count):  # numbers are not used twice
            self.opened.setdefault(rows(1, number)[0][0], "")

    @rule(lose=st.sampled_from([0.0, 0.3, 1.0]), twice=st.sampled_from([0.0, 1.0]),
          delay_s=st.sampled_from([0.0, 0.2]), disk_s=st.sampled_from([0.0, 0.05]))  # fmt: skip
    def weather(self, lose: float, twice: float, delay_s: float, disk_s: float) -> None:
        self._weather(Faults(lose, lose, twice, delay_s, late_s=3.0, timeout_s=0.5, disk_s=disk_s))

    def _weather(self, faults: Faults) -> None:
        self.world.network.faults = faults
        for _, stores in self.world._runs.values():
            for store in stores:
                store._disk_s = faults.disk_s

    @rule(home=homes)
    def crash(self, home: str) -> None:
        if self._up(home):

            async def crashing() -> None:
                self.world.crash(home)

            self._do(crashing)

    @rule(home=homes)
    def restart(self, home: str) -> None:
        if not self._up(home):
            self._do(lambda: self.world.restart(home))

    @rule(one=homes, other=homes)
    def partition(self, one: str, other: str) -> None:
        if one != other:
            self.world.network.cut.add(frozenset((one, other)))

    @rule()
    def heal(self) -> None:
        self.world.network.cut.clear()

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.5, 2.5, 10.0]))
    def advance(self, seconds: float) -> None:
        assert self.loop is not None
        self.loop.advance(seconds)

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.0]))
    def wait(self, seconds: float) -> None:
        self.advance(seconds)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """A copy of what was taken comes once more, however long ago that was, and from whoever kept it."""
        to, key = data.draw(st.sampled_from(sorted(self.taken)))
        if self._up(to):

            async def replaying() -> None:
                with suppress(LinkError):
                    await self.world.network.reach(C if to != C else A, to).take(key[0], [self.taken[to, key]])

            self._do(replaying)

    @precondition(lambda self: self.opened)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(sorted(self.opened)))
        home = self.opened[task]
        if not home or not self._up(home):
            return

        async def cancelling() -> None:
            if self.world.engine(home).cancel(self.world.pact.agreement, [task]):
                self.cancelled.add(task)

        self._do(cancelling)

    @invariant()
    def each_task_is_open_or_over(self) -> None:
        """R1: never both and never neither; R2: an end is for good, and what the sink heard."""
        for task, home in self.opened.items():
            if home:
                store = self.world.stores[home]
                assert (task in store.tasks) != (task in store.ends), task
        for home in HOMES if self.loop is not None else ():
            store, sink = self.world.stores[home], self.world.sinks[home]
            for task, ending in store.ends.items():
                assert self.ends.setdefault(task, ending) == ending
            assert all(store.ends[task] == ending for task, ending in sink.ends.items())

    @invariant()
    def a_task_never_goes_back(self) -> None:
        for home in HOMES if self.loop is not None else ():
            for task, point in self.world.stores[home].tasks.items():
                attempt, sequence = self.far.get(task, (0, 0))
                assert (point.token.attempt, point.token.sequence) >= (attempt, 0), task
                assert point.token.sequence >= sequence, task
                self.far[task] = point.token.attempt, point.token.sequence

    @invariant()
    def custody_is_bounded(self) -> None:
        for engine in self.world.network.engines.values() if self.loop is not None else ():
            assert 0 <= engine.counts.custody <= LIMITS.custody
            assert 0 <= engine.counts.open_tasks <= LIMITS.open_tasks
            assert engine.counts.running <= LIMITS.window

    def teardown(self) -> None:
        """All is well again: then every task ends, and nobody holds anything any more."""
        if self.loop is None:
            return
        try:
            self.world.network.cut.clear()
            for home in HOMES:
                self.restart(home)
            self._weather(CALM)
            for _ in range(60):
                if not any(store.tasks or store.unheard for store in self.world.stores.values()):
                    break
                self.loop.advance(5.0)
            self.loop.advance(15.0)
            self.each_task_is_open_or_over()
            for task, home in self.opened.items():
                ending = self.world.sinks[home].ends.get(task) if home else None
                assert ending is not None or not home, f"task {task.hex()} of {home} never ended"
                if ending is not None and task not in self.cancelled:
                    assert ending.end is End.DONE, ending
                    assert decode_state(ending.state)["turn"] == len(STEPS)
            for home, store in self.world.stores.items():
                counts = self.world.engine(home).counts
                assert [*store.tasks, *store.held, *store.outgoing, *store.unheard] == [], home
                assert (counts.open_tasks, counts.custody, counts.outgoing, counts.running) == (0, 0, 0, 0)
        finally:
            self.loop.stop()


@pytest.mark.invariant("R1")
def test_whatever_befalls_tasks_each_is_accounted_for_after_each_step() -> None:
    run_state_machine_as_test(
        UnderWay,
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
