"""Reviews as they are signed, and the message that takes them home."""

from __future__ import annotations

from typing import Any

from comity.agreement import Agreed
from comity.certificate import signing_moment
from comity.digest import sha256
from comity.envelope import sign_document
from comity.ids import SpiffeId
from comity.trust import NodeIdentity
from comity.v1.task_pb2 import Review, ReviewDelivery, ReviewedTask, TaskOffer
from comity_node.admission import Gate
from comity_node.runtime.kinds import REVIEWS
from comity_node.storage import journal


class ReviewWriter:
    """Writes the reviews of one agent of an organization."""

    def __init__(self, identity: NodeIdentity, gate: Gate, agent: str) -> None:
        """Sign in the name of `identity`'s organization what its `agent` has judged."""
        self._identity = identity
        self._gate = gate
        self._agent = SpiffeId(identity.organization, "agent", agent)

    def reviews(self, agreed: Agreed, item: journal.OfferRow, offer: TaskOffer, answer: dict[str, Any]) -> list[Review]:
        """Return what is to be signed of each task, by the validator's answer."""
        now_ms = self._gate.now_ms()
        return [
            Review(
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
                at_ms=signing_moment(now_ms, agreed.terms.issued_ms),
                author=item.home,
            )
            for task, scored in zip(offer.tasks, answer["reviews"], strict=True)
        ]

    def sign(
        self, agreed: Agreed, item: journal.OfferRow, offer: TaskOffer, answer: dict[str, Any], nonce: bytes = b"",
        about: bytes = b"",
    ) -> bytes:  # fmt: skip
        """Return the body of the message with the signed reviews of a batch.

        Args:
            agreed: under which.
            item: the batch in custody.
            offer: its tasks.
            answer: the validator's, checked.
            nonce: that opens what was committed to; empty where nothing was.
            about: digest of the commitments that were seen before.
        """
        delivery = ReviewDelivery(batch_id=item.batch_id, chain=self._identity.chain)
        reviews = self.reviews(agreed, item, offer, answer)
        for review, scored in zip(reviews, answer["reviews"], strict=True):
            review.nonce, review.commitments = nonce, about
            envelope = sign_document(self._identity.key, "review", review.SerializeToString())
            delivery.reviews.append(ReviewedTask(review=envelope, feedback=scored["feedback"]))
        return delivery.SerializeToString()

    def item(self, agreed: Agreed, item: journal.OfferRow, body: bytes) -> journal.OutboxRow:
        """Return the message that takes signed reviews to their home."""
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
