"""What the organizations of a world of faults do: workflows, and agents that cost nothing but time of the world."""

from __future__ import annotations

from random import Random
from typing import Any, Protocol

import trio

from kit.chaos_member import Member
from kit.chaos_plan import Plan
from kit.documents import DATASET, PURPOSE

_AGENT_MS = {
    "generate": (50, 400), "repair": (50, 300), "review": (100, 900), "draft": (20, 200), "label": (50, 400),
}  # fmt: skip
#: A row is drafted at home, labelled somewhere else, and comes back to be reviewed.
FLOW: dict[str, Any] = {
    "state": {
        "type": "object",
        "properties": {
            "x": {"type": "number", "minimum": -1000, "maximum": 1000},
            "label": {"type": "integer", "minimum": 0, "maximum": 1},
        },
    },
    "start": "draft",
    "steps": {
        "draft": {"skill": "draft", "at": "home", "writes": ["x"], "next": "label"},
        "label": {"skill": "label", "at": "others", "reads": ["x"], "writes": ["label"], "next": "end"},
    },
    "record": ["x", "label"],
    "limits": {"seconds": 3600},
}


class Workload(Protocol):
    """What the organizations do."""

    def document(self, plan: Plan) -> dict[str, Any]:
        """Return the workflow."""

    async def work(self, member: Member, skill: str, payload: Any) -> Any:
        """Do an agent's work."""


class Reviews:
    """Generate, review, repair, certify, deliver; `plan.bad` of a hundred rows are worth a repair, or nothing."""

    def __init__(self, plan: Plan) -> None:
        """Draw rows and times by the plan's seed."""
        self._bad = plan.bad
        self._draws = Random(f"agents {plan.seed}")

    def document(self, plan: Plan) -> dict[str, Any]:
        """Return the workflow."""
        return {
            "name": "chaos",
            "purpose": PURPOSE,
            "dataset": DATASET,
            "records_per_organization": plan.records,
            "batch_records": plan.batch,
            "repair_rounds": plan.repairs,
            "min_score": 5000,
            "lease_seconds": plan.lease_s,
            "minimum_participants": plan.organizations,
            **({"flow": FLOW} if plan.flow else {}),
        }

    async def work(self, member: Member, skill: str, payload: Any) -> Any:
        """Make rows (other ones each time), repair them, and refuse those whose x is negative."""
        await trio.sleep(self._draws.uniform(*_AGENT_MS[skill]) / 1000)
        if skill == "generate":
            return {"records": [self._row() for _ in range(payload["count"])]}
        if skill == "draft":
            return {"state": {"x": self._row()["x"]}}
        if skill == "label":
            return {"state": {"label": 1}}
        if skill == "repair":
            return {"records": [{**one, "x": abs(one["x"])} for one in payload["records"]]}
        scores = [9000 if one["x"] >= 0 else 100 for one in payload["records"]]
        reviews = [
            {"score": score, "axes": {"range": score}, "feedback": [] if score > 5000 else ["x: negative"]}
            for score in scores
        ]
        return {"reviews": reviews, "validator": "chaos"}

    def _row(self) -> dict[str, Any]:
        x = round(self._draws.uniform(1, 10), 3)
        return {"x": -x if self._draws.random() * 100 < self._bad else x, "label": 1}
