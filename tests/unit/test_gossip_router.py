"""The rules of GossipSub 1.0 and 1.1, one by one: what goes into the router and what comes out."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from comity.errors import Busy, FrameTooLarge, ProtocolError, SignatureInvalid
from comity_node.protocol.gossip import Action, Deliver, GossipRouter, Send, Validate, Verdict
from comity_node.protocol.gossip_message import GossipMessage
from comity_node.protocol.gossip_params import GossipLimits, GossipParams, ScoreParams
from comity_node.protocol.gossip_rpc import IHave, Prune, Rpc
from kit.gossipnet import TOPIC, unsigned

OWN = b"own"
NOW = 1_000_000
BEAT = 1000


def no_check(_: GossipMessage) -> None:
    """Signatures are another test's."""


class Bench:
    """One router, its peers' hands, and a clock."""

    def __init__(self, peers: int = 0, *, outbound: Sequence[int] = (), join: bool = True, **params: object) -> None:
        self.params = GossipParams(**params)  # type: ignore[arg-type]
        self.router = GossipRouter(OWN, random.Random(7), self.params, verify=no_check)
        self.now_ms = NOW
        self.numbers = itertools.count(1)
        self.peers = [b"p%03d" % number for number in range(peers)]
        for number, peer in enumerate(self.peers):
            self.router.add_peer(peer, self.now_ms, outbound=number in outbound)
            self.receive(peer, Rpc(subscriptions=((TOPIC, True),)))
        if join:
            self.joined = self.router.subscribe(TOPIC, self.now_ms)

    def receive(self, peer: bytes, rpc: Rpc) -> list[Action]:
        return self.router.receive(peer, rpc, self.now_ms)

    def beat(self, times: int = 1) -> list[Action]:
        actions: list[Action] = []
        for _ in range(times):
            self.now_ms += BEAT
            actions += self.router.heartbeat(self.now_ms)
        return actions

    def take(self, peer: bytes, message: GossipMessage, verdict: Verdict = Verdict.ACCEPT) -> list[Action]:
        """A message comes and is judged at once."""
        actions = self.receive(peer, Rpc(messages=(message,)))
        assert [type(action) for action in actions] == [Validate]
        return self.router.judge(message.id, verdict)

    def mesh(self) -> frozenset[bytes]:
        return self.router.mesh(TOPIC)

    def score(self, peer: bytes) -> float:
        return self.router.score(peer, self.now_ms)

    def invalid(self, peer: bytes, times: int) -> None:
        for _ in range(times):
            self.take(peer, unsigned(b"bad author", next(self.numbers)), Verdict.REJECT)


def sends(actions: Sequence[Action]) -> dict[bytes, list[Rpc]]:
    found: dict[bytes, list[Rpc]] = {}
    for action in actions:
        if isinstance(action, Send):
            found.setdefault(action.peer, []).append(action.rpc)
    return found


def grafted(actions: Sequence[Action]) -> set[bytes]:
    return {peer for peer, rpcs in sends(actions).items() if any(rpc.graft for rpc in rpcs)}


def pruned(actions: Sequence[Action]) -> dict[bytes, int]:
    return {peer: rpc.prune[0].backoff_s for peer, rpcs in sends(actions).items() for rpc in rpcs if rpc.prune}


def carriers(actions: Sequence[Action], message: GossipMessage) -> set[bytes]:
    return {peer for peer, rpcs in sends(actions).items() if any(message in rpc.messages for rpc in rpcs)}


# ---- membership ------------------------------------------------------------------------------------------------------


def test_a_new_peer_is_told_what_we_subscribe_to() -> None:
    bench = Bench()
    assert bench.router.add_peer(b"p", NOW, outbound=False) == [Send(b"p", Rpc(subscriptions=((TOPIC, True),)))]


def test_every_peer_is_told_when_we_join_and_leave() -> None:
    bench = Bench(3)
    told = sends(bench.joined)
    assert {peer: [one for rpc in rpcs for one in rpc.subscriptions] for peer, rpcs in told.items()} == {
        peer: [(TOPIC, True)] for peer in bench.peers
    }
    left = sends(bench.router.unsubscribe(TOPIC, NOW))
    assert all((TOPIC, False) in rpc.subscriptions for peer in bench.peers for rpc in left[peer])
    assert pruned(bench.router.unsubscribe(TOPIC, NOW)) == {}, "it is left already"


