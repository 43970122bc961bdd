"""A link's streams: their classes, their ends, better connections, dead peers, and peers that lie about them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from comity.errors import LinkClosed, PeerUnreachable
from comity.trust import Attested
from comity_node.links import LinkLimits
from comity_node.links.greeting import Greeter, HelloRefused
from comity_node.links.lane import MESSAGES
from comity_node.links.limits import Window
from comity_node.links.outbound import CLASSES
from comity_node.links.paths import describe_path
from comity_node.protocol.session import Session, SessionLimits
from comity_node.protocol.session_events import Event, GoingAway, HelloReceived, Refused
from comity_node.protocol.session_states import Role, Service
from comity_node.transport.base import ByteStream, ConnectionInfo, Priority
from comity_node.transport.memory import MemoryStream, MemoryTransport
from kit.consortium import consortium
from kit.linked import MERCY, STLUKES, Pair, linked, run


def test_both_ends_schedule_a_stream_by_its_class() -> None:
    async def main() -> None:
        async with linked() as pair:
            for node, peer in ((pair.a, pair.b), (pair.b, pair.a)):
                for lane, priority in zip(node._table.link(peer.peer_id).lanes, CLASSES, strict=True):
                    stream = lane.channel.stream
                    assert isinstance(stream, MemoryStream)
                    assert stream.priority is priority
                accepted = {link.priority: link.channel.stream for link in node._doors.links(peer.peer_id)}
                assert set(accepted) == {Priority.CONTROL, Priority.WORK}
                for priority, stream in accepted.items():
                    assert isinstance(stream, MemoryStream)
                    assert stream.priority is priority

    run(main)


@pytest.mark.parametrize("priority", list(Priority))
def test_both_ends_schedule_a_tunnel_by_its_class(priority: Priority) -> None:
    async def main() -> None:
        served: list[ByteStream] = []

        async def serve(_: Attested, __: str, stream: ByteStream) -> None:
            served.append(stream)
            await stream.send(await stream.receive())
            await stream.aclose()

        async with linked() as pair:
            pair.b.on_tunnel(serve)
            tunnel = await pair.a.open_tunnel(pair.b.peer_id, "x", priority=priority)
            await tunnel.send(b"hello")
            assert await tunnel.receive() == b"hello"
            for end in (tunnel, *served):
                assert end._stream.priority is priority  # type: ignore[attr-defined]
            await tunnel.aclose()

    run(main)


class Peer:
    """A member that speaks the protocol by hand, to node b."""

    def __init__(self, pair: Pair, transport: MemoryTransport) -> None:
        self.pair, self.transport = pair, transport
        self.greeter = pair.a._greeter
        self.session = Session(Role.OPENER, Service.MESSAGES)

    async def open(self, hello: bytes) -> ByteStream:
        self.stream = await self.transport.open_stream(self.pair.b.peer_id, (), MESSAGES)
        self.session = Session(Role.OPENER, Service.MESSAGES)
        self.session.greet(hello)
        await self.stream.send(self.session.data_to_send())
        return self.stream

    async def greeted(self, priority: Priority) -> ByteStream:
        stream = await self.open(self.greeter.hello(priority))
        assert [type(event) for event in await self.hear()] == [HelloReceived]
        self.session.accept()
        await stream.send(self.session.data_to_send())
        await trio.testing.wait_all_tasks_blocked()
        return stream

    async def hear(self) -> list[Event]:
        while True:
            data = await self.stream.receive()
            if not data:
                raise LinkClosed("ended")
            if events := self.session.receive(data):
                return events


@pytest.mark.invariant("S7")
def test_a_stream_of_calls_is_of_a_class_that_has_calls() -> None:
    async def main() -> None:
        async with linked() as pair:
            peer = Peer(pair, pair.a_transport)
            await peer.open(pair.a._greeter.hello(Priority.BULK))
            [event] = await peer.hear()
            assert isinstance(event, Refused)
            assert "class 3 has no place" in event.reason

    run(main)


def test_an_acceptor_that_takes_no_call_is_refused() -> None:
    world = consortium(MERCY, STLUKES)
    greeters = [
        Greeter(node, world.trust, list, lambda: world.trust.bundle.issued_ms + 2000, allow_private=True)
        for node in world.nodes.values()
    ]
    mercy = world.nodes[MERCY].peer_id
    for window in (Window(), Window(0, 5), Window(5, 0)):
        with pytest.raises(HelloRefused, match="no call"):
            greeters[1].judge(greeters[0].hello(Priority.WORK, window), mercy, {Priority.WORK}, needs_window=True)
    greeting = greeters[1].judge(
        greeters[0].hello(Priority.WORK, Window(7, 8)), mercy, {Priority.WORK}, needs_window=True
    )
    assert (greeting.priority, greeting.window) == (Priority.WORK, Window(7, 8))


@pytest.mark.invariant("S7")
def test_streams_of_a_class_are_two_and_the_newest_win() -> None:
    async def main() -> None:
        async with linked() as pair:
            peers = [Peer(pair, pair.a_transport) for _ in range(5)]
            for peer in peers:
                await peer.greeted(Priority.WORK)
            await trio.testing.wait_all_tasks_blocked()
            links = [link for link in pair.b._doors.links(pair.a.peer_id) if link.priority is Priority.WORK]
            assert len(links) == 2
            for peer in peers[:3]:
                with pytest.raises(LinkClosed):
                    await peer.hear()
            peers[-1].session.request(b"still served", 1000)
            await peers[-1].stream.send(peers[-1].session.data_to_send())
            [event] = await peers[-1].hear()
            assert event[1] == b"still served"  # type: ignore[index]

    run(main)


@pytest.mark.invariant("S7")
def test_a_peer_that_reconnects_again_and_again_gets_no_more_workers_for_it() -> None:
    """Work that was begun is finished though its stream is gone; it keeps its place among the peer's workers."""
    limits = LinkLimits(max_handlers=3, session=SessionLimits(max_outstanding=8))

    async def main() -> None:
        gate, begun = trio.Event(), 0

        async def slow(_: Attested, payload: bytes) -> bytes:
            nonlocal begun
            begun += 1
            await gate.wait()
            return payload

        async with linked(slow, limits=limits) as pair:
            for _ in range(6):
                peer = Peer(pair, pair.a_transport)
                await peer.greeted(Priority.WORK)
                for _ in range(8):
                    peer.session.request(b"", 60_000)
                await peer.stream.send(peer.session.data_to_send())
                await trio.testing.wait_all_tasks_blocked()
                peer.stream.reset()
                await trio.testing.wait_all_tasks_blocked()
            there = pair.b.state(pair.a.peer_id)
            assert there is not None
            assert begun == there.serving == 3, "what nobody had begun is forgotten with its stream"
            gate.set()
            await trio.testing.wait_all_tasks_blocked()
            assert await pair.ask(b"x") == b"x"

    run(main)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    "flood", [b"\x00\x00\x00\x09\x10" + bytes(8), b"\x00\x00\x00\x09\x11" + bytes(7) + b"\x01", b"\xff\xff\xff\xff"]
)
def test_a_hostile_member_loses_its_stream_and_is_told_why(flood: bytes) -> None:
    async def main() -> None:
        async with linked() as pair:
            peer = Peer(pair, pair.a_transport)
            await peer.greeted(Priority.WORK)
            await peer.stream.send(flood * 20)
            [event] = await peer.hear()
            assert isinstance(event, GoingAway)
            assert event.code in ("unexpected_message", "protocol_error", "frame_too_large")
            assert await pair.ask(b"x") == b"x"

    run(main)


