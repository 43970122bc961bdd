"""What one hostile peer can cost a node by gossiping, with the figures."""

from __future__ import annotations

import random
import time
import tracemalloc
from dataclasses import replace

import pytest

from comity.errors import FrameTooLarge
from comity.signing import PrivateKey, peer_id_bytes
from comity_node.p2p.v1.pubsub_pb2 import PubSubMessage, PubSubRpc
from comity_node.protocol.gossip import GossipRouter, Send, Validate, Verdict
from comity_node.protocol.gossip_message import GossipMessage, sign_message
from comity_node.protocol.gossip_params import GossipLimits, GossipParams
from comity_node.protocol.gossip_rpc import IHave, Prune, Rpc, RpcReader, decode_rpc, encode_rpc
from kit.gossipnet import TOPIC, unsigned

pytestmark = pytest.mark.invariant("S7")

OWN = b"own"
NOW = 1_000_000
EVIL, GOOD = b"evil", b"good"


class Victim:
    """A router with one hostile peer and some honest ones."""

    def __init__(self, *, verified: bool = False, limits: GossipLimits | None = None) -> None:
        params = GossipParams(limits=limits or GossipLimits())
        self.params, self.now_ms = params, NOW
        check = {} if verified else {"verify": lambda _: None}
        self.router = GossipRouter(OWN, random.Random(3), params, **check)
        self.router.subscribe(TOPIC, NOW)
        for peer in (EVIL, GOOD, b"p1", b"p2", b"p3"):
            self.router.add_peer(peer, NOW, outbound=peer == GOOD)
            self.router.receive(peer, Rpc(subscriptions=((TOPIC, True),)), NOW)
        self.router.heartbeat(NOW)

    def evil(self, rpc: Rpc) -> tuple[int, int]:
        """What the hostile peer makes the node send back to it, and validate."""
        actions = self.router.receive(EVIL, rpc, self.now_ms)
        for action in actions:
            if isinstance(action, Validate):
                self.router.judge(action.message.id, Verdict.IGNORE)
        return sum(isinstance(one, Send) for one in actions), sum(isinstance(one, Validate) for one in actions)

    def still_works(self) -> None:
        """An honest peer's message gets through."""
        message = unsigned(b"honest", 10**6 + self.now_ms)
        actions = self.router.receive(GOOD, Rpc(messages=(message,)), self.now_ms)
        assert [type(one) for one in actions] == [Validate]
        self.router.judge(message.id, Verdict.ACCEPT)

    def pass_time(self, ms: int) -> None:
        self.now_ms += ms
        self.router.heartbeat(self.now_ms)

    @property
    def is_graylisted(self) -> bool:
        return self.router.score(EVIL, self.now_ms) < self.params.score.graylist_threshold


def test_a_flood_of_100_000_messages_of_many_authors_is_validated_at_100_a_second() -> None:
    victim = Victim()
    validated = 0
    for number in range(1000):  # 100,000 in ten seconds
        messages = tuple(unsigned(b"a%d" % (number * 100 + one), 1) for one in range(100))
        validated += victim.evil(Rpc(messages=messages))[1]
        if number % 100 == 99:
            victim.pass_time(1000)
    assert validated <= 500 + 10 * 100
    assert victim.router.sizes()["seen"] <= 1500
    victim.still_works()


def test_an_author_that_floods_gets_5_a_second_through_whoever_brings_them() -> None:
    victim = Victim()
    validated = 0
    for number in range(20_000):
        message = unsigned(b"loud", number + 1)
        for action in victim.router.receive(
            (GOOD, b"p1", b"p2", b"p3")[number % 4], Rpc(messages=(message,)), victim.now_ms
        ):
            assert isinstance(action, Validate)
            validated += 1
            victim.router.judge(message.id, Verdict.ACCEPT)
        if number % 500 == 499:
            victim.pass_time(1000)
    assert 50 <= validated <= 50 + 40 * 5
    assert min(victim.router.score(peer, victim.now_ms) for peer in (GOOD, b"p1")) >= 0, "it is not the bringers' fault"
    victim.still_works()


def test_an_author_that_floods_its_own_peers_is_graylisted() -> None:
    victim = Victim()
    for number in range(200):
        victim.evil(Rpc(messages=(unsigned(EVIL, number + 1),)))
    assert victim.is_graylisted
    victim.still_works()


