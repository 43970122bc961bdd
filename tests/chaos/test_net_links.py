"""Links over bad networks: two processes in namespaces of their own, a fault, and what must hold through it.

Scenarios run side by side, each in a lab of its own; a test waits for its own and judges it. `make chaos` runs the
long ones too, with the times that a node has by default.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from kit.consortium import consortium
from kit.netlab import unavailable
from kit.netlab_scenarios import HEALED, SCENARIOS, run, storm
from kit.netlab_world import Outcome, Pace, world

REASON = unavailable()
pytestmark = [
    pytest.mark.skipif(bool(REASON), reason=f"no network lab: {REASON}"),
    pytest.mark.slow,
    pytest.mark.timeout(240),
]
ORGANIZATIONS = ("mercy.example", "stlukes.example")
#: Livelier than a node's own times, so that a dead peer is found within the 10 s of an outage.
PACE = Pace(ping_every_s=1.0, dead_after_s=3.0)
SIDE_BY_SIDE = 3
#: What a busy machine adds.
SLACK_S = 2.0
#: An attempt that began just before the end of a fault, and the pause before the next one.
RECOVER_S = 12.0
GROWTH = 32 * 1024 * 1024
LONG = os.environ.get("COMITY_CHAOS") == "long"


def carry_out(name: str) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="comity-net-") as directory:
        return run(name, Path(directory), consortium(*ORGANIZATIONS), PACE)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Outcome]]]:
    """All scenarios that were asked for, running."""
    wanted = {
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module and "outcomes" in item.fixturenames
    }
    consortium(*ORGANIZATIONS)
    with ThreadPoolExecutor(SIDE_BY_SIDE) as executor:
        yield {name: executor.submit(carry_out, name) for name in SCENARIOS if name in wanted}
        executor.shutdown(cancel_futures=True)


def holds_everywhere(outcome: Outcome) -> None:
    """What no network may break."""
    assert outcome.acked > 0
    assert outcome.verdict.lost == (), "the client counted what the server does not have"
    assert outcome.verdict.contradicted == (), "one request, two answers"
    assert outcome.wrong == [], "an answer went to another request"
    for process, grown in outcome.growth.items():
        assert grown < GROWTH, f"the {process} grew by {grown} bytes"


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
@pytest.mark.invariant("S7")
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in HEALED])
def test_a_bad_line_is_slow_and_loses_nothing(name: str, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[name].result()
    holds_everywhere(outcome)
    assert outcome.reconnects == 0, f"the link went down on a line that was never cut: {outcome}"
    assert not outcome.errors
    match name:
        case "200 ms":
            assert 190 <= outcome.p50_ms <= 400
            assert outcome.rate > 30, "16 workers, one request each 200 ms: 80/s at best"
        case "1% loss":
            assert outcome.wire["client"]["lost_up"] > 0
            assert outcome.wire["client"]["lost_down"] > 0
            assert outcome.p99_ms < 3000
        case "1 Mbit/s":
            assert outcome.figures["bulk_bps"] > 300_000, "the bulk stream gets through"
            assert outcome.figures["beside_count"] > 0, "requests get through beside it"
            # 64 KiB of queue in the network alone are 524 ms, and TCP fills it; without priorities it is 3500 ms.
            assert outcome.figures["beside_p50_ms"] < 2500, "the bulk stream does not give way"
        case "NAT":
            assert outcome.figures["back_acked"] > 0
            assert outcome.figures["back_lost"] == 0
            assert outcome.wire["client"]["nat_sessions"] >= 1


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
@pytest.mark.invariant("R3")
@pytest.mark.parametrize("name", HEALED)
def test_a_fault_is_noticed_and_overcome(name: str, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[name].result()
    holds_everywhere(outcome)
    assert outcome.detected_s is not None, "a dead peer was taken for a live one"
    soon = SLACK_S if name == "killed" else PACE.ping_every_s + PACE.dead_after_s + SLACK_S
    assert outcome.detected_s < soon
    assert outcome.recovered_s is not None
    assert outcome.recovered_s < RECOVER_S
    assert 1 <= outcome.reconnects <= 3


@pytest.mark.skipif(not LONG, reason="COMITY_CHAOS is not 'long' (make chaos)")
@pytest.mark.timeout(900)
@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
@pytest.mark.parametrize("seed", range(3))
def test_a_storm_of_faults_loses_nothing(seed: int, tmp_path: Path) -> None:
    with world(f"storm {seed}", tmp_path, consortium(*ORGANIZATIONS), Pace(recover_s=60), seed) as w:
        holds_everywhere(storm(w, seed=seed))
