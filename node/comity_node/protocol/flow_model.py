"""What a flow is made of, and what a task under way has with it: values, all of them frozen.

`comity_node.protocol.flow` says how they go together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from comity_node.protocol.flow_state import Shape
from comity_node.protocol.flow_when import Condition

#: Where a way ends: the task is done, or it is let go.
END, DROP = "end", "drop"
#: Cost is counted in millionths of whatever unit the participants mean.
COST_UNIT = 1_000_000

#: Bytes of a flow as canonical JSON.
MAX_DOCUMENT = 64 * 1024
#: Steps of a flow.
MAX_STEPS = 64
#: Branches of one step's `next`.
MAX_BRANCHES = 16
#: Roles of a dialogue.
MAX_ROLES = 8
#: Turns of a dialogue, and visits that `most` may allow.
MAX_TURNS = 250
#: Tries that a step may have after the first.
MAX_RETRIES = 16
#: Rows that one call of an agent may have.
MAX_ROWS = 256
#: Leases that a flow may speak of.
MAX_LEASES = 4
#: Characters of a reason.
MAX_REASON = 200
#: Characters of what an agent calls the thing that it leased.
MAX_HANDLE = 128
#: What the `limits` of a flow may say of one task. With two hops for each step, a task has no more than a token may.
MAX_TASK_STEPS = 500
MAX_TASK_SECONDS = 30 * 86_400
MAX_TASK_TOKENS = 1_000_000_000
#: In whole units.
MAX_TASK_COST = 1_000_000

Json: TypeAlias = Any  # a JSON value


class Where(StrEnum):
    """Who may do a step."""

    HOME = "home"
    OTHERS = "others"
    ANY = "any"
    NAMED = "named"


@dataclass(frozen=True, slots=True)
class Place:
    """Which organizations may do a step.

    Attributes:
        where: the task's home, the others, any participant, or those that are named.
        organizations: their names, sorted, if they are named.
    """

    where: Where = Where.ANY
    organizations: tuple[str, ...] = ()

    def allows(self, organization: str, home: str) -> bool:
        """Whether `organization` may do it for a task of `home`."""
        if self.where is Where.NAMED:
            return organization in self.organizations
        return self.where is Where.ANY or (self.where is Where.HOME) == (organization == home)


@dataclass(frozen=True, slots=True)
class Branch:
    """A way on from a step.

    Attributes:
        go: the next step, `end` or `drop`.
        when: what has to hold; None: always.
        reason: why a task is dropped, if it says.
    """

    go: str
    when: Condition | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step, or one role's turn of a dialogue.

    Attributes:
        name: its name in the flow.
        skill: what an agent has to offer; of a dialogue as a whole: nothing.
        at: who may do it.
        reads: fields of the state that the agent gets.
        writes: fields that it may write.
        appends: arrays that it may write more items to: those that are there stay as they are.
        rows: tasks that one call of an agent may do at a time.
        hedge: whether it may be done a second time beside the first, where that takes very long.
        price: the most that one performance may cost, in millionths; None: whatever the task has left.
        most: visits of the step; 0: as many as there are ways to it.
        retries: tries after the first that failed.
        otherwise: where to go after `most` visits, or when all tries have failed; None: drop, or fail.
        next: ways on, of which the first that holds is taken; the last one always holds.
        lease: what has to be held while the step is done, and is acquired if it is not held yet.
        release: what is given back after the step.
        roles: of a dialogue: the roles' turns, in order.
        turns: of a dialogue: the most that there are.
        until: of a dialogue: what ends it before that.
    """

    name: str
    skill: str
    at: Place
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    appends: tuple[str, ...] = ()
    rows: int = 1
    price: int | None = None
    most: int = 0
    retries: int = 2
    otherwise: Branch | None = None
    next: tuple[Branch, ...] = (Branch(END),)
    lease: str = ""
    release: str = ""
    roles: tuple[Step, ...] = ()
    turns: int = 0
    until: Condition | None = None
    hedge: bool = True

    @property
    def leased(self) -> str:
        """The lease that it has to do with; empty: none."""
        return self.lease or self.release