def test_ihave_spam_of_5_million_ids_leads_to_512_requests_a_heartbeat_and_to_the_graylist() -> None:
    victim = Victim()
    asked = 0
    for beat in range(20):
        for number in range(500):
            ids = tuple(b"%d-%d-%d" % (beat, number, one) for one in range(512))
            actions = victim.router.receive(EVIL, Rpc(ihave=(IHave(TOPIC, ids),)), victim.now_ms)
            asked += sum(len(one.rpc.iwant) for one in actions if isinstance(one, Send))
        victim.pass_time(1000)
    assert asked <= 20 * 512
    assert victim.router.counts["promises_broken"] <= 20 * 10
    sizes = victim.router.sizes()
    assert (sizes["promises"], sizes["seen"]) <= (40, 0)
    assert victim.router.score(EVIL, victim.now_ms) < victim.params.score.gossip_threshold
    asked_after = victim.router.receive(EVIL, Rpc(ihave=(IHave(TOPIC, (b"more",)),)), victim.now_ms)
    assert asked_after == []
    victim.still_works()


def test_small_ihaves_that_are_never_kept_lead_to_the_graylist_in_four_seconds() -> None:
    victim = Victim()
    for beat in range(5):
        for number in range(10):
            victim.evil(Rpc(ihave=(IHave(TOPIC, (b"%d-%d" % (beat, number),)),)))
        victim.pass_time(1000)
    assert victim.is_graylisted


def test_a_graft_flood_is_answered_five_times() -> None:
    victim = Victim()
    victim.evil(Rpc(prune=(Prune(TOPIC, 60),)))
    answers = sum(victim.evil(Rpc(graft=(TOPIC,) * 64))[0] for _ in range(10_000))
    assert answers <= 5
    assert victim.is_graylisted
    assert victim.router.sizes()["backoffs"] == 1
    victim.still_works()


def test_grafting_and_pruning_by_turns_leads_to_the_graylist() -> None:
    victim = Victim()
    for _ in range(10):
        victim.evil(Rpc(graft=(TOPIC,)))
        victim.evil(Rpc(prune=(Prune(TOPIC, 1),)))
    assert victim.is_graylisted


def test_an_iwant_flood_gets_each_message_three_times_and_512_kib_a_heartbeat() -> None:
    victim = Victim(limits=replace(GossipLimits(), author_per_s=1e6, author_burst=1e6))
    messages = [unsigned(OWN, number + 1, data=bytes(60_000)) for number in range(60)]
    for message in messages:
        victim.router.publish(message, victim.now_ms)
    everything = Rpc(iwant=tuple(message.id for message in messages))
    first = sum(victim.evil(everything)[0] for _ in range(1000))
    assert first * 60_000 <= 512 * 1024 + 60_000
    total = first
    for _ in range(20):
        victim.pass_time(1000)
        total += sum(victim.evil(everything)[0] for _ in range(100))
    assert total <= 3 * len(messages)
    assert victim.evil(Rpc(iwant=tuple(b"%d" % number for number in range(512))))[0] == 0


def test_forged_authors_are_graylisted_after_five_and_cost_the_author_nothing() -> None:
    victim = Victim(verified=True)
    key = PrivateKey(bytes(32))
    author = peer_id_bytes(key.public_key)
    began = time.perf_counter()
    for number in range(10_000):
        forged = GossipMessage(author, b"lie", (number + 1).to_bytes(8, "big"), TOPIC, bytes(64))
        assert victim.evil(Rpc(messages=(forged,)))[1] == 0
    assert time.perf_counter() - began < 5, "0.1 s on a quiet machine"
    assert victim.router.counts["forged"] == 5
    assert victim.is_graylisted
    assert victim.router.sizes()["authors"] == 0
    honest = sign_message(key, author, TOPIC, b"truth", 1)
    assert victim.router.receive(GOOD, Rpc(messages=(honest,)), NOW) == [Validate(honest, GOOD)]


def test_one_rpc_of_256_forged_messages_costs_five_verifications() -> None:
    victim = Victim(verified=True)
    author = peer_id_bytes(PrivateKey(bytes(32)).public_key)
    forged = tuple(GossipMessage(author, b"lie", bytes([0] * 7 + [one]), TOPIC, bytes(64)) for one in range(256))
    victim.evil(Rpc(messages=forged))
    assert victim.router.counts["forged"] == 5


