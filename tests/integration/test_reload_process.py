"""A running node as a process: its files change under it, and it takes them in, or says why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from comity.client import Client, Status
from comity.trust import read_certificates
from kit.homes import WAIT_S, Cli, mercy_and, ok, running, state_of
from kit.lab import policy

pytestmark = pytest.mark.slow

#: Within these a running node has taken in a changed file by itself.
SECONDS = 5


@contextmanager
def up(home: Path) -> Iterator[tuple[subprocess.Popen[bytes], Client]]:
    """A node that can be sent signals."""
    command = [sys.executable, "-m", "comity_node.cli", "--home", str(home), "node", "run", "--log-level", "error"]
    with subprocess.Popen(command) as process:
        try:
            with Client(f"unix:{home}/run/control.sock") as client:
                client.wait_ready(WAIT_S)
                yield process, client
                client.shutdown()
                assert process.wait(WAIT_S) == 0
        finally:
            process.kill()


def until(client: Client, wanted: Callable[[Status], bool], seconds: float = WAIT_S) -> Status:
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        if wanted(status := client.status()):
            return status
        time.sleep(0.05)
    pytest.fail(f"not within {seconds} s: {client.status()}")


def audited(cli: Cli, home: Path, action: str) -> list[dict[str, object]]:
    shown: list[dict[str, object]] = json.loads(ok(cli, home, "--json", "audit", "show", "--action", action))
    return shown


def refuses_and_mends(cli: Cli, home: Path, client: Client) -> None:
    """A policy with a mistake is refused with its place, until it is mended; nobody has to tell the node of either."""
    policy_file = home / "policy.yaml"
    good, now = policy_file.read_text(), client.status().policy_digest
    policy_file.write_text(good.replace("effect: forbid", "effect: forbit", 1))
    line = good.splitlines().index(next(one for one in good.splitlines() if "effect: forbid" in one)) + 1
    refused = until(client, lambda status: any("policy refused" in one for one in status.warnings), SECONDS)
    assert refused.policy_digest == now, "what was in force stays in force"
    (warning,) = [one for one in refused.warnings if one.startswith("policy refused")]
    assert f"{policy_file}:{line}:" in warning
    code, out, err = cli("--home", home, "node", "reload")
    assert code == 1
    assert f"{policy_file}:{line}:" in out
    assert "still is" in err
    policy_file.write_text(f"{good}\n# mended\n")
    until(client, lambda status: status.policy_digest != now, SECONDS)
    code, out, _ = cli("--home", home, "--json", "node", "reload")
    assert (code, json.loads(out)) == (0, {"changed": [], "refused": []})
    assert len(audited(cli, home, "policy.refused")) == 1, "once, however often it was read"


def renews(cli: Cli, home: Path, client: Client, other: Client) -> None:
    """A renewed certificate is presented, a foreign one is refused, and the link stays up all the while."""
    chain = home / "keys/node.chain.pem"
    before = read_certificates(chain.read_bytes())
    ok(cli, home, "cert", "renew", "--days", "20")
    assert read_certificates(chain.read_bytes()) != before
    assert [line.split()[0] for line in client.reload().changed] == ["certificate"]
    assert any("this node's certificate expires in 20 days" in line for line in client.status().warnings)
    links = [peer for peer in client.peers() if peer.organization == "mercy.example"]
    links += [peer for peer in other.peers() if peer.organization == f"{home.name}.example"]
    assert [(peer.state, peer.reconnects) for peer in links] == [("connected", 0)] * 2
    renewed = chain.read_bytes()
    chain.write_bytes((home.parent / "evil/keys/node.chain.pem").read_bytes())
    (refused,) = client.reload().refused
    assert "another key" in refused
    chain.write_bytes(renewed)
    assert client.reload().refused == ()
    assert len(audited(cli, home, "certificate.renewed")) == 1


@pytest.mark.invariant("S2")
def test_a_certificate_and_a_bundle_are_taken_in_and_only_who_is_expelled_is_cut(cli: Cli) -> None:
    with tempfile.TemporaryDirectory(prefix="comity") as directory:
        homes = mercy_and(cli, Path(directory), "hope", "third", "evil", options={})
        bundle = Path(directory) / "bundle.json"
        old = bundle.read_bytes()
        with running(homes["mercy"]) as mercy, running(homes["hope"]) as hope, running(homes["evil"]) as evil:
            for name in ("hope", "evil"):
                state_of(mercy, f"{name}.example", lambda state, _: state == "connected")
            state_of(hope, "mercy.example", lambda state, _: state == "connected")
            renews(cli, homes["hope"], hope, mercy)
            ok(cli, homes["mercy"], "consortium", "remove", bundle, "evil.example")
            for name in ("mercy", "hope", "third"):
                ok(cli, homes[name], "consortium", "sign", bundle)
            ok(cli, homes["mercy"], "consortium", "install", bundle)
            began = time.monotonic()
            mercy.reload()
            until(mercy, lambda status: status.bundle_epoch == 2)
            state_of(mercy, "evil.example", lambda state, _: state != "connected")
            assert time.monotonic() - began < SECONDS
            state_of(evil, "mercy.example", lambda state, reason: state != "connected" and "no member" in reason)
            assert {peer.organization for peer in mercy.peers() if peer.state == "connected"} == {"hope.example"}
            assert hope.status().bundle_epoch == 1
            assert [peer.reconnects for peer in hope.peers() if peer.organization == "mercy.example"] == [0]

            (homes["mercy"] / "consortium.json").write_bytes(old)
            (refused,) = mercy.reload().refused
            assert "older than epoch" in refused
            ok(cli, homes["hope"], "consortium", "install", bundle)
            until(hope, lambda status: status.bundle_epoch == 2, SECONDS)
            assert [peer.state for peer in hope.peers() if peer.organization == "mercy.example"] == ["connected"]


AGENT = """
import time
from comity.agent import Agent

