"""RFC 8032, section 7.1, and the signatures that a lax verifier accepts.

The forgeries hold by the verification equation: a public key of small order disappears from it when the hash (mod L) is
a multiple of its order, so anybody can sign for such a key.
"""

from __future__ import annotations

import hashlib

import nacl.bindings
import pytest

from comity import merkle
from comity.envelope import Unsigned, open_document, sign_all
from comity.errors import SignatureInvalid
from comity.signing import PrivateKey, verify
from comity.v1.envelope_pb2 import Envelope

# Seed, public key, message, signature.
RFC_8032 = {
    "TEST 1": (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24"
        "655141438e7a100b",
    ),
    "TEST 2": (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aee"
        "b00d291612bb0c00",
    ),
    "TEST 3": (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28d"
        "c027beceea1ec40a",
    ),
    "TEST SHA(abc)": (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e"
        "2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17a"
        "d9bef1177331a704",
    ),
}

ORDER = 2**252 + 27742317777372353535851937790883648493
FIELD = 2**255 - 19
#: The y coordinates of the eight points whose order divides 8, and whether the sign bit may be set.
_Y8 = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
SMALL_ORDER_Y = (1, FIELD - 1, 0, _Y8, FIELD - _Y8)


def encodings(y: int) -> list[bytes]:
    """Both sign bits of y, and of y + p where that still fits into 255 bits."""
    return [
        (value | sign << 255).to_bytes(32, "little") for value in (y, y + FIELD) if value < 2**255 for sign in (0, 1)
    ]


SMALL_ORDER_KEYS = [key for y in SMALL_ORDER_Y for key in encodings(y)]


def forge(public_key: bytes, message: bytes) -> bytes:
    """Sign for a key of small order, without a private key: S random, R = [S]B, hash a multiple of 8."""
    for number in range(1, 1000):
        scalar = int.from_bytes(hashlib.sha512(b"%d" % number).digest(), "little") % ORDER
        encoded = scalar.to_bytes(32, "little")
        point = nacl.bindings.crypto_scalarmult_ed25519_base_noclamp(encoded)
        if int.from_bytes(hashlib.sha512(point + public_key + message).digest(), "little") % ORDER % 8 == 0:
            return point + encoded
    raise AssertionError("one in eight should do")


@pytest.mark.parametrize("name", RFC_8032)
def test_vectors_of_the_rfc(name: str) -> None:
    seed, public, message, signature = (bytes.fromhex(text) for text in RFC_8032[name])
    key = PrivateKey(seed)
    assert key.public_key == public
    assert key.sign(message) == signature
    verify(public, signature, message)


@pytest.mark.parametrize("name", RFC_8032)
def test_a_changed_vector_is_refused(name: str) -> None:
    _, public, message, signature = (bytes.fromhex(text) for text in RFC_8032[name])
    for wrong in (signature[:-1] + bytes([signature[-1] ^ 1]), bytes([signature[0] ^ 1]) + signature[1:]):
        with pytest.raises(SignatureInvalid):
            verify(public, wrong, message)
    with pytest.raises(SignatureInvalid):
        verify(public, signature, message + b"\x00")


@pytest.mark.parametrize("name", RFC_8032)
def test_a_malleable_signature_is_refused(name: str) -> None:
    """S + L satisfies the equation as well as S; section 5.1.7 asks for S < L."""
    _, public, message, signature = (bytes.fromhex(text) for text in RFC_8032[name])
    scalar = int.from_bytes(signature[32:], "little")
    for multiple in (1, 2, 3):
        other = signature[:32] + (scalar + multiple * ORDER).to_bytes(32, "little")
        with pytest.raises(SignatureInvalid):
            verify(public, other, message)


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("public_key", SMALL_ORDER_KEYS, ids=lambda key: key.hex())
def test_a_forgery_under_a_small_order_key_is_refused(public_key: bytes) -> None:
    for message in (b"", b"pay the bearer"):
        with pytest.raises(SignatureInvalid):
            verify(public_key, forge(public_key, message), message)


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("public_key", SMALL_ORDER_KEYS, ids=lambda key: key.hex())
def test_a_batch_forged_under_a_small_order_key_is_refused(public_key: bytes) -> None:
    """Nor is it, the second time, among the batches that are known."""
    honest = [Envelope.FromString(each) for each in sign_all(PrivateKey(bytes(32)), [Unsigned("hop", b"a")] * 2)]
    leaf = merkle.leaf_hash(b"\x0dcomity/v1/hop\x0e/comity/v1/hop\x01a")
    head = b"\x0fcomity/v1/batch\x10/comity/v1/batch\x22\x00\x02" + merkle.node_hash(leaf, leaf)
    verify(PrivateKey(bytes(32)).public_key, honest[0].signature[:64], head)
    for envelope in honest * 2:
        envelope.public_key = b"\x08\x01\x12\x20" + public_key
        envelope.signature = forge(public_key, head) + envelope.signature[64:]
        with pytest.raises(SignatureInvalid):
            open_document(envelope.SerializeToString(), "hop")


def test_a_key_that_is_not_canonical_is_refused() -> None:
    """y and y + p name the same point; only the first may be used, or one signer would have two names."""
    key = PrivateKey(bytes(32))
    signature = key.sign(b"m")
    verify(key.public_key, signature, b"m")
    for y in range(19):
        with pytest.raises(SignatureInvalid):
            verify((y + FIELD).to_bytes(32, "little"), signature, b"m")


@pytest.mark.parametrize("length", [0, 1, 63, 65, 128])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(SignatureInvalid):
        verify(PrivateKey(bytes(32)).public_key, bytes(length), b"m")


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(SignatureInvalid):
        verify(bytes(length), bytes(64), b"m")
