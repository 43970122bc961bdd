"""Offering a batch: the records pass the gate, the router draws reviewers, the outbox takes it to them.

As many are asked as a quorum takes, and f more. Whoever refuses, or holds a batch past its lease, is replaced by
somebody who has not been asked yet (R3).
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import trio

from comity.agreement import Agreed
from comity.digest import sha256
from comity.trust import NodeIdentity
from comity.v1.task_pb2 import Receipt, TaskOffer
from comity_node.admission import Gate
from comity_node.admission.records import Draft, RecordGate, Refused, to_task
from comity_node.protocol.task import Input, State, advance
from comity_node.runtime import batches
from comity_node.runtime.assignments import Assigned, set_state
from comity_node.runtime.certify import REVIEWER
from comity_node.runtime.kinds import OFFER
from comity_node.runtime.messenger import Messenger
from comity_node.runtime.outbox import Outbox
from comity_node.runtime.router import Candidate, Router
from comity_node.runtime.score import mean
from comity_node.storage import audit, journal
from comity_node.storage.database import Database

log = logging.getLogger(__name__)


class Offering:
    """Takes batches of one organization to reviewers."""

    def __init__(
        self, *, identity: NodeIdentity, gate: Gate, record_gate: RecordGate, messenger: Messenger, database: Database,
        outbox: Outbox, router: Router,
    ) -> None:  # fmt: skip
        """Offer in the name of `identity`'s organization."""
        self._me = identity.organization
        self._gate = gate
        self._record_gate = record_gate
        self._messenger = messenger
        self._database = database
        self._outbox = outbox
        self._router = router

    async def offer(self, agreed: Agreed, batch: bytes, tasks: Sequence[journal.TaskRow]) -> int:
        """Offer the queued tasks of a batch, or refuse those that may not go to enough reviewers.

        Returns:
            0; or until when, in milliseconds since the Unix epoch, a person may still approve what too few reviewers
            may see: then nothing was offered or refused, and the batch can be offered again.
        """
        await self._gate.look()
        shaped = await trio.to_thread.run_sync(self._record_gate.prepare, agreed, _drafts(tasks))
        ready = [draft for draft in shaped if isinstance(draft, Draft)]
        refused = {one.task_id: one for one in shaped if isinstance(one, Refused)}
        wanted = agreed.rule.quorum + agreed.rule.faulty
        ready, offers, denied = await self._pass(agreed, ready, agreed.reviewers(self._me), wanted)
        short, offers = self._short(agreed, ready, offers)
        if waiting := [one.until_ms for one in map(denied.get, short) if one is not None and one.until_ms]:
            return min(waiting)
        for task_id in short:
            reason = "too few reviewers may see it"
            refused[task_id] = denied.get(task_id) or Refused(task_id, reason, ())
        items = [
            self._item(agreed, batch, organization, kept)
            for organization, passed in offers.items()
            if (kept := [one for one in passed if one.task_id not in short])
        ]
        await self._record(agreed, batch, tasks, ready, refused, items)
        return 0

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

    async def widen(
        self, agreed: Agreed, batch: bytes, tasks: Sequence[journal.TaskRow], count: int,
        assignments: Sequence[journal.AssignmentRow], late: Sequence[journal.AssignmentRow],
    ) -> None:  # fmt: skip
        """End the leases of `late`, and offer a batch in review to `count` more that have not been asked yet."""
        unasked = agreed.reviewers(self._me) - {one.organization for one in assignments}
        drafts, offers, _ = await self._pass(agreed, _drafts(tasks), unasked, count)
        items = [self._item(agreed, batch, organization, passed) for organization, passed in offers.items() if passed]
        histories = {draft.task_id: draft.history for draft in drafts}
        revision, now_ms = tasks[0].revision, self._gate.now_ms()

        def write(connection: sqlite3.Connection) -> None:
            for one in late:
                set_state(connection, batch, revision, one.organization, Assigned.EXPIRED)
            for task in tasks:
                fresh = journal.get_task(connection, task.task_id)
                if fresh is not None:
                    update = replace(fresh, hops=histories[task.task_id], updated_ms=now_ms)
                    journal.update_task(connection, update, state=task.state, revision=task.revision)
            for organization, passed in offers.items():
                if not passed:
                    self._assign(connection, agreed, batch, revision, organization, Assigned.REFUSED)
            self._enqueue(connection, agreed, batch, revision, items)

        await self._database.transact(write)
        for one in late:
            log.warning("%s held a batch past its lease", one.organization)
            self._router.answered(one.organization, one.lease_until_ms - one.offered_ms)
        self._sent(items)

    async def ended(self, item: journal.OutboxRow, receipt: Receipt | None) -> bytes:
        """Note that an offer was taken into custody, refused, or not delivered in time; returns its batch."""
        batch, revision, organization = batches.parse_offer_key(item.dedup_key)
        state = Assigned.EXPIRED
        if receipt is not None:
            state = Assigned.HELD if receipt.status == Receipt.STATUS_ACCEPTED else Assigned.REFUSED
        await self._database.transact(lambda c: set_state(c, batch, revision, organization, state))
        if state is not Assigned.HELD:
            self._router.answered(organization, self._gate.now_ms() - item.created_ms)
        return batch

    async def _pass(
        self, agreed: Agreed, drafts: list[Draft], organizations: frozenset[str], wanted: int
    ) -> tuple[list[Draft], dict[str, list[Draft]], dict[bytes, Refused]]:
        """Ask the gate about one reviewer after the other until `wanted` may have something.

        Returns all drafts with their new hops, what each reviewer that was drawn may have, and who was denied what.
        """
        offers: dict[str, list[Draft]] = {}
        denied: dict[bytes, Refused] = {}
        for organization in await self._draw(organizations) if drafts else []:
            if sum(bool(passed) for passed in offers.values()) >= wanted:
                break
            sent = await self._record_gate.send(agreed, drafts, organization)
            drafts = [new if isinstance(new, Draft) else old for new, old in zip(sent, drafts, strict=True)]
            offers[organization] = [one for one in sent if isinstance(one, Draft)]
            for one in sent:
                if isinstance(one, Refused) and not (one.task_id in denied and denied[one.task_id].until_ms):
                    denied[one.task_id] = one
        return drafts, offers, denied

    async def _draw(self, organizations: frozenset[str]) -> list[str]:
        known = await self._database.read(journal.list_reliability)
        means = {one.organization: mean(one.agreed, one.disagreed) for one in known if one.role == REVIEWER}
        candidates = [
            Candidate(organization, self._messenger.reachable(organization), means.get(organization, 0.5))
            for organization in sorted(organizations)
        ]
        return self._router.draw(candidates, len(candidates))

    def _item(self, agreed: Agreed, batch: bytes, organization: str, drafts: Sequence[Draft]) -> journal.OutboxRow:
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
        self._sent(items)

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

    def _sent(self, items: Sequence[journal.OutboxRow]) -> None:
        for item in items:
            self._router.asked(item.organization)
            self._outbox.kick(item.organization)


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
