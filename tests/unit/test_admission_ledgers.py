"""Quotas and privacy budgets: counted before anything leaves, for ever, and never given back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.errors import PolicyDenied, StorageError
from comity_node.admission import Gate, Question
from comity_node.admission.questions import Spending, budget_scope, to_units
from comity_node.policy.lattice import Budget
from comity_node.policy.model import Request
from comity_node.storage import audit, ledgers
from comity_node.storage.connections import connect_writer, create
from comity_node.storage.database import Database, open_database
from kit.consortium import NOW_MS, names
from kit.documents import DATASET, PURPOSE
from kit.enforcing import make_gate
from kit.lab import policy

ME, PEER, OTHER = names(3)


def with_gate(path: Path, main: Callable[[Gate, Database], Awaitable[None]], obligations: str) -> None:
    """Run `main` with a gate over the database at `path`, as one run of a node."""

    async def outer() -> None:
        async with open_database(path) as database:
            text = policy(ME, obligations={"record.send": obligations})
            await main(await make_gate(database, text, lambda: NOW_MS), database)

    trio.run(outer)


def question(release: int | None = None, cost: int = 0, organization: str = PEER, **changes: Any) -> Question:
    request = Request(
        action="record.send",
        organization=organization,
        role="validator",
        purpose=changes.pop("purpose", PURPOSE),
        dataset=DATASET,
        kind="synthetic",
        fields=frozenset({"x", "label"}),
    )
    spending = None if release is None else Spending(release.to_bytes(32, "big"), cost)
    return Question(request, spending=spending, **changes)


@pytest.mark.invariant("R2")
@pytest.mark.invariant("S1")
def test_a_quota_counts_for_ever_and_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    allowed = []

    async def use(gate: Gate, _: Database) -> None:
        allowed.append([one.allowed for one in await gate.decide([question() for _ in range(4)])])

    for _ in range(3):
        with_gate(path, use, "quota: {records: 10}")
    assert [sum(each) for each in allowed] == [4, 4, 2]

    async def refused(gate: Gate, database: Database) -> None:
        with pytest.raises(PolicyDenied, match="quota of rule record-send is used up: 0 of 10 records are left") as no:
            await gate.demand(question())
        assert no.value.rules == ("record-send",)
        (entry,) = (await database.read(audit.entries))[-1:]
        assert (entry.entry.decision, entry.entry.rules) == ("deny", ("record-send",))
        assert await database.read(lambda c: ledgers.quota_used(c, "record-send")) == 10

    with_gate(path, refused, "quota: {records: 10}")


def test_what_a_quota_has_no_room_for_uses_nothing_of_it_or_of_another_limit(tmp_path: Path) -> None:
    async def main(gate: Gate, database: Database) -> None:
        (big,) = await gate.decide([question(amount=11)])
        assert not big.allowed
        (costly,) = await gate.decide([question(1, 3_000_000)])
        assert not costly.allowed
        assert "2 is left" in costly.reason.replace("2 of 2", "2")
        assert await database.read(lambda c: ledgers.quota_used(c, "record-send")) == 0
        (rest,) = await gate.decide([question(amount=10)])
        assert rest.allowed

    with_gate(tmp_path / "node.db", main, "quota: {records: 10}, budget: {epsilon: 2}, rate: {records: 10, per: 1h}")


@pytest.mark.invariant("R2")
def test_the_same_noisy_bytes_are_paid_for_once_wherever_they_go(tmp_path: Path) -> None:
    path = tmp_path / "node.db"

    async def main(gate: Gate, _: Database) -> None:
        asked = [question(1, 1_000_000, to) for to in (PEER, OTHER, PEER)]
        assert all(one.allowed for one in await gate.decide(asked))
        assert (await gate.demand(question(2, 1_000_000))).allowed
        with pytest.raises(PolicyDenied, match="privacy budget of rule record-send is used up: 0 of 2 is left"):
            await gate.demand(question(3, 1))

    with_gate(path, main, "budget: {epsilon: 2}")

    async def again(gate: Gate, _: Database) -> None:
        assert (await gate.demand(question(2, 1_000_000, OTHER))).allowed
        with pytest.raises(PolicyDenied, match="budget"):
            await gate.demand(question(3, 1))

    with_gate(path, again, "budget: {epsilon: 2}")


def test_a_budget_is_kept_apart_by_recipient_and_purpose(tmp_path: Path) -> None:
    async def main(gate: Gate, _: Database) -> None:
        for to in (PEER, OTHER):
            for purpose in (PURPOSE, "another"):
                asked = [question(1, 1_000_000, to, purpose=purpose), question(2, 1, to, purpose=purpose)]
                assert [one.allowed for one in await gate.decide(asked)] == [True, False]

    with_gate(tmp_path / "node.db", main, "budget: {epsilon: 1, per: [purpose, recipient]}")


def test_two_scopes_never_have_one_name() -> None:
    both = Budget(1.0, ("purpose", "recipient"), "r")
    one = Request("record.send", "b.example", purpose='a","b')
    other = Request("record.send", 'b","b.example', purpose="a")
    assert budget_scope(both, one) != budget_scope(both, other)


@pytest.mark.parametrize(("epsilon", "up", "units"), [(0.1, True, 100_000), (0.1, False, 100_000),
    (1e-9, True, 1), (1.23456789, True, 1_234_568), (1.23456789, False, 1_234_567), (1e6, True, 10**12)])  # fmt: skip
def test_an_epsilon_in_millionths_is_never_too_small_when_spent_nor_too_large_when_had(
    epsilon: float, up: bool, units: int
) -> None:
    assert to_units(epsilon, up=up) == units


def test_a_ledger_counts_nothing_that_is_not_positive(tmp_path: Path) -> None:
    create(tmp_path / "node.db")
    connection = connect_writer(tmp_path / "node.db", None)
    with pytest.raises(StorageError, match="0 cannot be counted"):
        ledgers.spend_quota(connection, "r", 5, 0)
    with pytest.raises(StorageError, match="-1 cannot be counted"):
        ledgers.spend_epsilon(connection, "r", bytes(32), -1, 5)
    connection.close()


@pytest.mark.invariant("R2")
@given(
    budget=st.integers(1, 40),
    waves=st.lists(
        st.lists(
            st.tuples(st.integers(0, 12), st.integers(1, 9), st.sampled_from([PEER, OTHER])), min_size=1, max_size=6
        ),
        min_size=1,
        max_size=6,
    ),
    restarts=st.sets(st.integers(0, 5)),
)
@settings(max_examples=30, deadline=None)
def test_no_interleaving_spends_more_than_the_budget(
    tmp_path_factory: pytest.TempPathFactory, budget: int, waves: list[list[tuple[int, int, str]]], restarts: set[int]
) -> None:
    """Waves of concurrent askers, with the node started anew between some of them.

    What left is summed up here, by what was allowed; the ledger is not asked.
    """
    path = tmp_path_factory.mktemp("ledger") / "node.db"
    costs: dict[int, int] = {}
    released: dict[int, int] = {}

    async def ask(gate: Gate, release: int, cost: int, to: str) -> None:
        if (await gate.decide([question(release, cost, to)]))[0].allowed:
            released[release] = cost

    async def run(part: list[list[tuple[int, int, str]]]) -> None:
        async with open_database(path) as database:
            text = policy(ME, obligations={"record.send": f"budget: {{epsilon: {budget / 1_000_000:.6f}}}"})
            gate = await make_gate(database, text, lambda: NOW_MS)
            for wave in part:
                async with trio.open_nursery() as nursery:
                    for release, cost, to in wave:
                        nursery.start_soon(ask, gate, release, costs.setdefault(release, cost), to)
                assert sum(released.values()) <= budget

    part: list[list[tuple[int, int, str]]] = []
    for number, wave in enumerate(waves):
        part.append(wave)
        if number in restarts:
            trio.run(run, part)
            part = []
    trio.run(run, part)


CHILD = """
import os, sys, trio
sys.path[:0] = {paths!r}
from pathlib import Path
from test_admission_ledgers import ME, question
from comity_node.storage.database import open_database
from kit.consortium import NOW_MS
from kit.enforcing import make_gate
from kit.lab import policy

