"""How a command describes itself: a name, a line of help, its arguments, and the function that runs it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from comity_node.cli.context import HOME_VARIABLE, Context

Run = Callable[[Context, argparse.Namespace], int | None]
Subparsers = Any  # argparse._SubParsersAction[argparse.ArgumentParser], which argparse keeps private


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument, as `ArgumentParser.add_argument` takes it."""

    names: tuple[str, ...]
    options: dict[str, Any]


def argument(*names: str, **options: Any) -> Argument:  # noqa: ANN401  (argparse's own options)
    """Describe an argument."""
    return Argument(names, options)


@dataclass(frozen=True, slots=True)
class Command:
    """A command: either it runs, or it has commands below it."""

    name: str
    help: str
    run: Run | None = None
    arguments: Sequence[Argument] = ()
    commands: Sequence[Command] = ()
    description: str = ""

    def add_to(self, parsers: Subparsers) -> None:
        """Make this command's parser below `parsers`."""
        parser = parsers.add_parser(self.name, help=self.help, description=self.description or _sentence(self.help))
        add_common(parser, root=False)
        for each in self.arguments:
            parser.add_argument(*each.names, **each.options)
        if self.commands:
            below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=type(parser))
            for command in self.commands:
                command.add_to(below)
        if self.run:
            parser.set_defaults(run=self.run)


def add_common(parser: argparse.ArgumentParser, *, root: bool) -> None:
    """Add --home and --json, which may stand before or after the command."""
    suppress = argparse.SUPPRESS
    parser.add_argument(
        "--home",
        metavar="DIR",
        default=None if root else suppress,
        help=f"the node's home (else {HOME_VARIABLE}, else here)",
    )
    parser.add_argument("--json", action="store_true", default=False if root else suppress, help="answer in JSON")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
