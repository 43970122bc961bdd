"""What the bad organization does to rows before it sends them, and how it reviews.

Nothing in a row says that it is corrupted. The bad organization keeps a log of its own, one line of JSON a row
(`{"record": digest, "kind": ..., "batch": ...}`), by which the demo tells afterwards what became of each kind.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from comity.digest import canonical_json, hex_digest
from comity_node.validators.schema import Schema

Row = dict[str, float | int]

#: Units that get mixed up: centimetres for millimetres, inches for millimetres.
_FACTORS = (10.0, 25.4)
_COLLAPSE_NOISE = 1e-3
_MAX_SEEN = 2000


class Kind(StrEnum):
    """What was done to a row."""

    HONEST = "honest"
    FLIPPED_LABELS = "flipped_labels"
    SHUFFLED_LABELS = "shuffled_labels"
    COPIED_ROWS = "copied_rows"
    WRONG_UNITS = "wrong_units"
    COLLAPSED = "collapsed"


#: What a corrupted batch is, in turn; None is a mixture of all.
PLAN: tuple[Kind | None, ...] = (
    Kind.FLIPPED_LABELS,
    Kind.COPIED_ROWS,
    Kind.WRONG_UNITS,
    None,
    Kind.COLLAPSED,
    Kind.SHUFFLED_LABELS,
)


class Adversary:
    """Corrupts batches of good rows, from batch `turn` on.

    Args:
        schema: of the rows.
        seed: the same seed and calls give the same rows.
        turn: number of the first corrupted batch; those before are left as they are.
    """

    def __init__(self, schema: Schema, *, seed: int = 0, turn: int = 0) -> None:
        self._schema, self._seed, self._turn = schema, seed, turn
        self._seen: deque[Row] = deque(maxlen=_MAX_SEEN)

    def observe(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Keep other organizations' rows, to copy them later."""
        self._seen.extend(dict(record) for record in records)

    def turned(self, batch: int) -> bool:
        """Say whether batch number `batch` is corrupted."""
        return batch >= self._turn

    def corrupt(self, records: Sequence[Row], batch: int) -> list[tuple[Row, Kind]]:
        """Return the rows of batch number `batch` as they are sent, each with what was done to it."""
        if not self.turned(batch):
            return [(record, Kind.HONEST) for record in records]
        plan = PLAN[(batch - self._turn) % len(PLAN)]
        return self.apply(records, plan, [self._seed, batch])

    def apply(self, records: Sequence[Row], plan: Kind | None, seed: Sequence[int]) -> list[tuple[Row, Kind]]:
        """Corrupt a batch in one way, or each of its rows in a way drawn by chance (`plan` None)."""
        rng = np.random.default_rng([*seed, 0xBAD])
        kinds = tuple(Kind)
        chosen = [plan or kinds[int(rng.integers(len(kinds)))] for _ in records]
        out: list[tuple[Row, Kind]] = [(dict(record), Kind.HONEST) for record in records]
        for kind in kinds:
            index = [number for number, one in enumerate(chosen) if one is kind]
            for number, row in zip(index, self._as_kind(kind, [out[n][0] for n in index], rng), strict=True):
                same = kind is Kind.SHUFFLED_LABELS and row == out[number][0]
                out[number] = (row, Kind.HONEST if same else kind)
        return out

    def repair(self, records: Sequence[Row], kinds: Sequence[Kind], seed: int) -> list[tuple[Row, Kind]]:
        """Corrupt freshly drawn rows again, each in the way that its predecessor was."""
        out: list[tuple[Row, Kind]] = [(dict(record), Kind.HONEST) for record in records]
        for kind in set(kinds):
            index = [number for number, one in enumerate(kinds) if one is kind]
            # A single row cannot be shuffled; a label that has to be wrong is flipped.
            again = Kind.FLIPPED_LABELS if kind is Kind.SHUFFLED_LABELS else kind
            done = self.apply([records[n] for n in index], again, [self._seed, seed, list(Kind).index(kind)])
            for number, (row, _) in zip(index, done, strict=True):
                out[number] = (row, kind)
        return out

    def _as_kind(self, kind: Kind, rows: Sequence[Row], rng: np.random.Generator) -> list[Row]:
        match kind:
            case Kind.HONEST:
                return [dict(row) for row in rows]
            case Kind.FLIPPED_LABELS:
                return [{**row, self._schema.label: 1 - int(row[self._schema.label])} for row in rows]
            case Kind.SHUFFLED_LABELS:
                labels = [row[self._schema.label] for row in rows]
                order = rng.permutation(len(rows)).tolist()
                return [{**row, self._schema.label: labels[n]} for row, n in zip(rows, order, strict=True)]
            case Kind.COPIED_ROWS:
                return self._copies(rows, rng)
            case Kind.WRONG_UNITS:
                return self._wrong_units(rows, rng)
            case Kind.COLLAPSED:
                return [self._jittered(rows[0], rng) for _ in rows]

    def _copies(self, rows: Sequence[Row], rng: np.random.Generator) -> list[Row]:
        """Return rows seen before, every second one with a little noise; its own batch's first when it saw none."""
        source = list(self._seen) or list(rows[:1])
        copies = [source[int(rng.integers(len(source)))] for _ in rows]
        return [self._jittered(row, rng) if number % 2 else dict(row) for number, row in enumerate(copies)]

    def _wrong_units(self, rows: Sequence[Row], rng: np.random.Generator) -> list[Row]:
        """Return rows with three to six columns in another unit, the same ones for the batch."""
        features = self._schema.features
        count = min(len(features), int(rng.integers(3, 7)))
        columns = [features[n] for n in rng.choice(len(features), count, replace=False).tolist()]
        factor = _FACTORS[int(rng.integers(len(_FACTORS)))]
        return [{**row, **{name: self._bounded(name, float(row[name]) * factor) for name in columns}} for row in rows]

    def _jittered(self, row: Row, rng: np.random.Generator) -> Row:
        noise = 1.0 + _COLLAPSE_NOISE * rng.standard_normal(len(self._schema.features))
        moved = {
            name: self._bounded(name, float(row[name]) * factor)
            for name, factor in zip(self._schema.features, noise.tolist(), strict=True)
        }
        return {**row, **moved}

    def _bounded(self, name: str, value: float) -> float | int:
        """Keep a value in the declared range: a bad row that the schema refuses would be too easy to catch."""
        spec = self._schema.fields[name]
        inside = min(max(value, spec.minimum), spec.maximum)
        return round(inside) if spec.type == "integer" else inside


