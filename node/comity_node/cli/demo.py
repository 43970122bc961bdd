"""`comity demo`: five organizations on this machine, the whole way."""

from __future__ import annotations

import argparse
from pathlib import Path

from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, UsageError, require

_PACKAGES = ("trio", "libp2p", "yaml", "numpy", "onnxruntime", "sklearn", "flwr", "rich")


def _run(context: Context, arguments: argparse.Namespace) -> int:
    if (arguments.data is None) != (arguments.label is None):
        raise UsageError("--data and --label belong together (see: comity demo --help)")
    require("demo", _PACKAGES)
    from comity_node.demo.run import DemoOptions, run

    options = DemoOptions(
        out=arguments.out,
        data=arguments.data,
        label=arguments.label or "",
        seeds=arguments.seeds,
        keep=arguments.keep,
        plain=arguments.plain or context.json,
    )
    return int(run(options))


def positive(text: str) -> int:
    """Read a number of at least 1 from the command line.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 1000")
    return int(text)


COMMAND = Command(
    "demo",
    "start five organizations on this machine and let them work together, one of them badly",
    _run,
    (
        argument(
            "--out", type=Path, default=Path("demo-out"), metavar="DIR", help="where the report goes (%(default)s)"
        ),
        argument("--data", type=Path, metavar="FILE", help="a CSV or Parquet file instead of the Wisconsin data"),
        argument("--label", metavar="COLUMN", help="the column of --data that holds the two classes"),
        argument("--seeds", type=positive, default=5, help="of the ablation (%(default)s)"),
        argument("--keep", action="store_true", help="leave the organizations running and say how to talk to them"),
        argument("--plain", action="store_true", help="plain lines instead of a live display"),
    ),
)
