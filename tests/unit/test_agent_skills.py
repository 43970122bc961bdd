"""Agents: what may be a skill, and what becomes of what it returns or raises."""

from __future__ import annotations

import asyncio
import enum
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.agent import Agent, ThreadPool, Work, encode_result
from comity.errors import AgentFailed, ConfigError
from comity.testing import run_skill, run_skill_async


def agent_of(function: Callable[[Work], Any]) -> Agent:
    agent = Agent("generator")
    agent.skill("generate")(function)
    return agent


def test_a_sync_skill_runs_on_another_thread_and_an_async_one_on_the_loop() -> None:
    agent = Agent("generator")

    @agent.skill("sync")
    def sync(work: Work) -> Any:
        return [work.input, threading.current_thread() is threading.main_thread()]

    @agent.skill("async")
    async def not_sync(work: Work) -> Any:
        await asyncio.sleep(0)
        return [work.input, threading.current_thread() is threading.main_thread()]

    class Callable:
        async def __call__(self, work: Work) -> Any:
            return work.skill

    agent.skill("object")(Callable())
    assert agent.skills == ("async", "object", "sync")
    assert run_skill(agent, "sync", {"n": 1}) == [{"n": 1}, False]
    assert run_skill(agent, "async", {"n": 1}) == [{"n": 1}, True]
    assert run_skill(agent, "object") == "object"
    assert sync(Work(1, "sync")) == [1, True]  # a decorated function stays what it was


@pytest.mark.parametrize("name", ["", "Generator", "a b", "-x", "x" * 65, "ü"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is no agent's name"):
        Agent(name)
    with pytest.raises(ConfigError, match="is no skill's name"):
        Agent("a").skill(name)


def test_a_skill_is_defined_once_and_returns() -> None:
    agent = agent_of(lambda work: work.input)
    with pytest.raises(ConfigError, match="agent 'generator' has a skill 'generate' already"):
        agent.skill("generate")

    def yields(work: Work) -> Any:
        yield work

    with pytest.raises(ConfigError, match="must return its result, not yield it"):
        agent.skill("stream")(yields)


def test_what_a_skill_raises_is_named_and_kept_as_the_cause() -> None:
    def broken(work: Work) -> Any:
        raise ValueError("no such count: -1")

    expected = "agent 'generator', skill 'generate': ValueError: no such count: -1"
    with pytest.raises(AgentFailed, match=expected) as caught:
        run_skill(agent_of(broken), "generate")
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration("x"), TimeoutError()])
def test_no_way_of_failing_ends_the_worker(error: BaseException) -> None:
    def leaves(work: Work) -> Any:
        raise error

    with pytest.raises(AgentFailed, match="agent 'generator', skill 'generate'"):
        run_skill(agent_of(leaves), "generate")


def test_an_unknown_skill_names_those_there_are() -> None:
    with pytest.raises(AgentFailed, match="'repair': there is no such skill; it has generate"):
        run_skill(agent_of(lambda work: None), "repair")


@dataclass
class Row:
    age: int


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"records": [{"age": 1}, {"age": Row(1)}]}, r"result\['records'\]\[1\]\['age'\] is a \S*Row;"),
        ({"a": {1, 2}}, r"result\['a'\] is a set; return dicts, lists"),
        (b"bytes", "result is a bytes;"),
        ({1: "a"}, "result has the key 1; keys must be strings"),
        ([float("nan")], r"result\[0\] is nan, which JSON cannot say"),
        (-math.inf, "result is -inf"),
        (Colour.RED, "result is a"),
        (object(), "result is a object;"),
        ("x" * (4 * 1024 * 1024), "result has 4194306 bytes, and may have 4194304"),
    ],
)
def test_a_result_that_is_not_json_is_named_by_its_place(result: Any, said: str) -> None:
    with pytest.raises(AgentFailed, match="^agent 'generator', skill 'generate': " + said):
        run_skill(agent_of(lambda work: result), "generate")


def test_a_result_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(AgentFailed, match="nested deeper than 64"):
        run_skill(agent_of(lambda work: loop), "generate")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values)
def test_every_json_value_comes_through_unchanged(value: Any) -> None:
    assert json.loads(encode_result(value, "x")) == value


def test_an_input_that_is_not_json_is_refused_before_the_skill_runs() -> None:
    ran: list[Work] = []
    with pytest.raises(AgentFailed, match="its input: result"):
        run_skill(agent_of(ran.append), "generate", {1, 2})
    assert ran == []


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_slow_skill_is_given_up_and_told(kind: str) -> None:
    told = threading.Event()

    def slow(work: Work) -> None:
        assert work.remaining_s <= 0.05
        while not work.cancelled:
            threading.Event().wait(0.001)
        told.set()

    async def slow_async(work: Work) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            told.set()

    with pytest.raises(AgentFailed, match=r"took longer than 0\.05 s"):
        run_skill(agent_of(slow if kind == "sync" else slow_async), "generate", timeout_s=0.05)
    assert told.wait(5)


def test_run_skill_async_serves_tests_with_a_loop() -> None:
    async def main() -> Any:
        return await run_skill_async(agent_of(lambda work: {"got": work.input}), "generate", (1, 2))

    assert asyncio.run(main()) == {"got": [1, 2]}


def test_work_without_a_deadline_has_all_the_time() -> None:
    work = Work(None, "generate")
    assert (work.remaining_s, work.cancelled) == (math.inf, False)
    work.cancel()
    assert work.cancelled
    assert Work(None, "generate", time.monotonic() - 1).cancelled


def test_the_pool_never_runs_more_threads_than_its_size() -> None:
    peak, now = 0, 0
    lock = threading.Lock()
    full = threading.Barrier(3, timeout=5)

    def count(work: Work) -> None:
        nonlocal peak, now
        with lock:
            now += 1
            peak = max(peak, now)
        full.wait()  # three at a time, or nobody gets on
        with lock:
            now -= 1

    async def main() -> None:
        pool = ThreadPool(3)
        await asyncio.gather(*(pool.run(count, Work(n, "x")) for n in range(12)))
        pool.close()

    asyncio.run(main())
    assert peak == 3


def test_the_sdk_brings_no_heavy_package() -> None:
    code = (
        "import sys, comity.client, comity.worker, comity.testing; "
        "heavy = ('trio', 'libp2p', 'numpy', 'yaml', 'onnxruntime', 'httpx', 'ray'); "
        "print(sorted(name for name in heavy if name in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"
