"""Ed25519 keys that are nobody's are refused wherever a key comes in, however well somebody has signed under them.

The eight points whose order divides 8, in every form that 32 bytes can have for them. Under each of them anybody can
make signatures that satisfy the verification equation: S random, R = [S]B, tried until the hash of it is a multiple of
eight.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import base58
import nacl.bindings
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from comity.bundle import new_bundle, sign_bundle, verify_bundle
from comity.ca import OrganizationCa, certificate_request, read_certificates
from comity.certificate import check_review
from comity.envelope import open_document, sign_document
from comity.errors import ChainInvalid, SignatureInvalid, TrustError
from comity.hops import sign_hop, verify_hops
from comity.ids import SpiffeId
from comity.signing import PrivateKey, check_public_key, from_libp2p_public_key, peer_id, peer_id_to_bytes
from comity.trust import Attested, NodeIdentity, TrustStore
from kit.consortium import NOW_MS, consortium, names
from kit.documents import RECORD, TASK_ID, agree, make_passage, make_review

pytestmark = pytest.mark.invariant("S2")

ORDER = 2**252 + 27742317777372353535851937790883648493
NODE = SpiffeId("weak.example", "node", "n1")
#: Order, and 32 bytes in hexadecimal digits; `-` before an order marks a form that is not the point's own.
TORSION = """
 1  0100000000000000000000000000000000000000000000000000000000000000
 2  ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
 4  0000000000000000000000000000000000000000000000000000000000000000
 4  0000000000000000000000000000000000000000000000000000000000000080
 8  26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05
 8  26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85
 8  c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a
 8  c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa
-1  0100000000000000000000000000000000000000000000000000000000000080
-1  eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
-1  eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff
-2  ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff
-4  edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
-4  edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff
"""
WEAK = [bytes.fromhex(line.split()[1]) for line in TORSION.strip().splitlines()]
weak_keys = pytest.mark.parametrize("key", WEAK, ids=lambda key: key.hex())


class Forger:
    """Somebody who signs under a key that is nobody's."""

    def __init__(self, public_key: bytes) -> None:
        self.public_key = public_key

    @property
    def peer_id(self) -> str:
        return peer_id(self.public_key)

    def sign(self, message: bytes) -> bytes:
        for number in range(1, 1000):
            scalar = int.from_bytes(hashlib.sha512(b"%d" % number).digest(), "little") % ORDER
            encoded = scalar.to_bytes(32, "little")
            point = nacl.bindings.crypto_scalarmult_ed25519_base_noclamp(encoded)
            if int.from_bytes(hashlib.sha512(point + self.public_key + message).digest(), "little") % ORDER % 8 == 0:
                return point + encoded
        raise AssertionError("one in eight should do")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> OrganizationCa:
    now = datetime.fromtimestamp(NOW_MS / 1000, UTC)
    return OrganizationCa.create("weak.example", tmp_path_factory.mktemp("weak"), now)


def trust_in(ca: OrganizationCa) -> TrustStore:
    raw = new_bundle("lab", [ca.certificate_pem], issued_ms=NOW_MS - 1000, expires_ms=NOW_MS + 1_000_000)
    return TrustStore(verify_bundle(sign_bundle(raw, ca), now_ms=NOW_MS, own_ca=None))


def leaf_for(ca: OrganizationCa, public_key: bytes) -> bytes:
    """A certificate that an honest CA would not issue: its request is not signed with the key that is in it."""
    honest = ca.issue(certificate_request(PrivateKey(bytes(32)), NODE), now=datetime.fromtimestamp(NOW_MS / 1000, UTC))
    [der] = read_certificates(honest)[:1]
    made = x509.load_der_x509_certificate(der)
    builder = x509.CertificateBuilder(
        made.issuer, made.subject, Ed25519PublicKey.from_public_bytes(public_key), made.serial_number,
        made.not_valid_before_utc, made.not_valid_after_utc, list(made.extensions),
    )  # fmt: skip
    return builder.sign(ca._key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_the_table_is_whole() -> None:
    """Eight points; libsodium refuses every form of them, and forgeries of others are no use."""
    assert len(set(WEAK)) == 14
    for key in WEAK:
        assert not nacl.bindings.crypto_core_ed25519_is_valid_point(key)
    with pytest.raises(SignatureInvalid):
        open_document(sign_document(_as_key(Forger(PrivateKey(bytes(32)).public_key)), "hop", b"x"), "hop")


def _as_key(forger: Forger) -> PrivateKey:
    made: Any = forger
    return made  # type: ignore[no-any-return]


@weak_keys
def test_an_envelope_of_nobody_is_refused(key: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        open_document(sign_document(_as_key(Forger(key)), "review", b"a review"), "review")


@weak_keys
def test_a_hop_of_nobody_is_refused(key: bytes) -> None:
    home = consortium(*names(3)).nodes[names(3)[0]]
    nobody = replace(home)
    nobody.key = _as_key(Forger(key))
    attested = Attested(home.organization, home.node, key, peer_id(key))
    with pytest.raises(SignatureInvalid):
        verify_hops([sign_hop(nobody, make_passage(), [])], task_id=TASK_ID, record=RECORD, home=attested)


@weak_keys
def test_a_review_of_nobody_is_refused_also_with_a_certificate(key: bytes, ca: OrganizationCa) -> None:
    lab = consortium(*names(3))
    review = make_review(agree(lab), "weak.example", 9000, author=names(3)[0])
    envelope = sign_document(_as_key(Forger(key)), "review", review.SerializeToString())
    with pytest.raises(TrustError):
        check_review(envelope, (leaf_for(ca, key),), trust_in(ca))


@weak_keys
def test_a_certificate_of_nobody_is_refused(key: bytes, ca: OrganizationCa, tmp_path: Path) -> None:
    trust = trust_in(ca)
    honest = PrivateKey(bytes(31) + b"\x05")
    assert trust.verify_chain((leaf_for(ca, honest.public_key),), NOW_MS).public_key == honest.public_key
    with pytest.raises(ChainInvalid):
        trust.verify_chain((leaf_for(ca, key),), NOW_MS)
    with pytest.raises(ChainInvalid):
        NodeIdentity.of(_as_key(Forger(key)), (leaf_for(ca, key),))


@weak_keys
def test_a_name_of_nobody_is_refused(key: bytes) -> None:
    for refuse in (
        lambda: check_public_key(key),
        lambda: from_libp2p_public_key(b"\x08\x01\x12\x20" + key),
        lambda: peer_id_to_bytes(str(base58.b58encode(b"\x00\x24\x08\x01\x12\x20" + key), "ascii")),
    ):
        with pytest.raises(SignatureInvalid):
            refuse()
