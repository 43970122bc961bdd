"""Offering a batch: the records pass the gate, the router draws reviewers, the outbox takes it to them.

As many are asked as a quorum takes. Whoever refuses, or holds a batch past its lease, is replaced by somebody who has
not been asked yet (R3); beside whoever takes longer than nearly all others do, one more is asked (`missing`).
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import trio

from comity import draw
from comity.agreement import Agreed
from comity.digest import sha256
from comity.trust import NodeIdentity
from comity.v1.task_pb2 import Receipt, TaskOffer
from comity_node.admission import Gate
from comity_node.admission.records import Draft, RecordGate, Refused, to_task
from comity_node.protocol.quorum import Ballot
from comity_node.protocol.task import Input, State, advance
from comity_node.runtime import batches
from comity_node.runtime.assignments import OVER, Assigned, set_state
from comity_node.runtime.certify import REVIEWER
from comity_node.runtime.kinds import OFFER
from comity_node.runtime.messenger import Messenger
from comity_node.runtime.outbox import Outbox
from comity_node.runtime.router import REVIEW, Candidate, Router
from comity_node.runtime.score import mean
from comity_node.runtime.suspensions import Suspensions
from comity_node.storage import audit, journal, journeys
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

#: Nobody is slow who answers within so many seconds.
_LEAST_WAIT_S = 0.25


class Offering:
    """Takes batches of one organization to reviewers."""

    def __init__(
        self, *, identity: NodeIdentity, gate: Gate, record_gate: RecordGate, messenger: Messenger, database: Database,
        outbox: Outbox, router: Router, suspensions: Suspensions,
    ) -> None:  # fmt: skip
        """Offer in the name of `identity`'s organization."""
        self._me = identity.organization
        self._gate = gate
        self._record_gate = record_gate
        self._messenger = messenger
        self._database = database
        self._outbox = outbox
        self._router = router
        self._suspensions = suspensions

    async def offer(self, agreed: Agreed, batch: bytes, tasks: Sequence[journal.TaskRow]) -> int:
        """Offer the queued tasks of a batch, or refuse those that may not go to enough reviewers.

        Returns:
            0; or until when, in milliseconds since the Unix epoch, a person may still approve what too few reviewers
            may see: then nothing was offered or refused, and the batch can be offered again.
        """
        await self._gate.look()
        shaped = await trio.to_thread.run_sync(self._record_gate.prepare, agreed, await self._with_ways(agreed, tasks))
        ready = [draft for draft in shaped if isinstance(draft, Draft)]
        refused = {one.task_id: one for one in shaped if isinstance(one, Refused)}
        ready, offers, denied = await self._pass(agreed, ready, agreed.panel(self._me, batch), _at_first(agreed))
        short, offers = self._short(agreed, ready, offers)
        if waiting := [one.until_ms for one in map(denied.get, short) if one is not None and one.until_ms]:
            return min(waiting)
        for task_id in short:
            refused[task_id] = denied.get(task_id) or Refused(task_id, self._too_few(agreed, batch), ())
        items = [
            self._item(agreed, batch, organization, kept)
            for organization, passed in offers.items()
            if (kept := [one for one in passed if one.task_id not in short])
        ]
        await self._record(agreed, batch, tasks, ready, refused, items)
        return 0

    def _too_few(self, agreed: Agreed, batch: bytes) -> str:
        gone = ", ".join(sorted(self._suspensions.now() & agreed.panel(self._me, batch)))
        return "too few reviewers may see it" + (f"; not asked, being suspended: {gone}"[:300] if gone else "")

    async def _with_ways(self, agreed: Agreed, tasks: Sequence[journal.TaskRow]) -> list[Draft]:
        """Return the drafts of tasks, each with the end of the way on which it was made, if there was one."""
        drafts = _drafts(tasks)
        if not agreed.terms.flow:
            return drafts
        ways = await self._database.read(lambda c: journeys.journey_digests(c, [draft.task_id for draft in drafts]))
        return [replace(draft, journey=ways.get(draft.task_id, b"")) for draft in drafts]

    def _short(
        self, agreed: Agreed, ready: Sequence[Draft], offers: dict[str, list[Draft]]
    ) -> tuple[set[bytes], dict[str, list[Draft]]]:
        """Return the tasks that too few reviewers may see, and the offers without them.

        Without them others may be too rare to leave (k_anonymity), until nothing changes any more.
        """
        while True:
            passes = Counter(draft.task_id for passed in offers.values() for draft in passed)
            short = {draft.task_id for draft in ready if passes[draft.task_id] < agreed.rule.quorum}
            kept = {
                organization: self._record_gate.together(
                    agreed, [one for one in passed if one.task_id not in short], organization
                )
                for organization, passed in offers.items()
            }
            if kept == offers:
                return short, offers
            offers = kept

    def slow_at_ms(self, agreed: Agreed, one: journal.AssignmentRow) -> int:
        """Return when somebody takes so long that another one is asked beside it: later than 19 of 20 answers came.

        While that is not known, half of its lease; it ends with the lease at the latest.
        """
        lease_s = agreed.terms.lease_seconds
        late_s = self._router.late_after_s(REVIEW)
        wait_s = lease_s / 2 if late_s is None else max(_LEAST_WAIT_S, late_s)
        return min(one.offered_ms + round(wait_s * 1000), one.lease_until_ms)

    def missing(
        self, agreed: Agreed, ballots: Collection[Ballot], assignments: Sequence[journal.AssignmentRow], now_ms: int
    ) -> int:
        """Return how many more to ask, so that those who have voted and those who will can make a quorum.

        Who refuses or holds a batch past its lease does not count any more. Who is slow, but within it, is waited for
        beside the others, as long as no more than a quorum and f have it.

        Args:
            agreed: under which.
            ballots: of the tasks that are still open.
            assignments: all of the batch's present revision.
            now_ms: the time.
        """
        pending = [one for one in assignments if one.state not in OVER and one.lease_until_ms > now_ms]
        slow = sum(self.slow_at_ms(agreed, one) <= now_ms for one in pending)
        votes = min((max(len(ballot.votes(True)), len(ballot.votes(False))) for ballot in ballots), default=0)
        wanted = max(_at_first(agreed), agreed.rule.quorum + min(slow, agreed.rule.faulty))
        return max(0, min(agreed.rule.eligible - len(assignments), wanted - votes - len(pending)))

    async def widen(
        self, agreed: Agreed, batch: bytes, tasks: Sequence[journal.TaskRow], count: int,
        assignments: Sequence[journal.AssignmentRow], late: Sequence[journal.AssignmentRow],
    ) -> None:  # fmt: skip
        """End the leases of `late`, and offer a batch in review to `count` more that have not been asked yet."""
        unasked = agreed.panel(self._me, batch) - {one.organization for one in assignments}
        drafts, offers, _ = await self._pass(agreed, _drafts(tasks), unasked, count)
        items = [self._item(agreed, batch, organization, passed) for organization, passed in offers.items() if passed]
        histories = {draft.task_id: draft.history for draft in drafts}
        revision, now_ms = tasks[0].revision, self._gate.now_ms()

        def write(connection: sqlite3.Connection) -> list[journal.AssignmentRow]:
            gone = _expire(connection, late)
            for task in tasks:
                fresh = journal.get_task(connection, task.task_id)
                if fresh is not None:
                    update = replace(fresh, hops=histories[task.task_id], updated_ms=now_ms)
                    journal.update_task(connection, update, state=task.state, revision=task.revision)
            for organization, passed in offers.items():
                if not passed:
                    self._assign(connection, agreed, batch, revision, organization, Assigned.REFUSED)
            self._enqueue(connection, agreed, batch, revision, items)
            return gone

        for one in await self._database.transact(write):
            log.warning("%s held a batch past its lease", one.organization)
            after_s = (one.lease_until_ms - one.offered_ms) / 1000
            self._router.answered(REVIEW, one.organization, trio.current_time(), after_s, good=False)
        self._sent(agreed, items)

    async def concluded(self, agreed: Agreed, assignments: Sequence[journal.AssignmentRow]) -> None:
        """Expect nothing more of whom a batch was decided without: nobody else would ever tell the router.

        Who is slow, or was asked before one who has voted, has failed; of others nothing is known.
        """
        pending = [one for one in assignments if one.state not in OVER]
        if not pending:
            return

        now_ms = self._gate.now_ms()
        newest_ms = max((one.offered_ms for one in assignments if one.state == Assigned.VOTED), default=0)
        for one in await self._database.transact(lambda c: _expire(c, pending)):
            now_s, after_s = trio.current_time(), max(0, now_ms - one.offered_ms) / 1000
            if one.offered_ms < newest_ms or self.slow_at_ms(agreed, one) <= now_ms:
                self._router.answered(REVIEW, one.organization, now_s, after_s, good=False)
            else:
                self._router.released(REVIEW, one.organization, now_s, after_s)

    async def ended(self, item: journal.OutboxRow, receipt: Receipt | None) -> bytes:
        """Note that an offer was taken into custody, refused, or not delivered in time; returns its batch."""
        batch, revision, organization = batches.parse_offer_key(item.dedup_key)
        state = Assigned.EXPIRED
        if receipt is not None:
            state = Assigned.HELD if receipt.status == Receipt.STATUS_ACCEPTED else Assigned.REFUSED
        was = await self._database.transact(lambda c: set_state(c, batch, revision, organization, state))
        if was is None or was.state in OVER:
            return batch  # it was decided without it, or its lease ran out: the router knows
        now_s = trio.current_time()
        after_s = max(0, self._gate.now_ms() - item.created_ms) / 1000
        if state is Assigned.REFUSED:
            self._router.released(REVIEW, organization, now_s, after_s)
        elif state is Assigned.EXPIRED:
            self._router.answered(REVIEW, organization, now_s, after_s, good=False)
        return batch

    async def _pass(
        self, agreed: Agreed, drafts: list[Draft], organizations: frozenset[str], wanted: int
    ) -> tuple[list[Draft], dict[str, list[Draft]], dict[bytes, Refused]]:
        """Ask the gate about one reviewer after the other until `wanted` may have each draft.

        What `wanted` may have already is not sent to those who are asked for the rest of a batch, of whom there are no
        more than the rule bears faulty ones.

        Returns all drafts with their new hops, what each reviewer that was drawn may have, and who was denied what.
        """
        offers: dict[str, list[Draft]] = {}
        denied: dict[bytes, Refused] = {}
        passes: Counter[bytes] = Counter()
        suspended = self._suspensions.now() & organizations
        for organization in await self._draw(organizations - suspended) if drafts and wanted else []:
            lacking = [draft for draft in drafts if passes[draft.task_id] < wanted]
            if not lacking or sum(bool(passed) for passed in offers.values()) >= wanted + agreed.rule.faulty:
                break
            sent = await self._record_gate.send(agreed, lacking, organization)
            offers[organization] = [one for one in sent if isinstance(one, Draft)]
            passes.update(one.task_id for one in offers[organization])
            renewed = {one.task_id: one for one in offers[organization]}
            drafts = [renewed.get(draft.task_id, draft) for draft in drafts]
            for one in sent:
                if isinstance(one, Refused) and not (one.task_id in denied and denied[one.task_id].until_ms):
                    denied[one.task_id] = one
        offers.update({organization: [] for organization in sorted(suspended)})
        return drafts, offers, denied

    async def _draw(self, organizations: frozenset[str]) -> list[str]:
        now_ms = self._gate.now_ms()
        known = await self._database.read(lambda c: journal.list_reliability(c, now_ms))
        means = {one.organization: one.reliability for one in known if one.role == REVIEWER}
        candidates = [
            Candidate(organization, self._messenger.reachable(organization), means.get(organization, mean(0.0, 0.0)))
            for organization in sorted(organizations)
        ]
        return self._router.draw(candidates, len(candidates), trio.current_time())

    def _item(self, agreed: Agreed, batch: bytes, organization: str, drafts: Sequence[Draft]) -> journal.OutboxRow:
        now_ms = self._gate.now_ms()
        number = draw.number_of(agreed.digest, self._me, batch, agreed.batches) if agreed.terms.review.panel else 0
        tasks = [to_task(agreed, self._me, draft) for draft in drafts]
        offer = TaskOffer(batch_id=batch, tasks=tasks, number=number)
        return journal.OutboxRow(
            message_id=self._gate.new_id(),
            organization=organization,
            kind=OFFER,
            body=offer.SerializeToString(),
            dedup_key=batches.offer_key(batch, drafts[0].revision, organization),
            created_ms=now_ms,
            expires_ms=min(agreed.terms.expires_ms, now_ms + agreed.terms.lease_seconds * 1000),
        )

    async def _record(
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
            self._enqueue(connection, agreed, batch, tasks[0].revision, items)

        await self._database.transact(write)
        self._sent(agreed, items)

    def _enqueue(
        self, connection: sqlite3.Connection, agreed: Agreed, batch: bytes, revision: int,
        items: Sequence[journal.OutboxRow],
    ) -> None:  # fmt: skip
        for item in items:
            # A full outbox of one reviewer is that reviewer's matter: somebody else is asked.
            taken = journal.try_enqueue(connection, item)
            state = Assigned.OFFERED if taken else Assigned.EXPIRED
            self._assign(connection, agreed, batch, revision, item.organization, state)

    def _assign(
        self, connection: sqlite3.Connection, agreed: Agreed, batch: bytes, revision: int, organization: str,
        state: Assigned,
    ) -> None:  # fmt: skip
        now_ms = self._gate.now_ms()
        until_ms = now_ms + agreed.terms.lease_seconds * 1000
        row = journal.AssignmentRow(batch, revision, organization, state.value, now_ms, until_ms)
        journal.put_assignment(connection, row)

    def _sent(self, agreed: Agreed, items: Sequence[journal.OutboxRow]) -> None:
        for item in items:
            self._router.asked(REVIEW, item.organization, trio.current_time(), agreed.digest.hex())
            self._outbox.kick(item.organization)


def _at_first(agreed: Agreed) -> int:
    """Return how many are asked to begin with: where scores are committed to, who is late cannot be replaced."""
    rule = agreed.rule
    return min(rule.quorum + rule.faulty, rule.eligible) if agreed.terms.review.commit_reveal else rule.quorum


def _expire(
    connection: sqlite3.Connection, assignments: Sequence[journal.AssignmentRow]
) -> list[journal.AssignmentRow]:
    """Expect nothing more of these; returns those that were not over yet."""
    was = [set_state(connection, one.batch_id, one.revision, one.organization, Assigned.EXPIRED) for one in assignments]
    return [one for one in was if one is not None and one.state not in OVER]


def _drafts(tasks: Sequence[journal.TaskRow]) -> list[Draft]:
    return [Draft(task.task_id, task.revision, task.record, tuple(task.hops)) for task in tasks]


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
