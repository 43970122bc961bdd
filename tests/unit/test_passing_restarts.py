"""Tasks under way through restarts, full disks, lost leases, and on their way past their home."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing

from comity.errors import StorageFull
from comity_node.protocol.flow import read_flow
from comity_node.runtime.passing.codec import Bytes
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.memory import MemoryPacts
from comity_node.runtime.passing.ports import End, Ending
from comity_node.runtime.passing.world import Faults, MemoryWorld
from kit.passing import ALONE, A, B, C, Colleagues, play, rows, trip


@pytest.mark.invariant("R1")
def test_an_end_that_the_sink_has_not_heard_is_told_after_a_restart() -> None:
    world = MemoryWorld({A: Colleagues(), B: Colleagues("s0")}, trip(("others",)), limits=ALONE, faults=Faults())

    async def scene(world: MemoryWorld) -> None:
        async def deaf(endings: Sequence[Ending]) -> None:
            await trio.sleep_forever()

        sink = world.sinks[A]
        sink.ended = deaf  # type: ignore[method-assign]
        await world.open(A, rows(3))
        await trio.sleep(1.0)
        assert len(world.stores[A].unheard) == 3
        assert world.engine(A).counts.open_tasks == 3  # they count until they are heard
        world.crash(A)
        del sink.ended
        await world.restart(A)
        await sink.wait(3)
        await trio.testing.wait_all_tasks_blocked()
        assert not world.stores[A].unheard
        assert world.engine(A).counts.open_tasks == 0
        assert set(sink.told.values()) == {1}

    play(world, scene)


@pytest.mark.invariant("R5")
def test_tasks_of_an_agreement_that_is_over_end_as_cancelled_at_the_start() -> None:
    workers = Colleagues("s0")
    workers.hold = trio.Event()
    world = MemoryWorld({A: Colleagues(), B: workers}, trip(("others",)), limits=ALONE, faults=Faults())

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(3))
        await trio.sleep(1.0)
        assert len(world.stores[B].held) == 3
        for organization in (A, B):
            world.crash(organization)
        world._pacts = MemoryPacts([], world.offering)
        for organization in (A, B):
            await world.restart(organization)
        await world.sinks[A].wait(3)
        assert {each.end for each in world.sinks[A].ends.values()} == {End.CANCELLED}
        await trio.sleep(1.0)
        assert not world.stores[B].held
        assert not world.stores[B].outgoing

    play(world, scene)


@pytest.mark.invariant("R1")
def test_while_the_disk_is_full_everything_waits_and_nothing_is_lost() -> None:
    world = MemoryWorld(
        {A: Colleagues("s1"), B: Colleagues("s0", "s2")}, trip(("others", "home", "others")), limits=ALONE,
        codec=Bytes(),
    )  # fmt: skip

    async def scene(world: MemoryWorld) -> None:
        def full(*_: Any) -> None:
            raise StorageFull("the disk is full")

        names = ("take_now", "finish_now", "let_go_now", "checkpoint_now", "end_now", "heard_now")
        for number, name in enumerate(names * 2):
            store = world.stores[(A, B)[number % 2]]
            setattr(store, name, full)
            if number == 0:
                await world.open(A, rows(20))
            await trio.sleep(1.0)
            delattr(store, name)
            if number == 5:
                await world.open(A, rows(20, 20))
        await world.sinks[A].wait(40)

    play(world, scene)
    assert {(each.end, each.attempt) for each in world.sinks[A].ends.values()} == {(End.DONE, 1)}


@pytest.mark.invariant("R3")
def test_when_who_holds_a_lease_is_gone_it_is_acquired_anew_somewhere_else() -> None:
    lease = {"at": "others", "lease": "box", "reads": ["task", "turn"], "writes": ["turn"]}
    flow = read_flow({
        "state": {"type": "object", "properties": {"task": {"type": "integer"}, "turn": {"type": "integer"}}},
        "start": "boot",
        "steps": {
            "boot": {"skill": "s0", **lease, "next": "look"},
            "look": {"skill": "s1", "at": "home", "reads": ["task", "turn"], "writes": ["turn"], "next": "use"},
            "use": {"skill": "s2", **lease, "release": "box", "next": "end"},
        },
        "limits": {"steps": 64, "seconds": 3600}, "finish": "none",
    })  # fmt: skip
    home, first, second = Colleagues("s1"), Colleagues("s0", "s2"), Colleagues("s0", "s2")
    home.hold = trio.Event()
    world = MemoryWorld({A: home, B: first, C: second}, flow, limits=PassingLimits(lease_s=8.0, hedge_share=0.0))

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(6))
        await trio.sleep(1.0)
        at_first = sum(first.done.values())
        assert at_first + sum(second.done.values()) == 6
        world.network.cut.add(frozenset((A, B)))
        assert home.hold is not None
        home.hold.set()
        await trio.sleep(1.0)
        assert len(world.sinks[A].ends) == 6 - at_first  # who has the lease does the step, and nobody else
        await world.sinks[A].wait(6)
        assert sum(first.done.values()) == at_first
        assert {each.end for each in world.sinks[A].ends.values()} == {End.DONE}

    play(world, scene)


@pytest.mark.parametrize("onward", [False, True])
def test_a_token_goes_to_a_third_organization_only_if_it_may(onward: bool) -> None:
    world = MemoryWorld(
        {A: Colleagues("s3"), B: Colleagues("s0", "s1"), C: Colleagues("s2")},
        trip(("others", "any", "others", "home")), limits=ALONE, onward=onward,
    )  # fmt: skip
    ways: list[tuple[str, str]] = []
    deliver = world.network.deliver

    async def seen(sender: str, to: str, tokens: Any) -> Any:
        ways.append((sender, to))
        return await deliver(sender, to, tokens)

    world.network.deliver = seen  # type: ignore[method-assign]

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(5))
        await world.sinks[A].wait(5)

    play(world, scene)
    assert {each.end for each in world.sinks[A].ends.values()} == {End.DONE}
    expected = {(A, B), (B, C), (C, A)} if onward else {(A, B), (B, A), (A, C), (C, A)}
    assert set(ways) == expected  # two steps at B are one hop
