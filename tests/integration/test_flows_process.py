"""A flow between two nodes in processes of their own, killed in the middle: nothing is lost or done twice."""

from __future__ import annotations

import json
import os
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
from kit.homes import Cli, mercy_and, ok, state_of
from kit.lab import policy

pytestmark = pytest.mark.slow

WAIT_S = 60
AGENT = """
import itertools
import time
from comity.agent import Agent

agent = Agent("steps")
numbers = itertools.count()


@agent.skill("draft")
def draft(work):
    return {"state": {"x": float(next(numbers))}}


@agent.skill("label")
def label(work):
    time.sleep(0.05)
    return {"state": {"label": int(work.input["state"]["x"]) % 2}}


@agent.skill("review")
def review(work):
    good = {"score": 9000, "axes": {"range": 9000}, "feedback": []}
    return {"reviews": [dict(good) for _ in work.input["records"]], "validator": "test"}
"""
FLOW: dict[str, Any] = {
    "state": {
        "type": "object",
        "properties": {"x": {"type": "number"}, "label": {"type": "integer"}},
    },
    "start": "draft",
    "steps": {
        "draft": {"skill": "draft", "at": "home", "writes": ["x"], "next": "label"},
        "label": {"skill": "label", "at": "others", "reads": ["x"], "writes": ["label"], "next": "end"},
    },
    "limits": {"seconds": 300},
}
TASKS = 40


def prepare(home: Path) -> None:
    """A policy that lets everything pass, a dataset and an agent."""
    fields = {"x": {"type": "number", "min": 0, "max": 1000}, "label": {"type": "integer", "min": 0, "max": 1}}
    (home / "rows.json").write_text(json.dumps({"version": 1, "label": "label", "fields": fields}))
    (home / "policy.yaml").write_text(policy(f"{home.name}.example"))
    config = home / "node.yaml"
    config.write_text(config.read_text() + "\ndatasets:\n  rows: {schema: rows.json}\n")
    (home / "steps_agent.py").write_text(AGENT)


@contextmanager
def process(*command: str, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    path = os.pathsep.join([str(home), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, "-m", *command], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    ) as one:
        try:
            yield one
        finally:
            one.kill()


def node(home: Path) -> Sequence[str]:
    return ("comity_node.cli", "--home", str(home), "node", "run", "--log-level", "error")


def worker(home: Path) -> Sequence[str]:
    return ("comity.worker", "steps_agent:agent", "--control", f"unix:{home}/run/control.sock", "--concurrency", "4")


def rows(home: Path, sql: str) -> list[Any]:
    (file,) = home.rglob("*.db")
    with closing(connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


def until(ready: Callable[[], bool], what: str) -> None:
    stop = time.monotonic() + WAIT_S
    while not ready():
        assert time.monotonic() < stop, what
        time.sleep(0.05)


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
def test_a_home_and_a_holder_that_are_killed_in_the_middle_of_a_flow_lose_nothing(cli: Cli) -> None:
    with tempfile.TemporaryDirectory(prefix="comity") as directory, ExitStack() as stack:
        homes = mercy_and(cli, Path(directory), "stlukes", options={})
        nodes = {}
        for name, home in homes.items():
            prepare(home)
            nodes[name] = stack.enter_context(process(*node(home), home=home))
        clients = {}
        for name, home in homes.items():
            clients[name] = stack.enter_context(Client(f"unix:{home}/run/control.sock"))
            clients[name].wait_ready(WAIT_S)
            stack.enter_context(process(*worker(home), home=home))
        state_of(clients["mercy"], "stlukes.example", lambda state, _: state == "connected")
        workflow = {
            "name": "steps", "purpose": "test", "dataset": "rows", "records_per_organization": TASKS,
            "batch_records": 8, "flow": FLOW, "homes": "initiator", "lease_seconds": 20,
        }  # fmt: skip
        workflow_id = clients["mercy"].submit_workflow(workflow)
        until(lambda: bool(rows(homes["stlukes"], "SELECT 1 FROM tokens_held LIMIT 1")), "stlukes holds a task")
        until(lambda: bool(rows(homes["mercy"], "SELECT 1 FROM journeys WHERE ending <> ''")), "a task is done")
        for name in ("stlukes", "mercy"):
            nodes[name].kill()
            nodes[name].wait(WAIT_S)
        assert rows(homes["mercy"], "SELECT 1 FROM journeys WHERE ending = ''"), "they were killed in the middle"
        for name, home in homes.items():
            stack.enter_context(process(*node(home), home=home))
            clients[name].wait_ready(WAIT_S)
        until(lambda: clients["mercy"].workflow(workflow_id).state == "done", "all tasks are over")
        shown = clients["mercy"].workflow(workflow_id)
        assert dict(shown.journeys) == {"done": TASKS}
        assert dict(shown.tasks) == {"certified": TASKS}
        made = rows(homes["mercy"], "SELECT state FROM journeys")
        assert len({json.loads(state)["x"] for (state,) in made}) == TASKS, "each was drafted once"
        text = ok(cli, homes["mercy"], "workflow", "status", workflow_id)
        assert f"done {TASKS}" in " ".join(text.split())
        code, _, err = cli("--home", homes["mercy"], "workflow", "cancel", workflow_id)
        assert (code, "is done" in err) == (1, True), err
        for home in homes.values():
            ok(cli, home, "audit", "verify")