agent = Agent("slow")


def rows(work):
    return {"records": [{"x": float(number), "label": 1} for number in range(work["count"])]}


def review(work):
    time.sleep(0.3)
    good = {"score": 9000, "axes": {"range": 9000}, "feedback": []}
    return {"reviews": [dict(good) for _ in work["records"]], "validator": "test"}


agent.skill("generate")(lambda work: rows(work.input))
agent.skill("review")(lambda work: review(work.input))
agent.skill("repair")(lambda work: rows({"count": len(work.input["records"])}))
"""
KEPT, WITHDRAWN = "screening", "marketing"


@contextmanager
def worker(home: Path) -> Iterator[None]:
    (home / "slow_agent.py").write_text(AGENT)
    command = [sys.executable, "-m", "comity.worker", "slow_agent:agent", "--control", f"unix:{home}/run/control.sock"]
    path = os.pathsep.join([str(home), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def with_dataset(home: Path) -> None:
    schema = {
        "version": 1,
        "label": "label",
        "fields": {"x": {"type": "number", "min": 0, "max": 1000}, "label": {"type": "integer", "min": 0, "max": 1}},
    }
    (home / "rows.json").write_text(json.dumps(schema))
    config = home / "node.yaml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("datasets:")]
    config.write_text("\n".join([*lines, "datasets: {rows: {schema: rows.json}}", ""]))
    (home / "policy.yaml").write_text(policy(f"{home.name}.example"))


def submit(client: Client, purpose: str) -> str:
    return client.submit_workflow(
        {
            "name": purpose, "purpose": purpose, "dataset": "rows", "records_per_organization": 20, "batch_records": 2,
            "repair_rounds": 0, "min_score": 5000, "lease_seconds": 60, "minimum_participants": 2,
        }
    )  # fmt: skip


def allowed_since(cli: Cli, home: Path, action: str, purpose: str) -> list[str]:
    """The actions for a purpose that the log allows after its first entry of an action."""
    entries = json.loads(ok(cli, home, "--json", "audit", "show", "--last", "100000"))
    first = next(number for number, one in enumerate(entries) if one["action"] == action)
    later = [one for one in entries[first:] if one["decision"] == "allow" and one["kind"] == "decision"]
    return [one["action"] for one in later if one["detail"].get("purpose") == purpose]


@pytest.mark.invariant("S1")
@pytest.mark.invariant("S3")
def test_a_purpose_withdrawn_by_sighup_stops_in_seconds_and_the_other_goes_on(cli: Cli) -> None:
    with tempfile.TemporaryDirectory(prefix="comity") as directory:
        homes = mercy_and(cli, Path(directory), "hope", options={})
        for home in homes.values():
            with_dataset(home)
        with up(homes["mercy"]) as (process, mercy), running(homes["hope"]) as hope:
            with worker(homes["mercy"]), worker(homes["hope"]):
                workflows = {purpose: submit(mercy, purpose) for purpose in (KEPT, WITHDRAWN)}
                agreed: dict[str, str] = {}

                def certified(client: Client, purpose: str) -> int:
                    return sum(1 for _ in client.records(agreement=agreed[purpose]))

                def begun(status: Status) -> bool:
                    shown = {purpose: mercy.workflow(one) for purpose, one in workflows.items()}
                    agreed.update({purpose: one.agreement_digest for purpose, one in shown.items()})
                    return all(agreed.values()) and all(certified(hope, purpose) > 0 for purpose in workflows)

                until(mercy, begun)
                forbidden = f"  - {{id: withdrawn, effect: forbid, action: '*', purpose: [{WITHDRAWN}]}}\n"
                (homes["mercy"] / "policy.yaml").write_text(policy("mercy.example") + "\n" + forbidden)
                old = mercy.status().policy_digest
                process.send_signal(signal.SIGHUP)
                stopped = until(mercy, lambda status: any("is suspended" in one for one in status.warnings), SECONDS)
                assert stopped.policy_digest != old
                held = certified(mercy, WITHDRAWN)
                tasks = mercy.workflow(workflows[WITHDRAWN]).tasks
                assert tasks.get("refused")
                assert not set(tasks) & {"in_review", "in_repair"}
                until(mercy, lambda status: mercy.workflow(workflows[KEPT]).state == "done")
                assert mercy.workflow(workflows[KEPT]).tasks == {"certified": 20}
                assert certified(mercy, WITHDRAWN) == held, "no record of the purpose has come in since"
                assert certified(hope, WITHDRAWN) < 40
                assert len(audited(cli, homes["mercy"], "policy.changed")) == 1
                assert not allowed_since(cli, homes["mercy"], "policy.changed", WITHDRAWN), "nothing of it has left"
            refuses_and_mends(cli, homes["mercy"], mercy)
