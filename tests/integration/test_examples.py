"""The examples do what they say."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from comity.agent import Agent, Work
from comity.testing import FakeModel, FakeNode, run_skill
from comity.worker import load_agent
from comity_node.cli.workflow_try import rehearse
from comity_node.protocol.flow import read_flow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COINS = f"{EXAMPLES / 'first-agent' / 'agent.py'}:agent"


def test_the_first_agent_generates_the_same_records_for_the_same_seed() -> None:
    agent = load_agent(COINS)
    work = {"workflow": "w", "dataset": "coins", "count": 5, "seed": 7, "batch": 0}
    made = run_skill(agent, "generate", work)
    assert len(made["records"]) == 5
    assert made == run_skill(agent, "generate", work)


def test_the_first_agent_serves_a_node() -> None:
    agent = load_agent(COINS)
    with FakeNode("mercy.example") as node, node.serving(agent):
        node.wait_for_skill("review")
        answer = node.call("review", {"records": [{"heads": 1}, {"heads": 3}], "author": "b.example", "min_score": 1})
    assert [one["score"] for one in answer["reviews"]] == [10_000, 0]
    assert answer["reviews"][1]["feedback"]


@pytest.fixture
def scholar(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeModel, Agent]]:
    """The agent with a model behind it, and that model."""
    with FakeModel() as model:
        monkeypatch.setenv("MODEL_URL", model.url)
        agent = load_agent(f"{EXAMPLES / 'model-agent' / 'model_agent.py'}:agent")
        yield model, agent
        sys.modules.pop("model_agent").backend.close()


def test_the_model_agent_answers_and_reports_what_it_used(scholar: tuple[FakeModel, Agent]) -> None:
    model, agent = scholar
    question = "What is six times seven?"
    with FakeNode("mercy.example") as node, node.serving(agent):
        node.wait_for_skill("answer")
        model.say({"answer": "42", "confidence": 0.9}, {"verdict": "good"})
        answered = node.call("answer", {"step": "answer", "state": {"question": question}})
        assert answered["state"] == {"answer": "42", "confidence": 0.9}
        assert answered["usage"]["tokens"] > 0
        judged = node.call("critique", {"step": "critique", "state": {"question": question, **answered["state"]}})
        assert judged["state"] == {"verdict": "good"}
    asked = [request["messages"][-1]["content"] for request in model.requests]
    assert asked[0] == question
    assert "Answer: 42" in asked[1]


def test_the_model_agent_does_steps_of_a_flow(scholar: tuple[FakeModel, Agent]) -> None:
    flow = read_flow(
        {
            "state": {
                "type": "object",
                "properties": {
                    "question": {"type": "string"},
                    "answer": {"type": "string", "maxLength": 8000},
                    "confidence": {"type": "number"},
                    "verdict": {"type": "string", "enum": ["good", "bad"]},
                },
            },
            "steps": [
                {"name": "ask", "skill": "ask", "writes": ["question"]},
                {"name": "answer", "skill": "answer", "reads": ["question"], "writes": ["answer", "confidence"]},
                {"name": "critique", "skill": "critique", "reads": ["question", "answer"], "writes": ["verdict"]},
            ],
        }
    )
    asker = Agent("asker")

    @asker.skill("ask")
    def ask(work: Work) -> dict[str, object]:
        return {"state": {"question": "What is six times seven?"}}

    model, agent = scholar
    model.say({"answer": "42", "confidence": 0.9}, {"verdict": "good"})
    done = rehearse(flow, {"ask": asker, "answer": agent, "critique": agent})
    assert (done.end, done.reason) == ("done", "")
    assert done.record == {
        "question": "What is six times seven?", "answer": "42", "confidence": 0.9, "verdict": "good",
    }  # fmt: skip
    assert done.tokens > 0
