"""Five homes: keys, certificates, policies, data and the signed trust bundle that is all they share."""

from __future__ import annotations

import shutil
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from comity.bundle import new_bundle, sign_bundle
from comity.ca import OrganizationCa, certificate_request
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity_node.demo import data
from comity_node.demo.policies import DATASET, policy_for
from comity_node.templates import node_yaml

CONSORTIUM = "breast-cancer-lab"
HOSPITALS = ("mercy.example", "stlukes.example", "hope.example", "charite.example")
#: A member with valid keys that turns bad.
BAD = "quick.example"
ORGANIZATIONS = (*HOSPITALS, BAD)
NODE = "n1"
_BUNDLE_DAYS = 30


@dataclass(frozen=True, slots=True)
class Home:
    """Where one organization of the demo lives.

    Attributes:
        organization: its name.
        path: its directory; `node.yaml` is in it.
        control: address of its control API.
        peer_id: of its node.
        address: multiaddr at which its node listens.
    """

    organization: str
    path: Path
    control: str
    peer_id: str
    address: str

    @property
    def data(self) -> Path:
        """Directory with the organization's private rows."""
        return self.path / "data"

    @property
    def log(self) -> Path:
        """Directory of its processes' logs."""
        return self.path / "logs"


def make_homes(directory: Path, sockets: Path, table: data.Table, *, seed: int) -> tuple[list[Home], Path]:
    """Make all homes under `directory`; returns them and the file with the held-out test set.

    Args:
        directory: is emptied first.
        sockets: a directory with a short name, for the control sockets (a unix socket's path has 100 characters).
        table: the data that is divided.
        seed: of the division.

    Raises:
        ConfigError: the data cannot be divided.
    """
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    now = datetime.now(UTC)
    keys = {name: PrivateKey.generate() for name in ORGANIZATIONS}
    homes = [
        Home(
            organization=name,
            path=(directory / name).absolute(),
            control=f"unix:{sockets / name.split('.')[0]}/control.sock",
            peer_id=keys[name].peer_id,
            address=f"/ip4/127.0.0.1/tcp/{free_port()}",
        )
        for name in ORGANIZATIONS
    ]
    bootstrap = f"{homes[0].address}/p2p/{homes[0].peer_id}"
    authorities = [_make_home(home, keys[home.organization], bootstrap, now) for home in homes]
    bundle = _bundle(authorities, now)
    parts = data.split(table, organizations=len(homes), seed=seed)
    test = directory / "held-out"
    test.mkdir()
    data.write_split(parts, {home.organization: home.data for home in homes}, test)
    for home in homes:
        (home.path / "consortium.json").write_bytes(bundle)
    return homes, test / data.TEST_FILE


def _make_home(home: Home, key: PrivateKey, bootstrap: str, now: datetime) -> OrganizationCa:
    for directory in (home.path / "keys", home.data, home.log):
        directory.mkdir(mode=0o700, parents=True)
    ca = OrganizationCa.create(home.organization, home.path / "ca", now)
    key.save(home.path / "keys" / "node.key")
    leaf = ca.issue(certificate_request(key, SpiffeId(home.organization, "node", NODE)), now=now)
    (home.path / "keys" / "node.chain.pem").write_bytes(leaf + ca.certificate_pem)
    others = [] if home.address in bootstrap else [bootstrap]
    text = node_yaml(
        home.organization,
        NODE,
        listen=[home.address],
        bootstrap=others,
        control=home.control,
        datasets={DATASET: {"schema": f"data/{data.SCHEMA_FILE}", "private": f"data/{data.PRIVATE_FILE}"}},
    )
    (home.path / "node.yaml").write_text(text)
    (home.path / "policy.yaml").write_text(policy_for(home.organization, ORGANIZATIONS, bad=home.organization == BAD))
    return ca


def _bundle(authorities: list[OrganizationCa], now: datetime) -> bytes:
    issued_ms = round(now.timestamp() * 1000)
    expires_ms = issued_ms + round(timedelta(days=_BUNDLE_DAYS).total_seconds() * 1000)
    raw = new_bundle(CONSORTIUM, [ca.certificate_pem for ca in authorities], issued_ms=issued_ms, expires_ms=expires_ms)
    for ca in authorities:
        raw = sign_bundle(raw, ca)
    return raw


def free_port() -> int:
    """Return a TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
