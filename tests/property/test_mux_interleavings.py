"""Whatever the order of reads, writes, cancellations, ends and resets: no byte is lost, doubled or out of order."""

from __future__ import annotations

from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.errors import LinkClosed
from comity_node.transport.base import Priority
from comity_node.transport.budget import Budget
from comity_node.transport.muxed import MuxedStream
from comity_node.transport.yamux import INITIAL_WINDOW, MuxLimits, Yamux
from kit.line import make_line
from kit.muxes import muxed_over, run_virtual

SIZES = st.integers(0, 100_000) | st.sampled_from([INITIAL_WINDOW - 1, INITIAL_WINDOW, INITIAL_WINDOW + 1, 700_000])


def pattern(seed: int, count: int) -> bytes:
    return Random(seed).randbytes(count)


async def write_some(stream: MuxedStream, data: bytes, random: Random) -> bool:
    """Send pieces of any size, with pauses; say whether all of it went: a call may be cancelled half-way."""
    position = 0
    while position < len(data):
        piece = data[position : position + random.choice([1, 10, 1000, 20_000, 70_000])]
        with trio.move_on_after(random.choice([0.0, 0.001, 5.0, 1000.0])) as scope:
            if random.random() < 0.2:
                await trio.sleep(random.random() / 100)
            await stream.send(piece)
            position += len(piece)
        if scope.cancelled_caught and stream._ended:
            stream.reset()
            return False
        if random.random() < 0.05:
            stream.set_priority(random.choice(list(Priority)))
    await stream.send_eof()
    return True


async def read_some(stream: MuxedStream, random: Random) -> tuple[bytes, bool]:
    """Everything that comes, with pauses and cancelled calls; and whether it ended well."""
    got = b""
    while True:
        data = None
        with trio.move_on_after(random.choice([0.0, 0.001, 1.0, 1000.0])):
            if random.random() < 0.2:
                await trio.sleep(random.random() / 50)
            try:
                data = await stream.receive(random.choice([1, 100, 5_000, 65_536, 1 << 20]))
            except LinkClosed:
                return got, False
        if data == b"":
            return got, True
        got += data or b""


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(SIZES, st.sampled_from(Priority)), min_size=1, max_size=5),
    st.sampled_from([1e5, 1e6, 1e8]),
    st.sampled_from([0.0, 0.05]),
    st.integers(0, 2**32),
)
def test_no_byte_is_lost_doubled_or_out_of_order(
    transfers: list[tuple[int, Priority]], rate: float, rtt_s: float, seed: int
) -> None:
    random = Random(seed)

    async def transfer(there: MuxedStream, here: MuxedStream, data: bytes, torn: set[MuxedStream]) -> None:
        async def write() -> None:
            try:
                whole = await write_some(there, data, random)
            except LinkClosed:  # the other direction was cut short, and with it the stream
                assert here in torn
                return
            if not whole:
                torn.add(there)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            got, ended = await read_some(here, random)
        assert data.startswith(got)
        assert not ended or got == data
        assert ended or torn

    async def main() -> None:
        limits = MuxLimits(max_streams=8)
        async with muxed_over(make_line(rate, rtt_s), limits, budget=Budget(4 << 20)) as (pair, _):
            async with trio.open_nursery() as nursery:
                streams = []
                for number, (size, priority) in enumerate(transfers):
                    ours, theirs = await pair.open(priority)
                    streams += [ours, theirs]
                    torn: set[MuxedStream] = set()
                    nursery.start_soon(transfer, ours, theirs, pattern(number, size), torn)
                    nursery.start_soon(transfer, theirs, ours, pattern(number + 100, size // 2), torn)
            for stream in streams:
                await stream.aclose()
            await trio.sleep(5)
            for end in (pair.a, pair.b):
                metrics = end.metrics()
                assert (metrics.streams, metrics.queued_bytes, metrics.unread_bytes, metrics.granted_bytes) == (
                    0,
                    0,
                    0,
                    0,
                )
            assert pair.a.is_usable
            assert pair.b.is_usable

    run_virtual(main)


@pytest.mark.invariant("S7")
@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["send", "carry", "read", "end", "reset", "close", "open", "limits"]), st.integers(0, 7)
        ),
        max_size=60,
    ),
    st.randoms(use_true_random=False),
)
def test_two_ends_never_disagree_about_windows_whatever_they_do(acts: list[tuple[str, int]], random: Random) -> None:
    """With both ends ours no act makes either of them accuse the other, and what is unread fits the windows."""
    now = 0.0
    limits = MuxLimits(max_streams=6, free_bytes=0)
    budget = Budget(12 << 20)
    ends = [Yamux(initiator=role, limits=limits, clock=lambda: now, budget=budget) for role in (True, False)]
    known: list[set[int]] = [set(), set()]
    unread: list[dict[int, int]] = [{}, {}]

    def carry(source: int) -> None:
        data = ends[source].data_to_send(random.randint(1, 300_000))
        target = 1 - source
        while data:
            step = random.randint(1, len(data))
            for event in ends[target].receive(data[:step]):
                stream_id = getattr(event, "stream_id", 0)
                if type(event).__name__ == "StreamOpened":
                    known[target].add(stream_id)
                elif type(event).__name__ == "DataReceived":
                    unread[target][stream_id] = unread[target].get(stream_id, 0) + len(event.data)  # type: ignore[union-attr]
            data = data[step:]

    for act, number in acts:
        now += random.random() / 10
        side = number % 2
        end = ends[side]
        stream_id = random.choice(sorted(known[side])) if known[side] else 0
        stream = end._streams.by_id.get(stream_id)
        if act == "open" and end._streams.may_open(inbound=False):
            known[side].add(end.open(random.choice(list(Priority))))
        elif act == "carry":
            carry(side)
        elif act == "limits":
            end.set_limits(
                MuxLimits(max_streams=6, window=random.choice([1, 2]) * INITIAL_WINDOW, free_bytes=0), budget
            )
        elif act == "read" and (count := unread[side].get(stream_id, 0)):
            taken = random.randint(1, count)
            unread[side][stream_id] -= taken
            end.consumed(stream_id, taken)
        elif stream is not None and act == "send" and not stream.ended_here:
            end.send(stream_id, bytes(random.choice([1, 100, 70_000, 400_000])))
        elif act in ("end", "reset", "close"):
            getattr(end, act)(stream_id)
            if act != "end":
                unread[side].pop(stream_id, None)
        for each in ends:
            metrics = each.metrics()
            assert metrics.unread_bytes <= metrics.granted_bytes <= limits.max_bytes
        assert budget.used <= budget.limit
    for end in ends:
        end.shut()
        for stream_id in list(end._streams.by_id):
            end.reset(stream_id)
    assert budget.used == 0