def test_leaving_prunes_the_mesh_with_the_shorter_back_off() -> None:
    bench = Bench(3)
    assert pruned(bench.router.unsubscribe(TOPIC, NOW)) == dict.fromkeys(bench.peers, 10)


def test_who_leaves_the_topic_leaves_the_mesh() -> None:
    bench = Bench(3)
    bench.receive(bench.peers[0], Rpc(subscriptions=((TOPIC, False),)))
    assert bench.mesh() == set(bench.peers[1:])
    assert not carriers(bench.router.publish(unsigned(OWN, 1), NOW), unsigned(OWN, 1)) & {bench.peers[0]}


@pytest.mark.parametrize("bad", ["", "x" * 129])
def test_a_topic_has_a_name_of_bounded_length(bad: str) -> None:
    bench = Bench()
    with pytest.raises(ProtocolError, match="topic"):
        bench.router.subscribe(bad, NOW)
    with pytest.raises(ProtocolError, match="topic"):
        bench.router.publish(unsigned(OWN, 1, topic=bad), NOW)


# ---- the mesh --------------------------------------------------------------------------------------------------------


def test_joining_grafts_up_to_d_of_those_who_subscribe() -> None:
    bench = Bench(20)
    assert len(bench.mesh()) == 6
    assert grafted(bench.joined) == bench.mesh()


def test_a_mesh_below_d_lo_is_filled_up_to_d() -> None:
    bench = Bench(20)
    for peer in list(bench.mesh())[:2]:
        bench.receive(peer, Rpc(prune=(Prune(TOPIC, 60),)))
    assert len(bench.mesh()) == 4
    actions = bench.beat()
    assert len(bench.mesh()) == 6
    assert len(grafted(actions)) == 2


def test_a_mesh_of_d_lo_is_left_alone() -> None:
    bench = Bench(20)
    bench.receive(next(iter(bench.mesh())), Rpc(prune=(Prune(TOPIC, 60),)))
    bench.beat()
    assert len(bench.mesh()) == 5


def test_a_graft_is_taken_and_a_prune_ends_it() -> None:
    bench = Bench(20)
    outside = next(peer for peer in bench.peers if peer not in bench.mesh())
    assert bench.receive(outside, Rpc(graft=(TOPIC,))) == []
    assert outside in bench.mesh()
    bench.receive(outside, Rpc(prune=(Prune(TOPIC, 60),)))
    assert outside not in bench.mesh()


def test_a_mesh_over_d_hi_is_cut_to_d_and_keeps_the_best_and_enough_outbound() -> None:
    bench = Bench(20, outbound=(17, 18, 19))
    best = bench.peers[:4]
    for peer in bench.peers:
        bench.receive(peer, Rpc(graft=(TOPIC,)))
    for number, peer in enumerate(best):
        for count in range(10):
            bench.take(peer, unsigned(b"a%d" % number, count))
    while len(bench.mesh()) <= bench.params.d_hi:  # outbound peers are taken beyond it
        peer = next(peer for peer in bench.peers if peer not in bench.mesh())
        bench.router.remove_peer(peer, bench.now_ms)
        bench.peers.remove(peer)
        again = b"x%d" % len(bench.peers)
        bench.peers.append(again)
        bench.router.add_peer(again, bench.now_ms, outbound=True)
        bench.receive(again, Rpc(subscriptions=((TOPIC, True),), graft=(TOPIC,)))
    before = bench.mesh()
    actions = bench.beat()
    assert len(bench.mesh()) == 6
    assert set(best) - bench.mesh() == set(), "the best by score stay"
    assert set(pruned(actions)) == before - bench.mesh()
    assert set(pruned(actions).values()) == {60}
    outbound = {b"p017", b"p018", b"p019"} | {peer for peer in before if peer.startswith(b"x")}
    assert len(bench.mesh() & outbound) >= bench.params.d_out


def test_a_full_mesh_takes_only_peers_that_we_dialled() -> None:
    bench = Bench(14, outbound=(13,))
    for peer in bench.peers[:13]:
        bench.receive(peer, Rpc(graft=(TOPIC,)))
    assert len(bench.mesh()) == 12
    refused = next(peer for peer in bench.peers[:13] if peer not in bench.mesh())
    bench.beat(0)
    assert pruned(bench.receive(refused, Rpc(graft=(TOPIC,)))) == {refused: 60}
    if bench.peers[13] not in bench.mesh():
        assert bench.receive(bench.peers[13], Rpc(graft=(TOPIC,))) == []
    assert bench.peers[13] in bench.mesh()


