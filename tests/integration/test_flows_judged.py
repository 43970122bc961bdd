"""Records that a flow makes, judged by a panel that commits to its scores first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from comity.provenance import verify_provenance
from comity_node.storage import records
from kit.consortium import names
from kit.lab import Lab, run

SIX = names(6)
FLOW: dict[str, Any] = {
    "state": {
        "type": "object",
        "properties": {"x": {"type": "number", "minimum": -1000, "maximum": 1000}, "label": {"type": "integer"}},
    },
    "start": "draft",
    "steps": {"draft": {"skill": "draft", "at": "home", "writes": ["x", "label"], "next": "end"}},
    "record": ["x", "label"],
    "limits": {"seconds": 120},
}


@pytest.mark.invariant("S9")
def test_what_a_flow_makes_is_judged_by_a_panel_that_commits_first(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 6)
    made = iter(range(1000))
    lab.members[SIX[0]].agents["draft"] = lambda _: {"state": {"x": float(next(made)), "label": 1}}

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(
            SIX[0], flow=FLOW, homes="initiator", records_per_organization=5, batch_records=3, panel=4,
            commit_reveal=True,
        )  # fmt: skip
        await lab.until_done(workflow_id, SIX[0])
        assert await lab.counts(SIX[0]) == {"certified": 5}
        (agreed,) = lab.members[SIX[0]].up.runtime.agreements.all()
        database = lab.members[SIX[0]].up.database
        page = await database.read(lambda c: records.list_records(c, limit=50))
        for one in page.records:
            row = await database.read(lambda c: records.get_record(c, one.task_id))  # noqa: B023
            assert row is not None
            proof = verify_provenance(row.provenance, lab.consortium.trust)
            panel = agreed.numbered_panel(SIX[0], proof.certificate.batch)
            assert {review.organization for review in proof.reviews} <= panel
            assert len(panel) == 4
            assert len(proof.certificate.commitments) >= 3

    run(main)
    lab.verify_audit_logs()
