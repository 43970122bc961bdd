"""The linter's checks of names: organizations, groups, purposes, datasets."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from comity_node.policy.findings import Finding, note, warn
from comity_node.policy.model import PolicyDocument
from comity_node.policy.scopes import speaks_of
from comity_node.strictyaml import suggest


def unknown_organizations(document: PolicyDocument, members: Collection[str]) -> Iterator[Finding]:
    """Find names that no member of the consortium has."""
    known = frozenset(members)
    if document.organization not in known:
        near = suggest(document.organization, members)
        message = f"the policy is of {document.organization}, which is no member{near}"
        yield warn("unknown-organization", document.source, message)
    in_groups = frozenset(name for names in document.groups.values() for name in names)
    for rule in document.rules:
        for name in sorted((rule.organizations or frozenset()) - known - in_groups):
            yield warn("unknown-organization", rule, f"names {name}, which is no member{suggest(name, members)}")
    for group, names in document.groups.items():
        for name in sorted(names - known):
            message = f"the group {group} has {name}, which is no member{suggest(name, members)}"
            yield warn("unknown-organization", document.source, message)
    for name in sorted(document.organizations.keys() - known):
        message = f"organizations tells about {name}, which is no member{suggest(name, members)}"
        yield warn("unknown-organization", document.source, message)


def own_organization(document: PolicyDocument) -> Iterator[Finding]:
    """Find rules that name the own organization as the other side."""
    for rule in document.rules:
        if document.organization in (rule.organizations or ()):
            yield warn("own-organization", rule, f"names {document.organization} as the other side")


def undecidable(document: PolicyDocument) -> Iterator[Finding]:
    """Find rules about a jurisdiction that name organizations whose jurisdiction the policy does not state."""
    for rule in document.rules:
        if rule.jurisdictions is None or rule.organizations is None:
            continue
        for name in sorted(rule.organizations):
            if document.jurisdictions_of(name) is None:
                message = f"asks for the jurisdiction of {name}, which the policy does not state: all of it is denied"
                yield warn("undecidable", rule, message)


def datasets(document: PolicyDocument) -> Iterator[Finding]:
    """Find datasets without a schema or without a rule."""
    for dataset in document.datasets.values():
        if dataset.fields is None:
            message = f"{dataset.name} has no schema, so no field of it is known to be personal and any field may pass"
            yield warn("no-schema", dataset.place, message)
        if not any(speaks_of(rule, dataset) for rule in document.rules):
            yield warn("unused-dataset", dataset.place, f"no rule speaks of {dataset.name}")


def unused(document: PolicyDocument) -> Iterator[Finding]:
    """Find groups and purposes that no rule needs."""
    named = frozenset(name for rule in document.rules for name in rule.groups)
    held = frozenset(
        name
        for name, members in document.groups.items()
        if any(other in named and members <= document.groups[other] for other in document.groups)
    )
    for name in sorted(document.groups.keys() - named - held):
        yield note("unused-group", document.source, f"no rule names the group {name}")
    if document.purposes is None or any(rule.purposes is None for rule in document.rules if rule.allows):
        return
    reached = document.purposes_under(frozenset(name for rule in document.rules for name in rule.purposes or ()))
    above = frozenset(parent for name in reached for parent in document.purposes.get(name, frozenset()))
    for name in sorted(document.purposes.keys() - reached - above):
        yield note("unused-purpose", document.source, f"no rule is for the purpose {name}")