class CorruptionLog:
    """The bad organization's own record of what it sent, in `corruption.jsonl`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, rows: Sequence[tuple[Row, Kind]], batch: int) -> None:
        """Note what was done to each row of a batch."""
        lines = [
            json.dumps({"record": record_digest(row), "kind": kind.value, "batch": batch}, separators=(",", ":"))
            for row, kind in rows
        ]
        with self._path.open("a", encoding="utf-8") as file:
            # Starts with a line break: if the last writer was killed in mid-line, only that line is lost.
            file.write("\n" + "".join(line + "\n" for line in lines))

    def kinds(self) -> dict[str, Kind]:
        """Return what was done to each record, by its digest in hex; empty when nothing was sent."""
        return {str(entry["record"]): Kind(entry["kind"]) for entry in self._entries()}

    def last_batch(self) -> int:
        """Return the largest number of a batch in the log; -1 when there is none."""
        return max((int(entry["batch"]) for entry in self._entries()), default=-1)

    def _entries(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.endswith("}\n")]


def record_digest(record: Mapping[str, Any]) -> str:
    """Return the digest in hex of a record's canonical JSON, which is also the record's digest in hops and reviews."""
    return hex_digest(canonical_json(dict(record)))


def dishonest_scores(
    count: int, min_score: int, rng: np.random.Generator, *, favour: Sequence[bool] | None = None
) -> list[int]:
    """Return a liar's scores: rows to favour pass, the others mostly fail, a few pass by chance to look alive."""
    wanted = favour or [False] * count
    lucky = rng.random(count) < 0.1
    high = rng.integers(min(min_score, 9_999), 10_001, count)
    low = rng.integers(0, max(1, min_score), count)
    return [int(h if good or luck else bad) for good, luck, h, bad in zip(wanted, lucky, high, low, strict=True)]
