"""Looks at the files that a node was started from, and takes in what has changed: all of a file, or nothing.

A change is noticed within `_EVERY_S` and taken in once the file has stayed as it is for as long again, so that one that
is being written is not read in the middle; SIGHUP and `comity node reload` do not wait for that. What is wrong is
refused: the log, the audit log and the node's status say why, and what was in force stays in force.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import trio

from comity.errors import ComityError
from comity.trust import NodeIdentity, TrustStore
from comity_node.reload import expiry
from comity_node.reload.sources import Found, Source
from comity_node.reload.watch import Stamp, read_stable, stamp
from comity_node.storage import audit
from comity_node.storage.database import Database

if TYPE_CHECKING:
    from trio_typing import TaskStatus as _TaskStatus

TaskStatus: TypeAlias = "_TaskStatus[None]"

log = logging.getLogger(__name__)

#: Between two looks at the files.
_EVERY_S: Final = 1.5
#: What was refused may be good later although the files are the same: a certificate that is not valid yet.
_AGAIN_S: Final = 60.0
_RENEW: Final = "renew it with `comity cert request`, `approve` and `install`"
_NEXT_EPOCH: Final = "have the next epoch signed, and install it with `comity consortium install`"


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a look at the files: a line for each that was taken in, and for each that was refused."""

    changed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class _Round:
    """A look at the files that somebody may wait for."""

    over: trio.Event = field(default_factory=trio.Event)
    report: Report = Report()


@dataclass(slots=True, eq=False)
class _Watched:
    """A source, and what is known of its files.

    Attributes:
        source: what is read.
        seen: how the files were when they were taken in or refused last.
        changing: how they were at the last look, if they had changed by then.
        refused: why what they hold is not in force; "" if it is.
        noted: the content whose refusal the audit log has last.
        again_at: when what was refused is read again, by trio's clock.
    """

    source: Source[Any]
    seen: Stamp = ()
    changing: Stamp = ()
    refused: str = ""
    noted: bytes = b""
    again_at: float = float("inf")


class Reloader:
    """Takes in changed files of one running node."""

    def __init__(
        self, sources: Sequence[Source[Any]], *, identity: NodeIdentity, trust: TrustStore, database: Database,
        now_ms: Callable[[], int], halt: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Watch `sources`, in the order in which they are taken in.

        Args:
            sources: what is watched.
            identity: whose certificate may expire.
            trust: whose bundle may expire.
            database: the audit log.
            now_ms: milliseconds since the Unix epoch.
            halt: told why nothing may be signed, and "" when it may.
        """
        self._watched = [_Watched(source) for source in sources]
        self._identity, self._trust, self._database = identity, trust, database
        self._now_ms, self._halt = now_ms, halt
        self._reminders = expiry.Reminders()
        self._wanted = trio.Event()
        self._next = _Round()

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Look at the files now and then, and whenever somebody asks, until cancelled."""
        self._look_at_ends()
        task_status.started()
        while True:
            with trio.move_on_after(_EVERY_S):
                await self._wanted.wait()
            asked, self._wanted = self._wanted.is_set(), trio.Event()
            round_, self._next = self._next, _Round()
            round_.report = await self._look(asked=asked)
            self._look_at_ends()
            round_.over.set()

    def ask(self) -> None:
        """Have the files looked at now, as on SIGHUP."""
        self._wanted.set()

    async def reload(self) -> Report:
        """Look at all files now, changed or not, and return what became of it."""
        round_ = self._next
        self._wanted.set()
        await round_.over.wait()
        return round_.report

    def warnings(self) -> list[str]:
        """Return what somebody should see to: what was refused, and what is about to expire."""
        now_ms = self._now_ms()
        ends = [expiry.warning(what, advice, until_ms, now_ms) for what, advice, until_ms in self._ends()]
        return [line for line in (*(each.refused for each in self._watched), *ends) if line]

    # -- files -----------------------------------------------------------------------------------------------------

    async def _look(self, *, asked: bool) -> Report:
        changed = [line for each in self._watched if (line := await self._look_at(each, asked=asked))]
        if changed:  # what did not fit what was in force may fit what is now
            again = [each for each in self._watched if each.refused]
            changed += [line for each in again if (line := await self._look_at(each, asked=True))]
        return Report(tuple(changed), tuple(each.refused for each in self._watched if each.refused))

    async def _look_at(self, each: _Watched, *, asked: bool) -> str:
        """Take in what has changed; returns it in one line."""
        now = await trio.to_thread.run_sync(stamp, each.source.files())
        asked = asked or trio.current_time() >= each.again_at
        if not asked and now == each.seen:
            each.changing = ()
            return ""
        if not asked and now != each.changing:  # it may be half written: not before it has stayed so for a while
            each.changing = now
            return ""
        read = await trio.to_thread.run_sync(read_stable, each.source.files, each.source.read)
        if read is None:
            if asked:
                each.refused = f"{each.source.name}: its files change all the time; not taken in yet"
            return ""
        was = each.refused
        each.seen, found = read
        try:
            line = await self._take(each, found)
        except ComityError as error:  # of what was read, or of the disk: then it is looked at again
            kept = "; the one before stays in force" if found.error is error else ""
            each.refused = f"{each.source.name} refused: {error.diagnostics()}{kept}"
            each.seen = each.seen if found.error is error else ()
            each.again_at = trio.current_time() + _AGAIN_S
            if each.refused != was:
                log.error("%s", each.refused)  # noqa: TRY400  (no bug, so no traceback)
            return ""
        each.refused, each.noted, each.again_at = "", b"", float("inf")
        if line:
            log.info("taken in: %s", line)
        elif was:
            log.info("the %s is in order again, and the one in force", each.source.name)
        return line

    async def _take(self, each: _Watched, found: Found[Any]) -> str:
        if found.error is None:
            return await each.source.take(found.value)
        if found.content != each.noted:
            entry = audit.AuditEntry(
                kind="effect",
                action=f"{each.source.name}.refused",
                decision="deny",
                subject=found.content,
                detail={"reason": str(found.error)[:1000]},
            )
            now_ms = self._now_ms()
            await self._database.transact(lambda c: audit.append(c, entry, now_ms))
            each.noted = found.content
        raise found.error

    # -- what expires ----------------------------------------------------------------------------------------------

    def _ends(self) -> list[tuple[str, str, int]]:
        bundle = self._trust.bundle
        return [
            ("this node's certificate", _RENEW, self._identity.valid_ms[1]),
            (f"the trust bundle of epoch {bundle.epoch}", _NEXT_EPOCH, bundle.expires_ms),
        ]

    def _look_at_ends(self) -> None:
        now_ms = self._now_ms()
        for what, advice, until_ms in self._ends():
            if self._reminders.is_due(what, until_ms, now_ms):
                log.warning("%s", expiry.warning(what, advice, until_ms, now_ms))
        what, advice, until_ms = self._ends()[0]
        self._halt(expiry.warning(what, advice, until_ms, now_ms) if now_ms > until_ms else "")
