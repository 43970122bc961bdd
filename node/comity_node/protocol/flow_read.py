"""Reads a flow: from a JSON value that somebody wrote, or from its canonical bytes that participants have signed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from comity.digest import canonical_json
from comity.errors import ConfigError, InvalidName
from comity.ids import organization_name
from comity.strictjson import parse_json
from comity_node.protocol import flow_model as model
from comity_node.protocol.flow_graph import check_graph
from comity_node.protocol.flow_model import DROP, END, Branch, Budget, Finish, Flow, Place, Step, Where
from comity_node.protocol.flow_spot import Spot
from comity_node.protocol.flow_state import MAX_FIELDS, Shape, read_shape
from comity_node.protocol.flow_when import read_condition
from comity_node.protocol.flow_write import write_flow

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_RULE = "lower-case letters, digits, '.', '_' and '-', at most 64"
_MAX_ORGANIZATIONS = 256
#: Tries after the first that a step has if it does not say.
_RETRIES = 2
_KEYS = ("state", "start", "steps", "limits", "record", "finish")
_ROLE_KEYS = ("skill", "at", "reads", "writes", "appends", "price", "hedge")
_STEP_KEYS = (*_ROLE_KEYS, "rows", "most", "retries", "otherwise", "next", "lease", "release")
_DIALOGUE_KEYS = ("dialogue", "turns", "until", "reads", "writes", "appends", "most", "retries", "otherwise", "next")
_BRANCH_KEYS = ("when", "go", "reason")


def read_flow(value: object, path: tuple[str | int, ...] = ("flow",)) -> Flow:
    """Read a flow from the JSON value that a workflow has under `flow`.

    Args:
        value: what was written, JSON or YAML; anything at all.
        path: the way to it in the document, for errors.

    Raises:
        ConfigError: it is no flow: carries the path of what is wrong, and says what to do.
    """
    top = Spot(value, path)
    entries = top.mapping(_KEYS)
    shape = read_shape(top.mapping_with("state"))
    spots, start = _steps_of(top, entries)
    steps = {name: _step(spot, name, follows, shape, frozenset(spots)) for name, (spot, follows) in spots.items()}
    check_graph(steps, start, {name: spot for name, (spot, _) in spots.items()})
    required = _fields(entries["record"], shape) if "record" in entries else ()
    if "record" in entries and not required:
        entries["record"].fail("names no field: leave it out, and the whole state is the record")
    flow = Flow(
        document=b"",
        state=shape,
        start=start,
        steps=steps,
        limits=_budget(entries["limits"]) if "limits" in entries else Budget(),
        record=required or tuple(sorted(shape.properties)),
        required=required,
        finish=Finish(entries["finish"].choice([each.value for each in Finish], "finish"))
        if "finish" in entries
        else Finish.CERTIFY,
    )
    document = canonical_json(write_flow(flow))
    if len(document) > model.MAX_DOCUMENT:
        top.fail(f"has {len(document)} bytes as canonical JSON; at most {model.MAX_DOCUMENT}")
    return replace(flow, document=document)


def parse_flow(data: bytes) -> Flow:
    """Read a flow from its canonical bytes (`Flow.document`).

    Raises:
        ConfigError: it is too long, no JSON, no flow, or a flow that is written in another way.
    """
    try:
        value = parse_json(data, limit=model.MAX_DOCUMENT)
    except ValueError as error:
        raise ConfigError(f"the flow is no JSON: {error}") from error
    flow = read_flow(value)
    if flow.document != data:
        raise ConfigError("the flow is not in its canonical form: submit the workflow again")
    return flow


def _steps_of(top: Spot, entries: Mapping[str, Spot]) -> tuple[dict[str, tuple[Spot, str]], str]:
    """Return every step with the name of what follows it if it does not say, and the first one's name."""
    steps = top.mapping_with("steps")
    spots: dict[str, tuple[Spot, str]] = {}
    if isinstance(steps.value, list):
        names = [_name(each.mapping_with("name")) for each in steps.items(model.MAX_STEPS)]
        for number, each in enumerate(steps.items(model.MAX_STEPS)):
            name, rest = names[number], {key: inner for key, inner in each.value.items() if key != "name"}
            if name in spots:
                each.fail(f"there are two steps {name!r}")
            spots[name] = (Spot(rest, each.path), names[number + 1] if number + 1 < len(names) else END)
        first = names[0] if names else ""
    else:
        table = steps.table(model.MAX_STEPS)
        spots = {_name(Spot(name, each.path)): (each, END) for name, each in table.items()}
        first = next(iter(spots)) if len(spots) == 1 else ""
    if not spots:
        steps.fail("a flow needs a step")
    start = entries["start"].choice(spots, "step") if "start" in entries else first
    if not start:
        top.fail("say under start which step comes first, or write the steps as a list")
    return spots, start


def _name(spot: Spot) -> str:
    name = spot.name(_NAME, _RULE)
    if name in (END, DROP):
        spot.fail(f"{name!r} is where a way ends: call the step something else")
    return name


def _step(spot: Spot, name: str, follows: str, shape: Shape, names: frozenset[str]) -> Step:
    talks = isinstance(spot.value, dict) and "dialogue" in spot.value
    entries = spot.mapping(_DIALOGUE_KEYS if talks else _STEP_KEYS)
    step = _dialogue(spot, entries, name, shape) if talks else _work(spot, entries, name, shape)
    return replace(
        step,
        most=entries["most"].integer(1, model.MAX_TURNS) if "most" in entries else 0,
        retries=entries["retries"].integer(0, model.MAX_RETRIES) if "retries" in entries else _RETRIES,
        otherwise=_branch(entries["otherwise"], shape, names, False) if "otherwise" in entries else None,
        next=_branches(entries["next"], shape, names) if "next" in entries else (Branch(follows),),
    )


