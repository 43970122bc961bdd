"""A consortium whose CAs stay at hand, so that its members, roots and certificates can change in a test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from comity.bundle import Bundle, add_member, new_bundle, read_bundle, sign_bundle
from comity.ca import OrganizationCa, certificate_request, read_certificates
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import NodeIdentity

#: When everything begins: 2026-01-01, UTC.
BEGIN_MS = 1_767_225_600_000
DAY_MS = 86_400_000
YEAR_MS = 365 * DAY_MS


def moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


@cache
def authority(name: str, number: int = 0) -> OrganizationCa:
    """The CA of an organization; with another number, its next one."""
    with tempfile.TemporaryDirectory() as directory:
        return OrganizationCa.create(f"{name}.example", Path(directory) / "ca", moment(BEGIN_MS))


def signed(raw: bytes, authorities: Iterable[OrganizationCa]) -> bytes:
    for ca in authorities:
        raw = sign_bundle(raw, ca)
    return raw


def first(*names: str, threshold: int | None = None, expires_ms: int = BEGIN_MS + YEAR_MS) -> bytes:
    """Epoch 1 among `names`, signed by all."""
    raw = new_bundle(
        "lab",
        [authority(name).certificate_pem for name in names],
        issued_ms=BEGIN_MS,
        expires_ms=expires_ms,
        threshold=threshold,
    )
    return signed(raw, [authority(name) for name in names])


def with_root(raw: bytes, ca: OrganizationCa, *signers: OrganizationCa, at_ms: int = BEGIN_MS + DAY_MS) -> bytes:
    """The next epoch with one more root (of a new member, or of one that is there), signed by `signers`."""
    return signed(add_member(raw, ca.certificate_pem, issued_ms=at_ms, expires_ms=at_ms + YEAR_MS), signers)


def bundle_of(raw: bytes) -> Bundle:
    return read_bundle(raw)


def node_of(
    ca: OrganizationCa, *, at_ms: int = BEGIN_MS, days: int = 90, key: PrivateKey | None = None, name: str = "n1"
) -> NodeIdentity:
    """A node of the CA's organization, certified at a time for some days; with `key`, one that is renewed."""
    own = key or PrivateKey.generate()
    request = certificate_request(own, SpiffeId(ca.organization, "node", name))
    pem = ca.issue(request, now=moment(at_ms), lifetime=timedelta(days=days))
    return NodeIdentity.of(own, (*read_certificates(pem), ca.certificate.der))
