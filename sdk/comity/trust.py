"""Who is who: a node's identity, and the verification of others' against the trust bundle.

A chain is verified in these steps, and the first that fails refuses it:

1. limits: one or two certificates, each of bounded size;
2. the leaf is a node's: an Ed25519 key, one SPIFFE ID of a node and no other name, a signing key, no CA;
3. the organization that the SPIFFE ID names is a member, and a second certificate is one of its roots;
4. the leaf, and the bundle, are good at the time;
5. the path (RFC 5280) leads to a root of *that* organization: another member's CA can never vouch for its nodes;
6. the organization has not revoked the leaf. What was revoked is known by what the CA has signed of it: of an ECDSA
   signature anybody can make a second one that is as good, and so a certificate with another fingerprint.

7. where the reader asks for it (`certificates_within_ms`), and of a node that is dealt with now: the leaf is not older
   than that. News of a revocation can be kept from a node; that its organization's CA has not issued the certificate
   anew cannot. So a node that is cut off from the news trusts a stolen key for that long at most, and not for as long
   as the certificate lasts. It takes no more than renewing certificates in time: their keys, and what was signed
   before, stay good.

The leaf's key is the node's libp2p identity, so what is verified is also who is at the other end of a link.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from threading import Lock
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from comity.bundle import (
    Anchor,
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
    X509_ERRORS,
    CaCertificate,
    OrganizationCa,
    certificate_request,
    load_certificate,
    read_certificates,
)
from comity.digest import sha256
from comity.errors import ChainInvalid
from comity.identity import MAX_CHAIN, Attested, Leaf, NodeIdentity, check_limits, grant_of, milliseconds, read_leaf

__all__ = [
    "HANDOVER_MS",
    "MAX_CHAIN",
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
    "own_root",
    "read_bundle",
    "read_certificates",
    "remove_member",
    "sign_bundle",
    "unsigned_members",
    "verify_bundle",
]

#: How long an epoch still vouches for what is *signed* after the next one was issued: until everybody has signed and
#: installed that. For whom one deals with (`TrustStore.verify_chain`) the epoch in force counts alone.
HANDOVER_MS: Final = 7 * 86_400_000
_SKEW_MS = 60_000
_CACHED_CHAINS = 1024


@dataclass(frozen=True, slots=True)
class _Verified:
    """A chain that has verified, and the milliseconds in which that holds, both ends included."""

    attested: Attested
    grant: bytes
    from_ms: int
    until_ms: int


#: Told the bundle that was and the one that is, by the thread that replaced it, once the new one is in force.
Observer = Callable[[Bundle, Bundle], object]


class TrustStore:
    """Verifies chains against the trust bundle in force; remembers those that verified until they expire.

    Threads may share one.
    """

    def __init__(self, bundle: Bundle, *, certificates_within_ms: int | None = None) -> None:
        """Take a bundle that `verify_bundle` has accepted.

        Args:
            bundle: the one in force.
            certificates_within_ms: how long ago the certificate of a node that one deals with may have been issued at
                most; None: as long ago as it is valid. See step 7 above.
        """
        self._within_ms = certificates_within_ms
        self._bundle = bundle
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        self._revoked: dict[bytes, int] = {}
        self._observers: list[Observer] = []
        self._lock = Lock()

    @property
    def bundle(self) -> Bundle:
        """The bundle in force. `replace` may change it at any time: read it once for what has to fit together."""
        return self._bundle

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Have somebody told of each replacement, after it; returns what ends that.

        The observer runs in the thread that calls `replace`, and must not raise: for trio, let it set an event.
        """
        with self._lock:
            self._observers.append(observer)

        def end() -> None:
            with self._lock:
                if observer in self._observers:
                    self._observers.remove(observer)

        return end

    def replace(self, bundle: Bundle) -> bool:
        """Put a later epoch in force, at once and for all who share this store; says whether that changed anything.

        What was remembered of chains is forgotten: each is verified anew. Revocations stay.

        Args:
            bundle: one that `verify_bundle` has accepted.

        Raises:
            BundleInvalid: it is of another consortium, of an earlier epoch, or another bundle of the same epoch; the
                one in force stays.
        """
        with self._lock:
            before = self._bundle
            Anchor.of(before).check(bundle)
            if bundle.digest == before.digest:
                return False
            self._bundle = bundle
            self._verified.clear()
            observers = tuple(self._observers)
        for observer in observers:
            observer(before, bundle)
        return True

    def verify_chain(self, chain: Sequence[bytes], now_ms: int) -> Attested:
        """Verify the chain of a node that one deals with now, by the seven steps above, against the bundle in force.

        Args:
            chain: certificates in DER, the node's own first.
            now_ms: the time, in milliseconds since the Unix epoch.

        Raises:
            ChainInvalid: a step failed; the message says which.
        """
        return self._look_up(b"now", chain, now_ms)

    def verify_signed(self, chain: Sequence[bytes], at_ms: int) -> Attested:
        """Verify the chain of a node that has signed something, at the time that the signature says it was made.

        By the first six steps above, at that time, and against a bundle that was in force then: each of the epochs
        that are known holds from when it was issued until it expires, or `HANDOVER_MS` after the next one was issued.
        So what was signed stays good when certificates are renewed, roots change and members leave. The time is the
        signer's word: the caller bounds it by what is known otherwise, such as the agreement's dates.

        Args:
            chain: certificates in DER, the node's own first.
            at_ms: milliseconds since the Unix epoch.

        Raises:
            ChainInvalid: a step failed; the message says which.
        """
        return self._look_up(b"then", chain, at_ms)

    def verify_within(self, chain: Sequence[bytes], from_ms: int, until_ms: int) -> Attested:
        """Verify the chain of a node that has signed something that does not say when, in a time that is known.

        As `verify_signed`, at the earliest moment of that time at which the node's certificate is valid, or at which an
        epoch came into force in it: so one that was renewed in the meantime is good, also by a root that the consortium
        came to know in it, and one that was revoked before is not.

        Args:
            chain: certificates in DER, the node's own first.
            from_ms: milliseconds since the Unix epoch.
            until_ms: milliseconds since the Unix epoch.

        Raises:
            ChainInvalid: a step failed; the message says which.
        """
        at_ms = min(max(from_ms, read_leaf(chain).from_ms), until_ms)
        try:
            return self.verify_signed(chain, at_ms)
        except ChainInvalid:
            for _, begins_ms, _ in _terms_of_office(self._bundle):
                if at_ms < begins_ms <= until_ms:
                    with suppress(ChainInvalid):
                        return self.verify_signed(chain, begins_ms)
            raise

    def _look_up(self, when: bytes, chain: Sequence[bytes], at_ms: int) -> Attested:
        check_limits(chain)
        key = when + sha256(b"".join(len(der).to_bytes(4, "big") + der for der in chain))
        with self._lock:
            bundle, verified = self._bundle, self._verified.get(key)
            if verified is not None:
                self._verified.move_to_end(key)
        if verified is None or not verified.from_ms <= at_ms <= verified.until_ms:
            verify = self._verify_now if when == b"now" else _verify_then
            verified = verify(bundle, chain, at_ms)
            with self._lock:
                if bundle is self._bundle:
                    self._verified[key] = verified
                    if len(self._verified) > _CACHED_CHAINS:
                        self._verified.popitem(last=False)
            if bundle is not self._bundle:  # replaced in the meantime: the one in force decides
                return self._look_up(when, chain, at_ms)
        with self._lock:
            revoked_ms = self._revoked.get(verified.grant)
        if revoked_ms is not None and at_ms >= revoked_ms:
            raise ChainInvalid("the certificate was revoked by its organization")
        return verified.attested

    def _verify_now(self, bundle: Bundle, chain: Sequence[bytes], now_ms: int) -> _Verified:
        found = _verify(bundle, chain, now_ms)
        if self._within_ms is None:
            return found
        until_ms = read_leaf(chain).from_ms + self._within_ms
        if now_ms > until_ms:
            raise ChainInvalid(
                f"the certificate of {found.attested.node} was issued over {self._within_ms // 3_600_000} hours ago, "
                "too long for this node (trust.certificates_within): it may have been revoked without word of it "
                f"getting here; {found.attested.organization} has to renew it (comity cert renew)"
            )
        return replace(found, until_ms=min(found.until_ms, until_ms))

    def revoke(self, certificate: bytes, from_ms: int) -> None:
        """Refuse a node's certificate from a time on; the earliest time that was ever said holds.

        The caller has verified who says so (`comity.revocation`).

        Args:
            certificate: the certificate in DER.
            from_ms: milliseconds since the Unix epoch; what was signed before stays good.
        """
        grant = grant_of(load_certificate(certificate))
        with self._lock:
            self._revoked[grant] = min(from_ms, self._revoked.get(grant, from_ms))


