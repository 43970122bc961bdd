"""Bugs that are planted to see that the plans and the checker find them: each takes one promise of the product away."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import trio

from comity.errors import ComityError
from comity_node.admission import Gate
from comity_node.admission import records as record_gate
from comity_node.runtime import certify, review_writer
from comity_node.runtime.author import Author
from comity_node.runtime.ballots import BallotBox
from comity_node.runtime.certify import Certifier, learn
from comity_node.runtime.core import Runtime
from comity_node.runtime.messenger import accepted
from comity_node.runtime.outbox import Outbox
from comity_node.runtime.passing.journal import DurableLedger
from comity_node.runtime.passing.ports import LedgerRecovery
from comity_node.runtime.reviewer import Reviewer
from comity_node.storage import journal, records

Plant = Callable[[ExitStack], None]


def _beside(work: Callable[[], Any]) -> None:
    """Have something done after what is being done now has been answered."""

    async def later() -> None:
        await trio.sleep(0.2)
        with suppress(ComityError):  # the node may be gone
            await work()

    trio.lowlevel.spawn_system_task(later)


def _early_custody(stack: ExitStack) -> None:
    """A batch is acknowledged before the journal has it."""
    take = Reviewer._on_offer

    async def early(self: Reviewer, sender: Any, body: bytes) -> Any:
        _beside(lambda: take(self, sender, body))
        return accepted()

    stack.enter_context(patch.object(Reviewer, "_on_offer", early))


def _vote_twice(stack: ExitStack) -> None:
    """A vote teaches something about who gave it each time that it comes."""
    keep = BallotBox._keep

    def again(self: BallotBox, connection: sqlite3.Connection, batch: bytes, checked: Any, *rest: Any) -> Any:
        kept = keep(self, connection, batch, checked, *rest)
        for one in checked:
            task = journal.get_task(connection, one.review.task_id)
            if task is not None and task.state in ("certified", "rejected"):
                right = one.review.accept == (task.state == "certified")
                learn(connection, [(one.organization, right)], rest[-1])
        return kept

    stack.enter_context(patch.object(BallotBox, "_keep", again))


def _record_twice(stack: ExitStack) -> None:
    """A record that is there already is stored, and told of, again."""
    put = records.put_record

    def again(connection: sqlite3.Connection, row: Any) -> bool:
        put(connection, row)
        return True

    stack.enter_context(patch.object(records, "put_record", again))
    stack.enter_context(patch.object(records, "stored_digests", lambda connection, author, tasks: {}))


def _outbox_in_memory(stack: ExitStack) -> None:
    """What waits in the outbox is gone with the process."""
    load = Runtime.load

    async def forget(self: Runtime) -> None:
        await self.outbox._database.transact(
            lambda connection: connection.execute("DELETE FROM outbox WHERE state IN ('pending', 'sent')") and None
        )
        await load(self)

    stack.enter_context(patch.object(Runtime, "load", forget))


def _fire_and_forget(stack: ExitStack) -> None:
    """A message is done when it is sent, not when it is acknowledged."""
    deliver = Outbox._deliver

    async def once(self: Outbox, item: Any) -> None:
        await self._database.transact(lambda connection: journal.mark_done(connection, item.message_id))
        await deliver(self, item)

    stack.enter_context(patch.object(Outbox, "_deliver", once))


def _split_transaction(stack: ExitStack) -> None:
    """Certified records are put on their way in a transaction of their own, after the one that certifies them."""
    deliveries, conclude = Certifier._deliveries, Certifier.conclude
    waiting: dict[int, list[Any]] = defaultdict(list)

    async def none_yet(self: Certifier, agreed: Any, certified: Any) -> list[Any]:
        waiting[id(self)] += await deliveries(self, agreed, certified)
        return []

    async def two_steps(self: Certifier, agreed: Any, verdicts: Any) -> None:
        await conclude(self, agreed, verdicts)
        items = waiting.pop(id(self), [])
        await self._database.transact(lambda connection: [journal.try_enqueue(connection, item) for item in items])
        for item in items:
            self._outbox.kick(item.organization)

    stack.enter_context(patch.object(Certifier, "_deliveries", none_yet))
    stack.enter_context(patch.object(Certifier, "conclude", two_steps))


def _held_forgotten(stack: ExitStack) -> None:
    """A batch in custody is judged only if it came since the node started."""
    held, load = journal.held_offers, Runtime.load
    since: dict[str, int] = {}

    async def note(self: Runtime) -> None:
        since[self.outbox._database.path.parent.name] = self._gate.now_ms()
        await load(self)

    def fresh(connection: sqlite3.Connection) -> Sequence[Any]:
        (name,) = (row[2] for row in connection.execute("PRAGMA database_list") if row[1] == "main")
        begun_ms = since[name.split("/")[-2]]
        return [
            one
            for one in held(connection)
            if (row := journal.get_offer(connection, one.digest)) is not None and row.received_ms >= begun_ms
        ]

    stack.enter_context(patch.object(Runtime, "load", note))
    stack.enter_context(patch.object(journal, "held_offers", fresh))


def _judged_anew(stack: ExitStack) -> None:
    """An offer that comes again is judged and signed again."""
    known = Reviewer._answer_again

    async def anew(self: Reviewer, agreed: Any, offer: Any) -> None:
        def forget(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE inbox SET state = 'held', reviews = NULL, done_ms = NULL WHERE digest = ?", (offer.digest,)
            )

        if offer.reviews:
            await self._database.transact(forget)
            self._work.set()
        await known(self, agreed, replace(offer, reviews=None))

    stack.enter_context(patch.object(Reviewer, "_answer_again", anew))


def _late_log(stack: ExitStack) -> None:
    """A decision is in the log after its effect."""
    decide = Gate.decide

    async def late(self: Gate, questions: Any) -> Any:
        _beside(lambda: decide(self, questions))
        return [self.consider(question.request) for question in questions]

    stack.enter_context(patch.object(Gate, "decide", late))


def _quota_twice(stack: ExitStack) -> None:
    """A repaired task counts against its home's quota once more."""
    take = journal.take_tasks

    def every(connection: sqlite3.Connection, offer: Any, tasks: Any) -> int:
        take(connection, offer, tasks)
        return len(list(tasks))

    stack.enter_context(patch.object(journal, "take_tasks", every))


