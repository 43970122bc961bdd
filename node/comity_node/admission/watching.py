"""The decisions of a running node, as they are made.

A watcher reads the audit log behind the gate: the gate does not know of it and never waits for it. The log is the
buffer, so nothing is held in memory but one page; a watcher that is more than `behind` entries late skips to the end
and is told how many it has missed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from comity.errors import Busy
from comity_node.admission.archive import DECISION
from comity_node.storage import audit
from comity_node.storage.audit import StoredEntry
from comity_node.storage.database import Database
from comity_node.storage.shapes import get_shape

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD: Final = "SELECT coalesce(max(position), -1) + 1 FROM audit_entries"


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """What watchers may cost.

    Attributes:
        watchers: at a time; one more is refused.
        behind: entries of the log that a watcher may be late.
        page: entries that are read at a time.
        pause_s: seconds between two looks at the log.
        quiet_s: seconds after which a watcher that has nothing to tell says so, to show that it is there.
    """

    watchers: int = 8
    behind: int = 10_000
    page: int = 200
    pause_s: float = 0.25
    quiet_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which decisions a watcher asks for; empty: of any action, with any organization.

    Attributes:
        action: of the policy language.
        organization: the other side.
        denied: denials alone.
    """

    action: str = ""
    organization: str = ""
    denied: bool = False

    def takes(self, stored: StoredEntry) -> bool:
        """Whether this entry is one of them."""
        entry = stored.entry
        return (
            entry.kind == DECISION
            and self.action in ("", entry.action)
            and self.organization in ("", entry.peer)
            and not (self.denied and entry.decision == "allow")
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """A decision that was just made, and the bytes of its request (canonical JSON; empty if they were not kept)."""

    entry: StoredEntry
    request: bytes


@dataclass(frozen=True, slots=True)
class Sight:
    """What a watcher is told at a time: decisions, and how many entries of the log it has missed before them."""

    decisions: tuple[Seen, ...] = ()
    dropped: int = 0


@dataclass(slots=True)
class Watching:
    """Lets the node's own organization watch."""

    database: Database
    limits: WatchLimits = field(default_factory=WatchLimits)
    _open: int = 0

    async def follow(self, wanted: Wanted) -> AsyncGenerator[Sight, None]:
        """Yield what is decided from now on, until the caller goes away; first, and when it is quiet, an empty sight.

        Raises:
            Busy: as many watch already as may.
            AuditBroken: an entry is not what the log writes.
            StorageError: the database cannot be read.
        """
        with self._place():
            at = await self.database.read(_size)
            yield Sight()
            said = trio.current_time()
            while True:
                at, sight, more = await self.database.read(lambda c: _next(c, at, wanted, self.limits))  # noqa: B023
                if sight.decisions or sight.dropped or trio.current_time() - said >= self.limits.quiet_s:
                    yield sight
                    said = trio.current_time()
                if not more:
                    await trio.sleep(self.limits.pause_s)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._open >= self.limits.watchers:
            raise Busy(f"{self._open} watch already; end one of them")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


def _size(connection: sqlite3.Connection) -> int:
    return int(connection.execute(_HEAD).fetchone()[0])


def _next(connection: sqlite3.Connection, at: int, wanted: Wanted, limits: WatchLimits) -> tuple[int, Sight, bool]:
    """Return where to go on, what there is to tell, and whether there is more already."""
    size = _size(connection)
    start = at if size - at <= limits.behind else size - limits.page
    page = audit.entries(connection, start=start, limit=limits.page) if start < size else []
    end = page[-1].index + 1 if page else start
    decisions = tuple(Seen(each, _request(connection, each)) for each in page if wanted.takes(each))
    return end, Sight(decisions, start - at), end < size


def _request(connection: sqlite3.Connection, stored: StoredEntry) -> bytes:
    named = stored.entry.detail.get("request")
    if not isinstance(named, str):
        return b""
    return get_shape(connection, bytes.fromhex(named)) or b""
