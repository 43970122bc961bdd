"""Chains: an organization vouches for its own nodes, for a time, and for nobody else."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from comity import trust as trust_module
from comity.errors import ChainInvalid, KeyFileInvalid
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import (
    NodeIdentity,
    OrganizationCa,
    TrustStore,
    certificate_request,
    new_bundle,
    read_certificates,
    sign_bundle,
    verify_bundle,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
DAY_MS = 24 * 3600 * 1000
KEY = PrivateKey(bytes(range(32)))
NODE = SpiffeId("mercy.example", "node", "n1")
#: Of the group of P-256 (FIPS 186-4, D.1.2.3).
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True)
class Consortium:
    mercy: OrganizationCa
    hope: OrganizationCa
    outsider: OrganizationCa
    trust: TrustStore

    def chain(self, *, lifetime: timedelta = timedelta(days=30)) -> tuple[bytes, ...]:
        return read_certificates(self.mercy.issue(certificate_request(KEY, NODE), now=NOW, lifetime=lifetime))


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    directory = tmp_path_factory.mktemp("organizations")
    mercy, hope, outsider = (
        OrganizationCa.create(f"{name}.example", directory / name, NOW) for name in ("mercy", "hope", "outsider")
    )
    pems = [mercy.certificate_pem, hope.certificate_pem]
    raw = new_bundle("tumours", pems, issued_ms=NOW_MS, expires_ms=NOW_MS + 365 * DAY_MS)
    bundle = verify_bundle(sign_bundle(sign_bundle(raw, mercy), hope), now_ms=NOW_MS, own_ca=None)
    return Consortium(mercy, hope, outsider, TrustStore(bundle))


def leaf(
    ca: OrganizationCa,
    *names: str,
    public_key: object = None,
    is_ca: bool = False,
    digital_signature: bool = True,
    cert_sign: bool = False,
    usage: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH),
    critical_names: bool = False,
    extra: x509.ExtensionType | None = None,
    issuer: OrganizationCa | None = None,
) -> bytes:
    """A leaf that `ca` signs although it may not fit the profile: what a careless or bad member could make."""
    key = public_key if isinstance(public_key, ec.EllipticCurvePublicKey) else KEY.to_cryptography().public_key()
    key_usage = x509.KeyUsage(digital_signature, False, False, False, False, cert_sign, False, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n1")]))
        .issuer_name((issuer or ca).certificate.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=30))
        .add_extension(x509.BasicConstraints(is_ca, 0 if is_ca else None), critical=True)
        .add_extension(key_usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.certificate.public_key),
            critical=False,
        )
    )
    if names:
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name) for name in names])
        builder = builder.add_extension(san, critical=critical_names)
    if extra is not None:
        builder = builder.add_extension(extra, critical=True)
    return builder.sign(ca._key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_a_node_of_a_member_is_attested(consortium: Consortium) -> None:
    attested = consortium.trust.verify_chain(consortium.chain(), NOW_MS)
    assert attested.organization == "mercy.example"
    assert attested.node == NODE
    assert (attested.public_key, attested.peer_id) == (KEY.public_key, KEY.peer_id)


def test_a_chain_may_carry_its_root(consortium: Consortium) -> None:
    chain = (*consortium.chain(), consortium.mercy.certificate.der)
    assert consortium.trust.verify_chain(chain, NOW_MS).node == NODE


def test_the_helper_makes_good_leaves(consortium: Consortium) -> None:
    """So that what the refusals below refuse is the one thing that they change."""
    assert consortium.trust.verify_chain([leaf(consortium.mercy, str(NODE))], NOW_MS).node == NODE


@pytest.mark.invariant("S2")
def test_one_organization_s_ca_never_vouches_for_another_s_node(consortium: Consortium) -> None:
    """Hope is a member in good standing and signs with its real CA: a node of Mercy it can not make."""
    for issuer in (consortium.hope, consortium.mercy):
        forged = leaf(consortium.hope, str(NODE), issuer=issuer)
        for chain in (
            [forged],
            [forged, consortium.mercy.certificate.der],
            [forged, consortium.hope.certificate.der],
        ):
            with pytest.raises(ChainInvalid, match=r"root of mercy\.example"):
                consortium.trust.verify_chain(chain, NOW_MS)


@pytest.mark.parametrize("organization", ["outsider.example", "sub.mercy.example", "mercy.example.outsider.example"])
def test_a_stranger_is_refused(consortium: Consortium, organization: str) -> None:
    stranger = leaf(consortium.outsider, f"spiffe://{organization}/node/n1")
    with pytest.raises(ChainInvalid, match="is no member of tumours"):
        consortium.trust.verify_chain([stranger], NOW_MS)


def test_a_root_of_the_same_name_is_refused(consortium: Consortium, tmp_path: Path) -> None:
    """Anybody can make a CA that calls itself Mercy's."""
    impostor = OrganizationCa.create("mercy.example", tmp_path, NOW)
    chain = read_certificates(impostor.issue(certificate_request(KEY, NODE), now=NOW, lifetime=timedelta(days=1)))
    with pytest.raises(ChainInvalid, match="does not lead to a root"):
        consortium.trust.verify_chain(chain, NOW_MS)
    with pytest.raises(ChainInvalid, match="second certificate"):
        consortium.trust.verify_chain([*chain, impostor.certificate.der], NOW_MS)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda c: leaf(c.mercy), "no subject alternative name"),
        (lambda c: leaf(c.mercy, str(NODE), "spiffe://mercy.example/node/n2"), "one SPIFFE ID"),
        (lambda c: leaf(c.mercy, str(NODE), str(NODE)), "one SPIFFE ID"),
        (lambda c: leaf(c.mercy, "spiffe://mercy.example/agent/a"), "is no node"),
        (lambda c: leaf(c.mercy, "spiffe://mercy.example"), "not spiffe://"),
        (lambda c: leaf(c.mercy, "https://mercy.example/node/n1"), "not spiffe://"),
        (lambda c: leaf(c.mercy, "spiffe://Mercy.example/node/n1"), "no organization name"),
        (lambda c: leaf(c.mercy, str(NODE), public_key=c.hope.certificate.public_key), "must be Ed25519"),
        (lambda c: leaf(c.mercy, str(NODE), is_ca=True), "no node's"),
        (lambda c: leaf(c.mercy, str(NODE), cert_sign=True), "no node's"),
        (lambda c: leaf(c.mercy, str(NODE), is_ca=True, cert_sign=True), "no node's"),
        (lambda c: leaf(c.mercy, str(NODE), digital_signature=False), "allowed to sign"),
        (lambda c: leaf(c.mercy, str(NODE), usage=[ExtendedKeyUsageOID.CODE_SIGNING]), "does not lead to a root"),
        (lambda c: leaf(c.mercy, str(NODE), critical_names=True), "does not lead to a root"),
        (lambda c: leaf(c.mercy, str(NODE), extra=x509.OCSPNoCheck()), "does not lead to a root"),
        (lambda c: c.mercy.certificate.der, "must be Ed25519"),
        (lambda c: b"", "no node's certificate"),
        (lambda c: leaf(c.mercy, str(NODE)) + b"\x00", "no node's certificate"),
        (lambda c: bytes(20_000), "limit"),
    ],
)
def test_a_leaf_that_does_not_fit_is_refused(
    consortium: Consortium, make: Callable[[Consortium], bytes], reason: str
) -> None:
    with pytest.raises(ChainInvalid, match=reason):
        consortium.trust.verify_chain([make(consortium)], NOW_MS)


