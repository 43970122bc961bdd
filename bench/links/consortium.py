"""Two organizations with one node each, as files that both ends of an arm read."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from comity.bundle import new_bundle, sign_bundle, verify_bundle
from comity.ca import OrganizationCa, certificate_request
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import NodeIdentity, TrustStore

SERVER: Final = "mercy.example"
CLIENT: Final = "hope.example"
_DAY_MS: Final = 86_400_000

_POLICY = """\
version: 1
organization: {own}
datasets:
  tumour-features: {{classification: confidential, subject: patient}}
rules:
  - id: never-raw-rows
    effect: forbid
    action: "*"
    data: {{kind: raw}}
  - id: take-synthetic-rows
    effect: allow
    action: record.receive
    from: {{organization: [{other}]}}
    data: {{dataset: tumour-features, kind: synthetic}}
    purpose: [breast-cancer-screening]
"""


def found(directory: Path) -> None:
    """Write both organizations' keys, chains, policies and the bundle into `directory`."""
    directory.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    now_ms = time.time_ns() // 1_000_000
    authorities = [OrganizationCa.create(name, directory / f"{name}.ca", now) for name in (SERVER, CLIENT)]
    raw = new_bundle(
        "bench", [ca.certificate_pem for ca in authorities], issued_ms=now_ms - 1000, expires_ms=now_ms + _DAY_MS
    )
    for ca, other in zip(authorities, (CLIENT, SERVER), strict=True):
        raw = sign_bundle(raw, ca)
        key, node = PrivateKey.generate(), SpiffeId(ca.organization, "node", "n1")
        key.save(directory / f"{ca.organization}.key")
        chain = x509.load_pem_x509_certificates(ca.issue(certificate_request(key, node), now=now))
        (directory / f"{ca.organization}.pem").write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in chain))
        (directory / f"{ca.organization}.yaml").write_text(_POLICY.format(own=ca.organization, other=other))
    (directory / "bundle.json").write_bytes(raw)


def identity(directory: Path, organization: str) -> NodeIdentity:
    """The node of an organization."""
    return NodeIdentity.load(directory / f"{organization}.key", directory / f"{organization}.pem")


def trust(directory: Path) -> TrustStore:
    """What both trust."""
    raw = (directory / "bundle.json").read_bytes()
    return TrustStore(verify_bundle(raw, now_ms=time.time_ns() // 1_000_000, own_ca=None))
