"""What is known about a record when the policy is asked: the labels that its rules may ask about.

They follow from the agreement, the record, what its home attests and its certificate, so that both sides and a later
look find the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from comity.agreement import Agreed
from comity.v1.task_pb2 import Certificate
from comity_node.policy.conditions import Labels, LabelValue

_SCORE_UNIT: Final = 10_000
_MS_PER_S: Final = 1000

_OF_TERMS: Final[Mapping[str, Callable[[Agreed], LabelValue]]] = {
    "records": lambda agreed: agreed.terms.records_per_organization,
    "batch_records": lambda agreed: agreed.terms.batch_records,
    "repair_rounds": lambda agreed: agreed.terms.repair_rounds,
    "participants": lambda agreed: len(agreed.participants),
    "eligible": lambda agreed: agreed.rule.eligible,
    "faulty": lambda agreed: agreed.rule.faulty,
    "quorum": lambda agreed: agreed.rule.quorum,
    "min_score": lambda agreed: agreed.terms.review.min_score / _SCORE_UNIT,
    "lease_seconds": lambda agreed: agreed.terms.lease_seconds,
    "lifetime_seconds": lambda agreed: (agreed.terms.expires_ms - agreed.terms.issued_ms) // _MS_PER_S,
    # The author does not vote, and each organization has one vote.
    "distinct_organizations": lambda agreed: True,
}


def terms_labels(agreed: Agreed, asked: Callable[[str], bool]) -> dict[str, LabelValue]:
    """Return the labels that follow from an agreement, of those that are asked about."""
    labels = {name: label(agreed) for name, label in _OF_TERMS.items() if asked(name)}
    owed = agreed.terms.obligations
    if asked("k") and owed.HasField("k_anonymity"):
        labels["k"] = owed.k_anonymity.k
    return labels


def certificate_labels(certificate: Certificate) -> Labels:
    """Return what a certificate says about its record, as labels."""
    return {"score": certificate.score / _SCORE_UNIT, "reviews": len(certificate.votes)}