def test_a_leaf_signed_by_a_leaf_is_refused(consortium: Consortium) -> None:
    """A node's own certificate is no CA's: it cannot make other nodes."""
    signer = ed25519.Ed25519PrivateKey.from_private_bytes(KEY.seed)
    above = x509.load_der_x509_certificate(leaf(consortium.mercy, str(NODE)))
    below = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n2")]))
        .issuer_name(above.subject)
        .public_key(PrivateKey(b"2" * 32).to_cryptography().public_key())
        .serial_number(2)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, False, False, False, False),
            critical=True,
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://mercy.example/node/n2")]),
            critical=False,
        )
        .sign(signer, None)
        .public_bytes(Encoding.DER)
    )
    with pytest.raises(ChainInvalid, match="second certificate is no root"):
        consortium.trust.verify_chain([below, above.public_bytes(Encoding.DER)], NOW_MS)
    with pytest.raises(ChainInvalid, match="does not lead to a root"):
        consortium.trust.verify_chain([below], NOW_MS)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("length", [0, 3, 1000])
def test_a_chain_of_another_length_is_refused_unread(consortium: Consortium, length: int) -> None:
    with pytest.raises(ChainInvalid, match="one or 2 certificates"):
        consortium.trust.verify_chain(consortium.chain() * length, NOW_MS)


