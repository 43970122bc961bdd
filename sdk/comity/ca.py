"""An organization's certificate authority, and the requests that nodes make to it.

The profile: a self-signed P-256 root with `spiffe://<organization>` in its SAN (X.509-SVID,
https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md), and node leaves right under it whose Ed25519 key
*is* the node's libp2p identity. There are no intermediate certificates: pathLenConstraint is 0. There are no name
constraints either: the path verifier that is used refuses URI constraints, and they would add nothing, because a chain
is only ever verified against the roots of the organization that its leaf names (`comity.trust`).

A node makes its key, signs a request with it and hands in the request only (S4).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, SignatureAlgorithmOID

from comity.digest import hex_digest
from comity.errors import ChainInvalid, InvalidName, KeyFileInvalid, SignatureInvalid
from comity.hsm import open_key
from comity.ids import SpiffeId, organization_name
from comity.keyholder import HeldP256
from comity.signing import PrivateKey, load_pem_private_key_file, verify, write_private

#: File names inside an organization's `keys` directory.
CA_KEY_FILE: Final = "ca.key"
CA_CERTIFICATE_FILE: Final = "ca.pem"
#: Bytes of the largest certificate or request that is read.
MAX_CERTIFICATE: Final = 16 * 1024

ROOT_LIFETIME: Final = timedelta(days=3650)
LEAF_LIFETIME: Final = timedelta(days=90)
#: Certificates are good from a little before they were made: other clocks may be late.
_BACKDATE = timedelta(minutes=1)
_MAX_COMMON_NAME = 64
#: What reading X.509 that somebody else wrote can raise.
X509_ERRORS: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    # About a serial number that is not positive, where warnings are errors; elsewhere `load_certificate` refuses it.
    CryptographyDeprecationWarning,
)


def certificate_request(key: PrivateKey, node: SpiffeId) -> bytes:
    """Return a PKCS#10 request (PEM) for a node's certificate, signed with the node's own key.

    Raises:
        InvalidName: `node` names an agent; agents have no certificates.
    """
    if node.kind != "node":
        raise InvalidName(f"{node} is no node")
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject(node.name, node.organization))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(node))]), critical=False)
        .sign(key.to_cryptography(), None)
    )
    return request.public_bytes(Encoding.PEM)


@dataclass(frozen=True, slots=True)
class CaCertificate:
    """A root certificate that fits the profile.

    Attributes:
        organization: whose it is, from the SPIFFE ID in its SAN.
        der: the certificate.
        certificate: the same, parsed.
        public_key: its P-256 key.
    """

    organization: str
    der: bytes
    certificate: x509.Certificate
    public_key: ec.EllipticCurvePublicKey

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, 64 hex digits: the `keyid` under which this CA signs bundles."""
        return hex_digest(self.der)

    @classmethod
    def parse(cls, der: bytes) -> CaCertificate:
        """Read a root certificate (DER) and check that it fits the profile; its dates are not looked at.

        Raises:
            ChainInvalid: it is no certificate, or does not fit; the message says why.
        """
        if len(der) > MAX_CERTIFICATE:
            raise ChainInvalid(f"a certificate of {len(der)} bytes is over the limit of {MAX_CERTIFICATE}")
        try:
            certificate = load_certificate(der)
            return cls._check(certificate, der)
        except X509_ERRORS as error:
            raise ChainInvalid(f"no CA certificate: {error}") from error

    @classmethod
    def _check(cls, certificate: x509.Certificate, der: bytes) -> CaCertificate:
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ChainInvalid("a CA's key must be P-256")
        extensions = certificate.extensions
        try:
            constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
            usage = extensions.get_extension_for_class(x509.KeyUsage).value
        except x509.ExtensionNotFound as error:
            raise ChainInvalid("a CA certificate has basic constraints and a key usage") from error
        if not constraints.ca or not usage.key_cert_sign:
            raise ChainInvalid("this certificate is no CA's")
        try:
            certificate.verify_directly_issued_by(certificate)
        except InvalidSignature as error:
            raise ChainInvalid("a CA certificate must be signed with its own key") from error
        organization = _trust_domain(single_uri(extensions))
        return cls(organization, der, certificate, key)

    def verify(self, signature: bytes, message: bytes) -> None:
        """Check an ECDSA P-256 SHA-256 signature (DER) of this CA.

        Raises:
            SignatureInvalid: it is not the signature of `message`.
        """
        try:
            self.public_key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            raise SignatureInvalid(f"the signature of {self.organization} does not verify") from error


def load_certificate(der: bytes) -> x509.Certificate:
    """Parse a certificate in its one form.

    The signature's BIT STRING stands outside of what is signed, and DER lets it claim unused bits: refused, so that no
    byte of a certificate can be changed.

    Raises:
        ValueError: or another of `X509_ERRORS`: it is no certificate, or not in its one form.
    """
    certificate = x509.load_der_x509_certificate(der)
    if certificate.serial_number <= 0 or not der.endswith(b"\x00" + certificate.signature):
        raise ValueError("a serial number is positive and a signature has no unused bits")
    return certificate


