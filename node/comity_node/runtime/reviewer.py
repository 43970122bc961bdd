"""The reviewer's side of a task: custody, judgement by the own validator, a signed review, and what comes of it.

An offer that was taken is in the journal; the review that is made for it is signed once and kept, so that the same
offer gets the same review however often it comes (R2).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from typing import Any

import trio

from comity.agreement import MAX_LIFETIME_MS, Agreed
from comity.digest import sha256
from comity.errors import (
    AgentError,
    AgreementError,
    AgreementStopped,
    Busy,
    NoWorker,
    PolicyDenied,
    UnexpectedMessage,
)
from comity.hops import SEND
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1.task_pb2 import (
    Receipt,
    TaskOffer,
)
from comity_node.admission import Gate, Question
from comity_node.admission.gate import Waiting, used_up
from comity_node.admission.records import RecordGate
from comity_node.policy import obligations as duties
from comity_node.policy.model import Request
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.answers import ask_validator
from comity_node.runtime.certify import keep_until
from comity_node.runtime.keeping import Keeping
from comity_node.runtime.kinds import COMMITMENT_SET, OFFER
from comity_node.runtime.messenger import Handler, accepted
from comity_node.runtime.offered import check_offer, check_quota, quota
from comity_node.runtime.outbox import Outbox
from comity_node.runtime.patience import patiently
from comity_node.runtime.recheck import Recheck
from comity_node.runtime.revealing import Revealing
from comity_node.runtime.review_writer import ReviewWriter
from comity_node.runtime.seams import TaskStatus, Workers
from comity_node.runtime.turns import Turns
from comity_node.storage import audit, journal, retention
from comity_node.storage.commitments import SealedRow
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

_OFFERS_AT_ONCE = 4
_OFFERS_OF_ONE_HOME = 2
_HELD_PER_HOME = 256
_AGENT_RETRY_S = 1.0
#: Seconds between attempts to send a review whose rate is used up, and answers that are kept meanwhile.
_RATE_RETRY_S = (1.0, 60.0)
_KEPT_ANSWERS = 64
#: How soon a batch is looked at again whose review a person has to let leave, and one whose scores are sealed.
_APPROVAL_RETRY_S = 10.0
_SEALED_S = 30.0
_GENERATOR = "generator"


class Reviewer:
    """Judges what other organizations offer, and keeps what was certified."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, record_gate: RecordGate, workers: Workers,
        agreements: Agreements, database: Database, outbox: Outbox, recheck: Recheck, agent: str = "validator",
    ) -> None:  # fmt: skip
        """Review in the name of `identity`'s organization, with its own `workers`."""
        self._identity = identity
        self._gate = gate
        self._record_gate = record_gate
        self._workers = workers
        self._agreements = agreements
        self._database = database
        self._outbox = outbox
        self._recheck = recheck
        self._writer = ReviewWriter(identity, gate, agent)
        self._work = trio.Event()
        self._turns = Turns(_OFFERS_AT_ONCE, _OFFERS_OF_ONE_HOME)
        self._answers: dict[bytes, dict[str, Any]] = {}
        self._revealing = Revealing(
            identity=identity, trust=trust, gate=gate, database=database, outbox=outbox, show=self._show
        )
        keeping = Keeping(
            identity=identity, trust=trust, gate=gate, record_gate=record_gate, agreements=agreements,
            database=database, agreed_of=self._agreed,
        )  # fmt: skip
        self.handlers: dict[str, Handler] = {
            OFFER: self._on_offer, **keeping.handlers,
            COMMITMENT_SET: lambda sender, body: self._revealing.on_set(sender, body, self._agreed),
        }  # fmt: skip

    # -- taking offers ---------------------------------------------------------------------------------------------

    async def _on_offer(self, sender: Attested, body: bytes) -> Receipt:
        offer = TaskOffer.FromString(body)
        if not offer.tasks or len(offer.batch_id) != 16:
            raise UnexpectedMessage("an offer has a batch id of 16 bytes, and tasks")
        agreed = self._agreed(offer.tasks[0].agreement_digest)
        revision = check_offer(self._identity.organization, sender.organization, agreed, offer)
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
        used = journal.reserved(connection, quota(agreed, item.home), MAX_LIFETIME_MS, item.received_ms)
        check_quota(agreed, item.home, used + new)

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
            counted = quota(agreed, item.home)
            if not journal.reserve(connection, counted, most, MAX_LIFETIME_MS, new, item.received_ms):
                check_quota(agreed, item.home, most + 1)

    def _agreed(self, digest: bytes) -> Agreed:
        """Return the agreement; one that is not here may still be on its way from its initiator.

        Of several nodes of this organization the one judges that has signed it: two different votes are a lie.
        """
        try:
            agreed = self._agreements.get(digest)
        except AgreementStopped:
            raise
        except AgreementError as error:
            raise Busy(str(error), retry_after_ms=500) from error
        if digest in self._agreements.shared:
            raise Busy("another node of this organization judges under this agreement", retry_after_ms=500)
        return agreed

    async def _answer_again(self, agreed: Agreed, known: journal.OfferRow) -> None:
        """Send the reviews of an offer again: its home has not seen them."""
        if not known.reviews:
            return
        item = self._writer.item(agreed, known, known.reviews)
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
            if agreed.terms.review.commit_reveal and (sealed := await self._revealing.sealed(item.digest)):
                return await self._wait_to_show(agreed, item, sealed)
            answer = kept or await ask_validator(self._workers, agreed, item.home, offer)
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

    async def _wait_to_show(self, agreed: Agreed, item: journal.OfferRow, sealed: SealedRow) -> float | None:
        """Look again later at a batch whose scores are sealed: `_on_set` ends it."""
        if self._gate.now_ms() < agreed.terms.expires_ms:
            await self._revealing.send(item, sealed, agreed.terms.expires_ms)
            return _SEALED_S
        await self._give_up(item, "nobody has asked for the scores that were committed to")
        return None

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
            may_pass_yet = (rate := used_up(decision)) and len(offer.tasks) <= rate.records
            if rate and may_pass_yet and self._gate.now_ms() < agreed.terms.expires_ms:
                self._keep_answer(item, answer)
                shortest, longest = _RATE_RETRY_S
                return min(longest, max(shortest, rate.per_ms / 64_000))
            await self._give_up(item, f"the review stays here: {decision.reason}")
            return None
        if agreed.terms.review.commit_reveal:
            reviews = self._writer.reviews(agreed, item, offer, answer)
            await self._revealing.seal(item, reviews, answer, agreed.terms.expires_ms)
            return _SEALED_S
        body = await trio.to_thread.run_sync(self._writer.sign, agreed, item, offer, answer)
        await self._answer(agreed, item, offer, answer, body)
        return None

    async def _show(self, agreed: Agreed, item: journal.OfferRow, sealed: SealedRow, about: bytes) -> None:
        """Sign the reviews that were committed to, and have them sent; `about` is what others have committed to."""
        offer = TaskOffer.FromString(item.offer)
        body = await trio.to_thread.run_sync(self._writer.sign, agreed, item, offer, sealed.answer, sealed.nonce, about)
        await self._answer(agreed, item, offer, sealed.answer, body)

    async def commitment_ended(self, item: journal.OutboxRow, receipt: Receipt | None) -> None:
        """Hear that a home has refused a commitment: what it is about is not judged here any more."""
        if receipt is None or receipt.status != Receipt.STATUS_REFUSED:
            return
        digest = self._revealing.offer_of(item)
        offer = await self._database.read(lambda c: journal.get_offer(c, digest))
        if offer is not None and offer.state == "held":
            await self._give_up(offer, f"its home has refused the commitment: {receipt.reason}")

    async def _answer(
        self, agreed: Agreed, item: journal.OfferRow, offer: TaskOffer, answer: dict[str, Any], body: bytes
    ) -> None:
        """Keep signed reviews and have them sent, once; count what they say of the author."""
        now_ms = self._gate.now_ms()
        accepts = sum(one["score"] >= agreed.terms.review.min_score for one in answer["reviews"])

        def write(connection: sqlite3.Connection) -> bool:
            if not journal.finish_offer(connection, item.digest, body, now_ms):
                return True  # judged before: nothing of it counts twice
            journal.add_agreement(connection, item.home, _GENERATOR, float(accepts), now_ms=now_ms)
            rejects = float(len(offer.tasks) - accepts)
            journal.add_disagreement(connection, item.home, _GENERATOR, rejects, now_ms=now_ms)
            return journal.try_enqueue(connection, self._writer.item(agreed, item, body))

        if not await self._database.transact(write):
            log.warning("the review for %s waits until it asks again: it does not take its messages", item.home)
        self._outbox.kick(item.home)

    def _keep_answer(self, item: journal.OfferRow, answer: dict[str, Any]) -> None:
        if len(self._answers) < _KEPT_ANSWERS:
            self._answers[item.digest] = answer
