"""Flows for tests: a small one with everything, and strategies that make any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from comity_node.protocol.flow import Flow, read_flow

STATE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "question": {"type": "string", "maxLength": 200},
        "answer": {"type": "string", "maxLength": 2000},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "verdict": {"type": "string", "enum": ["good", "bad"]},
        "lines": {"type": "array", "items": {"type": "string"}, "maxItems": 40},
        "done": {"type": "boolean"},
        "count": {"type": "integer"},
        "score": {
            "type": "object",
            "properties": {"total": {"type": "integer"}, "why": {"type": "string"}},
            "required": ["total"],
        },
    },
}
TRIAGE: dict[str, Any] = {
    "state": STATE,
    "start": "draft",
    "steps": {
        "draft": {"skill": "draft-question", "at": "home", "writes": ["question"], "next": "answer"},
        "answer": {
            "skill": "answer", "at": "others", "reads": ["question"], "writes": ["answer", "confidence"],
            "next": [{"when": {"confidence": {"below": 0.4}}, "go": "drop", "reason": "unsure"}, {"go": "critique"}],
        },
        "critique": {
            "skill": "critique", "writes": ["verdict"], "most": 2,
            "next": [{"when": {"verdict": "good"}, "go": "talk"}, {"go": "answer"}],
        },
        "talk": {
            "dialogue": [{"skill": "ask", "at": "home"}, {"skill": "reply", "at": "others"}],
            "turns": 4, "until": {"done": True}, "writes": ["lines", "done"], "next": "run",
        },
        "run": {
            "skill": "run-code", "at": "others", "lease": "sandbox", "writes": ["count"], "retries": 1,
            "next": [{"when": {"count": {"above": 0}}, "go": "clean"}, {"go": "drop"}],
        },
        "clean": {"skill": "clean-up", "at": "others", "release": "sandbox"},
    },
    "limits": {"steps": 32, "seconds": 60, "tokens": 1000, "cost": 5.0},
    "record": ["question", "answer"],
}  # fmt: skip


def flow_of(steps: Any, **others: Any) -> Flow:
    """A flow with these steps over `STATE`."""
    return read_flow({"state": STATE, "steps": steps, **others})


def step(skill: str = "work", **others: Any) -> dict[str, Any]:
    """One step that may write everything."""
    return {"skill": skill, "writes": sorted(STATE["properties"]), **others}


# Any shape, values that fit it and values that may not.

NAMES = st.sampled_from(["a", "b", "c_d", "E-f"])
SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-3, 3) | st.text(max_size=4)
ANY_JSON = st.recursive(
    SCALARS | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | NAMES, inner, max_size=3),
    max_leaves=12,
)


@st.composite
def shapes(draw: st.DrawFn, depth: int = 0) -> dict[str, Any]:
    """A JSON Schema of our subset."""
    kinds = ["string", "number", "integer", "boolean"] + (["object", "array"] if depth < 2 else [])
    kind = draw(st.sampled_from(kinds))
    made: dict[str, Any] = {"type": kind}
    low, high = sorted((draw(st.integers(-3, 3)), draw(st.integers(-3, 3))))
    if kind == "object":
        made["properties"] = draw(st.dictionaries(NAMES, shapes(depth + 1), max_size=3))
        if made["properties"] and depth:
            made["required"] = draw(st.lists(st.sampled_from(sorted(made["properties"])), unique=True))
    elif kind == "array":
        made["items"] = draw(shapes(depth + 1))
        made |= draw(st.sampled_from([{}, {"minItems": 1}, {"maxItems": 2}]))
    elif kind == "string":
        made |= draw(st.sampled_from([{}, {"maxLength": 2}, {"minLength": 1, "maxLength": 3}, {"enum": ["a", "bb"]}]))
    elif kind != "boolean":
        spans = [{"minimum": low}, {"maximum": high}, {"minimum": low, "maximum": high}]
        made |= draw(st.sampled_from([{}, *spans, {"enum": [1, 2.0]}]))
    return made


def objects() -> st.SearchStrategy[dict[str, Any]]:
    """A shape that a state may have."""
    return st.dictionaries(NAMES, shapes(1), min_size=1, max_size=4).map(
        lambda properties: {"type": "object", "properties": properties}
    )


def fitting(shape: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that mostly fit a shape, and now and then do not."""
    return st.one_of(_fitting(shape), _fitting(shape), _fitting(shape), ANY_JSON)


