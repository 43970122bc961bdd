"""What terms say to a policy, how they get stricter, and how strict they may get. Functions of terms alone.

Counter-offers only make terms stricter, and the strictest of all is what everybody signs. So that nobody can spoil a
workflow by asking for the impossible, the workflow says how much strictness it can live with (`Bounds`): who asks for
more drops out, and the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from comity.agreement import MAX_LIFETIME_MS, parse_terms
from comity.certificate import MAX_SCORE, QuorumRule
from comity.errors import AgreementError, CertificateInvalid
from comity.v1.agreement_pb2 import ReviewTerms, Terms
from comity_node.policy import obligations as duties
from comity_node.policy.model import LabelValue, Obligations, Request, overlaps
from comity_node.protocol.negotiation import Revision

#: What a counter-offer may not touch.
_FIXED = (
    "id", "revision", "consortium", "bundle_epoch", "initiator", "participants", "purpose", "dataset", "batch_records",
    "repair_rounds", "lease_seconds", "issued_ms", "expires_ms", "workflow_digest", "replaces",
    "flow", "homes",
)  # fmt: skip
_FIXED_REVIEW = ("panel", "draw_commitments", "commit_reveal")
#: Without a word from the workflow: a tenth of the records, and a score that leaves rows to certify.
_FEWEST = 10
_SCORE = 9_500
_RETAIN_S = 60
#: Bytes of terms that counter-offers were taken into: they go to everybody in one message.
_MAX_TERMS = 256 * 1024


@dataclass(frozen=True, slots=True)
class Bounds:
    """How strict terms may get before the workflow is of no use to who submitted it.

    Attributes:
        minimum_records: of each organization.
        maximum_min_score: 0 to 10000.
        maximum_quorum: votes; 0: as many as the reviewers have who are left when the faulty ones do not vote.
        maximum_distance: of a synthetic row to private ones, in the validators' unit.
        minimum_retain_seconds: for which recipients may keep records.
        maximum_grid: path to the coarsest grid that it may be generalized to.
        keep: paths of fields that have to stay readable: not redacted, hashed or masked.
    """

    minimum_records: int = 1
    maximum_min_score: int = MAX_SCORE
    maximum_quorum: int = 0
    maximum_distance: float = math.inf
    minimum_retain_seconds: int = 0
    maximum_grid: Mapping[str, float] = field(default_factory=dict)
    keep: frozenset[str] = frozenset()

    @classmethod
    def usual(cls, records: int, min_score: int, label: str) -> Bounds:
        """Return what a workflow can live with that says nothing about it.

        Args:
            records: that it asks of each organization.
            min_score: that it asks for.
            label: the dataset's label, without which nothing can be learned from a row; empty if there is none.
        """
        return cls(
            minimum_records=max(1, records // _FEWEST),
            maximum_min_score=max(_SCORE, min_score),
            minimum_retain_seconds=_RETAIN_S,
            keep=frozenset({label} - {""}),
        )

    def exceeded_by(self, terms: Terms) -> str:
        """Return what of these terms is too strict, in words; empty if nothing is."""
        owed, review = duties.from_terms(terms.obligations), terms.review
        quorum = self.maximum_quorum or review.eligible - review.faulty
        distance = owed.min_distance_to_private or 0.0
        retain_s = terms.obligations.retain_seconds
        unreadable = owed.redact | owed.hash | owed.mask.keys()
        lost = sorted(path for path in self.keep if overlaps(path, frozenset(unreadable)))
        gone_ms, wanted_ms = owed.expire_ms or 0, terms.issued_ms + self.minimum_retain_seconds * 1000
        many = owed.k_anonymity.k if owed.k_anonymity else 0
        coarse = sorted(path for path, grid in owed.generalize.items() if grid > self.maximum_grid.get(path, math.inf))
        wrong = {
            f"{terms.records_per_organization} records, at least {self.minimum_records} are needed": (
                terms.records_per_organization < self.minimum_records
            ),
            f"a min_score of {review.min_score}, at most {self.maximum_min_score} is borne": (
                review.min_score > self.maximum_min_score
            ),
            f"a quorum of {review.quorum} of {review.eligible}, at most {quorum} is borne": review.quorum > quorum,
            f"a distance of {distance:g}, at most {self.maximum_distance:g} is borne": distance > self.maximum_distance,
            f"records kept {retain_s} s, at least {self.minimum_retain_seconds} s are needed": (
                0 < retain_s < self.minimum_retain_seconds
            ),
            "records gone before anybody can use them": 0 < gone_ms < wanted_ms,
            f"{many} alike in each batch, which has {terms.batch_records} records": many > terms.batch_records,
            f"fields unreadable that have to stay: {', '.join(lost)}": bool(lost),
            f"grids too coarse: {', '.join(coarse)}": bool(coarse),
        }
        return "; ".join(text for text, is_wrong in wrong.items() if is_wrong)


def labels_of(terms: Terms) -> dict[str, LabelValue]:
    """Return what a policy's `when` can ask about terms (`policy.model.LABELS`)."""
    review = terms.review
    return {
        "records": terms.records_per_organization,
        "batch_records": terms.batch_records,
        "repair_rounds": terms.repair_rounds,
        "participants": len(terms.participants),
        "eligible": review.eligible,
        "faulty": review.faulty,
        "quorum": review.quorum,
        "min_score": review.min_score / MAX_SCORE,
        "lease_seconds": terms.lease_seconds,
        "lifetime_seconds": (terms.expires_ms - terms.issued_ms) / 1000,
        # Votes count once for each organization, whatever its nodes: comity.certificate.
        "distinct_organizations": True,
    }


