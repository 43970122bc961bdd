"""The simulation: the same seed gives the same figures, its parts answer as nodes do, and laws are recognized."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import pytest

from bench.simulation import __main__ as simulation
from bench.simulation import gossip, lookup, page, quorum, routing
from bench.simulation.gossip import GossipWorld
from bench.simulation.laws import TERMS, fit, simplest
from bench.simulation.lookup import ADD_PROVIDER, FIND_NODE, GET_PROVIDERS, LookupNet, LookupWorld, message_bytes
from bench.simulation.plot import PANELS
from bench.simulation.world import Clock, Figure, jain, quantile
from comity.certificate import QuorumRule, build_certificate, verify_certificate
from comity.errors import CertificateInvalid
from comity.signing import peer_id_to_bytes
from comity_node.discovery.kad import Kademlia, KademliaSettings
from comity_node.p2p.v1 import kad_pb2 as pb
from comity_node.protocol.kad import Contact, K, skill_key
from comity_node.transport.address import parse_address
from comity_node.transport.memory import MemoryNetwork, MemoryTransport
from comity_node.transport.multiaddr import encode_multiaddr

SMALL = simulation.Plan(
    sizes=(20, 35, 50),
    reviewers=(3, 7, 10),
    seed=7,
    gossip=GossipWorld(messages=4, settle_ms=4_000),
    lookup=LookupWorld(publishers=8, lookups=5),
    homes=50,
)


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    return {each.name: each for each in figures}


@pytest.fixture(scope="module")
def result() -> dict[str, object]:
    return simulation.run(SMALL)


def test_the_same_seed_gives_the_same_file_and_another_seed_another_one(
    result: dict[str, object], tmp_path: Path
) -> None:
    again = simulation.write(simulation.run(SMALL), tmp_path / "again")
    first = simulation.write(result, tmp_path / "first")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in first]
    cells = [simulation.run(replace(SMALL, seed=seed, parts=("gossip",)))["cells"] for seed in (7, 8)]
    assert cells[0] != cells[1]


def test_every_part_is_there_at_every_size_with_its_law(result: dict[str, object], tmp_path: Path) -> None:
    data, plot = simulation.write(result, tmp_path)
    read = json.loads(data.read_text())
    sizes: dict[str, set[int]] = {}
    for cell in read["cells"]:
        sizes.setdefault(cell["part"], set()).add(cell["size"])
    quorums = {part: {3, 7, 10} for part in ("quorum", "quorum/liars")}
    routings = (
        "quorum",
        "quorum-f",
        *(f"{w}{c}" for w in ("few", "slow") for c in ("", "-blind", "-least", "-weighted")),
    )
    arms = ("gossip", "gossip/full", "lookup/room", "lookup/full", *(f"routing/{each}" for each in routings))
    assert sizes == {part: {20, 35, 50} for part in arms} | quorums
    assert {(law["part"], law["name"]) for law in read["laws"]} == {(one["part"], one["name"]) for one in read["cells"]}
    assert all(set(law["residuals"]) == set(TERMS) for law in read["laws"])
    drawn = ElementTree.fromstring(plot.read_text())
    texts = {element.text for element in drawn.iter() if element.tag.endswith("text")}
    assert {"Gossip: hops", "Quorum: bytes of a certificate, over reviewers", "50"} <= texts
    assert "lookup/full" in simulation.table(read)


def test_gossip_reaches_all_and_counts_add_up() -> None:
    world = replace(GossipWorld(), messages=4)
    found = by_name(gossip.measure("gossip", 60, 3, world))
    assert found["reached"].value == 1
    assert found["bytes-sent"].value == pytest.approx(found["bytes-received"].value)
    assert found["verifications"].value == pytest.approx(59 / 60), "everybody but the author, once"
    # What is sent is what arrives: once for everybody but the author, and the rest in vain.
    assert found["copies-sent"].value == pytest.approx(59 / 60 + found["duplicates"].value, rel=1e-4)
    assert found["bytes-sent"].value > found["copies-sent"].value * world.data_bytes
    assert 1 < found["hops"].value <= found["longest-way"].value < 10
    assert found["time-to-half"].value <= found["time-to-99-percent"].value <= found["time-to-all"].value
    assert found["table-seen"].value == 4


def test_every_organization_is_a_node_and_publishes_alike_at_every_size() -> None:
    worlds = [simulation.gossip_worlds(simulation.Plan(), size) for size in (100, 1000, 10_000)]
    assert {world["gossip"].messages for world in worlds} == {5}
    assert ["gossip/full" in world for world in worlds] == [True, True, False]
    links = by_name(gossip.measure("gossip", 120, 1, replace(GossipWorld(), messages=1)))["links"]
    assert links.samples == 120


def test_a_node_answers_as_the_service_does() -> None:
    """`LookupNet.answer`, and the bytes that are counted, beside `Kademlia.answer` with the same links and records."""
    net = LookupNet(60, 5, LookupWorld(links=40))
    me, key = net.names[0], skill_key("s")
    transport = MemoryTransport(MemoryNetwork(), me)
    service = Kademlia(
        transport, _nobody, now_ms=lambda: net.clock.now_ms, settings=KademliaSettings(allow_private=True)
    )  # fmt: skip
    for peer in net.nodes[me].linked:
        service.peer_up(peer, net.nodes[peer].contact.addresses)
    for provider in net.names[1:4]:
        contact = net.nodes[provider].contact
        net.nodes[me].records.add(key, contact, net.clock.now_ms)
        own = pb.KadPeer(
            id=peer_id_to_bytes(provider), addrs=[encode_multiaddr(parse_address(each)) for each in contact.addresses]
        )
        service.answer(provider, pb.KadMessage(type=ADD_PROVIDER, key=key, provider_peers=[own]))
    sender = min(net.nodes[me].linked)
    for kind, providers in ((FIND_NODE, 0), (GET_PROVIDERS, 3)):
        question = pb.KadMessage(type=kind, key=key)
        assert message_bytes(kind, 0, 0, asks=True) == len(question.SerializeToString())
        wanted = service.answer(sender, question)
        assert wanted is not None
        closer, known = net.answer(me, sender, kind, key)
        assert [each.id for each in wanted.closer_peers] == [peer_id_to_bytes(each) for each in closer]
        assert [each.id for each in wanted.provider_peers] == [peer_id_to_bytes(each.peer_id) for each in known]
        assert (len(closer), len(known)) == (20, providers)
        assert message_bytes(kind, len(closer), len(known)) == len(wanted.SerializeToString())
    service.provide(["s"])
    net.nodes[me].provided.add(key)
    wanted = service.answer(sender, pb.KadMessage(type=GET_PROVIDERS, key=key))
    assert wanted is not None
    _, known = net.answer(me, sender, GET_PROVIDERS, key)
    assert [each.id for each in wanted.provider_peers] == [peer_id_to_bytes(each.peer_id) for each in known]
    assert known[0].peer_id == me


async def _nobody(_: Contact) -> bool:
    return False


def test_a_search_finds_who_has_published_and_takes_no_place_that_is_not_there() -> None:
    net = LookupNet(80, 2, LookupWorld(links=10))
    said = net.publish(net.names[5], "s")
    assert said.refused == 0
    assert said.messages == 2 * said.asked + K, "question and answer each, and a record for each of the nearest"
    found = net.find(net.names[70], "s")
    assert found.found == {net.names[5]}
    assert found.hops is not None
    assert 0 <= found.first_messages <= found.messages == 2 * found.asked
    assert net.find(net.names[70], "nobody's").hops is None
    assert all(peer in net.nodes[other].linked for peer, node in net.nodes.items() for other in node.linked)

    full = LookupNet(80, 2, LookupWorld(links=10, max_peers=6, casual=6))
    trace = full.publish(full.names[5], "s")
    assert trace.refused > 0
    assert trace.messages < 2 * trace.asked + K
    assert max(len(node.linked) for node in full.nodes.values()) == 6


def test_a_search_among_nodes_without_places_ends_soon() -> None:
    world = LookupWorld(links=10, max_peers=6, casual=6)
    net = LookupNet(80, 2, world)
    traces = [net.find(who, "s") for who in net.names[:10]]
    assert sum(trace.refused for trace in traces) > 0
    assert max(trace.took_ms for trace in traces) < 5_000 < world.search_ms


def test_links_for_searches_give_their_places_to_each_other() -> None:
    world = LookupWorld(links=24, max_peers=24, casual=21, guests=2, publishers=20, lookups=20)
    found = by_name(lookup.measure("lookup", 200, 3, world))
    assert found["found"].value >= 0.9
    assert found["links-after"].spread[1] <= 24
    assert found["find-time"].value < 5_000
    net = LookupNet(200, 3, world)
    for number, who in enumerate(net.names[:30]):
        net.publish(who, f"s{number}")
    for node in net.nodes.values():
        assert set(node.guests) <= set(node.linked)
        assert all(peer in net.nodes[other].linked for peer in [node.contact.peer_id] for other in node.linked)


def test_votes_and_their_certificate_are_real() -> None:
    jury = quorum.Jury(8, Random(4))
    calm = by_name(quorum.measure(jury, 7, 4, quorum.QuorumWorld(records=2), liars=False))
    rule = QuorumRule.of(7)
    assert calm["votes-until-certified"].value == rule.quorum == calm["verifications-by-each-holder"].value == 5
    assert calm["asked"].value == rule.quorum, "nobody more while votes agree"
    lied = by_name(quorum.measure(jury, 7, 4, quorum.QuorumWorld(records=8), liars=True))
    assert lied["votes-until-certified"].spread[1] == 7
    assert 5 < lied["asked"].value <= 7, "one more for each who lied among those who were asked"
    assert lied["verifications-by-each-holder"].value == 5
    assert lied["bytes-of-votes"].value > calm["bytes-of-votes"].value
    author, *voters = jury.names
    votes = [jury.vote(voter, author, 9000) for voter in voters]
    certificate = build_certificate(votes[:5], author=author, rule=rule, accept=True)
    checked = {"participants": jury.names, "rule": rule, "min_score": 5000, "trust": jury.trust}
    assert len(verify_certificate(certificate, record=b'{"label":1,"x":2.5}', **checked)) == 5  # type: ignore[arg-type]
    with pytest.raises(CertificateInvalid, match="another record"):
        verify_certificate(certificate, record=b"{}", **checked)  # type: ignore[arg-type]


def routed(world: routing.RoutingWorld, homes: int = 100) -> dict[str, Figure]:
    return by_name(routing.measure("routing", homes, 1, replace(world, homes=homes)))


def test_a_router_that_learns_serves_sooner_than_those_that_do_not() -> None:
    found = {chooser: routed(routing.few(chooser)) for chooser in ("adaptive", "blind", "least", "weighted")}
    own = found.pop("adaptive")
    assert own["offers"].value == 3
    assert own["batches-reviewed"].value == 3 * routing.few().batches
    assert own["time-median"].samples == 100 * routing.few().batches
    for other in found.values():
        assert own["time-99-percent"].value < other["time-99-percent"].value
        assert own["busiest-reviewer-time"].value < other["busiest-reviewer-time"].value


def test_a_quorum_first_and_more_when_somebody_is_late_takes_fewer_offers_than_all_at_once() -> None:
    first, at_once = routed(routing.by_quorum()), routed(routing.all_at_once())
    assert first["offers"].value < 0.8 * at_once["offers"].value
    assert first["time-99-percent"].value < at_once["time-99-percent"].value


def test_the_slow_get_less_while_they_are_and_their_share_when_they_are_not() -> None:
    found = {chooser: routed(routing.slowing(chooser)) for chooser in ("adaptive", "least", "weighted")}
    own = found.pop("adaptive")
    assert own["share-while-slow"].value < 0.5
    assert own["longest-queue-after-return"].value < 20, "it has its backlog, and no herd comes on top"
    for other in found.values():
        assert own["share-while-slow"].value < other["share-while-slow"].value
        assert own["time-99-percent-while-slow"].value < other["time-99-percent-while-slow"].value
    assert own["share-after-return"].value > found["weighted"]["share-after-return"].value


@pytest.mark.parametrize(
    ("values", "law", "slope"),
    [
        ([7.0, 7.1, 6.9, 7.0], "constant", 0.0),
        ([math.log2(n) * 2 + 1 for n in (100, 300, 1000, 3000)], "log n", 2.0),
        ([3 * n + 50.0 for n in (100, 300, 1000, 3000)], "n", 3.0),
    ],
)
def test_the_law_that_a_figure_follows_is_found(values: list[float], law: str, slope: float) -> None:
    found = simplest(fit((100, 300, 1000, 3000), values))
    assert found.law == law
    assert found.slope == pytest.approx(slope)
    assert found.residual < 0.02
    assert found.at(1000) == pytest.approx(values[2], rel=0.02)


def test_what_follows_no_law_says_by_how_much() -> None:
    found = simplest(fit((1, 10, 100, 1000), (1.0, 9.0, 1.0, 9.0)))
    assert found.residual > 0.3
    with pytest.raises(ValueError, match="3 sizes"):
        fit((1, 1, 10), (1.0, 1.0, 1.0))


def test_time_passes_in_order_and_only_when_it_is_let() -> None:
    clock, seen = Clock(0), list[tuple[str, int]]()
    clock.after(5, lambda: seen.append(("b", clock.now_ms)))
    clock.after(5, lambda: seen.append(("c", clock.now_ms)))
    clock.after(2, lambda: clock.after(1, lambda: seen.append(("a", clock.now_ms))))
    clock.run(4)
    assert (seen, clock.now_ms) == ([("a", 3)], 4)
    clock.drain()
    assert seen == [("a", 3), ("b", 5), ("c", 5)]


def test_shares_and_fairness() -> None:
    assert [quantile([4, 1, 3, 2], share) for share in (0.0, 0.5, 0.51, 1.0)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="nothing"):
        quantile([], 0.5)
    assert jain([5, 5, 5]) == 1
    assert jain([9, 0, 0]) == pytest.approx(1 / 3)
    assert jain([0, 0]) == 1


def test_the_page_has_a_row_for_every_line_that_is_drawn(result: dict[str, object], tmp_path: Path) -> None:
    text = page.publish(result, tmp_path).read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| of so many")]
    drawn = {f"{panel.title}: {label}" for panel in PANELS for _, _, label in panel.lines}
    assert drawn <= {row.split(" | ")[0].removeprefix("| ") for row in rows}
    assert all(row.split(" | ")[-2].rstrip("?") in TERMS for row in rows)
    assert "<!--" not in text
    ElementTree.fromstring((tmp_path / "simulation.svg").read_text())
