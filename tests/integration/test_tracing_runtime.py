"""Spans of real runs: three organizations, each with its own exporter, and what these have together."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import trio

pytest.importorskip("opentelemetry.sdk.trace")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from comity_node.tracing import trace_id_of
from comity_node.tracing.otel import OtelTracer
from kit.lab import Lab, honest_agents, run

ADA = "org00.example"
#: What the record and the answers of agents have, and nothing else has.
SECRET, WORD = 123.456, "zebra"
FLOW: dict[str, Any] = {
    "state": {
        "type": "object",
        "properties": {
            "x": {"type": "number", "minimum": -1000, "maximum": 1000},
            "label": {"type": "integer", "minimum": 0, "maximum": 1},
            "note": {"type": "string", "maxLength": 100},
        },
    },
    "start": "draft",
    "steps": {
        "draft": {"skill": "draft", "at": "home", "writes": ["x", "note"], "next": "label"},
        "label": {"skill": "label", "at": "others", "reads": ["x", "note"], "writes": ["label"], "next": "end"},
    },
    "record": ["x", "label"],
    "limits": {"seconds": 120},
}


def reviews(work: Any) -> Any:
    verdict = {"score": 9000, "axes": {"range": 9000}, "feedback": [f"{WORD} {SECRET}"]}
    return {"reviews": [verdict for _ in work["records"]], "validator": "test"}


def test_spans_of_three_organizations_join_by_the_task_and_have_nothing_of_the_record(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 3)
    exporters = {name: InMemorySpanExporter() for name in lab.names}
    for number, (name, member) in enumerate(lab.members.items()):
        member.tracer = OtelTracer(
            SimpleSpanProcessor(exporters[name]), organization=name, node=f"spiffe://{name}/node/a"
        )
        member.agents = {
            **honest_agents(number),
            "draft": lambda work: {"state": {"x": SECRET, "note": WORD}},
            "label": lambda work: {"state": {"label": 1}},
            "review": reviews,
        }
    ways: list[tuple[bytes, bytes]] = []

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(
            ADA, flow=FLOW, homes="initiator", records_per_organization=2, batch_records=2
        )  # fmt: skip
        await lab.until_done(workflow_id, ADA)
        ways.extend(lab.members[ADA].rows("SELECT task_id, record_task FROM journeys"))

    run(main)
    spans = [span for exporter in exporters.values() for span in exporter.get_finished_spans()]
    assert len(ways) == 2
    for way, record in ways:
        check_way(spans, way, record)
        check_record(spans, record, way)
    for span in spans:
        said = span.to_json()
        assert str(SECRET) not in said
        assert WORD not in said
        assert not span.events
        assert set(span.attributes or {}) <= {
            f"comity.{name}"
            for name in ("task", "agreement", "organization", "attempt", "peer", "skill", "outcome", "joined")
        }


def of_trace(spans: list[ReadableSpan], task: bytes) -> dict[str, list[dict[str, Any]]]:
    """What the spans of a task say, by their names."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for span in spans:
        if span.context is not None and span.context.trace_id == trace_id_of(task):
            found[span.name].append(dict(span.attributes or {}))
    return found


def check_way(spans: list[ReadableSpan], way: bytes, record: bytes) -> None:
    found = of_trace(spans, way)
    assert {each["comity.organization"] for each in found["agent"]} > {ADA}
    assert {each["comity.skill"] for each in found["agent"]} == {"draft", "label"}
    (holder,) = {each["comity.organization"] for each in found["agent"]} - {ADA}
    for name in ("egress", "send", "receive"):
        assert {each["comity.organization"] for each in found[name]} == {ADA, holder}
    assert {each["comity.attempt"] for each in found["send"]} == {1}
    assert {each["comity.outcome"] for each in found["send"]} == {"taken"}
    assert [each["comity.joined"] for each in found["join"]] == [record.hex()]


def check_record(spans: list[ReadableSpan], record: bytes, way: bytes) -> None:
    found = of_trace(spans, record)
    assert {each["comity.organization"] for each in found["review"]} <= {"org01.example", "org02.example"}
    assert len(found["review"]) >= 2
    assert {each["comity.outcome"] for each in found["egress"]} == {"passed"}
    assert {each["comity.organization"] for each in found["receive"]} >= {"org01.example"}
    assert [each["comity.outcome"] for each in found["certify"]] == ["accepted"]
    assert [each["comity.joined"] for each in found["join"]] == [way.hex()]
