"""The consortium's news over gossip: whose cards, hints and revocations are taken, forwarded and kept."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from comity.bundle import new_bundle, sign_bundle, verify_bundle
from comity.ca import OrganizationCa, certificate_request, read_certificates
from comity.card import AgentCard, Skill, sign_card
from comity.errors import ChainInvalid, RevocationInvalid, StorageError
from comity.ids import SpiffeId
from comity.revocation import Revocation, sign_revocation
from comity.signing import PrivateKey, peer_id_bytes
from comity.trust import NodeIdentity, TrustStore
from comity_node.discovery.news import Hint, News, NewsSettings, topic
from comity_node.discovery.news_store import HintNews
from comity_node.transport.memory import MemoryNetwork
from kit.gossiping import EPOCH_MS, Gossiper, link, link_all, now_ms

NAMES = ("a.example", "b.example", "c.example", "d.example")
DAY_MS = 24 * 3600 * 1000
CARDS, HINTS, REVOCATIONS = (topic("lab", kind) for kind in ("cards", "reliability", "revocations"))


@cache
def authorities() -> Mapping[str, OrganizationCa]:
    now = datetime.fromtimestamp(EPOCH_MS / 1000, UTC)
    with tempfile.TemporaryDirectory() as directory:
        return {name: OrganizationCa.create(name, Path(directory) / name, now) for name in (*NAMES, "evil.example")}


@cache
def bundle_bytes() -> bytes:
    members = [authorities()[name] for name in NAMES]
    raw = new_bundle(
        "lab", [ca.certificate_pem for ca in members], issued_ms=EPOCH_MS, expires_ms=EPOCH_MS + 30 * DAY_MS
    )
    for ca in members:
        raw = sign_bundle(raw, ca)
    return raw


def trust() -> TrustStore:
    return TrustStore(verify_bundle(bundle_bytes(), now_ms=EPOCH_MS, own_ca=None))


@cache
def identity(organization: str, number: int = 1) -> NodeIdentity:
    key = PrivateKey(bytes([len(organization) * 7 + ord(organization[0]), number] * 16))
    request = certificate_request(key, SpiffeId(organization, "node", f"n{number}"))
    pem = authorities()[organization].issue(request, now=datetime.fromtimestamp(EPOCH_MS / 1000, UTC))
    return NodeIdentity.of(key, read_certificates(pem))


def card(of: NodeIdentity, agent: str = "generator", **changes: int) -> AgentCard:
    return AgentCard(
        agent=SpiffeId(of.organization, "agent", agent),
        peer_id=of.peer_id,
        name=agent,
        description="",
        version="1",
        skills=(Skill("generate", "Generate", role="generator"),),
        addresses=(),
        issued_ms=changes.get("issued_ms", now_ms()),
        expires_ms=changes.get("expires_ms", now_ms() + DAY_MS),
    )


def hint(about: str = "b.example", **changes: Any) -> Hint:
    return replace(Hint(about, "reviewer", 9_000, 1_000, 8_300, 5_000), **changes)


@dataclass
class Member:
    """A node of the consortium, with its news."""

    network: MemoryNetwork
    identity: NodeIdentity
    settings: NewsSettings = field(default_factory=NewsSettings)
    agents: tuple[str, ...] = ("generator",)
    hints: tuple[Hint, ...] = ()
    card_ms: int = DAY_MS

    def __post_init__(self) -> None:
        self.trust = trust()
        self.gossiper = Gossiper(self.network, self.identity.key)
        self.revoked: list[Revocation] = []
        self.told: list[AgentCard] = []
        self.news = News(
            self.gossiper.pubsub, self.identity, self.trust,
            now_ms=now_ms, random=random.Random(self.identity.peer_id), own_cards=self._cards, own_hints=self._hints,
            on_card=self.told.append, on_revoked=self._revoke, settings=self.settings,
        )  # fmt: skip

    async def start(self, nursery: trio.Nursery) -> None:
        await self.gossiper.start(nursery)
        await nursery.start(self.news.run)

    async def publish(self, name: str, data: bytes) -> None:
        await self.gossiper.pubsub.publish(name, data)
        await trio.sleep(3)

    def score(self, of: Member) -> float:
        return self.gossiper.pubsub.router.score(peer_id_bytes(of.identity.key.public_key), 0)

    async def _cards(self) -> Sequence[bytes]:
        await trio.lowlevel.checkpoint()
        expires_ms = now_ms() + self.card_ms
        return [sign_card(self.identity, card(self.identity, agent, expires_ms=expires_ms)) for agent in self.agents]

    async def _hints(self) -> Sequence[Hint]:
        await trio.lowlevel.checkpoint()
        return self.hints

    def _revoke(self, revocation: Revocation) -> None:
        self.revoked.append(revocation)
        self.trust.revoke(revocation.certificate, revocation.issued_ms)


def chain_of(*members: Member) -> None:
    """a - b - c ...: what c hears of a, b has let through."""
    for left, right in pairwise(members):
        link(left.gossiper, right.gossiper)


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def in_line(
    test: Callable[[Member, Member, Member], Awaitable[None]], settings: NewsSettings | None = None, **first: object
) -> None:
    """Run a test with three members in a line, after their first round."""

    async def main() -> None:
        network, settings_ = MemoryNetwork(), settings or NewsSettings()
        members = [
            Member(network, identity(name), settings_, **(first if name == NAMES[0] else {}))  # type: ignore[arg-type]
            for name in NAMES[:3]
        ]
        async with trio.open_nursery() as nursery:
            for member in members:
                await member.start(nursery)
            chain_of(*members)
            await trio.sleep(5)
            await test(*members)
            nursery.cancel_scope.cancel()

    run(main)


# ---- cards -----------------------------------------------------------------------------------------------------------


def test_every_member_learns_every_card() -> None:
    async def test(a: Member, b: Member, c: Member) -> None:
        for member in (a, b, c):
            others = {"a.example", "b.example", "c.example"} - {member.identity.organization}
            assert {one.organization for one in member.news.cards()} == others
            assert {one.organization for one in member.told} == others
        assert a.news.sizes()["cards"] == 2

    in_line(test)


@pytest.mark.invariant("S5")
def test_a_copied_card_is_refused_from_any_other_peer() -> None:
    async def test(a: Member, b: Member, c: Member) -> None:
        copied = sign_card(identity("d.example"), card(identity("d.example")))
        await a.publish(CARDS, copied)
        assert b.news.counts["cards.refused"] == 1
        assert all(one.organization != "d.example" for member in (b, c) for one in member.news.cards())
        assert c.news.counts["cards.refused"] == 0, "it is not forwarded"
        assert b.score(a) < 0

    in_line(test)


@pytest.mark.invariant("S2")
def test_a_card_of_somebody_who_is_no_member_is_refused() -> None:
    evil = identity("evil.example")

    async def main() -> None:
        network = MemoryNetwork()
        stranger = Gossiper(network, evil.key)
        b, c = (Member(network, identity(name)) for name in NAMES[1:3])
        async with trio.open_nursery() as nursery:
            await stranger.start(nursery)
            for member in (b, c):
                await member.start(nursery)
            link(stranger, b.gossiper)  # as if it had got past the attestation
            chain_of(b, c)
            await trio.sleep(5)
            await stranger.pubsub.publish(CARDS, sign_card(evil, card(evil)))
            await trio.sleep(3)
            assert b.news.counts["cards.refused"] == 1
            assert {one.organization for one in b.news.cards()} == {"c.example"}
            assert c.news.counts["cards.refused"] == 0
            nursery.cancel_scope.cancel()

    run(main)


def test_the_newest_card_wins() -> None:
    async def test(a: Member, b: Member, c: Member) -> None:
        moment = now_ms()
        newer = sign_card(a.identity, card(a.identity, issued_ms=moment + 50))
        older = sign_card(a.identity, card(a.identity, issued_ms=moment - 50))
        await a.publish(CARDS, newer)
        await a.publish(CARDS, older)
        await a.publish(CARDS, newer)
        [kept] = [one for one in c.news.cards() if one.organization == "a.example"]
        assert kept.issued_ms == moment + 50
        assert b.news.counts["cards.known"] == 2
        assert c.news.counts["cards.known"] == 0, "nobody gets what is known already"
        assert b.score(a) >= 0

    in_line(test)


def test_a_card_that_is_only_late_is_ignored_and_costs_nobody_anything() -> None:
    async def test(a: Member, b: Member, c: Member) -> None:
        late = sign_card(a.identity, card(a.identity, issued_ms=now_ms() - 5000, expires_ms=now_ms() - 1000))
        early = sign_card(a.identity, card(a.identity, issued_ms=now_ms() + 60_000, expires_ms=now_ms() + DAY_MS))
        for data in (late, early):
            await a.publish(CARDS, data)
        assert b.news.counts["cards.refused"] == 2
        assert b.score(a) >= 0

    in_line(test)


@pytest.mark.parametrize(
    "bad", [b"{}", b"rubbish", b"[]", b'{"capabilities":{"extensions":[{"uri":1}]}}', b"\xff" * 99]
)
def test_what_is_no_card_is_held_against_who_sends_it(bad: bytes) -> None:
    async def test(a: Member, b: Member, c: Member) -> None:
        await a.publish(CARDS, bad)
        assert b.news.counts["cards.refused"] == 1
        assert b.score(a) < 0
        assert sum(c.news.counts[name] for name in c.news.counts if "refused" in name) == 0

    in_line(test)


@pytest.mark.invariant("S7")
def test_a_node_keeps_so_many_cards_of_one_node_and_one_organization() -> None:
    settings = NewsSettings(node_cards=3, nodes=2)

    async def test(a: Member, b: Member, c: Member) -> None:
        for number in range(8):
            await a.publish(CARDS, sign_card(a.identity, card(a.identity, f"agent{number}")))
        assert sum(one.organization == "a.example" for one in b.news.cards()) == 3
        assert b.news.counts["cards.full"] == 6
        for number in (2, 3):  # further nodes of the same organization
            other = Gossiper(b.network, identity("a.example", number).key)
            async with trio.open_nursery() as nursery:
                await other.start(nursery)
                link(other, b.gossiper)
                await trio.sleep(3)
                mine = identity("a.example", number)
                await other.pubsub.publish(CARDS, sign_card(mine, card(mine)))
                await trio.sleep(3)
                nursery.cancel_scope.cancel()
        assert len({one.peer_id for one in b.news.cards() if one.organization == "a.example"}) == 2
        assert {one.organization for one in b.news.cards()} == {"a.example", "c.example"}, "nobody else is displaced"

    in_line(test, settings)


def test_cards_are_repeated_and_expire_when_they_are_not() -> None:
    async def test(a: Member, b: Member, c: Member) -> None:
        first = {one.organization: one.issued_ms for one in c.news.cards()}
        await trio.sleep(1000)
        assert {one.organization: one.issued_ms > first[one.organization] for one in c.news.cards()} == {
            "a.example": True,
            "b.example": True,
        }
        b.gossiper.links.down(a.identity.peer_id)
        a.gossiper.links.down(b.identity.peer_id)
        await trio.sleep(3700)
        assert {one.organization for one in c.news.cards()} == {"b.example"}

    in_line(test, card_ms=3600 * 1000)


# ---- hints -----------------------------------------------------------------------------------------------------------


def test_hints_reach_everybody_and_say_who_says_so() -> None:
    async def test(a: Member, b: Member, c: Member) -> None:
        assert c.news.hints("b.example") == [("a.example", hint())]
        assert c.news.hints("d.example") == [("a.example", hint("d.example", mean=10_000))]
        assert c.news.hints("a.example") == [], "what it says of itself is not even sent"
        await trio.sleep(2000)
        assert len(c.news.hints("b.example")) == 1, "repeated"
        b.gossiper.links.down(a.identity.peer_id)
        await trio.sleep(2000)
        assert c.news.hints("b.example") == [], "and expired"

    in_line(test, hints=(hint(), hint("d.example", mean=10_000), hint("a.example")))


def hint_news(of: NodeIdentity, *hints: Hint, **changes: object) -> HintNews:
    news = HintNews("lab", of.chain, now_ms(), now_ms() + 60_000, hints or (hint(),))
    return replace(news, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda a: hint_news(identity("d.example")).encode(),
        lambda a: hint_news(identity("evil.example"), chain=identity("evil.example").chain).encode(),
        lambda a: hint_news(a, hint("a.example")).encode(),
        lambda a: hint_news(a, hint("stranger.example")).encode(),
        lambda a: hint_news(a, hint("NOBODY")).encode(),
        lambda a: hint_news(a, hint(mean=10_001)).encode(),
        lambda a: hint_news(a, hint(weight=10_001)).encode(),
        lambda a: hint_news(a, hint(agreed_milli=2**60)).encode(),
        lambda a: hint_news(a, replace(hint(), role="king")).encode(),
        lambda a: hint_news(a, hint(), hint()).encode(),
        lambda a: hint_news(a, *(hint(f"o{number}.example") for number in range(300))).encode(),
        lambda a: hint_news(a, consortium="other").encode(),
        lambda a: hint_news(a, chain=()).encode(),
        lambda a: hint_news(a, issued_ms=now_ms(), expires_ms=now_ms() + 2 * DAY_MS).encode(),
        lambda a: hint_news(a, issued_ms=5, expires_ms=5).encode(),
        lambda a: hint_news(a).encode()[:-1],
        lambda a: b"\xff\xff",
    ],
)
def test_hints_that_nobody_may_send_are_held_against_who_sends_them(make: Callable[[NodeIdentity], bytes]) -> None:
    async def test(a: Member, b: Member, c: Member) -> None:
        await a.publish(HINTS, make(a.identity))
        assert b.news.counts["hints.refused"] == 1
        assert b.score(a) < 0
        assert b.news.sizes()["hints"] == c.news.sizes()["hints"] == c.news.counts["hints.refused"] == 0

    in_line(test)


def test_hints_that_are_late_early_or_old_are_ignored() -> None:
    async def test(a: Member, b: Member, c: Member) -> None:
        await a.publish(HINTS, hint_news(a.identity, issued_ms=now_ms() - 50_000, expires_ms=now_ms() - 1).encode())
        await a.publish(
            HINTS, hint_news(a.identity, issued_ms=now_ms() + 40_000, expires_ms=now_ms() + 90_000).encode()
        )
        assert b.news.counts["hints.stale"] == 2
        await a.publish(HINTS, hint_news(a.identity, issued_ms=now_ms() - 1).encode())
        await a.publish(HINTS, hint_news(a.identity, hint(mean=1), issued_ms=now_ms() - 9000).encode())
        assert b.news.counts["hints.known"] == 1
        assert [one.mean for _, one in c.news.hints("b.example")] == [8_300]
        assert b.score(a) >= 0

    in_line(test)


@pytest.mark.invariant("S7")
def test_an_author_gets_one_card_or_hint_a_second_after_a_burst() -> None:
    async def test(a: Member, b: Member, c: Member) -> None:
        for number in range(200):
            moment = now_ms() + number
            await a.gossiper.pubsub.publish(CARDS, sign_card(a.identity, card(a.identity, issued_ms=moment)))
        await trio.sleep(3)
        taken = b.news.counts["cards.new"]
        assert 64 <= taken <= 64 + 60
        late = b.news.counts["cards.known"]  # judged after a newer one
        assert b.news.counts["cards.over_rate"] == 200 + 2 - taken - late
        assert b.score(a) >= 0

    in_line(test)


# ---- revocations -----------------------------------------------------------------------------------------------------


def revoke(of: NodeIdentity, **changes: int) -> bytes:
    issued_ms = changes.get("issued_ms", now_ms())
    return sign_revocation(authorities()[of.organization], of.chain[0], issued_ms=issued_ms, reason="stolen")


def test_a_revocation_takes_effect_everywhere_and_the_card_is_refused_from_then_on() -> None:
    async def test(a: Member, b: Member, c: Member) -> None:
        raw = revoke(a.identity)
        await c.news.revoke(raw)
        await trio.sleep(3)
        for member in (a, b, c):
            assert [one.raw for one in member.revoked] == [raw]
            assert [one.raw for one in member.news.revocations()] == [raw]
            with pytest.raises(ChainInvalid, match="revoked"):
                member.trust.verify_chain(a.identity.chain, now_ms())
        before = b.news.counts["cards.refused"]
        await a.publish(CARDS, sign_card(a.identity, card(a.identity)))
        assert b.news.counts["cards.refused"] == before + 1

    in_line(test)


@pytest.mark.invariant("S7")
def test_who_forwards_what_a_revocation_that_it_has_not_heard_of_refuses_is_not_punished() -> None:
    """A bad organization revokes its own node, tells one side alone, and lets the other forward that node's news."""

    async def test(a: Member, b: Member, c: Member) -> None:
        c.trust.revoke(a.identity.chain[0], EPOCH_MS)
        for number in range(6):
            await a.publish(CARDS, sign_card(a.identity, card(a.identity, f"agent{number}")))
            news = HintNews(
                c.trust.bundle.consortium, a.identity.chain, now_ms() + number, now_ms() + 60_000, (hint(),)
            )
            await a.publish(HINTS, news.encode())
        assert b.news.counts["cards.new"] >= 6
        assert c.news.counts["cards.refused"] >= 6
        assert c.news.counts["hints.stale"] >= 6
        assert not [each.name for each in c.told if each.name.startswith("agent")]
        assert c.score(b) >= 0

    in_line(test)


