"""The parts that a record passes, each alone in one process, beside what is naturally compared with it.

The documents are real: the records, certificates and provenance that five organizations made in a run before.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import cedarpy
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bench.common import Cell, Ratio, cell, compare, interleave, rate
from comity.bundle import load_bundle
from comity.certificate import verify_certificate
from comity.digest import sha256
from comity.envelope import open_message, seal
from comity.provenance import verify_provenance
from comity.signing import PrivateKey
from comity.trust import TrustStore
from comity_node.demo.data import PRIVATE_FILE, SCHEMA_FILE, load_table
from comity_node.demo.generator import Generator
from comity_node.demo.homes import HOSPITALS, ORGANIZATIONS, Home
from comity_node.demo.policies import DATASET, PURPOSE, policy_for
from comity_node.policy import cedar
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Request
from comity_node.storage import audit
from comity_node.storage.audit_entry import encode
from comity_node.storage.connections import connect_readonly
from comity_node.storage.database import open_database
from comity_node.validators.schema import Schema
from comity_node.validators.tabular import DEFAULT_MIN_SCORE, Validator

OURS = "comity"
_MESSAGE_BYTES = 1024
_BATCH_ROWS = 20
_BATCHES = 15
#: Entries in one measurement: by so many tasks at a time, each waiting for its own to be on the disk.
_APPENDERS, _APPENDS_EACH = 128, 16
_APPENDS_ALONE = 200
_DOCUMENTS = 50

Arms = Mapping[str, Callable[[], float]]


def measure(homes: Sequence[Home], scratch: Path, repeats: int) -> tuple[list[Cell], list[Ratio]]:
    """Measure all works.

    Args:
        homes: of organizations that have certified records, and do not run any more.
        scratch: an empty directory.
        repeats: runs of each arm that count.
    """
    works: list[tuple[str, str, Arms]] = [
        ("seal", "messages/s", _seal_arms()),
        ("open", "messages/s", _open_arms()),
        ("decide", "decisions/s", _decide_arms()),
        ("audit-append", "entries/s", audit_arms(scratch)),
        *_proof_works(homes[0]),
        ("review-20-rows", "batches/s", _review_arms(homes[0], homes[1], scratch / "validator")),
    ]
    cells: list[Cell] = []
    ratios: list[Ratio] = []
    for work, unit, arms in works:
        measured = [cell(work, arm, runs, unit) for arm, runs in interleave(arms, repeats).items()]
        ours = [each for each in measured if each.arm.startswith(OURS)]
        peers = [each for each in measured if each not in ours]
        cells += measured
        ratios += [compare(mine, peer) for mine in ours for peer in peers]
    return cells, ratios


def _seal_arms() -> Arms:
    key, body = PrivateKey.generate(), random.Random(1).randbytes(_MESSAGE_BYTES)
    audience, message_id = PrivateKey.generate().peer_id, os.urandom(16)
    peer = key.to_cryptography()
    return {
        OURS: lambda: rate(
            lambda: seal(key, "records", body, audience=audience, message_id=message_id, now_ms=1_700_000_000_000)
        ),
        "cryptography-ed25519": lambda: rate(lambda: peer.sign(body)),
    }


def _open_arms() -> Arms:
    key, body = PrivateKey.generate(), random.Random(1).randbytes(_MESSAGE_BYTES)
    audience = PrivateKey.generate().peer_id
    sealed = seal(key, "records", body, audience=audience, message_id=os.urandom(16), now_ms=1_700_000_000_000)
    kinds = frozenset({"records", "reviews"})
    public, signature = key.public_key, key.sign(body)

    def peer() -> None:
        # The key is parsed each time, as it is for us: it comes with the message.
        Ed25519PublicKey.from_public_bytes(public).verify(signature, body)

    return {
        OURS: lambda: rate(lambda: open_message(sealed, kinds)),
        "cryptography-ed25519": lambda: rate(peer),
    }


def _decide_arms() -> Arms:
    """A hospital's policy and what its node asks it in a workflow: four of five requests are allowed."""
    me, other = HOSPITALS[:2]
    policy = loads_policy(policy_for(me, ORGANIZATIONS, bad=False))
    fields = frozenset(f"field_{number}" for number in range(31))

    def ask(action: str, kind: str, organization: str = other) -> Request:
        return Request(action, organization, "validator", PURPOSE, DATASET, kind, fields)

    asked = [
        ask("record.send", "synthetic"),
        ask("record.receive", "synthetic"),
        ask("review.receive", "synthetic"),
        ask("record.accept", "certified"),
        ask("record.send", "raw"),
    ]
    exported = cedar.export(policy.document)
    peer_asked = [cedar.to_request(each) for each in asked] * 20
    peer_policies = cedarpy.PolicySet.from_str(exported.policies)
    peer_entities = cedarpy.Entities.from_json_str(json.dumps(list(exported.entities)))

    def ours() -> None:
        for each in asked:
            policy.decide(each)

    def peer() -> None:
        cedarpy.is_authorized_batch(peer_asked, peer_policies, peer_entities)

    return {OURS: lambda: rate(ours, count=len(asked)), "cedarpy": lambda: rate(peer, count=len(peer_asked))}


