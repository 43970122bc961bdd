"""What the journals of all organizations say when everything is over: read from their files, as an auditor would."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comity.certificate import CheckedReview, check_review
from comity.trust import TrustStore
from comity.v1.task_pb2 import Certificate, ReviewDelivery
from comity_node.storage import journeys

_JOURNEYS = "SELECT task_id, agreement_digest, ending, reason, record_task FROM journeys"


@dataclass(frozen=True, slots=True)
class Task:
    """A task at its home."""

    id: bytes
    agreement: bytes
    batch: bytes
    revision: int
    state: str
    record: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class Vote:
    """A vote at the home of what was voted on."""

    task: bytes
    revision: int
    organization: str
    review: bytes
    accept: int
    received_ms: int


@dataclass(frozen=True, slots=True)
class Custody:
    """A batch that was taken to be reviewed."""

    digest: bytes
    home: str
    batch: bytes
    revision: int
    agreement: bytes
    state: str
    reviews: tuple[CheckedReview, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A certified record."""

    task: bytes
    author: str
    record: bytes
    digest: bytes
    provenance: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """A message that was to leave."""

    organization: str
    kind: str
    key: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Journey:
    """A task on its way from organization to organization, at its home; `way` has its signed hops."""

    id: bytes
    agreement: bytes
    ending: str
    reason: str
    record: bytes
    way: tuple[bytes, ...]


@dataclass(frozen=True)
class Journal:
    """One organization's.

    Attributes:
        assignments: state, end of the lease and when it was offered, by batch, revision and organization.
        taken: ids of tasks that came to be reviewed, by agreement and home.
        counted: how many tasks of a home were counted against its quota, by agreement and home.
        reliability: agreed and disagreed, by organization and role.
        certifying: the votes that stand in the certificates of its own tasks.
        audit: entries in their order; the index is the place.
        agreements: signed by all, by digest.
        workflows: state and agreement by id.
        journeys: of its own tasks.
    """

    name: str
    tasks: Mapping[bytes, Task]
    votes: tuple[Vote, ...]
    custody: Mapping[bytes, Custody]
    records: Mapping[tuple[str, bytes], Stored]
    outbox: tuple[Message, ...]
    assignments: Mapping[tuple[bytes, int, str], tuple[str, int, int]]
    taken: Mapping[tuple[bytes, str], frozenset[bytes]]
    counted: Mapping[tuple[bytes, str], int]
    reliability: Mapping[tuple[str, str], tuple[float, float]]
    certifying: frozenset[bytes]
    audit: tuple[Mapping[str, Any], ...]
    agreements: Mapping[bytes, bytes]
    workflows: Mapping[str, tuple[str, bytes | None]]
    equivocations: int
    journeys: tuple[Journey, ...]


def read(name: str, file: Path, trust: TrustStore) -> Journal:
    """Read the journal of an organization.

    Raises:
        ComityError: a review that it has signed does not verify.
    """
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        rows = connection.execute
        return Journal(
            name=name,
            tasks={
                row[0]: Task(*row)
                for row in rows(
                    "SELECT task_id, agreement_digest, batch_id, revision, state, record, record_digest FROM tasks"
                )
            },
            votes=tuple(
                Vote(*row)
                for row in rows("SELECT task_id, revision, organization, review, accept, received_ms FROM votes")
            ),
            custody={
                digest: Custody(digest, home, batch, revision, agreement, state, _reviews(body, trust))
                for digest, home, batch, revision, agreement, state, body in rows(
                    "SELECT digest, home, batch_id, revision, agreement_digest, state, reviews FROM inbox"
                )
            },
            records={
                (row[1], row[0]): Stored(*row)
                for row in rows("SELECT task_id, author, record, record_digest, provenance FROM records")
            },
            outbox=tuple(
                Message(*row) for row in rows("SELECT organization, kind, dedup_key, state, reason FROM outbox")
            ),
            assignments={
                row[:3]: row[3:]
                for row in rows(
                    "SELECT batch_id, revision, organization, state, lease_until_ms, offered_ms FROM assignments"
                )
            },
            taken=_taken(connection),
            counted=_counted(connection),
            reliability={
                row[:2]: row[2:] for row in rows("SELECT organization, role, agreed, disagreed FROM reliability")
            },
            certifying=frozenset(
                vote.review
                for (data,) in rows("SELECT certificate FROM records WHERE author = ?", (name,))
                for vote in Certificate.FromString(data).votes
            ),
            audit=tuple(json.loads(entry) for (entry,) in rows("SELECT entry FROM audit_entries ORDER BY position")),
            agreements=dict(rows("SELECT digest, agreement FROM agreements").fetchall()),
            workflows={row[0]: row[1:] for row in rows("SELECT workflow_id, state, agreement_digest FROM workflows")},
            journeys=tuple(
                Journey(task, agreement, ending, reason, record, journeys.way_of(connection, task))
                for task, agreement, ending, reason, record in rows(_JOURNEYS).fetchall()
            ),
            equivocations=rows("SELECT count(*) FROM equivocations").fetchone()[0],
        )


def _reviews(body: bytes | None, trust: TrustStore) -> tuple[CheckedReview, ...]:
    if not body:
        return ()
    delivery = ReviewDelivery.FromString(body)
    return tuple(check_review(one.review, delivery.chain, trust) for one in delivery.reviews)


def _taken(connection: sqlite3.Connection) -> dict[tuple[bytes, str], frozenset[bytes]]:
    taken: defaultdict[tuple[bytes, str], set[bytes]] = defaultdict(set)
    for agreement, home, task in connection.execute("SELECT agreement_digest, home, task_id FROM reviewed"):
        taken[agreement, home].add(task)
    return {key: frozenset(tasks) for key, tasks in taken.items()}


def _counted(connection: sqlite3.Connection) -> dict[tuple[bytes, str], int]:
    rows = connection.execute(
        "SELECT rule_id, sum(amount) FROM rate_buckets WHERE rule_id LIKE 'agreement/%' GROUP BY rule_id"
    )
    counted = {}
    for rule, amount in rows:
        _, digest, home = rule.split("/")
        counted[bytes.fromhex(digest), home] = int(amount)
    return counted
