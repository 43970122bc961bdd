"""`comity policy lint`, `test` and `diff`: check a policy before it is the active one. No node is needed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from comity.bundle import MAX_BUNDLE, read_bundle
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, UsageError, extra, printable, read_bytes, table
from comity_node.cli.policy_common import DATABASE, moment, opened, policy_path, since_ms, whole

if TYPE_CHECKING:
    from comity_node.admission.retrospect import Questions
    from comity_node.policy.diff import Asked, Diff

_FAIL_ON = ("widen", "any", "none")


def _lint(context: Context, arguments: argparse.Namespace) -> int:
    with extra("node"):
        from comity_node.policy import lint, loader
    path = policy_path(context, arguments)
    bundle = arguments.bundle
    if bundle is None and arguments.policy is None and context.config().bundle.exists():
        bundle = context.config().bundle
    members = None if bundle is None else read_bundle(read_bytes(bundle, "the trust bundle", limit=MAX_BUNDLE)).members
    policy = loader.load(path)
    findings = lint.lint(policy, members, now_ms=context.now_ms)
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
        "\n".join([*(f"{each}\n    {each.todo}" for each in findings), f"{path}: {rules} rules, {warnings} warnings"]),
    )
    return context.refuse(f"{path}: {warnings} warnings") if warnings else 0


def _test(context: Context, arguments: argparse.Namespace) -> int:
    with extra("node"):
        from comity_node.policy import cases
    reports = [cases.run(path) for path in arguments.cases]
    results = [result for report in reports for result in report.results]
    failed = sum(bool(result.problem) for result in results)
    untested = [rule for report in reports for rule in report.untested]
    lines = [str(result) for result in results if result.problem or arguments.verbose]
    lines += [f"no case is decided by {rule}" for rule in untested]
    if arguments.coverage or arguments.fail_under is not None:
        lines += [f"{report.policy}: {line}" for report in reports for line in report.coverage.lines()]
    context.emit(
        {
            "cases": [{"name": r.case.name, "place": r.case.place, "problem": r.problem} for r in results],
            "failed": failed,
            "untested": untested,
            "coverage": {report.policy: report.coverage.to_json() for report in reports},
        },
        "\n".join([*lines, f"{len(results) - failed} of {len(results)} cases passed"]),
    )
    if failed:
        return context.refuse(f"{failed} of {len(results)} cases failed")
    least = min(reports, key=lambda report: report.coverage.percent)
    if arguments.fail_under is not None and least.coverage.percent < arguments.fail_under:
        covered = f"{least.policy}: {least.coverage.percent:.1f} % is covered"
        return context.refuse(f"{covered}, {arguments.fail_under:g} % is the least; --coverage lists what is not")
    return 0


def percentage(text: str) -> float:
    """Read a number from 0 to 100 from the command line.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 100")
    return number


def _diff(context: Context, arguments: argparse.Namespace) -> int:
    with extra("node"):
        from comity_node.admission.retrospect import Questions
        from comity_node.policy import diff, loader
    if arguments.cases and (arguments.database or arguments.since or arguments.last is not None):
        raise UsageError("the requests come from --cases or from an audit log, not from both")
    old, new = loader.load(arguments.old), loader.load(arguments.new)
    questions = Questions(old)
    with ExitStack() as stack:
        found = diff.compare(old, new, _asked(context, arguments, questions, stack), examples=arguments.examples)
    context.emit(
        {"old": old.digest.hex(), "new": new.digest.hex(), "not_kept": questions.lost, **found.to_json()},
        "\n".join(map(printable, _diff_lines(found, questions.lost))),
    )
    if not found.fails(arguments.fail_on):
        return 0
    widened = found.changes[diff.Change.WIDENED]
    if arguments.fail_on == "any":
        said = f"{found.asked - found.changes[diff.Change.SAME]} decisions would change"
    else:
        said = f"{widened} decisions would be allowed that were denied"
        said += f", {found.loosened} allowed with less asked of them" if found.loosened else ""
    return context.refuse(f"{said}; --fail-on none lets that pass")


