"""When a node's certificate, its organization's roots and the trust bundle end, and how soon that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from comity.ca import X509_ERRORS, load_certificate
from comity.digest import sha256
from comity.epoch import Bundle
from comity.errors import ChainInvalid
from comity.identity import read_leaf

What = Literal["certificate", "root", "bundle"]
Level = Literal["ok", "notice", "warning", "urgent", "critical", "expired"]

_DAY_MS = 86_400_000
#: At most so many days are left.
LEVELS: Final[tuple[tuple[int, Level], ...]] = ((1, "critical"), (7, "urgent"), (14, "warning"), (30, "notice"))


@dataclass(frozen=True, slots=True)
class Expiry:
    """The end of something that a node cannot do without.

    Attributes:
        what: the node's certificate, a root of its organization, or the bundle.
        name: which one, for people.
        at_ms: when it ends, in milliseconds since the Unix epoch.
        left_ms: how long that is; negative once it is over.
        level: `notice` at 30 days or less, `warning` at 14, `urgent` at 7, `critical` at 1, `expired` at none.
    """

    what: What
    name: str
    at_ms: int
    left_ms: int
    level: Level

    @classmethod
    def of(cls, what: What, name: str, at_ms: int, now_ms: int) -> Expiry:
        """Say how soon `at_ms` is."""
        left_ms = at_ms - now_ms
        level: Level = next((level for days, level in LEVELS if left_ms <= days * _DAY_MS), "ok")
        return cls(what, name, at_ms, left_ms, "expired" if left_ms <= 0 else level)

    @property
    def days_left(self) -> int:
        """Whole days that are left; negative once it is over."""
        return self.left_ms // _DAY_MS


def expiries(chain: Sequence[bytes], bundle: Bundle, now_ms: int) -> list[Expiry]:
    """Return when what a node stands on ends, the soonest first.

    Args:
        chain: the node's certificates in DER, its own first.
        bundle: the trust bundle in force.
        now_ms: the time, in milliseconds since the Unix epoch.

    Raises:
        ChainInvalid: the first certificate cannot be read.
    """
    leaf = certificate_expiry("certificate", "this node's certificate", chain[0], now_ms)
    organization = read_leaf(chain[:1]).attested.organization
    own = bundle.members.get(organization) or tuple(chain[1:])
    found = [
        leaf,
        Expiry.of("bundle", f"epoch {bundle.epoch} of {bundle.consortium}", bundle.expires_ms, now_ms),
    ]
    for root in own:
        found.append(certificate_expiry("root", f"the root {sha256(root).hex()[:16]}", root, now_ms))
    return sorted(found, key=lambda one: one.at_ms)


def certificate_expiry(what: What, name: str, der: bytes, now_ms: int) -> Expiry:
    """Return when a certificate (DER) ends.

    Raises:
        ChainInvalid: it cannot be read.
    """
    try:
        end = load_certificate(der).not_valid_after_utc
    except X509_ERRORS as error:
        raise ChainInvalid(f"no certificate: {error}") from error
    return Expiry.of(what, name, round(end.timestamp() * 1000), now_ms)
