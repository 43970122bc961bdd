"""`kill -9` of a sender and of a receiver in the middle of a transfer: it goes on where it was, and arrives whole."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from comity_node.storage import audit
from comity_node.storage import bulk as journal
from comity_node.storage.connections import connect_readonly
from kit import bulk_process
from kit.bulk import policy, table
from kit.consortium import consortium, names

ROWS = 500_000
KIT = Path(bulk_process.__file__)


@contextmanager
def process(*arguments: object, stop_at: int = 0) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(KIT), *map(str, arguments)]
    path = os.pathsep.join([str(KIT.parent.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "BULK_STOP_AT": str(stop_at)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as child:
        try:
            yield child
        finally:
            child.kill()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    said = child.stdout.readline()
    assert said, child.stderr.read() if child.stderr else ""
    return said.strip()


def until(child: subprocess.Popen[str], wanted: str) -> list[str]:
    """Lines up to the one that begins with `wanted`."""
    said = [line(child)]
    while not said[-1].startswith(wanted):
        said.append(line(child))
    return said


def rest(child: subprocess.Popen[str]) -> list[str]:
    """What it said before it was killed; the last line may be cut."""
    assert child.stdout is not None
    return [said for said in child.stdout.read().split("\n")[:-1] if said]


@pytest.mark.slow
@pytest.mark.invariant("R1")
def test_killed_at_any_moment_it_arrives_whole_and_nothing_verified_is_sent_twice(tmp_path: Path) -> None:
    organizations = names(2)
    rules = policy("ORGANIZATION").replace("{", "{{").replace("}", "}}").replace("ORGANIZATION", "{organization}")
    sender, receiver = bulk_process.write_homes(consortium(*organizations), tmp_path, rules)
    source = tmp_path / "table.parquet"
    pq.write_table(table(ROWS), source)
    rng = random.Random(2511)
    written: list[str] = []

    # The receiver dies under the first try of the sender, which waits for it to come back; then the sender dies.
    with process("receive", receiver, sender, stop_at=rng.randrange(20, 60)) as taking:
        until(taking, "ready")
        with process("send", sender, receiver, source) as sending:
            written += until(taking, "stopped")
            taking.kill()
            name = until(sending, "waiting")[-1].split()[-1]
            with process("receive", receiver, sender, stop_at=rng.randrange(20, 60)) as again:
                until(again, "ready")
                written += until(again, "stopped")
                sending.kill()
                assert again.stdin is not None
                again.stdin.write("\n")
                again.stdin.flush()
                with process("resume", sender, receiver, name) as resuming:
                    until(resuming, "done")
                again.kill()
                written += rest(again)

    chunks = [said for said in written if said.startswith("wrote")]
    assert len(chunks) == len(set(chunks)), "no chunk that was verified and written came again"
    for home, direction in ((sender, "out"), (receiver, "in")):
        audit.verify_file(home / "node.db", None)
        with closing(connect_readonly(home / "node.db")) as connection:
            (row,) = journal.list_bulk(connection)
        assert (row.direction, row.state, row.row_count) == (direction, "done", ROWS)
    received = receiver / "bulk" / "inbox" / f"{name}.arrow"
    assert pa.ipc.open_stream(received.read_bytes()).read_all() == table(ROWS)