@pytest.mark.invariant("S7")
def test_a_peer_that_reads_no_answers_stops_being_read() -> None:
    limits = LinkLimits(send_buffer=10_000)

    async def main() -> None:
        async def loud(_: Attested, __: bytes) -> bytes:
            return bytes(5000)

        async with linked(loud, limits=limits) as pair:
            peer = Peer(pair, pair.a_transport)
            await peer.greeted(Priority.WORK)
            asked, stuck = 0, False
            while not stuck:
                peer.session.request(bytes(1000), 60_000)
                asked += 1
                with trio.move_on_after(1) as scope:
                    await peer.stream.send(peer.session.data_to_send())
                stuck = scope.cancelled_caught
            assert 10 < asked < 400, "what the pipes hold, and a buffer"
            links = [link for link in pair.b._doors.links(pair.a.peer_id) if link.priority is Priority.WORK]
            assert links[-1].channel.session.pending_bytes < 20_000
            assert await pair.ask(b"") == bytes(5000), "the other stream is as it was"

    run(main)


def test_a_link_moves_to_a_better_connection_and_loses_nothing() -> None:
    async def main() -> None:
        gate = trio.Event()

        async def slow(_: Attested, payload: bytes) -> bytes:
            if payload == b"under way":
                await gate.wait()
            return payload

        async with linked(slow) as pair, trio.open_nursery() as nursery:
            answers: list[bytes] = []

            async def ask() -> None:
                answers.append(await pair.ask(b"under way", 60))

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            old = pair.a._table.link(pair.b.peer_id).lanes
            pair.a_transport.better_path(pair.b.peer_id)
            pair.a_transport.better_path("12D3KooWnobody")
            await trio.testing.wait_all_tasks_blocked()
            new = pair.a._table.link(pair.b.peer_id).lanes
            assert not set(old) & set(new)
            assert await pair.ask(b"at once") == b"at once"
            gate.set()
            await trio.sleep(1)
            assert answers == [b"under way"]
            state, there = pair.a.state(pair.b.peer_id), pair.b.state(pair.a.peer_id)
            assert state is not None
            assert there is not None
            assert (state.state, state.reconnects) == ("connected", 0)
            assert len(pair.b._doors.links(pair.a.peer_id)) == 2, "the old streams have been closed"

    run(main)