def own_root(chain: Sequence[bytes], bundle: Bundle) -> bytes:
    """Return the root (DER) that a node's own chain leads to: the one that it holds, or else that issued its leaf.

    Args:
        chain: the node's own, in DER.
        bundle: read, and not verified yet: a root that has issued the leaf has the CA's own key, whoever named it.

    Raises:
        ChainInvalid: no root of the bundle has issued it.
    """
    leaf = read_leaf(chain)
    if len(chain) > 1:
        return chain[1]
    for root in bundle.roots.get(leaf.attested.organization, ()):
        try:
            leaf.certificate.verify_directly_issued_by(root.certificate)
        except (InvalidSignature, *X509_ERRORS):
            continue
        return root.der
    raise ChainInvalid(f"no root of {leaf.attested.organization} in the bundle has issued this node's certificate")


def _verify(bundle: Bundle, chain: Sequence[bytes], now_ms: int) -> _Verified:
    leaf = read_leaf(chain)
    organization = leaf.attested.organization
    if organization not in bundle.members:
        raise ChainInvalid(f"{organization} is no member of {bundle.consortium} (epoch {bundle.epoch})")
    if any(der not in bundle.members[organization] for der in chain[1:]):
        raise ChainInvalid(f"the chain's second certificate is no root of {organization}")
    if now_ms >= bundle.expires_ms:
        raise ChainInvalid(f"the trust bundle of epoch {bundle.epoch} has expired")
    if now_ms < leaf.from_ms:
        raise ChainInvalid(f"the certificate of {leaf.attested.node} is not valid yet")
    if now_ms > leaf.until_ms:
        raise ChainInvalid(f"the certificate of {leaf.attested.node} has expired")
    return _verify_path(bundle, leaf, now_ms)


