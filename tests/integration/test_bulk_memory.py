"""Memory of both sides of a transfer is bounded, whatever the table's size."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from kit import bulk_process
from kit.bulk import policy
from kit.consortium import consortium, names

KIT = Path(bulk_process.__file__)
MIB = 1024 * 1024
TABLE_BYTES = 320 * MIB
#: Kilobytes over what a process has when it is ready.
MOST_EXTRA_KB = 64 * 1024


@contextmanager
def process(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(KIT), *map(str, arguments)]
    path = os.pathsep.join([str(KIT.parent.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "BULK_CHUNK": str(MIB)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        try:
            yield child
        finally:
            child.kill()


def until(child: subprocess.Popen[str], wanted: str) -> str:
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(wanted):
            return line
    pytest.fail(child.stderr.read() if child.stderr else "it ended")


def write_table(path: Path) -> None:
    columns, rows = 16, 8192
    rng = np.random.default_rng(7)
    schema = pa.schema([(f"c{number}", pa.float64()) for number in range(columns)])
    with pa.ipc.new_file(str(path), schema) as writer:
        for _ in range(TABLE_BYTES // (columns * rows * 8)):
            writer.write_batch(pa.record_batch([pa.array(rng.random(rows)) for _ in range(columns)], schema=schema))


@pytest.mark.slow
@pytest.mark.invariant("S7")
def test_hundreds_of_megabytes_in_tens(tmp_path: Path) -> None:
    owed = "obligations: {redact: [c1], generalize: {c0: 0.1, c2: 0.001}}"
    rules = policy("ORGANIZATION", send=owed, receive="obligations: {generalize: {c0: 0.05}}")
    rules = rules.replace("{", "{{").replace("}", "}}").replace("ORGANIZATION", "{organization}")
    sender, receiver = bulk_process.write_homes(consortium(*names(2)), tmp_path, rules)
    write_table(tmp_path / "table.arrow")
    with process("receive", receiver, sender) as taking:
        until(taking, "ready")
        with process("send", sender, receiver, tmp_path / "table.arrow") as sending:
            sent = until(sending, "rss")
        received = until(taking, "rss")
    for who, line in (("sender", sent), ("receiver", received)):
        _, base, peak = line.split()
        extra_kb = int(peak) - int(base)
        print(f"{who}: {int(base) // 1024} MiB when ready, {extra_kb / 1024:.1f} MiB more at most")
        assert extra_kb < MOST_EXTRA_KB, who