def _entry(number: int) -> audit.AuditEntry:
    return audit.AuditEntry(
        kind="decision",
        action="record.send",
        decision="allow",
        rules=("offer-synthetic-tumours",),
        peer=HOSPITALS[1],
        subject=sha256(number.to_bytes(8, "big")),
        policy=sha256(b"policy"),
        agreement=sha256(b"agreement"),
        detail={"purpose": PURPOSE, "dataset": DATASET, "kind": "synthetic", "reason": "allowed by one rule"},
    )


def audit_arms(scratch: Path) -> Arms:
    """Entries on the disk a second: many tasks that share commits, one task alone, and SQLite with a commit each."""
    files = (scratch / f"audit-{number}.db" for number in itertools.count())
    return {
        OURS: lambda: trio.run(_append, next(files), _APPENDERS, _APPENDS_EACH),
        "sqlite-commit-each": lambda: _commit_each(next(files), _APPENDS_ALONE),
        f"{OURS}-one-at-a-time": lambda: trio.run(_append, next(files), 1, _APPENDS_ALONE),
    }


async def _append(path: Path, appenders: int, each: int) -> float:
    async with open_database(path) as database:

        async def append() -> None:
            for number in range(each):
                entry = _entry(number)
                await database.transact(lambda c: audit.append(c, entry, 1_700_000_000_000))  # noqa: B023

        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(appenders):
                nursery.start_soon(append)
        return appenders * each / (time.perf_counter() - began)


def _commit_each(path: Path, count: int) -> float:
    """Insert rows as large as the entries, each in a commit of its own, as durable as ours; no chain, no tree."""
    data = random.Random(1).randbytes(len(encode(_entry(0), 0, bytes(32), 1_700_000_000_000)))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE entries (position INTEGER PRIMARY KEY, entry BLOB NOT NULL) STRICT")
        began = time.perf_counter()
        for _ in range(count):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO entries (entry) VALUES (?)", (data,))
            connection.execute("COMMIT")
        return count / (time.perf_counter() - began)


def _proof_works(home: Home) -> list[tuple[str, str, Arms]]:
    """Check what lies in a record store. Chains were seen before: a node and an auditor meet the same ones again."""
    trust = TrustStore(load_bundle(home.path / "consortium.json", now_ms=time.time_ns() // 1_000_000, own_ca=None))
    with closing(connect_readonly(home.path / "node.db")) as database:
        rows = database.execute("SELECT provenance FROM records LIMIT ?", (_DOCUMENTS,)).fetchall()
    provenances = itertools.cycle([data for (data,) in rows])
    opened = itertools.cycle([verify_provenance(data, trust) for (data,) in rows])

    def check_certificate() -> None:
        proof = next(opened)
        verify_certificate(
            proof.certificate,
            record=proof.record,
            participants=proof.agreed.participants,
            rule=proof.agreed.rule,
            min_score=proof.agreed.terms.review.min_score,
            trust=trust,
        )

    return [
        ("verify-certificate", "certificates/s", {OURS: lambda: rate(check_certificate)}),
        ("verify-provenance", "records/s", {OURS: lambda: rate(lambda: verify_provenance(next(provenances), trust))}),
    ]


def _review_arms(reviewer: Home, author: Home, directory: Path) -> Arms:
    """Batches of 20 rows that are new each time: one organization's generator, another one's validator."""
    schema = Schema.load(reviewer.data / SCHEMA_FILE)
    private = load_table(reviewer.data / PRIVATE_FILE, schema)
    generator = Generator(load_table(author.data / PRIVATE_FILE, schema))
    validator = Validator.build(directory, private.rows, private.labels, schema, provider="cpu")
    seeds = itertools.count()

    def review() -> float:
        batches = [generator.sample(_BATCH_ROWS, next(seeds)) for _ in range(_BATCHES)]
        began = time.perf_counter()
        for batch in batches:
            validator.review(author.organization, batch, DEFAULT_MIN_SCORE)
        return _BATCHES / (time.perf_counter() - began)

    return {OURS: review}
