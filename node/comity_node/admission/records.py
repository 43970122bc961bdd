"""Records at the gate: what is done to them before they leave, and what is checked when they arrive.

Leaving takes two steps. `prepare` makes the one form of the record that everybody will see: the obligations of the
agreement and of every recipient's rules are applied to it (so that all reviewers judge the same bytes), and it is
refused if it lies closer to a private row than they allow. `send` decides for one recipient and signs the hop.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import trio

from comity import hops
from comity.agreement import Agreed
from comity.digest import canonical_json, sha256
from comity.errors import AgreementError, ConfigError, InvalidRecord, PolicyDenied
from comity.trust import Attested, NodeIdentity
from comity.v1.task_pb2 import Task
from comity_node.admission.gate import Gate, Question
from comity_node.policy import obligations as duties
from comity_node.policy.model import Decision, Obligations, Request
from comity_node.validators.distance import PrivateReference
from comity_node.validators.schema import Schema

Fields = Mapping[str, Any]
_MAX_RECORD_BYTES = 256 * 1024
#: All records of a batch, so that with their histories they fit into one message.
_MAX_BATCH_BYTES = 2 * 1024 * 1024
ROLE = "validator"


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a node knows about one of its datasets: the schema, and the private rows to keep away from."""

    schema: Schema
    private: PrivateReference | None


