"""Fuzzes trust bundles: as a stranger could hand them out, and as all members could sign them.

Run: python -m fuzz.run bundle
"""

from __future__ import annotations

from comity.bundle import BUNDLE_PAYLOAD_TYPE, read_bundle, sign_bundle, unsigned_members, verify_bundle
from comity.errors import ComityError
from comity.statement import Dsse, Signer
from fuzz.world import AUTHORITIES, BUNDLE, NOW_MS, TRUST

_PAYLOAD = Dsse.decode(BUNDLE, BUNDLE_PAYLOAD_TYPE).payload
_SMALL = b'{"consortium":"lab","epoch":1,"expires_ms":9,"issued_ms":1,"members":{"home.example":["AA=="]},"version":1}'

#: Where a fuzzer begins.
SEEDS = (
    BUNDLE,
    _PAYLOAD,
    _SMALL,
    _SMALL.replace(b'"version":1', b'"previous":"","threshold":1,"version":2'),
    b'{"bundle":' + BUNDLE + b',"history":[]}',
)


def one(data: bytes) -> None:
    """Verify the bytes as a bundle, and as the payload of one that both members have signed."""
    if _verified(data):
        assert read_bundle(data).digest == TRUST.bundle.digest, "another bundle than the members have signed"
    envelope = Dsse(BUNDLE_PAYLOAD_TYPE, data)
    for ca in AUTHORITIES:
        envelope = envelope.signed_by(Signer(ca.certificate.fingerprint, ca.sign))
    _verified(envelope.encode())


def _verified(raw: bytes) -> bool:
    try:
        bundle = read_bundle(raw)
    except ComityError:
        return False
    assert bundle.members
    assert read_bundle(bundle.raw) == bundle
    try:
        unsigned_members(raw)
        sign_bundle(raw, AUTHORITIES[0])
    except ComityError:
        pass
    try:
        verify_bundle(raw, now_ms=NOW_MS, own_ca=None)
    except ComityError:
        return False
    return True
