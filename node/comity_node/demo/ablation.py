"""What certified rows, review and scoring are worth: the same comparison over several seeds, in this process.

For each seed the data is split anew, every organization makes synthetic rows, the others review them, and a quorum of
three of four votes certifies them, as in the real run, with the same generator, validators and adversary, but without
nodes and a network. Then these arms are trained and measured on the held-out test set that nobody trains on:

    local                          each honest hospital on its own real rows: mean, and the worst hospital
    local_certified                the same, with the others' certified rows added
    federated                      the honest hospitals together, real rows
    federated_certified            with certified rows
    federated_unreviewed           with everything that was offered, the bad organization's rows among it
    federated_unreviewed_flood     with a poisoner that offers as much as it likes: four times its rows, labels flipped
    poisoned_unscored              real rows; the poisoner trains on its flood and sends its update; plain averaging
    poisoned_scored                the same, with every update scored before it is aggregated

All arms standardize with the mean and spread of the certified rows. Differences smaller than the spread over the seeds
are noise, and are to be reported as such.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from comity.flower.data import Scale
from comity.flower.scoring import Thresholds, Validation
from comity.flower.validation import LogisticValidator
from comity_node.demo.adversary import Row
from comity_node.demo.data import LABEL, Split, Table, split, write_split
from comity_node.demo.generator import Generator
from comity_node.demo.participants import BadHospital, Hospital
from comity_node.demo.training import (
    Hyperparameters,
    Labels,
    Matrix,
    Member,
    Outcome,
    evaluate,
    train_federated,
    train_locally,
)

#: How many times its private rows a poisoner floods the others with, all labels flipped.
FLOOD = 4
#: Votes of the four eligible reviewers that a certificate takes.
_VOTES = 3
_FEWEST_FOR_SCALE = 50


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows (n, d), in their own units, and labels (n,)."""

    rows: Matrix
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class SeedRun:
    """What one seed's workflow came to; organizations by name.

    Attributes:
        fields: the columns, in order.
        ranges: each field's declared minimum and maximum.
        private: real rows of each organization.
        offered: the rows that each organization offered at first, before any review.
        certified: the rows of each organization that a quorum certified, after repairs.
        poison: what the bad organization trains on when it means to do harm.
        bad: the organization that is bad.
        server: the organization that aggregates.
        test: the held-out rows.
    """

    fields: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float]]
    private: Mapping[str, Rows]
    offered: Mapping[str, Rows]
    certified: Mapping[str, Rows]
    poison: Rows
    bad: str
    server: str
    test: Rows

    @property
    def honest(self) -> tuple[str, ...]:
        """The organizations that are not bad, in order."""
        return tuple(name for name in self.private if name != self.bad)


@dataclass(frozen=True, slots=True)
class Workload:
    """How much is offered and reviewed; the defaults are the demonstration's."""

    records: int = 60
    batch: int = 20
    repair_rounds: int = 1
    min_score: int = 500


@dataclass(frozen=True, slots=True)
class SeedResult:
    """The arms' scores on the test set, and what the scoring of updates refused, for one seed."""

    seed: int
    arms: Mapping[str, Validation]
    refused_bad: int
    refused_honest: int
    rounds: int
    certified: Mapping[str, int]


def simulate(
    table: Table, organizations: Sequence[str], seed: int, *, workload: Workload | None = None, turn: int = 0
) -> SeedRun:
    """Split a table, have every organization's rows made, reviewed and certified; the last organization is bad.

    Args:
        table: the data.
        organizations: five names: four reviewers are what one liar takes.
        seed: of the split, of the generators and of the bad organization's deeds.
        workload: how much is offered.
        turn: how many batches the bad organization stays honest.
    """
    size = workload or Workload()
    parts = split(table, organizations=len(organizations), seed=seed)
    with _one_thread(), _hospitals(parts, organizations, seed, turn) as hospitals:
        offered: dict[str, Table] = {}
        certified: dict[str, Table] = {}
        for number, name in enumerate(organizations):
            first, passed = _workflow(name, hospitals, size, seed * 1000 + number)
            offered[name], certified[name] = _table(table, first), _table(table, passed)
    private = dict(zip(organizations, parts.parts, strict=True))
    bad = organizations[-1]
    return SeedRun(
        fields=table.schema.features,
        ranges={name: (s.minimum, s.maximum) for name, s in table.schema.fields.items() if name != table.schema.label},
        private={name: _rows(part) for name, part in private.items()},
        offered={name: _rows(rows) for name, rows in offered.items()},
        certified={name: _rows(rows) for name, rows in certified.items()},
        poison=_rows(poison(private[bad], seed)),
        bad=bad,
        server=organizations[0],
        test=_rows(parts.test),
    )


