"""The lab's lines and router: delay, loss, rate, queues and cuts, told the time by the test."""

from __future__ import annotations

import math
from random import Random

import pytest

from kit import netlab_packets as packets
from kit.netlab.line import MAX_IN_FLIGHT, Line, Shape
from kit.netlab.nat import NatSettings
from kit.netlab.router import Router
from kit.netlab_packets import SYN

A, B, C = ("11.0.0.1", 1000), ("11.0.0.2", 2000), ("11.0.0.3", 3000)


def line(**shape: float) -> Line:
    made = Line(Random(1))
    made.shape = Shape(**shape)  # type: ignore[arg-type]  # Shape checks
    return made


def test_delay_and_jitter_keep_the_order() -> None:
    made = line(delay_ms=100, jitter_ms=50)
    for number in range(200):
        assert made.offer(bytes([number]), now=number / 1000)
    assert list(made.arrived(0.0999)) == []
    due = []
    seen = []
    while made.next_due < math.inf:
        due.append(made.next_due)
        seen += list(made.arrived(made.next_due))
    assert seen == [bytes([number]) for number in range(200)]
    assert due == sorted(due)
    assert 0.1 <= due[0] <= 0.15
    assert 0.299 <= due[-1] <= 0.349


def test_rate_and_tail_drop() -> None:
    made = line(rate_bps=1_000_000, queue_bytes=10_000)
    taken = [made.offer(bytes(1000), now=0.0) for _ in range(15)]
    assert taken == [True] * 10 + [False] * 5
    assert made.overflowed == 5
    assert [len(list(made.arrived(0.008 * number + 1e-9))) for number in range(1, 12)] == [1] * 10 + [0]
    # Half of the queue has been sent: there is room for as much.
    for _ in range(20):
        made.offer(bytes(1000), now=1.0)
    assert sum(made.offer(bytes(1000), now=1.04) for _ in range(20)) == 5


def test_a_packet_over_the_queue_still_passes_an_idle_line() -> None:
    assert line(rate_bps=1000, queue_bytes=100).offer(bytes(1500), now=0.0)


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.5, 1.0])
def test_loss_is_what_was_asked_for_and_the_same_for_a_seed(loss: float) -> None:
    counts = []
    for _ in range(2):
        made = line(loss=loss)
        counts.append([made.offer(b"x", now=0.0) for _ in range(20_000)])
    assert counts[0] == counts[1]
    assert counts[0].count(False) / 20_000 == pytest.approx(loss, abs=0.01 if loss > 0.1 else 0.003)
    assert made.lost == counts[0].count(False)


def test_what_is_in_flight_is_bounded() -> None:
    made = line(delay_ms=1e9)
    packet = bytes(1024 * 1024)
    assert sum(made.offer(packet, now=0.0) for _ in range(100)) == MAX_IN_FLIGHT // len(packet)


@pytest.mark.parametrize("wrong", [{"loss": 1.1}, {"loss": -0.1}, {"delay_ms": -1}, {"rate_bps": -1}])
def test_lines_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        Shape(**wrong)  # type: ignore[arg-type]  # a parameter of the test


def three() -> Router:
    router = Router(seed=1)
    for name, (address, _) in zip("abc", (A, B, C), strict=True):
        router.add(name, address, address)
    return router


def test_packets_go_to_whom_they_are_for() -> None:
    router = three()
    packet = packets.make(A, B)
    assert router.send("a", packet, 0.0) == [("b", packet)]
    assert router.send("a", packets.make(A, ("11.0.0.77", 1)), 0.0) == []
    assert router.send("a", packets.make(C, B), 0.0) == [], "nobody speaks as somebody else"
    assert router.send("a", b"\x60" + bytes(50), 0.0) == []
    assert router.next_due == math.inf
    stats = router.stats()
    assert stats["a"]["sent"] == 4
    assert (stats["a"]["no_route"], stats["a"]["spoofed"], stats["a"]["ignored"]) == (1, 1, 1)
    assert stats["b"]["received"] == 1


def test_both_lines_count() -> None:
    router = three()
    router.shape("a", Shape(delay_ms=30), ["up"])
    router.shape("b", Shape(delay_ms=12), ["down"])
    packet, answer = packets.make(A, B), packets.make(B, A)
    assert router.send("a", packet, 0.0) == []
    assert router.pump(0.029) == []
    assert router.pump(0.0301) == []
    assert router.next_due == pytest.approx(0.0421)
    assert router.pump(0.0422) == [("b", packet)]
    assert router.send("b", answer, 1.0) == [("a", answer)], "the way back has no delay"


def test_a_line_that_becomes_plain_again_keeps_the_order() -> None:
    router = three()
    router.shape("a", Shape(delay_ms=100))
    first, second = packets.make(A, B, payload=b"1"), packets.make(A, B, payload=b"2")
    router.send("a", first, 0.0)
    router.shape("a", Shape())
    assert router.send("a", second, 0.01) == []
    assert router.pump(0.1) == [("b", first), ("b", second)]


def test_cuts_are_one_way_unless_both_are_cut() -> None:
    router = three()
    router.cut("a", "b")
    assert router.send("a", packets.make(A, B), 0.0) == []
    assert router.send("b", packets.make(B, A), 0.0) != []
    assert router.send("a", packets.make(A, C), 0.0) != []
    router.cut("a", "c")
    router.heal("a", "b")
    assert router.send("a", packets.make(A, B), 0.0) != []
    assert router.send("a", packets.make(A, C), 0.0) == []
    router.heal()
    assert router.send("a", packets.make(A, C), 0.0) != []
    assert router.stats()["a"]["cut"] == 2


def test_a_cut_loses_what_is_on_its_way() -> None:
    router = three()
    router.shape("b", Shape(delay_ms=50), ["down"])
    router.send("a", packets.make(A, B), 0.0)
    router.cut("a", "b")
    assert router.pump(1.0) == []
    router.heal()
    assert router.pump(1.0) == []


def test_sites_behind_nat_reach_the_public_one_and_not_each_other() -> None:
    router = Router(seed=1)
    router.add("a", "192.168.1.2", A[0], NatSettings())
    router.add("b", "192.168.2.2", B[0], NatSettings())
    router.add("c", C[0], C[0])
    inside = ("192.168.1.2", 4001)
    [(name, packet)] = router.send("a", packets.make(inside, C, flags=SYN), 0.0)
    seen = packets.read(packet)
    assert (name, seen.source) == ("c", (A[0], 4001))
    [(name, answer)] = router.send("c", packets.make(C, seen.source, flags=SYN), 0.0)
    assert (name, packets.read(answer).destination) == ("a", inside)
    assert router.send("a", packets.make(inside, (B[0], 4001), flags=SYN), 0.0) == []
    assert router.send("a", packets.make(inside, ("192.168.2.2", 4001), flags=SYN), 0.0) == []
    assert router.send("a", packets.make(inside, (A[0], 4001), flags=SYN), 0.0) == [], "no hairpin"
    assert router.stats()["b"]["nat_filtered"] == 1
    assert router.carried == {("a", "c"): 1, ("c", "a"): 1}
    assert router.stats()["a"]["no_route"] == 2


def test_a_name_or_address_is_taken_once() -> None:
    router = three()
    for name, address in (("a", "11.0.0.9"), ("d", A[0])):
        with pytest.raises(ValueError, match="there is a site"):
            router.add(name, address, address)
