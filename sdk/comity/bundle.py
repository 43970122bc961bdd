"""The trust bundle: which organizations form a consortium, and by which roots each vouches for its nodes.

A bundle is JSON in DSSE (`comity.statement`), signed by the CA of *every* member: nobody becomes a member, and nobody's
roots change, without the consent of all. Each change makes the next epoch. A bundle is taken when

1. its payload is well formed and every certificate is a CA's, of the organization under which it stands;
2. every signature is by a CA that the bundle lists, and every member has signed;
3. it is not expired, and not from the future;
4. its epoch is not lower than the last one seen;
5. the reader's own CA is in it: nobody else can hand a node a bundle that leaves its organization out.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Final

from comity.ca import CaCertificate, OrganizationCa, read_certificates
from comity.digest import canonical_json, sha256
from comity.errors import BundleInvalid, ChainInvalid, EnvelopeMalformed, SignatureInvalid
from comity.statement import Dsse, Signature, Signer
from comity.strictjson import Fields, parse_json

BUNDLE_PAYLOAD_TYPE: Final = "application/vnd.comity.trust-bundle.v1+json"
MAX_BUNDLE: Final = 4 * 1024 * 1024
MAX_MEMBERS: Final = 1000
_MAX_ROOTS = 4
_SKEW_MS = 60_000


@dataclass(frozen=True)
class Bundle:
    """A consortium at one epoch.

    Attributes:
        consortium: its name.
        epoch: grows by one with each change.
        issued_ms: milliseconds since the Unix epoch.
        expires_ms: milliseconds since the Unix epoch.
        members: organization to its root certificates (DER).
        digest: SHA-256 of the signed payload: what nodes compare when they meet.
        raw: the signed bundle, as received.
    """

    consortium: str
    epoch: int
    issued_ms: int
    expires_ms: int
    members: Mapping[str, tuple[bytes, ...]]
    digest: bytes
    raw: bytes

    @cached_property
    def roots(self) -> Mapping[str, tuple[CaCertificate, ...]]:
        """The members' root certificates, parsed."""
        return MappingProxyType(
            {name: tuple(CaCertificate.parse(der) for der in ders) for name, ders in self.members.items()}
        )


def new_bundle(consortium: str, certificates: Iterable[bytes], *, issued_ms: int, expires_ms: int) -> bytes:
    """Return a bundle of epoch 1 that nobody has signed yet.

    Args:
        consortium: a name for people.
        certificates: each member's root certificates (PEM); an organization may have several.
        issued_ms: milliseconds since the Unix epoch.
        expires_ms: milliseconds since the Unix epoch.

    Raises:
        BundleInvalid: there is no member, or a value is out of its bounds.
        ChainInvalid: a certificate does not fit the profile of `comity.ca`.
    """
    members: dict[str, tuple[bytes, ...]] = {}
    for pem in certificates:
        for root in _roots_of(pem):
            members[root.organization] = (*members.get(root.organization, ()), root.der)
    return _unsigned(consortium, 1, issued_ms, expires_ms, members)


def add_member(raw: bytes, certificate: bytes, *, issued_ms: int, expires_ms: int) -> bytes:
    """Return the next epoch with one more organization, or with another root of a member; nobody has signed it yet.

    Args:
        raw: the bundle as it is.
        certificate: the root certificate (PEM).
        issued_ms: milliseconds since the Unix epoch.
        expires_ms: milliseconds since the Unix epoch.

    Raises:
        BundleInvalid: the bundle is malformed, has the certificate already, or a value is out of its bounds.
        ChainInvalid: the certificate does not fit the profile of `comity.ca`.
    """
    bundle = read_bundle(raw)
    members = dict(bundle.members)
    for root in _roots_of(certificate):
        have = members.get(root.organization, ())
        if root.der in have:
            raise BundleInvalid(f"{root.organization} is a member with this certificate already")
        members[root.organization] = (*have, root.der)
    return _unsigned(bundle.consortium, bundle.epoch + 1, issued_ms, expires_ms, members)


