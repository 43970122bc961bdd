"""What a recipient says about a delivery of tokens: as it is written, and as it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from comity.errors import LinkClosed
from comity.v1 import flow_pb2 as pb
from comity_node.protocol.token import Token
from comity_node.runtime.passing.ports import Answer, Verdict, Verdicts

_REASON_CHARS: Final = 200
_LONGEST_RETRY_S: Final = 600.0
#: What `wait_ms` holds.
_LONGEST_MS: Final = (1 << 32) - 1

_OUTCOMES: Final = {
    Answer.TAKEN: pb.TokenReceipt.OUTCOME_TAKEN,
    Answer.KNOWN: pb.TokenReceipt.OUTCOME_KNOWN,
    Answer.STALE: pb.TokenReceipt.OUTCOME_STALE,
    Answer.OVER: pb.TokenReceipt.OUTCOME_OVER,
    Answer.BUSY: pb.TokenReceipt.OUTCOME_BUSY,
    Answer.REFUSED: pb.TokenReceipt.OUTCOME_REFUSED,
}
_ANSWERS: Final = {outcome: answer for answer, outcome in _OUTCOMES.items()}
#: A token that came in pieces to somebody who does not have them all; it is a little later sent again.
MISSING: Final = Verdict(Answer.BUSY, "it does not have what was left out", 1.0)
#: What a recipient keeps the texts of.
_HAS: Final = (Answer.TAKEN, Answer.KNOWN)


class Heard(NamedTuple):
    """What a recipient says about a delivery.

    Attributes:
        verdicts: one for each token, and how loaded it says that it is.
        missing: places of tokens of which it does not have all that was left out.
        keeps: what it keeps of those that it took.
    """

    verdicts: Verdicts
    missing: Sequence[int] = ()
    keeps: pb.Keeps | None = None


def taken(tokens: Sequence[Token | None], verdicts: Sequence[Verdict]) -> list[Token | None]:
    """Return those of `tokens` that the recipient has now, None for each of the others."""
    return [token if one.answer in _HAS else None for token, one in zip(tokens, verdicts, strict=True)]


def write_receipts(verdicts: Sequence[Verdict], wait_s: float | None, keeps: pb.Keeps | None) -> bytes:
    """Return the receipts of a delivery; a verdict that is `MISSING` itself says so."""
    receipts = [
        pb.TokenReceipt(outcome=pb.TokenReceipt.OUTCOME_MISSING)
        if one is MISSING
        else pb.TokenReceipt(
            outcome=_OUTCOMES[one.answer], reason=one.reason[:_REASON_CHARS],
            retry_after_ms=round(min(one.retry_after_s, _LONGEST_RETRY_S) * 1000),
        )
        for one in verdicts
    ]  # fmt: skip
    wait_ms = None if wait_s is None else min(_LONGEST_MS, round(wait_s * 1000))
    return pb.TokenReceipts(receipts=receipts, wait_ms=wait_ms, keeps=keeps).SerializeToString()


def read_receipts(sender: str, body: bytes, count: int) -> Heard:
    """Return what a receipt says of each token, and of `sender`.

    Raises:
        LinkClosed: it does not say what became of each token: they are delivered again.
    """
    try:
        answer = pb.TokenReceipts.FromString(body)
    except DecodeError as error:
        raise LinkClosed(f"{sender} gave receipts that do not parse") from error
    receipts = answer.receipts
    missing = [at for at, one in enumerate(receipts) if one.outcome == pb.TokenReceipt.OUTCOME_MISSING]
    known = sum(one.outcome in _ANSWERS for one in receipts) + len(missing)
    if len(receipts) != count or known != count:
        raise LinkClosed(f"{sender} does not say what became of each token")
    verdicts = [
        Verdict(_ANSWERS[one.outcome], one.reason[:_REASON_CHARS], min(one.retry_after_ms / 1000, _LONGEST_RETRY_S))
        if one.outcome in _ANSWERS
        else MISSING
        for one in receipts
    ]
    wait_s = answer.wait_ms / 1000 if answer.HasField("wait_ms") else None
    return Heard(Verdicts(verdicts, wait_s), missing, answer.keeps if answer.HasField("keeps") else None)
