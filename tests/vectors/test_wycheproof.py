"""Every vector of Project Wycheproof for the four algorithms that are used, through the code that uses them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from comity.ca import CaCertificate
from comity.errors import ComityError, ProtocolError, SignatureInvalid
from comity.signing import verify
from comity_node.transport.noise_xx import CipherState, _exchange
from kit.consortium import consortium, names
from kit.wycheproof import label, vectors

pytestmark = pytest.mark.invariant("S2")


def outcome(error: type[ComityError], check: Callable[..., object], *arguments: object) -> str:
    """Whether a check was passed; anything else than `error` fails the test."""
    try:
        check(*arguments)
    except error:
        return "refused"
    return "accepted"


def test_every_vector_of_ed25519() -> None:
    """Acceptable are keys of small order, under which anybody can sign: refused; and sums of such and a sound one.

    The latter are accepted: whoever has no secret key cannot sign under them either, and a node that makes itself such
    a key gains nothing but another name.
    """
    seen: Counter[tuple[str, str]] = Counter()
    for group, vector in vectors("Signature", "ed25519"):
        key, message, signature = (
            bytes.fromhex(text) for text in (group["publicKey"]["pk"], vector["msg"], vector["sig"])
        )
        found = outcome(SignatureInvalid, verify, key, signature, message)
        kind = vector["flags"][0] if vector["result"] == "acceptable" else vector["result"]
        seen[kind, found] += 1
        assert found == ("accepted" if kind in ("valid", "MixedOrderPublicKey") else "refused"), label(vector)
    assert seen["valid", "accepted"] >= 100
    assert seen["invalid", "refused"] >= 60
    assert seen["SmallOrderPublicKey", "refused"] >= 8


def test_every_vector_of_ecdsa_p256() -> None:
    """Those in BER that is no DER are refused with the others: of (r, s) there is one form."""
    root = CaCertificate.parse(consortium(*names(2)).trust.bundle.members[names(2)[0]][0])
    seen: Counter[str] = Counter()
    for group, vector in vectors("Signature", "ecdsa_secp256r1_sha256"):
        key = load_der_public_key(bytes.fromhex(group["publicKeyDer"]))
        assert isinstance(key, ec.EllipticCurvePublicKey)
        ca = dataclasses.replace(root, public_key=key)
        signature, message = bytes.fromhex(vector["sig"]), bytes.fromhex(vector["msg"])
        found = outcome(SignatureInvalid, ca.verify, signature, message)
        seen[found] += 1
        assert found == ("accepted" if vector["result"] == "valid" else "refused"), label(vector)
    assert seen["accepted"] >= 150
    assert seen["refused"] >= 300


class At(CipherState):
    """A cipher whose next nonce is a vector's."""

    __slots__ = ("at",)
    at: bytes

    def _next(self) -> bytes:
        return self.at


def test_every_vector_of_chacha20_poly1305() -> None:
    seen: Counter[str] = Counter()
    for group, vector in vectors("Cipher", "chacha20_poly1305"):
        key, nonce, associated, message, sealed, tag = (
            bytes.fromhex(vector[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")
        )
        seen[vector["result"]] += 1
        if group["ivSize"] != 96:
            assert vector["result"] == "invalid", label(vector)  # a connection's nonces all have 12 bytes
            continue
        cipher = At(key)
        cipher.at = nonce
        if vector["result"] == "valid":
            assert cipher.encrypt(message, associated) == sealed + tag, label(vector)
            assert cipher.decrypt(sealed + tag, associated) == message, label(vector)
        else:
            found = outcome(ProtocolError, cipher.decrypt, sealed + tag, associated)
            assert found == "refused", label(vector)
    assert seen["valid"] >= 250
    assert seen["invalid"] >= 60


def test_every_vector_of_x25519() -> None:
    """Acceptable are keys of small order, whose secret is zero: refused; and unusual ones, which are taken."""
    seen: Counter[tuple[str, str]] = Counter()
    for _, vector in vectors("Protocol", "x25519"):
        own = X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["private"]))
        public, shared = bytes.fromhex(vector["public"]), bytes.fromhex(vector["shared"])
        found = outcome(ProtocolError, _exchange, own, public)
        seen[vector["result"], found] += 1
        assert found == ("accepted" if any(shared) else "refused"), label(vector)
        if any(shared):
            assert _exchange(own, public) == shared, label(vector)
        else:
            assert vector["result"] == "acceptable", label(vector)
    assert seen["valid", "accepted"] >= 260
    assert seen["acceptable", "refused"] >= 30
