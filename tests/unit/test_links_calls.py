"""Calls over links: deadlines, cancellation, notifications, streams, and room for all of them."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
import trio
import trio.testing

from comity.errors import (
    Busy,
    DeadlineExceeded,
    FrameTooLarge,
    LinkClosed,
    PeerRefused,
    PeerUnreachable,
    PolicyDenied,
)
from comity.trust import Attested
from comity_node.links import LinkLimits, Links, Sink, Window
from comity_node.protocol.session import SessionLimits
from comity_node.transport.base import Priority
from comity_node.transport.memory import MemoryStream
from kit.linked import Pair, echo, linked, run


class Slow:
    """A handler that waits for a gate, and says what becomes of its work."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.begun: list[bytes] = []
        self.done: list[bytes] = []
        self.cancelled: list[bytes] = []

    async def __call__(self, _: Attested, payload: bytes) -> bytes:
        if payload == b"quick":
            return payload
        self.begun.append(payload)
        try:
            await self.gate.wait()
        except trio.Cancelled:
            self.cancelled.append(payload)
            raise
        self.done.append(payload)
        return payload


def test_the_peer_stops_working_when_the_deadline_has_passed() -> None:
    async def main() -> None:
        slow = Slow()
        async with linked(slow) as pair:
            began = trio.current_time()
            with pytest.raises(DeadlineExceeded):
                await pair.ask(b"work", 2)
            assert trio.current_time() - began == pytest.approx(2, abs=0.1)
            await trio.testing.wait_all_tasks_blocked()
            assert slow.cancelled == [b"work"]
            assert await pair.ask(b"quick") == b"quick"
            state = pair.a.state(pair.b.peer_id)
            assert state is not None
            assert (state.in_flight, state.reconnects) == (0, 0)

    run(main)


def test_the_peer_keeps_the_deadline_by_itself() -> None:
    """Nobody tells it: what we say does not get through any more."""

    async def main() -> None:
        slow = Slow()
        async with linked(slow) as pair, trio.open_nursery() as nursery:
            nursery.start_soon(_fails, pair, b"work", 2)
            await trio.testing.wait_all_tasks_blocked()
            pair.network.partition(pair.a.peer_id, pair.b.peer_id)
            await trio.sleep(2.5)
            assert slow.cancelled == [b"work"]
            pair.network.heal(pair.a.peer_id, pair.b.peer_id)

    run(main)


async def _fails(pair: Pair, payload: bytes, deadline_s: float) -> None:
    with pytest.raises(DeadlineExceeded):
        await pair.ask(payload, deadline_s)


@pytest.mark.parametrize("deadline_s", [0, -1, float("-inf")])
def test_a_deadline_that_has_passed_sends_nothing(deadline_s: float) -> None:
    async def main() -> None:
        async with linked() as pair:
            with pytest.raises(DeadlineExceeded):
                await pair.ask(b"too late", deadline_s)
            assert await pair.ask(b"in time", float("inf")) == b"in time"

    run(main)


def test_cancelling_a_request_cancels_the_work_on_it_and_nothing_else() -> None:
    async def main() -> None:
        slow = Slow()
        async with linked(slow) as pair, trio.open_nursery() as nursery:
            other: list[bytes] = []

            async def ask_other() -> None:
                other.append(await pair.ask(b"other", 60))

            nursery.start_soon(ask_other)
            with trio.move_on_after(1):
                await pair.ask(b"unwanted", 60)
            await trio.testing.wait_all_tasks_blocked()
            assert slow.cancelled == [b"unwanted"]
            slow.gate.set()
            await trio.testing.wait_all_tasks_blocked()
            assert other == slow.done == [b"other"]
            assert await pair.ask(b"quick") == b"quick"

    run(main)


def test_what_waits_in_line_can_be_cancelled_and_runs_out_of_time() -> None:
    limits = LinkLimits(session=SessionLimits(max_outstanding=1))

    async def main() -> None:
        slow = Slow()
        async with linked(slow, limits=limits) as pair, trio.open_nursery() as nursery:
            nursery.start_soon(pair.ask, b"first", 60)
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(1):
                await pair.ask(b"cancelled", 60)
            with pytest.raises(DeadlineExceeded):
                await pair.ask(b"too late", 2)
            slow.gate.set()
            assert await pair.ask(b"third", 60) == b"third"
            assert slow.begun == [b"first", b"third"], "the others never left"

    run(main)