def _asked(context: Context, arguments: argparse.Namespace, questions: Questions, stack: ExitStack) -> Iterator[Asked]:
    if arguments.cases:
        from comity_node.policy import cases

        yield from (each for path in arguments.cases for each in cases.asked(path))
        return
    from comity_node.admission.archive import Archive

    archive = Archive(stack.enter_context(opened(context, arguments.database)))
    start = 0 if arguments.last is None else archive.start_of_last(arguments.last)
    yield from questions.of(archive.decisions(start=start, since_ms=since_ms(context, arguments.since)))


def _diff_lines(found: Diff, lost: int) -> Iterator[str]:
    from comity_node.policy.diff import Change

    for change in Change:
        for example in found.examples.get(change, ()):
            yield from example.lines()
    groups = [(count, change.value, *rest) for (change, *rest), count in found.groups.most_common()]
    if groups:
        yield ""
        yield from table(groups, ("DECISIONS", "CHANGE", "ACTION", "ORGANIZATION", "PURPOSE")).splitlines()
        yield ""
    if lost:
        yield f"{lost} decisions could not be asked again: their requests were not kept"
    if found.drifted:
        yield f"{found.drifted} decisions were made otherwise than OLD would: another policy was active then"
    changed = found.asked - found.changes[Change.SAME]
    distinct = f"{'over ' if found.bounded else ''}{found.distinct}"
    yield f"{changed} of {found.asked} decisions change ({distinct} distinct requests)"


LINT = Command(
    "lint",
    "find what is wrong or probably not meant; exit 1 if there is a warning",
    _lint,
    (
        argument("policy", nargs="?", type=Path, metavar="POLICY", help="the policy (this node's)"),
        argument("--bundle", type=Path, metavar="FILE", help="check organizations' names against this consortium"),
    ),
    description="Look a policy over. What cannot be understood is an error, with its place. A warning is a rule that "
    "never decides anything, changes nothing or denies what it means to allow, a name that nobody has, a form that the "
    "data cannot meet, or a date that has passed; a note may well be meant. Each says what to do. Exit 1 with a "
    "warning. Rules are compared in pairs: what only several of them cover together is not seen.",
)

TEST = Command(
    "test",
    "run cases: requests and what must be decided about them",
    _test,
    (
        argument("cases", nargs="+", type=Path, metavar="CASES", help="files of cases; each names its policy"),
        argument("--verbose", action="store_true", help="list the cases that pass, too"),
        argument("--coverage", action="store_true", help="list the rules and conditions that no case touches"),
        argument(
            "--fail-under",
            type=percentage,
            metavar="PERCENT",
            help="exit 1 if less of a policy's rules and conditions is covered",
        ),
    ),
    description="Run cases: requests and what must be decided about them. Exit 1 if one fails, or if less is covered "
    "than --fail-under asks for. A rule is covered when it determines a case's decision, a condition when it fails in "
    "a case about an action of its rule.",
)

DIFF = Command(
    "diff",
    "say which recorded decisions another policy would change; exit 1 if one would be widened",
    _diff,
    (
        argument("old", type=Path, metavar="OLD", help="the policy as it is"),
        argument("new", type=Path, metavar="NEW", help="the policy as it would be"),
        DATABASE,
        argument("--since", type=moment, metavar="WHEN", help="only decisions since then: 7d, 12h, 2026-01-31"),
        argument("--last", type=whole, metavar="N", help="only the last N decisions"),
        argument(
            "--cases", type=Path, action="append", default=[], metavar="FILE",
            help="take the requests from a file of cases, not from a database; repeat",
        ),
        argument("--examples", type=whole, default=3, metavar="N", help="how many of each change (%(default)s)"),
        argument(
            "--fail-on", choices=_FAIL_ON, default="widen",
            help="exit 1 if a denial becomes an allow or an allow asks for less (widen), if anything changes (any), or "
            "never (none)",
        ),
    ),
    description="Ask two policies about all requests that the audit log has decisions about, and say which answers "
    "differ: deny->allow (widened), allow->deny (narrowed), the same with other obligations, by other rules, or "
    "unknown: NEW asks about a label that nobody had asked about when the request was recorded. "
    "Limits that are counted (rates, quotas) and people's approvals are not part of it: only what the policies say.",
)  # fmt: skip
