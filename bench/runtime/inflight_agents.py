"""Agents that take as long as they are told to, for `python -m comity.worker bench.runtime.inflight_agents:agent`."""

from __future__ import annotations

import os
from typing import Any

from bench.runtime import flows
from bench.runtime.full_agents import connections
from comity.agent import Agent, Work

agent = Agent("bench")


async def _hold(work: Work) -> dict[str, Any]:
    """Wait until everybody may go."""
    await (await connections.door()).enter()
    return {"state": {"more": False}}


async def _nothing(work: Work) -> dict[str, Any]:
    """Answer at once: the home does none of the steps."""
    return {"state": {}}


if os.environ.get("COMITY_BENCH_SITE") == "-1":
    agent.skill(flows.ENTER)(_nothing)
else:
    agent.skill(flows.skill(0))(_hold)
