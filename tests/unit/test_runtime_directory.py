"""The directory of agent cards: what it takes of an answer, and how often it asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from comity.card import AgentCard, Skill, sign_card
from comity.errors import ComityError, LinkClosed
from comity.ids import SpiffeId
from comity.trust import Attested
from comity.v1.card_pb2 import CardReply
from comity.v1.task_pb2 import Receipt
from comity_node.runtime.directory import Directory
from comity_node.runtime.messenger import accepted
from kit.consortium import NOW_MS, attested, consortium, names

ME, PEER, OTHER = names(3)
LAB = consortium(ME, PEER, OTHER)


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


@dataclass
class Messages:
    """A messenger to nodes that answer as the test says."""

    answer: Callable[[str], Receipt] = lambda _: accepted(CardReply().SerializeToString())
    linked: set[str] = field(default_factory=lambda: {PEER})
    asked: list[tuple[str, float]] = field(default_factory=list)

    def peer(self, organization: str) -> Attested | None:
        return attested(LAB.nodes[organization]) if organization in self.linked else None

    def reachable(self, organization: str) -> bool:
        return organization in self.linked

    async def ask(self, organization: str, kind: str, body: bytes, *, deadline_s: float) -> Receipt:
        await trio.lowlevel.checkpoint()
        self.asked.append((organization, trio.current_time()))
        return self.answer(organization)


class OpenGate:
    def now_ms(self) -> int:
        return NOW_MS


def directory(messages: Messages) -> Directory:
    unused: Any = tuple
    return Directory(
        identity=LAB.nodes[ME],
        trust=LAB.trust,
        gate=OpenGate(),  # type: ignore[arg-type]
        messenger=messages,  # type: ignore[arg-type]
        own_agents=unused,
        addresses=unused,
        hints=unused,
        told=unused,
        version="1",
    )


def card(number: int, organization: str = PEER, *, fill: int = 0) -> bytes:
    identity = LAB.nodes[organization]
    agent = SpiffeId(organization, "agent", f"a{number}")
    return sign_card(
        identity,
        AgentCard(
            agent=agent,
            peer_id=identity.peer_id,
            name=agent.name,
            description="x" * fill,
            version="1",
            skills=(Skill(id="review", name="review", role="validator"),),
            addresses=(),
            issued_ms=NOW_MS,
            expires_ms=NOW_MS + 1000,
        ),
    )


def answers(*cards: bytes) -> Messages:
    return Messages(answer=lambda _: accepted(CardReply(cards=cards).SerializeToString()))


def fetched(messages: Messages) -> list[AgentCard]:
    known = directory(messages)

    async def main() -> None:
        await known.fetch(PEER)

    run(main)
    return known.cards()


def test_cards_that_do_not_verify_are_left_out_and_the_rest_is_taken() -> None:
    foreign = card(2, OTHER)
    assert [each.agent.name for each in fetched(answers(card(1), foreign, b"{}", b"", b"\xff" * 50, card(3)))] == [
        "a1",
        "a3",
    ]


@pytest.mark.invariant("S7")
def test_an_organization_shows_so_many_cards_and_no_more() -> None:
    one = card(1)
    assert len(fetched(answers(*[card(number) for number in range(80)]))) == 64
    assert len(fetched(answers(*[one] * 60))) == 1, "the same card again is no other card"


@pytest.mark.invariant("S7")
def test_cards_are_bounded_in_bytes_too() -> None:
    large = [card(number, fill=1024) for number in range(3)]
    padding = bytes(300 * 1024)  # malformed, and it counts
    assert len(fetched(answers(large[0], padding, large[1], padding, large[2]))) == 2


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    "receipt",
    [
        Receipt(status=Receipt.STATUS_ACCEPTED, body=b"\xff\xff garbage"),
        Receipt(status=Receipt.STATUS_ACCEPTED),
        Receipt(status=Receipt.STATUS_REFUSED, reason="no\n" * 100_000),
        Receipt(status=Receipt.STATUS_UNSPECIFIED),
    ],
)
def test_an_answer_without_cards_stops_nothing_and_fills_no_log(
    receipt: Receipt, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert fetched(Messages(answer=lambda _: receipt)) == []
    assert len(caplog.text) < 1000


@pytest.mark.invariant("R3")
def test_a_link_that_goes_down_in_the_meantime_stops_nothing() -> None:
    messages = Messages()

    def goes_down(_: str) -> Receipt:
        messages.linked.clear()
        return accepted(CardReply(cards=[card(1)]).SerializeToString())

    messages.answer = goes_down
    assert fetched(messages) == []

    def breaks(_: str) -> Receipt:
        raise LinkClosed("gone")

    messages.linked, messages.answer = {PEER}, breaks
    assert fetched(messages) == []


@pytest.mark.invariant("S7")
def test_a_peer_that_comes_and_goes_is_asked_once_a_second_and_newcomers_at_once() -> None:
    messages = Messages()

    async def main() -> None:
        known = directory(messages)
        async with trio.open_nursery() as nursery:
            await nursery.start(known.run)
            began = trio.current_time()
            await trio.sleep(0.45)
            messages.linked.add(OTHER)
            for _ in range(1000):  # a hundred changes a second
                known.look_again()
                await trio.sleep(0.01)
            times = [round(at - began, 2) for name, at in messages.asked if name == PEER]
            assert 10 <= len(times) <= 11
            assert all(later - earlier >= 1 for earlier, later in pairwise(times))
            assert next(round(at - began, 2) for name, at in messages.asked if name == OTHER) == pytest.approx(0.45)
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("R3")
def test_what_was_asked_too_soon_is_asked_again_by_itself() -> None:
    messages = answers(card(1))
    messages.linked = {PEER, OTHER}

    def only_peer(organization: str) -> Receipt:
        if organization == PEER:
            return accepted(CardReply(cards=[card(1)]).SerializeToString())
        return accepted(CardReply(cards=[card(2, OTHER)]).SerializeToString())

    messages.answer = only_peer

    async def main() -> None:
        known = directory(messages)
        async with trio.open_nursery() as nursery:
            await nursery.start(known.run)
            await trio.sleep(0.3)
            known.look_again()  # its agents have changed, say
            await trio.sleep(1.2)
            assert [name for name, _ in messages.asked].count(PEER) == 2
            await trio.sleep(10)
            assert [name for name, _ in messages.asked].count(PEER) == 2, "all are known: calm"
            nursery.cancel_scope.cancel()

    run(main)


def test_an_error_is_an_error_of_ours() -> None:
    """`fetch_hints` refuses with a short reason what is no list of hints."""

    async def main() -> None:
        for receipt in (
            Receipt(status=Receipt.STATUS_REFUSED, reason="no" * 100_000),
            Receipt(status=Receipt.STATUS_ACCEPTED, body=b"\xff\xff"),
        ):
            known = directory(Messages(answer=lambda _, receipt=receipt: receipt))  # type: ignore[misc]
            with pytest.raises(ComityError) as refused:
                await known.fetch_hints(PEER)
            assert len(str(refused.value)) < 400

    run(main)
