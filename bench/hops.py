"""Hops between two nodes in processes of their own: signed, encrypted, decided on, journaled; the agents cost nothing.

    python -m bench.hops [--tasks 2000] [--turns 20] [--document 65536 [--whole]] [--directory /dev/shm]

Two homes are made on loopback. A workflow is a dialogue between them, so that every step crosses the border: a hop is
one token, from one node's agent to the other's. What is left out beside the agents' work is the way to them: both nodes
answer for their agents themselves. Reported are hops a second of wall time, from the first token until the last task
is over, the processor time of each node for a hop, and the bytes of messages for it, of both directions, with receipts.
With `--document` each task has a text of so many bytes; with `--whole` it goes over at every hop.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from comity.client import Client
from comity.ids import SpiffeId
from comity_node import config
from comity_node import node as composition
from comity_node.control.workers import ConnectedAgent, WorkerPool
from comity_node.runtime.passing import wired
from comity_node.runtime.passing.parting import Parting
from comity_node.runtime.passing.payloads import PayloadLimits

SKILLS = ("ask", "reply")
_WAIT_S = 60.0
_ALL = ("agreement.offer", "record.send", "agreement.accept", "record.receive", "agent.discover")


class Instant(WorkerPool):
    """Agents that answer at once, without a worker.

    Attributes:
        document: bytes of the text that a task gets with its first turn; 0: none.
    """

    document = 0

    def skills(self) -> tuple[str, ...]:
        """The two sides of the dialogue."""
        return SKILLS

    def agents(self) -> tuple[ConnectedAgent, ...]:
        """One agent for both."""
        return (ConnectedAgent(SpiffeId(self._organization, "agent", "instant"), SKILLS, 1, 0, 1),)

    async def call(self, skill: str, payload: Any, *, deadline_s: float) -> Any:  # noqa: ANN401  (JSON in, JSON out)
        """Answer."""
        return self.call_now(skill, payload)

    def call_now(self, skill: str, payload: Any) -> Any:  # noqa: ANN401  (JSON in, JSON out)
        """Count the turns."""
        if "rows" in payload:
            return {"rows": [self.call_now(skill, row) for row in payload["rows"]]}
        turns = payload["state"].get("turns", 0)
        made = {"document": secrets.token_hex(self.document // 2)} if self.document and not turns else {}
        return {"state": {"turns": turns + 1, **made}}


def serve(home: Path, document: int, *, whole: bool) -> None:
    """Run a node whose agents are instant."""
    vars(composition)["WorkerPool"] = Instant
    Instant.document = document
    if whole:
        vars(wired)["Parting"] = partial(Parting, PayloadLimits(cut_over=1 << 30))
    composition.run(config.load(home / config.FILE_NAME))


def flow(turns: int, document: int) -> dict[str, Any]:
    """A dialogue of so many turns, with a text of so many bytes beside it."""
    sides = [{"skill": "ask", "at": "home"}, {"skill": "reply", "at": "others"}]
    text = {"document": {"type": "string", "maxLength": document}} if document else {}
    written = ["turns", *text]
    talk = {"dialogue": sides, "reads": ["turns"], "writes": written, "turns": turns, "next": "end"}
    return {
        "state": {"type": "object", "properties": {"turns": {"type": "integer"}, **text}},
        "start": "talk",
        "steps": {"talk": talk},
        "limits": {"steps": turns + 1, "seconds": 3600},
        "finish": "none",
    }


def make_homes(directory: Path) -> list[Path]:
    """Make two homes of one consortium; the first listens, the second dials it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}"
    homes = [directory / "ada", directory / "bea"]
    bundle = directory / "bundle.json"
    peer = json.loads(_cli(homes[0], "--json", "init", "--organization", "ada.example", "--listen", address))["peer_id"]
    near = ("--listen", "none", "--bootstrap", f"{address}/p2p/{peer}")
    _cli(homes[1], "init", "--organization", "bea.example", *near)
    for home in homes:
        _cli(home, "cert", "request")
        _cli(home, "cert", "approve", str(home / "keys/node.csr.pem"))
        _cli(home, "cert", "install")
    _cli(homes[0], "consortium", "create", str(bundle), "--name", "hops")
    _cli(homes[0], "consortium", "add", str(bundle), str(homes[1] / "ca/ca.pem"))
    for step in ("sign", "install"):
        for home in homes:
            _cli(home, "consortium", step, str(bundle))
    for home in homes:
        _configure(home)
    return homes


