"""Workflows in Python: the same documents that one can write in YAML, checked by the type checker while you write.

    from comity.workflow import DROP, END, Workflow, field, number, text, when

    triage = Workflow("triage", purpose="breast-cancer-screening", dataset="tumour-features", records=200)
    triage.state(question=text(2000), answer=text(8000), confidence=number(0, 1))
    triage.step("draft", "draft-question", at="home", writes=["question"])
    triage.step("answer", "answer", at="others", reads=["question"], writes=["answer", "confidence"],
                next=[when(field("confidence").below(0.4), DROP, reason="unsure"), END])
    client.submit_workflow(triage.document())

A step follows the one before it unless it says `next`; the first one that is added comes first. An agent that does the
step gets `{"step": ..., "state": {what it reads}, ...}` as its `Work.input` and returns `{"state": {what it writes}}`.
Without a step the workflow has no flow: the own agent generates the records by itself. docs/workflows.md explains every
key; `comity workflow check FILE` checks a document without a node, and the node checks it again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from comity.errors import ConfigError

__all__ = [
    "ANY",
    "DROP",
    "END",
    "HOME",
    "OTHERS",
    "Field",
    "Workflow",
    "array",
    "boolean",
    "field",
    "integer",
    "number",
    "record",
    "role",
    "text",
    "when",
]

#: Where a way ends: the task is done, or it is let go.
END, DROP = "end", "drop"
#: Who may do a step: the task's home, the other participants, or whoever offers the skill.
HOME, OTHERS, ANY = "home", "others", "any"

#: A JSON Schema, a condition, a branch, a role: what the functions below return.
Json: TypeAlias = Mapping[str, Any]
#: A word such as `others`, or the names of organizations.
Place: TypeAlias = str | Sequence[str]
#: A step, `END`, `DROP`, or branches made by `when`, the last of which is a name.
Next: TypeAlias = str | Json | Sequence[str | Json]


# What a state is made of.


def text(longest: int | None = None, *, among: Sequence[str] = ()) -> dict[str, Any]:
    """A text of at most `longest` characters, or one of the words `among`."""
    return _said({"type": "string"}, maxLength=longest, enum=list(among) or None)


def number(least: float | None = None, most: float | None = None) -> dict[str, Any]:
    """A number from `least` to `most`."""
    return _said({"type": "number"}, minimum=least, maximum=most)


def integer(least: int | None = None, most: int | None = None) -> dict[str, Any]:
    """A whole number from `least` to `most`."""
    return _said({"type": "integer"}, minimum=least, maximum=most)


def boolean() -> dict[str, Any]:
    """True or false."""
    return {"type": "boolean"}


def array(items: Json, most: int | None = None) -> dict[str, Any]:
    """A list of at most `most` items, all of one kind."""
    return _said({"type": "array", "items": items}, maxItems=most)


def record(required: Iterable[str] = (), /, **fields: Json) -> dict[str, Any]:
    """An object with these fields and no others; those that are `required` have to be there."""
    return _said({"type": "object", "properties": dict(fields)}, required=list(required) or None)


# What a branch asks.


class Field:
    """A field of the state, or one below it (`field("score.total")`), to ask something of.

    A condition is a mapping: one with several fields holds if all of it does, so join two with `{**a, **b}`. A field
    that is not there answers no to everything but `missing`.
    """

    def __init__(self, path: str) -> None:
        """Ask about the field at `path`."""
        self._path = path

    def is_(self, value: str | float | bool) -> Json:
        """It has this value."""
        return {self._path: {"is": value}}

    def among(self, *values: str | float | bool) -> Json:
        """It has one of these values."""
        return {self._path: {"in": list(values)}}

    def below(self, bound: float) -> Json:
        """It is less."""
        return {self._path: {"below": bound}}

    def above(self, bound: float) -> Json:
        """It is more."""
        return {self._path: {"above": bound}}

    def at_least(self, bound: float) -> Json:
        """It is as much or more."""
        return {self._path: {"at_least": bound}}

    def at_most(self, bound: float) -> Json:
        """It is as much or less."""
        return {self._path: {"at_most": bound}}

    def there(self) -> Json:
        """It has been written."""
        return {self._path: {"has": True}}

    def missing(self) -> Json:
        """It has not been written."""
        return {self._path: {"has": False}}


def field(path: str) -> Field:
    """Return the field at `path`, to ask something of."""
    return Field(path)


def when(condition: Json, go: str, *, reason: str = "") -> dict[str, Any]:
    """A branch: if `condition` holds, go to step `go`, `END` or `DROP`; what is dropped may have a `reason`."""
    return _said({"when": condition, "go": go}, reason=reason or None)


def role(
    skill: str, *, at: Place | None = None, reads: Sequence[str] | None = None, writes: Sequence[str] | None = None,
    appends: Sequence[str] | None = None, price: float | None = None, hedge: bool | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A role of a dialogue; what it does not say of fields is what the dialogue says; `hedge` as in `Workflow.step`."""
    return _said({"skill": skill}, at=_place(at), reads=_list(reads), writes=_list(writes), appends=_list(appends),
                 price=price, hedge=hedge)  # fmt: skip


# The workflow.


