"""Decisions explained afterwards, at the edges: each test goes red for a wrong line of `admission.retrospect`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comity.digest import sha256
from comity.envelope import sign_document
from comity.errors import ComityError, ConfigError
from comity.hops import CREATE, KIND, sign_hop
from comity_node.admission import retrospect
from comity_node.admission.archive import Recorded, remember_policy
from comity_node.admission.retrospect import Historian, Questions, record_digests
from comity_node.policy.diff import Asked
from comity_node.policy.engine import Policy
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Request
from comity_node.storage import audit, inbox, journal, records
from comity_node.storage.audit import StoredEntry
from comity_node.storage.audit_entry import AuditEntry
from comity_node.storage.connections import connect_writer, create
from kit.decided import ME, OTHER, PEER, POLICY, asking
from kit.documents import RECORD, make_passage
from kit.enforcing import NODES

THEN = loads_policy(POLICY)
WIDER = loads_policy(POLICY.replace(f"organization: [{PEER}]", f"organization: [{PEER}, {OTHER}]"))
NOT_KEPT = "the policy of that time was not kept"
NOT_TODAYS = f"the policy of that time ({THEN.digest.hex()[:16]}) is not today's ({WIDER.digest.hex()[:16]})"
NO_REQUEST = "the request was not kept, so all that is known is what the log says"
A_LIMIT = (
    "the policy alone allows it: a limit of the rule that was used up, a person, or a form that cannot be had said no"
)
THE_SAME = "today's policy decides it the same"
INSTEAD = "today's policy speaks instead, and may say something else than was decided"
OTHERWISE = "it was allowed, and the same policy denies what was kept of the request"


def recorded(request: Request | None, decision: str = "allow", rules: tuple[str, ...] = (), index: int = 3) -> Recorded:
    entry = AuditEntry(
        "decision", "record.send", decision, rules, PEER, sha256(RECORD), THEN.digest, detail={"reason": "as it was"}
    )
    return Recorded(StoredEntry(index, bytes(32), 5, entry, b""), b"named", request)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    create(tmp_path / "node.db")
    with closing(connect_writer(tmp_path / "node.db", None)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("today", "kept", "request_", "decision", "notes"),
    [
        (THEN, False, asking(), "allow", []),
        (THEN, False, asking(), "deny", [A_LIMIT]),
        (THEN, False, asking("raw"), "deny", []),
        (THEN, False, asking("raw"), "allow", [OTHERWISE]),
        (THEN, False, None, "allow", [NO_REQUEST]),
        (None, True, asking(), "allow", []),
        (None, False, asking(), "allow", [NOT_KEPT]),
        (WIDER, True, asking(), "allow", [NOT_TODAYS, THE_SAME]),
        (WIDER, False, asking(), "allow", [NOT_TODAYS, NOT_KEPT, INSTEAD]),
        (WIDER, False, None, "allow", [NOT_TODAYS, NOT_KEPT, NO_REQUEST]),
    ],
)
def test_what_a_reader_has_to_know(
    connection: sqlite3.Connection, today: Policy | None, kept: bool, request_: Request | None, decision: str,
    notes: list[str],
) -> None:  # fmt: skip
    if kept:
        remember_policy(connection, THEN)
    told = Historian(connection, today).explain(recorded(request_, decision))
    assert list(told.notes) == notes
    assert (told.explanation is None) is (request_ is None or notes == [NOT_KEPT])
    assert told.by_today is (INSTEAD in notes)


def test_what_today_s_policy_decides_otherwise_is_told(connection: sqlite3.Connection) -> None:
    remember_policy(connection, THEN)
    told = Historian(connection, WIDER).explain(recorded(asking(organization=OTHER), "deny"))
    assert told.notes[0] == NOT_TODAYS
    assert told.notes[1].startswith("today's policy decides it otherwise (deny->allow): ")
    assert len(told.notes) == 2


def test_an_explanation_is_written_where_there_is_one(connection: sqlite3.Connection) -> None:
    historian = Historian(connection, THEN)
    with_one, without = historian.explain(recorded(asking(), "deny")), historian.explain(recorded(None))
    assert with_one.explanation is not None
    assert with_one.to_json()["explanation"] == with_one.explanation.to_json()
    assert with_one.lines() == [
        f"deny record.send with {PEER}: as it was", f"! {A_LIMIT}", *with_one.explanation.text().splitlines(),
    ]  # fmt: skip
    assert without.to_json()["explanation"] is None
    assert without.lines() == [f"allow record.send with {PEER}: as it was", f"! {NO_REQUEST}"]


def test_a_policy_that_is_not_understood_any_more_is_told(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recall(_: sqlite3.Connection, digest: bytes) -> Policy:
        raise ConfigError("an unknown word")

    monkeypatch.setattr(retrospect, "recall_policy", recall)
    told = Historian(connection, None).explain(recorded(asking()))
    assert told.notes == ("the policy of that time is not understood any more: an unknown word",)


@pytest.mark.invariant("S7")
def test_few_policies_are_held(connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    recalled: list[bytes] = []

    def recall(_: sqlite3.Connection, digest: bytes) -> Policy:
        recalled.append(digest)
        return THEN

    monkeypatch.setattr(retrospect, "recall_policy", recall)
    monkeypatch.setattr(retrospect, "_MAX_POLICIES", 2)
    historian = Historian(connection, None)
    assert [historian._policy(each) for each in (b"a", b"b", b"a", b"c", b"a")] == [THEN] * 5
    assert recalled == [b"a", b"b", b"c", b"a"]


def about(monkeypatch: pytest.MonkeyPatch, task: Any, record: Any, *taken: bytes) -> None:
    """Let the database say this of every task."""
    monkeypatch.setattr(journal, "get_task", lambda *_: task)
    monkeypatch.setattr(records, "get_record", lambda *_: record)
    monkeypatch.setattr(inbox, "taken_digests", lambda *_: taken)


def test_all_digests_that_a_record_has_had(connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    hop = sign_hop(NODES[ME], make_passage(CREATE), ())
    about(monkeypatch, SimpleNamespace(record_digest=b"now", hops=(hop,)), SimpleNamespace(record_digest=b"kept"))
    assert record_digests(connection, b"t") == {b"now", sha256(RECORD), b"kept"}
    about(monkeypatch, None, None, b"taken", b"again")
    assert record_digests(connection, b"t") == {b"taken", b"again"}
    damaged = sign_document(NODES[ME].key, KIND, b"\xff\xff")
    about(monkeypatch, SimpleNamespace(record_digest=b"now", hops=(damaged,)), None)
    with pytest.raises(ComityError, match="a hop of this task does not parse"):
        record_digests(connection, b"t")


def test_a_task_that_is_known_is_explained(connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    historian = Historian(connection, THEN)
    with pytest.raises(ConfigError, match="this node has no task 74;"):
        historian.task(b"t")
    audit.append(connection, recorded(None).entry.entry, 5)
    about(monkeypatch, None, SimpleNamespace(record_digest=sha256(RECORD)))
    assert [each.recorded.entry.index for each in historian.task(b"t")] == [0]


def test_what_a_comparison_is_asked() -> None:
    questions = Questions(THEN)
    decisions = [
        recorded(None),
        recorded(asking(), "allow", ("send-synthetic",), 1),
        recorded(asking(), "deny", ("never-raw-rows",), 2),
        recorded(asking(), "deny", ("send-synthetic",), 3),
        recorded(None),
        recorded(asking(), "deny", (), 5),
    ]
    expected = [(1, True), (2, False), (3, None), (5, False)]
    assert list(questions.of(decisions)) == [
        Asked(asking(), b"named", f"entry {index}", allowed) for index, allowed in expected
    ]
    assert questions.lost == 2
