"""Negotiation over messages: proposes what this organization submits, answers what others propose.

What a node may accept by itself is policy: an `agreement.accept` rule allows it, and its obligations are the floor.
Terms below the floor get a counter-offer that meets it; never one that is looser than what was proposed.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio
from google.protobuf.message import DecodeError

from comity.agreement import Agreed, check_signature, conclude, parse_terms, sign_terms
from comity.errors import AgreementError, ComityError, LinkError, PolicyDenied
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1.agreement_pb2 import AgreementSignature, Proposal, ProposalAnswer, Refusal, Terms
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate, Question
from comity_node.policy import obligations as duties
from comity_node.policy.model import Obligations, Request
from comity_node.protocol.negotiation import (
    Accepted,
    Answer,
    Concluded,
    Countered,
    Failed,
    Negotiation,
    Propose,
    Rejected,
)
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.messenger import Handler, Messenger, accepted
from comity_node.runtime.workflow import WorkflowSpec, review_terms

log = logging.getLogger(__name__)

PROPOSAL = "proposal"
AGREEMENT = "agreement"
_MAX_REASON = 512
_MAX_RULES = 16

#: Called with (organization, step, detail) for the log that the submitter reads.
Step = Callable[[str, str, str], Awaitable[None]]


class Negotiator:
    """Both sides of the negotiation of one node."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, messenger: Messenger, agreements: Agreements,
        datasets: frozenset[str],
    ) -> None:  # fmt: skip
        """Negotiate in the name of `identity`; `datasets` are those that this node can work with."""
        self._identity = identity
        self._trust = trust
        self._gate = gate
        self._messenger = messenger
        self._agreements = agreements
        self._datasets = datasets
        self.handlers: dict[str, Handler] = {PROPOSAL: self._on_proposal}

    # -- the initiator ---------------------------------------------------------------------------------------------

    async def negotiate(
        self, spec: WorkflowSpec, agreement_id: str, others: Sequence[str], step: Step
    ) -> tuple[Agreed, bytes]:
        """Negotiate `spec` with `others` and return the agreement that everybody signed.

        Raises:
            AgreementError: too few would take part, or no common terms were found.
            PolicyDenied: this organization's own policy does not let it offer this.
        """
        if spec.dataset not in self._datasets:
            raise AgreementError(f"this node has no dataset {spec.dataset!r}; name it in node.yaml")
        terms = await self._first_terms(spec, agreement_id, others)
        minimum = spec.numbers["minimum_participants"] - 1
        machine = Negotiation(terms.SerializeToString(), tuple(sorted(others)), minimum, self._revise)
        events = machine.start(self._gate.now_ms())
        while isinstance(last := events[-1], Propose):
            await step(self._identity.organization, "proposed", _summary(last.terms))
            events = await self._round(machine, last, step)
        if isinstance(last, Failed):
            await step(self._identity.organization, "failed", last.reason)
            raise AgreementError(last.reason)
        return await self._conclude(last, step)

    async def _first_terms(self, spec: WorkflowSpec, agreement_id: str, others: Sequence[str]) -> Terms:
        owed = Obligations()
        for organization in others:
            request = self._request("agreement.offer", organization, spec.purpose, spec.dataset, {})
            decision = await self._gate.demand(Question(request, spec.digest))
            owed = duties.merge(owed, decision.obligations)
        bundle = self._trust.bundle
        terms = spec.first_terms(
            agreement_id=agreement_id,
            consortium=bundle.consortium,
            epoch=bundle.epoch,
            initiator=self._identity.organization,
            others=others,
            obligations=duties.to_terms(owed),
            now_ms=self._gate.now_ms(),
        )
        _tighten_review(terms, owed)
        parse_terms(terms.SerializeToString())
        return terms

    async def _round(self, machine: Negotiation, proposal: Propose, step: Step) -> list[Propose | Concluded | Failed]:
        """Ask everybody, and return the events of the round's end."""
        out: list[Propose | Concluded | Failed] = []

        async def ask(organization: str) -> None:
            answer = await self._ask(organization, proposal.terms)
            await step(organization, _STEP[type(answer)], _detail(answer))
            out.extend(machine.receive(organization, proposal.terms, answer, self._gate.now_ms()))

        async with trio.open_nursery() as nursery:
            for organization in proposal.to:
                nursery.start_soon(ask, organization)
        return out or machine.tick(max(self._gate.now_ms(), machine.deadline_ms))

    async def _ask(self, organization: str, terms: bytes) -> Answer:
        body = Proposal(terms=terms).SerializeToString()
        try:
            receipt = await self._messenger.ask(organization, PROPOSAL, body, deadline_s=15.0)
            if receipt.status != Receipt.STATUS_ACCEPTED:
                return Rejected((receipt.reason or receipt.code)[:_MAX_REASON], tuple(receipt.rules))
            return self._read_answer(organization, terms, ProposalAnswer.FromString(receipt.body))
        except LinkError as error:
            return Rejected(f"no answer: {error}")
        except (ComityError, DecodeError) as error:
            return Rejected(f"its answer does not verify: {error}"[:_MAX_REASON])

    def _read_answer(self, organization: str, terms: bytes, answer: ProposalAnswer) -> Answer:
        which = answer.WhichOneof("answer")
        if which == "accept":
            signature = AgreementSignature(organization=organization, envelope=answer.accept, chain=answer.chain)
            # Good now, and at the time that whoever reads the agreement later goes by.
            check_signature(signature, terms, self._trust, self._gate.now_ms())
            check_signature(signature, terms, self._trust, parse_terms(terms).terms.issued_ms)
            return Accepted(answer.accept, tuple(answer.chain))
        if which == "counter":
            _check_counter(parse_terms(terms).terms, parse_terms(answer.counter).terms)
            return Countered(answer.counter)
        return Rejected((answer.reject.reason or "rejected")[:_MAX_REASON], tuple(answer.reject.rules[:_MAX_RULES]))

    def _revise(self, terms: bytes, counters: Sequence[bytes], stay: tuple[str, ...]) -> bytes:
        """Make the next revision: strictest of all, for those who stay."""
        revised = Terms.FromString(terms)
        revised.revision += 1
        owed = duties.from_terms(revised.obligations)
        quorum, min_score = revised.review.quorum, revised.review.min_score
        for counter in (Terms.FromString(each) for each in counters):
            owed = duties.merge(owed, duties.from_terms(counter.obligations))
            quorum = max(quorum, counter.review.quorum)
            min_score = max(min_score, counter.review.min_score)
            revised.records_per_organization = min(revised.records_per_organization, counter.records_per_organization)
        del revised.participants[:]
        revised.participants.extend(sorted({revised.initiator, *stay}))
        revised.obligations.CopyFrom(duties.to_terms(owed))
        eligible = len(revised.participants) - 1
        revised.review.CopyFrom(review_terms(eligible + 1, min_score, min(quorum, eligible)))
        return revised.SerializeToString()

    async def _conclude(self, end: Concluded, step: Step) -> tuple[Agreed, bytes]:
        signatures = [sign_terms(self._identity, end.terms)]
        for organization, signed in end.signatures.items():
            signatures.append(
                AgreementSignature(organization=organization, envelope=signed.envelope, chain=signed.chain)
            )
        data = conclude(end.terms, signatures)
        agreed = await self._agreements.add(data)
        await step(self._identity.organization, "concluded", f"signed by {len(signatures)} organizations")
        return agreed, data

    # -- the responder ---------------------------------------------------------------------------------------------

    async def _on_proposal(self, sender: Attested, body: bytes) -> Receipt:
        data = Proposal.FromString(body).terms
        agreed = parse_terms(data)
        answer = await self._answer(sender, agreed, data)
        answer.terms_digest = agreed.digest
        return accepted(answer.SerializeToString())

    async def _answer(self, sender: Attested, agreed: Agreed, data: bytes) -> ProposalAnswer:
        terms = agreed.terms
        try:
            self._check_proposal(sender, agreed)
            labels = {
                "records": terms.records_per_organization,
                "min_score": terms.review.min_score / 10_000,
                "quorum": terms.review.quorum,
                "participants": len(terms.participants),
            }
            request = self._request("agreement.accept", sender.organization, terms.purpose, terms.dataset, labels)
            decision = await self._gate.demand(Question(request, agreed.digest))
        except PolicyDenied as error:
            return ProposalAnswer(reject=Refusal(code=error.code, reason=error.reason, rules=error.rules))
        except AgreementError as error:
            return ProposalAnswer(reject=Refusal(code=error.code, reason=str(error)))
        counter = Terms.FromString(data)
        owed = duties.merge(duties.from_terms(terms.obligations), decision.obligations)
        counter.obligations.CopyFrom(duties.to_terms(owed))
        _tighten_review(counter, decision.obligations)
        if _same(terms, counter):
            signature = sign_terms(self._identity, data)
            return ProposalAnswer(accept=signature.envelope, chain=signature.chain)
        log.info("counter-offer to %s for %s", sender.organization, terms.purpose)
        return ProposalAnswer(counter=counter.SerializeToString(), chain=self._identity.chain)

    def _check_proposal(self, sender: Attested, agreed: Agreed) -> None:
        terms, bundle = agreed.terms, self._trust.bundle
        if terms.initiator != sender.organization:
            raise AgreementError(f"{sender.organization} proposes in the name of {terms.initiator}")
        if self._identity.organization not in agreed.participants:
            raise AgreementError(f"{self._identity.organization} is not among the participants")
        if (terms.consortium, terms.bundle_epoch) != (bundle.consortium, bundle.epoch):
            raise AgreementError(f"the terms are of {terms.consortium!r}, epoch {terms.bundle_epoch}")
        if strangers := agreed.participants - set(bundle.members):
            raise AgreementError(f"not in the consortium: {', '.join(sorted(strangers))}")
        if terms.dataset not in self._datasets:
            raise AgreementError(f"{self._identity.organization} has no dataset {terms.dataset!r}")
        agreed.check_active(self._gate.now_ms())
        self._agreements.check_room(agreed)

    def _request(
        self, action: str, organization: str, purpose: str, dataset: str, labels: dict[str, int | float]
    ) -> Request:
        return Request(
            action=action,
            organization=organization,
            purpose=purpose,
            dataset=dataset,
            kind="synthetic",
            labels=labels,
        )


