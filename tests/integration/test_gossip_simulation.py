"""150 and 200 routers on a virtual clock: delivery, cost per node, and what hostile nodes among them change."""

from __future__ import annotations

import pytest

from comity_node.protocol.gossip import Verdict
from kit.gossipnet import GossipNet, name, unsigned


def test_200_nodes_deliver_everything_once_for_seven_messages_a_node() -> None:
    net = GossipNet(200, seed=11)
    net.connect_at_random(20)
    net.run(5_000)
    before = sum(net.messages.values())
    sent = []
    for number in range(40):
        sent.append(net.publish(number * 5))
        net.run(200)
    net.run(5_000)
    assert net.missing(sent) == []
    assert max(net.delivered.values()) == 1
    per_node = (sum(net.messages.values()) - before) / len(net.nodes) / len(sent)
    assert per_node < 8, "the mesh's degree and a little"
    degrees = [len(node.mesh("comity/lab/cards")) for node in net.nodes]
    assert min(degrees) >= 4
    assert max(degrees) <= 14


def test_a_message_is_everywhere_within_six_hops() -> None:
    net = GossipNet(200, seed=12, latency_ms=(50, 50))
    net.connect_at_random(20)
    net.run(5_000)
    began = net.now_ms
    message = net.publish(0)
    net.run(2_000)
    assert net.missing([message]) == []
    assert max(net.delivered_ms.values()) - began <= 6 * 51


@pytest.mark.invariant("R3")
def test_150_nodes_with_30_of_them_coming_and_going_miss_nothing() -> None:
    net = GossipNet(150, seed=13)
    net.connect_at_random(16)
    net.run(3_000)
    sent = []
    for step in range(30):
        sent.append(net.publish(30 + step * 4))
        restless = step % 30
        mine = [link for link in net.links if restless in link]
        for a, b in mine:
            net.cut(a, b)
        net.run(700)
        for a, b in mine:
            net.connect(a, b)
    net.run(15_000)
    assert net.missing(sent) == []
    assert max(net.delivered.values()) == 1


@pytest.mark.invariant("R3")
def test_two_halves_that_were_apart_for_a_minute_catch_up() -> None:
    net = GossipNet(100, seed=14)
    net.connect_at_random(16)
    net.run(3_000)
    between = [(a, b) for a, b in net.links if (a < 50) != (b < 50)]
    for a, b in between:
        net.cut(a, b)
    sent = []
    for number in range(20):
        sent.append(net.publish(number * 5))
        net.run(3_000)
    assert len(net.missing(sent)) == 20 * 50
    for a, b in between[:5]:
        net.connect(a, b)
    net.run(10_000)
    assert net.missing(sent) == []
    assert max(net.delivered.values()) == 1


@pytest.mark.invariant("S7")
def test_twenty_of_120_nodes_that_send_rubbish_are_shut_out_and_the_others_miss_nothing() -> None:
    rubbish = b"rubbish"
    net = GossipNet(120, seed=15, judge=lambda one: Verdict.REJECT if one.data == rubbish else Verdict.ACCEPT)
    net.connect_at_random(20)
    net.run(3_000)
    bad, sent = range(100, 120), []
    for step in range(20):
        for number in bad:
            for _ in range(5):
                net.publish(number, data=rubbish)
        sent.append(net.publish(step * 5))
        net.run(500)
    net.run(10_000)
    honest = [entry for entry in net.missing(sent) if entry[0] not in bad]
    assert honest == []
    judged = sum(node.counts["reject"] for node in net.nodes[:100])
    neighbours = sum((a in bad) != (b in bad) for a, b in net.links)
    assert judged <= neighbours * 50, "no more than a burst from each neighbour: 2,000 pieces went out, none further"
    for number, node in enumerate(net.nodes[:100]):
        for other in bad:
            if (number, other) in net.links:
                assert name(other) not in node.mesh("comity/lab/cards")
    assert not [key for key in net.delivered if net.nodes[key[0]] in net.nodes[:100] and key[1][:-8] in map(name, bad)]


def test_one_message_that_only_one_neighbour_will_pass_on_comes_through_by_lazy_push() -> None:
    """A mesh of nodes that swallow everything is bypassed by IHAVE and IWANT."""
    net = GossipNet(40, seed=16)
    net.connect_at_random(12)
    net.run(3_000)
    message = unsigned(name(0), 1)
    net.loss = 0.8  # of what is pushed; each dropper owes, and tells at the next heartbeat
    net.do(0, net.nodes[0].publish(message, net.now_ms))
    net.run(8_000)
    net.loss = 0.0
    net.run(3_000)
    assert net.missing([message]) == []
    assert sum(node.counts["sent_on_demand"] for node in net.nodes) > 0
