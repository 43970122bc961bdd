"""Revocations: an organization's CA takes back the certificate of one of its nodes.

A revocation is JSON in DSSE (`comity.statement`), signed by the organization's CA (ECDSA P-256) as trust bundles are.
It holds the certificate itself, so that anyone can see whose it is: a CA can take back what it has issued and nothing
else. It is taken when

1. its size is within bounds and its payload well formed;
2. the organization is a member, and the one signature is by one of its CAs in the trust bundle;
3. the certificate was issued by a CA of that organization in the bundle, or in an epoch before that the bundle's file
   holds, and the fingerprint is the certificate's;
4. it is not from the future.

A root that has left the bundle signs no more revocations. What it signed while it was in the bundle and a node wrote
down then stays in force there (`past`): for certificates of the roots of its time, and if it is dated later, for those
that it issued itself.

A revocation is never taken back. Of two for one certificate, the one that begins earlier holds: whoever has both, in
whichever order, knows the same (`RevocationList`). Each change is passed on and written down by everybody, so a CA may
put the time of one certificate back a few times and no more.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature

from comity.bundle import Bundle
from comity.ca import MAX_CERTIFICATE, X509_ERRORS, CaCertificate, OrganizationCa, load_certificate
from comity.digest import canonical_json, hex_digest
from comity.errors import ChainInvalid, EnvelopeMalformed, RevocationInvalid, SignatureInvalid
from comity.statement import Dsse, Signature, Signer
from comity.strictjson import Fields, parse_json

REVOCATION_PAYLOAD_TYPE: Final = "application/vnd.comity.revocation.v1+json"
#: Bytes of the largest revocation that is made or read.
MAX_REVOCATION: Final = 32 * 1024
MAX_REASON: Final = 256
#: How often one revocation may give way to another that begins earlier.
MAX_CHANGES: Final = 8
_SKEW_MS = 60_000


@dataclass(frozen=True, slots=True)
class Revocation:
    """A revocation that was verified.

    Attributes:
        organization: whose CA says so.
        fingerprint: SHA-256 of the node's certificate (DER).
        issued_ms: from when the certificate is refused, in milliseconds since the Unix epoch.
        reason: for people.
        raw: the signed revocation, as received.
        certificate: the node's certificate (DER).
        signer: the fingerprint of the root that signed, hex.
    """

    organization: str
    fingerprint: bytes
    issued_ms: int
    reason: str
    raw: bytes
    certificate: bytes
    signer: str = field(default="", compare=False)

    def is_of(self, bundle: Bundle) -> bool:
        """Whether the root that signed is in a bundle: only then do others who have that bundle take it."""
        return any(root.fingerprint == self.signer for root in bundle.roots.get(self.organization, ()))


def sign_revocation(
    ca: OrganizationCa,
    certificate: bytes,
    *,
    issued_ms: int,
    reason: str,
    before: Iterable[CaCertificate] = (),
) -> bytes:
    """Revoke a node's certificate.

    Args:
        ca: the organization's CA, which has issued it, or its next one.
        certificate: the node's certificate (DER).
        issued_ms: from when it is refused, in milliseconds since the Unix epoch: now, or when its key got lost.
        reason: for people; printable, at most `MAX_REASON` characters.
        before: the organization's roots of before, which may have issued it.

    Raises:
        RevocationInvalid: the certificate was issued by somebody else, or the reason or the time is out of bounds.
    """
    _check_issuer(certificate, (ca.certificate, *before))
    fields = {
        "version": 1,
        "organization": ca.organization,
        "certificate": base64.b64encode(certificate).decode("ascii"),
        "fingerprint": hex_digest(certificate),
        "issued_ms": issued_ms,
        "reason": reason,
    }
    try:
        payload = canonical_json(fields)
        _read_payload(payload)  # what cannot be read must not be handed out
    except ValueError as error:
        raise RevocationInvalid(f"no revocation can be made of this: {error}") from error
    return Dsse(REVOCATION_PAYLOAD_TYPE, payload).signed_by(Signer(ca.certificate.fingerprint, ca.sign)).encode()


def verify_revocation(raw: bytes, bundle: Bundle, *, now_ms: int, past: bool = False) -> Revocation:
    """Verify a revocation by the four rules above.

    Args:
        raw: the revocation as received.
        bundle: the consortium.
        now_ms: the time, in milliseconds since the Unix epoch.
        past: it was verified before, and written down here: a root of an epoch before may have signed it.

    Raises:
        RevocationInvalid: a rule is broken; the message says which.
    """
    envelope = _decode(raw)
    try:
        payload = _read_payload(envelope.payload)
    except ValueError as error:
        raise RevocationInvalid(f"malformed revocation: {error}") from error
    roots = bundle.roots.get(payload.organization, ())
    ever = {root.der: root for one in bundle.lineage for root in one.roots.get(payload.organization, ())}
    if not roots and not (past and ever):
        raise RevocationInvalid(f"{payload.organization} is no member of {bundle.consortium}: nobody to revoke for")
    signer = _check_signature(envelope, tuple(ever.values()) if past else roots)
    _check_issuer(payload.certificate, _issuers(bundle, payload, signer))
    if payload.issued_ms > now_ms + _SKEW_MS and not past:
        raise RevocationInvalid("the revocation is from the future: check this machine's clock")
    return Revocation(
        organization=payload.organization,
        fingerprint=bytes.fromhex(payload.fingerprint),
        issued_ms=payload.issued_ms,
        reason=payload.reason,
        raw=raw,
        certificate=payload.certificate,
        signer=signer.fingerprint,
    )


class RevocationList:
    """Revocations by certificate; it only ever grows, up to a bound for each organization."""

    def __init__(self, *, most: int = 1024) -> None:
        """Make an empty list.

        Args:
            most: revocations of one organization; further ones are refused, never traded for older ones.
        """
        self._most = most
        self._known: dict[bytes, Revocation] = {}
        self._counts: dict[str, int] = {}
        self._changes: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Revocation]:
        """The revocations, by fingerprint: every node's list of the same ones has the same order."""
        return iter([self._known[fingerprint] for fingerprint in sorted(self._known)])

    def find(self, fingerprint: bytes) -> Revocation | None:
        """Return the revocation of a certificate."""
        return self._known.get(fingerprint)

    def add(self, revocation: Revocation) -> bool:
        """Take a verified revocation, and say whether it says anything new.

        Raises:
            RevocationInvalid: the organization has revoked too many, or this one with too many times.
        """
        known = self._known.get(revocation.fingerprint)
        if known is not None and known.issued_ms <= revocation.issued_ms:
            return False
        if known is None:
            count = self._counts.get(revocation.organization, 0)
            if count >= self._most:
                raise RevocationInvalid(
                    f"{revocation.organization} has revoked {count} certificates: make it a new CA, and a new bundle"
                )
            self._counts[revocation.organization] = count + 1
        else:
            changes = self._changes.get(revocation.fingerprint, 0)
            if changes >= MAX_CHANGES:
                raise RevocationInvalid(
                    f"{revocation.organization} has put back the time of a revocation {changes} times; what holds stays"
                )
            self._changes[revocation.fingerprint] = changes + 1
        self._known[revocation.fingerprint] = revocation
        return True


