"""How the home takes its tasks back: what is checked, what counts, and what is journaled before it is acknowledged.

Invariant
  R2  the first end of a task counts; what comes later is acknowledged and changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import trio

from comity.errors import FlowMismatch, StorageError, UnexpectedMessage
from comity_node.protocol.flow import Cursor, check_done, check_follows, current
from comity_node.protocol.flow_between import believed
from comity_node.protocol.token import Outcome, Token, encode_state
from comity_node.runtime.passing.ports import Answer, End, Ending, Verdict
from comity_node.runtime.passing.sending import Sending
from comity_node.runtime.passing.task import Task

log = logging.getLogger(__name__)
_TAKEN = Verdict(Answer.TAKEN)
_KNOWN = Verdict(Answer.KNOWN)
_OVER = Verdict(Answer.OVER)
#: The task is being journaled at this moment.
_AT_ONCE = Verdict(Answer.BUSY, retry_after_s=0.01)
_ENDS = {Outcome.DONE: End.DONE, Outcome.DROPPED: End.DROPPED, Outcome.FAILED: End.FAILED}


class Returns(Sending):
    """Takes tasks of this home back."""

    async def returned(self, tokens: Sequence[Token], sender: str) -> list[Verdict]:
        """Take tokens of this home back; those that are taken are in the ledger when this returns."""
        verdicts: list[Verdict] = []
        ended: list[Ending] = []
        onward: list[tuple[Task, Token, Cursor]] = []
        for token in tokens:
            verdicts.append(self._judge(token, sender, ended, onward))
        journaled = False
        try:
            if ended:
                await self._ledger.end(ended)
            if onward:
                await self._ledger.checkpoint([token for _, token, _ in onward])
            journaled = True
        except StorageError as error:
            log.error("tokens are not taken back: %s", error.diagnostics())  # noqa: TRY400  (no bug, so no traceback)
            return [_AT_ONCE if verdict is _TAKEN else verdict for verdict in verdicts]
        finally:
            for task, _, _ in onward:
                task.busy = False
            if not journaled:  # also if who brings them has broken off
                self._endings += ended
                self._bell.ring()
                for token, verdict in zip(tokens, verdicts, strict=True):
                    if verdict is _TAKEN and (back := self._tasks.get(token.task_id)) is not None:
                        self._still_out(back, token.attempt, sender)
        self._end_journaled(ended)
        for task, token, cursor in onward:
            if not task.over:
                task.token, task.cursor = token, cursor
                self._at_home(task, token)
        self._unpark()
        return verdicts

    def _still_out(self, task: Task, attempt: int, sender: str) -> None:
        """Have a task that could not be taken back stay with who brought it, who brings it again; its lease runs."""
        if not task.over:
            skill, now_s = current(task.pact.flow, task.cursor).skill, trio.current_time()
            task.outs[attempt] = (sender, skill, now_s)
            task.lease_s = now_s + self._lease_of(task)
            self._routing.asked(sender, skill, task.token.agreement.hex())

    def _judge(
        self, token: Token, sender: str, ended: list[Ending], onward: list[tuple[Task, Token, Cursor]]
    ) -> Verdict:  # fmt: skip
        task = self._tasks.get(token.task_id)
        if task is None:
            return _AT_ONCE if token.task_id in self._closing else _OVER
        if task.busy:
            return _AT_ONCE
        mine = task.token
        if token.agreement != mine.agreement or token.attempt > mine.attempt:
            return Verdict(Answer.REFUSED, "no such attempt was sent out")
        if token.sequence <= mine.sequence and token.outcome is not Outcome.DONE:
            return _KNOWN
        try:
            cursor, state = self._check(task, token, sender)
        except (FlowMismatch, UnexpectedMessage) as error:
            self._bad(task, token, sender, str(error))
            return Verdict(Answer.REFUSED, str(error))
        self._answered(task, token, sender)
        if token.outcome is Outcome.GIVEN_BACK and task.outs:
            return _KNOWN  # another attempt is under way
        if (end := _ENDS.get(token.outcome)) is not None:
            ended.append(self._close(task, end, token.reason, state, cursor, came=token))
        else:
            attempt = mine.attempt if token.attempt == mine.attempt and not task.outs else mine.attempt + 1
            task.busy = True
            fresh = token if token.opened is not None else replace(token, state=encode_state(state))
            if (attempt, mine.deadline_ms, self._peer, Outcome.UNDER_WAY) != (
                token.attempt, token.deadline_ms, token.home_peer, token.outcome
            ):  # fmt: skip
                fresh = replace(
                    fresh, attempt=attempt, deadline_ms=mine.deadline_ms, home_peer=self._peer,
                    outcome=Outcome.UNDER_WAY, reason="",
                )  # fmt: skip
            onward.append((task, fresh, cursor))
            self._recall(task, self._routing.overtaken)
        return _TAKEN

    def _check(self, task: Task, token: Token, sender: str) -> tuple[Cursor, Mapping[str, Any]]:
        flow = task.pact.flow
        under_way = token.outcome in (Outcome.UNDER_WAY, Outcome.GIVEN_BACK)
        cursor, state = self._codec.check(flow, token, under_way=under_way)
        check_follows(task.cursor, cursor)
        if token.opened is None:
            state = believed(
                flow, task.cursor, cursor, self._codec.state(task.token), state, home=self._me,
                holder="" if task.pact.onward else sender, done=token.outcome is Outcome.DONE,
            )  # fmt: skip
        if token.outcome is Outcome.DONE:
            check_done(flow, cursor, state)
        return cursor, state

    def _answered(self, task: Task, token: Token, sender: str) -> None:
        """Learn from a token that came back."""
        given_back = token.outcome is Outcome.GIVEN_BACK
        if (out := task.outs.pop(token.attempt, None)) is not None:
            to, skill, since_s = out
            after_s = trio.current_time() - since_s
            if given_back and to != sender:  # it was passed on: whoever gave it back is not who was asked
                self._routing.released(to, skill, after_s)
            else:
                self._routing.answered(to, skill, after_s, not given_back and token.outcome is not Outcome.FAILED)
            if not given_back:
                self._times.add((task.pact.agreement, skill), after_s, trio.current_time())
        if not given_back:
            task.refused.clear()
        else:
            task.refused[sender], task.why = False, token.reason

    def _bad(self, task: Task, token: Token, sender: str, reason: str) -> None:
        """What came back cannot be used: somebody else does it."""
        log.warning("%s sent a token back that is wrong: %s", sender, reason)
        if (out := task.outs.get(token.attempt)) is not None and out[0] == sender:
            task.why = f"{sender}: {reason}"
            self._not_there(task, token.attempt, out, for_good=True, anew=True, failed=True)

    def _end_journaled(self, endings: Sequence[Ending]) -> None:
        if endings:
            self._closing.difference_update([ending.task_id for ending in endings])
            self._journaled += endings
            self._bell.ring()
