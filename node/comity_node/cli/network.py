"""`comity node`, `comity peers`, `comity agents`: run the node, and see whom it is linked to."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from comity_node import telemetry
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, extra, fields, printable, size, table, timestamp
from comity_node.cli.node_client import CONTROL, connected


def _run(context: Context, arguments: argparse.Namespace) -> None:
    config = context.config()
    with extra("node"):
        from comity_node.node import run
    telemetry.configure(arguments.log_level or config.log.level, "json" if context.json else config.log.format)
    run(config)


def _status(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        if arguments.wait:
            node.wait_ready(arguments.wait)
        status = node.status()
    values = {
        "organization": status.organization,
        "node": status.node,
        "peer_id": status.peer_id,
        "consortium": f"{status.consortium} epoch {status.bundle_epoch}",
        "version": status.version,
        "started": timestamp(status.started_ms),
        "addresses": ", ".join(status.addresses),
        "policy": status.policy_digest,
        "skills": ", ".join(status.skills) or "(none: no worker is connected)",
    }
    see_to = "\n".join(f"warning: {printable(line)}" for line in status.warnings)
    context.emit(asdict(status), "\n".join(part for part in (fields(values), fields(status.counters), see_to) if part))


def _reload(context: Context, arguments: argparse.Namespace) -> int:
    with connected(context, arguments) as node:
        done = node.reload()
    lines = [f"taken in: {line}" for line in done.changed] + list(done.refused)
    context.emit(asdict(done), "\n".join(map(printable, lines)) or "nothing has changed")
    return context.refuse("what was refused is not in force; what was in force before still is") if done.refused else 0


def _stop(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        node.shutdown()
    context.emit({"stopping": True}, "the node drains and stops")


def _peers(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        peers = node.peers()
    rows = [
        (
            each.organization,
            each.node,
            each.peer_id,
            each.state,
            each.path,
            f"{each.round_trip_ms:.1f}",
            f"{each.messages_sent}/{each.messages_received}",
            f"{size(each.bytes_sent)}/{size(each.bytes_received)}",
            f"{each.in_flight}+{each.waiting}/{each.serving}",
            size(each.queued_bytes),
            size(each.window_bytes),
            str(each.reconnects),
            each.reason,
        )
        for each in peers
    ]
    headings = (
        "ORGANIZATION", "NODE", "PEER ID", "STATE", "PATH", "RTT MS", "MESSAGES OUT/IN", "BYTES OUT/IN",
        "CALLS OUT+WAITING/IN", "QUEUED", "WINDOW", "RECONNECTS", "REASON",
    )  # fmt: skip
    context.emit([asdict(each) for each in peers], table(rows, headings))


def _agents(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        agents = node.agents()
    rows = [
        (
            each.organization,
            each.name,
            ", ".join(each.skills),
            f"{each.reliability:.3f}",
            f"{each.agreed:g}/{each.disagreed:g}",
            each.peer_id,
        )
        for each in agents
    ]
    headings = ("ORGANIZATION", "AGENT", "SKILLS", "RELIABILITY", "AGREED/DISAGREED", "PEER ID")
    context.emit([asdict(each) for each in agents], table(rows, headings))


NODE = Command(
    "node",
    "run this organization's node, and ask how it is",
    commands=(
        Command(
            "run",
            "run the node until it is interrupted",
            _run,
            (argument("--log-level", choices=("debug", "info", "warning", "error"), help="instead of node.yaml's"),),
            description=(
                "Run the node in the foreground, until Ctrl-C or `comity node stop`. It takes in a changed policy, "
                "trust bundle or certificate by itself; SIGHUP or `comity node reload` has it do so at once. --json "
                "logs in JSON."
            ),
        ),
        Command(
            "status",
            "say who the running node is and what it has counted",
            _status,
            (
                argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait so long for it to come up"),
                *CONTROL,
            ),
        ),
        Command(
            "reload",
            "have the running node take in a changed policy, trust bundle or certificate",
            _reload,
            CONTROL,
            description=(
                "Have the running node look at its policy (with the schemas that it names), its trust bundle and its "
                "certificate now. What is good is taken in at once, all of it or nothing, and what is under way is "
                "looked at again; what is wrong is refused with its reason, and the node goes on with what it had. The "
                "node does the same on SIGHUP, and by itself within seconds after a file has changed. Exit code 1 if "
                "something was refused."
            ),
        ),
        Command("stop", "have the running node drain and stop", _stop, CONTROL),
    ),
)
PEERS = Command("peers", "list the links to other organizations", _peers, CONTROL)
AGENTS = Command("agents", "list own and peers' agents, with their reliability", _agents, CONTROL)