def test_a_cancellation_that_crosses_the_answer_does_no_harm() -> None:
    async def main() -> None:
        async with linked() as pair:
            for turns in range(12):

                async def ask(scope: trio.CancelScope) -> None:
                    with scope:
                        assert await pair.ask(b"x") == b"x"

                scope = trio.CancelScope()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask, scope)
                    for _ in range(turns):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            state = pair.a.state(pair.b.peer_id)
            assert state is not None
            assert (state.in_flight, state.waiting, state.reconnects) == (0, 0, 0)
            assert await pair.ask(b"y") == b"y"

    run(main)


def test_a_handler_that_will_not_be_cancelled_costs_its_place_only() -> None:
    limits = LinkLimits(max_handlers=2)

    async def main() -> None:
        gate = trio.Event()

        async def stubborn(_: Attested, payload: bytes) -> bytes:
            if payload == b"stubborn":
                with trio.CancelScope(shield=True):
                    await gate.wait()
            return payload

        async with linked(stubborn, limits=limits) as pair:
            with pytest.raises(DeadlineExceeded):
                await pair.ask(b"stubborn", 1)
            assert await pair.ask(b"next") == b"next"
            gate.set()
            assert await pair.ask(b"last") == b"last"

    run(main)


def test_notifications_arrive_without_an_answer() -> None:
    async def main() -> None:
        heard: list[tuple[str, bytes]] = []

        async def hear(who: Attested, payload: bytes) -> None:
            heard.append((who.organization, payload))

        async with linked() as pair:
            pair.b.on_notice(hear)
            for number in range(3):
                await pair.a.notify(pair.b.peer_id, b"%d" % number, 5)
            assert await pair.ask(b"after") == b"after"
            assert heard == [("mercy.example", b"0"), ("mercy.example", b"1"), ("mercy.example", b"2")]
            # Without anybody who takes them they are dropped, and the link is as it was.
            await pair.b.notify(pair.a.peer_id, b"nobody hears", 5)
            assert await pair.b.request(pair.a.peer_id, b"x", 5) == b"x"

    run(main)


@pytest.mark.invariant("R4")
def test_notifications_wait_for_a_peer_that_is_slow() -> None:
    limits = LinkLimits(session=SessionLimits(max_outstanding=4), max_handlers=1)

    async def main() -> None:
        gate = trio.Event()
        heard = 0

        async def hear(_: Attested, __: bytes) -> None:
            nonlocal heard
            await gate.wait()
            heard += 1

        async with linked(limits=limits) as pair, trio.open_nursery() as nursery:
            pair.b.on_notice(hear)
            sent = 0

            async def tell() -> None:
                nonlocal sent
                for _ in range(10):
                    await pair.a.notify(pair.b.peer_id, b"x", 600)
                    sent += 1

            nursery.start_soon(tell)
            await trio.testing.wait_all_tasks_blocked()
            assert sent == 4
            gate.set()
            await trio.testing.wait_all_tasks_blocked()
            assert (sent, heard) == (10, 10)

    run(main)


async def _count_to(_: Attested, payload: bytes, sink: Sink) -> None:
    for number in range(int(payload)):
        await sink.send(b"%d" % number)
    if payload == b"13":
        raise PolicyDenied("thirteen")


async def _read(pair: Pair, reader: Links, payload: bytes, into: list[bytes], deadline_s: float = 60) -> None:
    other = pair.b if reader is pair.a else pair.a
    async with reader.stream(other.peer_id, payload, deadline_s) as items:
        async for item in items:
            into.append(item)


def test_a_stream_brings_all_its_items_in_order() -> None:
    async def main() -> None:
        async with linked() as pair:
            pair.b.on_stream(_count_to)
            for count in (0, 1, 64, 1000):
                async with pair.a.stream(pair.b.peer_id, b"%d" % count, 60) as items:
                    assert [int(item) async for item in items] == list(range(count))
            # Why it ends early comes after what had come.
            seen: list[bytes] = []
            with pytest.raises(PeerRefused, match="thirteen"):
                await _read(pair, pair.a, b"13", seen)
            assert len(seen) == 13
            # A node that serves none says so.
            with pytest.raises(PeerRefused, match="serves no streams"):
                await _read(pair, pair.b, b"1", seen)

    run(main)


