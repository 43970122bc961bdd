"""Fuzzes revocations: as anybody could pass them on, and as an organization's CA could sign them.

Run: python -m fuzz.run revocation
"""

from __future__ import annotations

from comity.errors import ComityError
from comity.revocation import REVOCATION_PAYLOAD_TYPE, sign_revocation, verify_revocation
from comity.statement import Dsse, Signer
from fuzz.world import AUTHORITIES, HOME, HOME_NODE, NOW_MS, TRUST

_CA = AUTHORITIES[0]
_GOOD = sign_revocation(_CA, HOME_NODE.chain[0], issued_ms=NOW_MS, reason="lost")
_PAYLOAD = Dsse.decode(_GOOD, REVOCATION_PAYLOAD_TYPE).payload

#: Where a fuzzer begins.
SEEDS = (
    _GOOD,
    _PAYLOAD,
    _PAYLOAD.replace(b'"lost"', b'"\\u0000"'),
    b'{"certificate":"AA==","fingerprint":"","issued_ms":1,"organization":"home.example","reason":"","version":1}',
)


def one(data: bytes) -> None:
    """Verify the bytes as a revocation, and as the payload of one that the CA of `HOME` has signed."""
    try:
        revocation = verify_revocation(data, TRUST.bundle, now_ms=NOW_MS)
    except ComityError:
        pass
    else:
        payload = Dsse.decode(data, REVOCATION_PAYLOAD_TYPE).payload
        assert payload == _PAYLOAD, "nobody has signed this"
        assert revocation.certificate == HOME_NODE.chain[0]
    signer = Signer(_CA.certificate.fingerprint, _CA.sign)
    try:
        revoked = verify_revocation(
            Dsse(REVOCATION_PAYLOAD_TYPE, data).signed_by(signer).encode(), TRUST.bundle, now_ms=NOW_MS
        )
    except ComityError:
        return
    assert revoked.organization == HOME, "a CA revokes the nodes of its own organization"