@pytest.mark.invariant("S7")
def test_a_revocation_is_passed_on_once_however_often_it_is_published() -> None:
    async def test(a: Member, b: Member, c: Member) -> None:
        raw = revoke(identity("d.example"))
        for _ in range(20):
            await a.publish(REVOCATIONS, raw)
        assert b.news.counts["revocations.new"] == c.news.counts["revocations.new"] == 1
        assert b.news.counts["revocations.known"] == 19
        assert c.news.counts["revocations.known"] == 0
        again = revoke(identity("d.example"), issued_ms=now_ms() + 500)
        await a.publish(REVOCATIONS, again)
        assert b.news.counts["revocations.weaker"] == 1
        earlier = revoke(identity("d.example"), issued_ms=now_ms() - 100_000)
        await a.publish(REVOCATIONS, earlier)
        assert [one.raw for one in c.revoked] == [raw, earlier]
        assert c.news.sizes()["revocations"] == 1

    in_line(test)


def test_a_forged_revocation_is_held_against_who_sends_it() -> None:
    async def test(a: Member, b: Member, c: Member) -> None:
        raw = revoke(identity("d.example"))
        for bad in (raw[:-1], raw.replace(b"sig", b"gis"), b"rubbish"):
            await a.publish(REVOCATIONS, bad)
        assert b.news.counts["revocations.refused"] == 3
        assert b.revoked == c.revoked == []
        assert b.score(a) < -50
        with pytest.raises(RevocationInvalid):
            await a.news.revoke(b"rubbish")

    in_line(test)


