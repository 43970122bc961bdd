"""Reviews inside of a Ray Data pipeline: rows are scored with an agent's skill, offline, before a node sees them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from comity.agent import Agent, ThreadPool, Work, encode_result
from comity.certificate import MAX_SCORE
from comity.errors import AgentFailed, ConfigError
from comity.worker import load_agent


def review_stage(
    agent: str | Callable[[], Agent],
    *,
    skill: str = "review",
    min_score: int = MAX_SCORE,
    author: str = "",
    timeout_s: float = 300.0,
) -> ReviewStage:
    """Return what `ray.data.Dataset.map_batches` takes (with its default batch format, "numpy").

    Args:
        agent: `module:agent`, `path/to/file.py:agent`, or a function that makes it; it is loaded where the stage runs.
        skill: one that takes `{"records", "author", "min_score"}` and returns `{"reviews": [...]}`, as a validator's.
        min_score: from which on a row counts as accepted, 0 to 10,000.
        author: the organization that is named as the rows' author.
        timeout_s: seconds that a batch may take.

    Raises:
        ConfigError: `min_score` is no score.
    """
    return ReviewStage(agent, skill, min_score, author, timeout_s)


class ReviewStage:
    """Adds `review_score`, `review_accepted` and `review_feedback` (its lines) to a batch. Made by `review_stage`."""

    def __init__(
        self, agent: str | Callable[[], Agent], skill: str, min_score: int, author: str, timeout_s: float
    ) -> None:
        if not 0 <= min_score <= MAX_SCORE:
            raise ConfigError(f"a score is from 0 to {MAX_SCORE}, not {min_score}")
        self._source, self._skill, self._min_score = agent, skill, min_score
        self._author, self._timeout_s = author, timeout_s
        self._agent: Agent | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_agent": None}  # each process loads its own

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Review one batch: columns by name, each an array.

        Raises:
            AgentFailed: the skill failed, took too long, or did not review each row.
        """
        columns = {name: column.tolist() for name, column in batch.items()}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        reviews = self._review(rows) if rows else []
        return {
            **batch,
            "review_score": [each["score"] for each in reviews],
            "review_accepted": [each["score"] >= self._min_score for each in reviews],
            "review_feedback": ["\n".join(each.get("feedback", ())) for each in reviews],
        }

    def _review(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self._agent is None:
            self._agent = load_agent(self._source) if isinstance(self._source, str) else self._source()
        where = f"agent {self._agent.name!r}, skill {self._skill!r}"
        given = {"records": rows, "author": self._author, "min_score": self._min_score}
        given = json.loads(encode_result(given, f"{where}, its input"))
        answer = json.loads(asyncio.run(self._perform(self._agent, given, where)))
        reviews = answer.get("reviews") if isinstance(answer, dict) else None
        if not isinstance(reviews, list) or len(reviews) != len(rows) or not all(map(_is_review, reviews)):
            raise AgentFailed(f"{where}: it did not return a review with a score for each of {len(rows)} rows")
        return reviews

    async def _perform(self, agent: Agent, given: object, where: str) -> bytes:
        work = Work(given, self._skill, time.monotonic() + self._timeout_s)
        threads = ThreadPool(1)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await agent.perform(work, threads)
        except TimeoutError as error:
            raise AgentFailed(f"{where}: took longer than {self._timeout_s:g} s") from error
        finally:
            threads.close()


def _is_review(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    score, feedback = value.get("score"), value.get("feedback", [])
    return (
        type(score) is int
        and 0 <= score <= MAX_SCORE
        and isinstance(feedback, list)
        and all(isinstance(line, str) for line in feedback)
    )