def read_certificates(pem: bytes) -> tuple[bytes, ...]:
    """Return the certificates of a PEM text as DER, in their order.

    Raises:
        ChainInvalid: there is none, or one cannot be read.
    """
    if len(pem) > 8 * MAX_CERTIFICATE:
        raise ChainInvalid("too large for a certificate chain")
    try:
        return tuple(one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(pem))
    except X509_ERRORS as error:
        raise ChainInvalid(f"no PEM certificates: {error}") from error


class OrganizationCa:
    """The authority that says which nodes are an organization's.

    Its key lives in `<directory>/ca.key` (0600), or that file names it (`comity.hsm`); its certificate lives in
    `<directory>/ca.pem`.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: CaCertificate) -> None:
        """Join a key with its certificate; `create` and `load` are what one calls.

        Raises:
            KeyFileInvalid: the certificate is of another key.
        """
        if _spki(key.public_key()) != _spki(certificate.public_key):
            raise KeyFileInvalid("the CA's key and certificate do not belong together")
        self._key = key
        self.certificate = certificate

    @property
    def organization(self) -> str:
        """The organization's name."""
        return self.certificate.organization

    @property
    def certificate_pem(self) -> bytes:
        """The root certificate, for the others of a consortium."""
        return self.certificate.certificate.public_bytes(Encoding.PEM)

    @classmethod
    def self_signed(
        cls, organization: str, key: ec.EllipticCurvePrivateKey, now: datetime, lifetime: timedelta = ROOT_LIFETIME
    ) -> OrganizationCa:
        """Make the root certificate of a key, which may be held elsewhere (`comity.keyholder`); nothing is written.

        Args:
            organization: such as `mercy.example`.
            key: P-256.
            now: the time, with its time zone.
            lifetime: how long the root is good.

        Raises:
            InvalidName: `organization` is no organization name.
        """
        organization_name(organization)
        certificate = _self_signed(key, organization, now, lifetime)
        return cls(key, CaCertificate.parse(certificate.public_bytes(Encoding.DER)))

    @classmethod
    def create(
        cls,
        organization: str,
        directory: Path,
        now: datetime,
        lifetime: timedelta = ROOT_LIFETIME,
        *,
        key_uri: str | None = None,
    ) -> OrganizationCa:
        """Make a new CA and write its two files.

        Args:
            organization: such as `mercy.example`.
            directory: the organization's `keys` directory; it is made, 0700, if it is not there.
            now: the time, with its time zone.
            lifetime: how long the root is good.
            key_uri: a key in a PKCS#11 token (`comity.hsm`), which the key's file then names; None: a new key.

        Raises:
            InvalidName: `organization` is no organization name.
            KeyFileInvalid: there is a CA already (keys are never overwritten), the directory cannot be written, or the
                key that is named cannot be used.
        """
        if key_uri is None:
            key: ec.EllipticCurvePrivateKey = ec.generate_private_key(ec.SECP256R1())
            text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        else:
            held = open_key(key_uri)
            if not isinstance(held, HeldP256):
                raise KeyFileInvalid("a CA's key must be P-256")
            key, text = held, f"{key_uri.strip()}\n".encode()
        ca = cls.self_signed(organization, key, now, lifetime)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (directory / CA_CERTIFICATE_FILE).exists() and not (directory / CA_KEY_FILE).exists():
                raise KeyFileInvalid(
                    f"{directory / CA_CERTIFICATE_FILE} is there already, without its key: restore {CA_KEY_FILE} from "
                    "where it was kept, or name another directory"
                )
            write_private(directory / CA_KEY_FILE, text)
            with (directory / CA_CERTIFICATE_FILE).open("xb") as file:
                file.write(ca.certificate_pem)
        except FileExistsError as error:
            raise KeyFileInvalid(f"{error.filename} is there already; keys are never overwritten") from error
        except OSError as error:
            raise KeyFileInvalid(f"cannot write {error.filename}: {error.strerror}") from error
        return ca

    @classmethod
    def load(cls, directory: Path) -> OrganizationCa:
        """Read a CA that `create` has written.

        Raises:
            KeyFileInvalid: a file is missing, readable by others, or no P-256 key, or the two do not belong together.
            ChainInvalid: the certificate does not fit the profile.
        """
        key = load_pem_private_key_file(directory / CA_KEY_FILE)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise KeyFileInvalid(f"{directory / CA_KEY_FILE} holds no P-256 key")
        path = directory / CA_CERTIFICATE_FILE
        try:
            pem = path.read_bytes()
        except OSError as error:
            raise KeyFileInvalid(f"cannot read {path}: {error.strerror}") from error
        try:
            return cls(key, CaCertificate.parse(read_certificates(pem)[0]))
        except ChainInvalid as error:
            raise ChainInvalid(f"{path}: {error}") from error
        except KeyFileInvalid as error:
            raise KeyFileInvalid(f"{directory}: {error}") from error

    def issue(self, csr_pem: bytes, *, now: datetime, lifetime: timedelta = LEAF_LIFETIME) -> bytes:
        """Issue a node's certificate (PEM). Only the key and the SPIFFE ID are taken from the request.

        Args:
            csr_pem: what `certificate_request` made.
            now: the time, with its time zone.
            lifetime: how long the certificate is good.

        Raises:
            ChainInvalid: no request, not signed with its own key, not for a node of this organization, or it asks for
                more than a name; or the certificate would outlive the CA's.
        """
        request = _read_request(csr_pem)
        node = _requested_node(request)
        if node.organization != self.organization:
            raise ChainInvalid(f"{node} is no node of {self.organization}: only its own CA can vouch for it")
        key = _request_key(request)
        root = self.certificate.certificate
        before, after = _period(now, lifetime)
        if after > root.not_valid_after_utc:
            raise ChainInvalid(
                f"the certificate would outlive the CA's, which expires {root.not_valid_after_utc:%Y-%m-%d}"
            )
        leaf = (
            x509.CertificateBuilder()
            .subject_name(_subject(node.name, node.organization))
            .issuer_name(root.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(before)
            .not_valid_after(after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(leaf=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            # Not critical: the subject is set (RFC 5280, section 4.2.1.6).
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(node))]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return leaf.public_bytes(Encoding.PEM)

    def sign(self, message: bytes) -> bytes:
        """Return the ECDSA P-256 SHA-256 signature (DER) of `message`: for trust bundles."""
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))


