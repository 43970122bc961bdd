"""A node's identity: its key, the chain that vouches for it, and what a node's certificate says.

Nothing here verifies a chain: that is for `comity.trust`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from comity.ca import MAX_CERTIFICATE, X509_ERRORS, load_certificate, read_certificates, single_uri
from comity.digest import sha256
from comity.errors import ChainInvalid, InvalidName, KeyFileInvalid, SignatureInvalid
from comity.ids import SpiffeId
from comity.signing import PrivateKey, check_public_key, peer_id

#: A leaf, and the root that issued it.
MAX_CHAIN: Final = 2


@dataclass(slots=True)
class NodeIdentity:
    """A node's own key and certificate chain. Only the chain changes: it is renewed while the node runs.

    Attributes:
        key: the Ed25519 key; it never leaves the node.
        node: the node's SPIFFE ID.
        chain: certificates in DER, the node's own first. Read it once for what has to fit together.
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
        leaf = read_leaf(chain)
        if leaf.attested.public_key != key.public_key:
            raise ChainInvalid("the certificate is of another key")
        return cls(key, leaf.attested.node, tuple(chain))

    @property
    def valid_ms(self) -> tuple[int, int]:
        """From when to when the node's own certificate is good, both ends included; milliseconds since the epoch."""
        return _validity_ms(self.chain[0])

    def renew(self, chain: Sequence[bytes]) -> bool:
        """Present another chain from now on, of the same key and the same node; says whether it is another one.

        Whether it verifies is for a `TrustStore` to say, before.

        Raises:
            ChainInvalid: the chain is no node's, of another key, or of another name; the one before stays.
        """
        renewed = NodeIdentity.of(self.key, chain)
        if renewed.node != self.node:
            raise ChainInvalid(f"the certificate is of {renewed.node}; this node is {self.node}")
        is_new, self.chain = renewed.chain != self.chain, renewed.chain
        return is_new


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
class Leaf:
    """A node's certificate, read; nothing is verified.

    Attributes:
        certificate: parsed.
        attested: whose it says that it is.
        from_ms: when it begins, in milliseconds since the Unix epoch.
        until_ms: when it ends, this millisecond included.
    """

    certificate: x509.Certificate
    attested: Attested
    from_ms: int
    until_ms: int


def check_limits(chain: Sequence[bytes]) -> None:
    """Refuse a chain for its size, before anything is read.

    Raises:
        ChainInvalid: it has no or too many certificates, or one is too large.
    """
    if not 1 <= len(chain) <= MAX_CHAIN:
        raise ChainInvalid(f"a chain has one or {MAX_CHAIN} certificates, not {len(chain)}")
    if any(len(der) > MAX_CERTIFICATE for der in chain):
        raise ChainInvalid(f"a certificate is over the limit of {MAX_CERTIFICATE} bytes")


def read_leaf(chain: Sequence[bytes]) -> Leaf:
    """Read the first certificate of a chain and check that it is a node's; nothing is verified.

    Raises:
        ChainInvalid: it is not.
    """
    check_limits(chain)
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
        check_public_key(public_key)
        attested = Attested(node.organization, node, public_key, peer_id(public_key))
        from_ms, until_ms = (
            milliseconds(certificate.not_valid_before_utc),
            milliseconds(certificate.not_valid_after_utc),
        )
    except (InvalidName, SignatureInvalid, *X509_ERRORS) as error:
        raise ChainInvalid(f"no node's certificate: {error}") from error
    return Leaf(certificate, attested, from_ms, until_ms)


@lru_cache(maxsize=16)
def _validity_ms(certificate: bytes) -> tuple[int, int]:
    """Every message that leaves asks; parsing is slow."""
    read = load_certificate(certificate)
    return milliseconds(read.not_valid_before_utc), milliseconds(read.not_valid_after_utc)


def grant_of(certificate: x509.Certificate) -> bytes:
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


def milliseconds(moment: datetime) -> int:
    """Return a time as milliseconds since the Unix epoch."""
    return round(moment.timestamp() * 1000)
