"""Organizations as a newcomer makes them: homes by the command line, nodes in processes of their own, on loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from comity.client import Client

Cli = Callable[..., tuple[int, str, str]]
WAIT_S = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ok(cli: Cli, home: Path, *arguments: str | Path) -> str:
    code, out, err = cli("--home", home, *arguments)
    assert code == 0, err
    return out


def make_home(cli: Cli, home: Path, *options: str) -> str:
    """Make the home of `NAME.example`, certified by its own CA, and return its PeerId."""
    made = ok(cli, home, "--json", "init", "--organization", f"{home.name}.example", *options)
    ok(cli, home, "cert", "request")
    ok(cli, home, "cert", "approve", home / "keys/node.csr.pem")
    ok(cli, home, "cert", "install")
    peer_id: str = json.loads(made)["peer_id"]
    return peer_id


def make_consortium(cli: Cli, directory: Path, homes: Sequence[Path]) -> Path:
    """Make a consortium of the homes' organizations, install it everywhere, and return the bundle's file."""
    bundle = directory / "bundle.json"
    first, *others = homes
    ok(cli, first, "consortium", "create", bundle, "--name", "tumours")
    for home in others:
        ok(cli, first, "consortium", "add", bundle, home / "ca/ca.pem")
    for home in homes:
        ok(cli, home, "consortium", "sign", bundle)
    for home in homes:
        ok(cli, home, "consortium", "install", bundle)
    return bundle


def mercy_and(cli: Cli, directory: Path, *others: str, options: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Make homes of mercy, which listens, and of others, which only dial it; `options`: more for `comity init`."""
    address = f"/ip4/127.0.0.1/tcp/{free_port()}"
    homes = {name: directory / name for name in ("mercy", *others)}
    mercy = f"{address}/p2p/" + make_home(cli, homes["mercy"], "--listen", address, *options.get("mercy", ()))
    for name in others:
        more = [each.format(mercy=mercy) for each in options.get(name, ())]
        make_home(cli, homes[name], "--listen", "none", "--bootstrap", mercy, *more)
    make_consortium(cli, directory, list(homes.values()))
    return homes


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
