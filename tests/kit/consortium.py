"""A consortium with real CAs, keys and a trust bundle that all members signed; made once for each set of names."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from comity.bundle import new_bundle, sign_bundle, verify_bundle
from comity.ca import OrganizationCa, certificate_request, read_certificates
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import Attested, NodeIdentity, TrustStore

#: When the certificates and the bundle of this run were issued.
NOW_MS = time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Consortium:
    """Its trust store, the signed bundle and one node of each organization; `seconds` has another one, if asked for."""

    trust: TrustStore
    bundle: bytes
    nodes: Mapping[str, NodeIdentity]
    seconds: Mapping[str, NodeIdentity] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.nodes)


def names(count: int) -> tuple[str, ...]:
    """Names of `count` organizations, sorted."""
    return tuple(f"org{number:02}.example" for number in range(count))


@cache
def consortium(*organizations: str, name: str = "lab", seconds: bool = False) -> Consortium:
    """Return the consortium of `organizations`; another `name` makes another one, with other keys.

    With `seconds` each organization has a second node.
    """
    now = datetime.fromtimestamp(NOW_MS / 1000, UTC)
    with tempfile.TemporaryDirectory() as directory:
        authorities = [OrganizationCa.create(each, Path(directory) / each, now) for each in organizations]
    raw = new_bundle(
        name,
        [ca.certificate_pem for ca in authorities],
        issued_ms=NOW_MS - 1000,
        expires_ms=NOW_MS + 86_400_000,
    )
    for ca in authorities:
        raw = sign_bundle(raw, ca)
    nodes = {ca.organization: _node(ca, now) for ca in authorities}
    more = {ca.organization: _node(ca, now, "n2") for ca in authorities} if seconds else {}
    return Consortium(TrustStore(verify_bundle(raw, now_ms=NOW_MS, own_ca=None)), raw, nodes, more)


def _node(ca: OrganizationCa, now: datetime, name: str = "n1") -> NodeIdentity:
    key = PrivateKey.generate()
    leaf = ca.issue(certificate_request(key, SpiffeId(ca.organization, "node", name)), now=now)
    return NodeIdentity.of(key, read_certificates(leaf))


def attested(identity: NodeIdentity) -> Attested:
    """What a link says about the node at its other end."""
    return Attested(identity.organization, identity.node, identity.key.public_key, identity.peer_id)
