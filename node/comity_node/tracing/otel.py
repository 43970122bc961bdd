"""Spans to an OpenTelemetry collector, by OTLP over HTTP (https://opentelemetry.io/docs/specs/otlp).

Needs the extra `otel`. A thread of the OpenTelemetry SDK sends what waits in a bounded queue; beyond it spans are
dropped, and counted. Whether the collector answers makes no difference to the node.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import requests
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from comity_node.tracing import Subject, is_sampled, trace_id_of

__all__ = ["OtelTracer", "TracingLimits", "exporting"]

log = logging.getLogger(__name__)

#: Seconds between two lines of the log about a collector that does not take spans.
_COMPLAIN_EVERY_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class TracingLimits:
    """What tracing may cost.

    Attributes:
        queue: spans that wait to be sent; of more the oldest are dropped.
        batch: spans in one request.
        delay_s: seconds that spans are gathered before they are sent.
        request_s: seconds that a request to the collector may take, with all its retries.
        attributes: of one span.
        text: characters of an attribute.
    """

    queue: int = 8_192
    batch: int = 512
    delay_s: float = 2.0
    request_s: float = 10.0
    attributes: int = 16
    text: int = 128


class _TaskIds(IdGenerator):
    """Gives the next span the trace id that was set, and a random span id."""

    def __init__(self) -> None:
        self.trace_id = 1
        self._random = RandomIdGenerator()

    def generate_span_id(self) -> int:
        return self._random.generate_span_id()

    def generate_trace_id(self) -> int:
        return self.trace_id


class _Calm(SpanExporter):
    """An exporter that says now and then that it cannot, and never raises."""

    def __init__(self, inner: SpanExporter, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._inner, self._clock_s = inner, clock_s
        self._said_s = -_COMPLAIN_EVERY_S
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._inner.export(spans)
        except Exception as error:  # noqa: BLE001  (a library's: whatever it is, the node goes on without these spans)
            self._failed(len(spans), str(error))
            return SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._failed(len(spans), "it does not answer, or refuses them")
        return result

    def _failed(self, count: int, why: str) -> None:
        self.lost += count
        if self._clock_s() - self._said_s >= _COMPLAIN_EVERY_S:
            self._said_s = self._clock_s()
            log.warning("the collector got no spans (%d lost so far): %s", self.lost, why)

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


def exporting(endpoint: str, limits: TracingLimits | None = None) -> SpanProcessor:
    """Return what sends spans to a collector, from a thread of its own.

    No proxy and no `.netrc` is used. Headers and certificates come from the environment variables that OpenTelemetry
    defines for them (docs/seeing.md).

    Args:
        endpoint: the URL that takes spans, with its path.
        limits: what it may cost.
    """
    limits = limits or TracingLimits()
    # Its library writes a line for every request that fails.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    session = requests.Session()
    session.trust_env = False
    exporter = OTLPSpanExporter(
        endpoint, timeout=limits.request_s, compression=Compression.NoCompression, session=session
    )
    return BatchSpanProcessor(
        _Calm(exporter),
        max_queue_size=limits.queue,
        schedule_delay_millis=limits.delay_s * 1000,
        max_export_batch_size=limits.batch,
        export_timeout_millis=limits.request_s * 1000,
    )


class OtelTracer:
    """Records spans with the OpenTelemetry SDK (`tracing.Tracer`); to be used from one thread."""

    enabled: Final = True

    def __init__(
        self, processor: SpanProcessor, *, organization: str, node: str, service: str = "comity", sample: float = 1.0,
        limits: TracingLimits | None = None,
    ) -> None:  # fmt: skip
        """Give spans to `processor`.

        Args:
            processor: such as that of `exporting`.
            organization: whose node records.
            node: its SPIFFE ID.
            service: the `service.name` of the spans.
            sample: the share of tasks that are recorded; of one all spans, or none.
            limits: what it may cost.
        """
        limits = limits or TracingLimits()
        self._sample = sample
        self._organization = organization
        self._ids = _TaskIds()
        resource = Resource({"service.name": service, "comity.organization": organization, "comity.node": node})
        spans = SpanLimits(
            max_attributes=limits.attributes, max_events=0, max_links=0, max_span_attributes=limits.attributes,
            max_event_attributes=0, max_link_attributes=0, max_attribute_length=limits.text,
            max_span_attribute_length=limits.text,
        )  # fmt: skip
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False, id_generator=self._ids, span_limits=spans
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("comity")

    def now_ns(self) -> int:
        """Return the time in nanoseconds since the Unix epoch."""
        return time.time_ns()

    def record(
        self, name: str, subjects: Sequence[Subject], start_ns: int, *, peer: str = "", skill: str = "",
        outcomes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Record one span for each task that is sampled."""
        end_ns = time.time_ns()
        for place, subject in enumerate(subjects):
            trace_id = trace_id_of(subject.task_id)
            if not is_sampled(trace_id, self._sample):
                continue
            said: dict[str, str | int] = {
                "comity.task": subject.task_id.hex(),
                "comity.agreement": subject.agreement.hex(),
                "comity.organization": self._organization,
            }
            if subject.attempt:
                said["comity.attempt"] = subject.attempt
            if subject.joined:
                said["comity.joined"] = subject.joined.hex()
            others = {"comity.peer": peer, "comity.skill": skill, "comity.outcome": outcomes[place] if outcomes else ""}
            said |= {key: value for key, value in others.items() if value}
            self._ids.trace_id = trace_id
            span = self._tracer.start_span(name, context=Context(), attributes=said, start_time=start_ns)
            span.end(end_ns)

    def close(self) -> None:
        """Send what waits, and stop; it may take as long as a request."""
        self._provider.shutdown()
