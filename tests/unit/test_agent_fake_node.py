"""The harness that users test their workers with, which is a test of the worker in one process, too."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from comity.agent import Agent, Work
from comity.errors import AgentFailed, ConfigError, ControlError, NoWorker, WorkerLost
from comity.testing import FakeNode
from comity.worker import Stop, load_agent, serve_async


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode() as node:
        yield node


def echo_agent() -> Agent:
    agent = Agent("echo")
    agent.skill("echo")(lambda work: {"got": work.input})
    return agent


def test_a_worker_serves_and_comes_back(node: FakeNode) -> None:
    with node.serving(echo_agent()):
        assert node.skills == ("echo",)
        assert node.call("echo", [1, {"a": None}]) == {"got": [1, {"a": None}]}
        node.drop_workers()
        assert node.call("echo", 2) == {"got": 2}
    assert not node.skills


def test_failures_reach_the_caller(node: FakeNode) -> None:
    agent = Agent("bad")

    @agent.skill("raise")
    def raises(work: Work) -> None:
        raise ValueError("no")

    @agent.skill("nan")
    async def nan(work: Work) -> float:
        return float("nan")

    with node.serving(agent):
        with pytest.raises(AgentFailed, match="agent 'bad', skill 'raise': ValueError: no"):
            node.call("raise")
        with pytest.raises(AgentFailed, match="agent 'bad', skill 'nan': result is nan"):
            node.call("nan")
        with pytest.raises(NoWorker, match=r"'sing' within 0\.01 s"):
            node.call("sing", timeout_s=0.01)
    with pytest.raises(NoWorker):
        node.wait_for_skill("raise", timeout_s=0.01)


def test_a_dropped_connection_cancels_what_ran(node: FakeNode) -> None:
    begun, told = threading.Event(), threading.Event()
    agent = Agent("slow")

    @agent.skill("slow")
    async def slow(work: Work) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            told.set()

    with node.serving(agent), ThreadPoolExecutor(1) as caller:
        lost = caller.submit(node.call, "slow")
        assert begun.wait(10)
        node.drop_workers()
        with pytest.raises(WorkerLost):
            lost.result(timeout=10)
        assert told.wait(10)


def test_a_thread_that_is_busy_from_before_is_not_granted_twice(node: FakeNode) -> None:
    begun, release = threading.Event(), threading.Event()
    agent = Agent("busy")

    @agent.skill("block")
    def block(work: Work) -> str:
        begun.set()
        release.wait(20)
        return "done"

    agent.skill("echo")(lambda work: work.input)
    with node.serving(agent, concurrency=1), ThreadPoolExecutor(1) as caller:
        lost = caller.submit(node.call, "block")
        assert begun.wait(10)
        node.drop_workers()
        with pytest.raises(WorkerLost):
            lost.result(timeout=10)
        node.wait_for_skill("echo")  # it is back, but its only thread is still busy: no credit
        with pytest.raises(NoWorker):
            node.call("echo", 1, timeout_s=0.3)
        release.set()
        assert node.call("echo", 2, timeout_s=10) == 2


def test_a_call_that_takes_too_long_is_cancelled_and_its_place_comes_back(node: FakeNode) -> None:
    agent = Agent("slow")

    @agent.skill("slow")
    async def slow(work: Work) -> str:
        if work.input == "wait":
            await asyncio.Event().wait()
        return "quick"

    with node.serving(agent, concurrency=1):
        with pytest.raises(AgentFailed, match=r"took longer than 0\.1 s"):
            node.call("slow", "wait", timeout_s=0.1)
        assert node.call("slow", "go", timeout_s=10) == "quick"


def test_the_report_counts(node: FakeNode) -> None:
    agent = echo_agent()

    @agent.skill("raise")
    def raises(work: Work) -> None:
        raise ValueError("no")

    async def main() -> str:
        stop = Stop()
        worker = asyncio.ensure_future(serve_async(agent, node.address, stop=stop, concurrency=2))
        await asyncio.to_thread(node.call, "echo", 1)
        with pytest.raises(AgentFailed):
            await asyncio.to_thread(node.call, "raise", 1)
        stop.leave()
        return str(await worker)

    expected = "1 done, 1 failed, 0 cancelled, 0 left unfinished, 1 connection(s)"
    assert asyncio.run(main()) == expected


def test_backing_off_spreads_and_grows(tmp_path: Path) -> None:
    ranges: list[tuple[float, float]] = []

    async def main() -> None:
        stop = Stop()

        def uniform(low: float, high: float) -> float:
            ranges.append((low, high))
            if len(ranges) == 8:
                stop.now()
            return 0.0

        await serve_async(echo_agent(), f"unix:{tmp_path}/nobody", stop=stop, uniform=uniform)

    asyncio.run(main())
    highs = [high for _, high in ranges]
    assert highs == sorted(highs)
    assert (highs[0], highs[-1]) == (0.4, 5.0)


def test_a_cancelled_worker_ends(node: FakeNode) -> None:
    async def main() -> None:
        worker = asyncio.ensure_future(serve_async(echo_agent(), node.address))
        await asyncio.to_thread(node.wait_for_skill, "echo")
        worker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await worker

    asyncio.run(main())


def test_no_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMITY_CONTROL", raising=False)
    with pytest.raises(ControlError, match="no control address"):
        asyncio.run(serve_async(echo_agent()))


def test_agents_are_loaded_from_files_with_their_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "their_neighbour.py").write_text("NAME = 'found'\n")
    file = tmp_path / "their_agents.py"
    file.write_text("from comity.agent import Agent\nimport their_neighbour\none = Agent(their_neighbour.NAME)\n")
    assert load_agent(f"{file}:one").name == "found"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_like_this", "cannot import .*: No module named 'nothing_like_this'"),
        ("1 / 0", "cannot import .*: ZeroDivisionError: division by zero"),
        ("syntax error", "cannot import .*: SyntaxError"),
        ("x = 1", "has no one"),
        ("one = 1", "has a int, not an Agent, as one"),
        ("from comity.agent import Agent\none = Agent('Bad Name')", "cannot import .*: ConfigError: 'Bad Name' is no"),
    ],
)
def test_what_cannot_be_loaded_says_why(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "broken_agents.py").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_agent(f"{tmp_path}/broken_agents.py:one")
