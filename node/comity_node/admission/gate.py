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
from dataclasses import dataclass
from typing import Final

from comity.envelope import Message, Unsigned, open_message, sign_all, unsigned_message
from comity.errors import PolicyDenied, SignatureInvalid
from comity.trust import Attested, NodeIdentity
from comity_node.admission.gathering import Gathering
from comity_node.policy.engine import Policy
from comity_node.policy.model import Decision, Obligations, Rate, Request
from comity_node.protocol.freshness import Freshness, MessageIds
from comity_node.storage import audit, journal
from comity_node.storage.database import Database

_HIGH_WATER: Final = "freshness.high_water_ms"
#: Messages that share a signature, and calls of `decide` that share a transaction, at most.
_MOST_AT_ONCE: Final = 1024


@dataclass(frozen=True, slots=True)
class Question:
    """What the policy is asked, and what it is about.

    Args:
        request: the question itself.
        subject: SHA-256 of what would cross (a record, a manifest, the terms); empty if there is no such thing.
        agreement: digest of the agreement that it happens under; empty before there is one.
        amount: records that count against the rates of the rules that allow it.
    """

    request: Request
    subject: bytes = b""
    agreement: bytes = b""
    amount: int = 1


@dataclass(frozen=True, slots=True)
class _Call:
    """What one call of `decide` has to have settled: questions, and what the policy of that moment says to each."""

    policy: Policy
    questions: Sequence[Question]
    decisions: Sequence[Decision]
    now_ms: int


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
        if policy.organization != identity.organization:
            raise PolicyDenied(f"the policy is of {policy.organization}, this node of {identity.organization}")
        self.identity = identity
        self.policy = policy
        self.now_ms = now_ms
        self._database = database
        self._freshness = freshness
        self._random_bytes = random_bytes
        self._ids = MessageIds(random_bytes)
        self._signing = Gathering(self._sign, most=_MOST_AT_ONCE)
        self._deciding = Gathering(self._write, most=_MOST_AT_ONCE)
        self._high_water_ms = 0

    async def decide(self, questions: Sequence[Question]) -> list[Decision]:
        """Decide on each question; all decisions are in the audit log, on disk, when this returns.

        A decision is a deny, too, if a rate of its rules is used up; `used_up` tells. Calls that come together share a
        transaction and one step of the log; each is decided as if it had its own.
        """
        policy = self.policy
        decisions = [policy.decide(question.request) for question in questions]
        return await self._deciding.do(_Call(policy, questions, decisions, self.now_ms()))

    async def _write(self, calls: Sequence[_Call]) -> list[list[Decision]]:
        return await self._database.transact(lambda connection: _settle_all(connection, calls))

    async def demand(self, question: Question) -> Decision:
        """Decide on one question and refuse to go on without an allow.

        Raises:
            PolicyDenied: the policy said no; it carries the rules and the reason.
        """
        (decision,) = await self.decide([question])
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
        """
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


def stored_high_water_ms(connection: sqlite3.Connection) -> int:
    """Return the high-water mark that an earlier run left (0 if there was none)."""
    return journal.get_number(connection, _HIGH_WATER)


def used_up(decision: Decision) -> Rate | None:
    """Return the rate for which alone something was denied: later it may be allowed. None for any other decision."""
    return next(iter(decision.obligations.rates), None) if not decision.allowed else None


def _settle_all(connection: sqlite3.Connection, calls: Sequence[_Call]) -> list[list[Decision]]:
    """Settle the decisions of each call, in order, and append them to the log in one step."""
    settled: list[list[Decision]] = []
    log: list[tuple[audit.AuditEntry, int]] = []
    for call in calls:
        final = []
        for question, decision in zip(call.questions, call.decisions, strict=True):
            final.append(_reserve(connection, decision, question.amount, call.now_ms))
            log.append((_entry(question, final[-1], call.policy), call.now_ms))
        settled.append(final)
    audit.append_all(connection, log)
    return settled


def _reserve(connection: sqlite3.Connection, decision: Decision, amount: int, now_ms: int) -> Decision:
    if not decision.allowed:
        return decision
    for rate in decision.obligations.rates:
        if journal.reserved(connection, rate.rule, rate.per_ms, now_ms) + amount > rate.records:
            reason = f"the rate of rule {rate.rule} is used up: {rate.records} records in {rate.per_ms / 1000:g} s"
            return Decision(False, (rate.rule,), reason, Obligations(rates=(rate,)), decision.near_misses)
    for rate in decision.obligations.rates:  # only now: what is denied uses nothing up
        journal.reserve(connection, rate.rule, rate.records, rate.per_ms, amount, now_ms)
    return decision


def _entry(question: Question, decision: Decision, policy: Policy) -> audit.AuditEntry:
    request = question.request
    return audit.AuditEntry(
        kind="decision",
        action=request.action,
        decision="allow" if decision.allowed else "deny",
        rules=decision.rules,
        peer=request.organization,
        subject=question.subject,
        policy=policy.digest,
        agreement=question.agreement,
        detail={
            "purpose": request.purpose,
            "dataset": request.dataset,
            "kind": request.kind,
            "reason": decision.reason,
        },
    )
