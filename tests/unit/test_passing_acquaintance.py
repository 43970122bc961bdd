"""Bringing agreements to nodes that do not know them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from comity.errors import AgreementUnknown, LinkClosed, PolicyDenied
from comity_node.runtime.passing.acquaintance import Acquaintance

TO, PEER, DIGEST = "hope.example", "12D3Koo", b"digest"


class Node:
    """Answers by what stands in `answers`, after a second."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.answers, self.brought = list(answers), 0

    async def bring(self, to: str, peer_id: str, digest: bytes) -> bool:
        assert (to, peer_id, digest) == (TO, PEER, DIGEST)
        self.brought += 1
        await trio.sleep(1)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_deliveries_that_hear_it_at_the_same_time_have_it_brought_once_and_all_go_on() -> None:
    node = Node(True, True)

    async def main() -> None:
        acquaintance = Acquaintance(node.bring)
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(acquaintance.make, TO, PEER, DIGEST, began_s)
        await acquaintance.make(TO, PEER, DIGEST, began_s)  # it had asked before it was brought
        assert node.brought == 1
        await trio.sleep(1)
        await acquaintance.make(TO, PEER, DIGEST, trio.current_time())  # it has forgotten it
        assert node.brought == 2

    run(main)


def test_what_a_node_does_not_take_is_not_brought_again_for_a_minute_and_it_is_asked_again_sooner() -> None:
    node = Node(False, True)

    async def main() -> None:
        acquaintance = Acquaintance(node.bring)
        for _ in range(5):
            with pytest.raises(AgreementUnknown) as raised:
                await acquaintance.make(TO, PEER, DIGEST, trio.current_time())
            assert raised.value.retry_after_ms == 5_000
            await trio.sleep(5)
        assert node.brought == 1
        await trio.sleep(60)
        await acquaintance.make(TO, PEER, DIGEST, trio.current_time())
        assert node.brought == 2

    run(main)


@pytest.mark.parametrize("error", [LinkClosed("it is gone"), PolicyDenied("it may not leave")])
def test_what_could_not_be_brought_is_brought_by_the_next_delivery(error: Exception) -> None:
    node = Node(error, True)

    async def main() -> None:
        acquaintance = Acquaintance(node.bring)
        with pytest.raises(LinkClosed):
            await acquaintance.make(TO, PEER, DIGEST, trio.current_time())
        await acquaintance.make(TO, PEER, DIGEST, trio.current_time())
        assert node.brought == 2

    run(main)
