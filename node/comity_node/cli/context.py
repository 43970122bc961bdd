"""What every command gets: where its home is, how it answers, and how it fails."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comity.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from comity_node.config import NodeConfig

CONTROL_VARIABLE = "COMITY_CONTROL"
HOME_VARIABLE = "COMITY_HOME"


class UsageError(ConfigError):
    """The command line asks for something that cannot be; exit code 2."""

    code = "usage"


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn the lack of a third-party package into the name of the extra that brings it.

    Raises:
        MissingExtra: an import inside the block failed for want of a package that is not ours.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "comity", "comity_node"):
            raise
        raise MissingExtra(name, package) from error


def require(name: str, packages: Sequence[str]) -> None:
    """Ask for an extra before the work begins.

    Raises:
        MissingExtra: one of its packages (top-level module names) is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(name, package)


@dataclass(frozen=True, slots=True)
class Context:
    """The command's surroundings.

    Attributes:
        home: the node's directory (`--home`, else COMITY_HOME, else the current one).
        json: answer with one JSON value on standard output.
        now_ms: milliseconds since the epoch when the command started.
    """

    home: Path
    json: bool
    now_ms: int

    @property
    def now(self) -> datetime:
        """When the command started, in UTC."""
        return datetime.fromtimestamp(self.now_ms / 1000, UTC)

    def config(self) -> NodeConfig:
        """Read the home's `node.yaml`.

        Raises:
            ConfigError: there is none (with how to make one), or it is wrong.
        """
        with extra("node"):
            from comity_node import config
        path = self.home / config.FILE_NAME
        if not path.exists():
            raise ConfigError(
                f"{self.home} is no node's home: it has no {config.FILE_NAME}; make one with `comity init`, "
                f"or name it with --home or {HOME_VARIABLE}"
            )
        return config.load(path)

    def emit(self, value: object, text: str) -> None:
        """Answer: `value` as JSON with --json, else `text`."""
        self.print(json.dumps(value, indent=2, ensure_ascii=False, default=str) if self.json else text)

    def print(self, line: str) -> None:
        """Write a line to standard output at once, so that a reader in a pipe sees it."""
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def refuse(self, reason: str) -> int:
        """Say that what was asked about does not hold, after the answer that says why; returns the exit code."""
        sys.stderr.write(f"error: {printable(reason)}\n")
        return 1


def table(rows: Sequence[Sequence[object]], headings: Sequence[str]) -> str:
    """Return rows as aligned columns under headings; `(none)` without rows."""
    if not rows:
        return "(none)"
    cells = [[str(heading) for heading in headings], *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def fields(values: Mapping[str, object]) -> str:
    """Return names and values, one pair a line, aligned."""
    width = max((len(name) for name in values), default=0)
    return "\n".join(f"{name.ljust(width)}  {printable(str(value))}".rstrip() for name, value in values.items())


def printable(text: str) -> str:
    """Return text that cannot steer a terminal: control characters are written out (it may come from a peer)."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def size(count: int) -> str:
    """Return a number of bytes for people, in powers of a thousand."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def timestamp(milliseconds: int) -> str:
    """Return milliseconds since the epoch as UTC, to the second."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def moment(milliseconds: int) -> str:
    """Return milliseconds since the epoch as UTC, to the millisecond."""
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%S}.{milliseconds % 1000:03}"


def read_bytes(path: Path, what: str, *, limit: int = 4 << 20) -> bytes:
    """Return a file's bytes, at most `limit`.

    Raises:
        ConfigError: it cannot be read or is larger; the message says `what` it should have been.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {what}: {error.strerror}", file=str(path)) from error
    if len(data) > limit:
        raise ConfigError(f"{what} is larger than {limit} bytes", file=str(path))
    return data


def write_new(path: Path, data: bytes, *, force: bool = False, mode: int = 0o644) -> None:
    """Write a file that must not be there yet (or, with `force`, replace it in one step).

    Raises:
        ConfigError: it is there already, or cannot be written.
    """
    if path.exists() and not force:
        raise ConfigError("there is one already; --force replaces it", file=str(path))
    scratch = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", file=str(path)) from error


def as_json(text: bytes | str, what: str) -> Any:  # noqa: ANN401  (any JSON value)
    """Parse JSON.

    Raises:
        ConfigError: it is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} is not JSON: {error}") from error