class Workflow:
    """A workflow, built up step by step.

    Args:
        name: what it is called in lists.
        purpose: what the data is used for; policies decide by it.
        dataset: which data it is about; policies decide by it.
        records: how many records each organization makes at most (`records_per_organization`).
        settings: any other key of a workflow: `participants`, `minimum_participants`, `batch_records`,
            `repair_rounds`, `min_score`, `lease_seconds`, `expires_seconds`, `negotiation_seconds`, `limits` and so on.
    """

    def __init__(self, name: str, *, purpose: str, dataset: str, records: int, **settings: object) -> None:
        self._top = {
            "name": name, "purpose": purpose, "dataset": dataset, "records_per_organization": records, **settings,
        }  # fmt: skip
        self._flow: dict[str, Any] = {}
        self._steps: list[dict[str, Any]] = []

    def state(self, **fields: Json) -> Workflow:
        """Say what a task's state may hold; every step reads some of it and writes some of it."""
        self._flow["state"] = {"type": "object", "properties": dict(fields)}
        return self

    def step(
        self, name: str, skill: str, *, at: Place | None = None, reads: Sequence[str] | None = None,
        writes: Sequence[str] = (), appends: Sequence[str] = (), next: Next | None = None,
        most: int | None = None, otherwise: str | Json | None = None, retries: int | None = None,
        rows: int | None = None, price: float | None = None, lease: str | None = None, release: str | None = None,
        hedge: bool | None = None,
    ) -> Workflow:  # fmt: skip
        """Add a step.

        Args:
            name: what other steps call it.
            skill: what an agent has to offer to do it.
            at: `HOME`, `OTHERS`, `ANY` or names of organizations; anybody if it does not say.
            reads: fields that the agent gets; all if it does not say.
            writes: fields that it may write.
            appends: arrays that it may add items to.
            next: where to go then: a step, `END`, `DROP`, or branches; the step after this one if it does not say.
            most: how often a task may come to this step; a loop needs one.
            otherwise: where to go after that, or when all tries have failed.
            retries: tries after the first that failed.
            rows: how many tasks one call of the agent may have.
            price: what one performance may cost at most.
            lease: what is held from here on, such as a container: the task stays where it was acquired.
            release: what is given back after this step.
            hedge: False if its agent has effects outside: it is then not called a second time beside a call that takes
                very long, and no task of the flow is given to a second organization.

        Raises:
            ConfigError: there is such a step already.
        """
        self._add(
            name, skill=skill, at=_place(at), reads=_list(reads), writes=_list(writes) or None,
            appends=_list(appends) or None, next=_next(next), most=most, otherwise=otherwise, retries=retries,
            rows=rows, price=price, lease=lease, release=release, hedge=hedge,
        )  # fmt: skip
        return self

    def dialogue(
        self, name: str, roles: Sequence[Json], *, turns: int, until: Json | None = None,
        reads: Sequence[str] | None = None, writes: Sequence[str] = (), appends: Sequence[str] = (),
        next: Next | None = None,
        most: int | None = None, otherwise: str | Json | None = None, retries: int | None = None,
    ) -> Workflow:  # fmt: skip
        """Add a dialogue: its roles have their turns one after the other.

        Args:
            name: what other steps call it.
            roles: two or more, made by `role`.
            turns: how many turns there are at most, of all roles together.
            until: a condition that ends it before that.
            reads: fields that each role gets, unless the role says.
            writes: fields that each role may write, unless it says.
            appends: arrays that each role may add items to, unless it says.
            next: as in `step`.
            most: as in `step`.
            otherwise: as in `step`.
            retries: as in `step`, of each turn.

        Raises:
            ConfigError: there is such a step already.
        """
        self._add(
            name, dialogue=list(roles), turns=turns, until=until, reads=_list(reads), writes=_list(writes) or None,
            appends=_list(appends) or None, next=_next(next), most=most, otherwise=otherwise, retries=retries,
        )  # fmt: skip
        return self

    def limits(
        self, *, steps: int | None = None, seconds: int | None = None, tokens: int | None = None,
        cost: float | None = None,
    ) -> Workflow:  # fmt: skip
        """Say what one task may take: steps, seconds, tokens and cost, as its agents report them."""
        self._flow["limits"] = _said({}, steps=steps, seconds=seconds, tokens=tokens, cost=cost)
        return self

    def record(self, *fields: str) -> Workflow:
        """Say which fields of the state become the record; each has to be there at the end."""
        self._flow["record"] = list(fields)
        return self

    def without_review(self) -> Workflow:
        """Have tasks end as `completed`: nobody reviews and certifies what they yield."""
        self._flow["finish"] = "none"
        return self

    def document(self) -> dict[str, Any]:
        """Return the workflow's document, for `Client.submit_workflow` or a JSON file.

        Raises:
            ConfigError: it has a state, limits or a record, but no step.
        """
        if self._flow and not self._steps:
            raise ConfigError("the workflow says something of a flow that has no step: add one with `step`")
        flow = {"flow": {**self._flow, "steps": self._steps}} if self._steps else {}
        return copy.deepcopy({**self._top, **flow})

    def _add(self, name: str, **said: object) -> None:
        if any(step["name"] == name for step in self._steps):
            raise ConfigError(f"the workflow has a step {name!r} already")
        self._steps.append(_said({"name": name}, **said))


def _said(value: dict[str, Any], **more: object) -> dict[str, Any]:
    """Add what is not None."""
    return {**value, **{key: each for key, each in more.items() if each is not None}}


def _list(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else [names] if isinstance(names, str) else list(names)


def _place(at: Place | None) -> str | list[str] | None:
    return at if at is None or isinstance(at, str) else list(at)


def _next(follows: Next | None) -> object:
    if follows is None or isinstance(follows, str | Mapping):
        return follows
    return [{"go": each} if isinstance(each, str) else dict(each) for each in follows]