def test_a_mesh_without_outbound_peers_gets_some() -> None:
    bench = Bench(0)
    for number in range(8):
        peer = b"in%d" % number
        bench.router.add_peer(peer, NOW, outbound=False)
        bench.receive(peer, Rpc(subscriptions=((TOPIC, True),), graft=(TOPIC,)))
    for number in range(3):
        peer = b"out%d" % number
        bench.router.add_peer(peer, NOW, outbound=True)
        bench.receive(peer, Rpc(subscriptions=((TOPIC, True),)))
    bench.beat()
    assert sum(peer.startswith(b"out") for peer in bench.mesh()) == 2


def test_a_graft_for_a_topic_that_is_not_ours_gets_no_answer() -> None:
    bench = Bench(1)
    assert bench.receive(bench.peers[0], Rpc(graft=("somebody's",))) == []
    assert bench.score(bench.peers[0]) >= 0


def test_who_was_pruned_is_not_grafted_before_its_back_off_is_over() -> None:
    bench = Bench(5)
    gone = bench.peers[0]
    bench.receive(gone, Rpc(prune=(Prune(TOPIC, 20),)))
    assert bench.mesh() == set(bench.peers[1:])
    bench.beat(20)
    assert gone not in bench.mesh(), "one more heartbeat: the other end's clock is its own"
    bench.beat(2)
    assert gone in bench.mesh()


def test_a_graft_within_the_back_off_is_refused_and_counted() -> None:
    bench = Bench(5)
    peer = bench.peers[0]
    bench.receive(peer, Rpc(prune=(Prune(TOPIC, 60),)))
    bench.beat(15)
    assert pruned(bench.receive(peer, Rpc(graft=(TOPIC,)))) == {peer: 60}
    once = bench.score(peer)
    assert once == pytest.approx(-5, abs=0.1)
    assert pruned(bench.receive(peer, Rpc(graft=(TOPIC,)))) == {peer: 60}
    assert bench.score(peer) == pytest.approx(-45, abs=0.2), "so soon after a PRUNE it counts twice"
    bench.beat(59)
    assert peer not in bench.mesh(), "each attempt makes it longer"


def test_a_peer_cannot_tell_us_to_stay_away_for_ever() -> None:
    bench = Bench(5, max_backoff_ms=100_000)
    bench.receive(bench.peers[0], Rpc(prune=(Prune(TOPIC, 2**63),)))
    bench.beat(103)
    assert bench.peers[0] in bench.mesh()


def test_a_peer_with_a_bad_score_is_pruned_and_not_taken_back() -> None:
    bench = Bench(6)
    bad = bench.peers[0]
    bench.invalid(bad, 1)
    assert pruned(bench.beat()) == {bad: 60}
    bench.beat(70)
    assert bench.score(bad) < 0
    assert bad not in bench.mesh()
    assert pruned(bench.receive(bad, Rpc(graft=(TOPIC,)))) == {bad: 60}


# ---- messages --------------------------------------------------------------------------------------------------------


def test_a_message_is_forwarded_to_the_mesh_only_when_it_is_accepted() -> None:
    bench = Bench(20)
    first, author = bench.peers[0], b"author"
    message = unsigned(author, 1)
    assert bench.receive(first, Rpc(messages=(message,))) == [Validate(message, first)]
    actions = bench.router.judge(message.id, Verdict.ACCEPT)
    assert Deliver(message, first) in actions
    assert carriers(actions, message) == bench.mesh() - {first}


@pytest.mark.parametrize("verdict", [Verdict.IGNORE, Verdict.REJECT])
def test_what_is_not_accepted_goes_nowhere(verdict: Verdict) -> None:
    bench = Bench(5)
    message = unsigned(b"author", 1)
    assert bench.take(bench.peers[0], message, verdict) == []
    assert bench.receive(bench.peers[1], Rpc(iwant=(message.id,))) == []
    assert bench.receive(bench.peers[1], Rpc(messages=(message,))) == [], "it is judged once"


def test_it_goes_back_neither_to_its_author_nor_to_whoever_sent_it_meanwhile() -> None:
    bench = Bench(6)
    first, second, author = bench.peers[:3]
    message = unsigned(author, 1)
    bench.receive(first, Rpc(messages=(message,)))
    assert bench.receive(second, Rpc(messages=(message,))) == []
    actions = bench.router.judge(message.id, Verdict.ACCEPT)
    assert carriers(actions, message) == set(bench.peers[3:])


