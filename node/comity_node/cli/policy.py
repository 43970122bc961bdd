"""`comity policy`: check a policy, say why it decides as it does, and run its tests. No node is needed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from comity.bundle import MAX_BUNDLE, read_bundle
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, UsageError, as_json, extra, read_bytes
from comity_node.cli.node_client import CONTROL, connected

if TYPE_CHECKING:
    from comity_node.policy.model import Request

_MAX_REQUEST = 64 * 1024


def _policy_path(context: Context, arguments: argparse.Namespace) -> Path:
    path: Path | None = arguments.policy
    return path or context.config().policy


def _lint(context: Context, arguments: argparse.Namespace) -> int:
    with extra("node"):
        from comity_node.policy import lint, loader
    path = _policy_path(context, arguments)
    bundle = arguments.bundle
    if bundle is None and arguments.policy is None and context.config().bundle.exists():
        bundle = context.config().bundle
    members = None if bundle is None else read_bundle(read_bytes(bundle, "the trust bundle", limit=MAX_BUNDLE)).members
    policy = loader.load(path)
    findings = lint.lint(policy, members)
    warnings = sum(finding.level == "warning" for finding in findings)
    rules = len(policy.document.rules)
    context.emit(
        {
            "policy": str(path),
            "digest": policy.digest.hex(),
            "rules": rules,
            "warnings": warnings,
            "findings": [finding.to_json() for finding in findings],
        },
        "\n".join([*map(str, findings), f"{path}: {rules} rules, {warnings} warnings"]),
    )
    return context.refuse(f"{path}: {warnings} warnings") if warnings else 0


def _explain(context: Context, arguments: argparse.Namespace) -> None:
    request = _request(arguments)
    if arguments.live:
        with connected(context, arguments) as node:
            answer = node.explain_policy(request)
        context.emit(answer, json.dumps(answer, indent=2, ensure_ascii=False))
        return
    with extra("node"):
        from comity_node.policy import explain, loader
    explanation = explain.explain(loader.load(_policy_path(context, arguments)), _checked(request))
    context.emit(explanation.to_json(), explanation.text())


def _request(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the request of --request, or of the options.

    Raises:
        UsageError: neither is there, or both.
    """
    words = {
        name: getattr(arguments, name) for name in ("action", "organization", "role", "purpose", "dataset", "kind")
    }
    given: dict[str, object] = {name: value for name, value in words.items() if value}
    if arguments.field:
        given["fields"] = arguments.field
    if arguments.label:
        given["labels"] = dict(arguments.label)
    if arguments.request is None:
        if not {"action", "organization"} <= set(given):
            raise UsageError("say --action and --organization, or --request FILE (see: comity policy explain --help)")
        return given
    if given:
        raise UsageError("say the request in a file or in options, not in both (see: comity policy explain --help)")
    value = as_json(read_bytes(arguments.request, "the request", limit=_MAX_REQUEST), str(arguments.request))
    if not isinstance(value, dict):
        raise UsageError(f"{arguments.request} is no JSON object")
    return {name: part for name, part in value.items() if part not in ("", [], {})}  # as `explain --json` writes them


def _checked(request: dict[str, object]) -> Request:
    with extra("node"):
        from comity_node import strictyaml
        from comity_node.policy import cases
    return cases.read_request(strictyaml.loads(json.dumps(request), "request"))


def _test(context: Context, arguments: argparse.Namespace) -> int:
    with extra("node"):
        from comity_node.policy import cases
    reports = [cases.run(path) for path in arguments.cases]
    results = [result for report in reports for result in report.results]
    failed = sum(bool(result.problem) for result in results)
    untested = [rule for report in reports for rule in report.untested]
    lines = [str(result) for result in results if result.problem or arguments.verbose]
    lines += [f"no case is decided by {rule}" for rule in untested]
    context.emit(
        {
            "cases": [{"name": r.case.name, "place": r.case.place, "problem": r.problem} for r in results],
            "failed": failed,
            "untested": untested,
        },
        "\n".join([*lines, f"{len(results) - failed} of {len(results)} cases passed"]),
    )
    return context.refuse(f"{failed} of {len(results)} cases failed") if failed else 0


def label(text: str) -> tuple[str, object]:
    """Read NAME=VALUE from the command line; numbers, true and false are what they look like.

    Raises:
        argparse.ArgumentTypeError: there is no `=`.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


_POLICY = argument("--policy", type=Path, metavar="FILE", help="the policy (this node's)")

COMMAND = Command(
    "policy",
    "check a policy, explain its decisions and run its tests",
    commands=(
        Command(
            "lint",
            "find what is wrong or probably not meant; exit 1 if there is a warning",
            _lint,
            (
                argument("policy", nargs="?", type=Path, metavar="POLICY", help="the policy (this node's)"),
                argument(
                    "--bundle", type=Path, metavar="FILE", help="check organizations' names against this consortium"
                ),
            ),
        ),
        Command(
            "explain",
            "say what is decided about a request, by which rule, and what would have to change",
            _explain,
            (
                _POLICY,
                argument("--request", type=Path, metavar="FILE", help="the request, in JSON"),
                argument("--action", default="", help="such as record.send"),
                argument("--organization", default="", help="the other side"),
                argument("--role", default="", help="the other side's part in it, such as validator"),
                argument("--purpose", default=""),
                argument("--dataset", default=""),
                argument("--kind", default="", help="raw, synthetic, certified or update"),
                argument("--field", action="append", default=[], metavar="PATH", help="a field of the record; repeat"),
                argument("--label", action="append", type=label, default=[], metavar="NAME=VALUE", help="repeat"),
                argument("--live", action="store_true", help="ask the running node, which may have another policy"),
                *CONTROL,
            ),
        ),
        Command(
            "test",
            "run cases: requests and what must be decided about them",
            _test,
            (
                argument("cases", nargs="+", type=Path, metavar="CASES", help="files of cases; each names its policy"),
                argument("--verbose", action="store_true", help="list the cases that pass, too"),
            ),
        ),
    ),
)
