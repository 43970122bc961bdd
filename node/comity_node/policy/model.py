"""The values of the policy language: what is asked, what is answered, and what a policy says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from comity_node.policy.conditions import (
    LABELS,
    Condition,
    FlagCondition,
    Label,
    Labels,
    LabelValue,
    NumberCondition,
    TextCondition,
    TimeCondition,
)
from comity_node.policy.lattice import Obligations, Onward, Rate, ReviewTerms, is_under

__all__ = [
    "ACTIONS", "CLASSIFICATIONS", "FIELD_TYPES", "INCOMPLETE", "KINDS", "LABELS", "PERSONAL", "REQUIRED", "RESERVED",
    "UNKNOWN_ACTION", "UNKNOWN_FIELD", "Condition", "Dataset", "Decision", "Direction", "Effect", "Facts", "Field",
    "FlagCondition", "Label", "LabelValue", "Labels", "Mismatch", "NearMiss", "NumberCondition", "Obligations",
    "Onward", "PolicyDocument", "Rate", "Request", "ReviewTerms", "Rule", "TextCondition", "TimeCondition", "overlaps",
]  # fmt: skip


class Direction(StrEnum):
    """Which way an action crosses the boundary; the key that names the other side in a rule."""

    OUT = "to"
    IN = "from"


#: Everything that can be asked, and its direction.
ACTIONS: Mapping[str, Direction] = MappingProxyType(
    {
        "agent.discover": Direction.OUT,  # show our agent cards to the other side
        "agreement.offer": Direction.OUT,  # propose terms
        "agreement.accept": Direction.IN,  # sign terms that the other side proposed
        "record.send": Direction.OUT,  # give a record to a reviewer
        "record.receive": Direction.IN,  # take a record to review
        "record.review": Direction.IN,  # let an own validator read it
        "review.send": Direction.OUT,  # give a review to the record's author
        "review.receive": Direction.IN,  # take a review of an own record
        "record.release": Direction.OUT,  # give a certified record to whom the agreement entitles
        "record.accept": Direction.IN,  # take a certified record
        "update.send": Direction.OUT,  # give a model update to the training's server
        "update.receive": Direction.IN,  # take one
        "tunnel.open": Direction.OUT,  # open a tunnel to a service of the other side
        "tunnel.serve": Direction.IN,  # let the other side open one to an own service
        "bulk.send": Direction.OUT,  # give a whole table of rows to the other side
        "bulk.receive": Direction.IN,  # take one
        "news.send": Direction.OUT,  # tell the other side how reliable others have been
        "checkpoint.send": Direction.OUT,  # have the other side witness our audit log: its size and head
        "checkpoint.cosign": Direction.IN,  # witness the other side's
        "relay.carry": Direction.IN,  # carry the other side's encrypted connections to a third
    }
)

KINDS = ("raw", "synthetic", "certified", "update")
CLASSIFICATIONS = ("public", "internal", "confidential", "restricted")
FIELD_TYPES = ("number", "integer", "boolean", "string")

#: What a request must say; one that does not is denied, whatever the rules are.
_ABOUT_TERMS = ("purpose", "dataset")
_ABOUT_RECORDS = ("purpose", "dataset", "kind")
REQUIRED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "agreement.offer": _ABOUT_TERMS,
        "agreement.accept": _ABOUT_TERMS,
        "record.send": _ABOUT_RECORDS,
        "record.receive": _ABOUT_RECORDS,
        "record.review": _ABOUT_RECORDS,
        "record.release": _ABOUT_RECORDS,
        "record.accept": _ABOUT_RECORDS,
        "update.send": ("purpose", "kind"),
        "update.receive": ("purpose", "kind"),
        "bulk.send": _ABOUT_RECORDS,
        "bulk.receive": _ABOUT_RECORDS,
    }
)

#: Rules that every policy has; their ids stand in decisions like those of the rules that somebody wrote.
RESERVED = "comity."
UNKNOWN_ACTION = "comity.unknown-action"
INCOMPLETE = "comity.incomplete-request"
PERSONAL = "comity.personal-field"
UNKNOWN_FIELD = "comity.unknown-field"


_NO_LABELS: Labels = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Request:
    """What the policy is asked.

    Attributes:
        action: one of `ACTIONS`.
        organization: the other side.
        role: what the other side is in this: `validator`, `trainer`, …; empty if it is nothing in particular.
        purpose: what for.
        dataset: whose data, by its name in the policies.
        kind: one of `KINDS`, or empty if no data are involved.
        fields: paths of the record's fields (`age`, `notes.free_text`).
        labels: what is known about the request; see `LABELS`.
    """

    action: str
    organization: str
    role: str = ""
    purpose: str = ""
    dataset: str = ""
    kind: str = ""
    fields: frozenset[str] = frozenset()
    labels: Labels = field(default_factory=lambda: _NO_LABELS)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One condition of a rule that a request does not meet: `purpose`, `label records`, …, in words."""

    condition: str
    wanted: str
    got: str

    def __str__(self) -> str:
        return f"{self.condition} is {self.got}, wanted {self.wanted}"


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A rule that would have allowed the request, and all that was missing."""

    rule: str
    mismatches: tuple[Mismatch, ...]

    def __str__(self) -> str:
        return f"{self.rule} ({'; '.join(str(each) for each in self.mismatches)})"


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy answers.

    Attributes:
        allowed: whether it may be done.
        rules: ids of the rules that determined it, sorted: those that allow, or those that forbid or cannot be decided;
            none if no rule says anything about the request.
        reason: one line for a person.
        obligations: what must be done if it is allowed: those of all rules that allow it, merged.
        near_misses: if no rule says anything: the allow rules that come nearest, at most three.
    """

    allowed: bool
    rules: tuple[str, ...]
    reason: str
    obligations: Obligations
    near_misses: tuple[NearMiss, ...] = ()


