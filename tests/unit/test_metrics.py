"""What Prometheus reads, and what a careless or hostile client of the metrics can do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from comity.errors import ConfigError
from comity_node.links import LinkState
from comity_node.metrics import MetricsServer, Reading, render

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
        server = MetricsServer("127.0.0.1", 0, lambda: READING)
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
            await MetricsServer("127.0.0.1", server.port, Reading).run()

    run(main)
