"""Kademlia without a network: distances, bounded tables, and searches that end."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.digest import sha256
from comity.errors import Busy
from comity.signing import PrivateKey, peer_id_to_bytes
from comity_node.protocol.kad import (
    ALPHA,
    Contact,
    K,
    ProviderLimits,
    Providers,
    RoutingTable,
    Search,
    position,
    skill_key,
)

NOW = 1_700_000_000_000
LIMITS = ProviderLimits(keys=3, per_key=2, per_provider=2, lives_ms=1000)


@cache
def peers(count: int) -> tuple[str, ...]:
    return tuple(PrivateKey(sha256(number.to_bytes(4, "big"))).peer_id for number in range(count))


def distance(peer_id: str, key: bytes) -> int:
    return position(peer_id_to_bytes(peer_id)) ^ position(key)


def test_a_skills_key_is_a_sha2_256_multihash() -> None:
    assert skill_key("review") == b"\x12\x20" + sha256(b"/comity/skill/review")


def test_the_closest_come_first_and_whoever_was_there_first_stays() -> None:
    me, *others = peers(200)
    table = RoutingTable(me, bucket=4)
    taken = [peer for peer in others if table.add(peer)]
    assert not table.add(me)
    assert len(table) == len(taken) < len(others)
    key = skill_key("review")
    assert table.closest(key, 10) == sorted(taken, key=lambda peer: distance(peer, key))[:10]
    assert table.add(taken[0])  # again: no second place
    assert len(table) == len(taken)
    for peer in taken:
        table.remove(peer)
        table.remove(peer)
    assert len(table) == 0
    assert all(table.add(peer) for peer in taken)


@pytest.mark.invariant("S7")
def test_provider_records_are_bounded_and_expire() -> None:
    providers = Providers(LIMITS)
    a, b, c = (Contact(peer, ("/ip4/192.0.2.1/tcp/1",)) for peer in peers(3))
    one, two, three, four = map(skill_key, ("one", "two", "three", "four"))
    providers.add(one, a, NOW)
    providers.add(one, b, NOW)
    with pytest.raises(Busy):
        providers.add(one, c, NOW)  # too many of this key
    providers.add(two, a, NOW)
    with pytest.raises(Busy):
        providers.add(three, a, NOW)  # too many keys of a
    providers.add(three, b, NOW)
    with pytest.raises(Busy):
        providers.add(four, c, NOW)  # too many keys
    providers.add(one, a, NOW + 500)  # renewing takes no place
    assert providers.of(one, NOW + 999) == [a, b]
    assert providers.of(one, NOW + 1000) == [a]
    providers.add(four, c, NOW + 1000)  # what expired made room
    assert providers.of(two, NOW + 1000) == providers.of(three, NOW + 1000) == []
    assert len(providers) == 2


def simulate(count: int, key: bytes, *, dead: frozenset[str] = frozenset()) -> tuple[Search, int]:
    """A search in a network in which everybody knows, in its table, some of the others."""
    everybody = peers(count)
    tables = {me: RoutingTable(me, bucket=5) for me in everybody}
    for me, table in tables.items():
        for other in everybody:
            if other != me:
                table.add(other)
    search = Search(key, tables[everybody[0]].closest(key, 3), me=everybody[0])
    asked = 0
    while not search.done:
        batch = search.next()
        assert 0 < len(batch) <= ALPHA
        for contact in batch:
            asked += 1
            if contact.peer_id in dead:
                search.failed(contact.peer_id)
            else:
                search.answered(contact.peer_id, [Contact(peer) for peer in tables[contact.peer_id].closest(key)])
    return search, asked


def test_a_search_finds_the_nearest_of_all_and_asks_few() -> None:
    key = skill_key("review")
    search, asked = simulate(300, key)
    nearest = sorted(peers(300)[1:], key=lambda peer: distance(peer, key))[:K]
    assert [contact.peer_id for contact in search.nearest()] == nearest
    assert asked <= 3 * K


def test_a_search_goes_around_the_dead() -> None:
    key = skill_key("review")
    dead = frozenset(sorted(peers(300)[1:], key=lambda peer: distance(peer, key))[:6])
    search, _ = simulate(300, key, dead=dead)
    found = [contact.peer_id for contact in search.nearest()]
    assert not dead & set(found)
    assert len(found) == K


@pytest.mark.invariant("S7")
@given(st.integers(1, 30), st.lists(st.booleans(), max_size=200))
def test_a_search_ends_however_many_others_name(most: int, fails: list[bool]) -> None:
    """Liars who answer every question with new names cannot lead it on."""
    everybody = iter(peers(700))
    search = Search(skill_key("x"), [next(everybody)], most=most)
    outcomes = iter(fails)
    asked = 0
    while not search.done:
        for contact in search.next():
            asked += 1
            if next(outcomes, False):
                search.failed(contact.peer_id)
            else:
                search.answered(contact.peer_id, [Contact(next(everybody)) for _ in range(K)])
    assert asked <= most
    assert len(search.nearest()) <= min(K, asked)


@pytest.mark.invariant("S7")
def test_the_dead_do_not_keep_the_place_of_the_living_where_others_stay() -> None:
    """Providers come and go for months while some never go: a key has room again as soon as a record is over."""
    providers = Providers(ProviderLimits(keys=3, per_key=2, per_provider=2, lives_ms=1000))
    steady, other, *passing = (Contact(peer) for peer in peers(52))
    one, two = skill_key("one"), skill_key("two")
    for number, visitor in enumerate(passing):
        now = NOW + 1000 * number
        for moment in (now, now + 500):
            providers.add(two, other, moment)  # another key that is always renewed, and never over
            providers.add(one, steady, moment)
        providers.add(one, visitor, now + 600)
        assert providers.of(one, now + 700) == [steady, visitor]
        providers.add(two, other, now + 990)
        providers.add(one, steady, now + 990)
        now += 1000
    # Nor does who has gone count against itself when it comes back with something else.
    late = NOW + 10_000_000
    for name in ("two", "three"):
        providers.add(skill_key(name), passing[0], late)


def test_a_clock_that_goes_back_leaves_no_record_for_ever() -> None:
    providers = Providers(ProviderLimits(keys=1, lives_ms=1000))
    a, b = map(Contact, peers(2))
    providers.add(skill_key("one"), a, NOW + 10**12)  # a clock that was wrong when the machine started
    assert providers.of(skill_key("one"), NOW) == []
    providers.add(skill_key("two"), b, NOW)
    assert providers.of(skill_key("two"), NOW) == [b]


@pytest.mark.invariant("S7")
def test_names_that_a_liar_has_made_near_to_the_key_keep_none_of_our_own_peers_from_being_asked() -> None:
    key = skill_key("review")
    near = sorted(peers(700), key=lambda peer: distance(peer, key))
    own, lies = near[-K:], iter(near[:-K])
    search = Search(key, own)
    while not search.done:
        for contact in search.next():
            if contact.peer_id in own:
                search.answered(contact.peer_id, [Contact(next(lies)) for _ in range(K)])
            else:
                search.failed(contact.peer_id)
    assert {contact.peer_id for contact in search.nearest()} == set(own)
