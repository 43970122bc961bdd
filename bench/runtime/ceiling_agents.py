"""Agents that cost nothing, for `python -m comity.worker bench.runtime.ceiling_agents:agent`; see `ceiling`."""

from __future__ import annotations

import os
from typing import Any

from bench.runtime.ceiling import opened, turned
from comity.agent import Agent, Work

agent = Agent("bench")


async def _open(work: Work) -> dict[str, Any]:
    return opened(work.input)


async def _turn(work: Work) -> dict[str, Any]:
    return turned(work.input)


if os.environ.get("COMITY_BENCH_SITE") == "-1":
    agent.skill("open")(_open)
    agent.skill("ping")(_turn)
else:
    agent.skill("pong")(_turn)
