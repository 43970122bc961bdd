"""Federated training in the demo: Flower's own processes on loopback, their traffic through the nodes' links.

The SuperLink runs at the first hospital, a SuperNode at every organization. Those of the others reach it only through
their own node's tunnel; the bad organization's trains on many synthetic rows with all labels flipped, and nothing else.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from comity.client import Client
from comity_node.demo import data
from comity_node.demo.ablation import poison
from comity_node.demo.homes import BAD, Home
from comity_node.demo.policies import DATASET
from comity_node.demo.training import app_directory
from comity_node.flower_processes import FlowerProcesses, app_digest
from comity_node.validators.schema import Schema

TUNNEL = "flower"
POISONED = "poisoned.parquet"
_VALIDATION_SHARE = 0.3
_TIMEOUT_S = 180.0
_PROBE_S = 20.0
_FORBIDDEN = 403


def train(
    homes: Sequence[Home], flower_home: Path, agreement: str, *, rounds: int, say: Callable[[str], None], seed: int
) -> dict[str, Any]:
    """Run `rounds` of federated training over real and certified rows; returns what the server app reported.

    Raises:
        AgentFailed, DeadlineExceeded, ControlError: Flower or a node did not do its part.
    """
    server, others = homes[0], homes[1:]
    schema = server.data / data.SCHEMA_FILE
    rows, held_out = _split_validation(server, seed)
    _poison(next(home for home in homes if home.organization == BAD), seed)
    result = flower_home / "result.json"
    with FlowerProcesses(flower_home) as flower:
        port = flower.start_superlink(
            environment={
                "COMITY_CONTROL": server.control,
                "TABULAR_SCHEMA": str(schema),
                "TABULAR_HELDOUT": str(held_out),
                "TABULAR_RESULT": str(result),
            }
        )
        say(f"SuperLink at {server.organization}, on loopback; its Fleet API is served through the links")
        ports = {server.organization: port, **_tunnels(server, others, port)}
        for home in homes:
            file = {BAD: POISONED}.get(home.organization, data.PRIVATE_FILE)
            private = rows if home is server else home.data / file
            environment = {
                "COMITY_CONTROL": home.control,
                "COMITY_FLOWER_SERVER": server.organization,
                "TABULAR_SCHEMA": str(home.data / data.SCHEMA_FILE),
                "TABULAR_ROWS": str(private),
                "TABULAR_CERTIFIED": "no" if home.organization == BAD else "yes",
                "OMP_NUM_THREADS": "1",
            }
            flower.start_supernode(home.organization, ports[home.organization], environment=environment, wait=False)
        flower.wait_healthy()
        say(f"{len(homes)} SuperNodes are up, {len(others)} of them through tunnels; training {rounds} rounds")
        finished = flower.run_app(
            app_directory(),
            {
                "members": len(homes),
                "num-server-rounds": rounds,
                "agreement": agreement,
                "dataset": DATASET,
                "federation": "demo",
            },
            timeout_s=_TIMEOUT_S,
        )
        control_status = _call_control(ports[others[0].organization])
        say(f"{others[0].organization} calls the SuperLink's Control API through its tunnel: HTTP {control_status}")
    report: dict[str, Any] = json.loads(result.read_text())
    report["control_api_through_tunnel"] = {"status": control_status, "refused": control_status == _FORBIDDEN}
    report["seconds"] = round(finished.seconds, 1)
    for number, one in enumerate(report["rounds"], 1):
        admitted = ", ".join(entry["organization"].split(".")[0] for entry in one["admitted"])
        refused = "; ".join(f"{e.get('organization') or '?'}: {', '.join(e['reasons'])}" for e in one["refused"])
        say(f"round {number}: admitted {admitted}" + (f"; refused {refused}" if refused else ""))
    return report


def _tunnels(server: Home, others: Sequence[Home], port: int) -> dict[str, int]:
    with Client(server.control) as client:
        client.serve_tunnel(TUNNEL, f"127.0.0.1:{port}")
    apps = [app_digest(app_directory())]
    ports = {}
    for home in others:
        with Client(home.control) as client:
            ports[home.organization] = client.open_tunnel(TUNNEL, server.organization, app_digests=apps)
    return ports


def _call_control(port: int) -> int:
    """Call Flower's Control API as somebody would who takes a tunnel for the SuperLink; returns the HTTP status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PROBE_S)
    try:
        connection.request(
            "POST", "/v1/control/list-runs", body=b"", headers={"Content-Type": "application/x-protobuf"}
        )
        return connection.getresponse().status
    finally:
        connection.close()


def _split_validation(server: Home, seed: int) -> tuple[Path, Path]:
    """Put a part of the server's own rows aside to score updates with; returns (training rows, validation rows)."""
    schema = Schema.load(server.data / data.SCHEMA_FILE)
    table = data.load_table(server.data / data.PRIVATE_FILE, schema)
    rng = np.random.default_rng([seed, 0xF1])
    order = rng.permutation(len(table))
    by_class = [order[table.labels[order] == label] for label in (0, 1)]
    aside = np.concatenate([index[: max(1, round(_VALIDATION_SHARE * len(index)))] for index in by_class])
    train_rows, held_out = server.data / "training.parquet", server.data / "validation.parquet"
    data.write_table(train_rows, table.take(np.setdiff1d(order, aside)))
    data.write_table(held_out, table.take(aside))
    return train_rows, held_out


def _poison(bad: Home, seed: int) -> None:
    """Write what the bad organization trains on."""
    schema = Schema.load(bad.data / data.SCHEMA_FILE)
    table = data.load_table(bad.data / data.PRIVATE_FILE, schema)
    data.write_table(bad.data / POISONED, poison(table, seed))
