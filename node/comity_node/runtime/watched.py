"""The engine's ports and the workers, watched: what passes is counted, and told to the tracer.

Each stands in front of another one of its kind and changes nothing of what it does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import trio

from comity.errors import AgentError, Busy
from comity.v1.task_pb2 import Receipt, RecordDelivery, TaskOffer
from comity_node.protocol.token import Token
from comity_node.runtime.kinds import OFFER, RECORDS
from comity_node.runtime.passing.ports import Answer, Carrier, Gateway, Note, Outgoing, Refusal, Verdict
from comity_node.runtime.seams import Json, Workers
from comity_node.storage.outbox import OutboxRow
from comity_node.tracing import NULL, Subject, Tracer

#: Upper bounds of the histogram of agents' answer times, in seconds; what is above the last is in one more.
BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_RECEIPTS: Final = {Receipt.STATUS_ACCEPTED: "taken", Receipt.STATUS_REFUSED: "refused"}
#: Skills whose calls are told apart; what is beyond is counted as one.
_MAX_SKILLS: Final = 256
OTHER: Final = "other"


class CallTimes:
    """How long calls of one skill took."""

    __slots__ = ("counts", "failed", "sum_s")

    def __init__(self) -> None:
        """Know of none."""
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum_s = 0.0
        self.failed = 0

    def add(self, seconds: float, *, good: bool) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum_s += seconds
        self.failed += not good


class Watch:
    """What was seen: hops by what became of them, and how long agents took."""

    def __init__(self, tracer: Tracer = NULL) -> None:
        """Tell `tracer`, too."""
        self.tracer = tracer
        self.hops: Counter[str] = Counter()
        #: Bytes of long texts of tokens (`passing.parting`).
        self.payloads: Counter[str] = Counter()
        self.calls: dict[str, CallTimes] = {}

    def counters(self) -> dict[str, int]:
        """Return how many hops there were, and bytes of long texts, by what became of them."""
        hops = {f"hops.{name}": count for name, count in self.hops.items()}
        return hops | {f"payloads.{name}": count for name, count in self.payloads.items()}

    def delivered(self, item: OutboxRow, receipt: Receipt | None) -> None:
        """Tell the tracer how long a message about records took, from when it was put into the outbox."""
        if item.kind not in (OFFER, RECORDS):
            return
        tasks = (
            TaskOffer.FromString(item.body).tasks
            if item.kind == OFFER
            else [one.task for one in RecordDelivery.FromString(item.body).records]
        )
        outcome = _RECEIPTS.get(receipt.status, "") if receipt is not None else "expired"
        self.tracer.record(
            "send", [Subject(task.id, task.agreement_digest) for task in tasks], item.created_ms * 1_000_000,
            peer=item.organization, skill=item.kind, outcomes=[outcome] * len(tasks),
        )  # fmt: skip

    def called(self, skill: str, seconds: float, *, good: bool) -> None:
        """Count an agent's answer."""
        name = skill if skill in self.calls or len(self.calls) < _MAX_SKILLS else OTHER
        self.calls.setdefault(name, CallTimes()).add(seconds, good=good)


def subject_of(token: Token) -> Subject:
    """Return a token's task, as a span names it."""
    return Subject(token.task_id, token.agreement, token.attempt)


class WatchedGateway:
    """Another `Gateway`, watched."""

    def __init__(self, inner: Gateway, watch: Watch) -> None:
        """Stand in front of `inner`."""
        self._inner, self._watch = inner, watch

    async def leave(self, to: str, rows: Sequence[Outgoing]) -> Sequence[Token | Refusal]:
        """See `Gateway.leave`."""
        tracer = self._watch.tracer
        start_ns = tracer.now_ns()
        came = await self._inner.leave(to, rows)
        refused = sum(isinstance(one, Refusal) for one in came)
        self._watch.hops["out"] += len(came) - refused
        self._watch.hops["out_refused"] += refused
        if tracer.enabled:
            outcomes = ["refused" if isinstance(one, Refusal) else "passed" for one in came]
            for role, places in _by_role(rows).items():
                subjects = [subject_of(rows[at].token) for at in places]
                tracer.record(
                    "egress", subjects, start_ns, peer=to, skill=role, outcomes=[outcomes[at] for at in places]
                )
        return came

    async def arrive(self, sender: str, tokens: Sequence[Token]) -> Sequence[Refusal | None]:
        """See `Gateway.arrive`."""
        came = await self._inner.arrive(sender, tokens)
        refused = sum(one is not None for one in came)
        self._watch.hops["in_refused"] += refused
        return came


