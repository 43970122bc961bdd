"""docs/workflows.md: its examples are workflows, its Python runs, and it names every word of the language."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from comity.testing import run_skill
from comity_node.protocol import flow_advance, flow_model, flow_read, flow_state, flow_when
from comity_node.protocol.flow import Budget, Done, advance, begin, work_of
from comity_node.runtime.workflow import parse_workflow
from comity_node.strictyaml import loads

TEXT = (Path(__file__).parents[2] / "docs" / "workflows.md").read_text(encoding="utf-8")
YAML = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
JSON = [json.loads(each) for each in re.findall(r"```json\n(.*?)```", TEXT, re.S)]
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.S)
WORDS = {
    *flow_read._KEYS, *flow_read._STEP_KEYS, *flow_read._DIALOGUE_KEYS, *flow_read._BRANCH_KEYS,
    *flow_when._OPERATORS, flow_when._ANY, flow_when._NOT, *flow_state._TYPES, *flow_advance._ANSWER, "error", "lost",
    *(key for keys in flow_state._KEYS.values() for key in keys), *(each.value for each in flow_model.Finish),
    "home", "others", "any", "end", "drop",
}  # fmt: skip


@pytest.mark.parametrize("number", range(len(YAML)))
def test_an_example_is_a_workflow(number: int) -> None:
    spec = parse_workflow(json.dumps(loads(YAML[number]).data()).encode())
    assert spec.flow is not None


def test_there_are_examples() -> None:
    assert (len(YAML), len(JSON), len(PYTHON)) == (4, 2, 2)


def test_every_word_of_the_language_is_explained() -> None:
    code = " ".join(re.findall(r"`([^`\n]+)`", TEXT))
    assert sorted(word for word in WORDS if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", code)) == []


def test_what_an_agent_gets_and_returns_is_what_the_page_says() -> None:
    spec = parse_workflow(json.dumps(loads(YAML[0]).data()).encode())
    assert spec.flow is not None
    outcome = advance(spec.flow, begin(spec.flow), {}, {"state": {"question": "..."}}, 1)
    assert work_of(spec.flow, outcome.cursor, {"question": "..."}) == JSON[0]
    after = advance(spec.flow, outcome.cursor, {"question": "..."}, JSON[1], 1)
    assert (after.cursor.step, after.cursor.tokens, after.cursor.cost) == ("critique", 512, 4000)


def test_the_limits_that_the_page_tells_are_the_usual_ones() -> None:
    said = loads(re.findall(r"`limits` \| [^|]+ \| `([^`]+)`", TEXT)[0]).data()
    usual = Budget()
    assert said == {"steps": usual.steps, "seconds": usual.seconds, "tokens": usual.tokens, "cost": usual.cost // 10**6}
    numbers = (flow_model.MAX_STEPS, flow_model.MAX_BRANCHES, flow_model.MAX_ROLES, flow_model.MAX_TURNS)
    assert "{} steps, {} branches of a step, {} roles, {} turns".format(*numbers) in TEXT


def test_the_agent_of_the_page_does_its_step() -> None:
    scope: dict[str, Any] = {}
    exec(compile(PYTHON[0], "docs/workflows.md", "exec"), scope)
    work = {"step": "critique", "visit": 1, "try": 0, "state": {"answer": "long enough to be an answer"}}
    assert run_skill(scope["agent"], "critique", work)["state"] == {"verdict": "good"}


def test_the_workflow_of_the_page_in_python_is_one() -> None:
    scope: dict[str, Any] = {}
    exec(compile(PYTHON[1], "docs/workflows.md", "exec"), scope)
    flow = parse_workflow(json.dumps(scope["document"]).encode()).flow
    assert flow is not None
    asked = advance(flow, begin(flow), {}, {"state": {"question": "q"}}, 1)
    assert isinstance(advance(flow, asked.cursor, {}, {"state": {"confidence": 0.5}}, 1), Done)
