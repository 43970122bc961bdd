"""One transaction for all that left in the meantime: visits that are done, and tokens that are outgoing for them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from comity.errors import StorageError
from comity_node.protocol.token import Key
from comity_node.runtime.passing.crew import Crew
from comity_node.runtime.passing.lanes import Lanes
from comity_node.runtime.passing.ports import Journal, Move, Outgoing
from comity_node.runtime.passing.visit import Visit

#: Moves of one transaction; so the loop has its turns in between, too.
_AT_ONCE = 512

log = logging.getLogger(__name__)


async def stubbornly(write: Callable[[], Awaitable[None]], what: str, pause_s: float) -> None:
    """Write to the store, again and again while it cannot: what waits for it waits with it (R1).

    Args:
        write: one transaction.
        what: its name for the log.
        pause_s: seconds between two tries.
    """
    while True:
        try:
            await write()
        except StorageError as error:
            log.error("%s cannot be written: %s", what, error.diagnostics())  # noqa: TRY400  (no bug, so no traceback)
            await trio.sleep(pause_s)
        else:
            return


class Desk:
    """Journals moves and gives what is outgoing to the lanes, in the order in which they came."""

    def __init__(self, journal: Journal, lanes: Lanes, pause_s: float) -> None:
        """Write to `journal`; while it cannot, try again every `pause_s` seconds."""
        self._journal = journal
        self._lanes = lanes
        self._pause_s = pause_s
        self._moves: list[tuple[Move, Visit | None]] = []
        self._gone: list[Key] = []
        self._crew = Crew(1, self._work)

    def put(self, move: Move, visit: Visit | None = None) -> None:
        """Journal a move; one of a task of this home is left out if nobody wants it by then."""
        self._moves.append((move, visit))
        self._crew.call()

    def reroute(self, row: Outgoing) -> None:
        """Journal that a token is outgoing to somebody else."""
        self.put(Move(None, row))

    def drop(self, key: Key) -> None:
        """Journal that a token is no longer outgoing."""
        self._gone.append(key)
        self._crew.call()

    def begin(self, nursery: trio.Nursery) -> None:
        """Journal in `nursery` from now on."""
        self._crew.begin(nursery)

    async def _work(self, _: trio.CancelScope) -> bool:
        gone, self._gone = self._gone, []
        if gone:
            await stubbornly(lambda: self._journal.let_go(gone), "what is let go", self._pause_s)
        entries, self._moves = self._moves[:_AT_ONCE], self._moves[_AT_ONCE:]
        moves = [move for move, visit in entries if _wanted(move, visit)]
        if moves:
            await stubbornly(lambda: self._journal.finish(moves), "what goes out", self._pause_s)
        for move, visit in entries:
            if move.outgoing is None:
                continue
            if _wanted(move, visit):
                self._lanes.put(move.outgoing)
            else:  # since the transaction began
                self.drop(move.outgoing.token.key)
        return bool(self._moves or self._gone)


def _wanted(move: Move, visit: Visit | None) -> bool:
    """Whether a move still counts: of a task of this home, if that attempt is out and the task is not over."""
    if visit is None or visit.task is None or move.outgoing is None:
        return True
    return not visit.task.over and move.outgoing.token.attempt in visit.task.outs
