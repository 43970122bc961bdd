"""What goes out is decided on in the transaction in which it is put out, and asked about once."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from comity.errors import StorageError
from comity_node.admission.tokens import Denied, Leaving, TokenGate
from comity_node.protocol.token import Token
from comity_node.runtime.passing.gateway import TokenGateway
from comity_node.runtime.passing.journal import DurableJournal
from comity_node.runtime.passing.ports import Held, Move, Outgoing, Refusal
from comity_node.storage.database import Database, inline, open_database

HOME, ME, THIRD = "mercy.example", "hope.example", "third.example"


def token(number: int) -> Token:
    return Token(bytes([number]) * 16, bytes(32), HOME, "peer", 1, 1, b"{}", b"{}", (b"came",), 9_000)


def move(number: int, to: str = HOME, role: str = "home") -> Move:
    came = token(number)
    return Move(came.key, Outgoing(replace(came, sequence=2), to, role))


@dataclass
class Gate:
    """Lets all pass but tasks of even numbers, in a transaction; and says how often it was asked."""

    database: Database
    asked: list[int] = field(default_factory=list)
    broken: bool = False
    meanwhile: Callable[[], None] = lambda: None
    identity: Any = field(default_factory=lambda: SimpleNamespace(organization=ME))

    async def out(
        self, _: object, __: object, ___: str, leaving: Sequence[Leaving], keep: Callable[..., None]
    ) -> list[Token | Denied]:
        self.asked.append(len(leaving))
        came: list[Token | Denied] = [
            replace(one.token, hops=(*one.token.hops, b"signed")) if one.token.task_id[0] % 2 else Denied("no")
            for one in leaving
        ]

        def write(connection: sqlite3.Connection) -> None:
            keep(connection, came)
            if self.broken:
                raise StorageError("the disk is full")

        await self.database.transact(write)
        self.meanwhile()
        return came

    def why_not_now(self, *_: object) -> str:
        return "it is withdrawn by now"


def run(
    path: Path, main: Callable[[DurableJournal, TokenGateway, Gate], Awaitable[None]], *, known: bool = True
) -> None:
    async def body() -> None:
        async with open_database(path / "node.db", offload=inline) as database:
            gate = Gate(database)
            agreements = SimpleNamespace(get=lambda _: SimpleNamespace(participants={HOME, ME, THIRD}))
            pacts = SimpleNamespace(pact=lambda _: SimpleNamespace(flow=None) if known else None)
            recheck = SimpleNamespace(version=0)
            gateway = TokenGateway(cast("TokenGate", gate), cast("Any", agreements), cast("Any", pacts), recheck)
            journal = DurableJournal(database, ME, lambda: 1, gateway)
            await journal.take([Held(token(number), HOME) for number in range(1, 6)])
            await main(journal, gateway, gate)

    trio.run(body)


async def left(journal: DurableJournal) -> dict[int, tuple[str, bool]]:
    """Return where each outgoing token goes, and whether it has passed."""
    rows = (await journal.recover()).outgoing
    return {row.token.task_id[0]: (row.to, row.passed is not None) for row in rows}


@pytest.mark.invariant("R1")
@pytest.mark.invariant("S8")
def test_what_is_put_out_has_passed_and_is_not_asked_about_again(tmp_path: Path) -> None:
    async def main(journal: DurableJournal, gateway: TokenGateway, gate: Gate) -> None:
        moves = [move(1), move(2), move(3, THIRD, "ask"), Move(token(4).key, None)]
        await journal.finish(moves)
        assert [held.token for held in (await journal.recover()).held] == [token(5)]
        assert await left(journal) == {1: (HOME, True), 2: (HOME, False), 3: (THIRD, True)}
        assert sorted(gate.asked) == [1, 2]
        rows = [each.outgoing for each in moves if each.outgoing is not None]
        one, two = await gateway.leave(HOME, rows[:2])
        assert isinstance(one, Token)
        assert one.hops == (b"came", b"signed")
        assert two == Refusal("no")
        await gateway.leave(THIRD, rows[2:])
        assert len(gate.asked) == 2, "all of it was decided on when it was put out"
        await gateway.leave(HOME, rows[1:2])
        assert len(gate.asked) == 3, "an answer counts once"

    run(tmp_path, main)


@pytest.mark.invariant("R1")
def test_what_cannot_be_written_stays_here_and_is_put_out_the_next_time(tmp_path: Path) -> None:
    async def main(journal: DurableJournal, _: TokenGateway, gate: Gate) -> None:
        gate.broken = True
        for moves in ([move(1)], [move(1), move(3, THIRD, "ask")]):
            with pytest.raises(StorageError, match="full"):
                await journal.finish(moves)
        recovery = await journal.recover()
        assert (len(recovery.held), recovery.outgoing) == (5, [])
        gate.broken = False
        await journal.finish([move(1)])
        assert await left(journal) == {1: (HOME, True)}

    run(tmp_path, main)


@pytest.mark.invariant("R1")
def test_what_nobody_is_asked_about_now_is_put_out_all_the_same(tmp_path: Path) -> None:
    async def main(journal: DurableJournal, gateway: TokenGateway, gate: Gate) -> None:
        one = move(1)
        await journal.finish([one])
        assert (await left(journal), gate.asked) == ({1: (HOME, False)}, [])
        assert one.outgoing is not None
        (answer,) = await gateway.leave(HOME, [one.outgoing])
        assert isinstance(answer, Refusal)

    run(tmp_path, main, known=False)


def test_of_two_with_one_key_the_later_one_goes_out(tmp_path: Path) -> None:
    async def main(journal: DurableJournal, _: TokenGateway, gate: Gate) -> None:
        first = move(1, THIRD, "ask")
        assert first.outgoing is not None
        await journal.finish([first, Move(None, Outgoing(first.outgoing.token, HOME, "home"))])
        assert (await left(journal), gate.asked) == ({1: (HOME, False)}, [])

    run(tmp_path, main)


def test_what_is_let_go_is_decided_on_anew_if_it_goes_out_after_all(tmp_path: Path) -> None:
    async def main(journal: DurableJournal, gateway: TokenGateway, gate: Gate) -> None:
        one = move(1)
        assert one.outgoing is not None
        await journal.finish([one])
        await journal.let_go([one.outgoing.token.key])
        assert await left(journal) == {}
        await gateway.leave(HOME, [one.outgoing])
        assert len(gate.asked) == 2

    run(tmp_path, main)


def test_an_answer_counts_for_what_was_asked_alone(tmp_path: Path) -> None:
    async def main(journal: DurableJournal, gateway: TokenGateway, gate: Gate) -> None:
        one = move(1)
        assert one.outgoing is not None
        await journal.finish([one])
        await gateway.leave(THIRD, [replace(one.outgoing, to=THIRD, role="ask")])
        assert len(gate.asked) == 2, "it goes to somebody else now"

    run(tmp_path, main)


def test_what_was_decided_for_one_is_not_put_out_for_another(tmp_path: Path) -> None:
    async def main(journal: DurableJournal, _: TokenGateway, gate: Gate) -> None:
        one = move(1)
        assert one.outgoing is not None
        await journal.finish([one])
        await journal.finish([Move(None, replace(one.outgoing, to=THIRD, role="ask"))])
        assert (await left(journal), gate.asked) == ({1: (THIRD, True)}, [1, 1])

    run(tmp_path, main)


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("changed", [True, False])
def test_what_was_put_out_while_an_agreement_ended_is_looked_at_again(tmp_path: Path, changed: bool) -> None:
    async def main(journal: DurableJournal, gateway: TokenGateway, gate: Gate) -> None:
        one = move(1)
        assert one.outgoing is not None
        recheck = cast("Any", gateway._recheck)
        if changed:
            gate.meanwhile = lambda: setattr(recheck, "version", 1)
        await journal.finish([one])
        stopped = gateway.check_again(HOME, [one.outgoing])
        assert [why.reason for why in stopped.values()] == (["it is withdrawn by now"] if changed else [])

    run(tmp_path, main)


def test_an_answer_stays_while_others_of_its_batch_cannot_be_decided_on(tmp_path: Path) -> None:
    async def main(journal: DurableJournal, gateway: TokenGateway, gate: Gate) -> None:
        first, second = move(1).outgoing, move(3).outgoing
        assert first is not None
        assert second is not None
        await journal.finish([Move(None, first)])
        gate.broken = True
        with pytest.raises(StorageError, match="full"):
            await gateway.leave(HOME, [first, second])
        gate.broken = False
        came = await gateway.leave(HOME, [first, second])
        assert all(isinstance(one, Token) for one in came)
        assert gate.asked == [1, 1, 1], "what a rule counts of the first is counted once"

    run(tmp_path, main)
