"""One workflow from submission to the last store, timed by what the five journals say.

Every arm keeps the same journals, so the same reading serves all of them, and nothing is measured by how often somebody
looks. Times are the nodes' own, in milliseconds; all run on one machine, so their clocks are one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any, Protocol

from comity.errors import AgentFailed, DeadlineExceeded
from comity_node.demo.homes import Home
from comity_node.demo.scenario import FINAL, Size, workflow
from comity_node.storage.connections import connect_readonly
from comity_node.storage.packing import unpack

#: Unit of each work.
UNITS: Mapping[str, str] = {
    "negotiate": "s",
    "records-decided": "records/s",
    "reviews": "reviews/s",
    "hops": "hops/s",
    "certified-delivered": "records/s",
    "cpu-per-record": "ms/record",
}
_TIMEOUT_S = 150.0
_POLL_S = 0.1
_FINAL = ", ".join(f"'{state}'" for state in FINAL)


class Site(Protocol):
    """Five organizations that run; the first one submits."""

    @property
    def homes(self) -> Sequence[Home]:
        """Their homes; the first one's node submits."""

    def submit(self, document: Mapping[str, Any]) -> str:
        """Submit a workflow and return its id."""

    def check(self) -> None:
        """Raise if something has ended that should run."""

    def cpu_seconds(self) -> float | None:
        """Return the processor time that the organizations have used; None if the system does not say."""


@dataclass(frozen=True, slots=True)
class Journal:
    """What one organization's database says about a workflow.

    Attributes:
        tasks: own tasks, by state.
        decided_ms: when the last of them ended.
        reviews: of own tasks, that came in.
        reviewed_ms: when the last one did.
        hops: signed here: for the making of each own record, and for each reviewer that it went to.
        own: certified records in the store that were made here.
        others: certified records in the store that came from others, each with one more hop.
        delivered_ms: when the last one was stored.
    """

    tasks: Mapping[str, int]
    decided_ms: int
    reviews: int
    reviewed_ms: int
    hops: int
    own: int
    others: int
    delivered_ms: int


def run(site: Site, size: Size) -> dict[str, float]:
    """Run one workflow at `site` and return the value of each work.

    Raises:
        AgentFailed: there was no agreement, or something ended.
        DeadlineExceeded: it was not over in time.
    """
    cpu_before = site.cpu_seconds()
    workflow_id = site.submit(workflow(size))
    with ExitStack() as stack:
        databases = [stack.enter_context(closing(connect_readonly(home.path / "node.db"))) for home in site.homes]
        _wait(lambda: _is_over(databases, workflow_id, size), site.check)
        submitted_ms, agreed_ms = _negotiation(databases[0], workflow_id)
        journals = [
            read_journal(database, workflow_id, home.organization)
            for database, home in zip(databases, site.homes, strict=True)
        ]
    values = rates(journals, submitted_ms, agreed_ms)
    cpu_after = site.cpu_seconds()
    if cpu_before is not None and cpu_after is not None:
        decided = sum(sum(one.tasks.values()) for one in journals)
        values["cpu-per-record"] = (cpu_after - cpu_before) * 1000 / decided
    return values


def rates(journals: Sequence[Journal], submitted_ms: int, agreed_ms: int) -> dict[str, float]:
    """Return the value of each work that the journals tell; every rate counts from the agreement on."""

    def per_second(count: int, until_ms: int) -> float:
        return count * 1000 / max(1, until_ms - agreed_ms)

    delivered_ms = max(one.delivered_ms for one in journals)
    return {
        "negotiate": (agreed_ms - submitted_ms) / 1000,
        "records-decided": per_second(
            sum(sum(one.tasks.values()) for one in journals), max(one.decided_ms for one in journals)
        ),
        "reviews": per_second(sum(one.reviews for one in journals), max(one.reviewed_ms for one in journals)),
        "hops": per_second(sum(one.hops + one.others for one in journals), delivered_ms),
        "certified-delivered": per_second(sum(one.own for one in journals), delivered_ms),
    }


def read_journal(database: Connection, workflow_id: str, organization: str) -> Journal:
    """Read what the database of `organization` says about a workflow."""
    tasks = dict(
        database.execute("SELECT state, count(*) FROM tasks WHERE workflow_id = ? GROUP BY state", (workflow_id,))
    )
    (decided_ms,) = database.execute(
        "SELECT coalesce(max(updated_ms), 0) FROM tasks WHERE workflow_id = ?", (workflow_id,)
    ).fetchone()
    reviews, reviewed_ms = database.execute(
        "SELECT count(*), coalesce(max(received_ms), 0) FROM votes JOIN tasks USING (task_id) WHERE workflow_id = ?",
        (workflow_id,),
    ).fetchone()
    histories = database.execute("SELECT hops FROM tasks WHERE workflow_id = ?", (workflow_id,))
    own, total, delivered_ms = database.execute(
        "SELECT coalesce(sum(author = ?), 0), count(*), coalesce(max(stored_ms), 0) FROM records"
        " WHERE agreement_digest = (SELECT agreement_digest FROM workflows WHERE workflow_id = ?)",
        (organization, workflow_id),
    ).fetchone()
    return Journal(
        tasks=tasks,
        decided_ms=decided_ms,
        reviews=reviews,
        reviewed_ms=reviewed_ms,
        hops=sum(len(unpack(packed)) for (packed,) in histories),
        own=own,
        others=total - own,
        delivered_ms=delivered_ms,
    )


def _is_over(databases: Sequence[Connection], workflow_id: str, size: Size) -> bool:
    """Whether all tasks of everybody have ended and every certified record is in every store."""
    state = databases[0].execute("SELECT state, reason FROM workflows WHERE workflow_id = ?", (workflow_id,)).fetchone()
    if state is not None and state[0] == "failed":
        raise AgentFailed(f"no agreement: {state[1]}")
    certified = 0
    for database in databases:
        ended, good = database.execute(
            f"SELECT count(*), coalesce(sum(state = 'certified'), 0) FROM tasks"
            f" WHERE workflow_id = ? AND state IN ({_FINAL})",
            (workflow_id,),
        ).fetchone()
        if ended < size.records:
            return False
        certified += good
    return all(_stored(database, workflow_id) >= certified for database in databases)


def _stored(database: Connection, workflow_id: str) -> int:
    query = (
        "SELECT count(*) FROM records WHERE agreement_digest ="
        " (SELECT agreement_digest FROM workflows WHERE workflow_id = ?)"
    )
    return int(database.execute(query, (workflow_id,)).fetchone()[0])


def _negotiation(database: Connection, workflow_id: str) -> tuple[int, int]:
    """Return when the workflow was submitted and when everybody had signed the agreement."""
    (submitted_ms,) = database.execute(
        "SELECT created_ms FROM workflows WHERE workflow_id = ?", (workflow_id,)
    ).fetchone()
    (agreed_ms,) = database.execute(
        "SELECT max(at_ms) FROM workflow_steps WHERE workflow_id = ? AND step = 'concluded'", (workflow_id,)
    ).fetchone()
    return submitted_ms, agreed_ms


def _wait(ready: Callable[[], bool], check: Callable[[], None]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not ready():
        check()
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"the workflow is not over after {_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)


def encode(document: Mapping[str, Any]) -> bytes:
    """Return a workflow document as it is submitted."""
    return json.dumps(document).encode()