async def main():
    async with open_database(Path({path!r})) as database:
        gate = await make_gate(database, policy(ME, obligations={{"record.send": {owed!r}}}), lambda: NOW_MS)
        release = {first}
        while True:
            (one,) = await gate.decide([question(release, 1000)])
            if one.allowed:  # it leaves only now
                os.write(1, b"x")
            release += 1

trio.run(main)
"""


@pytest.mark.invariant("R2")
@pytest.mark.invariant("S8")
def test_a_budget_and_a_quota_survive_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    owed = "budget: {epsilon: 1}, quota: {records: 999}"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    left = 0
    for run in range(2):
        code = CHILD.format(paths=paths, path=str(path), owed=owed, first=run * 10_000)
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(15):  # an arbitrary moment: whatever it is doing now, it is killed
                assert child.stdout.read(1) == b"x"
            os.kill(child.pid, signal.SIGKILL)
            left += 15 + len(child.stdout.read())
    assert left <= 999

    async def main(gate: Gate, database: Database) -> None:
        used = await database.read(lambda c: ledgers.quota_used(c, "record-send"))
        spent = await database.read(lambda c: ledgers.epsilon_spent(c, '["record-send"]'))
        # Counted is at least what left, and at most one more for each kill.
        assert left <= used <= min(999, left + 2)
        assert spent == used * 1000
        more = await gate.decide([question(90_000 + number, 1000) for number in range(1100)])
        assert sum(one.allowed for one in more) == 999 - used

    with_gate(path, main, owed)


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("action", ["update.send", "update.receive"])
@pytest.mark.parametrize(
    "form", ["redact: [x]", "noise: {x: {epsilon: 1, lower: 0, upper: 1}}", "k_anonymity: {k: 2, fields: [x]}",
             "min_distance_to_private: 0.5", "hash: [x]", "mask: {x: 2}", "generalize: {x: 5}"],
)  # fmt: skip
def test_a_form_that_an_action_cannot_have_is_a_no_and_not_passed_over(tmp_path: Path, action: str, form: str) -> None:
    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            gate = await make_gate(database, policy(ME, obligations={action: form}), lambda: NOW_MS)
            asked = Question(Request(action, PEER, "trainer", PURPOSE, DATASET, "update"))
            with pytest.raises(PolicyDenied, match=rf"{form.split(':')[0]} cannot be done in {action}") as no:
                await gate.demand(asked)
            assert no.value.rules == (action.replace(".", "-"),)

    trio.run(main)


@pytest.mark.invariant("S1")
def test_one_rule_for_several_actions_is_looked_at_for_each(tmp_path: Path) -> None:
    """What asks for nothing that is counted is looked at once in a batch; not so what an action cannot have."""
    what = "action: [record.send, update.send], obligations: {redact: [x]}"
    rule = f'id: both, effect: allow, to: {{organization: "*"}}, {what}'
    text = f"version: 1\norganization: {ME}\nrules:\n  - {{{rule}}}\n"

    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            gate = await make_gate(database, text, lambda: NOW_MS)
            asked = [Request(action, PEER, "", PURPOSE, DATASET, "update") for action in ("record.send", "update.send")]
            decided = await gate.decide([Question(request) for request in (*asked, *asked)])
            assert [one.allowed for one in decided] == [True, False] * 2

    trio.run(main)
