"""Which node of an organization gets a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from comity.errors import Busy, LinkClosed
from comity_node.protocol.token import Token
from comity_node.runtime.passing.nodes import Nodes
from comity_node.runtime.passing.ports import Answer, Outgoing, Verdict, Verdicts

HOPE, PACT = "hope.example", bytes(32)
TAKEN = Verdict(Answer.TAKEN)
FULL = Verdict(Answer.BUSY, "no room", 0.1)


def row(number: int) -> Outgoing:
    token = Token(number.to_bytes(16, "big"), PACT, "mercy.example", "p", 1, 1, b"", b"", (), 1)
    return Outgoing(token, HOPE, "label")


class Hope:
    """Nodes that answer as they are told, and remember what they were brought."""

    def __init__(self, *linked: str) -> None:
        self.linked = list(linked)
        self.says: dict[str, Callable[[], Verdict]] = {}
        self.got: list[tuple[str, int]] = []
        self.nodes = Nodes(lambda to: [cast(Any, SimpleNamespace(peer_id=each)) for each in self.linked])

    async def send(self, peer_id: str, rows: Sequence[Outgoing]) -> Verdicts:
        self.got += [(peer_id, int.from_bytes(one.token.task_id, "big")) for one in rows]
        return Verdicts([self.says.get(peer_id, lambda: TAKEN)() for _ in rows], 1.0 if peer_id == "n1" else 3.0)

    async def deliver(self, *numbers: int) -> Verdicts:
        return await self.nodes.deliver(HOPE, PACT, [row(number) for number in numbers], self.send)

    def who(self) -> list[str]:
        """Who was brought what, since the last time."""
        got, self.got = self.got, []
        return [peer_id for peer_id, _ in sorted(got, key=lambda one: one[1])]


def silent() -> Verdict:
    raise LinkClosed("no answer")


def busy() -> Verdict:
    raise Busy("not now", retry_after_ms=300)


def play(scene: Callable[[], Any]) -> None:
    trio.run(scene, clock=MockClock(autojump_threshold=0))


def test_tokens_go_to_the_nodes_in_turns_and_a_load_is_what_they_say_on_the_average() -> None:
    async def scene() -> None:
        hope = Hope("n1", "n2")
        verdicts = await hope.deliver(1, 2, 3)
        assert (list(verdicts), verdicts.wait_s) == ([TAKEN] * 3, 2.0)
        await hope.deliver(4)
        assert hope.who() == ["n1", "n2", "n1", "n2"]

    play(scene)


@pytest.mark.invariant("R2")
@pytest.mark.invariant("R3")
def test_what_got_no_answer_comes_again_to_the_same_node_while_it_is_linked_and_holds_up_nothing_else() -> None:
    async def scene() -> None:
        hope = Hope("n1", "n2")
        hope.says["n1"] = silent
        first, second = await hope.deliver(1, 2)
        assert (first.answer, first.unsure, second) == (Answer.BUSY, True, TAKEN)
        hope.who()
        await hope.deliver(3, 4)
        assert hope.who() == ["n2", "n2"], "nothing new for who is silent"
        await hope.deliver(1)
        assert hope.who() == ["n1"], "it may have this one"
        hope.linked.remove("n1")
        assert list(await hope.deliver(1)) == [TAKEN]
        assert hope.who() == ["n2"]
        hope.linked.insert(0, "n1")
        del hope.says["n1"]
        await trio.sleep(6)
        await hope.deliver(5, 6)
        assert sorted(hope.who()) == ["n1", "n2"], "in turns again"

    play(scene)


@pytest.mark.invariant("R4")
@pytest.mark.parametrize("says", [busy, lambda: FULL])
def test_what_a_node_has_no_room_for_goes_to_the_next_and_the_organization_is_busy_when_all_are(
    says: Callable[[], Verdict],
) -> None:
    async def scene() -> None:
        hope = Hope("n1", "n2")
        hope.says["n1"] = says
        assert list(await hope.deliver(1, 2)) == [TAKEN, TAKEN]
        assert sorted(hope.got) == [("n1", 1), ("n2", 1), ("n2", 2)]
        hope.who()
        await hope.deliver(3, 4)
        assert hope.who() == ["n2", "n2"], "it is left alone for as long as it said"
        await trio.sleep(1)
        hope.says["n2"] = busy
        if says is busy:
            with pytest.raises(Busy):
                await hope.deliver(5)
        else:
            (verdict,) = await hope.deliver(5)
            assert (verdict.answer, verdict.unsure) == (Answer.BUSY, False)

    play(scene)


def test_with_no_node_or_none_that_answers_it_is_as_with_one() -> None:
    async def scene() -> None:
        hope = Hope()
        hope.says[""] = silent
        with pytest.raises(LinkClosed):
            await hope.deliver(1)
        hope.linked = ["n1"]
        hope.says["n1"] = silent
        with pytest.raises(LinkClosed):
            await hope.deliver(1)
        hope.linked = ["n1", "n2"]
        hope.says["n2"] = silent
        await trio.sleep(6)
        with pytest.raises(LinkClosed):
            await hope.deliver(2, 3)

    play(scene)