@dataclass(frozen=True, slots=True)
class Draft:
    """A record on its way out: `history` is oldest first and grows with each hop."""

    task_id: bytes
    revision: int
    record: bytes
    history: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that may not leave, and the rules that say so."""

    task_id: bytes
    reason: str
    rules: tuple[str, ...]
    detail: str = ""

    @property
    def label(self) -> str:
        """Who said no, in few words: what refusals are counted by."""
        return f"{', '.join(self.rules)}: {self.reason}" if self.rules else self.reason


def read_fields(record: bytes) -> dict[str, Any]:
    """Parse a record's bytes.

    Raises:
        InvalidRecord: it is not a JSON object in canonical form, or larger than 256 KiB.
    """
    if len(record) > _MAX_RECORD_BYTES:
        raise InvalidRecord(f"a record of {len(record)} bytes; at most {_MAX_RECORD_BYTES}")
    try:
        fields = json.loads(record)
        canonical = canonical_json(fields)
    except (ValueError, RecursionError) as error:
        raise InvalidRecord("a record is not JSON") from error
    if not isinstance(fields, dict) or canonical != record:
        raise InvalidRecord("a record is not a JSON object in RFC 8785 form")
    return fields


def to_task(agreed: Agreed, home: str, draft: Draft) -> Task:
    """Return the message in which a record travels."""
    return Task(
        id=draft.task_id,
        agreement_digest=agreed.digest,
        home=home,
        revision=draft.revision,
        record=draft.record,
        hops=draft.history,
    )


class RecordGate:
    """The record's way through the gate, out and in."""

    def __init__(self, gate: Gate, datasets: Mapping[str, Dataset]) -> None:
        """Guard the records of `datasets` (by name)."""
        self._gate = gate
        self._datasets = datasets
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
                self._gate.policy.decide(self._request(agreed, to, "record.send", fields)) for to in recipients
            ]
            owed = duties.from_terms(agreed.terms.obligations)
            for decision in decisions:
                owed = duties.merge(owed, decision.obligations) if decision.allowed else owed
            try:
                out.append(self._shape(agreed, draft, duties.apply(owed, fields), owed, dataset, decisions))
            except (ConfigError, InvalidRecord, PolicyDenied) as error:
                out.append(Refused(draft.task_id, "obligations", (), str(error)))
        return out

    def _shape(
        self,
        agreed: Agreed,
        draft: Draft,
        fields: Fields,
        owed: Obligations,
        dataset: Dataset,
        decisions: list[Decision],
    ) -> Draft | Refused:
        if problem := dataset.schema.without(owed.redact).problem(fields):
            return Refused(draft.task_id, "schema", (), f"once generalized: {problem}")
        attested: dict[str, str] = {}
        if owed.min_distance_to_private:
            if dataset.private is None:
                return Refused(draft.task_id, "min_distance_to_private", (), "there are no private rows to measure to")
            distance = float(dataset.private.distances([fields])[0])
            if distance < owed.min_distance_to_private:
                rules = sorted({rule for decision in decisions if decision.allowed for rule in decision.rules})
                detail = f"{distance:.3f} from a private row; {owed.min_distance_to_private:g} is the least"
                return Refused(draft.task_id, "min_distance_to_private", tuple(rules) or ("agreement",), detail)
            attested["min_distance_to_private"] = repr(owed.min_distance_to_private)
        record = canonical_json(dict(fields))
        passage = self.passage(agreed, replace(draft, record=record), hops.CREATE, attested=attested)
        hop = hops.sign_hop(self.identity, passage, draft.history)
        return Draft(draft.task_id, draft.revision, record, (*draft.history, hop))

    async def send(self, agreed: Agreed, drafts: Sequence[Draft], to: str) -> list[Draft | Refused]:
        """Decide whether each record may go to `to`, and sign the hop of those that may."""
        return await self._out(agreed, drafts, to, action=hops.SEND, kind="synthetic")

    async def release(self, agreed: Agreed, drafts: Sequence[Draft], to: str) -> list[Draft | Refused]:
        """Decide whether each certified record may be given to `to`, and sign the hop of those that may."""
        return await self._out(agreed, drafts, to, action=hops.RELEASE, kind="certified")

    async def _out(
        self, agreed: Agreed, drafts: Sequence[Draft], to: str, *, action: str, kind: str
    ) -> list[Draft | Refused]:
        fields = [read_fields(draft.record) for draft in drafts]
        questions = [
            Question(self._request(agreed, to, action, each, kind), sha256(draft.record), agreed.digest)
            for draft, each in zip(drafts, fields, strict=True)
        ]
        decisions = await self._gate.decide(questions)
        out: list[Draft | Refused] = []
        for draft, each, decision in zip(drafts, fields, decisions, strict=True):
            try:
                if not decision.allowed:
                    raise PolicyDenied(decision.reason, rules=decision.rules)
                duties.verify(decision.obligations, each)
            except PolicyDenied as error:
                out.append(Refused(draft.task_id, action, error.rules or decision.rules, error.reason))
                continue
            passage = self.passage(agreed, draft, action, to=to, decision=decision)
            hop = hops.sign_hop(self.identity, passage, draft.history)
            out.append(replace(draft, history=(*draft.history, hop)))
        return out

    async def receive(self, agreed: Agreed, tasks: Sequence[Task], sender: Attested, action: str, kind: str) -> None:
        """Steps 5 to 7 of the way in, for a batch: agreement, policy, schema. All of it or nothing.

        Raises:
            AgreementError: the sender may not send these under this agreement.
            PolicyDenied: this organization's policy does not take them.
            CertificateInvalid: a history does not verify.
            InvalidRecord: a record does not fit the schema.
        """
        me = self.identity.organization
        agreed.check_active(self._gate.now_ms())
        if sender.organization not in agreed.participants or me not in agreed.participants:
            raise AgreementError(f"{sender.organization} does not take part in agreement {agreed.digest.hex()[:12]}")
        owed = duties.from_terms(agreed.terms.obligations)
        schema = self.dataset(agreed.terms.dataset).schema
        limiter = self._checkers.setdefault(sender.organization, trio.CapacityLimiter(1))
        fields = await trio.to_thread.run_sync(
            lambda: [self._check_history(agreed, task, sender, me, action) for task in tasks], limiter=limiter
        )
        questions = [
            Question(
                self._request(
                    agreed,
                    sender.organization,
                    "record.receive" if kind == "synthetic" else "record.accept",
                    each,
                    kind,
                ),
                sha256(task.record),
                agreed.digest,
            )
            for task, each in zip(tasks, fields, strict=True)
        ]
        for each, decision in zip(fields, await self._gate.decide(questions), strict=True):
            if not decision.allowed:
                raise PolicyDenied(decision.reason, rules=decision.rules)
            both = duties.merge(owed, decision.obligations)
            duties.verify(both, each)
            schema.without(both.redact).check(each)

    def _check_history(self, agreed: Agreed, task: Task, sender: Attested, me: str, action: str) -> dict[str, Any]:
        if task.home != sender.organization or task.agreement_digest != agreed.digest:
            raise AgreementError(f"{sender.organization} sent a task of {task.home} or of another agreement")
        fields = read_fields(task.record)
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
        return fields

    def _request(self, agreed: Agreed, other: str, action: str, fields: Fields, kind: str = "synthetic") -> Request:
        return Request(
            action=action,
            organization=other,
            role=ROLE,
            purpose=agreed.terms.purpose,
            dataset=agreed.terms.dataset,
            kind=kind,
            fields=frozenset(fields),
        )

    def passage(
        self, agreed: Agreed, draft: Draft, action: str, *, to: str = "",
        decision: Decision | None = None, attested: Mapping[str, str] | None = None,
    ) -> hops.Passage:  # fmt: skip
        """Return what a hop of this draft says."""
        return hops.Passage(
            task_id=draft.task_id,
            revision=draft.revision,
            record_digest=sha256(draft.record),
            action=action,
            purpose=agreed.terms.purpose,
            policy_digest=self._gate.policy.digest,
            at_ms=self._gate.now_ms(),
            to_organization=to,
            rules=decision.rules if decision else (),
            attested=attested or {},
        )
