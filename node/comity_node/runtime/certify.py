"""From votes to what becomes of a task: certificate, repair, rejection; and what a certificate sets going.

A certified record goes to the home's own record store and, through the gate, to every participant. How each reviewer
voted against how the quorum decided is what the home learns about its reliability.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from comity.agreement import Agreed
from comity.certificate import check_review
from comity.digest import hex_digest
from comity.errors import ComityError
from comity.provenance import make_provenance
from comity.trust import NodeIdentity, TrustStore
from comity.v1.task_pb2 import Certificate, CertifiedRecord, RecordDelivery
from comity_node.admission import Gate
from comity_node.admission.records import Draft, RecordGate, Refused, to_task
from comity_node.protocol.quorum import Ballot, Outcome
from comity_node.protocol.task import Input, State, advance
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.kinds import RECORDS
from comity_node.runtime.outbox import Outbox
from comity_node.storage import audit, journal, records
from comity_node.storage.database import Database
from comity_node.storage.records import CertifiedRecord as RecordRow

log = logging.getLogger(__name__)

REVIEWER = "reviewer"
#: Bytes of records in one delivery; an envelope holds more.
_PER_DELIVERY = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one task."""

    task: journal.TaskRow
    happened: Input
    reason: str
    certificate: Certificate | None


class Certifier:
    """Concludes the tasks of one organization."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, record_gate: RecordGate,
        agreements: Agreements, database: Database, outbox: Outbox,
    ) -> None:  # fmt: skip
        """Conclude the tasks whose home `identity`'s organization is."""
        self._identity = identity
        self._trust = trust
        self._gate = gate
        self._record_gate = record_gate
        self._agreements = agreements
        self._database = database
        self._outbox = outbox

    def ballot(self, agreed: Agreed, task: journal.TaskRow, votes: Iterable[journal.VoteRow]) -> Ballot:
        """Count the votes on one task (CPU-bound: verifies their signatures; call it off the loop)."""
        ballot = Ballot(
            task_id=task.task_id,
            record_digest=task.record_digest,
            agreement_digest=agreed.digest,
            epoch=agreed.terms.bundle_epoch,
            author=self._identity.organization,
            eligible=agreed.reviewers(self._identity.organization),
            rule=agreed.rule,
            min_score=agreed.terms.review.min_score,
        )
        for vote in votes:
            try:
                ballot.add(check_review(vote.review, vote.chain, self._trust))
            except ComityError as error:  # it was checked when it came: the trust bundle may have changed since
                log.warning("the vote of %s counts no more: %s", vote.organization, error)
        return ballot

    def judge(self, agreed: Agreed, task: journal.TaskRow, ballot: Ballot) -> Verdict:
        """Decide what becomes of a task whose ballot is closed (or has waited long enough)."""
        outcome = ballot.outcome()
        if outcome is Outcome.ACCEPT:
            return Verdict(task, Input.ACCEPTED, "", ballot.certificate())
        if task.revision < agreed.terms.repair_rounds and ballot.votes(False):
            return Verdict(task, Input.REPAIRABLE, _worst_axis(ballot), None)
        if outcome is Outcome.REJECT:
            return Verdict(task, Input.REJECTED, _worst_axis(ballot), ballot.certificate())
        reason = f"{len(ballot.votes(True))} for, {len(ballot.votes(False))} against"
        return Verdict(task, Input.UNDECIDED, reason, None)

    async def conclude(self, agreed: Agreed, verdicts: Sequence[Verdict]) -> None:
        """Put what was decided on disk; certified records go on their way in the same transaction."""
        certified = [verdict for verdict in verdicts if verdict.happened is Input.ACCEPTED]
        deliveries = await self._deliveries(agreed, certified)
        now_ms = self._gate.now_ms()
        own = [self._own_record(agreed, verdict, now_ms) for verdict in certified]

        def write(connection: sqlite3.Connection) -> None:
            first = verdicts[0].task
            votes = journal.batch_votes(connection, first.batch_id, first.revision)
            for verdict in verdicts:
                self._settle(connection, agreed, verdict, votes.get(verdict.task.task_id, ()), now_ms)
            for record in own:
                records.put_record(connection, record)
            for item in deliveries:
                if not journal.try_enqueue(connection, item):
                    log.warning("the outbox to %s is full: it does not get its certified records", item.organization)

        await self._database.transact(write)
        for organization in {item.organization for item in deliveries}:
            self._outbox.kick(organization)

    def _settle(
        self, connection: sqlite3.Connection, agreed: Agreed, verdict: Verdict, votes: Sequence[journal.VoteRow],
        now_ms: int,
    ) -> None:  # fmt: skip
        """Note how a task ended, and learn from all votes that have come in until now."""
        task = verdict.task
        state = advance(State(task.state), verdict.happened)
        entry = audit.AuditEntry(
            kind="effect",
            action=f"task.{state}",
            subject=task.record_digest,
            agreement=agreed.digest,
            detail={"task": task.task_id.hex(), "revision": task.revision, "reason": verdict.reason},
        )
        audit.append(connection, entry, now_ms)
        fresh = journal.get_task(connection, task.task_id) or task  # reviewers' notes came while the votes were counted
        update = replace(fresh, state=state.value, reason=verdict.reason, updated_ms=now_ms)
        if not journal.update_task(connection, update, state=task.state, revision=task.revision):
            return  # concluded before
        if verdict.certificate is not None:
            accept = verdict.certificate.verdict == Certificate.VERDICT_ACCEPT
            learn(connection, [(vote.organization, vote.accept == accept) for vote in votes])

    def _own_record(self, agreed: Agreed, verdict: Verdict, now_ms: int) -> RecordRow:
        certified = self._certified(agreed, verdict, verdict.task.hops)
        return stored_record(agreed, certified, self._identity, self._agreements.raw(agreed.digest), now_ms)

    def _certified(self, agreed: Agreed, verdict: Verdict, history: Sequence[bytes]) -> CertifiedRecord:
        task = verdict.task
        draft = Draft(task.task_id, task.revision, task.record, tuple(history))
        return CertifiedRecord(
            task=to_task(agreed, self._identity.organization, draft),
            certificate=verdict.certificate,
            home_chain=self._identity.chain,
        )

    async def _deliveries(self, agreed: Agreed, certified: Sequence[Verdict]) -> list[journal.OutboxRow]:
        """Decide for each participant which of the certified records it may have."""
        if not certified:
            return []
        by_task = {verdict.task.task_id: verdict for verdict in certified}
        drafts = [
            Draft(one.task.task_id, one.task.revision, one.task.record, tuple(one.task.hops)) for one in certified
        ]
        items = []
        for organization in sorted(agreed.reviewers(self._identity.organization)):
            released = await self._record_gate.release(agreed, drafts, organization)
            passed = [draft for draft in released if not isinstance(draft, Refused)]
            part = RecordDelivery()
            for draft in passed:
                certified_record = self._certified(agreed, by_task[draft.task_id], draft.history)
                if part.records and part.ByteSize() + certified_record.ByteSize() > _PER_DELIVERY:
                    items.append(self._item(agreed, organization, part))
                    part = RecordDelivery()
                part.records.append(certified_record)
            if part.records:
                items.append(self._item(agreed, organization, part))
        return items

    def _item(self, agreed: Agreed, organization: str, body: RecordDelivery) -> journal.OutboxRow:
        now_ms = self._gate.now_ms()
        about = hex_digest(b"".join(one.task.id for one in body.records))
        return journal.OutboxRow(
            message_id=self._gate.new_id(),
            organization=organization,
            kind=RECORDS,
            body=body.SerializeToString(),
            dedup_key=f"records/{about}/{organization}",
            created_ms=now_ms,
            expires_ms=agreed.terms.expires_ms,
        )


