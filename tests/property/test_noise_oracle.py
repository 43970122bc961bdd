"""Our Noise and noiseprotocol, on which py-libp2p builds, understand each other byte for byte."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection  # type: ignore[import-untyped]

from comity_node.transport.noise import MAX_PLAINTEXT, Frames, NoiseSession
from comity_node.transport.noise_xx import XX

pytestmark = pytest.mark.filterwarnings("ignore:One of ephemeral keypairs:UserWarning")

KEYS = [bytes([number]) * 32 for number in range(1, 5)]
PAYLOADS = st.binary(max_size=300)
SIZES = st.lists(
    st.one_of(st.integers(0, 200), st.sampled_from([MAX_PLAINTEXT - 1, MAX_PLAINTEXT, MAX_PLAINTEXT + 1, 150_000])),
    min_size=1,
    max_size=4,
)


def ours(*, initiator: bool) -> XX:
    static, ephemeral = (KEYS[0], KEYS[1]) if initiator else (KEYS[2], KEYS[3])
    return XX(
        initiator=initiator,
        static=X25519PrivateKey.from_private_bytes(static),
        ephemeral=X25519PrivateKey.from_private_bytes(ephemeral),
    )


def theirs(*, initiator: bool) -> Any:
    static, ephemeral = (KEYS[0], KEYS[1]) if initiator else (KEYS[2], KEYS[3])
    connection = NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256")
    connection.set_keypair_from_private_bytes(Keypair.STATIC, static)
    connection.set_keypair_from_private_bytes(Keypair.EPHEMERAL, ephemeral)
    if initiator:
        connection.set_as_initiator()
    else:
        connection.set_as_responder()
    connection.start_handshake()
    return connection


def shake_hands(payloads: tuple[bytes, bytes, bytes], *, initiator: bool) -> tuple[XX, Any]:
    """Our end as `initiator` or not, theirs as the other; each message is the one that theirs would send, too."""
    us, them, twin = ours(initiator=initiator), theirs(initiator=not initiator), theirs(initiator=initiator)
    for number, payload in enumerate(payloads):
        if (number % 2 == 0) == initiator:
            message = us.write(payload)
            assert message == twin.write_message(payload)
            assert them.read_message(message) == payload
        else:
            message = bytes(them.write_message(payload))
            assert us.read(message) == payload
            twin.read_message(message)
    assert us.is_finished
    assert us.handshake_hash == them.get_handshake_hash()
    return us, them


@pytest.mark.parametrize("initiator", [False, True])
@settings(max_examples=25)
@given(payloads=st.tuples(PAYLOADS, PAYLOADS, PAYLOADS))
def test_handshakes_are_the_same(initiator: bool, payloads: tuple[bytes, bytes, bytes]) -> None:
    shake_hands(payloads, initiator=initiator)


@pytest.mark.parametrize("initiator", [False, True])
@settings(max_examples=25)
@given(sizes=SIZES, seed=st.integers(0, 2**32))
def test_sessions_are_the_same_however_the_bytes_are_cut(initiator: bool, sizes: list[int], seed: int) -> None:
    random = Random(seed)
    us, them = shake_hands((b"", b"", b""), initiator=initiator)
    session = NoiseSession(*us.split(), Frames())
    for size in sizes:
        data = random.randbytes(size)
        # Ours to theirs.
        wire = b"".join(session.seal(data))
        back = b""
        while wire:
            end = 2 + int.from_bytes(wire[:2], "big")
            back += them.decrypt(wire[2:end])
            wire = wire[end:]
        assert back == data
        # Theirs to ours, in messages and pieces of any size.
        sealed, at = b"", 0
        while at < size:
            step = random.choice([random.randint(1, 300), MAX_PLAINTEXT])
            message = them.encrypt(data[at : at + step])
            sealed += len(message).to_bytes(2, "big") + message
            at += step
        assert opened(session, sealed, random) == data


def opened(session: NoiseSession, sealed: bytes, random: Random) -> bytes:
    plain, at = b"", 0
    while at < len(sealed):
        step = random.choice([1, 2, 3, random.randint(1, 1000), random.randint(1, 200_000)])
        session.feed(sealed[at : at + step])
        at += step
        while piece := session.take():
            plain += piece
    assert not session.is_cut
    return plain
