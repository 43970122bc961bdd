"""`comity worker`: serve an agent to the own organization's node, in one process or several."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import asdict

from comity.worker import command
from comity_node.cli.commands import Argument, Command
from comity_node.cli.context import CONTROL_VARIABLE, Context, UsageError


def _worker(context: Context, arguments: argparse.Namespace) -> int:
    if wrong := command.wrong_usage(arguments):
        raise UsageError(wrong)
    arguments.control = arguments.control or os.environ.get(CONTROL_VARIABLE) or context.config().control.address
    sys.path.insert(0, os.getcwd())  # as `python -m` has it: agents are found where one stands
    arguments.processes = arguments.processes or 1
    logging.basicConfig(level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    kept = command.keep_processes(arguments)
    context.emit(asdict(kept), str(kept))
    return 1 if kept.work.unfinished or kept.killed else 0


COMMAND = Command(
    "worker",
    "serve an agent to your node",
    _worker,
    arguments=[Argument(names, options) for names, options in command.ARGUMENTS if names != ("--supervised",)],
    description="Serve an agent to your organization's node until SIGTERM or Ctrl-C, which let it finish what it holds "
    "(twice: at once). --processes N keeps N processes up and replaces one that dies; without it there is one. "
    "`python -m comity.worker` takes the same arguments and needs no more than `pip install comity`.",
)
