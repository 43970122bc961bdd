"""The gate: asks the policy, writes the audit log, then lets pass.

Nothing crosses an organization's boundary without an allow decision here (S1), and every decision is in the audit log,
on disk, before its effect (S8). A message from a peer passes, in this order, stopping at the first failure:

1. frame limits (protocol.framing), 2. peer attested (links): both before it gets here;
3. the envelope's signature, by the attested peer's own key, 4. audience, freshness and replay (`Gate.open`);
5. agreement, 6. policy (`Gate.demand`), 7. schema: in the handler of its kind, then the journal, then the receipt.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final

from comity.envelope import Message, Unsigned, open_message, sign_all, unsigned_message
from comity.errors import ApprovalPending, OwnCertificateExpired, PolicyDenied, SignatureInvalid
from comity.trust import Attested, NodeIdentity
from comity_node.admission.approvals import Approvals
from comity_node.admission.gathering import Gathering
from comity_node.admission.knowledge import Knowledge
from comity_node.admission.passage import Passage
from comity_node.admission.pseudonyms import Pseudonyms
from comity_node.admission.questions import Question, Waiting
from comity_node.admission.settling import Also, Call, Settled, settle_all
from comity_node.admission.shapes import Shape, Shapes, keep
from comity_node.policy.engine import Policy
from comity_node.policy.model import Decision, Rate, Request
from comity_node.protocol.freshness import Freshness, MessageIds
from comity_node.storage import journal
from comity_node.storage.database import Database

__all__ = ["Gate", "Question", "Waiting", "stored_high_water_ms", "used_up"]

_HIGH_WATER: Final = "freshness.high_water_ms"
#: Messages that share a signature, and calls of `decide` that share a transaction, at most.
_MOST_AT_ONCE: Final = 1024


class Gate:
    """One node's policy enforcement point."""

    def __init__(
        self, *, identity: NodeIdentity, policy: Policy, database: Database, freshness: Freshness,
        now_ms: Callable[[], int], random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        """Make the gate of `identity`'s node; the policy is that organization's own.

        Raises:
            PolicyDenied: the policy speaks for another organization.
        """
        _check_owner(policy, identity)
        self.identity = identity
        self.policy = policy
        self.now_ms = now_ms
        self._database = database
        self._freshness = freshness
        self._random_bytes = random_bytes
        self._ids = MessageIds(random_bytes)
        self._signing = Gathering(self._sign, most=_MOST_AT_ONCE)
        self._deciding = Gathering(self._write, most=_MOST_AT_ONCE)
        self._passage = Passage()
        self._high_water_ms = 0
        self._shapes = Shapes()
        self._knowledge = Knowledge(database)
        self.approvals = Approvals(database, now_ms)
        self.pseudonyms = Pseudonyms(database.path, identity.organization, random_bytes)

    async def replace(self, policy: Policy, note: Callable[[sqlite3.Connection], object] = lambda _: None) -> None:
        """Put another policy in force, once `note` has written that down.

        In the audit log, all that stands before what `note` writes was decided by the old policy, and all that stands
        after it by the new one: decisions that are being written down are finished first, and who asks meanwhile waits.

        Args:
            policy: the new one.
            note: called with the connection of a transaction; if it raises, the old one stays.

        Raises:
            PolicyDenied: it speaks for another organization; the one before stays.
            StorageError: it could not be written down; the one before stays.
        """
        _check_owner(policy, self.identity)
        await self._knowledge.refresh(policy, self.now_ms())
        async with self._passage.alone():
            await self._database.transact(note)
            self.policy = policy

    def asks(self, label: str) -> bool:
        """Whether a rule of the policy asks about a label: then whoever puts a question and knows it says it."""
        return self._knowledge.asks(self.policy, label)

    async def look(self) -> None:
        """Read what `consider` may have to know."""
        await self._knowledge.refresh(self.policy, self.now_ms())

    def consider(self, request: Request) -> Decision:
        """Return what the policy would say now, without asking it: nothing is counted, noted or allowed by this.

        May be called from a thread. An approval that is asked for counts as given.
        """
        policy = self.policy
        return policy.decide(self._knowledge.complete(policy, request, self.now_ms()))

    async def decide(self, questions: Sequence[Question]) -> list[Decision]:
        """Decide on each question; all decisions are in the audit log, on disk, when this returns.

        A decision is a deny, too, if a rate, a quota or a privacy budget of its rules is used up (`used_up` tells of a
        rate), or if a person has to approve it first: then it is a `Waiting`. Calls that come together share a
        transaction and one step of the log; each is decided as if it had its own.

        A decision is one of the policy that is in force when it is written down (see `replace`).
        """
        await self._passage.enter()
        try:
            return await self._decide(self.policy, questions)
        finally:
            self._passage.leave()

    async def settle(self, policy: Policy, questions: Sequence[Question], also: Also) -> list[Decision] | None:
        """Decide by one policy, and do something about the decisions in the transaction that has them in the log.

        Args:
            policy: the one that was in force when the questions were put together.
            questions: what is decided.
            also: called with the transaction's connection and the decisions; what it raises undoes them, too.

        Returns:
            The decisions; None if another policy is in force by now: nothing was decided.
        """
        await self._passage.enter()
        try:
            return await self._decide(policy, questions, also) if policy is self.policy else None
        finally:
            self._passage.leave()

    async def _decide(self, policy: Policy, questions: Sequence[Question], also: Also | None = None) -> list[Decision]:
        await self._knowledge.refresh(policy, self.now_ms())
        now_ms = self.now_ms()
        asked = questions
        if self._knowledge.adds(policy):
            asked = [
                replace_request(each, self._knowledge.complete(policy, each.request, now_ms)) for each in questions
            ]
        decisions = [policy.decide(question.request) for question in asked]
        shapes = [self._shapes.of(question.request) for question in asked]
        return await self._deciding.do(Call(policy, asked, decisions, shapes, now_ms, also))

    async def _write(self, calls: Sequence[Call]) -> list[list[Decision]]:
        new = {shape.digest: shape for call in calls for shape in call.shapes if not shape.settled}

        def write(connection: sqlite3.Connection) -> tuple[Settled, list[Shape]]:
            return settle_all(connection, calls, self._random_bytes), keep(connection, new.values())

        settled, kept = await self._database.transact(write)
        for shape in kept:  # only now: what is not committed is not there
            shape.settled = True
        self.approvals.note_asked(settled.asked, settled.notices)
        return settled.decisions

    async def demand(self, question: Question) -> Decision:
        """Decide on one question and refuse to go on without an allow.

        Raises:
            ApprovalPending: a person has to approve it first; `approvals.changed` is set when one has decided.
            PolicyDenied: the policy said no; it carries the rules and the reason.
        """
        (decision,) = await self.decide([question])
        if isinstance(decision, Waiting):
            raise ApprovalPending(
                decision.reason, rules=decision.rules, approval=decision.approval.hex(),
                deadline_ms=decision.deadline_ms,
            )  # fmt: skip
        if not decision.allowed:
            raise PolicyDenied(decision.reason, rules=decision.rules)
        return decision

    def new_id(self) -> bytes:
        """Return 16 random bytes: the id of a batch, an agreement or an item of a queue."""
        return self._random_bytes(16)

    def message_id(self, audience: str) -> bytes:
        """Return the id of the next message to `audience`; see `protocol.freshness.MessageIds`."""
        return self._ids.next(audience)

    async def seal(
        self, kind: str, body: bytes, *, audience: str, message_id: bytes, in_reply_to: bytes = b""
    ) -> bytes:
        """Sign a message that is good once, for `audience` (a PeerId), for a minute.

        Messages that are sealed in the same moment share a signature, whoever they are for (ADR 0010).

        Raises:
            EnvelopeMalformed: an argument is out of its bounds, or the envelope would be too large.
            SignatureInvalid: `audience` is not the PeerId of an Ed25519 key.
            OwnCertificateExpired: nobody would accept it.
        """
        if self.now_ms() > self.identity.valid_ms[1]:
            raise OwnCertificateExpired("this node's own certificate has expired: it signs nothing")
        unsigned = unsigned_message(
            kind,
            body,
            audience=audience,
            message_id=message_id,
            now_ms=self.now_ms(),
            in_reply_to=in_reply_to,
        )
        return await self._signing.do(unsigned)

    async def _sign(self, messages: Sequence[Unsigned]) -> list[bytes]:
        return sign_all(self.identity.key, messages)

    async def open(self, attested: Attested, payload: bytes, kinds: Collection[str]) -> Message:
        """Open a message that `attested` sent: steps 3 and 4.

        Raises:
            EnvelopeError: malformed, stale, replayed, or addressed to somebody else.
            SignatureInvalid: the signature does not verify, or is not of the peer that sent it.
        """
        message = open_message(payload, kinds)
        if message.signer != attested.public_key:
            raise SignatureInvalid(f"{attested.organization} sent a message that somebody else signed")
        self._freshness.check(message.signer, message.header, self.now_ms(), attested.organization)
        await self._keep_high_water()
        return message

    async def _keep_high_water(self) -> None:
        """Persist how far freshness has got, before anything is done about what it admitted."""
        high_water_ms = self._freshness.high_water_ms()
        if high_water_ms > self._high_water_ms:
            kept_ms = await self._database.transact(lambda c: journal.raise_number(c, _HIGH_WATER, high_water_ms))
            self._high_water_ms = max(self._high_water_ms, kept_ms)


def _check_owner(policy: Policy, identity: NodeIdentity) -> None:
    if policy.organization != identity.organization:
        raise PolicyDenied(f"the policy is of {policy.organization}, this node of {identity.organization}")


def stored_high_water_ms(connection: sqlite3.Connection) -> int:
    """Return the high-water mark that an earlier run left (0 if there was none)."""
    return journal.get_number(connection, _HIGH_WATER)


def used_up(decision: Decision) -> Rate | None:
    """Return the rate for which alone something was denied: later it may be allowed. None for any other decision."""
    return next(iter(decision.obligations.rates), None) if not decision.allowed else None


def replace_request(question: Question, request: Request) -> Question:
    """Return the question with another request; itself if it is the same one."""
    return question if request is question.request else replace(question, request=request)
