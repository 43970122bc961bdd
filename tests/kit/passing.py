"""Organizations in memory that pass tasks round, for the tests of the engine of tasks under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

import trio
import trio.testing

from comity.errors import AgentFailed, NoWorker
from comity_node.protocol.flow import Flow, read_flow
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.world import MemoryWorld

A, B, C = "a.example", "b.example", "c.example"


def ring(visits: int = 3, **limits: Any) -> Flow:
    """A flow: `ask` at others and `reply` at home, in turns, each `visits` times; `turn` counts the steps."""
    fields = {"reads": ["task", "turn"], "writes": ["turn"], "most": visits, "otherwise": {"go": "end"}}
    return read_flow({
        "state": {
            "type": "object",
            "properties": {"task": {"type": "integer"}, "turn": {"type": "integer"}, "big": {"type": "string"}},
        },
        "start": "ask",
        "steps": {
            "ask": {"skill": "ask", "at": "others", **fields, "next": [{"go": "reply"}]},
            "reply": {"skill": "reply", "at": "home", **fields, "next": [{"go": "ask"}]},
        },
        "limits": {"steps": 64, "seconds": 3600, **limits},
        "finish": "none",
    })  # fmt: skip


def trip(at: Sequence[str] = ("others", "any", "home"), **extra: Any) -> Flow:
    """A flow of steps one after the other, `s0`, `s1`, ..., each with a skill of its name."""
    steps = {
        f"s{number}": {
            "skill": f"s{number}", "at": where, "reads": ["task", "turn"], "writes": ["turn"],
            "next": f"s{number + 1}" if number + 1 < len(at) else "end", **extra,
        }
        for number, where in enumerate(at)
    }  # fmt: skip
    properties = {"task": {"type": "integer"}, "turn": {"type": "integer"}}
    return read_flow({
        "state": {"type": "object", "properties": properties}, "start": "s0", "steps": steps,
        "limits": {"steps": 64, "seconds": 3600}, "finish": "none",
    })  # fmt: skip


class Colleagues:
    """Agents that count turns, take their time, and remember what they did.

    Attributes:
        done: (task, turn) to how often it was done.
        most: the most calls that there were at once.
        hold: while it is set to an event, calls wait for it.
    """

    def __init__(self, *skills: str, delay_s: Callable[[], float] = lambda: 0.0) -> None:
        self.offered = list(skills)
        self.delay_s = delay_s
        self.done: Counter[tuple[int, int]] = Counter()
        self.begun: Counter[tuple[int, int]] = Counter()
        self.rows: list[int] = []
        self.cancelled = 0
        self.running = self.most = 0
        self.hold: trio.Event | None = None
        self.fail: Callable[[int, int], str] = lambda task, turn: ""

    def skills(self) -> tuple[str, ...]:
        return tuple(self.offered)

    async def call(self, skill: str, payload: Any, *, deadline_s: float) -> Any:
        if skill not in self.offered:
            raise NoWorker(f"nobody offers {skill}")
        rows = payload.get("rows")
        works = [payload] if rows is None else rows
        self.rows.append(len(works))
        keys = [(work["state"].get("task", 0), work["state"].get("turn", 0)) for work in works]
        self.begun.update(keys)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            with trio.fail_after(deadline_s):
                await trio.sleep(self.delay_s())
                if self.hold is not None:
                    await self.hold.wait()
        except trio.TooSlowError:
            raise AgentFailed("too slow") from None
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        for key in keys:
            if why := self.fail(*key):
                raise AgentFailed(why)
        self.done.update(keys)
        answers = [{"state": {"turn": turn + 1}} for _, turn in keys]
        return answers[0] if rows is None else {"rows": answers}


#: Nothing of supervision: what then goes on goes on by custody alone.
ALONE = PassingLimits(lease_s=1e6, hedge_share=0.0, call_hedge_share=0.0, patience_s=1e6)


def rows(count: int, first: int = 0) -> list[tuple[bytes, dict[str, int]]]:
    """Tasks with their number as state."""
    return [(number.to_bytes(16, "big"), {"task": number}) for number in range(first, first + count)]


def play(world: MemoryWorld, scene: Callable[[MemoryWorld], Awaitable[None]], within_s: float = 1e5) -> None:
    """Run a scene in a world, on a clock that jumps."""

    async def main() -> None:
        with trio.fail_after(within_s):
            async with trio.open_nursery() as nursery:
                await nursery.start(world.run)
                await scene(world)
                nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def at_random(seed: int, most_s: float) -> Callable[[], float]:
    """Delays, drawn evenly."""
    random = Random(seed)
    return lambda: random.random() * most_s
