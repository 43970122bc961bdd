"""Terms of agreements: what organizations sign, and within which bounds it makes sense."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from comity import draw
from comity.certificate import MAX_SCORE, QuorumRule
from comity.digest import canonical_json, sha256
from comity.errors import AgreementError, CertificateInvalid, InvalidName
from comity.ids import organization_name
from comity.v1.agreement_pb2 import Noise, Obligations, Terms

#: Of the digest of terms.
DIGEST_BYTES = 32
_MAX_PARTICIPANTS = 256
_MAX_BATCH = 256
_MAX_REPAIRS = 10
_MAX_LEASE_S = 3600
#: Characters of an id, a purpose, a dataset or a name.
MAX_TEXT = 128
_MAX_PATHS = 256
#: Of one organization, under one agreement.
MAX_RECORDS = 1_000_000
#: No agreement lasts longer.
MAX_LIFETIME_MS = 366 * 24 * 3600 * 1000
_MAX_RETAIN_S = 100 * 366 * 24 * 3600
_MAX_KEPT = 64
_MAX_K = 1_000_000
#: Bytes of the steps by which records are made.
MAX_FLOW = 64 * 1024
_MAX_EPSILON = 1e6
_MAX_BOUND = 1e12
#: How far another organization's clock may be ahead.
_SKEW_MS = 30_000
_ONWARD = frozenset({"", "never", "with_consent", "allowed"})


@dataclass(frozen=True, slots=True)
class Agreed:
    """An agreement whose signatures verified (or terms that are still being negotiated)."""

    terms: Terms
    digest: bytes
    #: Of the draw of panels, 32 bytes; empty where none are drawn, or not everybody has signed yet.
    chance: bytes = b""

    @property
    def participants(self) -> frozenset[str]:
        """The organizations that take part."""
        return frozenset(self.terms.participants)

    @property
    def homes(self) -> frozenset[str]:
        """The organizations whose records are made."""
        return frozenset(self.terms.homes) or self.participants

    @property
    def rule(self) -> QuorumRule:
        """The quorum that certificates under it take."""
        review = self.terms.review
        return QuorumRule(review.eligible, review.faulty, review.quorum)

    def reviewers(self, author: str) -> frozenset[str]:
        """The organizations that see a record of `author` and may be drawn to vote on it."""
        return self.participants - {author}

    @property
    def batches(self) -> int:
        """How many batches each home has at most; with a flow a record can be a batch of its own."""
        return draw.batches(self.terms)

    def panel(self, author: str, batch: bytes) -> frozenset[str]:
        """The organizations that vote on the tasks of one of `author`'s batches, by its 16-byte id.

        Raises:
            CertificateInvalid: with a panel, it is no batch of the author's under this agreement.
        """
        if not self.terms.review.panel:
            return self.reviewers(author)
        return self.numbered_panel(author, draw.number_of(self.digest, author, batch, self.batches))

    def numbered_panel(self, author: str, number: int) -> frozenset[str]:
        """The organizations that vote on the tasks of `author`'s batch with this number, from 0.

        Raises:
            CertificateInvalid: with a panel, there is no such batch, or the author takes no part.
        """
        others, size = self.reviewers(author), self.terms.review.panel
        if not size:
            return others
        if author not in self.participants or not 0 <= number < self.batches or not self.chance:
            raise CertificateInvalid(f"{author} has no batch {number} under agreement {self.digest.hex()[:12]}")
        names = draw.draw(
            agreement=self.digest, chance=self.chance, epoch=self.terms.bundle_epoch, author=author, batch=number,
            eligible=others, size=size,
        )  # fmt: skip
        return frozenset(names)

    def check_place(self, author: str, task: bytes, number: int, ordinal: int) -> None:
        """With a panel: check that a task is the one at this place of `author`'s batch with this number.

        Raises:
            CertificateInvalid: it is not; its author would have chosen its panel.
        """
        if not self.terms.review.panel:
            if number or ordinal:
                raise CertificateInvalid("a place in a batch is named where no panel is drawn")
            return
        batch = draw.batch_id(self.digest, author, number)
        if not 0 <= ordinal < self.terms.batch_records or draw.task_id(batch, ordinal) != task:
            raise CertificateInvalid(f"task {task.hex()} is not number {ordinal} of batch {number} of {author}")

    def check_active(self, now_ms: int) -> None:
        """Refuse an agreement that is over, or has not begun.

        Raises:
            AgreementError: it is not in force at `now_ms`.
        """
        if now_ms >= self.terms.expires_ms:
            raise AgreementError(f"agreement {self.digest.hex()[:12]} has expired; negotiate a new one")
        if now_ms < self.terms.issued_ms - _SKEW_MS:
            raise AgreementError(f"agreement {self.digest.hex()[:12]} has not begun: compare the clocks")


def parse_terms(data: bytes) -> Agreed:
    """Read terms and check that they make sense.

    Raises:
        AgreementError: they do not parse, or a value is out of range (the message says which).
    """
    try:
        terms = Terms.FromString(data)
    except DecodeError as error:
        raise AgreementError("the terms do not parse") from error
    participants = list(terms.participants)
    if participants != sorted(set(participants)) or not 2 <= len(participants) <= _MAX_PARTICIPANTS:
        raise AgreementError("participants have to be sorted, distinct, and from 2 to 256")
    try:
        for name in participants:
            organization_name(name)
        QuorumRule(terms.review.eligible, terms.review.faulty, terms.review.quorum).check()
    except (InvalidName, CertificateInvalid) as error:
        raise AgreementError(str(error)) from error
    wrong = [text for text, bad in _faults(terms) if bad]
    if wrong:
        raise AgreementError("terms refused: " + "; ".join(wrong))
    return Agreed(terms, sha256(data))


def _faults(terms: Terms) -> list[tuple[str, bool]]:
    return [
        ("the initiator does not take part", terms.initiator not in terms.participants),
        (
            "the author does not vote, so eligible is participants - 1, or the size of a panel that is smaller",
            terms.review.eligible != (terms.review.panel or len(terms.participants) - 1),
        ),
        *draw.faults(terms),
        ("there is no id", not terms.id),
        ("what it replaces is no digest", len(terms.replaces) not in (0, DIGEST_BYTES)),
        ("min_score is over 10000", terms.review.min_score > MAX_SCORE),
        (f"records_per_organization is not 1..{MAX_RECORDS}", not 1 <= terms.records_per_organization <= MAX_RECORDS),
        ("an id, a purpose or a dataset is over 128 characters", _longest(terms) > MAX_TEXT),
        (f"over {_MAX_PATHS} fields have obligations", _paths(terms.obligations) > _MAX_PATHS),
        (f"the flow is no JSON object in RFC 8785 form of at most {MAX_FLOW} bytes", not _is_flow(terms.flow)),
        ("the homes are not sorted, distinct, and among the participants", not _are_homes(terms)),
        (f"batch_records is not 1..{_MAX_BATCH}", not 1 <= terms.batch_records <= _MAX_BATCH),
        (f"repair_rounds is over {_MAX_REPAIRS}", terms.repair_rounds > _MAX_REPAIRS),
        (f"lease_seconds is not 1..{_MAX_LEASE_S}", not 1 <= terms.lease_seconds <= _MAX_LEASE_S),
        ("it does not last from 1 ms to 366 days", not 0 < terms.expires_ms - terms.issued_ms <= MAX_LIFETIME_MS),
        *_obligation_faults(terms.obligations),
    ]


def _obligation_faults(owed: Obligations) -> list[tuple[str, bool]]:
    anonymity = owed.k_anonymity if owed.HasField("k_anonymity") else None
    return [
        ("onward is not never, with_consent or allowed", owed.onward not in _ONWARD),
        (
            "a grid of generalize is no positive number",
            not all(0 < grid < math.inf for grid in owed.generalize.values()),
        ),
        (f"a mask leaves over {_MAX_KEPT} characters", any(kept > _MAX_KEPT for kept in owed.mask.values())),
        ("noise has no epsilon over 0 or no range of numbers", not all(_is_noise(one) for one in owed.noise.values())),
        (
            f"k_anonymity has no k of 2..{_MAX_K} or no fields",
            anonymity is not None and not (2 <= anonymity.k <= _MAX_K and anonymity.fields),
        ),
        ("min_distance_to_private is no number of at least 0", not 0 <= owed.min_distance_to_private < math.inf),
        ("retain_seconds is over 100 years", owed.retain_seconds > _MAX_RETAIN_S),
        ("expire_ms is before 1970", owed.expire_ms < 0),
    ]


def _is_flow(flow: bytes) -> bool:
    """Whether it can be a flow; what it says, the node reads (`comity_node.protocol.flow`)."""
    if not flow:
        return True
    if len(flow) > MAX_FLOW:
        return False
    try:
        value = json.loads(flow)
        return isinstance(value, dict) and canonical_json(value) == flow
    except (ValueError, RecursionError):
        return False


def _are_homes(terms: Terms) -> bool:
    homes = list(terms.homes)
    return homes == sorted(set(homes)) and set(homes) <= set(terms.participants)


def _is_noise(noise: Noise) -> bool:
    return 0 < noise.epsilon <= _MAX_EPSILON and -_MAX_BOUND <= noise.lower < noise.upper <= _MAX_BOUND


def _longest(terms: Terms) -> int:
    return max(len(text) for text in (terms.id, terms.purpose, terms.dataset, terms.consortium))


def _paths(owed: Obligations) -> int:
    named = (owed.redact, owed.generalize, owed.mask, owed.hash, owed.noise, owed.k_anonymity.fields)
    return sum(len(paths) for paths in named)
