"""Noise_XX_25519_ChaChaPoly_SHA256 gives the bytes of published vectors, in both roles.

The figures are those of the Noise vectors in https://github.com/flynn/noise (vectors.txt), which other implementations
test against, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from comity_node.transport.noise_xx import XX

INITIATOR_STATIC = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
RESPONDER_STATIC = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
INITIATOR_EPHEMERAL = "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"
RESPONDER_EPHEMERAL = "4142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f60"
TRANSPORT = (
    ("79656c6c6f777375626d6172696e65", "a52ef02ba60e12696d1d6b9ef4245c88fca757b6134ad6e76b56e310a6adf6"),
    ("7375626d6172696e6579656c6c6f77", "2445aa438ebd649281c636cc7269ca82f1d9023d72520943aeabf909cdf521"),
)


@dataclass(frozen=True)
class Vector:
    prologue: str
    #: Payload and ciphertext of each message.
    handshake: tuple[tuple[str, str], tuple[str, str], tuple[str, str]]


VECTORS = {
    "plain": Vector(
        "",
        (
            ("", "358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254"),
            (
                "",
                "64b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d484663414af878d3e46a2f58911a816d6e8346d4ea17a6f"
                "2a0bb4ef4ed56c133cff4560a34e36ea82109f26cf2e5a5caf992b608d55c747f615e5a3425a7a19eefb8f",
            ),
            (
                "",
                "87f864c11ba449f46a0a4f4e2eacbb7b0457784f4fca1937f572c93603e9c4d97e5ea11b16f3968710b23a3be3202dc1b5e1ce3c96"
                "3347491e74f5c0768a9b42",
            ),
        ),
    ),
    "payloads": Vector(
        "",
        (
            (
                "746573745f6d73675f30",
                "358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254746573745f6d73675f30",
            ),
            (
                "746573745f6d73675f31",
                "64b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d484663414af878d3e46a2f58911a816d6e8346d4ea17a6f"
                "2a0bb4ef4ed56c133cff4572e7a2ba5123ac30618b3d205f5c2d17f50cbca216483ac56bcc78e33bf520303278db641e5e731b2e3a",
            ),
            (
                "746573745f6d73675f32",
                "87f864c11ba449f46a0a4f4e2eacbb7b0457784f4fca1937f572c93603e9c4d9f27e318e43ba630594c4d08eeb3b36d97c7377a2f4"
                "f9144b2f0c8095ad92140505b2ab53eff244b14138",
            ),
        ),
    ),
    "prologue": Vector(
        "6e6f74736563726574",
        (
            ("", "358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254"),
            (
                "",
                "64b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d484663414af878d3e46a2f58911a816d6e8346d4ea17a6f"
                "2a0bb4ef4ed56c133cff4588f043d1e49a3289b1beeab8f96b0551a48cddf9f38b1a12e46c6908644198f3",
            ),
            (
                "",
                "87f864c11ba449f46a0a4f4e2eacbb7b0457784f4fca1937f572c93603e9c4d95a04fa1f1c41fb3f00d496f242c1e44ce5b749b3d5"
                "4bf74cea2dad086d601fb6",
            ),
        ),
    ),
}


def ends(vector: Vector) -> tuple[XX, XX]:
    def key(text: str) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(bytes.fromhex(text))

    prologue = bytes.fromhex(vector.prologue)
    return (
        XX(initiator=True, static=key(INITIATOR_STATIC), ephemeral=key(INITIATOR_EPHEMERAL), prologue=prologue),
        XX(initiator=False, static=key(RESPONDER_STATIC), ephemeral=key(RESPONDER_EPHEMERAL), prologue=prologue),
    )


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("name", VECTORS)
def test_the_published_vectors(name: str) -> None:
    vector = VECTORS[name]
    initiator, responder = ends(vector)
    for number, (payload, ciphertext) in enumerate(vector.handshake):
        writer, reader = (initiator, responder) if number % 2 == 0 else (responder, initiator)
        message = writer.write(bytes.fromhex(payload))
        assert message.hex() == ciphertext
        assert reader.read(message).hex() == payload
    assert initiator.is_finished
    assert responder.is_finished
    assert initiator.handshake_hash == responder.handshake_hash
    (there, back), (send, receive) = initiator.split(), responder.split()
    for (plain, ciphertext), sender, receiver in zip(TRANSPORT, (there, send), (receive, back), strict=True):
        assert sender.encrypt(bytes.fromhex(plain)).hex() == ciphertext
        assert receiver.decrypt(bytes.fromhex(ciphertext)).hex() == plain


def test_each_end_learns_the_other_s_static_key() -> None:
    initiator, responder = ends(VECTORS["plain"])
    responder.read(initiator.write(b""))
    initiator.read(responder.write(b""))
    responder.read(initiator.write(b""))
    for end, text in ((initiator, RESPONDER_STATIC), (responder, INITIATOR_STATIC)):
        key = X25519PrivateKey.from_private_bytes(bytes.fromhex(text)).public_key()
        assert end.remote_static == key.public_bytes_raw()
