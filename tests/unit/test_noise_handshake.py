"""libp2p's Noise handshake proves who is there and nothing else, and bounds what a peer may say in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from comity.errors import FrameTooLarge, LinkClosed, ProtocolError, UnexpectedMessage
from comity.signing import PrivateKey
from comity_node.p2p.v1.noise_pb2 import NoisePayload
from comity_node.transport.noise import (
    MAX_HANDSHAKE_MESSAGE,
    MAX_PLAINTEXT,
    MAX_SEALED,
    Frames,
    NoiseHandshake,
    NoiseIdentity,
    NoiseSession,
)
from comity_node.transport.noise_xx import XX, CipherState

YAMUX = "/yamux/1.0.0"
ALICE, BOB = PrivateKey(b"\x01" * 32), PrivateKey(b"\x02" * 32)


def identity(key: PrivateKey, *muxers: str) -> NoiseIdentity:
    return NoiseIdentity.of(key, X25519PrivateKey.generate(), muxers)


def handshake(own: NoiseIdentity, *, initiator: bool, expected: str | None = None) -> NoiseHandshake:
    return NoiseHandshake(own, initiator=initiator, ephemeral=X25519PrivateKey.generate(), expected_peer=expected)


def shake_hands(dialler: NoiseHandshake, listener: NoiseHandshake) -> None:
    listener.receive(dialler.receive(listener.receive(dialler.start())))


def with_payload(change: Callable[[NoisePayload], None]) -> NoiseIdentity:
    """An identity whose payload says something else."""
    own = identity(ALICE, YAMUX)
    payload = NoisePayload.FromString(own.payload)
    change(payload)
    return NoiseIdentity(own.static, payload.SerializeToString(), own.muxers)


def test_both_ends_learn_who_is_there() -> None:
    dialler, listener = (
        handshake(identity(ALICE, YAMUX), initiator=True),
        handshake(identity(BOB, YAMUX), initiator=False),
    )
    shake_hands(dialler, listener)
    assert dialler.proved is not None
    assert listener.proved is not None
    assert (dialler.proved.peer_id, listener.proved.peer_id) == (BOB.peer_id, ALICE.peer_id)
    sealed = b"".join(dialler.proved.session.seal(b"hello"))
    listener.proved.session.feed(sealed)
    assert listener.proved.session.take() == b"hello"


@pytest.mark.parametrize(
    ("ours", "theirs", "muxer"),
    [
        ((YAMUX,), (YAMUX,), YAMUX),
        (("/a", "/b"), ("/b", "/a"), "/a"),  # the dialler's order counts
        ((YAMUX,), (), ""),
        ((), (YAMUX,), ""),
    ],
)
def test_the_multiplexer_is_agreed_on_in_the_handshake(
    ours: tuple[str, ...], theirs: tuple[str, ...], muxer: str
) -> None:
    dialler, listener = (
        handshake(identity(ALICE, *ours), initiator=True),
        handshake(identity(BOB, *theirs), initiator=False),
    )
    shake_hands(dialler, listener)
    for each in (dialler, listener):
        assert each.proved is not None
        assert each.proved.muxer == muxer


def test_without_a_multiplexer_in_common_the_handshake_fails() -> None:
    dialler, listener = (
        handshake(identity(ALICE, "/a"), initiator=True),
        handshake(identity(BOB, "/b"), initiator=False),
    )
    with pytest.raises(ProtocolError, match="none of the multiplexers /b"):
        listener.receive(_third(dialler, listener))


def _third(dialler: NoiseHandshake, listener: NoiseHandshake) -> bytes:
    """The dialler's last message, from a dialler that does not look at what it was offered."""
    dialler._identity = NoiseIdentity(dialler._identity.static, dialler._identity.payload, ())
    return dialler.receive(listener.receive(dialler.start()))


def test_somebody_else_is_told_nothing_about_us() -> None:
    expected = PrivateKey.generate().peer_id
    dialler = handshake(identity(ALICE, YAMUX), initiator=True, expected=expected)
    listener = handshake(identity(BOB, YAMUX), initiator=False)
    second = listener.receive(dialler.start())
    with pytest.raises(ProtocolError, match=f"does not correspond to {expected}"):
        dialler.receive(second)
    assert dialler.proved is None


def _other_key(payload: NoisePayload) -> None:
    payload.identity_key = b"\x08\x01\x12\x20" + BOB.public_key


def _small_order_key(payload: NoisePayload) -> None:
    payload.identity_key = b"\x08\x01\x12\x20" + b"\x01" + bytes(31)
    payload.identity_sig = b"\x01" + bytes(63)


def _secp256k1(payload: NoisePayload) -> None:
    payload.identity_key = b"\x08\x02\x12\x21" + bytes(33)


def _short_signature(payload: NoisePayload) -> None:
    payload.identity_sig = payload.identity_sig[:-1]


