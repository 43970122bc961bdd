"""The way of tokens over the links: sealed deliveries out, receipts back; and what comes in by the same kinds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from comity.envelope import MAX_ENVELOPE
from comity.errors import Busy, ComityError, LinkClosed, LinkError, UnexpectedMessage
from comity.trust import Attested
from comity.v1 import flow_pb2 as pb
from comity.v1.task_pb2 import Receipt
from comity_node.admission.token_hops import HopReader
from comity_node.protocol.token import HOME, TASK_ID_BYTES, Token
from comity_node.protocol.token_wire import of_wire, to_wire
from comity_node.runtime.kinds import TOKEN_NOTES, TOKENS
from comity_node.runtime.messenger import Handler, Messenger, accepted
from comity_node.runtime.passing.gateway import Caller, TokenGateway
from comity_node.runtime.passing.ports import Answer, Note, Outgoing, Told, Verdict, Verdicts
from comity_node.storage import tokens as custody
from comity_node.storage.database import Database

#: Tokens and notes that one message may have.
MAX_TOKENS: Final = 512
MAX_NOTES: Final = 4_096
#: Bytes of tokens in one message, beside the one that goes over it; an envelope holds a good deal more.
_PER_MESSAGE: Final = MAX_ENVELOPE // 4
#: Chains of certificates that come with one delivery.
MAX_SIGNERS: Final = 256
_DELIVER_S: Final = 30.0
_TELL_S: Final = 10.0
_REASON_CHARS: Final = 200
_LONGEST_RETRY_S: Final = 600.0
#: What `wait_ms` holds.
_LONGEST_MS: Final = (1 << 32) - 1
#: What a sender is told whose agreement is not known here: its conclusion is usually right behind.
_NOT_YET_MS: Final = 100

_OUTCOMES: Final = {
    Answer.TAKEN: pb.TokenReceipt.OUTCOME_TAKEN,
    Answer.KNOWN: pb.TokenReceipt.OUTCOME_KNOWN,
    Answer.STALE: pb.TokenReceipt.OUTCOME_STALE,
    Answer.OVER: pb.TokenReceipt.OUTCOME_OVER,
    Answer.BUSY: pb.TokenReceipt.OUTCOME_BUSY,
    Answer.REFUSED: pb.TokenReceipt.OUTCOME_REFUSED,
}
_ANSWERS: Final = {outcome: answer for answer, outcome in _OUTCOMES.items()}
_KINDS: Final = {Told.HOLDING: pb.TokenNote.KIND_HOLDING, Told.CANCEL: pb.TokenNote.KIND_CANCELLED}
_TOLD: Final = {kind: told for told, kind in _KINDS.items()}


class Receiver(Protocol):
    """What gets tokens and notes that come in: the engine."""

    async def take(self, sender: str, tokens: Sequence[Token]) -> Sequence[Verdict]:
        """Take tokens of `sender`, one verdict each."""

    def told(self, sender: str, notes: Sequence[Note]) -> None:
        """Hear notes of `sender`."""


class Carriage:
    """Brings tokens to other organizations (`ports.Carrier`), and theirs to the engine."""

    def __init__(self, *, messenger: Messenger, gateway: TokenGateway, chains: HopReader, database: Database) -> None:
        """Carry over `messenger` what `gateway` has let pass; `attach` says who gets what comes in."""
        self._messenger = messenger
        self._gateway = gateway
        self._chains = chains
        self._database = database
        self._receiver: Receiver | None = None
        self.handlers: dict[str, Handler] = {TOKENS: self._on_tokens, TOKEN_NOTES: self._on_notes}

    def attach(self, receiver: Receiver) -> None:
        """Give what comes in to `receiver`."""
        self._receiver = receiver

    async def load(self) -> None:
        """Know the chains of those whose hops are in tokens here."""
        self._chains.keep(await self._database.read(custody.all_signers))

    # -- out -------------------------------------------------------------------------------------------------------

    async def deliver(self, to: str, rows: Sequence[Outgoing]) -> Sequence[Verdict]:
        """Bring tokens to an organization and return its verdicts, one each."""
        verdicts = Verdicts([Verdict(Answer.BUSY, retry_after_s=1.0)] * len(rows))
        stopped = self._gateway.check_again(to, rows)
        for place, why in stopped.items():
            reason = f"the own policy does not let it leave now: {why.reason}"
            answer = Answer.BUSY if why.retry_after_s else Answer.REFUSED
            verdicts[place] = Verdict(answer, reason, why.retry_after_s)
        first = True
        for peer_id, digest, places in _deliveries(rows, stopped):
            try:
                found = await self._send(to, peer_id, digest, [rows[at] for at in places])
            except (Busy, LinkError):
                if first and not stopped:
                    raise
                break  # what has been answered is settled; the rest comes again
            first = False
            verdicts.wait_s = found.wait_s
            for place, verdict in zip(places, found, strict=True):
                verdicts[place] = verdict
        self._gateway.delivered([row.token.key for row, verdict in zip(rows, verdicts, strict=True) if verdict.lets_go])
        return verdicts

    async def _send(self, to: str, peer_id: str, digest: bytes, rows: Sequence[Outgoing]) -> Verdicts:
        tokens = [row.passed or row.token for row in rows]
        peer = self._messenger.peer(to, peer_id)
        recipient = peer.public_key if peer is not None else b""
        body = pb.TokenDelivery(
            agreement_digest=digest,
            tokens=[to_wire(token) for token in tokens],
            signers=[pb.SignerChain(chain=chain) for chain in self._chains.chains_of(tokens, recipient)],
        ).SerializeToString()
        receipt = await self._ask(to, TOKENS, body, peer_id, _DELIVER_S)
        if receipt.status == Receipt.STATUS_BUSY:
            raise Busy(f"{to} takes no tokens now: {receipt.reason}", retry_after_ms=receipt.retry_after_ms)
        if receipt.status != Receipt.STATUS_ACCEPTED:
            return Verdicts([Verdict(Answer.REFUSED, receipt.reason or receipt.code)] * len(rows))
        return _read_receipts(to, receipt.body, len(rows))

    async def _ask(self, to: str, kind: str, body: bytes, peer_id: str, deadline_s: float) -> Receipt:
        try:
            return await self._messenger.ask(to, kind, body, deadline_s=deadline_s, peer_id=peer_id)
        except (LinkError, Busy):
            raise
        except ComityError as error:  # the answer does not verify, or cannot be sealed now: it is asked again
            raise LinkClosed(f"{to} gave no answer that verifies: {error}") from error

    async def tell(self, to: str, notes: Sequence[Note]) -> None:
        """Bring notes to an organization."""
        for start in range(0, len(notes), MAX_NOTES):
            body = pb.TokenNotes(
                notes=[
                    pb.TokenNote(kind=_KINDS[one.told], home=one.home, task_id=one.task_id, attempt=one.attempt)
                    for one in notes[start : start + MAX_NOTES]
                ]
            ).SerializeToString()
            try:
                await self._ask(to, TOKEN_NOTES, body, "", _TELL_S)
            except Busy as error:
                raise LinkClosed(f"{to} hears no notes now: {error}") from error

    # -- in --------------------------------------------------------------------------------------------------------

    async def _on_tokens(self, sender: Attested, body: bytes) -> Receipt:
        delivery = pb.TokenDelivery.FromString(body)
        if not 1 <= len(delivery.tokens) <= MAX_TOKENS or len(delivery.signers) > MAX_SIGNERS:
            raise UnexpectedMessage(f"a delivery has 1 to {MAX_TOKENS} tokens and at most {MAX_SIGNERS} chains")
        if self._receiver is None:
            raise Busy("the node is starting up")
        if self._gateway.awaits(delivery.agreement_digest):
            raise Busy("no such agreement is known here yet", retry_after_ms=_NOT_YET_MS)
        tokens = [of_wire(one, delivery.agreement_digest) for one in delivery.tokens]
        await self._learn([tuple(one.chain) for one in delivery.signers])
        verdicts = await self._receiver.take(Caller.of(sender), tokens)
        receipts = [
            pb.TokenReceipt(
                outcome=_OUTCOMES[one.answer], reason=one.reason[:_REASON_CHARS],
                retry_after_ms=round(min(one.retry_after_s, _LONGEST_RETRY_S) * 1000),
            )
            for one in verdicts
        ]  # fmt: skip
        return accepted(pb.TokenReceipts(receipts=receipts, wait_ms=_wait_ms(verdicts)).SerializeToString())

    async def _learn(self, chains: Sequence[Sequence[bytes]]) -> None:
        """Keep the chains that are new: whoever goes on with the tokens, after a restart too, passes them on."""
        now_ms, new = self._chains.now_ms(), self._chains.learn(chains)
        if new:

            def write(connection: sqlite3.Connection) -> None:
                custody.put_signers(connection, new, now_ms)

            await self._database.transact(write)

    async def _on_notes(self, sender: Attested, body: bytes) -> Receipt:
        notes = pb.TokenNotes.FromString(body).notes
        if len(notes) > MAX_NOTES:
            raise UnexpectedMessage(f"a message has at most {MAX_NOTES} notes")
        known = [
            Note(_TOLD[one.kind], one.home, one.task_id, one.attempt)
            for one in notes
            if one.kind in _TOLD and len(one.task_id) == TASK_ID_BYTES
        ]
        if self._receiver is not None and known:
            self._receiver.told(Caller.of(sender), known)
        return accepted()


def _deliveries(rows: Sequence[Outgoing], without: Mapping[int, object]) -> Iterable[tuple[str, bytes, list[int]]]:
    """Divide rows into messages of bounded size, of one agreement, to one node: home is the node that they left."""
    groups: dict[tuple[str, bytes], list[int]] = {}
    for place, row in enumerate(rows):
        if place not in without:
            peer_id = row.token.home_peer if row.role == HOME else ""
            groups.setdefault((peer_id, row.token.agreement), []).append(place)
    for (peer_id, digest), places in groups.items():
        part: list[int] = []
        room = _PER_MESSAGE
        for place in places:
            size = _size(rows[place].passed or rows[place].token)
            if part and (size > room or len(part) >= MAX_TOKENS):
                yield peer_id, digest, part
                part, room = [], _PER_MESSAGE
            part.append(place)
            room -= size
        yield peer_id, digest, part


def _size(token: Token) -> int:
    return len(token.state) + len(token.cursor) + sum(map(len, token.hops)) + 256


def _wait_ms(verdicts: Sequence[Verdict]) -> int | None:
    wait_s = verdicts.wait_s if isinstance(verdicts, Verdicts) else None
    return None if wait_s is None else min(_LONGEST_MS, round(wait_s * 1000))


def _read_receipts(sender: str, body: bytes, count: int) -> Verdicts:
    """Return the verdicts that a receipt holds, and how loaded `sender` says that it is.

    Raises:
        LinkClosed: it does not say what became of each token: they are delivered again.
    """
    try:
        answer = pb.TokenReceipts.FromString(body)
    except DecodeError as error:
        raise LinkClosed(f"{sender} gave receipts that do not parse") from error
    receipts = answer.receipts
    if len(receipts) != count or any(one.outcome not in _ANSWERS for one in receipts):
        raise LinkClosed(f"{sender} does not say what became of each token")
    verdicts = [
        Verdict(_ANSWERS[one.outcome], one.reason[:_REASON_CHARS], min(one.retry_after_ms / 1000, _LONGEST_RETRY_S))
        for one in receipts
    ]
    return Verdicts(verdicts, answer.wait_ms / 1000 if answer.HasField("wait_ms") else None)
