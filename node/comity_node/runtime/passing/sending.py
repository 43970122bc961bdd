"""How the home sends its tasks out: to whom the router picks, and again when somebody does not take them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import trio

from comity_node.protocol.flow import (
    Cursor,
    Done,
    Dropped,
    Failed,
    Goes,
    current,
    encode_cursor,
    lost,
)
from comity_node.protocol.flow import Outcome as Came
from comity_node.protocol.token import Token, encode_state
from comity_node.runtime.passing.bell import Bell
from comity_node.runtime.passing.calls import Calls
from comity_node.runtime.passing.codec import Codec
from comity_node.runtime.passing.desk import Desk
from comity_node.runtime.passing.lanes import Lanes
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.ports import (
    Answer,
    End,
    Ending,
    Ledger,
    Move,
    Note,
    Outgoing,
    Pacts,
    Routing,
    Sink,
    Told,
    Verdict,
)
from comity_node.runtime.passing.stragglers import Percentiles
from comity_node.runtime.passing.task import Task
from comity_node.runtime.passing.visit import Parcel, Visit
from comity_node.runtime.passing.ways import Ways

_Tell: TypeAlias = Callable[[str, Sequence[Note]], None]


class Sending:
    """Sends tasks of this home out, and ends them."""

    def __init__(
        self, *, me: str, peer: str, pacts: Pacts, ledger: Ledger, ways: Ways, routing: Routing, calls: Calls,
        desk: Desk, lanes: Lanes, sink: Sink, limits: PassingLimits, now_ms: Callable[[], int], tell: _Tell,
        codec: Codec,
    ) -> None:  # fmt: skip
        """Keep tasks of organization `me`, whose node is `peer`, and tell `sink` of their ends."""
        self._me = me
        self._peer = peer
        self._pacts = pacts
        self._ledger = ledger
        self._ways = ways
        self._routing = routing
        self._calls = calls
        self._desk = desk
        self._lanes = lanes
        self._sink = sink
        self._limits = limits
        self._now_ms = now_ms
        self._tell = tell
        self._codec = codec
        self._tasks: dict[bytes, Task] = {}
        self._closing: set[bytes] = set()
        self._endings: list[Ending] = []
        self._journaled: list[Ending] = []
        self._bell = Bell()
        self._room = Bell()
        self._some = Bell()
        self._taken = 0
        self._parked: dict[tuple[Any, ...], deque[Visit]] = {}
        self._times = Percentiles()
        #: Tasks whose lease ran out, and stragglers that a second one was asked for, so far.
        self.taken_over = self.hedged = 0

    def wants(self, token: Token) -> bool:
        """Whether a token that is on its way out is of an attempt that is open."""
        task = self._tasks.get(token.task_id)
        return task is not None and token.attempt in task.outs

    def _ending(
        self, token: Token, end: End, reason: str, state: Mapping[str, Any] | None = None, cursor: Cursor | None = None
    ) -> Ending:
        if state is None and token.opened is None:
            data = token.state
        else:
            data = encode_state(self._codec.state(token) if state is None else state)
        if cursor is None and token.opened is None:
            at = token.cursor
        else:
            at = encode_cursor(cursor or self._codec.cursor(token))
        return Ending(
            token.task_id, token.agreement, end, data, token.hops, token.attempt, reason, self._now_ms(), at
        )  # fmt: skip

    def _leave_room(self, count: int) -> None:
        if count:
            self._taken -= count
            self._room.ring()

    def _lease_of(self, task: Task) -> float:
        return task.pact.lease_s or self._limits.lease_s

    def _route(self, task: Task) -> None:
        """Have the step of a task that is at home done: here, by whom the router picks, or later."""
        if not self._try(task) and (visit := task.visit) is not None:
            key = (task.pact.agreement, visit.step.name, visit.step.skill, tuple(task.refused))
            self._parked.setdefault(key, deque()).append(visit)

    def _try(self, task: Task) -> bool:
        visit = task.visit
        assert visit is not None
        to = self._ways.choose(task.pact, visit.cursor, visit.step, self._me, task.refused)
        if to is None:
            return False
        if to == self._me:
            self._calls.put(visit)
        else:
            self._send(task, visit, to)
        return True

    def _send(self, task: Task, visit: Visit, to: str) -> None:
        skill, now_s = visit.step.skill, trio.current_time()
        row = Outgoing(visit.leaves(self._codec), to, skill)
        task.token, task.cursor, task.visit = row.token, visit.cursor, None
        task.outs[row.token.attempt] = (to, skill, now_s)
        task.lease_s = now_s + self._lease_of(task)
        self._routing.asked(to, skill, row.token.agreement.hex())
        self._desk.put(Move(None, row), visit)

    def _unpark(self) -> None:
        """Try again what nobody could be asked for; one of a kind that has to wait makes the others of it wait."""
        for key, waiting in list(self._parked.items()):
            while waiting:
                if (task := parked(waiting[0])) is not None and not self._try(task):
                    break
                waiting.popleft()
            else:
                del self._parked[key]

    def worked(self, visit: Visit, came: Came) -> None:
        """Go on with a task after a step at home."""
        task = visit.task
        assert task is not None
        match came:
            case Goes(cursor, state):
                visit.goes(cursor, state)
                task.refused.clear()
                self._route(task)
            case Done(state, cursor):
                self._close(task, End.DONE, "", state, cursor)
            case Dropped(reason, cursor):
                self._close(task, End.DROPPED, reason, visit.state, cursor)
            case Failed(reason, cursor, expired):
                end = End.EXPIRED if expired else End.FAILED
                self._close(task, end, reason, visit.state, cursor)

    def unable(self, visit: Visit, reason: str) -> None:
        """Have somebody else do a step that nobody here does now."""
        task = visit.task
        assert task is not None
        task.refused[self._me] = False
        task.why = reason
        self._route(task)

    def _again(self, task: Task, *, anew: bool) -> None:
        """Send a task from its checkpoint once more; `anew`: as another attempt, since the last one may still live."""
        if anew:
            if task.token.attempt >= self._limits.attempts:
                self._close(task, End.FAILED, f"nobody did it in {task.token.attempt} attempts: {task.why}")
                return
            task.token = replace(task.token, attempt=task.token.attempt + 1)
        self._at_home(task, replace(task.token, sequence=task.token.sequence - 1))

    def _at_home(self, task: Task, token: Token) -> None:
        """Go on with a task at home from a token."""
        if task.visit is not None:
            task.visit.kill()
        now_s, cursor = trio.current_time(), task.cursor
        visit = task.visit = Visit(token, task.pact, cursor, self._codec.state(token), now_s, task)
        held = cursor.leases.get(visit.step.leased) if visit.step.leased else None
        if held is not None and held.at in task.refused:
            self.worked(visit, lost(task.pact.flow, cursor, visit.state, visit.step.leased, self._now_ms()))
        else:
            self._route(task)

    def delivered(self, parcel: Parcel, verdict: Verdict) -> None:
        """Hear that a holder has a token: its lease begins."""
        task = self._tasks.get(parcel.row.token.task_id)
        if task is not None and (out := task.outs.get(parcel.row.token.attempt)) is not None:
            if verdict.answer is Answer.OVER:
                early = parcel.row.token.deadline_ms > self._now_ms()  # its clock is wrong, or it wants no work
                self._not_there(task, parcel.row.token.attempt, out, for_good=False, anew=False, failed=early)
            else:
                task.lease_s = trio.current_time() + self._lease_of(task)

    def refused(self, parcel: Parcel, reason: str) -> None:
        """Find somebody else for a token that is not taken."""
        self._give_up(parcel, for_good=True, why=reason)

    def waited(self, parcel: Parcel) -> None:
        """Find somebody else for a token whose receiver has no room or cannot be reached, if there is anybody."""
        self._give_up(parcel, for_good=False, why="")

    def _give_up(self, parcel: Parcel, *, for_good: bool, why: str) -> None:
        token = parcel.row.token
        task = self._tasks.get(token.task_id)
        if task is None or task.busy or (out := task.outs.get(token.attempt)) is None:
            self._lanes.drop(parcel)
            self._desk.drop(token.key)
            return
        task.why = why or f"{out[0]} cannot be reached or is busy"
        if not for_good and not self._others(task, out[0]):
            return  # it waits on
        self._lanes.drop(parcel)
        self._desk.drop(token.key)
        self._not_there(task, token.attempt, out, for_good=for_good, anew=parcel.sent, failed=not for_good)

    def _others(self, task: Task, but: str) -> bool:
        cursor = task.cursor
        step = current(task.pact.flow, cursor)
        return any(
            each != but and each not in task.refused
            for each in self._ways.candidates(task.pact, cursor, step, self._me)
        )

    def _not_there(
        self, task: Task, attempt: int, out: tuple[str, str, float], *, for_good: bool, anew: bool, failed: bool
    ) -> None:  # fmt: skip
        """A token is not with `out`: if it is nowhere else either, send it out again.

        Without `failed` that says nothing of how well `out` works: a policy has said no, or a deadline is over.
        """
        del task.outs[attempt]
        to, skill, since_s = out
        after_s = trio.current_time() - since_s
        if failed:
            self._routing.answered(to, skill, after_s, good=False)
        else:
            self._routing.released(to, skill, after_s)
        task.refused[to] = for_good
        if not task.outs and task.visit is None:
            self._again(task, anew=anew)

    def _recall(self, task: Task, note: Callable[[str, str, float], None]) -> None:
        """Want nothing more of the attempts that are out, and `note` that for the router."""
        for attempt, (to, skill, since_s) in task.outs.items():
            note(to, skill, trio.current_time() - since_s)
            self._tell(to, [Note(Told.CANCEL, self._me, task.token.task_id, attempt)])
            self._withdraw(replace(task.token, attempt=attempt))
        task.outs.clear()

    def _withdraw(self, token: Token) -> None:
        if (parcel := self._lanes.get(token.key)) is not None:
            self._lanes.drop(parcel)
            self._desk.drop(token.key)

    def _close(
        self, task: Task, end: End, reason: str, state: Mapping[str, Any] | None = None, cursor: Cursor | None = None,
        *, came: Token | None = None,
    ) -> Ending:  # fmt: skip
        """End a task, with what `came` back, which the caller journals; else it is journaled in its turn."""
        token = task.token
        task.over = True
        del self._tasks[token.task_id]
        if task.visit is not None:
            task.visit.kill()
        self._recall(task, self._routing.released if end is End.CANCELLED else self._routing.overtaken)
        ending = self._ending(came or token, end, reason, state, cursor)
        self._closing.add(token.task_id)
        if came is None:
            self._endings.append(ending)
            self._bell.ring()
        return ending


def parked(visit: Visit) -> Task | None:
    """Return the task that waits with a visit; None: it has gone on since, from what another attempt brought."""
    task = visit.task
    return task if task is not None and not task.over and task.visit is visit else None
