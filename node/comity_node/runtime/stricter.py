"""What terms a policy would accept instead of those that it refuses: fewer records, more votes, a higher score.

A rule whose limits alone stand against a proposal says how strict the terms would have to be. Only what a counter-offer
may change is looked at; whether the policy accepts the result is for the policy to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final

from comity.errors import AgreementError
from comity.v1.agreement_pb2 import Terms
from comity_node.policy import obligations as duties
from comity_node.policy.model import NumberCondition, Rule
from comity_node.runtime.bargain import review_terms

#: Rules that are looked at for one proposal.
_MOST_RULES: Final = 64


def stricter(terms: Terms, rules: Iterable[Rule]) -> Iterator[Terms]:
    """Yield terms within the limits of each rule that allows `agreement.accept`, where they differ from `terms`.

    Args:
        terms: what was proposed and refused.
        rules: of the policy; in their order, at most 64 of those that allow it.
    """
    accepting = (rule for rule in rules if rule.allows and {"agreement.accept", "*"} & rule.actions)
    for _, rule in zip(range(_MOST_RULES), accepting, strict=False):
        limits = [one for one in rule.conditions if isinstance(one, NumberCondition)]
        try:
            candidate = _within(terms, limits)
        except AgreementError:  # it wants more votes than there are reviewers
            continue
        if candidate != terms and candidate.records_per_organization > 0:
            yield candidate


def _within(terms: Terms, limits: Iterable[NumberCondition]) -> Terms:
    candidate = Terms.FromString(terms.SerializeToString())
    quorum, min_score = terms.review.quorum, terms.review.min_score
    for limit in limits:
        if limit.label == "records" and limit.maximum < candidate.records_per_organization:
            candidate.records_per_organization = max(0, math.floor(limit.maximum))
        elif limit.label == "quorum" and math.isfinite(limit.minimum):
            quorum = max(quorum, math.ceil(limit.minimum))
        elif limit.label == "min_score" and 0 <= limit.minimum <= 1:
            min_score = max(min_score, duties.to_score(limit.minimum))
    candidate.review.CopyFrom(review_terms(len(terms.participants), min_score, quorum, terms.review))
    return candidate
