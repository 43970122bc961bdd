"""The holder's side: custody of other homes' tokens, from the acknowledgement until somebody else has them.

Invariants
  R1  a token is acknowledged after it is in the journal, and leaves it when somebody else has it in custody.
  R2  a token that comes twice is worked on once; an attempt that a later one has overtaken, not at all.
  R3  what agents that stand still do not get done is given back, a few tokens at once, if somebody else can do it.
  R4  custody is bounded, in all and of each home; beyond it a sender is told to come again later.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import trio

from comity.errors import FlowMismatch, StorageError, UnexpectedMessage
from comity_node.protocol.flow import Done, Dropped, Failed, Goes, Where
from comity_node.protocol.flow import Outcome as Came
from comity_node.protocol.token import HOME, Outcome, Token
from comity_node.runtime.passing.bell import Bell
from comity_node.runtime.passing.calls import Calls
from comity_node.runtime.passing.codec import Codec
from comity_node.runtime.passing.desk import Desk
from comity_node.runtime.passing.giving import Giving
from comity_node.runtime.passing.lanes import Lanes
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.ports import (
    Answer,
    Held,
    Journal,
    Move,
    Note,
    Outgoing,
    Pacts,
    Recovery,
    Told,
    Verdict,
)
from comity_node.runtime.passing.visit import Parcel, Visit
from comity_node.runtime.passing.ways import Ways

log = logging.getLogger(__name__)

_TAKEN = Verdict(Answer.TAKEN)
_KNOWN = Verdict(Answer.KNOWN)
_STALE = Verdict(Answer.STALE)
_OVER = Verdict(Answer.OVER)
#: The same token is being journaled at this moment.
_AT_ONCE = Verdict(Answer.BUSY, retry_after_s=0.01)
_TICK_S = 1.0
_SHORTEST_TICK_S = 0.01
#: What a sender is told while no agent here offers the step: of that token alone, and for long enough to go elsewhere.
_NO_AGENT_S = 1.0


class Holder:
    """Holds, works on and passes on what other homes' tasks need of this organization."""

    def __init__(
        self, *, me: str, pacts: Pacts, journal: Journal, ways: Ways, calls: Calls, desk: Desk, lanes: Lanes,
        limits: PassingLimits, now_ms: Callable[[], int], codec: Codec,
    ) -> None:  # fmt: skip
        """Hold tokens for organization `me`."""
        self._me = me
        self._pacts = pacts
        self._journal = journal
        self._ways = ways
        self._calls = calls
        self._desk = desk
        self._lanes = lanes
        self._limits = limits
        self._now_ms = now_ms
        self._codec = codec
        self._busy = Verdict(Answer.BUSY, "no room for more tokens", limits.retry_after_s)
        self._visits: dict[tuple[str, bytes], Visit] = {}
        self._taking: set[tuple[str, bytes]] = set()
        self._seen: dict[tuple[str, bytes], tuple[int, int, int]] = {}
        self._custody: Counter[str] = Counter()
        self._total = 0
        self._stalled: list[Visit] = []
        #: Of each agreement under which something is here: its lease, and when homes were told last.
        self._leases: dict[bytes, tuple[float, float]] = {}
        self._sooner = Bell()
        self._giving = Giving(limits)

    @property
    def custody(self) -> int:
        """How many tokens of other homes are here or on their way out."""
        return self._total

    def recover(self, recovery: Recovery) -> None:
        """Go on with what an earlier run had in custody."""
        self._seen.update(recovery.seen)
        for row in recovery.outgoing:
            if row.token.home != self._me:
                self._count(row.token.home, 1)
                self._note_lease(row.token.agreement)
        for held in sorted(recovery.held, key=lambda each: (each.token.attempt, each.token.sequence)):
            self._count(held.token.home, 1)
            opened = self._open(held.token)
            if isinstance(opened, Visit):
                self._admit(opened)
            else:
                token = replace(
                    held.token, sequence=held.token.sequence + 1, outcome=Outcome.GIVEN_BACK, reason=opened.reason
                )
                self._desk.put(Move(held.token.key, Outgoing(token, token.home, HOME)))

    async def take(self, tokens: Sequence[Token], sender: str) -> list[Verdict]:
        """Take tokens of `sender` into custody; those that are taken are in the journal when this returns."""
        now_ms = self._now_ms()
        verdicts: list[Verdict] = []
        fresh: list[Visit] = []
        for token in tokens:
            judged = self._judge(token, now_ms)
            if isinstance(judged, Visit):
                self._taking.add((token.home, token.task_id))
                self._count(token.home, 1)
                fresh.append(judged)
                judged = _TAKEN
            verdicts.append(judged)
        if not fresh:
            return verdicts
        journaled = False
        try:
            await self._journal.take([Held(visit.token, sender) for visit in fresh])
            journaled = True
        except StorageError as error:
            log.error("tokens are not taken: %s", error.diagnostics())  # noqa: TRY400  (no bug, so no traceback)
            return [self._busy if verdict is _TAKEN else verdict for verdict in verdicts]
        finally:
            for visit in fresh:
                token = visit.token
                self._taking.discard((token.home, token.task_id))
                if journaled:
                    self._remember(token)
                    self._admit(visit)
                else:
                    self._count(token.home, -1)
        return verdicts

    def _judge(self, token: Token, now_ms: int) -> Verdict | Visit:
        task = (token.home, token.task_id)
        if token.deadline_ms <= now_ms:
            return _OVER
        if task in self._taking:
            return _AT_ONCE
        if (seen := self._seen.get(task)) is not None:
            if token.attempt < seen[0]:
                return _STALE
            if token.attempt == seen[0] and token.sequence <= seen[1]:
                return _KNOWN
        if self._total >= self._limits.custody or self._custody[token.home] >= self._limits.custody_per_home:
            return self._busy
        opened = self._open(token)
        if isinstance(opened, Visit) and not self._ways.can(opened.pact, opened.cursor, opened.step, token.home):
            why = f"{self._me} does not do {opened.step.skill!r} for it now"
            if opened.step.at.allows(self._me, token.home):  # its agents may be back soon: no refusal for good
                return Verdict(Answer.BUSY, why, _NO_AGENT_S)
            return Verdict(Answer.REFUSED, why)
        return opened

    def _open(self, token: Token) -> Verdict | Visit:
        """Read a token against its agreement."""
        pact = self._pacts.pact(token.agreement)
        if pact is None:
            return Verdict(Answer.REFUSED, "no such agreement runs here now")
        if token.outcome is not Outcome.UNDER_WAY:
            return Verdict(Answer.REFUSED, "a task that is over goes home")
        try:
            cursor, state = self._codec.check(pact.flow, token, under_way=True)
        except (FlowMismatch, UnexpectedMessage) as error:
            return Verdict(Answer.REFUSED, str(error))
        return Visit(token, pact, cursor, state, trio.current_time())

    def _admit(self, visit: Visit) -> None:
        task = (visit.token.home, visit.token.task_id)
        if (old := self._visits.get(task)) is not None:
            self._drop(old)
        self._visits[task] = visit
        self._note_lease(visit.token.agreement)
        self._calls.put(visit)

    def _remember(self, token: Token) -> None:
        task = (token.home, token.task_id)
        self._seen.pop(task, None)
        self._seen[task] = (token.attempt, token.sequence, token.deadline_ms)
        if len(self._seen) > self._limits.seen:
            del self._seen[next(iter(self._seen))]

    def _count(self, home: str, by: int) -> None:
        self._total += by
        self._custody[home] += by
        if not self._custody[home]:
            del self._custody[home]

    # What came of a step.

    def worked(self, visit: Visit, came: Came) -> None:
        """Pass a token on after its step."""
        match came:
            case Goes(cursor, state):
                visit.goes(cursor, state)
                self._onward(visit)
            case Done(state, cursor):
                visit.state, visit.cursor = state, cursor
                self._leave(visit, visit.token.home, HOME, Outcome.DONE)
            case Dropped(reason, cursor):
                visit.cursor = cursor
                self._leave(visit, visit.token.home, HOME, Outcome.DROPPED, reason)
            case Failed(reason, cursor):
                visit.cursor = cursor
                self._leave(visit, visit.token.home, HOME, Outcome.FAILED, reason)

    def unable(self, visit: Visit, reason: str) -> None:
        """Give a token back whose step nobody here does, if somebody else can; else keep it until somebody does."""
        if self._elsewhere(visit):
            self._leave(visit, visit.token.home, HOME, Outcome.GIVEN_BACK, reason[:200])
        else:
            self._stalled.append(visit)

    def workers_changed(self) -> None:
        """Try again what nobody could do: there are other agents now."""
        stalled, self._stalled = self._stalled, []
        for visit in stalled:
            if not visit.dead:
                self._calls.put(visit)

    def _onward(self, visit: Visit) -> None:
        """Do the next step here, have a third organization do it, or send the task home, which is always right."""
        pact, step, home = visit.pact, visit.step, visit.token.home
        if self._ways.can(pact, visit.cursor, step, home):
            self._calls.put(visit)
            return
        if pact.onward and step.at.where is not Where.HOME:
            to = self._ways.choose_other(pact, visit.cursor, step, home, ())
            if to is not None and to != home:
                self._leave(visit, to, step.skill)
                return
        self._leave(visit, home, HOME)

    def _leave(self, visit: Visit, to: str, role: str, outcome: Outcome = Outcome.UNDER_WAY, reason: str = "") -> None:
        self._forget(visit)
        row = Outgoing(visit.leaves(self._codec, outcome, reason), to, role)
        self._desk.put(Move(visit.token.key, row), visit)

    def _forget(self, visit: Visit) -> None:
        task = (visit.token.home, visit.token.task_id)
        if self._visits.get(task) is visit:
            del self._visits[task]

    def _drop(self, visit: Visit) -> None:
        """Let a token go to nobody: its task is over, or a later attempt is here."""
        visit.kill()
        self._forget(visit)
        self._count(visit.token.home, -1)
        self._desk.put(Move(visit.token.key, None), visit)

    def _drop_row(self, token: Token, reason: str) -> None:
        log.info("task %s of %s is let go: %s", token.task_id.hex(), token.home, reason)
        self._count(token.home, -1)
        self._desk.drop(token.key)

    # What became of a token on its way out.

    def delivered(self, parcel: Parcel, verdict: Verdict) -> None:
        """Let go of a token that somebody else has."""
        self._count(parcel.row.token.home, -1)

    def refused(self, parcel: Parcel, reason: str) -> None:
        """Send a token home that another does not take; what its home does not take is dropped."""
        token = parcel.row.token
        self._lanes.drop(parcel)
        if parcel.row.role == HOME:
            self._drop_row(token, f"its home does not take it: {reason}")
        else:
            self._desk.reroute(Outgoing(token, token.home, HOME))

    def waited(self, parcel: Parcel) -> None:
        """Send a token home that another has no room for; for its home it waits until the deadline."""
        if parcel.row.role != HOME:
            self.refused(parcel, "")

    # Time, and the home's word.

    def cancel(self, notes: Iterable[Note], sender: str) -> None:
        """Drop what its home no longer wants."""
        wanted = {(note.home, note.task_id): note.attempt for note in notes if note.home == sender}
        for task, attempt in wanted.items():
            if (visit := self._visits.get(task)) is not None and visit.token.attempt <= attempt:
                self._drop(visit)
        for parcel in self._lanes.parcels() if wanted else ():
            token = parcel.row.token
            if token.home != self._me and token.attempt <= wanted.get((token.home, token.task_id), 0):
                self._lanes.drop(parcel)
                self._drop_row(token, "cancelled by its home")

    async def run(self, tell: Callable[[str, Sequence[Note]], None]) -> None:
        """Drop what is over its deadline and tell homes what is still here, until cancelled."""
        while True:
            with trio.move_on_after(self._pause_s(trio.current_time())):
                await self._sooner.wait()
            self.workers_changed()
            self._expire()
            self._hand_on()
            now_s = trio.current_time()
            if due := {each for each, (lease_s, told_s) in self._leases.items() if now_s - told_s >= lease_s / 4}:
                # Also of those that came just now: a way of many short visits has one lease at home.
                for home, notes in self._held_of(due).items():
                    tell(home, notes)
                for each in due & self._leases.keys():
                    self._leases[each] = self._leases[each][0], now_s

    def _pause_s(self, now_s: float) -> float:
        """Return in how many seconds something may be due: a lease, or a visit that agents that stand still have."""
        if not self._leases:
            return _TICK_S  # nothing is here
        lease_s = min(lease_s for lease_s, _ in self._leases.values())
        patience_s = self._calls.patience_s()
        if self._visits:
            oldest = next(iter(self._visits.values()))
            patience_s -= now_s - oldest.since_s
        overdue_s = max(_SHORTEST_TICK_S, self._limits.call_hedge_least_s, patience_s)
        return min(_TICK_S, lease_s / 4, overdue_s)

    def _hand_on(self) -> None:
        """Give back what own agents do not get done since they stand still, if somebody else can do it (R3).

        The home sends it elsewhere from where it is.
        """
        visits, overdue = self._visits.values(), self._calls.overdue()
        for visit in self._giving.chosen(visits, overdue, trio.current_time(), self._elsewhere):
            visit.kill()
            self._leave(visit, visit.token.home, HOME, Outcome.GIVEN_BACK, "its agents stand still")

    def _elsewhere(self, visit: Visit) -> bool:
        """Whether another organization says that it can do the step of a visit."""
        others = self._ways.candidates(visit.pact, visit.cursor, visit.step, visit.token.home)
        return any(each != self._me for each in others)

    def _note_lease(self, agreement: bytes) -> None:
        if agreement not in self._leases:
            pact = self._pacts.pact(agreement)
            lease_s = (pact.lease_s if pact is not None else None) or self._limits.lease_s
            self._leases[agreement] = lease_s, trio.current_time()
            self._sooner.ring()

    def _expire(self) -> None:
        now_ms = self._now_ms()
        for visit in [each for each in self._visits.values() if each.token.deadline_ms <= now_ms]:
            self._drop(visit)
        for parcel in self._lanes.parcels():
            if parcel.row.token.home != self._me and parcel.row.token.deadline_ms <= now_ms:
                self._lanes.drop(parcel)
                self._drop_row(parcel.row.token, "its deadline is over")
        while self._seen and self._seen[oldest := next(iter(self._seen))][2] <= now_ms:
            del self._seen[oldest]

    def _held_of(self, agreements: set[bytes]) -> Mapping[str, list[Note]]:
        notes: dict[str, list[Note]] = {}
        held = [visit.token for visit in self._visits.values()]
        held += [parcel.row.token for parcel in self._lanes.parcels() if parcel.row.token.home != self._me]
        for token in held:
            if token.agreement in agreements:
                notes.setdefault(token.home, []).append(Note(Told.HOLDING, token.home, token.task_id, token.attempt))
        if not self._total:  # what is being journaled at this moment is in neither of them
            self._leases.clear()
        return notes

    def let_go(self, agreement: bytes) -> int:
        """Drop all that is here or on its way out under an agreement that is over; returns how many there were."""
        visits = [visit for visit in self._visits.values() if visit.token.agreement == agreement]
        for visit in visits:
            self._drop(visit)
        rows = [each for each in self._lanes.parcels() if each.row.token.agreement == agreement]
        rows = [each for each in rows if each.row.token.home != self._me]
        for parcel in rows:
            self._lanes.drop(parcel)
            self._drop_row(parcel.row.token, "its agreement is over")
        return len(visits) + len(rows)
