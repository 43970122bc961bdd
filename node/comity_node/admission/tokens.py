"""Tokens at the gate: tasks under way that leave for another organization, and that come in from one.

Out, for all tokens of a batch together: the form in which each may leave is made (the obligations of the agreement and
of the rules), the hops are written, the policy decides, and only then the signed hops are given away. In, in the order
of the design: form and size, the last hop's signature by the attested peer and the chain of digests behind it,
freshness, agreement, policy, schema.

Tokens of which all that a policy can ask about is the same are decided on together, by one question and one entry of
the audit log (S8). Its subject is the head of the Merkle tree over the hops of these very tokens, and the same tree is
what is signed (`comity.signed.Batch`): so the entry names each token as exactly as an entry of its own would, and each
hop carries in its signature the path that proves it is one of them. Where a rule counts, asks a person, or tells
somebody, each token has its own question and entry; its subject is the leaf of its hop.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import trio

from comity import merkle
from comity.agreement import Agreed
from comity.envelope import Unsigned
from comity.errors import AgreementError, ComityError, PolicyDenied
from comity.signed import Batch
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1.flow_pb2 import FlowHop
from comity_node.admission.attested import DISTANCE
from comity_node.admission.drafts import Dataset
from comity_node.admission.gate import Gate, Question
from comity_node.admission.token_frame import Frame, Owed, Promises, attests
from comity_node.admission.token_groups import (
    MOST_RULES,
    Denied,
    Group,
    Leaving,
    Ready,
    came_of,
    count_of,
    is_counted,
    key_of,
    refusals,
    retry_after_s,
)
from comity_node.admission.token_hops import KIND, HopReader, Proof, read_hop
from comity_node.policy import obligations as duties
from comity_node.policy.model import Decision, Request
from comity_node.protocol.flow import Flow, check_state, current
from comity_node.protocol.token import HOME, Token, check_token, encode_state
from comity_node.protocol.token_read import fitting, state_of
from comity_node.protocol.token_wire import content_digest
from comity_node.storage import audit

__all__ = ["Denied", "Leaving", "TokenGate"]

#: Characters of the rules that a hop names.
_RULE_CHARS: Final = 1024
#: Tokens that are worked on without a thread: fewer than a change of thread costs.
_FEW: Final = 8
#: How far another organization's clock may be ahead. How old a hop may be that comes in is bounded by the deadline.
_SKEW_MS: Final = 60_000

T = TypeVar("T")


#: Keeps what came of each token that was to leave, in the transaction that has the decisions in the log. One that
#: leaves its home goes without the hops that it came back with: the home keeps them, and vouches for them by its own.
Keep = Callable[[sqlite3.Connection, Sequence[Token | Denied]], None]


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A token that came in and is sound: what the policy is asked, and its last hop."""

    request: Request
    state: Mapping[str, Any]
    proof: Proof


