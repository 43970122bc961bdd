"""A policy's tests: requests and what must be decided about them, in YAML beside the policy.

version: 1
policy: hospital-research.yaml              # relative to this file
cases:
  - name: reviewers get synthetic rows
    request: {action: record.send, organization: stlukes.example, role: validator, purpose: breast-cancer-screening,
              dataset: tumour-features, kind: synthetic, fields: [age], labels: {records: 100}}
    expect: allow
    rules: [send-synthetic]                 # optional: exactly these determine it
    obligations: {onward: never}            # optional: at least as strict as this
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from comity_node.policy.coverage import Coverage, cover
from comity_node.policy.diff import Asked
from comity_node.policy.engine import Policy
from comity_node.policy.loader import load, read_obligations
from comity_node.policy.model import ACTIONS, KINDS, LABELS, Decision, Label, LabelValue, Obligations, Request
from comity_node.policy.obligations import covers, to_json
from comity_node.strictyaml import Node, Section, shown, suggest
from comity_node.strictyaml import load as load_yaml

_CASE = ("name", "request", "expect", "rules", "obligations")
_REQUEST = ("action", "organization", "role", "purpose", "dataset", "kind", "fields", "labels")


@dataclass(frozen=True, slots=True)
class Case:
    """One request and what must be decided; `rules` and `obligations` are None when the case does not say."""

    name: str
    request: Request
    allowed: bool
    rules: tuple[str, ...] | None
    obligations: Obligations | None
    place: str


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What came of a case; `problem` is empty if it passed."""

    case: Case
    decision: Decision
    problem: str

    def __str__(self) -> str:
        return f"{self.case.place}: {self.case.name}: {self.problem or 'ok'}"


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a file of cases.

    Attributes:
        policy: the file of the policy.
        results: in the order of the file.
        coverage: what the cases touch of the policy.
    """

    policy: str
    results: tuple[CaseResult, ...]
    coverage: Coverage

    @property
    def untested(self) -> tuple[str, ...]:
        """Ids of rules that determined no case's decision, in the policy's order."""
        return self.coverage.untested

    @property
    def failures(self) -> tuple[CaseResult, ...]:
        """The cases that did not pass."""
        return tuple(result for result in self.results if result.problem)

    @property
    def passed(self) -> bool:
        """Whether all cases passed."""
        return not self.failures


def run(path: Path) -> Report:
    """Run the cases in a file against the policy that it names.

    Raises:
        ConfigError: one of the files cannot be read or is not understood.
    """
    top = _top(path)
    policy = load(top.required("policy").file_path(path.parent))
    rules = [rule.id for rule in policy.document.rules]
    results = tuple(_run(policy, _case(node, rules)) for node in top.required("cases").one_or_more())
    coverage = cover(policy.document, ((result.case.request, result.decision) for result in results))
    return Report(policy.document.source, results, coverage)


def _top(path: Path) -> Section:
    top = load_yaml(path).mapping("version", "policy", "cases")
    top.required("version").integer(1, 1)
    return top


def asked(path: Path) -> tuple[Asked, ...]:
    """Return the requests of a file of cases, for a comparison of policies; the policy that it names is not read.

    Raises:
        ConfigError: the file cannot be read or is not understood.
    """
    found = []
    for node in _top(path).required("cases").one_or_more():
        section = node.mapping(*_CASE)
        name, request = section.required("name").string(), read_request(section.required("request"))
        found.append(Asked(request, origin=f"{node.mark}: {name}"))
    return tuple(found)


def read_request(node: Node) -> Request:
    """Read a request.

    Raises:
        ConfigError: a key, an action, a kind or a label is unknown, or a value is of the wrong type.
    """
    section = node.mapping(*_REQUEST)
    kind, labels = section.optional("kind"), section.optional("labels")
    return Request(
        action=section.required("action").choice(tuple(ACTIONS), "action"),
        organization=section.required("organization").organization(),
        role=section.string("role", ""),
        purpose=section.string("purpose", ""),
        dataset=section.string("dataset", ""),
        kind=kind.choice(KINDS, "kind of data") if kind is not None else "",
        fields=frozenset(section.strings("fields")),
        labels=_labels(labels) if labels is not None else {},
    )


def _labels(node: Node) -> dict[str, LabelValue]:
    labels: dict[str, LabelValue] = {}
    for name, mark, value in node.table():
        if name not in LABELS:
            mark.fail(f"unknown label {shown(name)}{suggest(name, LABELS) or '; known: ' + ', '.join(sorted(LABELS))}")
        labels[name] = _label(LABELS[name], value)
    return labels


def _label(kind: Label, node: Node) -> LabelValue:
    if kind is Label.FLAG:
        return node.boolean()
    return node.string() if kind is Label.TEXT else node.number()


def _case(node: Node, known_rules: Collection[str]) -> Case:
    section = node.mapping(*_CASE)
    rules, wanted = section.optional("rules"), section.optional("obligations")
    allowed = section.required("expect").choice(("allow", "deny"), "outcome") == "allow"
    if wanted is not None and not allowed:
        wanted.fail("a denial has no obligations")
    return Case(
        name=section.required("name").string(),
        request=read_request(section.required("request")),
        allowed=allowed,
        rules=_rules(rules, known_rules) if rules is not None else None,
        obligations=read_obligations(wanted, "") if wanted is not None else None,
        place=str(node.mark),
    )


def _rules(node: Node, known: Collection[str]) -> tuple[str, ...]:
    """Read ids; an empty list says that no rule determines it: the default does."""
    built_in = ("comity.incomplete-request", "comity.personal-field", "comity.unknown-field")
    if node.is_list and not node.items():
        return ()
    return tuple(sorted(node.choices((*known, *built_in), "rule")))


def _run(policy: Policy, case: Case) -> CaseResult:
    decision = policy.decide(case.request)
    problem = ""
    if decision.allowed is not case.allowed:
        expected = "allow" if case.allowed else "deny"
        problem = f"expected {expected}, but: {decision.reason}"
    elif case.rules is not None and decision.rules != case.rules:
        problem = f"expected it to be determined by {_names(case.rules)}, but it was by {_names(decision.rules)}"
    elif case.obligations is not None and not covers(decision.obligations, case.obligations):
        problem = f"the obligations are looser than expected: {to_json(decision.obligations)}"
    return CaseResult(case, decision, problem)


def _names(rules: tuple[str, ...]) -> str:
    return ", ".join(rules) or "the default"
