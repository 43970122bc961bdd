"""The reviewer's side of a task: custody, judgement by the own validator, a signed review, and what comes of it.

An offer that was taken is in the journal; the review that is made for it is signed once and kept, so that the same
offer gets the same review however often it comes (R2).
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import trio

from comity.agreement import MAX_LIFETIME_MS, Agreed
from comity.certificate import MAX_SCORE
from comity.digest import sha256
from comity.envelope import sign_document
from comity.errors import AgentError, AgentFailed, AgreementError, Busy, NoWorker, PolicyDenied, UnexpectedMessage
from comity.hops import RELEASE, SEND
from comity.ids import SpiffeId
from comity.provenance import verify_certified
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1.task_pb2 import (
    CertifiedRecord,
    Receipt,
    RecordDelivery,
    Review,
    ReviewDelivery,
    ReviewedTask,
    Task,
    TaskOffer,
)
from comity_node.admission import Gate, Question
from comity_node.admission.records import RecordGate
from comity_node.policy.model import Request
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.author import OFFER, REVIEWS
from comity_node.runtime.certify import RECORDS, stored_record
from comity_node.runtime.messenger import Handler, accepted
from comity_node.runtime.outbox import Outbox
from comity_node.runtime.patience import patiently
from comity_node.runtime.seams import TaskStatus, Workers
from comity_node.storage import audit, journal, records
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

_OFFERS_AT_ONCE = 4
_HELD_PER_HOME = 256
_AGENT_DEADLINE_S = 30.0
_AGENT_RETRY_S = 1.0
_MAX_FEEDBACK = 16
_MAX_FEEDBACK_TEXT = 1024
#: Bytes; with these a signed review stays within comity.certificate.MAX_REVIEW.
_MAX_VALIDATOR = 8 * 1024
_MAX_AXES = 64
_MAX_AXIS = 128
_GENERATOR = "generator"


class Reviewer:
    """Judges what other organizations offer, and keeps what was certified."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, record_gate: RecordGate, workers: Workers,
        agreements: Agreements, database: Database, outbox: Outbox, agent: str = "validator",
    ) -> None:  # fmt: skip
        """Review in the name of `identity`'s organization, with its own `workers`."""
        self._identity = identity
        self._trust = trust
        self._gate = gate
        self._record_gate = record_gate
        self._workers = workers
        self._agreements = agreements
        self._database = database
        self._outbox = outbox
        self._agent = SpiffeId(identity.organization, "agent", agent)
        self._work = trio.Event()
        self._slots = trio.Semaphore(_OFFERS_AT_ONCE)
        self._taken: set[bytes] = set()
        self.handlers: dict[str, Handler] = {OFFER: self._on_offer, RECORDS: self._on_records}

    # -- taking offers ---------------------------------------------------------------------------------------------

    async def _on_offer(self, sender: Attested, body: bytes) -> Receipt:
        offer = TaskOffer.FromString(body)
        agreed, revision = self._check_offer(sender, offer)
        digest = journal.offer_digest(sender.organization, offer.batch_id, revision)
        now_ms = self._gate.now_ms()
        known = await self._database.read(lambda c: journal.get_offer(c, digest))
        if known is not None:
            await self._answer_again(known)
            return accepted()
        counts = await self._database.read(journal.count_held)
        if (held := counts.get(sender.organization, 0)) >= _HELD_PER_HOME:
            raise Busy(f"{held} batches of {sender.organization} are waiting here already", retry_after_ms=2_000)
        await self._record_gate.receive(agreed, offer.tasks, sender, SEND, "synthetic")
        item = journal.OfferRow(
            home=sender.organization,
            batch_id=offer.batch_id,
            revision=revision,
            peer_id=sender.peer_id,
            agreement_digest=agreed.digest,
            offer=body,
            received_ms=now_ms,
            lease_until_ms=now_ms + agreed.terms.lease_seconds * 1000,
        )
        await self._database.transact(lambda c: self._take(c, agreed, item, len(offer.tasks)))
        self._work.set()
        return accepted()

    def _take(self, connection: sqlite3.Connection, agreed: Agreed, item: journal.OfferRow, records: int) -> None:
        """Take a batch into custody, within what was agreed for its home in all."""
        if not journal.put_offer(connection, item):
            return
        quota = f"agreement/{agreed.digest.hex()}/{item.home}/{item.revision}"
        most = agreed.terms.records_per_organization
        if not journal.reserve(connection, quota, most, MAX_LIFETIME_MS, records, item.received_ms):
            raise AgreementError(f"{item.home} has offered {most} records, as many as were agreed")

    def _check_offer(self, sender: Attested, offer: TaskOffer) -> tuple[Agreed, int]:
        if not offer.tasks or len(offer.batch_id) != 16:
            raise UnexpectedMessage("an offer has a batch id of 16 bytes, and tasks")
        first: Task = offer.tasks[0]
        agreed = self._agreed(first.agreement_digest)
        if len(offer.tasks) > agreed.terms.batch_records:
            raise AgreementError(f"{len(offer.tasks)} records in one batch; {agreed.terms.batch_records} were agreed")
        if first.revision > agreed.terms.repair_rounds:
            raise AgreementError(f"repair {first.revision}; {agreed.terms.repair_rounds} were agreed")
        if any(task.revision != first.revision for task in offer.tasks):
            raise UnexpectedMessage("the tasks of an offer are of one revision")
        if len({task.id for task in offer.tasks}) != len(offer.tasks):
            raise UnexpectedMessage("a task is twice in an offer")
        return agreed, first.revision

    def _agreed(self, digest: bytes) -> Agreed:
        """Return the agreement; one that is not here may still be on its way from its initiator."""
        try:
            return self._agreements.get(digest)
        except AgreementError as error:
            raise Busy(str(error), retry_after_ms=500) from error

    async def _answer_again(self, known: journal.OfferRow) -> None:
        """Send the reviews of an offer again: its home has not seen them."""
        if not known.reviews:
            return
        item = self._reviews_item(known, known.reviews)
        item = replace(item, dedup_key=f"{item.dedup_key}/{item.created_ms // 1000}")
        await self._database.transact(lambda c: journal.enqueue(c, item))
        self._outbox.kick(known.home)

    # -- judging them ----------------------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Judge what is held, until cancelled; begins with what an earlier run left."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._work = trio.Event()
                held = await self._database.read(lambda c: journal.held_offers(c, limit=_OFFERS_AT_ONCE * 4))
                fresh = [item for item in held if item.digest not in self._taken]
                for item in fresh:
                    await self._slots.acquire()
                    self._taken.add(item.digest)
                    nursery.start_soon(self._judge, item)
                if not fresh:
                    await self._work.wait()

    async def _judge(self, item: journal.OfferRow) -> None:
        try:
            agreed = self._agreements.get(item.agreement_digest)
            offer = TaskOffer.FromString(item.offer)
            what = f"the review for {item.home}"
            answer = await patiently(lambda: self._ask_validator(agreed, item, offer), what)
            if answer is not None:
                await patiently(lambda: self._deliver(agreed, item, offer, answer), what)
        finally:
            self._slots.release()
            self._taken.discard(item.digest)
            self._work.set()

    async def _ask_validator(self, agreed: Agreed, item: journal.OfferRow, offer: TaskOffer) -> dict[str, Any] | None:
        """Have the validator score a batch; None if it could not before the batch's lease ended.

        While there is no worker at all, the batch waits as long as the agreement lasts.
        """
        work = {
            "author": item.home,
            "dataset": agreed.terms.dataset,
            "purpose": agreed.terms.purpose,
            "min_score": agreed.terms.review.min_score,
            "records": [json.loads(task.record) for task in offer.tasks],
            # So that a validator which remembers rows knows the ones that come again (a repair, a repeated offer).
            "tasks": [task.id.hex() for task in offer.tasks],
        }
        while True:
            try:
                answer = await self._workers.call("review", work, deadline_s=_AGENT_DEADLINE_S)
                return _check_answer(answer, len(offer.tasks))
            except (AgentError, Busy) as error:
                nobody = isinstance(error, (NoWorker, Busy))
                if self._gate.now_ms() >= (agreed.terms.expires_ms if nobody else item.lease_until_ms):
                    log.warning("gave up a batch of %s: %s", item.home, error)
                    await self._database.transact(lambda c: journal.finish_offer(c, item.digest, b"", item.received_ms))
                    return None
                log.warning("review for %s: %s; trying again", item.home, error)
                await trio.sleep(_AGENT_RETRY_S)

    async def _deliver(self, agreed: Agreed, item: journal.OfferRow, offer: TaskOffer, answer: dict[str, Any]) -> None:
        request = Request(
            action="review.send",
            organization=item.home,
            purpose=agreed.terms.purpose,
            dataset=agreed.terms.dataset,
        )
        try:
            await self._gate.demand(Question(request, item.digest, agreed.digest, len(offer.tasks)))
        except PolicyDenied as error:
            log.warning("the review for %s stays here: %s", item.home, error)
            await self._database.transact(lambda c: journal.finish_offer(c, item.digest, b"", self._gate.now_ms()))
            return
        body = await trio.to_thread.run_sync(self._sign_reviews, agreed, item, offer, answer)
        now_ms = self._gate.now_ms()
        accepts = sum(one["score"] >= agreed.terms.review.min_score for one in answer["reviews"])

        def write(connection: sqlite3.Connection) -> None:
            journal.finish_offer(connection, item.digest, body, now_ms)
            journal.enqueue(connection, self._reviews_item(item, body))
            journal.add_agreement(connection, item.home, _GENERATOR, float(accepts))
            journal.add_disagreement(connection, item.home, _GENERATOR, float(len(offer.tasks) - accepts))

        await self._database.transact(write)
        self._outbox.kick(item.home)

    def _sign_reviews(self, agreed: Agreed, item: journal.OfferRow, offer: TaskOffer, answer: dict[str, Any]) -> bytes:
        now_ms = self._gate.now_ms()
        delivery = ReviewDelivery(batch_id=item.batch_id, chain=self._identity.chain)
        for task, scored in zip(offer.tasks, answer["reviews"], strict=True):
            review = Review(
                task_id=task.id,
                revision=task.revision,
                record_digest=sha256(task.record),
                agreement_digest=agreed.digest,
                bundle_epoch=agreed.terms.bundle_epoch,
                organization=self._identity.organization,
                reviewer=str(self._agent),
                accept=scored["score"] >= agreed.terms.review.min_score,
                score=scored["score"],
                axes=scored["axes"],
                validator=answer["validator"],
                at_ms=now_ms,
                author=item.home,
            )
            envelope = sign_document(self._identity.key, "review", review.SerializeToString())
            delivery.reviews.append(ReviewedTask(review=envelope, feedback=scored["feedback"]))
        return delivery.SerializeToString()

    def _reviews_item(self, item: journal.OfferRow, body: bytes) -> journal.OutboxRow:
        now_ms = self._gate.now_ms()
        return journal.OutboxRow(
            message_id=self._gate.new_id(),
            organization=item.home,
            kind=REVIEWS,
            body=body,
            dedup_key=f"reviews/{item.digest.hex()}",
            created_ms=now_ms,
            expires_ms=self._agreements.get(item.agreement_digest).terms.expires_ms,
        )

    # -- keeping what was certified --------------------------------------------------------------------------------

    async def _on_records(self, sender: Attested, body: bytes) -> Receipt:
        delivery = RecordDelivery.FromString(body)
        if not 0 < len(delivery.records) <= 256:
            raise UnexpectedMessage(f"{len(delivery.records)} records in one message; 1 to 256 are taken")
        agreed = self._agreed(delivery.records[0].task.agreement_digest)
        await self._record_gate.receive(agreed, [one.task for one in delivery.records], sender, RELEASE, "certified")
        now_ms = self._gate.now_ms()
        raw = self._agreements.raw(agreed.digest)

        def check(certified: CertifiedRecord) -> records.CertifiedRecord:
            verify_certified(certified, agreed, self._trust)
            return stored_record(agreed, certified, self._identity, raw, now_ms)

        stored = await trio.to_thread.run_sync(lambda: [check(one) for one in delivery.records])

        def write(connection: sqlite3.Connection) -> None:
            for record in stored:
                entry = audit.AuditEntry(
                    kind="effect",
                    action="record.stored",
                    peer=sender.organization,
                    subject=record.record_digest,
                    agreement=agreed.digest,
                )
                audit.append(connection, entry, now_ms)
                records.put_record(connection, record)

        await self._database.transact(write)
        return accepted()


