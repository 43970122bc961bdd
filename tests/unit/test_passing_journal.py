"""What the engine's journal in a database gives back after a restart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from comity_node.protocol.token import Token
from comity_node.runtime.passing.journal import DurableJournal, DurableLedger
from comity_node.runtime.passing.ports import Checkpoint, Move, Outgoing
from comity_node.storage.database import inline, open_database

HOME, OTHER = "mercy.example", "hope.example"


def token(sequence: int, *hops: bytes, attempt: int = 1) -> Token:
    return Token(b"t" * 16, bytes(32), HOME, "peer", attempt, sequence, b"{}", b"{}", hops, 9_000)


@pytest.mark.invariant("R5")
@pytest.mark.invariant("S8")
def test_a_task_that_was_out_when_its_home_ended_goes_on_after_the_hop_with_which_it_left(tmp_path: Path) -> None:
    """Else its next hop would stand where the last one does, and nobody could verify its way."""

    async def main() -> None:
        async with open_database(tmp_path / "node.db", offload=inline) as database:
            journal, ledger = DurableJournal(database, HOME, lambda: 1), DurableLedger(database, HOME, lambda: 1)

            async def opened() -> list[Checkpoint]:
                return list((await ledger.recover()).open)

            await ledger.open([token(0)])
            assert await opened() == [Checkpoint(token(0))]
            await journal.finish([Move(None, Outgoing(token(1), OTHER, "answer"))])
            assert await opened() == [Checkpoint(token(1), OTHER)]
            back = token(2, b"out", b"back")
            await ledger.checkpoint([back])
            assert await opened() == [Checkpoint(back)]
            again = replace(back, sequence=3, attempt=2)
            await journal.finish([Move(None, Outgoing(again, OTHER, "answer"))])
            assert await opened() == [Checkpoint(again, OTHER)]

    trio.run(main)
