"""Witnessing of logs: what is sent, and how a witness judges it (https://c2sp.org/tlog-witness), sans-IO.

A log sends its newest checkpoint with a proof that it grew from the last one that the witness cosigned. The body is
that of the specification's `add-checkpoint`: a line `old SIZE`, the proof's hashes in base64, an empty line, the
checkpoint.

A witness never cosigns two trees of one log of which neither begins with the other, and never a smaller tree after a
larger one. Whoever made the log's past anew, or went back to an older copy of it, is found at the next exchange.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from comity import merkle
from comity.errors import ProofInvalid, UnexpectedMessage

#: Bytes of a message, and of the checkpoint in it with all its signatures.
MAX_BODY: Final = 16 * 1024
MAX_NOTE: Final = 6 * 1024
_MAX_PROOF: Final = 63
_OLD: Final = re.compile(r"old (0|[1-9][0-9]{0,18})")


class Verdict(StrEnum):
    """What a witness does with a checkpoint; the value is the code of the receipt that refuses."""

    COSIGN = "cosign"
    #: The proof begins elsewhere than at the last head that this witness cosigned: the answer says where.
    ELSEWHERE = "checkpoint_elsewhere"
    #: The log is smaller than it was: an older copy of it was put in its place.
    SHRUNK = "checkpoint_shrunk"
    #: Two trees of one size, or a tree that did not grow from the last one: the log has two pasts.
    FORKED = "checkpoint_forked"

    @property
    def contradicts(self) -> bool:
        """Whether the checkpoint and the last one cannot both be of an honest log."""
        return self in (Verdict.SHRUNK, Verdict.FORKED)


@dataclass(frozen=True, slots=True)
class Head:
    """A tree's head: leaves and root (32 bytes)."""

    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Submission:
    """A checkpoint for a witness.

    Attributes:
        old: leaves of the tree that the proof begins at.
        proof: hashes of 32 bytes.
        note: the checkpoint.
    """

    old: int
    proof: tuple[bytes, ...]
    note: str

    def encode(self) -> bytes:
        """Return the message's body."""
        lines = [f"old {self.old}", *(base64.b64encode(each).decode() for each in self.proof), "", self.note]
        return "\n".join(lines).encode()


def parse_submission(body: bytes) -> Submission:
    """Read a message's body.

    Raises:
        UnexpectedMessage: it is too long or malformed.
    """
    if len(body) > MAX_BODY:
        raise UnexpectedMessage(f"a checkpoint for a witness has at most {MAX_BODY} bytes")
    try:
        first, separator, note = body.decode("utf-8").partition("\n\n")
        old, *hashes = first.split("\n")
        proof = tuple(base64.b64decode(each, validate=True) for each in hashes)
    except (UnicodeDecodeError, binascii.Error, ValueError) as error:
        raise UnexpectedMessage("the consistency proof is not text and base64") from error
    size = _OLD.fullmatch(old)
    if size is None or not separator or len(proof) > _MAX_PROOF or any(len(each) != 32 for each in proof):
        raise UnexpectedMessage("no `old` line, no checkpoint, or no hashes of 32 bytes")
    if len(note.encode()) > MAX_NOTE:
        raise UnexpectedMessage(f"the checkpoint has over {MAX_NOTE} bytes; send fewer signatures with it")
    return Submission(int(size[1]), proof, note)


def judge(last: Head | None, old: int, new: Head, proof: Sequence[bytes]) -> Verdict:
    """Say what a witness does with a signed checkpoint of a log.

    Args:
        last: the head that it cosigned last; None if it has never cosigned one of this log.
        old: where the proof begins.
        new: the checkpoint's head.
        proof: the consistency proof.
    """
    known = last or Head(0, merkle.EMPTY_ROOT)
    if new.size < known.size:
        return Verdict.SHRUNK
    if new.size == known.size:
        return Verdict.COSIGN if new.root == known.root else Verdict.FORKED
    if old != known.size:
        return Verdict.ELSEWHERE
    try:
        merkle.verify_consistency(known.size, known.root, new.size, new.root, proof)
    except ProofInvalid:
        return Verdict.FORKED
    return Verdict.COSIGN


@dataclass(frozen=True, slots=True)
class WitnessLimits:
    """When checkpoints are sent to be witnessed, and what others may cost who ask for it.

    Attributes:
        look_s: seconds between two looks at what is due, give or take a quarter.
        ask_s: seconds that one witness may take to answer.
        interval_s: seconds after which a witness is asked again, if the log has grown by more than the asking.
        quiet_s: seconds after which it is asked again anyway: the cosignature's time says that the log still stands.
        entries: of the log, after which it is asked again before `interval_s` has passed.
        witnesses: asked in one round, those first that were not asked for longest.
        farewell_s: seconds that the last round, before a node stops, may take.
        requests_burst: checkpoints of one organization that are taken at once; then one each `requests_s` seconds.
        requests_s: seconds.
        origins: logs of one organization that are witnessed.
        contradictions: of one log that are put into the audit log; more are refused and counted.
    """

    look_s: float = 30.0
    ask_s: float = 10.0
    interval_s: float = 600.0
    quiet_s: float = 3600.0
    entries: int = 4096
    witnesses: int = 16
    farewell_s: float = 2.0
    requests_burst: int = 8
    requests_s: float = 2.0
    origins: int = 64
    contradictions: int = 16


def is_due(limits: WitnessLimits, elapsed_s: float | None, grown: int, noise: int) -> bool:
    """Say whether a witness is asked now.

    Args:
        limits: see there.
        elapsed_s: since it was asked, None if it was not in this run.
        grown: entries since then.
        noise: entries that asking all witnesses writes by itself.
    """
    if elapsed_s is None or elapsed_s >= limits.quiet_s or grown >= limits.entries:
        return True
    return elapsed_s >= limits.interval_s and grown > noise