def _nothing(payload: NoisePayload) -> None:
    payload.Clear()


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("change", [_other_key, _small_order_key, _secp256k1, _short_signature, _nothing])
@pytest.mark.parametrize("initiator", [False, True])
def test_a_key_that_is_not_proved_is_nobody(change: Callable[[NoisePayload], None], initiator: bool) -> None:
    liar = handshake(with_payload(change), initiator=initiator)
    honest = handshake(identity(BOB, YAMUX), initiator=not initiator)
    with pytest.raises(ProtocolError, match="has not proved its key"):
        shake_hands(*((liar, honest) if initiator else (honest, liar)))
    assert honest.proved is None


@pytest.mark.invariant("S2")
def test_a_payload_that_is_no_protobuf_is_refused() -> None:
    own = identity(ALICE)
    liar = handshake(NoiseIdentity(own.static, b"\xff\xff\xff", ()), initiator=False)
    with pytest.raises(ProtocolError, match="has not proved its key"):
        shake_hands(handshake(identity(BOB), initiator=True), liar)


#: X25519 public keys whose shared secret is zero with every private key (https://cr.yp.to/ecdh.html).
SMALL_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("key", SMALL_ORDER, ids=range(len(SMALL_ORDER)))
def test_keys_that_make_the_secret_known_are_refused(key: bytes) -> None:
    listener = handshake(identity(BOB), initiator=False)
    with pytest.raises(ProtocolError, match="small order"):
        listener.receive(b"\x00\x20" + key)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("length", [MAX_HANDSHAKE_MESSAGE + 1, 0xFFFF])
def test_a_long_message_of_the_handshake_is_refused_by_its_length(length: int) -> None:
    listener = handshake(identity(BOB), initiator=False)
    with pytest.raises(FrameTooLarge):
        listener.receive(length.to_bytes(2, "big"))


@pytest.mark.parametrize("first", [b"\x00\x00", b"\x00\x1f" + bytes(31)])
def test_a_message_that_is_too_short_is_refused(first: bytes) -> None:
    with pytest.raises(ProtocolError, match="too short"):
        handshake(identity(BOB), initiator=False).receive(first)


def test_the_turns_of_a_handshake_are_kept() -> None:
    end = XX(initiator=False, static=X25519PrivateKey.generate(), ephemeral=X25519PrivateKey.generate())
    with pytest.raises(UnexpectedMessage):
        end.write(b"")
    end = XX(initiator=True, static=X25519PrivateKey.generate(), ephemeral=X25519PrivateKey.generate())
    with pytest.raises(UnexpectedMessage):
        end.read(bytes(32))


# Sessions.


def sessions() -> tuple[NoiseSession, NoiseSession]:
    one, two = b"\x01" * 32, b"\x02" * 32
    return (
        NoiseSession(CipherState(one), CipherState(two), Frames()),
        NoiseSession(CipherState(two), CipherState(one), Frames()),
    )


@pytest.mark.parametrize("size", [0, 1, MAX_PLAINTEXT, MAX_PLAINTEXT + 1, 2 * MAX_PLAINTEXT, 300_000, 1_000_000])
def test_what_is_sealed_is_written_in_bounded_pieces(size: int) -> None:
    sender, receiver = sessions()
    data = bytes(range(256)) * (size // 256 + 1)
    got = b""
    for piece in sender.seal(data[:size]):
        assert len(piece) <= MAX_SEALED
        receiver.feed(piece)
        while plain := receiver.take():
            assert len(plain) < 256 * 1024 + MAX_PLAINTEXT
            got += plain
    assert got == data[:size]


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("length", [0, 1, 15])
def test_a_message_without_room_for_its_tag_is_refused(length: int) -> None:
    _, receiver = sessions()
    receiver.feed(length.to_bytes(2, "big") + bytes(length))
    with pytest.raises(ProtocolError, match="no room for its tag"):
        receiver.take()


@pytest.mark.invariant("S2")
def test_messages_are_taken_once_and_in_order() -> None:
    sender, receiver = sessions()
    first, second = (b"".join(sender.seal(text)) for text in (b"first", b"second"))
    receiver.feed(first)
    assert receiver.take() == b"first"
    receiver.feed(first)
    with pytest.raises(ProtocolError):
        receiver.take()
    _, receiver = sessions()
    receiver.feed(second)
    with pytest.raises(ProtocolError):
        receiver.take()


def test_a_key_is_not_used_for_more_messages_than_it_may_be() -> None:
    cipher = CipherState(bytes(32))
    cipher.nonce = 2**64 - 2
    assert cipher.encrypt(b"the last")
    with pytest.raises(LinkClosed, match="used up"):
        cipher.encrypt(b"one more")
    with pytest.raises(LinkClosed, match="used up"):
        cipher.decrypt(bytes(32))


def test_a_message_that_has_begun_is_told_from_an_end() -> None:
    sender, receiver = sessions()
    sealed = b"".join(sender.seal(b"hello"))
    for size in range(1, len(sealed)):
        _, receiver = sessions()
        receiver.feed(sealed[:size])
        assert receiver.take() == b""
        assert receiver.is_cut
    _, receiver = sessions()
    assert not receiver.is_cut


def test_empty_messages_are_no_end() -> None:
    sender, receiver = sessions()
    receiver.feed(b"".join(b"".join(sender.seal(text)) for text in (b"", b"", b"text", b"")))
    assert receiver.take() == b"text"
    assert receiver.take() == b""
