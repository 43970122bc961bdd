"""Fuzzes certificates of libp2p's TLS: whatever their extension says, they prove the key that has signed theirs.

The certificate's own key is at hand, as a peer's is to a peer: its extension may hold anything.

Run: python -m fuzz.run tls
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from comity.ca import X509_ERRORS
from comity.errors import ProtocolError
from comity.signing import PrivateKey
from comity_node.transport.tls import EXTENSION, make_certificate, verify_certificate
from fuzz.world import NOW

_KEY = PrivateKey(bytes(32))
_OWN = ec.derive_private_key(1003, ec.SECP256R1())
_GOOD = make_certificate(_KEY, _OWN, NOW)
_DER = _GOOD.public_bytes(Encoding.DER)
_EXTENSION = next(each.value.value for each in _GOOD.extensions if isinstance(each.value, x509.UnrecognizedExtension))

#: Where a fuzzer begins.
SEEDS = (_DER, _EXTENSION, _EXTENSION[:-1], b"\x30\x00")


def one(data: bytes) -> None:
    """Take the bytes for a certificate, and for the extension of one that its own key has signed."""
    try:
        certificate = x509.load_der_x509_certificate(data)
    except X509_ERRORS:
        pass
    else:
        _check(certificate, must=data == _DER, may=certificate.tbs_certificate_bytes == _GOOD.tbs_certificate_bytes)
    made = (
        x509.CertificateBuilder()
        .serial_number(1)
        .issuer_name(x509.Name([]))
        .subject_name(x509.Name([]))
        .not_valid_before(_GOOD.not_valid_before_utc)
        .not_valid_after(_GOOD.not_valid_after_utc)
        .public_key(_OWN.public_key())
        .add_extension(x509.UnrecognizedExtension(EXTENSION, data), critical=False)
        .sign(_OWN, hashes.SHA256())
    )
    _check(made, must=data == _EXTENSION, may=data == _EXTENSION)


def _check(certificate: x509.Certificate, *, must: bool, may: bool) -> None:
    try:
        key = verify_certificate(certificate, NOW)
    except ProtocolError:
        assert not must
        return
    assert key != _KEY.public_key or may, "a key that has signed nothing of this"