def stored_record(
    agreed: Agreed, certified: CertifiedRecord, holder: NodeIdentity, agreement: bytes, now_ms: int
) -> RecordRow:
    """Return the form in which `holder` keeps a certified record, with the provenance that it can show."""
    task = certified.task
    retain = agreed.terms.obligations.retain_seconds
    return RecordRow(
        task_id=task.id,
        agreement_digest=agreed.digest,
        dataset=agreed.terms.dataset,
        author=task.home,
        record=task.record,
        record_digest=certified.certificate.record_digest,
        score=certified.certificate.score,
        certificate=certified.certificate.SerializeToString(),
        provenance=make_provenance(holder, certified, agreement),
        stored_ms=now_ms,
        retain_until_ms=now_ms + retain * 1000 if retain else None,
    )


def learn(connection: sqlite3.Connection, agreed: Iterable[tuple[str, bool]]) -> None:
    """Count, for each reviewer, whether its vote agreed with a certificate."""
    for organization, right in agreed:
        count = journal.add_agreement if right else journal.add_disagreement
        count(connection, organization, REVIEWER)


def _worst_axis(ballot: Ballot) -> str:
    """Return the axis that most of those who voted against found worst."""
    worst: Counter[str] = Counter()
    for vote in ballot.votes(False):
        axes: Mapping[str, int] = vote.review.axes
        if axes:
            worst[min(sorted(axes), key=lambda axis: axes[axis])] += 1
    return worst.most_common(1)[0][0] if worst else "score"
