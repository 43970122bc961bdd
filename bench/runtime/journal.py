"""The cases of a grid that are done, a line each, so that a run that takes hours can be gone on with.

The repeats of a case are interleaved within the case, so it does not matter that another case ran at another time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

NAME: Final = "runtime-grid.jsonl"


class GridJournal:
    """A file of finished cases of one grid."""

    def __init__(self, out: Path, digest: str, arms: Sequence[str], *, resume: bool) -> None:
        """Begin a new file in `out` for a grid at some arms; go on with the one that is there if `resume` is set.

        Raises:
            ValueError: what is there to be gone on with is of another grid.
        """
        self._path = out / NAME
        self._done: dict[str, dict[str, Any]] = {}
        head = {"grid": digest, "arms": list(arms)}
        if resume and self._path.exists():
            self._read(head)
        else:
            out.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(head) + "\n", encoding="utf-8")

    def get(self, case: str) -> dict[str, Any] | None:
        """Return what is known of a case (`result.of_case`); None if it has not run."""
        return self._done.get(case)

    def add(self, found: Mapping[str, Any]) -> None:
        """Note that a case is done.

        Raises:
            ValueError: a figure is no number.
        """
        line = json.dumps(found, allow_nan=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _read(self, head: Mapping[str, Any]) -> None:
        text = self._path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a run that was killed may have left half a line
        first, *lines = whole.splitlines() or ["{}"]
        if json.loads(first) != head:
            raise ValueError(f"{self._path} is of another grid: run without --resume, or with the options it had")
        self._done = {found["case"]: found for found in map(json.loads, lines)}
        self._path.write_text(whole, encoding="utf-8")
