"""The home's side: it sends tasks out, supervises them by leases, and takes what comes back, exactly once.

Its rooms are `sending`, `returns` and `leases`; here are how tasks begin, who is told that they are over, and the start
after an earlier run.

Invariants
  R1  a task that was opened ends, whoever dies: from its checkpoint it is sent out again when a lease is over.
  R2  the first end of a task counts; what comes later is acknowledged and changes nothing.
  R3  somebody who is slow or gone delays only the tasks that are there, and only until their lease ends.
  R4  so many tasks are open at once; whoever opens more waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import trio

from comity.errors import AgreementStopped
from comity_node.protocol.flow import begin, check_state, current
from comity_node.protocol.token import Token
from comity_node.runtime.passing.desk import stubbornly
from comity_node.runtime.passing.leases import Leases
from comity_node.runtime.passing.ports import End, LedgerRecovery, Pact
from comity_node.runtime.passing.task import Task
from comity_node.runtime.passing.visit import Visit

_OPEN_AT_ONCE = 256


class Keeper(Leases):
    """Keeps the tasks of this home."""

    @property
    def open_tasks(self) -> int:
        """How many tasks are not over, or are, but the sink has not heard of it yet."""
        return self._taken

    def recover(self, recovery: LedgerRecovery) -> None:
        """Go on with the tasks of an earlier run."""
        self._journaled += recovery.unheard
        self._taken += len(recovery.unheard) + len(recovery.open)
        self._bell.ring()
        now_s = trio.current_time()
        for point in recovery.open:
            token = point.token
            pact = self._pacts.pact(token.agreement)
            if pact is None:
                self._close_unknown(token)
                continue
            cursor = self._codec.cursor(token)
            task = self._tasks[token.task_id] = Task(token, pact, cursor)
            if point.out:
                skill = current(pact.flow, cursor).skill
                task.outs[token.attempt] = (point.out, skill, now_s)
                task.lease_s = now_s + self._lease_of(task)
                self._routing.asked(point.out, skill, token.agreement.hex())
            else:
                task.visit = Visit(token, pact, cursor, self._codec.state(token), now_s, task)
                self._route(task)

    def _close_unknown(self, token: Token) -> None:
        self._endings.append(self._ending(token, End.CANCELLED, self._pacts.why_none(token.agreement)))

    async def open(self, agreement: bytes, rows: Sequence[tuple[bytes, Mapping[str, Any]]]) -> int:
        """Open tasks, as there is room for them; returns when all are in the ledger.

        Args:
            agreement: digest of the agreement.
            rows: task ids of 16 bytes, with the state that each begins with.

        Returns:
            How many were new: one whose id was opened before is not opened again.

        Raises:
            AgreementStopped: no such agreement runs now.
            FlowMismatch: a state does not fit the flow.
        """
        new, at = 0, 0
        while at < len(rows):
            while (room := self._limits.open_tasks - self._taken) <= 0:
                await self._room.wait()
            pact = self._pacts.pact(agreement)
            if pact is None:
                raise AgreementStopped("no such agreement runs here now")
            chunk = rows[at : at + min(room, _OPEN_AT_ONCE)]
            at += len(chunk)
            if self._limits.open_tasks - self._taken > len(chunk):
                self._room.ring()  # for others who wait
            new += await self._open(pact, chunk)
            if at < len(rows):
                await trio.lowlevel.checkpoint()
        return new

    async def _open(self, pact: Pact, rows: Sequence[tuple[bytes, Mapping[str, Any]]]) -> int:
        now_ms, now_s = self._now_ms(), trio.current_time()
        cursor = begin(pact.flow, now_ms)
        deadline_ms = now_ms + pact.flow.limits.seconds * 1000
        if pact.expires_ms is not None:
            deadline_ms = min(deadline_ms, pact.expires_ms)
        tokens = []
        for task_id, state in rows:
            check_state(pact.flow, state)
            at, data, opened = self._codec.close(cursor, state)
            tokens.append(
                Token(task_id, pact.agreement, self._me, self._peer, 1, 0, at, data, (), deadline_ms, opened=opened)
            )
        if not self._taken:
            self._some.ring()
        self._taken += len(tokens)
        fresh: Sequence[bool] = ()
        try:
            # Broken off in between, tasks could be in the ledger and with nobody: they would wait for a restart.
            with trio.CancelScope(shield=True):
                fresh = await self._ledger.open(tokens)
        finally:
            self._leave_room(len(tokens) - sum(fresh))
        for token, (_, state), is_new in zip(tokens, rows, fresh, strict=True):
            if is_new:
                task = self._tasks[token.task_id] = Task(token, pact, cursor)
                task.visit = Visit(token, pact, cursor, state, now_s, task)
                self._route(task)
        return sum(fresh)

    def cancel(self, agreement: bytes, tasks: Iterable[bytes] | None = None, reason: str = "cancelled") -> int:
        """End tasks of an agreement, all or those that are named; returns how many were open."""
        chosen = list(self._tasks) if tasks is None else list(tasks)
        count = 0
        for task_id in chosen:
            task = self._tasks.get(task_id)
            if task is not None and task.token.agreement == agreement:
                self._close(task, End.CANCELLED, reason)
                count += 1
        return count

    async def run(self) -> None:
        """Journal ends, tell the sink, and look after leases, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            while True:
                await self._bell.wait()
                if self._endings:
                    endings, self._endings = self._endings, []
                    await stubbornly(lambda: self._ledger.end(endings), "ends of tasks", self._limits.backoff_s)  # noqa: B023
                    self._end_journaled(endings)
                if self._journaled:
                    told, self._journaled = self._journaled, []
                    await self._sink.ended(told)
                    await stubbornly(
                        lambda: self._ledger.heard([each.task_id for each in told]),  # noqa: B023  (awaited at once)
                        "what the sink has heard",
                        self._limits.backoff_s,
                    )
                    self._leave_room(len(told))
