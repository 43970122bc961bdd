"""Workflow documents: what an organization asks the others to agree to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from comity.certificate import MAX_SCORE, QuorumRule
from comity.digest import sha256
from comity.errors import ConfigError
from comity.ids import organization_name
from comity.v1.agreement_pb2 import Obligations, ReviewTerms, Terms

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
}
_TEXTS = ("name", "purpose", "dataset")


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

    def first_terms(
        self, *, agreement_id: str, consortium: str, epoch: int, initiator: str, others: Sequence[str],
        obligations: Obligations, now_ms: int,
    ) -> Terms:  # fmt: skip
        """Return the first revision of the terms that are proposed to `others`."""
        participants = sorted({initiator, *others})
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
            review=review_terms(len(participants), self.numbers["min_score"]),
            obligations=obligations,
            lease_seconds=self.numbers["lease_seconds"],
            issued_ms=now_ms,
            expires_ms=now_ms + self.numbers["expires_seconds"] * 1000,
            workflow_digest=self.digest,
        )


def review_terms(participants: int, min_score: int, quorum: int = 0) -> ReviewTerms:
    """Return the quorum of an agreement of that many organizations, the author among them."""
    rule = QuorumRule.of(participants - 1, quorum)
    return ReviewTerms(eligible=rule.eligible, faulty=rule.faulty, quorum=rule.quorum, min_score=min_score)


def parse_workflow(document: bytes) -> WorkflowSpec:
    """Read a workflow document (a JSON object).

    Raises:
        ConfigError: it is no JSON object, a key is unknown or missing, or a value is out of range.
        InvalidName: a participant is no organization name.
    """
    if len(document) > _MAX_BYTES:
        raise ConfigError(f"the workflow has {len(document)} bytes; at most {_MAX_BYTES}")
    try:
        value = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the workflow is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError("the workflow is not a JSON object")
    unknown = sorted(set(value) - set(_NUMBERS) - set(_TEXTS) - {"participants"})
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
    )


def _text(value: dict[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not 0 < len(text) <= 128:
        raise ConfigError(f"the workflow needs {key!r}: a text of at most 128 characters")
    return text


def _number(value: dict[str, Any], key: str) -> int:
    default, lowest, highest = _NUMBERS[key]
    number = value.get(key, default)
    if number is None:
        raise ConfigError(f"the workflow needs {key!r}")
    if isinstance(number, bool) or not isinstance(number, int) or not lowest <= number <= highest:
        raise ConfigError(f"{key!r} of the workflow has to be a whole number from {lowest} to {highest}")
    return number
