"""Has the other members witness this node's audit log: sends checkpoints, keeps the cosignatures that come back.

A node's own log cannot show by itself that its owner wrote it anew, or put an older copy in its place: whoever holds
the key can sign it all again. A checkpoint that others cosigned can: they remember it.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final

import trio

from comity.digest import sha256
from comity.errors import AuditBroken, Busy, ComityError, StorageError, UnexpectedMessage
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate, Question
from comity_node.policy.model import Request
from comity_node.protocol.witness import MAX_NOTE, Submission, Verdict, WitnessLimits, is_due
from comity_node.runtime.cosigner import CHECKPOINT, evidence, nodes_only, origin_of, signer_of
from comity_node.runtime.messenger import Messenger
from comity_node.runtime.seams import TaskStatus
from comity_node.storage import audit, witness
from comity_node.storage.cosignature import cosigned_at, with_cosignatures
from comity_node.storage.database import Database
from comity_node.storage.note import Checkpoint, note_text, open_note, parse_checkpoint
from comity_node.storage.witness import Cosignature

log = logging.getLogger(__name__)

#: Seconds that a cosignature's time may be away from ours.
_SKEW_S: Final = 120
#: Messages to one witness in one round: where to begin, the proof, and once more if the log grew in between.
_TRIES: Final = 3
#: Looks after which a member is asked again that did not answer, or answered with nonsense.
_LOOKS_WHEN_SILENT: Final = 4
#: Entries of the audit log for each linked member that asking and being asked writes in one round.
_ENTRIES_OF_A_ROUND: Final = 4


@dataclass(frozen=True, slots=True)
class _Asked:
    """When a witness was asked, by trio's clock, and how large the log was then."""

    at: float
    size: int


