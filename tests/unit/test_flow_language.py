"""The flow language: its forms, and what is refused, each at its place and with what to do."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from comity.errors import ConfigError
from comity_node.protocol.flow import Budget, Finish, Place, Where, parse_flow, read_flow
from kit.flows import STATE, TRIAGE, flow_of, step


def changed(path: str, value: Any) -> dict[str, Any]:
    """The triage flow with one value set, or with `...` taken out."""
    flow = copy.deepcopy(TRIAGE)
    here: Any = flow
    *way, last = [int(each) if each.isdigit() else each for each in path.split("/")]
    for each in way:
        here = here[each]
    if value is ...:
        del here[last]
    else:
        here[last] = value
    return flow


def test_a_flow_has_what_was_written() -> None:
    flow = read_flow(TRIAGE)
    assert flow.start == "draft"
    assert flow.limits == Budget(32, 60, 1000, 5_000_000)
    assert flow.record == flow.required == ("answer", "question")
    assert flow.finish is Finish.CERTIFY
    answer, talk, run = flow.steps["answer"], flow.steps["talk"], flow.steps["run"]
    assert (answer.skill, answer.at, answer.reads) == ("answer", Place(Where.OTHERS), ("question",))
    assert answer.writes == ("answer", "confidence")
    assert [role.skill for role in talk.roles] == ["ask", "reply"]
    assert [role.at.where for role in talk.roles] == [Where.HOME, Where.OTHERS]
    assert all(role.writes == ("done", "lines") for role in talk.roles)
    assert (run.lease, run.retries, flow.steps["clean"].release) == ("sandbox", 1, "sandbox")


def test_what_is_left_out_has_its_usual_value() -> None:
    flow = flow_of({"only": {"skill": "work"}})
    only = flow.steps["only"]
    assert flow.start == "only"
    assert flow.limits == Budget(64, 600, 1_000_000, 100_000_000)
    assert (flow.record, flow.required) == (tuple(sorted(STATE["properties"])), ())
    assert (only.at, only.reads, only.writes) == (Place(), tuple(sorted(STATE["properties"])), ())
    assert (only.rows, only.price, only.most, only.retries, only.otherwise) == (1, None, 0, 2, None)
    assert [branch.go for branch in only.next] == ["end"]


def test_a_list_of_steps_goes_from_one_to_the_next() -> None:
    listed = flow_of([{"name": "a", **step()}, {"name": "b", **step(), "next": "c"}, {"name": "c", **step()}])
    mapped = flow_of({"a": {**step(), "next": "b"}, "b": {**step(), "next": [{"go": "c"}]}, "c": step()}, start="a")
    assert listed == mapped
    assert listed.document == mapped.document


def test_the_order_of_what_is_written_does_not_matter() -> None:
    backwards = json.loads(json.dumps(TRIAGE), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert read_flow(backwards).document == read_flow(TRIAGE).document
    assert read_flow(changed("record", ["answer", "question"])) == read_flow(TRIAGE)


def test_what_is_written_another_way_is_the_same_flow() -> None:
    assert read_flow(changed("steps/critique/next/0/when", {"verdict": {"is": "good"}})) == read_flow(TRIAGE)
    assert read_flow(changed("steps/draft/next", {"go": "answer"})) == read_flow(TRIAGE)
    assert read_flow(changed("limits/cost", 5)) == read_flow(TRIAGE)
    assert read_flow(changed("state/additionalProperties", False)) == read_flow(TRIAGE)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("limits/steps", 33),
        ("steps/answer/next/0/when/confidence/below", 0.5),
        ("steps/answer/next/0/reason", "too low"),
        ("steps/run/retries", 2),
        ("steps/talk/turns", 5),
        ("steps/talk/until", {"done": {"has": True}}),
        ("steps/draft/at", "any"),
        ("steps/draft/price", 0.25),
        ("steps/draft/rows", 2),
        ("finish", "none"),
        ("record", ["answer"]),
        ("state/properties/count", {"type": "integer", "minimum": 0}),
    ],
)
def test_whatever_means_something_else_is_another_document(path: str, value: Any) -> None:
    other = read_flow(changed(path, value))
    assert other != read_flow(TRIAGE)
    assert parse_flow(other.document) == other


def test_who_may_do_what() -> None:
    flow = read_flow(changed("steps/critique/at", ["hope.example", "clinic.example"]))
    assert flow.steps["critique"].at.organizations == ("clinic.example", "hope.example")
    assert flow.skills_at("mercy.example", "mercy.example") == {"draft-question", "ask"}
    assert flow.skills_at("hope.example", "mercy.example") == {"answer", "critique", "reply", "run-code", "clean-up"}
    assert flow.skills_at("stlukes.example", "mercy.example") == {"answer", "reply", "run-code", "clean-up"}
    assert flow.skills == flow.skills_at("hope.example", "a.example") | flow.skills_at("a.example", "a.example")


WRONG: list[tuple[str, Any, str, str]] = [
    # What is set (... takes it out), where the error points, what it says.
    ("stats", 1, "flow.stats", "did you mean"),
    ("state", ..., "flow", "the key 'state' is missing"),
    ("state", {"type": "string"}, "flow.state", "a state is an object"),
    ("state/required", ["answer"], "flow.state", "record"),
    ("state/properties/answer/type", "text", "flow.state.properties.answer.type", "no type"),
    ("state/properties/answer/minimum", 1, "flow.state.properties.answer.minimum", "no such key"),
    ("state/properties/answer/pattern", "a", "flow.state.properties.answer.pattern", "no such key"),
    ("state/properties/lines/items", ..., "flow.state.properties.lines", "needs items"),
    ("state/properties/score/properties", ..., "flow.state.properties.score", "needs properties"),
    ("state/properties/score/required", ["x"], "flow.state.properties.score.required", "no field 'x'"),
    ("state/properties/score/additionalProperties", True, "flow.state.properties.score.additionalProperties", "no oth"),
    ("state/properties/confidence/maximum", -1, "flow.state.properties.confidence.maximum", "below minimum"),
    ("state/properties/confidence/maximum", float("nan"), "flow.state.properties.confidence.maximum", "a number"),
    ("state/properties/confidence/maximum", 1e17, "flow.state.properties.confidence.maximum", "2\\^53"),
    ("state/properties/answer/maxLength", -1, "flow.state.properties.answer.maxLength", "from 0"),
    ("state/properties/verdict/enum", [], "flow.state.properties.verdict.enum", "no value fits"),
    ("state/properties/verdict/enum", ["a", 1], "flow.state.properties.verdict.enum", "value 1 is no string"),
    ("state/properties/x.y", {"type": "string"}, "flow.state.properties.x.y", "a field's name"),
    ("start", "drafts", "flow.start", "did you mean 'draft'"),
    ("start", ..., "flow", "which step comes first"),
    ("steps", {}, "flow.steps", "needs a step"),
    ("steps", [], "flow.steps", "needs a step"),
    ("steps", "draft", "flow.steps", "a mapping"),
    ("steps", [{"skill": "a"}], "flow.steps[0]", "the key 'name' is missing"),
    ("steps", [{"name": "a", "skill": "a"}, {"name": "a", "skill": "b"}], "flow.steps[1]", "two steps 'a'"),
    ("steps/End", {"skill": "a"}, "flow.steps.End", "no name"),
    ("steps/end", {"skill": "a"}, "flow.steps.end", "where a way ends"),
    ("steps/draft", None, "flow.steps.draft", "expected a mapping, got nothing"),
    ("steps/draft/skill", ..., "flow.steps.draft", "the key 'skill' is missing"),
    ("steps/draft/skill", "Draft", "flow.steps.draft.skill", "lower-case"),
    ("steps/draft/retry", 1, "flow.steps.draft.retry", "did you mean 'retries'"),
    ("steps/draft/at", "other", "flow.steps.draft.at", "did you mean 'others'"),
    ("steps/draft/at", [], "flow.steps.draft.at", "names no organization"),
    ("steps/draft/at", ["Mercy"], "flow.steps.draft.at", "no organization name"),
    ("steps/draft/at", ["a.b", "a.b"], "flow.steps.draft.at[1]", "listed twice"),
    ("steps/draft/reads", ["topic"], "flow.steps.draft.reads", "no field 'topic'"),
    ("steps/draft/writes", ["score.total"], "flow.steps.draft.writes", "no field 'score.total'"),
    ("steps/draft/appends", ["answer"], "flow.steps.draft.appends", "has to be an array"),
    ("steps/draft/rows", 0, "flow.steps.draft.rows", "from 1 to 256"),
    ("steps/draft/rows", True, "flow.steps.draft.rows", "got true or false"),
    ("steps/draft/rows", 1.5, "flow.steps.draft.rows", "whole number"),
    ("steps/draft/price", -1, "flow.steps.draft.price", "from 0"),
    ("steps/draft/next", "answers", "flow.steps.draft.next", "did you mean 'answer'"),
    ("steps/draft/next", [], "flow.steps.draft.next", "the last branch"),
    ("steps/draft/next", {"go": "answer", "when": {"done": True}}, "flow.steps.draft.next.when", "no such key"),
    ("steps/answer/next/1/when", {"done": True}, "flow.steps.answer.next", "the last branch"),
    ("steps/answer/next/0/when", ..., "flow.steps.answer.next[0]", "always taken"),
    ("steps/answer/next/1/reason", "x", "flow.steps.answer.next[1].reason", "only what is dropped"),
    ("steps/answer/next/0/when", {}, "flow.steps.answer.next[0].when", "always holds"),
    ("steps/answer/next/0/when", {"sure": True}, "flow.steps.answer.next[0].when.sure", "no field 'sure'"),
    ("steps/answer/next/0/when", {"score.tot": 1}, "flow.steps.answer.next[0].when.score.tot", "no field"),
    ("steps/answer/next/0/when", {"verdict": "fine"}, "flow.steps.answer.next[0].when.verdict", "never holds"),
    ("steps/answer/next/0/when", {"verdict": []}, "flow.steps.answer.next[0].when.verdict", "one of no values"),
    ("steps/answer/next/0/when", {"verdict": ["good", 1]}, "flow.steps.answer.next[0].when.verdict", "never holds"),
    ("steps/answer/next/0/when", {"verdict": {}}, "flow.steps.answer.next[0].when.verdict", "asks nothing"),
    (
        "steps/answer/next/0/when",
        {"verdict": {"over": 1}},
        "flow.steps.answer.next[0].when.verdict.over",
        "no such key",
    ),
    ("steps/answer/next/0/when", {"verdict": {"above": 1}}, "flow.steps.answer.next[0].when.verdict.above", "numbers"),
    ("steps/answer/next/0/when", {"lines": {"is": []}}, "flow.steps.answer.next[0].when.lines.is", "only `has`"),
    ("steps/answer/next/0/when", {"done": {"has": 1}}, "flow.steps.answer.next[0].when.done.has", "true or false"),
    ("steps/answer/next/0/when", {"any": []}, "flow.steps.answer.next[0].when.any", "name one"),
    ("steps/critique/most", ..., "flow.steps.critique", "a loop without a bound"),
    ("steps/critique/otherwise", "answer", "flow.steps.answer", "a loop without a bound"),
    ("steps/critique/otherwise", "critique", "flow.steps.critique", "leads back to it"),
    ("steps/talk/turns", ..., "flow.steps.talk", "the key 'turns' is missing"),
    ("steps/talk/turns", 1, "flow.steps.talk.turns", "from 2"),
    ("steps/talk/skill", "x", "flow.steps.talk.skill", "no such key"),
    ("steps/talk/lease", "x", "flow.steps.talk.lease", "no such key"),
    ("steps/talk/dialogue", [{"skill": "ask"}], "flow.steps.talk.dialogue", "two roles or more"),
    ("steps/talk/dialogue/0/rows", 2, "flow.steps.talk.dialogue[0].rows", "no such key"),
    ("steps/run/lease", "Box", "flow.steps.run.lease", "lower-case"),
    ("steps/run/lease", "box", "flow.steps.clean", "no step has the lease 'sandbox'"),
    ("steps/run/release", "box", "flow.steps.run.release", "it can release that"),
    ("steps/run/rows", 2, "flow.steps.run.rows", "one row at a time"),
    ("steps/clean/at", "any", "flow.steps.clean", "the same `at` as step 'run'"),
    ("steps/clean/next", "drop", "flow.steps.draft", "no way leads from the first step to `end`"),
    ("steps/extra", {"skill": "x"}, "flow.steps.extra", "no way leads to this step"),
    ("limits/steps", 0, "flow.limits.steps", "from 1"),
    ("limits/hours", 1, "flow.limits.hours", "no such key"),
    ("limits/cost", "much", "flow.limits.cost", "expected a number, got a text"),
    ("limits/cost", 10**400, "flow.limits.cost", "over 2.53 - 1"),
    ("state/properties/count/minimum", 10**400, "flow.state.properties.count.minimum", "over 2"),
    ("record", [], "flow.record", "names no field"),
    ("record", ["topic"], "flow.record", "no field 'topic'"),
    ("finish", "review", "flow.finish", "known: certify, none"),
]


@pytest.mark.parametrize(("path", "value", "where", "says"), WRONG)
def test_what_is_wrong_is_refused_at_its_place(path: str, value: Any, where: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        read_flow(changed(path, value))
    assert str(caught.value).startswith(f"{where}: ")
    assert "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in caught.value.path)[1:] == where


def test_a_key_with_half_a_character_is_refused_with_words_that_can_be_printed() -> None:
    with pytest.raises(ConfigError) as caught:
        read_flow({**TRIAGE, "hal\ud800f": 1})
    assert str(caught.value).encode().startswith(b"flow.hal?f: there is no such key here")


def test_a_step_with_no_way_out_is_refused() -> None:
    ring = {"a": {**step(), "most": 2, "next": "b"}, "b": {**step(), "next": "a"}}
    start = {"first": {**step(), "next": [{"when": {"done": True}, "go": "a"}, {"go": "end"}]}}
    with pytest.raises(ConfigError, match=r"flow\.steps\.a: no way leads from this step to `end` or `drop`"):
        flow_of({**start, **ring}, start="first")


@pytest.mark.parametrize("data", [b"", b"[", b"[]", b'{"a": 1, "a": 2}', b"\xff", b"[" * 40_000])
def test_bytes_that_are_no_flow_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_flow(data)


def test_a_flow_that_somebody_wrote_by_hand_is_not_what_was_signed() -> None:
    flow = read_flow(TRIAGE)
    with pytest.raises(ConfigError, match="canonical"):
        parse_flow(json.dumps(TRIAGE).encode())
    with pytest.raises(ConfigError, match="canonical"):
        parse_flow(flow.document.replace(b'"steps":32', b'"steps": 32'))
