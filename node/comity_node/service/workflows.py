"""Workflows, and the agreements that come of them."""

from __future__ import annotations

import json

from comity.errors import ControlError
from comity.v1 import control_pb2 as pb
from comity_node.protocol.flow import Finish
from comity_node.protocol.task import State
from comity_node.runtime.core import Runtime
from comity_node.storage import journal, journeys
from comity_node.storage.database import Database

#: How a task ends that has come through its flow.
DONE = "done"


class WorkflowService:
    """Answers about workflows and agreements."""

    def __init__(self, runtime: Runtime, database: Database) -> None:
        """Have `runtime` work; what has become of it is in `database`."""
        self._runtime = runtime
        self._database = database

    async def submit_workflow(self, request: pb.SubmitWorkflowRequest) -> pb.SubmitWorkflowResponse:
        """Check a workflow and begin to negotiate it."""
        return pb.SubmitWorkflowResponse(workflow_id=await self._runtime.workflows.submit(request.workflow))

    async def get_workflow(self, request: pb.GetWorkflowRequest) -> pb.GetWorkflowResponse:
        """Return one workflow, or all."""
        if request.workflow_id:
            row = await self._database.read(lambda c: journal.get_workflow(c, request.workflow_id))
            if row is None:
                raise ControlError(f"no workflow {request.workflow_id} here; `comity workflow show` lists them")
            rows = [row]
        else:
            rows = await self._database.read(journal.list_workflows)
        return pb.GetWorkflowResponse(workflows=[await self._workflow(row) for row in rows])

    async def cancel_workflow(self, request: pb.CancelWorkflowRequest) -> pb.CancelWorkflowResponse:
        """End the own tasks of a workflow, and tell whoever has them."""
        count = await self._runtime.workflows.cancel(request.workflow_id, request.reason)
        return pb.CancelWorkflowResponse(tasks=count)

    async def list_agreements(self, request: pb.ListAgreementsRequest) -> pb.ListAgreementsResponse:
        """Return the agreements of this node, whatever has become of them."""
        return await self._runtime.agreement_control.list()

    async def get_agreement(self, request: pb.GetAgreementRequest) -> pb.GetAgreementResponse:
        """Return one agreement."""
        return await self._runtime.agreement_control.get(request.digest)

    async def withdraw_agreement(self, request: pb.WithdrawAgreementRequest) -> pb.WithdrawAgreementResponse:
        """Withdraw from an agreement, and tell the others."""
        return await self._runtime.agreement_control.withdraw(request.digest, request.reason)

    async def amend_agreement(self, request: pb.AmendAgreementRequest) -> pb.AmendAgreementResponse:
        """Begin to negotiate terms that take the place of an agreement's."""
        return await self._runtime.agreement_control.amend(request.digest, request.changes)

    async def _workflow(self, row: journal.WorkflowRow) -> pb.Workflow:
        digest = row.agreement_digest
        steps = await self._database.read(lambda c: journal.workflow_steps(c, row.workflow_id))
        shown = pb.Workflow(
            workflow_id=row.workflow_id,
            state=row.state,
            reason=row.reason,
            steps=[
                pb.NegotiationStep(at_ms=one.at_ms, organization=one.organization, step=one.step, detail=one.detail)
                for one in steps
            ],
        )
        if digest is None:
            return shown
        shown.agreement_digest = digest.hex()
        if (agreed := self._runtime.agreements.find(digest)) is not None:
            shown.terms = agreed.terms.SerializeToString()
        shown.tasks.update(await self._database.read(lambda c: journal.count_tasks_by_state(c, digest)))
        for state, counts in ((State.REFUSED, shown.refused_by), (State.REJECTED, shown.rejected_by)):
            counts.update(
                await self._database.read(lambda c: journal.count_tasks_by_reason(c, state.value, digest))  # noqa: B023
            )
        shown.repaired = await self._database.read(lambda c: journal.count_repaired(c, digest))
        if agreed is not None and agreed.terms.flow:
            await self._add_journeys(shown, digest, json.loads(agreed.terms.flow).get("finish"))
        return shown

    async def _add_journeys(self, shown: pb.Workflow, digest: bytes, finish: object) -> None:
        """Say how many tasks are where on their way."""
        done = State.COMPLETED.value if finish == Finish.NONE else DONE
        for (ending, held_by), count in (
            await self._database.read(lambda c: journeys.count_journeys(c, digest))
        ).items():
            under_way = State.LEASED if held_by else State.QUEUED
            state = (done if ending == DONE else ending) or under_way.value
            shown.journeys[state] += count
            if held_by and not ending:
                shown.holders[held_by] += count
