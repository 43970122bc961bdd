"""The reviewer's side of scores that are committed to first: seals them, and shows them once it may.

What is sealed is on disk before the commitment leaves, so a restart changes nothing: the same commitment goes out, and
the same scores are shown. They are shown once, to the first set of commitments that is sound and has the own one in it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from comity.agreement import Agreed
from comity.commitment import commit
from comity.digest import sha256
from comity.errors import PolicyDenied, UnexpectedMessage
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1.task_pb2 import CommitmentSet, Receipt, Review, SignedCommitment
from comity_node.admission import Gate
from comity_node.policy.model import Request
from comity_node.runtime.kinds import COMMITMENTS
from comity_node.runtime.messenger import accepted
from comity_node.runtime.outbox import Outbox
from comity_node.runtime.sealing import read_set
from comity_node.storage import commitments, journal
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

_KEY = "commitment/"
#: Shows sealed scores: (agreement, offer, what is sealed, digest of the set).
Show = Callable[[Agreed, journal.OfferRow, commitments.SealedRow, bytes], Awaitable[None]]


class Revealing:
    """Seals the scores of one organization's reviews, and opens them."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, database: Database, outbox: Outbox, show: Show,
    ) -> None:  # fmt: skip
        """Commit in the name of `identity`; `show` sends reviews whose time has come."""
        self._identity = identity
        self._trust = trust
        self._gate = gate
        self._database = database
        self._outbox = outbox
        self._show = show

    async def sealed(self, digest: bytes) -> commitments.SealedRow | None:
        """Return what was committed to for an offer; None if nothing was."""
        return await self._database.read(lambda c: commitments.sealed_review(c, digest))

    async def seal(
        self, item: journal.OfferRow, reviews: list[Review], answer: dict[str, Any], expires_ms: int
    ) -> None:
        """Commit to reviews, which are not signed yet: on disk first, then on its way."""
        now_ms, nonce = self._gate.now_ms(), self._gate.new_id() + self._gate.new_id()
        signed = await trio.to_thread.run_sync(
            lambda: commit(self._identity, reviews, nonce, batch=item.batch_id, at_ms=reviews[0].at_ms)
        )
        row = commitments.SealedRow(item.digest, nonce, answer, signed.envelope, now_ms)
        sealed = await self._database.transact(lambda c: commitments.seal_review(c, row))
        await self.send(item, sealed, expires_ms)

    async def send(self, item: journal.OfferRow, sealed: commitments.SealedRow, expires_ms: int) -> None:
        """Have a commitment sent, once: again if the outbox had no room before, or this node died in between."""
        message = journal.OutboxRow(
            message_id=self._gate.new_id(),
            organization=item.home,
            kind=COMMITMENTS,
            body=SignedCommitment(envelope=sealed.commitment, chain=self._identity.chain).SerializeToString(),
            dedup_key=_KEY + item.digest.hex(),
            created_ms=self._gate.now_ms(),
            expires_ms=expires_ms,
        )
        if not await self._database.transact(lambda c: journal.try_enqueue(c, message)):
            log.warning("the outbox to %s is full: what was committed to waits", item.home)
        self._outbox.kick(item.home)

    def offer_of(self, item: journal.OutboxRow) -> bytes:
        """Return the digest of the offer that a commitment answers."""
        return bytes.fromhex(item.dedup_key.removeprefix(_KEY))

    async def on_set(self, sender: Attested, body: bytes, agreed_of: Callable[[bytes], Agreed]) -> Receipt:
        """Show what is sealed to a sound set that has the own commitment in it.

        Raises:
            UnexpectedMessage: nothing was committed to, or the own commitment is not in the set.
            CertificateInvalid: the set is not sound.
            PolicyDenied: the policy of now does not let the review leave.
        """
        shown = CommitmentSet.FromString(body)
        digest = journal.offer_digest(sender.organization, shown.batch_id, shown.revision)
        item, sealed = await self._database.read(
            lambda c: (journal.get_offer(c, digest), commitments.sealed_review(c, digest))
        )
        if item is not None and item.state != "held":
            return accepted()  # it has shown its scores, or given the batch back
        if item is None or sealed is None:
            raise UnexpectedMessage("nothing was committed to here about this batch")
        agreed = agreed_of(item.agreement_digest)
        if shown.agreement_digest != agreed.digest:
            raise UnexpectedMessage("the commitments are of another agreement than the batch")
        digests, about = await trio.to_thread.run_sync(read_set, shown, agreed, sender.organization, self._trust)
        if digests.get(self._identity.organization) != sha256(sealed.commitment):
            raise UnexpectedMessage("the own commitment is not among these: no score is shown")
        decision = self._gate.consider(
            Request("review.send", sender.organization, purpose=agreed.terms.purpose, dataset=agreed.terms.dataset)
        )
        if not decision.allowed:
            raise PolicyDenied(decision.reason, rules=decision.rules)
        await self._show(agreed, item, sealed, about)
        return accepted()