def _configure(home: Path) -> None:
    rules = [
        f'  - {{id: {each.replace(".", "-")}, effect: allow, action: {each}, with: {{organization: "*"}},'
        " obligations: {onward: never}}"
        for each in _ALL
    ]
    text = "\n".join(["version: 1", f"organization: {home.name}.example", "rules:", *rules, ""])
    (home / "policy.yaml").write_text(text)
    fields = {"x": {"type": "number", "min": 0, "max": 1}, "label": {"type": "integer", "min": 0, "max": 1}}
    (home / "rows.json").write_text(json.dumps({"version": 1, "label": "label", "fields": fields}))
    settings = home / "node.yaml"
    settings.write_text(settings.read_text() + "\ndatasets:\n  rows: {schema: rows.json}\n")


def _cli(home: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "comity_node.cli", "--home", str(home), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    """Return the processor time of a process so far, user and system."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    homes: Sequence[Path], tasks: int, turns: int, document: int = 0, *, whole: bool = False
) -> dict[str, float]:
    """Run the dialogue and return what it cost."""
    command = [sys.executable, "-m", "bench.hops", "--document", str(document), *["--whole"] * whole, "--serve"]
    nodes = [subprocess.Popen([*command, str(home)], stderr=subprocess.DEVNULL) for home in homes]
    try:
        with Client(f"unix:{homes[0]}/run/control.sock") as ada, Client(f"unix:{homes[1]}/run/control.sock") as bea:
            ada.wait_ready(_WAIT_S)
            bea.wait_ready(_WAIT_S)
            workflow = {
                "name": "hops", "purpose": "bench", "dataset": "rows", "records_per_organization": tasks,
                "flow": flow(turns, document), "homes": "initiator",
            }  # fmt: skip
            workflow_id = ada.submit_workflow(workflow)
            while not sum(ada.workflow(workflow_id).journeys.values()):
                time.sleep(0.02)
            began, before = time.monotonic(), [cpu_s(node) for node in nodes]
            while ada.workflow(workflow_id).state == "running":
                time.sleep(0.25)
            wall, after = time.monotonic() - began, [cpu_s(node) for node in nodes]
            carried = sum(peer.bytes_sent + peer.bytes_received for peer in ada.peers())
            ended = dict(ada.workflow(workflow_id).journeys)
            if ended != {"completed": tasks}:
                raise RuntimeError(f"not all tasks came to their end: {ended}")
    finally:
        for node in nodes:
            node.terminate()
            node.wait()
    # A turn of each side; the last one, which is the second's, goes home with what came of it.
    hops = tasks * turns
    each = [1e6 * (end - start) / hops for start, end in zip(before, after, strict=True)]
    took = {"hops": hops, "wall_s": wall, "hops_per_s": hops / wall, "us_home": each[0], "us_other": each[1]}
    return {**took, "bytes_per_hop": carried / hops}


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--document", type=int, default=0, help="bytes of the text that a task is about (0)")
    parser.add_argument("--whole", action="store_true", help="have it go over at every hop")
    parser.add_argument(
        "--directory", type=Path, default=None, help="where the databases are (the temporary directory)"
    )
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve, arguments.document, whole=arguments.whole)
        return
    with tempfile.TemporaryDirectory(prefix="comity", dir=arguments.directory) as directory:
        homes, size = make_homes(Path(directory)), arguments.document
        print(json.dumps(measure(homes, arguments.tasks, arguments.turns, size, whole=arguments.whole)))


if __name__ == "__main__":
    main()
