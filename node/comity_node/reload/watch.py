"""Files that change while a node runs: noticed by what the file system says of them, and read whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

T = TypeVar("T")

#: Modification time (ns), size and inode of each file; None for one that cannot be looked at.
Stamp: TypeAlias = "tuple[tuple[str, tuple[int, int, int] | None], ...]"
_TRIES = 3


def stamp(files: Sequence[Path]) -> Stamp:
    """Return what the file system says of some files now; it blocks, so call it in a thread."""
    return tuple((str(path), _look(path)) for path in files)


def read_stable(files: Callable[[], Sequence[Path]], read: Callable[[], T]) -> tuple[Stamp, T] | None:
    """Read files that did not change meanwhile; what is decided on is what was read.

    Args:
        files: which; asked before and after, since what is read may name further ones.
        read: reads each of them once.

    Returns:
        Their stamp and what was read; None if somebody is writing: look again later.
    """
    for _ in range(_TRIES):
        before = dict(stamp(files()))
        value = read()
        after = stamp(files())
        if all(path not in before or before[path] == look for path, look in after):
            return after, value
    return None


def _look(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
