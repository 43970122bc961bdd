"""The trust bundle: which organizations form a consortium, and by which roots each vouches for its nodes.

An epoch of a bundle is JSON in DSSE (`comity.statement`), signed by organizations' CAs. Each change makes the next
epoch; who has to sign it says `comity.epoch`. The file holds the epoch in force and up to `MAX_EPOCHS - 1` before it:

    {"bundle": <DSSE envelope>, "history": [<DSSE envelope>, ...]}

or, without a history, the one envelope alone. The history lets a node that was away follow, and an auditor verify what
was signed under an earlier epoch. A bundle is taken when

1. its payload is well formed and every certificate is a CA's, of the organization under which it stands;
2. every epoch that it holds follows from the one before, and has the signatures that it takes (`comity.epoch`);
3. the last epoch is not expired, and not from the future;
4. it is not lower than the last one seen, and comes of it: the history holds the very epoch that was seen, or begins
   later, with one that this organization has signed;
5. the reader's own CA is in it: nobody else can hand a node a bundle that leaves its organization out.

Nobody can hold a node on an old epoch for ever: bundles expire.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from comity.ca import CaCertificate, OrganizationCa, read_certificates
from comity.digest import canonical_json, hex_digest, sha256
from comity.epoch import Anchor, Approval, Bundle, approval, check_lineage, default_threshold
from comity.errors import BundleInvalid, ChainInvalid, EnvelopeMalformed, InvalidName
from comity.ids import organization_name
from comity.statement import Dsse, Signer
from comity.strictjson import Fields, parse_json

__all__ = [
    "BUNDLE_PAYLOAD_TYPE",
    "MAX_BUNDLE",
    "MAX_EPOCHS",
    "MAX_MEMBERS",
    "Anchor",
    "Approval",
    "Bundle",
    "add_member",
    "bundle_approval",
    "load_bundle",
    "new_bundle",
    "next_epoch",
    "read_bundle",
    "remove_member",
    "remove_root",
    "sign_bundle",
    "unsigned_members",
    "verify_bundle",
]

BUNDLE_PAYLOAD_TYPE: Final = "application/vnd.comity.trust-bundle.v1+json"
MAX_BUNDLE: Final = 4 * 1024 * 1024
MAX_MEMBERS: Final = 1000
#: Epochs in one file: the one in force, and those before it.
MAX_EPOCHS: Final = 64
_MAX_ROOTS = 4
_SKEW_MS = 60_000


def new_bundle(
    consortium: str,
    certificates: Iterable[bytes],
    *,
    issued_ms: int,
    expires_ms: int,
    threshold: int | None = None,
) -> bytes:
    """Return a bundle of epoch 1 that nobody has signed yet; every member has to.

    Args:
        consortium: a name for people.
        certificates: each member's root certificates (PEM); an organization may have several.
        issued_ms: milliseconds since the Unix epoch.
        expires_ms: milliseconds since the Unix epoch.
        threshold: how many members have to sign the next epoch: over half of them; over two thirds unless it is given.

    Raises:
        BundleInvalid: there is no member, or a value is out of its bounds.
        ChainInvalid: a certificate does not fit the profile of `comity.ca`.
    """
    members: dict[str, tuple[bytes, ...]] = {}
    for pem in certificates:
        for root in _roots_of(pem):
            members[root.organization] = (*members.get(root.organization, ()), root.der)
    needed = default_threshold(len(members)) if threshold is None else threshold
    return _encode((), _unsigned(consortium, 1, issued_ms, expires_ms, members, needed, b""))


def add_member(
    raw: bytes, certificate: bytes, *, issued_ms: int, expires_ms: int, threshold: int | None = None
) -> bytes:
    """Return the next epoch with one more organization, or with another root of a member; nobody has signed it yet.

    Args:
        raw: the bundle as it is.
        certificate: the root certificate (PEM).
        issued_ms: milliseconds since the Unix epoch.
        expires_ms: milliseconds since the Unix epoch.
        threshold: see `next_epoch`.

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
    return next_epoch(bundle, members, issued_ms=issued_ms, expires_ms=expires_ms, threshold=threshold)


def remove_member(
    raw: bytes, organization: str, *, issued_ms: int, expires_ms: int, threshold: int | None = None
) -> bytes:
    """Return the next epoch without an organization; nobody has signed it yet.

    Raises:
        BundleInvalid: the bundle is malformed, there is no such member, or a value is out of its bounds.
    """
    bundle = read_bundle(raw)
    if organization not in bundle.members:
        raise BundleInvalid(f"{organization} is no member of {bundle.consortium}")
    members = {name: roots for name, roots in bundle.members.items() if name != organization}
    return next_epoch(bundle, members, issued_ms=issued_ms, expires_ms=expires_ms, threshold=threshold)


