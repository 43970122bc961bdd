"""`comity workflow try`: a rehearsal of a flow with one's own agents, in this process. No node is needed.

Every step is done here, whoever `at` says; nothing is sent, journaled or reviewed. What the agents get, and what their
answers are checked for, is what it will be.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comity.agent import Agent
from comity.errors import AgentFailed, ConfigError
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, printable
from comity_node.cli.workflow_check import read_spec

if TYPE_CHECKING:
    from comity_node.protocol.flow import Flow, Outcome, Step

#: Tasks of one rehearsal.
_MOST_TASKS = 1000
_STEP_S = 60.0
#: Who does all the steps.
_HERE = "rehearsal.example"


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """One task of a rehearsal.

    Attributes:
        end: `done`, `dropped` or `failed`.
        reason: why, if it is not done.
        way: the steps that it took, each with the skill, and what went wrong if something did.
        record: what it yields, if it is done.
        tokens: that its agents said they used.
        cost: that they said it was.
    """

    end: str
    reason: str
    way: tuple[str, ...]
    record: Mapping[str, Any] | None
    tokens: int
    cost: float


def _try(context: Context, arguments: argparse.Namespace) -> int:
    spec = read_spec(arguments.workflow)
    if spec.flow is None:
        raise ConfigError(
            "the workflow has no flow to try: its agent has the skill generate", file=str(arguments.workflow)
        )
    agents = _agents(arguments.agent)
    if missing := sorted(spec.flow.skills - agents.keys()):
        raise ConfigError(f"no agent offers {', '.join(missing)}; name one that does with --agent MODULE:NAME")
    tasks = [rehearse(spec.flow, agents) for _ in range(arguments.tasks)]
    ends = Counter(task.end for task in tasks)
    summary = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    context.emit([asdict(task) for task in tasks], "\n".join([*map(_text, tasks), summary]))
    return context.refuse(f"{ends['failed']} of {len(tasks)} tasks failed") if ends["failed"] else 0


def _agents(names: list[str]) -> dict[str, Agent]:
    from comity.worker import load_agent

    sys.path.insert(0, os.getcwd())  # as `python -m` has it: agents are found where one stands
    agents: dict[str, Agent] = {}
    for name in names:
        agent = load_agent(name)
        agents |= dict.fromkeys(agent.skills, agent)
    return agents


def rehearse(flow: Flow, agents: Mapping[str, Agent]) -> Rehearsed:
    """Take one task its whole way, with the agents that have each skill."""
    from comity_node.protocol.flow import Dropped, Failed, Goes, begin, current, record_of

    cursor, way = begin(flow, _now_ms()), list[str]()
    state: Mapping[str, Any] = {}
    for _ in range(flow.limits.steps):
        step = current(flow, cursor)
        outcome = _perform(flow, step, agents[step.skill], cursor, state)
        went_wrong = f": {outcome.reason}" if isinstance(outcome, Goes | Failed) and outcome.reason else ""
        way.append(f"{step.name} ({step.skill}){went_wrong}")
        if not isinstance(outcome, Goes):
            break
        cursor, state = outcome.cursor, outcome.state
    used = outcome.cursor
    end = "dropped" if isinstance(outcome, Dropped) else "failed" if isinstance(outcome, Failed) else "done"
    reason = outcome.reason if isinstance(outcome, Dropped | Failed) else ""
    record = None if isinstance(outcome, Dropped | Failed) else record_of(flow, outcome.state)
    return Rehearsed(end, reason, tuple(way), record, used.tokens, used.cost / 1e6)


def _perform(flow: Flow, step: Step, agent: Agent, cursor: Any, state: Mapping[str, Any]) -> Outcome:  # noqa: ANN401
    from comity.testing import run_skill
    from comity_node.protocol.flow import advance, answers_of, batch_of, failed, work_of

    work = batch_of(step, [work_of(flow, cursor, state)])
    try:
        output = run_skill(agent, step.skill, work, timeout_s=_STEP_S)
    except AgentFailed as error:
        return failed(flow, cursor, state, str(error), _now_ms())
    return advance(flow, cursor, state, answers_of(step, output, 1)[0], _now_ms(), by=_HERE)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _text(task: Rehearsed) -> str:
    head = f"{task.end}: {task.reason}" if task.reason else task.end
    return "\n".join(map(printable, [head, *(f"  {each}" for each in task.way)]))


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MOST_TASKS:
        raise argparse.ArgumentTypeError(f"has to be a number from 1 to {_MOST_TASKS}")
    return int(text)


TRY = Command(
    "try",
    "rehearse a workflow's flow with your own agents; no node is needed",
    _try,
    (
        argument("workflow", type=Path, metavar="WORKFLOW", help="the workflow, in YAML or JSON"),
        argument(
            "--agent", action="append", required=True, metavar="MODULE:NAME",
            help="an agent, as for `comity worker`; say it again until every skill of the flow is offered",
        ),
        argument("--tasks", type=_count, default=1, metavar="N", help="how many tasks to take through it (1)"),
    ),
    description=(
        "Take tasks through a workflow's flow with your own agents, all in this process: who would do a step elsewhere "
        "does not matter, and nothing is sent or reviewed. Shows the way of each task and what went wrong on it; exit "
        "1 if one failed. With --json it also has the records."
    ),
)  # fmt: skip
