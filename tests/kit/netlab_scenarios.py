"""What links have to live through, one function each: a lab, two peers, a load, a fault, and what came of it.

Each returns an `Outcome`; whoever runs it (a test, a benchmark) judges the figures. That nothing counted is lost and
nothing is answered in two ways is checked in every one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from kit.consortium import Consortium
from kit.netlab_journal import compare, read_acks
from kit.netlab_links import PeerFailed, link
from kit.netlab_world import LOAD, Outcome, Pace, World, percentiles, world


def far(w: World) -> Outcome:
    """200 ms of round trip."""
    w.start()
    w.lab.shape(w.client.site, delay_ms=100)
    w.load(workers=16, pause_s=0)
    w.run_for(3 * w.pace.calm_s)
    return w.finish()


def lossy(w: World) -> Outcome:
    """1% of the packets lost, both ways, on a round trip of 40 ms."""
    w.start()
    w.lab.shape(w.client.site, delay_ms=20, loss=0.01)
    w.load(workers=16, pause_s=0)
    w.run_for(3 * w.pace.calm_s)
    return w.finish()


def partition(w: World) -> Outcome:
    """Nothing gets through, either way."""
    return _cut(w, lambda: w.lab.cut(w.client.site, w.server.site))


def deaf(w: World) -> Outcome:
    """Asymmetric: requests get through, answers do not."""
    return _cut(w, lambda: w.lab.cut(w.server.site, w.client.site, one_way=True))


def mute(w: World) -> Outcome:
    """Asymmetric: nothing leaves the client, what the server sends arrives."""
    return _cut(w, lambda: w.lab.cut(w.client.site, w.server.site, one_way=True))


def _cut(w: World, cut: Callable[[], None]) -> Outcome:
    w.start()
    w.lab.shape(w.client.site, delay_ms=10)
    w.load()
    w.run_for(w.pace.calm_s)
    w.fault(cut)
    w.run_for(w.pace.outage_s)
    w.heal(w.lab.heal)
    w.run_for(w.pace.calm_s)
    return w.finish()


def narrow(w: World) -> Outcome:
    """1 Mbit/s: small requests alone, then beside a bulk stream that takes what it can get."""
    w.start()
    w.lab.shape(w.client.site, delay_ms=20, rate_bps=1_000_000)
    w.load(workers=4, bytes=512, pause_s=0.1, deadline_s=60.0)
    w.run_for(2 * w.pace.calm_s)
    began = time.monotonic()
    bulk = w.client.tell("bulk", peer_id=w.server.peer_id, name="bulk")
    w.run_for(5 * w.pace.calm_s)
    w.client.ask("end-bulk", name="bulk")
    stopped = time.monotonic()
    try:
        sent = w.client.answer_of(bulk, timeout_s=120.0)
    except PeerFailed:  # judged by its figure, like the rest
        sent = {"bytes": 0, "began": 0.0, "ended": 1.0}
    alone = [(ack.ended - ack.began) * 1000 for ack in w.acks() if ack.ended < began]
    beside = [(ack.ended - ack.began) * 1000 for ack in w.acks() if began + 1 < ack.began < stopped]
    alone_p50, alone_p99 = percentiles(alone)
    beside_p50, beside_p99 = percentiles(beside)
    return w.finish(
        alone_p50_ms=alone_p50,
        alone_p99_ms=alone_p99,
        beside_p50_ms=beside_p50,
        beside_p99_ms=beside_p99,
        beside_count=len(beside),
        bulk_bps=sent["bytes"] * 8 / (sent["ended"] - sent["began"]),
    )


def frozen(w: World) -> Outcome:
    """The server stands still (SIGSTOP) and goes on (SIGCONT)."""
    w.start()
    w.lab.shape(w.client.site, delay_ms=10)
    w.load()
    w.run_for(w.pace.calm_s)
    w.fault(w.server.freeze)
    w.run_for(w.pace.frozen_s)
    w.heal(w.server.thaw)
    w.run_for(w.pace.calm_s)
    return w.finish()


def killed(w: World) -> Outcome:
    """`kill -9` of the server, which starts again on what it has on disk; then of the client."""
    w.start()
    w.lab.shape(w.client.site, delay_ms=10)
    w.load()
    w.run_for(w.pace.calm_s)
    w.fault(w.server.kill)
    w.server.start(wait=True)
    w.heal(lambda: None)
    w.run_for(w.pace.calm_s)
    w.note()
    w.client.kill()
    w.client.start()
    link(w.client, w.server)
    w.load()  # the same ids again: what was answered before gets the same answers
    w.run_for(w.pace.calm_s)
    return w.finish(grown=False)


def behind_nat(w: World) -> Outcome:
    """The client has no port that anybody reaches; both sides send requests over the connection that it made."""
    w.start(client_nat="cone")
    w.lab.shape(w.client.site, delay_ms=10)
    w.load()
    link(w.server, w.client)
    w.server.ask("load", name=LOAD, peer_id=w.client.peer_id)
    w.run_for(2 * w.pace.calm_s)
    back = w.server.ask("unload", name=LOAD)
    answered = read_acks(w.server.acks)
    verdict = compare(w.server.acks, w.client.served)
    outcome = w.finish(back_acked=len(answered), back_lost=len(verdict.lost) + len(verdict.contradicted))
    outcome.wrong += back["wrong"]
    return outcome


def storm(w: World, *, seed: int, faults: int = 12) -> Outcome:
    """One fault after the other, drawn by a seed; the load goes on through all of them."""
    w.start()
    w.lab.shape(w.client.site, delay_ms=10)
    w.load(workers=8)
    random = Random(seed)
    here, there = w.client.site, w.server.site
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "partition": (lambda: w.lab.cut(here, there), w.lab.heal),
        "deaf": (lambda: w.lab.cut(there, here, one_way=True), w.lab.heal),
        "mute": (lambda: w.lab.cut(here, there, one_way=True), w.lab.heal),
        "frozen": (w.server.freeze, w.server.thaw),
        "client frozen": (w.client.freeze, w.client.thaw),
        "killed": (w.server.kill, w.server.start),
        "heavy loss": (lambda: w.lab.shape(here, loss=0.3), lambda: w.lab.shape(here, loss=0)),
        "slow": (lambda: w.lab.shape(here, rate_bps=200_000), lambda: w.lab.shape(here, rate_bps=0)),
    }
    longest = 0.0
    for _ in range(faults):
        begin, end = pairs[random.choice(list(pairs))]
        w.run_for(random.uniform(0.2, w.pace.calm_s))
        begin()
        w.run_for(random.uniform(0.05, w.pace.outage_s))
        healed = time.monotonic()
        end()
        w.wait_for_answer(healed)
        longest = max(longest, time.monotonic() - healed)
    w.run_for(w.pace.calm_s)
    return w.finish(grown=False, longest_recovery_s=longest)


SCENARIOS: dict[str, Callable[[World], Outcome]] = {
    "200 ms": far,
    "1% loss": lossy,
    "partition": partition,
    "answers cut": deaf,
    "requests cut": mute,
    "1 Mbit/s": narrow,
    "frozen": frozen,
    "killed": killed,
    "NAT": behind_nat,
}
#: Faults in these scenarios end; in the others there is none.
HEALED = ("partition", "answers cut", "requests cut", "frozen", "killed")


def run(name: str, directory: Path, consortium: Consortium, pace: Pace, *, seed: int = 1) -> Outcome:
    """Run a scenario; nothing of it is left when this returns."""
    with world(name, directory, consortium, pace, seed) as w:
        return SCENARIOS[name](w)