def poison(private: Table, seed: int) -> Table:
    """Return what a poisoner trains on: synthetic rows, four times as many as it has, with all labels flipped."""
    records = Generator(private).sample(FLOOD * len(private), seed)
    rows, labels = private.schema.matrix(records)
    return Table(private.schema, rows, 1 - labels)


def run_seed(run: SeedRun, seed: int, parameters: Hyperparameters | None = None) -> SeedResult:
    """Train and measure every arm for one seed."""
    with _one_thread():
        return _run_seed(run, seed, parameters or Hyperparameters())


def _run_seed(run: SeedRun, seed: int, how: Hyperparameters) -> SeedResult:
    scale = shared_scale(run)
    test = scale.apply(run.test.rows), run.test.labels
    alone = {name: _member(run, scale, name, {}) for name in run.honest}
    helped = {name: _member(run, scale, name, run.certified) for name in run.honest}
    flooded = {**run.offered, run.bad: run.poison}

    def together(members: Sequence[Member]) -> Validation:
        return evaluate(train_federated(members, how, server=run.server).model, *test)

    def poisoned(thresholds: Thresholds | None) -> Outcome:
        members = [*alone.values(), Member(run.bad, scale.apply(run.poison.rows), run.poison.labels)]
        own = run.private[run.server]
        validator = LogisticValidator(scale.apply(own.rows), own.labels)
        return train_federated(members, how, server=run.server, validator=validator, thresholds=thresholds)

    scored = poisoned(Thresholds())
    arms = {
        **_local_arms("local", alone.values(), how, test),
        **_local_arms("local_certified", helped.values(), how, test),
        "federated": together(list(alone.values())),
        "federated_certified": together(list(helped.values())),
        "federated_unreviewed": together([_member(run, scale, name, run.offered) for name in run.honest]),
        "federated_unreviewed_flood": together([_member(run, scale, name, flooded) for name in run.honest]),
        "poisoned_unscored": evaluate(poisoned(None).model, *test),
        "poisoned_scored": evaluate(scored.model, *test),
    }
    refused = [entry.organization for one in scored.history for entry in one.entries if entry.trust == 0]
    certified = {name: len(rows) for name, rows in run.certified.items()}
    bad = refused.count(run.bad)
    return SeedResult(seed, arms, bad, len(refused) - bad, len(scored.history), certified)


def run_ablation(
    table: Table,
    organizations: Sequence[str],
    seeds: Sequence[int],
    *,
    workload: Workload | None = None,
    parameters: Hyperparameters | None = None,
    on_seed: Callable[[SeedResult], None] = lambda _: None,
) -> dict[str, Any]:
    """Run all arms over all seeds and return the report's JSON; `on_seed` hears of each seed that is done."""
    results = []
    with _quiet():
        for seed in seeds:
            result = run_seed(simulate(table, organizations, seed, workload=workload), seed, parameters)
            on_seed(result)
            results.append(result)
    return summarize(results)


def summarize(results: Sequence[SeedResult]) -> dict[str, Any]:
    """Return mean, standard deviation and range of every arm, and what the scoring refused."""
    arms = []
    for arm in results[0].arms:
        scores = [result.arms[arm] for result in results]
        arms.append(
            {
                "arm": arm,
                "auc": _spread([score.auc for score in scores]),
                "accuracy": _spread([score.accuracy for score in scores]),
            }
        )
    return {
        "seeds": [result.seed for result in results],
        "arms": arms,
        "scoring": {
            "rounds": sum(result.rounds for result in results),
            "refused_bad": sum(result.refused_bad for result in results),
            "refused_honest": sum(result.refused_honest for result in results),
        },
        "certified": [dict(result.certified) for result in results],
    }


def shared_scale(run: SeedRun) -> Scale:
    """Return the constants of a run: from certified rows, or from declared ranges when there are few of those."""
    rows = np.concatenate([one.rows for one in run.certified.values()])
    if len(rows) < _FEWEST_FOR_SCALE:
        return Scale.of_ranges(run.ranges, LABEL)
    return Scale.of_rows(run.fields, LABEL, rows)


