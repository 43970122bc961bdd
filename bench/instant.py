"""Agents that cost next to nothing: with them a run measures the runtime, not the models.

    COMITY_DEMO_DATA=home/data python -m comity.worker bench.instant:agent

They make rows anywhere in the schema's ranges, which is far from every private row, and pass every row that has the
fields of the schema.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from comity.agent import Agent, Work
from comity_node.demo.data import SCHEMA_FILE
from comity_node.validators.schema import FieldSpec, Schema

_GOOD, _BAD = 9_000, 0


class InstantSkills:
    """The three skills of the workflow over one schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def call(self, skill: str, work: Mapping[str, Any]) -> dict[str, Any]:
        """Do a piece of work.

        Raises:
            KeyError: there is no such skill.
        """
        return {"generate": self._generate, "repair": self._repair, "review": self._review}[skill](work)

    def _generate(self, work: Mapping[str, Any]) -> dict[str, Any]:
        return {"records": self._rows(work["count"], work["seed"])}

    def _repair(self, work: Mapping[str, Any]) -> dict[str, Any]:
        return {"records": self._rows(len(work["records"]), work["seed"])}

    def _review(self, work: Mapping[str, Any]) -> dict[str, Any]:
        scores = [_GOOD if record.keys() == self._schema.fields.keys() else _BAD for record in work["records"]]
        return {
            "reviews": [{"score": score, "axes": {"schema": score}, "feedback": []} for score in scores],
            "validator": '{"kind":"instant"}',
        }

    def _rows(self, count: int, seed: int) -> Sequence[Mapping[str, float]]:
        rng = Random(seed)
        return [{name: _value(rng, spec) for name, spec in self._schema.fields.items()} for _ in range(count)]


def _value(rng: Random, spec: FieldSpec) -> float:
    if spec.type == "integer":
        return rng.randint(int(spec.minimum), int(spec.maximum))
    return round(rng.uniform(spec.minimum, spec.maximum), 6)


@cache
def _skills() -> InstantSkills:
    return InstantSkills(Schema.load(Path(os.environ["COMITY_DEMO_DATA"]) / SCHEMA_FILE))


agent = Agent("instant")


def _serve(work: Work) -> dict[str, Any]:
    return _skills().call(work.skill, work.input)


for _name in ("generate", "repair", "review"):
    agent.skill(_name)(_serve)
