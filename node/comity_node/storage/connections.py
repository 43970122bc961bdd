"""Opening the database's file: rights, lock, settings, and what SQLite's errors mean."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from comity.errors import StorageError, StorageFull
from comity_node.storage import schema

_BUSY_TIMEOUT_MS: Final = 5000
#: The write-ahead log is cut back to this after a checkpoint.
_JOURNAL_BYTES: Final = 64 * 1024 * 1024
#: Pages of the log after which it is folded into the file (16 MiB): a page that changes often is written there once.
_FOLD_PAGES: Final = 4096
#: Memory for pages of the file, in KiB: tasks under way are read and changed at each hop, and SQLite's 2 MiB hold few.
_CACHE_KIB: Final = 32 * 1024

_ADVICE: Final = {
    sqlite3.SQLITE_READONLY: "it is read-only; check its owner and mode, and that the file system is mounted writable",
    sqlite3.SQLITE_CORRUPT: "it is corrupt; stop the node, keep the file, and restore a backup",
    sqlite3.SQLITE_NOTADB: "it is no SQLite database; give the node a path of its own",
    sqlite3.SQLITE_BUSY: "another program holds it; close whatever else has it open",
    sqlite3.SQLITE_LOCKED: "another program holds it; close whatever else has it open",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check that its directory exists and belongs to the node",
    sqlite3.SQLITE_IOERR: "the disk gave an error; check the system's log and the disk",
}


def storage_error(error: sqlite3.Error, name: str) -> StorageError:
    """Turn an error of SQLite into one of ours that says what to do."""
    # The low byte is the primary result code (https://www.sqlite.org/rescode.html).
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"{name}: the disk is full")
    advice = _ADVICE.get(code)
    return StorageError(f"{name}: {advice} [{error}]" if advice else f"{name}: {error}")


def connect_readonly(path: Path) -> sqlite3.Connection:
    """Open a node's database to read it, also while a node runs on it, also from a read-only medium.

    Raises:
        StorageError: there is no such file, or it is not a database that this build knows.
    """
    if not path.is_file():
        raise StorageError(f"there is no database at {path}")
    try:
        connection = _connect_uri(path, "mode=ro")
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            schema.check_version(connection, path.name)
        except sqlite3.OperationalError as error:
            connection.close()
            if (error.sqlite_errorcode & 0xFF) != sqlite3.SQLITE_CANTOPEN or _has_wal(path):
                raise
            # A read-only directory has no room for the shared-memory index; without a log none is needed.
            connection = _connect_uri(path, "mode=ro&immutable=1")
            schema.check_version(connection, path.name)
        except BaseException:  # nobody else has the connection yet; raised again
            connection.close()
            raise
    except sqlite3.Error as error:
        raise storage_error(error, path.name) from error
    return connection


def _connect_uri(path: Path, options: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path.resolve()))}?{options}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=_BUSY_TIMEOUT_MS / 1000,
    )


def _has_wal(path: Path) -> bool:
    wal = path.with_name(path.name + "-wal")
    return wal.exists() and wal.stat().st_size > 0


def create(path: Path) -> None:
    """Create the file with mode 0600, durably, or take the rights of others away from an existing one.

    Raises:
        StorageError: it cannot be created.
    """
    try:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise StorageError(f"cannot create {path}: {error.strerror}; check the directory's owner and mode") from error


def lock(path: Path) -> int:
    """Take the lock file beside the database and return the descriptor that holds it.

    Raises:
        StorageError: another process, or another `Database` of this one, holds it.
    """
    name = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"cannot create {name}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise StorageError(f"{path} is in use by another node; stop it, or give this one its own path") from error
        raise StorageError(f"cannot lock {name}: {error.strerror}") from error
    return descriptor


def connect_writer(path: Path, max_bytes: int | None) -> sqlite3.Connection:
    """Open the database for its one writer: set it up, create or check the tables, check the pages.

    Args:
        path: the file; it exists.
        max_bytes: what it may grow to; None is as large as the disk.

    Raises:
        StorageError: it is corrupt, of another application or version, or cannot be opened.
    """
    schema.check_library()
    try:
        writer = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=_BUSY_TIMEOUT_MS / 1000, cached_statements=512
        )
        try:
            _configure(writer, path.name, max_bytes)
        except BaseException:  # nobody else has the connection yet; raised again
            writer.close()
            raise
    except sqlite3.Error as error:
        raise storage_error(error, path.name) from error
    return writer


def _configure(writer: sqlite3.Connection, name: str, max_bytes: int | None) -> None:
    mode = writer.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StorageError(f"{name} is on a file system without shared memory ({mode}); put it on a local disk")
    for pragma in (
        "synchronous = FULL",
        "foreign_keys = ON",
        "trusted_schema = OFF",
        "cell_size_check = ON",
        "secure_delete = ON",
        "temp_store = MEMORY",
        f"cache_size = -{_CACHE_KIB}",
        f"wal_autocheckpoint = {_FOLD_PAGES}",
        f"journal_size_limit = {_JOURNAL_BYTES}",
    ):
        writer.execute(f"PRAGMA {pragma}")
    schema.prepare(writer, name)
    problem = writer.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise StorageError(f"{name} is corrupt ({problem}); keep the file and restore a backup")
    if max_bytes is not None:
        page = writer.execute("PRAGMA page_size").fetchone()[0]
        writer.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page)}")
