"""Negotiation over messages: proposes what this organization submits, until everybody has signed or it has failed.

Where a negotiation stands is written down before a question leaves, so that after a restart it goes on with the same
terms, and who was asked before gives the same answer (`protocol.negotiation`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial

import trio
from google.protobuf.message import DecodeError

from comity import draw
from comity.agreement import Agreed, check_signature, conclude, parse_terms, sign_terms
from comity.digest import sha256
from comity.errors import (
    AgreementError,
    ApprovalPending,
    ComityError,
    EnvelopeError,
    LinkError,
    OwnCertificateExpired,
    PolicyDenied,
    StorageError,
    StorageFull,
)
from comity.trust import NodeIdentity, TrustStore
from comity.v1.agreement_pb2 import AgreementSignature, Proposal, ProposalAnswer, Terms
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate, Question
from comity_node.policy import obligations as duties
from comity_node.policy.model import Decision, Obligations
from comity_node.protocol.negotiation import (
    Answer,
    Ask,
    Concluded,
    Countered,
    Failed,
    Negotiation,
    Patience,
    Phase,
    Ready,
    Rejected,
    Revision,
    Signed,
    Unheard,
    Waiting,
)
from comity_node.runtime import bargain
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.messenger import Messenger
from comity_node.runtime.negotiating import MAX_REASON, Drive, Step
from comity_node.runtime.patience import patiently
from comity_node.runtime.workflow import WorkflowSpec
from comity_node.storage import negotiations
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

PROPOSAL = "proposal"
_MAX_RULES = 16
#: Seconds to wait for one answer, and between looks whether an own person has approved.
_ASK_S = 12.0
_APPROVAL_S = 1.0
#: Why somebody is offered nothing new.
_SUSPENDED = "it has contradicted itself and is suspended here: comity audit evidence"


class Negotiator:
    """The initiator's side of the negotiations of one node."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, messenger: Messenger, agreements: Agreements,
        database: Database, datasets: Mapping[str, str], patience: Patience | None = None,
        suspended: Callable[[], Collection[str]] = tuple,
    ) -> None:  # fmt: skip
        """Negotiate in the name of `identity`.

        Args:
            identity: the own node's.
            trust: the consortium.
            gate: for the own policy.
            messenger: brings proposals.
            agreements: of this node.
            database: keeps how far a negotiation has come.
            datasets: those that this node can work with, and their labels.
            patience: how long others are waited for.
            suspended: who is offered nothing new now (`suspensions.Suspensions.now`).
        """
        self._identity = identity
        self._me = identity.organization
        self._trust = trust
        self._gate = gate
        self._messenger = messenger
        self._agreements = agreements
        self._database = database
        self._datasets = datasets
        self._patience = patience or Patience()
        self._suspended = suspended

    async def negotiate(
        self, spec: WorkflowSpec, workflow_id: str, gather: Callable[[], Awaitable[Sequence[str]]], step: Step
    ) -> Agreed:
        """Negotiate a workflow and return the agreement that everybody signed; it is on disk.

        Args:
            spec: what is wanted.
            workflow_id: whose negotiation it is: one that was interrupted goes on.
            gather: finds whom to ask, if it has not begun yet.
            step: hears how it goes.

        Raises:
            AgreementError: too few would take part, or no common terms were found.
            PolicyDenied: this organization's own policy does not let it offer this.
        """
        if spec.dataset not in self._datasets:
            raise AgreementError(f"this node has no dataset {spec.dataset!r}; name it in node.yaml")
        row = await self._database.read(lambda c: negotiations.get_negotiation(c, workflow_id))
        if row is None:
            others = await self._without_suspended(await gather(), spec.numbers["minimum_participants"] - 1, step)
            row = await self._begin(spec, workflow_id, others, step)
        bounds = spec.bounds(self._datasets[spec.dataset])
        minimum = spec.numbers["minimum_participants"] - 1
        machine = Negotiation(
            row.terms,
            row.participants,
            minimum,
            partial(self._revise, bounds),
            row.ends_ms,
            self._patience,
            self._bind,
        )
        last = await Drive(
            machine, row, step, me=self._me, ask=self.ask, save=self.save, now_ms=self._gate.now_ms
        ).to_the_end()
        if isinstance(last, Failed):
            await step(self._me, "failed", last.reason)
            raise AgreementError(last.reason)
        return await self._conclude(last, step)

    async def _without_suspended(self, others: Sequence[str], minimum: int, step: Step) -> Sequence[str]:
        """Leave out who is suspended: terms that name them would be refused by whoever knows of it.

        Raises:
            AgreementError: too few are left.
        """
        suspended = self._suspended()
        gone = [each for each in others if each in suspended]
        left = [each for each in others if each not in suspended]
        for each in gone:
            await step(each, "left out", _SUSPENDED)
        if gone and len(left) < minimum:
            raise AgreementError(
                f"{len(left)} of at least {minimum} others would take part ({', '.join(gone)}: {_SUSPENDED})"
            )
        return left

    async def _begin(
        self, spec: WorkflowSpec, workflow_id: str, others: Sequence[str], step: Step
    ) -> negotiations.NegotiationRow:
        terms = await self._first_terms(spec, workflow_id, others, step)
        ends_ms = bargain.lasting(spec.numbers["negotiation_seconds"], self._gate.now_ms(), terms.expires_ms)
        data, names = terms.SerializeToString(), tuple(sorted(others))
        return negotiations.NegotiationRow(workflow_id, terms.id, Phase.PROPOSING.value, 0, data, names, ends_ms)

    async def _first_terms(self, spec: WorkflowSpec, agreement_id: str, others: Sequence[str], step: Step) -> Terms:
        """Return the terms that the own policy lets this organization offer to everybody, once a person has approved.

        The times count from when they are proposed, not from when a person was asked.
        """
        make = partial(
            spec.first_terms,
            agreement_id=agreement_id,
            consortium=self._trust.bundle.consortium,
            epoch=self._trust.bundle.epoch,
            initiator=self._me,
            others=others,
        )
        asked = make(obligations=duties.to_terms(Obligations()), now_ms=self._gate.now_ms())
        subject = sha256(agreement_id.encode() + spec.digest)  # what a person approves is good for this submission
        questions = [Question(bargain.offer(asked, organization), subject) for organization in others]
        decisions = await self._allowed(questions, step)
        owed = duties.merge_all(decision.obligations for decision in decisions)
        terms = make(obligations=duties.to_terms(owed), now_ms=self._gate.now_ms())
        bargain.tighten(terms, owed)
        if wrong := spec.bounds(self._datasets[spec.dataset]).exceeded_by(terms):
            raise AgreementError(f"the own policy asks for more than the workflow's limits allow: {wrong}")
        return parse_terms(terms.SerializeToString()).terms

    async def _allowed(self, questions: Sequence[Question], step: Step) -> list[Decision]:
        """Ask the own policy, and wait for a person where it wants one to approve.

        Raises:
            PolicyDenied: it says no, or the person does, or nobody has decided in time.
        """
        decisions: dict[str, Decision] = {}
        told: set[str] = set()
        while len(decisions) < len(questions):
            changed, ends_ms = self._gate.approvals.changed, 0
            for question in questions:
                whom = question.request.organization
                if whom in decisions:
                    continue
                try:
                    decisions[whom] = await self._gate.demand(question)
                except ApprovalPending as pending:
                    ends_ms = max(ends_ms, pending.deadline_ms)
                    if pending.approval not in told:
                        told.add(pending.approval)
                        how = f"comity approvals approve {pending.approval}"
                        await step(self._me, "waiting", f"for approval here: {how}")
                except StorageFull as error:
                    log.error("what is to be offered waits: %s", error.diagnostics())  # noqa: TRY400  (no bug)
            if len(decisions) < len(questions):
                with trio.move_on_after(max(0.0, (ends_ms - self._gate.now_ms()) / 1000) + _APPROVAL_S):
                    await changed.wait()
        return list(decisions.values())

    def _revise(
        self, bounds: bargain.Bounds, terms: bytes, counters: Mapping[str, bytes], stay: tuple[str, ...], spent: bool
    ) -> Revision:
        return bargain.revise(terms, counters, stay, bounds, self._gate.new_id().hex() if spent else "")

    def _bind(self, terms: bytes, commitments: Mapping[str, bytes]) -> bytes:
        """Put into the terms what binds everybody to what it adds to draws, if panels are drawn."""
        read = Terms.FromString(terms)
        if not read.review.panel:
            return terms
        return draw.bound(read, {**commitments, self._me: draw.own_commitment(self._identity.key, read)})

    async def save(self, row: negotiations.NegotiationRow) -> None:
        """Write down where a negotiation stands."""
        await patiently(
            lambda: self._database.transact(lambda c: negotiations.save_negotiation(c, row)),
            f"the negotiation of {row.workflow_id}",
        )

    async def ask(self, question: Ask) -> Answer:
        """Ask one organization, and check what it answers."""
        body = Proposal(terms=question.terms, sign=question.sign).SerializeToString()
        try:
            if reason := await self._objection(question):
                return Rejected(reason[:MAX_REASON])
            receipt = await self._messenger.ask(question.organization, PROPOSAL, body, deadline_s=_ASK_S)
            if receipt.status == Receipt.STATUS_BUSY:
                return Unheard(receipt.reason)
            if receipt.status != Receipt.STATUS_ACCEPTED:
                return Rejected((receipt.reason or receipt.code)[:MAX_REASON], tuple(receipt.rules))
            return self._read_answer(question, ProposalAnswer.FromString(receipt.body))
        except (LinkError, EnvelopeError) as error:  # stale, as after a restart, or garbled: it is asked again
            return Unheard(str(error))
        except (StorageError, OwnCertificateExpired) as error:  # this node's own trouble, not the other's
            return Unheard(str(error))
        except (ComityError, DecodeError) as error:
            return Rejected(f"its answer does not verify: {error}"[:MAX_REASON])

    async def _objection(self, question: Ask) -> str:
        """Return why these terms are not offered now, by the policy or since the other side lied; "" if they are.

        An amendment of what runs is offered to everybody who takes part in that.
        """
        terms = Terms.FromString(question.terms)
        if not terms.replaces and question.organization in self._suspended():
            return _SUSPENDED
        request = bargain.offer(terms, question.organization)
        if self._gate.consider(request).allowed:
            return ""
        try:
            await self._gate.demand(Question(request, sha256(question.terms)))
        except PolicyDenied as error:
            return f"this organization's own policy does not let it offer these terms: {error.reason}"
        return ""

    def _read_answer(self, question: Ask, answer: ProposalAnswer) -> Answer:
        match answer.WhichOneof("answer"):
            case "ready":
                commitment = answer.ready.draw_commitment
                if len(commitment) != (draw.NONCE_BYTES if parse_terms(question.terms).terms.review.panel else 0):
                    return Rejected("it is not bound to what it adds to the draw of panels")
                return Ready(commitment)
            case "waiting":
                return Waiting(answer.waiting.until_ms, answer.waiting.reason[:MAX_REASON])
            case "accept":
                signature = AgreementSignature(
                    organization=question.organization, envelope=answer.accept, chain=answer.chain
                )
                # Good now, and at the time that whoever reads the agreement later goes by.
                check_signature(signature, question.terms, self._trust, self._gate.now_ms())
                dates = parse_terms(question.terms).terms
                check_signature(signature, question.terms, self._trust, dates.issued_ms, until_ms=dates.expires_ms)
                draw.check_added(dates, question.organization, answer.draw)
                return Signed(answer.accept, tuple(answer.chain), answer.draw)
            case "counter":
                bargain.check_counter(parse_terms(question.terms).terms, parse_terms(answer.counter).terms)
                return Countered(answer.counter)
        return Rejected((answer.reject.reason or "rejected")[:MAX_REASON], tuple(answer.reject.rules[:_MAX_RULES]))

    async def _conclude(self, end: Concluded, step: Step) -> Agreed:
        """Sign last, and write the agreement down: from that moment it is concluded.

        Raises:
            AgreementError: much may have changed since it was proposed, and it may not be signed now.
        """
        agreed = parse_terms(end.terms)
        old, now_ms = agreed.terms.replaces, self._gate.now_ms()
        if old and self._agreements.is_over(old):
            raise AgreementError(f"agreement {old.hex()[:12]}, whose place it would take, is over")
        is_amended = await self._database.read(lambda c: negotiations.is_amended(c, old, now_ms))
        if old and is_amended:
            raise AgreementError("an amendment of another participant is signed already and may still be concluded")
        if reason := self._agreements.judge(agreed):
            raise AgreementError(f"it is not signed: {reason}")
        if not old and (liars := (agreed.participants - {self._me}) & set(self._suspended())):
            raise AgreementError(f"it is not signed: {', '.join(sorted(liars))}: {_SUSPENDED}")
        signatures = [sign_terms(self._identity, end.terms)]
        for organization, signed in end.signatures.items():
            signatures.append(
                AgreementSignature(
                    organization=organization, envelope=signed.envelope, chain=signed.chain, draw=signed.draw
                )
            )
        data = conclude(end.terms, signatures)
        agreed = await patiently(lambda: self._agreements.add(data), "an agreement that all have signed")
        await step(self._me, "concluded", f"signed by {len(signatures)} organizations")
        return agreed