@pytest.mark.invariant("S7")
def test_a_slow_reader_of_a_stream_holds_a_window_and_no_more() -> None:
    item = bytes(10_000)
    limits = LinkLimits(stream_items=16, stream_bytes=100_000)

    async def main() -> None:
        sent = 0

        async def flood(_: Attested, __: bytes, sink: Sink) -> None:
            nonlocal sent
            while True:
                await sink.send(item)
                sent += 1

        async with linked(a_limits=limits) as pair:
            pair.b.on_stream(flood)
            async with pair.a.stream(pair.b.peer_id, b"", 600) as items:
                await trio.testing.wait_all_tasks_blocked()
                assert sent == items.unread == 10, "100,000 bytes"
                for read in range(1, 200):
                    assert await anext(items) == item
                    await trio.testing.wait_all_tasks_blocked()
                    assert items.unread <= 10
                    assert sent <= read + 10
            await trio.testing.wait_all_tasks_blocked()
            there = pair.b.state(pair.a.peer_id)
            assert there is not None
            assert there.serving == 0, "leaving the stream ends the work on it"

    run(main)


async def _read_until_closed(pair: Pair, into: list[bytes]) -> None:
    with pytest.raises(LinkClosed):
        await _read(pair, pair.a, b"link", into)


def test_a_stream_ends_with_its_deadline_its_reader_or_its_link() -> None:
    async def main() -> None:
        ended: list[str] = []

        async def endless(_: Attested, payload: bytes, sink: Sink) -> None:
            try:
                await sink.send(b"first")
                await trio.sleep_forever()
            finally:
                ended.append(payload.decode())

        async with linked() as pair:
            pair.b.on_stream(endless)
            seen: list[bytes] = []
            with pytest.raises(DeadlineExceeded):
                await _read(pair, pair.a, b"deadline", seen, 3)
            assert seen == [b"first"]
            async with pair.a.stream(pair.b.peer_id, b"reader", 60) as items:
                assert await anext(items) == b"first"
            await trio.testing.wait_all_tasks_blocked()
            assert ended == ["deadline", "reader"]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read_until_closed, pair, seen)
                await trio.testing.wait_all_tasks_blocked()
                pair.network.kill(pair.a.peer_id, pair.b.peer_id)
            assert seen == [b"first"] * 2
            await trio.testing.wait_all_tasks_blocked()
            assert ended == ["deadline", "reader", "link"]

    run(main)


@pytest.mark.invariant("S7")
def test_streams_of_one_peer_are_few_and_leave_room_for_requests() -> None:
    limits = LinkLimits(session=SessionLimits(max_streams=2), max_handlers=4)

    async def main() -> None:
        async def endless(_: Attested, __: bytes, sink: Sink) -> None:
            await trio.sleep_forever()

        async with linked(limits=limits) as pair, trio.open_nursery() as nursery:
            pair.b.on_stream(endless)

            async def read() -> None:
                async with pair.a.stream(pair.b.peer_id, b"", 600) as items:
                    await anext(items)

            for _ in range(2):
                nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Busy, match="2 streams of yours"):
                await read()
            assert await pair.ask(b"request") == b"request"
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("R4")
def test_a_flood_of_work_does_not_block_control() -> None:
    limits = LinkLimits(session=SessionLimits(max_outstanding=8), max_handlers=4)

    async def main() -> None:
        slow = Slow()
        async with linked(slow, limits=limits) as pair, trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(pair.ask, b"%d" % number, 600)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(1):
                for _ in range(50):
                    answer = await pair.a.request(pair.b.peer_id, b"quick", 5, priority=Priority.CONTROL)
                    assert answer == b"quick"
            assert len(slow.begun) == 4
            slow.gate.set()

    run(main)


@pytest.mark.invariant("R4")
def test_a_flood_of_control_does_not_block_work() -> None:
    limits = LinkLimits(control=Window(8, 1000), max_control_handlers=2)

    async def main() -> None:
        slow = Slow()
        async with linked(slow, limits=limits) as pair, trio.open_nursery() as nursery:

            async def ask_control() -> None:
                await pair.a.request(pair.b.peer_id, b"slow", 600, priority=Priority.CONTROL)

            for _ in range(50):
                nursery.start_soon(ask_control)
            await trio.testing.wait_all_tasks_blocked()
            assert len(slow.begun) == 2
            assert await pair.ask(b"quick") == b"quick"
            slow.gate.set()

    run(main)


def test_there_are_no_calls_of_the_class_bulk() -> None:
    async def main() -> None:
        async with linked() as pair:
            with pytest.raises(PeerUnreachable, match="open a tunnel"):
                await pair.a.request(pair.b.peer_id, b"", 5, priority=Priority.BULK)

    run(main)


