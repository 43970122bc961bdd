"""A task while it is with this organization, and one on its way out: what changes is here, not in the token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trio

from comity_node.protocol.flow import Cursor, Flow, Step, current
from comity_node.protocol.token import Outcome, Token
from comity_node.runtime.passing.codec import Codec
from comity_node.runtime.passing.ports import Outgoing, Pact

if TYPE_CHECKING:
    from comity_node.runtime.passing.task import Task


class Call:
    """One call of an agent, for a batch of visits."""

    __slots__ = ("alive", "scope")

    def __init__(self, alive: int) -> None:
        """Begin with so many visits that still want the answer."""
        self.alive = alive
        self.scope = trio.CancelScope()


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
                    self.call.scope.cancel()

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
        since_s: when it was put out, or last sent another way.
        dead: nobody wants it any longer.
        sent: it may have arrived already: an answer to it was lost.
    """

    __slots__ = ("dead", "row", "sent", "since_s")

    def __init__(self, row: Outgoing, since_s: float) -> None:
        """Put `row` out now."""
        self.row = row
        self.since_s = since_s
        self.dead = False
        self.sent = False
