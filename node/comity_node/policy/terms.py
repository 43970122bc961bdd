"""Obligations in agreements (`comity.v1.Obligations`) and as JSON, in the words of the policy language."""

from __future__ import annotations

import math
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from comity.errors import AgreementError, ConfigError
from comity.v1 import agreement_pb2
from comity_node.policy.lattice import KAnonymity, Noise, Obligations, Onward, ReviewTerms

_SCORE_UNIT = 10_000


def to_terms(obligations: Obligations) -> agreement_pb2.Obligations:
    """Return the wire form: all but what is the sender's own business (see `lattice.shared`), and but review, which is
    a message of its own, and `drop_personal`, which the engine has written out in `redact`.
    """  # noqa: D205  (the first sentence is one)
    anonymity = obligations.k_anonymity
    return agreement_pb2.Obligations(
        redact=sorted(obligations.redact),
        generalize=dict(obligations.generalize),
        min_distance_to_private=obligations.min_distance_to_private or 0.0,
        onward=obligations.onward.word,
        retain_seconds=max(obligations.retain_ms // 1000, 1) if obligations.retain_ms is not None else 0,
        mask=dict(obligations.mask),
        hash=sorted(obligations.hash),
        noise={
            path: agreement_pb2.Noise(epsilon=each.epsilon, lower=each.lower, upper=each.upper)
            for path, each in obligations.noise.items()
        },
        k_anonymity=agreement_pb2.KAnonymity(k=anonymity.k, fields=sorted(anonymity.fields)) if anonymity else None,
        expire_ms=obligations.expire_ms or 0,
    )


def from_terms(message: agreement_pb2.Obligations, review: agreement_pb2.ReviewTerms | None = None) -> Obligations:
    """Return what an agreement asks for; with its review terms if they are given. No word about onward means never.

    Raises:
        AgreementError: a path is empty, a number is out of range, onward is an unknown word, or something is asked for
            that this version does not know.
    """
    anonymity = message.k_anonymity if message.HasField("k_anonymity") else None
    paths = (*message.redact, *message.generalize, *message.mask, *message.hash, *message.noise)
    if not all((*paths, *(anonymity.fields if anonymity else ()))):
        raise AgreementError("the agreement's obligations name an empty path")
    parts: tuple[Message, ...] = (message, *message.noise.values(), *((anonymity,) if anonymity else ()))
    if any(len(UnknownFieldSet(part)) for part in parts):
        raise AgreementError("the agreement asks for obligations that this version does not know: update this node")
    try:
        return Obligations(
            redact=frozenset(message.redact),
            generalize=dict(message.generalize),
            min_distance_to_private=message.min_distance_to_private,
            retain_ms=message.retain_seconds * 1000 or None,
            review=_read_review(review) if review is not None else None,
            onward=Onward.parse(message.onward) if message.onward else Onward.NEVER,
            mask=dict(message.mask),
            hash=frozenset(message.hash),
            noise={path: Noise(each.epsilon, each.lower, each.upper) for path, each in message.noise.items()},
            k_anonymity=KAnonymity(anonymity.k, frozenset(anonymity.fields)) if anonymity else None,
            expire_ms=_read_time(message.expire_ms),
        )
    except ConfigError as error:
        raise AgreementError(f"the agreement's obligations: {error}") from error


def _read_time(expire_ms: int) -> int | None:
    if expire_ms < 0:
        raise AgreementError("the agreement's obligations expire before 1970")
    return expire_ms or None


def to_score(score: float) -> int:
    """Return a score from 0 to 1 in the wire's ten-thousandths, rounded up, so that it never gets looser."""
    return math.ceil(round(score * _SCORE_UNIT, 6))


def _read_review(review: agreement_pb2.ReviewTerms) -> ReviewTerms:
    if review.min_score > _SCORE_UNIT:
        raise AgreementError(f"the agreement's min_score is {review.min_score}; it must be at most {_SCORE_UNIT}")
    return ReviewTerms(review.quorum, True, review.min_score / _SCORE_UNIT)


def to_json(obligations: Obligations) -> dict[str, Any]:
    """Return what is asked for, in the words of the policy language; only what is there, and always onward."""
    review, anonymity = obligations.review, obligations.k_anonymity
    entries: dict[str, Any] = {
        "redact": sorted(obligations.redact),
        "drop_personal": obligations.drop_personal,
        "generalize": dict(obligations.generalize),
        "mask": dict(obligations.mask),
        "hash": sorted(obligations.hash),
        "noise": {
            path: {"epsilon": each.epsilon, "lower": each.lower, "upper": each.upper}
            for path, each in obligations.noise.items()
        },
        "k_anonymity": anonymity and {"k": anonymity.k, "fields": sorted(anonymity.fields)},
        "min_distance_to_private": obligations.min_distance_to_private,
        "rate": [{"records": rate.records, "per_ms": rate.per_ms, "rule": rate.rule} for rate in obligations.rates],
        "quota": [{"records": quota.records, "rule": quota.rule} for quota in obligations.quotas],
        "budget": [{"epsilon": one.epsilon, "per": list(one.per), "rule": one.rule} for one in obligations.budgets],
        "notify": sorted(obligations.notify),
        "approval": [{"deadline_ms": each.deadline_ms, "rule": each.rule} for each in obligations.approvals],
        "retain_ms": obligations.retain_ms,
        "expire_ms": obligations.expire_ms,
        "review": review
        and {
            "quorum": review.quorum,
            "distinct_organizations": review.distinct_organizations,
            "min_score": review.min_score,
        },
    }
    return {**{key: value for key, value in entries.items() if value}, "onward": obligations.onward.word}
