"""Fuzzes Noise: nobody gets through the handshake without a key, and no byte out of a session that was not put in.

Run: python -m fuzz.run noise
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from comity.errors import ProtocolError
from comity.signing import PrivateKey
from comity_node.transport.noise import MAX_HANDSHAKE_MESSAGE, NoiseHandshake, NoiseIdentity
from comity_node.transport.secured import Session

_MUXERS = ("/yamux/1.0.0",)


def _identity(seed: int) -> NoiseIdentity:
    static = X25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    return NoiseIdentity.of(PrivateKey(bytes([seed]) * 32), static, _MUXERS)


_ALICE, _BOB = _identity(1), _identity(2)


def _handshakes() -> tuple[NoiseHandshake, NoiseHandshake]:
    """A dialler and a listener, with the same keys each time."""
    alice = NoiseHandshake(_ALICE, initiator=True, ephemeral=X25519PrivateKey.from_private_bytes(b"\x03" * 32))
    bob = NoiseHandshake(_BOB, initiator=False, ephemeral=X25519PrivateKey.from_private_bytes(b"\x04" * 32))
    return alice, bob


def _sessions() -> tuple[Session, Session]:
    alice, bob = _handshakes()
    bob.receive(alice.receive(bob.receive(alice.start())))
    assert alice.proved is not None
    assert bob.proved is not None
    return alice.proved.session, bob.proved.session


def _seeds() -> tuple[bytes, ...]:
    alice, bob = _handshakes()
    first = alice.start()
    second = bob.receive(first)
    third = alice.receive(second)
    return (
        b"\x00\x00" + first + third,
        b"\x00\x07" + first + third,
        b"\x01\x00" + second,
        b"\x01\x03" + second,
        b"\x00\x00" + bytes((MAX_HANDSHAKE_MESSAGE + 1).to_bytes(2, "big")),
        b"\x00\x00\x00\x20" + bytes(32) + b"\x00\x40" + bytes(64),
        b"\x02\x05" + b"hello",
        b"\x02\x01\x10\x00\x00\x01" + bytes(200),
        b"\x02\x09\xff\xff\x80\x00" + b"text" * 100,
    )


#: Where a fuzzer begins: honest messages, an honest session, and edits of it.
SEEDS = _seeds()


def one(data: bytes) -> None:
    """The first byte says what is fuzzed, the second into which pieces the rest is cut."""
    if len(data) < 2:
        return
    what, size, rest = data[0] % 3, data[1] + 1, data[2:]
    if what == 2:
        _edited_session(size, rest)
    else:
        _handshake(rest, size, initiator=what == 1)


def _handshake(said: bytes, size: int, *, initiator: bool) -> None:
    alice, bob = _handshakes()
    end = alice if initiator else bob
    end.start()
    try:
        for at in range(0, len(said), size):
            end.receive(said[at : at + size])
    except ProtocolError:
        return
    honest = SEEDS[2][2:] if initiator else SEEDS[0][2:]
    # With the fuzzer's bytes alone nobody proves a key; with an honest peer's words repeated, only that peer.
    assert (end.proved is not None) == said.startswith(honest)


def _edited_session(size: int, rest: bytes) -> None:
    """Send text over a session, with one edit on the way: a byte changed, dropped or added."""
    if len(rest) < 4:
        return
    edit, place, value, text = rest[0] % 4, rest[1] << 8 | rest[2], rest[3], rest[4:]
    sender, receiver = _sessions()
    wire = bytearray(b"".join(b"".join(sender.seal(text[at : at + 50])) for at in range(0, len(text), 50)))
    if wire and edit == 1:
        wire[place % len(wire)] ^= value
    elif wire and edit == 2:
        del wire[place % len(wire)]
    elif edit == 3:
        wire.insert(place % (len(wire) + 1), value)
    got = b""
    try:
        for at in range(0, len(wire), size):
            receiver.feed(bytes(wire[at : at + size]))
            while plain := receiver.take():
                got += plain
    except ProtocolError:
        assert edit != 0
    assert text.startswith(got)
    if edit == 0:
        assert got == text