class TokenGate:
    """The token's way through the gate, out and in."""

    def __init__(self, gate: Gate, datasets: Mapping[str, Dataset], trust: TrustStore) -> None:
        """Guard tokens under agreements about `datasets` (by name)."""
        self._gate = gate
        self._datasets = datasets
        self._reader = HopReader(gate.identity, trust, gate.now_ms)
        self._node = str(gate.identity.node)
        self._promises = Promises()
        self._own = trio.CapacityLimiter(1)
        #: One core for each organization at most.
        self._checkers: dict[str, trio.CapacityLimiter] = {}

    @property
    def identity(self) -> NodeIdentity:
        """The node's own identity, which signs the hops."""
        return self._gate.identity

    @property
    def chains(self) -> HopReader:
        """The chains of those who have signed hops."""
        return self._reader

    def _frame(self, agreed: Agreed, flow: Flow) -> Frame:
        return Frame(self._gate, self._datasets, agreed, flow, self._promises)

    # -- out -------------------------------------------------------------------------------------------------------

    async def out(
        self, agreed: Agreed, flow: Flow, to: str, leaving: Sequence[Leaving], keep: Keep
    ) -> list[Token | Denied]:
        """Let tokens of one agreement leave for `to`, each with a signed hop, or refuse them.

        Args:
            agreed: what they run under; in force.
            flow: its steps.
            to: the organization that is to get them.
            leaving: the tokens.
            keep: keeps what came of each in the transaction of the decisions.

        Raises:
            StorageError: nothing was decided.
        """
        while True:
            await self._gate.look()
            policy = self._gate.policy
            frame = self._frame(agreed, flow)
            groups = await self._off_loop(lambda: self._prepare(frame, to, leaving), len(leaving), self._own)  # noqa: B023  (awaited at once)
            out: list[Token | Denied] = []

            def also(connection: sqlite3.Connection, decisions: Sequence[Decision]) -> None:
                out[:] = came_of(groups, decisions, len(leaving), self.identity.organization)  # noqa: B023
                now_ms = self._gate.now_ms()
                audit.append_all(connection, [(one, now_ms) for one in refusals(agreed, to, groups, leaving)])  # noqa: B023
                keep(connection, out)  # noqa: B023

            questions = [question for group in groups for question in group.questions]
            if await self._gate.settle(policy, questions, also) is not None:
                self._know(groups)
                return out

    def _prepare(self, frame: Frame, to: str, leaving: Sequence[Leaving]) -> list[Group]:
        """Group tokens, bring them into form, and write and sign their hops. Nothing of it is given away here."""
        groups: dict[object, Group] = {}
        last: tuple[Request, Group] | None = None
        for place, one in enumerate(leaving):
            state = state_of(one.token.state)
            request = frame.request(to, "record.send", one.role, state, one.token)
            if last is None or request is not last[0]:  # of those that are alike a frame makes one
                key = key_of(request)
                last = request, groups.get(key) or groups.setdefault(key, self._group(frame, request))
            group = last[1]
            if isinstance(group.owed, Denied):
                group.refused[place] = group.owed
                continue
            try:
                group.ready.append(self._shape(frame, to, one, place, state, group.decision, group.owed))
            except ComityError as error:
                group.refused[place] = Denied(str(error), group.decision.rules)
        for group in groups.values():
            self._ask(frame.agreed, group, leaving)
        return list(groups.values())

    def _group(self, frame: Frame, request: Request) -> Group:
        decision = self._gate.consider(request)
        if not decision.allowed:
            return Group(request, decision, Denied(decision.reason, decision.rules))
        try:
            return Group(request, decision, frame.owed(decision, leaves=True))
        except PolicyDenied as error:
            return Group(request, decision, Denied(str(error), decision.rules))

    def _shape(
        self, frame: Frame, to: str, one: Leaving, place: int, state: Mapping[str, Any], decision: Decision, owed: Owed
    ) -> Ready:
        """Bring a token into the form in which it may leave, and write its hop.

        Raises:
            ComityError: there is no such form; says why.
        """
        token = one.token
        if token.home not in (frame.me, to) and not frame.onward:
            raise PolicyDenied("the agreement does not let it go on from one organization to a third (onward)")
        if owed.has_form:
            pseudonym = self._gate.pseudonyms.of(frame.agreed.terms.dataset) if owed.obligations.hash else None
            state = duties.apply(owed.obligations, state, pseudonym=pseudonym)
            check_state(frame.flow, state)
            token = replace(token, state=encode_state(state))
        hop = self._hop(token, to, one.role, decision, frame.now_ms)
        least = owed.obligations.min_distance_to_private
        if least and frame.measure(least, state):
            hop.attested[DISTANCE] = repr(least)
        return Ready(place, token, hop)

    def _hop(self, token: Token, to: str, role: str, decision: Decision, now_ms: int) -> FlowHop:
        previous, before = self._reader.left_with(token.hops[-1]) if token.hops else (b"", b"")
        rules = decision.rules[:MOST_RULES]
        return FlowHop(
            task_id=token.task_id,
            agreement=token.agreement,
            home=token.home,
            home_peer=token.home_peer,
            attempt=token.attempt,
            sequence=token.sequence,
            previous=previous,
            node=self._node,
            to_organization=to,
            role=role,
            before=before,
            after=content_digest(token),
            rules=rules if sum(map(len, rules)) <= _RULE_CHARS else rules[:1],
            policy_digest=self._gate.policy.digest,
            at_ms=now_ms,
            deadline_ms=token.deadline_ms,
        )

    def _ask(self, agreed: Agreed, group: Group, leaving: Sequence[Leaving]) -> None:
        """Sign a group's hops, and write the questions about it, whose subjects name its tokens."""
        if not group.decision.allowed:
            places = sorted(group.refused)
            head = merkle.root_of([content_digest(leaving[place].token) for place in places])
            group.questions.append(Question(group.request, head, agreed.digest, note=count_of(len(places))))
        elif group.ready:
            batch = Batch([Unsigned(KIND, one.hop.SerializeToString()) for one in group.ready])
            group.envelopes = batch.sign(self.identity.key)
            many = len(group.ready)
            if is_counted(group.decision.obligations):
                group.questions += [Question(group.request, batch.leaf(at), agreed.digest) for at in range(many)]
            else:
                group.questions.append(Question(group.request, batch.head, agreed.digest, note=count_of(many)))

    def _know(self, groups: Sequence[Group]) -> None:
        """Know the own hops when they come back: who else could have signed them."""
        for group in groups:
            for ready, envelope in zip(group.ready, group.envelopes, strict=True):
                self._reader.signed(envelope, ready.hop)

    def why_not_now(self, agreed: Agreed, flow: Flow, token: Token, to: str, role: str) -> str:
        """Return why the policy of now does not let a token leave that an earlier one has let pass; "" if it does.

        Nothing is counted and nothing is written down: that was done when it passed.
        """
        try:
            frame = self._frame(agreed, flow)
            state = state_of(token.state)
            decision = self._gate.consider(frame.request(to, "record.send", role, state, token))
            if not decision.allowed:
                return decision.reason
            owed = frame.owed(decision, leaves=True)
            if owed.has_form:
                duties.verify(owed.obligations, state)
            least = owed.obligations.min_distance_to_private
            if least and frame.measure(least, state) and not attests(read_hop(token.hops[-1]), least):
                return "it was not measured how far it is from private rows"
        except ComityError as error:
            return str(error)
        return ""

    # -- in --------------------------------------------------------------------------------------------------------

    async def arrive(
        self, agreed: Agreed, flow: Flow, sender: Attested, tokens: Sequence[Token]
    ) -> list[Denied | None]:
        """Let tokens of one agreement in, or refuse them: steps 1 and 3 to 7 of the way in, for each.

        Args:
            agreed: what they run under; in force.
            flow: its steps.
            sender: who brought them, attested by the link.
            tokens: as they came; the chains that came with them are learned (`chains`).

        Raises:
            StorageError: nothing was decided.
        """
        frame = self._frame(agreed, flow)
        limiter = self._checkers.setdefault(sender.organization, trio.CapacityLimiter(1))
        checked = await self._off_loop(
            lambda: [self._check(frame, sender, token) for token in tokens], len(tokens), limiter
        )
        out: list[Denied | None] = [one if isinstance(one, Denied) else None for one in checked]
        groups: dict[object, list[tuple[int, _Arrived]]] = {}
        keys: dict[int, object] = {}
        for place, one in enumerate(checked):
            if isinstance(one, _Arrived):
                key = keys.get(id(one.request)) or keys.setdefault(id(one.request), key_of(one.request))
                groups.setdefault((key, one.proof.head), []).append((place, one))
        await self._gate.look()
        asked = [about for members in groups.values() for about in self._ask_in(agreed, members)]
        if not asked:
            return out
        decisions = await self._gate.decide([question for question, _ in asked])
        for decision, (_, members) in zip(decisions, asked, strict=True):
            for place, denied in _judge(frame, members, decision):
                out[place] = denied
        return out

    def _ask_in(
        self, agreed: Agreed, members: Sequence[tuple[int, _Arrived]]
    ) -> list[tuple[Question, Sequence[tuple[int, _Arrived]]]]:
        """Return the questions about tokens of one request and one sender's batch, each with those it is about."""
        first = members[0][1]
        if is_counted(self._gate.consider(first.request).obligations):
            return [(Question(one.request, one.proof.leaf, agreed.digest), [(at, one)]) for at, one in members]
        note: dict[str, Any] = count_of(len(members))
        if len(members) < first.proof.size:  # not all of what the sender signed together
            note["places"] = [one.proof.place for _, one in members]
        return [(Question(first.request, first.proof.head, agreed.digest, note=note), members)]

    def _check(self, frame: Frame, sender: Attested, token: Token) -> _Arrived | Denied:
        try:
            return self._check_one(frame, sender, token)
        except ComityError as error:
            return Denied(str(error))

    def _check_one(self, frame: Frame, sender: Attested, token: Token) -> _Arrived:
        """Check all of a token that needs no policy.

        Raises:
            ComityError: something of it does not hold; says what.
        """
        check_token(token)
        proof = self._reader.check(token, sender)
        hop = proof.hop
        if hop.at_ms > frame.now_ms + _SKEW_MS:
            raise AgreementError("the last hop of the token is dated in the future: compare the clocks")
        if token.deadline_ms <= frame.now_ms:
            raise AgreementError("the deadline of the task is over")
        if token.home != frame.me and token.deadline_ms > frame.latest_ms + _SKEW_MS:
            raise AgreementError("the deadline of the task is later than its agreement lets it be")
        if token.agreement != frame.agreed.digest:
            raise AgreementError("the token is of another agreement")
        frame.check_parties(sender.organization, token.home)
        cursor, state = fitting(frame.flow, token, over=token.outcome.over)
        if hop.role != HOME:
            step = current(frame.flow, cursor)
            if step.skill != hop.role or not step.at.allows(frame.me, token.home) or token.outcome:
                raise AgreementError(f"the token is here for {hop.role[:64]!r}, which is not its next step here")
        elif token.home != frame.me:
            raise AgreementError("the token was sent home, and this is not its home")
        request = frame.request(sender.organization, "record.receive", hop.role, state, token, hop)
        return _Arrived(request, state, proof)

    async def _off_loop(self, work: Callable[[], T], many: int, limiter: trio.CapacityLimiter) -> T:
        if many <= _FEW:
            return work()
        return await trio.to_thread.run_sync(work, limiter=limiter)


def _judge(
    frame: Frame, members: Sequence[tuple[int, _Arrived]], decision: Decision
) -> list[tuple[int, Denied | None]]:
    """Return what becomes of arrived tokens that were decided on together, by their places."""
    if not decision.allowed:
        told = PolicyDenied(decision.reason, rules=decision.rules).told
        denied = Denied(told, decision.rules, retry_after_s(decision))
        return [(place, denied) for place, _ in members]
    try:
        owed = frame.owed(decision, leaves=False)
    except PolicyDenied as error:
        return [(place, Denied(error.told, decision.rules)) for place, _ in members]
    return [(place, _misfit(frame, one, owed, decision)) for place, one in members]


def _misfit(frame: Frame, arrived: _Arrived, owed: Owed, decision: Decision) -> Denied | None:
    try:
        if owed.has_form:
            duties.verify(owed.obligations, arrived.state)
        least, hop = owed.obligations.min_distance_to_private, arrived.proof.hop
        if least and frame.is_row(arrived.state) and not attests(hop, least):
            raise PolicyDenied(f"{hop.node} does not attest a distance of {least:g} to private rows")
    except PolicyDenied as error:
        return Denied(error.told, decision.rules)
    return None