def _fitting(shape: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if "enum" in shape:
        return st.sampled_from([*shape["enum"], 1.0, True])
    match shape["type"]:
        case "object":
            inner = {name: fitting(each) for name, each in shape["properties"].items()}
            needed = {name: inner[name] for name in shape.get("required", ())}
            return st.fixed_dictionaries(needed, optional={name: inner[name] for name in inner.keys() - needed.keys()})
        case "array":
            return st.lists(fitting(shape["items"]), max_size=3)
        case "string":
            return st.text(max_size=4)
        case "boolean":
            return st.booleans()
        case _:
            return st.integers(-4, 4) | st.floats(-4, 4) | st.sampled_from([1.0, 2.0, True, 1e17, -0.0])


# Any flow.

STEP_NAMES = ["one", "two", "three", "four", "five"]
_FIELDS = sorted(STATE["properties"])
_WHENS = st.sampled_from(
    [
        {"confidence": {"below": 0.5}},
        {"verdict": "good"},
        {"verdict": ["good", "bad"]},
        {"done": True, "count": {"at_least": 1}},
        {"answer": {"has": False}},
        {"any": [{"score.total": {"above": 3}}, {"not": {"done": True}}]},
    ]
)


@st.composite
def flow_values(draw: st.DrawFn) -> dict[str, Any]:
    """A JSON value that is a good flow: the last branch leads on, loops go by steps with `most`."""
    names = STEP_NAMES[: draw(st.integers(1, 5))]
    steps = {name: draw(_steps(names, number)) for number, name in enumerate(names)}
    value: dict[str, Any] = {"state": STATE, "start": names[0], "steps": steps}
    limits = {"steps": st.integers(1, 40), "seconds": st.integers(1, 60), "tokens": st.integers(1, 300)}
    if draw(st.booleans()):
        value["limits"] = draw(st.fixed_dictionaries({}, optional={**limits, "cost": st.floats(0, 3)}))
    if draw(st.booleans()):
        value["record"] = draw(st.lists(st.sampled_from(_FIELDS), min_size=1, max_size=2, unique=True))
    return value


@st.composite
def _steps(draw: st.DrawFn, names: list[str], number: int) -> dict[str, Any]:
    forward = [*names[number + 1 :], "end", "drop"]
    some = draw(st.lists(st.sampled_from([*names, "end", "drop"]), max_size=2))
    follows = [{"when": draw(_WHENS), "go": there} for there in some]
    made: dict[str, Any] = {"writes": _FIELDS, "next": [*follows, {"go": forward[0]}]}
    goes_back = not set(some).isdisjoint(names[: number + 1])
    if goes_back or draw(st.booleans()):
        made["most"] = draw(st.integers(1, 4))
    optional = {"retries": st.integers(0, 3), "otherwise": st.sampled_from(forward)}
    if draw(st.integers(0, 3)) == 0:
        roles = st.lists(st.sampled_from([{"skill": "ask", "at": "home"}, {"skill": "reply"}]), min_size=2, max_size=3)
        talk = {"dialogue": roles, "turns": st.integers(3, 6)}
        return made | draw(st.fixed_dictionaries(talk, optional={**optional, "until": _WHENS}))
    work = {**optional, "lease": st.sampled_from(["box", "seat"]), "price": st.floats(0, 1)}
    made |= draw(st.fixed_dictionaries({"skill": st.just("work")}, optional=work))
    if "lease" in made and draw(st.booleans()):
        made["release"] = made["lease"]
    return made


def answers() -> st.SearchStrategy[Any]:
    """What an agent may say, good and bad."""
    writes = st.fixed_dictionaries({}, optional={name: fitting(STATE["properties"][name]) for name in _FIELDS})
    usage = st.fixed_dictionaries({}, optional={"tokens": st.integers(-1, 50), "cost": st.floats(0, 2)})
    good = st.fixed_dictionaries({"state": writes}, optional={"usage": usage, "lease": st.sampled_from(["c-1", '"'])})
    bad: st.SearchStrategy[Any] = st.sampled_from(
        [{"error": "no"}, {"error": 3}, {"lost": True}, {"other": 1}, {}, None, [], {"state": []}]
    )
    return st.one_of(good, good, good, bad, ANY_JSON)