def remove_root(
    raw: bytes, fingerprint: str, *, issued_ms: int, expires_ms: int, threshold: int | None = None
) -> bytes:
    """Return the next epoch without one of the several roots of a member; nobody has signed it yet.

    Args:
        raw: the bundle as it is.
        fingerprint: SHA-256 of the root certificate, hex; its beginning is enough where that says which.
        issued_ms: milliseconds since the Unix epoch.
        expires_ms: milliseconds since the Unix epoch.
        threshold: see `next_epoch`.

    Raises:
        BundleInvalid: the bundle is malformed, no root or several are meant, or it is its member's last.
    """
    bundle = read_bundle(raw)
    meant = [
        (name, der)
        for name, roots in bundle.members.items()
        for der in roots
        if fingerprint and hex_digest(der).startswith(fingerprint.lower())
    ]
    if len(meant) != 1:
        raise BundleInvalid(f"{len(meant)} roots have a fingerprint that begins with {fingerprint!r}: see `show`")
    [(name, gone)] = meant
    left = tuple(der for der in bundle.members[name] if der != gone)
    if not left:
        raise BundleInvalid(f"this is the only root of {name}: add the next one first, or remove the member")
    members = {**bundle.members, name: left}
    return next_epoch(bundle, members, issued_ms=issued_ms, expires_ms=expires_ms, threshold=threshold)


def next_epoch(
    bundle: Bundle,
    members: Mapping[str, tuple[bytes, ...]],
    *,
    issued_ms: int,
    expires_ms: int,
    threshold: int | None = None,
) -> bytes:
    """Return the epoch that follows a bundle, with other members or roots; nobody has signed it yet.

    As long as nobody has signed `bundle` itself it is a draft, and what is returned takes its place, in the same epoch.

    Args:
        bundle: the bundle as it is (`read_bundle`).
        members: organization to its root certificates (DER).
        issued_ms: milliseconds since the Unix epoch.
        expires_ms: milliseconds since the Unix epoch.
        threshold: how many of `members` have to sign the epoch after. None: as before, where another number than the
            default was chosen, and else the default for so many members.

    Raises:
        BundleInvalid: some have signed `bundle` and not enough, the history is full, or a value is out of its bounds.
    """
    draft = not bundle.envelope.signatures and (bundle.parent is not None or bundle.epoch == 1)
    past = bundle.history if draft else bundle.lineage
    if not draft and (wanting := approval(bundle, bundle.parent).wanting()):
        raise BundleInvalid(f"epoch {bundle.epoch} is a proposal still, to be signed by {wanting}; nothing follows it")
    before = past[-1] if past else None
    needed = threshold
    if needed is None:
        chosen = bundle.threshold != default_threshold(len(bundle.members))
        needed = bundle.threshold if chosen else default_threshold(len(members))
    following = _unsigned(
        bundle.consortium,
        before.epoch + 1 if before else 1,
        issued_ms,
        expires_ms,
        members,
        needed,
        before.digest if before else b"",
    )
    return _encode(_shortened(past, following), following)


def sign_bundle(raw: bytes, ca: OrganizationCa) -> bytes:
    """Return the bundle with the signature of one CA, in place of an earlier one of the same CA.

    Raises:
        BundleInvalid: the bundle is malformed, or this CA is neither in it nor in the epoch before.
    """
    bundle = read_bundle(raw)
    may_sign = [one for one in (bundle, bundle.parent) if one is not None]
    if not any(ca.certificate.der in one.members.get(ca.organization, ()) for one in may_sign):
        raise BundleInvalid(f"the bundle does not have {ca.organization} with this CA: do not sign it")
    keyid = ca.certificate.fingerprint
    kept = tuple(one for one in bundle.envelope.signatures if one.keyid != keyid)
    signed = replace(bundle.envelope, signatures=kept).signed_by(Signer(keyid, ca.sign))
    return _encode(bundle.history, signed)


def unsigned_members(raw: bytes) -> tuple[str, ...]:
    """Return the members whose signature is missing, sorted; whether it is needed says `bundle_approval`.

    Raises:
        BundleInvalid: the bundle is malformed, or a signature that is there does not hold.
    """
    bundle = read_bundle(raw)
    return tuple(sorted(set(bundle.members) - approval(bundle, bundle.parent).signed))