def _work(spot: Spot, entries: Mapping[str, Spot], name: str, shape: Shape) -> Step:
    step = _role(spot, entries, name, shape, {})
    lease, release = (_name(entries[key]) if key in entries else "" for key in ("lease", "release"))
    if lease and release and lease != release:
        entries["release"].fail(f"the step holds {lease!r}: it can release that, or a step after it another one")
    rows = entries["rows"].integer(1, model.MAX_ROWS) if "rows" in entries else 1
    if rows > 1 and (lease or release):
        entries["rows"].fail("a step with a lease does one row at a time: each has a lease of its own")
    return replace(step, rows=rows, lease=lease, release=release)


def _dialogue(spot: Spot, entries: Mapping[str, Spot], name: str, shape: Shape) -> Step:
    spots = entries["dialogue"].items(model.MAX_ROLES)
    if len(spots) < 2:
        entries["dialogue"].fail("a dialogue has two roles or more")
    common = {key: entries[key] for key in ("reads", "writes", "appends") if key in entries}
    roles = tuple(_role(each, each.mapping(_ROLE_KEYS), name, shape, common) for each in spots)
    turns = spot.mapping_with("turns").integer(len(roles), model.MAX_TURNS)
    until = read_condition(entries["until"], shape) if "until" in entries else None
    reads = tuple(sorted({each for role in roles for each in role.reads}))
    writes = tuple(sorted({each for role in roles for each in role.writes}))
    appends = tuple(sorted({each for role in roles for each in role.appends}))
    return Step(name, "", Place(), reads, writes, appends, roles=roles, turns=turns, until=until)


def _role(spot: Spot, entries: Mapping[str, Spot], name: str, shape: Shape, common: Mapping[str, Spot]) -> Step:
    said = {**common, **entries}
    writes, appends = (_fields(said[key], shape) if key in said else () for key in ("writes", "appends"))
    for field in appends:
        if field in writes or shape.properties[field].type != "array":
            said["appends"].fail(f"{field!r} has to be an array that the step does not write besides")
    return Step(
        name=name,
        skill=spot.mapping_with("skill").name(_NAME, _RULE),
        at=_place(said["at"]) if "at" in said else Place(),
        reads=_fields(said["reads"], shape) if "reads" in said else tuple(sorted(shape.properties)),
        writes=writes,
        appends=appends,
        price=_millionths(said["price"]) if "price" in said else None,
        hedge=said["hedge"].boolean() if "hedge" in said else True,
    )


def _place(spot: Spot) -> Place:
    if not isinstance(spot.value, list):
        return Place(Where(spot.choice(("home", "others", "any"), "place (a list names organizations)")))
    names = spot.words(_MAX_ORGANIZATIONS)
    if not names:
        spot.fail("names no organization")
    try:
        return Place(Where.NAMED, tuple(sorted(organization_name(each) for each in names)))
    except InvalidName as error:
        spot.fail(str(error))


def _fields(spot: Spot, shape: Shape) -> tuple[str, ...]:
    names = spot.words(MAX_FIELDS)
    for name in names:
        if name not in shape.properties:
            spot.fail(f"the state has no field {name[:64]!r}")
    return tuple(sorted(names))


def _branches(spot: Spot, shape: Shape, names: frozenset[str]) -> tuple[Branch, ...]:
    if not isinstance(spot.value, list):
        return (_branch(spot, shape, names, False),)
    spots = spot.items(model.MAX_BRANCHES)
    branches = tuple(_branch(each, shape, names, True) for each in spots)
    if not branches or branches[-1].when is not None:
        spot.fail("the last branch is for all that is left: it has no `when`")
    for each, branch in zip(spots[:-1], branches[:-1], strict=True):
        if branch.when is None:
            each.fail("a branch without `when` is always taken: what comes after it never is")
    return branches


def _branch(spot: Spot, shape: Shape, names: frozenset[str], may_ask: bool) -> Branch:
    targets = (*sorted(names), END, DROP)
    if not isinstance(spot.value, dict):
        return Branch(spot.choice(targets, "step"))
    entries = spot.mapping(_BRANCH_KEYS if may_ask else _BRANCH_KEYS[1:])
    go = spot.mapping_with("go").choice(targets, "step")
    reason = entries["reason"].text(model.MAX_REASON) if "reason" in entries else ""
    if reason and go != DROP:
        entries["reason"].fail("only what is dropped has a reason")
    return Branch(go, read_condition(entries["when"], shape) if "when" in entries else None, reason)


def _budget(spot: Spot) -> Budget:
    entries, usual = spot.mapping(("steps", "seconds", "tokens", "cost")), Budget()
    spans = {"steps": model.MAX_TASK_STEPS, "seconds": model.MAX_TASK_SECONDS, "tokens": model.MAX_TASK_TOKENS}
    whole = {
        key: entries[key].integer(1, most) if key in entries else getattr(usual, key) for key, most in spans.items()
    }
    return Budget(**whole, cost=_millionths(entries["cost"]) if "cost" in entries else usual.cost)


def _millionths(spot: Spot) -> int:
    return round(spot.number(0, model.MAX_TASK_COST) * model.COST_UNIT)
