"""`comity cert`: a node asks its organization's CA for a certificate; its private key stays where it was made (S4)."""

from __future__ import annotations

import argparse
import stat
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from comity.bundle import MAX_BUNDLE, read_bundle
from comity.ca import (
    CA_CERTIFICATE_FILE,
    CA_KEY_FILE,
    LEAF_LIFETIME,
    ROOT_LIFETIME,
    X509_ERRORS,
    CaCertificate,
    OrganizationCa,
    certificate_request,
    load_certificate,
    read_certificates,
    single_uri,
)
from comity.errors import ChainInvalid, ConfigError, InvalidName
from comity.ids import SpiffeId
from comity.revocation import MAX_REVOCATION, sign_revocation
from comity.signing import PrivateKey, peer_id
from comity.trust import NodeIdentity, TrustStore
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, fields, read_bytes, timestamp, write_new
from comity_node.cli.node_client import CONTROL, connected
from comity_node.templates import CA_DIRECTORY

_REQUEST = ".csr.pem"
_ISSUED = ".issued.pem"
_REVOCATION = ".revoked.json"
#: In the CA's directory: what it has revoked, so that it does not certify the same key again unawares.
_REVOKED = "revoked"
_MAX_PEM = 128 * 1024


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a node's certificate says; nothing is verified."""

    node: SpiffeId
    public_key: bytes
    issuer: str
    not_before: datetime
    not_after: datetime

    @property
    def peer_id(self) -> str:
        """The PeerId of the certificate's key."""
        return peer_id(self.public_key)

    def describe(self, now: datetime) -> dict[str, object]:
        """Return the certificate's values by name."""
        return {
            "node": str(self.node),
            "peer_id": self.peer_id,
            "issuer": self.issuer,
            "valid_from": self.not_before.isoformat(),
            "valid_until": self.not_after.isoformat(),
            "days_left": (self.not_after - now).days,
        }


def read_leaf(path: Path) -> Leaf:
    """Read the node's certificate of a chain's file (PEM, leaf first).

    Raises:
        ConfigError: the file cannot be read.
        ChainInvalid: it holds no node's certificate.
    """
    try:
        return _leaf_of(read_certificates(read_bytes(path, "the certificate", limit=_MAX_PEM))[0])
    except ChainInvalid as error:
        raise ChainInvalid(f"{path}: {error}") from error


