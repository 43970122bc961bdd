"""A person has to say yes first: asked for once, bounded, in the audit log, good for an agreement or a very thing."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from comity.digest import sha256
from comity.errors import ApprovalPending, ConfigError, NotFound, PolicyDenied
from comity.signing import PrivateKey
from comity_node.admission import Gate, Question
from comity_node.policy.model import Request
from comity_node.runtime.upkeep import Upkeep
from comity_node.storage import approvals, audit
from comity_node.storage.database import Database, inline, open_database
from comity_node.storage.note import NoteSigner
from comity_node.storage.notices import Notice, put_notice
from kit.consortium import NOW_MS, names
from kit.documents import DATASET, PURPOSE
from kit.enforcing import make_gate
from kit.lab import policy

ME, PEER, OTHER = names(3)
TERMS = sha256(b"the terms")
HOUR_MS = 3_600_000


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


def with_gate(
    path: Path, main: Callable[[Gate, Database], Awaitable[None]], clock: Clock | None = None,
    owed: str = "approval: {within: 1h}", action: str = "agreement.accept",
) -> None:  # fmt: skip
    async def outer() -> None:
        async with open_database(path / "node.db") as database:
            text = policy(ME, obligations={action: owed})
            await main(await make_gate(database, text, clock or Clock()), database)

    trio.run(outer)


def question(
    subject: bytes = TERMS, organization: str = PEER, action: str = "agreement.accept", **changes: Any
) -> Question:
    request = Request(action=action, organization=organization, purpose=PURPOSE, dataset=DATASET, kind="synthetic")
    return Question(request, subject, **changes)


async def states(database: Database) -> list[tuple[str, str]]:
    """(state, decision) of the log's entries about approvals, oldest first."""
    entries = [one.entry for one in await database.read(audit.entries)]
    return [(str(one.detail["state"]), one.decision) for one in entries if one.kind == "approval"]


@pytest.mark.invariant("S1")
@pytest.mark.invariant("S8")
def test_nothing_passes_before_a_person_has_said_yes(tmp_path: Path) -> None:
    clock = Clock()
    pending: list[str] = []

    async def ask(gate: Gate, database: Database) -> None:
        for _ in range(3):  # asked for once, however often somebody asks
            with pytest.raises(ApprovalPending, match="rule agreement-accept asks for a person's approval") as no:
                await gate.demand(question())
        assert (no.value.rules, no.value.deadline_ms) == (("agreement-accept",), NOW_MS + HOUR_MS)
        assert no.value.code == "approval_pending"
        (row,) = await gate.approvals.list()
        assert row.approval_id.hex() == no.value.approval
        assert (row.rule, row.action, row.organization, row.scope) == (
            "agreement-accept",
            "agreement.accept",
            PEER,
            TERMS,
        )
        assert await states(database) == [("pending", "")]
        pending.append(no.value.approval)

    with_gate(tmp_path, ask, clock)

    async def grant(gate: Gate, database: Database) -> None:
        changed = gate.approvals.changed
        with pytest.raises(ApprovalPending):  # after a restart too
            await gate.demand(question())
        assert not changed.is_set()
        granted = await gate.approvals.decide(pending[0][:12], approve=True, reason="seen by the board")
        assert (granted.state, granted.reason) == ("approved", "seen by the board")
        assert changed.is_set()
        assert not gate.approvals.changed.is_set()
        assert (await gate.demand(question())).allowed
        clock.now_ms += 30 * 24 * HOUR_MS  # what was granted stays granted
        assert (await gate.demand(question())).allowed
        assert await gate.approvals.list() == []
        assert await states(database) == [("pending", ""), ("approved", "allow")]

    with_gate(tmp_path, grant, clock)
    audit.verify_file(tmp_path / "node.db", None)


def test_a_yes_is_for_one_thing_one_organization_and_one_rule(tmp_path: Path) -> None:
    async def main(gate: Gate, _: Database) -> None:
        with pytest.raises(ApprovalPending) as no:
            await gate.demand(question())
        await gate.approvals.decide(no.value.approval, approve=True)
        for other in (question(sha256(b"other terms")), question(organization=OTHER), question(agreement=sha256(b"a"))):
            with pytest.raises(ApprovalPending):
                await gate.demand(other)
        assert (await gate.demand(question())).allowed

    with_gate(tmp_path, main)


def test_a_yes_to_an_agreement_is_for_all_that_happens_under_it(tmp_path: Path) -> None:
    async def main(gate: Gate, _: Database) -> None:
        one, two = (
            question(sha256(text), agreement=TERMS, action="record.send") for text in (b"a record", b"another record")
        )
        with pytest.raises(ApprovalPending) as no:
            await gate.demand(one)
        await gate.approvals.decide(no.value.approval, approve=True)
        assert all(each.allowed for each in await gate.decide([one, two]))

    with_gate(tmp_path, main, action="record.send")


