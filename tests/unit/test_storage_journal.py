from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from comity.digest import sha256
from comity.errors import AgreementError, Busy, StorageError
from comity_node.storage import journal, packing, schema
from comity_node.storage.database import Database
from comity_node.storage.journal import (
    Added,
    AgreementRow,
    AssignmentRow,
    OfferRow,
    OutboxRow,
    TaskRow,
    VoteRow,
    WorkflowRow,
    WorkflowStep,
)

TERMS = sha256(b"terms")
OTHER_TERMS = sha256(b"other terms")
BATCH = b"b" * 16


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    schema.prepare(connection, "memory")
    for digest in (TERMS, OTHER_TERMS):
        journal.put_agreement(connection, agreement(digest))
    yield connection
    connection.close()


def agreement(digest: bytes, expires_ms: int = 1000, created_ms: int = 0) -> AgreementRow:
    return AgreementRow(digest, b"agreement", "mercy.example", "screening", "tumours", expires_ms, "active", created_ms)


def task(number: int, **changes: object) -> TaskRow:
    record = b'{"row":%d}' % number
    row = TaskRow(
        task_id=number.to_bytes(16, "big"),
        agreement_digest=TERMS,
        workflow_id="w",
        batch_id=BATCH,
        ordinal=number,
        revision=0,
        state="journaled",
        record=record,
        record_digest=sha256(record),
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def vote(review: bytes = b"review", organization: str = "hope.example", number: int = 1) -> VoteRow:
    return VoteRow(number.to_bytes(16, "big"), 0, organization, review, (b"leaf", b"root"), True, 9000, 5)


def message(number: int, **changes: object) -> OutboxRow:
    row = OutboxRow(
        message_id=number.to_bytes(16, "big"),
        organization="hope.example",
        kind="task-offer",
        body=b"body",
        dedup_key=f"offer-{number}",
        created_ms=number,
        expires_ms=1000,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def offer(revision: int = 0, home: str = "mercy.example", received_ms: int = 1) -> OfferRow:
    return OfferRow(home, BATCH, revision, "12D3KooW", TERMS, b"offer", received_ms, 100)


def test_values_are_kept_and_numbers_never_go_back(connection: sqlite3.Connection) -> None:
    assert journal.get_meta(connection, "a") is None
    journal.set_meta(connection, "a", b"1")
    journal.set_meta(connection, "a", b"2")
    assert journal.get_meta(connection, "a") == b"2"
    assert journal.get_number(connection, "mark") == 0
    assert [journal.raise_number(connection, "mark", number) for number in (5, 3, 7)] == [5, 5, 7]
    assert journal.get_number(connection, "mark") == 7
    with pytest.raises(StorageError, match="may have"):
        journal.set_meta(connection, "a", bytes(70_000))


def test_workflows_keep_their_negotiation(connection: sqlite3.Connection) -> None:
    row = WorkflowRow("w", b"{}", "negotiating", "", None, 1)
    assert journal.put_workflow(connection, row)
    assert not journal.put_workflow(connection, replace(row, state="done"))
    steps = [WorkflowStep(at, "hope.example", step, "") for at, step in ((2, "proposed"), (2, "countered"))]
    for step in steps:
        journal.add_workflow_step(connection, "w", step)
    assert journal.workflow_steps(connection, "w") == steps
    assert journal.update_workflow(connection, "w", state="running", agreement_digest=TERMS)
    assert journal.update_workflow(connection, "w", state="failed", reason="nobody came")
    assert journal.get_workflow(connection, "w") == replace(
        row, state="failed", reason="nobody came", agreement_digest=TERMS
    )
    assert not journal.update_workflow(connection, "unknown", state="done")
    assert journal.get_workflow(connection, "unknown") is None
    journal.put_workflow(connection, WorkflowRow("w2", b"{}", "running", "", None, 2))
    assert [found.workflow_id for found in journal.list_workflows(connection)] == ["w2", "w"]
    assert [found.workflow_id for found in journal.list_workflows(connection, state="failed")] == ["w"]


def test_agreements_are_found_by_their_terms(connection: sqlite3.Connection) -> None:
    late = replace(agreement(sha256(b"late"), expires_ms=5000, created_ms=9), purpose="research")
    assert journal.put_agreement(connection, late)
    assert not journal.put_agreement(connection, replace(late, state="revoked"))
    assert journal.list_agreements(connection, valid_at_ms=1000) == [late]
    assert journal.list_agreements(connection, purpose="research", dataset="tumours") == [late]
    assert len(journal.list_agreements(connection, purpose="screening")) == 2
    assert journal.set_agreement_state(connection, late.digest, "revoked")
    assert len(journal.list_agreements(connection, state="active")) == 2
    assert not journal.set_agreement_state(connection, sha256(b"none"), "revoked")


@pytest.mark.invariant("R2")
def test_tasks_are_stored_once(connection: sqlite3.Connection) -> None:
    assert journal.put_tasks(connection, [task(1), task(2)]) == 2
    assert journal.put_tasks(connection, [task(2, state="lost"), task(3)]) == 1
    assert journal.get_task(connection, task(2).task_id) == task(2)
    assert journal.get_task(connection, bytes(16)) is None


def test_a_task_needs_an_agreement(connection: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        journal.put_tasks(connection, [task(1, agreement_digest=sha256(b"none"))])


@pytest.mark.invariant("R2")
def test_a_task_changes_only_from_what_was_seen(connection: sqlite3.Connection) -> None:
    journal.put_tasks(connection, [task(1)])
    changed = task(
        1,
        state="offered",
        revision=1,
        hops=(b"hop", b""),
        reason="axis",
        rules=("r1", "r,2"),
        feedback=('"quoted"', "é"),
        updated_ms=9,
    )
    assert not journal.update_task(connection, changed, state="offered", revision=0)
    assert not journal.update_task(connection, changed, state="journaled", revision=1)
    assert journal.update_task(connection, changed, state="journaled", revision=0)
    assert not journal.update_task(connection, changed, state="journaled", revision=0)
    assert journal.get_task(connection, changed.task_id) == changed


def test_tasks_are_listed_and_counted(connection: sqlite3.Connection) -> None:
    tasks = [task(number, state="rejected", reason=f"axis-{number % 2}") for number in range(3)]
    tasks += [task(3), task(4, agreement_digest=OTHER_TERMS, batch_id=b"c" * 16), task(5, ordinal=-1, revision=2)]
    journal.put_tasks(connection, tasks)
    assert journal.batch_tasks(connection, BATCH) == [tasks[5], *tasks[:4]]
    assert journal.list_tasks(connection, agreement_digest=OTHER_TERMS) == [tasks[4]]
    assert journal.list_tasks(connection, states=["rejected", "unknown"]) == tasks[:3]
    assert journal.list_tasks(connection, states=["rejected"], after=tasks[0].task_id, limit=1) == [tasks[1]]
    assert journal.count_tasks_by_state(connection) == {"rejected": 3, "journaled": 3}
    assert journal.count_tasks_by_state(connection, OTHER_TERMS) == {"journaled": 1}
    assert journal.count_tasks_by_reason(connection, "rejected", TERMS) == {"axis-0": 2, "axis-1": 1}
    assert journal.count_repaired(connection, TERMS) == 1


@pytest.mark.invariant("R3")
def test_an_assignment_changes_only_from_what_was_seen(connection: sqlite3.Connection) -> None:
    rows = [AssignmentRow(BATCH, 0, f"org{number}.example", "offered", 0, 100 + number) for number in range(3)]
    assert all(journal.put_assignment(connection, row) for row in rows)
    assert not journal.put_assignment(connection, replace(rows[0], state="voted"))
    assert journal.list_assignments(connection, BATCH, 0) == rows
    voted = replace(rows[0], state="voted")
    assert journal.update_assignment(connection, voted, state="offered")
    assert not journal.update_assignment(connection, replace(voted, state="expired"), state="offered")
    assert journal.list_assignments(connection, BATCH, 0) == [voted, *rows[1:]]


@pytest.mark.invariant("R2")
def test_a_vote_counts_once(connection: sqlite3.Connection) -> None:
    journal.put_tasks(connection, [task(1), task(2)])
    assert journal.add_vote(connection, vote()) is Added.NEW
    assert journal.add_vote(connection, vote()) is Added.SAME
    assert journal.add_vote(connection, vote(organization="a.example")) is Added.NEW
    assert journal.add_vote(connection, vote(number=2)) is Added.NEW
    assert journal.batch_votes(connection, BATCH, 1) == {}
    assert journal.batch_votes(connection, BATCH, 0) == {
        task(1).task_id: [vote(organization="a.example"), vote()],
        task(2).task_id: [vote(number=2)],
    }
    with pytest.raises(sqlite3.IntegrityError):
        journal.add_vote(connection, vote(number=9))


@pytest.mark.invariant("S9")
def test_two_different_votes_are_kept_as_proof(connection: sqlite3.Connection) -> None:
    journal.put_tasks(connection, [task(1)])
    journal.add_vote(connection, vote(b"first"))
    assert journal.add_vote(connection, replace(vote(b"second"), score=8999)) is Added.DIFFERENT
    assert journal.add_vote(connection, replace(vote(b"third"), accept=False, score=1)) is Added.DIFFERENT
    assert journal.batch_votes(connection, BATCH, 0) == {task(1).task_id: [vote(b"first")]}
    (found,) = journal.list_equivocations(connection, "hope.example")
    assert (found.first_review, found.second_review, found.chain) == (b"first", b"second", (b"leaf", b"root"))
    assert journal.list_equivocations(connection, "a.example") == []


@pytest.mark.invariant("S9")
def test_an_honest_reviewer_is_never_proven_to_equivocate(connection: sqlite3.Connection) -> None:
    """Whatever it is made to sign: the same said anew, or a review of another record."""
    journal.put_tasks(connection, [task(1)])
    subject, other = (journal.vote_subject(sha256(record), TERMS, 1) for record in (b"one", b"another"))
    first = replace(vote(b"first"), subject=subject)
    assert journal.add_vote(connection, first) is Added.NEW
    assert journal.add_vote(connection, replace(first, review=b"signed anew")) is Added.SAME
    assert journal.add_vote(connection, replace(first, review=b"of another", subject=other, score=1)) is Added.DIFFERENT
    assert journal.list_equivocations(connection) == []
    assert journal.batch_votes(connection, BATCH, 0) == {task(1).task_id: [first]}
    journal.add_vote(connection, replace(first, review=b"a lie", score=1))
    assert [one.second_review for one in journal.list_equivocations(connection)] == [b"a lie"]


def test_what_a_vote_is_about_has_no_two_meanings() -> None:
    subjects = {
        journal.vote_subject(*about)
        for about in ((TERMS, OTHER_TERMS, 1), (OTHER_TERMS, TERMS, 1), (TERMS, OTHER_TERMS, 2), (TERMS, TERMS, 1))
    }
    assert len(subjects) == 4


@pytest.mark.invariant("R2")
def test_an_offer_that_comes_again_finds_its_reviews(connection: sqlite3.Connection) -> None:
    assert journal.put_offer(connection, offer())
    assert not journal.put_offer(connection, replace(offer(), offer=b"other"))
    assert journal.put_offer(connection, offer(revision=1, received_ms=2))
    assert journal.put_offer(connection, offer(home="a.example", received_ms=3))
    assert journal.get_offer(connection, offer().digest) == offer()
    assert len(journal.held_offers(connection)) == 3
    assert journal.count_held(connection) == {"mercy.example": 2, "a.example": 1}
    assert journal.finish_offer(connection, offer().digest, b"reviews", 7)
    assert not journal.finish_offer(connection, offer().digest, b"other reviews", 8)
    assert not journal.put_offer(connection, offer())
    done = journal.get_offer(connection, offer().digest)
    assert done is not None
    assert (done.state, done.reviews, done.done_ms) == ("done", b"reviews", 7)
    assert [row.home for row in journal.held_offers(connection)] == ["mercy.example", "a.example"]
    assert journal.forget_offers(connection, 7) == 0
    assert journal.forget_offers(connection, 8) == 1
    assert journal.get_offer(connection, offer().digest) is None


@pytest.mark.invariant("S7")
def test_a_home_with_many_batches_does_not_hide_the_others(connection: sqlite3.Connection) -> None:
    for number in range(20):
        journal.put_offer(connection, replace(offer(received_ms=number), batch_id=bytes([number]) * 16))
    for number in range(2):
        journal.put_offer(connection, replace(offer(home="a.example", received_ms=100 + number), revision=number))
    homes = [row.home for row in journal.held_offers(connection, limit=6)]
    assert homes == ["mercy.example", "a.example", "mercy.example", "a.example", "mercy.example", "mercy.example"]
    assert journal.held_offers(connection)[0].digest == replace(offer(), batch_id=bytes(16)).digest


@pytest.mark.invariant("S9")
def test_a_task_is_bound_to_its_batch_and_each_revision_to_one_record(connection: sqlite3.Connection) -> None:
    def take(batch: OfferRow, *tasks: tuple[int, bytes]) -> int:
        return journal.take_tasks(connection, batch, [(bytes([number]) * 16, sha256(data)) for number, data in tasks])

    other_batch = replace(offer(), batch_id=b"c" * 16)
    assert take(offer(), (1, b"one"), (2, b"two")) == 2
    assert take(offer(), (1, b"one")) == 0
    assert take(offer(revision=1), (1, b"repaired"), (3, b"seen late")) == 1, "a repair is no new task"
    for batch, record, reason in (
        (offer(), b"another", "another record"),
        (offer(revision=1), b"another", "another record"),
        (other_batch, b"one", "another batch"),
        (other_batch, b"another", "another batch"),
        (replace(other_batch, revision=2), b"one", "another batch"),
    ):
        with pytest.raises(AgreementError, match=reason):
            take(batch, (4, b"new"), (1, record))
        with pytest.raises(AgreementError, match=reason):
            journal.count_new_tasks(connection, batch, [(bytes([1]) * 16, sha256(record))])
    assert take(replace(offer(), agreement_digest=OTHER_TERMS), (1, b"under other terms")) == 1
    assert take(offer(home="a.example"), (1, b"of another home")) == 1
    assert journal.forget_tasks(connection, 1) == 0
    assert journal.forget_tasks(connection, 2, limit=4) == 4
    assert journal.forget_tasks(connection, 2) == 2
    assert take(other_batch, (1, b"one")) == 1


def test_an_offers_key_has_no_two_meanings() -> None:
    digests = {
        journal.offer_digest(home, batch, revision)
        for home, batch, revision in (("a", b"bc", 0), ("ab", b"c", 0), ("a", b"bc", 1), ("abc", b"", 0))
    }
    assert len(digests) == 4


@pytest.mark.invariant("R2")
def test_messages_are_sent_until_they_are_closed(connection: sqlite3.Connection) -> None:
    assert journal.enqueue(connection, message(1))
    assert not journal.enqueue(connection, message(9, dedup_key="offer-1"))
    journal.enqueue(connection, message(2, priority=5))
    journal.enqueue(connection, message(3, not_before_ms=50))
    journal.enqueue(connection, message(4, organization="a.example"))

    def due(now_ms: int) -> list[int]:
        return [row.created_ms for row in journal.due(connection, "hope.example", now_ms)]

    assert due(10) == [2, 1]
    assert due(50) == [2, 1, 3]
    assert journal.mark_sent(connection, message(2).message_id, retry_at_ms=60)
    assert journal.defer(connection, message(1).message_id, until_ms=70, reason="busy")
    assert due(50) == [3]
    assert journal.next_due_ms(connection, "hope.example", 20) == 50
    assert due(60) == [2, 3]
    assert journal.due(connection, "hope.example", 60)[0].attempts == 1
    assert journal.mark_done(connection, message(2).message_id)
    assert not journal.mark_done(connection, message(2).message_id)
    assert not journal.defer(connection, message(2).message_id, until_ms=1)
    assert journal.mark_failed(connection, message(3).message_id, "refused")
    assert due(100) == [1]
    assert journal.count_open(connection) == {"hope.example": 1, "a.example": 1}
    assert not journal.enqueue(connection, message(8, dedup_key="offer-2"))
    assert due(1000) == []
    assert journal.expired(connection, 999) == []
    assert sorted(row.created_ms for row in journal.expired(connection, 1000)) == [1, 4]
    assert journal.next_due_ms(connection, "hope.example", 999) == 70
    assert journal.next_due_ms(connection, "hope.example", 1000) is None, "what has expired is not due"
    for row in journal.expired(connection, 1000):
        journal.mark_failed(connection, row.message_id, "expired")
    assert journal.expired(connection, 1000) == []
    assert journal.forget(connection, 999) == 0
    assert journal.forget(connection, 1000) == 4
    assert journal.enqueue(connection, message(2))


@pytest.mark.invariant("R4")
def test_the_outbox_is_bounded(connection: sqlite3.Connection) -> None:
    for number in range(3):
        journal.enqueue(connection, message(number), max_open=3)
    with pytest.raises(Busy):
        journal.enqueue(connection, message(3), max_open=3)
    assert not journal.enqueue(connection, message(2), max_open=3)
    journal.enqueue(connection, message(4, organization="a.example"), max_open=3)
    journal.mark_done(connection, message(0).message_id)
    assert journal.enqueue(connection, message(3), max_open=3)


@pytest.mark.invariant("R3")
def test_a_full_outbox_of_one_is_no_error_where_others_are_concerned(connection: sqlite3.Connection) -> None:
    assert journal.try_enqueue(connection, message(1), max_open=1)
    assert not journal.try_enqueue(connection, message(2), max_open=1)
    assert journal.try_enqueue(connection, message(1), max_open=1), "it is there"
    assert journal.try_enqueue(connection, message(3, organization="a.example"), max_open=1)
    assert journal.count_open(connection) == {"hope.example": 1, "a.example": 1}


@pytest.mark.invariant("S7")
def test_a_message_that_is_asked_for_again_is_there_once(connection: sqlite3.Connection) -> None:
    def again(number: int, **changes: object) -> bool:
        return journal.reopen(connection, message(number, dedup_key="offer-1", **changes), max_open=2)

    assert again(1)
    assert not again(2)
    journal.mark_sent(connection, message(1).message_id, retry_at_ms=60)
    assert not again(2)
    for close in (journal.mark_done, lambda c, m: journal.mark_failed(c, m, "refused")):
        assert close(connection, message(1).message_id)
        assert again(2, body=b"anew", expires_ms=2000, not_before_ms=5)
        (row,) = journal.due(connection, "hope.example", 50)
        assert (row.body, row.expires_ms, row.attempts, row.reason) == (b"anew", 2000, 0, "")
    journal.mark_done(connection, message(1).message_id)
    for number in (3, 4):
        journal.enqueue(connection, message(number))
    with pytest.raises(Busy):
        again(2)
    assert connection.execute("SELECT count(*) FROM outbox").fetchone() == (3,)


def test_reliability_adds_up(connection: sqlite3.Connection) -> None:
    journal.add_agreement(connection, "b.example", "reviewer", now_ms=0)
    journal.add_agreement(connection, "b.example", "reviewer", 0.5, now_ms=0)
    journal.add_disagreement(connection, "b.example", "reviewer", 2, now_ms=0)
    journal.add_disagreement(connection, "a.example", "generator", now_ms=0)
    assert [
        (row.organization, row.role, row.agreed, row.disagreed) for row in journal.list_reliability(connection, 0)
    ] == [
        ("a.example", "generator", 0.0, 1.0),
        ("b.example", "reviewer", 1.5, 2.0),
    ]


@pytest.mark.invariant("R2")
def test_a_rate_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    Database.open(path).close()
    for expected in (True, True, False):
        with sqlite3.connect(path) as connection:
            assert journal.reserve(connection, "rule", 10, 60_000, 5, 1000) is expected
        connection.close()
    with sqlite3.connect(path) as connection:
        assert journal.reserved(connection, "rule", 60_000, 1000) == 10
        assert journal.reserve(connection, "other rule", 10, 60_000, 5, 1000)
        assert not journal.reserve(connection, "rule", 10, 60_000, 1, 60_999)
        assert journal.reserve(connection, "rule", 10, 60_000, 10, 62_000)
        assert not journal.reserve(connection, "rule", 10, 60_000, 1, 1000), "the clock was set back"
        with pytest.raises(StorageError, match="rate"):
            journal.reserve(connection, "rule", 10, 60_000, 0, 1000)
    connection.close()


@pytest.mark.invariant("R2")
def test_an_update_counts_once_a_round(connection: sqlite3.Connection) -> None:
    def add(direction: str, number: int, digest: bytes) -> Added:
        assert direction in ("released", "admitted")
        return journal.add_update(
            connection, "released" if direction == "released" else "admitted", "f", number, "a.example", digest, 1
        )

    assert add("admitted", 1, TERMS) is Added.NEW
    assert add("admitted", 1, TERMS) is Added.SAME
    assert add("admitted", 1, OTHER_TERMS) is Added.DIFFERENT
    assert add("admitted", 2, OTHER_TERMS) is Added.NEW
    assert add("released", 1, OTHER_TERMS) is Added.NEW


@pytest.mark.parametrize("data", [b"\x00", b"\x00\x00\x00\x02a", b"\x00\x00\x00\x00\x00\x00\x00"])
def test_a_cut_list_is_noticed(data: bytes) -> None:
    with pytest.raises(StorageError, match="cut short"):
        packing.unpack(data)
    with pytest.raises(StorageError, match="no JSON"):
        packing.unpack_text("[")
