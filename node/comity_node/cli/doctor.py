"""`comity doctor`: is everything in place for this node to run, and if not, what to do about it."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from comity.bundle import Bundle, load_bundle
from comity.ca import CA_KEY_FILE, read_certificates
from comity.client import Client
from comity.errors import ComityError, ControlError
from comity.expiry import Expiry, certificate_expiry, expiries
from comity.signing import load_pem_private_key_file
from comity.trust import NodeIdentity, TrustStore
from comity_node.cli.commands import Command
from comity_node.cli.consortium import own_root
from comity_node.cli.context import Context, read_bytes, table
from comity_node.templates import CA_DIRECTORY

if TYPE_CHECKING:
    from comity_node.config import NodeConfig

Level = Literal["ok", "note", "warning", "error"]

_NODE_PACKAGES = ("trio", "libp2p", "yaml", "numpy", "onnx", "onnxruntime", "pyarrow", "sklearn", "h11")
#: The one minor version of Flower that is tested (`pyproject.toml`, extra flower).
_FLOWER = "1.41."
_MAX_PEM = 128 * 1024
_ADVICE = {
    "certificate": "comity cert renew",
    "root": "make the next one: comity cert root, then comity consortium rotate",
    "bundle": "ask the consortium for the next epoch (comity consortium renew)",
}
_LITTLE_BYTES, _NO_BYTES = 2 << 30, 100 << 20
_CONTROL_S = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    level: Level
    detail: str


Check = Callable[[Context, "NodeConfig"], Iterator[Finding]]


def _python(_: Context) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if good else "error", version if good else f"{version}; 3.11 or newer is needed")


def _packages(_: Context) -> Iterator[Finding]:
    missing = [name for name in _NODE_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding("extra node", "error", f"{', '.join(missing)} missing; run: pip install 'comity[node]'")
    else:
        from comity_node.validators.runtime import check_installation

        yield Finding("extra node", "ok", f"{check_installation()} is the only ONNX Runtime")
    try:
        version = importlib.metadata.version("flwr")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("extra flower", "note", "not installed; to train: pip install 'comity[flower]'")
        return
    good = version.startswith(_FLOWER)
    advice = "" if good else f"; this version of Comity is tested with {_FLOWER}x: pip install 'comity[flower]'"
    yield Finding("extra flower", "ok" if good else "error", f"flwr {version}{advice}")


def _keys(context: Context, config: NodeConfig) -> Iterator[Finding]:
    identity = NodeIdentity.load(config.key, config.chain)
    yield Finding("key", "ok", f"{config.key} is for its owner alone; peer id {identity.peer_id}")
    if identity.node != config.node:
        yield Finding("certificate", "error", f"it is for {identity.node}, and node.yaml says {config.node}")
    ca = context.home / CA_DIRECTORY / CA_KEY_FILE
    if ca.exists():
        load_pem_private_key_file(ca)
        yield Finding("ca key", "note", f"{ca} lies beside the node; it is safer on a machine without a network")


def _certificate(context: Context, config: NodeConfig) -> Iterator[Finding]:
    chain = read_certificates(read_bytes(config.chain, "the certificate", limit=_MAX_PEM))
    yield _ends("certificate", certificate_expiry("certificate", "", chain[0], context.now_ms))


def _bundle(context: Context, config: NodeConfig) -> Iterator[Finding]:
    bundle = load_bundle(config.bundle, now_ms=context.now_ms, own_ca=own_root(context, None))
    chain = NodeIdentity.load(config.key, config.chain).chain
    for one in expiries(chain, bundle, context.now_ms):
        if one.what == "bundle":
            yield _ends("bundle", one, _members(bundle))
        elif one.what == "root":
            yield _ends("root", one, f"{one.name}, ")
    attested = TrustStore(bundle).verify_chain(chain, context.now_ms)
    yield Finding("attestation", "ok", f"the consortium's bundle vouches for {attested.node}")


def _members(bundle: Bundle) -> str:
    return f"{bundle.consortium} epoch {bundle.epoch}, {len(bundle.members)} members, "


def _ends(check: str, expiry: Expiry, prefix: str = "") -> Finding:
    """Weeks ahead a note, then a warning; what is over is an error."""
    end, advice = datetime.fromtimestamp(expiry.at_ms / 1000, UTC), _ADVICE[expiry.what]
    if expiry.level == "expired":
        return Finding(check, "error", f"{prefix}expired on {end:%Y-%m-%d}: {advice}")
    text = f"{prefix}good until {end:%Y-%m-%d}, {expiry.days_left} days"
    if expiry.level == "ok":
        return Finding(check, "ok", text)
    return Finding(check, "note" if expiry.level == "notice" else "warning", f"{text} ({expiry.level}): {advice}")


def _policy(_: Context, config: NodeConfig) -> Iterator[Finding]:
    from comity_node.policy.lint import lint
    from comity_node.policy.loader import load

    policy = load(config.policy)
    if policy.organization != config.organization:
        yield Finding("policy", "error", f"{config.policy} is of {policy.organization}, not of {config.organization}")
        return
    findings = lint(policy)
    for each in findings:
        yield Finding("policy", "warning" if each.level == "warning" else "note", str(each))
    if not findings:
        yield Finding("policy", "ok", f"{len(policy.document.rules)} rules")


def _datasets(_: Context, config: NodeConfig) -> Iterator[Finding]:
    for dataset in config.datasets.values():
        wanted = (dataset.schema, dataset.private)
        missing = [str(path) for path in wanted if path is not None and not path.exists()]
        if missing:
            yield Finding(f"dataset {dataset.name}", "error", f"{', '.join(missing)} not there")
        else:
            yield Finding(f"dataset {dataset.name}", "ok", "its files are where node.yaml says")


def _disk(_: Context, config: NodeConfig) -> Iterator[Finding]:
    directory = config.database.parent
    free = shutil.disk_usage(directory).free
    level: Level = "error" if free < _NO_BYTES else "warning" if free < _LITTLE_BYTES else "ok"
    yield Finding("disk", level, f"{free / (1 << 30):.1f} GiB free at {directory}")
    if not os.access(directory, os.W_OK):
        yield Finding("disk", "error", f"{directory} cannot be written by this user")


def _running(_: Context, config: NodeConfig) -> Iterator[Finding]:
    if config.control.tls is not None:
        yield Finding(
            "control", "note", f"{config.control.address} takes mutual TLS; ask with: comity node status --tls"
        )
        return
    try:
        with Client(config.control.address, timeout_s=_CONTROL_S) as node:
            status = node.status()
    except ControlError as error:
        level: Level = "note" if error.code == "node_unreachable" else "error"
        yield Finding("control", level, error.diagnostics())
        yield from _ports(config)
    else:
        yield Finding("control", "ok", f"{status.node} runs, and answers at {config.control.address}")
        yield from (Finding("node", "warning", line) for line in status.warnings)


def _ports(config: NodeConfig) -> Iterator[Finding]:
    """Try to listen where the node will: only while it does not run."""
    for address in config.network.listen:
        family, host, port = address.split("/")[1], address.split("/")[2], int(address.split("/")[4])
        if family not in ("ip4", "ip6") or not port:
            continue
        kind = socket.AF_INET if family == "ip4" else socket.AF_INET6
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                yield Finding("port", "error", f"{address}: {error.strerror}; stop what uses it or change node.yaml")
            else:
                yield Finding("port", "ok", f"{address} is free")


_CHECKS: tuple[tuple[str, Check], ...] = (
    ("key", _keys),
    ("certificate", _certificate),
    ("bundle", _bundle),
    ("policy", _policy),
    ("datasets", _datasets),
    ("disk", _disk),
    ("control", _running),
)


def examine(context: Context) -> list[Finding]:
    """Run every check; one that fails does not keep the others from being made."""
    findings = [*_python(context)]
    try:
        findings += _packages(context)
        config = context.config()
    except ComityError as error:
        return [*findings, Finding("node.yaml", "error", error.diagnostics())]
    findings.append(Finding("node.yaml", "ok", str(Path(config.home))))
    for name, check in _CHECKS:
        try:
            findings += check(context, config)
        except ComityError as error:
            findings.append(Finding(name, "error", error.diagnostics()))
        except OSError as error:
            findings.append(Finding(name, "error", f"{error.filename}: {error.strerror}"))
    return findings


def _run(context: Context, _: argparse.Namespace) -> int:
    findings = examine(context)
    errors = sum(finding.level == "error" for finding in findings)
    rows = [(finding.level, finding.check, finding.detail) for finding in findings]
    context.emit(
        {"healthy": not errors, "findings": [asdict(finding) for finding in findings]},
        table(rows, ("", "CHECK", "FOUND")),
    )
    return context.refuse(f"{errors} of {len(findings)} findings keep this node from running") if errors else 0


COMMAND = Command("doctor", "check that everything is in place for this node to run", _run)
