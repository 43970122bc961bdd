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

from comity.envelope import Message, open_message, seal
from comity.errors import PolicyDenied, SignatureInvalid
from comity.trust import Attested, NodeIdentity
from comity_node.policy.engine import Policy
from comity_node.policy.model import Decision, Obligations, Rate, Request
from comity_node.protocol.freshness import Freshness
from comity_node.storage import audit, journal
from comity_node.storage.database import Database

_HIGH_WATER = "freshness.high_water_ms"


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
        self._high_water_ms = 0

    async def decide(self, questions: Sequence[Question]) -> list[Decision]:
        """Decide on each question; all decisions are in the audit log when this returns.

        A decision is a deny, too, if a rate of its rules is used up; `used_up` tells.
        """
        policy = self.policy
        now_ms = self.now_ms()
        decisions = [policy.decide(question.request) for question in questions]

        def write(connection: sqlite3.Connection) -> list[Decision]:
            final = []
            for question, decision in zip(questions, decisions, strict=True):
                settled = _reserve(connection, decision, question.amount, now_ms)
                audit.append(connection, _entry(question, settled, policy), now_ms)
                final.append(settled)
            return final

        return await self._database.transact(write)

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
        """Return 16 random bytes: the id of a message, a batch or an agreement."""
        return self._random_bytes(16)

    def seal(self, kind: str, body: bytes, *, audience: str, message_id: bytes, in_reply_to: bytes = b"") -> bytes:
        """Sign a message that is good once, for `audience` (a PeerId), for a minute."""
        return seal(
            self.identity.key,
            kind,
            body,
            audience=audience,
            message_id=message_id,
            now_ms=self.now_ms(),
            in_reply_to=in_reply_to,
        )

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
