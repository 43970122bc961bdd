"""Decisions of the audit log, explained: by the policy that made them, where it was kept, and beside today's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from comity.envelope import open_document
from comity.errors import ComityError, ConfigError
from comity.hops import KIND
from comity.v1.task_pb2 import Hop
from comity_node.admission.archive import Archive, Recorded, recall_policy
from comity_node.policy.diff import Asked, Change, classify, labels_asked, untold
from comity_node.policy.engine import Policy
from comity_node.policy.explain import Explanation, explain
from comity_node.storage import inbox, journal, records

_MAX_POLICIES = 64


@dataclass(frozen=True, slots=True)
class Retrospect:
    """A decision of the log with its reasons.

    Attributes:
        recorded: the log's entry and the request.
        explanation: what the policy of that time says to the request; None if the request was not kept. If that policy
            was not kept, it is today's that speaks (`by_today`).
        by_today: whether `explanation` is today's policy's, for want of the one that decided.
        notes: what a reader has to know about it.
    """

    recorded: Recorded
    explanation: Explanation | None
    by_today: bool
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        stored = self.recorded.entry
        return {
            "index": stored.index,
            "at_ms": stored.at_ms,
            "recorded": {
                "action": stored.entry.action,
                "organization": stored.entry.peer,
                "decision": stored.entry.decision,
                "determined_by": list(stored.entry.rules),
                "reason": str(stored.entry.detail.get("reason", "")),
            },
            "policy": stored.entry.policy.hex(),
            "explained_by_todays_policy": self.by_today,
            "notes": list(self.notes),
            "explanation": None if self.explanation is None else self.explanation.to_json(),
        }

    def lines(self) -> list[str]:
        """Return it as lines for a person, without the time."""
        entry = self.recorded.entry.entry
        said = f"{entry.decision} {entry.action} with {entry.peer}: {entry.detail.get('reason', '')}"
        body = [] if self.explanation is None else self.explanation.text().splitlines()
        return [said, *(f"! {note}" for note in self.notes), *body]


class Historian:
    """Explains the decisions of one node's log."""

    def __init__(self, connection: sqlite3.Connection, today: Policy | None) -> None:
        """Read from a connection to a node's database; `today` is the active policy, if it is known."""
        self._connection = connection
        self._archive = Archive(connection)
        self._today = today
        self._policies: dict[bytes, Policy | None] = {}
        self._problems: dict[bytes, str] = {}

    def entry(self, index: int) -> Retrospect:
        """Explain the decision at `index` of the log.

        Raises:
            ConfigError: there is no such entry, or it is no decision.
            AuditBroken: what is stored does not fit together.
        """
        return self.explain(self._archive.entry(index))

    def task(self, task_id: bytes) -> Iterator[Retrospect]:
        """Explain all decisions about a task's record, in each of its revisions, oldest first.

        Raises:
            ConfigError: this node knows no such task.
            AuditBroken: what is stored does not fit together.
        """
        subjects = record_digests(self._connection, task_id)
        if not subjects:
            raise ConfigError(
                f"this node has no task {task_id.hex()}; `comity records list` and `comity workflow show` name tasks"
            )
        return map(self.explain, self._archive.about(subjects))

    def explain(self, recorded: Recorded) -> Retrospect:
        """Explain one decision."""
        digest = recorded.entry.entry.policy
        made_by = self._policy(digest)
        today = self._today
        notes: list[str] = []
        if today is not None and today.digest != digest:
            notes.append(f"the policy of that time ({digest.hex()[:16]}) is not today's ({today.digest.hex()[:16]})")
        if made_by is None:
            notes.append(self._problems.get(digest, "the policy of that time was not kept"))
        if recorded.request is None:
            notes.append("the request was not kept, so all that is known is what the log says")
            return Retrospect(recorded, None, False, tuple(notes))
        speaker = made_by or today
        if speaker is None:
            return Retrospect(recorded, None, False, tuple(notes))
        explanation = explain(speaker, recorded.request)
        if made_by is None:
            notes.append("today's policy speaks instead, and may say something else than was decided")
        elif explanation.decision.allowed and recorded.entry.entry.decision != "allow":
            notes.append(
                "the policy alone allows it: a limit of the rule that was used up, a person, or a form that cannot be"
                " had said no"
            )
        elif not explanation.decision.allowed and recorded.entry.entry.decision == "allow":
            notes.append("it was allowed, and the same policy denies what was kept of the request")
        notes += self._beside_today(recorded, made_by)
        return Retrospect(recorded, explanation, made_by is None, tuple(notes))

    def _beside_today(self, recorded: Recorded, made_by: Policy | None) -> list[str]:
        today = self._today
        if today is None or made_by is None or recorded.request is None or today.digest == made_by.digest:
            return []
        now = today.decide(recorded.request)
        if untold(today, now, recorded.request, labels_asked(today) - labels_asked(made_by)):
            return ["today's policy asks about something that was not recorded, so it cannot say"]
        change = classify(made_by.decide(recorded.request), now)
        if change is Change.SAME:
            return ["today's policy decides it the same"]
        return [f"today's policy decides it otherwise ({change.value}): {now.reason}"]

    def _policy(self, digest: bytes) -> Policy | None:
        if self._today is not None and self._today.digest == digest:
            return self._today
        if digest not in self._policies:
            if len(self._policies) >= _MAX_POLICIES:
                self._policies.clear()
            try:
                self._policies[digest] = recall_policy(self._connection, digest)
            except ConfigError as error:
                self._problems[digest] = f"the policy of that time is not understood any more: {error}"
                self._policies[digest] = None
        return self._policies[digest]


def record_digests(connection: sqlite3.Connection, task_id: bytes) -> frozenset[bytes]:
    """Return the digests that a task's record has had, in all revisions that this node knows of."""
    digests: set[bytes] = set()
    if (task := journal.get_task(connection, task_id)) is not None:
        digests |= {task.record_digest, *map(_hop_digest, task.hops)}
    if (kept := records.get_record(connection, task_id)) is not None:
        digests.add(kept.record_digest)
    digests.update(inbox.taken_digests(connection, task_id))
    return frozenset(digests)


def _hop_digest(envelope: bytes) -> bytes:
    try:
        return Hop.FromString(open_document(envelope, KIND).body).record_digest
    except DecodeError as error:
        raise ComityError("a hop of this task does not parse; the database is damaged") from error


class Questions:
    """Turns the decisions of a log into questions for a comparison.

    Attributes:
        lost: decisions whose requests were not kept, so that nobody can be asked again.
    """

    def __init__(self, policy: Policy) -> None:
        """Read decisions that `policy`, or one like it, has made."""
        self.lost = 0
        self._allows = frozenset(rule.id for rule in policy.document.rules if rule.allows)

    def of(self, decisions: Iterable[Recorded]) -> Iterator[Asked]:
        """Yield the question of each decision whose request was kept.

        A denial that names an allow rule came from a limit or a person: it was not for the policy to say.
        """
        for recorded in decisions:
            if recorded.request is None:
                self.lost += 1
                continue
            entry = recorded.entry.entry
            by_limit = entry.decision == "deny" and not self._allows.isdisjoint(entry.rules)
            allowed = None if by_limit else entry.decision == "allow"
            yield Asked(recorded.request, recorded.digest, f"entry {recorded.entry.index}", allowed)
