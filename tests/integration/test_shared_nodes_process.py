"""Two nodes of one organization, in processes of their own over real links, share a flow; one is killed for good."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from sqlite3 import connect
from typing import Any

import pytest

from comity.client import Client
from kit.homes import Cli, mercy_and, ok
from kit.lab import policy

pytestmark = pytest.mark.slow

WAIT_S = 60
TASKS = 60
AGENT = """
import os
import time
from comity.agent import Agent

agent = Agent("steps")
NODE = int(os.environ["STEPS_NODE"])


@agent.skill("ask")
def ask(work):
    return {"state": {"asked": work.input["state"].get("asked", 0) + 1}}


@agent.skill("reply")
def reply(work):
    time.sleep(0.15)
    return {"state": {"replies": [*work.input["state"].get("replies", []), NODE]}}
"""
FLOW: dict[str, Any] = {
    "state": {
        "type": "object",
        "properties": {
            "asked": {"type": "integer"},
            "replies": {"type": "array", "items": {"type": "integer"}, "maxItems": 8},
        },
    },
    "start": "talk",
    "steps": {
        "talk": {
            "dialogue": [{"skill": "ask", "at": "home"}, {"skill": "reply", "at": "others"}],
            "reads": ["asked", "replies"], "writes": ["asked", "replies"], "turns": 4, "next": "end",
        }
    },
    "limits": {"seconds": 300},
    "finish": "none",
}  # fmt: skip


def prepare(home: Path) -> None:
    """A policy that lets everything pass, a dataset and an agent."""
    fields = {"x": {"type": "number", "min": 0, "max": 1000}, "label": {"type": "integer", "min": 0, "max": 1}}
    (home / "rows.json").write_text(json.dumps({"version": 1, "label": "label", "fields": fields}))
    (home / "policy.yaml").write_text(policy(f"{home.name.partition('-')[0]}.example"))
    config = home / "node.yaml"
    config.write_text(config.read_text() + "\ndatasets:\n  rows: {schema: rows.json}\n")
    (home / "steps_agent.py").write_text(AGENT)


def second_node(cli: Cli, directory: Path, first: Path) -> Path:
    """Make the home of another node of the first one's organization, as docs/scaling.md says."""
    home, config = directory / f"{first.name}-2", (first / "node.yaml").read_text()
    bootstrap = re.findall(r"/ip4/127\.0\.0\.1/tcp/\d+/p2p/\w+", config)[-1]
    options = ("--organization", f"{first.name}.example", "--node", "n2", "--listen", "none", "--no-ca")
    ok(cli, home, "init", *options, "--bootstrap", bootstrap)
    ok(cli, home, "cert", "request")
    ok(cli, first, "cert", "approve", home / "keys/node.csr.pem")
    ok(cli, home, "cert", "install")
    (bundle,) = directory.glob("*.json")
    ok(cli, home, "consortium", "install", bundle)
    return home


@contextmanager
def process(*command: str, home: Path, number: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    path = os.pathsep.join([str(home), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "STEPS_NODE": str(number)}
    with subprocess.Popen([sys.executable, "-m", *command], env=environment) as one:
        try:
            yield one
        finally:
            one.kill()


def node(home: Path) -> Sequence[str]:
    return ("comity_node.cli", "--home", str(home), "node", "run", "--log-level", "error")


def worker(home: Path) -> Sequence[str]:
    return ("comity.worker", "steps_agent:agent", "--control", f"unix:{home}/run/control.sock", "--concurrency", "4")


def held(home: Path) -> int:
    (file,) = home.rglob("*.db")
    with closing(connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM tokens_held").fetchone()[0])


def ended(home: Path) -> list[tuple[str, str]]:
    (file,) = home.rglob("*.db")
    with closing(connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT ending, state FROM journeys WHERE ending <> ''").fetchall()


def until(ready: Callable[[], bool], what: str) -> None:
    stop = time.monotonic() + WAIT_S
    while not ready():
        assert time.monotonic() < stop, what
        time.sleep(0.05)


@pytest.mark.invariant("R2")
@pytest.mark.invariant("R3")
def test_two_nodes_of_an_organization_share_a_flow_and_when_one_is_killed_the_other_ends_it(cli: Cli) -> None:
    with tempfile.TemporaryDirectory(prefix="comity") as directory, ExitStack() as stack:
        homes = mercy_and(cli, Path(directory), "hope", options={})
        homes["hope-2"] = second_node(cli, Path(directory), homes["hope"])
        nodes, clients = {}, {}
        for number, (name, home) in enumerate(homes.items()):
            prepare(home)
            nodes[name] = stack.enter_context(process(*node(home), home=home))
            clients[name] = stack.enter_context(Client(f"unix:{home}/run/control.sock"))
            clients[name].wait_ready(WAIT_S)
            stack.enter_context(process(*worker(home), home=home, number=number))
        mercy = clients["mercy"]
        until(lambda: sum(each.state == "connected" for each in mercy.peers()) == 2, "both are linked")
        workflow = {
            "name": "talk", "purpose": "test", "dataset": "rows", "records_per_organization": TASKS,
            "flow": FLOW, "homes": "initiator", "lease_seconds": 5,
        }  # fmt: skip
        workflow_id = mercy.submit_workflow(workflow)
        until(lambda: len(ended(homes["mercy"])) > TASKS // 6, "some tasks are done")
        assert len(ended(homes["mercy"])) < TASKS, "it is killed in the middle"
        until(lambda: held(homes["hope-2"]) > 0, "the second node holds a task")
        nodes["hope-2"].kill()
        nodes["hope-2"].wait(WAIT_S)
        until(lambda: mercy.workflow(workflow_id).state != "running", "all tasks are over")
        assert dict(mercy.workflow(workflow_id).journeys) == {"completed": TASKS}
        replies = [json.loads(state)["replies"] for _, state in ended(homes["mercy"])]
        assert all(len(each) == 2 for each in replies), "each was asked and answered in turn"
        assert {number for each in replies for number in each} == {1, 2}, "both have worked"
