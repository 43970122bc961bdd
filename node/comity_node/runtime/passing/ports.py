"""What the engine of tasks under way needs of the world: journal, ledger, gate, carrier, agents, routing.

The engine itself has no I/O. `memory` has complete ports in memory; a node has durable and signed ones.

Journal and Ledger are two views of one store: a task's checkpoint (ledger) and the token that left for somebody
(journal) are written in one transaction when `Journal.finish` is told of a token whose home this organization is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from comity_node.protocol.flow import Flow
from comity_node.protocol.token import Key, Token
from comity_node.runtime.seams import Workers

__all__ = [
    "Answer", "Carrier", "Checkpoint", "End", "Ending", "Gateway", "Held", "Journal", "Ledger", "LedgerRecovery",
    "Move", "Note", "Outgoing", "Pact", "Pacts", "Quick", "Recovery", "Refusal", "Routing", "Sink", "Told", "Verdict",
    "Verdicts", "Workers",
]  # fmt: skip


class Answer(StrEnum):
    """What a receiver says of a token."""

    #: In its journal: it answers for it from now on.
    TAKEN = "taken"
    #: It had this very token before.
    KNOWN = "known"
    #: It has seen a later attempt of the task: this one is not needed.
    STALE = "stale"
    #: The task's deadline is over, or its home has it no longer open.
    OVER = "over"
    #: No room now: again after `retry_after_s`, or somebody else.
    BUSY = "busy"
    #: Its policy, the agreement or the token's form says no: somebody else.
    REFUSED = "refused"


_CUSTODY = frozenset({Answer.TAKEN, Answer.KNOWN, Answer.STALE, Answer.OVER})


@dataclass(frozen=True, slots=True)
class Verdict:
    """A receiver's answer to one token.

    Attributes:
        answer: what it says.
        reason: of a refusal.
        retry_after_s: of `busy`.
        unsure: it gave no answer: it may have it all the same.
    """

    answer: Answer
    reason: str = ""
    retry_after_s: float = 0.0
    unsure: bool = False

    @property
    def lets_go(self) -> bool:
        """Whether the sender need not keep the token any longer."""
        return self.answer in _CUSTODY


class Verdicts(list[Verdict]):
    """A receiver's answers to the tokens of one delivery, and how loaded it says that it is.

    Attributes:
        wait_s: in how many seconds it would have worked on a token that comes now: a claim. None: it says nothing.
    """

    __slots__ = ("wait_s",)

    def __init__(self, verdicts: Iterable[Verdict], wait_s: float | None = None) -> None:
        """Have an answer for each token."""
        super().__init__(verdicts)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Refusal:
    """A gate's no to one token.

    Attributes:
        reason: that may be told.
        retry_after_s: over 0: it may be a yes then (a rate is used up, a person is asked, the agreement is suspended);
            the token waits so long, or goes another way.
    """

    reason: str
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Held:
    """A token of another home, taken from `sender` into custody."""

    token: Token
    sender: str


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A token on its way out.

    Attributes:
        token: as the engine made it: what is routed anew if `to` does not take it.
        to: the organization that gets it.
        role: the skill that it is to perform, or `protocol.token.HOME`.
        passed: the token as the gate let it pass, with the signed hop and the state that may leave; None: not yet
            decided. A journal that keeps only what passed gives that, less the last hop, for `token` after a restart.
    """

    token: Token
    to: str
    role: str
    passed: Token | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """One transaction: a visit is done, and a token is outgoing for it.

    Attributes:
        visit: the visit of another home's token; None: the token was not in custody (it is of this home).
        outgoing: what goes out; one of the same key before it is replaced. None: the token is dropped (its deadline is
            over, its home cancelled it, or a later attempt came).
    """

    visit: Key | None
    outgoing: Outgoing | None


