"""What was signed stays signed, once for an id, and one organization can make a node sign only so much."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from comity.digest import sha256
from comity.errors import Busy
from comity_node.storage import journal, negotiations
from comity_node.storage.database import open_database
from comity_node.storage.negotiations import NegotiationRow, PromiseRow, WithdrawalRow

T = TypeVar("T")


def transact(path: Path, work: Callable[[sqlite3.Connection], T]) -> T:
    async def main() -> T:
        async with open_database(path / "node.db") as database:
            return await database.transact(work)

    return trio.run(main)


def promise(number: int, initiator: str = "a.example", **changes: object) -> PromiseRow:
    terms = f"terms {initiator} {number}".encode()
    row = PromiseRow(
        f"{initiator}/{number}", initiator, sha256(terms), terms, b"signature", (b"leaf", b"root"), b"", "signed", 1,
        1_000_000, ask_ms=100 + number,
    )  # fmt: skip
    return replace(row, **changes)  # type: ignore[arg-type]


@pytest.mark.invariant("R2")
def test_one_set_of_terms_for_an_id_is_kept_across_restarts(tmp_path: Path) -> None:
    first, second = promise(1), promise(2, agreement_id=promise(1).agreement_id)
    assert transact(tmp_path, lambda c: negotiations.put_promise(c, first, 0))
    assert not transact(tmp_path, lambda c: negotiations.put_promise(c, second, 0))
    assert not transact(tmp_path, lambda c: negotiations.put_promise(c, first, 0))
    assert transact(tmp_path, lambda c: negotiations.get_promise(c, first.agreement_id)) == first
    assert transact(tmp_path, lambda c: negotiations.promise_of(c, first.digest)) == first
    assert transact(tmp_path, lambda c: negotiations.promise_of(c, second.digest)) is None
    asked = replace(first, stage="concluded", asks=3, ask_ms=9)
    transact(tmp_path, lambda c: negotiations.save_promise(c, asked))
    assert transact(tmp_path, lambda c: negotiations.get_promise(c, first.agreement_id)) == asked


@pytest.mark.invariant("S7")
def test_an_organization_has_100_signatures_that_may_bind_and_1000_in_all(tmp_path: Path) -> None:
    def fill(connection: sqlite3.Connection) -> None:
        for number in range(100):
            assert negotiations.put_promise(connection, promise(number), 0)
        with pytest.raises(Busy, match=r"a\.example"):
            negotiations.put_promise(connection, promise(100), 0)
        assert negotiations.put_promise(connection, promise(0, "b.example"), 0), "others have their own"
        assert negotiations.put_promise(connection, promise(100), 1_000_000), "expired ones bind nobody"

    def fill_more(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE promises SET stage = 'released'")
        for number in range(101, 1_000):
            assert negotiations.put_promise(connection, promise(number, stage="released"), 0)
        with pytest.raises(Busy):
            negotiations.put_promise(connection, promise(1_000), 0)

    transact(tmp_path, fill)
    transact(tmp_path, fill_more)
    assert transact(tmp_path, lambda c: negotiations.forget_promises(c, 1_000_000)) == 0
    assert transact(tmp_path, lambda c: negotiations.forget_promises(c, 1_000_001)) == 1_000
    assert transact(tmp_path, lambda c: negotiations.put_promise(c, promise(1_000), 0))


def test_a_page_has_1000_rows(tmp_path: Path) -> None:
    def fill(connection: sqlite3.Connection) -> int:
        for number in range(1_001):
            negotiations.put_promise(connection, promise(number, f"{number // 100}.example"), 0)
        return len(negotiations.open_promises(connection, limit=5_000))

    assert transact(tmp_path, fill) == 1_000


def test_promises_are_asked_about_in_their_time(tmp_path: Path) -> None:
    def look(connection: sqlite3.Connection) -> tuple[list[str], list[str]]:
        for row in (promise(3), promise(1), promise(2, stage="concluded"), promise(4, stage="released", ends_ms=103)):
            negotiations.put_promise(connection, row, 0)
        due = [row.agreement_id for row in negotiations.open_promises(connection, due_ms=103)]
        return due, [row.agreement_id for row in negotiations.open_promises(connection)]

    due, open_ = transact(tmp_path, look)
    assert due == ["a.example/1", "a.example/3"]
    assert open_ == ["a.example/1", "a.example/3", "a.example/4"]


def test_what_an_agreement_is_amended_by(tmp_path: Path) -> None:
    old = sha256(b"old")

    def look(connection: sqlite3.Connection) -> list[bool]:
        found = [negotiations.is_amended(connection, old, 0)]
        negotiations.put_promise(connection, promise(1, replaces=old), 0)
        found += [negotiations.is_amended(connection, old, now_ms) for now_ms in (0, 1_000_000)]
        negotiations.save_promise(connection, promise(1, stage="released"))
        return [*found, negotiations.is_amended(connection, old, 0)]

    assert transact(tmp_path, look) == [False, True, False, False]


def test_where_a_negotiation_stands_is_written_over_and_forgotten(tmp_path: Path) -> None:
    row = NegotiationRow("w", "w", "proposing", 1, b"terms", ("a.example", "b.example"), 99)
    later = replace(row, agreement_id="w2", phase="signing", round=2, terms=b"others", participants=("b.example",))

    def write(connection: sqlite3.Connection) -> None:
        journal.put_workflow(connection, journal.WorkflowRow("w", b"{}", "negotiating", "", None, 1))
        negotiations.save_negotiation(connection, row)

    transact(tmp_path, write)
    assert transact(tmp_path, lambda c: negotiations.get_negotiation(c, "w")) == row
    transact(tmp_path, lambda c: negotiations.save_negotiation(c, later))
    assert transact(tmp_path, negotiations.list_negotiations) == [later]
    transact(tmp_path, lambda c: negotiations.end_negotiation(c, "w"))
    assert transact(tmp_path, lambda c: negotiations.get_negotiation(c, "w")) is None


def test_one_statement_of_an_organization_about_an_agreement(tmp_path: Path) -> None:
    digest = sha256(b"terms")
    first = WithdrawalRow(digest, "b.example", b"statement", "why", 5, 10)
    other = WithdrawalRow(digest, "a.example", b"another", "", 6, 11)

    def write(connection: sqlite3.Connection) -> list[bool]:
        return [
            negotiations.put_withdrawal(connection, row) for row in (first, replace(first, statement=b"again"), other)
        ]

    assert transact(tmp_path, write) == [True, False, True]
    assert transact(tmp_path, lambda c: negotiations.withdrawals_from(c, digest)) == [first, other]
    assert transact(tmp_path, lambda c: negotiations.withdrawn_from(c, 0)) == [], "there is no agreement of this digest"
