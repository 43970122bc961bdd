"""Workflow documents: what an organization asks the others to agree to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from comity.certificate import MAX_SCORE
from comity.digest import canonical_json, sha256
from comity.errors import ConfigError
from comity.ids import organization_name
from comity.v1.agreement_pb2 import Obligations, ReviewTerms, Terms
from comity_node.protocol.flow import Flow, read_flow
from comity_node.runtime.bargain import Bounds, review_terms

_MAX_BYTES = 64 * 1024
_DAY_S = 86_400

#: Key: (type, default, lowest, highest); a default of None means that the key is required.
_NUMBERS: dict[str, tuple[int | None, int, int]] = {
    "records_per_organization": (None, 1, 1_000_000),
    "batch_records": (20, 1, 256),
    "repair_rounds": (1, 0, 10),
    "min_score": (500, 0, MAX_SCORE),
    "lease_seconds": (30, 1, 3_600),
    "expires_seconds": (_DAY_S, 60, 366 * _DAY_S),
    "minimum_participants": (2, 2, 256),
    # Of the others, drawn for each batch; 0: all of them.
    "panel": (0, 0, 255),
    # How long to negotiate at most: with people who have to approve it, too.
    "negotiation_seconds": (_DAY_S, 10, 30 * _DAY_S),
}
_TEXTS = ("name", "purpose", "dataset")
#: What an amendment can say; the participants stay.
_AMENDABLE = (set(_NUMBERS) - {"minimum_participants"}) | {"purpose", "limits"}
_MAX_KEEP = 256
#: Key of `limits`: (lowest, highest); all are optional.
_LIMITS: dict[str, tuple[int, float]] = {
    "minimum_records": (1, 1_000_000),
    "maximum_min_score": (0, MAX_SCORE),
    "maximum_quorum": (1, 256),
    "minimum_retain_seconds": (0, 100 * 366 * _DAY_S),
    "maximum_distance": (0, 1e9),
}
_FRACTIONS = frozenset({"maximum_distance"})


@dataclass(frozen=True, slots=True)
class WorkflowSpec:
    """A submitted workflow, checked."""

    name: str
    purpose: str
    dataset: str
    #: Empty: everybody who offers the skills.
    participants: tuple[str, ...]
    numbers: dict[str, int]
    digest: bytes
    #: How strict the terms may get, as it was written.
    limits: Mapping[str, Any] = field(default_factory=dict)
    #: Digest of the agreement that this one is to take the place of; empty: of none.
    replaces: bytes = b""
    #: Whether reviewers commit to their scores before any is shown.
    commit_reveal: bool = False
    #: The steps by which records are made; None: each organization's own agent makes its records.
    flow: Flow | None = None
    #: Whether records of the initiator alone are made; else of all participants.
    only_own: bool = False

    def bounds(self, label: str) -> Bounds:
        """Return how strict the terms may get: what the workflow says, and what is usual for the rest.

        Args:
            label: the label of the dataset, which stays unless the workflow names the fields that do.
        """
        usual = Bounds.usual(self.numbers["records_per_organization"], self.numbers["min_score"], label)
        return replace(usual, **self.limits)

    def first_terms(
        self, *, agreement_id: str, consortium: str, epoch: int, initiator: str, others: Sequence[str],
        obligations: Obligations, now_ms: int,
    ) -> Terms:  # fmt: skip
        """Return the first revision of the terms that are proposed to `others`."""
        participants = sorted({initiator, *others})
        asked = ReviewTerms(panel=self.numbers["panel"], commit_reveal=self.commit_reveal)
        return Terms(
            id=agreement_id,
            revision=0,
            consortium=consortium,
            bundle_epoch=epoch,
            initiator=initiator,
            participants=participants,
            purpose=self.purpose,
            dataset=self.dataset,
            records_per_organization=self.numbers["records_per_organization"],
            batch_records=self.numbers["batch_records"],
            repair_rounds=self.numbers["repair_rounds"],
            review=review_terms(len(participants), self.numbers["min_score"], like=asked),
            obligations=obligations,
            lease_seconds=self.numbers["lease_seconds"],
            issued_ms=now_ms,
            expires_ms=now_ms + self.numbers["expires_seconds"] * 1000,
            workflow_digest=self.digest,
            replaces=self.replaces,
            flow=self.flow.document if self.flow is not None else b"",
            homes=[initiator] if self.only_own else [],
        )


def parse_workflow(document: bytes) -> WorkflowSpec:
    """Read a workflow document (a JSON object).

    Raises:
        ConfigError: it is no JSON object, a key is unknown or missing, or a value is out of range.
        InvalidName: a participant is no organization name.
    """
    value = _read(document)
    unknown = sorted(
        set(value)
        - set(_NUMBERS)
        - set(_TEXTS)
        - {"participants", "limits", "replaces", "commit_reveal", "flow", "homes"}
    )
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r} in the workflow")
    participants = value.get("participants", [])
    if not isinstance(participants, list) or not all(isinstance(name, str) for name in participants):
        raise ConfigError("participants of the workflow has to be a list of organization names")
    return WorkflowSpec(
        name=_text(value, "name"),
        purpose=_text(value, "purpose"),
        dataset=_text(value, "dataset"),
        participants=tuple(sorted({organization_name(name) for name in participants})),
        numbers={key: _number(value, key) for key in _NUMBERS},
        digest=sha256(document),
        limits=_limits(value.get("limits", {})),
        replaces=_digest(value.get("replaces", "")),
        commit_reveal=_flag(value, "commit_reveal"),
        flow=read_flow(value["flow"]) if "flow" in value else None,
        only_own=_homes(value.get("homes", "all")),
    )


def amendment(terms: Terms, digest: bytes, changes: bytes, organization: str) -> bytes:
    """Return the workflow document that amends an agreement: its terms, but for what the changes say.

    Args:
        terms: those that are in force.
        digest: of these terms.
        changes: a JSON object with some of the keys of a workflow.
        organization: who proposes it.

    Raises:
        ConfigError: the changes are no JSON object, say nothing, or something that an amendment cannot change.
    """
    value = _read(changes)
    if unknown := sorted(set(value) - _AMENDABLE):
        raise ConfigError(f"an amendment cannot change {unknown[0]!r}; it can {', '.join(sorted(_AMENDABLE))}")
    if not value:
        raise ConfigError(f"the amendment changes nothing; it can {', '.join(sorted(_AMENDABLE))}")
    if terms.homes and list(terms.homes) != [organization]:
        raise ConfigError(f"only records of {', '.join(terms.homes)} are made under it: have them amend it")
    kept = {
        "name": f"amendment of {terms.id}"[:128],
        "purpose": terms.purpose,
        "dataset": terms.dataset,
        "participants": [name for name in terms.participants if name != organization],
        "records_per_organization": terms.records_per_organization,
        "batch_records": terms.batch_records,
        "repair_rounds": terms.repair_rounds,
        "min_score": terms.review.min_score,
        "panel": terms.review.panel,
        "lease_seconds": terms.lease_seconds,
        "minimum_participants": len(terms.participants),
        "expires_seconds": max(60, (terms.expires_ms - terms.issued_ms) // 1000),
        "replaces": digest.hex(),
        "commit_reveal": terms.review.commit_reveal,
        "homes": "initiator" if terms.homes else "all",
        **({"flow": json.loads(terms.flow)} if terms.flow else {}),
    }
    document = canonical_json({**kept, **value})
    parse_workflow(document)
    return document


def _read(document: bytes) -> dict[str, Any]:
    if len(document) > _MAX_BYTES:
        raise ConfigError(f"the workflow has {len(document)} bytes; at most {_MAX_BYTES}")
    try:
        value = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the workflow is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError("the workflow is not a JSON object")
    return value


def _digest(text: object) -> bytes:
    try:
        digest = bytes.fromhex(text) if isinstance(text, str) else b"?"
    except ValueError as error:
        raise ConfigError("'replaces' of the workflow has to be the digest of an agreement, in hex") from error
    if len(digest) not in (0, 32):
        raise ConfigError("'replaces' of the workflow has to be the digest of an agreement, in hex")
    return digest


def _homes(value: object) -> bool:
    if value not in ("all", "initiator"):
        raise ConfigError("'homes' of the workflow has to be all or initiator: whose records are made")
    return value == "initiator"


def _limits(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError("'limits' of the workflow has to be a mapping")
    if unknown := sorted(set(value) - set(_LIMITS) - {"keep", "maximum_grid"}):
        raise ConfigError(f"unknown key {unknown[0]!r} in the limits of the workflow")
    limits: dict[str, Any] = {
        key: _bounded(value[key], f"limits.{key}", key in _FRACTIONS, *span)
        for key, span in _LIMITS.items()
        if key in value
    }
    keep, grids = value.get("keep"), value.get("maximum_grid")
    if keep is not None:
        limits["keep"] = frozenset(_paths(keep, "limits.keep"))
    if grids is not None:
        if not isinstance(grids, dict):
            raise ConfigError("'limits.maximum_grid' of the workflow has to map fields to grids")
        paths = _paths(list(grids), "limits.maximum_grid")
        limits["maximum_grid"] = {path: _bounded(grids[path], "limits.maximum_grid", True, 0, 1e9) for path in paths}
    return limits


def _paths(value: object, key: str) -> list[str]:
    if (
        not isinstance(value, list)
        or len(value) > _MAX_KEEP
        or not all(isinstance(path, str) and path for path in value)
    ):
        raise ConfigError(f"{key!r} of the workflow has to name at most {_MAX_KEEP} fields")
    return value


def _bounded(value: object, key: str, fraction: bool, lowest: float, highest: float) -> float:
    allowed = (int, float) if fraction else (int,)
    good = isinstance(value, allowed) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not lowest <= value <= highest:  # type: ignore[operator]  # a number by now
        kind = "number" if fraction else "whole number"
        raise ConfigError(f"{key!r} of the workflow has to be a {kind} from {lowest:g} to {highest:g}")
    return value  # type: ignore[return-value]


def _text(value: dict[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not 0 < len(text) <= 128:
        raise ConfigError(f"the workflow needs {key!r}: a text of at most 128 characters")
    return text


def _flag(value: dict[str, Any], key: str) -> bool:
    flag = value.get(key, False)
    if not isinstance(flag, bool):
        raise ConfigError(f"{key!r} of the workflow has to be true or false")
    return flag


def _number(value: dict[str, Any], key: str) -> int:
    default, lowest, highest = _NUMBERS[key]
    number = value.get(key, default)
    if number is None:
        raise ConfigError(f"the workflow needs {key!r}")
    if isinstance(number, bool) or not isinstance(number, int) or not lowest <= number <= highest:
        raise ConfigError(f"{key!r} of the workflow has to be a whole number from {lowest} to {highest}")
    return number
