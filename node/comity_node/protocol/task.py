"""The life of a task at its home, as one transition table.

    queued ──offered──> in_review ──accepted──> certified
      │                   │   │ └───rejected──> rejected
      │                   │   └────undecided──> undecided
      └─refused─> refused <┘ (every reviewer's policy refused)
                          └───repairable──> in_repair ──repaired──> queued (revision + 1)

Every task that was offered ends in exactly one of certified, rejected, undecided or refused.
"""

from __future__ import annotations

from enum import StrEnum

from comity.errors import UnexpectedMessage


class State(StrEnum):
    """Where a task is."""

    QUEUED = "queued"
    IN_REVIEW = "in_review"
    IN_REPAIR = "in_repair"
    CERTIFIED = "certified"
    REJECTED = "rejected"
    UNDECIDED = "undecided"
    REFUSED = "refused"


class Input(StrEnum):
    """What happens to a task."""

    OFFERED = "offered"
    REFUSED = "refused"
    ACCEPTED = "accepted"
    REPAIRABLE = "repairable"
    REJECTED = "rejected"
    UNDECIDED = "undecided"
    REPAIRED = "repaired"


#: States that a task never leaves.
FINAL = frozenset({State.CERTIFIED, State.REJECTED, State.UNDECIDED, State.REFUSED})

_TRANSITIONS: dict[tuple[State, Input], State] = {
    (State.QUEUED, Input.OFFERED): State.IN_REVIEW,
    (State.QUEUED, Input.REFUSED): State.REFUSED,
    (State.QUEUED, Input.UNDECIDED): State.UNDECIDED,
    (State.IN_REVIEW, Input.ACCEPTED): State.CERTIFIED,
    (State.IN_REVIEW, Input.REPAIRABLE): State.IN_REPAIR,
    (State.IN_REVIEW, Input.REJECTED): State.REJECTED,
    (State.IN_REVIEW, Input.UNDECIDED): State.UNDECIDED,
    (State.IN_REVIEW, Input.REFUSED): State.REFUSED,
    (State.IN_REPAIR, Input.REPAIRED): State.QUEUED,
    (State.IN_REPAIR, Input.REJECTED): State.REJECTED,
    (State.IN_REPAIR, Input.UNDECIDED): State.UNDECIDED,
}


def advance(state: State, happened: Input) -> State:
    """Return the state after `happened`.

    Raises:
        UnexpectedMessage: that cannot happen in `state`.
    """
    try:
        return _TRANSITIONS[state, happened]
    except KeyError:
        raise UnexpectedMessage(f"a task that is {state} cannot become {happened}") from None
