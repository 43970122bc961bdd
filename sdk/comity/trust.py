"""Who is who: a node's identity, and the verification of others' against the trust bundle.

A chain is verified in these steps, and the first that fails refuses it:

1. limits: one or two certificates, each of bounded size;
2. the leaf is a node's: an Ed25519 key, one SPIFFE ID of a node and no other name, a signing key, no CA;
3. the organization that the SPIFFE ID names is a member, and a second certificate is one of its roots;
4. the leaf, and the bundle, are good at the time;
5. the path (RFC 5280) leads to a root of *that* organization: another member's CA can never vouch for its nodes;
6. the organization has not revoked the leaf. What was revoked is known by what the CA has signed of it: of an ECDSA
   signature anybody can make a second one that is as good, and so a certificate with another fingerprint.

The leaf's key is the node's libp2p identity, so what is verified is also who is at the other end of a link.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from comity.bundle import (
    Bundle,
    add_member,
    load_bundle,
    new_bundle,
    read_bundle,
    remove_member,
    sign_bundle,
    unsigned_members,
    verify_bundle,
)
from comity.ca import (
    MAX_CERTIFICATE,
    X509_ERRORS,
    CaCertificate,
    OrganizationCa,
    certificate_request,
    load_certificate,
    read_certificates,
    single_uri,
)
from comity.digest import sha256
from comity.errors import ChainInvalid, InvalidName, KeyFileInvalid
from comity.ids import SpiffeId
from comity.signing import PrivateKey, peer_id

__all__ = [
    "Attested",
    "Bundle",
    "CaCertificate",
    "NodeIdentity",
    "OrganizationCa",
    "TrustStore",
    "add_member",
    "certificate_request",
    "load_bundle",
    "new_bundle",
    "read_bundle",
    "read_certificates",
    "remove_member",
    "sign_bundle",
    "unsigned_members",
    "verify_bundle",
]

#: A leaf, and the root that issued it.
MAX_CHAIN: Final = 2
_CACHED_CHAINS = 1024


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """A node's own key and certificate chain.

    Attributes:
        key: the Ed25519 key; it never leaves the node.
        node: the node's SPIFFE ID.
        chain: certificates in DER, the node's own first.
    """

    key: PrivateKey
    node: SpiffeId
    chain: tuple[bytes, ...]

    @property
    def organization(self) -> str:
        """The organization that the node belongs to."""
        return self.node.organization

    @property
    def peer_id(self) -> str:
        """The node's PeerId."""
        return self.key.peer_id

    @classmethod
    def load(cls, key_path: Path, chain_path: Path) -> NodeIdentity:
        """Read a node's key and chain (PEM), and check that they belong together.

        Whether the chain verifies is for a `TrustStore` to say.

        Raises:
            KeyFileInvalid: the key's file is missing, readable by others or no Ed25519 key, or the chain's is missing.
            ChainInvalid: the chain is no node's, or of another key.
        """
        key = PrivateKey.load(key_path)
        try:
            pem = chain_path.read_bytes()
        except OSError as error:
            raise KeyFileInvalid(f"cannot read the certificate {chain_path}: {error.strerror}") from error
        try:
            return cls.of(key, read_certificates(pem))
        except ChainInvalid as error:
            raise ChainInvalid(f"{chain_path}: {error}") from error

    @classmethod
    def of(cls, key: PrivateKey, chain: Sequence[bytes]) -> NodeIdentity:
        """Join a key with its chain (DER, leaf first).

        Raises:
            ChainInvalid: the chain is no node's, or of another key.
        """
        leaf = _read_leaf(chain)
        if leaf.attested.public_key != key.public_key:
            raise ChainInvalid("the certificate is of another key")
        return cls(key, leaf.attested.node, tuple(chain))


@dataclass(frozen=True, slots=True)
class Attested:
    """A node whose chain has verified.

    Attributes:
        organization: the organization that vouches for it.
        node: its SPIFFE ID.
        public_key: its 32-byte Ed25519 key.
        peer_id: the PeerId of that key.
    """

    organization: str
    node: SpiffeId
    public_key: bytes
    peer_id: str


@dataclass(frozen=True, slots=True)
class _Leaf:
    certificate: x509.Certificate
    attested: Attested
    from_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class _Verified:
    """A chain that has verified, and the milliseconds in which that holds, both ends included."""

    attested: Attested
    grant: bytes
    from_ms: int
    until_ms: int


