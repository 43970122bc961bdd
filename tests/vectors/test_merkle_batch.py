"""A batch of three envelopes, byte by byte.

Made once from the definition alone (RFC 6962, section 2.1; RFC 8032; RFC 0002 of libp2p) with another library's Ed25519
and none of our code: leaves 0 and 1 have two siblings above them, leaf 2 one. The key is that of the seed 00 01 ... 1f.
"""

from __future__ import annotations

import pytest

from comity import merkle
from comity.envelope import open_document, sign_all, unsigned_document
from comity.errors import SignatureInvalid
from comity.signing import PrivateKey, verify

KEY = PrivateKey(bytes(range(32)))
DOCUMENTS = [("hop", b""), ("review", b"one"), ("hop", b"x" * 200)]
ROOT = "bb3ba82df3b120b5e9ad17361b35860f36a133359e885aaa97ed231930645e58"
SIGNATURE = (
    "7d692db03aaccf8c54e1ec39d0a60aee9df00b8e86cd5b3cc9b25d650318f32d8f8985cb0e2078bfff9bd6cf60a2c13f3de8fc46"
    "9c46a9ca8d5d6a3db7857a08"
)
#: What the signature is over: domain, payload type, and a payload of size and root, each after its length.
SIGNED = b"\x0fcomity/v1/batch\x10/comity/v1/batch\x22\x00\x03" + bytes.fromhex(ROOT)
ENVELOPES = [
    (
        "0a240801122003a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8120e2f636f6d6974792f76312f68"
        "6f702a84017d692db03aaccf8c54e1ec39d0a60aee9df00b8e86cd5b3cc9b25d650318f32d8f8985cb0e2078bfff9bd6cf60a2c1"
        "3f3de8fc469c46a9ca8d5d6a3db7857a0800000003bc1a8def5252cc59ee314b11fe18afb442a1d6c421d10db61b59cab0bb4dce"
        "7548024be5d820707072f43fcba0969c61c6dbdca7295c6a608b90d276cb4d1a8d"
    ),
    (
        "0a240801122003a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b812112f636f6d6974792f76312f72"
        "65766965771a036f6e652a84017d692db03aaccf8c54e1ec39d0a60aee9df00b8e86cd5b3cc9b25d650318f32d8f8985cb0e2078"
        "bfff9bd6cf60a2c13f3de8fc469c46a9ca8d5d6a3db7857a0800010003ffe96636e1fe548eee618f8b2e1374127ed211f20b4a6e"
        "6593f4694d822ed98e48024be5d820707072f43fcba0969c61c6dbdca7295c6a608b90d276cb4d1a8d"
    ),
    (
        "0a240801122003a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8120e2f636f6d6974792f76312f68"
        "6f701ac8017878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878"
        "78787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878"
        "78787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878"
        "787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878782a647d"
        "692db03aaccf8c54e1ec39d0a60aee9df00b8e86cd5b3cc9b25d650318f32d8f8985cb0e2078bfff9bd6cf60a2c13f3de8fc469c"
        "46a9ca8d5d6a3db7857a0800020003a67fc103b88b200170be44b1faf039257888e2b63c8eb6d9cf353b06aa0dd019"
    ),
]


def test_the_batch_is_made() -> None:
    unsigned = [unsigned_document(kind, body) for kind, body in DOCUMENTS]
    assert [data.hex() for data in sign_all(KEY, unsigned)] == ENVELOPES


@pytest.mark.parametrize("number", range(3))
def test_each_is_opened(number: int) -> None:
    kind, body = DOCUMENTS[number]
    document = open_document(bytes.fromhex(ENVELOPES[number]), kind)
    assert (document.kind, document.body, document.signer) == (kind, body, KEY.public_key)


def test_the_signature_is_over_size_and_root() -> None:
    verify(KEY.public_key, bytes.fromhex(SIGNATURE), SIGNED)
    for envelope in ENVELOPES:
        assert SIGNATURE in envelope
    with pytest.raises(SignatureInvalid):
        verify(KEY.public_key, bytes.fromhex(SIGNATURE), bytes.fromhex(ROOT))


def test_the_root_is_that_of_the_leaves() -> None:
    leaves = [
        merkle.leaf_hash(
            b"".join(
                length.to_bytes(1, "big") + part
                for length, part in [
                    (len(kind) + 10, b"comity/v1/" + kind.encode()),
                    (len(kind) + 11, b"/comity/v1/" + kind.encode()),
                ]
            )
            + (b"\xc8\x01" if len(body) == 200 else bytes([len(body)]))
            + body
        )
        for kind, body in DOCUMENTS
    ]
    assert merkle.root_of(leaves).hex() == ROOT