@pytest.mark.invariant("S5")
def test_times(consortium: Consortium) -> None:
    chain = consortium.chain(lifetime=timedelta(days=30))
    for _ in range(2):  # the second time from memory
        consortium.trust.verify_chain(chain, NOW_MS)
        consortium.trust.verify_chain(chain, NOW_MS - 60_000)
        consortium.trust.verify_chain(chain, NOW_MS + 30 * DAY_MS)
        with pytest.raises(ChainInvalid, match="not valid yet"):
            consortium.trust.verify_chain(chain, NOW_MS - 60_001)
        with pytest.raises(ChainInvalid, match="has expired"):
            consortium.trust.verify_chain(chain, NOW_MS + 30 * DAY_MS + 1)


def test_nothing_verifies_against_an_expired_bundle(consortium: Consortium) -> None:
    chain = consortium.chain(lifetime=timedelta(days=400))
    consortium.trust.verify_chain(chain, NOW_MS + 365 * DAY_MS - 1)
    with pytest.raises(ChainInvalid, match="bundle of epoch 1 has expired"):
        consortium.trust.verify_chain(chain, NOW_MS + 365 * DAY_MS)


def test_a_verified_chain_is_remembered(consortium: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    trust = TrustStore(consortium.trust.bundle)
    chain = consortium.chain()
    first = trust.verify_chain(chain, NOW_MS)

    def never(*_: object) -> None:
        raise AssertionError("verified again")

    monkeypatch.setattr(trust_module, "read_leaf", never)
    assert trust.verify_chain(list(chain), NOW_MS + 1) is first
    with pytest.raises(AssertionError):
        trust.verify_chain([*chain, consortium.mercy.certificate.der], NOW_MS)


@pytest.mark.invariant("S7")
def test_the_memory_for_chains_is_bounded(consortium: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_module, "_CACHED_CHAINS", 3)
    trust = TrustStore(consortium.trust.bundle)
    chains = [consortium.chain() for _ in range(5)]
    for chain in chains:
        trust.verify_chain(chain, NOW_MS)
    assert len(trust._verified) == 3
    assert trust.verify_chain(chains[0], NOW_MS).node == NODE


def test_a_member_with_two_roots(consortium: Consortium, tmp_path: Path) -> None:
    """An organization that changes its CA lists both for a while."""
    second = OrganizationCa.create("mercy.example", tmp_path, NOW)
    pems = [consortium.mercy.certificate_pem + second.certificate_pem]
    raw = sign_bundle(new_bundle("c", pems, issued_ms=NOW_MS, expires_ms=NOW_MS + DAY_MS), second)
    trust = TrustStore(verify_bundle(raw, now_ms=NOW_MS, own_ca=second.certificate.der))
    for ca in (consortium.mercy, second):
        chain = read_certificates(ca.issue(certificate_request(KEY, NODE), now=NOW))
        assert trust.verify_chain(chain, NOW_MS).node == NODE


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_leaf_is_refused(consortium: Consortium, where: int, flip: int) -> None:
    """Whatever byte is changed, ChainInvalid comes out and nothing else."""
    der = bytearray(consortium.chain()[0])
    der[where % len(der)] ^= flip
    with pytest.raises(ChainInvalid):
        consortium.trust.verify_chain([bytes(der)], NOW_MS)


def test_a_leaf_whose_names_are_no_text_is_refused(consortium: Consortium) -> None:
    """Names are parsed where a refused extension is told of, and not before: that is ChainInvalid, too."""
    leaf = bytearray(consortium.chain()[0])
    _, _, subject, *_ = (found.start() for found in re.finditer(rb"\.example", leaf))  # the first two are the issuer's
    leaf[subject] = 0xF5
    leaf[leaf.index(b"\x06\x03\x55\x1d\x23") + 4] = 0x21  # another extension than the authority key identifier
    with pytest.raises(ChainInvalid, match="does not lead to a root"):
        consortium.trust.verify_chain([bytes(leaf)], NOW_MS)


def test_bytes_that_no_signature_covers_cannot_be_changed(consortium: Consortium) -> None:
    """DER lets a signature that ends with a 0 bit claim that it is unused."""
    der = next(one for one in (consortium.chain()[0] for _ in range(1000)) if one[-1] % 2 == 0)
    signature = x509.load_der_x509_certificate(der).signature
    changed = der[: -len(signature) - 1] + b"\x01" + signature
    assert x509.load_der_x509_certificate(changed).signature == signature
    with pytest.raises(ChainInvalid, match="unused bits"):
        consortium.trust.verify_chain([changed], NOW_MS)


@given(st.binary(max_size=300))
def test_noise_is_no_chain(consortium: Consortium, noise: bytes) -> None:
    with pytest.raises(ChainInvalid):
        consortium.trust.verify_chain([noise], NOW_MS)


def test_identity_from_files(consortium: Consortium, tmp_path: Path) -> None:
    KEY.save(tmp_path / "node.key")
    pem = consortium.mercy.issue(certificate_request(KEY, NODE), now=NOW)
    (tmp_path / "node.pem").write_bytes(pem + consortium.mercy.certificate_pem)
    identity = NodeIdentity.load(tmp_path / "node.key", tmp_path / "node.pem")
    assert (identity.node, identity.organization, identity.peer_id) == (NODE, "mercy.example", KEY.peer_id)
    assert len(identity.chain) == 2
    assert consortium.trust.verify_chain(identity.chain, NOW_MS).public_key == identity.key.public_key


@pytest.mark.invariant("S3")
def test_an_identity_that_does_not_fit_names_its_file(consortium: Consortium, tmp_path: Path) -> None:
    key, chain = tmp_path / "node.key", tmp_path / "node.pem"
    KEY.save(key)
    with pytest.raises(KeyFileInvalid, match=r"cannot read the certificate .*node\.pem"):
        NodeIdentity.load(key, chain)
    chain.write_bytes(b"garbage")
    with pytest.raises(ChainInvalid, match=r"node\.pem: no PEM certificates"):
        NodeIdentity.load(key, chain)
    other = PrivateKey(b"o" * 32)
    chain.write_bytes(consortium.mercy.issue(certificate_request(other, NODE), now=NOW))
    with pytest.raises(ChainInvalid, match=r"node\.pem: the certificate is of another key"):
        NodeIdentity.load(key, chain)
    chain.write_bytes(consortium.mercy.certificate_pem)
    with pytest.raises(ChainInvalid, match=r"node\.pem: a node's key must be Ed25519"):
        NodeIdentity.load(key, chain)


@pytest.mark.invariant("S2")
def test_a_revoked_certificate_is_refused_from_then_on_and_another_of_the_same_key_is_not(
    consortium: Consortium,
) -> None:
    trust = TrustStore(consortium.trust.bundle)
    chain, renewed = consortium.chain(), consortium.chain(lifetime=timedelta(days=20))
    trust.verify_chain(chain, NOW_MS + 10)
    trust.revoke(chain[0], NOW_MS + 5)
    trust.revoke(chain[0], NOW_MS + 9)  # the earliest holds
    trust.verify_chain(chain, NOW_MS + 4)  # what was signed before stays good
    for late in (5, 10, 1000):
        with pytest.raises(ChainInvalid, match="revoked"):
            trust.verify_chain(chain, NOW_MS + late)
    assert trust.verify_chain(renewed, NOW_MS + 10).node == NODE


def resigned(der: bytes) -> bytes:
    """The certificate under the other signature that holds: where (r, s) is one of ECDSA, (r, n - s) is one too."""
    certificate = x509.load_der_x509_certificate(der)
    r, s = decode_dss_signature(certificate.signature)
    signature = encode_dss_signature(r, P256_ORDER - s)
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    inner = certificate.tbs_certificate_bytes + algorithm + b"\x03" + bytes([len(signature) + 1, 0]) + signature
    return b"\x30\x82" + len(inner).to_bytes(2, "big") + inner


@pytest.mark.invariant("S2")
def test_a_revoked_certificate_is_not_revived_by_a_second_signature(consortium: Consortium) -> None:
    trust = TrustStore(consortium.trust.bundle)
    chain = consortium.chain()
    twin = (resigned(chain[0]), *chain[1:])
    assert twin[0] != chain[0]
    assert trust.verify_chain(twin, NOW_MS).node == NODE  # it is as good as the first
    trust.revoke(chain[0], NOW_MS)
    for each in (chain, twin):
        with pytest.raises(ChainInvalid, match="revoked"):
            trust.verify_chain(each, NOW_MS)
