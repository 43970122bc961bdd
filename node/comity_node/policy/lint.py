"""What is probably not meant in a policy that loads: names nobody has, rules that can never decide anything.

Errors are what the loader refuses. A finding here is a warning, or a note where it may well be meant. What is checked:

    names     organizations, groups and jurisdictions that are not known; datasets, groups, purposes nobody needs
    reach     an allow rule that one forbid rule covers; two rules with the same scope and opposite effects; a rule that
              another of the same effect covers and that asks for nothing more (its obligations are no stricter, it
              counts nothing, lets no further personal field pass); conditions that nothing meets: a number outside what
              the label can be, two words at once, a window that is closed in its range of time, a kind, role or dataset
              that requests about the action do not state (`asked`); conditions that cannot be decided there
    duties    fields that no dataset has, forms that break a field's type, limits of 0, noise without a budget,
              approvals of which nobody hears, dates that have passed, personal fields that are not settled, forms that
              clash where two rules match together

A rule with a code of `UNREACHABLE` never determines that something is allowed; one with a code of `UNMATCHED` is never
matched by a request that a node makes. Rules are compared in pairs: what only several rules together cover is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from comity_node.policy import lint_duties, lint_names, lint_reach
from comity_node.policy.engine import Policy
from comity_node.policy.findings import Finding
from comity_node.policy.model import PolicyDocument

__all__ = ["UNMATCHED", "UNREACHABLE", "Finding", "lint"]

#: Codes of rules that no request of a node matches, and of those that never allow anything.
UNMATCHED = frozenset({"never-asked", "never-met", "never-open", "unmeetable"})
UNREACHABLE = UNMATCHED | {"unreachable", "contradiction"}

_CHECKS: tuple[Callable[[PolicyDocument], Iterable[Finding]], ...] = (
    lint_names.own_organization, lint_names.undecidable, lint_names.datasets, lint_names.unused,
    lint_reach.nothing_allowed, lint_reach.never, lint_reach.never_stated, lint_reach.unmeetable,
    lint_reach.forbids_all, lint_reach.unreachable, lint_reach.shadowed, lint_reach.broad,
    lint_duties.fields, lint_duties.forms, lint_duties.clashes, lint_duties.limits, lint_duties.personal,
    lint_duties.floor,
)  # fmt: skip


def lint(policy: Policy, members: Collection[str] | None = None, *, now_ms: int | None = None) -> tuple[Finding, ...]:
    """Look a policy over.

    Args:
        policy: what is looked at.
        members: the organizations of the consortium; names are checked against them.
        now_ms: the time, in milliseconds since 1970; dates are checked against it.
    """
    document = policy.document
    findings = [finding for check in _CHECKS for finding in check(document)]
    if members is not None:
        findings += lint_names.unknown_organizations(document, members)
    if now_ms is not None:
        findings += lint_duties.expired(document, now_ms)
    return tuple(sorted(findings, key=lambda finding: (_line(finding.place), finding.code, finding.message)))


def _line(place: str) -> tuple[int, ...]:
    return tuple(int(part) for part in place.rsplit(":", 2)[1:] if part.isdigit())
