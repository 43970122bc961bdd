"""Spans: what they say, which tasks have any, where they go, and what a collector can do to a node."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from comity_node.tracing import NULL, Subject, is_sampled, trace_id_of
from comity_node.tracing.otel import OtelTracer, TracingLimits, _Calm, exporting

TASK = Subject(bytes(range(16)), bytes(range(32)), 2)
NODE = "spiffe://ada.example/node/n1"


def tracer(exporter: SpanExporter, **changes: Any) -> OtelTracer:
    return OtelTracer(SimpleSpanProcessor(exporter), organization="ada.example", node=NODE, **changes)


def test_a_span_has_the_trace_of_its_task_and_ids_names_and_times_alone() -> None:
    exporter = InMemorySpanExporter()
    one, other = tracer(exporter), OtelTracer(SimpleSpanProcessor(exporter), organization="bea.example", node=NODE)
    one.record("send", [TASK], 5, peer="bea.example", skill="label", outcomes=["taken"])
    other.record("receive", [TASK], 6)
    first, second = exporter.get_finished_spans()
    assert first.context.trace_id == second.context.trace_id == trace_id_of(TASK.task_id)
    assert first.context.span_id != second.context.span_id
    assert (first.name, first.start_time, first.parent) == ("send", 5, None)
    assert dict(first.attributes or {}) == {
        "comity.task": TASK.task_id.hex(), "comity.agreement": TASK.agreement.hex(), "comity.attempt": 2,
        "comity.organization": "ada.example", "comity.peer": "bea.example", "comity.skill": "label",
        "comity.outcome": "taken",
    }  # fmt: skip
    assert dict(first.resource.attributes) == {
        "service.name": "comity", "comity.organization": "ada.example", "comity.node": NODE,
    }  # fmt: skip


def test_the_trace_id_of_a_task_stays_what_it_is() -> None:
    assert f"{trace_id_of(bytes(16)):032x}" == "35ccb7bf23f24d9c3143be4f74ab4256"
    assert trace_id_of(bytes(16)) != trace_id_of(bytes(15) + b"\x01")


def test_a_task_is_recorded_by_all_or_by_none() -> None:
    exporter = InMemorySpanExporter()
    tasks = [Subject(number.to_bytes(16, "big"), bytes(32)) for number in range(1000)]
    for organization in ("ada.example", "bea.example"):
        OtelTracer(
            SimpleSpanProcessor(exporter), organization=organization, node=NODE, sample=0.25
        ).record("send", tasks, 1)  # fmt: skip
    spans = exporter.get_finished_spans()
    assert 150 < len(spans) / 2 < 350
    counts = [sum(one.context.trace_id == trace_id_of(task.task_id) for one in spans) for task in tasks]
    assert set(counts) == {0, 2}
    assert not is_sampled(trace_id_of(tasks[0].task_id), 0.0)
    assert all(is_sampled(trace_id_of(task.task_id), 1.0) for task in tasks)


def test_without_a_collector_nothing_is_done() -> None:
    assert not NULL.enabled
    assert NULL.now_ns() == 0
    NULL.record("send", [TASK], 0)


def test_what_the_environment_says_of_spans_does_not_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "secret=1")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "another")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1")
    exporter = InMemorySpanExporter()
    tracer(exporter, service="mine").record("send", [TASK], 1)
    (span,) = exporter.get_finished_spans()
    assert dict(span.resource.attributes)["service.name"] == "mine"
    assert "secret" not in span.resource.attributes
    assert len(span.attributes or {}) > 1


@contextmanager
def collector(status: int = 200) -> Iterator[tuple[str, list[ExportTraceServiceRequest], threading.Event]]:
    """An OTLP/HTTP receiver on loopback."""
    came: list[ExportTraceServiceRequest] = []
    asked = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf":
                came.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            asked.set()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", came, asked
        finally:
            server.shutdown()
            thread.join()


def test_spans_reach_a_collector_over_http() -> None:
    with collector() as (endpoint, came, _):
        one = OtelTracer(exporting(endpoint), organization="ada.example", node=NODE)
        one.record("agent", [TASK], 1_000, skill="label", outcomes=["answered"])
        one.close()
        (resource,) = came[0].resource_spans
        (span,) = resource.scope_spans[0].spans
        assert span.trace_id == trace_id_of(TASK.task_id).to_bytes(16, "big")
        assert span.start_time_unix_nano == 1_000
        assert {each.key for each in span.attributes} == {
            "comity.task", "comity.agreement", "comity.organization", "comity.attempt", "comity.skill",
            "comity.outcome",
        }  # fmt: skip


def test_a_collector_that_refuses_or_is_not_there_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    limits = TracingLimits(delay_s=0.01, request_s=0.5)
    with collector(status=400) as (endpoint, _, asked):
        refused = OtelTracer(exporting(endpoint, limits), organization="ada.example", node=NODE)
        refused.record("send", [TASK], 1)
        assert asked.wait(10)
        refused.close()
    gone = OtelTracer(exporting(endpoint, limits), organization="ada.example", node=NODE)
    gone.record("send", [TASK] * 10, 1)
    gone.close()
    assert "the collector got no spans" in caplog.text


class Broken(SpanExporter):
    """Raises, whatever it is given."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise RuntimeError("broken")

    def shutdown(self) -> None:
        pass


def test_a_broken_exporter_is_complained_of_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    now_s = [0.0]
    calm = _Calm(Broken(), lambda: now_s[0])
    for _ in range(3):
        assert calm.export([]) is SpanExportResult.FAILURE
    assert caplog.text.count("the collector got no spans") == 1
    now_s[0] = 301.0
    calm.export([])
    assert caplog.text.count("the collector got no spans") == 2


def test_the_queue_of_spans_and_a_request_are_bounded() -> None:
    """Nobody takes spans: so many wait, and a request has no more than so many."""
    sizes: list[int] = []
    waiting, free = threading.Event(), threading.Event()

    class Stuck(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            sizes.append(len(spans))
            waiting.set()
            assert free.wait(10)
            return SpanExportResult.SUCCESS

    limits = TracingLimits(queue=20, batch=5, delay_s=60.0)
    processor = exporting("http://127.0.0.1:9/v1/traces", limits)
    processor._batch_processor._exporter = Stuck()  # type: ignore[attr-defined]
    one = OtelTracer(processor, organization="ada.example", node=NODE)
    one.record("send", [TASK] * 5, 1)
    assert waiting.wait(10)
    one.record("send", [TASK] * 100, 1)
    free.set()
    one.close()
    assert max(sizes) == 5
    assert sum(sizes) == 25


def test_a_span_has_so_many_attributes_of_so_many_characters() -> None:
    exporter = InMemorySpanExporter()
    tracer(exporter, limits=TracingLimits(text=5)).record("send", [TASK], 1, peer="a-long-name.example")
    tracer(exporter, limits=TracingLimits(attributes=2)).record("send", [TASK], 1, peer="bea.example")
    short, few = exporter.get_finished_spans()
    assert dict(short.attributes or {})["comity.peer"] == "a-lon"
    assert len(few.attributes or {}) == 2


def test_a_collector_that_never_answers_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        one = OtelTracer(exporting(endpoint, TracingLimits(request_s=0.2)), organization="ada.example", node=NODE)
        one.record("send", [TASK], 1)
        ending = threading.Thread(target=one.close, daemon=True)
        ending.start()
        ending.join(10)
        assert not ending.is_alive()