def test_a_duplicate_is_neither_judged_nor_forwarded_again() -> None:
    bench = Bench(5)
    message = unsigned(b"author", 1)
    bench.take(bench.peers[0], message)
    assert bench.receive(bench.peers[1], Rpc(messages=(message, message))) == []
    assert bench.router.counts["duplicates"] == 2


def test_our_own_message_that_comes_back_is_dropped() -> None:
    bench = Bench(3)
    assert bench.receive(bench.peers[0], Rpc(messages=(unsigned(OWN, 5),))) == []


def test_a_message_of_a_topic_that_is_not_ours_is_dropped() -> None:
    bench = Bench(3)
    assert bench.receive(bench.peers[0], Rpc(messages=(unsigned(b"a", 5, topic="other"),))) == []


def test_our_own_messages_go_to_every_subscriber() -> None:
    bench = Bench(20)
    message = unsigned(OWN, 1)
    assert carriers(bench.router.publish(message, NOW), message) == set(bench.peers)


def test_without_flood_publishing_they_go_to_the_mesh_or_to_the_fanout() -> None:
    bench = Bench(20, flood_publish=False)
    message = unsigned(OWN, 1)
    assert carriers(bench.router.publish(message, NOW), message) == bench.mesh()
    outside = Bench(20, flood_publish=False, join=False)
    fanout = carriers(outside.router.publish(message, NOW), message)
    assert len(fanout) == 6
    second = unsigned(OWN, 2)
    assert carriers(outside.router.publish(second, NOW), second) == fanout, "it is kept"
    assert grafted(outside.router.subscribe(TOPIC, NOW)) == fanout, "and becomes the mesh"


def test_a_fanout_that_is_not_used_is_forgotten_and_one_that_shrinks_is_filled() -> None:
    bench = Bench(40, flood_publish=False, join=False)
    first = carriers(bench.router.publish(unsigned(OWN, 1), NOW), unsigned(OWN, 1))
    gone = next(iter(first))
    bench.router.remove_peer(gone, NOW)
    bench.beat()
    second = carriers(bench.router.publish(unsigned(OWN, 2), bench.now_ms), unsigned(OWN, 2))
    assert len(second) == 6
    assert second > first - {gone}
    bench.beat(61)
    third = carriers(bench.router.publish(unsigned(OWN, 3), bench.now_ms), unsigned(OWN, 3))
    assert third != second


def test_an_own_message_has_a_payload_of_bounded_size() -> None:
    bench = Bench(1)
    with pytest.raises(FrameTooLarge, match="65537"):
        bench.router.publish(unsigned(OWN, 1, data=bytes(64 * 1024 + 1)), NOW)
    with pytest.raises(ProtocolError, match="payload"):
        bench.router.publish(unsigned(OWN, 1, data=b""), NOW)


def test_a_forged_message_is_not_taken_for_the_real_one() -> None:
    """Who forges an author's message before the real one comes must not keep it away."""

    def verify(message: GossipMessage) -> None:
        if message.data == b"forged":
            raise SignatureInvalid("no")

    bench = Bench(3)
    router = GossipRouter(OWN, random.Random(1), verify=verify)
    for peer in bench.peers:
        router.add_peer(peer, NOW, outbound=False)
    router.subscribe(TOPIC, NOW)
    forged, real = unsigned(b"author", 1, data=b"forged"), unsigned(b"author", 1, data=b"real")
    assert router.receive(bench.peers[0], Rpc(messages=(forged,)), NOW) == []
    assert router.score(bench.peers[0], NOW) == -10
    assert router.receive(bench.peers[1], Rpc(messages=(real,)), NOW) == [Validate(real, bench.peers[1])]


@pytest.mark.invariant("S5")
def test_a_message_is_good_once_even_when_its_id_was_forgotten() -> None:
    bench = Bench(3)
    old, newer = unsigned(b"author", 5), unsigned(b"author", 6)
    bench.take(bench.peers[0], old)
    bench.beat(301)
    assert bench.router.sizes()["seen"] == 0
    assert bench.receive(bench.peers[1], Rpc(messages=(old,))) == []
    assert bench.router.counts["replayed"] == 1
    assert bench.receive(bench.peers[1], Rpc(ihave=(IHave(TOPIC, (old.id,)),))) == [], "nor is it asked for"
    bench.take(bench.peers[1], newer)


