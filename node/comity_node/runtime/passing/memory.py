"""The engine's ports in memory: no disk, no signatures, no policy. For tests, simulations and measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, TypeAlias

from comity.errors import NoWorker
from comity_node.protocol.token import Key, Token
from comity_node.runtime.passing.ports import (
    Checkpoint,
    Ending,
    Held,
    LedgerRecovery,
    Move,
    Outgoing,
    Pact,
    Recovery,
    Refusal,
)

Agent: TypeAlias = Callable[[Any], Any]


class MemoryStore:
    """Journal and ledger of one organization, which outlive a crash of its engine."""

    def __init__(self, me: str) -> None:
        """Be empty."""
        self._me = me
        self.held: dict[Key, Held] = {}
        self.outgoing: dict[Key, Outgoing] = {}
        self.seen: dict[tuple[str, bytes], tuple[int, int, int]] = {}
        self.tasks: dict[bytes, Checkpoint] = {}
        self.ends: dict[bytes, Ending] = {}
        self.unheard: dict[bytes, Ending] = {}

    def take_now(self, visits: Sequence[Held]) -> None:
        """See `Journal.take`."""
        for visit in visits:
            token = visit.token
            self.held.setdefault(token.key, visit)
            self.seen[token.home, token.task_id] = (token.attempt, token.sequence, token.deadline_ms)

    def finish_now(self, moves: Sequence[Move]) -> None:
        """See `Journal.finish`."""
        for move in moves:
            if move.visit is not None:
                self.held.pop(move.visit, None)
            if (row := move.outgoing) is not None:
                token = row.token
                if token.home == self._me:
                    if token.task_id not in self.tasks:
                        continue
                    self.tasks[token.task_id] = Checkpoint(token, row.to)
                self.outgoing[token.key] = row

    def passed_now(self, rows: Sequence[Outgoing], tokens: Sequence[Token | Refusal]) -> None:
        """See `Gateway.leave`."""
        for row, token in zip(rows, tokens, strict=True):
            if row.token.key in self.outgoing and not isinstance(token, Refusal):
                self.outgoing[row.token.key] = replace(row, passed=token)

    def let_go_now(self, keys: Sequence[Key]) -> None:
        """See `Journal.let_go`."""
        for key in keys:
            self.outgoing.pop(key, None)

    def open_now(self, tokens: Sequence[Token]) -> list[bool]:
        """See `Ledger.open`."""
        new = [token.task_id not in self.tasks and token.task_id not in self.ends for token in tokens]
        self.tasks |= {token.task_id: Checkpoint(token) for token, is_new in zip(tokens, new, strict=True) if is_new}
        return new

    def checkpoint_now(self, tokens: Sequence[Token]) -> None:
        """See `Ledger.checkpoint`."""
        self.tasks |= {token.task_id: Checkpoint(token) for token in tokens if token.task_id in self.tasks}

    def end_now(self, endings: Sequence[Ending]) -> None:
        """See `Ledger.end`."""
        for ending in endings:
            point = self.tasks.pop(ending.task_id, None)
            if point is not None:
                self.ends[ending.task_id] = self.unheard[ending.task_id] = ending
                if point.out:
                    self.outgoing.pop(point.token.key, None)

    def heard_now(self, tasks: Sequence[bytes]) -> None:
        """See `Ledger.heard`."""
        for task_id in tasks:
            self.unheard.pop(task_id, None)


class MemoryJournal:
    """Custody in a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        """Write to `store`, at once."""
        self._store = store

    async def take(self, visits: Sequence[Held]) -> None:
        """Journal tokens that are taken."""
        self._store.take_now(visits)

    async def finish(self, moves: Sequence[Move]) -> None:
        """Journal visits that are done, and what is outgoing for them."""
        self._store.finish_now(moves)

    async def let_go(self, keys: Sequence[Key]) -> None:
        """Forget outgoing tokens."""
        self._store.let_go_now(keys)

    async def recover(self) -> Recovery:
        """Return what an earlier run left."""
        store = self._store
        return Recovery(list(store.held.values()), list(store.outgoing.values()), dict(store.seen))