def test_one_from_the_future_waits() -> None:
    async def test(a: Member, b: Member, c: Member) -> None:
        await a.publish(REVOCATIONS, revoke(identity("d.example"), issued_ms=now_ms() + 50_000))
        assert b.news.counts["revocations.early"] == 1
        assert b.score(a) >= 0

    in_line(test)


def test_whoever_comes_late_learns_all_revocations_within_a_round() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a, b = (Member(network, identity(name)) for name in NAMES[:2])
        late = Member(network, identity(NAMES[2]))
        raws = [revoke(identity("d.example", number)) for number in range(1, 101)]
        async with trio.open_nursery() as nursery:
            for member in (a, b):
                await member.start(nursery)
            link_all([a.gossiper, b.gossiper])
            a.news.restore([*raws, b"rubbish"])
            await trio.sleep(2000)
            assert len(b.revoked) == 100
            await late.start(nursery)
            link(b.gossiper, late.gossiper)
            await trio.sleep(1200)
            assert {one.raw for one in late.revoked} == set(raws)
            nursery.cancel_scope.cancel()

    run(main)


def test_what_the_node_cannot_say_does_not_stop_the_news() -> None:
    async def test(a: Member, b: Member, c: Member) -> None:
        failures = 0

        async def broken() -> Sequence[bytes]:
            nonlocal failures
            failures += 1
            raise StorageError("the disk is gone")

        a.news._own_cards = broken
        await trio.sleep(2000)
        assert failures > 1
        assert {one.organization for one in a.news.cards()} == {"b.example", "c.example"}

    in_line(test)
