"""The service on a memory network: sessions, slow and hostile peers, and what a broken link loses (nothing)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio
import trio.testing

from comity.errors import FrameTooLarge, LinkClosed, StorageError, UnexpectedMessage
from comity.signing import PrivateKey, peer_id_bytes
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.discovery.pubsub import PubSubSettings, Received, Verdict
from comity_node.links import Links
from comity_node.protocol.gossip import Action
from comity_node.protocol.gossip_message import sign_message, varint
from comity_node.protocol.gossip_params import GossipLimits, GossipParams
from comity_node.protocol.gossip_rpc import MESHSUB, Rpc, RpcReader, encode_frame
from comity_node.transport.base import ByteStream, Priority
from comity_node.transport.memory import MemoryNetwork
from kit.gossiping import TOPIC, Gossiper, link, link_all

Consortium = Callable[..., tuple[TrustStore, dict[str, NodeIdentity]]]


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def keys(count: int) -> list[PrivateKey]:
    return [PrivateKey(bytes([number + 1]) * 32) for number in range(count)]


def test_what_one_publishes_all_who_subscribe_are_handed_once() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        nodes = [Gossiper(network, key) for key in keys(8)]
        async with trio.open_nursery() as nursery:
            for node in nodes:
                await node.start(nursery)
                node.listen()
            link_all(nodes)
            await trio.sleep(3)
            assert await nodes[0].pubsub.publish(TOPIC, b"hello") == 7
            await trio.sleep(3)
            for node in nodes[1:]:
                assert [(one.topic, one.data, one.author) for one in node.got] == [(TOPIC, b"hello", nodes[0].peer_id)]
            assert nodes[0].got == []
            assert nodes[1].pubsub.counters()["gossip.accept"] == 1
            assert nodes[1].pubsub.counters()["gossip.size.peers"] == 7
            nursery.cancel_scope.cancel()

    run(main)


def test_a_message_goes_through_a_node_in_the_middle_but_only_if_that_accepts_it() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        left, middle, right = nodes = [Gossiper(network, key) for key in keys(3)]
        async with trio.open_nursery() as nursery:
            for node in nodes:
                await node.start(nursery)
                node.listen()
            link(left, middle)
            link(middle, right)
            await trio.sleep(3)
            await left.pubsub.publish(TOPIC, b"one")
            await trio.sleep(3)
            assert [(one.data, one.author, one.source) for one in right.got] == [(b"one", left.peer_id, middle.peer_id)]
            middle.verdict = Verdict.REJECT
            await left.pubsub.publish(TOPIC, b"two")
            await trio.sleep(5)
            assert len(right.got) == 1
            score = middle.pubsub.router.score(peer_id_bytes(left.key.public_key), 0)
            assert score < 0, "and it is held against who sent it"
            nursery.cancel_scope.cancel()

    run(main)


def test_our_streams_are_control_and_not_for_strangers() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a, b = (Gossiper(network, key) for key in keys(2))
        opened: list[Priority] = []
        original = a.transport.open_stream

        async def noted(
            peer_id: str, addresses: object, protocol: str, *, priority: Priority = Priority.WORK
        ) -> ByteStream:
            opened.append(priority)
            assert protocol == MESHSUB == "/meshsub/1.1.0"
            return await original(peer_id, (), protocol, priority=priority)

        a.transport.open_stream = noted  # type: ignore[method-assign]
        _, strangers = a.transport._handlers[MESHSUB]
        assert not strangers
        async with trio.open_nursery() as nursery:
            for node in (a, b):
                await node.start(nursery)
            link(a, b)
            await trio.sleep(5)
            assert opened == [Priority.CONTROL]
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("R3")
def test_a_link_that_breaks_loses_nothing() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a, b = (Gossiper(network, key) for key in keys(2))
        async with trio.open_nursery() as nursery:
            for node in (a, b):
                await node.start(nursery)
                node.listen()
            link(a, b)
            await trio.sleep(3)
            network.partition(a.peer_id, b.peer_id)
            for number in range(20):
                await a.pubsub.publish(TOPIC, b"%d" % number)
            await trio.sleep(2)
            a.links.down(b.peer_id)
            b.links.down(a.peer_id)
            network.kill(a.peer_id, b.peer_id)
            await trio.sleep(30)
            assert b.got == []
            network.heal(a.peer_id, b.peer_id)
            link(a, b)
            await trio.sleep(10)
            assert sorted(int(one.data) for one in b.got) == list(range(20))
            nursery.cancel_scope.cancel()

    run(main)


def test_sessions_begin_anew_when_streams_break_and_move_to_a_better_path() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a, b = (Gossiper(network, key) for key in keys(2))
        async with trio.open_nursery() as nursery:
            for node in (a, b):
                await node.start(nursery)
                node.listen()
            link(a, b)
            for number in range(5):
                await trio.sleep(40)
                if number % 2:
                    network.kill(a.peer_id, b.peer_id)
                else:
                    a.transport.better_path(b.peer_id)
                await trio.sleep(5)
                await a.pubsub.publish(TOPIC, b"%d" % number)
                await trio.sleep(3)
                assert len(b.got) == number + 1
            nursery.cancel_scope.cancel()

    run(main)


def test_who_comes_later_is_told_what_there_was() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a, b = (Gossiper(network, key) for key in keys(2))
        async with trio.open_nursery() as nursery:
            await a.start(nursery)
            a.listen()
            assert await a.pubsub.publish(TOPIC, b"early") == 0
            await trio.sleep(60)
            await b.start(nursery)
            b.listen()
            link(a, b)
            await trio.sleep(5)
            assert [one.data for one in b.got] == [b"early"]
            b.pubsub.unsubscribe(TOPIC)
            await trio.sleep(1)
            assert await a.pubsub.publish(TOPIC, b"late") == 0
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("S7")
@pytest.mark.invariant("R4")
def test_a_peer_that_does_not_read_costs_its_queue_and_gets_what_it_missed_when_it_does() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        limits = replace(GossipLimits(), iwant_bytes=100_000)
        settings = PubSubSettings(queue_bytes=200_000, gossip=GossipParams(limits=limits))
        a, b = (Gossiper(network, key, settings) for key in keys(2))
        async with trio.open_nursery() as nursery:
            for node in (a, b):
                await node.start(nursery)
                node.listen()
            link(a, b)
            await trio.sleep(3)
            network.partition(a.peer_id, b.peer_id)
            for number in range(60):
                await a.pubsub.publish(TOPIC, b"%03d" % number + bytes(30_000))
            [session] = a.pubsub._sessions.values()
            assert session.queue.bytes <= 200_000
            network.heal(a.peer_id, b.peer_id)
            await trio.sleep(40)
            assert sorted(int(one.data[:3]) for one in b.got) == list(range(60))
            assert a.pubsub.counters()["gossip.dropped"] > 40
            assert b.pubsub.router.score(peer_id_bytes(a.key.public_key), 0) > 0, "nobody has broken a promise"
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("R4")
def test_publishing_waits_where_others_would_take_it_for_a_flood() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a, b = (Gossiper(network, key) for key in keys(2))
        async with trio.open_nursery() as nursery:
            for node in (a, b):
                await node.start(nursery)
                node.listen()
            link(a, b)
            await trio.sleep(3)
            began = trio.current_time()
            for number in range(200):
                await a.pubsub.publish(TOPIC, b"%d" % number)
            assert trio.current_time() - began == pytest.approx(160 / 4, abs=1)
            await trio.sleep(3)
            assert len(b.got) == 200
            assert "gossip.author_over_rate" not in b.pubsub.counters()
            nursery.cancel_scope.cancel()

    run(main)


async def _hostile(network: MemoryNetwork, key: PrivateKey, victim: str, nursery: trio.Nursery) -> ByteStream:
    """A stream to a victim, from a peer of which nothing is read."""
    transport = network.transport(key.peer_id)

    async def swallow(stream: ByteStream) -> None:
        while await stream.receive():
            pass

    transport.serve(MESHSUB, swallow)
    await nursery.start(transport.run)
    return await transport.open_stream(victim, (), MESHSUB)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    "bad", [varint(2**30), b"\xff" * 12, b"\x03\xff\xff\xff"], ids=["gigabyte", "no length", "no RPC"]
)
def test_a_stream_that_breaks_the_protocol_is_reset_and_counted(bad: bytes) -> None:
    async def main() -> None:
        network = MemoryNetwork()
        victim, evil = Gossiper(network, keys(1)[0]), PrivateKey(bytes([9]) * 32)
        async with trio.open_nursery() as nursery:
            await victim.start(nursery)
            victim.listen()
            for _ in range(8):
                if _ == 0:
                    stream = await _hostile(network, evil, victim.peer_id, nursery)
                else:
                    stream = await network._nodes[evil.peer_id].open_stream(victim.peer_id, (), MESHSUB)
                await stream.send(encode_frame(Rpc(subscriptions=((TOPIC, True),))) + bad)
                with pytest.raises(LinkClosed):
                    await stream.receive()
                await trio.testing.wait_all_tasks_blocked()
            assert victim.pubsub.router.sizes()["peers"] == 0
            victim.pubsub.router.add_peer(peer_id_bytes(evil.public_key), 0, outbound=False)
            score = victim.pubsub.router.score(peer_id_bytes(evil.public_key), 0)
            assert score < GossipParams().score.graylist_threshold, "eight streams of it, however often it comes anew"
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("S7")
def test_a_peer_that_sends_100_mb_is_read_at_1_mib_a_second() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        victim, evil = Gossiper(network, keys(1)[0]), PrivateKey(bytes([9]) * 32)
        sent = 0
        async with trio.open_nursery() as nursery:
            await victim.start(nursery)
            victim.listen()
            stream = await _hostile(network, evil, victim.peer_id, nursery)
            frame = encode_frame(Rpc(iwant=tuple(b"%060d" % number for number in range(500))))

            async def flood() -> None:
                nonlocal sent
                while True:
                    await stream.send(frame)
                    sent += len(frame)

            nursery.start_soon(flood)
            await trio.sleep(20)
            assert sent <= (4 + 20 + 1) * 1024 * 1024
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.invariant("S7")
def test_a_flood_of_empty_rpcs_does_not_hold_up_the_node() -> None:
    """An RPC of one byte is work, too: 64 KiB of them are taken in turns with everybody else, and at a rate."""

    async def main() -> None:
        network = MemoryNetwork()
        victim, evil = Gossiper(network, keys(1)[0]), PrivateKey(bytes([9]) * 32)
        taken = 0
        receive = victim.pubsub._router.receive

        def counting(peer: bytes, rpc: Rpc, now_ms: int) -> list[Action]:
            nonlocal taken
            taken += 1
            return receive(peer, rpc, now_ms)

        victim.pubsub._router.receive = counting  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            await victim.start(nursery)
            victim.listen()
            stream = await _hostile(network, evil, victim.peer_id, nursery)

            async def flood() -> None:
                while True:
                    await stream.send(bytes(65536))

            nursery.start_soon(flood)
            await trio.sleep(5)
            limits = victim.pubsub._settings
            assert taken <= (limits.receive_burst + 6 * limits.receive_per_s) / 512
            nursery.cancel_scope.cancel()
        assert taken > 1000

    run(main)


@pytest.mark.invariant("S7")
def test_a_flood_of_signed_messages_of_one_member_leaves_the_others_their_gossip() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a, b = nodes = [Gossiper(network, key) for key in keys(2)]
        evil = PrivateKey(bytes([9]) * 32)
        author = peer_id_bytes(evil.public_key)
        async with trio.open_nursery() as nursery:
            for node in nodes:
                await node.start(nursery)
                node.listen()
            link(a, b)
            stream = await _hostile(network, evil, a.peer_id, nursery)
            frames = [
                encode_frame(Rpc(messages=(sign_message(evil, author, TOPIC, b"spam", number),)))
                for number in range(1, 3001)
            ]

            async def flood() -> None:
                for frame in frames:
                    await stream.send(frame)

            nursery.start_soon(flood)
            await trio.sleep(1)
            await b.pubsub.publish(TOPIC, b"news")
            await trio.sleep(5)
            assert b"news" in [one.data for one in a.got]
            assert sum(one.data == b"spam" for one in b.got) <= 50 + 5 * 6
            assert a.pubsub.router.score(author, 0) < GossipParams().score.gossip_threshold
            nursery.cancel_scope.cancel()

    run(main)


def test_a_validator_that_fails_or_sleeps_has_the_message_ignored() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a, b = (Gossiper(network, key) for key in keys(2))
        handled: list[bytes] = []

        async def judge(received: Received) -> Verdict:
            if received.data == b"slow":
                await trio.sleep_forever()
            if received.data == b"disk":
                raise StorageError("the disk is gone")
            return Verdict.ACCEPT

        async def take(received: Received) -> None:
            handled.append(received.data)
            raise StorageError("the disk is gone")

        async with trio.open_nursery() as nursery:
            for node in (a, b):
                await node.start(nursery)
            b.pubsub.subscribe(TOPIC, judge, take)
            with pytest.raises(UnexpectedMessage):
                b.pubsub.subscribe(TOPIC, judge, take)
            link(a, b)
            await trio.sleep(3)
            for data in (b"slow", b"slow", b"slow", b"slow", b"slow", b"disk", b"good", b"fine"):
                await a.pubsub.publish(TOPIC, data)
            await trio.sleep(20)
            assert sorted(handled) == [b"fine", b"good"]
            assert b.pubsub.router.score(peer_id_bytes(a.key.public_key), 0) >= 0
            nursery.cancel_scope.cancel()

    run(main)


def test_what_is_too_large_is_not_published() -> None:
    async def main() -> None:
        node = Gossiper(MemoryNetwork(), keys(1)[0])
        with pytest.raises(FrameTooLarge):
            await node.pubsub.publish(TOPIC, bytes(64 * 1024 + 1))

    run(main)


def test_numbers_grow_over_a_restart() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a, b = (Gossiper(network, key) for key in keys(2))
        short = PubSubSettings(gossip=replace(GossipParams(), seen_ttl_ms=5000, history_length=2))
        b = Gossiper(network, b.key, short)
        async with trio.open_nursery() as nursery:
            await b.start(nursery)
            b.listen()
            for number in range(3):
                async with trio.open_nursery() as inner:
                    a = Gossiper(network, a.key, short)
                    await a.start(inner)
                    link(a, b)
                    await trio.sleep(3)
                    await a.pubsub.publish(TOPIC, b"%d" % number)
                    await trio.sleep(10)
                    inner.cancel_scope.cancel()
                b.links.down(a.peer_id)
            assert [one.data for one in b.got] == [b"0", b"1", b"2"]
            nursery.cancel_scope.cancel()

    run(main)


def test_it_runs_beside_real_links(consortium: Consortium) -> None:
    trust, nodes = consortium("a.example", "b.example")

    async def echo(_: Attested, payload: bytes) -> bytes:
        return payload

    async def main() -> None:
        network = MemoryNetwork()
        gossipers, links = [], []
        for identity in nodes.values():
            gossiper = Gossiper(network, identity.key)
            one = Links(
                gossiper.transport, identity, trust, echo,
                now_ms=lambda: time.time_ns() // 1_000_000, random_bytes=bytes,
            )  # fmt: skip
            gossiper.pubsub._links = one
            gossipers.append(gossiper)
            links.append(one)
        async with trio.open_nursery() as nursery:
            for gossiper, one in zip(gossipers, links, strict=True):
                await nursery.start(one.run)
                await nursery.start(gossiper.pubsub.run)
                gossiper.listen()
            links[0].add_peer(links[1].peer_id, ["/dns4/b.example/tcp/1"])
            await links[0].wait_for(links[1].peer_id, 10)
            await trio.sleep(5)
            for gossiper in gossipers:
                assert await gossiper.pubsub.publish(TOPIC, b"hello") == 1
            await trio.sleep(5)
            assert [len(gossiper.got) for gossiper in gossipers] == [1, 1]
            nursery.cancel_scope.cancel()

    run(main)


def test_frames_on_the_wire_are_those_of_any_gossipsub() -> None:
    """A stock peer sees: its length, our subscriptions, then the message."""

    async def main() -> None:
        network = MemoryNetwork()
        node, other = Gossiper(network, keys(1)[0]), network.transport(PrivateKey(bytes([9]) * 32).peer_id)
        reader, rpcs = RpcReader(GossipParams().limits), list[Rpc]()

        async def read(stream: ByteStream) -> None:
            while data := await stream.receive():
                reader.feed(data)
                while (rpc := reader.next_rpc()) is not None:
                    rpcs.append(rpc)

        other.serve(MESHSUB, read)
        async with trio.open_nursery() as nursery:
            await node.start(nursery)
            await nursery.start(other.run)
            node.listen()
            node.links.up(other.peer_id)
            await trio.sleep(1)
            assert rpcs == [Rpc(subscriptions=((TOPIC, True),))]
            stream = await other.open_stream(node.peer_id, (), MESHSUB)
            await stream.send(encode_frame(Rpc(subscriptions=((TOPIC, True),))))
            await trio.sleep(2)
            assert rpcs[1:] == [Rpc(graft=(TOPIC,))]
            await node.pubsub.publish(TOPIC, b"news")
            await trio.testing.wait_all_tasks_blocked()
            assert [one.data for one in rpcs[-1].messages] == [b"news"]
            nursery.cancel_scope.cancel()

    run(main)
