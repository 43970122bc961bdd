"""The way of a command to its running node."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from comity.client import Client, Tls
from comity_node.cli.commands import Argument, argument
from comity_node.cli.context import CONTROL_VARIABLE, Context

#: Arguments of every command that talks to the node.
CONTROL: tuple[Argument, ...] = (
    argument(
        "--control", metavar="ADDRESS", help=f"the node's control address (else {CONTROL_VARIABLE}, else node.yaml)"
    ),
    argument(
        "--tls",
        nargs=3,
        type=Path,
        metavar=("KEY", "CERTIFICATE", "CA"),
        help="files for mutual TLS, for a TCP address",
    ),
    argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="how long a call may take (%(default)s)"),
)


@contextmanager
def connected(context: Context, arguments: argparse.Namespace) -> Iterator[Client]:
    """Open a client to the node of --control, of COMITY_CONTROL, or of the home's node.yaml.

    Raises:
        ConfigError: none of them says where the node is.
        ControlError: a TLS file is unreadable; whether the node answers shows at the first call.
    """
    address = arguments.control or os.environ.get(CONTROL_VARIABLE) or context.config().control.address
    tls = None if arguments.tls is None else Tls(*arguments.tls)
    with Client(address, tls=tls, timeout_s=arguments.timeout) as client:
        yield client