def offer(terms: Terms, organization: str) -> Request:
    """Return what an initiator asks its policy about each of the others."""
    return _about("agreement.offer", terms, organization)


def accept(terms: Terms) -> Request:
    """Return what a participant asks its policy about terms that were proposed."""
    return _about("agreement.accept", terms, terms.initiator)


def _about(action: str, terms: Terms, organization: str) -> Request:
    return Request(
        action,
        organization,
        purpose=terms.purpose,
        dataset=terms.dataset,
        kind="synthetic",
        labels=labels_of(terms),
    )


def review_terms(participants: int, min_score: int, quorum: int = 0, like: ReviewTerms | None = None) -> ReviewTerms:
    """Return the quorum of an agreement of that many organizations, the author among them.

    Args:
        participants: the organizations.
        min_score: 0 to 10000.
        quorum: votes that a policy asks for at least.
        like: what else was said about reviewing, which stays. A panel of all others is none.

    Raises:
        AgreementError: there are not that many reviewers.
    """
    kept = like or ReviewTerms()
    panel = kept.panel if kept.panel < participants - 1 else 0
    try:
        rule = QuorumRule.of(panel or participants - 1, quorum)
    except CertificateInvalid as error:
        raise AgreementError(str(error)) from error
    return ReviewTerms(
        eligible=rule.eligible,
        faulty=rule.faulty,
        quorum=rule.quorum,
        min_score=min_score,
        panel=panel,
        draw_commitments=kept.draw_commitments if panel else (),
        commit_reveal=kept.commit_reveal,
    )


def tighten(terms: Terms, owed: Obligations) -> None:
    """Bring terms up to what is owed, in place: never looser than they were.

    Raises:
        AgreementError: it asks for more reviewers than take part.
    """
    merged = duties.merge(duties.from_terms(terms.obligations), owed)
    terms.obligations.CopyFrom(duties.to_terms(merged))
    if owed.review is not None:
        quorum = max(terms.review.quorum, owed.review.quorum or 0)
        min_score = max(terms.review.min_score, duties.to_score(owed.review.min_score or 0.0))
        terms.review.CopyFrom(review_terms(len(terms.participants), min_score, quorum, terms.review))


def same(terms: Terms, counter: Terms) -> bool:
    """Whether a counter-offer asks for nothing that the terms do not ask for."""
    return (
        duties.from_terms(terms.obligations) == duties.from_terms(counter.obligations)
        and terms.review == counter.review
        and terms.records_per_organization == counter.records_per_organization
    )


def check_counter(terms: Terms, counter: Terms) -> None:
    """Refuse a counter-offer that is looser than the proposal, or changes what is not up for negotiation.

    Raises:
        AgreementError: it is one of these.
    """
    looser = (
        not duties.covers(duties.from_terms(counter.obligations), duties.from_terms(terms.obligations))
        or counter.review.quorum < terms.review.quorum
        or counter.review.min_score < terms.review.min_score
        or counter.records_per_organization > terms.records_per_organization
    )
    other = any(getattr(counter.review, name) != getattr(terms.review, name) for name in _FIXED_REVIEW)
    if looser or other or any(getattr(terms, name) != getattr(counter, name) for name in _FIXED):
        raise AgreementError("the counter-offer is looser than the proposal, or about something else")


