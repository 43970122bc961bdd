"""What an epoch of a consortium is, and who has to sign it.

An epoch follows from the one before it when

1. its number is the next one, it names the digest of the epoch before, and it was not issued earlier;
2. members of the epoch *before* have signed it, as many as that epoch's threshold says;
3. each root that is new has signed it: nobody is let in, and no key is entered, without consent;
4. of a member whose roots change, a root that it had before has signed it: nobody else can speak for it;
5. if the epoch before is of version 1, all the members have signed it, as that version promised them.

The first epoch, and the one with which a shortened history begins, are signed by all of their members. A threshold is
over half of the members, so two different successors of one epoch have a signer in common, who can be named (a fork).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from comity.ca import CaCertificate
from comity.digest import canonical_json, hex_digest
from comity.errors import BundleInvalid, SignatureInvalid
from comity.statement import Dsse, Signature
from comity.strictjson import Fields, parse_json

_MAX_ANCHOR = 512 * 1024
_MAX_SIGNERS = 1024


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
        raw: the bundle's file, as received: this epoch, and those before it that it holds.
        envelope: the payload with its signatures.
        version: of the payload: 1, or 2, which has a threshold and names the epoch before.
        threshold: how many of this epoch's members have to sign the next one.
        previous: the digest of the epoch before; empty for the first, and in version 1.
        history: the epochs before this one that are known, oldest first; they have no history of their own.
    """

    consortium: str
    epoch: int
    issued_ms: int
    expires_ms: int
    members: Mapping[str, tuple[bytes, ...]]
    digest: bytes
    raw: bytes
    envelope: Dsse = field(repr=False)
    version: int = 1
    threshold: int = 0
    previous: bytes = b""
    history: tuple[Bundle, ...] = ()

    @cached_property
    def roots(self) -> Mapping[str, tuple[CaCertificate, ...]]:
        """The members' root certificates, parsed."""
        return MappingProxyType(
            {name: tuple(CaCertificate.parse(der) for der in ders) for name, ders in self.members.items()}
        )

    @property
    def lineage(self) -> tuple[Bundle, ...]:
        """The epochs that are known, oldest first; this one is the last."""
        return (*self.history, self)

    @property
    def parent(self) -> Bundle | None:
        """The epoch before, if the history has it."""
        return self.history[-1] if self.history else None


