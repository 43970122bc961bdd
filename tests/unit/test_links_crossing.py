"""Large requests one way and large answers the other, more than both ends' buffers hold: nobody waits for the other."""

from __future__ import annotations

import pytest
import trio

from kit.linked import linked, run


@pytest.mark.invariant("R4")
def test_many_large_requests_and_their_large_answers_do_not_block_each_other() -> None:
    payload, count = bytes(32 * 1024), 512

    async def main() -> None:
        async with linked() as pair:
            answered = 0

            async def ask() -> None:
                nonlocal answered
                for _ in range(2):
                    assert await pair.ask(payload, deadline_s=20) == payload
                    answered += 1

            with trio.fail_after(25):  # of a clock that jumps: an end that waits for ever gets there at once
                async with trio.open_nursery() as nursery:
                    for _ in range(count):
                        nursery.start_soon(ask)
            assert answered == 2 * count

    run(main)