class MemoryLedger:
    """The home's tasks in a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        """Write to `store`, at once."""
        self._store = store

    async def open(self, tokens: Sequence[Token]) -> Sequence[bool]:
        """Journal new tasks."""
        return self._store.open_now(tokens)

    async def checkpoint(self, tokens: Sequence[Token]) -> None:
        """Journal how far tasks have come."""
        self._store.checkpoint_now(tokens)

    async def end(self, endings: Sequence[Ending]) -> None:
        """Journal that tasks are over."""
        self._store.end_now(endings)

    async def heard(self, tasks: Sequence[bytes]) -> None:
        """Note that the sink has their ends."""
        self._store.heard_now(tasks)

    async def recover(self) -> LedgerRecovery:
        """Return what an earlier run left."""
        return LedgerRecovery(list(self._store.tasks.values()), list(self._store.unheard.values()))


class OpenGateway:
    """Lets everything pass as it is, save what `denied` says no to."""

    def __init__(self, store: MemoryStore, denied: Callable[[str, str, Token], str] | None = None) -> None:
        """Refuse what `denied(to, role, token)` has a reason for."""
        self._store = store
        self._denied = denied

    async def leave(self, to: str, rows: Sequence[Outgoing]) -> Sequence[Token | Refusal]:
        """Let tokens out."""
        if self._denied is None:
            return [row.token for row in rows]
        denied = self._denied
        passed = [Refusal(why) if (why := denied(to, row.role, row.token)) else row.token for row in rows]
        self._store.passed_now(rows, passed)
        return passed

    async def arrive(self, sender: str, tokens: Sequence[Token]) -> Sequence[Refusal | None]:
        """Let tokens in."""
        return [None] * len(tokens)


class Turns:
    """A plain router: one after the other, beginning anywhere; whoever is busy is passed over (`Routing`)."""

    def __init__(self, random: Random) -> None:
        """Begin with one that `random` draws."""
        self._random = random
        self._next: dict[str, int] = {}
        self._busy: dict[str, float] = {}
        self._now_s = 0.0
        self.asked_now: dict[str, int] = {}

    def pick(self, skill: str, candidates: Sequence[str], now_s: float) -> str | None:
        """Return the next of `candidates` that is not busy."""
        self._now_s = now_s
        if self._busy:
            self._busy = {each: until_s for each, until_s in self._busy.items() if until_s > now_s}
            candidates = [each for each in candidates if each not in self._busy]
        if not candidates:
            return None
        turn = self._next.get(skill)
        if turn is None:
            turn = self._random.randrange(1 << 16)
        self._next[skill] = turn + 1
        return candidates[turn % len(candidates)]

    def asked(self, organization: str, skill: str, workflow: str = "") -> None:
        """Count what is with an organization."""
        self.asked_now[organization] = self.asked_now.get(organization, 0) + 1

    def answered(self, organization: str, skill: str, after_s: float, good: bool) -> None:
        """Count what is with an organization."""
        self.asked_now[organization] = self.asked_now.get(organization, 0) - 1

    def overtaken(self, organization: str, skill: str, after_s: float) -> None:
        """Count what is with an organization."""
        self.asked_now[organization] = self.asked_now.get(organization, 0) - 1

    released = overtaken

    def hinted(self, organization: str, wait_s: float) -> None:
        """Take turns all the same."""

    def busy(self, organization: str, retry_after_s: float) -> None:
        """Pass an organization over for so long."""
        self._busy[organization] = self._now_s + retry_after_s


class Agents:
    """Agents that are functions and answer at once (`Workers` and `Quick`)."""

    def __init__(self, skills: Mapping[str, Agent]) -> None:
        """Answer by `skills`: name to function of the input."""
        self._skills = dict(skills)

    def skills(self) -> tuple[str, ...]:
        """Return what they can."""
        return tuple(self._skills)

    def call_now(self, skill: str, payload: Any) -> Any:  # noqa: ANN401  (JSON)
        """Answer."""
        agent = self._skills.get(skill)
        if agent is None:
            raise NoWorker(f"nobody offers {skill!r}")
        return agent(payload)

    async def call(self, skill: str, payload: Any, *, deadline_s: float) -> Any:  # noqa: ANN401  (JSON)
        """Answer."""
        return self.call_now(skill, payload)


class MemoryPacts:
    """Agreements that everybody in one process knows."""

    def __init__(self, pacts: Sequence[Pact], offering: Mapping[str, Sequence[str]]) -> None:
        """Know `pacts`, and who offers each skill: a mapping that may change later."""
        self._pacts = {pact.agreement: pact for pact in pacts}
        self._offering = offering

    def pact(self, agreement: bytes) -> Pact | None:
        """Return an agreement."""
        return self._pacts.get(agreement)

    def why_none(self, agreement: bytes) -> str:
        """Return why there is no such pact."""
        return "its agreement is over"

    def offering(self, agreement: bytes, skill: str) -> Sequence[str]:
        """Return who offers a skill."""
        return self._offering.get(skill, ())
