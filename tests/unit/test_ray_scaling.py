"""How many Ray workers a queue needs, and reviews of batches; without Ray."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.agent import Agent, Work
from comity.client import SkillLoad
from comity.errors import AgentFailed, ConfigError, MissingExtra
from comity.ray import Scaler, ScalingSettings, local_ray, review_stage
from comity.ray.scaling import demand_of

COINS = f"{Path(__file__).resolve().parents[2] / 'examples' / 'first-agent' / 'agent.py'}:agent"


def test_it_grows_at_once_and_shrinks_when_fewer_were_enough_for_a_while() -> None:
    scaler = Scaler(ScalingSettings(minimum=1, maximum=4, idle_s=10.0), concurrency=2)
    assert scaler.wanted(0.0, 0) == 1
    assert scaler.wanted(1.0, 5) == 3
    assert scaler.wanted(2.0, 100) == 4
    assert scaler.wanted(3.0, 4) == 4
    assert scaler.wanted(11.9, 0) == 4
    assert scaler.wanted(12.1, 0) == 2  # the four calls of second 3 were the most since then
    assert scaler.wanted(13.1, 0) == 1
    assert Scaler(ScalingSettings(), 1).wanted(0.0, 1000) == 8


@given(
    steps=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 50)), min_size=1, max_size=60),
    minimum=st.integers(1, 4),
    more=st.integers(0, 6),
    concurrency=st.integers(1, 4),
)
def test_it_wants_the_most_of_the_last_while(
    steps: list[tuple[float, int]], minimum: int, more: int, concurrency: int
) -> None:
    scaler = Scaler(ScalingSettings(minimum, minimum + more, 10.0), concurrency)
    now, seen = 0.0, list[tuple[float, int]]()
    for pause, demand in steps:
        now += pause
        seen.append((now, min(minimum + more, max(minimum, -(-demand // concurrency)))))
        assert scaler.wanted(now, demand) == max(needed for at, needed in seen if now - at <= 10.0)
        assert len(scaler._peaks) <= more + 1


@pytest.mark.parametrize(
    ("settings", "concurrency"),
    [(ScalingSettings(0, 1), 1), (ScalingSettings(2, 1), 1), (ScalingSettings(idle_s=-1.0), 1), (ScalingSettings(), 0)],
)
def test_numbers_that_are_none_are_refused(settings: ScalingSettings, concurrency: int) -> None:
    with pytest.raises(ConfigError):
        Scaler(settings, concurrency)


def test_demand_is_that_of_the_agents_skills() -> None:
    loads = [
        SkillLoad("a", workers=1, running=2, free=0, waiting=3, waiting_ms=5),
        SkillLoad("b", workers=1, running=1, free=0, waiting=0, waiting_ms=0),
        SkillLoad("other", workers=9, running=9, free=9, waiting=9, waiting_ms=9),
    ]
    assert demand_of(loads, ("a", "b")) == 6


def test_a_stage_adds_scores_to_its_batch() -> None:
    stage = pickle.loads(pickle.dumps(review_stage(COINS, min_score=1)))
    batch = stage({"heads": np.array([0, 1, 7]), "name": np.array(["a", "b", "c"], dtype=object)})
    assert batch["review_score"] == [10_000, 10_000, 0]
    assert batch["review_accepted"] == [True, True, False]
    assert batch["review_feedback"] == ["", "", "range: heads is 0 or 1"]
    assert list(batch["name"]) == ["a", "b", "c"]
    assert stage({"heads": np.array([])})["review_score"] == []


def bad_agent() -> Agent:
    agent = Agent("bad")
    answers: dict[str, object] = {
        "none": None,
        "few": {"reviews": [{"score": 1}]},
        "wrong": {"reviews": [{"score": 1}, {"score": 10_001}]},
        "truth": {"reviews": [{"score": 1}, {"score": True}]},
        "text": {"reviews": [{"score": 1}, {"score": 1, "feedback": "no list"}]},
    }
    for name, answer in answers.items():
        agent.skill(name)(lambda work, answer=answer: answer)

    @agent.skill("slow")
    def slow(work: Work) -> None:
        while not work._cancelled.wait(0.01):
            pass

    return agent


@pytest.mark.parametrize("skill", ["none", "few", "wrong", "truth", "text"])
def test_a_stage_takes_no_reviews_that_are_none(skill: str) -> None:
    with pytest.raises(AgentFailed, match="did not return a review with a score for each of 2 rows"):
        review_stage(bad_agent, skill=skill)({"x": np.array([1, 2])})


def test_a_stage_has_a_deadline() -> None:
    with pytest.raises(AgentFailed, match=r"took longer than 0\.1 s"):
        review_stage(bad_agent, skill="slow", timeout_s=0.1)({"x": np.array([1])})
    with pytest.raises(ConfigError, match="a score is from 0"):
        review_stage(bad_agent, min_score=10_001)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named() -> None:
    with pytest.raises(MissingExtra, match="ray"), local_ray():
        pass
