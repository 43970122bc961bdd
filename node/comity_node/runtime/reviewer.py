"""The reviewer's side of a task: custody, judgement by the own validator, a signed review, and what comes of it.

An offer that was taken is in the journal; the review that is made for it is signed once and kept, so that the same
offer gets the same review however often it comes (R2).
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Sequence
from typing import Any

import trio

from comity.agreement import MAX_LIFETIME_MS, Agreed
from comity.digest import sha256
from comity.envelope import sign_document
from comity.errors import (
    AgentError,
    AgreementError,
    AgreementStopped,
    Busy,
    NoWorker,
    PolicyDenied,
    UnexpectedMessage,
)
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
from comity_node.admission.gate import Waiting, used_up
from comity_node.admission.labels import certificate_labels
from comity_node.admission.records import RecordGate
from comity_node.policy import obligations as duties
from comity_node.policy.model import Rate, Request
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.answers import check_answer
from comity_node.runtime.certify import keep_until, stored_record
from comity_node.runtime.kinds import OFFER, RECORDS, REVIEWS
from comity_node.runtime.messenger import Handler, accepted
from comity_node.runtime.outbox import Outbox
from comity_node.runtime.patience import patiently
from comity_node.runtime.recheck import Recheck
from comity_node.runtime.seams import TaskStatus, Workers
from comity_node.runtime.turns import Turns
from comity_node.storage import audit, journal, records, retention
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

_OFFERS_AT_ONCE = 4
_OFFERS_OF_ONE_HOME = 2
_HELD_PER_HOME = 256
_AGENT_DEADLINE_S = 30.0
_AGENT_RETRY_S = 1.0
#: Seconds between attempts to send a review whose rate is used up, and answers that are kept meanwhile.
_RATE_RETRY_S = (1.0, 60.0)
_KEPT_ANSWERS = 64
#: How soon it is asked again whether a person has let a review leave.
_APPROVAL_RETRY_S = 10.0
_GENERATOR = "generator"


class Reviewer:
    """Judges what other organizations offer, and keeps what was certified."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, record_gate: RecordGate, workers: Workers,
        agreements: Agreements, database: Database, outbox: Outbox, recheck: Recheck, agent: str = "validator",
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
        self._recheck = recheck
        self._agent = SpiffeId(identity.organization, "agent", agent)
        self._work = trio.Event()
        self._turns = Turns(_OFFERS_AT_ONCE, _OFFERS_OF_ONE_HOME)
        self._answers: dict[bytes, dict[str, Any]] = {}
        self.handlers: dict[str, Handler] = {OFFER: self._on_offer, RECORDS: self._on_records}

    # -- taking offers ---------------------------------------------------------------------------------------------

    async def _on_offer(self, sender: Attested, body: bytes) -> Receipt:
        offer = TaskOffer.FromString(body)
        agreed, revision = self._check_offer(sender, offer)
        digest = journal.offer_digest(sender.organization, offer.batch_id, revision)
        now_ms = self._gate.now_ms()
        known = await self._database.read(lambda c: journal.get_offer(c, digest))
        if known is not None:
            await self._answer_again(agreed, known)
            return accepted()
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
        tasks = [(task.id, sha256(task.record)) for task in offer.tasks]
        # Before the policy is asked: what is refused here leaves nothing in the audit log (S7).
        await self._database.read(lambda c: self._check_room(c, agreed, item, tasks))
        owed = await self._record_gate.receive(agreed, offer.tasks, sender, SEND, "synthetic")
        until_ms = keep_until(duties.merge_all(owed), now_ms)
        await self._database.transact(lambda c: self._take(c, agreed, item, tasks, until_ms))
        self._work.set()
        return accepted()

    def _check_room(
        self, connection: sqlite3.Connection, agreed: Agreed, item: journal.OfferRow,
        tasks: Sequence[tuple[bytes, bytes]],
    ) -> None:  # fmt: skip
        if (held := journal.count_held(connection).get(item.home, 0)) >= _HELD_PER_HOME:
            raise Busy(f"{held} batches of {item.home} are waiting here already", retry_after_ms=2_000)
        new = journal.count_new_tasks(connection, item, tasks)
        used = journal.reserved(connection, _quota(agreed, item.home), MAX_LIFETIME_MS, item.received_ms)
        _check_quota(agreed, item.home, used + new)

    def _take(
        self, connection: sqlite3.Connection, agreed: Agreed, item: journal.OfferRow,
        tasks: Sequence[tuple[bytes, bytes]], until_ms: int | None,
    ) -> None:  # fmt: skip
        """Take a batch into custody: its tasks for the first time or repaired, and no more than were agreed.

        Whatever becomes of it, it is gone by `until_ms`, if there is such a time.
        """
        if not journal.put_offer(connection, item):
            return
        if until_ms is not None:
            retention.keep_offer_until(connection, item.digest, until_ms)
        if new := journal.take_tasks(connection, item, tasks):
            most = agreed.terms.records_per_organization
            quota = _quota(agreed, item.home)
            if not journal.reserve(connection, quota, most, MAX_LIFETIME_MS, new, item.received_ms):
                _check_quota(agreed, item.home, most + 1)

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
        except AgreementStopped:
            raise
        except AgreementError as error:
            raise Busy(str(error), retry_after_ms=500) from error

    async def _answer_again(self, agreed: Agreed, known: journal.OfferRow) -> None:
        """Send the reviews of an offer again: its home has not seen them."""
        if not known.reviews:
            return
        item = self._reviews_item(agreed, known, known.reviews)
        if await self._database.transact(lambda c: journal.reopen(c, item)):
            self._outbox.kick(known.home)

    # -- judging them ----------------------------------------------------------------------------------------------

    def look_again(self) -> None:
        """Look at what is held again: the policy, the trust bundle or an agreement has changed."""
        self._work.set()

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Judge what is held, until cancelled; begins with what an earlier run left."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._work = trio.Event()
                held = await self._database.read(journal.held_offers)
                now = trio.current_time()
                for offer in self._turns.choose(held, now):
                    nursery.start_soon(self._judge, offer)
                with trio.move_on_at(self._turns.next_at(now)):
                    await self._work.wait()

    async def _judge(self, offer: journal.HeldOffer) -> None:
        again_at = None
        try:
            again_s = await self._attempt(offer)
            again_at = None if again_s is None else trio.current_time() + again_s
        finally:
            self._turns.end(offer.digest, again_at)
            self._work.set()

    async def _attempt(self, held: journal.HeldOffer) -> float | None:
        """Judge a batch and answer it; returns in how many seconds to try again, None if it is over.

        While there is no worker at all, the batch waits as long as the agreement lasts; what the validator fails at
        waits until its lease is over.
        """
        kept = self._answers.pop(held.digest, None)
        item = await self._database.read(lambda c: journal.get_offer(c, held.digest))
        if item is None or item.state != "held":  # it was finished after the look that chose it
            return None
        what = f"the review for {item.home}"
        offer = TaskOffer.FromString(item.offer)
        try:
            agreed = self._still_agreed(item, offer)
            answer = kept or await self._ask_validator(agreed, item, offer)
            self._still_agreed(item, offer)  # much may have changed while the validator was at it
        except (AgreementError, PolicyDenied) as error:
            await self._give_up(item, error)
            return None
        except (AgentError, Busy) as error:
            nobody = isinstance(error, (NoWorker, Busy))
            if self._gate.now_ms() >= (self._expires_ms(item) if nobody else item.lease_until_ms):
                await self._give_up(item, error)
                return None
            log.warning("%s: %s; trying again", what, error)
            if nobody:
                self._turns.pause(trio.current_time() + _AGENT_RETRY_S)
            return 0.0 if nobody else _AGENT_RETRY_S
        return await patiently(lambda: self._deliver(agreed, item, offer, answer), what)

    def _still_agreed(self, item: journal.OfferRow, offer: TaskOffer) -> Agreed:
        """Return the agreement of a batch in custody, if the batch may be judged now.

        Raises:
            AgreementError: the agreement is not in force.
            PolicyDenied: the policy of now does not take the records in.
            Busy: nothing can be signed here at the moment.
        """
        agreed = self._agreements.get(item.agreement_digest)
        if reason := self._recheck.offer(agreed, item.home, offer):
            raise PolicyDenied(reason)
        return agreed

    def _expires_ms(self, item: journal.OfferRow) -> int:
        agreed = self._agreements.find(item.agreement_digest)
        return 0 if agreed is None else agreed.terms.expires_ms

    async def _give_up(self, item: journal.OfferRow, why: object) -> None:
        log.warning("gave up a batch of %s: %s", item.home, why)
        now_ms = self._gate.now_ms()
        entry = audit.AuditEntry(
            kind="effect",
            action="offer.given-back",
            peer=item.home,
            subject=item.digest,
            agreement=item.agreement_digest,
            detail={"reason": str(why)[:500]},
        )

        def write(connection: sqlite3.Connection) -> None:
            if journal.finish_offer(connection, item.digest, b"", now_ms):
                audit.append(connection, entry, now_ms)

        await patiently(lambda: self._database.transact(write), f"giving up a batch of {item.home}")

    async def _ask_validator(self, agreed: Agreed, item: journal.OfferRow, offer: TaskOffer) -> dict[str, Any]:
        work = {
            "author": item.home,
            "dataset": agreed.terms.dataset,
            "purpose": agreed.terms.purpose,
            "min_score": agreed.terms.review.min_score,
            "records": [json.loads(task.record) for task in offer.tasks],
            # So that a validator which remembers rows knows the ones that come again (a repair, a repeated offer).
            "tasks": [task.id.hex() for task in offer.tasks],
        }
        answer = await self._workers.call("review", work, deadline_s=_AGENT_DEADLINE_S)
        return check_answer(answer, len(offer.tasks))

    async def _deliver(
        self, agreed: Agreed, item: journal.OfferRow, offer: TaskOffer, answer: dict[str, Any]
    ) -> float | None:
        """Sign the reviews and have them sent; returns in how many seconds to try again if a rate is used up."""
        request = Request(
            action="review.send",
            organization=item.home,
            purpose=agreed.terms.purpose,
            dataset=agreed.terms.dataset,
        )
        (decision,) = await self._gate.decide([Question(request, item.digest, agreed.digest, len(offer.tasks))])
        if isinstance(decision, Waiting):
            self._keep_answer(item, answer)
            return _APPROVAL_RETRY_S
        if not decision.allowed:
            if (rate := used_up(decision)) and self._may_wait(rate, agreed, len(offer.tasks)):
                self._keep_answer(item, answer)
                shortest, longest = _RATE_RETRY_S
                return min(longest, max(shortest, rate.per_ms / 64_000))
            await self._give_up(item, f"the review stays here: {decision.reason}")
            return None
        body = await trio.to_thread.run_sync(self._sign_reviews, agreed, item, offer, answer)
        now_ms = self._gate.now_ms()
        accepts = sum(one["score"] >= agreed.terms.review.min_score for one in answer["reviews"])

        def write(connection: sqlite3.Connection) -> bool:
            if not journal.finish_offer(connection, item.digest, body, now_ms):
                return True  # judged before: nothing of it counts twice
            journal.add_agreement(connection, item.home, _GENERATOR, float(accepts))
            journal.add_disagreement(connection, item.home, _GENERATOR, float(len(offer.tasks) - accepts))
            return journal.try_enqueue(connection, self._reviews_item(agreed, item, body))

        if not await self._database.transact(write):
            log.warning("the review for %s waits until it asks again: it does not take its messages", item.home)
        self._outbox.kick(item.home)
        return None

    def _keep_answer(self, item: journal.OfferRow, answer: dict[str, Any]) -> None:
        if len(self._answers) < _KEPT_ANSWERS:
            self._answers[item.digest] = answer

    def _may_wait(self, rate: Rate, agreed: Agreed, amount: int) -> bool:
        """Tell whether a rate that is used up can ever let `amount` pass while the agreement lasts."""
        return amount <= rate.records and self._gate.now_ms() < agreed.terms.expires_ms

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

    def _reviews_item(self, agreed: Agreed, item: journal.OfferRow, body: bytes) -> journal.OutboxRow:
        now_ms = self._gate.now_ms()
        return journal.OutboxRow(
            message_id=self._gate.new_id(),
            organization=item.home,
            kind=REVIEWS,
            body=body,
            dedup_key=f"reviews/{item.digest.hex()}",
            created_ms=now_ms,
            expires_ms=agreed.terms.expires_ms,
        )

    # -- keeping what was certified --------------------------------------------------------------------------------

    async def _on_records(self, sender: Attested, body: bytes) -> Receipt:
        delivery = RecordDelivery.FromString(body)
        if not 0 < len(delivery.records) <= 256:
            raise UnexpectedMessage(f"{len(delivery.records)} records in one message; 1 to 256 are taken")
        task_ids = {one.task.id for one in delivery.records}
        if len(task_ids) != len(delivery.records):
            raise UnexpectedMessage("a task is twice in a delivery")
        agreed = self._agreed(delivery.records[0].task.agreement_digest)
        known = await self._database.read(lambda c: records.stored_digests(c, sender.organization, task_ids))
        fresh = [one for one in delivery.records if known.get(one.task.id) != sha256(one.task.record)]
        if fresh:
            await self._keep_records(agreed, fresh, delivery.records, sender)
        return accepted()

    async def _keep_records(
        self, agreed: Agreed, fresh: Sequence[CertifiedRecord], came: Sequence[CertifiedRecord], sender: Attested
    ) -> None:
        """Keep the records of a delivery that are not here yet; all that came together is judged together."""
        labels = {one.task.id: certificate_labels(one.certificate) for one in came}
        tasks = [one.task for one in came]
        every = await self._record_gate.receive(agreed, tasks, sender, RELEASE, "certified", known=labels)
        owed = {task.id: one for task, one in zip(tasks, every, strict=True)}
        now_ms = self._gate.now_ms()
        raw = self._agreements.raw(agreed.digest)

        def check(certified: CertifiedRecord) -> records.CertifiedRecord:
            verify_certified(certified, agreed, self._trust)
            return stored_record(agreed, certified, self._identity, raw, now_ms, owed[certified.task.id])

        stored = await trio.to_thread.run_sync(lambda: [check(one) for one in fresh])

        def write(connection: sqlite3.Connection) -> None:
            for record in stored:
                if not records.put_record(connection, record):
                    continue
                entry = audit.AuditEntry(
                    kind="effect",
                    action="record.stored",
                    peer=sender.organization,
                    subject=record.record_digest,
                    agreement=agreed.digest,
                )
                audit.append(connection, entry, now_ms)

        await self._database.transact(write)


def _quota(agreed: Agreed, home: str) -> str:
    """Return the name under which a home's tasks under an agreement are counted."""
    return f"agreement/{agreed.digest.hex()}/{home}"


def _check_quota(agreed: Agreed, home: str, tasks: int) -> None:
    if tasks > (most := agreed.terms.records_per_organization):
        raise AgreementError(f"{home} has offered {most} records, as many as were agreed, or would with these")
