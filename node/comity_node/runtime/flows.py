"""Agreements with a flow: tasks of this home are opened and sent on their way, and what they yield is judged.

No barrier anywhere: a record that is done joins the next review batch that there is a slot for, with whoever else is
ready then. All of it is in the journal, so that a restart goes on where the last run stopped (R1); ids of tasks follow
from the agreement, and a record is put into one batch (R2).
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import trio

from comity.agreement import Agreed
from comity.digest import canonical_json, sha256
from comity.errors import AgreementStopped, ConfigError
from comity_node.protocol.flow import Finish, Flow, parse_flow, record_of
from comity_node.protocol.task import FINAL, State
from comity_node.runtime import batches
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.author import Author
from comity_node.runtime.certify import REVIEWER
from comity_node.runtime.messenger import Handler
from comity_node.runtime.passing.carriage import Carriage
from comity_node.runtime.passing.engine import Engine
from comity_node.runtime.passing.ports import Ending
from comity_node.runtime.patience import patiently
from comity_node.runtime.router_flows import FlowRouting
from comity_node.runtime.seams import TaskStatus
from comity_node.storage import journal, journeys
from comity_node.storage.database import Database
from comity_node.tracing import NULL, Subject, Tracer

log = logging.getLogger(__name__)

#: Of one agreement: a slow one holds nobody else's up.
_BATCHES_AT_ONCE: Final = 4
#: Tasks that are opened in one go.
_OPEN_AT_ONCE: Final = 1_024
#: Seconds between looks at what has been learned about others.
_LEARN_EVERY_S: Final = 5.0
_OPEN_STATES: Final = tuple(state.value for state in State if state not in FINAL)


def journey_id(agreed: Agreed, organization: str, number: int) -> bytes:
    """Return the 16-byte id of an organization's task under an agreement with a flow."""
    return sha256(b"\x00".join((b"journey", agreed.digest, organization.encode(), str(number).encode())))[:16]


