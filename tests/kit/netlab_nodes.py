"""Three organizations' nodes and workers, each organization in a site of its own: homes, processes and one workflow.

`mercy` and `hope` either listen like everybody ("public"), or sit behind a NAT router with no listening port at all
("cone", "symmetric"); `stlukes` is public and, for those two, the member through whose relay they are reached.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, Self

from comity.bundle import new_bundle, sign_bundle
from comity.ca import OrganizationCa, certificate_request
from comity.client import Client
from comity.errors import AgentFailed
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity_node.demo import data, scenario
from comity_node.demo.homes import NODE, Home
from comity_node.demo.policies import DATASET, PURPOSE
from comity_node.demo.processes import Processes, Running, wait_until
from kit.netlab import NetLab, Site

MERCY, HOPE, RELAY = "mercy.example", "hope.example", "stlukes.example"
MEMBERS: Final = (MERCY, HOPE, RELAY)
PORT = 4001
SIZE = scenario.Size(records=10, batch=5, repair_rounds=0)
_AGREE_S = 60.0
_BUNDLE_DAYS = 2
_ROOT = Path(__file__).resolve().parents[2]

Layout = Literal["public", "cone", "symmetric"]

_POLICY = """\
version: 1
organization: {organization}
purposes: {{{purpose}: {{}}}}
datasets:
  {dataset}: {{classification: confidential, subject: patient}}
rules:
  - id: show-agents-to-members
    effect: allow
    action: agent.discover
    with: {{organization: {others}}}
  - id: agree
    effect: allow
    action: [agreement.offer, agreement.accept]
    with: {{organization: {others}}}
    data: {{dataset: {dataset}}}
    purpose: [{purpose}]
    obligations: {{onward: never}}
  - id: work-together
    effect: allow
    action: [record.send, record.receive, review.send, review.receive]
    with: {{organization: {others}}}
    data: {{dataset: {dataset}}}
    purpose: [{purpose}]
    obligations: {{onward: never}}
  - id: share-certified
    effect: allow
    action: [record.release, record.accept]
    with: {{organization: {others}}}
    data: {{dataset: {dataset}, kind: certified}}
    purpose: [{purpose}]
    obligations: {{onward: never}}
"""
_CARRY = """\
  - id: carry-for-members
    effect: allow
    action: relay.carry
    from: {{organization: {others}}}
