"""A revoked node, in processes of their own: its links are cut within seconds, and stay cut over restarts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from comity.client import Client

Cli = Callable[..., tuple[int, str, str]]
WAIT_S = 60
NAMES = ("mercy", "hope")

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ok(cli: Cli, home: Path, *arguments: str | Path) -> str:
    code, out, err = cli("--home", home, *arguments)
    assert code == 0, err
    return out


@pytest.fixture
def homes(cli: Cli) -> Iterator[dict[str, Path]]:
    """Two organizations that are one consortium; mercy listens, hope only dials."""
    with tempfile.TemporaryDirectory(prefix="comity") as directory:
        homes = {name: Path(directory) / name for name in NAMES}
        bundle = Path(directory) / "bundle.json"
        address = f"/ip4/127.0.0.1/tcp/{free_port()}"
        options: tuple[str, ...] = ("--listen", address)
        for name, home in homes.items():
            made = ok(cli, home, "--json", "init", "--organization", f"{name}.example", *options)
            options = ("--listen", "none", "--bootstrap", f"{address}/p2p/{json.loads(made)['peer_id']}")
            ok(cli, home, "cert", "request")
            ok(cli, home, "cert", "approve", home / "keys/node.csr.pem")
            ok(cli, home, "cert", "install")
        ok(cli, homes["mercy"], "consortium", "create", bundle, "--name", "tumours")
        ok(cli, homes["mercy"], "consortium", "add", bundle, homes["hope"] / "ca/ca.pem")
        for home in homes.values():
            ok(cli, home, "consortium", "sign", bundle)
        for home in homes.values():
            ok(cli, home, "consortium", "install", bundle)
        yield homes


@contextmanager
def running(home: Path) -> Iterator[Client]:
    command = [sys.executable, "-m", "comity_node.cli", "--home", str(home), "node", "run", "--log-level", "error"]
    with subprocess.Popen(command) as process:
        try:
            with Client(f"unix:{home}/run/control.sock") as client:
                client.wait_ready(WAIT_S)
                yield client
                client.shutdown()
                process.wait(WAIT_S)
        finally:
            process.kill()


def state_of(client: Client, organization: str, wanted: Callable[[str, str], bool]) -> None:
    """Wait until the link to an organization is as wanted (its state, its reason)."""
    stop = time.monotonic() + WAIT_S
    while time.monotonic() < stop:
        for peer in client.peers():
            if peer.organization in (organization, "") and wanted(peer.state, peer.reason):
                return
        time.sleep(0.1)
    raise AssertionError([(peer.organization, peer.state, peer.reason) for peer in client.peers()])


@pytest.mark.invariant("S2")
def test_a_revoked_node_is_cut_off_at_once_and_after_a_restart(cli: Cli, homes: dict[str, Path]) -> None:
    mercy, hope = homes["mercy"], homes["hope"]
    with running(mercy) as at_mercy, running(hope) as at_hope:
        state_of(at_mercy, "hope.example", lambda state, _: state == "connected")
        chain = hope / "keys/node.chain.pem"
        said = json.loads(ok(cli, hope, "--json", "cert", "revoke", chain, "--reason", "its key was copied"))
        began = time.monotonic()
        ok(cli, mercy, "cert", "publish", said["revocation"])
        state_of(at_mercy, "hope.example", lambda state, reason: state != "connected")
        assert time.monotonic() - began < 20
        state_of(at_hope, "mercy.example", lambda state, reason: state != "connected" and "revoked" in reason)
    with running(mercy) as at_mercy, running(hope) as at_hope:
        state_of(at_hope, "mercy.example", lambda state, reason: "revoked" in reason)
        assert all(peer.state != "connected" for peer in at_mercy.peers())