def single_uri(extensions: x509.Extensions) -> str:
    """Return the one URI of a subject alternative name that holds nothing else.

    Raises:
        ChainInvalid: there is no SAN, or it holds another number or kind of names.
    """
    try:
        names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound as error:
        raise ChainInvalid("there is no subject alternative name") from error
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise ChainInvalid("the subject alternative name must be one SPIFFE ID and nothing else")
    return names[0].value


def _trust_domain(uri: str) -> str:
    if not uri.startswith("spiffe://"):
        raise ChainInvalid(f"{uri!r} is not spiffe://<organization>")
    try:
        return organization_name(uri.removeprefix("spiffe://"))
    except InvalidName as error:
        raise ChainInvalid(f"{uri!r} is not spiffe://<organization>") from error


def _self_signed(
    key: ec.EllipticCurvePrivateKey, organization: str, now: datetime, lifetime: timedelta
) -> x509.Certificate:
    name = _subject(f"{organization} root", organization)
    before, after = _period(now, lifetime)
    identity = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{organization}")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(before)
        .not_valid_after(after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(leaf=False), critical=True)
        .add_extension(identity, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _read_request(csr_pem: bytes) -> x509.CertificateSigningRequest:
    if len(csr_pem) > MAX_CERTIFICATE:
        raise ChainInvalid("too large for a certificate request")
    try:
        return x509.load_pem_x509_csr(csr_pem)
    except X509_ERRORS as error:
        raise ChainInvalid(f"no certificate request: {error}") from error


def _requested_node(request: x509.CertificateSigningRequest) -> SpiffeId:
    try:
        extensions = request.extensions
        if len(extensions) != 1:
            raise ChainInvalid("a request asks for a subject alternative name and nothing else")
        node = SpiffeId.parse(single_uri(extensions))
    except (InvalidName, *X509_ERRORS) as error:
        raise ChainInvalid(f"the request's name is wrong: {error}") from error
    if node.kind != "node":
        raise ChainInvalid(f"{node} is no node")
    return node


def _request_key(request: x509.CertificateSigningRequest) -> Ed25519PublicKey:
    try:
        key = request.public_key()
        if not isinstance(key, Ed25519PublicKey) or request.signature_algorithm_oid != SignatureAlgorithmOID.ED25519:
            raise ChainInvalid("a node's key must be Ed25519")
        # libsodium and not `is_signature_valid`: OpenSSL accepts small-order keys, which anybody can sign for.
        verify(key.public_bytes_raw(), request.signature, request.tbs_certrequest_bytes)
    except SignatureInvalid as error:
        raise ChainInvalid("the request is not signed with its own key") from error
    except X509_ERRORS as error:
        raise ChainInvalid(f"no certificate request: {error}") from error
    return key


def _subject(name: str, organization: str) -> x509.Name:
    """For people: the SPIFFE ID in the SAN is what counts."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization[:_MAX_COMMON_NAME]),
            x509.NameAttribute(NameOID.COMMON_NAME, name[:_MAX_COMMON_NAME]),
        ]
    )


def _key_usage(*, leaf: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not leaf,
        crl_sign=not leaf,
        encipher_only=False,
        decipher_only=False,
    )


def _period(now: datetime, lifetime: timedelta) -> tuple[datetime, datetime]:
    if now.tzinfo is None:
        raise ChainInvalid("the time needs a time zone")
    start = now.replace(microsecond=0)
    if lifetime <= timedelta():
        raise ChainInvalid("a certificate needs a lifetime")
    return start - _BACKDATE, start + lifetime


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
