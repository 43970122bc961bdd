"""What a node says of an agreement under which it does nothing: why there is no pact, and who is not asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
import trio
import trio.testing

from comity.agreement import Agreed
from comity.digest import canonical_json
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.passing.memory import MemoryPacts
from comity_node.runtime.passing.pacts import AgreedPacts
from comity_node.runtime.passing.world import Faults, MemoryWorld
from kit.consortium import NOW_MS, consortium, names
from kit.documents import agree
from kit.passing import ALONE, A, B, Colleagues, play, rows, trip

ADA, BEA, CYD = names(3)
LAB = consortium(*names(3))
FLOW = {
    "state": {"type": "object", "properties": {"label": {"type": "integer"}}},
    "start": "answer",
    "steps": {"answer": {"skill": "answer", "at": "others", "writes": ["label"], "next": "end"}},
}


@dataclass
class Known:
    """The agreements of a node, as far as pacts look at them."""

    agreed: Agreed | None
    stopped: str = ""
    over: bool = False

    def find(self, _: bytes) -> Agreed | None:
        return self.agreed

    def get(self, _: bytes) -> Agreed:
        assert self.agreed is not None
        return self.agreed

    def why_stopped(self, _: bytes) -> str:
        return self.stopped

    def is_over(self, _: bytes) -> bool:
        return self.over


def pacts(known: Known, now_ms: int = NOW_MS, **changes: Any) -> AgreedPacts:
    skills = {name: frozenset({"answer"}) for name in (BEA, CYD)}
    return AgreedPacts(
        cast("Agreements", known), me=ADA, own=lambda: (), others=lambda: skills, reachable=lambda _: True,
        now_ms=lambda: now_ms, **changes,
    )  # fmt: skip


def agreed(flow: object) -> Agreed:
    return agree(LAB, flow=canonical_json(flow))


def test_a_flow_that_cannot_be_read_is_told_as_such() -> None:
    steps = {"answer": {**FLOW["steps"]["answer"], "of-tomorrow": 1}}  # type: ignore[index]
    one = agreed({**FLOW, "steps": steps})
    found = pacts(Known(one))
    assert found.pact(one.digest) is None
    assert "this version of the node cannot read its flow" in found.why_none(one.digest)
    assert "of-tomorrow" in found.why_none(one.digest)


@pytest.mark.parametrize(
    ("known", "now_ms", "said"),
    [
        (Known(agreed(FLOW), stopped="BEA withdrew", over=True), NOW_MS, "BEA withdrew"),
        (Known(agreed(FLOW), over=True), NOW_MS, "its agreement is over"),
        (Known(agreed(FLOW)), NOW_MS * 2, "its agreement is over"),
        (Known(None), NOW_MS, "its agreement is not known here any more"),
    ],
    ids=["stopped", "over", "expired", "unknown"],
)
def test_why_there_is_no_pact(known: Known, now_ms: int, said: str) -> None:
    digest = agreed(FLOW).digest
    found = pacts(known, now_ms)
    assert found.pact(digest) is None
    assert found.why_none(digest) == said


@pytest.mark.invariant("S9")
def test_who_is_suspended_is_given_no_task() -> None:
    async def main() -> None:
        out: set[str] = set()
        found = pacts(Known(agreed(FLOW)), suspended=lambda: out)
        digest = agreed(FLOW).digest
        assert found.offering(digest, "answer") == (BEA, CYD)
        out.add(BEA)
        await trio.sleep(0.2)
        assert found.offering(digest, "answer") == (CYD,)
        out.clear()
        await trio.sleep(0.2)
        assert found.offering(digest, "answer") == (BEA, CYD)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_tasks_that_a_run_cannot_go_on_with_end_with_the_reason() -> None:
    workers = Colleagues("s0")
    workers.hold = trio.Event()
    world = MemoryWorld({A: Colleagues(), B: workers}, trip(("others",)), limits=ALONE, faults=Faults())

    class Unread(MemoryPacts):
        def why_none(self, agreement: bytes) -> str:
            return "its flow cannot be read"

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(3))
        await trio.sleep(1.0)
        for organization in (A, B):
            world.crash(organization)
        world._pacts = Unread([], world.offering)
        for organization in (A, B):
            await world.restart(organization)
        await world.sinks[A].wait(3)
        assert {each.reason for each in world.sinks[A].ends.values()} == {"its flow cannot be read"}

    play(world, scene)
