"""Agents of a world of processes: rows and scores cost nothing, and take as long as a model's would.

COMITY_DEMO_DATA=home/data COMITY_CHAOS_WORK_S=0.3 python -m comity.worker kit.chaos_agent:agent
"""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import Any

from bench.instant import InstantSkills
from comity.agent import Agent, Work
from comity_node.demo.data import SCHEMA_FILE
from comity_node.validators.schema import Schema

agent = Agent("chaos")


@cache
def _skills() -> InstantSkills:
    return InstantSkills(Schema.load(Path(os.environ["COMITY_DEMO_DATA"]) / SCHEMA_FILE))


def _serve(work: Work) -> dict[str, Any]:
    time.sleep(float(os.environ["COMITY_CHAOS_WORK_S"]))
    return _skills().call(work.skill, work.input)


for _name in ("generate", "repair", "review"):
    agent.skill(_name)(_serve)
