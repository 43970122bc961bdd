"""What a decision sets going, at the edges: each test here goes red for a wrong line of `admission.settling`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.digest import sha256
from comity.errors import PolicyDenied
from comity_node.admission import Gate, Question
from comity_node.admission.questions import Spending, Waiting, scope_of, to_units
from comity_node.admission.shapes import make_shape
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Request
from comity_node.storage import audit, ledgers
from comity_node.storage.database import Database, open_database
from kit.consortium import NOW_MS, names
from kit.documents import DATASET, PURPOSE
from kit.enforcing import make_gate
from kit.lab import policy

ME, PEER, OTHER = names(3)
SUBJECT = sha256(b"a record")


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


def with_gate(
    path: Path, main: Callable[[Gate, Database], Awaitable[None]], clock: Clock | None = None, text: str = "",
    **owed: str,
) -> None:  # fmt: skip
    """Run `main` with a gate whose policy owes this for `record.send`, and for the actions of `text`."""

    async def outer() -> None:
        async with open_database(path / "node.db") as database:
            written = policy(ME, obligations={name.replace("_", "."): duty for name, duty in owed.items()}) + text
            await main(await make_gate(database, written, clock or Clock()), database)

    trio.run(outer)


def question(action: str = "record.send", organization: str = PEER, **changes: Any) -> Question:
    request = Request(action, organization, "validator", PURPOSE, DATASET, "synthetic", frozenset({"x", "label"}))
    return Question(request, **{"subject": SUBJECT, **changes})


def test_what_an_approval_is_good_for() -> None:
    shape = make_shape(question().request)
    assert scope_of(question(agreement=b"agreed"), shape) == b"agreed"
    assert scope_of(question(), shape) == SUBJECT
    assert scope_of(question(subject=b""), shape) == bytes.fromhex(shape.digest)


@pytest.mark.parametrize(
    ("epsilon", "up", "down"),
    [
        (1e-6, 1, 1),
        (1.5e-6, 2, 1),
        (0.1 + 0.2, 300_000, 300_000),
        (2.0000004, 2_000_001, 2_000_000),
        (3.0, 3_000_000, 3_000_000),
    ],
)
def test_what_is_spent_is_rounded_up_and_what_may_be_spent_down(epsilon: float, up: int, down: int) -> None:
    assert (to_units(epsilon, up=True), to_units(epsilon, up=False)) == (up, down)


@pytest.mark.invariant("S1")
def test_a_deadline_is_over_when_it_is_there(tmp_path: Path) -> None:
    clock = Clock()

    async def main(gate: Gate, database: Database) -> None:
        (first,) = await gate.decide([question()])
        assert isinstance(first, Waiting)
        assert first.deadline_ms == NOW_MS + 3_600_000
        assert first.reason.endswith(f"comity approvals approve {first.approval.hex()[:12]}")
        clock.now_ms = first.deadline_ms - 1
        (waiting,) = await gate.decide([question()])
        assert isinstance(waiting, Waiting)
        clock.now_ms = first.deadline_ms
        for _ in range(2):
            (late,) = await gate.decide([question()])
            assert not isinstance(late, Waiting)
            assert late.reason.endswith("asks for a person's approval; nobody approved it in time")
        states = [
            one.entry.detail["state"] for one in await database.read(audit.entries) if one.entry.kind == "approval"
        ]
        assert states == ["pending", "expired"], "each is in the log once"

    with_gate(tmp_path, main, clock, record_send="approval: {within: 1h}")


def test_a_person_who_said_no_is_quoted(tmp_path: Path) -> None:
    async def main(gate: Gate, database: Database) -> None:
        for reason, said in (("", "a person denied it"), ("not yet", "a person denied it: not yet")):
            await gate.decide([question()])
            (row,) = await gate.approvals.list(all_of_them=True)
            name = row.approval_id.hex()
            await gate.approvals.decide(name, approve=False, reason=reason)
            (no,) = await gate.decide([question()])
            assert no.reason.endswith(f"asks for a person's approval; {said}")

    with_gate(tmp_path, main, record_send="approval: {within: 1h}")


@pytest.mark.invariant("S1")
def test_a_no_tells_more_than_what_is_waited_for(tmp_path: Path) -> None:
    """Two rules ask: one was denied, the other is waited for; and both were asked for."""
    text = (
        '\n  - {id: a-second, effect: allow, action: record.send, with: {organization: "*"},'
        " obligations: {approval: {within: 2h}}}"
    )

    async def main(gate: Gate, _: Database) -> None:
        await gate.decide([question()])
        rows = await gate.approvals.list()
        assert sorted(row.rule for row in rows) == ["a-second", "record-send"]
        for row in rows:
            if row.rule == "record-send":
                await gate.approvals.decide(row.approval_id.hex(), approve=False)
        (no,) = await gate.decide([question()])
        assert not isinstance(no, Waiting)
        assert no.rules == ("record-send",)

    with_gate(tmp_path, main, text=text, record_send="approval: {within: 1h}")


@pytest.mark.invariant("R2")
@pytest.mark.parametrize(
    ("owed", "reason"),
    [
        (
            "rate: {records: 7, per: 1h}, quota: {records: 9}",
            "the rate of rule record-send is used up: 7 records in 3600 s",
        ),
        ("quota: {records: 7}", "the quota of rule record-send is used up: 0 of 7 records are left"),
    ],
    ids=["rate", "quota"],
)
def test_the_last_record_of_a_rate_and_of_a_quota_passes_and_no_more(tmp_path: Path, owed: str, reason: str) -> None:
    async def main(gate: Gate, database: Database) -> None:
        decided = [(await gate.decide([question(amount=amount)]))[0] for amount in (3, 5, 4, 1)]
        assert [one.allowed for one in decided] == [True, False, True, False]
        assert decided[-1].reason == reason
        assert await database.read(lambda c: ledgers.quota_used(c, "record-send")) == 7

    with_gate(tmp_path, main, record_send=owed)


@pytest.mark.invariant("R2")
def test_the_last_millionth_of_a_budget_passes_and_what_costs_nothing_is_free(tmp_path: Path) -> None:
    def spend(release: int, cost: int) -> Question:
        return question(spending=Spending(release.to_bytes(32, "big"), cost))

    async def main(gate: Gate, database: Database) -> None:
        asked = [
            spend(1, 1_999_999),
            spend(2, 2),
            spend(3, 1),
            spend(4, 1),
            spend(5, 0),
            spend(1, 1_999_999),
            question(),
        ]
        assert [(await gate.decide([each]))[0].allowed for each in asked] == [
            True, False, True, False, True, True, True,
        ]  # fmt: skip
        (no,) = await gate.decide([spend(6, 500_000)])
        assert no.reason == ("the privacy budget of rule record-send is used up: 0 of 2 is left, and this costs 0.5")
        (no,) = await gate.decide([spend(7, 3_000_000)])
        assert no.rules == ("record-send",)

    with_gate(tmp_path, main, record_send="budget: {epsilon: 2}")


def test_a_budget_says_what_it_is_kept_apart_by(tmp_path: Path) -> None:
    async def main(gate: Gate, _: Database) -> None:
        asked = question(spending=Spending(bytes(32), 1_500_000))
        with pytest.raises(PolicyDenied) as no:
            await gate.demand(asked)
        assert "used up, for this purpose and recipient: 1 of 1 is left, and this costs 1.5" in str(no.value)

    with_gate(tmp_path, main, record_send="budget: {epsilon: 1, per: [purpose, recipient]}")


@pytest.mark.invariant("S8")
def test_who_is_told_is_told_of_each_sort_of_thing_once_a_call(tmp_path: Path) -> None:
    async def main(gate: Gate, database: Database) -> None:
        await gate.decide([question(), question(), question(organization=OTHER), question()])
        told = sorted((one.organization, one.times) for one in await gate.approvals.notices())
        assert told == [(PEER, 3), (OTHER, 1)]
        noted = [one.entry for one in await database.read(audit.entries) if one.entry.kind == "notice"]
        assert sorted((one.peer, one.detail["times"]) for one in noted) == told
        assert {tuple(one.detail["persons"]) for one in noted} == {("desk", "dpo")}  # type: ignore[arg-type]

    with_gate(tmp_path, main, record_send="notify: [dpo, desk]")


@pytest.mark.invariant("S8")
def test_an_entry_names_so_many_rules_and_counts_the_others(tmp_path: Path) -> None:
    for count, more in ((50, None), (51, 1)):
        rules = "".join(
            f"\n  - {{id: no-{number:03}, effect: forbid, action: record.send, data: {{kind: raw}}}}"
            for number in range(count)
        )

        async def main(gate: Gate, database: Database, more: int | None = more) -> None:
            raw = Request("record.send", PEER, "validator", PURPOSE, DATASET, "raw", frozenset({"x"}))
            (no,) = await gate.decide([Question(raw)])
            assert not no.allowed
            (entry,) = await database.read(audit.entries)
            assert entry.entry.rules == tuple(f"no-{number:03}" for number in range(50))
            assert entry.entry.detail.get("more_rules") == more

        (tmp_path / str(count)).mkdir()
        with_gate(tmp_path / str(count), main, text=rules)


def test_the_log_says_under_which_policy_it_was_decided(tmp_path: Path) -> None:
    async def main(gate: Gate, database: Database) -> None:
        await gate.decide([question(agreement=b"g" * 32)])
        (entry,) = await database.read(audit.entries)
        assert (entry.entry.policy, entry.entry.agreement) == (loads_policy(policy(ME)).digest, b"g" * 32)
        assert entry.at_ms == NOW_MS
        assert entry.entry.detail["request"] == make_shape(question().request).digest

    with_gate(tmp_path, main)


@pytest.mark.invariant("S1")
def test_no_persons_yes_makes_up_for_a_form_that_cannot_be(tmp_path: Path) -> None:
    async def main(gate: Gate, _: Database) -> None:
        for _attempt in range(2):
            with pytest.raises(PolicyDenied, match=r"redact cannot be done in update\.send"):
                await gate.demand(
                    Question(Request("update.send", PEER, "trainer", PURPOSE, DATASET, "update"), SUBJECT)
                )
        assert not await gate.approvals.list(all_of_them=True), "nobody is asked about it"

    with_gate(tmp_path, main, update_send="redact: [x], approval: {within: 1h}")


@pytest.mark.invariant("R2")
def test_noise_that_one_budget_has_paid_for_is_not_free_in_another(tmp_path: Path) -> None:
    """One budget is for each purpose, the other one for each recipient: what goes elsewhere is paid for there."""
    text = (
        '\n  - {id: per-purpose, effect: allow, action: record.send, with: {organization: "*"},'
        " obligations: {budget: {epsilon: 2, per: [purpose]}}}"
    )

    def spend(release: int, cost: int, to: str, purpose: str) -> Question:
        asked = question(organization=to, spending=Spending(release.to_bytes(32, "big"), cost * 1_000_000))
        return replace(asked, request=replace(asked.request, purpose=purpose))

    async def main(gate: Gate, _: Database) -> None:
        asked = [spend(1, 1, PEER, PURPOSE), spend(2, 2, OTHER, "another"), spend(1, 1, OTHER, PURPOSE)]
        first, second, third = [(await gate.decide([each]))[0] for each in asked]
        assert (first.allowed, second.allowed, third.allowed) == (True, True, False)
        assert third.reason.startswith("the privacy budget of rule record-send is used up, for this recipient: 0 of 2")

    with_gate(tmp_path, main, text=text, record_send="budget: {epsilon: 2, per: [recipient]}")


def test_a_budget_is_counted_in_whole_millionths_rounded_down(tmp_path: Path) -> None:
    async def main(gate: Gate, _: Database) -> None:
        asked = [question(spending=Spending(release.to_bytes(32, "big"), cost)) for release, cost in ((1, 3), (2, 2))]
        assert [(await gate.decide([each]))[0].allowed for each in asked] == [False, True]

    with_gate(tmp_path, main, record_send="budget: {epsilon: 0.0000025}")
