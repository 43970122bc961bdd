"""Who presents what is not its own, or not of now: each row is refused, and what is good is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from comity.bundle import read_bundle, remove_member
from comity.card import AgentCard, Skill, open_card, sign_card
from comity.envelope import open_message, seal
from comity.errors import ChainInvalid, ComityError, PeerNotAttested
from comity.ids import SpiffeId
from comity.trust import NodeIdentity, TrustStore
from comity.v1 import link_pb2
from comity_node.links.greeting import Greeter
from comity_node.protocol.freshness import Freshness
from comity_node.transport.base import Priority
from kit.epochs import BEGIN_MS, DAY_MS, authority, first, node_of, signed, with_root

A, B, C, D, E = (authority(name) for name in "abcde")
ONE = first("a", "b", "c", "d")
TWO = signed(remove_member(ONE, "d.example", issued_ms=BEGIN_MS, expires_ms=BEGIN_MS + 300 * DAY_MS), (A, B, C))
THREE = with_root(TWO, E, A, B, C, E, at_ms=BEGIN_MS)
NOW_MS = BEGIN_MS + 2 * DAY_MS
#: Certified for the day before and the day after.
ALICE, BOB, CARL, DORA = (node_of(ca, at_ms=NOW_MS - DAY_MS // 2, days=1) for ca in (A, B, C, D))
STRANGER = node_of(authority("b", 9), at_ms=NOW_MS - DAY_MS // 2)


def greeter(node: NodeIdentity, raw: bytes = TWO, at_ms: int = NOW_MS) -> Greeter:
    return Greeter(node, TrustStore(read_bundle(raw)), list, lambda: at_ms, allow_private=True)


def hello(node: NodeIdentity, raw: bytes = TWO, /, **changes: object) -> bytes:
    made = link_pb2.Hello.FromString(greeter(node, raw).hello(Priority.CONTROL))
    for name, value in changes.items():
        if name == "chain":
            del made.chain[:]
            made.chain.extend(value)  # type: ignore[arg-type]
        else:
            setattr(made, name, value)
    return made.SerializeToString()


def two(node: NodeIdentity) -> dict[str, object]:
    """What a node says that claims to have epoch 2 as well."""
    bundle = read_bundle(TWO)
    return {"bundle_epoch": 2, "bundle_digest": bundle.digest, "chain": list(node.chain)}


@pytest.mark.invariant("S5")
@pytest.mark.parametrize(
    ("data", "peer", "at_ms", "reason"),
    [
        (hello(BOB, chain=list(CARL.chain)), BOB, NOW_MS, "not of"),  # somebody else's certificate
        (hello(STRANGER), STRANGER, NOW_MS, "no root of b.example"),  # a foreign CA of a member's name
        (hello(DORA, ONE), DORA, NOW_MS, "no member"),  # expelled, with the epoch in which it was one
        (hello(DORA, **two(DORA)), DORA, NOW_MS, "no member"),  # expelled, with the digest of the one in force
        (hello(BOB, bundle_epoch=2, bundle_digest=b"x" * 32), BOB, NOW_MS, "another trust bundle|epoch"),
        (hello(BOB, bundle_epoch=0), BOB, NOW_MS, "epoch 0"),
        (hello(BOB, bundle_epoch=9), BOB, NOW_MS, "epoch 9"),
        (hello(BOB), BOB, NOW_MS + DAY_MS, "has expired"),  # a clock that is a day ahead
        (hello(BOB), BOB, NOW_MS - DAY_MS, "not valid yet"),  # and a day behind
        (hello(BOB), BOB, BEGIN_MS + 400 * DAY_MS, "bundle of epoch 2 has expired"),
    ],
)
def test_a_hello_of_somebody_else_or_of_another_time(data: bytes, peer: NodeIdentity, at_ms: int, reason: str) -> None:
    good = greeter(ALICE).judge(hello(BOB), BOB.peer_id, [Priority.CONTROL], needs_window=False)
    assert good.attested.organization == "b.example"
    with pytest.raises(PeerNotAttested, match=reason):
        greeter(ALICE, at_ms=at_ms).judge(data, peer.peer_id, [Priority.CONTROL], needs_window=False)


@pytest.mark.invariant("S5")
def test_a_node_two_epochs_behind_is_told_which_epoch_it_has() -> None:
    with pytest.raises(PeerNotAttested, match="epoch 1; this node's is of epoch 3"):
        greeter(ALICE, THREE).judge(hello(BOB, ONE), BOB.peer_id, [Priority.CONTROL], needs_window=False)


@pytest.mark.invariant("S5")
def test_a_member_that_is_expelled_while_it_is_linked_is_refused_with_its_next_sign_of_life() -> None:
    trust = TrustStore(read_bundle(ONE))
    own = Greeter(ALICE, trust, list, lambda: NOW_MS, allow_private=True)
    linked = own.judge(hello(DORA, ONE), DORA.peer_id, [Priority.CONTROL], needs_window=False)
    stays = own.judge(hello(BOB, ONE), BOB.peer_id, [Priority.CONTROL], needs_window=False)
    own.judge_again(linked)
    trust.replace(read_bundle(TWO))
    with pytest.raises(PeerNotAttested, match=r"d\.example is no member"):
        own.judge_again(linked)
    own.judge_again(stays)


def card(node: NodeIdentity, issued_ms: int = NOW_MS) -> bytes:
    made = AgentCard(
        agent=SpiffeId(node.organization, "agent", "generator"),
        peer_id=node.peer_id,
        name="generator",
        description="Rows.",
        version="1.0.0",
        skills=(Skill("generate", "Generate", "Rows.", ("tabular",), "generator"),),
        addresses=("/ip4/127.0.0.1/tcp/4001",),
        issued_ms=issued_ms,
        expires_ms=issued_ms + DAY_MS // 2,
    )
    return sign_card(node, made)


@pytest.mark.invariant("S5")
@pytest.mark.parametrize(
    ("data", "peer", "at_ms"),
    [
        (card(BOB), CARL, NOW_MS),  # somebody else's
        (card(STRANGER), STRANGER, NOW_MS),
        (card(DORA), DORA, NOW_MS),  # of an expelled member
        (card(BOB), BOB, NOW_MS + DAY_MS),
        (card(BOB), BOB, NOW_MS - DAY_MS),
        (card(BOB, NOW_MS + DAY_MS), BOB, NOW_MS),
        (card(BOB, NOW_MS - DAY_MS), BOB, NOW_MS),
    ],
)
def test_a_card_of_somebody_else_or_of_another_time(data: bytes, peer: NodeIdentity, at_ms: int) -> None:
    trust = TrustStore(read_bundle(TWO))
    assert open_card(card(BOB), trust, NOW_MS, BOB.peer_id).organization == "b.example"
    with pytest.raises(ComityError):
        open_card(data, trust, at_ms, peer.peer_id)


@pytest.mark.invariant("S5")
@pytest.mark.parametrize("off_ms", [DAY_MS, -DAY_MS])
def test_a_message_from_a_clock_that_is_off_by_a_day(off_ms: int) -> None:
    def check(at_ms: int) -> None:
        data = seal(
            BOB.key, "peers", b"body", audience=ALICE.peer_id, message_id=bytes(8) + bytes(7) + b"\1", now_ms=at_ms
        )
        message = open_message(data, ["peers"])
        Freshness(ALICE.peer_id).check(message.signer, message.header, NOW_MS)

    check(NOW_MS)
    with pytest.raises(ComityError, match=r"compare the clocks|expired"):
        check(NOW_MS + off_ms)


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_every_byte_of_a_certificate_counts(which: int, flip: int) -> None:
    trust = TrustStore(read_bundle(TWO))
    verify: list[Callable[[list[bytes], int], object]] = [trust.verify_chain, trust.verify_signed]
    for where in range(len(BOB.chain[which])):
        chain = [bytearray(der) for der in BOB.chain]
        chain[which][where] ^= flip
        for each in verify:
            with pytest.raises(ChainInvalid):
                each([bytes(der) for der in chain], NOW_MS)