def bundle_approval(raw: bytes) -> Approval:
    """Say who has signed the last epoch of a bundle, and who has to.

    Raises:
        BundleInvalid: the bundle is malformed, or a signature that is there does not hold.
    """
    bundle = read_bundle(raw)
    return approval(bundle, bundle.parent)


def read_bundle(raw: bytes) -> Bundle:
    """Read a bundle *without* checking signatures and dates: to show it, or to sign it.

    Raises:
        BundleInvalid: it is malformed.
    """
    envelopes = _decode(raw)
    history = tuple(_read_epoch(one, one.encode()) for one in envelopes[:-1])
    return replace(_read_epoch(envelopes[-1], raw), history=history)


def verify_bundle(
    raw: bytes, *, now_ms: int, own_ca: bytes | None, minimum_epoch: int = 0, anchor: Anchor | None = None
) -> Bundle:
    """Verify a bundle by the five rules above.

    Args:
        raw: the bundle as received.
        now_ms: the time, in milliseconds since the Unix epoch.
        own_ca: the reader's own root certificate (DER), which must be in the bundle; None for an auditor who has the
            bundle from a source that it trusts.
        minimum_epoch: the last epoch seen, where no more is known of it than its number.
        anchor: the last epoch seen.

    Raises:
        BundleInvalid: a rule is broken; the message says which.
    """
    bundle = read_bundle(raw)
    check_lineage(bundle, own_ca)
    if now_ms >= bundle.expires_ms:
        raise BundleInvalid(f"epoch {bundle.epoch} has expired: ask the consortium for the next one")
    if now_ms < bundle.issued_ms - _SKEW_MS:
        raise BundleInvalid(f"epoch {bundle.epoch} is from the future: check this machine's clock")
    for seen in (Anchor(minimum_epoch), *([anchor] if anchor is not None else [])):
        if not seen.check(bundle) and seen.digest:
            _check_beginning(bundle, seen, own_ca)
    if own_ca is not None and not any(own_ca in roots for roots in bundle.members.values()):
        raise BundleInvalid("this organization's own CA is not in it")
    return bundle


def load_bundle(
    path: Path, *, now_ms: int, own_ca: bytes | None, minimum_epoch: int = 0, anchor: Anchor | None = None
) -> Bundle:
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
        return verify_bundle(raw, now_ms=now_ms, own_ca=own_ca, minimum_epoch=minimum_epoch, anchor=anchor)
    except BundleInvalid as error:
        raise BundleInvalid(f"{path}: {error}") from error


def _check_beginning(bundle: Bundle, seen: Anchor, own_ca: bytes | None) -> None:
    """Of a history that begins after the epoch that was seen: this organization has signed its beginning.

    That it has signed, if its root is in it, `check_lineage` has checked.
    """
    first = bundle.lineage[0]
    if own_ca is not None and not any(own_ca in roots for roots in first.members.values()):
        raise BundleInvalid(
            f"its history begins with epoch {first.epoch}, after epoch {seen.epoch}, which was seen here, and without "
            "this organization's CA: ask for a bundle whose history reaches back to it"
        )


def _shortened(past: tuple[Bundle, ...], following: Dsse) -> tuple[Bundle, ...]:
    """Leave out the oldest epochs where there is no more room; what begins the history is signed by all its members."""
    while len(past) + 1 > MAX_EPOCHS or len(_encode(past, following)) > MAX_BUNDLE:
        later = next((i for i in range(1, len(past)) if _is_beginning(past[i], past[i - 1])), None)
        if later is None:
            raise BundleInvalid("the history is full: have every member sign the epoch in force, so that it can begin")
        roots = {hex_digest(der) for ders in past[later].members.values() for der in ders}
        own = tuple(one for one in past[later].envelope.signatures if one.keyid in roots)
        beginning = replace(past[later].envelope, signatures=own)
        past = (_read_epoch(beginning, beginning.encode()), *past[later + 1 :])
    return past


def _is_beginning(bundle: Bundle, parent: Bundle) -> bool:
    return set(bundle.members) <= approval(bundle, parent).signed


def _roots_of(pem: bytes) -> list[CaCertificate]:
    return [CaCertificate.parse(der) for der in read_certificates(pem)]


