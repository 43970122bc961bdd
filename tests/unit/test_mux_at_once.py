"""Sending without a switch of tasks: what a line takes at once goes at once, and nothing overtakes the rest."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from comity.errors import LinkClosed
from comity_node.transport.muxed import MuxedStream
from comity_node.transport.yamux import MuxLimits
from kit.line import PipeEnd, make_pipe
from kit.muxes import muxed_over, read_exactly, run_virtual

KIB = 1024


class InstantEnd(PipeEnd):
    """A pipe's end that takes up to `room` bytes at once; "encrypted" means nothing here."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.room = capacity
        self.broken = False
        self.stuck = False

    def write_some(self, data: bytes) -> bytes:
        if self.broken:
            raise LinkClosed("the line broke")
        taken = data[: self.room]
        self.peer._data += taken
        self.peer._changed.unpark_all()
        return data[len(taken) :]

    async def write_rest(self, rest: bytes) -> None:
        if self.stuck:
            await trio.sleep_forever()
        await self.write(rest)


def instant(capacity: int = 256 * KIB) -> tuple[InstantEnd, InstantEnd]:
    ends = InstantEnd(capacity), InstantEnd(capacity)
    ends[0].peer, ends[1].peer = ends[1], ends[0]
    return ends


def test_what_fits_is_on_the_line_when_the_call_returns() -> None:
    async def main() -> None:
        ends = instant()
        async with muxed_over(ends) as (pair, _):
            ours, theirs = await pair.open()
            await trio.testing.wait_all_tasks_blocked()
            assert ours.send_nowait(b"now")
            assert bytes(ends[1]._data).endswith(b"now")
            assert await theirs.receive() == b"now"

    run_virtual(main)


@pytest.mark.parametrize("room", [0, 1, 100, 5000])
def test_what_the_line_does_not_take_at_once_is_not_overtaken(room: int) -> None:
    async def main() -> None:
        ends = instant()
        async with muxed_over(ends) as (pair, _):
            ours, theirs = await pair.open()
            other, _ = await pair.open()
            await trio.testing.wait_all_tasks_blocked()
            ends[0].room = room
            data = [bytes([n]) * 1000 for n in range(20)]
            for n, piece in enumerate(data):
                if n % 3:
                    assert ours.send_nowait(piece)
                else:
                    await ours.send(piece)
                assert other.send_nowait(b"beside")
            assert await read_exactly(theirs, 20_000) == b"".join(data)

    run_virtual(main)


def test_nothing_is_sent_of_what_finds_no_room_or_no_stream() -> None:
    async def main() -> None:
        limits = MuxLimits(send_buffer=10_000)
        async with muxed_over(make_pipe(), limits) as (pair, _):
            ours, theirs = await pair.open()
            assert not ours.send_nowait(bytes(10_001))
            assert ours.send_nowait(bytes(10_000))
            assert not ours.send_nowait(b"x")
            await ours.send_eof()
            assert not ours.send_nowait(b"x")
            assert await read_exactly(theirs, 10_000) == bytes(10_000)
            assert await theirs.receive() == b""
            theirs.reset()
            await trio.testing.wait_all_tasks_blocked()
            assert not ours.send_nowait(b"x")

    run_virtual(main)


def test_a_line_that_breaks_under_the_call_ends_the_connection_and_raises_nothing() -> None:
    async def main() -> None:
        ends = instant()
        async with muxed_over(ends) as (pair, _):
            ours, _ = await pair.open()
            await trio.testing.wait_all_tasks_blocked()
            ends[0].broken = True
            ours.send_nowait(b"into the void")
            await pair.a.closed.wait()
            with pytest.raises(LinkClosed, match="the line broke"):
                await ours.receive()
            assert not ours.send_nowait(b"x")

    run_virtual(main)


def test_a_peer_that_takes_nothing_of_the_rest_is_given_up() -> None:
    async def main() -> None:
        ends = instant()
        async with muxed_over(ends) as (pair, _):
            ours, _ = await pair.open()
            await trio.testing.wait_all_tasks_blocked()
            ends[0].room, ends[0].stuck = 3, True
            began = trio.current_time()
            assert ours.send_nowait(b"half of it")
            with pytest.raises(LinkClosed, match="read nothing"):
                await ours.receive()
            assert trio.current_time() - began == pytest.approx(30)

    run_virtual(main)


@pytest.mark.invariant("R4")
def test_senders_get_ahead_by_a_batch_of_all_streams_and_a_buffer_of_each() -> None:
    async def main() -> None:
        limits = MuxLimits(send_buffer=64 * KIB)
        ends = instant()
        async with muxed_over(ends, limits) as (pair, nursery):
            warm, reader = await pair.open()

            async def drink() -> None:
                while await reader.receive():
                    pass

            nursery.start_soon(drink)
            while pair.a._writer.batch.bytes < 256 * KIB:  # the line has shown itself to be a fast one
                await warm.send(bytes(64 * KIB))
            streams: list[MuxedStream] = [(await pair.open())[0] for _ in range(8)]
            ends[0].room, ends[0].stuck = 0, True

            async def push(stream: MuxedStream) -> None:
                while True:
                    await stream.send(bytes(16 * KIB))

            for stream in streams:
                nursery.start_soon(push, stream)
            await trio.testing.wait_all_tasks_blocked()
            waiting = [pair.a.mux.unsent(stream._id) for stream in streams]
            assert all(64 * KIB < each for each in waiting)
            assert sum(waiting) <= (256 + 8 * (64 + 16) + 16) * KIB
            nursery.cancel_scope.cancel()

    run_virtual(main)


def test_a_lone_sender_is_as_much_ahead_as_goes_at_once() -> None:
    async def main() -> None:
        ends = instant()
        async with muxed_over(ends, MuxLimits(window=1024 * KIB)) as (pair, nursery):
            ours, _ = await pair.open()
            pair.a._writer.batch.bytes = 256 * KIB
            ends[0].room, ends[0].stuck = 0, True

            async def push() -> None:
                while True:
                    await ours.send(bytes(32 * KIB))

            nursery.start_soon(push)
            await trio.testing.wait_all_tasks_blocked()
            assert 256 * KIB < pair.a.mux.unsent(ours._id) <= (256 + 32) * KIB
            nursery.cancel_scope.cancel()

    run_virtual(main)
