"""What a home has kept of its tasks, gathered for whoever asks: their list, and all about one.

Plain functions over a connection, for `Database.read`; nothing is changed here.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

from comity.digest import hex_digest
from comity.errors import NotFound
from comity_node.storage import audit, audit_entry, journeys, records
from comity_node.storage.commitments import CommitmentRow, list_commitments
from comity_node.storage.outbox import OutboxRow, count_open
from comity_node.storage.packing import unpack
from comity_node.storage.reviews import AssignmentRow, VoteRow
from comity_node.storage.tasks import TaskRow, count_tasks_by_state, get_task

#: Tasks in one answer.
MAX_LISTED: Final = 500
#: Entries of the audit log that are read for one task, from when it was opened.
_MAX_SEARCHED: Final = 100_000
#: Entries of the audit log that are shown of one task.
_MAX_ENTRIES: Final = 500
_PAGE: Final = 1_000
#: Digits of an id that name a task, at least.
_DIGITS: Final = 6
_ID_DIGITS: Final = 32
#: How far an entry may be dated before what it tells of was opened.
_SKEW_MS: Final = 60_000
_SUBJECT: Final = re.compile(rb'"subject":"([0-9a-f]{64})"')
_TASK: Final = re.compile(rb'"task":"([0-9a-f]{32})"')


@dataclass(frozen=True, slots=True)
class TaskLine:
    """One task in a list; with a flow its way and the record that it made are one task.

    Attributes:
        task_id: of the way, else of the record.
        agreement: digest of its terms.
        workflow_id: that it belongs to; empty while there is no record.
        state: "queued" (here), "leased" (with somebody) or how its way ended; then that of the record.
        reason: why it ended so.
        record_task: the task that its record is judged as; empty if there is no record of a flow.
        attempt: how often it was sent out; 0 without a flow.
        held_by: who has it; empty: it is here.
        checkpoint: the token that it can start again from; empty once it is over.
        revision: how often its record was repaired.
        opened_ms: when; 0 if it is not known.
        updated_ms: when it changed last.
    """

    task_id: bytes
    agreement: bytes
    workflow_id: str
    state: str
    reason: str
    record_task: bytes
    attempt: int
    held_by: str
    checkpoint: bytes
    revision: int
    opened_ms: int
    updated_ms: int


@dataclass(frozen=True, slots=True)
class TaskFile:
    """All that is kept of one task but the audit log's entries.

    Attributes:
        line: as in a list.
        way: the signed hops of its way, oldest first.
        row: its end, or its row where it can start again from; empty if it has none.
        task: the record and what became of it; None if there is none yet.
        votes: of all revisions, by revision and organization.
        assignments: likewise.
        commitments: likewise.
        stored: the certified record; None if it is not certified, or forgotten.
        messages: about its batch to others: offers, and certified records.
    """

    line: TaskLine
    way: tuple[bytes, ...]
    row: bytes
    task: TaskRow | None
    votes: tuple[VoteRow, ...] = ()
    assignments: tuple[AssignmentRow, ...] = ()
    commitments: tuple[CommitmentRow, ...] = ()
    stored: records.CertifiedRecord | None = None
    messages: tuple[OutboxRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Counted:
    """How much there is in the journal: own records and tasks on their way, by state; votes; messages that wait."""

    tasks: dict[str, int]
    journeys: dict[str, int]
    votes: dict[str, int]
    outbox: dict[str, int]


_WAYS: Final = """
SELECT j.task_id, j.agreement_digest, coalesce(t.workflow_id, '') AS workflow_id,
  CASE WHEN t.task_id IS NOT NULL THEN t.state
       WHEN j.ending = '' AND j.held_by = '' THEN 'queued' WHEN j.ending = '' THEN 'leased'
       WHEN j.ending = 'done' AND lower(hex(j.agreement_digest)) IN (SELECT value FROM json_each(:unjudged))
         THEN 'completed'
       ELSE j.ending END AS state,
  CASE WHEN t.task_id IS NOT NULL THEN t.reason ELSE j.reason END AS reason,
  j.record_task, j.attempt, j.held_by, j.checkpoint, coalesce(t.revision, 0) AS revision, j.opened_ms,
  max(j.updated_ms, coalesce(t.updated_ms, 0)) AS updated_ms
FROM journeys j LEFT JOIN tasks t ON t.task_id = j.record_task AND j.record_task <> x''
"""
_RECORDS: Final = """
SELECT t.task_id, t.agreement_digest, t.workflow_id, t.state, t.reason, x'' AS record_task, 0 AS attempt,
  '' AS held_by, x'' AS checkpoint, t.revision, 0 AS opened_ms, t.updated_ms