def _unsigned(
    consortium: str,
    epoch: int,
    issued_ms: int,
    expires_ms: int,
    members: Mapping[str, tuple[bytes, ...]],
    threshold: int,
    previous: bytes,
) -> Dsse:
    fields = {
        "version": 2,
        "consortium": consortium,
        "epoch": epoch,
        "issued_ms": issued_ms,
        "expires_ms": expires_ms,
        "threshold": threshold,
        "previous": previous.hex(),
        "members": {
            name: [base64.b64encode(root).decode("ascii") for root in roots] for name, roots in members.items()
        },
    }
    try:
        payload = canonical_json(fields)
    except ValueError as error:
        raise BundleInvalid(f"no trust bundle can be made of this: {error}") from error
    envelope = Dsse(BUNDLE_PAYLOAD_TYPE, payload)
    read_bundle(envelope.encode())  # what cannot be read must not be handed out
    return envelope


def _encode(history: Iterable[Bundle], envelope: Dsse) -> bytes:
    before = [json.loads(one.envelope.encode()) for one in history]
    if not before:
        return envelope.encode()
    return canonical_json({"bundle": json.loads(envelope.encode()), "history": before})


def _decode(raw: bytes) -> tuple[Dsse, ...]:
    """Return the envelopes of a file, oldest first."""
    if len(raw) > MAX_BUNDLE:
        raise BundleInvalid(f"a trust bundle is over the limit of {MAX_BUNDLE} bytes")
    try:
        value = parse_json(raw, limit=MAX_BUNDLE)
        if isinstance(value, dict) and "payloadType" in value:
            return (Dsse.decode(raw, BUNDLE_PAYLOAD_TYPE),)
        fields = Fields(value, "the bundle's file")
        envelopes = [*fields.array("history", longest=MAX_EPOCHS - 1), fields.get("bundle")]
        fields.close()
        return tuple(Dsse.decode(canonical_json(one), BUNDLE_PAYLOAD_TYPE) for one in envelopes)
    except (EnvelopeMalformed, ValueError) as error:
        raise BundleInvalid(f"malformed trust bundle: {error}") from error


def _read_epoch(envelope: Dsse, raw: bytes) -> Bundle:
    try:
        bundle = _read_payload(envelope, raw)
        roots = bundle.roots
    except (ChainInvalid, InvalidName, ValueError) as error:
        raise BundleInvalid(f"malformed trust bundle: {error}") from error
    for organization in roots:
        if any(root.organization != organization for root in roots[organization]):
            raise BundleInvalid(f"a certificate of {organization} names another organization")
    return bundle


def _read_payload(envelope: Dsse, raw: bytes) -> Bundle:
    fields = Fields(parse_json(envelope.payload, limit=MAX_BUNDLE), "the bundle")
    version = fields.integer("version")
    if version not in (1, 2):
        raise ValueError("its version is not 1 or 2")
    members = fields.mapping("members", most=MAX_MEMBERS)
    count = len(members.names())
    bundle = Bundle(
        consortium=fields.text("consortium", longest=128),
        epoch=fields.integer("epoch"),
        issued_ms=fields.integer("issued_ms"),
        expires_ms=fields.integer("expires_ms"),
        members=MappingProxyType({organization_name(name): _read_ders(members, name) for name in members.names()}),
        digest=sha256(envelope.payload),
        raw=raw,
        envelope=envelope,
        version=version,
        threshold=fields.integer("threshold") if version == 2 else default_threshold(count),
        previous=bytes.fromhex(fields.text("previous", longest=64)) if version == 2 else b"",
    )
    fields.close()
    _check_values(bundle)
    return bundle


def _check_values(bundle: Bundle) -> None:
    if not bundle.consortium or not bundle.consortium.isprintable() or not bundle.members or not bundle.epoch:
        raise ValueError("it needs a consortium's name that can be printed, members, and an epoch from 1")
    if bundle.issued_ms >= bundle.expires_ms:
        raise ValueError("it expires before it was issued")
    if bundle.version == 1:
        return
    count = len(bundle.members)
    if not count // 2 + 1 <= bundle.threshold <= count:
        raise ValueError(f"a threshold of {bundle.threshold} is not over half of {count} members, and at most all")
    if len(bundle.previous) != (32 if bundle.epoch > 1 else 0):
        raise ValueError("it names the digest of the epoch before, and the first epoch names none")


def _read_ders(members: Fields, name: str) -> tuple[bytes, ...]:
    texts = members.texts(name, most=_MAX_ROOTS, longest=32 * 1024)
    ders = tuple(base64.b64decode(text, validate=True) for text in texts)
    if not ders or len(set(ders)) != len(ders):
        raise ValueError(f"{name} needs from 1 to {_MAX_ROOTS} different certificates")
    return ders
