"""A holder whose agents stand still, among others that go on: what it gets, and what becomes of what it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from comity.trust import Attested
from comity.v1.task_pb2 import Receipt
from comity_node.protocol.token import Token
from comity_node.runtime.kinds import TOKENS
from comity_node.runtime.passing.carriage import Carriage
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.ports import Answer, End, Outgoing, Routing, Verdict, Verdicts
from comity_node.runtime.passing.world import MemoryWorld
from comity_node.runtime.router import Router
from comity_node.runtime.router_flows import FlowRouting
from kit.passing import ALONE, A, B, C, Colleagues, play, rows, trip

D = "d.example"
#: Nothing is made twice, nothing is given back, and no lease ends; four calls at once.
FOUR = replace(ALONE, window=4, call_hedge_least_s=1e6)
#: One call may be given up in the time after which it is overdue.
GIVING = replace(FOUR, call_hedge_share=0.1, call_hedge_least_s=2.0, agent_s=1e4)


class Three:
    """A home, B which does the first step, and C and D which both can do the second: tokens go straight on."""

    def __init__(self, limits: PassingLimits, *, hinted: bool = True, **step: Any) -> None:
        self.c, self.d = (Colleagues("s1", delay_s=lambda: 1.0) for _ in range(2))
        self.routers: dict[str, Router] = {}
        agents = {A: Colleagues(), B: Colleagues("s0", delay_s=lambda: 0.7), C: self.c, D: self.d}
        flow = trip(("others", "others"), **step)
        self.world = MemoryWorld(agents, flow, limits=limits, onward=True, routing=self._routing)
        self._hinted = hinted
        self._opened = 0

    def _routing(self, organization: str, random: Random) -> Routing:
        router = self.routers[organization] = Router(random)
        routing = FlowRouting(router, me=organization, clock_s=trio.current_time, reachable=lambda name: True)
        if not self._hinted:
            routing.hinted = lambda organization, wait_s: None  # type: ignore[method-assign]
        return routing

    async def do(self, count: int, *, least: int | None = None) -> None:
        """Have tasks done, or at least so many of all that were opened."""
        await self.world.open(A, rows(count, self._opened))
        self._opened += count
        await self.world.sinks[A].wait(self._opened if least is None else least)

    @property
    def at_c(self) -> int:
        return sum(self.c.begun.values())


def stuck_at_c(hinted: bool) -> int:
    """How many of 120 tokens go to C from the moment that it stands still."""
    three, came = Three(FOUR, hinted=hinted), []

    async def scene(world: MemoryWorld) -> None:
        await three.do(60)
        before = world.engine(C).counts.custody + three.at_c
        three.c.hold = trio.Event()
        await three.do(120, least=60 + 50)
        came.append(world.engine(C).counts.custody + sum(three.c.done.values()) - before)
        three.c.hold.set()

    play(three.world, scene)
    return came[0]


@pytest.mark.invariant("R3")
def test_a_holder_that_stands_still_gets_no_more_than_a_few_tokens() -> None:
    assert stuck_at_c(hinted=True) <= 14
    assert stuck_at_c(hinted=False) >= 30, "without a word of it, every other token goes there"


@pytest.mark.invariant("R3")
def test_a_holder_that_answers_again_gets_its_share_again() -> None:
    three = Three(FOUR)

    async def scene(world: MemoryWorld) -> None:
        await three.do(60)
        three.c.hold = trio.Event()
        await three.do(60, least=100)
        three.c.hold.set()
        three.c.hold = None
        await world.sinks[A].wait(120)
        before = three.at_c
        await three.do(80)
        assert 20 <= three.at_c - before <= 60

    play(three.world, scene)


@pytest.mark.invariant("R3")
def test_what_is_at_a_holder_that_stands_still_is_done_by_another() -> None:
    three = Three(GIVING)

    async def scene(world: MemoryWorld) -> None:
        await three.do(60)
        three.c.hold = trio.Event()
        began_s = trio.current_time()
        await three.do(60, least=119)
        assert trio.current_time() - began_s < 80.0, "the calls that C has are given up one by one"
        await trio.sleep(100.0)
        assert world.engine(C).counts.running == 1, "but for the oldest: it shows when answers come again"
        three.c.hold.set()
        await world.sinks[A].wait(120)
        assert {each.end for each in world.sinks[A].ends.values()} == {End.DONE}
        assert set(world.sinks[A].told.values()) == {1}

    play(three.world, scene)
    assert three.c.cancelled > 0
    assert set((three.c.done + three.d.done).values()) == {1}
    failures = {each.organization: each.failures for each in three.routers[A].snapshot(0.0).peers if each.skill == "s0"}
    assert failures == {B: 0}, "B has done its step: it is not its failure that C gave back what it passed on"


@pytest.mark.invariant("R3")
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_what_stands_still_is_given_back_within_a_few_usual_times(scale: float) -> None:
    b, c = (Colleagues("s0", delay_s=lambda: scale) for _ in range(2))
    limits = replace(GIVING, call_hedge_least_s=2.0 * scale)
    world = MemoryWorld({A: Colleagues(), B: b, C: c}, trip(("others",)), limits=limits)

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(60))
        await world.sinks[A].wait(60)
        b.hold, began_s = trio.Event(), trio.current_time()
        await world.open(A, rows(8, 60))
        await world.sinks[A].wait(67)
        assert trio.current_time() - began_s < 40.0 * scale
        b.hold.set()
        await world.sinks[A].wait(68)

    play(world, scene)
    assert b.cancelled > 0


@pytest.mark.invariant("R2")
def test_a_lease_shorter_than_a_second_is_renewed_while_its_task_is_worked_on() -> None:
    slow = Colleagues("s0", delay_s=lambda: 10.0)
    world = MemoryWorld({A: Colleagues(), B: slow}, trip(("others",)), limits=replace(ALONE, lease_s=0.4))

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(5))
        await world.sinks[A].wait(5)

    play(world, scene)
    assert set(slow.begun.values()) == {1}


@pytest.mark.parametrize("step", [{"hedge": False}, {"lease": "box", "release": "box"}])
def test_a_step_with_effects_that_has_begun_is_not_given_to_another(step: dict[str, Any]) -> None:
    three = Three(GIVING, **step)

    async def scene(world: MemoryWorld) -> None:
        await three.do(60)
        three.c.hold = trio.Event()
        await three.do(60, least=100)
        await trio.sleep(60.0)
        three.c.hold.set()
        await world.sinks[A].wait(120)

    play(three.world, scene)
    assert three.c.cancelled == 0
    assert set((three.c.begun + three.d.begun).values()) == {1}


@pytest.mark.invariant("R4")
@pytest.mark.parametrize(("share", "most"), [(0.0, 0), (0.1, 40)])
def test_where_all_become_slow_for_good_only_a_few_calls_are_given_up(share: float, most: int) -> None:
    three = Three(replace(GIVING, call_hedge_share=share))

    async def scene(world: MemoryWorld) -> None:
        await three.do(60)
        three.c.delay_s = three.d.delay_s = lambda: 30.0
        began_s = trio.current_time()
        await three.do(60)
        assert trio.current_time() - began_s < 450.0, "eight at a time need 225 s"

    play(three.world, scene)
    assert three.c.cancelled + three.d.cancelled <= most
    assert set((three.c.done + three.d.done).values()) == {1}


class Mixed(Colleagues):
    """Does the first step in no time and the second in half a minute."""

    async def call(self, skill: str, payload: Any, *, deadline_s: float) -> Any:
        self.delay_s = (lambda: 0.01) if skill == "s0" else (lambda: 30.0)
        return await super().call(skill, payload, deadline_s=deadline_s)


@pytest.mark.invariant("R3")
def test_a_slow_skill_beside_a_quick_one_is_not_taken_for_agents_that_stand_still() -> None:
    b, c = Mixed("s0", "s1"), Mixed("s0", "s1")
    limits = PassingLimits(hedge_share=0.0, call_hedge_least_s=1.0)
    world = MemoryWorld({A: Colleagues(), B: b, C: c}, trip(("others", "others")), limits=limits)

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(100))
        await world.sinks[A].wait(100)
        assert trio.current_time() < 100.0, "with 128 calls at once they need half a minute"

    play(world, scene)
    assert b.cancelled == c.cancelled == 0
    assert set((b.begun + c.begun).values()) == {1}


def test_without_anybody_else_a_holder_that_stands_still_keeps_what_it_has() -> None:
    workers = Colleagues("s0", delay_s=lambda: 1.0)
    world = MemoryWorld({A: Colleagues(), B: workers}, trip(("others",)), limits=GIVING)

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(20))
        await world.sinks[A].wait(20)
        workers.hold = trio.Event()
        await world.open(A, rows(8, 20))
        await trio.sleep(100.0)
        workers.hold.set()
        await world.sinks[A].wait(28)

    play(world, scene)
    assert workers.cancelled == 0


@pytest.mark.invariant("R3")
def test_a_refusal_by_policy_is_no_failure_of_who_is_refused() -> None:
    denied = {C}
    routers: dict[str, Router] = {}

    def routing(organization: str, random: Random) -> Routing:
        router = routers[organization] = Router(random)
        return FlowRouting(router, me=organization, clock_s=trio.current_time, reachable=lambda name: True)

    agents = {A: Colleagues(), B: Colleagues("s0"), C: Colleagues("s0")}
    world = MemoryWorld(
        agents, trip(("others",)), limits=ALONE, routing=routing,
        denied=lambda to, role, token: "no rule lets it" if to in denied else "",
    )  # fmt: skip

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(40))
        await world.sinks[A].wait(40)
        seen = {each.organization: each for each in routers[A].snapshot(trio.current_time()).peers}
        assert (seen[C].failures, seen[C].circuit, seen[C].outstanding) == (0, "closed", 0)
        denied.clear()
        await world.open(A, rows(40, 40))
        await world.sinks[A].wait(80)

    play(world, scene)
    assert sum(agents[C].done.values()) > 0, "and once it is let, it is asked at once"


@pytest.mark.invariant("R3")
def test_who_says_of_all_that_it_is_over_fails_and_is_asked_no_more() -> None:
    routers: dict[str, Router] = {}

    def routing(organization: str, random: Random) -> Routing:
        router = routers[organization] = Router(random)
        return FlowRouting(router, me=organization, clock_s=trio.current_time, reachable=lambda name: True)

    agents = {A: Colleagues(), B: Colleagues("s0", delay_s=lambda: 1.0), C: Colleagues("s0")}
    world = MemoryWorld(agents, trip(("others",)), limits=ALONE, routing=routing)
    came: list[Token] = []

    async def over(sender: str, tokens: Sequence[Token]) -> Verdicts:
        came.extend(tokens)
        return Verdicts([Verdict(Answer.OVER)] * len(tokens), 0.0)

    async def scene(world: MemoryWorld) -> None:
        world.engine(C).take = over  # type: ignore[method-assign]
        for turn in range(40):
            await world.open(A, rows(5, 5 * turn))
            await world.sinks[A].wait(5 * turn + 5)
        seen = {each.organization: each for each in routers[A].snapshot(trio.current_time()).peers}
        assert seen[C].failures == len(came)
        assert seen[B].failures == 0

    play(world, scene)
    assert len(came) < 20
    assert {each.end for each in world.sinks[A].ends.values()} == {End.DONE}


class Taking:
    """A receiver that takes all, and says how loaded it is."""

    def __init__(self, wait_s: float | None) -> None:
        self.wait_s = wait_s

    async def take(self, sender: str, tokens: Sequence[Token]) -> Sequence[Verdict]:
        return Verdicts([Verdict(Answer.TAKEN)] * len(tokens), self.wait_s)


def a_carriage(receiver: Taking, ask: Any = None) -> Carriage:
    """A carriage to `receiver` whose gateway lets pass all, and whose messenger asks `ask`."""
    parts = {
        "messenger": SimpleNamespace(ask=ask, peer=lambda to, peer_id: None, nodes=lambda to: []),
        "gateway": SimpleNamespace(
            check_again=lambda to, rows: {}, awaits=lambda digest: False, delivered=lambda keys: None
        ),
        "chains": SimpleNamespace(chains_of=lambda tokens, key: [], now_ms=lambda: 0, learn=lambda chains: []),
        "database": None,
    }
    carriage = Carriage(**cast(Any, parts))
    carriage.attach(cast(Any, receiver))
    return carriage


@pytest.mark.parametrize(
    ("said_s", "heard_s"), [(None, None), (0.0, 0.0), (1.2345, 1.234), (60.0, 60.0), (1e12, (2**32 - 1) / 1000)]
)
def test_how_loaded_a_receiver_is_comes_with_its_receipts(said_s: float | None, heard_s: float | None) -> None:
    receiving = a_carriage(Taking(said_s))

    async def ask(to: str, kind: str, body: bytes, **how: Any) -> Receipt:
        assert (to, kind) == (B, TOKENS)
        return await receiving.handlers[kind](cast(Attested, SimpleNamespace(organization=A)), body)

    sending = a_carriage(Taking(None), ask)

    async def main() -> None:
        token = Token(bytes(16), bytes(32), A, "peer", 1, 1, b"", b"", (), 1)
        verdicts = await sending.deliver(B, [Outgoing(token, B, "s0", token)])
        assert isinstance(verdicts, Verdicts)
        assert [each.answer for each in verdicts] == [Answer.TAKEN]
        assert verdicts.wait_s == (None if heard_s is None else pytest.approx(heard_s, abs=0.001))

    trio.run(main)