def _spread(values: Sequence[float]) -> dict[str, float]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": round(statistics.fmean(values), 4),
        "sd": round(deviation, 4),
        "low": round(min(values), 4),
        "high": round(max(values), 4),
    }


def _local_arms(
    name: str, members: Iterable[Member], how: Hyperparameters, test: tuple[Matrix, Labels]
) -> dict[str, Validation]:
    scores = [evaluate(train_locally(member, how), *test) for member in members]
    mean = Validation(*(statistics.fmean(getattr(one, key) for one in scores) for key in ("loss", "auc", "accuracy")))
    return {f"{name}_mean": mean, f"{name}_worst": min(scores, key=lambda one: one.auc)}


def _member(run: SeedRun, scale: Scale, name: str, extra: Mapping[str, Rows]) -> Member:
    """Return an organization with its own rows and the others' `extra` ones."""
    own, others = run.private[name], [rows for author, rows in extra.items() if author != name]
    rows = np.concatenate([own.rows, *(one.rows for one in others)])
    labels = np.concatenate([own.labels, *(one.labels for one in others)])
    return Member(name, scale.apply(rows), labels, certified=len(labels) - len(own))


@contextmanager
def _hospitals(parts: Split, organizations: Sequence[str], seed: int, turn: int) -> Iterator[dict[str, Hospital]]:
    with tempfile.TemporaryDirectory(prefix="comity-ablation-") as directory, ExitStack() as open_ones:
        homes = {name: Path(directory) / name for name in organizations}
        write_split(parts, homes, Path(directory) / "test")
        hospitals: dict[str, Hospital] = {}
        for name in organizations[:-1]:
            hospitals[name] = Hospital(homes[name], homes[name] / "state")
        name = organizations[-1]
        hospitals[name] = BadHospital(homes[name], homes[name] / "state", turn=turn, seed=seed)
        for hospital in hospitals.values():
            open_ones.callback(hospital.close)
        yield hospitals


def _workflow(author: str, hospitals: Mapping[str, Hospital], size: Workload, seed: int) -> tuple[list[Row], list[Row]]:
    """Make, review and repair one organization's rows; return what was offered at first, and what was certified."""
    offered: list[Row] = []
    certified: list[Row] = []
    home = hospitals[author]
    reviewers = {name: hospital for name, hospital in hospitals.items() if name != author}
    for batch, start in enumerate(range(0, size.records, size.batch)):
        rows = home.generate(min(size.batch, size.records - start), seed * 100 + batch, batch)
        offered += rows
        tasks = [f"{author}/{batch}/{number}" for number in range(len(rows))]
        for attempt in range(size.repair_rounds + 1):
            votes, feedback = _review(author, rows, tasks, reviewers, size.min_score)
            passed = [votes[n] >= _VOTES for n in range(len(rows))]
            certified += [row for row, good in zip(rows, passed, strict=True) if good]
            left = [n for n, good in enumerate(passed) if not good]
            if not left or attempt == size.repair_rounds:
                break
            tasks = [tasks[n] for n in left]
            rows = home.repair([rows[n] for n in left], [feedback[n] for n in left], seed * 100 + 50 + batch)
    return offered, certified


def _review(
    author: str, rows: Sequence[Row], tasks: Sequence[str], reviewers: Mapping[str, Hospital], min_score: int
) -> tuple[list[int], list[list[str]]]:
    """Return how many reviewers accept each row, and what the others say about it."""
    votes = [0] * len(rows)
    feedback: list[list[str]] = [[] for _ in rows]
    for hospital in reviewers.values():
        for number, review in enumerate(hospital.review(author, rows, min_score, tasks)):
            votes[number] += review.score >= min_score
            feedback[number] += review.feedback
    return votes, feedback


def _table(like: Table, records: Sequence[Row]) -> Table:
    rows, labels = like.schema.matrix(records)
    return Table(like.schema, rows, labels)


def _rows(table: Table) -> Rows:
    return Rows(table.rows, table.labels)


def _one_thread() -> AbstractContextManager[object]:
    """Small matrices: with more threads, linear algebra spends its time on waking them up (a factor of four here)."""
    limited: AbstractContextManager[object] = threadpool_limits(1)
    return limited


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower logs every round; in a comparison of hundreds that says nothing."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
