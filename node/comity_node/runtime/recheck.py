"""Looking again at what is under way, when the policy, the trust bundle or an agreement has changed.

What was decided under another policy is not done because it was decided: it is decided again before it leaves this
node, and before it is judged here. Nothing is reserved for it once more. What was once allowed and is denied now stops
at the next step that it would take, which `version` tells whoever keeps the answers of before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from comity.agreement import Agreed, read_terms
from comity.commitment import read_commitment
from comity.digest import sha256
from comity.envelope import open_document
from comity.errors import ComityError
from comity.hops import RELEASE, SEND
from comity.trust import TrustStore
from comity.v1.task_pb2 import RecordDelivery, Review, ReviewDelivery, SignedCommitment, Task, TaskOffer
from comity_node.admission import Gate
from comity_node.admission.labels import certificate_labels
from comity_node.admission.records import RecordGate
from comity_node.policy import obligations as duties
from comity_node.policy.conditions import Labels
from comity_node.policy.model import Request
from comity_node.runtime import bargain, kinds
from comity_node.runtime.agreements import Agreements
from comity_node.storage import audit, journal


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a message may not leave now.

    Attributes:
        reason: in one line.
        waits: it may leave once the agreement that it is about goes on; else it never may.
    """

    reason: str
    waits: bool = False


class Recheck:
    """Asks the policy, the trust bundle and the agreements of now about what was begun before."""

    def __init__(self, *, gate: Gate, record_gate: RecordGate, trust: TrustStore, agreements: Agreements) -> None:
        """Ask in the name of `gate`'s organization."""
        self._gate = gate
        self._record_gate = record_gate
        self._trust = trust
        self._agreements = agreements
        self._me = gate.identity.organization
        self._changes = 0

    @property
    def version(self) -> int:
        """Grows with each change that answers of before do not know of."""
        return self._changes + self._agreements.version

    def changed(self) -> None:
        """The policy or the trust bundle is another one, or what is known of them: answers of before do not count."""
        self._changes += 1

    # -- agreements ------------------------------------------------------------------------------------------------

    def agreement(self, agreed: Agreed) -> str:
        """Return why the policy does not carry an agreement now; "" if it does.

        It does if it would let this organization offer these terms to each of the others (as the initiator), or accept
        them of the initiator; and if they meet what it asks for then.
        """
        terms = agreed.terms
        asked = duties.from_terms(terms.obligations)
        for request in _requests(agreed, self._me):
            decision = self._gate.consider(request)
            if not decision.allowed:
                return f"the policy does not let {request.action} with {request.organization}: {decision.reason}"
            owed = duties.from_terms(duties.to_terms(decision.obligations))
            if not duties.covers(asked, owed):
                return f"the policy asks for more than was agreed with {request.organization}: negotiate it anew"
            review = decision.obligations.review
            if review is not None and (
                terms.review.quorum < (review.quorum or 0)
                or terms.review.min_score < duties.to_score(review.min_score or 0.0)
            ):
                return f"the policy asks for a stricter review than was agreed with {request.organization}"
        return ""

    # -- messages that wait to be delivered ------------------------------------------------------------------------

    def message(self, item: journal.OutboxRow) -> Objection | None:
        """Return why a message that waits may not leave now; None if it may, or is of no kind that is decided on."""
        if item.organization not in self._trust.bundle.members:
            return Objection(f"{item.organization} is no member any more")
        try:
            match item.kind:
                case kinds.AGREEMENT:
                    return self._agreement_message(item)
                case kinds.OFFER:
                    return self._tasks(item, list(TaskOffer.FromString(item.body).tasks), SEND, "synthetic")
                case kinds.RECORDS:
                    records = RecordDelivery.FromString(item.body).records
                    known = {one.task.id: certificate_labels(one.certificate) for one in records}
                    return self._tasks(item, [one.task for one in records], RELEASE, "certified", known)
                case kinds.REVIEWS:
                    delivery = ReviewDelivery.FromString(item.body)
                    review = Review.FromString(open_document(delivery.reviews[0].review, "review").body)
                    return self._review(item, review.agreement_digest)
                case kinds.COMMITMENTS:
                    made, _ = read_commitment(SignedCommitment.FromString(item.body).envelope)
                    return self._review(item, made.agreement_digest)
        except (ComityError, DecodeError) as error:
            return Objection(f"what it says cannot be read any more: {error}")
        return None

    def dropped(self, item: journal.OutboxRow, reason: str) -> audit.AuditEntry:
        """Return the audit entry of a message that is not delivered."""
        return audit.AuditEntry(
            kind="effect",
            action="message.dropped",
            decision="deny",
            peer=item.organization,
            subject=sha256(item.body),
            policy=self._gate.policy.digest,
            detail={"kind": item.kind, "reason": reason[:500]},
        )

    def _agreement_message(self, item: journal.OutboxRow) -> Objection | None:
        agreed = read_terms(item.body)
        if not (reason := self._stopped(agreed.digest)):
            return None
        return Objection(reason, waits=not self._agreements.is_over(agreed.digest))

    def _tasks(
        self, item: journal.OutboxRow, tasks: list[Task], action: str, kind: str,
        known: Mapping[bytes, Labels] | None = None,
    ) -> Objection | None:  # fmt: skip
        digest = tasks[0].agreement_digest if tasks else b""
        agreed = self._agreements.find(digest)
        if agreed is None:
            return Objection(f"there is no agreement {digest.hex()[:12]} here any more")
        if reason := self._stopped(digest):
            return Objection(reason)
        for task in tasks:
            labels = (known or {}).get(task.id)
            reason = self._record_gate.why_not_now(
                agreed, task, item.organization, action=action, kind=kind, known=labels
            )
            if reason:
                return Objection(reason)
        return None

    def _review(self, item: journal.OutboxRow, digest: bytes) -> Objection | None:
        """What stands against a review, or against what commits to one, under the agreement with this digest."""
        agreed = self._agreements.find(digest)
        if agreed is None:
            return Objection(f"there is no agreement {digest.hex()[:12]} here any more")
        if reason := self._stopped(agreed.digest):
            return Objection(reason)
        decision = self._gate.consider(
            Request(
                action="review.send",
                organization=item.organization,
                purpose=agreed.terms.purpose,
                dataset=agreed.terms.dataset,
            )
        )
        return None if decision.allowed else Objection(decision.reason)

    def _stopped(self, digest: bytes) -> str:
        reason = self._agreements.why_stopped(digest)
        return f"agreement {digest.hex()[:12]}: {reason}" if reason else ""

    # -- batches in custody ----------------------------------------------------------------------------------------

    def offer(self, agreed: Agreed, home: str, offer: TaskOffer) -> str:
        """Return why a batch that was taken into custody may not be judged now; "" if it may."""
        if home not in self._trust.bundle.members:
            return f"{home} is no member any more"
        for task in offer.tasks:
            reason = self._record_gate.why_not_now(agreed, task, home, action="record.receive", kind="synthetic")
            if reason:
                return reason
        return ""


def _requests(agreed: Agreed, organization: str) -> list[Request]:
    """What an organization asks its policy before it takes part: to offer to each of the others, or to accept."""
    terms = agreed.terms
    if terms.initiator == organization:
        return [bargain.offer(terms, other) for other in sorted(agreed.reviewers(organization))]
    return [bargain.accept(terms)]
