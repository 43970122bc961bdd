"""The builder in Python says what YAML says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import comity.workflow
from comity.errors import ConfigError
from comity.workflow import (
    DROP,
    END,
    HOME,
    OTHERS,
    Workflow,
    array,
    boolean,
    field,
    integer,
    number,
    record,
    role,
    text,
)
from comity.workflow import when as branch
from comity_node import strictyaml
from comity_node.protocol.flow import read_flow
from comity_node.runtime.workflow import parse_workflow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "workflows"


def triage() -> Workflow:
    work = Workflow("triage", purpose="breast-cancer-screening", dataset="tumour-features", records=200)
    work.state(question=text(2000), answer=text(8000), confidence=number(0, 1), verdict=text(among=["good", "bad"]))
    work.step("draft", "draft-question", at=HOME, writes=["question"])
    unsure = branch(field("confidence").below(0.4), DROP, reason="unsure")
    work.step(
        "answer", "answer", at=OTHERS, reads=["question"], writes=["answer", "confidence"], next=[unsure, "critique"]
    )
    good = branch(field("verdict").is_("good"), END)
    work.step("critique", "critique", reads=["question", "answer"], writes=["verdict"], most=3, next=[good, "answer"])
    return work.limits(steps=32, seconds=600, tokens=20_000, cost=5.0).record("question", "answer")


def dialogue() -> Workflow:
    work = Workflow("interviews", purpose="breast-cancer-screening", dataset="interviews", records=50)
    line = record(["who", "says"], who=text(among=["doctor", "patient"]), says=text(2000))
    work.state(transcript=array(line, 64), done=boolean(), summary=text(4000), usable=boolean())
    work.dialogue(
        "talk", [role("play-doctor", at=HOME), role("play-patient", at=OTHERS)], turns=20,
        until=field("done").is_(True), reads=["transcript"], appends=["transcript"], writes=["done"],
    )  # fmt: skip
    useless = branch(field("usable").is_(False), DROP, reason="nothing was said")
    work.step("sum-up", "summarize", at=HOME, reads=["transcript"], writes=["summary", "usable"], next=[useless, END])
    return work.limits(steps=40, seconds=1800).record("transcript", "summary")


def funnel() -> Workflow:
    work = Workflow("funnel", purpose="breast-cancer-screening", dataset="tumour-features", records=5000)
    score = record(["total"], total=integer(0, 10), why=text(500))
    work.state(candidate=text(4000), language=text(8), duplicate=boolean(), score=score)
    work.step("generate", "generate-candidate", at=HOME, writes=["candidate"], rows=16)
    work.step(
        "classify", "classify", reads=["candidate"], writes=["language", "duplicate"], rows=64,
        next=[
            branch(field("duplicate").is_(True), DROP, reason="seen before"),
            branch({"not": field("language").among("en", "de")}, DROP, reason="another language"),
            "judge",
        ],
    )  # fmt: skip
    bad = {"go": DROP, "reason": "not good enough"}
    work.step(
        "judge", "judge", at=OTHERS, reads=["candidate"], writes=["score"], price=0.01, retries=1,
        next=[branch(field("score.total").at_least(8), END), bad],
    )  # fmt: skip
    return work.limits(steps=8, seconds=300, cost=0.05).record("candidate", "score").without_review()


def tools() -> Workflow:
    work = Workflow("code-with-tools", purpose="software-research", dataset="programs", records=100)
    work.state(problem=text(4000), program=text(64_000), output=text(16_000), passed=boolean())
    work.step("pose", "pose-problem", at=HOME, writes=["problem"])
    work.step(
        "write", "write-program", reads=["problem", "program", "output"], writes=["program"], most=5,
        otherwise="clean-up",
    )  # fmt: skip
    passed = field("passed").is_(True)
    work.step(
        "run", "run-code", at=OTHERS, lease="sandbox", reads=["program"], writes=["output", "passed"], retries=2,
        next=[branch(passed, "clean-up"), "write"],
    )  # fmt: skip
    none = {"go": DROP, "reason": "no program passed"}
    work.step(
        "clean-up", "remove-sandbox", at=OTHERS, release="sandbox", reads=[], next=[branch(passed, END), none]
    )  # fmt: skip
    return work.limits(steps=40, seconds=3600, tokens=200_000).record("problem", "program", "output")


@pytest.mark.parametrize("make", [triage, dialogue, funnel, tools])
def test_what_is_built_is_what_the_yaml_example_says(make: Any) -> None:
    built = make().document()
    written = strictyaml.load(EXAMPLES / f"{make.__name__}.yaml").data()
    ours, theirs = (parse_workflow(json.dumps(each).encode()) for each in (built, written))
    assert ours.flow is not None
    assert ours.flow == theirs.flow
    assert (ours.name, ours.purpose, ours.dataset, ours.numbers) == (
        theirs.name, theirs.purpose, theirs.dataset, theirs.numbers,
    )  # fmt: skip


def test_a_workflow_without_steps_has_no_flow() -> None:
    work = Workflow("w", purpose="p", dataset="d", records=5, min_score=700, participants=["a.example"])
    assert work.document() == {
        "name": "w", "purpose": "p", "dataset": "d", "records_per_organization": 5, "min_score": 700,
        "participants": ["a.example"],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="a flow that has no step"):
        work.limits(steps=3).document()


def test_a_step_and_a_role_say_that_their_agents_have_effects_outside() -> None:
    work = Workflow("w", purpose="p", dataset="d", records=5).state(a=text())
    work.step("order", "order", writes=["a"], hedge=False).step("look", "look", writes=["a"])
    assert [step.get("hedge") for step in work.document()["flow"]["steps"]] == [False, None]
    work.dialogue("talk", [role("ask", writes=["a"], hedge=False), role("reply", writes=["a"])], turns=2)
    flow = read_flow(work.document()["flow"])
    assert [step.hedge for step in (flow.steps["order"], flow.steps["look"])] == [False, True]
    assert [each.hedge for each in flow.steps["talk"].roles] == [False, True]


def test_a_step_has_one_name() -> None:
    work = Workflow("w", purpose="p", dataset="d", records=5).state(a=text()).step("one", "x")
    with pytest.raises(ConfigError, match="'one' already"):
        work.step("one", "y")
    with pytest.raises(ConfigError, match="'one' already"):
        work.dialogue("one", [role("a"), role("b")], turns=2)


def test_a_document_does_not_change_with_what_comes_after_it() -> None:
    work = Workflow("w", purpose="p", dataset="d", records=5).state(a=array(text())).step("one", "x", writes=["a"])
    first = work.document()
    first["flow"]["steps"][0]["skill"] = "z"
    work.step("two", "y")
    assert [step["skill"] for step in work.document()["flow"]["steps"]] == ["x", "y"]


def test_everything_that_can_be_asked_is_a_condition() -> None:
    n, b = field("n"), field("b")
    asked = [
        n.is_(1), n.among(1, 2), n.below(3), n.above(0), n.at_least(1), n.at_most(2), n.there(), b.missing(),
        {**n.above(0), **b.there()}, {"any": [n.above(5), {"not": b.is_(True)}]},
    ]  # fmt: skip
    work = Workflow("w", purpose="p", dataset="d", records=5).state(n=integer(), b=boolean())
    work.step("one", "x", at=["a.example", "b.example"], next=[*(branch(each, DROP) for each in asked), END], retries=0)
    flow = read_flow(work.document()["flow"])
    assert [bool(each.when and each.when.holds({"n": 1})) for each in flow.steps["one"].next] == [
        True, True, True, True, True, True, True, True, False, True, False,
    ]  # fmt: skip
    assert flow.steps["one"].at.organizations == ("a.example", "b.example")


def test_the_module_exports_what_it_promises() -> None:
    assert sorted(comity.workflow.__all__) == [
        "ANY", "DROP", "END", "Field", "HOME", "OTHERS", "Workflow", "array", "boolean", "field", "integer", "number",
        "record", "role", "text", "when",
    ]  # fmt: skip
