"""What the gate is asked, and names for what an answer is good for or paid from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from comity.digest import canonical_json
from comity_node.admission.shapes import Shape
from comity_node.policy.lattice import Budget
from comity_node.policy.model import Decision, Request

#: Privacy loss is counted in whole millionths of an epsilon.
EPSILON_UNIT: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Spending:
    """The noise of one record or table: what it costs, and which drawing of noise it was.

    Args:
        release: 32 bytes that no other drawing has: the same noisy bytes are paid for once, wherever they go.
        cost: the sum of epsilon over all numbers that got noise, in millionths.
    """

    release: bytes
    cost: int


@dataclass(frozen=True, slots=True)
class Question:
    """What the policy is asked, and what it is about.

    Args:
        request: the question itself.
        subject: SHA-256 of what would cross (a record, a manifest, the terms); empty if there is no such thing.
        agreement: digest of the agreement that it happens under; empty before there is one.
        amount: records that count against the rates and quotas of the rules that allow it.
        spending: what is spent of their privacy budgets; None if no noise was added.
        note: what its entry in the audit log says beside the rest.
    """

    request: Request
    subject: bytes = b""
    agreement: bytes = b""
    amount: int = 1
    spending: Spending | None = None
    note: Mapping[str, str | int | Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Waiting(Decision):
    """A denial that becomes something else once a person has decided.

    Attributes:
        approval: the approval's id, 16 bytes.
        deadline_ms: until when it waits.
    """

    approval: bytes = b""
    deadline_ms: int = 0


def scope_of(question: Question, shape: Shape) -> bytes:
    """Return what an approval is good for: the agreement, or the very thing, or if there is none the same question."""
    return question.agreement or question.subject or bytes.fromhex(shape.digest)


def budget_scope(budget: Budget, request: Request) -> str:
    """Return the name under which a budget is counted: its rule, and each thing that it is kept apart by."""
    kept = {"purpose": request.purpose, "recipient": request.organization}
    return canonical_json([budget.rule, *(kept[name] for name in budget.per)]).decode()


def to_units(epsilon: float, *, up: bool) -> int:
    """Return an epsilon in millionths: what is spent rounded up, what may be spent down."""
    exact = epsilon * EPSILON_UNIT
    near = round(exact)
    if math.isclose(exact, near, rel_tol=1e-9):
        return near
    return math.ceil(exact) if up else math.floor(exact)