def remove_member(raw: bytes, organization: str, *, issued_ms: int, expires_ms: int) -> bytes:
    """Return the next epoch without an organization; nobody has signed it yet.

    Raises:
        BundleInvalid: the bundle is malformed, there is no such member, or a value is out of its bounds.
    """
    bundle = read_bundle(raw)
    if organization not in bundle.members:
        raise BundleInvalid(f"{organization} is no member of {bundle.consortium}")
    members = {name: roots for name, roots in bundle.members.items() if name != organization}
    return _unsigned(bundle.consortium, bundle.epoch + 1, issued_ms, expires_ms, members)


def sign_bundle(raw: bytes, ca: OrganizationCa) -> bytes:
    """Return the bundle with the signature of one member's CA, in place of an earlier one of the same CA.

    Raises:
        BundleInvalid: the bundle is malformed, or this CA is not in it.
    """
    bundle = read_bundle(raw)
    if ca.certificate.der not in bundle.members.get(ca.organization, ()):
        raise BundleInvalid(f"the bundle does not have {ca.organization} with this CA: do not sign it")
    envelope = _decode(raw)
    keyid = ca.certificate.fingerprint
    others = replace(envelope, signatures=tuple(one for one in envelope.signatures if one.keyid != keyid))
    return others.signed_by(Signer(keyid, ca.sign)).encode()


def unsigned_members(raw: bytes) -> tuple[str, ...]:
    """Return the members whose signature is missing, sorted.

    Raises:
        BundleInvalid: the bundle is malformed, or a signature that is there does not hold.
    """
    bundle = read_bundle(raw)
    return tuple(sorted(set(bundle.members) - _signed_by(_decode(raw), bundle)))


def read_bundle(raw: bytes) -> Bundle:
    """Read a bundle *without* checking signatures and dates: to show it, or to sign it.

    Raises:
        BundleInvalid: it is malformed.
    """
    payload = _decode(raw).payload
    try:
        bundle = _read_payload(payload, raw)
    except ValueError as error:
        raise BundleInvalid(f"malformed trust bundle: {error}") from error
    for organization, roots in _parse_roots(bundle).items():
        if any(root.organization != organization for root in roots):
            raise BundleInvalid(f"a certificate of {organization} names another organization")
    return bundle


def verify_bundle(raw: bytes, *, now_ms: int, own_ca: bytes | None, minimum_epoch: int = 0) -> Bundle:
    """Verify a bundle by the five rules above.

    Args:
        raw: the bundle as received.
        now_ms: the time, in milliseconds since the Unix epoch.
        own_ca: the reader's own root certificate (DER), which must be in the bundle; None for an auditor who has the
            bundle from a source that it trusts.
        minimum_epoch: the last epoch seen.

    Raises:
        BundleInvalid: a rule is broken; the message says which.
    """
    bundle = read_bundle(raw)
    missing = sorted(set(bundle.members) - _signed_by(_decode(raw), bundle))
    if missing:
        raise BundleInvalid(f"epoch {bundle.epoch} is not signed by {', '.join(missing)}")
    if now_ms >= bundle.expires_ms:
        raise BundleInvalid(f"epoch {bundle.epoch} has expired: ask the consortium for the next one")
    if now_ms < bundle.issued_ms - _SKEW_MS:
        raise BundleInvalid(f"epoch {bundle.epoch} is from the future: check this machine's clock")
    if bundle.epoch < minimum_epoch:
        raise BundleInvalid(f"epoch {bundle.epoch} is older than epoch {minimum_epoch}, which was seen already")
    if own_ca is not None and not any(own_ca in roots for roots in bundle.members.values()):
        raise BundleInvalid("this organization's own CA is not in it")
    return bundle