def test_without_a_thing_or_an_agreement_the_very_same_question_is_approved(tmp_path: Path) -> None:
    async def main(gate: Gate, _: Database) -> None:
        request = Request("agent.discover", PEER)
        with pytest.raises(ApprovalPending) as no:
            await gate.demand(Question(request))
        await gate.approvals.decide(no.value.approval, approve=True)
        assert (await gate.demand(Question(request))).allowed
        with pytest.raises(ApprovalPending):
            await gate.demand(Question(Request("agent.discover", PEER, purpose=PURPOSE)))

    with_gate(tmp_path, main, action="agent.discover")


def test_a_no_and_silence_are_both_a_no_and_a_person_may_think_again(tmp_path: Path) -> None:
    clock = Clock()

    async def main(gate: Gate, database: Database) -> None:
        with pytest.raises(ApprovalPending) as first:
            await gate.demand(question())
        await gate.approvals.decide(first.value.approval, approve=False, reason="too many records")
        with pytest.raises(PolicyDenied, match="a person denied it: too many records") as no:
            await gate.demand(question())
        assert not isinstance(no.value, ApprovalPending)

        late = question(sha256(b"nobody looks at this"))
        with pytest.raises(ApprovalPending) as second:
            await gate.demand(late)
        changed = gate.approvals.changed
        clock.now_ms += HOUR_MS
        assert await gate.approvals.expire() == 1
        assert changed.is_set()
        with pytest.raises(PolicyDenied, match="nobody approved it in time") as silent:
            await gate.demand(late)
        assert not isinstance(silent.value, ApprovalPending)
        assert await states(database) == [("pending", ""), ("denied", "deny"), ("pending", ""), ("expired", "deny")]

        await gate.approvals.decide(second.value.approval, approve=True)
        assert (await gate.demand(late)).allowed
        await gate.approvals.decide(second.value.approval, approve=False)
        with pytest.raises(PolicyDenied, match="a person denied it"):
            await gate.demand(late)

    with_gate(tmp_path, main, clock)


def test_a_deadline_that_nobody_swept_is_noticed_by_the_next_question(tmp_path: Path) -> None:
    clock = Clock()

    async def main(gate: Gate, database: Database) -> None:
        with pytest.raises(ApprovalPending):
            await gate.demand(question())
        clock.now_ms += HOUR_MS
        assert [row.state for row in await gate.approvals.list(all_of_them=True)] == ["expired"]
        with pytest.raises(PolicyDenied, match="nobody approved it in time"):
            await gate.demand(question())
        assert await states(database) == [("pending", ""), ("expired", "deny")]

    with_gate(tmp_path, main, clock)


@pytest.mark.invariant("S7")
def test_an_organization_can_have_so_many_approvals_asked_for_and_takes_no_others_place(tmp_path: Path) -> None:
    async def main(gate: Gate, database: Database) -> None:
        subjects = [sha256(bytes([number])) for number in range(69)]
        decided = await gate.decide([question(each) for each in subjects])
        assert not any(one.allowed for one in decided)
        assert len(await gate.approvals.list()) == 64
        with pytest.raises(PolicyDenied, match=r"64 approvals for .* are waited for already") as no:
            await gate.demand(question(subjects[-1]))
        assert not isinstance(no.value, ApprovalPending)
        with pytest.raises(ApprovalPending):
            await gate.demand(question(organization=OTHER))
        count = await database.read(lambda c: c.execute("SELECT count(*) FROM approvals").fetchone()[0])
        assert count == 65

    with_gate(tmp_path, main)


def row(number: int) -> approvals.ApprovalRow:
    scope = sha256(number.to_bytes(4, "big"))
    return approvals.ApprovalRow(
        scope[:16], "rule", "record.send", PEER, scope, b"{}", PURPOSE, DATASET, "pending", "", number, 10**15, None
    )


@pytest.mark.invariant("S7")
def test_what_was_denied_makes_room_and_what_was_granted_stays(tmp_path: Path) -> None:
    async def main(_: Gate, database: Database) -> None:
        def fill(connection: sqlite3.Connection) -> list[bool]:
            taken = []
            for number in range(1030):
                taken.append(approvals.put_approval(connection, row(number)))
                state: approvals.State = "approved" if number < 1020 else "denied"
                if taken[-1]:
                    approvals.settle_approval(connection, row(number).approval_id, state, "", number)
            return taken

        assert all(await database.transact(fill))
        kept = await database.read(lambda c: c.execute("SELECT state, count(*) FROM approvals GROUP BY 1").fetchall())
        assert dict(kept) == {"approved": 1020, "denied": 4}

        def grant_all(connection: sqlite3.Connection) -> bool:
            connection.execute("UPDATE approvals SET state = 'approved'")
            return approvals.put_approval(connection, row(2000))

        assert not await database.transact(grant_all)  # nothing that was granted makes room

    with_gate(tmp_path, main)


