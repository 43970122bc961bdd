"""What Prometheus asks a node: its links and counters, as text over HTTP.

The format is Prometheus's own (https://prometheus.io/docs/instrumenting/exposition_formats), written by its client
library from values that are read when they are asked for. The server answers `GET /metrics` and nothing else, with few
connections at a time, small requests and a time-out: it is for the organization's own network.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h11
import trio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from comity.errors import ConfigError, StorageError
from comity_node.links import LinkState
from comity_node.metrics_work import WorkReading, collect_work

if TYPE_CHECKING:
    from trio_typing import TaskStatus

_log = logging.getLogger("comity.metrics")

_MAX_CONNECTIONS = 8
_MAX_REQUEST = 8 * 1024
_TIMEOUT_S = 5.0
_READ_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Reading:
    """A node at one moment.

    Attributes:
        links: of all peers that are known.
        counters: of the node's parts, by dotted name (`received.records`, `refused.stale_message`, ...).
        work: tasks, agents and the router; None: nothing is said of them.
    """

    links: Sequence[LinkState] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    work: WorkReading | None = None


_LABELS = ("organization", "peer")
_COUNTERS: tuple[tuple[str, str, Callable[[LinkState], float]], ...] = (
    ("sent_bytes", "Bytes of messages sent to a peer.", lambda link: link.bytes_sent),
    ("received_bytes", "Bytes of messages received of a peer.", lambda link: link.bytes_received),
    ("sent_messages", "Requests and answers sent to a peer.", lambda link: link.messages_sent),
    ("received_messages", "Requests and answers received of a peer.", lambda link: link.messages_received),
    ("sent_frames", "Frames sent on message streams, everything counted.", lambda link: link.frames_sent),
    ("received_frames", "Frames received on message streams.", lambda link: link.frames_received),
    ("reconnects", "How often a link came up again.", lambda link: link.reconnects),
)
_GAUGES: tuple[tuple[str, str, Callable[[LinkState], float]], ...] = (
    ("up", "1 while the link to a peer is up.", lambda link: link.state == "connected"),
    ("relayed", "1 while it leads through a relay.", lambda link: link.path.startswith("relayed")),
    ("round_trip_seconds", "Of the last sign of life.", lambda link: link.round_trip_ms / 1000),
    ("calls_in_flight", "Our calls without an answer.", lambda link: link.in_flight),
    ("calls_waiting", "Our calls that wait until the peer takes more.", lambda link: link.waiting),
    ("calls_serving", "Calls of the peer that are worked on.", lambda link: link.serving),
    ("queued_bytes", "Bytes that wait to be written.", lambda link: link.queued_bytes),
    ("window_bytes", "What the peer may send on one stream before it waits.", lambda link: link.window_bytes),
)


class _Links(Collector):
    """Makes metrics of a reading; made anew for each request."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        """Return every metric with a value for each peer or counter."""
        links = self._reading.links
        for name, text, value in _COUNTERS:
            counter = CounterMetricFamily(f"comity_link_{name}", text, labels=_LABELS)
            for link in links:
                counter.add_metric((link.organization, link.peer_id), value(link))
            yield counter
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(f"comity_link_{name}", text, labels=_LABELS)
            for link in links:
                gauge.add_metric((link.organization, link.peer_id), value(link))
            yield gauge
        events = CounterMetricFamily("comity_events", "What the node has counted, by kind.", labels=("kind",))
        for kind, count in sorted(self._reading.counters.items()):
            events.add_metric((kind,), count)
        yield events
        if self._reading.work is not None:
            yield from collect_work(self._reading.work)


def render(reading: Reading) -> bytes:
    """Return a reading as Prometheus reads it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Links(reading))
    return generate_latest(registry)


class MetricsServer:
    """Serves a node's metrics over HTTP."""

    def __init__(self, host: str, port: int, read: Callable[[], Awaitable[Reading]]) -> None:
        """Make a server; `run` starts it.

        Args:
            host: IP address to listen on.
            port: TCP port; 0 for any.
            read: says how the node is.
        """
        self._host, self._port, self._read = host, port, read
        self._open = trio.CapacityLimiter(_MAX_CONNECTIONS)
        #: Where it listens, once it does.
        self.port = port

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.

        Raises:
            ConfigError: it cannot listen there.
        """
        try:
            listeners = await trio.open_tcp_listeners(self._port, host=self._host)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(
                f"cannot serve metrics at {self._host}:{self._port}: {reason}; change `metrics` in node.yaml"
            ) from error
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._connection, listeners)

    async def _connection(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                self._open.acquire_nowait()
            except trio.WouldBlock:
                return  # as many as are served are open: the next one comes back
            try:
                with trio.move_on_after(_TIMEOUT_S):
                    await self._serve(stream)
            except (trio.BrokenResourceError, h11.ProtocolError) as error:
                _log.debug("a request for metrics failed: %s", error)
            finally:
                self._open.release()

    async def _serve(self, stream: trio.SocketStream) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_REQUEST)
        event: object = h11.NEED_DATA
        while event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some(_READ_BYTES))
            event = http.next_event()
        if not isinstance(event, h11.Request):
            return
        status, body = await self._answer(event)
        headers = [
            ("Content-Type", CONTENT_TYPE_LATEST if status == 200 else "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        answer = http.send(h11.Response(status_code=status, headers=headers))
        if event.method != b"HEAD":
            answer = (answer or b"") + (http.send(h11.Data(data=body)) or b"")
        await stream.send_all(answer or b"")

    async def _answer(self, request: h11.Request) -> tuple[int, bytes]:
        if request.method not in (b"GET", b"HEAD"):
            return 405, b"GET /metrics\n"
        if request.target.partition(b"?")[0] != b"/metrics":
            return 404, b"metrics are at /metrics\n"
        try:
            return 200, render(await self._read())
        except StorageError as error:
            return 503, f"the database cannot be read: {error}\n".encode()