class TrustStore:
    """Verifies chains against one trust bundle; remembers those that verified until they expire."""

    def __init__(self, bundle: Bundle) -> None:
        """Take a bundle that `verify_bundle` has accepted."""
        self.bundle = bundle
        self._stores = {name: Store([root.certificate for root in roots]) for name, roots in bundle.roots.items()}
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        self._revoked: dict[bytes, int] = {}
        self._lock = Lock()

    def verify_chain(self, chain: Sequence[bytes], now_ms: int) -> Attested:
        """Verify a node's chain by the six steps above.

        Args:
            chain: certificates in DER, the node's own first.
            now_ms: the time at which it must be good, in milliseconds since the Unix epoch: now, or for the offline
                check of something old, the time at which it was signed.

        Raises:
            ChainInvalid: a step failed; the message says which.
        """
        _check_limits(chain)
        key = sha256(b"".join(len(der).to_bytes(4, "big") + der for der in chain))
        with self._lock:
            verified = self._verified.get(key)
            if verified is not None:
                self._verified.move_to_end(key)
        if verified is None or not verified.from_ms <= now_ms <= verified.until_ms:
            verified = self._verify(chain, now_ms)
            with self._lock:
                self._verified[key] = verified
                if len(self._verified) > _CACHED_CHAINS:
                    self._verified.popitem(last=False)
        with self._lock:
            revoked_ms = self._revoked.get(verified.grant)
        if revoked_ms is not None and now_ms >= revoked_ms:
            raise ChainInvalid("the certificate was revoked by its organization")
        return verified.attested

    def revoke(self, certificate: bytes, from_ms: int) -> None:
        """Refuse a node's certificate from a time on; the earliest time that was ever said holds.

        The caller has verified who says so (`comity.revocation`).

        Args:
            certificate: the certificate in DER.
            from_ms: milliseconds since the Unix epoch; what was signed before stays good.
        """
        grant = _grant(load_certificate(certificate))
        with self._lock:
            self._revoked[grant] = min(from_ms, self._revoked.get(grant, from_ms))

    def _verify(self, chain: Sequence[bytes], now_ms: int) -> _Verified:
        leaf = _read_leaf(chain)
        organization = leaf.attested.organization
        if organization not in self._stores:
            raise ChainInvalid(f"{organization} is no member of {self.bundle.consortium} (epoch {self.bundle.epoch})")
        if any(der not in self.bundle.members[organization] for der in chain[1:]):
            raise ChainInvalid(f"the chain's second certificate is no root of {organization}")
        if now_ms >= self.bundle.expires_ms:
            raise ChainInvalid(f"the trust bundle of epoch {self.bundle.epoch} has expired")
        if now_ms < leaf.from_ms:
            raise ChainInvalid(f"the certificate of {leaf.attested.node} is not valid yet")
        if now_ms > leaf.until_ms:
            raise ChainInvalid(f"the certificate of {leaf.attested.node} has expired")
        return self._verify_path(leaf, now_ms)

    def _verify_path(self, leaf: _Leaf, now_ms: int) -> _Verified:
        organization = leaf.attested.organization
        moment = datetime.fromtimestamp(now_ms / 1000, UTC)
        verifier = (
            PolicyBuilder().store(self._stores[organization]).time(moment).max_chain_depth(0).build_client_verifier()
        )
        try:
            path = verifier.verify(leaf.certificate, []).chain
        except VerificationError as error:
            raise ChainInvalid(
                f"the certificate of {leaf.attested.node} does not lead to a root of {organization}: {error}"
            ) from error
        return _Verified(
            leaf.attested,
            _grant(leaf.certificate),
            max(_milliseconds(one.not_valid_before_utc) for one in path),
            min(self.bundle.expires_ms - 1, *(_milliseconds(one.not_valid_after_utc) for one in path)),
        )


def _check_limits(chain: Sequence[bytes]) -> None:
    if not 1 <= len(chain) <= MAX_CHAIN:
        raise ChainInvalid(f"a chain has one or {MAX_CHAIN} certificates, not {len(chain)}")
    if any(len(der) > MAX_CERTIFICATE for der in chain):
        raise ChainInvalid(f"a certificate is over the limit of {MAX_CERTIFICATE} bytes")


def _read_leaf(chain: Sequence[bytes]) -> _Leaf:
    """Read the first certificate of a chain and check that it is a node's; nothing is verified."""
    _check_limits(chain)
    try:
        certificate = load_certificate(chain[0])
        key = certificate.public_key()
        if not isinstance(key, Ed25519PublicKey):
            raise ChainInvalid("a node's key must be Ed25519")
        _check_usage(certificate.extensions)
        node = SpiffeId.parse(single_uri(certificate.extensions))
        if node.kind != "node":
            raise ChainInvalid(f"{node} is no node")
        public_key = key.public_bytes_raw()
        attested = Attested(node.organization, node, public_key, peer_id(public_key))
        from_ms, until_ms = (
            _milliseconds(certificate.not_valid_before_utc),
            _milliseconds(certificate.not_valid_after_utc),
        )
    except (InvalidName, *X509_ERRORS) as error:
        raise ChainInvalid(f"no node's certificate: {error}") from error
    return _Leaf(certificate, attested, from_ms, until_ms)


def _grant(certificate: x509.Certificate) -> bytes:
    """What names a certificate, and nobody but its CA can change."""
    return sha256(certificate.tbs_certificate_bytes)


def _check_usage(extensions: x509.Extensions) -> None:
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as error:
        raise ChainInvalid("a node's certificate has basic constraints and a key usage") from error
    if constraints.ca or usage.key_cert_sign:
        raise ChainInvalid("a CA's certificate is no node's")
    if not usage.digital_signature:
        raise ChainInvalid("a node's key must be allowed to sign")


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
