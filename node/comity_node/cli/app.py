"""The registry of commands, and the one place where errors become a line and an exit code.

Exit codes: 0 done; 1 an error or a check that does not hold; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import comity
from comity.errors import ComityError
from comity_node.cli import (
    agreement,
    approvals,
    audit,
    bulk,
    certificates,
    consortium,
    demo,
    doctor,
    initialize,
    network,
    policy,
    records,
    tasks,
    top,
    worker,
    workflow,
)
from comity_node.cli.commands import Command, add_common
from comity_node.cli.context import HOME_VARIABLE, Context, UsageError, printable

_COMMANDS: tuple[Command, ...] = (
    initialize.COMMAND,
    certificates.COMMAND,
    consortium.COMMAND,
    network.NODE,
    network.PEERS,
    network.AGENTS,
    worker.COMMAND,
    workflow.COMMAND,
    tasks.COMMAND,
    top.COMMAND,
    agreement.COMMAND,
    records.COMMAND,
    bulk.COMMAND,
    policy.COMMAND,
    approvals.COMMAND,
    audit.COMMAND,
    doctor.COMMAND,
    demo.COMMAND,
)


class _Parser(argparse.ArgumentParser):
    """A parser that complains in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see: {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="comity",
        description="Run an organization's node, join a consortium, and prove where records came from.",
        epilog="`comity COMMAND --help` says more. Every command takes --json.",
    )
    parser.add_argument("--version", action="version", version=f"comity {comity.__version__}")
    add_common(parser, root=True)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    for command in _COMMANDS:
        command.add_to(commands)
    return parser


def now_ms() -> int:
    """Return the wall clock in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    as_json = "--json" in (sys.argv[1:] if arguments is None else arguments)
    try:
        parsed = build_parser().parse_args(arguments)
        home = Path(parsed.home or os.environ.get(HOME_VARIABLE) or ".").absolute()
        context = Context(home=home, json=parsed.json, now_ms=now_ms())
        return int(parsed.run(context, parsed) or 0)
    except UsageError as error:
        return _fail(error, as_json, exit_code=2)
    except ComityError as error:
        return _fail(error, as_json)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:  # the reader of our output went away: that is its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(ComityError(f"{place}{error.strerror or error}"), as_json)


def _fail(error: ComityError, as_json: bool, exit_code: int = 1) -> int:
    if as_json:
        body = {"code": error.code, "message": str(error), "advice": error.advice}
        sys.stdout.write(json.dumps({"error": body}, ensure_ascii=False) + "\n")
    sys.stderr.write(f"error: {printable(error.diagnostics())}\n")
    return exit_code