def test_authors_that_number_at_random_can_be_allowed() -> None:
    bench = Bench(3, strict_seqno=False)
    bench.take(bench.peers[0], unsigned(b"author", 2**40))
    bench.beat(301)
    bench.take(bench.peers[0], unsigned(b"author", 7))


# ---- lazy push -------------------------------------------------------------------------------------------------------


def test_peers_outside_the_mesh_are_told_what_came_for_three_heartbeats() -> None:
    bench = Bench(8)
    bench.beat(2)  # what was owed to them as new ones is told
    message = unsigned(b"author", 1)
    bench.take(bench.peers[0], message)
    outside = set(bench.peers) - bench.mesh()
    for _ in range(3):
        told = {peer: rpc.ihave for peer, rpcs in sends(bench.beat()).items() for rpc in rpcs if rpc.ihave}
        assert told == dict.fromkeys(outside, (IHave(TOPIC, (message.id,)),))
    assert not [rpc for rpcs in sends(bench.beat()).values() for rpc in rpcs if rpc.ihave]


def test_a_share_of_many_peers_is_told() -> None:
    bench = Bench(106)
    bench.beat(2)
    bench.take(bench.peers[0], unsigned(b"author", 1))
    told = [peer for peer, rpcs in sends(bench.beat()).items() if any(rpc.ihave for rpc in rpcs)]
    assert len(told) == 25


def test_what_is_not_known_is_asked_for_and_what_is_known_is_not() -> None:
    bench = Bench(3)
    known, unknown = unsigned(b"author", 1), unsigned(b"author", 2)
    bench.take(bench.peers[0], known)
    actions = bench.receive(bench.peers[1], Rpc(ihave=(IHave(TOPIC, (known.id, unknown.id)),)))
    assert actions == [Send(bench.peers[1], Rpc(iwant=(unknown.id,)))]
    assert bench.receive(bench.peers[1], Rpc(ihave=(IHave("other", (b"x",)),))) == []


def test_what_is_asked_for_is_sent_three_times_to_one_peer_and_no_more() -> None:
    bench = Bench(3)
    message = unsigned(b"author", 1)
    bench.take(bench.peers[0], message)
    for _ in range(3):
        assert carriers(bench.receive(bench.peers[1], Rpc(iwant=(message.id,))), message) == {bench.peers[1]}
    assert bench.receive(bench.peers[1], Rpc(iwant=(message.id,))) == []
    assert carriers(bench.receive(bench.peers[2], Rpc(iwant=(message.id,))), message) == {bench.peers[2]}


def test_a_message_can_be_asked_for_as_long_as_the_history_is() -> None:
    bench = Bench(3, history_length=5)
    message = unsigned(b"author", 1)
    bench.take(bench.peers[0], message)
    bench.beat(4)
    assert carriers(bench.receive(bench.peers[1], Rpc(iwant=(message.id,))), message)
    bench.beat()
    assert bench.receive(bench.peers[1], Rpc(iwant=(message.id,))) == []


def test_a_broken_promise_counts_and_a_kept_one_does_not() -> None:
    bench = Bench(3)
    liar, honest = bench.peers[:2]
    message = unsigned(b"author", 1)
    bench.receive(liar, Rpc(ihave=(IHave(TOPIC, (b"never-comes",)),)))
    bench.receive(honest, Rpc(ihave=(IHave(TOPIC, (message.id,)),)))
    bench.take(bench.peers[2], message)  # from whomever
    bench.beat(2)
    assert bench.score(liar) >= 0
    bench.beat(2)
    assert bench.score(liar) < 0 <= bench.score(honest)
    assert bench.router.sizes()["promises"] == 0


def test_whoever_missed_something_is_told_of_all_that_there_is_even_in_the_mesh() -> None:
    bench = Bench(3)
    bench.beat(2)
    message = unsigned(b"author", 1)
    bench.take(bench.peers[0], message)
    bench.beat(30)  # long out of the windows that are gossiped
    bench.router.note_lost(bench.peers[1])
    assert sends(bench.beat()) == {bench.peers[1]: [Rpc(ihave=(IHave(TOPIC, (message.id,)),))]}
    assert bench.beat() == []


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_who_brings_messages_first_gains_up_to_a_cap() -> None:
    bench = Bench(2)
    for number in range(40):
        bench.take(bench.peers[0], unsigned(b"author", number))
    assert bench.score(bench.peers[0]) == pytest.approx(10, abs=0.1)
    assert bench.score(bench.peers[1]) == 0


