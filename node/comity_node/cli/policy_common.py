"""What the commands about policies share."""

from __future__ import annotations

import argparse
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from comity_node.cli.commands import argument
from comity_node.cli.context import Context, extra

if TYPE_CHECKING:
    from comity_node.policy.engine import Policy

_AGO = re.compile(r"([1-9][0-9]{0,5})(m|h|d)")
_UNIT: Final = {"m": "minutes", "h": "hours", "d": "days"}
_MOST: Final = 2**53 - 1

POLICY = argument("--policy", type=Path, metavar="FILE", help="the policy (this node's)")
DATABASE = argument("--database", type=Path, metavar="FILE", help="a node's database (this node's)")


def policy_path(context: Context, arguments: argparse.Namespace) -> Path:
    """Return the policy that is meant: --policy, else that of the home."""
    path: Path | None = arguments.policy
    return path or context.config().policy


def todays_policy(context: Context, arguments: argparse.Namespace) -> Policy | None:
    """Return the policy of --policy or of the home; None without either, where only a database was named.

    Raises:
        ConfigError: it is wrong.
    """
    with extra("node"):
        from comity_node.policy import loader
    if arguments.policy is None and arguments.database is not None and not (context.home / "node.yaml").exists():
        return None
    return loader.load(policy_path(context, arguments))


@contextmanager
def opened(context: Context, path: Path | None) -> Iterator[sqlite3.Connection]:
    """Open a node's database to read it: `path`, else that of the home. A node may be running on it.

    Raises:
        StorageError: there is none, or it cannot be read.
    """
    with extra("node"):
        from comity_node.storage import connections
    file = path or context.config().database
    connection = connections.connect_readonly(file)
    try:
        connection.execute("BEGIN")  # one moment's log, however long it is read
        yield connection
    except sqlite3.Error as error:
        raise connections.storage_error(error, file.name) from error
    finally:
        connection.close()


def whole(text: str) -> int:
    """Read a whole number of at least 0 from the command line.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= _MOST):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 0")
    return int(text)


def moment(text: str) -> datetime | timedelta:
    """Read a moment from the command line: `7d`, `12h`, `30m` ago, a day (UTC) or an ISO 8601 time.

    Raises:
        argparse.ArgumentTypeError: it is none of these.
    """
    if match := _AGO.fullmatch(text):
        return timedelta(**{_UNIT[match[2]]: int(match[1])})
    try:
        read = datetime.fromisoformat(text)
    except ValueError as error:
        message = f"{text!r} is no moment: write 7d, 12h or 30m (ago), 2026-01-31, or 2026-01-31T08:00:00Z"
        raise argparse.ArgumentTypeError(message) from error
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def since_ms(context: Context, since: datetime | timedelta | None) -> int:
    """Return a moment of the command line in milliseconds since 1970 (0 if none was named)."""
    if since is None:
        return 0
    if isinstance(since, timedelta):
        return max(0, context.now_ms - int(since.total_seconds() * 1000))
    return max(0, int(since.timestamp() * 1000))
