"""Fuzzes certificate chains and requests: whatever the bytes, a node is named only if its organization's CA said so.

Run: python -m fuzz.run chain
"""

from __future__ import annotations

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate

from comity.ca import CaCertificate, certificate_request, read_certificates
from comity.errors import ComityError
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from fuzz.world import AUTHORITIES, HOME, HOME_NODE, NOW, NOW_MS, OTHER_NODE, TRUST

_CA = AUTHORITIES[0]
_ROOT = _CA.certificate.der
_LEAF = HOME_NODE.chain[0]
_REQUEST = certificate_request(PrivateKey(b"q" * 32), SpiffeId(HOME, "node", "n2"))
_KNOWN = {node.chain[0]: node.key.public_key for node in (HOME_NODE, OTHER_NODE)}

#: Where a fuzzer begins.
SEEDS = (
    _LEAF,
    _ROOT,
    OTHER_NODE.chain[0],
    _REQUEST,
    load_der_x509_certificate(_LEAF).public_bytes(Encoding.PEM),
)


def one(data: bytes) -> None:
    """Take the bytes for a leaf, for a root, for a PEM file and for a request."""
    for chain in ((data,), (data, _ROOT), (_LEAF, data)):
        try:
            attested = TRUST.verify_chain(chain, NOW_MS)
        except ComityError:
            continue
        assert _KNOWN[chain[0]] == attested.public_key, "a node that no CA knows"
        assert chain[1:] in ((), (_ROOT,))
    try:
        assert CaCertificate.parse(data).der == data
    except ComityError:
        pass
    try:
        read_certificates(data)
    except ComityError:
        pass
    try:
        issued = read_certificates(_CA.issue(data, now=NOW))
    except ComityError:
        return
    assert TRUST.verify_chain(issued, NOW_MS).organization == HOME, "issued for somebody else"
