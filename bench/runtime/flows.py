"""The workloads as flows, and the agents that perform them: what Comity is told where the other arms have code.

Even roles are offered by one half of the organizations, odd roles by the other, so that every hop of every row crosses
to another organization, and every step has several that may do it. The home offers nothing; tokens go from organization
to organization without coming home in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.runtime import grid
from bench.runtime.works import ROLES, Hop, Row

#: The home's only skill, where its agent gives rows out.
ENTER: Final = "enter"
HOME: Final = "home.example"
#: By site.
ORGANIZATIONS: Final = tuple(f"org{site}.example" for site in range(grid.SITES))
_MOST: Final = 20
_STATE: Final = {
    "type": "object",
    "properties": {
        "row": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
        "hop": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
        "more": {"type": "boolean"},
        "run": {"type": "string", "maxLength": 100},
    },
}


def skill(role: int) -> str:
    """Return the skill of a role."""
    return f"role-{role}"


def skills_at(site: int) -> tuple[str, ...]:
    """Return the skills of an organization."""
    return tuple(skill(role) for role in range(max(ROLES.values())) if role % 2 == site % 2)


def flow(work: str, *, entry: str = "") -> dict[str, Any]:
    """Return the flow of a workload, as it stands in a workflow document.

    Args:
        work: which.
        entry: name of a first step in which an agent of the home gives rows out; empty: there is none.
    """
    steps, start = _STEPS[work], next(iter(_STEPS[work]))
    if entry:
        enter = {"skill": ENTER, "at": "home", "writes": ["row", "hop", "run"], "next": start}
        steps, start = {entry: enter, **steps}, entry
    return {
        "state": _STATE,
        "start": start,
        "steps": steps,
        "limits": {"steps": 64, "seconds": 600},
        "finish": "none",
    }


def _step(role: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401  (parts of a document)
    return {"skill": skill(role), "reads": ["row", "hop", "run"], "writes": ["hop", "more"], **more}


_OVER: Final = {"when": {"more": False}, "go": "end"}
_STEPS: Final[Mapping[str, dict[str, Any]]] = {
    "fixed": {f"stage-{role}": _step(role, next=f"stage-{role + 1}" if role < 2 else "end") for role in range(3)},
    "dialogue": {
        "talk": {
            "dialogue": [{"skill": skill(0)}, {"skill": skill(1)}],
            "turns": _MOST,
            "until": {"more": False},
            "reads": ["row", "hop", "run"],
            "writes": ["hop", "more"],
            "next": "end",
        }
    },
    "funnel": {
        f"filter-{role}": _step(
            role, next=[_OVER, {"go": f"filter-{role + 1}" if role + 1 < ROLES["funnel"] else "end"}]
        )
        for role in range(ROLES["funnel"])
    },
    "tools": {
        "think": _step(0, most=_MOST, next=[_OVER, {"go": "run"}]),
        "run": _step(1, most=_MOST, next="think"),
    },
}


@dataclass(frozen=True, slots=True)
class Script:
    """What agents know: what each hop of each row is."""

    rows: Sequence[Row]

    def hop(self, state: Mapping[str, Any]) -> Hop:
        """Return the hop that a row is at."""
        row: int = state["row"]
        hop: int = state["hop"]
        return self.rows[row][hop]

    def answer(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return what an agent answers once the hop is done."""
        done = state["hop"] + 1
        return {"state": {"hop": done, "more": done < len(self.rows[state["row"]])}}


def first_state(row: int) -> dict[str, Any]:
    """Return the state with which a row sets out."""
    return {"row": row, "hop": 0}
