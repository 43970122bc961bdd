"""Withdrawing from an agreement: a signed statement of any participant, delivered to all, and nothing passes any more.

What was certified before stays good: the agreement, its certificates and its records verify as before. Who hears of a
withdrawal first from its author tells the others, so that one who tells only some cannot have the rest go on.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable

from comity.agreement import Agreed, Withdrawn, open_withdrawal, parse_terms, read_terms, sign_withdrawal
from comity.digest import sha256
from comity.errors import AgreementError
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.messenger import Handler, accepted
from comity_node.runtime.outbox import Outbox
from comity_node.storage import audit, journal, negotiations
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

NOTICE = "withdrawal-notice"
_STATE = "withdrawn"


class Withdrawals:
    """The statements that ended agreements of this node."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, agreements: Agreements, database: Database,
        outbox: Outbox, on_change: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Withdraw in the name of `identity`'s organization, and take the statements of others."""
        self._identity = identity
        self._me = identity.organization
        self._trust = trust
        self._gate = gate
        self._agreements = agreements
        self._database = database
        self._outbox = outbox
        self._on_change = on_change
        self.handlers: dict[str, Handler] = {NOTICE: self._on_notice}

    async def withdraw(self, digest: bytes, reason: str) -> None:
        """Withdraw from an agreement, or from terms that this node has signed; delivered to all who take part.

        Raises:
            AgreementError: this node takes part in none with this digest, it is over, or the reason is no short line.
        """
        agreed = await self._find(digest)
        agreed.check_active(self._gate.now_ms())
        if await self.settle(agreed):  # which also does what an earlier call could not: the disk was full
            raise AgreementError(f"agreement {digest.hex()[:12]} has been withdrawn from already")
        statement = sign_withdrawal(self._identity, digest, reason, self._gate.now_ms())
        await self._keep(agreed, open_withdrawal(statement, self._trust), statement)

    async def _on_notice(self, sender: Attested, body: bytes) -> Receipt:
        await self.take(body)
        return accepted()

    async def take(self, statement: bytes) -> None:
        """Take a statement of another participant; the same one twice is the same as once.

        Raises:
            AgreementError: it is about no agreement of this node, or not of somebody who takes part.
            TrustError: it does not verify.
        """
        withdrawn = open_withdrawal(statement, self._trust)
        agreed = await self._find(withdrawn.digest)
        if withdrawn.organization not in agreed.participants:
            raise AgreementError(f"{withdrawn.organization} does not take part in the agreement that it withdraws from")
        await self._keep(agreed, withdrawn, statement)

    async def _keep(self, agreed: Agreed, withdrawn: Withdrawn, statement: bytes) -> None:
        """Write a statement down, with what is to be told to whom; then nothing passes under the agreement."""
        now_ms = self._gate.now_ms()
        row = negotiations.WithdrawalRow(
            withdrawn.digest, withdrawn.organization, statement, withdrawn.reason, withdrawn.at_ms, now_ms
        )
        entry = audit.AuditEntry(
            kind="effect",
            action="agreement.withdrawal",
            peer=withdrawn.organization,
            subject=sha256(statement),
            agreement=withdrawn.digest,
            detail={"reason": withdrawn.reason},
        )
        others = sorted(agreed.participants - {self._me, withdrawn.organization})

        def write(connection: sqlite3.Connection) -> None:
            first = not negotiations.withdrawals_from(connection, withdrawn.digest)
            if not negotiations.put_withdrawal(connection, row):
                return
            audit.append(connection, entry, now_ms)
            if first:  # one statement ends it: who withdraws, too, from what is over need not be told to all
                for organization in others:
                    self._tell(connection, agreed, withdrawn, statement, organization)

        await self._database.transact(write)
        for organization in others:
            self._outbox.kick(organization)
        await self.settle(agreed)
        self._on_change()

    def _tell(
        self, connection: sqlite3.Connection, agreed: Agreed, withdrawn: Withdrawn, statement: bytes, organization: str
    ) -> None:
        item = journal.OutboxRow(
            message_id=self._gate.new_id(),
            organization=organization,
            kind=NOTICE,
            body=statement,
            dedup_key=f"withdrawal/{withdrawn.digest.hex()}/{withdrawn.organization}/{organization}",
            created_ms=self._gate.now_ms(),
            expires_ms=agreed.terms.expires_ms,
            priority=2,
        )
        if not journal.try_enqueue(connection, item):
            log.error("the outbox to %s is full: it is told of the withdrawal when this node starts", organization)

    async def settle(self, agreed: Agreed) -> bool:
        """End an agreement that somebody has withdrawn from; returns whether that is so."""
        statements = await self._of(agreed.digest)
        if statements and self._agreements.find(agreed.digest) is not None:
            first = statements[0]
            why = f": {first.reason}" if first.reason else ""
            await self._agreements.end(agreed.digest, _STATE, f"{first.organization} has withdrawn{why}")
        return bool(statements)

    async def load(self) -> None:
        """End what was withdrawn from before the node stopped; before anybody is served."""
        for _, agreed in await self._known():
            await self.settle(agreed)

    async def recover(self) -> None:
        """Tell those whom the outbox had no room for what was withdrawn from before the node stopped."""
        for row, agreed in await self._known():
            withdrawn = Withdrawn(row.agreement_digest, row.organization, row.reason, row.at_ms)
            others = sorted(agreed.participants - {self._me, row.organization})

            def write(connection: sqlite3.Connection) -> None:
                for organization in others:  # noqa: B023  (awaited at once)
                    self._tell(connection, agreed, withdrawn, row.statement, organization)  # noqa: B023

            await self._database.transact(write)

    async def _known(self) -> list[tuple[negotiations.WithdrawalRow, Agreed]]:
        now_ms, known = self._gate.now_ms(), []
        for row in await self._database.read(lambda c: negotiations.withdrawn_from(c, now_ms)):
            try:
                known.append((row, await self._find(row.agreement_digest)))
            except AgreementError as error:  # of another version of this software: then it is in force nowhere here
                log.warning("agreement %s cannot be read: %s", row.agreement_digest.hex()[:12], error)
        return known

    async def _of(self, digest: bytes) -> list[negotiations.WithdrawalRow]:
        return await self._database.read(lambda c: negotiations.withdrawals_from(c, digest))

    async def _find(self, digest: bytes) -> Agreed:
        """Return an agreement in whatever state, or terms that this node has signed or is negotiating.

        Raises:
            AgreementError: there are none.
        """
        if (agreed := self._agreements.find(digest)) is not None:
            return agreed

        def look(connection: sqlite3.Connection) -> Agreed | None:
            if (row := journal.get_agreement(connection, digest)) is not None:
                return read_terms(row.agreement)
            if (promise := negotiations.promise_of(connection, digest)) is not None:
                return parse_terms(promise.terms)
            own = negotiations.list_negotiations(connection)
            return next((parse_terms(one.terms) for one in own if sha256(one.terms) == digest), None)

        if (agreed := await self._database.read(look)) is None:
            raise AgreementError(f"this node takes part in no agreement {digest.hex()[:12]}")
        return agreed
