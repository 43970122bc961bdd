"""The agreements that this node takes part in: from the journal, verified once, kept in memory."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from comity.agreement import Agreed, open_agreement
from comity.errors import AgreementError, Busy, ComityError
from comity.trust import TrustStore
from comity_node.protocol.task import FINAL, State
from comity_node.storage import audit, journal
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

_MAX_AGREEMENTS = 1_000
#: That one organization may have initiated and that are in force.
_MAX_OF_ONE = 100
#: How long one that is over is still known, for what is under way.
_LINGER_MS = 3_600_000
_ACTIVE = "active"
_VOID = "void"
_OVER = "over"
_OPEN = tuple(state.value for state in State if state not in FINAL)


@dataclass(frozen=True, slots=True)
class _Kept:
    agreed: Agreed
    raw: bytes


class Agreements:
    """Agreements by digest."""

    def __init__(self, database: Database, trust: TrustStore, organization: str, now_ms: Callable[[], int]) -> None:
        """Keep those of `organization`."""
        self._database = database
        self._trust = trust
        self._organization = organization
        self._now_ms = now_ms
        self._known: dict[bytes, _Kept] = {}

    async def load(self) -> None:
        """Read what an earlier run left.

        One that does not verify any more, because a participant is no member now or has another root, is void: its open
        tasks end undecided, and batches that came in under it are given back unjudged.
        """
        for row in await self._database.read(
            lambda c: journal.list_agreements(c, state=_ACTIVE, limit=_MAX_AGREEMENTS)
        ):
            if row.expires_ms + _LINGER_MS < self._now_ms():
                await self._close(row, _OVER, "the agreement has expired")
                continue
            try:
                self._known[row.digest] = _Kept(open_agreement(row.agreement, self._trust), row.agreement)
            except ComityError as error:
                log.warning("agreement %s is void: %s", row.digest.hex()[:12], error)
                await self._close(row, _VOID, f"the agreement is void: {error}")

    async def _close(self, row: journal.AgreementRow, state: str, reason: str) -> None:
        """End what is open under an agreement that is over."""
        digest = row.digest
        now_ms, reason = self._now_ms(), reason[:500]
        entry = audit.AuditEntry(
            kind="effect", action=f"agreement.{state}", agreement=digest, detail={"reason": reason}
        )

        def write(connection: sqlite3.Connection) -> None:
            audit.append(connection, entry, now_ms)
            journal.set_agreement_state(connection, digest, state)
            for workflow in journal.list_workflows(connection, state="running"):
                if workflow.agreement_digest == digest:
                    journal.update_workflow(connection, workflow.workflow_id, state="done", reason=reason)
            while tasks := journal.list_tasks(connection, agreement_digest=digest, states=_OPEN):
                for task in tasks:
                    ended = replace(task, state=State.UNDECIDED.value, reason=reason, updated_ms=now_ms)
                    journal.update_task(connection, ended, state=task.state, revision=task.revision)
            for offer in journal.held_offers(connection):
                if offer.agreement_digest == digest:
                    journal.finish_offer(connection, offer.digest, b"", now_ms)

        await self._database.transact(write)

    def all(self) -> list[Agreed]:
        """Return all agreements of this node that are in force or were until lately."""
        return [kept.agreed for kept in self._known.values()]

    def find(self, digest: bytes) -> Agreed | None:
        """Return the agreement with this digest, None if it is not (or no more) known."""
        kept = self._known.get(digest)
        return kept.agreed if kept is not None else None

    def get(self, digest: bytes) -> Agreed:
        """Return the agreement with this digest.

        Raises:
            AgreementError: this node takes part in no such agreement.
        """
        return self._find(digest).agreed

    def raw(self, digest: bytes) -> bytes:
        """Return the agreement's bytes, with all signatures.

        Raises:
            AgreementError: this node takes part in no such agreement.
        """
        return self._find(digest).raw

    def _find(self, digest: bytes) -> _Kept:
        try:
            return self._known[digest]
        except KeyError:
            raise AgreementError(f"no agreement {digest.hex()[:12]} here") from None

    def check_room(self, agreed: Agreed) -> None:
        """Refuse terms for which there is no room, or whose id another agreement has.

        Raises:
            AgreementError: the id is taken.
            Busy: this node, or the initiator, has as many agreements in force as it may.
        """
        now_ms = self._now_ms()
        live = [kept.agreed for kept in self._known.values() if kept.agreed.terms.expires_ms > now_ms]
        if any(one.terms.id == agreed.terms.id and one.digest != agreed.digest for one in self.all()):
            raise AgreementError(f"another agreement has the id {agreed.terms.id!r}")
        initiator = agreed.terms.initiator
        if Counter(one.terms.initiator for one in live)[initiator] >= _MAX_OF_ONE and initiator != self._organization:
            raise Busy(f"{initiator} has {_MAX_OF_ONE} agreements in force here", retry_after_ms=60_000)
        if len(live) >= _MAX_AGREEMENTS:
            raise Busy(f"this node has {_MAX_AGREEMENTS} agreements in force", retry_after_ms=60_000)

    async def add(self, data: bytes) -> Agreed:
        """Verify a concluded agreement and keep it; the same one twice is the same as once.

        Raises:
            AgreementError: it does not verify, is over, or this organization does not take part.
            Busy: there is no room.
        """
        agreed = open_agreement(data, self._trust)
        now_ms = self._now_ms()
        agreed.check_active(now_ms)
        if self._organization not in agreed.participants:
            raise AgreementError(f"{self._organization} does not take part in this agreement")
        if agreed.digest in self._known:
            return self._known[agreed.digest].agreed
        self._forget_old(now_ms)
        self.check_room(agreed)
        terms = agreed.terms
        row = journal.AgreementRow(
            digest=agreed.digest,
            agreement=data,
            initiator=terms.initiator,
            purpose=terms.purpose,
            dataset=terms.dataset,
            expires_ms=terms.expires_ms,
            state=_ACTIVE,
            created_ms=now_ms,
        )
        entry = audit.AuditEntry(
            kind="effect",
            action="agreement.concluded",
            peer=terms.initiator,
            subject=agreed.digest,
            agreement=agreed.digest,
            detail={"participants": list(terms.participants), "purpose": terms.purpose, "dataset": terms.dataset},
        )
        await self._database.transact(lambda c: (audit.append(c, entry, now_ms), journal.put_agreement(c, row)))
        self._known[agreed.digest] = _Kept(agreed, data)
        return agreed

    def _forget_old(self, now_ms: int) -> None:
        over = [d for d, kept in self._known.items() if kept.agreed.terms.expires_ms + _LINGER_MS < now_ms]
        for digest in over:
            del self._known[digest]
