"""What the market is to assign by itself: the skills of flows under way that others are asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import lru_cache

from comity.errors import ConfigError
from comity_node.protocol.flow import COST_UNIT, Flow, Step, read_flow
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.market import Demand
from comity_node.runtime.router import Router


def flow_demand(agreements: Agreements, router: Router, me: str) -> Iterator[Demand]:
    """Yield the skills that others may do for this organization under agreements in force, and have been asked for.

    Args:
        agreements: of this node.
        router: which knows what was asked for.
        me: this organization.
    """
    for agreed in agreements.all():
        if not agreed.terms.flow or agreements.why_stopped(agreed.digest) or me not in agreed.participants:
            continue
        flow = _read(agreed.terms.flow)
        if flow is None:
            continue
        prices: dict[str, float] = {}
        for step in _steps(flow):
            if any(step.at.allows(other, me) for other in agreed.participants - {me}) and router.answers(step.skill):
                price = math.inf if step.price is None else step.price / COST_UNIT
                prices[step.skill] = min(price, prices.get(step.skill, math.inf))
        for skill, price in sorted(prices.items()):
            yield Demand(agreed.digest, skill, price)


def _steps(flow: Flow) -> Iterator[Step]:
    for step in flow.steps.values():
        yield from step.roles or (step,)


@lru_cache(maxsize=256)
def _read(flow: bytes) -> Flow | None:
    """Return the flow of signed terms; None for one that this version does not know: nothing runs under it here."""
    try:
        return read_flow(json.loads(flow))
    except (ConfigError, ValueError):
        return None
