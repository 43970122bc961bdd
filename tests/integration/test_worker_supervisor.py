"""`--processes`: a supervisor, its processes, and what happens when they or it are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from comity_node.control.workers import WorkerPool
from kit.working import AGENT, Calling, Place, ended, node, read, worker_place, workers_are, write

#: A process that has no work yet dies when it gets some.
DIES = AGENT + '\n@agent.skill("die")\ndef die(work: Work):\n    os._exit(9)\n'
DIES_AT_ONCE = AGENT + "\nos._exit(7)\n"


@pytest.fixture
def place() -> Iterator[Place]:
    with worker_place() as place:
        yield place


async def pids(pool: WorkerPool, count: int) -> set[int]:
    """The processes that answer, when there are `count`."""
    await workers_are(pool, count)
    found: set[int] = set()
    while len(found) < count:
        found.add((await pool.call("echo", None, deadline_s=30))["pid"])
    return found


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.invariant("R3")
def test_a_killed_process_is_replaced_and_its_work_is_done(place: Place) -> None:
    async def main() -> None:
        with trio.fail_after(90):
            async with node(place) as pool, trio.open_nursery() as nursery:
                supervisor = place.start("--processes", "2", "--concurrency", "1")
                before = await pids(pool, 2)
                assert supervisor.pid not in before
                call = Calling(pool, nursery, "held", place.held)
                first = int(await read(place.started))
                os.kill(first, signal.SIGKILL)
                assert int(await read(place.started)) in before - {first}  # the other one has it now
                await workers_are(pool, 2)
                after = {(await pool.call("echo", None, deadline_s=30))["pid"]}  # the other one is busy
                assert len(after - before) == 1
                await write(place.release, "go")
                await call.over.wait()
                assert call.result["told"] == "go"
                assert pool.counters()["worker_losses"] == 1
                done = pool.counters()["worker_calls"]
                supervisor.terminate()
                status, log = await trio.to_thread.run_sync(ended, supervisor)
                assert status == 0
                last = log.splitlines()[-1]
                assert last.startswith("comity worker tester, 2 processes: ")
                assert last.endswith("1 restart(s)")
                assert "killed by SIGKILL" in log
                assert int(last.split(": ")[1].split(" done")[0]) <= done  # what the killed one did, nobody says
                assert all(gone(pid) for pid in before | after)

    trio.run(main)


@pytest.mark.invariant("R5")
def test_a_supervisor_told_to_stop_lets_its_processes_finish(place: Place) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with node(place, grace_s=0.0) as pool, trio.open_nursery() as nursery:
                supervisor = place.start("--processes", "2", "--concurrency", "1")
                await workers_are(pool, 2)
                call = Calling(pool, nursery, "held", place.held)
                await read(place.started)
                supervisor.terminate()
                await workers_are(pool, 1)  # the idle one is gone
                assert supervisor.poll() is None
                await write(place.release, "finish")
                await call.over.wait()
                assert call.result["told"] == "finish"
                status, log = await trio.to_thread.run_sync(ended, supervisor)
                assert (status, log.splitlines()[-1]) == (
                    0,
                    "comity worker tester, 2 processes: 1 done, 0 failed, 0 cancelled, 0 left unfinished, "
                    "2 connection(s), 0 restart(s)",
                )

    trio.run(main)


@pytest.mark.invariant("R5")
def test_a_stop_that_reaches_every_process_besides_is_one_stop(place: Place) -> None:
    """systemd stops a unit so (KillMode=control-group): the supervisor's own word comes second then."""

    async def main() -> None:
        with trio.fail_after(60):
            async with node(place, grace_s=0.0) as pool, trio.open_nursery() as nursery:
                supervisor = place.start("--processes", "2", "--concurrency", "1")
                await workers_are(pool, 2)
                call = Calling(pool, nursery, "held", place.held)
                busy = int(await read(place.started))
                supervisor.terminate()
                await workers_are(pool, 1)  # the idle one is gone
                os.kill(busy, signal.SIGTERM)
                with trio.move_on_after(1):  # it would be gone by then
                    await workers_are(pool, 0)
                assert not gone(busy)
                await write(place.release, "finish")
                await call.over.wait()
                assert call.result["told"] == "finish"
                assert (await trio.to_thread.run_sync(ended, supervisor))[0] == 0
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_supervisor_told_twice_leaves_at_once(place: Place) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with node(place) as pool, trio.open_nursery() as nursery:
                supervisor = place.start("--processes", "2", "--concurrency", "1")
                await workers_are(pool, 2)
                Calling(pool, nursery, "held", place.held)
                await read(place.started)
                supervisor.send_signal(signal.SIGINT)
                await workers_are(pool, 1)
                supervisor.send_signal(signal.SIGINT)
                status, log = await trio.to_thread.run_sync(ended, supervisor)
                assert status == 1
                assert "1 left unfinished" in log.splitlines()[-1]
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_processes_leave_when_their_supervisor_is_killed(place: Place) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with node(place) as pool, trio.open_nursery() as nursery:
                supervisor = place.start("--processes", "2", "--concurrency", "1")
                await workers_are(pool, 2)
                call = Calling(pool, nursery, "held", place.held)
                await read(place.started)
                supervisor.kill()
                await workers_are(pool, 1)
                await write(place.release, "finish")  # what it held it finished all the same
                await call.over.wait()
                await workers_are(pool, 0)

    trio.run(main)


