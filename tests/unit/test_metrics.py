"""What Prometheus reads, and what a careless or hostile client of the metrics can do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from comity.errors import ConfigError
from comity_node.control.workers import SkillQueue
from comity_node.links import LinkState
from comity_node.metrics import MetricsServer, Reading, render
from comity_node.metrics_work import JournalCounts, WorkReading
from comity_node.runtime.router import PeerView
from comity_node.runtime.watched import Watch

UP = LinkState(
    peer_id="12D3KooWA",
    organization="stlukes.example",
    node="spiffe://stlukes.example/node/n1",
    addresses=(),
    state="connected",
    reason="",
    bytes_sent=10,
    bytes_received=20,
    messages_sent=3,
    messages_received=4,
    reconnects=1,
    round_trip_ms=2.5,
    frames_sent=5,
    frames_received=6,
    in_flight=7,
    waiting=8,
    serving=9,
    queued_bytes=100,
    window_bytes=200,
    path="relayed via hope.example",
)
DOWN = replace(UP, peer_id='12"D\n3', state="down", path="", round_trip_ms=0.0)
READING = Reading((UP, DOWN), {"received.records": 12, "refused.stale_message": 1})


async def reading() -> Reading:
    await trio.lowlevel.checkpoint()
    return READING


def values(text: bytes) -> dict[tuple[str, ...], float]:
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found[sample.name, *sample.labels.values()] = sample.value
    return found


def test_every_figure_of_a_link_is_there() -> None:
    read = values(render(READING))
    peer = ("stlukes.example", UP.peer_id)
    expected = {
        "up": 1, "relayed": 1, "sent_bytes_total": 10, "received_bytes_total": 20, "sent_messages_total": 3,
        "received_messages_total": 4, "sent_frames_total": 5, "received_frames_total": 6, "reconnects_total": 1,
        "round_trip_seconds": 0.0025, "calls_in_flight": 7, "calls_waiting": 8, "calls_serving": 9,
        "queued_bytes": 100, "window_bytes": 200,
    }  # fmt: skip
    assert {name: read["comity_link_" + name, *peer] for name in expected} == expected
    assert read["comity_link_up", "stlukes.example", DOWN.peer_id] == 0
    assert read["comity_link_relayed", "stlukes.example", DOWN.peer_id] == 0
    assert read["comity_events_total", "received.records"] == 12
    assert read["comity_events_total", "refused.stale_message"] == 1


def test_a_node_without_links_has_metrics_too() -> None:
    assert values(render(Reading())) == {}


def run(main: Callable[[MetricsServer], Awaitable[None]]) -> None:
    async def whole() -> None:
        server = MetricsServer("127.0.0.1", 0, reading)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            await main(server)
            nursery.cancel_scope.cancel()

    trio.run(whole)


async def ask(server: MetricsServer, request: bytes) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(request)
        answer = b""
        while data := await stream.receive_some():
            answer += data
        return answer


def test_prometheus_is_answered() -> None:
    async def main(server: MetricsServer) -> None:
        head, _, body = (await ask(server, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert values(body) == values(render(READING))
        head, _, body = (await ask(server, b"HEAD /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n")).partition(b"\r\n\r\n")
        assert (head[:12], body) == (b"HTTP/1.1 200", b"")
        assert (await ask(server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 404")
        assert (await ask(server, b"POST /metrics HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 405")

    run(main)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    "request_", [b"\x16\x03\x01 no http\r\n\r\n", b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 4000]
)
def test_garbage_is_cut_off_and_the_next_is_answered(request_: bytes) -> None:
    async def main(server: MetricsServer) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            try:
                await stream.send_all(request_)
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass  # reset in the middle of what nobody reads
        assert b" 200 " in await ask(server, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")

    run(main)


@pytest.mark.invariant("S7")
def test_silent_clients_take_eight_places_and_no_more() -> None:
    async def main(server: MetricsServer) -> None:
        silent = [await trio.open_tcp_stream("127.0.0.1", server.port) for _ in range(8)]
        for stream in silent:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\n")
        with trio.fail_after(20):
            while await ask(server, b""):  # until all eight are being served, others get an answer or nothing
                pass
            assert await ask(server, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n") == b""
            for stream in silent:
                await stream.aclose()
            while not await ask(server, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"):
                pass

    run(main)


def test_a_port_in_use_is_said() -> None:
    async def main(server: MetricsServer) -> None:
        with pytest.raises(ConfigError, match=r"change `metrics` in node\.yaml"):
            await MetricsServer("127.0.0.1", server.port, reading).run()

    run(main)


def a_peer(number: int = 1, circuit: str = "open") -> PeerView:
    return PeerView("label", f"org{number}.example", 0.5, 3.0, 2, 16, circuit, 9, 1, 0, 0.0, 0.5)


def test_every_figure_of_the_work_is_there() -> None:
    watch = Watch()
    for seconds, good in ((0.02, True), (0.2, True), (500.0, False)):
        watch.called("label", seconds, good=good)
    work = WorkReading(
        journal=JournalCounts({"certified": 3}, {"leased": 2}, {"accept": 4, "reject": 1}, 3, {"org1.example": 7}),
        passing={
            "passing.open": 5,
            "passing.custody": 6,
            "passing.taken_over": 1,
            "passing.hedged": 2,
            "passing.called_twice": 4,
            "hops.out": 8,
            "payloads.saved": 9,
        },
        router=[a_peer()],
        queues=[SkillQueue("label", workers=1, running=2, free=3, waiting=4, waiting_ms=5)],
        calls=watch.calls,
    )
    read = values(render(Reading(work=work)))
    expected: dict[tuple[str, ...], float] = {
        ("comity_tasks", "certified"): 3, ("comity_journeys", "leased"): 2, ("comity_votes", "reject"): 1,
        ("comity_certificates",): 3, ("comity_outbox_messages", "org1.example"): 7, ("comity_tokens", "open"): 5,
        ("comity_tokens", "custody"): 6, ("comity_tokens", "outgoing"): 0, ("comity_hops_total", "out"): 8,
        ("comity_payload_bytes_total", "saved"): 9, ("comity_payload_bytes_total", "missing"): 0,
        ("comity_hops_total", "in_refused"): 0, ("comity_lease_takeovers_total",): 1, ("comity_hedges_total",): 2,
        ("comity_calls_made_twice_total",): 4,
        ("comity_workers", "label"): 1, ("comity_agent_calls_running", "label"): 2,
        ("comity_agent_credits", "label"): 3, ("comity_agent_calls_waiting", "label"): 4,
        ("comity_router_outstanding", "org1.example", "label"): 2,
        ("comity_router_window", "org1.example", "label"): 16,
        ("comity_router_expected_seconds", "org1.example", "label"): 0.5,
        ("comity_router_circuit", "org1.example", "label", "open"): 1,
        ("comity_router_circuit", "org1.example", "label", "closed"): 0,
        ("comity_agent_call_seconds_bucket", "0.01", "label"): 0,
        ("comity_agent_call_seconds_bucket", "0.025", "label"): 1,
        ("comity_agent_call_seconds_bucket", "120.0", "label"): 2,
        ("comity_agent_call_seconds_bucket", "+Inf", "label"): 3,
        ("comity_agent_call_seconds_count", "label"): 3,
        ("comity_agent_call_failures_total", "label"): 1,
    }  # fmt: skip
    assert {name: read[name] for name in expected} == expected


def test_metrics_have_so_many_peers_of_the_router() -> None:
    work = WorkReading(router=[a_peer(number) for number in range(1_025)])
    read = values(render(Reading(work=work)))
    assert sum(name[0] == "comity_router_window" for name in read) == 1_024


def test_agents_are_told_apart_by_256_skills() -> None:
    watch = Watch()
    for number in range(258):
        watch.called(f"skill-{number}", 1.0, good=True)
    assert len(watch.calls) == 257
    assert sum(watch.calls["other"].counts) == 2