def test_time_in_the_mesh_counts_a_little() -> None:
    bench = Bench(2)
    bench.beat(100)
    assert bench.score(bench.peers[0]) == pytest.approx(1.0)
    bench.beat(900)
    assert bench.score(bench.peers[0]) == pytest.approx(3.0)


def test_rejected_messages_cost_their_square_everybody_who_sent_them() -> None:
    bench = Bench(4)
    first, second, late, clean = bench.peers
    message = unsigned(b"author", 1)
    bench.receive(first, Rpc(messages=(message,)))
    bench.receive(second, Rpc(messages=(message,)))
    bench.router.judge(message.id, Verdict.REJECT)
    bench.receive(late, Rpc(messages=(message,)))
    assert [bench.score(peer) for peer in (first, second, late, clean)] == [-10, -10, -10, 0]
    bench.invalid(first, 1)
    assert bench.score(first) == -40
    bench.beat(138)
    assert bench.score(first) == pytest.approx(-40 / 4, rel=0.1), (
        "half is forgotten after 138 s, a quarter of the square"
    )


def test_what_the_application_says_counts() -> None:
    bench = Bench(2)
    bench.router.set_application_score(bench.peers[0], -1.0)
    assert pruned(bench.beat()) == {bench.peers[0]: 60}


def test_below_the_thresholds_a_peer_gets_less_and_less() -> None:
    bench = Bench(6)
    peer, message = bench.peers[0], unsigned(OWN, 1)
    bench.router.publish(message, NOW)
    bench.invalid(peer, 2)
    bench.router.penalize(peer, 0.5)
    assert bench.score(peer) < bench.params.score.gossip_threshold
    assert bench.receive(peer, Rpc(ihave=(IHave(TOPIC, (b"unknown",)),))) == []
    assert bench.receive(peer, Rpc(iwant=(message.id,))) == []
    bench.invalid(peer, 1)
    second = unsigned(OWN, 2)
    assert carriers(bench.router.publish(second, NOW), second) == set(bench.peers) - {peer}
    bench.invalid(peer, 1)
    assert bench.receive(peer, Rpc(messages=(unsigned(b"honest", 1),))) == [], "graylisted"
    assert bench.router.counts["graylisted"] == 1


def test_a_bad_score_outlives_a_reconnect_and_a_good_one_does_not() -> None:
    bench = Bench(2)
    bad = bench.peers[0]
    bench.invalid(bad, 2)
    bench.router.remove_peer(bad, NOW)
    assert bench.score(bad) == 0
    bench.router.add_peer(bad, NOW, outbound=False)
    assert bench.score(bad) == -40
    bench.router.remove_peer(bad, NOW)
    bench.beat(3601)
    bench.router.add_peer(bad, bench.now_ms, outbound=False)
    assert bench.score(bad) == 0
    assert bench.router.sizes()["retained"] == 0


def test_thresholds_are_in_the_order_that_the_specification_asks_for() -> None:
    score = ScoreParams()
    assert 0 > score.gossip_threshold >= score.publish_threshold > score.graylist_threshold
    params = GossipParams()
    assert params.d_lo <= params.d <= params.d_hi
    assert params.d_out < params.d_lo
    assert params.d_out <= params.d // 2
    assert params.seen_ttl_ms > params.history_length * params.heartbeat_ms, "what is cached anywhere is seen here"


def test_a_validator_that_never_answers_does_not_keep_its_place() -> None:
    bench = Bench(3)
    message = unsigned(b"author", 1)
    bench.receive(bench.peers[0], Rpc(messages=(message,)))
    bench.beat(12)
    assert bench.router.sizes()["validating"] == 0
    assert bench.router.judge(message.id, Verdict.ACCEPT) == [], "too late"


def test_there_is_room_for_so_many_peers_and_topics() -> None:
    bench = Bench(2, limits=replace(GossipLimits(), peers=2, topics=2))
    with pytest.raises(Busy):
        bench.router.add_peer(b"third", NOW, outbound=True)
    bench.router.subscribe("second", NOW)
    with pytest.raises(Busy):
        bench.router.subscribe("third", NOW)
    assert bench.router.topics == (TOPIC, "second")


def test_a_peer_that_is_not_there_says_nothing() -> None:
    bench = Bench(1)
    assert bench.receive(b"nobody", Rpc(messages=(unsigned(b"a", 1),), subscriptions=((TOPIC, True),))) == []
    bench.router.remove_peer(b"nobody", NOW)