class Effect(StrEnum):
    """What a rule does."""

    ALLOW = "allow"
    FORBID = "forbid"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Where it names no values (`None`), any will do.

    Attributes:
        organizations: the other side, with those of `groups`.
        groups: names of the groups that it was written with.
        jurisdictions: the other side is in one of them, as the policy's facts have it.
        fields: for an allow rule: the record has no fields but these and what lies below them, and those that the rule
            redacts; for a forbid rule: it has one of these, or a part of one.
        personal: paths of personal fields that an allow rule lets pass as they are.
        conditions: all of them must hold.
        states_onward: whether the rule itself says something about onward.
        place: file:line:column.
    """

    id: str
    effect: Effect
    actions: frozenset[str]
    organizations: frozenset[str] | None = None
    groups: frozenset[str] = frozenset()
    jurisdictions: frozenset[str] | None = None
    roles: frozenset[str] | None = None
    datasets: frozenset[str] | None = None
    kinds: frozenset[str] | None = None
    classifications: frozenset[str] | None = None
    fields: frozenset[str] | None = None
    personal: frozenset[str] = frozenset()
    purposes: frozenset[str] | None = None
    conditions: tuple[Condition, ...] = ()
    obligations: Obligations = field(default_factory=Obligations)
    states_onward: bool = False
    place: str = ""

    @property
    def allows(self) -> bool:
        """Whether this is an allow rule."""
        return self.effect is Effect.ALLOW


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a dataset's schema: its type, closed range, closed list of values, and whether it is personal."""

    type: str
    personal: bool
    minimum: float | None = None
    maximum: float | None = None
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """What the policy says about a dataset; `fields` is None when it has no schema."""

    name: str
    classification: str
    subject: str = ""
    fields: Mapping[str, Field] | None = None
    place: str = ""

    @property
    def personal(self) -> frozenset[str]:
        """Paths of the personal fields."""
        return frozenset(path for path, each in (self.fields or {}).items() if each.personal)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the policy says about another organization: the jurisdictions that it is in; None if it does not say."""

    jurisdictions: frozenset[str] | None = None


def overlaps(path: str, others: frozenset[str]) -> bool:
    """Whether `path` is one of `others`, lies below one or above one."""
    return is_under(path, others) or any(other.startswith(f"{path}.") for other in others)


@dataclass(frozen=True, slots=True)
class PolicyDocument:
    """A policy as it was written.

    Attributes:
        organization: whose policy it is.
        rules: in the order of the file.
        datasets: by name.
        purposes: declared purposes and the parents of each; None if any word may be a purpose.
        digest: SHA-256 that names exactly this policy (see `loader.load`).
        source: the file it came from.
        groups: by name: the organizations in each, also those by way of another group.
        organizations: facts about organizations.
        files: the bytes that it was read from: the policy's own under "", schemas under their paths as written.
    """

    organization: str
    rules: tuple[Rule, ...]
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    purposes: Mapping[str, frozenset[str]] | None = None
    digest: bytes = b""
    source: str = ""
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    organizations: Mapping[str, Facts] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False, compare=False)
    #: What `purposes_under` has found: one entry for each set that a rule names.
    _under: dict[frozenset[str], frozenset[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def jurisdictions_of(self, organization: str) -> frozenset[str] | None:
        """Return the jurisdictions that an organization is in, or None if that is not known."""
        facts = self.organizations.get(organization)
        return facts.jurisdictions if facts is not None else None

    def personal_of(self, dataset: str) -> frozenset[str] | None:
        """Return the personal fields of a dataset, or None if they are not known: it has no schema."""
        known = self.datasets.get(dataset)
        return known.personal if known is not None and known.fields is not None else None

    def purposes_under(self, purposes: frozenset[str]) -> frozenset[str]:
        """Return `purposes` and all that lie below them."""
        if purposes not in self._under:
            reached = set(purposes)
            while new := {
                name for name, parents in (self.purposes or {}).items() if name not in reached and parents & reached
            }:
                reached |= new
            self._under[purposes] = frozenset(reached)
        return self._under[purposes]
