"""`make simulate`: what discovery, gossip, routing and quorum cost a node, from 100 to 10,000 organizations.

Nothing here depends on the machine: the same seed and sizes give the same bench-out/simulation.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from bench.common import OUT
from bench.simulation import gossip, lookup, page, quorum, routing
from bench.simulation.gossip import GossipWorld
from bench.simulation.laws import fit_all, simplest
from bench.simulation.lookup import LookupWorld
from bench.simulation.plot import draw
from bench.simulation.quorum import QuorumWorld
from bench.simulation.world import Figure
from comity_node.links import LinkLimits

SIZES = (100, 300, 1000, 3000, 10_000)
#: An agreement has at most 256 participants, one of whom is the author.
REVIEWERS = (3, 7, 15, 31, 63, 127, 255)
PARTS = ("gossip", "lookup", "routing", "quorum")
#: Organizations whose nodes have all the links that they may have (each costs as much as ten with few), and whose
#: routers are compared with others.
_MOST_FULL = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        sizes: organizations.
        reviewers: that are eligible, for the part quorum.
        parts: which.
        seed: of all randomness.
        gossip: the world of gossip.
        lookup: the world of lookups, where nodes have room for links.
        homes: see `RoutingWorld.homes`.
    """

    sizes: tuple[int, ...] = SIZES
    reviewers: tuple[int, ...] = REVIEWERS
    parts: tuple[str, ...] = PARTS
    seed: int = 1
    gossip: GossipWorld = field(default_factory=GossipWorld)
    lookup: LookupWorld = field(default_factory=LookupWorld)
    homes: int = 1000


def run(plan: Plan, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run every part at every size; return the content of the result's file."""
    figures: list[Figure] = []
    for name, step in _steps(plan):
        began = time.process_time()
        figures += step()
        say(f"{name}: {time.process_time() - began:.1f} s")
    laws = fit_all(figures)
    return {
        "seed": plan.seed,
        "sizes": list(plan.sizes),
        "reviewers": list(plan.reviewers),
        "worlds": _worlds(plan),
        "cells": [asdict(each) for each in figures],
        "laws": [
            {
                "part": part,
                "name": name,
                **asdict(simplest(fits)),
                "fits": simplest(fits).fits,
                "residuals": {each.law: each.residual for each in fits},
            }
            for (part, name), fits in laws.items()
        ],
    }


def gossip_worlds(plan: Plan, size: int) -> dict[str, GossipWorld]:
    """Return the worlds in which gossip is simulated at a size: with few links, and with as many as a node has."""
    worlds = {"gossip": plan.gossip}
    if size <= _MOST_FULL:
        worlds["gossip/full"] = replace(plan.gossip, links=LinkLimits().max_peers)
    return worlds


def _steps(plan: Plan) -> Iterator[tuple[str, Callable[[], list[Figure]]]]:
    for size in plan.sizes:
        if "gossip" in plan.parts:
            for arm, spread in gossip_worlds(plan, size).items():
                yield f"{arm} {size}", partial(gossip.measure, arm, size, plan.seed, spread)
        if "lookup" in plan.parts:
            for arm, world in _lookups(plan).items():
                yield f"{arm} {size}", partial(lookup.measure, arm, size, plan.seed, world)
        if "routing" in plan.parts:
            for arm, routed in routing_worlds(plan, size).items():
                yield f"{arm} {size}", partial(routing.measure, arm, size, plan.seed, routed)
    if "quorum" in plan.parts:
        jury = quorum.Jury(max(plan.reviewers) + 1, Random(plan.seed))
        for reviewers in plan.reviewers:
            for liars in (False, True):
                measure = partial(quorum.measure, jury, reviewers, plan.seed, QuorumWorld(), liars=liars)
                yield f"quorum {reviewers}{' with liars' if liars else ''}", measure


def _lookups(plan: Plan) -> dict[str, LookupWorld]:
    return {"lookup/room": plan.lookup, "lookup/full": replace(plan.lookup, links=plan.lookup.max_peers)}


def routing_worlds(plan: Plan, size: int) -> dict[str, routing.RoutingWorld]:
    """Return the worlds in which routing is simulated at a size; what routers are compared with, up to a size only."""
    worlds = {
        "routing/quorum": routing.by_quorum(),
        "routing/quorum-f": routing.all_at_once(),
        "routing/few": routing.few(),
        "routing/few-blind": routing.few("blind"),
    }
    if size <= _MOST_FULL:
        worlds |= {f"routing/few-{chooser}": routing.few(chooser) for chooser in ("least", "weighted")}
        worlds["routing/slow"] = routing.slowing()
        worlds |= {f"routing/slow-{chooser}": routing.slowing(chooser) for chooser in ("blind", "least", "weighted")}
    return {arm: replace(world, homes=plan.homes) for arm, world in worlds.items()}


def _worlds(plan: Plan) -> dict[str, Any]:
    return {
        "gossip": {
            str(size): {arm: asdict(world) for arm, world in gossip_worlds(plan, size).items()} for size in plan.sizes
        },
        **{arm: asdict(world) for arm, world in _lookups(plan).items()},
        **{arm: asdict(world) for arm, world in routing_worlds(plan, min(plan.sizes)).items()},
        "quorum": asdict(QuorumWorld()),
    }


def write(result: dict[str, Any], out: Path = OUT) -> tuple[Path, Path]:
    """Write `simulation.json` and `simulation.svg`, and return both."""
    out.mkdir(parents=True, exist_ok=True)
    data, plot = out / "simulation.json", out / "simulation.svg"
    data.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    figures = [Figure(**each) for each in result["cells"]]
    laws = {key: simplest(fits) for key, fits in fit_all(figures).items()}
    plot.write_text(draw(figures, laws), encoding="utf-8")
    return data, plot


def table(result: dict[str, Any]) -> str:
    """Return every figure over its sizes, with the law that fits best, as lines."""
    values: dict[tuple[str, str], list[str]] = {}
    for each in result["cells"]:
        values.setdefault((each["part"], each["name"]), []).append(f"{each['value']:.4g}")
    laws = {(law["part"], law["name"]): law for law in result["laws"]}
    lines = []
    for key, row in values.items():
        law = laws.get(key)
        said = f"{law['law']}{'' if law['fits'] else '?'} ({law['residual']:.1%} off)" if law else ""
        lines.append(f"{key[0]:18} {key[1]:30} {said:24} {' '.join(f'{value:>9}' for value in row)}")
    return "\n".join(lines)


def main() -> None:
    """Run the simulation; write bench-out/simulation.json and bench-out/simulation.svg."""
    parser = argparse.ArgumentParser(prog="bench.simulation", description=__doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="organizations (100 ... 10000)"
    )
    parser.add_argument("--reviewers", type=int, nargs="+", default=REVIEWERS, metavar="N", help="eligible (3 ... 255)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these")
    parser.add_argument("--seed", type=int, default=1, help="of all randomness (1)")
    parser.add_argument("--out", type=Path, default=OUT, help="where the files go (bench-out)")
    parser.add_argument("--publish", action="store_true", help="write docs/simulation.md and its plot, too")
    chosen = parser.parse_args()
    plan = Plan(tuple(sorted(chosen.sizes)), tuple(sorted(chosen.reviewers)), tuple(chosen.parts), chosen.seed)
    result = run(plan, lambda line: print(line, flush=True))
    print(f"\n{table(result)}\n")
    mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{time.process_time():.0f} s of processor time, at most {mebibytes:,.0f} MiB of memory")
    for path in write(result, chosen.out):
        print(path)
    if chosen.publish:
        print(page.publish(result))


if __name__ == "__main__":
    main()
