"""Tasks of this home: their list, and one's whole way."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

import trio
from google.protobuf.message import DecodeError

from comity.envelope import open_document
from comity.errors import ComityError
from comity.hops import verify_hops
from comity.ids import SpiffeId
from comity.signed import head_of, leaf_of, open_signed, read_payload
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1 import control_pb2 as pb
from comity.v1.task_pb2 import Certificate, Hop, Review
from comity_node.admission import Gate
from comity_node.admission.token_hops import KIND, read_hop, verify_journey
from comity_node.protocol.flow import Finish, decode_cursor, parse_flow
from comity_node.protocol.token_wire import of_bytes
from comity_node.runtime.core import Runtime
from comity_node.storage import audit, journal, task_views
from comity_node.storage import tokens as custody
from comity_node.storage.database import Database
from comity_node.storage.task_views import TaskFile, TaskLine

_DECIDED: Final = frozenset({"certified", "rejected"})
#: The role of a hop that is shown though it cannot be read.
_UNREADABLE: Final = "unreadable"


class TaskService:
    """Answers about tasks."""

    def __init__(
        self, identity: NodeIdentity, trust: TrustStore, gate: Gate, runtime: Runtime, database: Database
    ) -> None:
        """Tell of `identity`'s tasks; what is kept of them is in `database`."""
        self._now_ms = gate.now_ms
        self._identity = identity
        self._trust = trust
        self._runtime = runtime
        self._database = database

    async def list_tasks(self, request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        """Return own tasks, the one that changed last first."""
        limit = min(request.limit or task_views.MAX_LISTED, task_views.MAX_LISTED)
        wanted = await self._agreements_of(request.workflow_id) if request.workflow_id else None
        unjudged = self._unjudged()
        lines = await self._database.read(
            lambda c: task_views.list_lines(
                c, agreements=wanted, state=request.state, unjudged=unjudged, limit=limit + 1
            )
        )
        return pb.ListTasksResponse(tasks=map(self._summary, lines[:limit]), more=len(lines) > limit)

    async def show_task(self, request: pb.ShowTaskRequest) -> pb.ShowTaskResponse:
        """Return all that is kept of one task."""
        unjudged = self._unjudged()
        file, chains = await self._database.read(
            lambda c: (
                task_views.task_file(c, task_views.name_task(c, request.task_id), unjudged),
                custody.all_signers(c),
            )
        )
        own = self._identity
        chains[own.key.public_key] = tuple(own.chain)
        shown = pb.ShowTaskResponse(task=self._summary(file.line))
        await trio.to_thread.run_sync(self._add_way, shown, file, chains)
        _add_reviews(shown, file)
        await self._add_entries(shown, file)
        if file.line.checkpoint:
            shown.deadline_ms = of_bytes(file.line.checkpoint, file.line.agreement).deadline_ms
        if request.record:
            shown.record = file.task.record if file.task is not None else file.row
        return shown

    async def _agreements_of(self, workflow_id: str) -> list[bytes]:
        """Return the agreements of a workflow: one, and those that took its place."""
        row = await self._database.read(lambda c: journal.get_workflow(c, workflow_id))
        found = {one.digest for one in self._runtime.agreements.all() if one.terms.id == workflow_id}
        if row is not None and row.agreement_digest is not None:
            found.add(row.agreement_digest)
        return sorted(found)

    def _unjudged(self) -> list[bytes]:
        """Return the agreements whose tasks end without a review."""
        return [
            one.digest
            for one in self._runtime.agreements.all()
            if one.terms.flow and parse_flow(one.terms.flow).finish is Finish.NONE
        ]

    def _summary(self, line: TaskLine) -> pb.TaskSummary:
        agreed = self._runtime.agreements.find(line.agreement)
        return pb.TaskSummary(
            task_id=line.task_id.hex(),
            workflow_id=line.workflow_id or (agreed.terms.id if agreed is not None else ""),
            agreement_digest=line.agreement.hex(),
            state=line.state,
            reason=line.reason,
            record_task_id=line.record_task.hex(),
            attempt=line.attempt,
            step=_step(line),
            holder=line.held_by,
            revision=line.revision,
            opened_ms=line.opened_ms,
            updated_ms=line.updated_ms,
        )

    def _add_way(
        self, shown: pb.ShowTaskResponse, file: TaskFile, chains: dict[bytes, tuple[bytes, ...]]
    ) -> None:  # fmt: skip
        """Say who let the task pass, and whether that is proven (CPU-bound: verifies signatures)."""
        home, now_ms = self._identity.organization, self._now_ms()

        def why_not(count: int) -> str:
            try:
                verify_journey(file.way[:count], chains, self._trust, home, now_ms)
            except ComityError as error:
                return str(error)
            return ""

        verified, shown.unverified = _longest(len(file.way), why_not)
        for number, envelope in enumerate(file.way):
            shown.hops.append(_way_hop(envelope, verified=number < verified))
        if file.task is None:
            return
        own = self._identity
        me = Attested(own.organization, own.node, own.key.public_key, own.peer_id)
        reason = ""
        if file.task.hops and not file.task.record:
            reason = "the record is gone, since its retention is over: its hops cannot be compared with it"
        elif file.task.hops:
            try:
                verify_hops(file.task.hops, task_id=file.task.task_id, record=file.task.record, home=me)
            except ComityError as error:
                reason = str(error)
        shown.unverified = shown.unverified or reason
        shown.hops.extend(_record_hop(envelope, verified=not reason) for envelope in file.task.hops)

    async def _add_entries(self, shown: pb.ShowTaskResponse, file: TaskFile) -> None:
        """Find what the audit log says of the task."""
        subjects = {file.task.record_digest.hex()} if file.task is not None else set()
        for envelope, hop in zip(file.way, shown.hops, strict=False):
            if hop.verified:
                opened = open_signed(envelope, (KIND,))
                subjects |= {head_of(opened).hex(), leaf_of(opened).hex()}
        for envelope, hop in zip(
            file.task.hops if file.task is not None else (), shown.hops[len(file.way) :], strict=True
        ):
            if hop.verified:
                subjects.add(Hop.FromString(open_document(envelope, "hop").body).record_digest.hex())
        times = [file.line.opened_ms or file.line.updated_ms, *(hop.at_ms for hop in shown.hops if hop.at_ms)]
        names = {file.line.task_id.hex(), file.line.record_task.hex()} - {""}
        entries, shown.entries_cut = await self._database.read(
            lambda c: task_views.entries_about(c, names, subjects, min(times))
        )
        shown.entries.extend(map(_entry, entries))


def _longest(count: int, why_not: Callable[[int], str]) -> tuple[int, str]:
    """Return how many of the first hops verify, and why no more do: by halves, as what follows a bad one is bad."""
    if not (reason := why_not(count)):
        return count, ""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        if found := why_not(middle):
            high, reason = middle, found
        else:
            low = middle
    return low, reason


def _step(line: TaskLine) -> str:
    if not line.checkpoint:
        return ""
    return decode_cursor(of_bytes(line.checkpoint, line.agreement).cursor).step


def _way_hop(envelope: bytes, *, verified: bool) -> pb.TaskHop:
    try:
        hop = read_hop(envelope)
    except ComityError:
        return pb.TaskHop(role=_UNREADABLE)
    return pb.TaskHop(
        at_ms=hop.at_ms,
        organization=_organization(hop.node),
        node=hop.node,
        to_organization=hop.to_organization,
        role=hop.role,
        attempt=hop.attempt,
        sequence=hop.sequence,
        rules=hop.rules,
        policy_digest=hop.policy_digest.hex(),
        attested=dict(hop.attested),
        verified=verified,
    )


def _record_hop(envelope: bytes, *, verified: bool) -> pb.TaskHop:
    try:
        hop = Hop.FromString(read_payload(envelope, "hop"))
    except (ComityError, DecodeError):
        return pb.TaskHop(role=_UNREADABLE)
    return pb.TaskHop(
        at_ms=hop.at_ms,
        organization=_organization(hop.node),
        node=hop.node,
        to_organization=hop.to_organization,
        role=hop.action,
        revision=hop.revision,
        rules=hop.rules,
        policy_digest=hop.policy_digest.hex(),
        attested=dict(hop.attested),
        verified=verified,
    )


def _organization(node: str) -> str:
    try:
        return SpiffeId.parse(node).organization
    except ComityError:
        return ""


def _add_reviews(shown: pb.ShowTaskResponse, file: TaskFile) -> None:
    """Say who was asked to review, what came back, what was concluded, and who was told."""
    if (task := file.task) is None:
        return
    voters: set[str] = set()
    if file.stored is not None:
        certificate = Certificate.FromString(file.stored.certificate)
        voters = {_review(vote.review).organization for vote in certificate.votes}
        shown.certificate.CopyFrom(
            pb.TaskCertificate(
                score=certificate.score, organizations=sorted(voters), record_digest=certificate.record_digest.hex(),
                stored_ms=file.stored.stored_ms,
            )
        )  # fmt: skip
    committed = {(one.revision, one.organization): one for one in file.commitments}
    for one in file.assignments:
        promise = committed.get((one.revision, one.organization))
        shown.reviewers.add(
            organization=one.organization, revision=one.revision, state=one.state, offered_ms=one.offered_ms,
            lease_until_ms=one.lease_until_ms, committed_ms=promise.received_ms if promise is not None else 0,
            in_set=promise is not None and promise.in_set,
        )  # fmt: skip
    for vote in file.votes:
        review = _review(vote.review)
        over = vote.revision < task.revision or (task.state in _DECIDED and vote.received_ms > task.updated_ms)
        counted = vote.organization in voters and vote.revision == task.revision
        shown.reviews.add(
            organization=vote.organization, reviewer=review.reviewer, revision=vote.revision, accept=vote.accept,
            score=vote.score, axes=dict(review.axes), at_ms=review.at_ms, received_ms=vote.received_ms,
            late=over and not counted and vote.revision == task.revision, counted=counted,
        )  # fmt: skip
    for item in file.messages:
        shown.deliveries.add(
            kind=item.kind, organization=item.organization, state=item.state, attempts=item.attempts,
            reason=item.reason, created_ms=item.created_ms,
        )  # fmt: skip
    shown.feedback.extend(task.feedback)


def _review(envelope: bytes) -> Review:
    """Read a review that was verified when it came."""
    try:
        return Review.FromString(open_document(envelope, "review").body)
    except (ComityError, DecodeError):  # it is shown without what it says
        return Review()


def _entry(stored: audit.StoredEntry) -> pb.TaskEntry:
    entry = stored.entry
    return pb.TaskEntry(
        index=stored.index,
        at_ms=stored.at_ms,
        kind=entry.kind,
        action=entry.action,
        decision=entry.decision,
        organization=entry.peer,
        rules=entry.rules,
        policy_digest=entry.policy.hex(),
        detail=json.dumps(dict(entry.detail), ensure_ascii=False, default=str) if entry.detail else "",
    )
