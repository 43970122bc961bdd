"""`comity node run` as a process: up, asked, stopped; and what it says when it cannot start."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from comity.client import Client, SkillLoad

Cli = Callable[..., tuple[int, str, str]]
WAIT_S = 60


@pytest.fixture
def home(cli: Cli) -> Iterator[Path]:
    """A node's home with everything in place, under a short path (a socket's may have 100 characters)."""
    with tempfile.TemporaryDirectory(prefix="comity") as directory:
        home, bundle = Path(directory) / "mercy", Path(directory) / "bundle.json"
        steps: tuple[tuple[str | Path, ...], ...] = (
            ("init", "--organization", "mercy.example", "--listen", "/ip4/127.0.0.1/tcp/0"),
            ("cert", "request"),
            ("cert", "approve", home / "keys/node.csr.pem"),
            ("cert", "install"),
            ("consortium", "create", bundle, "--name", "tumours"),
            ("consortium", "sign", bundle),
            ("consortium", "install", bundle),
        )
        for step in steps:
            code, _, err = cli("--home", home, *step)
            assert code == 0, err
        yield home


def start(home: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "comity_node.cli", "--home", str(home), "node", "run", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def quiet() -> Iterator[None]:
    """Take back what a node in this process does to logging."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def refused(cli: Cli, home: Path) -> str:
    """What a node that cannot start says, in one line."""
    code, out, err = cli("--home", home, "node", "run", "--log-level", "error")
    assert (code, out) == (1, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
@pytest.mark.invariant("R5")
def test_a_node_from_start_to_stop(cli: Cli, home: Path) -> None:
    with start(home, "--json") as process:
        try:
            code, out, err = cli("--home", home, "--json", "node", "status", "--wait", str(WAIT_S))
            assert code == 0, err
            assert json.loads(out)["node"] == "spiffe://mercy.example/node/n1"
            assert cli("--home", home, "doctor")[0] == 0
            assert "in use by another node" in refused(cli, home), "a second node on the same home"
            assert cli("--home", home, "node", "status")[0] == 0, "the first one goes on"
            assert cli("--home", home, "node", "stop")[0] == 0
            _, err = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    assert process.returncode == 0, err
    said = [json.loads(line)["message"] for line in err.splitlines()]
    assert any(line.startswith("recovered") for line in said)
    assert said[-1] == "stopped"
    code, out, _ = cli("--home", home, "audit", "verify", "--json")
    assert code == 0
    assert json.loads(out)["unsigned"] == 0, "the last checkpoint covers everything"


@pytest.mark.slow
def test_workers_of_the_home_serve_its_node(cli: Cli, home: Path) -> None:
    agent = home / "coins.py"
    agent.write_text("from comity.agent import Agent\nagent = Agent('coins')\nagent.skill('toss')(lambda work: 1)\n")
    command = [sys.executable, "-m", "comity_node.cli", "--home", str(home), "worker", f"{agent}:agent"]
    with start(home) as process:
        try:
            assert cli("--home", home, "node", "status", "--wait", str(WAIT_S))[0] == 0
            with subprocess.Popen(
                [*command, "--processes", "2", "--concurrency", "3"], stdout=subprocess.PIPE
            ) as workers:
                try:
                    expected = SkillLoad("toss", workers=2, running=0, free=6, waiting=0, waiting_ms=0)
                    with Client(f"unix:{home}/run/control.sock") as client:
                        until = time.monotonic() + WAIT_S
                        while client.status().loads != (expected,):
                            assert time.monotonic() < until, client.status().loads
                            time.sleep(0.05)
                    said = json.loads(cli("--home", home, "--json", "node", "status")[1])
                    assert said["loads"][0]["free"] == 6
                    workers.terminate()
                    out, _ = workers.communicate(timeout=WAIT_S)
                finally:
                    workers.kill()
            assert workers.returncode == 0
            assert out.startswith(b"comity worker coins, 2 processes: 0 done")
        finally:
            process.terminate()
            process.communicate(timeout=WAIT_S)


@pytest.mark.slow
def test_an_interrupt_stops_it(cli: Cli, home: Path) -> None:
    with start(home) as process:
        try:
            assert cli("--home", home, "node", "status", "--wait", str(WAIT_S))[0] == 0
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in err
    assert err.rstrip().endswith("stopped")


@pytest.mark.usefixtures("quiet")
@pytest.mark.invariant("S3")
def test_what_keeps_a_node_from_starting(cli: Cli, home: Path) -> None:
    config, policy, bundle = home / "node.yaml", home / "policy.yaml", home / "consortium.json"
    good = config.read_text()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        config.write_text(good.replace("/tcp/0", f"/tcp/{port}"))
        assert str(port) in refused(cli, home)
    config.write_text(good + "lisen: []\n")
    assert f"{config}:{len(good.splitlines()) + 1}:1" in refused(cli, home)
    config.write_text(good)

    rules = policy.read_text()
    policy.write_text(rules.replace("effect: forbid", "effect: forbit"))
    assert f"{policy}:" in refused(cli, home)
    policy.unlink()
    assert str(policy) in refused(cli, home)
    policy.write_text(rules)

    signed = bundle.read_text()
    bundle.write_text("{}")
    assert str(bundle) in refused(cli, home)
    bundle.write_text(signed)

    (home / "node.db").write_text("this is no database, whatever else it may be" * 100)
    assert "no SQLite database" in refused(cli, home)