def _check_answer(answer: object, count: int) -> dict[str, Any]:
    """Check what a validator returned.

    Raises:
        AgentFailed: it is not {"reviews": [{"score", "axes", "feedback"}, ...], "validator": str} of `count` reviews.
    """
    if not isinstance(answer, dict) or not _is_text(answer.get("validator"), _MAX_VALIDATOR):
        raise AgentFailed('the validator has to return {"reviews": [...], "validator": "..."}')
    reviews = answer.get("reviews")
    if not isinstance(reviews, list) or len(reviews) != count:
        raise AgentFailed(f"the validator has to return {count} reviews")
    for one in reviews:
        if not isinstance(one, dict) or not _is_score(one.get("score")):
            raise AgentFailed(f"a review needs a score: a whole number from 0 to {MAX_SCORE}")
        axes, feedback = one.get("axes", {}), one.get("feedback", [])
        if not _is_axes(axes):
            raise AgentFailed(f"the axes of a review are at most {_MAX_AXES} whole numbers from 0 to {MAX_SCORE}")
        if not _is_feedback(feedback):
            raise AgentFailed(f"the feedback of a review is at most {_MAX_FEEDBACK} short texts")
        one["axes"], one["feedback"] = axes, feedback
    return answer


def _is_score(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SCORE


def _is_axes(value: object) -> bool:
    if not isinstance(value, dict) or len(value) > _MAX_AXES:
        return False
    return all(_is_text(name, _MAX_AXIS) and _is_score(score) for name, score in value.items())


def _is_text(value: object, longest: int) -> bool:
    """Tell whether a value is text of at most `longest` bytes; JSON may hold half characters, which are none."""
    try:
        return isinstance(value, str) and len(value.encode()) <= longest
    except UnicodeEncodeError:
        return False


def _is_feedback(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > _MAX_FEEDBACK:
        return False
    return all(_is_text(text, _MAX_FEEDBACK_TEXT) for text in value)