FROM tasks t WHERE NOT EXISTS (SELECT 1 FROM journeys j WHERE j.record_task = t.task_id AND j.record_task <> x'')
"""


def list_lines(
    connection: sqlite3.Connection, *, agreements: Iterable[bytes] | None = None, state: str = "",
    unjudged: Iterable[bytes] = (), limit: int = MAX_LISTED,
) -> list[TaskLine]:  # fmt: skip
    """Return at most `limit` tasks that fit (up to one more than `MAX_LISTED`), the one that changed last first.

    Args:
        connection: the database.
        agreements: digests of terms; None: of all.
        state: empty: in every state.
        unjudged: digests of terms with a flow whose tasks need no review: they are "completed" when they are done.
        limit: see above.
    """
    rows = connection.execute(
        f"SELECT * FROM ({_WAYS} UNION ALL {_RECORDS}) WHERE (:state = '' OR state = :state)"
        " AND (:agreements IS NULL OR lower(hex(agreement_digest)) IN (SELECT value FROM json_each(:agreements)))"
        " ORDER BY updated_ms DESC, task_id LIMIT :limit",
        {
            "state": state,
            "agreements": None if agreements is None else _hex_list(agreements),
            "unjudged": _hex_list(unjudged),
            "limit": min(limit, MAX_LISTED + 1),
        },
    )
    return [TaskLine(*row) for row in rows]


def count_all(connection: sqlite3.Connection) -> Counted:
    """Return how much there is of everything that is counted."""
    ways = connection.execute(
        "SELECT CASE WHEN ending <> '' THEN ending WHEN held_by = '' THEN 'queued' ELSE 'leased' END AS stands,"
        " count(*) FROM journeys GROUP BY stands"
    )
    votes = connection.execute(
        "SELECT CASE WHEN accept THEN 'accept' ELSE 'reject' END AS v, count(*) FROM votes GROUP BY v"
    )
    return Counted(
        tasks=count_tasks_by_state(connection),
        journeys={str(state): int(count) for state, count in ways},
        votes={str(verdict): int(count) for verdict, count in votes},
        outbox=count_open(connection),
    )


def name_task(connection: sqlite3.Connection, prefix: str) -> bytes:
    """Return the id of the task, of a way or of a record, whose id in hex begins with `prefix`.

    Raises:
        NotFound: there is no such one, or there are several; or the beginning is too short.
    """
    digits = prefix.lower()
    if not re.fullmatch(rf"[0-9a-f]{{{_DIGITS},{_ID_DIGITS}}}", digits):
        raise NotFound(f"{prefix[:40]!r} is no beginning of a task's id: {_DIGITS} to {_ID_DIGITS} hex digits")
    span = (bytes.fromhex(digits.ljust(_ID_DIGITS, "0")), bytes.fromhex(digits.ljust(_ID_DIGITS, "f")))
    found = connection.execute(
        "SELECT task_id FROM journeys WHERE task_id BETWEEN ? AND ? UNION"
        " SELECT task_id FROM tasks WHERE task_id BETWEEN ? AND ? LIMIT 2",
        (*span, *span),
    ).fetchall()
    if len(found) == 1:
        return bytes(found[0][0])
    if found:
        raise NotFound(f"there are several tasks {digits!r}; give more digits")
    home = connection.execute("SELECT home FROM tokens_held WHERE task_id BETWEEN ? AND ? LIMIT 1", span).fetchone()
    if home is not None:
        raise NotFound(f"{digits!r} is a task of {home[0]} that is held here; its home knows its way")
    raise NotFound(f"there is no task {digits!r} of this organization here; `comity tasks list` names them")


def task_file(connection: sqlite3.Connection, task_id: bytes, unjudged: Iterable[bytes] = ()) -> TaskFile:
    """Return all that is kept of a task: by the id of its way, or by that of its record.

    Raises:
        NotFound: there is none.
    """
    way_id = journeys.journey_of_record(connection, task_id) or task_id
    which = {"unjudged": _hex_list(unjudged), "id": way_id}
    found = connection.execute(f"SELECT * FROM ({_WAYS} WHERE j.task_id = :id)", which).fetchone()
    if found is None:
        found = connection.execute(f"SELECT * FROM ({_RECORDS} AND t.task_id = :id)", which).fetchone()
    if found is None:
        raise NotFound(f"there is no task {task_id.hex()} here any more")
    line = TaskLine(*found)
    journey = journeys.get_journey(connection, line.task_id)
    way = journeys.way_of(connection, line.task_id) if journey is not None else ()
    row = b""
    if journey is not None:
        row = journey.state or (journey.checkpoint.state if journey.checkpoint is not None else b"")
    task = get_task(connection, task_id if journey is None else line.record_task)
    if task is None:
        return TaskFile(line, way, row, None)
    return TaskFile(
        line, way, row, task,
        votes=tuple(_votes(connection, task.task_id)),
        assignments=tuple(_assignments(connection, task.batch_id)),
        commitments=tuple(
            each
            for revision in range(task.revision + 1)
            for each in list_commitments(connection, task.batch_id, revision)
        ),
        stored=records.get_record(connection, task.task_id),
        messages=tuple(_messages(connection, task)),
    )  # fmt: skip


def entries_about(
    connection: sqlite3.Connection, tasks: Collection[str], subjects: Collection[str], since_ms: int
) -> tuple[list[audit.StoredEntry], bool]:
    """Return the entries of the audit log that name a task or have one of some subjects, and whether all are there.

    Args:
        connection: the database.
        tasks: ids in hex.
        subjects: digests in hex.
        since_ms: when the first of them can have been written, in milliseconds since the Unix epoch.

    Returns:
        The entries by their place; True if the search ended before the log did.
    """
    found: list[audit.StoredEntry] = []
    start = first = _first_since(connection, since_ms - _SKEW_MS)
    while start - first < _MAX_SEARCHED:
        page = connection.execute(
            "SELECT position, entry, hash FROM audit_entries WHERE position >= ? ORDER BY position LIMIT ?",
            (start, _PAGE),
        ).fetchall()
        for position, data, hashed in page:
            if _is_about(data, tasks, subjects):
                if len(found) == _MAX_ENTRIES:
                    return found, True
                found.append(audit_entry.decode(position, data, hashed))
        if len(page) < _PAGE:
            return found, False
        start += len(page)
    return found, True


def _is_about(data: bytes, tasks: Collection[str], subjects: Collection[str]) -> bool:
    subject, task = _SUBJECT.search(data), _TASK.search(data)
    return (subject is not None and subject[1].decode() in subjects) or (task is not None and task[1].decode() in tasks)


def _first_since(connection: sqlite3.Connection, since_ms: int) -> int:
    """Return the place of the first entry that is not older, by halves: entries are written in the order of time."""
    low, high = 0, int(connection.execute("SELECT coalesce(max(position) + 1, 0) FROM audit_entries").fetchone()[0])
    while low < high:
        middle = (low + high) // 2
        (entry,) = connection.execute("SELECT entry FROM audit_entries WHERE position = ?", (middle,)).fetchone()
        if json.loads(entry)["at_ms"] < since_ms:
            low = middle + 1
        else:
            high = middle
    return low


def _votes(connection: sqlite3.Connection, task_id: bytes) -> Iterable[VoteRow]:
    rows = connection.execute(
        "SELECT task_id, revision, organization, review, chain, accept, score, received_ms, subject FROM votes"
        " WHERE task_id = ? ORDER BY revision, received_ms, organization LIMIT ?",
        (task_id, _PAGE),
    )
    return [
        VoteRow(task, revision, organization, review, unpack(chain), bool(accept), score, received_ms, subject)
        for task, revision, organization, review, chain, accept, score, received_ms, subject in rows
    ]


def _assignments(connection: sqlite3.Connection, batch_id: bytes) -> Iterable[AssignmentRow]:
    rows = connection.execute(
        "SELECT batch_id, revision, organization, state, offered_ms, lease_until_ms FROM assignments"
        " WHERE batch_id = ? ORDER BY revision, offered_ms, organization LIMIT ?",
        (batch_id, _PAGE),
    )
    return [AssignmentRow(*row) for row in rows]


def _messages(connection: sqlite3.Connection, task: TaskRow) -> Iterable[OutboxRow]:
    """Return the offers of the task's batch, and the deliveries of what was certified with it.

    A delivery is named by the tasks that are in it: those of the batch that were certified at once, if all of them may
    go to whom it is for.
    """
    together = connection.execute(
        "SELECT task_id FROM tasks WHERE batch_id = ? AND state = 'certified' AND updated_ms = ? ORDER BY ordinal",
        (task.batch_id, task.updated_ms),
    ).fetchall()
    names = [f"offer/{task.batch_id.hex()}/"]
    if task.state == "certified":
        names.append(f"records/{hex_digest(b''.join(each for (each,) in together))}/")
    rows: list[tuple[Any, ...]] = []
    for name in names:
        rows += connection.execute(
            "SELECT message_id, organization, kind, x'', dedup_key, created_ms, expires_ms, not_before_ms, priority,"
            " attempts, state, reason FROM outbox WHERE dedup_key >= ? AND dedup_key < ? ORDER BY created_ms LIMIT ?",
            (name, name[:-1] + "0", _PAGE),
        ).fetchall()
    return [OutboxRow(*row) for row in rows]


def _hex_list(digests: Iterable[bytes]) -> str:
    return json.dumps([digest.hex() for digest in digests])
