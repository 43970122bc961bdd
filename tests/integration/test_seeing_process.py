"""What a person sees of three nodes in processes of their own while a flow runs: top, tasks, metrics and spans."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from comity.client import Client
from comity_node.tracing import trace_id_of
from kit.homes import Cli, free_port, mercy_and, ok, state_of
from kit.lab import policy

pytestmark = pytest.mark.slow

WAIT_S = 60
TASKS = 24
AGENT = """
import itertools
import time
from pathlib import Path
from comity.agent import Agent

SEEN = Path(__file__).parent / "seen"
agent = Agent("steps")
numbers = itertools.count()


@agent.skill("draft")
def draft(work):
    return {"state": {"x": 123.456 + next(numbers)}}


@agent.skill("label")
def label(work):
    until = time.monotonic() + 15
    while not SEEN.exists() and time.monotonic() < until:  # `comity top` is to see the work under way
        time.sleep(0.05)
    return {"state": {"label": int(work.input["state"]["x"]) % 2}}


@agent.skill("review")
def review(work):
    good = {"score": 9000, "axes": {"range": 9000}, "feedback": []}
    return {"reviews": [dict(good) for _ in work.input["records"]], "validator": "test"}
"""
FLOW: dict[str, Any] = {
    "state": {"type": "object", "properties": {"x": {"type": "number"}, "label": {"type": "integer"}}},
    "start": "draft",
    "steps": {
        "draft": {"skill": "draft", "at": "home", "writes": ["x"], "next": "label"},
        "label": {"skill": "label", "at": "others", "reads": ["x"], "writes": ["label"], "next": "end"},
    },
    "limits": {"seconds": 300},
}


class Collector:
    """An OTLP/HTTP receiver on loopback, for all three organizations: only a test puts them together."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    @contextmanager
    def running(self) -> Iterator[str]:
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()

    def organizations(self, task: bytes) -> set[str]:
        """Who has sent spans of a task."""
        found = set()
        for body in list(self.bodies):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                said = {each.key: each.value.string_value for each in resource.resource.attributes}
                spans = [span for scope in resource.scope_spans for span in scope.spans]
                if any(span.trace_id == trace_id_of(task).to_bytes(16, "big") for span in spans):
                    found.add(said["comity.organization"])
        return found


def prepare(home: Path, endpoint: str, metrics: int) -> None:
    fields = {"x": {"type": "number", "min": 0, "max": 1000}, "label": {"type": "integer", "min": 0, "max": 1}}
    (home / "rows.json").write_text(json.dumps({"version": 1, "label": "label", "fields": fields}))
    (home / "policy.yaml").write_text(policy(f"{home.name}.example"))
    config = home / "node.yaml"
    more = [
        "datasets:", "  rows: {schema: rows.json}", "telemetry:", f'  traces: {{endpoint: "{endpoint}"}}',
        f'metrics: {{listen: "127.0.0.1:{metrics}"}}', "",
    ]  # fmt: skip
    config.write_text("\n".join([config.read_text(), *more]))
    (home / "steps_agent.py").write_text(AGENT)


@contextmanager
def process(*command: str, home: Path) -> Iterator[None]:
    path = os.pathsep.join([str(home), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, "-m", *command], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    ) as one:
        try:
            yield
        finally:
            one.kill()


def node(home: Path) -> Sequence[str]:
    return ("comity_node.cli", "--home", str(home), "node", "run", "--log-level", "error")


def worker(home: Path) -> Sequence[str]:
    return ("comity.worker", "steps_agent:agent", "--control", f"unix:{home}/run/control.sock", "--concurrency", "2")


def until(ready: Callable[[], bool], what: str) -> None:
    stop = time.monotonic() + WAIT_S
    while not ready():
        assert time.monotonic() < stop, what
        time.sleep(0.05)


def test_top_tasks_metrics_and_spans_tell_of_a_flow_between_three_nodes(cli: Cli) -> None:
    collector = Collector()
    with tempfile.TemporaryDirectory(prefix="comity") as directory, ExitStack() as stack:
        endpoint = stack.enter_context(collector.running())
        homes = mercy_and(cli, Path(directory), "stlukes", "hope", options={})
        ports = {name: free_port() for name in homes}
        clients = {}
        for name, home in homes.items():
            prepare(home, endpoint, ports[name])
            stack.enter_context(process(*node(home), home=home))
        for name, home in homes.items():
            clients[name] = stack.enter_context(Client(f"unix:{home}/run/control.sock"))
            clients[name].wait_ready(WAIT_S)
            stack.enter_context(process(*worker(home), home=home))
        for other in ("stlukes", "hope"):
            state_of(clients["mercy"], f"{other}.example", lambda state, _: state == "connected")
        workflow = {
            "name": "steps", "purpose": "test", "dataset": "rows", "records_per_organization": TASKS,
            "batch_records": 8, "flow": FLOW, "homes": "initiator", "lease_seconds": 20, "minimum_participants": 3,
        }  # fmt: skip
        workflow_id = clients["mercy"].submit_workflow(workflow)
        until(lambda: bool(clients["mercy"].workflow(workflow_id).holders), "somebody has a task")
        seen = ok(cli, homes["mercy"], "top", "--once", "--interval", "0.5")
        for said in ("spiffe://mercy.example/node/", "stlukes.example", workflow_id, "label", "closed", "audit log"):
            assert said in seen
        for home in homes.values():
            (home / "seen").touch()
        until(lambda: clients["mercy"].workflow(workflow_id).state == "done", "all tasks are over")
        listed = json.loads(ok(cli, homes["mercy"], "tasks", "list", "--workflow", workflow_id, "--json"))
        assert [each["state"] for each in listed["tasks"]] == ["certified"] * TASKS
        task = listed["tasks"][0]["task_id"]
        shown = ok(cli, homes["mercy"], "tasks", "show", task[:8])
        assert "all of them verify" in shown
        assert "task.certified" in shown
        assert "123.456" not in shown
        with urllib.request.urlopen(f"http://127.0.0.1:{ports['mercy']}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
        assert f'comity_tasks{{state="certified"}} {TASKS}.0' in metrics
        assert f'comity_journeys{{state="done"}} {TASKS}.0' in metrics
        assert 'comity_agent_call_seconds_count{skill="draft"}' in metrics
        assert 'comity_hops_total{way="out"}' in metrics
        ways = [bytes.fromhex(each["task_id"]) for each in listed["tasks"]]
        until(lambda: any(len(collector.organizations(way)) == 2 for way in ways), "two organizations tell of one task")
        assert not any(b"123.456" in body for body in collector.bodies)
        if folder := os.environ.get("COMITY_SEEN"):
            for name, text in (("top", seen), ("show", shown), ("metrics", metrics)):
                (Path(folder) / name).write_text(text)
            (Path(folder) / "list").write_text(ok(cli, homes["mercy"], "tasks", "list", "--limit", "6"))
