"""Workflows from submission to agreement, and agreements that others concluded with this node."""

from __future__ import annotations

import logging
import sqlite3
from functools import partial

import trio

from comity.agreement import Agreed, read_terms
from comity.errors import AgreementError, ComityError
from comity.trust import Attested, NodeIdentity
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.author import Author
from comity_node.runtime.directory import Directory
from comity_node.runtime.messenger import Handler, accepted
from comity_node.runtime.negotiator import AGREEMENT, Negotiator
from comity_node.runtime.outbox import Outbox
from comity_node.runtime.patience import patiently
from comity_node.runtime.seams import TaskStatus
from comity_node.runtime.workflow import WorkflowSpec, parse_workflow
from comity_node.storage import journal
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

#: What the agents of a participant have to offer.
SKILLS = frozenset({"generate", "review"})
_GATHER_S = 20.0
_GATHER_STEP_S = 0.25


class Workflows:
    """The workflows that this node submitted or takes part in."""

    def __init__(
        self, *, identity: NodeIdentity, gate: Gate, negotiator: Negotiator, agreements: Agreements,
        directory: Directory, author: Author, database: Database, outbox: Outbox,
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
        self._nursery: trio.Nursery | None = None
        self.handlers: dict[str, Handler] = {AGREEMENT: self._on_agreement}

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Negotiate what is submitted, until cancelled; begins with what an earlier run left."""
        async with trio.open_nursery() as self._nursery:
            try:
                task_status.started()
                await self._recover(self._nursery)
                await trio.sleep_forever()
            finally:
                self._nursery = None  # what still comes at the end is for the next run

    async def _recover(self, nursery: trio.Nursery) -> None:
        agreements = self._agreements.all()
        for agreed in agreements:
            await patiently(partial(self._go_on, agreed), f"workflow {agreed.terms.id}")
        concluded = {agreed.terms.id for agreed in agreements if agreed.terms.initiator == self._me}
        for row in await self._database.read(lambda c: journal.list_workflows(c, state="negotiating")):
            if row.workflow_id not in concluded:
                nursery.start_soon(self._negotiate, row.workflow_id, parse_workflow(row.document))

    async def _go_on(self, agreed: Agreed) -> None:
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
        if self._nursery is None:
            raise AgreementError("the node is starting up or shutting down; submit again later")
        workflow_id = self._gate.new_id().hex()
        row = journal.WorkflowRow(workflow_id, document, "negotiating", "", None, self._gate.now_ms())
        await self._database.transact(lambda c: journal.put_workflow(c, row))
        self._nursery.start_soon(self._negotiate, workflow_id, spec)
        return workflow_id

    async def _negotiate(self, workflow_id: str, spec: WorkflowSpec) -> None:
        async def step(organization: str, what: str, detail: str) -> None:
            entry = journal.WorkflowStep(self._gate.now_ms(), organization, what, detail)
            await patiently(
                lambda: self._database.transact(lambda c: journal.add_workflow_step(c, workflow_id, entry)),
                f"workflow {workflow_id}",
            )

        try:
            others = await self._gather(spec)
            agreed, data = await self._negotiator.negotiate(spec, workflow_id, sorted(others), step)
        except ComityError as error:
            reason = str(error)
            log.warning("workflow %s failed: %s", workflow_id, reason)
            await patiently(
                lambda: self._database.transact(
                    lambda c: journal.update_workflow(c, workflow_id, state="failed", reason=reason)
                ),
                f"workflow {workflow_id}",
            )
            return
        await patiently(lambda: self._distribute(agreed, data), f"workflow {workflow_id}")
        await patiently(lambda: self._start(agreed), f"workflow {workflow_id}")

    async def _gather(self, spec: WorkflowSpec) -> frozenset[str]:
        """Wait until those who shall take part have shown cards with the skills that it takes.

        Raises:
            AgreementError: too few of them have, in time.
        """
        named = frozenset(spec.participants) - {self._me}
        needed = len(named) or spec.numbers["minimum_participants"] - 1
        for _ in range(round(_GATHER_S / _GATHER_STEP_S)):
            able = self._directory.organizations_with(SKILLS)
            if (named and named <= able) or (not named and len(able) >= needed):
                return named or able
            await trio.sleep(_GATHER_STEP_S)
        able = self._directory.organizations_with(SKILLS)
        able = able & named if named else able
        if len(able) < spec.numbers["minimum_participants"] - 1:
            raise AgreementError(f"{len(able)} organizations offer {', '.join(sorted(SKILLS))}; {needed} are needed")
        return able

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
        await self._check_id(body)
        agreed = await self._agreements.add(body)
        if agreed.terms.initiator != sender.organization:
            log.info("agreement %s came from %s", agreed.digest.hex()[:12], sender.organization)
        await self._start(agreed)
        return accepted()

    async def _check_id(self, data: bytes) -> None:
        """Refuse an agreement that would take the place of a workflow that is here already: others choose its id."""
        terms = read_terms(data)
        row = await self._database.read(lambda c: journal.get_workflow(c, terms.terms.id))
        if row is not None and row.agreement_digest != terms.digest:
            raise AgreementError(f"another workflow has the id {terms.terms.id!r}")

    async def _start(self, agreed: Agreed) -> None:
        now_ms = self._gate.now_ms()
        row = journal.WorkflowRow(agreed.terms.id, b"{}", "running", "", agreed.digest, now_ms)

        def write(connection: sqlite3.Connection) -> None:
            if not journal.put_workflow(connection, row):
                known = journal.get_workflow(connection, agreed.terms.id)
                ours = agreed.terms.initiator == self._me
                if ours and known is not None and known.state == "negotiating":
                    journal.update_workflow(
                        connection, agreed.terms.id, state="running", agreement_digest=agreed.digest
                    )

        await self._database.transact(write)
        self._author.begin(agreed)
