"""`kill -9` of one hospital's node and of another's worker in the middle of the demo's work.

Real processes, real keys, real models. Nothing that was acknowledged is lost, and the numbers add up.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from comity.bundle import load_bundle
from comity.client import Client
from comity.provenance import verify_provenance
from comity.trust import NodeIdentity, TrustStore
from comity_node.demo import scenario
from comity_node.demo.data import breast_cancer
from comity_node.demo.homes import HOSPITALS, Home, make_homes
from comity_node.demo.processes import Processes, wait_until
from comity_node.network import now_ms
from comity_node.storage import audit
from comity_node.storage.inbox import offer_digest

SIZE = scenario.Size(records=20, batch=10)
NODE, WORKER = HOSPITALS[1], HOSPITALS[2]
PATIENCE_S = 120.0


class File:
    """A node's database file, read from outside."""

    def __init__(self, home: Home) -> None:
        self.organization, self.path = home.organization, home.path / "node.db"

    def rows(self, sql: str, *values: object) -> list[Any]:
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            return connection.execute(sql, values).fetchall()

    def ids(self, sql: str) -> set[Any]:
        return {row if len(row) > 1 else row[0] for row in self.rows(sql)}

    def acknowledged(self, by: str) -> set[str]:
        """What `by` has acknowledged to this node: keys of its outbox."""
        rows = self.rows("SELECT dedup_key FROM outbox WHERE organization = ? AND state = 'done'", by)
        return {key for (key,) in rows}


def has_all_that_it_acknowledged(node: File, others: Sequence[File]) -> int:
    """Check it against what the others were told; returns how many messages that were."""
    custody = node.ids("SELECT digest FROM inbox")
    agreements = {digest.hex() for digest in node.ids("SELECT digest FROM agreements")}
    batches = node.ids("SELECT batch_id, revision FROM assignments")
    told = 0
    for other in others:
        for key in other.acknowledged(node.organization):
            kind, about, *rest = key.split("/")
            told += 1
            if kind == "agreement":
                assert about in agreements
            elif kind == "offer":
                digest = offer_digest(other.organization, bytes.fromhex(about), int(rest[0]))
                assert digest in custody, f"{node.organization} took a batch of {other.organization} and has it not"
            elif kind == "reviews":
                (reviewed,) = {one for one in batches if offer_digest(node.organization, *one).hex() == about}
                votes = node.rows(
                    "SELECT count(*) FROM votes JOIN tasks USING (task_id)"
                    " WHERE batch_id = ? AND votes.revision = ? AND organization = ?",
                    *reviewed,
                    other.organization,
                )
                assert votes[0][0] > 0, f"{node.organization} took votes of {other.organization} and has them not"
    return told


def kept(node: File) -> dict[str, set[Any]]:
    """What a node has on disk and must never lose."""
    return {
        "tasks": node.ids("SELECT task_id FROM tasks"),
        "decided": node.ids("SELECT task_id, state FROM tasks WHERE state IN ('certified', 'rejected')"),
        "custody": node.ids("SELECT digest FROM inbox"),
        "reviews": node.ids("SELECT digest, reviews FROM inbox WHERE state = 'done'"),
        "votes": node.ids("SELECT review FROM votes"),
        "records": node.ids("SELECT task_id, record_digest FROM records"),
        "messages": node.ids("SELECT dedup_key FROM outbox"),
        "audit": node.ids("SELECT position, hash FROM audit_entries"),
    }


@contextmanager
def organizations(directory: Path) -> Iterator[tuple[list[Home], Processes]]:
    with tempfile.TemporaryDirectory(prefix="comity") as sockets:
        homes, _ = make_homes(directory / "organizations", Path(sockets), breast_cancer(), seed=0)
        with Processes(homes) as processes:
            yield homes, processes


def running(directory: Path) -> list[str]:
    """Command lines of processes that work under `directory`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            environment = (entry / "environ").read_bytes()
        except OSError:  # it has ended meanwhile, or is not ours to look at
            continue
        if os.fsencode(directory) in command + environment and int(entry.name) != os.getpid():
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def in_the_middle(files: Sequence[File], node: File) -> bool:
    """The node's own records are being reviewed, it has reviewed for others, and most is still to be done."""
    states = {file.organization: dict(file.rows("SELECT state, count(*) FROM tasks GROUP BY state")) for file in files}
    decided = sum(count for counts in states.values() for state, count in counts.items() if state in scenario.FINAL)
    return (
        states[node.organization].get("in_review", 0) > 0
        and bool(node.rows("SELECT 1 FROM inbox LIMIT 1"))
        and decided < SIZE.records * len(files) / 2
    )


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
@pytest.mark.invariant("R3")
@pytest.mark.invariant("R5")
def test_killed_processes_lose_nothing_and_the_counts_add_up(tmp_path: Path) -> None:
    with organizations(tmp_path) as (homes, processes):
        files = [File(home) for home in homes]
        victim = next(file for file in files if file.organization == NODE)
        others = [file for file in files if file is not victim]
        scenario.start(homes, processes, print)
        workflow_id, agreed = scenario.negotiate(homes, processes, SIZE, print)
        wait_until(
            "the work is half way",
            lambda: in_the_middle(files, victim),
            timeout_s=PATIENCE_S,
            check=processes.check,
        )
        processes.kill(processes._running[f"{NODE} node"])
        processes.kill(processes._running[f"{WORKER} worker"])
        told = has_all_that_it_acknowledged(victim, others)
        before = kept(victim)
        assert told > 0
        assert before["custody"]

        processes.start_node(NODE)
        processes.start_worker(WORKER)
        scenario.work(homes, processes, workflow_id, SIZE, lambda counts: None)

        counts = scenario.task_counts(homes, workflow_id)
        for organization, states in counts.items():
            assert set(states) <= set(scenario.FINAL), organization
            assert sum(states.values()) == SIZE.records, f"{organization}: {states}"
        after = kept(victim)
        lost = {name: seen - after[name] for name, seen in before.items() if seen - after[name]}
        assert not lost
        has_all_that_it_acknowledged(victim, others)
        same_records_everywhere(homes, sum(states.get("certified", 0) for states in counts.values()))
        one_provenance_verifies(homes, agreed.agreement_digest)
        processes.stop()
        for home, file in zip(homes, files, strict=True):
            assert not file.rows("SELECT 1 FROM equivocations"), "nobody signed two votes on one record"
            report = audit.verify_file(file.path, identity(home).key.public_key)
            assert report.unsigned == 0
    assert not running(tmp_path)


def identity(home: Home) -> NodeIdentity:
    keys = home.path / "keys"
    return NodeIdentity.load(keys / "node.key", keys / "node.chain.pem")


def same_records_everywhere(homes: Sequence[Home], certified: int) -> None:
    stores = []
    for home in homes:
        with Client(home.control) as client:
            stores.append({(record.task_id, record.record_digest) for record in client.records()})
    assert certified > 0
    assert [len(store) for store in stores] == [certified] * len(homes)
    assert all(store == stores[0] for store in stores)


def one_provenance_verifies(homes: Sequence[Home], agreement_digest: str) -> None:
    holder = homes[0]
    trust = TrustStore(load_bundle(holder.path / "consortium.json", now_ms=now_ms(), own_ca=None))
    with Client(holder.control) as client:
        found = next(record for record in client.records(author=NODE))
        proof = verify_provenance(client.record(found.task_id).provenance, trust)
    assert (proof.author, proof.holder) == (NODE, holder.organization)
    assert proof.agreed.digest.hex() == agreement_digest