def load_bundle(path: Path, *, now_ms: int, own_ca: bytes | None, minimum_epoch: int = 0) -> Bundle:
    """Read and verify a bundle's file; see `verify_bundle`.

    Raises:
        BundleInvalid: the file cannot be read or a rule is broken; the message begins with the file's name.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BUNDLE + 1)
    except OSError as error:
        raise BundleInvalid(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return verify_bundle(raw, now_ms=now_ms, own_ca=own_ca, minimum_epoch=minimum_epoch)
    except BundleInvalid as error:
        raise BundleInvalid(f"{path}: {error}") from error


def _roots_of(pem: bytes) -> list[CaCertificate]:
    return [CaCertificate.parse(der) for der in read_certificates(pem)]


def _unsigned(
    consortium: str, epoch: int, issued_ms: int, expires_ms: int, members: Mapping[str, tuple[bytes, ...]]
) -> bytes:
    fields = {
        "version": 1,
        "consortium": consortium,
        "epoch": epoch,
        "issued_ms": issued_ms,
        "expires_ms": expires_ms,
        "members": {
            name: [base64.b64encode(root).decode("ascii") for root in roots] for name, roots in members.items()
        },
    }
    try:
        payload = canonical_json(fields)
    except ValueError as error:
        raise BundleInvalid(f"no trust bundle can be made of this: {error}") from error
    raw = Dsse(BUNDLE_PAYLOAD_TYPE, payload).encode()
    read_bundle(raw)  # what cannot be read must not be handed out
    return raw


def _decode(raw: bytes) -> Dsse:
    if len(raw) > MAX_BUNDLE:
        raise BundleInvalid(f"a trust bundle is over the limit of {MAX_BUNDLE} bytes")
    try:
        return Dsse.decode(raw, BUNDLE_PAYLOAD_TYPE)
    except EnvelopeMalformed as error:
        raise BundleInvalid(f"malformed trust bundle: {error}") from error


def _read_payload(payload: bytes, raw: bytes) -> Bundle:
    fields = Fields(parse_json(payload, limit=MAX_BUNDLE), "the bundle")
    if fields.integer("version") != 1:
        raise ValueError("its version is not 1")
    members = fields.mapping("members", most=MAX_MEMBERS)
    bundle = Bundle(
        consortium=fields.text("consortium", longest=128),
        epoch=fields.integer("epoch"),
        issued_ms=fields.integer("issued_ms"),
        expires_ms=fields.integer("expires_ms"),
        members=MappingProxyType({name: _read_ders(members, name) for name in members.names()}),
        digest=sha256(payload),
        raw=raw,
    )
    fields.close()
    if not bundle.consortium or not bundle.members or not bundle.epoch:
        raise ValueError("it needs a consortium's name, members, and an epoch from 1")
    if bundle.issued_ms >= bundle.expires_ms:
        raise ValueError("it expires before it was issued")
    return bundle


def _read_ders(members: Fields, name: str) -> tuple[bytes, ...]:
    texts = members.texts(name, most=_MAX_ROOTS, longest=32 * 1024)
    ders = tuple(base64.b64decode(text, validate=True) for text in texts)
    if not ders or len(set(ders)) != len(ders):
        raise ValueError(f"{name} needs from 1 to {_MAX_ROOTS} different certificates")
    return ders


def _parse_roots(bundle: Bundle) -> Mapping[str, tuple[CaCertificate, ...]]:
    try:
        return bundle.roots
    except ChainInvalid as error:
        raise BundleInvalid(f"malformed trust bundle: {error}") from error


def _signed_by(envelope: Dsse, bundle: Bundle) -> set[str]:
    """Return the organizations that have signed; a signature that does not hold condemns the bundle."""
    by_keyid = {root.fingerprint: root for roots in bundle.roots.values() for root in roots}
    signed: dict[str, str] = {}

    def check(signature: Signature, message: bytes) -> None:
        root = by_keyid.get(signature.keyid)
        if root is None or signature.keyid in signed:
            raise SignatureInvalid("a signature is by no member's CA, or stands twice")
        root.verify(signature.signature, message)
        signed[signature.keyid] = root.organization

    if envelope.signatures:
        try:
            envelope.verify_all(check)
        except SignatureInvalid as error:
            raise BundleInvalid(str(error)) from error
    return set(signed.values())
