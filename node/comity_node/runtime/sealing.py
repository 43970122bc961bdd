"""The home's side of scores that are committed to first: gathers commitments, fixes the set, checks what is shown.

The set is fixed once, as soon as a quorum and f more have committed, or as soon as a quorum has and nobody else is
waited for any more. Who commits later is refused: by then scores may be known.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace

import trio

from comity.agreement import Agreed
from comity.certificate import CheckedReview, check_moment, signing_window
from comity.commitment import Checked, check_commitment, check_opened, check_set, set_digest
from comity.digest import sha256
from comity.errors import AgreementError, AgreementStopped, Busy, CertificateInvalid, UnexpectedMessage
from comity.evidence import make_evidence
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1.task_pb2 import CommitmentSet, Receipt, SignedCommitment
from comity_node.admission import Gate, Question
from comity_node.policy.model import Request
from comity_node.runtime import batches
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.assignments import OVER
from comity_node.runtime.kinds import COMMITMENT_SET, COMMITMENTS
from comity_node.runtime.messenger import Handler, accepted
from comity_node.runtime.outbox import Outbox
from comity_node.runtime.suspensions import Suspensions
from comity_node.storage import commitments, journal
from comity_node.storage.database import Database

log = logging.getLogger(__name__)


class Sealing:
    """Takes the commitments to scores of one organization's records, and shows them to those who have committed."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, agreements: Agreements, database: Database,
        outbox: Outbox, suspensions: Suspensions, news: Callable[[bytes], None],
    ) -> None:  # fmt: skip
        """Gather for `identity`'s organization; `news` hears of each batch that has a new commitment."""
        self._me = identity.organization
        self._trust = trust
        self._gate = gate
        self._agreements = agreements
        self._database = database
        self._outbox = outbox
        self._suspensions = suspensions
        self._news = news
        self.handlers: dict[str, Handler] = {COMMITMENTS: self._on_commitment}

    # -- gathering -------------------------------------------------------------------------------------------------

    async def _on_commitment(self, sender: Attested, body: bytes) -> Receipt:
        signed = SignedCommitment.FromString(body)
        checked = await trio.to_thread.run_sync(
            lambda: check_commitment(signed.envelope, signed.chain, self._trust)
        )  # fmt: skip
        made = checked.commitment
        try:
            agreed = self._agreements.get(made.agreement_digest)
        except AgreementStopped:
            raise
        except AgreementError as error:  # a commitment must not be lost because the home has just started
            raise Busy(str(error), retry_after_ms=1_000) from error
        await batches.check_own(agreed, self._database, made.batch_id)
        self._check(sender, agreed, checked)
        request = Request(
            action="review.receive",
            organization=sender.organization,
            purpose=agreed.terms.purpose,
            dataset=agreed.terms.dataset,
        )
        await self._gate.demand(Question(request, sha256(body), agreed.digest, len(made.tasks)))
        now_ms = self._gate.now_ms()
        row = commitments.CommitmentRow(
            made.batch_id, made.revision, made.organization, checked.envelope, checked.chain, now_ms
        )
        kept = await self._database.transact(lambda c: self._keep(c, row))
        if kept.envelope != row.envelope:
            await self._contradicts(kept, row)
            raise UnexpectedMessage(f"{sender.organization} has committed to other scores before")
        self._news(made.batch_id)
        return accepted()

    def _check(self, sender: Attested, agreed: Agreed, checked: Checked) -> None:
        """Refuse what no set would take.

        Raises:
            AgreementError, UnexpectedMessage, CertificateInvalid: it is that.
        """
        made, review = checked.commitment, agreed.terms.review
        check_moment(made.at_ms, signing_window(agreed.terms.issued_ms, agreed.terms.expires_ms), "a commitment")
        if not review.commit_reveal:
            raise AgreementError(f"agreement {agreed.digest.hex()[:12]} has nobody commit to scores")
        if checked.organization != sender.organization or made.author != self._me:
            raise UnexpectedMessage(f"{sender.organization} delivered a commitment of or for somebody else")
        if len(made.batch_id) != 16 or checked.organization not in agreed.panel(self._me, made.batch_id):
            raise AgreementError(f"{checked.organization} may not vote on this batch")

    def _keep(self, connection: sqlite3.Connection, row: commitments.CommitmentRow) -> commitments.CommitmentRow:
        known = {
            each.organization: each for each in commitments.list_commitments(connection, row.batch_id, row.revision)
        }
        if row.organization in known:
            return known[row.organization]
        if row.organization not in {
            each.organization for each in journal.list_assignments(connection, row.batch_id, row.revision)
        }:
            raise UnexpectedMessage(f"{row.organization} was not asked about this batch")
        if commitments.fixed_set(connection, row.batch_id, row.revision):
            raise AgreementError("the commitments to this batch are complete: scores may be known by now")
        return commitments.add_commitment(connection, row)

    async def _contradicts(self, kept: commitments.CommitmentRow, other: commitments.CommitmentRow) -> None:
        await self._suspensions.found(make_evidence(kept.envelope, kept.chain, other.envelope, other.chain))

    # -- fixing the set --------------------------------------------------------------------------------------------

    async def close(
        self, agreed: Agreed, batch: bytes, revision: int, assignments: Sequence[journal.AssignmentRow]
    ) -> tuple[frozenset[str], bool]:
        """Fix the set of a batch if it is time, and send it to those who are in it.

        Returns:
            Who has committed, and whether the set is fixed.
        """
        now_ms = self._gate.now_ms()
        rows, fixed = await self._database.read(
            lambda c: (
                commitments.list_commitments(c, batch, revision),
                commitments.fixed_set(c, batch, revision),
            )
        )
        have = frozenset(row.organization for row in rows)
        if fixed or not self._is_complete(agreed, have, assignments, now_ms):
            return have, bool(fixed)
        digests = {row.organization: sha256(row.envelope) for row in rows}
        digest = set_digest(agreed.digest, batch, revision, digests)
        body = CommitmentSet(
            batch_id=batch,
            revision=revision,
            agreement_digest=agreed.digest,
            commitments=[SignedCommitment(envelope=row.envelope, chain=row.chain) for row in rows],
        ).SerializeToString()
        items = [self._item(agreed, batch, revision, organization, body, now_ms) for organization in sorted(have)]
        until_ms = now_ms + agreed.terms.lease_seconds * 1000

        def write(connection: sqlite3.Connection) -> None:
            current = {row.organization for row in commitments.list_commitments(connection, batch, revision)}
            if current != have or not commitments.fix_set(connection, batch, revision, have, digest, now_ms):
                return  # one more came meanwhile: the next look fixes it
            for one in journal.list_assignments(connection, batch, revision):
                if one.organization in have and one.state not in OVER:
                    journal.update_assignment(connection, replace(one, lease_until_ms=until_ms), state=one.state)
            for item in items:
                if not journal.try_enqueue(connection, item):
                    log.warning("the outbox to %s is full: it shows no scores", item.organization)

        await self._database.transact(write)
        for organization in have:
            self._outbox.kick(organization)
        return have, bool(await self._database.read(lambda c: commitments.fixed_set(c, batch, revision)))

    def _is_complete(
        self, agreed: Agreed, have: frozenset[str], assignments: Sequence[journal.AssignmentRow], now_ms: int
    ) -> bool:
        rule = agreed.rule
        if len(have) >= min(rule.quorum + rule.faulty, rule.eligible):
            return True
        waits = [
            one
            for one in assignments
            if one.organization not in have and one.state not in OVER and one.lease_until_ms > now_ms
        ]
        return len(have) >= rule.quorum and not waits

    def _item(
        self, agreed: Agreed, batch: bytes, revision: int, organization: str, body: bytes, now_ms: int
    ) -> journal.OutboxRow:
        return journal.OutboxRow(
            message_id=self._gate.new_id(),
            organization=organization,
            kind=COMMITMENT_SET,
            body=body,
            dedup_key=f"commitments/{batch.hex()}/{revision}/{organization}",
            created_ms=now_ms,
            expires_ms=agreed.terms.expires_ms,
        )

    # -- what is shown ---------------------------------------------------------------------------------------------

    async def check_shown(self, agreed: Agreed, batch: bytes, checked: Sequence[CheckedReview]) -> None:
        """Refuse reviews that are not what their organization has committed to before any score was shown.

        What contradicts the commitment is kept as evidence.

        Raises:
            UnexpectedMessage: they are not.
        """
        if not agreed.terms.review.commit_reveal:
            return
        organization, revision = checked[0].organization, checked[0].review.revision
        rows, fixed = await self._database.read(
            lambda c: (
                commitments.list_commitments(c, batch, revision),
                commitments.fixed_set(c, batch, revision),
            )
        )
        mine = next((row for row in rows if row.organization == organization), None)
        if mine is None or not mine.in_set or not fixed:
            raise UnexpectedMessage(f"{organization} has not committed to scores of this batch in time")
        made = check_set_of(mine, self._trust)
        for one in checked:
            if one.review.commitments != fixed:
                raise UnexpectedMessage(f"{organization} shows scores to another set of commitments")
            try:
                check_opened(one.review, made.commitment)
            except CertificateInvalid as error:
                await self._suspensions.found(make_evidence(one.envelope, one.chain, mine.envelope, mine.chain))
                raise UnexpectedMessage(str(error)) from error


def check_set_of(row: commitments.CommitmentRow, trust: TrustStore) -> Checked:
    """Return a commitment that was checked when it came."""
    return check_commitment(row.envelope, row.chain, trust)


def read_set(
    body: CommitmentSet, agreed: Agreed, author: str, trust: TrustStore
) -> tuple[dict[str, bytes], bytes]:  # fmt: skip
    """Check a set of commitments that a home shows (CPU-bound); returns the digests in it, and its own.

    Raises:
        CertificateInvalid, TrustError, EnvelopeError: it is none that scores may be shown to.
    """
    panel, rule = agreed.panel(author, body.batch_id), agreed.rule
    if len(body.commitments) > rule.eligible:
        raise CertificateInvalid(f"{len(body.commitments)} commitments of {rule.eligible} who may vote")
    window = signing_window(agreed.terms.issued_ms, agreed.terms.expires_ms)
    checked = [check_commitment(one.envelope, one.chain, trust, window=window) for one in body.commitments]
    digests = check_set(
        checked, agreement=agreed.digest, batch=body.batch_id, revision=body.revision, author=author, panel=panel,
        quorum=rule.quorum,
    )  # fmt: skip
    return digests, set_digest(agreed.digest, body.batch_id, body.revision, digests)
