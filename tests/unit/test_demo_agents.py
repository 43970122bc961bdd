from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from comity.agent import Agent, ThreadPool, Work
from comity.errors import AgentFailed
from comity_node.demo import agents
from comity_node.demo.adversary import CorruptionLog, Kind, record_digest
from comity_node.demo.data import breast_cancer, split, write_split
from comity_node.demo.participants import CORRUPTION_FILE, BadHospital, Hospital

REVIEW = {"dataset": "tumours", "purpose": "screening", "min_score": 500}
GENERATE = {"workflow": "w", "dataset": "tumours", "count": 20, "seed": 1}


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("homes")
    directories = {f"h{n}": base / f"h{n}" for n in range(5)}
    write_split(split(breast_cancer(), seed=0), directories, base / "test")
    return list(directories.values())


def perform(agent: Agent, skill: str, value: Any) -> Any:
    async def main() -> bytes:
        pool = ThreadPool(1)
        try:
            return await agent.perform(Work(value, skill), pool)
        finally:
            pool.close()

    return json.loads(asyncio.run(main()))


def test_three_skills_work_together(homes: list[Path], tmp_path: Path) -> None:
    author = agents.make_agent(lambda: Hospital(homes[1], tmp_path / "author"))
    reviewer = agents.make_agent(lambda: Hospital(homes[0], tmp_path / "reviewer"))
    assert author.skills == ("generate", "repair", "review")
    rows = perform(author, "generate", {**GENERATE, "batch": 0})["records"]
    answer = perform(reviewer, "review", {**REVIEW, "author": "h1", "records": rows})
    assert json.loads(answer["validator"])["precision"] == "float32"
    assert all(set(review) == {"score", "axes", "feedback"} for review in answer["reviews"])
    failed = [(row, r["feedback"]) for row, r in zip(rows, answer["reviews"], strict=True) if r["score"] < 500]
    records, feedback = [row for row, _ in failed], [texts for _, texts in failed]
    repaired = perform(author, "repair", {**GENERATE, "records": records, "feedback": feedback})["records"]
    assert len(repaired) == len(records)
    again = perform(
        reviewer, "review", {**REVIEW, "author": "h1", "records": rows, "tasks": [str(n) for n in range(20)]}
    )
    assert all(review["score"] < 500 for review in again["reviews"])


def test_a_second_worker_loads_the_first_ones_validator(homes: list[Path], tmp_path: Path) -> None:
    first, second = Hospital(homes[2], tmp_path), Hospital(homes[2], tmp_path)
    assert first.describe() == second.describe()


@pytest.mark.parametrize(
    ("skill", "value"),
    [
        ("generate", {**GENERATE, "batch": 0, "count": -1}),
        ("generate", {**GENERATE, "batch": 0, "seed": True}),
        ("generate", []),
        ("repair", {**GENERATE, "records": [{}], "feedback": []}),
        ("review", {**REVIEW, "author": "h1", "records": "rows"}),
        ("review", None),
    ],
)
def test_wrong_input_is_refused_before_anything_is_opened(skill: str, value: Any) -> None:
    def never() -> Hospital:
        pytest.fail("opened")

    with pytest.raises(AgentFailed):
        perform(agents.make_agent(never), skill, value)


def test_the_bad_one_turns_keeps_its_log_and_lies(homes: list[Path], tmp_path: Path) -> None:
    bad = BadHospital(homes[3], tmp_path, turn=1, seed=2)
    good = Hospital(homes[4], tmp_path / "good").generate(20, 5, 0)
    assert sum(r.score >= 500 for r in bad.review("h4", good, 500)) >= 15
    honest, corrupted = bad.generate(20, 1, 0), bad.generate(20, 2, 1)
    log = CorruptionLog(tmp_path / CORRUPTION_FILE)
    assert {log.kinds()[record_digest(row)] for row in honest} == {Kind.HONEST}
    assert {log.kinds()[record_digest(row)] for row in corrupted} == {Kind.FLIPPED_LABELS}
    repaired = bad.repair([honest[0], corrupted[0]], [["density: x"], ["label: x"]], 9)
    assert [log.kinds()[record_digest(row)] for row in repaired] == [Kind.HONEST, Kind.FLIPPED_LABELS]
    other = Hospital(homes[4], tmp_path / "good").generate(20, 6, 0)
    assert sum(r.score >= 500 for r in bad.review("h4", other, 500)) <= 8
    # Killed and started again, it has not become honest.
    reborn = BadHospital(homes[3], tmp_path, turn=1, seed=2)
    third = Hospital(homes[4], tmp_path / "good").generate(20, 7, 0)
    assert sum(r.score >= 500 for r in reborn.review("h4", third, 500)) <= 8


def test_settings_come_from_the_environment(homes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMITY_DEMO_DATA", raising=False)
    with pytest.raises(AgentFailed, match="set COMITY_DEMO_DATA"):
        perform(agents.hospital, "generate", {**GENERATE, "batch": 0})
    monkeypatch.setenv("COMITY_DEMO_DATA", str(homes[0]))
    monkeypatch.setenv("COMITY_DEMO_STATE", str(tmp_path))
    monkeypatch.setenv("COMITY_DEMO_TURN", "-1")
    with pytest.raises(AgentFailed, match="COMITY_DEMO_TURN"):
        perform(agents.bad, "generate", {**GENERATE, "batch": 0})
    assert len(perform(agents.hospital, "generate", {**GENERATE, "batch": 0})["records"]) == 20


def test_starting_imports_nothing_heavy() -> None:
    code = (
        "import sys, comity_node.demo.agents\n"
        "print([m for m in ('numpy', 'sklearn', 'onnx', 'onnxruntime', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
