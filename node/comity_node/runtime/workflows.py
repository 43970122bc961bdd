"""Workflows from submission to agreement, agreements that others concluded with this node, and how agreements end."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence, Set
from functools import partial

import trio

from comity.agreement import Agreed, read_terms
from comity.digest import sha256
from comity.errors import AgreementError, AgreementStopped, ComityError, ConfigError, NotFound, StorageError
from comity.trust import Attested, NodeIdentity
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate
from comity_node.protocol.flow import Finish, Flow, Where
from comity_node.protocol.task import State
from comity_node.runtime import stops
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.author import Author
from comity_node.runtime.directory import Directory
from comity_node.runtime.flows import Flows
from comity_node.runtime.kinds import AGREEMENT
from comity_node.runtime.messenger import Handler, accepted
from comity_node.runtime.negotiator import Negotiator
from comity_node.runtime.outbox import Outbox
from comity_node.runtime.patience import patiently
from comity_node.runtime.responder import Responder
from comity_node.runtime.seams import TaskStatus
from comity_node.runtime.withdrawals import Withdrawals
from comity_node.runtime.workflow import WorkflowSpec, amendment, parse_workflow
from comity_node.storage import audit, journal, negotiations
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

#: What the agents of a participant have to offer.
SKILLS = frozenset({"generate", "review"})
REVIEW = frozenset({"review"})
#: The state of a workflow whose own tasks somebody has ended.
CANCELLED = "cancelled"
#: What is kept as the document of a workflow that another node of this organization has signed.
SHARED = b'{"shared":true}'
_REASON_CHARS = 200
_GATHER_S = 20.0
_GATHER_STEP_S = 0.25


class Workflows:
    """The workflows that this node submitted or takes part in."""

    def __init__(
        self, *, identity: NodeIdentity, gate: Gate, negotiator: Negotiator, agreements: Agreements,
        directory: Directory, author: Author, database: Database, outbox: Outbox, responder: Responder,
        withdrawals: Withdrawals, flows: Flows, own_skills: Callable[[], Sequence[str]],
    ) -> None:  # fmt: skip
        """Run workflows in the name of `identity`'s organization."""
        self._me = identity.organization
        self._gate = gate
        self._negotiator = negotiator
        self._agreements = agreements
        self._directory = directory
        self._author = author
        self._database = database
        self._outbox = outbox
        self._responder = responder
        self._withdrawals = withdrawals
        self._flows = flows
        self._own_skills = own_skills
        self._nursery: trio.Nursery | None = None
        self.handlers: dict[str, Handler] = {AGREEMENT: self._on_agreement}

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Negotiate what is submitted, until cancelled; begins with what an earlier run left."""
        begun = {row.workflow_id for row in await self._under_way()}  # what is submitted from here on begins by itself
        async with trio.open_nursery() as self._nursery:
            try:
                task_status.started()
                await self._recover(self._nursery, begun)
                await trio.sleep_forever()
            finally:
                self._nursery = None  # what still comes at the end is for the next run

    async def _under_way(self) -> list[journal.WorkflowRow]:
        return await self._database.read(lambda c: journal.list_workflows(c, state="negotiating"))

    async def _recover(self, nursery: trio.Nursery, begun: Set[str]) -> None:
        await patiently(self._withdrawals.recover, "what was withdrawn from")
        for agreed in self._agreements.all():
            await patiently(partial(self._go_on, agreed), f"workflow {agreed.terms.id}")
        for row in await self._under_way():
            if row.workflow_id not in begun:
                continue
            try:
                spec = parse_workflow(row.document)
            except ComityError as error:  # of another version of this software
                await patiently(partial(self._fail, row.workflow_id, str(error)), f"workflow {row.workflow_id}")
            else:
                nursery.start_soon(self._negotiate, row.workflow_id, spec)

    async def _go_on(self, agreed: Agreed) -> None:
        await self._responder.keep_promise(agreed)
        if agreed.terms.initiator == self._me:
            await self._distribute(agreed, self._agreements.raw(agreed.digest))
        await self._start(agreed)

    async def submit(self, document: bytes) -> str:
        """Check a workflow and begin to negotiate it; returns its id.

        Raises:
            ConfigError: the document is wrong.
            AgreementError: the node is shutting down.
        """
        spec = parse_workflow(document)
        if set(spec.participants) == {self._me}:
            raise ConfigError("'participants' of the workflow names nobody but this organization: name the others, too")
        if spec.replaces:
            await self._check_amendment(spec)
        if self._nursery is None:
            raise AgreementError("the node is starting up or shutting down; submit again later")
        workflow_id = self._gate.new_id().hex()
        row = journal.WorkflowRow(workflow_id, document, "negotiating", "", None, self._gate.now_ms())
        await self._database.transact(lambda c: journal.put_workflow(c, row))
        if (nursery := self._nursery) is not None:  # else the node is shutting down: the next run negotiates it
            nursery.start_soon(self._negotiate, workflow_id, spec)
        return workflow_id

    async def amend(self, digest: bytes, changes: bytes) -> str:
        """Begin to negotiate terms that take the place of an agreement's; returns the new workflow's id.

        Args:
            digest: of the agreement in force.
            changes: a JSON object with what is to be another.

        Raises:
            ConfigError: the changes are wrong.
            AgreementError: there is no such agreement in force, or another amendment of it is under way.
        """
        terms = self._agreements.get(digest).terms
        return await self.submit(amendment(terms, digest, changes, self._me))

    async def _check_amendment(self, spec: WorkflowSpec) -> None:
        old, now_ms = self._agreements.get(spec.replaces), self._gate.now_ms()
        old.check_active(now_ms)
        if {self._me, *spec.participants} != old.participants:
            raise AgreementError("an amendment has the participants of the agreement that it replaces, all of them")
        if spec.numbers["minimum_participants"] < len(old.participants):
            raise AgreementError("all participants of an agreement have to sign its amendment")
        if await self._database.read(lambda c: negotiations.is_amended(c, old.digest, now_ms)):
            raise AgreementError("an amendment of another participant is signed already and may still be concluded")

    async def _negotiate(self, workflow_id: str, spec: WorkflowSpec) -> None:
        async def step(organization: str, what: str, detail: str) -> None:
            entry = journal.WorkflowStep(self._gate.now_ms(), organization, what, detail)
            await patiently(
                lambda: self._database.transact(lambda c: journal.add_workflow_step(c, workflow_id, entry)),
                f"workflow {workflow_id}",
            )

        async def gather() -> Sequence[str]:
            return sorted(await self._gather(spec))

        try:
            agreed = await self._negotiator.negotiate(spec, workflow_id, gather, step)
        except ComityError as error:
            await patiently(partial(self._fail, workflow_id, str(error)), f"workflow {workflow_id}")
            return
        data = self._agreements.raw(agreed.digest)
        await patiently(lambda: self._distribute(agreed, data), f"workflow {workflow_id}")
        await patiently(lambda: self._start(agreed), f"workflow {workflow_id}")

    async def _fail(self, workflow_id: str, reason: str) -> None:
        log.warning("workflow %s failed: %s", workflow_id, reason)

        def write(connection: sqlite3.Connection) -> None:
            journal.update_workflow(connection, workflow_id, state="failed", reason=reason)
            negotiations.end_negotiation(connection, workflow_id)

        await self._database.transact(write)

    async def _gather(self, spec: WorkflowSpec) -> frozenset[str]:
        """Wait until those who shall take part have shown cards with the skills that it takes.

        Raises:
            AgreementError: too few of them have, in time.
        """
        named = frozenset(spec.participants) - {self._me}
        needed = len(named) or spec.numbers["minimum_participants"] - 1
        for _ in range(round(_GATHER_S / _GATHER_STEP_S)):
            able = self._able(spec)
            if ((named and named <= able) or (not named and len(able) >= needed)) and not self._undone(spec, able):
                return named or able
            await trio.sleep(_GATHER_STEP_S)
        able = self._able(spec)
        able = able & named if named else able
        if len(able) < spec.numbers["minimum_participants"] - 1:
            wanted = spec.flow.skills if spec.flow is not None else SKILLS
            raise AgreementError(f"{len(able)} organizations offer {', '.join(sorted(wanted))}; {needed} are needed")
        if undone := self._undone(spec, able):
            raise AgreementError(f"nobody who may do it offers {', '.join(sorted(undone))}: start an agent that does")
        return able

    def _able(self, spec: WorkflowSpec) -> frozenset[str]:
        """Return the others that can take part: with a flow, who can be a home of it and do one of its steps."""
        if spec.flow is None:
            return self._directory.organizations_with(SKILLS)
        flow = spec.flow
        judges = REVIEW if flow.finish is Finish.CERTIFY else frozenset[str]()
        at_home = frozenset[str]() if spec.only_own else _of_homes(flow) | judges
        return frozenset(
            name
            for name, skills in self._directory.skills().items()
            if at_home | judges <= skills and (flow.skills_at(name, self._me) & skills or judges)
        )

    def _undone(self, spec: WorkflowSpec, able: frozenset[str]) -> frozenset[str]:
        """Return the skills of a flow that nobody offers who may be asked for them, for tasks of this home."""
        if spec.flow is None:
            return frozenset()
        skills = {**self._directory.skills(), self._me: frozenset(self._own_skills())}
        done = (spec.flow.skills_at(name, self._me) & skills.get(name, frozenset()) for name in (*able, self._me))
        return spec.flow.skills - frozenset[str]().union(*done)

    async def _distribute(self, agreed: Agreed, data: bytes) -> None:
        now_ms = self._gate.now_ms()
        others = sorted(agreed.reviewers(self._me))
        items = [
            journal.OutboxRow(
                message_id=self._gate.new_id(),
                organization=organization,
                kind=AGREEMENT,
                body=data,
                dedup_key=f"agreement/{agreed.digest.hex()}/{organization}",
                created_ms=now_ms,
                expires_ms=agreed.terms.expires_ms,
                priority=1,
            )
            for organization in others
        ]
        # One whose outbox is full learns of it when this node starts the next time.
        await self._database.transact(lambda c: [journal.try_enqueue(c, item) for item in items])
        for organization in others:
            self._outbox.kick(organization)

    async def _on_agreement(self, sender: Attested, body: bytes) -> Receipt:
        await self.take(sender.organization, body, ())
        return accepted()

    async def take(self, sender: str, data: bytes, statements: Sequence[bytes], *, brought: bool = False) -> None:
        """Take a concluded agreement, from whoever has it; what is in it all have signed.

        Args:
            sender: who gave it.
            data: the agreement.
            statements: withdrawals from it.
            brought: for tokens; unless this node has signed it, only those are worked on under it here.

        Raises:
            AgreementError: it does not verify, is over, or contradicts what this node has signed or submitted.
            Busy: there is no room for it.
        """
        await self._check_id(data)
        await self._responder.check_promise(sender, data)
        try:
            agreed = await (self._share(data) if brought else self._agreements.add(data))
        except AgreementStopped:  # it has been here, and it is over
            await self._responder.keep_promise(read_terms(data))
            return
        if agreed.terms.initiator != sender:
            log.info("agreement %s came from %s", agreed.digest.hex()[:12], sender)
        await self._responder.keep_promise(agreed)
        for statement in statements:
            try:
                await self._withdrawals.take(statement)
            except StorageError:
                raise
            except ComityError as error:  # what is wrong with it says nothing about the agreement
                log.warning("a withdrawal that came from %s is none: %s", sender, error)
        await self._start(agreed)

    async def _share(self, data: bytes) -> Agreed:
        """Keep an agreement that another node of this organization has signed, if this one has not."""
        terms = read_terms(data)
        promise = await self._database.read(lambda c: negotiations.promise_of(c, terms.digest))
        if promise is not None or self._agreements.find(terms.digest) is not None:
            return await self._agreements.add(data)
        now_ms = self._gate.now_ms()
        row = journal.WorkflowRow(terms.terms.id, SHARED, "running", "", terms.digest, now_ms)
        self._agreements.shared.add(terms.digest)  # first: nothing is begun under it in between
        try:
            return await self._agreements.add(data, lambda c: journal.put_workflow(c, row))
        except BaseException:  # also a cancellation: it is not here; raised again
            if self._agreements.find(terms.digest) is None:
                self._agreements.shared.discard(terms.digest)
            raise

    async def load(self) -> None:
        """Know which agreements another node of this organization has signed; before anybody is served."""

        def look(connection: sqlite3.Connection) -> set[bytes]:
            rows = [(each.digest, journal.workflow_of(connection, each.digest)) for each in self._agreements.all()]
            return {digest for digest, row in rows if row is not None and row.document == SHARED}

        self._agreements.shared |= await self._database.read(look)

    async def _check_id(self, data: bytes) -> None:
        """Refuse an agreement that would take the place of a workflow that is here already: others choose its id."""
        terms = read_terms(data)
        row = await self._database.read(lambda c: journal.get_workflow(c, terms.terms.id))
        if row is not None and row.agreement_digest != terms.digest:
            raise AgreementError(f"another workflow has the id {terms.terms.id!r}")

    async def _start(self, agreed: Agreed) -> None:
        """Begin what an agreement asks of this organization, and end the one that it takes the place of."""
        now_ms = self._gate.now_ms()
        row = journal.WorkflowRow(agreed.terms.id, b"{}", "running", "", agreed.digest, now_ms)

        def write(connection: sqlite3.Connection) -> None:
            if journal.workflow_of(connection, agreed.digest) is not None:
                return
            own = negotiations.list_negotiations(connection) if agreed.terms.initiator == self._me else []
            for one in own:
                if one.terms and sha256(one.terms) == agreed.digest:
                    journal.update_workflow(
                        connection, one.workflow_id, state="running", agreement_digest=agreed.digest
                    )
                    negotiations.end_negotiation(connection, one.workflow_id)
                    return
            journal.put_workflow(connection, row)

        old = agreed.terms.replaces
        if old and not self._agreements.is_over(old):  # first: until it is over, the own negotiation stands
            await self._agreements.end(old, "replaced", f"agreement {agreed.digest.hex()[:12]} has taken its place")
        await self._database.transact(write)
        if await self._withdrawals.settle(agreed):
            return
        known = await self._database.read(lambda c: journal.workflow_of(c, agreed.digest))
        if known is not None and known.state == CANCELLED:
            self._flows.cancel(agreed.digest, known.reason)  # what an earlier run did not come to
            return
        if agreed.terms.flow:
            self._flows.begin(agreed)
        elif self._me in agreed.homes:
            self._author.begin(agreed)

    # -- cancelling ------------------------------------------------------------------------------------------------

    async def cancel(self, workflow_id: str, reason: str) -> int:
        """End the own tasks of a workflow: nothing more is made, sent out, offered or certified for this organization.

        The agreement stays, and so do the tasks of its other participants (`comity agreement withdraw` ends all).
        Holders of tasks are told, those that are not reached let go by themselves at the deadline.

        Returns:
            How many tasks were under way or not decided.

        Raises:
            NotFound: there is no such workflow.
            AgreementError: it is not running.
        """
        row = await self._database.read(lambda c: journal.get_workflow(c, workflow_id))
        if row is None:
            raise NotFound(f"there is no workflow {workflow_id[:64]!r}; `comity workflow show` lists them")
        digest = row.agreement_digest
        if row.state != "running" or digest is None:
            raise AgreementError(f"workflow {workflow_id[:64]} is {row.state}: only one that is running is cancelled")
        reason = reason[:_REASON_CHARS] or CANCELLED
        entry = audit.AuditEntry(
            kind="effect", action="workflow.cancelled", agreement=digest, detail={"reason": reason}
        )
        now_ms = self._gate.now_ms()

        def write(connection: sqlite3.Connection) -> int:
            journal.update_workflow(connection, workflow_id, state=CANCELLED, reason=reason)
            audit.append(connection, entry, now_ms)
            return stops.end_tasks(connection, digest, State.CANCELLED, reason, now_ms)

        undecided = await self._database.transact(write)
        self._author.cancel(digest)
        return undecided + self._flows.cancel(digest, reason)


def _of_homes(flow: Flow) -> frozenset[str]:
    """Return the skills that a task's home alone may be asked for: whoever is a home has to have them."""
    turns = (turn for step in flow.steps.values() for turn in step.roles or (step,))
    return frozenset(turn.skill for turn in turns if turn.at.where is Where.HOME)