def default_threshold(members: int) -> int:
    """Return over two thirds of `members`: floor(2 n / 3) + 1, as long as fewer than a third are faulty."""
    return min(2 * members // 3 + 1, members)


@dataclass(frozen=True, slots=True)
class Approval:
    """Who has signed an epoch, and who has to.

    Attributes:
        signed: organizations whose CA has signed; a member may have left with this epoch.
        must: members without whom it does not hold: who is new, or whose roots change.
        votes: members of the epoch before that have signed.
        voters: members of the epoch before; for a first epoch, its own.
        needed: how many votes it takes.
    """

    signed: frozenset[str]
    must: frozenset[str]
    votes: frozenset[str]
    voters: frozenset[str]
    needed: int

    @property
    def complete(self) -> bool:
        """Whether the epoch holds."""
        return not self.must and len(self.votes) >= self.needed

    def wanting(self) -> str:
        """Say for a person whose signatures are missing; empty if the epoch holds."""
        if self.complete:
            return ""
        left = self.must | (self.voters - self.votes if len(self.votes) < self.needed else frozenset())
        text = ", ".join(sorted(left))
        if self.must:
            text += f" (without {', '.join(sorted(self.must))} it does not hold: each root that is new signs"
            text += ", and one that the member had before)"
        if len(self.votes) < self.needed:
            text += f"; {len(self.votes)} of {self.needed} votes are there"
        return text


def approval(bundle: Bundle, parent: Bundle | None) -> Approval:
    """Say who has signed an epoch and who has to, by the rules above.

    Args:
        bundle: the epoch.
        parent: the one before; None for a first epoch or one with which a history begins.

    Raises:
        BundleInvalid: a signature that is there does not hold, or is of nobody who may sign.
    """
    keys = signatures(bundle, parent)
    now, before = _fingerprints(bundle), _fingerprints(parent) if parent else {}
    present = frozenset(name for name, roots in now.items() if roots & keys)
    votes = frozenset(name for name, roots in before.items() if roots & keys)
    if parent is None:
        everybody = frozenset(now)
        return Approval(present, everybody - present, present, everybody, len(everybody))
    must = {name for name, roots in now.items() if _lacks_consent(roots, before.get(name, frozenset()), keys)}
    if parent.version == 1:
        must |= frozenset(now) - present
    return Approval(present | votes, frozenset(must), votes, frozenset(before), parent.threshold)


def signatures(bundle: Bundle, parent: Bundle | None) -> frozenset[str]:
    """Check an epoch's signatures and return the fingerprints of the roots that made them.

    Raises:
        BundleInvalid: one does not hold, stands twice, or is by no root of the epoch or of the one before: that
            condemns the whole.
    """
    known = {
        root.fingerprint: root
        for one in (bundle, parent)
        if one is not None
        for of in one.roots.values()
        for root in of
    }
    seen: set[str] = set()

    def check(signature: Signature, message: bytes) -> None:
        root = known.get(signature.keyid)
        if root is None or signature.keyid in seen:
            raise SignatureInvalid("a signature is by no member's CA, or stands twice")
        root.verify(signature.signature, message)
        seen.add(signature.keyid)

    if bundle.envelope.signatures:
        try:
            bundle.envelope.verify_all(check)
        except SignatureInvalid as error:
            raise BundleInvalid(f"epoch {bundle.epoch}: {error}") from error
    return frozenset(seen)


def check_lineage(bundle: Bundle, own_ca: bytes | None) -> None:
    """Check every epoch that a bundle holds, from the oldest on, by the rules above.

    Args:
        bundle: with its history.
        own_ca: the reader's own root (DER): where a history begins with it, it has signed.

    Raises:
        BundleInvalid: an epoch does not follow from the one before, or signatures are missing.
    """
    parent: Bundle | None = None
    for one in bundle.lineage:
        if parent is not None:
            _check_follows(one, parent)
        standing = approval(one, parent)
        if not standing.complete:
            raise BundleInvalid(f"epoch {one.epoch} is not signed by {standing.wanting()}")
        if parent is None and own_ca is not None and any(own_ca in roots for roots in one.members.values()):
            if hex_digest(own_ca) not in signatures(one, None):
                raise BundleInvalid(f"epoch {one.epoch} is not signed by this organization's own CA")
        parent = one


@dataclass(frozen=True, slots=True)
class Anchor:
    """The epoch that a node has seen last, to be remembered across restarts.

    Attributes:
        epoch: its number.
        digest: of its payload; empty if only the number is known.
        signers: the organizations that had signed it, to name who has signed two.
        consortium: its name; empty if it is not known.
    """

    epoch: int
    digest: bytes = b""
    signers: frozenset[str] = frozenset()
    consortium: str = ""

    @classmethod
    def of(cls, bundle: Bundle) -> Anchor:
        """Remember a bundle that `verify_bundle` has accepted."""
        return cls(bundle.epoch, bundle.digest, approval(bundle, bundle.parent).signed, bundle.consortium)

    def encode(self) -> bytes:
        """Return it as JSON (RFC 8785), for `decode`."""
        return canonical_json(
            {
                "consortium": self.consortium,
                "epoch": self.epoch,
                "digest": self.digest.hex(),
                "signers": sorted(self.signers),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Anchor:
        """Read what `encode` has written.

        Raises:
            BundleInvalid: it is something else.
        """
        try:
            fields = Fields(parse_json(data, limit=_MAX_ANCHOR), "the remembered epoch")
            anchor = cls(
                fields.integer("epoch"),
                bytes.fromhex(fields.text("digest", longest=64)),
                frozenset(fields.texts("signers", most=_MAX_SIGNERS, longest=255)),
                fields.text("consortium", longest=128),
            )
            fields.close()
        except ValueError as error:
            raise BundleInvalid(f"what was remembered of the last epoch cannot be read: {error}") from error
        return anchor

    def check(self, bundle: Bundle) -> bool:
        """Refuse a bundle that goes back, or that comes of another epoch of the same number than the one seen.

        Returns:
            Whether the bundle's lineage holds the epoch that was seen: False if it begins later.

        Raises:
            BundleInvalid: it does; of a fork, the message names who has signed both.
        """
        if self.consortium and bundle.consortium != self.consortium:
            raise BundleInvalid(f"this is a bundle of {bundle.consortium!r}, and {self.consortium!r} was seen here")
        if bundle.epoch < self.epoch:
            raise BundleInvalid(f"epoch {bundle.epoch} is older than epoch {self.epoch}, which was seen already")
        parent: Bundle | None = None
        for one in bundle.lineage:
            if one.epoch == self.epoch:
                if self.digest and one.digest != self.digest:
                    both = sorted(approval(one, parent).signed & self.signers)
                    raise BundleInvalid(
                        f"a fork: this epoch {one.epoch} is another than the one that was seen "
                        f"({one.digest.hex()[:16]}, not {self.digest.hex()[:16]}); both are signed by "
                        f"{', '.join(both) or 'nobody that is known here'}: ask them which one holds"
                    )
                return True
            parent = one
        return False


def _check_follows(bundle: Bundle, parent: Bundle) -> None:
    if bundle.version == 1 or bundle.previous != parent.digest or bundle.epoch != parent.epoch + 1:
        raise BundleInvalid(f"epoch {bundle.epoch} does not follow from the epoch {parent.epoch} that stands before it")
    if bundle.consortium != parent.consortium or bundle.issued_ms < parent.issued_ms:
        raise BundleInvalid(f"epoch {bundle.epoch} is of another consortium, or was issued before epoch {parent.epoch}")


def _fingerprints(bundle: Bundle) -> dict[str, frozenset[str]]:
    return {name: frozenset(hex_digest(der) for der in ders) for name, ders in bundle.members.items()}


def _lacks_consent(roots: frozenset[str], before: frozenset[str], keys: frozenset[str]) -> bool:
    """Whether a member that is new, or whose roots change, has yet to sign."""
    changed = bool(before) and roots != before
    return not roots - before <= keys or (changed and not before & keys)
