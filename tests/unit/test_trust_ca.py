"""An organization's CA: its files, and what it signs and refuses to sign."""

from __future__ import annotations

import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from comity.ca import (
    CA_CERTIFICATE_FILE,
    CA_KEY_FILE,
    CaCertificate,
    OrganizationCa,
    certificate_request,
    read_certificates,
)
from comity.errors import ChainInvalid, InvalidName, KeyFileInvalid, SignatureInvalid
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import NodeIdentity

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = PrivateKey(bytes(range(32)))
NODE = SpiffeId("mercy.example", "node", "n1")


@pytest.fixture
def ca(tmp_path: Path) -> OrganizationCa:
    return OrganizationCa.create("mercy.example", tmp_path / "keys", NOW)


def request(
    *names: x509.GeneralName,
    key: object = None,
    extra: x509.ExtensionType | None = None,
) -> bytes:
    """A request that a node of ours would not make."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n1")])
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if extra is not None:
        builder = builder.add_extension(extra, critical=True)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return builder.sign(KEY.to_cryptography(), None).public_bytes(Encoding.PEM)


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


def test_the_key_is_private_and_comes_back(ca: OrganizationCa, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert stat.S_IMODE((keys / CA_KEY_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    again = OrganizationCa.load(keys)
    assert again.organization == "mercy.example"
    assert again.certificate_pem == ca.certificate_pem
    again.certificate.verify(ca.sign(b"m"), b"m")
    with pytest.raises(SignatureInvalid, match=r"mercy\.example"):
        again.certificate.verify(ca.sign(b"m"), b"n")


@pytest.mark.invariant("S4")
def test_a_ca_is_never_overwritten(ca: OrganizationCa, tmp_path: Path) -> None:
    with pytest.raises(KeyFileInvalid, match=r"ca\.key is there already"):
        OrganizationCa.create("mercy.example", tmp_path / "keys", NOW)
    assert OrganizationCa.load(tmp_path / "keys").certificate.der == ca.certificate.der


@pytest.mark.invariant("S4")
def test_no_key_is_made_beside_the_certificate_of_another(ca: OrganizationCa, tmp_path: Path) -> None:
    """Who has lost the key restores it from where it was kept: a new one beside the old certificate is of no use."""
    directory = tmp_path / "lost"
    directory.mkdir()
    (directory / CA_CERTIFICATE_FILE).write_bytes(ca.certificate_pem)
    with pytest.raises(KeyFileInvalid, match=r"ca\.pem is there already"):
        OrganizationCa.create("mercy.example", directory, datetime.now(UTC))
    assert [one.name for one in directory.iterdir()] == [CA_CERTIFICATE_FILE]


@pytest.mark.invariant("S4")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_key_that_others_can_read_is_refused(ca: OrganizationCa, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys" / CA_KEY_FILE
    path.chmod(mode)
    with pytest.raises(KeyFileInvalid, match="chmod 600"):
        OrganizationCa.load(path.parent)


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (CA_KEY_FILE, None, "cannot read"),
        (CA_KEY_FILE, b"garbage", "no unencrypted PEM"),
        (CA_CERTIFICATE_FILE, None, "cannot read"),
        (CA_CERTIFICATE_FILE, b"garbage", "ca.pem: no PEM certificates"),
    ],
)
def test_a_missing_or_broken_file_is_named(
    ca: OrganizationCa, tmp_path: Path, file: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "keys" / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises((KeyFileInvalid, ChainInvalid), match=reason) as refusal:
        OrganizationCa.load(path.parent)
    assert str(path) in str(refusal.value)


def test_the_key_of_another_ca_is_refused(ca: OrganizationCa, tmp_path: Path) -> None:
    OrganizationCa.create("mercy.example", tmp_path / "other", NOW)
    (tmp_path / "other" / CA_CERTIFICATE_FILE).write_bytes(ca.certificate_pem)
    with pytest.raises(KeyFileInvalid, match="do not belong together"):
        OrganizationCa.load(tmp_path / "other")


def test_a_node_key_is_no_ca_key(ca: OrganizationCa, tmp_path: Path) -> None:
    (tmp_path / "keys" / CA_KEY_FILE).unlink()
    KEY.save(tmp_path / "keys" / CA_KEY_FILE)
    with pytest.raises(KeyFileInvalid, match="no P-256 key"):
        OrganizationCa.load(tmp_path / "keys")


def test_an_organization_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidName):
        OrganizationCa.create("Mercy Hospital", tmp_path / "keys", NOW)
    assert not (tmp_path / "keys").exists()


def test_a_long_organization_name_works(tmp_path: Path) -> None:
    """X.509 common names end at 64 characters; the SPIFFE ID does not."""
    name = ".".join(["a" * 60] * 4)
    ca = OrganizationCa.create(name, tmp_path / "keys", NOW)
    leaf = ca.issue(certificate_request(KEY, SpiffeId(name, "node", "n1")), now=NOW)
    assert NodeIdentity.of(KEY, read_certificates(leaf)).organization == name


def test_the_leaf(ca: OrganizationCa) -> None:
    pem = ca.issue(certificate_request(KEY, NODE), now=NOW, lifetime=timedelta(days=7))
    leaf = x509.load_pem_x509_certificate(pem)
    key = leaf.public_key()
    assert isinstance(key, Ed25519PublicKey)
    assert key.public_bytes_raw() == KEY.public_key
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert not names.critical, "the subject is set, so the names must not be critical"
    assert [name.value for name in names.value] == ["spiffe://mercy.example/node/n1"]
    assert leaf.not_valid_after_utc == NOW + timedelta(days=7)
    assert leaf.not_valid_before_utc < NOW
    basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert not basic.value.ca
    leaf.verify_directly_issued_by(ca.certificate.certificate)


@pytest.mark.invariant("S4")
def test_the_request_does_not_hold_the_private_key() -> None:
    pem = certificate_request(KEY, NODE)
    assert b"PRIVATE" not in pem
    assert KEY.seed not in x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER)


def test_an_agent_gets_no_certificate(ca: OrganizationCa) -> None:
    with pytest.raises(InvalidName, match="no node"):
        certificate_request(KEY, SpiffeId("mercy.example", "agent", "a"))
    with pytest.raises(ChainInvalid, match="no node"):
        ca.issue(request(uri("spiffe://mercy.example/agent/a")), now=NOW)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: request(uri("spiffe://hope.example/node/n1")), "only its own CA"),
        (lambda: request(uri("spiffe://sub.mercy.example/node/n1")), "only its own CA"),
        (lambda: request(), "subject alternative name and nothing else"),
        (lambda: request(uri("https://mercy.example/node/n1")), "the request's name is wrong"),
        (lambda: request(uri("spiffe://mercy.example/node/n1/x")), "the request's name is wrong"),
        (lambda: request(uri("spiffe://MERCY.example/node/n1")), "the request's name is wrong"),
        (lambda: request(uri(str(NODE)), uri("spiffe://mercy.example/node/n2")), "one SPIFFE ID"),
        (lambda: request(uri(str(NODE)), x509.DNSName("mercy.example")), "one SPIFFE ID"),
        (lambda: request(x509.DNSName("mercy.example")), "one SPIFFE ID"),
        (lambda: request(uri(str(NODE)), extra=x509.BasicConstraints(True, None)), "nothing else"),
        (lambda: request(uri(str(NODE)), key=ec.generate_private_key(ec.SECP256R1())), "must be Ed25519"),
        (lambda: b"garbage", "no certificate request"),
        (lambda: b"x" * 100_000, "too large"),
    ],
)
def test_what_the_ca_does_not_sign(ca: OrganizationCa, make: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(ChainInvalid, match=reason):
        ca.issue(make(), now=NOW)


def test_a_request_signed_with_another_key_is_refused(ca: OrganizationCa) -> None:
    der = bytearray(x509.load_pem_x509_csr(certificate_request(KEY, NODE)).public_bytes(Encoding.DER))
    der[-1] ^= 1
    pem = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    with pytest.raises(ChainInvalid, match="not signed with its own key"):
        ca.issue(pem, now=NOW)


def test_a_request_for_a_key_that_anybody_can_sign_for_is_refused(ca: OrganizationCa) -> None:
    """The neutral element as public key: S = 0, R = neutral verifies for every message where it is not refused."""
    neutral = (1).to_bytes(32, "little")
    request_of_ours = x509.load_pem_x509_csr(certificate_request(KEY, NODE))
    der = request_of_ours.public_bytes(Encoding.DER).replace(KEY.public_key, neutral)
    forged = x509.load_der_x509_csr(der.replace(request_of_ours.signature, neutral + bytes(32)))
    with pytest.raises(ChainInvalid, match="not signed with its own key"):
        ca.issue(forged.public_bytes(Encoding.PEM), now=NOW)


@pytest.mark.parametrize(
    ("now", "lifetime", "reason"),
    [
        (NOW, timedelta(days=3651), "outlive"),
        (NOW + timedelta(days=3600), timedelta(days=90), "outlive"),
        (NOW, timedelta(0), "lifetime"),
        (NOW.replace(tzinfo=None), timedelta(days=1), "time zone"),
    ],
)
def test_wrong_times(ca: OrganizationCa, now: datetime, lifetime: timedelta, reason: str) -> None:
    with pytest.raises(ChainInvalid, match=reason):
        ca.issue(certificate_request(KEY, NODE), now=now, lifetime=lifetime)


def root(
    *,
    key: ec.EllipticCurvePrivateKey | None = None,
    signer: ec.EllipticCurvePrivateKey | None = None,
    is_ca: bool = True,
    cert_sign: bool = True,
    name: str = "spiffe://mercy.example",
) -> bytes:
    """A root that may not fit the profile."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
    usage = x509.KeyUsage(True, False, False, False, False, cert_sign, False, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(is_ca, 0 if is_ca else None), critical=True)
        .add_extension(usage, critical=True)
    )
    if name:
        builder = builder.add_extension(x509.SubjectAlternativeName([uri(name)]), critical=False)
    return builder.sign(signer or key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_a_root_that_fits() -> None:
    assert CaCertificate.parse(root()).organization == "mercy.example"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: root(key=ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (lambda: root(signer=ec.generate_private_key(ec.SECP256R1())), "its own key"),
        (lambda: root(is_ca=False), "no CA"),
        (lambda: root(cert_sign=False), "no CA"),
        (lambda: root(name=""), "no subject alternative name"),
        (lambda: root(name="spiffe://mercy.example/node/n1"), "not spiffe://"),
        (lambda: root(name="https://mercy.example"), "not spiffe://"),
        (lambda: root() + b"\x00", "no CA certificate"),
        (lambda: b"", "no CA certificate"),
        (lambda: bytes(20_000), "limit"),
    ],
)
def test_a_root_that_does_not_fit(make: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(ChainInvalid, match=reason):
        CaCertificate.parse(make())
