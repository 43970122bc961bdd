"""Serves as a witness of the other members' audit logs: cosigns their checkpoints, or says why not.

Invariant
  S8  a node cosigns a checkpoint only after the head is on its own disk, and never two of one log that contradict each
      other, restarts included; what contradicts is in its audit log, with both signed checkpoints.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections import Counter
from typing import Final

from comity.digest import sha256
from comity.errors import AuditBroken, Busy, UnexpectedMessage
from comity.ids import SpiffeId
from comity.trust import Attested, NodeIdentity
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate, Question
from comity_node.policy.model import Request
from comity_node.protocol.witness import Head, Submission, Verdict, WitnessLimits, judge, parse_submission
from comity_node.runtime.messenger import Handler, accepted
from comity_node.runtime.pace import Pace, PaceLimits
from comity_node.storage import audit, witness
from comity_node.storage.cosignature import cosign
from comity_node.storage.database import Database
from comity_node.storage.note import (
    Checkpoint,
    NoteSigner,
    note_signature_lines,
    note_text,
    open_note,
    parse_checkpoint,
)
from comity_node.storage.witness import WitnessedHead

log = logging.getLogger(__name__)

#: The kind of message that asks for a cosignature.
CHECKPOINT: Final = "checkpoint"
_NODE_NAME: Final = re.compile(r"[a-z0-9.-]+/node/[A-Za-z0-9._-]+")


def origin_of(node: SpiffeId) -> str:
    """Return the name of a node's log and of its key as a witness: its SPIFFE ID without the scheme."""
    return str(node).removeprefix("spiffe://")


def signer_of(identity: NodeIdentity) -> NoteSigner:
    """Return what signs checkpoints and cosignatures in the name of a node."""
    return NoteSigner(origin_of(identity.node), identity.key.public_key, identity.key.sign)


class Cosigner:
    """Judges checkpoints against the last head of their log, on disk, and cosigns."""

    def __init__(
        self, *, identity: NodeIdentity, gate: Gate, database: Database, limits: WitnessLimits | None = None
    ) -> None:
        """Cosign in the name of `identity`'s node."""
        self._signer = signer_of(identity)
        self._gate = gate
        self._database = database
        self._limits = limits or WitnessLimits()
        self._pace = Pace(PaceLimits(1 / self._limits.requests_s, self._limits.requests_burst, 1000))
        self._counts: Counter[str] = Counter()
        #: Origins; each has a head on disk, and those are bounded.
        self._contradicting: set[str] = set()
        self.handlers: dict[str, Handler] = {CHECKPOINT: self._on_checkpoint}

    def counters(self) -> dict[str, int]:
        """Return how many checkpoints were cosigned, and how many contradicted what was cosigned before."""
        return dict(self._counts)

    def warnings(self) -> list[str]:
        """Return what somebody should see to: whose logs contradicted themselves since this node started."""
        return [
            f"the audit log of {origin} contradicts what this node cosigned of it: see `comity audit evidence`"
            for origin in sorted(self._contradicting)
        ]

    async def _on_checkpoint(self, sender: Attested, body: bytes) -> Receipt:
        """Answer with a cosignature line, or refuse with the last checkpoint of the log that was cosigned."""
        if retry_after_ms := self._pace.take(sender.organization, self._gate.now_ms()):
            raise Busy("checkpoints come faster than this node cosigns them", retry_after_ms=retry_after_ms)
        request = Request(action="checkpoint.cosign", organization=sender.organization)
        await self._gate.demand(Question(request, sha256(body)))
        submission = parse_submission(body)
        checkpoint = _open(submission.note, sender)
        verdict, last = await self._database.transact(lambda c: self._judge(c, sender, submission, checkpoint))
        if verdict is Verdict.COSIGN:
            self._counts["witness.cosigned"] += 1
            return accepted(cosign(checkpoint.text(), self._signer, self._gate.now_ms() // 1000).encode())
        if verdict.contradicts:
            self._counts["witness.contradictions"] += 1
            self._contradicting.add(checkpoint.origin)
            log.error(
                "the audit log of %s contradicts the checkpoint of %d entries that was cosigned before (%s); both are"
                " in this node's audit log: comity audit evidence",
                checkpoint.origin,
                last.size if last else 0,
                verdict,
            )
        note = last.note.encode() if last else b""
        return Receipt(status=Receipt.STATUS_REFUSED, code=verdict.value, reason=_REASONS[verdict], body=note)

    def _judge(
        self, connection: sqlite3.Connection, sender: Attested, submission: Submission, checkpoint: Checkpoint
    ) -> tuple[Verdict, WitnessedHead | None]:
        """Judge and write down, in one transaction: two requests of one log never see the same last head."""
        last = witness.head_of(connection, checkpoint.origin)
        if last is None and witness.count_origins(connection, sender.organization) >= self._limits.origins:
            raise UnexpectedMessage(f"this node witnesses {self._limits.origins} logs of {sender.organization} already")
        known = None if last is None else _head(parse_checkpoint(note_text(last.note)))
        verdict = judge(known, submission.old, _head(checkpoint), submission.proof)
        now_ms, note = self._gate.now_ms(), nodes_only(submission.note)
        if verdict is Verdict.COSIGN:
            kept = WitnessedHead(checkpoint.origin, sender.organization, checkpoint.size, note, now_ms)
            witness.put_head(connection, kept)
        elif verdict.contradicts and last is not None and last.contradictions < self._limits.contradictions:
            audit.append(connection, evidence(verdict.value, sender.organization, last.note, note), now_ms)
            witness.count_contradiction(connection, checkpoint.origin)
        return verdict, last


_REASONS: Final = {
    Verdict.ELSEWHERE: "the proof does not begin at the checkpoint that was cosigned last",
    Verdict.SHRUNK: "the log is smaller than the checkpoint that was cosigned last",
    Verdict.FORKED: "the log did not grow from the checkpoint that was cosigned last",
}


def evidence(code: str, organization: str, first: str, second: str) -> audit.AuditEntry:
    """Return the audit entry of two checkpoints that one key signed and that contradict each other.

    Args:
        code: a verdict's value, or what else they show.
        organization: who showed the second, or holds the first, against this node's own log.
        first: the note that was seen first.
        second: the other one.
    """
    checkpoint = parse_checkpoint(note_text(second))
    return audit.AuditEntry(
        kind="evidence",
        action=code.replace("_", "."),
        peer=organization,
        subject=sha256(checkpoint.text().encode()),
        detail={"origin": checkpoint.origin, "first": first, "second": second},
    )


def nodes_only(note: str) -> str:
    """Return a note with the signatures of nodes alone: what else a peer wrote below it is not kept.

    Raises:
        AuditBroken: the note is malformed.
    """
    lines = [line for name, line in note_signature_lines(note) if _NODE_NAME.fullmatch(name)]
    return f"{note_text(note)}\n{''.join(lines)}"


def _open(note: str, sender: Attested) -> Checkpoint:
    """Check that the sender's own node signed the checkpoint of its own log."""
    try:
        checkpoint = parse_checkpoint(open_note(note, origin_of(sender.node), sender.public_key))
    except AuditBroken as error:
        raise UnexpectedMessage(f"no checkpoint of {origin_of(sender.node)}: {error}") from error
    if checkpoint.origin != origin_of(sender.node):
        raise UnexpectedMessage(f"{origin_of(sender.node)} sent a checkpoint of another log")
    return checkpoint


def _head(checkpoint: Checkpoint) -> Head:
    return Head(checkpoint.size, checkpoint.root)