_STEP: dict[type[Answer], str] = {Accepted: "accepted", Countered: "countered", Rejected: "rejected"}


def _tighten_review(terms: Terms, owed: Obligations) -> None:
    if owed.review is None:
        return
    quorum = max(terms.review.quorum, owed.review.quorum or 0)
    min_score = max(terms.review.min_score, duties.to_score(owed.review.min_score or 0.0))
    terms.review.CopyFrom(review_terms(len(terms.participants), min_score, quorum))


def _same(terms: Terms, counter: Terms) -> bool:
    return (
        duties.from_terms(terms.obligations) == duties.from_terms(counter.obligations)
        and terms.review == counter.review
    )


def _check_counter(terms: Terms, counter: Terms) -> None:
    """Refuse a counter-offer that is looser than the proposal or changes what is not up for negotiation."""
    if not duties.covers(duties.from_terms(counter.obligations), duties.from_terms(terms.obligations)):
        raise AgreementError("the counter-offer is looser than the proposal")
    looser = (
        counter.review.quorum < terms.review.quorum
        or counter.review.min_score < terms.review.min_score
        or counter.records_per_organization > terms.records_per_organization
    )
    fixed = ("id", "consortium", "bundle_epoch", "initiator", "purpose", "dataset", "issued_ms", "expires_ms")
    changed = [name for name in fixed if getattr(terms, name) != getattr(counter, name)]
    if looser or changed or list(terms.participants) != list(counter.participants):
        raise AgreementError("the counter-offer is looser than the proposal, or about something else")


def _summary(terms: bytes) -> str:
    read = Terms.FromString(terms)
    quorum = f"quorum {read.review.quorum} of {read.review.eligible}"
    return f"revision {read.revision}: {len(read.participants)} organizations, {quorum}"


def _detail(answer: Answer) -> str:
    if isinstance(answer, Rejected):
        return answer.reason
    if isinstance(answer, Countered):
        wanted = duties.from_terms(Terms.FromString(answer.terms).obligations)
        parts = (
            [f"min_distance_to_private {wanted.min_distance_to_private:g}"] if wanted.min_distance_to_private else []
        )
        parts += [f"generalize {', '.join(sorted(wanted.generalize))}"] if wanted.generalize else []
        parts += [f"redact {', '.join(sorted(wanted.redact))}"] if wanted.redact else []
        return "would sign: " + ("; ".join(parts) or "stricter review")
    return "signed"
