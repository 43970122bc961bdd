"""One SQLite file that holds everything a node must not forget.

Writes go through one writer with group commit: callables that were queued while a commit ran share the next
transaction, each in its own savepoint, so that one that raises is rolled back alone. A call returns when its effect is
on the disk (WAL, `synchronous=FULL`: https://www.sqlite.org/wal.html).

Invariants
  R1  `transact` returns only after the commit; what it returned survives `kill -9` and loss of power.
  R4  at most `queue_limit` callables wait; further callers wait for a place.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import trio

from comity.errors import StorageError
from comity_node.storage.connections import connect_readonly, connect_writer, create, lock, storage_error
from comity_node.storage.offload import Offload, in_thread, inline

__all__ = ["Database", "Offload", "in_thread", "inline", "open_database"]

T = TypeVar("T")

_QUEUE_LIMIT: Final = 256
_READERS: Final = 4


class _Job(Generic[T]):
    """A callable on its way through the writer."""

    __slots__ = ("error", "function", "result", "task")

    def __init__(self, function: Callable[[sqlite3.Connection], T], task: trio.lowlevel.Task) -> None:
        self.function = function
        self.task = task
        self.result: T | None = None
        self.error: BaseException | None = None


class _Fold:
    """Somebody who waits for the write-ahead log to be folded, and how it went."""

    __slots__ = ("done", "whole")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.whole = False


class Database:
    """The node's database: `transact` to change it, `read` to look."""

    def __init__(self, path: Path, writer: sqlite3.Connection, held: int, queue_limit: int, offload: Offload) -> None:
        """Use `Database.open`."""
        self.path = path
        self._writer = writer
        self._held = held
        self._offload = offload
        self._queue: deque[_Job[Any]] = deque()
        self._places = trio.Semaphore(queue_limit, max_value=queue_limit)
        self._work = trio.Event()
        self._reader_limit = trio.CapacityLimiter(_READERS)
        self._readers: list[sqlite3.Connection] = []
        self._readers_guard = threading.Lock()
        self._folds: list[_Fold] = []
        self._running = False
        self._closing = False
        self._closed = False

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        max_bytes: int | None = None,
        queue_limit: int = _QUEUE_LIMIT,
        offload: Offload = in_thread,
    ) -> Database:
        """Open the database at `path`, or create it with mode 0600.

        The file and its schema version are checked first. A lock file beside it (`<name>.lock`) keeps a second node
        away; the lock ends with the process.

        Args:
            path: the file; its directory must exist.
            max_bytes: what the file may grow to; None is as large as the disk. Over it `StorageFull` is raised.
            queue_limit: how many callables may wait for the writer.
            offload: how blocking work leaves the loop.

        Raises:
            StorageError: the file is in use, corrupt, of another application or version, or cannot be opened.
        """
        create(path)
        descriptor = lock(path)
        try:
            writer = connect_writer(path, max_bytes)
        except BaseException:  # nobody else has the descriptor yet; raised again
            os.close(descriptor)
            raise
        return cls(path, writer, descriptor, queue_limit, offload)

    async def transact(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` in a transaction and return its result once the commit is on the disk.

        `function` runs in the writer's thread and must not end the transaction itself. If it raises, its changes are
        rolled back and the error is raised here; other callables of the same transaction are not touched.

        A cancelled call that is still queued is taken back and has no effect. One that the writer has already taken is
        finished: the call then returns as if it had not been cancelled, and the cancellation is met at the caller's
        next checkpoint. So `trio.Cancelled` out of this call always means that nothing was changed.

        Raises:
            StorageFull: no room; nothing of `function` was applied.
            StorageError: the database cannot be written or is closed; nothing was applied.
        """
        await self._places.acquire()
        if self._closing:
            self._places.release()
            raise StorageError(f"{self.path.name} is closed")
        job = _Job(function, trio.lowlevel.current_task())
        self._queue.append(job)
        self._work.set()

        def withdraw(_: object) -> trio.lowlevel.Abort:
            try:
                self._queue.remove(job)
            except ValueError:
                return trio.lowlevel.Abort.FAILED
            self._places.release()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(withdraw)
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]  # set whenever there is no error

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` off the loop on a read-only connection, on one snapshot, and return its result.

        The snapshot holds everything whose `transact` returned before. `function` must bound what it reads.

        Raises:
            StorageError: the database cannot be read, `function` tried to write, or the database is closed.
        """
        return await self._offload(lambda: self._read(function), self._reader_limit)

    # Trio's types and the stubs of trio-typing, which libp2p brings along, name the type of task_status differently.
    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ANN401
        """Commit what is queued until `close` is called or the task is cancelled; then drain and close the file.

        Runs once, in a nursery that outlives whatever still writes at shutdown.
        """
        if self._running:
            raise StorageError(f"{self.path.name}: the writer runs once")
        task_status.started()
        if self._closed:
            return
        self._running = True
        try:
            while not self._closing or self._queue:
                if self._folds:
                    await self._fold_queued()
                elif self._queue:
                    await self._commit_queued()
                else:
                    self._work = trio.Event()
                    await self._work.wait()
        finally:
            self._closing = True
            with trio.CancelScope(shield=True):
                while self._queue:
                    await self._commit_queued()
                self._end_folds(False)
                await self._offload(self._close_files, None)

    async def fold(self) -> bool:
        """Fold the write-ahead log into the file and empty it, so that nothing deleted is left in it.

        Returns:
            Whether it is empty now: a reader that is looking at an older state keeps it from that, and so does the end
            of the node, which does it itself.

        Raises:
            StorageError: the database is closed.
        """
        if self._closing:
            raise StorageError(f"{self.path.name} is closed")
        fold = _Fold()
        self._folds.append(fold)
        self._work.set()
        await fold.done.wait()
        return fold.whole

    async def _fold_queued(self) -> None:
        whole = False
        try:
            with trio.CancelScope(shield=True):
                whole = await self._offload(self._fold, None)
        finally:
            self._end_folds(whole)

    def _end_folds(self, whole: bool) -> None:
        for fold in self._folds:
            fold.whole = whole
            fold.done.set()
        self._folds.clear()

    def _fold(self) -> bool:
        """Run a checkpoint that waits for nobody (https://www.sqlite.org/pragma.html#pragma_wal_checkpoint)."""
        try:
            wait_ms = self._writer.execute("PRAGMA busy_timeout").fetchone()[0]
            self._writer.execute("PRAGMA busy_timeout = 0")
            try:
                busy: int = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                self._writer.execute(f"PRAGMA busy_timeout = {wait_ms}")
        except sqlite3.Error:  # the disk may be full: the log stays as it is, and the next one tries again
            return False
        return busy == 0

    @property
    def queued(self) -> int:
        """How many callables wait for the writer."""
        return len(self._queue)

    def close(self) -> None:
        """Take no more work. A running writer drains its queue and ends.

        Without one the file is closed here, and what waits for it is refused.
        """
        self._closing = True
        self._work.set()
        if self._running:
            return
        refused = list(self._queue)
        self._queue.clear()
        self._end_folds(False)
        _fail(refused, StorageError(f"{self.path.name} is closed"))
        for job in refused:
            self._places.release()
            trio.lowlevel.reschedule(job.task)
        self._close_files()

    async def _commit_queued(self) -> None:
        batch = list(self._queue)
        self._queue.clear()
        for _ in batch:
            self._places.release()
        waiting = [job.task for job in batch]

        def wake() -> None:
            while waiting:
                trio.lowlevel.reschedule(waiting.pop())

        try:
            with trio.CancelScope(shield=True):
                await self._offload(lambda: self._commit_or_fail(batch), None, wake)
        finally:
            if waiting:  # no thread could be started
                _fail(batch, StorageError(f"{self.path.name}: the writer stopped"))
                wake()

    def _commit_or_fail(self, batch: list[_Job[Any]]) -> None:
        try:
            self._commit(batch)
        except BaseException:  # those who wait are told, whatever it was; raised again
            _fail(batch, StorageError(f"{self.path.name}: the writer stopped"))
            raise

    def _commit(self, batch: list[_Job[Any]]) -> None:
        """Run `batch` in one transaction. Each job then has a result or an error.

        Statements are few on purpose: around each one the interpreter's lock is given away and waited for again.
        """
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            alone = len(batch) == 1
            run = self._run_alone if alone else self._run_beside_others
            for job in batch:
                run(job)
                if not self._writer.in_transaction:
                    # SQLite ends the whole transaction itself on some errors, a full disk among them.
                    lost = StorageError(f"{self.path.name}: the writer's transaction was ended by a callable")
                    return _fail(batch, job.error if isinstance(job.error, StorageError) else lost)
            if not alone or batch[0].error is None:
                self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            _fail(batch, storage_error(error, self.path.name))
        finally:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")

    def _run_beside_others(self, job: _Job[Any]) -> None:
        """Run a job in a savepoint: if it raises, it is rolled back alone."""
        self._writer.execute("SAVEPOINT job")
        self._run_alone(job)
        if not self._writer.in_transaction:
            return
        if job.error is not None:
            self._writer.execute("ROLLBACK TO job")
        self._writer.execute("RELEASE job")

    def _run_alone(self, job: _Job[Any]) -> None:
        """Run a job in what is already a transaction of its own: if it raises, that is rolled back."""
        try:
            job.result = job.function(self._writer)
        except sqlite3.Error as error:
            job.error = storage_error(error, self.path.name)
            job.error.__cause__ = error
        except Exception as error:  # noqa: BLE001  (whatever it is, it is raised to the job's caller)
            job.error = error

    def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        reader = self._take_reader()
        try:
            reader.execute("BEGIN")
            try:
                return function(reader)
            finally:
                reader.rollback()
        except sqlite3.Error as error:
            raise storage_error(error, self.path.name) from error
        finally:
            self._put_reader(reader)

    def _take_reader(self) -> sqlite3.Connection:
        with self._readers_guard:
            if self._closed:
                raise StorageError(f"{self.path.name} is closed")
            if self._readers:
                return self._readers.pop()
        return connect_readonly(self.path)

    def _put_reader(self, reader: sqlite3.Connection) -> None:
        with self._readers_guard:
            if not self._closed:
                self._readers.append(reader)
                return
        reader.close()

    def _close_files(self) -> None:
        with self._readers_guard:
            if self._closed:
                return
            self._closed = True
            for reader in self._readers:
                reader.close()
            self._readers.clear()
        # The last connection that closes folds the write-ahead log into the file; it stays if it cannot.
        self._writer.close()
        os.close(self._held)


@asynccontextmanager
async def open_database(path: Path, **options: Any) -> AsyncGenerator[Database]:  # noqa: ANN401  (those of open)
    """Open a database with its writer running; when the block ends, drain and close it.

    A cancellation from outside does not reach the writer: the block itself may still, shielded, write its last words.

    Args:
        path: the file.
        options: those of `Database.open`.

    Raises:
        StorageError: as `Database.open`.
    """
    database = Database.open(path, **options)

    async def run() -> None:
        with trio.CancelScope(shield=True):
            await database.run()

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        try:
            yield database
        except Exception as error:  # noqa: BLE001  (raised below, where the nursery does not wrap it in a group)
            failure = error
        finally:
            database.close()
    if failure is not None:
        raise failure


def _fail(batch: list[_Job[Any]], error: StorageError) -> None:
    """Give every job that has no error of its own a copy of `error`: each is raised in a task of its own."""
    for job in batch:
        job.error = job.error or type(error)(str(error))