def test_a_better_connection_that_fails_changes_nothing() -> None:
    async def main() -> None:
        async with linked() as pair:
            before = pair.a._table.link(pair.b.peer_id).lanes
            reachable = pair.network.reachable
            pair.network.reachable = lambda *_: None  # type: ignore[method-assign]
            pair.a_transport.better_path(pair.b.peer_id)
            await trio.testing.wait_all_tasks_blocked()
            pair.network.reachable = reachable  # type: ignore[method-assign]
            assert pair.a._table.link(pair.b.peer_id).lanes == before
            assert await pair.ask(b"x") == b"x"
            pair.a_transport.better_path(pair.b.peer_id)
            await trio.testing.wait_all_tasks_blocked()
            assert pair.a._table.link(pair.b.peer_id).lanes != before

    run(main)


@pytest.mark.invariant("R3")
def test_a_frozen_peer_is_found_in_time_and_what_was_asked_fails_at_once() -> None:
    limits = LinkLimits(ping_every_s=1, dead_after_s=4)

    async def main() -> None:
        async def never(_: Attested, __: bytes) -> bytes:
            await trio.sleep_forever()

        async with linked(never, a_limits=limits) as pair:
            await trio.sleep(10.7)
            failed: list[float] = []

            async def ask() -> None:
                with pytest.raises(LinkClosed):
                    await pair.ask(b"", 600)
                failed.append(trio.current_time() - began)
                with pytest.raises(PeerUnreachable, match="no sign of life"):
                    await pair.ask(b"", 600)

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                began = trio.current_time()
                pair.network.partition(pair.a.peer_id, pair.b.peer_id)
            assert len(failed) == 3
            assert 3 <= min(failed) <= max(failed) <= limits.dead_after_s

    run(main)


