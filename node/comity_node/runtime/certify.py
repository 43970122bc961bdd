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

from comity import draw
from comity.agreement import Agreed
from comity.certificate import check_review, signing_moment
from comity.commitment import references
from comity.digest import hex_digest
from comity.envelope import open_document
from comity.errors import ComityError
from comity.hops import RELEASE
from comity.provenance import make_provenance
from comity.trust import NodeIdentity, TrustStore
from comity.v1.task_pb2 import Certificate, CertifiedRecord, RecordDelivery, Review
from comity_node.admission import Gate
from comity_node.admission.labels import certificate_labels
from comity_node.admission.records import Draft, RecordGate, Refused, to_task
from comity_node.policy import obligations as duties
from comity_node.policy.model import Obligations
from comity_node.protocol.quorum import Ballot, Outcome
from comity_node.protocol.task import Input, State, advance
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.kinds import RECORDS
from comity_node.runtime.outbox import Outbox
from comity_node.storage import audit, commitments, journal, records
from comity_node.storage.database import Database
from comity_node.storage.records import CertifiedRecord as RecordRow
from comity_node.tracing import NULL, Subject, Tracer

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
        #: Is told when tasks are concluded.
        self.tracer: Tracer = NULL

    def ballot(self, agreed: Agreed, task: journal.TaskRow, votes: Iterable[journal.VoteRow]) -> Ballot:
        """Count the votes on one task (CPU-bound: verifies their signatures; call it off the loop)."""
        ballot = Ballot(
            task_id=task.task_id,
            record_digest=task.record_digest,
            agreement_digest=agreed.digest,
            epoch=agreed.terms.bundle_epoch,
            author=self._identity.organization,
            eligible=agreed.panel(self._identity.organization, task.batch_id),
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
        start_ns = self.tracer.now_ns()
        await self._add_commitments(agreed, verdicts)
        certified = [verdict for verdict in verdicts if verdict.happened is Input.ACCEPTED]
        deliveries = await self._deliveries(agreed, certified)
        now_ms = self._gate.now_ms()
        own = [self._own_record(agreed, verdict, now_ms) for verdict in certified]

        def write(connection: sqlite3.Connection) -> None:
            first = verdicts[0].task
            if _has_ended(connection, verdicts):  # the agreement was stopped while the votes were counted
                return
            votes = journal.batch_votes(connection, first.batch_id, first.revision)
            for verdict in verdicts:
                self._settle(connection, agreed, verdict, votes.get(verdict.task.task_id, ()), now_ms)
            for record in own:
                records.put_record(connection, record)
            for item in deliveries:
                if not journal.try_enqueue(connection, item):
                    log.warning("the outbox to %s is full: it does not get its certified records", item.organization)

        await self._database.transact(write)
        if self.tracer.enabled:
            subjects = [Subject(verdict.task.task_id, agreed.digest) for verdict in verdicts]
            self.tracer.record("certify", subjects, start_ns, outcomes=[one.happened.value for one in verdicts])
        for organization in {item.organization for item in deliveries}:
            self._outbox.kick(organization)

    async def _add_commitments(self, agreed: Agreed, verdicts: Sequence[Verdict]) -> None:
        """Put into certificates what their voters had committed to, where scores are committed to first."""
        if not agreed.terms.review.commit_reveal:
            return
        first = verdicts[0].task
        rows = await self._database.read(lambda c: commitments.list_commitments(c, first.batch_id, first.revision))
        envelopes = {row.organization: row.envelope for row in rows if row.in_set}
        for verdict in verdicts:
            if (certificate := verdict.certificate) is None:
                continue
            certificate.commitments.extend(references(commitments.set_digests(rows)))
            for vote in certificate.votes:
                review = Review.FromString(open_document(vote.review, "review").body)
                vote.commitment = envelopes.get(review.organization, b"")

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
            learn(connection, [(vote.organization, vote.accept == accept) for vote in votes], now_ms)

    def _own_record(self, agreed: Agreed, verdict: Verdict, now_ms: int) -> RecordRow:
        certified = self._certified(agreed, verdict, verdict.task.hops)
        return stored_record(agreed, certified, self._identity, self._agreements.raw(agreed.digest), now_ms)

    def _certified(self, agreed: Agreed, verdict: Verdict, history: Sequence[bytes]) -> CertifiedRecord:
        task = verdict.task
        if agreed.terms.review.panel and verdict.certificate is not None:
            home = self._identity.organization
            verdict.certificate.batch = draw.number_of(agreed.digest, home, task.batch_id, agreed.batches)
            verdict.certificate.ordinal = task.ordinal
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
        known = {one.task.task_id: certificate_labels(one.certificate) for one in certified if one.certificate}
        items = []
        for organization in sorted(agreed.reviewers(self._identity.organization)):
            released = await self._record_gate.release(agreed, drafts, organization, known=known)
            passed = [draft for draft in released if not isinstance(draft, Refused)]
            for part in self._parts(agreed, organization, passed, by_task):
                items.append(self._item(agreed, organization, part))
        return items

    def _parts(
        self, agreed: Agreed, organization: str, passed: Sequence[Draft], by_task: Mapping[bytes, Verdict]
    ) -> list[RecordDelivery]:
        """Divide certified records into deliveries; each is k-anonymous for itself where that is owed."""
        wholes = [(draft, self._certified(agreed, by_task[draft.task_id], draft.history)) for draft in passed]
        parts: list[list[tuple[Draft, CertifiedRecord]]] = [[]]
        room = _PER_DELIVERY
        for draft, whole in wholes:
            if parts[-1] and whole.ByteSize() > room:
                parts.append([])
                room = _PER_DELIVERY
            parts[-1].append((draft, whole))
            room -= whole.ByteSize()
        out = []
        for part in parts:
            drafts = [draft for draft, _ in part]
            if len(parts) > 1:
                drafts = self._record_gate.together(agreed, drafts, organization, action=RELEASE, kind="certified")
            may = {draft.task_id for draft in drafts}
            if len(may) < len(part):
                log.warning("%d records do not go to %s: too few are like them", len(part) - len(may), organization)
            if kept := [whole for draft, whole in part if draft.task_id in may]:
                out.append(RecordDelivery(records=kept))
        return out

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
    agreed: Agreed, certified: CertifiedRecord, holder: NodeIdentity, agreement: bytes, now_ms: int,
    owed: Obligations | None = None,
) -> RecordRow:  # fmt: skip
    """Return the form in which `holder` keeps a certified record, with the provenance that it can show.

    It is kept as long as the agreement and the holder's own rules (`owed`, which has both) let it.
    """
    task = certified.task
    return RecordRow(
        task_id=task.id,
        agreement_digest=agreed.digest,
        dataset=agreed.terms.dataset,
        author=task.home,
        record=task.record,
        record_digest=certified.certificate.record_digest,
        score=certified.certificate.score,
        certificate=certified.certificate.SerializeToString(),
        provenance=make_provenance(holder, certified, agreement, at_ms=signing_moment(now_ms, agreed.terms.issued_ms)),
        stored_ms=now_ms,
        retain_until_ms=keep_until(owed or duties.from_terms(agreed.terms.obligations), now_ms),
    )