@pytest.mark.invariant("S7")
def test_overdue_approvals_are_ended_so_many_at_a_time(tmp_path: Path) -> None:
    clock = Clock()

    async def main(gate: Gate, database: Database) -> None:
        def fill(connection: sqlite3.Connection) -> None:
            for number in range(510):
                one = replace(row(number), organization=f"org{number // 64}.example", deadline_ms=NOW_MS)
                assert approvals.put_approval(connection, one)

        await database.transact(fill)
        assert [await gate.approvals.expire() for _ in range(3)] == [500, 10, 0]

    with_gate(tmp_path, main, clock)


def test_a_page_of_approvals(tmp_path: Path) -> None:
    async def main(gate: Gate, database: Database) -> None:
        def fill(connection: sqlite3.Connection) -> None:
            for number in range(1010):
                one = replace(row(number), organization=f"org{number // 64}.example")
                assert approvals.put_approval(connection, one)

        await database.transact(fill)
        assert len(await gate.approvals.list()) == 1000
        assert len(await gate.approvals.list(all_of_them=True)) == 1000

    with_gate(tmp_path, main)


def test_a_pending_approval_uses_nothing_up(tmp_path: Path) -> None:
    async def main(gate: Gate, _: Database) -> None:
        asked = question(agreement=TERMS, action="record.send")
        assert not any(one.allowed for one in await gate.decide([asked] * 5))
        (row,) = await gate.approvals.list()
        await gate.approvals.decide(row.approval_id.hex(), approve=True)
        assert [one.allowed for one in await gate.decide([asked] * 3)] == [True, True, False]

    with_gate(tmp_path, main, owed="approval: {within: 1h}, quota: {records: 2}", action="record.send")


def test_an_approval_is_named_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    async def main(gate: Gate, _: Database) -> None:
        with pytest.raises(ApprovalPending) as no:
            await gate.demand(question())
        for name in ("", no.value.approval[:5], "zz" * 8, "%" * 8, "00" * 16):
            with pytest.raises(NotFound, match="no approval"):
                await gate.approvals.decide(name, approve=True)
        with pytest.raises(ConfigError, match="501 characters"):
            await gate.approvals.decide(no.value.approval, approve=True, reason="x" * 501)
        assert (await gate.approvals.decide(no.value.approval[:6].upper(), approve=True)).state == "approved"

    with_gate(tmp_path, main)


@pytest.mark.invariant("S8")
def test_who_is_to_be_told_is_told_once_for_a_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main(gate: Gate, database: Database) -> None:
        asked = [question(sha256(bytes([number])), agreement=TERMS, action="record.send") for number in range(7)]
        assert all(one.allowed for one in await gate.decide(asked))
        (notice,) = await gate.approvals.notices()
        assert (notice.persons, notice.times, notice.organization) == (("board", "dpo@ada.example"), 7, PEER)
        assert (notice.rules, notice.action, notice.agreement) == (("record-send",), "record.send", TERMS)
        told = [one.entry for one in await database.read(audit.entries) if one.entry.kind == "notice"]
        assert [(one.action, one.peer, one.detail["times"]) for one in told] == [("record.send", PEER, 7)]

    with_gate(tmp_path, main, owed="notify: [dpo@ada.example, board]", action="record.send")
    warned = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert warned == [f"notice for board, dpo@ada.example: record.send with {PEER}, 7 times (rules record-send)"]


@pytest.mark.invariant("S7")
def test_the_newest_notices_are_kept(tmp_path: Path) -> None:
    async def main(gate: Gate, database: Database) -> None:
        def fill(connection: sqlite3.Connection) -> int:
            for number in range(1005):
                notice = Notice(number, ("board",), ("rule",), "record.send", PEER, PURPOSE, DATASET, TERMS, TERMS, 1)
                put_notice(connection, notice)
            return int(connection.execute("SELECT count(*) FROM notices").fetchone()[0])

        assert await database.transact(fill) == 1000
        kept = await gate.approvals.notices()
        assert [one.at_ms for one in kept] == list(range(1004, 904, -1))

    with_gate(tmp_path, main, owed="notify: board", action="record.send")


def test_upkeep_ends_what_nobody_decides_in_time(tmp_path: Path) -> None:
    clock = Clock()

    async def main(gate: Gate, database: Database) -> None:
        key = PrivateKey.generate()
        signer = NoteSigner("ada.example/node/n1", key.public_key, key.sign)
        with pytest.raises(ApprovalPending):
            await gate.demand(question())
        changed = gate.approvals.changed
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Upkeep(database, signer, clock, gate.approvals).run)
            clock.now_ms += HOUR_MS
            await changed.wait()
            nursery.cancel_scope.cancel()
        assert await states(database) == [("pending", ""), ("expired", "deny")]

    async def outer() -> None:
        async with open_database(tmp_path / "node.db", offload=inline) as database:
            text = policy(ME, obligations={"agreement.accept": "approval: {within: 1h}"})
            with trio.fail_after(60):
                await main(await make_gate(database, text, clock), database)

    trio.run(outer, clock=MockClock(autojump_threshold=0))