def revise(
    terms: bytes, counters: Mapping[str, bytes], stay: tuple[str, ...], bounds: Bounds, fresh_id: str
) -> Revision:
    """Make the next revision: the strictest of all, for those who stay.

    A counter-offer that asks for more than the bounds allow, by itself or on top of those before it in the order of
    names, is not taken in: its organization is out.

    Args:
        terms: the latest revision.
        counters: who asks for what.
        stay: the others who stay.
        bounds: what can be borne.
        fresh_id: the new id, if the old one is used up; else empty.
    """
    base = Terms.FromString(terms)
    base.revision += 1
    base.id = fresh_id or base.id
    del base.participants[:]
    base.participants.extend(sorted({base.initiator, *stay}))
    homes = [name for name in base.homes if name in base.participants]
    del base.homes[:]
    base.homes.extend(homes)
    del base.review.draw_commitments[:]  # of those who took part before
    asked, others = base.review, len(base.participants) - 1
    eligible = asked.panel if 0 < asked.panel < others else others
    base.review.CopyFrom(review_terms(others + 1, asked.min_score, min(asked.quorum, eligible), asked))
    revised, out = base, dict[str, str]()
    for name, counter in sorted(counters.items()):
        read = Terms.FromString(counter)
        alone = bounds.exceeded_by(_merged(base, read))
        candidate = _merged(revised, read)
        if reason := alone or bounds.exceeded_by(candidate) or _unfit(candidate):
            out[name] = f"asks for more than the workflow can live with: {reason}"
        else:
            revised = candidate
    return Revision(revised.SerializeToString(), out)


def _unfit(terms: Terms) -> str:
    """Return why terms could not be signed by anybody: what is sound by itself need not be so together."""
    data = terms.SerializeToString()
    if len(data) > _MAX_TERMS:
        return f"terms of {len(data)} bytes"
    try:
        parse_terms(data)
    except AgreementError as error:
        return str(error)
    return ""


def _merged(terms: Terms, counter: Terms) -> Terms:
    merged = Terms.FromString(terms.SerializeToString())
    owed = duties.merge(duties.from_terms(terms.obligations), duties.from_terms(counter.obligations))
    merged.obligations.CopyFrom(duties.to_terms(owed))
    quorum = min(max(terms.review.quorum, counter.review.quorum), terms.review.eligible)
    min_score = max(terms.review.min_score, counter.review.min_score)
    merged.review.CopyFrom(review_terms(len(terms.participants), min_score, quorum, terms.review))
    merged.records_per_organization = min(terms.records_per_organization, counter.records_per_organization)
    return merged


def words(terms: Terms) -> str:
    """Return a line about terms, for the steps of a workflow."""
    quorum = f"quorum {terms.review.quorum} of {terms.review.eligible}"
    return f"revision {terms.revision}: {len(terms.participants)} organizations, {quorum}"


def wishes(terms: Terms, counter: Terms) -> str:
    """Return a line about what a counter-offer asks for beyond the terms."""
    asked, wanted = duties.from_terms(terms.obligations), duties.from_terms(counter.obligations)
    parts = []
    if wanted.min_distance_to_private != asked.min_distance_to_private:
        parts.append(f"min_distance_to_private {wanted.min_distance_to_private:g}")
    for name in ("generalize", "redact", "hash", "mask", "noise"):
        if (paths := getattr(wanted, name)) != getattr(asked, name):
            parts.append(f"{name} {', '.join(sorted(paths))}")
    for name in ("retain_ms", "expire_ms", "k_anonymity", "onward"):
        if getattr(wanted, name) != getattr(asked, name):
            parts.append(f"a stricter {name.removesuffix('_ms')}")
    if counter.review != terms.review:
        parts.append(f"quorum {counter.review.quorum}, min_score {counter.review.min_score}")
    if counter.records_per_organization != terms.records_per_organization:
        parts.append(f"{counter.records_per_organization} records")
    return f"would sign: {'; '.join(parts)}"


def lasting(seconds: int, now_ms: int, expires_ms: int) -> int:
    """Return when a negotiation ends at the latest: after `seconds`, and before its terms would expire."""
    return min(now_ms + min(seconds * 1000, MAX_LIFETIME_MS), expires_ms)
