"""How late a trio loop is: a probe that sleeps again and again, and notes how much longer than asked.

`python -m bench.runtime.lag FILE ARGUMENTS...` runs the node's command line (`comity ARGUMENTS...`) with a probe in its
loop, and writes what it noted into FILE, one line `SECONDS-SINCE-1970 LAG` each, when the node ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from bench.runtime.paired import percentile

_EVERY_S: Final = 0.005


class Probe:
    """Notes lags, in seconds, with their times."""

    def __init__(self) -> None:
        self.noted: list[tuple[float, float]] = []

    async def run(self) -> None:
        """Note until cancelled."""
        while True:
            before = trio.current_time()
            await trio.sleep(_EVERY_S)
            self.noted.append((time.time(), trio.current_time() - before - _EVERY_S))

    def percentile(self, share: float, since: float = 0.0) -> float:
        """Return the lag under which `share` of those noted since a time lie."""
        return percentile(sorted(lag for at, lag in self.noted if at >= since) or [0.0], share)


def read(path: Path) -> Probe:
    """Read what a node's probe noted."""
    probe = Probe()
    for line in path.read_text().splitlines():
        at, lag = line.split()
        probe.noted.append((float(at), float(lag)))
    return probe


def main() -> None:
    """Run the node's command line with a probe in its loop."""
    from comity_node import cli

    path, probe, run = Path(sys.argv.pop(1)), Probe(), trio.run

    def run_with_probe(entry: Callable[..., Any], *args: Any, **options: Any) -> Any:  # noqa: ANN401  (as trio.run)
        async def both() -> Any:  # noqa: ANN401  (what `entry` returns)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(probe.run)
                result = await entry(*args)
                nursery.cancel_scope.cancel()
            return result

        return run(both, **options)

    trio.run = run_with_probe  # type: ignore[assignment]
    try:
        cli.main()
    finally:
        path.write_text("".join(f"{at:.3f} {lag:.6f}\n" for at, lag in probe.noted))


if __name__ == "__main__":
    main()
