"""Fault plans as data: made from a seed, written as JSON, played again, shrunk to what breaks.

A plan says how large the world is, how its messages travel when nothing is wrong, and which faults happen when. Two
worlds play it: `kit.chaos_world` (one process, virtual time) and `kit.chaos_processes` (real processes).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from random import Random
from typing import Any

#: Stands for every other organization.
ALL = -1


class Kind(StrEnum):
    """What goes wrong."""

    #: `kill -9`: what was on the disk at that moment is there when it starts again, and nothing else.
    KILL = "kill"
    #: The node's tasks are cancelled, all at once, without a farewell; its writer drains.
    STOP = "stop"
    #: No message passes between `who` and `other`.
    PARTITION = "partition"
    #: `who` does nothing at all, and goes on as if nothing had happened (SIGSTOP, SIGCONT).
    FREEZE = "freeze"
    #: The worker of `who` is gone: calls under way fail, new ones find nobody.
    WORKER = "worker"
    #: The disk of `who` is full.
    DISK = "disk"
    #: The clock of `who` is off by `amount` milliseconds.
    CLOCK = "clock"
    #: Messages from `who` to `other`, `amount` of a thousand: are lost, come twice, come late (and so out of order) or
    #: damaged; or it is their answers that are lost or damaged; or an old message comes once more.
    LOSE = "lose"
    TWICE = "twice"
    LATE = "late"
    DAMAGE = "damage"
    LOSE_ANSWER = "lose_answer"
    DAMAGE_ANSWER = "damage_answer"
    REPLAY = "replay"


OF_MESSAGES = frozenset(
    {Kind.LOSE, Kind.TWICE, Kind.LATE, Kind.DAMAGE, Kind.LOSE_ANSWER, Kind.DAMAGE_ANSWER, Kind.REPLAY}
)


class On(StrEnum):
    """What the moment of a fault is counted in: `at` milliseconds of the world, or the `at`-th event at `who`."""

    TIME = "time"
    #: Just before its database commits.
    COMMIT = "commit"
    #: After the commit, before anybody hears of it.
    COMMITTED = "committed"
    #: A message has come and is not looked at yet.
    RECEIVED = "received"
    #: A message has been dealt with, and the receipt has not left.
    ANSWERED = "answered"


#: Faults whose moment may be an event.
ON_EVENTS = frozenset({Kind.KILL, Kind.STOP, Kind.FREEZE})


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: what.
        who: the number of the organization to which it happens; of messages: their sender's.
        at: when, in the unit of `on`.
        for_ms: how long it lasts, in milliseconds of the world.
        on: what `at` counts.
        other: the other organization of a partition or of messages; `ALL` for each.
        amount: milliseconds of a clock's step, or messages in a thousand.
    """

    kind: Kind
    who: int
    at: int
    for_ms: int = 0
    on: On = On.TIME
    other: int = ALL
    amount: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is played.

    Attributes:
        seed: of latencies, of the agents, and of which messages a fault hits.
        organizations: how many, 3 or more.
        records: of each organization.
        batch: records that are reviewed together.
        bad: records in a hundred that are worth a repair.
        repairs: rounds of repair.
        lease_s: seconds that a reviewer may take.
        flow: whether tasks go from organization to organization before they are reviewed.
        faults: in no order.
    """

    seed: int
    organizations: int = 3
    records: int = 4
    batch: int = 2
    bad: int = 25
    repairs: int = 1
    lease_s: int = 60
    flow: bool = False
    faults: tuple[Fault, ...] = field(default=())


def to_json(plan: Plan) -> str:
    """Return a plan as JSON; what is as usual is left out."""

    def short(value: Plan | Fault) -> dict[str, Any]:
        usual = {each.name: each.default for each in fields(value)}
        return {name: one for name, one in asdict(value).items() if one != usual[name] and name != "faults"}

    return json.dumps({**short(plan), "faults": [short(fault) for fault in plan.faults]}, sort_keys=True)


def from_json(text: str) -> Plan:
    """Return the plan that `to_json` wrote."""
    read = json.loads(text)
    faults = [Fault(**{**one, "kind": Kind(one["kind"]), "on": On(one.get("on", On.TIME))}) for one in read["faults"]]
    return Plan(**{**read, "faults": tuple(faults)})


def last_ms(plan: Plan) -> int:
    """Return after how many milliseconds of the world everything is mended that has a time of its own."""
    return max([fault.at + fault.for_ms for fault in plan.faults if fault.on is On.TIME], default=0)


# -- making them ------------------------------------------------------------------------------------------------------

#: Within this the work of an undisturbed world lies.
_SPAN_MS = 3_000
#: What goes wrong in a plan: a kill more often than anything else.
_USUAL = (*Kind, Kind.KILL, Kind.KILL, Kind.KILL, Kind.KILL, Kind.PARTITION, Kind.FREEZE)
#: The commits, or messages, at one organization in that time.
_COMMITS, _MESSAGES = 180, 45


def make(seed: int, *, kinds: Iterable[Kind] = _USUAL, most: int = 8, flow: bool = False) -> Plan:
    """Return the plan of a seed: the same one each time.

    Args:
        seed: any number.
        kinds: what may go wrong.
        most: faults at most; at least one.
        flow: whether tasks go from organization to organization before they are reviewed.
    """
    rng = Random(f"plan {seed}")
    count = rng.choice((3, 4, 4, 5))
    among = tuple(kinds)
    faults = tuple(_fault(rng, rng.choice(among), count) for _ in range(rng.randint(1, most)))
    sizes = {"records": rng.choice((4, 6)), "repairs": rng.choice((0, 1, 2)), "lease_s": rng.choice((10, 60, 60))}
    return Plan(seed, organizations=count, faults=faults, flow=flow, **sizes)


def _fault(rng: Random, kind: Kind, count: int) -> Fault:
    who = rng.randrange(count)
    other = rng.choice([ALL, *(each for each in range(count) if each != who)])
    at, for_ms = rng.randrange(_SPAN_MS), rng.choice((100, 1_000, 5_000, 12_000))
    if kind in ON_EVENTS:
        on = rng.choice((On.TIME, *On)) if kind is Kind.KILL else rng.choice((On.TIME, On.ANSWERED))
        at = {On.TIME: at, On.COMMIT: rng.randrange(_COMMITS), On.COMMITTED: rng.randrange(_COMMITS)}.get(
            on, rng.randrange(_MESSAGES)
        )
        return Fault(kind, who, at, rng.choice((0, 200, 3_000, 10_000)), on)
    if kind in OF_MESSAGES:
        return Fault(kind, who, at, 3 * for_ms, other=other, amount=rng.choice((50, 200, 500, 1_000)))
    if kind is Kind.CLOCK:
        return Fault(kind, who, at, for_ms, amount=rng.choice((-90_000, -20_000, -2_000, 2_000, 20_000, 90_000)))
    return Fault(kind, who, at, for_ms, other=other if kind is Kind.PARTITION else ALL)


def make_for_processes(seed: int) -> Plan:
    """Return a plan of a seed for real processes: of three organizations, with faults at times alone."""
    rng = Random(f"processes {seed}")
    kinds = (Kind.KILL, Kind.KILL, Kind.STOP, Kind.FREEZE, Kind.WORKER)
    faults = tuple(
        Fault(rng.choice(kinds), who, rng.randrange(200, 3_000), rng.choice((0, 500, 2_000))) for who in range(3)
    )
    return Plan(seed, records=16, bad=0, repairs=0, lease_s=30, faults=faults)


# -- making them smaller ----------------------------------------------------------------------------------------------


def shrink(plan: Plan, breaks: Callable[[Plan], bool], *, tries: int = 60) -> Plan:
    """Return a smaller plan that still breaks: without what can be left out, and with less of the rest.

    Args:
        plan: breaks.
        breaks: plays a plan and says whether it does.
        tries: plans that are played at most.
    """
    left = tries
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(plan):
            if not left:
                return plan
            left -= 1
            if breaks(candidate):
                plan, smaller = candidate, True
                break
    return plan


def _smaller(plan: Plan) -> Iterable[Plan]:
    for number in range(len(plan.faults)):
        yield replace(plan, faults=(*plan.faults[:number], *plan.faults[number + 1 :]))
    used = max((max(fault.who, fault.other) for fault in plan.faults), default=0) + 1
    if plan.organizations > max(3, used):
        yield replace(plan, organizations=max(3, used))
    if plan.repairs:
        yield replace(plan, repairs=0)
    if plan.records > plan.batch:
        yield replace(plan, records=plan.batch)
    if plan.bad:
        yield replace(plan, bad=0)
    for number, fault in enumerate(plan.faults):
        for less in _less(fault):
            yield replace(plan, faults=(*plan.faults[:number], less, *plan.faults[number + 1 :]))


def _less(fault: Fault) -> Iterable[Fault]:
    if fault.for_ms > 200:
        yield replace(fault, for_ms=fault.for_ms // 2)
    if fault.kind in OF_MESSAGES and fault.amount < 1_000:  # whatever is hit: no draw is needed to understand it
        yield replace(fault, amount=1_000)
