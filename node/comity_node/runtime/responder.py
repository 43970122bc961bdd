"""The other side of a negotiation: answers proposals, signs, and finds out what became of what it signed.

What a node may accept by itself is policy: an `agreement.accept` rule allows it, and its obligations are the floor.
Terms below the floor get a counter-offer that meets it; never one that is looser than what was proposed. A signature
is written down before it leaves, and is the only one under its agreement's id (`protocol.negotiation_promise`).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace

import trio
from google.protobuf.message import DecodeError

from comity import draw
from comity.agreement import Agreed, open_agreement, parse_terms, read_terms, sign_terms
from comity.digest import sha256
from comity.errors import AgreementError, ApprovalPending, ComityError, ConfigError, PolicyDenied
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1.agreement_pb2 import (
    AgreementStatusReply,
    AgreementStatusRequest,
    Proposal,
    ProposalAnswer,
    Ready,
    Refusal,
    SignedWithdrawal,
    Terms,
    Waiting,
)
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate, Question
from comity_node.policy import obligations as duties
from comity_node.policy.model import Decision
from comity_node.protocol import negotiation_promise as promises
from comity_node.protocol.flow import parse_flow
from comity_node.protocol.negotiation_promise import Promise, Stage
from comity_node.runtime import bargain
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.messenger import Handler, Messenger, accepted
from comity_node.runtime.negotiator import PROPOSAL
from comity_node.runtime.patience import patiently
from comity_node.runtime.seams import TaskStatus
from comity_node.runtime.stricter import stricter
from comity_node.storage import audit, journal, negotiations
from comity_node.storage.database import Database
from comity_node.storage.negotiations import PromiseRow

log = logging.getLogger(__name__)

STATUS = "agreement-status"
_ASK_S = 15.0
#: Seconds between looks for signatures of which nothing was heard.
_LOOK_EVERY_S = 5.0
_AT_ONCE = 8
#: Questions to people, and contradictions, that are remembered; what was forgotten is asked, or noted, again.
_WAITING = 256
#: How long a promise is kept after its terms have expired, for clocks that are behind.
_LINGER_MS = 3_600_000

#: Takes (from whom, an agreement, withdrawals from it) that came as an answer.
Take = Callable[[str, bytes, list[bytes]], Awaitable[None]]


class Responder:
    """The participant's side of the negotiations of one node."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, messenger: Messenger, agreements: Agreements,
        database: Database, datasets: frozenset[str], take: Take, suspended: Callable[[], frozenset[str]] = frozenset,
    ) -> None:  # fmt: skip
        """Answer in the name of `identity`; `take` gets agreements that were asked for, `suspended` get no new ones."""
        self._identity = identity
        self._me = identity.organization
        self._trust = trust
        self._gate = gate
        self._messenger = messenger
        self._agreements = agreements
        self._database = database
        self._datasets = datasets
        self._take = take
        self._suspended = suspended
        #: By the digests of terms and policy: when people have decided something, and what is waited for.
        self._waiting: dict[tuple[bytes, bytes], tuple[trio.Event, ApprovalPending]] = {}
        #: Contradictions that are in the audit log, by what was signed first: who lies can make any number of them.
        self._noted: set[tuple[str, bytes]] = set()
        self.handlers: dict[str, Handler] = {PROPOSAL: self._on_proposal, STATUS: self._on_status}

    # -- proposals -------------------------------------------------------------------------------------------------

    async def _on_proposal(self, sender: Attested, body: bytes) -> Receipt:
        proposal = Proposal.FromString(body)
        agreed = parse_terms(proposal.terms)
        duties.from_terms(agreed.terms.obligations)  # raises for what no policy can be asked about
        if agreed.terms.flow:
            check_flow(agreed)
        answer = await self._answer(sender, agreed, proposal)
        answer.terms_digest = agreed.digest
        return accepted(answer.SerializeToString())

    async def _answer(self, sender: Attested, agreed: Agreed, proposal: Proposal) -> ProposalAnswer:
        try:
            if agreed.terms.initiator != sender.organization:
                raise AgreementError(f"{sender.organization} proposes in the name of {agreed.terms.initiator}")
            known = await self._database.read(lambda c: negotiations.get_promise(c, agreed.terms.id))
            if known is not None:
                return await self._signed_before(sender, agreed, known)
            await self._check(agreed)
            decision = await self._decide(agreed)
            counter = Terms.FromString(proposal.terms)
            bargain.tighten(counter, decision.obligations)
        except ApprovalPending as pending:
            waiting = Waiting(until_ms=pending.deadline_ms, reason="a person has to approve it")
            return ProposalAnswer(waiting=waiting)
        except PolicyDenied as error:
            wanted = self._instead(agreed.terms)
            if wanted is not None:
                return ProposalAnswer(counter=wanted.SerializeToString(), chain=self._identity.chain)
            return ProposalAnswer(reject=Refusal(code=error.code, reason=error.told, rules=error.rules))
        except AgreementError as error:
            return ProposalAnswer(reject=Refusal(code=error.code, reason=str(error)))
        if not bargain.same(agreed.terms, counter):
            log.info("counter-offer to %s for %s", sender.organization, agreed.terms.purpose)
            return ProposalAnswer(counter=counter.SerializeToString(), chain=self._identity.chain)
        if not proposal.sign:
            return ProposalAnswer(ready=Ready(draw_commitment=draw.own_commitment(self._identity.key, agreed.terms)))
        try:
            return await self._sign(sender, agreed, proposal.terms)
        except AgreementError as error:
            return ProposalAnswer(reject=Refusal(code=error.code, reason=str(error)))

    async def _decide(self, agreed: Agreed) -> Decision:
        """Ask the policy; while a person is waited for, the initiator asks again and again, and the policy is not.

        Raises:
            ApprovalPending: a person has to approve it first.
            PolicyDenied: the policy says no, or the person does.
        """
        key = (agreed.digest, self._gate.policy.digest)
        if (waited := self._waiting.get(key)) is not None:
            changed, pending = waited
            if not changed.is_set() and self._gate.now_ms() < pending.deadline_ms:
                raise pending.with_traceback(None)
            del self._waiting[key]
        changed = self._gate.approvals.changed
        try:
            return await self._gate.demand(Question(bargain.accept(agreed.terms), agreed.digest))
        except ApprovalPending as pending:
            if len(self._waiting) >= _WAITING:
                self._waiting.clear()
            self._waiting[key] = (changed, pending)
            raise

    def _instead(self, terms: Terms) -> Terms | None:
        """Return the terms that the policy would accept instead of those that it refuses; None if there are none."""
        for candidate in stricter(terms, self._gate.policy.document.rules):
            decision = self._gate.consider(bargain.accept(candidate))
            if not decision.allowed:
                continue
            try:
                bargain.tighten(candidate, decision.obligations)
            except AgreementError:  # it asks for more votes than there are reviewers
                continue
            return candidate
        return None

    async def _check(self, agreed: Agreed) -> None:
        """Refuse terms that are not for this organization, this consortium or this time.

        Raises:
            AgreementError: they are not.
            Busy: there is no room for another agreement.
        """
        terms, bundle = agreed.terms, self._trust.bundle
        if self._me not in agreed.participants:
            raise AgreementError(f"{self._me} is not among the participants")
        if terms.consortium != bundle.consortium:
            raise AgreementError(f"the terms are of {terms.consortium!r}, this node of {bundle.consortium!r}")
        # A new epoch does not reach all nodes in one moment: terms of the one before can still be signed.
        if not bundle.epoch - 1 <= terms.bundle_epoch <= bundle.epoch:
            raise AgreementError(
                f"the terms are of epoch {terms.bundle_epoch}; this node's trust bundle is of epoch {bundle.epoch}"
            )
        if strangers := agreed.participants - set(bundle.members):
            raise AgreementError(f"not in the consortium: {', '.join(sorted(strangers))}")
        if terms.dataset not in self._datasets:
            raise AgreementError(f"{self._me} has no dataset {terms.dataset!r}")
        agreed.check_active(self._gate.now_ms())
        self._agreements.check_room(agreed)
        if terms.replaces:
            await self._check_amendment(agreed)
        elif liars := (agreed.participants - {self._me}) & self._suspended():
            raise AgreementError(f"{self._me} enters no new agreement with {', '.join(sorted(liars))} now")

    async def _check_amendment(self, agreed: Agreed) -> None:
        old, now_ms = self._agreements.get(agreed.terms.replaces), self._gate.now_ms()
        old.check_active(now_ms)
        if old.participants != agreed.participants:
            raise AgreementError("an amendment has the participants of the agreement that it replaces, all of them")
        await self._database.read(lambda c: self._check_only_one(c, old.digest, now_ms))

    def _check_only_one(self, connection: sqlite3.Connection, old: bytes, now_ms: int) -> None:
        own = negotiations.list_negotiations(connection)
        if (
            negotiations.is_amended(connection, old, now_ms)
            or self._agreements.is_over(old)
            or any(Terms.FromString(row.terms).replaces == old for row in own)
        ):
            raise AgreementError("another amendment of this agreement is under way and may still be concluded")

    async def _sign(self, sender: Attested, agreed: Agreed, terms: bytes) -> ProposalAnswer:
        """Sign, write it down, and only then give the signature away."""
        draw.check_added(agreed.terms, self._me, draw.own(self._identity.key, agreed.terms))
        signature, now_ms = sign_terms(self._identity, terms), self._gate.now_ms()
        promise = promises.sign(None, agreed.digest, agreed.terms.expires_ms, now_ms)
        row = PromiseRow(
            agreement_id=agreed.terms.id,
            initiator=sender.organization,
            digest=agreed.digest,
            terms=terms,
            envelope=signature.envelope,
            chain=tuple(signature.chain),
            replaces=agreed.terms.replaces,
            stage=promise.stage.value,
            signed_ms=now_ms,
            ends_ms=promise.ends_ms,
            ask_ms=promise.ask_ms,
        )
        entry = audit.AuditEntry(
            kind="effect", action="agreement.signed", peer=sender.organization, subject=agreed.digest
        )

        def write(connection: sqlite3.Connection) -> PromiseRow:
            if row.replaces and negotiations.get_promise(connection, row.agreement_id) is None:
                self._check_only_one(connection, row.replaces, now_ms)  # again: two may have come in the same moment
            if negotiations.put_promise(connection, row, now_ms):
                audit.append(connection, entry, now_ms)
                return row
            known = negotiations.get_promise(connection, row.agreement_id)
            if known is None:
                raise AgreementError("what was signed under this id is gone")
            return known

        return await self._signed_before(sender, agreed, await self._database.transact(write))

    async def _signed_before(self, sender: Attested, agreed: Agreed, known: PromiseRow) -> ProposalAnswer:
        """Answer from what is on disk: the same terms get the same signature, others of the same id get none."""
        try:
            promises.sign(promise_of(known), agreed.digest, known.ends_ms, self._gate.now_ms())
        except AgreementError as error:
            log.warning("%s proposes other terms of an id that it has a signature for", sender.organization)
            await self._note(sender.organization, "agreement.second-terms", agreed.digest, known.digest)
            return ProposalAnswer(reject=Refusal(code=error.code, reason=str(error)))
        added = draw.own(self._identity.key, agreed.terms)
        return ProposalAnswer(accept=known.envelope, chain=known.chain, draw=added)

    async def _note(self, peer: str, action: str, subject: bytes, first: bytes) -> None:
        """Write down that there are other terms of an id than were signed here; once for what was signed."""
        if (action, first) in self._noted:
            return
        if len(self._noted) >= _WAITING:
            self._noted.clear()
        self._noted.add((action, first))
        entry = audit.AuditEntry(
            kind="effect", action=action, peer=peer, subject=subject, detail={"first": first.hex()}
        )
        now_ms = self._gate.now_ms()
        try:
            await self._database.transact(lambda c: audit.append(c, entry, now_ms))
        except BaseException:  # also a cancellation: it is not written down; raised again
            self._noted.discard((action, first))
            raise

    # -- agreements ------------------------------------------------------------------------------------------------

    async def check_promise(self, sender: str, data: bytes) -> None:
        """Refuse an agreement over other terms than this node has signed under its id.

        Raises:
            AgreementError: it is one, and the audit log has both digests now: somebody else had the organization's key
                sign, or another of its nodes has.
        """
        terms = read_terms(data)
        known = await self._database.read(lambda c: negotiations.get_promise(c, terms.terms.id))
        try:
            promises.concluded(promise_of(known) if known else None, terms.digest)
        except AgreementError:
            await trio.to_thread.run_sync(open_agreement, data, self._trust)  # raises for one that nobody signed
            await self._note(sender, "agreement.contradiction", terms.digest, known.digest if known else b"")
            raise

    async def keep_promise(self, agreed: Agreed) -> None:
        """Note that what this node has signed is concluded."""

        def write(connection: sqlite3.Connection) -> None:
            known = negotiations.get_promise(connection, agreed.terms.id)
            if known is not None and (done := promises.concluded(promise_of(known), agreed.digest)) is not None:
                negotiations.save_promise(connection, _with(known, done))

        await self._database.transact(write)

    # -- what became of it -----------------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Ask what became of terms that were signed and of which nothing was heard, until cancelled."""
        task_status.started()
        while True:
            await patiently(self._look, "signatures of which nothing was heard")
            await trio.sleep(_LOOK_EVERY_S)

    async def _look(self) -> None:
        now_ms = self._gate.now_ms()
        await self._database.transact(lambda c: negotiations.forget_promises(c, now_ms - _LINGER_MS))
        due = await self._database.read(lambda c: negotiations.open_promises(c, due_ms=now_ms, limit=_AT_ONCE))
        async with trio.open_nursery() as nursery:
            for row in due:
                nursery.start_soon(self._ask, row)

    async def _ask(self, row: PromiseRow) -> None:
        terms, promise = Terms.FromString(row.terms), promise_of(row)
        others = [name for name in terms.participants if name not in (self._me, terms.initiator)]
        whom = promise.whom(terms.initiator, others)
        try:
            # Written down first: what is asked too early a second time costs little, what is asked for ever does not.
            await self._save(_with(row, promises.asked(promise, self._gate.now_ms())))
            body = AgreementStatusRequest(digest=row.digest).SerializeToString()
            receipt = await self._messenger.ask(whom, STATUS, body, deadline_s=_ASK_S)
            if receipt.status != Receipt.STATUS_ACCEPTED:
                return
            reply = AgreementStatusReply.FromString(receipt.body)
            if reply.outcome == AgreementStatusReply.OUTCOME_CONCLUDED:
                statements = [each.SerializeToString() for each in reply.withdrawals[: len(terms.participants)]]
                await self._take(whom, reply.agreement, statements)
            elif reply.outcome == AgreementStatusReply.OUTCOME_VOID and whom == terms.initiator:
                log.info("%s has given up agreement %s", whom, row.digest.hex()[:12])
                await self._save_released(row)
        except (ComityError, DecodeError) as error:  # it is asked again later, or somebody else is
            log.info("%s does not say what became of agreement %s: %s", whom, row.digest.hex()[:12], error)

    async def _save(self, row: PromiseRow) -> None:
        await self._database.transact(lambda c: negotiations.save_promise(c, row))

    async def _save_released(self, row: PromiseRow) -> None:
        entry = audit.AuditEntry(kind="effect", action="agreement.given-up", peer=row.initiator, subject=row.digest)
        now_ms = self._gate.now_ms()

        def write(connection: sqlite3.Connection) -> None:
            now = negotiations.get_promise(connection, row.agreement_id)
            if now is not None and now.stage == Stage.SIGNED.value:
                audit.append(connection, entry, now_ms)
                negotiations.save_promise(connection, _with(now, promises.given_up(promise_of(now))))

        await self._database.transact(write)

    async def _on_status(self, sender: Attested, body: bytes) -> Receipt:
        """Say what became of terms; the terms themselves only to those who take part.

        Only of its own does a node know that they are void: it signs last, and only what it negotiates at the moment.
        Who has signed terms of another knows nothing of that.
        """
        digest = AgreementStatusRequest.FromString(body).digest

        def look(connection: sqlite3.Connection) -> AgreementStatusReply:  # all at one moment
            if (row := journal.get_agreement(connection, digest)) is not None:
                statements = negotiations.withdrawals_from(connection, digest)
                return AgreementStatusReply(
                    outcome=AgreementStatusReply.OUTCOME_CONCLUDED,
                    agreement=row.agreement,
                    withdrawals=[SignedWithdrawal.FromString(each.statement) for each in statements],
                )
            if negotiations.promise_of(connection, digest) is not None:
                return AgreementStatusReply()
            own = negotiations.list_negotiations(connection)
            is_open = any(sha256(row.terms) == digest for row in own)
            outcome = AgreementStatusReply.OUTCOME_OPEN if is_open else AgreementStatusReply.OUTCOME_VOID
            return AgreementStatusReply(outcome=outcome)

        reply = await self._database.read(look)
        if reply.agreement and sender.organization not in read_terms(reply.agreement).participants:
            reply = AgreementStatusReply()
        return accepted(reply.SerializeToString())


def check_flow(agreed: Agreed) -> None:
    """Refuse terms with steps that are no flow, or that nobody who takes part may do.

    Raises:
        AgreementError: they are.
    """
    try:
        flow = parse_flow(agreed.terms.flow)
    except ConfigError as error:
        raise AgreementError(f"the terms hold no flow: {error}") from error
    for home in sorted(agreed.homes):
        may = frozenset[str]().union(*(flow.skills_at(name, home) for name in agreed.participants))
        if idle := flow.skills - may:
            raise AgreementError(f"nobody may do {', '.join(sorted(idle))} for tasks of {home}")


def promise_of(row: PromiseRow) -> Promise:
    """Return what is known of terms that were signed."""
    return Promise(row.digest, Stage(row.stage), row.ends_ms, row.asks, row.ask_ms)


def _with(row: PromiseRow, promise: Promise) -> PromiseRow:
    return replace(row, stage=promise.stage.value, asks=promise.asks, ask_ms=promise.ask_ms)
