"""Records at the gate: what is done to them before they leave, and what is checked when they arrive.

Leaving takes two steps. `prepare` makes the one form of the record that everybody will see: the obligations of the
agreement and of every recipient's rules are applied to it (so that all reviewers judge the same bytes), and it is
refused if it lies closer to a private row than they allow. `send` decides for one recipient and signs the hop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import trio

from comity import hops
from comity.agreement import Agreed
from comity.certificate import signing_moment
from comity.digest import canonical_json, sha256
from comity.errors import (
    AgreementError,
    Busy,
    CertificateInvalid,
    ConfigError,
    InvalidRecord,
    KeyFileInvalid,
    PolicyDenied,
    TrustError,
)
from comity.trust import Attested, NodeIdentity
from comity.v1.task_pb2 import Hop, Task
from comity_node.admission import attested
from comity_node.admission.drafts import (
    OF_OTHERS,
    OF_REVIEWS,
    Dataset,
    Draft,
    Fields,
    Refused,
    check_flat,
    check_promised,
    of_batches,
    problem,
    read_fields,
    to_task,
    together,
)
from comity_node.admission.gate import Gate, Question, Waiting
from comity_node.admission.labels import terms_labels
from comity_node.admission.noise import NoiseSource
from comity_node.policy import obligations as duties
from comity_node.policy.conditions import Labels, LabelValue
from comity_node.policy.model import Decision, Obligations, Request
from comity_node.tracing import NULL, Subject, Tracer

__all__ = ["ROLE", "Dataset", "Draft", "RecordGate", "Refused", "read_fields", "to_task"]

#: All records of a batch, so that with their histories they fit into one message.
_MAX_BATCH_BYTES = 2 * 1024 * 1024
ROLE = "validator"
#: How soon a sender asks again whose records wait for a person here.
_PENDING_RETRY_MS = 5_000
_NONE_KNOWN: Mapping[bytes, Labels] = {}


class RecordGate:
    """The record's way through the gate, out and in."""

    def __init__(self, gate: Gate, datasets: Mapping[str, Dataset]) -> None:
        """Guard the records of `datasets` (by name)."""
        self._gate = gate
        self._datasets = datasets
        #: Is told when records leave and come in.
        self.tracer: Tracer = NULL
        #: One core for each organization at most: verifying its records is the work that it can make.
        self._checkers: dict[str, trio.CapacityLimiter] = {}

    @property
    def identity(self) -> NodeIdentity:
        """The node's own identity, which signs the hops."""
        return self._gate.identity

    def dataset(self, name: str) -> Dataset:
        """Return what is known about a dataset.

        Raises:
            AgreementError: this node has no such dataset.
        """
        try:
            return self._datasets[name]
        except KeyError:
            raise AgreementError(f"this node has no dataset {name!r}; name it in node.yaml") from None

    def prepare(self, agreed: Agreed, drafts: Sequence[Draft]) -> list[Draft | Refused]:
        """Give each record the form in which it may leave, with the hop that says how it was made.

        CPU-bound (signs, measures distances): call it off the event loop.
        """
        dataset = self.dataset(agreed.terms.dataset)
        recipients = sorted(agreed.reviewers(self.identity.organization))
        out: list[Draft | Refused] = []
        asked = Obligations()
        for draft in drafts:
            try:
                fields = read_fields(draft.record)
                dataset.schema.check(fields)
                if len(draft.record) > _MAX_BATCH_BYTES // agreed.terms.batch_records:
                    raise InvalidRecord(f"{len(draft.record)} bytes: a batch of such records fits into no message")
            except InvalidRecord as error:
                out.append(Refused(draft.task_id, "schema", (), str(error)))
                continue
            decisions = [
                self._gate.consider(self._request(agreed, to, "record.send", fields, record=draft.record))
                for to in recipients
            ]
            owed = duties.from_terms(agreed.terms.obligations)
            for decision in decisions:
                owed = duties.merge(owed, decision.obligations) if decision.allowed else owed
            asked = duties.merge(asked, owed)
            try:
                out.append(self._shape(agreed, draft, fields, owed, dataset, decisions))
            except (ConfigError, InvalidRecord, KeyFileInvalid, PolicyDenied) as error:
                out.append(Refused(draft.task_id, "obligations", (), str(error)))
        return together(asked, out)

    def _shape(
        self,
        agreed: Agreed,
        draft: Draft,
        made: Fields,
        owed: Obligations,
        dataset: Dataset,
        decisions: list[Decision],
    ) -> Draft | Refused:
        self._check_time(owed)
        noise = NoiseSource()
        pseudonym = self._gate.pseudonyms.of(agreed.terms.dataset) if owed.hash else None
        fields = duties.apply(owed, made, pseudonym=pseudonym, noise=noise.draw)
        if wrong := problem(dataset.schema, owed, fields):
            return Refused(draft.task_id, "schema", (), f"in the form that may leave: {wrong}")
        said: dict[str, str] = {}
        if owed.min_distance_to_private:
            if dataset.private is None:
                return Refused(draft.task_id, "min_distance_to_private", (), "there are no private rows to measure to")
            distance = float(dataset.private.distances([fields])[0])
            if distance < owed.min_distance_to_private:
                rules = sorted({rule for decision in decisions if decision.allowed for rule in decision.rules})
                detail = f"{distance:.3f} from a private row; {owed.min_distance_to_private:g} is the least"
                return Refused(draft.task_id, "min_distance_to_private", tuple(rules) or ("agreement",), detail)
            said[attested.DISTANCE] = repr(owed.min_distance_to_private)
        if noise.drawn:
            said[attested.NOISE] = attested.noise_note(noise, self._gate.new_id() + self._gate.new_id())
        if draft.journey:
            said[attested.JOURNEY] = draft.journey.hex()
        record = canonical_json(dict(fields))
        passage = self.passage(agreed, replace(draft, record=record), hops.CREATE, attested=said)
        hop = hops.sign_hop(self.identity, passage, draft.history)
        return Draft(draft.task_id, draft.revision, record, (*draft.history, hop))

    def _check_time(self, owed: Obligations) -> None:
        if owed.expire_ms is not None and owed.expire_ms <= self._gate.now_ms():
            raise PolicyDenied("its obligations say that it must be gone by now (expire)")

    async def send(self, agreed: Agreed, drafts: Sequence[Draft], to: str) -> list[Draft | Refused]:
        """Decide whether each record may go to `to`, and sign the hop of those that may."""
        return await self._out(agreed, drafts, to, action=hops.SEND, kind="synthetic")

    async def release(
        self, agreed: Agreed, drafts: Sequence[Draft], to: str, *, known: Mapping[bytes, Labels] = _NONE_KNOWN
    ) -> list[Draft | Refused]:
        """Decide whether each certified record may be given to `to`, and sign the hop of those that may.

        `known` has what the certificates say (`labels.certificate_labels`), by task id.
        """
        return await self._out(agreed, drafts, to, action=hops.RELEASE, kind="certified", known=known)

    def together(
        self, agreed: Agreed, drafts: Sequence[Draft], to: str, *, action: str = hops.SEND, kind: str = "synthetic"
    ) -> list[Draft]:
        """Return those of `drafts`, each of which may go to `to`, that may leave in one message (k_anonymity)."""
        owed = duties.from_terms(agreed.terms.obligations)
        for draft in drafts:
            request = self._request(agreed, to, action, read_fields(draft.record), kind, record=draft.record)
            owed = duties.merge(owed, self._gate.consider(request).obligations)
        return [one for one in together(owed, drafts) if isinstance(one, Draft)]

    async def _out(
        self, agreed: Agreed, drafts: Sequence[Draft], to: str, *, action: str, kind: str,
        known: Mapping[bytes, Labels] = _NONE_KNOWN,
    ) -> list[Draft | Refused]:  # fmt: skip
        start_ns = self.tracer.now_ns()
        fields = [read_fields(draft.record) for draft in drafts]
        questions = [
            self._question(agreed, draft, each, to, action, kind, known.get(draft.task_id, {}))
            for draft, each in zip(drafts, fields, strict=True)
        ]
        decisions = await self._gate.decide(questions)
        owed = duties.from_terms(agreed.terms.obligations)
        passed: list[Draft | Refused] = []
        for draft, each, decision in zip(drafts, fields, decisions, strict=True):
            both = duties.merge(owed, decision.obligations)
            passed.append(self._pass(agreed, draft, each, decision, both, action))
        out: list[Draft | Refused] = []
        strictest = duties.merge_all((owed, *(each.obligations for each in decisions if each.allowed)))
        for one, decision in zip(together(strictest, passed), decisions, strict=True):
            if isinstance(one, Refused):
                out.append(one)
                continue
            passage = self.passage(agreed, one, action, to=to, decision=decision)
            hop = hops.sign_hop(self.identity, passage, one.history)
            out.append(replace(one, history=(*one.history, hop)))
        if self.tracer.enabled:
            subjects = [Subject(draft.task_id, agreed.digest) for draft in drafts]
            outcomes = ["refused" if isinstance(one, Refused) else "passed" for one in out]
            self.tracer.record("egress", subjects, start_ns, peer=to, skill=action, outcomes=outcomes)
        return out

    def _question(
        self, agreed: Agreed, draft: Draft, fields: Fields, to: str, action: str, kind: str, known: Labels
    ) -> Question:
        request = self._request(agreed, to, action, fields, kind, record=draft.record, known=known)
        # Drafts without noise, which are nearly all, are not searched: the hop's body has its words as they are.
        noisy = any(attested.NOISE.encode() in hop for hop in draft.history)
        spending = attested.spending_of(attested.made_by(draft.history)) if noisy else None
        return Question(request, sha256(draft.record), agreed.digest, spending=spending)

    def _pass(
        self, agreed: Agreed, draft: Draft, fields: Fields, decision: Decision, owed: Obligations, action: str
    ) -> Draft | Refused:
        """Check the form of a record that was decided on: another policy may have been there when it was made."""
        until_ms = decision.deadline_ms if isinstance(decision, Waiting) else 0
        try:
            if not decision.allowed:
                raise PolicyDenied(decision.reason, rules=decision.rules)
            check_promised(agreed, decision.obligations, OF_OTHERS)
            self._check_time(owed)
            duties.verify(owed, fields)
            if owed.noise or owed.min_distance_to_private:
                attested.check(owed, attested.made_by(draft.history), fields, sha256(draft.record))
        except (CertificateInvalid, PolicyDenied) as error:
            rules = getattr(error, "rules", ()) or decision.rules
            return Refused(draft.task_id, action, rules, str(error), until_ms)
        return draft

    def why_not_now(
        self, agreed: Agreed, task: Task, other: str, *, action: str, kind: str, known: Labels | None = None
    ) -> str:
        """Return why the policy of now does not let a task pass that an earlier one has let pass; "" if it does.

        Nothing is reserved and nothing is written down: that was done when it passed.

        Args:
            agreed: what it passes under.
            task: as it was sent, or came.
            other: the organization at the other side.
            action: `record.send`, `record.release`, `record.receive` or `record.accept`.
            kind: `synthetic` or `certified`.
            known: of a certified record, what its certificate says.
        """
        try:
            fields = read_fields(task.record)
            request = self._request(agreed, other, action, fields, kind, record=task.record, known=known)
            decision = self._gate.consider(request)
            if not decision.allowed:
                return decision.reason
            check_promised(
                agreed, decision.obligations, OF_OTHERS if action in (hops.SEND, hops.RELEASE) else OF_REVIEWS
            )
            owed = duties.merge(duties.from_terms(agreed.terms.obligations), decision.obligations)
            self._check_time(owed)
            duties.verify(owed, fields)
            if owed.noise or owed.min_distance_to_private:
                attested.check(owed, attested.made_by(task.hops), fields, sha256(task.record))
        except (CertificateInvalid, InvalidRecord, PolicyDenied, TrustError) as error:
            return str(error)
        return ""

    async def receive(
        self, agreed: Agreed, tasks: Sequence[Task], sender: Attested, action: str, kind: str,
        *, known: Mapping[bytes, Labels] = _NONE_KNOWN,
    ) -> list[Obligations]:  # fmt: skip
        """Steps 5 to 7 of the way in, for a batch: agreement, policy, schema. All of it or nothing.

        Returns what is owed for each record by the agreement and this organization's own rules.

        Raises:
            AgreementError: the sender may not send these under this agreement.
            Busy: a person of this organization has to approve it first.
            PolicyDenied: this organization's policy does not take them.
            CertificateInvalid: a history does not verify.
            InvalidRecord: a record does not fit the schema.
        """
        start_ns = self.tracer.now_ns()
        me = self.identity.organization
        agreed.check_active(self._gate.now_ms())
        if sender.organization not in agreed.participants or me not in agreed.participants:
            raise AgreementError(f"{sender.organization} does not take part in agreement {agreed.digest.hex()[:12]}")
        owed = duties.from_terms(agreed.terms.obligations)
        schema = self.dataset(agreed.terms.dataset).schema
        limiter = self._checkers.setdefault(sender.organization, trio.CapacityLimiter(1))
        checked = await trio.to_thread.run_sync(
            lambda: [self._check_history(agreed, task, sender, me, action) for task in tasks], limiter=limiter
        )
        asks = "record.receive" if kind == "synthetic" else "record.accept"
        questions = [
            Question(
                self._request(
                    agreed, sender.organization, asks, fields, kind,
                    record=task.record, made=made, known=known.get(task.id),
                ),
                sha256(task.record),
                agreed.digest,
            )
            for task, (fields, made) in zip(tasks, checked, strict=True)
        ]  # fmt: skip
        out: list[Obligations] = []
        for task, (fields, made), decision in zip(tasks, checked, await self._gate.decide(questions), strict=True):
            if isinstance(decision, Waiting):
                raise Busy("a person here has to approve it first", retry_after_ms=_PENDING_RETRY_MS)
            if not decision.allowed:
                raise PolicyDenied(decision.reason, rules=decision.rules)
            check_promised(agreed, decision.obligations, OF_REVIEWS)
            both = duties.merge(owed, decision.obligations)
            self._check_time(both)
            duties.verify(both, fields)
            attested.check(both, made, fields, sha256(task.record))
            if wrong := problem(schema, both, fields):
                raise InvalidRecord(wrong)
            out.append(both)
        duties.verify_batch(of_batches(duties.merge_all(out)), [fields for fields, _ in checked])
        if self.tracer.enabled:
            subjects = [Subject(task.id, agreed.digest) for task in tasks]
            passed = ["passed"] * len(tasks)
            self.tracer.record("receive", subjects, start_ns, peer=sender.organization, skill=action, outcomes=passed)
        return out

    def _check_history(
        self, agreed: Agreed, task: Task, sender: Attested, me: str, action: str
    ) -> tuple[dict[str, Any], Hop]:
        """Return a record's fields, and the hop that made it."""
        if task.home != sender.organization or task.agreement_digest != agreed.digest:
            raise AgreementError(f"{sender.organization} sent a task of {task.home} or of another agreement")
        fields = read_fields(task.record)
        check_flat(self.dataset(agreed.terms.dataset).schema, fields)
        # Each revision is made once and sent to everybody at most; then it is released.
        most = (agreed.terms.repair_rounds + 2) * len(agreed.participants)
        passed = hops.verify_hops(task.hops, task_id=task.id, record=task.record, home=sender, most=most)
        hops.check_attested(passed, agreed.terms.obligations.min_distance_to_private)
        last = passed[-1]
        if (last.action, last.to_organization, last.revision) != (action, me, task.revision):
            raise AgreementError("the last hop of the task was not made for this organization")
        if last.purpose != agreed.terms.purpose:
            raise AgreementError(
                f"the task was sent for {last.purpose!r}, the agreement is for {agreed.terms.purpose!r}"
            )
        return fields, [hop for hop in passed if hop.action == hops.CREATE][-1]

    def _request(
        self, agreed: Agreed, other: str, action: str, fields: Fields, kind: str = "synthetic", *,
        record: bytes, made: Hop | None = None, known: Labels | None = None,
    ) -> Request:  # fmt: skip
        """Return the question about a record.

        Args:
            agreed: what it happens under.
            other: the organization at the other side.
            action: what is to be done.
            fields: of the record.
            kind: `synthetic` or `certified`.
            record: its bytes.
            made: for one that comes in, the hop that made it.
            known: what else is known about it, such as what its certificate says.
        """
        return Request(
            action=action,
            organization=other,
            role=ROLE,
            purpose=agreed.terms.purpose,
            dataset=agreed.terms.dataset,
            kind=kind,
            fields=frozenset(fields),
            labels=self._labels(agreed, action, fields, record, made, known or {}),
        )

    def _labels(
        self, agreed: Agreed, action: str, fields: Fields, record: bytes, made: Hop | None, known: Labels
    ) -> Labels:
        """Return what is known about a record, of what the policy's rules ask about.

        It follows from the agreement, the record and what proves it, so that a later look finds the same.
        """
        asked = self._gate.asks
        labels: dict[str, LabelValue] = {**terms_labels(agreed, asked)}
        labels.update({name: value for name, value in known.items() if asked(name)})
        if asked("bytes"):
            labels["bytes"] = len(record)
        if asked("distance"):
            outward = action in (hops.SEND, hops.RELEASE)
            distance = self._measured(agreed, fields) if outward else attested.distance_of(made)
            if distance is not None:
                labels["distance"] = distance
        return labels

    def _measured(self, agreed: Agreed, fields: Fields) -> float | None:
        """Return how far a record is from the private rows here; None if that cannot be measured."""
        private = self.dataset(agreed.terms.dataset).private
        try:
            return float(private.distances([fields])[0]) if private is not None else None
        except InvalidRecord:  # a field was redacted, or is text by now
            return None

    def passage(
        self, agreed: Agreed, draft: Draft, action: str, *, to: str = "",
        decision: Decision | None = None, attested: Mapping[str, str] | None = None,
    ) -> hops.Passage:  # fmt: skip
        """Return what a hop of this draft says."""
        last_ms = hops.last_moment(draft.history) if draft.history else 0
        return hops.Passage(
            task_id=draft.task_id,
            revision=draft.revision,
            record_digest=sha256(draft.record),
            action=action,
            purpose=agreed.terms.purpose,
            policy_digest=self._gate.policy.digest,
            at_ms=signing_moment(self._gate.now_ms(), agreed.terms.issued_ms, last_ms),
            to_organization=to,
            rules=decision.rules if decision else (),
            attested=attested or {},
        )
