"""Tasks under way through a bad network, slow disks and crashes: every one is accounted for, every effect is once."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from random import Random

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from comity.errors import LinkError
from comity_node.protocol.token import decode_state
from comity_node.runtime.passing.codec import Bytes, Values
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.ports import End
from comity_node.runtime.passing.world import Faults, MemoryWorld
from kit.passing import ALONE, A, B, C, Colleagues, at_random, play, ring, rows, trip

HOMES = (A, B, C)
TASKS = 12
TURNS = 6

SOME = settings(max_examples=12, suppress_health_check=list(HealthCheck))


@dataclass(frozen=True)
class Plan:
    """What goes wrong: everything follows from it."""

    seed: int
    lose: float
    twice: float
    delay_s: float
    disk_s: float
    crashes: int
    codec_of_bytes: bool

    def faults(self) -> Faults:
        return Faults(
            lose=self.lose, lose_answer=self.lose, twice=self.twice, delay_s=self.delay_s, late_s=3.0, timeout_s=0.5,
            disk_s=self.disk_s,
        )  # fmt: skip


plans = st.builds(
    Plan,
    seed=st.integers(0, 1 << 20),
    lose=st.sampled_from([0.0, 0.1, 0.3]),
    twice=st.sampled_from([0.0, 0.3, 1.0]),
    delay_s=st.sampled_from([0.0, 0.05, 0.2]),
    disk_s=st.sampled_from([0.0, 0.05]),
    crashes=st.integers(0, 12),
    codec_of_bytes=st.booleans(),
)
HARD = Plan(7, 0.2, 1.0, 0.2, 0.05, 12, True)


def a_world(plan: Plan, limits: PassingLimits, *, onward: bool = False, most_s: float = 0.2) -> MemoryWorld:
    steps = ("others", "any", "others", "home", "any", "others")
    flow = trip(steps) if onward else ring(TURNS // 2)
    skills = [f"s{number}" for number in range(TURNS)] if onward else ["ask", "reply"]
    delay_s = at_random(plan.seed, most_s)
    if onward:  # nobody does two steps in a row, so that tokens travel
        agents = {
            home: Colleagues(
                *[each for at, each in enumerate(skills) if at % 3 != number or steps[at] == "home"], delay_s=delay_s
            )
            for number, home in enumerate(HOMES)
        }
    else:
        agents = {home: Colleagues(*skills, delay_s=delay_s) for home in HOMES}
    return MemoryWorld(
        agents, flow, seed=plan.seed, limits=limits, faults=plan.faults(), onward=onward,
        codec=Bytes() if plan.codec_of_bytes else Values(),
    )  # fmt: skip


async def _crashes(world: MemoryWorld, plan: Plan) -> None:
    random = Random(plan.seed)
    for _ in range(plan.crashes):
        await trio.sleep(random.random() * 0.5)
        victim = random.choice(HOMES)
        world.crash(victim)
        await trio.sleep(random.random() * 0.5)
        await world.restart(victim)


async def _open(world: MemoryWorld, home: str, first: int) -> None:
    """Open tasks of a home, again after a crash, as a workflow that is resumed does."""
    batch = rows(TASKS, first)
    while True:
        if home in world.network.engines:
            with trio.move_on_after(5.0), suppress(LinkError):  # it crashes in between
                await world.open(home, batch)
                if all(
                    task_id in world.stores[home].tasks or task_id in world.stores[home].ends for task_id, _ in batch
                ):
                    return
        await trio.sleep(0.1)


async def go_through(world: MemoryWorld, plan: Plan, after_s: float = 120.0) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_crashes, world, plan)
        for number, home in enumerate(HOMES):
            nursery.start_soon(_open, world, home, number * TASKS)
    for home in HOMES:
        await world.sinks[home].wait(TASKS)
    await trio.sleep(after_s)  # what is still on its way arrives: receipts are lost again and again


def account(world: MemoryWorld) -> None:
    """Every task has one end, the sink has it, and its state is that of one way through the flow."""
    for number, home in enumerate(HOMES):
        store, sink = world.stores[home], world.sinks[home]
        wanted = {task_id for task_id, _ in rows(TASKS, number * TASKS)}
        assert store.ends.keys() == wanted == sink.ends.keys()
        assert not store.tasks
        assert not store.unheard
        for task_id, ending in store.ends.items():
            assert ending == sink.ends[task_id]
            assert ending.end is End.DONE, ending
            assert decode_state(ending.state) == {"task": int.from_bytes(task_id, "big"), "turn": TURNS}


def nothing_left(world: MemoryWorld) -> None:
    for home in HOMES:
        assert not world.stores[home].held
        assert not world.stores[home].outgoing
        if home in world.network.engines:
            counts = world.engine(home).counts
            assert (counts.open_tasks, counts.custody, counts.outgoing, counts.running) == (0, 0, 0, 0)


def all_done(world: MemoryWorld) -> Counter[tuple[int, int]]:
    done: Counter[tuple[int, int]] = Counter()
    for workers in world.agents.values():
        assert isinstance(workers, Colleagues)
        done.update(workers.done)
    return done


@pytest.mark.invariant("R2")
@example(plan=HARD, onward=False)
@example(plan=HARD, onward=True)
@given(plan=plans, onward=st.booleans())
@SOME
def test_what_comes_twice_late_or_out_of_order_is_done_once(plan: Plan, onward: bool) -> None:
    world = a_world(plan, ALONE, onward=onward)

    async def scene(world: MemoryWorld) -> None:
        async with trio.open_nursery() as nursery:
            for number, home in enumerate(HOMES):
                nursery.start_soon(_open, world, home, number * TASKS)
        for home in HOMES:
            await world.sinks[home].wait(TASKS)
        await trio.sleep(120.0)

    play(world, scene)
    account(world)
    nothing_left(world)
    assert set(all_done(world).values()) == {1}
    assert sum(all_done(world).values()) == len(HOMES) * TASKS * TURNS
    assert all(set(sink.told.values()) == {1} for sink in world.sinks.values())


@pytest.mark.invariant("R1")
@example(plan=HARD, onward=False)
@example(plan=HARD, onward=True)
@given(plan=plans, onward=st.booleans())
@SOME
def test_custody_alone_loses_nothing_in_crashes(plan: Plan, onward: bool) -> None:
    """No lease ever runs out here: what is lost stays lost, and the task has another end than done."""
    world = a_world(plan, ALONE, onward=onward)
    play(world, lambda world: go_through(world, plan))
    account(world)
    nothing_left(world)


@pytest.mark.invariant("R3")
@example(plan=HARD, onward=False)
@example(plan=HARD, onward=True)
@given(plan=plans, onward=st.booleans())
@SOME
def test_leases_hedges_and_crashes_together_end_every_task_once(plan: Plan, onward: bool) -> None:
    limits = PassingLimits(
        lease_s=2.0, attempts=1000, patience_s=0.5, hedge_least_s=0.3, hedge_share=0.5, custody=8, custody_per_home=5,
        window=3, open_tasks=7,
    )  # fmt: skip
    world = a_world(plan, limits, onward=onward, most_s=0.8)
    seen = Counter[str]()

    async def scene(world: MemoryWorld) -> None:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while True:
                    await trio.sleep(0.25)
                    for home, engine in world.network.engines.items():
                        seen[f"custody {home}"] = max(seen[f"custody {home}"], engine.counts.custody)
                        seen[f"open {home}"] = max(seen[f"open {home}"], engine.counts.open_tasks)

            nursery.start_soon(watch)
            await go_through(world, plan, 10.0)
            nursery.cancel_scope.cancel()

    play(world, scene)
    account(world)
    assert all(most <= (8 if what.startswith("custody") else 7) for what, most in seen.items()), seen
    assert all(workers.most <= 3 for workers in world.agents.values() if isinstance(workers, Colleagues))
