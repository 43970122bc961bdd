"""One run of one negotiation: the machine's questions are carried out, and the answers in.

What it stands at is written down before a question leaves (`negotiator`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeAlias

import trio

from comity.v1.agreement_pb2 import Terms
from comity_node.protocol.negotiation import (
    Answer,
    Ask,
    Concluded,
    Countered,
    Dropped,
    Event,
    Failed,
    Negotiation,
    Phase,
    Rejected,
    Signed,
    Snapshot,
    Waiting,
)
from comity_node.runtime import bargain
from comity_node.storage import negotiations

#: Characters of what else a peer says.
MAX_REASON = 512
#: Answers that wait to be taken; each organization has at most two questions under way.
_ANSWERS = 512

#: Called with (organization, step, detail) for the log that the submitter reads.
Step: TypeAlias = Callable[[str, str, str], Awaitable[None]]
Asking: TypeAlias = Callable[[Ask], Awaitable[Answer]]
Saving: TypeAlias = Callable[[negotiations.NegotiationRow], Awaitable[None]]


class Drive:
    """One run of one negotiation: carries the machine's questions out, and the answers in."""

    def __init__(
        self, machine: Negotiation, row: negotiations.NegotiationRow, step: Step, *, me: str, ask: Asking, save: Saving,
        now_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        """Take `machine` to its end in the name of `me`.

        Args:
            machine: what decides.
            row: where the negotiation stands.
            step: hears how it goes.
            me: the own organization.
            ask: asks one organization, and checks what it answers.
            save: writes down where it stands.
            now_ms: the time, in milliseconds since the Unix epoch.
        """
        self._asking = ask
        self._save = save
        self._machine = machine
        self._row = row
        self._step = step
        self._now_ms = now_ms
        self._me = me
        self._send, self._answers = trio.open_memory_channel[tuple[Ask, Answer]](_ANSWERS)
        #: Who was said to wait for a person, about which terms.
        self._told: set[tuple[str, bytes]] = set()

    async def to_the_end(self) -> Concluded | Failed:
        """Negotiate until it has ended."""
        row, machine = self._row, self._machine
        if row.round == 0:
            events = machine.start(self._now_ms())
        else:
            snapshot = Snapshot(Phase(row.phase), row.round, row.terms, row.participants)
            await self._step(self._me, "resumed", bargain.words(Terms.FromString(row.terms)))
            events = machine.resume(snapshot, self._now_ms())
        end: Concluded | Failed | None = None
        async with trio.open_nursery() as nursery:
            known: Snapshot | None = None
            while end is None:
                if machine.snapshot != known and not machine.over:
                    await self._note(known)
                    known = machine.snapshot
                for event in events:
                    if isinstance(event, Ask):
                        nursery.start_soon(self._ask, event)
                    elif isinstance(event, Dropped):
                        await self._step(event.organization, "left out", event.reason)
                    else:
                        end = event
                if end is None:
                    events = await self._next()
            nursery.cancel_scope.cancel()
        return end

    async def _note(self, known: Snapshot | None) -> None:
        """Write down where it stands now, and tell the submitter."""
        at = self._machine.snapshot
        terms = Terms.FromString(at.terms)
        row = negotiations.NegotiationRow(
            self._row.workflow_id, terms.id, at.phase.value, at.round, at.terms, at.participants, self._row.ends_ms
        )
        await self._save(row)
        if at.phase is Phase.SIGNING:
            await self._step(self._me, "signing", f"all {len(at.participants)} others are ready to sign")
        elif known is None or known.terms != at.terms:
            await self._step(self._me, "proposed", bargain.words(terms))

    async def _next(self) -> list[Event]:
        """Wait for an answer, or until somebody has to be asked again."""
        wait_s = max(0.0, (self._machine.next_ms - self._now_ms()) / 1000)
        with trio.move_on_after(wait_s) as scope:
            question, answer = await self._answers.receive()
        if scope.cancelled_caught:
            return self._machine.tick(self._now_ms())
        await self._tell(question, answer)
        return self._machine.receive(question.organization, question.terms, answer, self._now_ms())

    async def _ask(self, question: Ask) -> None:
        await self._send.send((question, await self._asking(question)))

    async def _tell(self, question: Ask, answer: Answer) -> None:
        who, about = question.organization, (question.organization, question.terms)
        match answer:
            case Signed():
                await self._step(who, "accepted", "signed")
            case Countered(terms):
                wanted = bargain.wishes(Terms.FromString(question.terms), Terms.FromString(terms))
                await self._step(who, "countered", wanted[:MAX_REASON])
            case Rejected(reason):
                await self._step(who, "rejected", reason)
            case Waiting(until_ms, reason) if about not in self._told:
                self._told.add(about)
                until = datetime.fromtimestamp(max(0, min(until_ms, self._row.ends_ms)) / 1000, UTC)
                until_text = until.isoformat(timespec="seconds").replace("+00:00", "Z")
                await self._step(who, "waiting", f"for approval at {who} until {until_text}: {reason}")
            case _:
                pass