@dataclass(frozen=True, slots=True)
class _Payload:
    organization: str
    certificate: bytes
    fingerprint: str
    issued_ms: int
    reason: str


def _decode(raw: bytes) -> Dsse:
    if len(raw) > MAX_REVOCATION:
        raise RevocationInvalid(f"a revocation is over the limit of {MAX_REVOCATION} bytes")
    try:
        envelope = Dsse.decode(raw, REVOCATION_PAYLOAD_TYPE)
    except EnvelopeMalformed as error:
        raise RevocationInvalid(f"malformed revocation: {error}") from error
    if envelope.encode() != raw:  # else one revocation could be passed on in any number of spellings
        raise RevocationInvalid("malformed revocation: it is not in RFC 8785 form")
    return envelope


def _read_payload(data: bytes) -> _Payload:
    fields = Fields(parse_json(data, limit=MAX_REVOCATION), "the revocation")
    if fields.integer("version") != 1:
        raise ValueError("its version is not 1")
    payload = _Payload(
        organization=fields.text("organization", longest=255),
        certificate=base64.b64decode(fields.text("certificate", longest=MAX_REVOCATION), validate=True),
        fingerprint=fields.text("fingerprint", longest=64),
        issued_ms=fields.integer("issued_ms"),
        reason=fields.text("reason", longest=MAX_REASON),
    )
    fields.close()
    if payload.fingerprint != hex_digest(payload.certificate):
        raise ValueError("the fingerprint is not that of the certificate")
    if not payload.reason.isprintable():
        raise ValueError("the reason is not printable")
    return payload


def _check_signature(envelope: Dsse, roots: tuple[CaCertificate, ...]) -> CaCertificate:
    """Check the one signature, and return whose it is."""
    by_keyid = {root.fingerprint: root for root in roots}

    def check(signature: Signature, message: bytes) -> None:
        root = by_keyid.get(signature.keyid)
        if root is None:
            raise SignatureInvalid("the signature is by no CA of this organization")
        root.verify(signature.signature, message)

    try:
        if len(envelope.signatures) != 1:
            raise SignatureInvalid("a revocation has one signature")
        envelope.verify_all(check)
    except SignatureInvalid as error:
        raise RevocationInvalid(str(error)) from error
    return by_keyid[envelope.signatures[0].keyid]


def _issuers(bundle: Bundle, payload: _Payload, signer: CaCertificate) -> tuple[CaCertificate, ...]:
    """Return the roots of whose certificates one that a root takes back may be."""
    rooted = [one.roots.get(payload.organization, ()) for one in bundle.lineage]
    last = max(at for at, roots in enumerate(rooted) if signer in roots)
    if last + 1 < len(rooted) and payload.issued_ms > bundle.lineage[last + 1].issued_ms:
        return (signer,)
    return tuple({root.der: root for roots in rooted[: last + 1] for root in roots}.values())


def _check_issuer(certificate: bytes, roots: tuple[CaCertificate, ...]) -> None:
    if len(certificate) > MAX_CERTIFICATE:
        raise RevocationInvalid(f"a certificate is over the limit of {MAX_CERTIFICATE} bytes")
    if any(certificate == root.der for root in roots):
        raise RevocationInvalid("a root is not revoked: the consortium makes a new bundle without it")
    try:
        leaf = load_certificate(certificate)
        for root in roots:
            try:
                leaf.verify_directly_issued_by(root.certificate)
            except (InvalidSignature, ValueError):  # ValueError: the issuer's name is another
                continue
            return
    except (ChainInvalid, *X509_ERRORS) as error:
        raise RevocationInvalid(f"what is revoked is no certificate: {error}") from error
    raise RevocationInvalid("the certificate was issued by somebody else, who alone can revoke it")
