"""Tasks of the node's own organization: their list, and the whole way of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from comity._control.connection import Call
from comity._control.defined import call
from comity._control.values import read_value, read_values
from comity.v1 import control_pb2 as pb


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One of the organization's own tasks.

    With a flow a task is its way and the record that it made: `state` is of the way ("queued": it is here; "leased":
    `holder` has it; "done", "completed", "dropped", "failed", "expired", "cancelled"), and once the record is judged
    that of the record. `step` is where in the flow it can start again from, `attempt` how often the home sent it out,
    `record_task_id` the task that the record is judged as. `opened_ms` is 0 if it is not known.
    """

    task_id: str
    workflow_id: str
    agreement_digest: str
    state: str
    reason: str
    record_task_id: str
    attempt: int
    step: str
    holder: str
    revision: int
    opened_ms: int
    updated_ms: int


@dataclass(frozen=True, slots=True)
class TaskPage:
    """Tasks, the one that changed last first; `more` says that there are others that fit."""

    tasks: tuple[TaskSummary, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class TaskHop:
    """A node let the task pass.

    Attributes:
        at_ms: when it signed, by its clock.
        organization: whose node it is.
        node: its SPIFFE ID.
        to_organization: whom it went to; empty where the record was made.
        role: the skill that was asked for, "home", or an action of the policy language.
        attempt: how often the home had sent it out.
        sequence: hops of the way until then.
        revision: of the record.
        rules: that let it pass.
        policy_digest: of the policy that they stand in, in hex.
        attested: what the node says it has done.
        verified: its signature, and that it follows from the hop before it.
    """

    at_ms: int
    organization: str
    node: str
    to_organization: str
    role: str
    attempt: int
    sequence: int
    revision: int
    rules: tuple[str, ...]
    policy_digest: str
    attested: Mapping[str, str]
    verified: bool


@dataclass(frozen=True, slots=True)
class TaskReviewer:
    """An organization that was asked to review, in one revision.

    `state` is "offered", "held", "voted", "refused" or "expired"; `committed_ms` is when its commitment came (0: none),
    and `in_set` whether it is one of those that count.
    """

    organization: str
    revision: int
    state: str
    offered_ms: int
    lease_until_ms: int
    committed_ms: int
    in_set: bool


@dataclass(frozen=True, slots=True)
class TaskReview:
    """A signed review. `late`: it came after the task was decided; `counted`: it is in the certificate."""

    organization: str
    reviewer: str
    revision: int
    accept: bool
    score: int
    axes: Mapping[str, int]
    at_ms: int
    received_ms: int
    late: bool
    counted: bool


@dataclass(frozen=True, slots=True)
class TaskCertificate:
    """The certificate of the task's record: its score (0 to 10000), and whose votes it has."""

    score: int
    organizations: tuple[str, ...]
    record_digest: str
    stored_ms: int


@dataclass(frozen=True, slots=True)
class TaskDelivery:
    """A message about the task's batch to an organization: an offer ("task-offer"), or what was certified ("records").

    `state` is "pending", "sent" (and not acknowledged), "done" or "failed".
    """

    kind: str
    organization: str
    state: str
    attempts: int
    reason: str
    created_ms: int


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """An entry of the audit log that names the task; `detail` is JSON, or empty."""

    index: int
    at_ms: int
    kind: str
    action: str
    decision: str
    organization: str
    rules: tuple[str, ...]
    policy_digest: str
    detail: str


@dataclass(frozen=True, slots=True)
class TaskWay:
    """All that the node has kept of a task.

    Attributes:
        task: as in a list.
        deadline_ms: when everybody drops it; 0 without a flow, or when its way is over.
        hops: who let it pass, in their order: of its way, then of its record.
        unverified: why a hop does not verify; empty if all do.
        reviewers: who was asked to review.
        reviews: what they said.
        certificate: None if it is not certified.
        deliveries: what others were sent of it.
        feedback: what reviewers asked for, last.
        entries: of the audit log.
        entries_cut: the log was not searched to its end.
        record: JSON; empty if it was not asked for.
    """

    task: TaskSummary
    deadline_ms: int
    hops: tuple[TaskHop, ...]
    unverified: str
    reviewers: tuple[TaskReviewer, ...]
    reviews: tuple[TaskReview, ...]
    certificate: TaskCertificate | None
    deliveries: tuple[TaskDelivery, ...]
    feedback: tuple[str, ...]
    entries: tuple[TaskEntry, ...]
    entries_cut: bool
    record: bytes


class TaskCalls:
    """Calls about tasks."""

    @call
    def tasks(self, workflow_id: str = "", state: str = "", limit: int = 0) -> Call[TaskPage]:
        """The organization's own tasks, the one that changed last first.

        Args:
            workflow_id: of one workflow; empty: of all.
            state: in one state; empty: in every state.
            limit: how many; 0: as many as one answer has at most (500).
        """
        request = pb.ListTasksRequest(workflow_id=workflow_id, state=state, limit=limit)
        return Call("ListTasks", request, lambda it: TaskPage(read_values(TaskSummary, it.tasks), bool(it.more)))

    @call
    def task(self, task_id: str, *, record: bool = False) -> Call[TaskWay]:
        """All about one task; a ControlError with code "not_found" if there is no such one.

        Args:
            task_id: its id, or six hex digits or more of its beginning; that of its record will do.
            record: return the record, too.
        """
        return Call("ShowTask", pb.ShowTaskRequest(task_id=task_id, record=record), _way)


def _way(message: pb.ShowTaskResponse) -> TaskWay:
    certificate = read_value(TaskCertificate, message.certificate) if message.HasField("certificate") else None
    return read_value(
        TaskWay,
        message,
        task=read_value(TaskSummary, message.task),
        hops=read_values(TaskHop, message.hops),
        reviewers=read_values(TaskReviewer, message.reviewers),
        reviews=read_values(TaskReview, message.reviews),
        certificate=certificate,
        deliveries=read_values(TaskDelivery, message.deliveries),
        entries=read_values(TaskEntry, message.entries),
    )
