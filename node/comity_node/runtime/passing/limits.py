"""What tasks under way may cost a node, and how patient it is with others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PassingLimits:
    """Bounds and paces of the engine.

    Attributes:
        custody: tokens of other homes held, in all: waiting, worked on, and on their way out.
        custody_per_home: the same of one home.
        seen: tasks of other homes of which the last visit is remembered. The oldest is forgotten first: a copy of its
            token would then be worked on again, and ignored by the home.
        window: calls of agents at once.
        open_tasks: tasks of this home under way at once; more wait with who opens them.
        batch: tokens of one delivery.
        lanes: deliveries under way at once to one organization.
        lease_s: seconds after which the home gives a task to somebody else, unless its holder is heard of.
        attempts: how often a task is sent out before it has failed.
        patience_s: how long a token waits for an organization that is busy or cannot be reached, before it is sent
            another way.
        backoff_s: the first pause after an organization could not be reached; it doubles, up to `backoff_most_s`.
        backoff_most_s: the longest pause.
        retry_after_s: what a sender is told when there is no room.
        agent_s: seconds that one call of an agent may take at most.
        hedge_factor: out for longer than this times the 95th percentile of its step, a task is a straggler.
        hedge_share: the share of the open tasks that may be out twice for it.
        hedge_least_s: a task that has been out for less is no straggler.
        call_hedge_share: the share of the calls of agents that may be made twice, since they take longer than
            `hedge_factor` times the 95th percentile of their skill's.
        call_hedge_least_s: a call that has taken less is not made twice.
    """

    custody: int = 32_768
    custody_per_home: int = 16_384
    seen: int = 262_144
    window: int = 64
    open_tasks: int = 16_384
    batch: int = 256
    lanes: int = 2
    lease_s: float = 30.0
    attempts: int = 16
    patience_s: float = 5.0
    backoff_s: float = 0.05
    backoff_most_s: float = 5.0
    retry_after_s: float = 0.1
    agent_s: float = 120.0
    hedge_factor: float = 2.0
    hedge_share: float = 0.05
    hedge_least_s: float = 1.0
    call_hedge_share: float = 0.1
    call_hedge_least_s: float = 1.0
