"""`kill -9` of a real process that writes: whatever it acknowledged is there, and the audit log verifies."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from comity.signing import PrivateKey
from comity_node.storage import audit, journal
from comity_node.storage.connections import connect_readonly

ROUNDS = 6
WRITERS = 8
KEY = PrivateKey(b"k" * 32)

#: Each writer journals and audits a task in one transaction, reserves rate in another, and says so when each is done.
CHILD = """
import sys
from pathlib import Path
import trio
from comity.digest import sha256
from comity.signing import PrivateKey
from comity_node.storage import audit, journal
from comity_node.storage.database import Database

key = PrivateKey(b"k" * 32)
log = audit.AuditLog(audit.NoteSigner("mercy.example/node/n1", key.public_key, key.sign), every=8)
terms = sha256(b"terms")
path, round_number, writers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])


async def write(database, writer):
    count = 0
    while True:
        name = f"{round_number}-{writer}-{count}"
        task_id = sha256(name.encode())[:16]
        task = journal.TaskRow(task_id, terms, "w", bytes(16), 0, 0, "journaled", name.encode(), sha256(name.encode()))

        def both(connection):
            ref = log.append(connection, audit.AuditEntry("effect", subject=task.record_digest), count)
            assert journal.put_tasks(connection, [task]) == 1
            return ref.index

        index = await database.transact(both)
        print("task", name, index, flush=True)
        assert await database.transact(lambda c: journal.reserve(c, f"rule-{writer}", 10**9, 10**9, 1, 5))
        print("rate", writer, flush=True)
        count += 1


async def main():
    database = Database.open(path)
    agreement = journal.AgreementRow(terms, b"", "mercy.example", "p", "d", 10, "active", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.run)
        await database.transact(lambda c: journal.put_agreement(c, agreement))
        for writer in range(writers):
            nursery.start_soon(write, database, writer)


trio.run(main)
"""


def run_and_kill(path: Path, round_number: int, after_lines: int) -> list[str]:
    """Run the child until it has printed so many lines, kill it, and return all that it acknowledged."""
    command = [sys.executable, "-c", CHILD, str(path), str(round_number), str(WRITERS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines: list[str] = []
        try:
            for line in child.stdout:
                lines.append(line)
                if len(lines) == after_lines:
                    os.kill(child.pid, signal.SIGKILL)
            assert child.wait(30) == -signal.SIGKILL, child.stderr.read() if child.stderr else ""
        finally:
            child.kill()
    # The kill may have cut the last line; what is cut was not said.
    return [line for line in lines if line.endswith("\n")]


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
@pytest.mark.invariant("S8")
def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    rng = random.Random(2511)
    tasks: dict[str, int] = {}
    rates: dict[str, int] = {}
    for round_number in range(ROUNDS):
        for line in run_and_kill(path, round_number, rng.randrange(5, 400)):
            kind, name, *rest = line.split()
            if kind == "task":
                tasks[name] = int(rest[0])
            else:
                rates[name] = rates.get(name, 0) + 1
        report = audit.verify_file(path, KEY.public_key)
        assert report.unsigned < 8
        check(path, tasks, rates, report.entries, (round_number + 1) * WRITERS)
    assert len(tasks) > ROUNDS


def check(path: Path, tasks: dict[str, int], rates: dict[str, int], entries: int, in_flight: int) -> None:
    """Everything acknowledged is there, once; what is there beyond it was in flight when a round was killed."""
    connection = connect_readonly(path)
    try:
        stored = _stored_tasks(connection)
        for name, index in tasks.items():
            assert name in stored
            (entry,) = audit.entries(connection, start=index, limit=1)
            assert entry.entry.subject == stored[name].record_digest
        assert len(stored) == entries, "a task and its audit entry are there together or not at all"
        assert len(stored) - len(tasks) <= in_flight
        for writer, count in rates.items():
            assert 0 <= journal.reserved(connection, f"rule-{writer}", 10**9, 5) - count <= in_flight
    finally:
        connection.close()


def _stored_tasks(connection: sqlite3.Connection) -> dict[str, journal.TaskRow]:
    stored: dict[str, journal.TaskRow] = {}
    after = b""
    while page := journal.list_tasks(connection, after=after):
        stored |= {task.record.decode(): task for task in page}
        after = page[-1].task_id
    return stored
