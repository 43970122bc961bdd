"""`comity workflow try`: a flow is rehearsed with one's own agents, and every example can be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., tuple[int, str, str]]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "workflows"

AGENTS = """
from comity.agent import Agent

cast = Agent("cast")
broken = Agent("broken")
tried = []


@cast.skill("draft-question")
def draft(work):
    return {"state": {"question": "What is comity?"}, "usage": {"tokens": 5, "cost": 0.001}}


@cast.skill("answer")
def answer(work):
    tried.append(work.input)
    assert list(work.input["state"]) == ["question"]
    if len(tried) == 1:
        raise RuntimeError("the model is down")
    return {"state": {"answer": "courtesy", "confidence": 0.3 if len(tried) == 4 else 0.9}}


@cast.skill("critique")
def critique(work):
    return {"state": {"verdict": "good"}}


@broken.skill("draft-question")
def nothing(work):
    return {"question": "not under state"}


@broken.skill("answer")
def silent(work):
    return {}


@broken.skill("critique")
def absent(work):
    return {}


tools = Agent("tools")
held = []


@tools.skill("pose-problem")
def pose(work):
    return {"state": {"problem": "p"}}


@tools.skill("write-program")
def write(work):
    return {"state": {"program": "x"}}


@tools.skill("run-code")
def run(work):
    held.append(work.input["lease"])
    return {"state": {"output": "1", "passed": len(held) > 1}, "lease": "box-1"}


@tools.skill("remove-sandbox")
def remove(work):
    assert work.input["lease"] == {"name": "sandbox", "release": True, "handle": "box-1"}
    return {}


rows = Agent("rows")


@rows.skill("generate-candidate")
def generate(work):
    return {"rows": [{"state": {"candidate": "c"}} for _ in work.input["rows"]]}


@rows.skill("classify")
def classify(work):
    return {"rows": [{"state": {"language": "en", "duplicate": False}} for _ in work.input["rows"]]}


@rows.skill("judge")
def judge(work):
    return {"state": {"score": {"total": 9}}, "usage": {"cost": 0.01}}
"""


@pytest.fixture(autouse=True)
def _agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    (tmp_path / f"{module(request)}.py").write_text(AGENTS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


def module(request: pytest.FixtureRequest) -> str:
    """A module of this test alone: what an earlier one imported stays imported."""
    return "agents_of_" + "".join(each if each.isalnum() else "_" for each in request.node.name)


def test_a_flow_is_rehearsed_and_the_way_of_each_task_shown(cli: Cli, request: pytest.FixtureRequest) -> None:
    agent = f"{module(request)}:cast"
    code, out, err = cli("workflow", "try", EXAMPLES / "triage.yaml", "--agent", agent, "--tasks", "3")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "done",
        "  draft (draft-question)",
        "  answer (answer): agent 'cast', skill 'answer': RuntimeError: the model is down",
        "  answer (answer)",
        "  critique (critique)",
        "done",
        "  draft (draft-question)",
        "  answer (answer)",
        "  critique (critique)",
        "dropped: unsure",
        "  draft (draft-question)",
        "  answer (answer)",
        "2 done, 1 dropped",
    ]


def test_what_it_yields_is_shown_as_json(cli: Cli, request: pytest.FixtureRequest) -> None:
    agent = f"{module(request)}:cast"
    code, out, _ = cli("workflow", "try", EXAMPLES / "triage.yaml", "--agent", agent, "--json")
    assert code == 0
    [task] = json.loads(out)
    assert task["record"] == {"question": "What is comity?", "answer": "courtesy"}
    assert (task["end"], task["tokens"], task["cost"]) == ("done", 5, 0.001)


def test_a_task_that_fails_is_exit_code_1_and_says_why(cli: Cli, request: pytest.FixtureRequest) -> None:
    code, out, err = cli("workflow", "try", EXAMPLES / "triage.yaml", "--agent", f"{module(request)}:broken")
    assert code == 1
    assert "failed: step 'draft' failed 3 times: its answer has an unknown key 'question'" in out
    assert "1 of 1 tasks failed" in err


@pytest.mark.parametrize(("name", "agent"), [("tools", "tools"), ("funnel", "rows")])
def test_tools_and_rows_are_rehearsed_too(cli: Cli, request: pytest.FixtureRequest, name: str, agent: str) -> None:
    where = f"{module(request)}:{agent}"
    code, out, err = cli("workflow", "try", EXAMPLES / f"{name}.yaml", "--agent", where)
    assert (code, err, out.splitlines()[-1]) == (0, "", "1 done")


def test_what_is_missing_is_said(cli: Cli, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    agent = f"{module(request)}:cast"
    code, _, err = cli("workflow", "try", EXAMPLES / "tools.yaml", "--agent", agent)
    assert code == 1
    assert "no agent offers pose-problem, remove-sandbox, run-code, write-program" in err
    plain = tmp_path / "w.json"
    plain.write_text('{"name": "w", "purpose": "p", "dataset": "d", "records_per_organization": 1}', encoding="utf-8")
    assert "no flow to try" in cli("workflow", "try", plain, "--agent", agent)[2]
