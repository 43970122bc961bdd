"""Bugs that are planted into the product: a plan is kept for each that makes the checker see it.

When the timing of the product changes and a plan misses its bug, another one is found by
`PYTHONPATH=tests python -m kit.chaos_run --seeds 1-100 --bug NAME`.
"""

from __future__ import annotations

import pytest

from kit.chaos_bugs import BUGS
from kit.chaos_plan import from_json
from kit.chaos_run import try_plan

#: Seconds of the world; what is lost does not come later either.
_PATIENCE_S = 75.0
#: For each bug: the plan, as small as it could be made, and what the checker says (a part of it).
KEPT = {
    "clock-believed": (
        '{"bad": 0, "faults": [{"amount": -90000, "at": 472, "for_ms": 250, "kind": "clock", "who": 2}], "records": 6,'
        ' "repairs": 0, "seed": 3}',
        "dated outside",
    ),
    "journeys-in-memory": (
        '{"bad": 0, "faults": [{"at": 400, "for_ms": 200, "kind": "kill", "who": 0}], "flow": true, "records": 6,'
        ' "repairs": 0, "seed": 1}',
        "not at its end",
    ),
    "early-custody": (
        '{"bad": 0, "faults": [{"at": 6, "for_ms": 200, "kind": "kill", "on": "answered", "who": 1}], "records": 2,'
        ' "repairs": 0, "seed": 1}',
        "and it has not",
    ),
    "vote-twice": (
        '{"bad": 0, "faults": [{"amount": 1000, "at": 0, "for_ms": 1000, "kind": "lose_answer", "other": 0, "who": 1}],'
        ' "records": 2, "repairs": 0, "seed": 1}',
        "as reviewer is counted",
    ),
    "record-twice": (
        '{"bad": 0, "faults": [{"amount": 1000, "at": 0, "for_ms": 3000, "kind": "lose_answer", "who": 1}],'
        ' "records": 2, "repairs": 0, "seed": 3}',
        "stored records",
    ),
    "outbox-in-memory": (
        '{"bad": 0, "faults": [{"at": 18, "for_ms": 187, "kind": "stop", "on": "answered", "who": 0}], "records": 6,'
        ' "repairs": 0, "seed": 12}',
        "it is not on its way",
    ),
    "fire-and-forget": (
        '{"bad": 0, "faults": [{"amount": 1000, "at": 693, "for_ms": 500, "kind": "damage", "who": 1}], "records": 2,'
        ' "repairs": 0, "seed": 8}',
        "it is not on its way",
    ),
    "split-transaction": (
        '{"bad": 0, "faults": [{"at": 37, "for_ms": 200, "kind": "kill", "on": "committed", "who": 1}], "records": 2,'
        ' "repairs": 0, "seed": 1}',
        "it is not on its way",
    ),
    "held-forgotten": (
        '{"bad": 0, "faults": [{"at": 600, "for_ms": 200, "kind": "kill", "who": 1}], "records": 2, "repairs": 0,'
        ' "seed": 1}',
        "holds a batch",
    ),
    "judged-anew": (
        '{"bad": 0, "faults": [{"at": 635, "for_ms": 5000, "kind": "freeze", "who": 2}], "records": 6, "repairs": 0,'
        ' "seed": 12}',
        "",
    ),
    "late-log": ('{"bad": 0, "faults": [], "records": 2, "repairs": 0, "seed": 4}', "left before that was decided"),
    "quota-twice": ('{"faults": [], "records": 2, "repairs": 2, "seed": 4}', ""),
    "no-lease": (
        '{"bad": 0, "faults": [{"at": 8, "for_ms": 50000, "kind": "freeze", "on": "answered", "who": 3}],'
        ' "lease_s": 10, "organizations": 4, "records": 2, "repairs": 0, "seed": 21}',
        "in_review",
    ),
    "half-a-restart": (
        '{"bad": 0, "faults": [{"at": 450, "for_ms": 200, "kind": "kill", "who": 1}], "records": 2, "repairs": 0,'
        ' "seed": 1}',
        "not at its end",
    ),
}


def test_a_plan_is_kept_for_every_planted_bug() -> None:
    assert KEPT.keys() == BUGS.keys()


@pytest.mark.slow
@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
@pytest.mark.invariant("R3")
@pytest.mark.invariant("S8")
@pytest.mark.parametrize("bug", KEPT)
def test_a_planted_bug_is_found(bug: str) -> None:
    text, told = KEPT[bug]
    plan = from_json(text)
    sound, broken = (try_plan(plan, each, patience_s=_PATIENCE_S) for each in ("", bug))
    assert not sound.wrong, "\n".join(sound.wrong)
    assert any(told in line for line in broken.wrong), broken.wrong
