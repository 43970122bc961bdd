"""Flows: how a task finds its own way, from step to step and from organization to organization.

A flow is data. It stands in the terms of an agreement, so everybody who takes part has signed the same one, and checks
what comes against it. Nothing in the middle keeps the plan: where a task is travels with it (Matrix, arXiv 2511.21686),
as a `Cursor`, beside its typed state.

    flow = read_flow(document["flow"])              # ConfigError with the path of what is wrong
    cursor, state = begin(flow, now_ms), {}
    step = current(flow, cursor)                    # which skill, where; in a dialogue: whose turn
    answer = agent(work_of(flow, cursor, state))    # gets only what the step reads
    match advance(flow, cursor, state, answer, now_ms, by=organization):
        case Goes(cursor, state): ...               # to the next step
        case Done(state): record_of(flow, state)
        case Dropped(reason) | Failed(reason): ...

All of it is pure: no clock, no chance, no I/O; the same arguments give the same outcome anywhere. And all of it ends:
`read_flow` refuses loops without a bound, and every answer uses up one of the task's steps. What comes from a peer goes
through `decode_cursor`, `check_cursor`, `decode_state` and `check_state` first. docs/workflows.md has the language.
"""

from __future__ import annotations

from comity_node.protocol.flow_advance import advance, answers_of, batch_of, begin, current, failed, lost
from comity_node.protocol.flow_cursor import (
    MAX_CURSOR,
    check_cursor,
    check_follows,
    check_state,
    decode_cursor,
    decode_state,
    encode_cursor,
    encode_state,
    record_of,
    work_of,
)
from comity_node.protocol.flow_model import (
    COST_UNIT,
    DROP,
    END,
    MAX_DOCUMENT,
    Branch,
    Budget,
    Cursor,
    Done,
    Dropped,
    Failed,
    Finish,
    Flow,
    Goes,
    Lease,
    Outcome,
    Place,
    Step,
    Where,
)
from comity_node.protocol.flow_read import parse_flow, read_flow
from comity_node.protocol.flow_state import MAX_STATE, Shape
from comity_node.protocol.flow_walk import check_done

__all__ = [
    "COST_UNIT",
    "DROP",
    "END",
    "MAX_CURSOR",
    "MAX_DOCUMENT",
    "MAX_STATE",
    "Branch",
    "Budget",
    "Cursor",
    "Done",
    "Dropped",
    "Failed",
    "Finish",
    "Flow",
    "Goes",
    "Lease",
    "Outcome",
    "Place",
    "Shape",
    "Step",
    "Where",
    "advance",
    "answers_of",
    "batch_of",
    "begin",
    "check_cursor",
    "check_done",
    "check_follows",
    "check_state",
    "current",
    "decode_cursor",
    "decode_state",
    "encode_cursor",
    "encode_state",
    "failed",
    "lost",
    "parse_flow",
    "read_flow",
    "record_of",
    "work_of",
]
