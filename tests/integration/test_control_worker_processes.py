"""Real worker processes on a real socket: what they do wrong, how they die, leave and come back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from comity.errors import AgentFailed, NoWorker
from comity.v1 import control_pb2 as pb
from kit.working import AGENT, Calling, Place, ended, node, read, worker_place, workers_are, write


@pytest.fixture
def place() -> Iterator[Place]:
    with worker_place() as place:
        yield place


def test_a_worker_that_raises_returns_the_wrong_type_or_exits_goes_on(place: Place) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with node(place) as pool:
                process = place.start()
                first = await pool.call("echo", {"n": 1}, deadline_s=30)
                assert first == {"pid": process.pid, "input": {"n": 1}}
                for skill, said in {
                    "raise": "agent 'tester', skill 'raise': ValueError: I do not like this one",
                    "wrong-type": r"skill 'wrong-type': result\['records'\]\[1\]\['age'\] is a set",
                    "exit": "skill 'exit': SystemExit: 3",
                }.items():
                    with pytest.raises(AgentFailed, match=said):
                        await pool.call(skill, None, deadline_s=30)
                assert (await pool.call("echo", 2, deadline_s=30))["pid"] == process.pid
                process.terminate()
                status, log = await trio.to_thread.run_sync(ended, process)
                assert status == 0
                assert "ValueError: I do not like this one" in log  # with the traceback, where its author looks
                assert "their_agent.py" in log
                last = log.splitlines()[-1]
                assert last.startswith("comity worker tester: 2 done, 3 failed, 0 cancelled, 0 left unfinished")

    trio.run(main)


@pytest.mark.invariant("R3")
def test_work_of_a_killed_worker_is_done_by_the_next(place: Place) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with node(place) as pool, trio.open_nursery() as nursery:
                processes = {place.start().pid, place.start().pid}
                await workers_are(pool, 2)
                call = Calling(pool, nursery, "held", place.held)
                first = int(await read(place.started))
                os.kill(first, signal.SIGKILL)
                second = int(await read(place.started))
                assert {first, second} == processes
                await write(place.release, "go")
                await call.over.wait()
                assert call.result == {"pid": second, "told": "go"}
                assert pool.counters()["worker_losses"] == 1

    trio.run(main)


@pytest.mark.invariant("R3")
def test_a_killed_worker_may_be_replaced_later(place: Place) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with node(place) as pool, trio.open_nursery() as nursery:
                place.start()
                call = Calling(pool, nursery, "held", place.held)
                os.kill(int(await read(place.started)), signal.SIGKILL)
                await workers_are(pool, 0)
                replacement = place.start()
                assert int(await read(place.started)) == replacement.pid
                await write(place.release, "go")
                await call.over.wait()

    trio.run(main)


def test_a_worker_comes_back_when_the_node_does(place: Place) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            process = place.start()  # before there is a node: it tries until there is one
            for _ in range(3):
                async with node(place) as pool:
                    assert (await pool.call("echo", None, deadline_s=30))["pid"] == process.pid

    trio.run(main)


@pytest.mark.invariant("R4")
def test_a_worker_gets_no_more_than_it_asked_for(place: Place) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with node(place) as pool, trio.open_nursery() as nursery:
                place.start("--concurrency", "2")
                for _ in range(4):
                    Calling(pool, nursery, "held", place.held)
                await read(place.started)
                (agent,) = pool.agents()
                assert (agent.running, agent.credits) == (2, 0)
                nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.parametrize(("skill", "what"), [("until-cancelled", "thread"), ("until-cancelled-async", "task")])
def test_a_cancelled_call_reaches_the_skill(place: Place, skill: str, what: str) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with node(place) as pool, trio.open_nursery() as nursery:
                place.start("--concurrency", "1")
                call = Calling(pool, nursery, skill, {"started": place.started, "stopped": place.stopped})
                await read(place.started)
                call.scope.cancel()
                assert await read(place.stopped) == what
                assert (await pool.call("echo", "again", deadline_s=30))["input"] == "again"  # its credit came back

    trio.run(main)


@pytest.mark.invariant("R5")
def test_a_worker_told_to_stop_finishes_what_it_holds(place: Place) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with node(place, grace_s=0.0) as pool, trio.open_nursery() as nursery:
                process = place.start("--concurrency", "2")
                await workers_are(pool, 1)
                call = Calling(pool, nursery, "held", place.held)
                await read(place.started)
                changed = pool.changed
                process.terminate()
                await changed.wait()  # it said that it leaves
                with pytest.raises(NoWorker):
                    await pool.call("echo", None, deadline_s=5)
                await write(place.release, "finish")
                await call.over.wait()
                assert call.result["told"] == "finish"
                status, log = await trio.to_thread.run_sync(ended, process)
                assert (status, log.splitlines()[-1]) == (
                    0,
                    "comity worker tester: 1 done, 0 failed, 0 cancelled, 0 left unfinished, 1 connection(s)",
                )

    trio.run(main)


def test_a_worker_told_twice_leaves_at_once_and_says_what_it_left(place: Place) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with node(place) as pool, trio.open_nursery() as nursery:
                process = place.start()
                await workers_are(pool, 1)
                Calling(pool, nursery, "held", place.held)
                await read(place.started)
                changed = pool.changed
                process.send_signal(signal.SIGINT)
                await changed.wait()
                process.send_signal(signal.SIGINT)
                status, log = await trio.to_thread.run_sync(ended, process)
                assert status == 1
                assert "1 left unfinished" in log.splitlines()[-1]
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_worker_that_hangs_holds_nobody_else_up(place: Place) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with node(place) as pool:
                processes = [place.start("--concurrency", "64") for _ in range(2)]
                await workers_are(pool, 2)
                seen: set[int] = set()
                while len(seen) < 2:  # both have granted their credits
                    seen.add((await pool.call("echo", None, deadline_s=30))["pid"])
                processes[0].send_signal(signal.SIGSTOP)
                answers: list[int] = []

                async def call() -> None:
                    with contextlib.suppress(AgentFailed):  # those that the stopped one got
                        answers.append((await pool.call("echo", "x" * 100_000, deadline_s=1))["pid"])

                async with trio.open_nursery() as nursery:
                    for _ in range(40):
                        nursery.start_soon(call)
                assert answers == [processes[1].pid] * len(answers)
                assert len(answers) == 20

    trio.run(main)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere:agent"], "error: cannot import nowhere: No module named 'nowhere'"),
        (["/nowhere/agent.py:agent"], "error: there is no file /nowhere/agent.py"),
        (["no-colon"], "error: 'no-colon' does not name an agent: write module:agent or path/to/file.py:agent"),
        (["json:loads"], "error: json has a function, not an Agent, as loads"),
        (["json:agent"], "error: json has no agent"),
        (["json:agent", "--concurrency", "0"], "--concurrency must be at least 1"),
        (["json:agent", "--tls-key", "k"], "--tls-key, --tls-certificate and --tls-ca belong together"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "comity.worker", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].endswith(said)
    assert "Traceback" not in run.stderr


def test_without_an_address_it_says_what_to_do(place: Place) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "COMITY_CONTROL"}
    command = [sys.executable, "-m", "comity.worker", f"{place.agent}:agent"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (run.returncode, run.stderr) == (
        1,
        "error: no control address is given (pass one (unix:/path/to/socket or host:port), or set COMITY_CONTROL)\n",
    )


def test_a_worker_that_the_node_refuses_does_not_try_again(place: Place) -> None:
    place.agent.write_text(AGENT + "\nfor n in range(70):\n    agent.skill(f's{n}')(lambda work: None)\n")

    async def main() -> None:
        with trio.fail_after(60):
            async with node(place):
                status, log = await trio.to_thread.run_sync(ended, place.start())
                assert status == 1
                assert log.splitlines()[-1] == "error: a worker offers 1 to 64 skills, not 77"

    trio.run(main)


def test_help_says_how(place: Place) -> None:
    run = subprocess.run([sys.executable, "-m", "comity.worker", "--help"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0
    for word in ("MODULE:AGENT", "--control", "--concurrency", "$COMITY_CONTROL", "example:"):
        assert word in run.stdout


def test_handlers_protocol_names_every_rpc() -> None:
    from comity_node.control.handlers import ControlHandlers

    methods = [method.name for method in pb.DESCRIPTOR.services_by_name["ControlService"].methods]
    handled = [name.title().replace("_", "") for name in vars(ControlHandlers) if not name.startswith("_")]
    assert handled == methods
