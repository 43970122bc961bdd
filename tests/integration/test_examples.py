"""The examples do what they say."""

from __future__ import annotations

from pathlib import Path

from comity.testing import FakeNode, run_skill
from comity.worker import load_agent

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