def _no_lease(stack: ExitStack) -> None:
    """A reviewer that holds a batch past its lease is waited for."""
    rows = journal.list_assignments

    def endless(connection: sqlite3.Connection, batch: bytes, revision: int) -> list[Any]:
        return [replace(one, lease_until_ms=one.lease_until_ms + 10**9) for one in rows(connection, batch, revision)]

    stack.enter_context(patch.object(journal, "list_assignments", endless))


def _half_a_restart(stack: ExitStack) -> None:
    """After a restart nobody goes on with the own tasks."""
    begin = Author.begin

    def first_only(self: Author, agreed: Any) -> None:
        with sqlite3.connect(f"file:{self._database.path}?mode=ro", uri=True) as connection:
            under_way = connection.execute("SELECT count(*) FROM tasks").fetchone()[0]
        connection.close()
        if not under_way:
            begin(self, agreed)

    stack.enter_context(patch.object(Author, "begin", first_only))


def _journeys_in_memory(stack: ExitStack) -> None:
    """After a restart the home does not know of its tasks that are on their way."""

    async def nothing(self: DurableLedger) -> LedgerRecovery:
        return LedgerRecovery((), ())

    stack.enter_context(patch.object(DurableLedger, "recover", nothing))


def _clock_believed(stack: ExitStack) -> None:
    """What is signed is dated by the own clock, also if that is before what it follows."""
    for module in (record_gate, certify, review_writer):
        stack.enter_context(patch.object(module, "signing_moment", lambda now_ms, *before_ms: now_ms))


BUGS: Mapping[str, Plant] = {
    "clock-believed": _clock_believed,
    "journeys-in-memory": _journeys_in_memory,
    "early-custody": _early_custody,
    "vote-twice": _vote_twice,
    "record-twice": _record_twice,
    "outbox-in-memory": _outbox_in_memory,
    "fire-and-forget": _fire_and_forget,
    "split-transaction": _split_transaction,
    "held-forgotten": _held_forgotten,
    "judged-anew": _judged_anew,
    "late-log": _late_log,
    "quota-twice": _quota_twice,
    "no-lease": _no_lease,
    "half-a-restart": _half_a_restart,
}


@contextmanager
def planted(bug: str) -> Iterator[None]:
    """Have a bug in the product for a while; none if `bug` is empty."""
    with ExitStack() as stack:
        if bug:
            BUGS[bug](stack)
        yield
