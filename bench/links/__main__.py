"""`make bench-links`: connecting, requests and bulk, ours beside the others', in one interleaved run.

Every arm is two processes on this machine. They take turns: each work is measured once at each arm, then once at each
arm again, so that what else the machine does meets all of them alike.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench.common import Cell, Ratio, cell, compare, interleave, write
from bench.links import consortium, grpc_common, javascript
from bench.links.arm import MODULES, Order
from bench.links.processes import Arm

OURS: Final = ("plain", "secured", "admitted")
JS: Final = "js-libp2p"
BEST: Final = "grpcio-best-mtls"
_GRPC: Final = ("grpcio-aio-unary-mtls", "grpcio-aio-stream-mtls", "grpcio-sync-mtls")
_CONNECTS = 5
_CPU_UNITS: Final = {"request": "us/request", "bulk": "us/MB"}


@dataclass(frozen=True, slots=True)
class Work:
    """One thing to measure.

    Attributes:
        name: of the work.
        unit: of its figure.
        order: what the client does.
        value: the figure, of what the client answered.
        skip: arms that cannot do it.
    """

    name: str
    unit: str
    order: Order
    value: Callable[[dict[str, float]], float]
    skip: frozenset[str] = frozenset()


def _rate(answer: dict[str, float]) -> float:
    return answer["count"] / answer["seconds"]


def _works(seconds: float, megabytes: int) -> list[Work]:
    works = [Work("connect", "ms", Order("connect"), lambda answer: answer["seconds"] * 1000)]
    for size, name in ((1024, "1k"), (32 * 1024, "32k")):
        for in_flight in (1, 16, 128, 512):
            skip = frozenset({"grpcio-sync-mtls"} if in_flight == 512 else ())  # 512 threads
            order = Order("request", size=size, in_flight=in_flight, seconds=seconds)
            works.append(Work(f"request-{name}-{in_flight}", "requests/s", order, _rate, skip))
    for piece, name in ((1 << 20, "bulk"), (1 << 16, "bulk-64k")):
        order = Order("bulk", piece=piece, bytes=megabytes << 20)
        works.append(Work(name, "MB/s", order, lambda answer: _rate(answer) / 1e6, frozenset({"admitted"})))
    return works


def measure(arms: Sequence[Arm], works: Sequence[Work], repeats: int) -> list[Cell]:
    """Measure every work at every arm."""
    cells: list[Cell] = []
    for work in works:
        able = {arm.name: partial(_once, arm, work) for arm in arms if arm.name not in work.skip}
        results = interleave(able, repeats)
        cells += [cell(work.name, name, [value for value, _ in runs], work.unit) for name, runs in results.items()]
        if unit := _CPU_UNITS.get(work.order.work):
            cells += [cell(f"{work.name}-cpu", name, [cpu for _, cpu in runs], unit) for name, runs in results.items()]
        print(f"{work.name}: " + ", ".join(f"{each.arm} {each.value:,.4g}" for each in cells if each.work == work.name))
    return cells + _best(cells)


def _once(arm: Arm, work: Work) -> tuple[float, float]:
    """Measure once: the figure, and microseconds of processor time of both ends, for a request or a megabyte."""
    if work.order.work == "connect":
        return min(work.value(arm.do(work.order)) for _ in range(_CONNECTS)), 0.0
    answer = arm.do(work.order)
    per = answer["count"] / 1e6 if work.order.work == "bulk" else max(answer["count"], 1)
    return work.value(answer), answer["cpu"] / per * 1e6


def _best(cells: Sequence[Cell]) -> list[Cell]:
    """The best of gRPC's arms in each work, as an arm of its own."""
    best: dict[str, Cell] = {}
    for each in cells:
        if each.arm in _GRPC and not each.work.endswith("-cpu"):
            known = best.get(each.work)
            if known is None or (each.value < known.value) == (each.unit == "ms"):
                best[each.work] = each
    return [Cell(each.work, BEST, each.value, each.unit, each.spread, each.runs) for each in best.values()]


def compare_ours(cells: Sequence[Cell]) -> list[Ratio]:
    """Compare each of our arms with each of the others' in the same work."""
    ours = [each for each in cells if each.arm in OURS]
    peers = [each for each in cells if each.arm not in OURS]
    return [compare(mine, peer) for mine in ours for peer in peers if mine.work == peer.work]


def main() -> None:
    """Run the benchmark and write bench-out/links.json."""
    parser = argparse.ArgumentParser(prog="bench.links", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each work at each arm (5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one run of requests (1)")
    parser.add_argument("--megabytes", type=int, default=512, help="of one bulk transfer (512)")
    parser.add_argument("--arms", nargs="+", choices=[*MODULES, JS], metavar="ARM", help="only these")
    parser.add_argument("--works", nargs="+", metavar="WORK", help="only these, such as request-1k-128")
    arguments = parser.parse_args()
    names = arguments.arms or [*MODULES, *([JS] if javascript.is_installed() else [])]
    works = [
        work for work in _works(arguments.seconds, arguments.megabytes)
        if not arguments.works or work.name in arguments.works
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        directory = Path(scratch)
        consortium.found(directory / "comity")
        grpc_common.make_certificates(directory / "grpc")
        arms = [
            stack.enter_context(Arm(name, directory, javascript.command("bench.mjs") if name == JS else ()))
            for name in names
        ]
        cells = measure(arms, works, arguments.repeats)
    write("links", cells, compare_ours(cells))


if __name__ == "__main__":
    main()
