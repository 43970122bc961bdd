"""The rows a reviewer has seen, so that a copy of one does not pass as new.

Rows that were refused are kept too: their copies are no better. Bounded per author, so that nobody can push another's
rows out; the author's oldest are forgotten first. On disk when a path is given, so that a restart forgets nothing.

Each row is kept under the task it came from. Rows of the same task never count as copies of each other, because
neither a repaired row nor a request that is sent again is a copy.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from comity.errors import StorageError
from comity_node.validators.distance import closest
from comity_node.validators.schema import Matrix, Vector

DEFAULT_LIMIT = 1024
MAX_AUTHORS = 64

_TABLE = """
CREATE TABLE IF NOT EXISTS seen (
    number INTEGER PRIMARY KEY, author TEXT NOT NULL, task TEXT NOT NULL, row BLOB NOT NULL, UNIQUE (author, task, row)
)
"""
_KEEP = "INSERT OR IGNORE INTO seen (author, task, row) VALUES (?, ?, ?)"
_FORGET = """
DELETE FROM seen WHERE author = ?1 AND number <=
    (SELECT number FROM seen WHERE author = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)
"""


class SeenRows:
    """Rows of a fixed width, each with its author and task. Safe to use from several threads.

    Args:
        width: values in a row.
        path: a SQLite file, made with mode 0600; None keeps the rows in memory only.
        limit: rows kept of one author at most; of at most `MAX_AUTHORS` authors.

    Raises:
        StorageError: the file cannot be opened.
    """

    def __init__(self, width: int, path: Path | None = None, *, limit: int = DEFAULT_LIMIT) -> None:
        self._width, self._limit = width, limit
        self._lock = threading.Lock()
        self._rows = np.empty((0, width))
        self._owners: list[tuple[str, str]] = []
        try:
            if path is not None:
                path.touch(mode=0o600)
            self._database = sqlite3.connect(path or ":memory:", check_same_thread=False, timeout=10)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(_TABLE)
            self._load()
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"cannot open the reviewer's memory {path}: {error}") from error

    def _load(self) -> None:
        found = self._database.execute(
            "SELECT author, task, row FROM seen WHERE length(row) = ? ORDER BY number", (4 * self._width,)
        ).fetchall()
        self._owners = [(author, task) for author, task, _ in found]
        values = np.frombuffer(b"".join(row for _, _, row in found), dtype="<f4").astype(np.float64)
        self._rows = values.reshape(len(found), self._width)

    def __len__(self) -> int:
        return len(self._owners)

    def distances(self, rows: Matrix, author: str, tasks: Sequence[str]) -> Vector:
        """Return each row's Euclidean distance to the closest row kept of another task; infinite when there is none."""
        with self._lock:
            kept, owners = self._rows, list(self._owners)
        out = closest(rows, kept)
        known = set(owners)
        for number, task in enumerate(tasks):
            if (author, task) in known:
                others = np.array([owner != (author, task) for owner in owners], dtype=bool)
                out[number] = closest(rows[[number]], kept[others])[0]
        return out

    def add(self, rows: Matrix, author: str, tasks: Sequence[str]) -> None:
        """Keep rows (n x width); a row that is there already under its task changes nothing.

        Raises:
            StorageError: the disk refuses, or there are too many authors.
        """
        blobs = [row.astype("<f4").tobytes() for row in rows]
        values = [(author, task, blob) for task, blob in zip(tasks, blobs, strict=True)]
        with self._lock:
            authors = {owner for owner, _ in self._owners}
            if author not in authors and len(authors) >= MAX_AUTHORS:
                raise StorageError(f"the reviewer's memory knows {MAX_AUTHORS} authors, and takes no more")
            try:
                with self._database:
                    self._database.executemany(_KEEP, values)
                    self._database.execute(_FORGET, (author, self._limit))
                self._load()
            except sqlite3.Error as error:
                raise StorageError(f"the reviewer's memory cannot be written: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()