def _leaf_of(der: bytes) -> Leaf:
    try:
        certificate = load_certificate(der)
        key = certificate.public_key()
        if not isinstance(key, Ed25519PublicKey):
            raise ChainInvalid("its first certificate is no node's")
        node = SpiffeId.parse(single_uri(certificate.extensions))
    except (InvalidName, *X509_ERRORS) as error:
        raise ChainInvalid(f"its first certificate is no node's: {error}") from error
    return Leaf(
        node=node,
        public_key=key.public_bytes_raw(),
        issuer=certificate.issuer.rfc4514_string(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def _request(context: Context, arguments: argparse.Namespace) -> None:
    config = context.config()
    key = PrivateKey.load(config.key)
    out = arguments.out or config.key.with_name(config.key.stem + _REQUEST)
    write_new(out, certificate_request(key, config.node), force=True)
    context.emit(
        {"request": str(out), "node": str(config.node), "peer_id": key.peer_id},
        f"{out}\nfor {config.node}, peer id {key.peer_id}: give it to whoever keeps the CA of {config.organization}",
    )


def _approve(context: Context, arguments: argparse.Namespace) -> None:
    directory: Path = arguments.ca or context.home / CA_DIRECTORY
    ca = OrganizationCa.load(directory)
    request: Path = arguments.request
    name = request.name.removesuffix(_REQUEST) if request.name.endswith(_REQUEST) else request.stem
    out = arguments.out or request.with_name(name + _ISSUED)
    pem = read_bytes(request, "the request", limit=_MAX_PEM)
    leaf_pem = ca.issue(pem, now=context.now, lifetime=timedelta(days=arguments.days))
    _check_not_revoked(context, directory, leaf_pem, allowed=arguments.revoked)
    write_new(out, leaf_pem + ca.certificate_pem, force=True)
    leaf = read_leaf(out)
    context.emit(
        {"chain": str(out), **leaf.describe(context.now)},
        f"{out}\n{leaf.node}, peer id {leaf.peer_id}, until {leaf.not_after:%Y-%m-%d}: "
        "give it back to the node (`comity cert install`)",
    )


def _install(context: Context, arguments: argparse.Namespace) -> None:
    config = context.config()
    source = arguments.chain or config.key.with_name(config.key.stem + _ISSUED)
    leaf = _put(context, read_bytes(source, "the chain", limit=_MAX_PEM), str(source))
    context.emit(
        {"chain": str(config.chain), **leaf.describe(context.now)},
        f"{config.chain}\n{leaf.node} is certified until {leaf.not_after:%Y-%m-%d}",
    )


def _put(context: Context, pem: bytes, source: str) -> Leaf:
    """Check a chain (PEM) for this node and put it where the node reads it."""
    config = context.config()
    try:
        identity = NodeIdentity.of(PrivateKey.load(config.key), read_certificates(pem))
    except ChainInvalid as error:
        raise ChainInvalid(f"{source}: {error}") from error
    if identity.node != config.node:
        raise ConfigError(f"the certificate is for {identity.node}, and this node is {config.node}", file=source)
    leaf = _leaf_of(identity.chain[0])
    if leaf.not_after <= context.now:
        raise ChainInvalid(f"{source}: it expired on {leaf.not_after:%Y-%m-%d}; ask for a new one: comity cert request")
    _check_known(context, identity, source)
    write_new(config.chain, pem, force=True)
    return leaf


def _check_known(context: Context, identity: NodeIdentity, source: str) -> None:
    """Refuse a chain of a root that the consortium does not know yet: the node would not start with it."""
    path = context.config().bundle
    if not path.exists():
        return
    bundle = read_bundle(read_bytes(path, "the trust bundle", limit=MAX_BUNDLE))
    if bundle.expires_ms <= context.now_ms:
        return
    try:
        TrustStore(bundle).verify_chain(identity.chain, context.now_ms)
    except ChainInvalid as error:
        raise ChainInvalid(f"{source}: by the bundle {path}, {error}; is there an epoch to install first?") from error


def _renew(context: Context, arguments: argparse.Namespace) -> None:
    """The same key, new dates; where the CA is on another machine, the request is what can be done here."""
    config = context.config()
    directory: Path = arguments.ca or context.home / CA_DIRECTORY
    if arguments.ca is None and not (directory / CA_KEY_FILE).exists():
        _request(context, argparse.Namespace(out=None))
        return
    ca = OrganizationCa.load(directory)
    request = certificate_request(PrivateKey.load(config.key), config.node)
    chain = ca.issue(request, now=context.now, lifetime=timedelta(days=arguments.days)) + ca.certificate_pem
    _check_not_revoked(context, directory, chain, allowed=arguments.revoked)
    before = read_leaf(config.chain) if config.chain.exists() else None
    leaf = _put(context, chain, str(directory))
    was = f", before until {before.not_after:%Y-%m-%d}" if before else ""
    context.emit(
        {"chain": str(config.chain), **leaf.describe(context.now)},
        f"{config.chain}\n{leaf.node} is certified until {leaf.not_after:%Y-%m-%d}{was}; its key stays, and so does "
        "what it has signed",
    )


def _root(context: Context, arguments: argparse.Namespace) -> None:
    organization = arguments.organization or context.config().organization
    lifetime = timedelta(days=arguments.days)
    ca = OrganizationCa.create(organization, arguments.directory, context.now, lifetime, key_uri=arguments.key_uri)
    path = arguments.directory / CA_CERTIFICATE_FILE
    context.emit(
        {"certificate": str(path), "organization": organization, "fingerprint": ca.certificate.fingerprint},
        f"{path}\nthe next root of {organization}, {ca.certificate.fingerprint}; to let the consortium know it: "
        f"comity consortium rotate BUNDLE {path}",
    )


def _show(context: Context, arguments: argparse.Namespace) -> None:
    path = arguments.chain or context.config().chain
    values = read_leaf(path).describe(context.now)
    mode = stat.S_IMODE(path.stat().st_mode)
    context.emit({"file": str(path), **values}, fields({"file": f"{path} (mode {mode:04o})", **values}))


def _revoke(context: Context, arguments: argparse.Namespace) -> None:
    """With the CA's key: which need not be on the node's machine, so the revocation is a file."""
    directory: Path = arguments.ca or context.home / CA_DIRECTORY
    ca = OrganizationCa.load(directory)
    chain: Path = arguments.chain
    leaf = read_leaf(chain)
    der = read_certificates(read_bytes(chain, "the certificate", limit=_MAX_PEM))[0]
    out = arguments.out or chain.with_suffix(_REVOCATION)
    issued_ms = int(context.now.timestamp() * 1000)
    before: list[CaCertificate] = []
    if arguments.bundle is not None:
        bundle = read_bundle(read_bytes(arguments.bundle, "the trust bundle", limit=MAX_BUNDLE))
        before = [root for one in bundle.lineage for root in one.roots.get(ca.organization, ())]
    revocation = sign_revocation(ca, der, issued_ms=issued_ms, reason=arguments.reason, before=before)
    write_new(out, revocation)
    write_new(directory / _REVOKED / f"{leaf.peer_id}{_REVOCATION}", revocation, force=True)
    context.emit(
        {"revocation": str(out), "node": str(leaf.node), "peer_id": leaf.peer_id, "from_ms": issued_ms},
        f"{out}\n{leaf.node} is revoked once a running node of any member has it: comity cert publish {out}",
    )


def _check_not_revoked(context: Context, directory: Path, pem: bytes, *, allowed: bool) -> None:
    """Refuse to certify a key again that this CA, or the one of this home, has revoked: who has it may not be the node.

    The organization's next CA has a directory of its own, and what the one before has revoked is in that one's.
    """
    peer = _leaf_of(read_certificates(pem)[0]).peer_id
    known = {directory, context.home / CA_DIRECTORY}
    if any((one / _REVOKED / f"{peer}{_REVOCATION}").exists() for one in known) and not allowed:
        raise ChainInvalid(
            f"a certificate of this key ({peer}) was revoked: the node makes a new key, or, if the key is not lost, "
            "--revoked certifies it all the same"
        )


def _publish(context: Context, arguments: argparse.Namespace) -> None:
    raw = read_bytes(arguments.revocation, "the revocation", limit=MAX_REVOCATION)
    with connected(context, arguments) as node:
        revoked = node.revoke_certificate(raw)
    context.emit(
        asdict(revoked),
        f"the certificate {revoked.fingerprint} of {revoked.organization} is refused since "
        f"{timestamp(revoked.from_ms)}; the other members are being told",
    )


def days(text: str) -> int:
    """Read a number of days from the command line.

    Raises:
        argparse.ArgumentTypeError: it is no whole number from 1 to 3650.
    """
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 3650):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days from 1 to 3650")
    return int(text)


_REVOKED_TOO = argument("--revoked", action="store_true", help="also for a key of which a certificate was revoked")

COMMAND = Command(
    "cert",
    "ask for, approve, install, renew, show and revoke a node's certificate",
    commands=(
        Command(
            "request",
            "write a certificate request for this node's key",
            _request,
            (argument("--out", type=Path, metavar="FILE", help="where to write it (beside the key)"),),
        ),
        Command(
            "approve",
            "issue a certificate for a request, with the organization's CA",
            _approve,
            (
                argument("request", type=Path, metavar="REQUEST", help="the file that `cert request` wrote"),
                argument("--ca", type=Path, metavar="DIR", help="the CA's directory (HOME/ca)"),
                argument("--days", type=days, default=LEAF_LIFETIME.days, help="how long it is good (%(default)s)"),
                _REVOKED_TOO,
                argument("--out", type=Path, metavar="FILE", help="where to write the chain (beside the request)"),
            ),
        ),
        Command(
            "install",
            "check a chain that was issued and put it where the node reads it",
            _install,
            (argument("chain", nargs="?", type=Path, metavar="CHAIN", help="the file that `cert approve` wrote"),),
        ),
        Command(
            "renew",
            "a certificate with new dates for the same key: issued here if the CA is here, else asked for",
            _renew,
            (
                argument("--ca", type=Path, metavar="DIR", help="the CA's directory (HOME/ca)"),
                argument("--days", type=days, default=LEAF_LIFETIME.days, help="how long it is good (%(default)s)"),
                _REVOKED_TOO,
            ),
            description=(
                "Renew this node's certificate before it expires. The key stays, and with it the node's peer id; "
                "what was signed under the old certificate stays good. Where the organization's CA is on another "
                "machine, this writes the request; have it approved (`comity cert approve`, or any CA that signs "
                "PKCS#10 requests) and install the chain (`comity cert install`)."
            ),
        ),
        Command(
            "root",
            "make the organization's next CA, to change its root (see `comity consortium rotate`)",
            _root,
            (
                argument("directory", type=Path, metavar="DIR", help="where its key and certificate go"),
                argument("--organization", metavar="NAME", help="whose it is (this node's)"),
                argument(
                    "--key-uri", metavar="URI", help="pkcs11:..., a P-256 key in a token (an HSM); else a new key"
                ),
                argument("--days", type=days, default=ROOT_LIFETIME.days, help="how long it is good (%(default)s)"),
            ),
        ),
        Command(
            "show",
            "show a certificate",
            _show,
            (argument("chain", nargs="?", type=Path, metavar="CHAIN", help="a chain's file (this node's)"),),
        ),
        Command(
            "revoke",
            "take a node's certificate back, with the organization's CA",
            _revoke,
            (
                argument("chain", type=Path, metavar="CHAIN", help="the file with the node's certificate"),
                argument("--reason", required=True, metavar="TEXT", help="for the other members"),
                argument("--ca", type=Path, metavar="DIR", help="the CA's directory (HOME/ca)"),
                argument(
                    "--bundle", type=Path, metavar="FILE", help="the bundle, if a root of before issued the certificate"
                ),
                argument("--out", type=Path, metavar="FILE", help="where to write it (beside the chain)"),
            ),
            description=(
                "Sign a revocation with the organization's CA, into a file. It takes effect when a running node of any "
                "member gets it (`comity cert publish`): that node spreads it, and every member cuts its links to the "
                "revoked node. What the node signed before stays good. A revocation cannot be taken back."
            ),
        ),
        Command(
            "publish",
            "give a revocation to the running node, which tells all members",
            _publish,
            (
                argument("revocation", type=Path, metavar="FILE", help="what `cert revoke` wrote"),
                *CONTROL,
            ),
        ),
    ),
)