def keep_until(owed: Obligations, now_ms: int) -> int | None:
    """Return until when what comes in at `now_ms` may be kept; None if nothing says so."""
    times = [] if owed.retain_ms is None else [now_ms + owed.retain_ms]
    return min([*times, *([] if owed.expire_ms is None else [owed.expire_ms])], default=None)


def _has_ended(connection: sqlite3.Connection, verdicts: Sequence[Verdict]) -> bool:
    """Tell whether a task has gone on, or was ended, since a verdict was found for it."""
    seen = [(verdict.task.state, verdict.task.revision) for verdict in verdicts]
    now = [journal.get_task(connection, verdict.task.task_id) for verdict in verdicts]
    return seen != [(task.state, task.revision) for task in now if task is not None]


def learn(connection: sqlite3.Connection, agreed: Iterable[tuple[str, bool]], now_ms: int) -> None:
    """Count, for each reviewer, whether its vote agreed with a certificate."""
    for organization, right in agreed:
        count = journal.add_agreement if right else journal.add_disagreement
        count(connection, organization, REVIEWER, now_ms=now_ms)


def _worst_axis(ballot: Ballot) -> str:
    """Return the axis that most of those who voted against found worst."""
    worst: Counter[str] = Counter()
    for vote in ballot.votes(False):
        axes: Mapping[str, int] = vote.review.axes
        if axes:
            worst[min(sorted(axes), key=lambda axis: axes[axis])] += 1
    return worst.most_common(1)[0][0] if worst else "score"
