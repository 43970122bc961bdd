"""The versions of a node's database that this build can open, and how one comes to the last of them.

The tables are in `comity_node.storage.tables`.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from comity.errors import StorageError
from comity_node.storage.tables import audit, enforcement, holdings, passing, reviewing, work

#: `PRAGMA application_id`: "cmty" in ASCII.
APPLICATION_ID: Final = 0x636D7479
#: `PRAGMA user_version` of the tables.
SCHEMA_VERSION: Final = 6
#: STRICT tables came with 3.37, JSON functions in every build with 3.38.
MIN_SQLITE: Final = (3, 38, 0)

#: What each version added. A database of an older version than the first cannot be read.
ADDED: Final = {
    2: work.META + work.WORK + work.MESSAGES + enforcement.COUNTERS + holdings.RECORDS + audit.AUDIT,
    3: holdings.BULK + enforcement.REVOCATIONS,
    4: enforcement.POLICIES + enforcement.ENFORCEMENT + audit.WITNESSES + work.NEGOTIATIONS,
    5: passing.PASSING + reviewing.REVIEWING,
    6: passing.IN_ORDER,
}


def check_library() -> None:
    """Refuse a SQLite that is too old for the tables.

    Raises:
        StorageError: the SQLite library that Python was built with is older than 3.38.
    """
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        wanted = ".".join(map(str, MIN_SQLITE))
        raise StorageError(
            f"SQLite {sqlite3.sqlite_version} is too old; use a Python that is built with SQLite {wanted} or newer"
        )


def prepare(connection: sqlite3.Connection, name: str) -> None:
    """Create the tables in an empty database, or check that they are those of this build or can be brought there.

    What an older version lacks is added, in one transaction; no row that is there is lost or changed.

    Args:
        connection: a connection in autocommit mode that may write.
        name: the file's name, for the message.

    Raises:
        StorageError: the file belongs to another application or has another schema version.
        sqlite3.Error: the database cannot be read or written.
    """
    if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] > 0:
        check_version(connection, name)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    else:
        version = 0
    if version == SCHEMA_VERSION:
        return
    tables = "".join(added for since, added in ADDED.items() if since > version)
    # executescript ends an open transaction, so the script brings its own; DDL is transactional in SQLite.
    connection.executescript(
        f"BEGIN IMMEDIATE; {tables} PRAGMA application_id = {APPLICATION_ID};"
        f" PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )


def check_version(connection: sqlite3.Connection, name: str) -> None:
    """Check that a database holds the tables that this build knows, or those of a version that it can bring up to date.

    Raises:
        StorageError: the file belongs to another application or has another schema version.
        sqlite3.Error: the file is no database or cannot be read.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise StorageError(f"{name} is a database of another application; give the node a path of its own")
    if version not in ADDED:
        raise StorageError(
            f"{name} has schema version {version} and this build knows {SCHEMA_VERSION}; "
            "run the version of comity that wrote it"
        )
