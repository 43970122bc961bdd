"""A task while it is with this organization, and one on its way out: what changes is here, not in the token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trio

from comity.errors import AgentError, Busy
from comity_node.protocol.flow import Cursor, Flow, Step, current
from comity_node.protocol.token import Outcome, Token
from comity_node.runtime.passing.codec import Codec
from comity_node.runtime.passing.ports import Outgoing, Pact

if TYPE_CHECKING:
    from comity_node.runtime.passing.task import Task


class Call:
    """A call of an agent, for a batch of visits; it may be made twice.

    Attributes:
        batch: the visits.
        kind: what calls that take about as long have in common.
        twice: whether it may be made twice.
        began_s: when it began.
        by_s: when it has to be answered.
        alive: how many visits still want the answer.
        tries: the scopes of those who are at it, two at most.
        error: of the first of them that failed.
    """

    __slots__ = ("alive", "batch", "began_s", "by_s", "error", "kind", "tries", "twice")

    def __init__(self, batch: list[Visit], began_s: float, by_s: float) -> None:
        """Begin for a batch of one step."""
        step = batch[0].step
        self.batch = batch
        self.kind = step.skill, len(batch)
        self.twice = step.hedge and not step.leased
        self.began_s = began_s
        self.by_s = by_s
        self.alive = len(batch)
        self.tries: list[trio.CancelScope] = []
        self.error: AgentError | Busy | None = None
        for visit in batch:
            visit.call = self

    def stop(self) -> None:
        """Have nobody be at it any longer."""
        for scope in self.tries:
            scope.cancel()
        self.tries.clear()


class Visit:
    """A task that is here: waiting, or being worked on.

    Attributes:
        token: as it came, or as the home has it.
        pact: what it runs under.
        cursor: where it is now.
        step: what is to be done now.
        state: its row now.
        task: of this home: the keeper's; None: it is another home's.
        call: the agent's call that works on it.
        dead: nobody wants it any longer.
        since_s: when it came.
    """

    __slots__ = ("call", "cursor", "dead", "pact", "since_s", "state", "step", "task", "token")

    def __init__(
        self,
        token: Token,
        pact: Pact,
        cursor: Cursor,
        state: Mapping[str, Any],
        since_s: float,
        task: Task | None = None,
    ) -> None:
        """Begin at `cursor` with `state`."""
        self.token = token
        self.pact = pact
        self.cursor = cursor
        self.step: Step = current(pact.flow, cursor)
        self.state = state
        self.task = task
        self.call: Call | None = None
        self.dead = False
        self.since_s = since_s

    @property
    def flow(self) -> Flow:
        """The steps."""
        return self.pact.flow

    def goes(self, cursor: Cursor, state: Mapping[str, Any]) -> None:
        """Take the next step."""
        self.cursor, self.state = cursor, state
        self.step = current(self.pact.flow, cursor)

    def kill(self) -> None:
        """Want nothing more of it; the agent's call ends if nobody else waits for it."""
        if not self.dead:
            self.dead = True
            if self.call is not None:
                self.call.alive -= 1
                if not self.call.alive:
                    self.call.stop()

    def leaves(self, codec: Codec, outcome: Outcome = Outcome.UNDER_WAY, reason: str = "") -> Token:
        """Return the token with which it goes on elsewhere, one hop further."""
        old = self.token
        cursor, state, opened = codec.close(self.cursor, self.state)
        return Token(
            old.task_id, old.agreement, old.home, old.home_peer, old.attempt, old.sequence + 1, cursor, state, old.hops,
            old.deadline_ms, outcome, reason, opened,
        )  # fmt: skip


class Parcel:
    """A token on its way out.

    Attributes:
        row: what is journaled of it.
        key: of its token.
        since_s: when it was put out, or last sent another way.
        dead: nobody wants it any longer.
        sent: it may have arrived already: an answer to it was lost.
    """

    __slots__ = ("dead", "key", "row", "sent", "since_s")

    def __init__(self, row: Outgoing, since_s: float) -> None:
        """Put `row` out now."""
        self.row = row
        self.key = row.token.key
        self.since_s = since_s
        self.dead = False
        self.sent = False
