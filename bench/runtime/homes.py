"""Homes for the arm in full: a home and two organizations that do the steps; keys, chains, policies, trust bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from bench.runtime import flows
from comity.bundle import new_bundle, sign_bundle
from comity.ca import OrganizationCa, certificate_request
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity_node.demo.homes import Home, free_port
from comity_node.templates import node_yaml

DATASET: Final = "rows"
PURPOSE: Final = "measuring"
_SCHEMA: Final = {
    "version": 1,
    "label": "kind",
    "fields": {"value": {"type": "number", "min": 0, "max": 1}, "kind": {"type": "integer", "min": 0, "max": 1}},
}
_POLICY: Final = """\
version: 1
organization: {organization}
purposes:
  measuring: {{}}
datasets:
  rows: {{classification: internal, subject: none}}
rules:
  - id: never-raw-rows
    effect: forbid
    action: "*"
    data: {{kind: raw}}
  - id: show-agents-to-members
    effect: allow
    action: agent.discover
    with: {{organization: {others}}}
  - id: agree-on-measuring
    effect: allow
    action: [agreement.offer, agreement.accept]
    with: {{organization: {others}}}
    data: {{dataset: rows}}
    purpose: [measuring]
  - id: pass-rows-on
    effect: allow
    action: [record.send, record.receive]
    with: {{organization: {others}}}
    data: {{dataset: rows, kind: synthetic}}
    purpose: [measuring]
"""


def make_homes(directory: Path, sockets: Path, organizations: Sequence[str]) -> list[Home]:
    """Make a home for each organization under `directory`; the first one is where the others find each other.

    Args:
        directory: is there, and empty.
        sockets: a directory with a short name, for the control sockets.
        organizations: their names.
    """
    now = datetime.now(UTC)
    keys = {name: PrivateKey.generate() for name in organizations}
    homes = [
        Home(
            name,
            (directory / name).absolute(),
            f"unix:{sockets / name.split('.')[0]}/control.sock",
            keys[name].peer_id,
            f"/ip4/127.0.0.1/tcp/{free_port()}",
        )
        for name in organizations
    ]
    bootstrap = f"{homes[0].address}/p2p/{homes[0].peer_id}"
    authorities = [_make_home(home, homes, keys[home.organization], bootstrap, now) for home in homes]
    bundle = _bundle(authorities, now)
    for home in homes:
        (home.path / "consortium.json").write_bytes(bundle)
    return homes


def _make_home(home: Home, homes: Sequence[Home], key: PrivateKey, bootstrap: str, now: datetime) -> OrganizationCa:
    for directory in (home.path / "keys", home.data, home.log):
        directory.mkdir(mode=0o700, parents=True)
    ca = OrganizationCa.create(home.organization, home.path / "ca", now)
    key.save(home.path / "keys" / "node.key")
    leaf = ca.issue(certificate_request(key, SpiffeId(home.organization, "node", "n1")), now=now)
    (home.path / "keys" / "node.chain.pem").write_bytes(leaf + ca.certificate_pem)
    (home.data / "schema.json").write_text(json.dumps(_SCHEMA))
    text = node_yaml(
        home.organization,
        "n1",
        listen=[home.address],
        bootstrap=[] if home is homes[0] else [bootstrap],
        control=home.control,
        datasets={DATASET: {"schema": "data/schema.json"}},
    )
    (home.path / "node.yaml").write_text(text)
    others = [each.organization for each in homes if each is not home]
    policy = _POLICY.format(organization=home.organization, others=json.dumps(others))
    (home.path / "policy.yaml").write_text(policy)
    return ca


def _bundle(authorities: Sequence[OrganizationCa], now: datetime) -> bytes:
    issued_ms = round(now.timestamp() * 1000)
    expires_ms = issued_ms + round(timedelta(days=1).total_seconds() * 1000)
    anchors = [ca.certificate_pem for ca in authorities]
    raw = new_bundle("bench", anchors, issued_ms=issued_ms, expires_ms=expires_ms)
    for ca in authorities:
        raw = sign_bundle(raw, ca)
    return raw


def organizations() -> tuple[str, ...]:
    """Return the home and those that do the steps: one for even roles and one for odd ones."""
    return (flows.HOME, *flows.ORGANIZATIONS[:2])