class WatchedCarrier:
    """Another `Carrier`, watched."""

    def __init__(self, inner: Carrier, watch: Watch) -> None:
        """Stand in front of `inner`."""
        self._inner, self._watch = inner, watch

    async def deliver(self, to: str, rows: Sequence[Outgoing]) -> Sequence[Verdict]:
        """See `Carrier.deliver`."""
        tracer = self._watch.tracer
        start_ns = tracer.now_ns()
        verdicts = await self._inner.deliver(to, rows)
        if tracer.enabled:
            for role, places in _by_role(rows).items():
                subjects = [subject_of(rows[at].token) for at in places]
                outcomes = [verdicts[at].answer.value for at in places]
                tracer.record("send", subjects, start_ns, peer=to, skill=role, outcomes=outcomes)
        return verdicts

    async def tell(self, to: str, notes: Sequence[Note]) -> None:
        """See `Carrier.tell`."""
        await self._inner.tell(to, notes)


class Receives(Protocol):
    """What gets tokens that come in."""

    async def take(self, sender: str, tokens: Sequence[Token]) -> Sequence[Verdict]:
        """Take tokens."""

    def told(self, sender: str, notes: Sequence[Note]) -> None:
        """Hear notes."""


class WatchedReceiver:
    """The engine, as those see it who bring tokens; watched."""

    def __init__(self, inner: Receives, watch: Watch) -> None:
        """Stand in front of `inner`."""
        self._inner, self._watch = inner, watch

    async def take(self, sender: str, tokens: Sequence[Token]) -> Sequence[Verdict]:
        """See `Engine.take`."""
        tracer = self._watch.tracer
        start_ns = tracer.now_ns()
        verdicts = await self._inner.take(sender, tokens)
        self._watch.hops["in"] += sum(verdict.answer is Answer.TAKEN for verdict in verdicts)
        if tracer.enabled:
            outcomes = [verdict.answer.value for verdict in verdicts]
            tracer.record("receive", list(map(subject_of, tokens)), start_ns, peer=str(sender), outcomes=outcomes)
        return verdicts

    def told(self, sender: str, notes: Sequence[Note]) -> None:
        """See `Engine.told`."""
        self._inner.told(sender, notes)


class WatchedWorkers:
    """Other `Workers`, watched."""

    def __init__(self, inner: Workers, watch: Watch) -> None:
        """Stand in front of `inner`."""
        self._inner, self._watch = inner, watch

    async def call(self, skill: str, payload: Json, *, deadline_s: float) -> Json:
        """See `Workers.call`."""
        return await self.call_for((), skill, payload, deadline_s=deadline_s)

    async def call_for(self, subjects: Sequence[Subject], skill: str, payload: Json, *, deadline_s: float) -> Json:
        """See `Workers.call`; for these tasks."""
        tracer = self._watch.tracer
        start_ns, start_s = tracer.now_ns(), trio.current_time()
        outcome = "cancelled"
        try:
            answer = await self._inner.call(skill, payload, deadline_s=deadline_s)
            outcome = "answered"
        except Busy:
            outcome = "busy"
            raise
        except AgentError:
            outcome = "failed"
            raise
        finally:
            self._watch.called(skill, trio.current_time() - start_s, good=outcome == "answered")
            if tracer.enabled and subjects:
                name = "review" if skill == "review" else "agent"
                tracer.record(name, subjects, start_ns, skill=skill, outcomes=[outcome] * len(subjects))
        return answer

    def skills(self) -> tuple[str, ...]:
        """See `Workers.skills`."""
        return self._inner.skills()


def _by_role(rows: Sequence[Outgoing]) -> Mapping[str, list[int]]:
    roles: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        roles.setdefault(row.role, []).append(place)
    return roles
