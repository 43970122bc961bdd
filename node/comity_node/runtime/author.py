"""The home's side of a task: made by the own generator, offered, judged by others, repaired, concluded.

One driver for each batch of records; all it knows is in the journal, so that a restart goes on where the last run
stopped (R1). Ids of batches and tasks follow from the agreement, so that nothing is made twice (R2).
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import trio

from comity.agreement import Agreed
from comity.digest import canonical_json, sha256
from comity.errors import AgentError, AgentFailed, Busy, InvalidRecord
from comity.trust import NodeIdentity
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate
from comity_node.protocol.quorum import Ballot
from comity_node.protocol.task import FINAL, Input, State, advance
from comity_node.runtime import batches
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.assignments import OVER, Assigned
from comity_node.runtime.ballots import BallotBox
from comity_node.runtime.certify import Certifier
from comity_node.runtime.offering import Offering
from comity_node.runtime.patience import patiently
from comity_node.runtime.sealing import Sealing
from comity_node.runtime.seams import TaskStatus, Workers
from comity_node.storage import audit, journal
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

#: Of one agreement: a slow one holds nobody else's up.
_BATCHES_AT_ONCE = 4
_AGENT_DEADLINE_S = 60.0
_AGENT_RETRY_S = 2.0
#: How often a repair that the agent cannot do is tried.
_REPAIRS = 5


class Author:
    """Drives the tasks whose home this organization is."""

    def __init__(
        self, *, identity: NodeIdentity, gate: Gate, workers: Workers, database: Database, offering: Offering,
        ballots: BallotBox, certifier: Certifier, sealing: Sealing, agreements: Agreements,
    ) -> None:  # fmt: skip
        """Author records in the name of `identity`'s organization, with its own `workers`."""
        self._me = identity.organization
        self._gate = gate
        self._workers = workers
        self._database = database
        self._offering = offering
        self._ballots = ballots
        self._certifier = certifier
        self._sealing = sealing
        self._agreements = agreements
        self._news: dict[bytes, trio.Event] = {}
        self._begun: set[bytes] = set()
        self._cancelled: set[bytes] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Drive what `begin` is told of, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None  # what still comes at the end is for the next run

    def begin(self, agreed: Agreed) -> None:
        """Author what the agreement asks of this organization, if that has not begun yet."""
        if self._nursery is not None and agreed.digest not in self._begun:
            self._begun.add(agreed.digest)
            self._nursery.start_soon(self._author, agreed)

    async def offer_ended(self, item: journal.OutboxRow, receipt: Receipt | None) -> None:
        """Hear that an offer was taken into custody, refused, or could not be delivered in time."""
        self.news(await self._offering.ended(item, receipt))

    def cancel(self, digest: bytes) -> None:
        """End what is open of an agreement's own records; whoever calls this has it on disk that they are cancelled."""
        self._cancelled.add(digest)
        self.look_again()

    def news(self, batch: bytes) -> None:
        """Look at a batch again: a vote came, or an offer ended."""
        if (event := self._news.get(batch)) is not None:
            event.set()

    def look_again(self) -> None:
        """Look at all batches again: the policy, the trust bundle or an agreement has changed."""
        for event in self._news.values():
            event.set()

    async def _author(self, agreed: Agreed) -> None:
        slots = trio.CapacityLimiter(_BATCHES_AT_ONCE)

        async def drive(number: int, size: int) -> None:
            what = f"batch {number} of {agreed.digest.hex()[:12]}"
            try:
                await patiently(lambda: self._drive(agreed, number, size), what)
            finally:
                slots.release_on_behalf_of(number)

        async with trio.open_nursery() as nursery:
            for number, size in enumerate(batches.sizes(agreed)):
                await slots.acquire_on_behalf_of(number)
                nursery.start_soon(drive, number, size)
        await patiently(
            lambda: self._database.transact(
                lambda c: journal.finish_workflow(c, agreed.digest, self._agreements.why_stopped(agreed.digest))
            ),
            f"the end of workflow {agreed.terms.id}",
        )
        log.info("all own records of agreement %s are decided", agreed.digest.hex()[:12])

    async def _drive(self, agreed: Agreed, number: int, size: int) -> None:
        """Make one batch, if an earlier run has not, and take it to its end."""
        batch = batches.batch_id(agreed, self._me, number)
        goes_on = await self._agreements.until_in_force(agreed.digest) and agreed.digest not in self._cancelled
        if goes_on and not await self._open_tasks(batch) and not await self._any_tasks(batch):
            await self._generate(agreed, number, size)
        await self.decide(agreed, batch)

    async def decide(self, agreed: Agreed, batch: bytes) -> None:
        """Take the records of a batch, which are made and in the journal, to their ends; returns when all are."""
        while tasks := await self._open_tasks(batch):
            if agreed.digest in self._cancelled:
                await self._end(agreed, tasks, Input.CANCELLED, "cancelled")
            elif not await self._agreements.until_in_force(agreed.digest):
                await self._end(agreed, tasks, Input.UNDECIDED, "the agreement was ended")
            elif self._gate.now_ms() >= agreed.terms.expires_ms:
                await self._end(agreed, tasks, Input.UNDECIDED, "the agreement has expired")
            elif repair := [task for task in tasks if task.state == State.IN_REPAIR]:
                await self._repair(agreed, repair)
            elif queued := [task for task in tasks if task.state == State.QUEUED]:
                await self._offer(agreed, batch, queued)
            else:
                await self._review(agreed, batch)

    async def _offer(self, agreed: Agreed, batch: bytes, queued: Sequence[journal.TaskRow]) -> None:
        """Offer a batch; if a person has to approve that first, wait until one has, or the time for it is over."""
        approved = self._gate.approvals.changed
        event = self._news[batch] = trio.Event()
        until_ms = await self._offering.offer(agreed, batch, queued)
        if until_ms:
            left_ms = min(until_ms, agreed.terms.expires_ms) - self._gate.now_ms()
            with trio.move_on_after(max(0.0, left_ms / 1000)):
                await _either(approved, event)

    async def _open_tasks(self, batch: bytes) -> list[journal.TaskRow]:
        tasks = await self._database.read(lambda c: journal.batch_tasks(c, batch))
        return [task for task in tasks if State(task.state) not in FINAL]

    async def _any_tasks(self, batch: bytes) -> bool:
        return bool(await self._database.read(lambda c: journal.batch_tasks(c, batch, limit=1)))

    # -- making records --------------------------------------------------------------------------------------------

    async def _generate(self, agreed: Agreed, number: int, size: int) -> None:
        batch = batches.batch_id(agreed, self._me, number)
        work = {
            "workflow": agreed.terms.id,
            "dataset": agreed.terms.dataset,
            "count": size,
            "seed": int.from_bytes(batch[:4], "big"),
            "batch": number,
        }
        made = await self._ask_agent(agreed, "generate", work, size)
        if made is None:
            return
        now_ms = self._gate.now_ms()
        tasks = [
            journal.TaskRow(
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
            for ordinal, record in enumerate(made)
        ]
        await self._database.transact(lambda c: journal.put_tasks(c, tasks))

    async def _repair(self, agreed: Agreed, tasks: Sequence[journal.TaskRow]) -> None:
        work = {
            "workflow": agreed.terms.id,
            "dataset": agreed.terms.dataset,
            "records": [json.loads(task.record) for task in tasks],
            "feedback": [sorted(set(task.feedback)) for task in tasks],
            "seed": int.from_bytes(sha256(tasks[0].task_id + bytes([tasks[0].revision]))[:4], "big"),
        }
        made = await self._ask_agent(agreed, "repair", work, len(tasks), failures=_REPAIRS)
        if made is None and agreed.digest in self._cancelled:
            return
        if made is None:
            await self._end(agreed, tasks, Input.REJECTED, "the own agent could not repair it")
            return
        now_ms = self._gate.now_ms()

        def write(connection: sqlite3.Connection) -> None:
            for task, record in zip(tasks, made, strict=True):
                update = replace(
                    task,
                    state=advance(State(task.state), Input.REPAIRED).value,
                    revision=task.revision + 1,
                    record=record,
                    record_digest=sha256(record),
                    feedback=(),
                    updated_ms=now_ms,
                )
                journal.update_task(connection, update, state=task.state, revision=task.revision)

        await self._database.transact(write)

    async def _ask_agent(
        self, agreed: Agreed, skill: str, work: Mapping[str, Any], count: int, *, failures: int | None = None
    ) -> list[bytes] | None:
        """Have the own agent make `count` records.

        Waits for a worker as long as the agreement lasts. None if it ended before, or if agents have failed `failures`
        times.
        """
        failed = 0
        while self._gate.now_ms() < agreed.terms.expires_ms and (failures is None or failed < failures):
            if not await self._agreements.until_in_force(agreed.digest) or agreed.digest in self._cancelled:
                return None
            try:
                answer = await self._workers.call(skill, work, deadline_s=_AGENT_DEADLINE_S)
                return _records(answer, count)
            except (AgentError, Busy, InvalidRecord) as error:
                failed += isinstance(error, (AgentFailed, InvalidRecord))
                log.warning("%s for agreement %s: %s; trying again", skill, agreed.digest.hex()[:12], error)
                await trio.sleep(_AGENT_RETRY_S)
        log.warning("no agent did %r for agreement %s", skill, agreed.digest.hex()[:12])
        return None

    # -- until it is decided ---------------------------------------------------------------------------------------

    async def _review(self, agreed: Agreed, batch: bytes) -> None:
        """Wait until every task in review is decided or nobody is left to ask; then conclude them."""
        known_fixed = False
        while tasks := [task for task in await self._open_tasks(batch) if task.state == State.IN_REVIEW]:
            if self._agreements.why_stopped(agreed.digest) or agreed.digest in self._cancelled:
                break
            event = self._news[batch] = trio.Event()
            # In this order: who has voted is in the ballots that are counted after.
            assignments = await self._database.read(lambda c: journal.list_assignments(c, batch, tasks[0].revision))
            ballots = await self._ballots.count(agreed, batch, tasks)
            now_ms = self._gate.now_ms()
            unsettled = [one for task in tasks if not self._ballots.settled(agreed, task, one := ballots[task.task_id])]
            if not unsettled or now_ms >= agreed.terms.expires_ms:
                await self._conclude(agreed, tasks, ballots, assignments)
                continue
            pending = [one for one in assignments if one.state not in OVER]
            late = [one for one in pending if one.lease_until_ms <= now_ms]
            missing = self._offering.missing(agreed, unsettled, assignments, now_ms)
            if agreed.terms.review.commit_reveal:
                have, fixed = await self._sealing.close(agreed, batch, tasks[0].revision, assignments)
                if fixed and not known_fixed:
                    known_fixed = True
                    continue  # the leases of those who have committed begin anew
                missing = 0 if fixed else missing
                late = [one for one in late if fixed or one.organization not in have]
            if missing or late:
                await self._offering.widen(agreed, batch, tasks, missing, assignments, late)
            elif pending:
                ends = [end for one in pending for end in (self._offering.slow_at_ms(agreed, one), one.lease_until_ms)]
                next_ms = min(each for each in (*ends, agreed.terms.expires_ms) if each > now_ms)
                with trio.move_on_after(max(0.01, (next_ms - now_ms) / 1000)):
                    await event.wait()
            else:
                await self._conclude(agreed, tasks, ballots, assignments)
        self._news.pop(batch, None)

    async def _conclude(
        self, agreed: Agreed, tasks: Sequence[journal.TaskRow], ballots: Mapping[bytes, Ballot],
        assignments: Sequence[journal.AssignmentRow],
    ) -> None:  # fmt: skip
        await self._offering.concluded(agreed, assignments)
        refused = sorted(one.organization for one in assignments if one.state == Assigned.REFUSED)
        if agreed.rule.eligible - len(refused) < agreed.rule.quorum:
            await self._end(agreed, tasks, Input.REFUSED, f"policy of {', '.join(refused)}", ("peers",))
            return
        verdicts = [self._certifier.judge(agreed, task, ballots[task.task_id]) for task in tasks]
        await self._certifier.conclude(agreed, verdicts)

    async def _end(
        self,
        agreed: Agreed,
        tasks: Sequence[journal.TaskRow],
        happened: Input,
        reason: str,
        rules: tuple[str, ...] = (),
    ) -> None:
        now_ms = self._gate.now_ms()

        def write(connection: sqlite3.Connection) -> None:
            for task in tasks:
                state = advance(State(task.state), happened)
                entry = audit.AuditEntry(
                    kind="effect",
                    action=f"task.{state}",
                    rules=rules,
                    subject=task.record_digest,
                    agreement=agreed.digest,
                    detail={"task": task.task_id.hex(), "revision": task.revision, "reason": reason},
                )
                update = replace(task, state=state.value, reason=reason, rules=rules, updated_ms=now_ms)
                if journal.update_task(connection, update, state=task.state, revision=task.revision):
                    audit.append(connection, entry, now_ms)

        await self._database.transact(write)


async def _either(one: trio.Event, other: trio.Event) -> None:
    """Wait until one of two events is set."""

    async def wait(event: trio.Event) -> None:
        await event.wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, one)
        nursery.start_soon(wait, other)


def _records(answer: object, count: int) -> list[bytes]:
    """Return the canonical bytes of the records that an agent made.

    Raises:
        InvalidRecord: they are not `count` JSON objects.
    """
    made = answer.get("records") if isinstance(answer, dict) else None
    if not isinstance(made, list) or len(made) != count or not all(isinstance(one, dict) for one in made):
        raise InvalidRecord(f'the agent has to return {{"records": [...]}} with {count} objects')
    try:
        return [canonical_json(one) for one in made]
    except ValueError as error:
        raise InvalidRecord(f"the agent returned what is no JSON: {error}") from error
