"""Limits of gossip and news that no other test would miss."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from comity.card import AgentCard
from comity.errors import Busy, LinkClosed, RevocationInvalid, UnexpectedMessage
from comity.ids import SpiffeId
from comity.revocation import Revocation
from comity.signing import PrivateKey, peer_id_to_bytes
from comity_node.discovery.news import Hint, News
from comity_node.discovery.news_store import CardStore, Heard, HintNews, NewsSettings, Standing
from comity_node.discovery.pubsub import PubSubSettings, Received, Verdict
from comity_node.discovery.pubsub_session import Session
from comity_node.protocol.gossip import GossipRouter, Send, Validate
from comity_node.protocol.gossip_params import GossipLimits, GossipParams
from comity_node.protocol.gossip_rpc import IHave, Prune, Rpc
from comity_node.transport.memory import MemoryNetwork
from kit.consortium import NOW_MS, consortium
from kit.gossiping import Gossiper
from kit.gossipnet import TOPIC, unsigned

pytestmark = pytest.mark.invariant("S7")

NOW = 1_000_000
PEERS = (b"p1", b"p2", b"p3")


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


# The router.


def router(**limits: Any) -> GossipRouter:
    made = GossipRouter(
        b"own", random.Random(1), GossipParams(limits=GossipLimits(**limits)), verify=lambda _: None
    )  # fmt: skip
    made.subscribe(TOPIC, NOW)
    for peer in PEERS:
        made.add_peer(peer, NOW, outbound=True)
        made.receive(peer, Rpc(subscriptions=((TOPIC, True),)), NOW)
    made.heartbeat(NOW)
    return made


def test_one_peer_fills_its_share_of_what_waits_for_the_validator() -> None:
    gossip = router(peer_validating=20, validating=30, author_burst=1e6)
    flood = [Rpc(messages=(unsigned(b"a%d" % number, 1),)) for number in range(100)]
    actions = [action for rpc in flood for action in gossip.receive(b"p1", rpc, NOW)]
    assert sum(isinstance(action, Validate) for action in actions) == 20
    others = [Rpc(messages=(unsigned(b"b%d" % number, 1),)) for number in range(100)]
    actions = [action for rpc in others for action in gossip.receive(b"p2", rpc, NOW)]
    assert sum(isinstance(action, Validate) for action in actions) == 10


def test_so_many_ihaves_are_read_of_one_peer_between_two_heartbeats() -> None:
    gossip = router(ihave_messages=10)

    def asked() -> int:
        haves = [Rpc(ihave=(IHave(TOPIC, (b"%d" % number,)),)) for number in range(100)]
        actions = [action for rpc in haves for action in gossip.receive(b"p1", rpc, NOW)]
        return sum(len(action.rpc.iwant) for action in actions if isinstance(action, Send))

    assert asked() == 10
    gossip.heartbeat(NOW + 1)
    assert asked() == 10


def test_so_many_messages_are_sent_to_one_peer_on_demand_between_two_heartbeats() -> None:
    gossip = router(iwant_ids=50)
    messages = [unsigned(b"own", number + 1) for number in range(200)]
    for message in messages:
        gossip.publish(message, NOW)

    def got() -> int:
        actions = gossip.receive(b"p1", Rpc(iwant=tuple(message.id for message in messages)), NOW)
        return sum(len(action.rpc.messages) for action in actions if isinstance(action, Send))

    assert got() == 50


@pytest.mark.parametrize(
    ("bound", "size"),
    [("seen", 50), ("authors", 20), ("cache_messages", 10), ("validating", 7), ("promises", 5), ("backoffs", 4)],
)
def test_a_table_keeps_its_bound(bound: str, size: int) -> None:
    gossip = router(**{bound: size}, peer_validating=1000, peer_per_s=1e6, peer_burst=1e6, ihave_messages=1000)
    for number in range(200):
        now_ms = NOW + number * 7
        message = unsigned(b"a%d" % number, 1)
        for action in gossip.receive(b"p1", Rpc(messages=(message,)), now_ms):
            if isinstance(action, Validate) and bound != "validating":
                gossip.judge(message.id, Verdict.ACCEPT)
        gossip.receive(b"p2", Rpc(ihave=(IHave(TOPIC, (b"%d" % number,)),)), now_ms)
        passing = b"x%d" % number
        gossip.add_peer(passing, now_ms, outbound=False)
        gossip.receive(passing, Rpc(subscriptions=((TOPIC, True),), graft=(TOPIC,)), now_ms)
        gossip.receive(passing, Rpc(prune=(Prune(TOPIC, 3600),)), now_ms)
        gossip.remove_peer(passing, now_ms)
    assert gossip.sizes()[bound] == size


def test_payloads_are_kept_up_to_so_many_bytes() -> None:
    gossip = router(cache_bytes=10_000)
    for number in range(50):
        gossip.publish(unsigned(b"own", number + 1, data=bytes(1000)), NOW)
    assert 0 < gossip.sizes()["cache_bytes"] <= 10_000


def test_so_many_bad_scores_outlive_their_peers() -> None:
    gossip = router(retained=3)
    for number in range(20):
        peer = b"x%d" % number
        gossip.add_peer(peer, NOW, outbound=False)
        for _ in range(10):
            gossip.penalize(peer)
        gossip.remove_peer(peer, NOW)
    assert gossip.sizes()["retained"] == 3


# Its streams.


def test_control_for_a_peer_that_does_not_read_ends_its_session() -> None:
    async def main() -> None:
        session = Session("peer", b"key", PubSubSettings(queue_control=3))
        for _ in range(3):
            session.queue.put(Rpc(graft=(TOPIC,)))
        with pytest.raises(Busy, match="3 control messages"):
            session.queue.put(Rpc(graft=(TOPIC,)))

    run(main)


def test_so_many_validators_work_at_once() -> None:
    async def main() -> None:
        node = Gossiper(MemoryNetwork(), PrivateKey(bytes(32)), PubSubSettings(validators=2, validate_s=60))
        working = 0

        async def slow(_: Received) -> Verdict:
            nonlocal working
            working += 1
            await trio.sleep_forever()

        async def take(_: Received) -> None:
            await trio.lowlevel.checkpoint()

        node.pubsub.subscribe(TOPIC, slow, take)
        author = peer_id_to_bytes(PrivateKey(bytes([1] * 32)).peer_id)
        async with trio.open_nursery() as nursery:
            await node.start(nursery)
            for number in range(10):
                message = replace(unsigned(b"a", number + 1), author=author)
                node.pubsub._to_validate.send_nowait(Validate(message, author))
            await trio.sleep(1)
            assert working == 2
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize("hangs", [False, True])
def test_opening_a_stream_is_tried_again_at_a_bounded_interval(hangs: bool) -> None:
    """Whether it fails at once or only hangs: after at most `open_s` and `backoff_max_s` it is tried again."""
    tries = 0

    async def main() -> None:
        settings = PubSubSettings(open_s=1, backoff_first_s=0.5, backoff_max_s=2)
        node = Gossiper(MemoryNetwork(), PrivateKey(bytes(32)), settings)

        async def open_stream(*_: object, **__: object) -> None:
            nonlocal tries
            tries += 1
            if hangs:
                await trio.sleep_forever()
            raise LinkClosed("refused")

        node.transport.open_stream = open_stream  # type: ignore[method-assign, assignment]
        async with trio.open_nursery() as nursery:
            await node.start(nursery)
            node.links.up(PrivateKey(bytes([1] * 32)).peer_id)
            await trio.sleep(100)
            nursery.cancel_scope.cancel()

    run(main)
    assert tries >= 30


# News.


def card(number: int) -> AgentCard:
    agent = SpiffeId("a.example", "agent", f"g{number}")
    return AgentCard(agent, "peer", "g", "", "1", (), (), NOW_MS, NOW_MS + 1000)


def test_cards_of_one_organization_have_so_many_bytes() -> None:
    cards = CardStore(NewsSettings(organization_bytes=10_000))
    standings = [cards.add(card(number), b"digest", 3000, NOW_MS) for number in range(5)]
    assert standings == [Standing.NEW] * 3 + [Standing.FULL] * 2


def test_one_message_has_so_many_hints() -> None:
    hints = tuple(Hint(f"o{number}.example", "reviewer", 1, 1, 1, 1) for number in range(11))
    news = HintNews("lab", (b"chain",), NOW_MS, NOW_MS + 1000, hints)
    with pytest.raises(UnexpectedMessage, match="from 1 to 10 hints"):
        HintNews.decode(news.encode(), NewsSettings(hints=10))
    assert HintNews.decode(replace(news, hints=hints[1:]).encode(), NewsSettings(hints=10)).hints == hints[1:]


def test_what_was_heard_is_remembered_for_so_long_and_up_to_so_many() -> None:
    heard = Heard(NewsSettings(heard=10, heard_s=5))
    assert heard.note(b"first", 0)
    assert not heard.note(b"first", 4999)
    assert heard.note(b"first", 5000)
    for number in range(100):
        assert heard.note(b"%d" % number, 6000)
    assert len(heard) == 10


def news(settings: NewsSettings) -> News:
    world = consortium("a.example", "b.example")
    pubsub: Any = SimpleNamespace()

    async def nothing() -> list[bytes]:
        return []

    return News(
        pubsub, world.nodes["a.example"], world.trust, now_ms=lambda: NOW_MS, random=random.Random(1),
        own_cards=nothing, on_revoked=lambda _: None, settings=settings,
    )  # fmt: skip


def test_the_rates_of_so_many_authors_are_remembered() -> None:
    async def main() -> None:
        board = news(NewsSettings(authors=5))
        for number in range(100):
            assert board._has_turn(f"author{number}")
        assert board.sizes()["authors"] == 5

    run(main)


def test_one_organization_revokes_so_many() -> None:
    board = news(NewsSettings(revocations=5))

    def revoke(number: int, organization: str = "a.example") -> bool:
        digest = number.to_bytes(32, "big")
        return board._revoke(Revocation(organization, digest, NOW_MS, "lost", b"%d" % number, b""))

    assert all(revoke(number) for number in range(5))
    with pytest.raises(RevocationInvalid):
        revoke(5)
    assert revoke(6, "b.example")
    assert board.sizes()["revocations"] == 6
