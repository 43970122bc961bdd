"""Workers and reviews on a real Ray on this machine. Ray is not among the pinned packages: skipped without it.

Ray runs in processes of its own here, because it reads its environment when it is imported.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import trio

from comity.v1 import control_pb2 as pb
from comity_node.control.server import ControlServer, ServerLimits
from comity_node.control.workers import WorkerLimits, WorkerPool
from kit.working import Calling, Place, read, worker_place, workers_are, write

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed"),
    pytest.mark.timeout(240),
]
COINS = f"{Path(__file__).resolve().parents[2] / 'examples' / 'first-agent' / 'agent.py'}:agent"

DRIVER = """
import json, sys
from dataclasses import asdict
from comity.errors import ComityError
from comity.ray import serve_on_ray

try:
    report = serve_on_ray(sys.argv[1], sys.argv[2], maximum=3, idle_s=1.0, num_cpus=0.1, poll_s=0.1)
    print(json.dumps(asdict(report)))
except ComityError as error:
    print(error.diagnostics())
    sys.exit(1)
"""

STAGE = """
import json, sys
from comity.ray import local_ray, review_stage

with local_ray(2):
    import ray
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([{"heads": n} for n in (0, 1, 2)] * 20)
    scored = rows.map_batches(review_stage(sys.argv[1], min_score=1), batch_size=8).take_all()
    print(json.dumps([[row["heads"], row["review_score"], row["review_accepted"]] for row in scored]))
"""


class Handlers:
    """A node that says no more than how long its queues are."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    async def get_status(self, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(loads=[pb.SkillLoad(**asdict(each)) for each in self._pool.queues()])


@pytest.fixture
def place() -> Iterator[Place]:
    with worker_place() as place:
        yield place


@asynccontextmanager
async def node(place: Place) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool("mercy.example", limits=WorkerLimits(grace_s=120.0))
    limits = ServerLimits(drain_s=0.1)
    server = ControlServer(place.address, Handlers(pool), pool, limits=limits)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield pool
        nursery.cancel_scope.cancel()


def said_by(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=90)[0]


@pytest.mark.invariant("R3")
def test_actors_follow_the_queue_are_replaced_and_drain(place: Place) -> None:
    async def main() -> None:
        with trio.fail_after(200):
            async with node(place) as pool, trio.open_nursery() as nursery:
                driver = place.run([sys.executable, "-c", DRIVER, f"{place.agent}:agent", place.address])
                await workers_are(pool, 1)
                held = [{"started": place.fifo(f"s{n}"), "release": place.fifo(f"r{n}")} for n in range(3)]
                calls = [Calling(pool, nursery, "held", each) for each in held]
                pids = [int(await read(each["started"])) for each in held]
                assert len(set(pids)) == 3  # one call each: the queue made two more
                os.kill(pids[1], signal.SIGKILL)
                assert int(await read(held[1]["started"])) not in pids  # a new one has its work
                for each in held:
                    await write(each["release"], "go")
                for call in calls:
                    await call.over.wait()
                assert [call.result["told"] for call in calls] == ["go"] * 3
                assert pool.counters()["worker_losses"] == 1
                await workers_are(pool, 1)  # nothing to do: two have left
                assert (await pool.call("echo", "still", deadline_s=30))["input"] == "still"
                driver.terminate()
                said = await trio.to_thread.run_sync(said_by, driver)
                report = json.loads(said.splitlines()[-1])  # Ray prints what its actors log before it
                assert driver.returncode == 0
                assert (report["most"], report["replaced"], report["killed"]) == (3, 1, 0)
                assert report["work"]["done"] == 4
                assert report["work"]["unfinished"] == 0

    trio.run(main)


def test_an_agent_that_there_is_not_ends_it(place: Place) -> None:
    async def main() -> None:
        with trio.fail_after(100):
            async with node(place):
                driver = place.run([sys.executable, "-c", DRIVER, "nowhere:agent", place.address])
                assert "cannot import nowhere" in await trio.to_thread.run_sync(said_by, driver)
                assert driver.returncode == 1

    trio.run(main)


def test_rows_are_scored_in_a_pipeline() -> None:
    run = subprocess.run([sys.executable, "-c", STAGE, COINS], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    scored = json.loads(run.stdout.splitlines()[-1])
    assert len(scored) == 60
    assert sorted(map(tuple, scored))[::20] == [(0, 10_000, True), (1, 10_000, True), (2, 0, False)]
