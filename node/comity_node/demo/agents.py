"""The demo's worker agents.

    COMITY_DEMO_DATA=home/data python -m comity.worker comity_node.demo.agents:hospital

Configured by the environment:
    COMITY_DEMO_DATA    directory with `private.parquet` and `schema.json`; required
    COMITY_DEMO_STATE   directory of what the worker keeps; by default `COMITY_DEMO_DATA`
    COMITY_DEMO_TURN    `bad` only: batches that it stays honest; 2 by default, 0 is bad from the start
    COMITY_DEMO_SEED    `bad` only: 0 by default

Starting is fast: the data and the models are opened by the first piece of work.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comity.agent import Agent, Work
from comity.errors import AgentFailed, ConfigError

if TYPE_CHECKING:
    from comity_node.demo.participants import Hospital

#: Both go by the same name: nothing on its card says that an agent is bad.
_NAME = "hospital"


def make_agent(open_participant: Callable[[], Hospital]) -> Agent:
    """Return an agent with the skills generate, repair and review of a participant.

    Args:
        open_participant: called once, by the first piece of work; when it raises, by the next one again.
    """
    agent = Agent(_NAME)
    lock = threading.Lock()
    opened: list[Hospital] = []

    def participant() -> Hospital:
        with lock:
            if not opened:
                opened.append(open_participant())
            return opened[0]

    @agent.skill("generate")
    def generate(work: Work) -> dict[str, Any]:
        count, seed, batch = (_integer(work, key) for key in ("count", "seed", "batch"))
        return {"records": participant().generate(count, seed, batch)}

    @agent.skill("repair")
    def repair(work: Work) -> dict[str, Any]:
        records, feedback = _list(work, "records"), _list(work, "feedback")
        if len(records) != len(feedback):
            raise AgentFailed(f"{len(feedback)} feedbacks for {len(records)} records")
        return {"records": participant().repair(records, feedback, _integer(work, "seed"))}

    @agent.skill("review")
    def review(work: Work) -> dict[str, Any]:
        tasks = _list(work, "tasks") if "tasks" in work.input else None
        author, records = str(work.input.get("author", "")), _list(work, "records")
        who = participant()
        reviews = who.review(author, records, _integer(work, "min_score"), tasks)
        return {"reviews": [one.to_json() for one in reviews], "validator": who.describe()}

    return agent


def _integer(work: Work, key: str) -> int:
    value = work.input.get(key) if isinstance(work.input, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise AgentFailed(f"{work.skill}: {key!r} must be a whole number of at least 0")
    return value


def _list(work: Work, key: str) -> list[Any]:
    value = work.input.get(key) if isinstance(work.input, dict) else None
    if not isinstance(value, list):
        raise AgentFailed(f"{work.skill}: {key!r} must be a list")
    return value


def _directories() -> tuple[Path, Path]:
    data = os.environ.get("COMITY_DEMO_DATA")
    if not data:
        raise ConfigError("set COMITY_DEMO_DATA to the directory with private.parquet and schema.json")
    return Path(data), Path(os.environ.get("COMITY_DEMO_STATE") or data)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"{name} must be a whole number of at least 0, not {text!r}")
    return int(text)


def _open_hospital() -> Hospital:
    from comity_node.demo.participants import Hospital

    return Hospital(*_directories())


def _open_bad() -> Hospital:
    from comity_node.demo.participants import BadHospital

    data, state = _directories()
    return BadHospital(data, state, turn=_number("COMITY_DEMO_TURN", 2), seed=_number("COMITY_DEMO_SEED", 0))


hospital = make_agent(_open_hospital)
bad = make_agent(_open_bad)
