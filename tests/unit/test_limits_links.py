"""Limits of links that no other test would miss."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from comity.errors import Busy, LinkClosed
from comity.trust import Attested
from comity_node.links import LinkLimits
from comity_node.links.lane import MESSAGES
from comity_node.links.limits import Window
from comity_node.protocol.session import Session
from comity_node.protocol.session_states import Role, Service
from comity_node.transport.base import Priority
from kit.linked import Pair, linked, run

pytestmark = pytest.mark.invariant("S7")


async def never(_: Attested, payload: bytes) -> bytes:
    await trio.sleep_forever()


async def waiting(pair: Pair, calls: int, payload: bytes) -> int:
    """How many of so many CONTROL calls of `a` wait until `b` takes more."""
    async with trio.open_nursery() as nursery:
        for _ in range(calls):

            async def ask() -> None:
                await pair.a.request(pair.b.peer_id, payload, 60, priority=Priority.CONTROL)

            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        state = pair.a.state(pair.b.peer_id)
        assert state is not None
        nursery.cancel_scope.cancel()
        return state.waiting


@pytest.mark.parametrize(("window", "left"), [(Window(3, 1 << 20), 7), (Window(64, 3000), 7), (Window(64, 1 << 20), 0)])
def test_a_control_stream_takes_so_many_calls_and_bytes(window: Window, left: int) -> None:
    async def main() -> None:
        async with linked(never, limits=LinkLimits(control=window)) as pair:
            assert await waiting(pair, 10, bytes(1000)) == left

    run(main)


def test_whoever_asks_too_much_is_told_when_to_come_back() -> None:
    async def main() -> None:
        async with linked(never, limits=LinkLimits(max_handler_bytes=1000, retry_after_ms=777)) as pair:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.ask, bytes(900))
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(Busy) as caught:
                    await pair.ask(bytes(900))
                assert caught.value.retry_after_ms == 777
                nursery.cancel_scope.cancel()

    run(main)


def test_what_all_peers_together_ask_for_is_bounded_in_bytes() -> None:
    async def main() -> None:
        async with linked(never, limits=LinkLimits(max_all_bytes=1000)) as pair:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.ask, bytes(900))
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(Busy):
                    await pair.ask(bytes(900))
                nursery.cancel_scope.cancel()

    run(main)


def test_an_inbound_stream_on_which_nothing_comes_is_closed() -> None:
    async def main() -> None:
        async with linked(limits=LinkLimits(idle_s=20)) as pair:
            stream = await pair.a_transport.open_stream(pair.b.peer_id, (), MESSAGES)
            session = Session(Role.OPENER, Service.MESSAGES)
            session.greet(pair.a._greeter.hello(Priority.WORK))
            await stream.send(session.data_to_send())
            session.receive(await stream.receive())
            session.accept()
            await stream.send(session.data_to_send())
            began = trio.current_time()
            with trio.fail_after(60):
                try:
                    while await stream.receive():
                        pass
                except LinkClosed:
                    pass
            assert 20 <= trio.current_time() - began < 25

    run(main)
