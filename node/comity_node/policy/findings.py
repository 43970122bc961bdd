"""What the linter says: findings with a place, a level, a code that never changes, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from comity_node.policy.model import Rule

#: What to do about a finding, by its code.
TODO: Final[Mapping[str, str]] = MappingProxyType(
    {
        "any-action": "list the actions that are meant",
        "any-kind": "say which kinds of data: data: {kind: [...]}",
        "approval-unannounced": "add notify with those who may answer",
        "bad-form": "choose a form that fits the field's type, or redact it",
        "bad-grid": "choose a grid that fits the field, or redact it",
        "beyond-agreement": "ask for the same in an agreement.accept rule, or leave it out here",
        "budget-unused": "leave budget out, or add noise",
        "clash": "ask for one form in both rules, or redact the field openly",
        "contradiction": "keep one of the two rules",
        "expired": "set a later day, or remove the rule",
        "forbids-all": "narrow it, or remove the rules that it silences",
        "never-asked": "remove what such a request does not state, or choose the action that is meant",
        "never-met": "change the condition, or remove the rule",
        "never-open": "change the window or the range of time_ms, or remove the rule",
        "never-stated": "ask for something that such a request states, or split the rule by its actions",
        "no-schema": "give the dataset a schema",
        "no-schema-to-drop": "give the dataset a schema, or redact fields by name",
        "noise-unbounded": "add budget: {epsilon: ...}: without one the noise can be averaged away",
        "nothing-allowed": "write an allow rule, or leave it if nothing is to leave yet",
        "nothing-left": "raise the number, or remove the rule",
        "own-organization": "name the other side; the own organization asks no leave of itself",
        "personal-unsettled": "redact or drop it, or let it pass by name (masked or hashed, too): data: personal",
        "shadowed": "remove it, or make it say what the other does not",
        "undecidable": "state the organization's jurisdiction under organizations, or do not name it here",
        "unknown-field": "correct the path, or declare the field in the schema",
        "unknown-organization": "correct the name, or have the organization join the consortium first",
        "unmeetable": "correct the classification or the datasets",
        "unreachable": "remove it, or narrow the forbid rule",
        "unused-dataset": "write a rule for it, or remove it",
        "unused-group": "use it in a rule, or remove it",
        "unused-purpose": "use it in a rule, or remove it",
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at: `level` is `warning` or `note`, `code` names the check and never changes."""

    level: str
    code: str
    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.level}: {self.message} [{self.code}]"

    @property
    def todo(self) -> str:
        """What to do about it."""
        return TODO[self.code]

    def to_json(self) -> dict[str, str]:
        """Return the finding as JSON data."""
        return {
            "level": self.level,
            "code": self.code,
            "place": self.place,
            "message": self.message,
            "todo": self.todo,
        }


def warn(code: str, where: Rule | str, message: str) -> Finding:
    """Return a warning about a rule (its id goes before the message) or a place."""
    return _finding("warning", code, where, message)


def note(code: str, where: Rule | str, message: str) -> Finding:
    """Return a note, where it may well be meant."""
    return _finding("note", code, where, message)


def _finding(level: str, code: str, where: Rule | str, message: str) -> Finding:
    if isinstance(where, Rule):
        return Finding(level, code, where.place, f"{where.id} {message}")
    return Finding(level, code, where, message)
