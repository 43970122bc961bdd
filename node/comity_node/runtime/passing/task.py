"""A task of the own home, as its keeper sees it."""

from __future__ import annotations

from comity_node.protocol.flow import Cursor
from comity_node.protocol.token import Token
from comity_node.runtime.passing.ports import Pact
from comity_node.runtime.passing.visit import Visit


class Task:
    """A task of this home that is not over.

    Attributes:
        token: what it starts again from; its attempt is the highest so far.
        cursor: of that token.
        pact: what it runs under.
        visit: it is at home, waiting or being worked on.
        outs: it is out: attempt to (organization, skill, since when).
        lease_s: when its lease is over.
        refused: who does not do its step, and whether that is for good.
        why: the last reason of a refusal.
        busy: something of it is being journaled.
        over: it has ended.
    """

    __slots__ = ("busy", "cursor", "lease_s", "outs", "over", "pact", "refused", "token", "visit", "why")

    def __init__(self, token: Token, pact: Pact, cursor: Cursor) -> None:
        """Begin at `token`."""
        self.token = token
        self.cursor = cursor
        self.pact = pact
        self.visit: Visit | None = None
        self.outs: dict[int, tuple[str, str, float]] = {}
        self.lease_s = 0.0
        self.refused: dict[str, bool] = {}
        self.why = ""
        self.busy = False
        self.over = False
