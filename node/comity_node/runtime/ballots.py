"""The ballot box of a home: votes come in as signed reviews, are checked, kept once each, and counted."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace

import trio

from comity.agreement import Agreed
from comity.certificate import CheckedReview, check_moment, check_review, signing_window
from comity.digest import sha256
from comity.errors import AgreementError, AgreementStopped, Busy, UnexpectedMessage
from comity.evidence import make_evidence
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1.task_pb2 import Receipt, ReviewDelivery
from comity_node.admission import Gate, Question
from comity_node.policy.model import Request
from comity_node.protocol.quorum import Ballot, Outcome
from comity_node.protocol.task import State
from comity_node.runtime import batches
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.assignments import OVER, Assigned, set_state
from comity_node.runtime.certify import Certifier
from comity_node.runtime.kinds import REVIEWS
from comity_node.runtime.messenger import Handler, accepted
from comity_node.runtime.router import REVIEW, Router
from comity_node.runtime.sealing import Sealing
from comity_node.runtime.suspensions import Suspensions
from comity_node.storage import journal
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

_MAX_REVIEWS = 256
#: Notes that are kept for one repair, from all reviewers together; each is cut to this many characters.
_MAX_FEEDBACK = 32
_MAX_NOTE = 256
#: Of one message: one is enough.
_PROOFS = 2


class BallotBox:
    """Takes the votes on one organization's records."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, agreements: Agreements, database: Database,
        certifier: Certifier, router: Router, sealing: Sealing, suspensions: Suspensions,
        news: Callable[[bytes], None],
    ) -> None:  # fmt: skip
        """Take votes on records of `identity`'s organization; `news` hears of each batch that has new ones."""
        self._me = identity.organization
        self._trust = trust
        self._gate = gate
        self._agreements = agreements
        self._database = database
        self._certifier = certifier
        self._router = router
        self._sealing = sealing
        self._suspensions = suspensions
        self._news = news
        self.handlers: dict[str, Handler] = {REVIEWS: self._on_reviews}

    async def count(self, agreed: Agreed, batch: bytes, tasks: Sequence[journal.TaskRow]) -> dict[bytes, Ballot]:
        """Return the ballot of each task of a batch's present revision."""
        votes = await self._database.read(lambda c: journal.batch_votes(c, batch, tasks[0].revision))

        def count() -> dict[bytes, Ballot]:
            return {task.task_id: self._certifier.ballot(agreed, task, votes.get(task.task_id, ())) for task in tasks}

        return await trio.to_thread.run_sync(count)

    def settled(self, agreed: Agreed, task: journal.TaskRow, ballot: Ballot) -> bool:
        """Tell whether more votes would change what becomes of a task."""
        if ballot.outcome() is not Outcome.OPEN:
            return True
        return task.revision < agreed.terms.repair_rounds and not ballot.can_accept()

    async def _on_reviews(self, sender: Attested, body: bytes) -> Receipt:
        delivery = ReviewDelivery.FromString(body)
        if not 0 < len(delivery.reviews) <= _MAX_REVIEWS:
            raise UnexpectedMessage(f"{len(delivery.reviews)} reviews in one message; 1 to {_MAX_REVIEWS} are taken")
        checked = await trio.to_thread.run_sync(self._check, sender, delivery)
        try:
            agreed = self._agreements.get(checked[0].review.agreement_digest)
        except AgreementStopped:
            raise
        except AgreementError as error:  # a vote must not be lost because the home has just started
            raise Busy(str(error), retry_after_ms=1_000) from error
        await batches.check_own(agreed, self._database, delivery.batch_id)
        self._check_eligible(agreed, agreed.panel(self._me, delivery.batch_id), checked)
        await self._sealing.check_shown(agreed, delivery.batch_id, checked)
        request = Request(
            action="review.receive",
            organization=sender.organization,
            purpose=agreed.terms.purpose,
            dataset=agreed.terms.dataset,
        )
        await self._gate.demand(Question(request, sha256(body), agreed.digest, len(checked)))
        feedback = [tuple(text[:_MAX_NOTE] for text in one.feedback[:_MAX_FEEDBACK]) for one in delivery.reviews]
        now_ms = self._gate.now_ms()
        against: list[bytes] = []
        asked = await self._database.transact(
            lambda c: self._keep(c, delivery.batch_id, checked, feedback, against, now_ms)
        )
        for raw in against[:_PROOFS]:
            await self._suspensions.found(raw)
        if asked is not None and asked.state not in OVER:  # who was given up has been counted as that
            after_s = min(max(0, now_ms - asked.offered_ms), asked.lease_until_ms - asked.offered_ms) / 1000
            self._router.answered(REVIEW, sender.organization, trio.current_time(), after_s)
        self._news(delivery.batch_id)
        return accepted()

    def _check(self, sender: Attested, delivery: ReviewDelivery) -> list[CheckedReview]:
        checked = [check_review(one.review, delivery.chain, self._trust) for one in delivery.reviews]
        for one in checked:
            if one.organization != sender.organization:
                raise UnexpectedMessage(f"{sender.organization} delivered a review of {one.organization}")
            if one.review.agreement_digest != checked[0].review.agreement_digest:
                raise UnexpectedMessage("reviews of two agreements in one message")
            if one.review.revision != checked[0].review.revision:
                raise UnexpectedMessage("reviews of two revisions in one message")
        return checked

    def _check_eligible(self, agreed: Agreed, panel: frozenset[str], checked: Sequence[CheckedReview]) -> None:
        """Refuse what no ballot would take."""
        for one in checked:
            review = one.review
            check_moment(review.at_ms, signing_window(agreed.terms.issued_ms, agreed.terms.expires_ms), "a review")
            if one.organization not in panel:
                raise AgreementError(f"{one.organization} may not vote under agreement {agreed.digest.hex()[:12]}")
            if (review.author, review.bundle_epoch) != (self._me, agreed.terms.bundle_epoch):
                raise UnexpectedMessage(f"{one.organization} reviewed a record of another author or epoch")
            if review.accept != (review.score >= agreed.terms.review.min_score):
                raise UnexpectedMessage(f"the vote of {one.organization} does not follow from its score")

    def _keep(
        self, connection: sqlite3.Connection, batch: bytes, checked: Sequence[CheckedReview],
        feedback: Sequence[tuple[str, ...]], against: list[bytes], now_ms: int,
    ) -> journal.AssignmentRow | None:  # fmt: skip
        """Keep the votes, all or none; returns the assignment that they answer, as it was before.

        What may be evidence, since their organization has voted differently before, is added to `against`.
        """
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
            if (added := journal.add_vote(connection, _vote(one, now_ms))) is not journal.Added.NEW:
                if added is journal.Added.DIFFERENT:
                    against += _evidence(connection, one)
                continue
            # What comes after a certificate teaches nothing: it may be a copy of it.
            if State(task.state) not in (State.CERTIFIED, State.REJECTED) and notes and not review.accept:
                update = replace(task, feedback=tuple(dict.fromkeys((*task.feedback, *notes)))[:_MAX_FEEDBACK])
                journal.update_task(connection, update, state=task.state, revision=task.revision)
        return set_state(connection, batch, revision, organization, Assigned.VOTED)


def _evidence(connection: sqlite3.Connection, second: CheckedReview) -> list[bytes]:
    """Return the review that is here and another one of the same organization, as may be evidence against it."""
    review = second.review
    first = journal.get_vote(connection, review.task_id, review.revision, review.organization)
    return [] if first is None else [make_evidence(first.review, first.chain, second.envelope, second.chain)]


def _vote(checked: CheckedReview, now_ms: int) -> journal.VoteRow:
    review = checked.review
    return journal.VoteRow(
        task_id=review.task_id,
        revision=review.revision,
        organization=review.organization,
        review=checked.envelope,
        chain=checked.chain,
        accept=review.accept,
        score=review.score,
        received_ms=now_ms,
        subject=journal.vote_subject(review.record_digest, review.agreement_digest, review.bundle_epoch),
    )
