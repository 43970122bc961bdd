"""`comity workflow check`: what can be submitted is shown, what cannot is refused with its line; and the examples."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from comity.digest import canonical_json
from comity_node import strictyaml
from comity_node.protocol.flow import Done, Goes, advance, begin, current, parse_flow, read_flow, record_of
from comity_node.runtime.workflow import parse_workflow

Cli = Callable[..., tuple[int, str, str]]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "workflows"
TRIAGE = (EXAMPLES / "triage.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["triage", "dialogue", "funnel", "tools"])
def test_an_example_can_be_submitted_and_is_drawn(cli: Cli, name: str) -> None:
    path = EXAMPLES / f"{name}.yaml"
    code, out, err = cli("workflow", "check", path)
    assert (code, err) == (0, "")
    assert "can be submitted" in out
    code, out, _ = cli("workflow", "check", path, "--json")
    shown = json.loads(out)
    flow = read_flow(strictyaml.load(path).data()["flow"])
    assert parse_flow(canonical_json(shown["flow"])) == flow
    assert set(shown["flow"]["steps"]) == set(flow.steps)


def test_every_example_is_checked() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.yaml")) == ["dialogue", "funnel", "tools", "triage"]


def test_the_steps_are_drawn_with_the_ways_between_them(cli: Cli) -> None:
    _, out, _ = cli("workflow", "check", EXAMPLES / "triage.yaml")
    assert out.splitlines()[2:] == [
        "draft: draft-question at home",
        "  -> answer",
        "answer: answer at others",
        "  confidence below 0.4 -> drop (unsure)",
        "  else -> critique",
        "critique: critique at any, 3 visits at most",
        '  verdict is "good" -> end',
        "  else -> answer",
        "end: reviewed and certified; the record is answer, question",
        "each task: 32 steps, 600 s, 20000 tokens, cost 5",
    ]
    _, out, _ = cli("workflow", "check", EXAMPLES / "tools.yaml")
    assert "run: run-code at others, holds sandbox" in out
    assert "  otherwise -> clean-up" in out
    _, out, _ = cli("workflow", "check", EXAMPLES / "funnel.yaml")
    assert '  not (language is one of ["en", "de"]) -> drop (another language)' in out
    assert "end: completed, without review; the record is candidate, score" in out
    _, out, _ = cli("workflow", "check", EXAMPLES / "dialogue.yaml")
    assert "in turn, 20 turns at most, until done is true" in out


def line_of(text: str, needle: str) -> int:
    return text[: text.index(needle)].count("\n") + 1


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("below: 0.4", "belo: 0.4", "did you mean 'below'"),
        ("      most: 3", "      mast: 3", "did you mean 'most'"),
        ("      skill: answer", "      skill: Answer", "lower-case"),
        ("      next: answer", "      next: answers", "did you mean 'answer'"),
        ("records_per_organization: 200", "records_per_organization: -1", "whole number from 1"),
        ("purpose:", "purpse:", "unknown key 'purpse'"),
        ("  record: [question, answer]", "  record: [question, topic]", "no field 'topic'"),
        ("name: triage", "participants: [Mercy]\nname: triage", "no organization name"),
        ("name: triage", "name: [triage", "is no YAML"),
        ("\n    answer:\n", "\n    draft:\n", "already there"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(cli: Cli, tmp_path: Path, old: str, new: str, says: str) -> None:
    assert TRIAGE.count(old) >= 1
    text = TRIAGE.replace(old, new, 1)
    path = tmp_path / "w.yaml"
    path.write_text(text, encoding="utf-8")
    code, out, err = cli("workflow", "check", path)
    assert (code, out) == (1, "")
    place = re.match(rf"error: {re.escape(str(path))}:(\d+):\d+: (.*)", err)
    assert place is not None, err
    assert says in place[2]
    if says not in ("is no YAML", "already there"):
        assert int(place[1]) == line_of(text, new.strip().splitlines()[0])


def test_what_is_missing_is_named_with_what_lacks_it(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(TRIAGE.replace("      skill: answer\n", "", 1), encoding="utf-8")
    _, _, err = cli("workflow", "check", path)
    line = line_of(TRIAGE, "    answer:\n")
    assert f"{path}:{line}:" in err
    assert "flow.steps.answer: the key 'skill' is missing" in err


def test_a_workflow_without_a_flow_and_one_in_json_are_checked_too(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    fields = {"name": "w", "purpose": "p", "dataset": "d", "records_per_organization": 3}
    path.write_text(json.dumps(fields), encoding="utf-8")
    code, out, _ = cli("workflow", "check", path)
    assert code == 0
    assert "no flow: this organization's agent makes the records" in out
    assert json.loads(cli("workflow", "check", path, "--json")[1])["flow"] is None
    path.write_text(json.dumps({**fields, "flow": {"state": 1}}, indent=1), encoding="utf-8")
    code, _, err = cli("workflow", "check", path)
    assert code != 0
    assert "flow.state" in err


def test_a_file_that_is_not_there_is_said_so(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("workflow", "check", tmp_path / "none.yaml")
    assert code != 0
    assert "there is no such file" in err


def test_what_is_checked_is_what_is_submitted() -> None:
    document = strictyaml.load(EXAMPLES / "triage.yaml").data()
    spec = parse_workflow(json.dumps(document).encode())
    assert spec.flow == read_flow(document["flow"])


def test_the_example_of_tools_keeps_a_sandbox_and_gives_it_back() -> None:
    flow = read_flow(strictyaml.load(EXAMPLES / "tools.yaml").data()["flow"])
    outputs = {
        "pose": {"state": {"problem": "p"}},
        "write": {"state": {"program": "x"}},
        "run": {"state": {"output": "1", "passed": True}, "lease": "box-1"},
        "clean-up": {},
    }
    cursor, state, way = begin(flow, 1), dict[str, object](), []
    for _ in range(9):
        way.append((cursor.step, current(flow, cursor).at.organizations))
        outcome = advance(flow, cursor, state, outputs[cursor.step], 1, by="hope.example")
        if not isinstance(outcome, Goes):
            break
        cursor, state = outcome.cursor, dict(outcome.state)
    assert way == [("pose", ()), ("write", ()), ("run", ()), ("clean-up", ("hope.example",))]
    assert isinstance(outcome, Done)
    assert outcome.cursor.leases == {}
    assert record_of(flow, outcome.state) == {"problem": "p", "program": "x", "output": "1"}


def test_a_place_is_named_once(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(f"name: w\nrecords_per_organization: {'9' * 30}\n")
    code, _, err = cli("workflow", "check", path)
    assert code == 1
    assert err.count(str(path)) == 1
    assert f"{path}:2:" in err