def _verify_path(bundle: Bundle, leaf: Leaf, now_ms: int) -> _Verified:
    organization = leaf.attested.organization
    store = Store([root.certificate for root in bundle.roots[organization]])
    moment = datetime.fromtimestamp(now_ms / 1000, UTC)
    verifier = PolicyBuilder().store(store).time(moment).max_chain_depth(0).build_client_verifier()
    try:
        path = verifier.verify(leaf.certificate, []).chain
    except (VerificationError, *X509_ERRORS) as error:  # names are parsed only now
        raise ChainInvalid(
            f"the certificate of {leaf.attested.node} does not lead to a root of {organization}: {error}"
        ) from error
    return _Verified(
        leaf.attested,
        grant_of(leaf.certificate),
        max(milliseconds(one.not_valid_before_utc) for one in path),
        min(bundle.expires_ms - 1, *(milliseconds(one.not_valid_after_utc) for one in path)),
    )


def _verify_then(bundle: Bundle, chain: Sequence[bytes], at_ms: int) -> _Verified:
    """Verify against the newest of the epochs in force at a time that vouches for the chain."""
    first: ChainInvalid | None = None
    for epoch, from_ms, until_ms in reversed(_terms_of_office(bundle)):
        if not from_ms <= at_ms < until_ms:
            continue
        try:
            found = _verify(epoch, chain, at_ms)
        except ChainInvalid as error:
            first = first or error
        else:
            return replace(found, from_ms=max(found.from_ms, from_ms), until_ms=min(found.until_ms, until_ms - 1))
    raise first or ChainInvalid(f"no epoch of {bundle.consortium} that is known here was in force at that time")


def _terms_of_office(bundle: Bundle) -> list[tuple[Bundle, int, int]]:
    """Return each epoch that is known, oldest first, with the milliseconds from and until which it is in force.

    The oldest one speaks for what was before it, too: of that, nothing else is known.
    """
    lineage = bundle.lineage
    ends = [min(one.expires_ms, after.issued_ms + HANDOVER_MS) for one, after in pairwise(lineage)]
    begins = [0, *(one.issued_ms - _SKEW_MS for one in lineage[1:])]
    return list(zip(lineage, begins, [*ends, bundle.expires_ms], strict=True))