def test_a_process_that_dies_at_once_again_and_again_ends_the_supervisor(place: Place) -> None:
    place.agent.write_text(DIES_AT_ONCE)
    status, log = ended(place.start("--processes", "2"))
    assert status == 1
    assert log.splitlines()[-1] == (
        "error: 5 worker processes died at once, one after another; the last: exit status 7"
    )


def test_work_that_kills_its_process_is_given_up_and_the_rest_goes_on(place: Place) -> None:
    place.agent.write_text(DIES)

    async def main() -> None:
        with trio.fail_after(60):
            async with node(place, retries=1) as pool:
                place.start("--processes", "2", "--concurrency", "1")
                await workers_are(pool, 2)
                with pytest.raises(Exception, match="2 workers died with this work"):
                    await pool.call("die", None, deadline_s=30)
                assert len(await pids(pool, 2)) == 2

    trio.run(main)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nowhere:agent", "--processes", "2"], 2, "error: cannot import nowhere: No module named 'nowhere'"),
        (["json:agent", "--processes", "0"], 2, "--processes must be at least 1"),
        (["json:agent", "--processes", "257"], 2, "error: 257 processes cannot be kept up, only 1 to 256"),
        (["json:agent", "--drain", "nan"], 2, "--drain must be a number of seconds"),
        (["json:agent", "--supervised", "0"], 2, "error: --supervised is for the processes of --processes alone"),
    ],
)
def test_what_cannot_be_kept_up_is_one_line(arguments: list[str], status: int, said: str) -> None:
    command = [sys.executable, "-m", "comity.worker", *arguments, "--control", "unix:/nowhere/s"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert run.returncode == status
    assert said in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr


def test_a_supervisor_that_the_node_refuses_says_why(place: Place) -> None:
    place.agent.write_text(AGENT + "\nfor n in range(70):\n    agent.skill(f's{n}')(lambda work: None)\n")

    async def main() -> None:
        with trio.fail_after(60):
            async with node(place):
                status, log = await trio.to_thread.run_sync(ended, place.start("--processes", "2"))
                assert status == 1
                assert log.splitlines()[-1] == "error: a worker offers 1 to 64 skills, not 77"

    trio.run(main)


def test_comity_worker_does_the_same(place: Place) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with node(place) as pool:
                command = [sys.executable, "-m", "comity_node.cli", "--json", "worker", f"{place.agent}:agent"]
                command += ["--processes", "2", "--control", place.address]
                run = place.run(command)
                await workers_are(pool, 2)
                run.terminate()
                said = await trio.to_thread.run_sync(lambda: run.communicate(timeout=20)[0])
                assert run.returncode == 0
                answer = json.loads(said)
                assert (answer["agent"], answer["processes"], answer["work"]["unfinished"]) == ("tester", 2, 0)

    trio.run(main)