@dataclass(frozen=True, slots=True)
class Recovery:
    """What the journal has at the start.

    Attributes:
        held: visits that are not done.
        outgoing: tokens that are not acknowledged.
        seen: (home, task) to (attempt, sequence, deadline_ms): the last visit of each, for those not past the deadline.
    """

    held: Sequence[Held]
    outgoing: Sequence[Outgoing]
    seen: Mapping[tuple[str, bytes], tuple[int, int, int]]


class Journal(Protocol):
    """Custody of tokens, durable (R1, R2): what returned here survives `kill -9`. Each call is one transaction."""

    async def take(self, visits: Sequence[Held]) -> None:
        """Journal tokens that are taken into custody; (attempt, sequence) of each is then the last seen of its task.

        A visit that is in the journal already stays as it is.
        """

    async def finish(self, moves: Sequence[Move]) -> None:
        """Journal that visits are done and what is outgoing for them.

        Outgoing rows are keyed by their token's key. Where the token's home is this organization, the ledger's row of
        the task gets the token as its checkpoint, and `out = outgoing.to`, in the same transaction, unless the task is
        over: what the home did since the checkpoint before nobody else is believed to have done.
        """

    async def let_go(self, keys: Sequence[Key]) -> None:
        """Forget outgoing tokens: the receiver has them in custody."""

    async def recover(self) -> Recovery:
        """Return what an earlier run left."""


class End(StrEnum):
    """How a task ended."""

    DONE = "done"
    DROPPED = "dropped"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Ending:
    """A task of this home is over.

    Attributes:
        task_id: which one.
        agreement: digest of the agreement.
        end: how.
        state: its row at the end, RFC 8785 JSON (of a task that did not come to its end: at the last checkpoint).
        hops: who let it pass, signed, oldest first.
        attempt: which attempt came to the end first.
        reason: of an end that is not `done`.
        at_ms: when, milliseconds since the Unix epoch.
        cursor: where it was at the end: what it used up, and the leases that are still held.
    """

    task_id: bytes
    agreement: bytes
    end: End
    state: bytes
    hops: tuple[bytes, ...]
    attempt: int
    reason: str
    at_ms: int
    cursor: bytes = b""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A task of this home that is not over.

    Attributes:
        token: what it can start again from; its attempt is the highest that was sent out, and its sequence that of the
            hop with which it left, if it did.
        out: to whom the task went since the checkpoint; empty: it did not leave.
    """

    token: Token
    out: str = ""


@dataclass(frozen=True, slots=True)
class LedgerRecovery:
    """What the ledger has at the start: tasks that are not over, and ends that the sink has not confirmed."""

    open: Sequence[Checkpoint]
    unheard: Sequence[Ending]


class Ledger(Protocol):
    """The home's own tasks, durable. Each call is one transaction."""

    async def open(self, tokens: Sequence[Token]) -> Sequence[bool]:
        """Journal new tasks; False for each that was opened before (whatever became of it): it is not opened again."""

    async def checkpoint(self, tokens: Sequence[Token]) -> None:
        """Journal how far open tasks have come, with `out` empty; a task that is over stays over."""

    async def end(self, endings: Sequence[Ending]) -> None:
        """Journal that tasks are over: the first end of a task counts, a later one changes nothing.

        The task's own outgoing rows go in the same transaction.
        """

    async def heard(self, tasks: Sequence[bytes]) -> None:
        """Note that the sink has the ends of these tasks."""

    async def recover(self) -> LedgerRecovery:
        """Return what an earlier run left."""


class Sink(Protocol):
    """Who is told that tasks are over; after a restart perhaps again, so that by `task_id` each has one effect."""

    async def ended(self, endings: Sequence[Ending]) -> None:
        """Take ends; they are told once more after a restart unless this returned."""


