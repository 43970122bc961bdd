"""Agreements for the other nodes of an organization: who has tokens for one that does not know it brings it along.

An agreement is concluded with one node of each participant. It holds every participant's signature, so any node of a
participant can verify it, whoever brings it. What it is good for there: to work on tokens, and nothing else
(`Agreements.shared`). The node that signed goes on to be the one that has the organization's tasks, judges and votes.

Invariants
  S1  the own policy is asked as if the agreement had just been concluded; what it does not carry is kept suspended.
  S7  only who takes part may bring one, a few a second, and one of each organization is verified at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio
from google.protobuf.message import DecodeError

from comity.agreement import Agreed, read_terms
from comity.errors import AgreementError, Busy, ComityError, StorageError, UnexpectedMessage
from comity.trust import Attested
from comity.v1.agreement_pb2 import AgreementStatusReply, AgreementStatusRequest, SignedWithdrawal
from comity.v1.task_pb2 import Receipt
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.kinds import BROUGHT
from comity_node.runtime.messenger import Handler, Messenger, accepted
from comity_node.runtime.pace import Pace, PaceLimits
from comity_node.runtime.patience import patiently
from comity_node.runtime.responder import STATUS
from comity_node.runtime.seams import TaskStatus
from comity_node.storage import negotiations
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

#: Agreements that one organization may bring, each of which costs the signatures of all who take part.
_PACE: Final = PaceLimits(per_second=1.0, burst=16, retry_after_ms=1_000)
_ASK_S: Final = 15.0
#: Seconds between looks whether somebody has withdrawn: a notice of it goes to one node of each organization.
_LOOK_EVERY_S: Final = 60.0


class Take(Protocol):
    """Takes a concluded agreement: `Workflows.take`."""

    async def __call__(self, sender: str, data: bytes, statements: list[bytes], *, brought: bool) -> None:
        """Verify and keep it."""


class Sharing:
    """Brings agreements to other nodes, and takes those that are brought."""

    def __init__(
        self, *, me: str, messenger: Messenger, agreements: Agreements, database: Database, datasets: frozenset[str],
        take: Take, withdrawn: Callable[[bytes], Awaitable[None]], now_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        """Share `agreements` of organization `me`.

        Args:
            me: the own organization.
            messenger: reaches the others.
            agreements: of this node.
            database: has the withdrawals.
            datasets: what this node can work with.
            take: gets agreements that were brought.
            withdrawn: gets withdrawals that were heard of.
            now_ms: the time, in milliseconds since the Unix epoch.
        """
        self._me = me
        self._messenger = messenger
        self._agreements = agreements
        self._database = database
        self._datasets = datasets
        self._take = take
        self._withdrawn = withdrawn
        self._now_ms = now_ms
        self._pace = Pace(_PACE)
        self._verifying: set[str] = set()
        self._looks = 0
        self.handlers: dict[str, Handler] = {BROUGHT: self._on_brought}

    async def bring(self, to: str, peer_id: str, digest: bytes) -> bool:
        """Bring an agreement to a node that does not know it; returns whether it has it now.

        Raises:
            AgreementError: it is not known here.
            LinkError: that node cannot be reached, or takes nothing now.
        """
        data = self._agreements.raw(digest)
        statements = await self._database.read(lambda c: negotiations.withdrawals_from(c, digest))
        body = AgreementStatusReply(
            outcome=AgreementStatusReply.OUTCOME_CONCLUDED,
            agreement=data,
            withdrawals=[SignedWithdrawal.FromString(each.statement) for each in statements],
        ).SerializeToString()
        receipt = await self._messenger.ask(to, BROUGHT, body, deadline_s=_ASK_S, peer_id=peer_id)
        if receipt.status == Receipt.STATUS_BUSY:
            raise Busy(f"{to} takes no agreement now: {receipt.reason}", retry_after_ms=receipt.retry_after_ms)
        if receipt.status != Receipt.STATUS_ACCEPTED:
            log.info("a node of %s does not take agreement %s: %s", to, digest.hex()[:12], receipt.reason)
        return receipt.status == Receipt.STATUS_ACCEPTED

    async def _on_brought(self, sender: Attested, body: bytes) -> Receipt:
        brought, who = AgreementStatusReply.FromString(body), sender.organization
        agreed = read_terms(brought.agreement)
        self._check(who, agreed)
        if len(brought.withdrawals) > len(agreed.participants):
            raise UnexpectedMessage("an agreement has at most one withdrawal of each participant")
        if self._agreements.find(agreed.digest) is not None:
            return accepted()
        if who in self._verifying:
            raise Busy(f"another agreement that {who} brought is being verified", retry_after_ms=100)
        if retry_after_ms := self._pace.take(who, self._now_ms()):
            raise Busy(f"{who} has brought many agreements", retry_after_ms=retry_after_ms)
        self._verifying.add(who)
        try:
            statements = [each.SerializeToString() for each in brought.withdrawals]
            await self._take(who, brought.agreement, statements, brought=True)
        finally:
            self._verifying.discard(who)
        return accepted()

    def _check(self, sender: str, agreed: Agreed) -> None:
        """Refuse what is of no use here before a signature of it is verified.

        Raises:
            AgreementError: it is.
        """
        if sender not in agreed.participants or self._me not in agreed.participants:
            raise AgreementError("only who takes part in an agreement brings it, to others who do")
        if not agreed.terms.flow:
            raise AgreementError("nodes of an organization share agreements with a flow, and no others")
        if agreed.terms.dataset not in self._datasets:
            raise AgreementError(f"this node of {self._me} has no dataset {agreed.terms.dataset!r}")

    # -- withdrawals -----------------------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Ask now and then who has withdrawn from agreements that were brought here, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(_LOOK_EVERY_S)
            await patiently(self.look, "withdrawals from shared agreements")

    async def look(self) -> None:
        """Ask one participant of each agreement that was brought here who has withdrawn from it; another each time."""
        self._looks += 1
        for digest in [each for each in self._agreements.shared if not self._agreements.is_over(each)]:
            agreed = self._agreements.find(digest)
            if agreed is None:
                continue
            others = sorted(agreed.participants - {self._me})
            whom = others[self._looks % len(others)]
            try:
                body = AgreementStatusRequest(digest=digest).SerializeToString()
                receipt = await self._messenger.ask(whom, STATUS, body, deadline_s=_ASK_S)
                reply = AgreementStatusReply.FromString(receipt.body)
                for each in reply.withdrawals[: len(others)]:
                    await self._withdrawn(each.SerializeToString())
            except StorageError:
                raise
            except (ComityError, DecodeError) as error:  # somebody else is asked the next time
                log.info("%s does not say who withdrew from agreement %s: %s", whom, digest.hex()[:12], error)