def test_calls_that_are_too_large_are_refused_before_they_wait() -> None:
    limits = LinkLimits(session=SessionLimits(max_payload=1000))

    async def main() -> None:
        async with linked(a_limits=limits, limits=limits) as pair:
            with pytest.raises(FrameTooLarge):
                await pair.ask(bytes(1001))
            with pytest.raises(FrameTooLarge):
                await pair.a.notify(pair.b.peer_id, bytes(1001), 5)
            with pytest.raises(FrameTooLarge):
                async with pair.a.stream(pair.b.peer_id, bytes(1001), 5):
                    pass
            assert await pair.ask(bytes(1000)) == bytes(1000)

    run(main)


def test_requests_are_worked_on_side_by_side_when_they_wait_and_in_order() -> None:
    """Five that wait for each other all get begun; those that do not wait need one task for all of them."""

    async def main() -> None:
        together = trio.Event()
        begun = 0
        tasks: set[trio.lowlevel.Task] = set()

        async def meet(_: Attested, payload: bytes) -> bytes:
            nonlocal begun
            tasks.add(trio.lowlevel.current_task())
            if payload == b"alone":
                return payload
            begun += 1
            if begun == 5:
                together.set()
            await together.wait()
            return payload

        async with linked(meet) as pair:
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(pair.ask, b"together", 60)
            assert begun == 5
            tasks.clear()
            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(pair.ask, b"alone", 60)
            assert len(tasks) <= 2

    run(main)


@pytest.mark.invariant("S7")
def test_tasks_that_nobody_needs_go_away() -> None:
    async def main() -> None:
        slow = Slow()
        async with linked(slow) as pair:

            def tasks() -> int:
                return sum(link._pool.tasks for link in pair.b._doors.links(pair.a.peer_id))

            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(pair.ask, b"%d" % number, 600)
                await trio.testing.wait_all_tasks_blocked()
                assert 100 <= tasks() <= 101
                slow.gate.set()
            await trio.sleep(10)
            assert tasks() <= 4
            assert await pair.ask(b"quick") == b"quick"

    run(main)


@pytest.mark.invariant("S7")
def test_memory_is_flat_over_many_requests() -> None:
    async def main() -> None:
        async def hear(_: Attested, __: bytes) -> None:
            return

        async with linked() as pair:
            pair.b.on_stream(_count_to)
            pair.b.on_notice(hear)

            async def some() -> None:
                for _ in range(25):
                    assert await pair.ask(b"x" * 100, 30) == b"x" * 100
                    await pair.a.notify(pair.b.peer_id, b"note", 30)
                    async with pair.a.stream(pair.b.peer_id, b"3", 30) as items:
                        await anext(items)
                    with trio.move_on_after(0):
                        await pair.ask(b"cancelled")

            async def work(count: int) -> None:
                for _ in range(count):
                    async with trio.open_nursery() as nursery:
                        for _ in range(8):
                            nursery.start_soon(some)

            tracemalloc.start()
            try:
                await work(2)
                gc.collect()
                before, _ = tracemalloc.get_traced_memory()
                await work(4)
                gc.collect()
                after, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert after - before < 100 * 800, "3,200 calls: a leak of 25 bytes each would show"

    run(main)


def test_an_echo_of_every_size_up_to_the_limit() -> None:
    async def main() -> None:
        async with linked(echo) as pair:
            for size in (0, 1, 31 * 1024, 32 * 1024, 70_000, 1_000_000, 4 * 1024 * 1024):
                payload = bytes(size)
                assert await pair.ask(payload, 60) == payload

    run(main)


def test_a_stream_that_sends_at_once_is_used_so_and_nothing_is_lost_when_it_has_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[bool] = []

    def send_nowait(stream: MemoryStream, data: bytes) -> bool:
        pipe = stream._out
        taken.append(not (pipe.blocked or pipe.broken or pipe.ended) and len(pipe.data) + len(data) <= 2000)
        if taken[-1]:
            pipe.data += data
            pipe.lot.unpark_all()
        return taken[-1]

    monkeypatch.setattr(MemoryStream, "send_nowait", send_nowait, raising=False)

    async def main() -> None:
        async with linked() as pair:
            for number in range(20):
                payload = b"%d" % number * (300 * (number % 5))
                assert await pair.ask(payload) == payload
            assert set(taken) == {False, True}
            answers: list[int] = []

            async def ask(number: int) -> None:
                answers.append(int(await pair.ask(b"%d" % number, 600)))

            pair.network.partition(pair.a.peer_id, pair.b.peer_id)
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(ask, number)
                await trio.testing.wait_all_tasks_blocked()
                assert taken[-1] is False
                pair.network.heal(pair.a.peer_id, pair.b.peer_id)
            assert sorted(answers) == list(range(50))

    run(main)