@dataclass(frozen=True, slots=True)
class Budget:
    """What one task may take.

    Attributes:
        steps: performances of steps, turns of dialogues, tries that failed and leases that were lost, all together.
        seconds: from its beginning to its end.
        tokens: that agents say they used.
        cost: that agents say it was, in millionths.
    """

    steps: int = 64
    seconds: int = 600
    tokens: int = 1_000_000
    cost: int = 100 * COST_UNIT


class Finish(StrEnum):
    """What becomes of a task that is done."""

    CERTIFY = "certify"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Flow:
    """The steps of a workflow; `read_flow` makes it.

    Attributes:
        document: itself as canonical JSON (RFC 8785); two flows are the same if it is.
        state: the shape of a task's state.
        start: the first step.
        steps: by name.
        limits: of one task.
        record: fields of the state that become the record, sorted.
        required: fields without which no task is done.
        finish: what becomes of a task that is done.
    """

    document: bytes
    state: Shape = field(compare=False, repr=False)
    start: str = field(compare=False)
    steps: Mapping[str, Step] = field(compare=False)
    limits: Budget = field(compare=False)
    record: tuple[str, ...] = field(compare=False)
    required: tuple[str, ...] = field(compare=False)
    finish: Finish = field(compare=False)

    @property
    def skills(self) -> frozenset[str]:
        """Every skill that a step asks for."""
        return frozenset(turn.skill for step in self.steps.values() for turn in step.roles or (step,))

    @property
    def hedged(self) -> bool:
        """Whether every step may be done a second time beside the first."""
        return all(turn.hedge for step in self.steps.values() for turn in step.roles or (step,))

    def skills_at(self, organization: str, home: str) -> frozenset[str]:
        """Return the skills that steps may ask of `organization` for tasks of `home`."""
        turns = (turn for step in self.steps.values() for turn in step.roles or (step,))
        return frozenset(turn.skill for turn in turns if turn.at.allows(organization, home))


@dataclass(frozen=True, slots=True)
class Lease:
    """Something that a task holds between steps: a container, a session, a seat.

    Attributes:
        at: the organization that has it.
        step: the step that acquired it.
        handle: what the agent calls it.
    """

    at: str
    step: str
    handle: str = ""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a task is in its flow. It travels with the task.

    Attributes:
        step: the step that is to be done next.
        turn: of a dialogue: the turns that are over.
        tries: tries of this step, or turn, that have failed.
        visits: how often each step was come to, this time included.
        losses: how often each lease was lost.
        leases: what is held, by name.
        steps: what of the limits is used up, as `Budget` counts it.
        tokens: the same.
        cost: the same, in millionths.
        begun_ms: when the task began, in milliseconds since 1970; 0: not yet said.
    """

    step: str
    turn: int = 0
    tries: int = 0
    visits: Mapping[str, int] = field(default_factory=dict)
    losses: Mapping[str, int] = field(default_factory=dict)
    leases: Mapping[str, Lease] = field(default_factory=dict)
    steps: int = 0
    tokens: int = 0
    cost: int = 0
    begun_ms: int = 0


@dataclass(frozen=True, slots=True)
class Goes:
    """The task goes on.

    Attributes:
        cursor: where.
        state: with what.
        reason: why the same step is tried again, or a lease acquired anew; empty where nothing went wrong.
    """

    cursor: Cursor
    state: Mapping[str, Json]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """The task is done.

    Attributes:
        state: with what; `record_of` takes the record out of it.
        cursor: what it used up, and the leases that are still held.
    """

    state: Mapping[str, Json]
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class Dropped:
    """The flow lets the task go: that is no fault.

    Attributes:
        reason: why.
        cursor: what it used up, and the leases that are still held.
    """

    reason: str
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class Failed:
    """The task cannot go on.

    Attributes:
        reason: why.
        cursor: what it used up, and the leases that are still held.
        expired: its time is over.
    """

    reason: str
    cursor: Cursor
    expired: bool = False


Outcome: TypeAlias = Goes | Done | Dropped | Failed