class Gateway(Protocol):
    """The enforcement point, seen by the engine: policy, obligations, signatures, audit."""

    async def leave(self, to: str, rows: Sequence[Outgoing]) -> Sequence[Token | Refusal]:
        """Let tokens for `to` pass, each with the signed hop and the state as it may leave, or refuse them.

        What passed is in the outgoing row before this returns (`Outgoing.passed`), in the transaction of the decision's
        audit entry, so that no token is decided on twice. Only rows that have not passed are given.
        """

    async def arrive(self, sender: str, tokens: Sequence[Token]) -> Sequence[Refusal | None]:
        """Let tokens of `sender` in, or refuse them: form, agreement, hops, policy."""


class Told(StrEnum):
    """What a note says."""

    #: Holder to home: still here, waiting or being worked on: renew the lease.
    HOLDING = "holding"
    #: Home to holder: drop it, the task is over.
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Note:
    """A word about a task; it may be lost, which costs no more than a lease."""

    told: Told
    home: str
    task_id: bytes
    attempt: int


class Carrier(Protocol):
    """The way to other organizations."""

    async def deliver(self, to: str, rows: Sequence[Outgoing]) -> Sequence[Verdict]:
        """Bring tokens to an organization and return its verdicts, one each: `Verdicts`, if it said how loaded it is.

        Raises:
            Busy: it takes nothing now (`retry_after_ms`).
            LinkError: it cannot be reached, or the answer did not come in time.
        """

    async def tell(self, to: str, notes: Sequence[Note]) -> None:
        """Bring notes to an organization.

        Raises:
            LinkError: it cannot be reached.
        """


@dataclass(frozen=True, slots=True)
class Pact:
    """What the engine needs of an agreement.

    Attributes:
        agreement: its digest.
        flow: the steps.
        onward: whether a token may go from one organization to a third without coming home in between.
        lease_s: seconds that a holder has before its home must hear of it; None: the engine's own.
        expires_ms: when it is over, milliseconds since the Unix epoch; no task lasts longer. None: it does not end.
    """

    agreement: bytes
    flow: Flow
    onward: bool = False
    lease_s: float | None = None
    expires_ms: int | None = None


class Pacts(Protocol):
    """The agreements, and who offers what under them."""

    def pact(self, agreement: bytes) -> Pact | None:
        """Return an agreement; None: unknown, or over for good (its tasks end as cancelled).

        While it is suspended it is still returned, and nobody offers anything under it: its tasks wait.
        """

    def why_none(self, agreement: bytes) -> str:
        """Return why there is no such pact, for whoever looks at a task that has ended for it."""

    def offering(self, agreement: bytes, skill: str) -> Sequence[str]:
        """Return the participants (this organization too) that say that they offer a skill now."""


class Routing(Protocol):
    """Whom it pays to ask."""

    def pick(self, skill: str, candidates: Sequence[str], now_s: float) -> str | None:
        """Return one of `candidates` for a piece of work, None if none of them should be asked now."""

    def asked(self, organization: str, skill: str, workflow: str = "") -> None:
        """Note that a token went to an organization; `workflow` names whose it is."""

    def answered(self, organization: str, skill: str, after_s: float, good: bool) -> None:
        """Note that it came back (`good`), or that it was refused or its lease ran out."""

    def overtaken(self, organization: str, skill: str, after_s: float) -> None:
        """Note that it is not wanted back any more: another attempt's came first."""

    def released(self, organization: str, skill: str, after_s: float) -> None:
        """Note that it is not wanted back any more: the task was called off."""

    def hinted(self, organization: str, wait_s: float) -> None:
        """Note that an organization says that a token it gets now would take it so many seconds."""

    def busy(self, organization: str, retry_after_s: float) -> None:
        """Note that an organization takes nothing for so long."""


@runtime_checkable
class Quick(Protocol):
    """Agents that answer at once, without waiting for anything: for measurements and simulations."""

    def call_now(self, skill: str, payload: Any) -> Any:  # noqa: ANN401  (JSON in, JSON out)
        """Answer as `Workers.call` does.

        Raises:
            AgentError: as there.
        """
