"""The command line of workers: `python -m comity.worker`, and the same arguments for `comity worker`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comity._control.channel import ENVIRONMENT, Tls
from comity.errors import ComityError, ConfigError
from comity.worker.loading import load_agent
from comity.worker.processes import ProcessesReport, Supervised, serve_processes
from comity.worker.serving import serve, serve_until_told

_log = logging.getLogger("comity.worker")

#: As `ArgumentParser.add_argument` takes them.
ARGUMENTS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("agent",), {"metavar": "MODULE:AGENT", "help": "module:agent or path/to/file.py:agent"}),
    (("--control",), {"metavar": "ADDRESS", "help": f"unix:/path/to/socket or host:port (default: ${ENVIRONMENT})"}),
    (("--processes",), {"type": int, "metavar": "N", "help": "keep N processes up, and replace one that dies"}),
    (
        ("--concurrency",),
        {"type": int, "metavar": "N", "help": "skills that run at a time in a process (default: the CPUs, shared out)"},
    ),
    (("--drain",), {"type": float, "default": 30.0, "metavar": "SECONDS", "help": "for work in hand (default: 30)"}),
    (("--tls-key",), {"type": Path, "metavar": "FILE", "help": "own private key (PEM), for a TCP address"}),
    (("--tls-certificate",), {"type": Path, "metavar": "FILE", "help": "own certificate chain (PEM)"}),
    (("--tls-ca",), {"type": Path, "metavar": "FILE", "help": "the CA (PEM) of the node's certificate"}),
    (("--log-level",), {"default": "info", "choices": ["debug", "info", "warning", "error"]}),
    (("--supervised",), {"type": int, "help": argparse.SUPPRESS}),
)


def wrong_usage(parsed: argparse.Namespace) -> str:
    """Return what is wrong with the arguments, or nothing."""
    files = (parsed.tls_key, parsed.tls_certificate, parsed.tls_ca)
    if any(files) and not all(files):
        return "--tls-key, --tls-certificate and --tls-ca belong together"
    for name in ("concurrency", "processes"):
        value = getattr(parsed, name)
        if value is not None and value < 1:
            return f"--{name} must be at least 1"
    if not 0 <= parsed.drain < float("inf"):
        return "--drain must be a number of seconds"
    return ""


def keep_processes(parsed: argparse.Namespace) -> ProcessesReport:
    """Do what `--processes` says, until a signal.

    Raises:
        ComityError: as `serve_processes`.
    """
    return serve_processes(
        parsed.agent,
        parsed.control,
        processes=parsed.processes,
        tls=_tls(parsed),
        concurrency=parsed.concurrency,
        drain_s=parsed.drain,
        log_level=parsed.log_level,
    )


def run(parsed: argparse.Namespace) -> int:
    """Serve as the arguments say, until a signal; one line of stderr says what was done. Returns the exit status."""
    process = "[%(process)d]" if parsed.supervised is not None else ""
    line = f"%(asctime)s %(levelname)s %(name)s{process}: %(message)s"
    logging.basicConfig(level=parsed.log_level.upper(), format=line)
    if parsed.supervised is not None:
        return _run_supervised(parsed, Supervised(parsed.supervised))
    if parsed.processes is not None:
        kept = keep_processes(parsed)
        print(kept, file=sys.stderr, flush=True)
        return 1 if kept.work.unfinished or kept.killed else 0
    agent = load_agent(parsed.agent)
    report = serve(agent, parsed.control, tls=_tls(parsed), concurrency=parsed.concurrency, drain_s=parsed.drain)
    return 1 if report.unfinished else 0


def _run_supervised(parsed: argparse.Namespace, supervised: Supervised) -> int:
    try:
        agent = load_agent(parsed.agent)
        report = serve_until_told(
            agent,
            parsed.control,
            tls=_tls(parsed),
            concurrency=parsed.concurrency,
            drain_s=parsed.drain,
            watch=supervised.watch,
        )
    except ComityError as error:
        _log.debug("", exc_info=error)
        supervised.fail(error.diagnostics())
        return 2 if isinstance(error, ConfigError) else 1
    supervised.report(agent.name, report)
    return 1 if report.unfinished else 0


def _tls(parsed: argparse.Namespace) -> Tls | None:
    return Tls(parsed.tls_key, parsed.tls_certificate, parsed.tls_ca) if parsed.tls_key else None


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m comity.worker`: serve an agent of a module or a file. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m comity.worker",
        description="Serve an agent to your organization's node, until SIGTERM or Ctrl-C (twice: at once).",
        epilog="example: python -m comity.worker my_agents.py:generator --control unix:/run/comity/mercy/control.sock",
    )
    for names, options in ARGUMENTS:
        parser.add_argument(*names, **options)
    parsed = parser.parse_args(arguments)
    if wrong := wrong_usage(parsed):
        parser.error(wrong)
    try:
        return run(parsed)
    except ConfigError as error:
        _log.debug("", exc_info=error)
        print(f"error: {error.diagnostics()}", file=sys.stderr)
        return 2
    except ComityError as error:
        print(f"error: {error.diagnostics()}", file=sys.stderr)
        return 1
