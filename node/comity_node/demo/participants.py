"""What the demo's organizations do behind their nodes: hospitals, and one that turns bad.

Plain classes without a node or a network; `agents` serves them. Everything that they keep lies in a directory of
their own, so a worker that is killed goes on where it was.
"""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from comity_node.demo.adversary import Adversary, CorruptionLog, Kind, Row, dishonest_scores, record_digest
from comity_node.demo.data import PRIVATE_FILE, SCHEMA_FILE, load_table
from comity_node.demo.generator import Generator
from comity_node.validators.runtime import MANIFEST_FILE
from comity_node.validators.schema import Schema
from comity_node.validators.tabular import RowReview, Validator

CORRUPTION_FILE = "corruption.jsonl"
_VALIDATOR_DIRECTORY = "validator"
_LOCK_FILE = "validator.lock"


class Hospital:
    """An honest organization: makes rows like its private ones and reviews others' by its private ones.

    Args:
        data: directory with `private.parquet` and `schema.json`.
        state: directory for the validator and its memory; made when it is not there.

    Raises:
        ConfigError: the data is missing or wrong.
        ModelError: a validator is there and is not what was pinned.
    """

    def __init__(self, data: Path, state: Path) -> None:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._state = state
        table = load_table(data / PRIVATE_FILE, Schema.load(data / SCHEMA_FILE))
        self.schema = table.schema
        self._generator = Generator(table)
        with (state / _LOCK_FILE).open("w") as lock:
            # Workers of one organization start together: the first builds, the others load.
            fcntl.flock(lock, fcntl.LOCK_EX)
            directory = state / _VALIDATOR_DIRECTORY
            if (directory / MANIFEST_FILE).exists():
                self._validator = Validator.load(directory)
            else:
                self._validator = Validator.build(directory, table.rows, table.labels, table.schema)
        self._reviewing = threading.Lock()

    def generate(self, count: int, seed: int, batch: int) -> list[Row]:
        """Return `count` synthetic rows; the same seed gives the same rows."""
        del batch
        rows = self._generator.sample(count, seed)
        self._validator.remember(rows)
        return rows

    def repair(self, records: Sequence[Row], feedback: Sequence[Sequence[str]], seed: int) -> list[Row]:
        """Return a new row for each that reviewers refused."""
        rows = self._generator.repair(records, feedback, seed)
        self._validator.remember(rows)
        return rows

    def review(
        self, author: str, records: Sequence[Mapping[str, Any]], min_score: int, tasks: Sequence[str] | None = None
    ) -> list[RowReview]:
        """Judge another organization's rows."""
        with self._reviewing:
            return self._validator.review(author, records, min_score, tasks=tasks)

    def describe(self) -> str:
        """Return, as JSON, what made the scores."""
        return json.dumps(self._validator.describe(), sort_keys=True, separators=(",", ":"))

    def close(self) -> None:
        """Close what is open."""
        self._validator.close()


class BadHospital(Hospital):
    """A member with valid keys that turns bad: corrupts its rows and lies in its reviews.

    It works honestly for `turn` batches of its own; from then on, or once it has reviewed four times as many of
    others', it passes what its own validator refuses and refuses what that would pass.

    Args:
        data: as for `Hospital`.
        state: as for `Hospital`; the log of what it did, `corruption.jsonl`, lies there too.
        turn: how many batches it stays honest; 0 is bad from the start.
        seed: the same seed and work give the same deeds.
    """

    def __init__(self, data: Path, state: Path, *, turn: int = 2, seed: int = 0) -> None:
        super().__init__(data, state)
        self._adversary = Adversary(self.schema, seed=seed, turn=turn)
        self._log = CorruptionLog(state / CORRUPTION_FILE)
        self._chance = np.random.default_rng([seed, 0x11E5])
        self._reviews_left = 4 * turn
        self._turned = self._adversary.turned(self._log.last_batch())
        self._busy = threading.Lock()

    def generate(self, count: int, seed: int, batch: int) -> list[Row]:
        """Return a batch of rows, corrupted when the organization has turned."""
        with self._busy:
            deeds = self._adversary.corrupt(self._generator.sample(count, seed), batch)
            self._turned = self._turned or self._adversary.turned(batch)
            self._log.append(deeds, batch)
        return [row for row, _ in deeds]

    def repair(self, records: Sequence[Row], feedback: Sequence[Sequence[str]], seed: int) -> list[Row]:
        """Return rows as bad as those that were refused, and good ones for good ones."""
        with self._busy:
            known = self._log.kinds()
            kinds = [known.get(record_digest(record), Kind.HONEST) for record in records]
            deeds = self._adversary.repair(self._generator.repair(records, feedback, seed), kinds, seed)
            self._log.append(deeds, self._log.last_batch())
        return [row for row, _ in deeds]

    def review(
        self, author: str, records: Sequence[Mapping[str, Any]], min_score: int, tasks: Sequence[str] | None = None
    ) -> list[RowReview]:
        """Judge another organization's rows, dishonestly when the organization has turned."""
        honest = super().review(author, records, min_score, tasks)
        with self._busy:
            self._adversary.observe(record for record in records if not self.schema.problem(record))
            self._reviews_left -= 1
            if not self._turned and self._reviews_left >= 0:
                return honest
            scores = dishonest_scores(
                len(honest), min_score, self._chance, favour=[review.score < min_score for review in honest]
            )
        return [_pretend(score, min_score) for score in scores]


def _pretend(score: int, min_score: int) -> RowReview:
    feedback = () if score >= min_score else ("density: the row is unlike any of its class",)
    return RowReview(score, {"schema": 10_000, "density": score}, feedback)
