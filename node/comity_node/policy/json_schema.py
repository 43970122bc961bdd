"""The policy file, and that of its cases, as JSON Schemas (draft 2020-12), so that editors complete and check them.

Made of the same tables that the loader reads with. It says what has the right shape; what refers to something else in
the file (a group, a dataset, a purpose), what contradicts itself, and the bounds of durations are for the loader alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from comity.ids import ORGANIZATION_PATTERN
from comity_node.policy.conditions import DAYS, LABELS, Label
from comity_node.policy.lattice import MAX_BOUND, MAX_EPSILON, MAX_GRID, MAX_K, MAX_KEPT, PER, Onward
from comity_node.policy.loader import DATA_KEYS, DATASET_KEYS, RULE_KEYS, TOP_KEYS
from comity_node.policy.model import ACTIONS, CLASSIFICATIONS, FIELD_TYPES, KINDS, RESERVED, Direction, Effect
from comity_node.policy.read_duties import (
    ANONYMITY_KEYS,
    APPROVAL_KEYS,
    BUDGET_KEYS,
    INSTANT,
    MAX_DISTANCE,
    MAX_NAME,
    MAX_QUORUM,
    MAX_RECORDS,
    NOISE_KEYS,
    OBLIGATIONS,
    QUOTA_KEYS,
    RATE_KEYS,
    REVIEW_KEYS,
)
from comity_node.policy.read_schema import FIELD_KEYS
from comity_node.policy.read_sides import FACT_KEYS, GROUP_KEYS, JURISDICTION, NAME, SIDE_KEYS
from comity_node.policy.read_when import CLOCK, JURISDICTION_KEY, NUMBER_KEYS, TIME_KEY, TIME_KEYS, ZONE
from comity_node.strictyaml import DURATION, MAX_STRING

Json = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_ABOUT: Mapping[str, str] = {
    "version": "1: the version of this language",
    "organization": "whose policy this is",
    "organizations": "facts about other organizations",
    "groups": "names for sets of organizations; a group may hold others",
    "purposes": "the purposes that there are, each below its parents; without it any word may be one",
    "datasets": "the datasets that the rules speak of, with their classification and schema",
    "rules": "what is allowed and what is forbidden; what no rule allows is denied, and forbid beats allow",
    "id": "stands in decisions, the audit log and the rules that a record carries",
    "effect": "allow, or forbid whatever other rules allow",
    "action": 'one action, several, or "*" for all',
    "to": "the other side of an action that leads out",
    "from": "the other side of an action that leads in",
    "with": "the other side, whichever way the action leads",
    "data": "which data; what is not named may be anything",
    "purpose": "for these purposes and those below them",
    "when": "conditions; one that cannot be decided denies",
    "obligations": "what has to be done when the rule allows; of several rules the strictest of each",
    "redact": "fields that are removed, with all below them",
    "drop_personal": "all personal fields of the dataset's schema are removed",
    "generalize": "numbers are rounded to multiples of this",
    "mask": "so many last characters of a text stay, never more than half of it",
    "hash": "values are replaced by keyed pseudonyms",
    "noise": "numbers get noise worth epsilon, within the bounds",
    "budget": "the privacy loss by noise that this rule may cost at all, per purpose or recipient if said",
    "k_anonymity": "every combination of these fields occurs in k rows of a batch at least",
    "min_distance_to_private": "least distance of a synthetic row to any private one",
    "rate": "records in any such time, over all that this rule allows",
    "quota": "records at all, over all that this rule allows",
    "retain": "how long the recipient may keep a record",
    "expire": "when it must be gone at the latest",
    "review": "what a certificate of the record must hold",
    "onward": "whether the recipient may pass it on; never, unless a rule says otherwise",
    "notify": "persons or lists who are told",
    "approval": "a person says yes within this time, or it is no",
    "personal": "personal fields that the rule lets pass as they are",
}


def policy_schema() -> Json:
    """Return the JSON Schema of a policy file."""
    parent = {"parent": _some(_NAME)}
    return {
        "$schema": _DIALECT,
        "title": "Comity policy",
        **_mapping(
            TOP_KEYS,
            {
                "version": {"const": 1},
                "organization": _ORGANIZATION,
                "organizations": _table(_ORGANIZATION, _mapping(FACT_KEYS, {"jurisdiction": _some(_PLACE)}, FACT_KEYS)),
                "groups": _table(_NAME, {**_mapping(GROUP_KEYS, _GROUP), "minProperties": 1}),
                "purposes": _table(_NAME, {"anyOf": [{"type": "null"}, _mapping(("parent",), parent)]}),
                "datasets": _table(_NAME, _dataset()),
                "rules": {"type": "array", "items": _rule()},
            },
            ("version", "organization", "rules"),
            _ABOUT,
        ),
    }


def cases_schema() -> Json:
    """Return the JSON Schema of a file of cases, the tests of a policy (see `cases`)."""
    kinds = {Label.NUMBER: {"type": "number"}, Label.TEXT: _TEXT, Label.FLAG: _BOOLEAN}
    labels = {label: kinds[kind] for label, kind in LABELS.items()}
    request: dict[str, Json] = {
        "action": _one_of(ACTIONS),
        "organization": _ORGANIZATION,
        **dict.fromkeys(("role", "purpose", "dataset"), _TEXT),
        "kind": _one_of(KINDS),
        "fields": _some(_TEXT),
        "labels": _mapping(labels, labels),
    }
    case: dict[str, Json] = {
        "name": _TEXT,
        "request": _mapping(request, request, ("action", "organization")),
        "expect": {**_one_of(("allow", "deny")), "description": "what must be decided"},
        "rules": {
            "anyOf": [_some(_NAME), {"const": []}],
            "description": "exactly these determine it; none is the default",
        },
        "obligations": {**_obligations(), "description": "at least as strict as this"},
    }
    case_schema = _mapping(case, case, ("name", "request", "expect"))
    case_schema["allOf"] = [_if("expect", ("deny",), {"properties": {"obligations": False}})]
    top: dict[str, Json] = {"version": {"const": 1}, "policy": _TEXT, "cases": {"type": "array", "items": case_schema}}
    return {
        "$schema": _DIALECT,
        "title": "Cases of a Comity policy",
        **_mapping(top, {**top, "cases": {**top["cases"], "minItems": 1}}, top),
    }


def _mapping(
    keys: Iterable[str],
    values: Mapping[str, Json],
    required: Iterable[str] = (),
    about: Mapping[str, str] | None = None,
) -> Json:
    """Return the schema of a mapping that has no keys but these, and what is said `about` them."""
    said = about or {}
    described = {key: {"description": said[key], **values[key]} if key in said else values[key] for key in keys}
    made: Json = {"type": "object", "properties": described, "additionalProperties": False}
    return {**made, "required": list(required)} if required else made


def _table(names: Json, values: Json) -> Json:
    return {"type": "object", "propertyNames": names, "additionalProperties": values}


def _some(item: Json) -> Json:
    """Return the schema of one item, or a list of at least one."""
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1, "uniqueItems": True}]}


def _or_any(item: Json) -> Json:
    return {"anyOf": [{"const": "*"}, _some(item)]}


def _matching(pattern: str) -> Json:
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


def _one_of(words: Iterable[str]) -> Json:
    return {"enum": list(words)}


def _number(low: float, high: float) -> Json:
    return {"type": "number", "minimum": low, "maximum": high}


def _integer(low: int, high: int) -> Json:
    return {"type": "integer", "minimum": low, "maximum": high}


_BOOLEAN: Json = {"type": "boolean"}
_TEXT: Json = {"type": "string", "minLength": 1, "maxLength": MAX_STRING}
_ORGANIZATION = {**_matching(ORGANIZATION_PATTERN), "maxLength": 255}
_NAME = _matching(NAME)
_PLACE = _matching(JURISDICTION)
_PATH = _matching(r"[^.]+(?:\.[^.]+)*")
_DURATION = _matching(DURATION)
_EPSILON: Json = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_EPSILON}
_GROUP: Mapping[str, Json] = {"organization": _some(_ORGANIZATION), "group": _some(_NAME)}


def _dataset() -> Json:
    field = _mapping(
        FIELD_KEYS,
        {
            "type": _one_of(FIELD_TYPES),
            "personal": {**_BOOLEAN, "description": "whether it tells something about a person"},
            "min": {"type": "number"},
            "max": {"type": "number"},
            "values": _some(_TEXT),
        },
        ("type",),
    )
    field["allOf"] = [
        _if("type", ("string",), {"properties": {"min": False, "max": False}}),
        _if("type", ("boolean",), {"properties": {"min": False, "max": False}}),
        _if("type", tuple(each for each in FIELD_TYPES if each != "string"), {"properties": {"values": False}}),
    ]
    values = {
        "classification": _one_of(CLASSIFICATIONS),
        "subject": _TEXT,
        "schema": {"anyOf": [_TEXT, {"type": "object", "additionalProperties": field}]},
    }
    return _mapping(DATASET_KEYS, values, ("classification",))


def _if(key: str, words: Iterable[str], then: Json) -> Json:
    return {"if": {"properties": {key: _one_of(words)}, "required": [key]}, "then": then}


def _rule() -> Json:
    words = {"role": _or_any(_TEXT), "skill": _or_any(_TEXT)}
    side = _mapping(SIDE_KEYS, {"organization": _or_any(_ORGANIZATION), "group": _some(_NAME), **words})
    side["anyOf"] = [{"required": ["organization"]}, {"required": ["group"]}]
    side["not"] = {"properties": {"organization": {"const": "*"}}, "required": ["organization", "group"]}
    values = {
        "id": {**_NAME, "not": {"pattern": f"^{RESERVED.replace('.', '[.]')}"}},
        "effect": _one_of(each.value for each in Effect),
        "action": _or_any(_one_of(ACTIONS)),
        "to": side,
        "from": side,
        "with": side,
        "data": _data(),
        "purpose": _or_any(_TEXT),
        "when": _when(),
        "obligations": _obligations(),
    }
    rule = _mapping(RULE_KEYS, values, ("id", "effect", "action"), _ABOUT)
    sides = ("to", "from", "with")
    rule["allOf"] = [
        _if("effect", ("allow",), {"anyOf": [{"required": [key]} for key in sides]}),
        _if("effect", ("forbid",), {"properties": {"obligations": False, "data": {"properties": {"personal": False}}}}),
        *(
            {"if": {"required": [key]}, "then": {"properties": {other: False for other in sides if other != key}}}
            for key in sides
        ),
        *(
            {
                "if": {"required": [direction.value]},
                "then": {"properties": {"action": _some(_one_of(a for a, way in ACTIONS.items() if way is direction))}},
            }
            for direction in Direction
        ),
    ]
    return rule


def _data() -> Json:
    values = {
        "dataset": _or_any(_NAME),
        "kind": _or_any(_one_of(KINDS)),
        "classification": _or_any(_one_of(CLASSIFICATIONS)),
        "fields": {**_or_any(_PATH), "description": "allow: only these; forbid: as soon as one of these is there"},
        "personal": _some(_PATH),
    }
    return _mapping(DATA_KEYS, values, about=_ABOUT)


def _when() -> Json:
    limits = _mapping(NUMBER_KEYS, {key: {"type": "number"} for key in NUMBER_KEYS})
    kinds = {Label.NUMBER: {**limits, "minProperties": 1}, Label.TEXT: _some(_TEXT), Label.FLAG: _BOOLEAN}
    clock = _matching(CLOCK)
    window = _mapping(TIME_KEYS, {"from": clock, "to": clock, "days": _some(_one_of(DAYS)), "zone": _matching(ZONE)})
    values: dict[str, Json] = {label: kinds[kind] for label, kind in LABELS.items()}
    values[TIME_KEY] = {
        **window, "minProperties": 1, "dependentRequired": {"from": ["to"], "to": ["from"]},
        "description": 'a time of day and days of the week, at an offset from UTC ("+01:00")',
    }  # fmt: skip
    values[JURISDICTION_KEY] = {**_some(_PLACE), "description": "the other side is in one of these"}
    return _mapping(values, values)


def _obligations() -> Json:
    bound = _number(-MAX_BOUND, MAX_BOUND)
    noise = _mapping(NOISE_KEYS, {"epsilon": _EPSILON, "lower": bound, "upper": bound}, NOISE_KEYS)
    rate = {"records": _integer(0, MAX_RECORDS), "per": _DURATION}
    review = {"quorum": _integer(1, MAX_QUORUM), "distinct_organizations": _BOOLEAN, "min_score": _number(0, 1)}
    anonymity = {"k": _integer(2, MAX_K), "fields": _some(_PATH)}
    values: dict[str, Json] = {
        "redact": _some(_PATH),
        "drop_personal": _BOOLEAN,
        "generalize": _table(_PATH, _number(1e-6, MAX_GRID)),
        "mask": _table(_PATH, _integer(0, MAX_KEPT)),
        "hash": _some(_PATH),
        "noise": _table(_PATH, noise),
        "budget": _mapping(BUDGET_KEYS, {"epsilon": _EPSILON, "per": _some(_one_of(PER))}, ("epsilon",)),
        "k_anonymity": _mapping(ANONYMITY_KEYS, anonymity, ANONYMITY_KEYS),
        "min_distance_to_private": _number(0, MAX_DISTANCE),
        "rate": _mapping(RATE_KEYS, rate, RATE_KEYS),
        "quota": _mapping(QUOTA_KEYS, rate, QUOTA_KEYS),
        "retain": _DURATION,
        "expire": _matching(INSTANT),
        "review": _mapping(REVIEW_KEYS, review, ("quorum",)),
        "onward": _one_of(each.word for each in Onward),
        "notify": _some({**_TEXT, "maxLength": MAX_NAME}),
        "approval": _mapping(APPROVAL_KEYS, {"within": _DURATION}, APPROVAL_KEYS),
    }
    return _mapping(OBLIGATIONS, values, about=_ABOUT)
