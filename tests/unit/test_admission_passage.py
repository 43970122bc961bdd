"""A passage that many use at once, or one alone."""

from __future__ import annotations

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from comity_node.admission.passage import Passage


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
def test_who_has_it_alone_is_alone_and_nobody_waits_for_ever(comers: list[tuple[bool, int, int, bool]]) -> None:
    inside, alone, over = 0, 0, 0

    async def comes(passage: Passage, wants_alone: bool, after: int, stays: int, cancelled: bool) -> None:
        nonlocal inside, alone, over
        with trio.CancelScope() as scope:
            await trio.sleep(after)
            if cancelled:
                scope.deadline = trio.current_time() + 1.5
            if wants_alone:
                async with passage.alone():
                    assert not inside
                    assert not alone
                    alone += 1
                    try:
                        await trio.sleep(stays)
                    finally:
                        alone -= 1
            else:
                await passage.enter()
                assert not alone
                inside += 1
                try:
                    await trio.sleep(stays)
                finally:
                    inside -= 1
                    passage.leave()
        over += 1

    async def main() -> None:
        passage = Passage()
        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                for comer in comers:
                    nursery.start_soon(comes, passage, *comer)
        assert not inside
        assert not alone

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert over == len(comers)


def test_who_comes_while_another_waits_to_have_it_alone_goes_in_after_that_one() -> None:
    order: list[str] = []

    async def main() -> None:
        passage = Passage()
        await passage.enter()

        async def have() -> None:
            async with passage.alone():
                order.append("alone")

        async def come() -> None:
            await passage.enter()
            order.append("inside")
            passage.leave()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(have)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(come)
            await trio.testing.wait_all_tasks_blocked()
            assert order == []
            passage.leave()

    trio.run(main)
    assert order == ["alone", "inside"]
