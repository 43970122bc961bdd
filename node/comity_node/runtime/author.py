"""The home's side of a task: made by the own generator, offered, judged by others, repaired, certified, released.

One driver for each batch of records; all it knows is in the journal, so that a restart goes on where the last run
stopped (R1). Ids of batches and tasks follow from the agreement, so that nothing is made twice (R2).
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import trio

from comity.agreement import Agreed
from comity.certificate import CheckedReview, check_review
from comity.digest import canonical_json, sha256
from comity.errors import AgentError, AgreementError, Busy, InvalidRecord, UnexpectedMessage
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1.task_pb2 import Receipt, ReviewDelivery, TaskOffer
from comity_node.admission import Gate, Question
from comity_node.admission.records import Draft, RecordGate, Refused, to_task
from comity_node.policy.model import Request
from comity_node.protocol.quorum import Ballot, Outcome
from comity_node.protocol.task import FINAL, Input, State, advance
from comity_node.runtime import batches
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.certify import REVIEWER, Certifier, learn
from comity_node.runtime.messenger import Handler, Messenger, accepted
from comity_node.runtime.outbox import Outbox
from comity_node.runtime.patience import patiently
from comity_node.runtime.router import Candidate, Router
from comity_node.runtime.score import mean
from comity_node.runtime.seams import TaskStatus, Workers
from comity_node.storage import audit, journal
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

OFFER = "task-offer"
REVIEWS = "reviews"
_BATCHES_AT_ONCE = 4
_AGENT_DEADLINE_S = 60.0
_AGENT_RETRY_S = 2.0
_MAX_REVIEWS = 256
_MAX_FEEDBACK = 32
#: What an assignment can be, beside "offered" and "held": over, for one of these reasons.
_OVER = frozenset({"voted", "refused", "expired"})


class Author:
    """Drives the tasks whose home this organization is."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, record_gate: RecordGate, workers: Workers,
        messenger: Messenger, agreements: Agreements, database: Database, outbox: Outbox, certifier: Certifier,
        router: Router,
    ) -> None:  # fmt: skip
        """Author records in the name of `identity`'s organization, with its own `workers`."""
        self._me = identity.organization
        self._trust = trust
        self._gate = gate
        self._record_gate = record_gate
        self._workers = workers
        self._messenger = messenger
        self._agreements = agreements
        self._database = database
        self._outbox = outbox
        self._certifier = certifier
        self._router = router
        self._slots = trio.CapacityLimiter(_BATCHES_AT_ONCE)
        self._news: dict[bytes, trio.Event] = {}
        self._refusals: dict[bytes, str] = {}
        self._begun: set[bytes] = set()
        self._nursery: trio.Nursery | None = None
        self.handlers: dict[str, Handler] = {REVIEWS: self._on_reviews}

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Drive what `begin` is told of, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def begin(self, agreed: Agreed) -> None:
        """Author what the agreement asks of this organization, if that has not begun yet."""
        if self._nursery is not None and agreed.digest not in self._begun:
            self._begun.add(agreed.digest)
            self._nursery.start_soon(self._author, agreed)

    async def _author(self, agreed: Agreed) -> None:
        async with trio.open_nursery() as nursery:
            for number, size in enumerate(batches.sizes(agreed)):
                await self._slots.acquire_on_behalf_of((agreed.digest, number))
                nursery.start_soon(self._drive_slot, agreed, number, size)
        await patiently(
            lambda: self._database.transact(lambda c: journal.update_workflow(c, agreed.terms.id, state="done")),
            f"the end of workflow {agreed.terms.id}",
        )
        log.info("all own records of agreement %s are decided", agreed.digest.hex()[:12])

    async def _drive_slot(self, agreed: Agreed, number: int, size: int) -> None:
        try:
            await patiently(lambda: self._drive(agreed, number, size), f"batch {number} of {agreed.digest.hex()[:12]}")
        finally:
            self._slots.release_on_behalf_of((agreed.digest, number))

    async def _drive(self, agreed: Agreed, number: int, size: int) -> None:
        """Take one batch to its end, whatever state an earlier run left it in."""
        batch = batches.batch_id(agreed, self._me, number)
        if not await self._tasks(batch):
            await self._generate(agreed, number, size)
        while tasks := [task for task in await self._tasks(batch) if State(task.state) not in FINAL]:
            if self._gate.now_ms() >= agreed.terms.expires_ms:
                await self._end(tasks, Input.UNDECIDED, "the agreement has expired")
            elif repair := [task for task in tasks if task.state == State.IN_REPAIR]:
                await self._repair(agreed, repair)
            elif queued := [task for task in tasks if task.state == State.QUEUED]:
                await self._offer(agreed, batch, queued)
            else:
                await self._await_votes(agreed, batch, tasks)

    async def _tasks(self, batch: bytes) -> list[journal.TaskRow]:
        return await self._database.read(lambda c: journal.batch_tasks(c, batch))

    # -- making records --------------------------------------------------------------------------------------------

    async def _generate(self, agreed: Agreed, number: int, size: int) -> None:
        batch = batches.batch_id(agreed, self._me, number)
        seed = int.from_bytes(batch[:4], "big")
        work = {
            "workflow": agreed.terms.id,
            "dataset": agreed.terms.dataset,
            "count": size,
            "seed": seed,
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
        made = await self._ask_agent(agreed, "repair", work, len(tasks))
        if made is None:
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

    async def _ask_agent(self, agreed: Agreed, skill: str, work: Mapping[str, Any], count: int) -> list[bytes] | None:
        """Have the own agent make `count` records; None if the agreement ended before one did."""
        while self._gate.now_ms() < agreed.terms.expires_ms:
            try:
                answer = await self._workers.call(skill, work, deadline_s=_AGENT_DEADLINE_S)
                return _records(answer, count)
            except (AgentError, Busy, InvalidRecord) as error:
                log.warning("%s for agreement %s: %s; trying again", skill, agreed.digest.hex()[:12], error)
                await trio.sleep(_AGENT_RETRY_S)
        log.warning("no agent did %r before agreement %s ended", skill, agreed.digest.hex()[:12])
        return None

    # -- offering them ---------------------------------------------------------------------------------------------

    async def _offer(self, agreed: Agreed, batch: bytes, tasks: Sequence[journal.TaskRow]) -> None:
        """Offer the queued tasks of a batch to as many reviewers as the quorum takes, and f more."""
        drafts = [Draft(task.task_id, task.revision, task.record, tuple(task.hops)) for task in tasks]
        shaped = await trio.to_thread.run_sync(self._record_gate.prepare, agreed, drafts)
        ready = [draft for draft in shaped if isinstance(draft, Draft)]
        refused = {one.task_id: one for one in shaped if isinstance(one, Refused)}
        wanted = agreed.rule.quorum + agreed.rule.faulty
        offers: dict[str, list[Draft]] = {}
        turned_away: dict[bytes, Refused] = {}
        for organization in await self._draw(agreed, agreed.reviewers(self._me), wanted):
            ready, passed, refusals = await self._send(agreed, ready, organization)
            offers[organization] = passed
            turned_away.update({one.task_id: one for one in refusals})
        passes = Counter(draft.task_id for passed in offers.values() for draft in passed)
        short = {draft.task_id for draft in ready if passes[draft.task_id] < agreed.rule.quorum}
        refused.update({task_id: turned_away[task_id] for task_id in short})
        items = [
            self._offer_item(agreed, batch, organization, [one for one in passed if one.task_id not in short])
            for organization, passed in offers.items()
            if any(one.task_id not in short for one in passed)
        ]
        await self._record_offer(agreed, batch, tasks, ready, refused, items)

    async def _send(
        self, agreed: Agreed, drafts: list[Draft], organization: str
    ) -> tuple[list[Draft], list[Draft], list[Refused]]:
        """Ask the gate about one reviewer: all drafts with their new hops, those that may go, those that may not."""
        sent = await self._record_gate.send(agreed, drafts, organization)
        kept = [new if isinstance(new, Draft) else old for new, old in zip(sent, drafts, strict=True)]
        passed = [one for one in sent if isinstance(one, Draft)]
        return kept, passed, [one for one in sent if isinstance(one, Refused)]

    def _offer_item(
        self, agreed: Agreed, batch: bytes, organization: str, drafts: Sequence[Draft]
    ) -> journal.OutboxRow:
        now_ms = self._gate.now_ms()
        offer = TaskOffer(batch_id=batch, tasks=[to_task(agreed, self._me, draft) for draft in drafts])
        return journal.OutboxRow(
            message_id=self._gate.new_id(),
            organization=organization,
            kind=OFFER,
            body=offer.SerializeToString(),
            dedup_key=batches.offer_key(batch, drafts[0].revision, organization),
            created_ms=now_ms,
            expires_ms=min(agreed.terms.expires_ms, now_ms + agreed.terms.lease_seconds * 1000),
        )

    async def _record_offer(
        self, agreed: Agreed, batch: bytes, tasks: Sequence[journal.TaskRow], drafts: Sequence[Draft],
        refused: Mapping[bytes, Refused], items: Sequence[journal.OutboxRow],
    ) -> None:  # fmt: skip
        now_ms = self._gate.now_ms()
        by_id = {draft.task_id: draft for draft in drafts}

        def write(connection: sqlite3.Connection) -> None:
            for task in tasks:
                if (no := refused.get(task.task_id)) is not None:
                    state = advance(State(task.state), Input.REFUSED)
                    update = replace(task, state=state.value, reason=no.label, rules=no.rules, updated_ms=now_ms)
                    audit.append(connection, _refusal(agreed, task, no), now_ms)
                else:
                    draft = by_id[task.task_id]
                    update = replace(
                        task,
                        state=advance(State(task.state), Input.OFFERED).value,
                        record=draft.record,
                        record_digest=sha256(draft.record),
                        hops=draft.history,
                        updated_ms=now_ms,
                    )
                journal.update_task(connection, update, state=task.state, revision=task.revision)
            self._assign(connection, agreed, batch, tasks[0].revision, items, now_ms)

        await self._database.transact(write)
        for item in items:
            self._router.asked(item.organization)
            self._outbox.kick(item.organization)

    def _assign(
        self, connection: sqlite3.Connection, agreed: Agreed, batch: bytes, revision: int,
        items: Sequence[journal.OutboxRow], now_ms: int,
    ) -> None:  # fmt: skip
        lease_until_ms = now_ms + agreed.terms.lease_seconds * 1000
        for item in items:
            assignment = journal.AssignmentRow(batch, revision, item.organization, "offered", now_ms, lease_until_ms)
            journal.put_assignment(connection, assignment)
            journal.enqueue(connection, item)

    async def _draw(self, agreed: Agreed, organizations: frozenset[str], count: int) -> list[str]:
        known = await self._database.read(journal.list_reliability)
        means = {one.organization: mean(one.agreed, one.disagreed) for one in known if one.role == REVIEWER}
        candidates = [
            Candidate(organization, self._messenger.reachable(organization), means.get(organization, 0.5))
            for organization in sorted(organizations)
        ]
        return self._router.draw(candidates, count)

    async def offer_ended(self, item: journal.OutboxRow, receipt: Receipt | None) -> None:
        """Hear that an offer was taken into custody, refused, or could not be delivered in time."""
        batch, revision, organization = batches.parse_offer_key(item.dedup_key)
        state = "expired"
        if receipt is not None:
            state = "held" if receipt.status == Receipt.STATUS_ACCEPTED else "refused"
        if receipt is not None and state == "refused":
            self._refusals[batch] = f"{organization}: {', '.join(receipt.rules) or receipt.reason}"
        await self._database.transact(lambda c: _set_assignment(c, batch, revision, organization, state))
        self._poke(batch)

    # -- waiting for votes -----------------------------------------------------------------------------------------

    async def _await_votes(self, agreed: Agreed, batch: bytes, tasks: Sequence[journal.TaskRow]) -> None:
        """Wait until every task of the batch is decided or nobody is left to wait for; then conclude."""
        revision = tasks[0].revision
        while True:
            event = self._news[batch] = trio.Event()
            # In this order: whoever counts as having voted has its votes in the ballots.
            assignments = await self._database.read(lambda c: journal.list_assignments(c, batch, revision))
            ballots = await self._ballots(agreed, batch, revision, tasks)
            waiting = [one for one in assignments if one.state not in _OVER]
            if not waiting or all(self._settled(agreed, task, ballots[task.task_id]) for task in tasks):
                break
            now_ms = self._gate.now_ms()
            late = [one for one in waiting if one.lease_until_ms <= now_ms]
            if late:
                await self._take_over(agreed, batch, tasks, assignments, late)
                continue
            next_ms = min(one.lease_until_ms for one in waiting)
            with trio.move_on_after(max(0.01, (next_ms - now_ms) / 1000)):
                await event.wait()
        del self._news[batch]
        refused = sum(one.state == "refused" for one in assignments)
        if agreed.rule.eligible - refused < agreed.rule.quorum:
            await self._end(tasks, Input.REFUSED, self._refusals.get(batch, "a peer's policy"), ("peers",))
        else:
            await self._certifier.conclude(
                agreed, [self._certifier.judge(agreed, task, ballots[task.task_id]) for task in tasks]
            )

    async def _ballots(
        self, agreed: Agreed, batch: bytes, revision: int, tasks: Sequence[journal.TaskRow]
    ) -> dict[bytes, Ballot]:
        votes = await self._database.read(lambda c: journal.batch_votes(c, batch, revision))

        def count() -> dict[bytes, Ballot]:
            return {task.task_id: self._certifier.ballot(agreed, task, votes.get(task.task_id, ())) for task in tasks}

        return await trio.to_thread.run_sync(count)

    def _settled(self, agreed: Agreed, task: journal.TaskRow, ballot: Ballot) -> bool:
        if ballot.outcome() is not Outcome.OPEN:
            return True
        return task.revision < agreed.terms.repair_rounds and not ballot.can_accept()

    async def _take_over(
        self, agreed: Agreed, batch: bytes, tasks: Sequence[journal.TaskRow], 
        assignments: Sequence[journal.AssignmentRow], late: Sequence[journal.AssignmentRow],
    ) -> None:  # fmt: skip
        """End the leases that ran out, and offer the batch to as many reviewers that have not been asked yet."""
        asked = {one.organization for one in assignments}
        revision = tasks[0].revision
        drafts = [Draft(task.task_id, task.revision, task.record, tuple(task.hops)) for task in tasks]
        items: list[journal.OutboxRow] = []
        for organization in await self._draw(agreed, agreed.reviewers(self._me) - asked, len(late)):
            drafts, passed, _ = await self._send(agreed, drafts, organization)
            items += [self._offer_item(agreed, batch, organization, passed)] if passed else []
        now_ms = self._gate.now_ms()
        histories = {draft.task_id: draft.history for draft in drafts}

        def write(connection: sqlite3.Connection) -> None:
            for one in late:
                _set_assignment(connection, batch, revision, one.organization, "expired")
            for task in tasks:
                update = replace(task, hops=histories[task.task_id], updated_ms=now_ms)
                journal.update_task(connection, update, state=task.state, revision=task.revision)
            self._assign(connection, agreed, batch, revision, items, now_ms)

        await self._database.transact(write)
        for one in late:
            log.warning("%s held a batch past its lease", one.organization)
            self._router.answered(one.organization, one.lease_until_ms - one.offered_ms)
        for item in items:
            self._router.asked(item.organization)
            self._outbox.kick(item.organization)

    async def _end(
        self, tasks: Sequence[journal.TaskRow], happened: Input, reason: str, rules: tuple[str, ...] = ()
    ) -> None:
        now_ms = self._gate.now_ms()

        def write(connection: sqlite3.Connection) -> None:
            for task in tasks:
                state = advance(State(task.state), happened)
                update = replace(task, state=state.value, reason=reason, rules=rules, updated_ms=now_ms)
                journal.update_task(connection, update, state=task.state, revision=task.revision)

        await self._database.transact(write)

    # -- votes coming in -------------------------------------------------------------------------------------------

    async def _on_reviews(self, sender: Attested, body: bytes) -> Receipt:
        delivery = ReviewDelivery.FromString(body)
        if not 0 < len(delivery.reviews) <= _MAX_REVIEWS:
            raise UnexpectedMessage(f"{len(delivery.reviews)} reviews in one message; 1 to {_MAX_REVIEWS} are taken")
        checked = await trio.to_thread.run_sync(self._check_reviews, sender, delivery)
        agreed = self._agreements.get(checked[0].review.agreement_digest)
        self._check_votes(agreed, checked)
        request = Request(
            action="review.receive",
            organization=sender.organization,
            purpose=agreed.terms.purpose,
            dataset=agreed.terms.dataset,
        )
        await self._gate.demand(Question(request, sha256(body), agreed.digest, len(checked)))
        feedback = [tuple(one.feedback) for one in delivery.reviews]
        now_ms = self._gate.now_ms()
        offered_ms = await self._database.transact(
            lambda c: self._count_votes(c, delivery.batch_id, checked, feedback, now_ms)
        )
        if offered_ms:
            self._router.answered(sender.organization, now_ms - offered_ms)
        self._poke(delivery.batch_id)
        return accepted()

    def _check_reviews(self, sender: Attested, delivery: ReviewDelivery) -> list[CheckedReview]:
        checked = [check_review(one.review, delivery.chain, self._trust) for one in delivery.reviews]
        for one in checked:
            if one.organization != sender.organization:
                raise UnexpectedMessage(f"{sender.organization} delivered a review of {one.organization}")
            if one.review.agreement_digest != checked[0].review.agreement_digest:
                raise UnexpectedMessage("reviews of two agreements in one message")
        return checked

    def _check_votes(self, agreed: Agreed, checked: Sequence[CheckedReview]) -> None:
        """Refuse what no ballot would take."""
        for one in checked:
            review = one.review
            if one.organization not in agreed.reviewers(self._me):
                raise AgreementError(f"{one.organization} may not vote under agreement {agreed.digest.hex()[:12]}")
            if (review.author, review.bundle_epoch) != (self._me, agreed.terms.bundle_epoch):
                raise UnexpectedMessage(f"{one.organization} reviewed a record of another author or epoch")
            if review.accept != (review.score >= agreed.terms.review.min_score):
                raise UnexpectedMessage(f"the vote of {one.organization} does not follow from its score")

    def _count_votes(
        self, connection: sqlite3.Connection, batch: bytes, checked: Sequence[CheckedReview],
        feedback: Sequence[tuple[str, ...]], now_ms: int,
    ) -> int:  # fmt: skip
        """Store the votes; returns when the batch was offered to this reviewer (0: that is not known)."""
        organization, revision = checked[0].organization, checked[0].review.revision
        for one, notes in zip(checked, feedback, strict=True):
            review = one.review
            task = journal.get_task(connection, review.task_id)
            if task is None or (task.batch_id, task.agreement_digest) != (batch, review.agreement_digest):
                raise UnexpectedMessage(f"{organization} reviewed a task that is not of this batch")
            if task.revision != review.revision:
                continue  # a late vote on what has been repaired since
            if task.record_digest != review.record_digest:
                raise UnexpectedMessage(f"{organization} reviewed another record than it was sent")
            vote = journal.VoteRow(
                task_id=review.task_id,
                revision=review.revision,
                organization=organization,
                review=one.envelope,
                chain=one.chain,
                accept=review.accept,
                score=review.score,
                received_ms=now_ms,
            )
            fresh = journal.add_vote(connection, vote) is journal.Added.NEW
            if fresh and State(task.state) in (State.CERTIFIED, State.REJECTED):
                learn(connection, [(organization, review.accept == (task.state == State.CERTIFIED))])
            elif fresh and notes and not review.accept:
                update = replace(task, feedback=tuple(dict.fromkeys((*task.feedback, *notes)))[:_MAX_FEEDBACK])
                journal.update_task(connection, update, state=task.state, revision=task.revision)
        _set_assignment(connection, batch, revision, organization, "voted", even_if_over=True)
        known = journal.list_assignments(connection, batch, revision)
        return next((one.offered_ms for one in known if one.organization == organization), 0)

    def _poke(self, batch: bytes) -> None:
        if (event := self._news.get(batch)) is not None:
            event.set()


def _set_assignment(
    connection: sqlite3.Connection,
    batch: bytes,
    revision: int,
    organization: str,
    state: str,
    *,
    even_if_over: bool = False,
) -> None:
    for row in journal.list_assignments(connection, batch, revision):
        if row.organization == organization and (even_if_over or row.state not in _OVER):
            journal.update_assignment(connection, replace(row, state=state), state=row.state)


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


def _refusal(agreed: Agreed, task: journal.TaskRow, refused: Refused) -> audit.AuditEntry:
    return audit.AuditEntry(
        kind="effect",
        action="task.refused",
        decision="deny",
        rules=refused.rules,
        subject=task.record_digest,
        agreement=agreed.digest,
        detail={"task": task.task_id.hex(), "reason": refused.reason, "detail": refused.detail},
    )