class Witnesses:
    """Asks linked members to cosign, now and then and before the node stops."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, messenger: Messenger, database: Database,
        random: Random, limits: WitnessLimits | None = None,
    ) -> None:  # fmt: skip
        """Have the log of `identity`'s node witnessed."""
        self._identity, self._trust = identity, trust
        self._gate, self._messenger, self._database = gate, messenger, database
        self._random = random
        self._limits = limits or WitnessLimits()
        self._signer = signer_of(identity)
        self._asked: dict[str, _Asked] = {}
        self._contradicted: set[tuple[str, bytes]] = set()
        self._counts: Counter[str] = Counter()

    def counters(self) -> dict[str, int]:
        """Return how many cosignatures came, and how many checkpoints that others keep contradict this node's log."""
        return dict(self._counts)

    def warnings(self) -> list[str]:
        """Return what somebody should see to: who keeps checkpoints that this node's log does not hold."""
        return [
            f"{organization} keeps a checkpoint of this node's audit log that the log does not hold: the database was"
            " put back or changed; see `comity audit evidence`"
            for organization in sorted({organization for organization, _ in self._contradicted})
        ]

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Go on until cancelled."""
        task_status.started()
        await trio.sleep(self._limits.look_s * self._random.uniform(0.1, 0.5))
        while True:
            try:
                await self.ask_those_due()
            except StorageError as error:
                log.error("nobody is asked to witness the audit log: %s", error.diagnostics())  # noqa: TRY400
            await trio.sleep(self._limits.look_s * self._random.uniform(0.75, 1.25))

    async def farewell(self) -> None:
        """Have the log witnessed a last time, in the few seconds that there are, before the links go down."""
        with trio.move_on_after(self._limits.farewell_s):
            try:
                await self.ask(self._linked())
            except StorageError as error:
                log.error("the audit log ends without a witness: %s", error.diagnostics())  # noqa: TRY400

    async def ask_those_due(self) -> None:
        """Ask the linked members whose turn it is (`protocol.witness.is_due`)."""
        size = await self._database.read(lambda c: audit.head(c).size)
        now, linked = trio.current_time(), self._linked()
        noise = _ENTRIES_OF_A_ROUND * len(linked)

        def due(organization: str) -> bool:
            asked = self._asked.get(organization)
            elapsed_s, grown = (None, size) if asked is None else (now - asked.at, size - asked.size)
            return is_due(self._limits, elapsed_s, grown, noise)

        if wanted := [each for each in linked if due(each)]:
            await self.ask(wanted)

    async def ask(self, organizations: Sequence[str]) -> frozenset[str]:
        """Ask these members, as far as the policy lets them see the log's head, to cosign it.

        Returns:
            Those that answered, whatever they said. The others are asked again after some looks.

        Raises:
            StorageError: the log cannot be read or signed.
        """
        order = sorted(organizations, key=lambda each: self._asked[each].at if each in self._asked else -1.0)
        chosen = order[: self._limits.witnesses]
        questions = [Question(Request(action="checkpoint.send", organization=each)) for each in chosen]
        decisions = await self._gate.decide(questions)
        now_ms = self._gate.now_ms()
        note = await self._database.transact(lambda c: audit.checkpoint(c, self._signer, now_ms))
        checkpoint = parse_checkpoint(note_text(note))
        allowed = [each for each, decision in zip(chosen, decisions, strict=True) if decision.allowed]
        answered: set[str] = set()
        async with trio.open_nursery() as nursery:
            for organization in allowed:
                nursery.start_soon(self._ask_one, organization, checkpoint, note, answered)
        size = await self._database.read(lambda c: audit.head(c).size)
        now, limits = trio.current_time(), self._limits
        for organization in chosen:
            silent = organization in allowed and organization not in answered
            asked_at = now - limits.quiet_s + _LOOKS_WHEN_SILENT * limits.look_s if silent else now
            self._asked[organization] = _Asked(asked_at, size)
        return frozenset(answered)

    def _linked(self) -> list[str]:
        others = sorted(set(self._trust.bundle.members) - {self._identity.organization})
        return [each for each in others if self._messenger.reachable(each)]

    async def _ask_one(self, organization: str, checkpoint: Checkpoint, note: str, answered: set[str]) -> None:
        """Ask one member; that it does not answer or refuses is no trouble of ours, and logged."""
        try:
            peer = self._messenger.peer(organization)
            if peer is not None:
                await self._exchange(peer, checkpoint, note)
                answered.add(organization)
        except ComityError as error:
            ours = isinstance(error, StorageError) and not isinstance(error, AuditBroken)
            level = logging.ERROR if ours else logging.INFO
            log.log(level, "%s does not cosign the audit log: %s", organization, error.diagnostics() if ours else error)

    async def _exchange(self, peer: Attested, checkpoint: Checkpoint, note: str) -> None:
        name = origin_of(peer.node)
        old = min(await self._database.read(partial(witness.cosigned_size, witness=name)), checkpoint.size)
        for _ in range(_TRIES):
            proof = await self._database.read(partial(audit.prove_consistency, old=old, new=checkpoint.size))
            body = Submission(old, proof, note).encode()
            receipt = await self._messenger.ask(peer.organization, CHECKPOINT, body, deadline_s=self._limits.ask_s)
            if receipt.status == Receipt.STATUS_ACCEPTED:
                return await self._keep(peer, checkpoint, note, receipt.body)
            if receipt.status == Receipt.STATUS_BUSY:
                raise Busy(receipt.reason, retry_after_ms=receipt.retry_after_ms)
            if receipt.code not in set(Verdict):
                return log.info("%s does not cosign the audit log: %s", peer.organization, receipt.reason)
            begin = await self._next(peer, Verdict(receipt.code), old, receipt.body, note)
            if begin is None or begin > checkpoint.size:
                return None
            old = begin
        return None

    async def _keep(self, peer: Attested, checkpoint: Checkpoint, note: str, body: bytes) -> None:
        """Check a cosignature and write it down beside its checkpoint."""
        name, now_s = origin_of(peer.node), self._gate.now_ms() // 1000
        line = body.decode("utf-8", errors="replace")
        if line.count("\n") != 1 or len(body) > MAX_NOTE:
            raise AuditBroken(f"{name} answered with no cosignature")
        at_s = cosigned_at(with_cosignatures(note, [line]), name, peer.public_key)
        if at_s is None or abs(at_s - now_s) > _SKEW_S:
            raise AuditBroken(f"the cosignature of {name} is under another key, or its clock is off")
        cosignature = Cosignature(checkpoint.size, name, peer.public_key, line)
        await self._database.transact(partial(witness.put_cosignature, cosignature=cosignature))
        self._counts["witness.cosignatures"] += 1

    async def _next(self, peer: Attested, verdict: Verdict, old: int, body: bytes, note: str) -> int | None:
        """Where to begin the proof after a refusal, None if there is no point in going on.

        A checkpoint that this node signed and that its log does not lead to shows that the log was put back or written
        anew. It is written down, and the witness gets to see the proof that fails: both have the evidence then.
        """
        if not body:
            if old:
                log.warning("%s has forgotten what it cosigned of this node's audit log", peer.organization)
            return 0 if verdict is Verdict.ELSEWHERE and old else None
        if len(body) > MAX_NOTE:
            raise UnexpectedMessage(f"{peer.organization} answered with a checkpoint of over {MAX_NOTE} bytes")
        kept = nodes_only(body.decode("utf-8", errors="replace"))
        theirs = parse_checkpoint(note_text(kept))
        if theirs.origin != self._signer.name:
            raise UnexpectedMessage(f"{peer.organization} answered with a checkpoint of another log")
        if await self._database.read(partial(_leads_to, checkpoint=theirs)):
            return theirs.size if verdict is Verdict.ELSEWHERE and theirs.size != old else None
        open_note(kept, self._signer.name, self._signer.public_key)  # else it is no word of ours, and proves nothing
        await self._write_contradiction(peer, theirs, kept, note)
        return theirs.size if verdict is Verdict.ELSEWHERE else None

    async def _write_contradiction(self, peer: Attested, theirs: Checkpoint, kept: str, note: str) -> None:
        mark = (peer.organization, sha256(theirs.text().encode()))
        if mark in self._contradicted or len(self._contradicted) >= self._limits.contradictions:
            return
        self._contradicted.add(mark)
        log.error(
            "%s keeps a checkpoint of %d entries that this node signed, and its audit log does not hold them: the"
            " database was put back or changed; keep the file, and compare: comity audit evidence",
            peer.organization,
            theirs.size,
        )
        self._counts["witness.contradicted"] += 1
        entry, now_ms = evidence("checkpoint_contradicted", peer.organization, kept, note), self._gate.now_ms()
        await self._database.transact(lambda c: audit.append(c, entry, now_ms))


def _leads_to(connection: sqlite3.Connection, checkpoint: Checkpoint) -> bool:
    """Whether this node's log has the tree of a checkpoint."""
    if checkpoint.size > audit.head(connection).size:
        return False
    return audit.root_at(connection, checkpoint.size) == checkpoint.root