class Flows:
    """The tasks of this home under agreements with a flow."""

    def __init__(
        self, *, me: str, database: Database, agreements: Agreements, author: Author, carriage: Carriage,
        routing: FlowRouting, now_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        """Open and judge tasks of organization `me`; `attach` says by which engine they are passed on."""
        self._me = me
        self._database = database
        self._agreements = agreements
        self._author = author
        self._carriage = carriage
        self._routing = routing
        self._now_ms = now_ms
        self._engine: Engine | None = None
        self._news: dict[bytes, trio.Event] = {}
        self._begun: set[bytes] = set()
        self._nursery: trio.Nursery | None = None
        #: Is told as which tasks records are judged.
        self.tracer: Tracer = NULL

    def attach(self, engine: Engine) -> None:
        """Have tasks passed on by `engine`, which gets what comes in, too."""
        self._engine = engine
        self._carriage.attach(engine)

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Serve what others bring."""
        return self._carriage.handlers

    @property
    def engine(self) -> Engine:
        """What passes tasks on."""
        assert self._engine is not None
        return self._engine

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Go on with what an earlier run left, and with what `begin` is told of, until cancelled."""
        await self._carriage.load()
        async with trio.open_nursery() as self._nursery:
            try:
                await self._nursery.start(self.engine.run)
                self._nursery.start_soon(self._learn)
                self._nursery.start_soon(self._carriage.run)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None  # what still comes at the end is for the next run

    def begin(self, agreed: Agreed) -> None:
        """Open the tasks that an agreement asks of this organization, if that has not begun yet."""
        if self._nursery is not None and agreed.digest not in self._begun:
            self._begun.add(agreed.digest)
            self._nursery.start_soon(self._home, agreed)

    async def ended(self, endings: Sequence[Ending]) -> None:
        """Hear that tasks are over; what they yielded is in the ledger (`ports.Sink`)."""
        for digest in {one.agreement for one in endings}:
            self._ring(digest)

    def look_again(self) -> None:
        """End the tasks of agreements that are over, and let go of others' tasks under them.

        Those of an agreement that is suspended wait: nobody is asked for them, and nothing of them passes the gate.
        """
        for digest in self._begun:
            if self._agreements.is_over(digest):
                self.engine.cancel(digest, None, self._agreements.why_stopped(digest) or "its agreement is over")
                self.engine.let_go(digest)
            self._ring(digest)

    def cancel(self, digest: bytes, reason: str) -> int:
        """End the tasks of an agreement that are under way, and tell who has them; returns how many there were."""
        count = self.engine.cancel(digest, None, reason)
        self._ring(digest)
        return count

    def _ring(self, digest: bytes) -> None:
        if (event := self._news.get(digest)) is not None:
            event.set()

    # -- one agreement ---------------------------------------------------------------------------------------------

    async def _home(self, agreed: Agreed) -> None:
        """Take all tasks of an agreement to their ends."""
        try:
            flow = parse_flow(agreed.terms.flow)
        except ConfigError as error:  # this node signed it as another version of this software
            log.error("nothing is done under agreement %s: %s", agreed.digest.hex()[:12], error)  # noqa: TRY400
            return
        opened = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._open, agreed, opened)
            if self._is_home(agreed):
                await self._conclude(agreed, flow, opened, nursery)
            else:  # it has no tasks of its own, and does others' as long as they come
                await self._until_over(agreed)
        await patiently(
            lambda: self._database.transact(
                lambda c: journal.finish_workflow(c, agreed.digest, self._agreements.why_stopped(agreed.digest))
            ),
            f"the end of workflow {agreed.terms.id}",
        )
        log.info("all own tasks of agreement %s are over", agreed.digest.hex()[:12])

    def _is_home(self, agreed: Agreed) -> bool:
        """Whether this node has tasks of its own; of several of an organization the one has that signed."""
        return self._me in agreed.homes and agreed.digest not in self._agreements.shared

    async def _until_over(self, agreed: Agreed) -> None:
        digest = agreed.digest
        while not self._agreements.is_over(digest):
            left_s = (agreed.terms.expires_ms - self._now_ms()) / 1000
            if left_s <= 0:
                break
            event = self._news[digest] = trio.Event()
            with trio.move_on_after(left_s):
                await event.wait()
        self._news.pop(digest, None)
        self.engine.let_go(digest)

    async def _open(self, agreed: Agreed, opened: trio.Event) -> None:
        """Open the tasks, as many at once as there is room for."""
        count = agreed.terms.records_per_organization if self._is_home(agreed) else 0
        try:
            for start in range(0, count, _OPEN_AT_ONCE):
                numbers = range(start, min(start + _OPEN_AT_ONCE, count))
                rows = [(journey_id(agreed, self._me, number), dict[str, object]()) for number in numbers]
                if not await self._open_some(agreed, rows):
                    break
        finally:
            opened.set()
            self._ring(agreed.digest)

    async def _open_some(self, agreed: Agreed, rows: Sequence[tuple[bytes, Mapping[str, object]]]) -> bool:
        """Open tasks once the agreement is in force; False if it is over."""
        while await self._goes_on(agreed):
            try:
                await patiently(lambda: self.engine.open(agreed.digest, rows), "tasks to be opened")
            except AgreementStopped as error:
                log.info("no tasks are opened under %s now: %s", agreed.digest.hex()[:12], error)
                await trio.sleep(_LEARN_EVERY_S)
            else:
                return True
        return False

    async def _goes_on(self, agreed: Agreed) -> bool:
        if not await self._agreements.until_in_force(agreed.digest) or self._now_ms() >= agreed.terms.expires_ms:
            return False
        row = await self._database.read(lambda c: journal.workflow_of(c, agreed.digest))
        return row is None or row.state != "cancelled"

    async def _conclude(self, agreed: Agreed, flow: Flow, opened: trio.Event, nursery: trio.Nursery) -> None:
        """Have records judged as they are done; returns when all tasks are over and all records are in a batch."""
        digest, slots = agreed.digest, trio.CapacityLimiter(_BATCHES_AT_ONCE)
        left = await self._database.read(lambda c: journal.list_batches(c, digest))
        number = len(left)
        undecided = await self._database.read(lambda c: journal.list_batches(c, digest, states=_OPEN_STATES))
        for place, batch in enumerate(undecided):
            await slots.acquire_on_behalf_of(~place)
            nursery.start_soon(self._decide, agreed, batch, slots, ~place)
        while True:
            event = self._news[digest] = trio.Event()
            all_open = opened.is_set()
            ready, under_way = await self._database.read(lambda c: _waiting(c, digest))
            if flow.finish is Finish.NONE:
                ready = 0
            if not ready and all_open and not under_way:
                break
            if not ready or (_wants_company(agreed) and ready < agreed.terms.batch_records and under_way):
                await event.wait()
                continue
            await slots.acquire_on_behalf_of(number)
            batch = batches.batch_id(agreed, self._me, number)
            if not await patiently(lambda: self._form(agreed, flow, batch), "a review batch"):  # noqa: B023  (awaited at once)
                slots.release_on_behalf_of(number)  # their retention is over; numbers of batches have no gaps
                continue
            nursery.start_soon(self._decide, agreed, batch, slots, number)
            number += 1
        self._news.pop(digest, None)

    async def _form(self, agreed: Agreed, flow: Flow, batch: bytes) -> bool:
        """Put the records that wait longest into a review batch; False if none waits any more."""
        now_ms = self._now_ms()

        def write(connection: sqlite3.Connection) -> list[tuple[bytes, bytes]]:
            rows = journeys.to_batch(connection, agreed.digest, limit=agreed.terms.batch_records)
            tasks = [
                _task(agreed, batch, ordinal, canonical_json(record_of(flow, json.loads(state))), now_ms)
                for ordinal, (_, state, _) in enumerate(rows)
            ]
            journal.put_tasks(connection, tasks)
            pairs = [(task_id, task.task_id) for (task_id, _, _), task in zip(rows, tasks, strict=True)]
            journeys.batched(connection, pairs)
            return pairs

        start_ns = self.tracer.now_ns()
        pairs = await self._database.transact(write)
        both = [*pairs, *((task, way) for way, task in pairs)]
        self.tracer.record("join", [Subject(one, agreed.digest, joined=other) for one, other in both], start_ns)
        return bool(pairs)

    async def _decide(self, agreed: Agreed, batch: bytes, slots: trio.CapacityLimiter, place: int) -> None:
        try:
            await patiently(lambda: self._author.decide(agreed, batch), f"a batch of {agreed.digest.hex()[:12]}")
        finally:
            slots.release_on_behalf_of(place)

    # -- what is known of others -----------------------------------------------------------------------------------

    async def _learn(self) -> None:
        """Tell the router how reliable others have been, now and then."""
        while True:
            now_ms = self._now_ms()
            rows = await self._database.read(lambda c: journal.list_reliability(c, now_ms))  # noqa: B023  (at once)
            self._routing.reliability = {row.organization: row.reliability for row in rows if row.role == REVIEWER}
            await trio.sleep(_LEARN_EVERY_S)


def _task(agreed: Agreed, batch: bytes, ordinal: int, record: bytes, now_ms: int) -> journal.TaskRow:
    return journal.TaskRow(
        task_id=batches.task_id(batch, ordinal),
        agreement_digest=agreed.digest,
        workflow_id=agreed.terms.id,
        batch_id=batch,
        ordinal=ordinal,
        revision=0,
        state=State.QUEUED.value,
        record=record,
        record_digest=sha256(record),
        updated_ms=now_ms,
    )


def _wants_company(agreed: Agreed) -> bool:
    """Whether records of a batch have to be like others in it: then a small one would be refused."""
    return agreed.terms.obligations.HasField("k_anonymity")


def _waiting(connection: sqlite3.Connection, digest: bytes) -> tuple[int, int]:
    """Return how many records wait for a batch, and how many tasks are under way."""
    return journeys.count_to_batch(connection, digest), journeys.count_open(connection, digest)