"""


@dataclass(frozen=True, slots=True)
class Federation:
    """What runs: homes in the order of `MEMBERS`, their sites, their processes."""

    lab: NetLab
    homes: Sequence[Home]
    sites: Mapping[str, Site]
    processes: SiteProcesses


class SiteProcesses(Processes):
    """The processes of organizations, each in its organization's site."""

    def __init__(self, homes: Sequence[Home], sites: Mapping[str, Site]) -> None:
        """Own the processes of `homes`."""
        super().__init__(homes)
        self._sites = sites

    def __enter__(self) -> Self:
        return self

    def start_worker(self, organization: str) -> Running:
        """Start a worker whose agents cost next to nothing: what is looked at is the network."""
        home = self._homes[organization]
        environment = {"COMITY_DEMO_DATA": str(home.data), "PYTHONPATH": _python_path()}
        command = ["-m", "comity.worker", "bench.instant:agent", "--control", home.control]
        return self._start(f"{organization} worker", command, home.log / "worker.log", environment)

    def _start(
        self, name: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str], nice: int = 0
    ) -> Running:
        site = self._sites[name.partition(" ")[0]]
        with log.open("ab") as output:
            process = site.run(
                [sys.executable, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            )
        if nice:
            os.setpriority(os.PRIO_PROCESS, process.pid, nice)
        running = self._running[name] = Running(name, process, log)
        return running


@contextmanager
def federation(lab: NetLab, directory: Path, sockets: Path, layout: Layout = "public") -> Iterator[Federation]:
    """Lay three organizations out in a lab; nothing is started, and whatever is started ends with this.

    Args:
        lab: entered, without sites of these names.
        directory: where the homes go.
        sockets: a directory with a short name, for the control sockets.
        layout: whether mercy and hope listen, or which NAT they are behind.
    """
    nat = None if layout == "public" else layout
    sites = {name: lab.site(name, nat=None if name == RELAY else nat) for name in MEMBERS}
    keys = {name: PrivateKey.generate() for name in MEMBERS}
    hidden = () if nat is None else (MERCY, HOPE)
    homes = [
        Home(
            organization=name,
            path=directory / name,
            control=f"unix:{sockets / name.partition('.')[0]}/control.sock",
            peer_id=keys[name].peer_id,
            address="" if name in hidden else f"/ip4/{sites[name].address}/tcp/{PORT}",
        )
        for name in MEMBERS
    ]
    now = datetime.now(UTC)
    relayed = bool(hidden)
    authorities = [_make_home(home, keys[home.organization], homes[-1], now, relayed=relayed) for home in homes]
    bundle = _bundle(authorities, now)
    parts = data.split(data.breast_cancer(), organizations=len(homes), seed=0)
    data.write_split(parts, {home.organization: home.data for home in homes}, directory / "held-out")
    for home in homes:
        (home.path / "consortium.json").write_bytes(bundle)
    with SiteProcesses(homes, sites) as processes:
        yield Federation(lab, homes, sites, processes)


def run_workflow(running: Federation, size: scenario.Size = SIZE) -> str:
    """Let the first organization submit a workflow; returns its id when every record is decided and spread.

    Raises:
        AgentFailed: there was no agreement, or a process has ended.
        DeadlineExceeded: it was not over in time.
    """
    homes, processes = running.homes, running.processes
    document = {**scenario.workflow(size), "minimum_participants": len(homes)}
    with Client(homes[0].control) as client:
        workflow_id = client.submit_workflow(document)

        def agreed() -> bool:
            seen = client.workflow(workflow_id)
            if seen.state == "failed":
                raise AgentFailed(f"no agreement: {seen.reason}")
            return seen.state in ("running", "done")

        wait_until("the organizations agree", agreed, timeout_s=_AGREE_S, check=processes.check)
    scenario.work(homes, processes, workflow_id, size, lambda counts: None)
    return workflow_id


def _make_home(home: Home, key: PrivateKey, relay: Home, now: datetime, *, relayed: bool) -> OrganizationCa:
    for directory in (home.path / "keys", home.data, home.log):
        directory.mkdir(mode=0o700, parents=True)
    ca = OrganizationCa.create(home.organization, home.path / "ca", now)
    key.save(home.path / "keys" / "node.key")
    leaf = ca.issue(certificate_request(key, SpiffeId(home.organization, "node", NODE)), now=now)
    (home.path / "keys" / "node.chain.pem").write_bytes(leaf + ca.certificate_pem)
    (home.path / "node.yaml").write_text(_node_yaml(home, relay, relayed=relayed))
    others = [name for name in MEMBERS if name != home.organization]
    policy = _POLICY + (_CARRY if home is relay and relayed else "")
    (home.path / "policy.yaml").write_text(
        policy.format(organization=home.organization, others=json.dumps(others), dataset=DATASET, purpose=PURPOSE)
    )
    return ca


def _node_yaml(home: Home, relay: Home, *, relayed: bool) -> str:
    """Return a `node.yaml`: JSON is YAML, so each key's value is written as JSON."""
    meeting = [] if home is relay else [f"{relay.address}/p2p/{relay.peer_id}"]
    keys: dict[str, object] = {
        "version": 1,
        "organization": home.organization,
        "node": NODE,
        "listen": [home.address] if home.address else "none",
        "bootstrap": meeting,
        "control": {"address": home.control},
        "datasets": {DATASET: {"schema": f"data/{data.SCHEMA_FILE}", "private": f"data/{data.PRIVATE_FILE}"}},
    }
    if not home.address:
        keys["relays"] = meeting
    if relayed and home is relay:
        keys["relay"] = {"serve": True}
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items())


def _bundle(authorities: Sequence[OrganizationCa], now: datetime) -> bytes:
    issued_ms = round(now.timestamp() * 1000)
    expires_ms = issued_ms + round(timedelta(days=_BUNDLE_DAYS).total_seconds() * 1000)
    raw = new_bundle("netlab", [ca.certificate_pem for ca in authorities], issued_ms=issued_ms, expires_ms=expires_ms)
    for ca in authorities:
        raw = sign_bundle(raw, ca)
    return raw


def _python_path() -> str:
    """Return the path on which a worker finds `bench`, and what this process was started with."""
    return os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])])
