"""The life of a task at its home, as one transition table.

Under way, in a workflow with a flow (`comity_node.protocol.flow`): the home sends the task out, and somebody holds it.

    queued ──sent──> offered ──taken──> leased ──begun──> working
      │ ^ └──────────taken (by the own organization)─^ ^──taken (it was passed on)──┘
      │ │                │                │               │
      │ └<───────────────┴── lease_over ──┴───────────────┤  (attempt + 1: somebody else gets it)
      │ └<───────────────┴─── returned ───┴───────────────┘  (its steps are done: the review is next)
      ├──> completed     (its steps are done, and the flow wants no review)
      ├──> dropped       (the flow lets it go)
      └──> failed        (agents failed, or a limit of the flow is used up)

Whatever a task comes back with counts in each of these four states: who sends it out anew may still hear of it.

In review:

    queued ──offered──> in_review ──accepted──> certified
      │                   │   │ └───rejected──> rejected
      │                   │   └────undecided──> undecided
      └─refused─> refused <┘ (every reviewer's policy refused)
                          └───repairable──> in_repair ──repaired──> queued (revision + 1)

From everywhere that is no end: `expired` (its time is over), `cancelled` (somebody said so).

Every task ends in exactly one of the states of `FINAL`.
"""

from __future__ import annotations

from enum import StrEnum

from comity.errors import UnexpectedMessage


class State(StrEnum):
    """Where a task is."""

    QUEUED = "queued"
    OFFERED = "offered"
    LEASED = "leased"
    WORKING = "working"
    IN_REVIEW = "in_review"
    IN_REPAIR = "in_repair"
    CERTIFIED = "certified"
    REJECTED = "rejected"
    UNDECIDED = "undecided"
    REFUSED = "refused"
    COMPLETED = "completed"
    DROPPED = "dropped"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Input(StrEnum):
    """What happens to a task."""

    SENT = "sent"
    TAKEN = "taken"
    BEGUN = "begun"
    LEASE_OVER = "lease_over"
    RETURNED = "returned"
    COMPLETED = "completed"
    DROPPED = "dropped"
    FAILED = "failed"
    OFFERED = "offered"
    REFUSED = "refused"
    ACCEPTED = "accepted"
    REPAIRABLE = "repairable"
    REJECTED = "rejected"
    UNDECIDED = "undecided"
    REPAIRED = "repaired"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


#: States that a task never leaves.
FINAL = frozenset(
    {
        State.CERTIFIED,
        State.REJECTED,
        State.UNDECIDED,
        State.REFUSED,
        State.COMPLETED,
        State.DROPPED,
        State.FAILED,
        State.EXPIRED,
        State.CANCELLED,
    }
)
#: States in which somebody may hold the task and do its steps.
UNDER_WAY = frozenset({State.OFFERED, State.LEASED, State.WORKING})

_HELD: dict[tuple[State, Input], State] = {
    (State.QUEUED, Input.SENT): State.OFFERED,
    (State.QUEUED, Input.TAKEN): State.LEASED,
    (State.OFFERED, Input.TAKEN): State.LEASED,
    (State.OFFERED, Input.BEGUN): State.WORKING,
    (State.LEASED, Input.TAKEN): State.LEASED,
    (State.LEASED, Input.BEGUN): State.WORKING,
    (State.WORKING, Input.TAKEN): State.LEASED,
    (State.WORKING, Input.BEGUN): State.WORKING,
    **{(state, Input.LEASE_OVER): State.QUEUED for state in UNDER_WAY},
    **{(state, Input.REFUSED): State.REFUSED for state in UNDER_WAY},
    **{(state, Input.UNDECIDED): State.UNDECIDED for state in UNDER_WAY},
}
_CAME_BACK = {
    Input.RETURNED: State.QUEUED,
    Input.COMPLETED: State.COMPLETED,
    Input.DROPPED: State.DROPPED,
    Input.FAILED: State.FAILED,
}
_REVIEW: dict[tuple[State, Input], State] = {
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
_TRANSITIONS: dict[tuple[State, Input], State] = {
    **_HELD,
    **{(state, came): after for state in (State.QUEUED, *UNDER_WAY) for came, after in _CAME_BACK.items()},
    **_REVIEW,
    **{(state, Input.EXPIRED): State.EXPIRED for state in State if state not in FINAL},
    **{(state, Input.CANCELLED): State.CANCELLED for state in State if state not in FINAL},
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
