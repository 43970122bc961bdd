"""A generator and a validator of coin tosses: the smallest agent that takes part in a workflow.

python -m comity.worker examples/first-agent/agent.py:agent --control unix:/path/to/control.sock
"""

from __future__ import annotations

import random
from typing import Any

from comity.agent import Agent, Work

agent = Agent("coins")


@agent.skill("generate")
def generate(work: Work) -> dict[str, Any]:
    """Return as many tosses as were asked for, the same ones for the same seed."""
    toss = random.Random(work.input["seed"])
    return {"records": [{"heads": toss.randint(0, 1)} for _ in range(work.input["count"])]}


@agent.skill("repair")
def repair(work: Work) -> dict[str, Any]:
    """Return a new toss for each that reviewers refused."""
    toss = random.Random(work.input["seed"])
    return {"records": [{"heads": toss.randint(0, 1)} for _ in work.input["records"]]}


@agent.skill("review")
def review(work: Work) -> dict[str, Any]:
    """Accept what is heads or tails, and nothing else."""
    reviews = []
    for record in work.input["records"]:
        fair = record.get("heads") in (0, 1)
        reviews.append(
            {
                "score": 10_000 if fair else 0,
                "axes": {"range": 10_000 if fair else 0},
                "feedback": [] if fair else ["range: heads is 0 or 1"],
            }
        )
    return {"reviews": reviews, "validator": "coins 1"}
