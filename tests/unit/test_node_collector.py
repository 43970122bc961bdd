"""The collector of cycles in a process that runs a node."""

from __future__ import annotations

import gc

from comity_node.node import collect_rarely


def test_what_a_node_has_from_its_start_is_not_looked_at_again_and_cycles_are_still_found() -> None:
    thresholds = gc.get_threshold()
    gc.set_threshold(700, 10, 10)  # a node that another test ran in this process has left its own
    try:
        collect_rarely()
        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold() > (700, 10, 10)
        assert gc.isenabled()
        before = gc.get_stats()[0]["collected"]
        for _ in range(3 * gc.get_threshold()[0]):
            cycle: list[object] = []
            cycle.append(cycle)
        del cycle
        assert gc.get_stats()[0]["collected"] - before > gc.get_threshold()[0]
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
