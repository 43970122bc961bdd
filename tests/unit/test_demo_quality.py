"""What review is worth: four honest hospitals and a bad one, certificates by 3 of 4 votes, one round of repair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from comity_node.demo.adversary import PLAN, Adversary, Kind, Row, dishonest_scores
from comity_node.demo.data import breast_cancer, split
from comity_node.demo.generator import Generator
from comity_node.validators.tabular import DEFAULT_MIN_SCORE, Validator

ORGANIZATIONS, QUORUM, ROWS, TURN = 5, 3, 20, 2


@dataclass
class Consortium:
    """Five organizations in one process, of which number `bad` has turned."""

    generators: list[Generator]
    validators: list[Validator]
    adversary: Adversary
    bad: int
    chance: np.random.Generator
    offered: Counter[tuple[bool, Kind]] = field(default_factory=Counter)
    certified: Counter[tuple[bool, Kind]] = field(default_factory=Counter)

    def batch(self, author: int, number: int) -> None:
        rows = self.generators[author].sample(ROWS, 100 * number + author)
        deeds = [(row, Kind.HONEST) for row in rows]
        if author == self.bad:
            deeds = self.adversary.corrupt(rows, number)
        else:
            self.validators[author].remember(rows)
        self.offered.update((author == self.bad, kind) for _, kind in deeds)
        left, feedback = self._vote(author, number, deeds)
        if left:
            fixed = self.generators[author].repair([row for row, _ in left], feedback, 1000 * number + author)
            again = [(row, Kind.HONEST) for row in fixed]
            if author == self.bad:
                again = self.adversary.repair(fixed, [kind for _, kind in left], number)
            else:
                self.validators[author].remember(fixed)
            self._vote(author, number, again)

    def _vote(
        self, author: int, number: int, deeds: Sequence[tuple[Row, Kind]]
    ) -> tuple[list[tuple[Row, Kind]], list[list[str]]]:
        records = [row for row, _ in deeds]
        votes = np.zeros(len(records), dtype=int)
        feedback: list[list[str]] = [[] for _ in records]
        for reviewer in range(ORGANIZATIONS):
            if reviewer == author:
                continue
            if reviewer == self.bad:
                self.adversary.observe(records)
                scores = dishonest_scores(len(records), DEFAULT_MIN_SCORE, self.chance)
            else:
                reviews = self.validators[reviewer].review(f"h{author}", records)
                scores = [review.score for review in reviews]
                for texts, review in zip(feedback, reviews, strict=True):
                    texts.extend(review.feedback)
            votes += np.array(scores) >= DEFAULT_MIN_SCORE
        passed = votes >= QUORUM
        self.certified.update((author == self.bad, kind) for (_, kind), ok in zip(deeds, passed, strict=True) if ok)
        left = [deed for deed, ok in zip(deeds, passed, strict=True) if not ok]
        return left, [texts for texts, ok in zip(feedback, passed, strict=True) if not ok]


@pytest.mark.slow
@pytest.mark.invariant("S9")
def test_corrupted_rows_are_not_certified_and_good_ones_are(tmp_path: Path) -> None:
    table = breast_cancer()
    offered: Counter[tuple[bool, Kind]] = Counter()
    certified: Counter[tuple[bool, Kind]] = Counter()
    for seed in (0, 1):
        parts = split(table, seed=seed).parts
        consortium = Consortium(
            [Generator(part) for part in parts],
            [
                Validator.build(tmp_path / f"{seed}-{n}", part.rows, part.labels, part.schema, provider="cpu")
                for n, part in enumerate(parts)
            ],
            Adversary(table.schema, seed=seed, turn=TURN),
            bad=seed + 1,
            chance=np.random.default_rng(seed),
        )
        for number in range(TURN + len(PLAN)):
            for author in range(ORGANIZATIONS):
                consortium.batch(author, number)
        offered.update(consortium.offered)
        certified.update(consortium.certified)
    for kind in (Kind.WRONG_UNITS, Kind.COPIED_ROWS, Kind.COLLAPSED):
        assert offered[True, kind] >= 40
        assert certified[True, kind] == 0, kind
    for kind in (Kind.FLIPPED_LABELS, Kind.SHUFFLED_LABELS):
        # A row between the classes goes with either label, so a few may pass.
        assert offered[True, kind] >= 10
        assert certified[True, kind] <= 0.05 * offered[True, kind], kind
    assert certified[False, Kind.HONEST] >= 0.97 * offered[False, Kind.HONEST]
