"""How an agreement comes about: a participant's side, sans-IO.

    (nothing) ──sign──> SIGNED ──agreement──> CONCLUDED
                          │  └──given up──> RELEASED ──agreement──> CONCLUDED

A participant answers proposals without keeping anything. Its signature is a promise: it is written down before it
leaves, and from then on this node signs no other terms of the same id, whatever anybody says. That one rule is what the
guarantee rests on (docs/adr/0015): an agreement lists the signature of every participant, so two different agreements
of one id have no honest participant in common.

A participant that has signed does not know whether the agreement was concluded until it gets it. The initiator delivers
it through its outbox; who still waits asks, the initiator and the other participants in turn. "Given up" is only the
initiator's word, and a lying one may still hold all signatures: so the promise stays, and when the agreement shows up
after all it is what was promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from comity.errors import AgreementError

#: Milliseconds from the signature to the first question, and the longest pause between two; it doubles.
_FIRST_ASK_MS = 30_000
_MOST_ASK_MS = 3_600_000


class Stage(StrEnum):
    """What this node knows of terms that it has signed."""

    SIGNED = "signed"
    RELEASED = "released"
    CONCLUDED = "concluded"


@dataclass(frozen=True, slots=True)
class Promise:
    """The one set of terms of an id that this node has signed.

    Attributes:
        digest: SHA-256 of the terms.
        stage: what is known of them.
        ends_ms: when the terms expire: an agreement that comes later is none.
        asks: how often somebody was asked what became of them.
        ask_ms: when to ask again.
    """

    digest: bytes
    stage: Stage
    ends_ms: int
    asks: int = 0
    ask_ms: int = 0

    def is_due(self, now_ms: int) -> bool:
        """Whether it is time to ask what became of it."""
        return self.stage is not Stage.CONCLUDED and self.ask_ms <= now_ms < self.ends_ms

    def whom(self, initiator: str, others: Sequence[str]) -> str:
        """Return whom to ask: every second time the initiator, as long as it has not given the terms up.

        Args:
            initiator: who proposed them.
            others: the other participants, without this node's organization and the initiator.
        """
        if not others or (self.stage is Stage.SIGNED and self.asks % 2 == 0):
            return initiator
        turn = self.asks // 2 if self.stage is Stage.SIGNED else self.asks
        return others[turn % len(others)]


def sign(known: Promise | None, digest: bytes, ends_ms: int, now_ms: int) -> Promise:
    """Promise these terms; the same ones again are the same promise.

    Args:
        known: what this node has signed of the same id.
        digest: of the terms that it is asked to sign.
        ends_ms: when they expire.
        now_ms: the time.

    Raises:
        AgreementError: it has signed other terms of this id.
    """
    if known is None:
        return Promise(digest, Stage.SIGNED, ends_ms, ask_ms=now_ms + _FIRST_ASK_MS)
    if known.digest != digest:
        raise AgreementError("other terms of this id are signed already; propose them under a fresh id")
    return known


def asked(promise: Promise, now_ms: int) -> Promise:
    """Note that somebody is asked now."""
    pause_ms = min(_FIRST_ASK_MS << min(promise.asks, 16), _MOST_ASK_MS)
    return replace(promise, asks=promise.asks + 1, ask_ms=now_ms + pause_ms)


def given_up(promise: Promise) -> Promise:
    """Note that the initiator says that it has given the terms up; a promise all the same."""
    return replace(promise, stage=Stage.RELEASED) if promise.stage is Stage.SIGNED else promise


def concluded(known: Promise | None, digest: bytes) -> Promise | None:
    """Note that an agreement of this id, signed by all, has come.

    Raises:
        AgreementError: this node has signed other terms of this id: somebody used its organization's key elsewhere.
    """
    if known is None:
        return None
    if known.digest != digest:
        raise AgreementError("the agreement is over other terms than this node has signed under its id")
    return replace(known, stage=Stage.CONCLUDED)