@pytest.mark.invariant("R3")
def test_a_peer_that_talks_but_answers_no_ping_is_gone_after_a_while() -> None:
    limits = LinkLimits(ping_every_s=1, dead_after_s=4)

    async def main() -> None:
        async with linked(a_limits=limits) as pair, trio.open_nursery() as nursery:
            link = pair.a._table.link(pair.b.peer_id)
            # What a says does not reach b; what b says does.
            for lane in link.lanes:
                lane.channel.stream._out.blocked = True  # type: ignore[attr-defined]

            async def talk() -> None:
                while True:
                    link.peer.heard()
                    await trio.sleep(1)

            nursery.start_soon(talk)
            began = trio.current_time()
            version = pair.a.changes.version
            with trio.fail_after(60):
                await pair.a.changes.wait(version)
            state = pair.a.state(pair.b.peer_id)
            assert state is not None
            assert (state.state, state.reason) == ("down", "no sign of life for 4 s")
            assert 10 <= trio.current_time() - began <= 13
            nursery.cancel_scope.cancel()

    run(main)


def test_a_tunnel_that_brings_something_is_a_sign_of_life() -> None:
    async def main() -> None:
        async def serve(_: Attested, __: str, stream: ByteStream) -> None:
            while data := await stream.receive():
                await stream.send(data)

        async with linked() as pair:
            pair.b.on_tunnel(serve)
            tunnel = await pair.a.open_tunnel(pair.b.peer_id, "x")
            await trio.sleep(0.5)
            await tunnel.send(b"x")
            await tunnel.receive()
            for node, other in ((pair.a, pair.b), (pair.b, pair.a)):
                assert node._table.link(other.peer_id).peer.heard_at == trio.current_time()
            await tunnel.aclose()

    run(main)


@pytest.mark.invariant("R5")
def test_both_classes_drain_when_the_peer_goes_away() -> None:
    """CONTROL has nothing under way and ends at once; what is under way as WORK is still answered."""

    async def main() -> None:
        gate = trio.Event()

        async def slow(_: Attested, payload: bytes) -> bytes:
            await gate.wait()
            return payload

        async with linked(slow) as pair, trio.open_nursery() as nursery:
            answers: list[bytes] = []

            async def ask() -> None:
                answers.append(await pair.ask(b"under way", 60))

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(pair.b.drain, 30)
            await trio.testing.wait_all_tasks_blocked()
            for priority in CLASSES:
                with pytest.raises(LinkClosed):
                    await pair.a.request(pair.b.peer_id, b"late", 5, priority=priority)
            gate.set()
            await trio.testing.wait_all_tasks_blocked()
            assert answers == [b"under way"]

    run(main)


def test_the_state_of_a_link_says_what_is_going_on() -> None:
    async def main() -> None:
        async with linked() as pair:
            await pair.ask(b"x" * 1000)
            await trio.sleep(4)  # a ping comes back
            for node, other in ((pair.a, pair.b), (pair.b, pair.a)):
                state = node.state(other.peer_id)
                assert state is not None
                assert state.path == "direct"
                assert (state.in_flight, state.waiting, state.serving, state.queued_bytes) == (0, 0, 0, 0)
                assert (state.messages_sent, state.messages_received) == (1, 1)
                # Greetings on four streams, the request and its answer, and pings on two.
                assert 10 <= state.frames_sent <= 20
                assert 10 <= state.frames_received <= 20
                assert state.bytes_sent > 1000
            before = pair.a.state(pair.b.peer_id)
            pair.network.partition(pair.a.peer_id, pair.b.peer_id)
            await trio.sleep(30)
            after = pair.a.state(pair.b.peer_id)
            assert before is not None
            assert after is not None
            assert after.path == ""
            assert after.frames_received >= before.frames_received, "counters never go back"

    run(main)


def test_paths_in_words() -> None:
    info = ConnectionInfo("peer", "/ip4/192.0.2.1/tcp/1", relay="", inbound=True, age_s=1)
    assert describe_path(None, str) == ""
    assert describe_path(info, str) == "direct"
    relayed = replace(info, relay="12D3KooWrelay")
    assert describe_path(relayed, lambda _: "hope.example") == "relayed via hope.example"
    assert describe_path(relayed, lambda _: "") == "relayed via 12D3KooWrelay"