@pytest.mark.invariant("S5")
def test_a_replayed_number_is_dropped_before_its_signature_is_looked_at() -> None:
    key = PrivateKey(bytes(32))
    author = peer_id_bytes(key.public_key)
    victim = Victim(verified=True)
    old = [sign_message(key, author, TOPIC, b"news", number) for number in range(1, 21)]
    for message in old:
        victim.evil(Rpc(messages=(message,)))
    for _ in range(301):
        victim.pass_time(1000)
    assert victim.router.sizes()["seen"] == 0
    for _ in range(100):
        assert victim.evil(Rpc(messages=tuple(old))) == (0, 0)
    assert victim.router.counts["replayed"] + victim.router.counts["peer_over_rate"] == 2000
    victim_message = sign_message(key, author, TOPIC, b"news", 21)
    assert victim.router.receive(GOOD, Rpc(messages=(victim_message,)), victim.now_ms) != []


def test_a_giant_message_is_refused_and_five_of_them_lead_to_the_graylist() -> None:
    victim = Victim()
    giant = PubSubMessage(author=OWN, data=bytes(64 * 1024 + 1), seqno=bytes(8), topic=TOPIC, signature=bytes(64))
    rpc = decode_rpc(PubSubRpc(publish=[giant]).SerializeToString(), victim.params.limits)
    assert rpc == Rpc(malformed=1)
    for _ in range(5):
        assert victim.evil(rpc) == (0, 0)
    assert victim.is_graylisted


def test_an_rpc_of_a_gigabyte_is_refused_with_256_kib_read() -> None:
    reader = RpcReader(GossipLimits())
    reader.feed(b"\x80\x80\x80\x80\x04")
    tracemalloc.start()
    with pytest.raises(FrameTooLarge):
        reader.next_rpc()
    with pytest.raises(FrameTooLarge):
        decode_rpc(bytes(256 * 1024 + 1), GossipLimits())
    assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    tracemalloc.stop()


def test_the_densest_rpc_of_256_kib_is_read_at_once() -> None:
    wire = PubSubRpc()
    for _ in range(64 * 1024):
        wire.publish.add()
    data = wire.SerializeToString()
    assert len(data) <= 256 * 1024
    began = time.perf_counter()
    rpc = decode_rpc(data, GossipLimits())
    assert rpc.malformed == 256
    assert time.perf_counter() - began < 0.5, "4 ms on a quiet machine"


def test_100_000_topics_of_one_peer_leave_16() -> None:
    victim = Victim()
    for number in range(0, 100_000, 50):
        victim.evil(Rpc(subscriptions=tuple((f"t{number + one}", True) for one in range(50))))
    assert victim.router.sizes()["memberships"] <= 16 + 4
    assert victim.is_graylisted


def test_tables_keep_their_bounds_whatever_comes() -> None:
    limits = replace(
        GossipLimits(), seen=200, authors=50, cache_messages=30, cache_bytes=20_000, validating=20, peer_validating=8,
        promises=10, retained=5, backoffs=10, peers=8, peer_per_s=1e6, peer_burst=1e6,
    )  # fmt: skip
    victim = Victim(limits=limits)
    chance = random.Random(5)
    for step in range(4000):
        peer = b"r%d" % chance.randrange(40)
        if victim.router.sizes()["peers"] < 8:
            victim.router.add_peer(peer, victim.now_ms, outbound=chance.random() < 0.5)
        message = unsigned(b"a%d" % chance.randrange(1000), step + 1, data=bytes(chance.randrange(1, 3000)))
        rpc = Rpc(
            subscriptions=((TOPIC, chance.random() < 0.7), (f"t{step}", True)),
            messages=(message,),
            ihave=(IHave(TOPIC, tuple(b"%d-%d" % (step, one) for one in range(20))),),
            iwant=(message.id,),
            graft=(TOPIC,),
            prune=(Prune(TOPIC, chance.randrange(100)),) if chance.random() < 0.3 else (),
        )
        for action in victim.router.receive(
            peer, decode_rpc(encode_rpc(replace(rpc, messages=())), limits), victim.now_ms
        ):
            assert isinstance(action, Send)
        for action in victim.router.receive(peer, replace(rpc, ihave=(), graft=(), prune=()), victim.now_ms):
            if isinstance(action, Validate) and chance.random() < 0.8:
                verdict = chance.choice((Verdict.ACCEPT, Verdict.ACCEPT, Verdict.REJECT, Verdict.IGNORE))
                victim.router.judge(action.message.id, verdict)
        if chance.random() < 0.2:
            victim.router.remove_peer(peer, victim.now_ms)
        if chance.random() < 0.1:
            victim.pass_time(1000)
        sizes = victim.router.sizes()
        over = {name: size for name, size in sizes.items() if name not in ("topics", "memberships")}
        assert all(size <= getattr(limits, name) for name, size in over.items()), over
        assert sizes["memberships"] <= limits.peers * limits.peer_topics
