"""The way of tokens over the links: sealed deliveries out, receipts back; and what comes in by the same kinds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import trio

from comity.envelope import MAX_ENVELOPE
from comity.errors import AgreementUnknown, Busy, ComityError, LinkClosed, LinkError, UnexpectedMessage
from comity.trust import Attested
from comity.v1 import flow_pb2 as pb
from comity.v1.task_pb2 import Receipt
from comity_node.admission.token_hops import HopReader
from comity_node.protocol.token import HOME, TASK_ID_BYTES, Token
from comity_node.protocol.token_wire import of_wire
from comity_node.runtime.kinds import TOKEN_NOTES, TOKEN_PARTS, TOKENS
from comity_node.runtime.messenger import Handler, Messenger, accepted
from comity_node.runtime.passing.acquaintance import Acquaintance, Bring
from comity_node.runtime.passing.gateway import Caller, TokenGateway
from comity_node.runtime.passing.nodes import Nodes
from comity_node.runtime.passing.parting import Joined, Packed, Parting, whole
from comity_node.runtime.passing.ports import Answer, Note, Outgoing, Told, Verdict, Verdicts
from comity_node.runtime.passing.receipts import MISSING, Heard, read_receipts, taken, write_receipts
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
#: How often what is kept of tasks whose time is over is let go of.
_SWEEP_S: Final = 60.0
#: What a sender is told whose agreement is not known here: its conclusion is usually right behind.
_NOT_YET_MS: Final = 100
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

    def __init__(
        self, *, messenger: Messenger, gateway: TokenGateway, chains: HopReader, database: Database,
        parting: Parting | None = None, bring: Bring | None = None,
    ) -> None:  # fmt: skip
        """Carry over `messenger` what `gateway` has let pass; `attach` says who gets what comes in.

        Who does not know an agreement is brought it by `bring`.
        """
        self._messenger = messenger
        self._gateway = gateway
        self._chains = chains
        self._database = database
        self._acquaintance = None if bring is None else Acquaintance(bring)
        self._nodes = Nodes(messenger.nodes)
        self._receiver: Receiver | None = None
        self._parting = parting or Parting()
        self.handlers: dict[str, Handler] = {
            TOKENS: self._on_tokens,
            TOKEN_PARTS: self._on_parts,
            TOKEN_NOTES: self._on_notes,
        }

    def attach(self, receiver: Receiver) -> None:
        """Give what comes in to `receiver`."""
        self._receiver = receiver

    async def load(self) -> None:
        """Know the chains of those whose hops are in tokens here."""
        self._chains.keep(await self._database.read(custody.all_signers))

    async def run(self) -> None:
        """Let go of what was kept of tasks whose time is over, until cancelled."""
        while True:
            await trio.sleep(_SWEEP_S)
            self._parting.forget_old(self._chains.now_ms())

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
                part = [rows[at] for at in places]
                if part[0].role == HOME:
                    found = await self._send(to, peer_id, digest, part)
                else:
                    found = await self._nodes.deliver(to, digest, part, partial(self._work, to, digest))
            except (Busy, LinkError) as error:
                if first and not stopped:
                    raise
                if not isinstance(error, Busy):  # nobody knows whether they have come there
                    for place in places:
                        verdicts[place] = Verdict(Answer.BUSY, retry_after_s=1.0, unsure=True)
                break  # what has been answered is settled; the rest comes again
            first = False
            verdicts.wait_s = found.wait_s
            for place, verdict in zip(places, found, strict=True):
                verdicts[place] = verdict
        self._gateway.delivered([row.token.key for row, verdict in zip(rows, verdicts, strict=True) if verdict.lets_go])
        return verdicts

    async def _work(self, to: str, digest: bytes, peer_id: str, rows: Sequence[Outgoing]) -> Verdicts:
        """Bring tokens to a node that is to work on them, and the agreement first, if it does not know that."""
        asked_s = trio.current_time()
        try:
            return await self._send(to, peer_id, digest, rows)
        except AgreementUnknown:
            if self._acquaintance is None or not peer_id:
                raise
        await self._acquaintance.make(to, peer_id, digest, asked_s)
        return await self._send(to, peer_id, digest, rows)

    async def _send(self, to: str, peer_id: str, digest: bytes, rows: Sequence[Outgoing]) -> Verdicts:
        tokens = [row.passed or row.token for row in rows]
        peer = self._messenger.peer(to, peer_id)
        if peer is None:
            return (await self._bring(to, None, peer_id, digest, tokens, whole(tokens))).verdicts
        packed = await self._parting.pack(peer.peer_id, tokens, self._chains.now_ms())
        if not packed.cuts:
            return (await self._bring(to, peer, peer_id, digest, tokens, packed)).verdicts
        try:
            heard = await self._bring(to, peer, peer.peer_id, digest, tokens, packed)
        except Busy:
            raise
        except LinkError:  # perhaps the node is another one by now, or an older one
            self._parting.forget(peer.peer_id)
            raise
        if heard.missing:
            self._parting.missing(peer.peer_id, digest, [packed.cuts[at] for at in heard.missing])
            await self._send_whole(to, peer, digest, tokens, heard)
        return heard.verdicts

    async def _send_whole(
        self, to: str, peer: Attested, digest: bytes, tokens: Sequence[Token], heard: Heard
    ) -> None:  # fmt: skip
        """Bring those of `tokens` once more of which something is missing."""
        again = [tokens[at] for at in heard.missing]
        try:
            second = await self._bring(to, peer, peer.peer_id, digest, again, whole(again))
        except Busy:
            return  # what has been answered is settled; these come again
        except LinkError:
            for place in heard.missing:  # nobody knows whether they have come there
                heard.verdicts[place] = Verdict(Answer.BUSY, retry_after_s=1.0, unsure=True)
            return
        heard.verdicts.wait_s = second.verdicts.wait_s
        for place, verdict in zip(heard.missing, second.verdicts, strict=True):
            heard.verdicts[place] = verdict

    async def _bring(
        self, to: str, peer: Attested | None, peer_id: str, digest: bytes, tokens: Sequence[Token], packed: Packed
    ) -> Heard:
        body = pb.TokenDelivery(
            agreement_digest=digest,
            tokens=packed.tokens,
            signers=[
                pb.SignerChain(chain=chain)
                for chain in self._chains.chains_of(tokens, peer.public_key if peer is not None else b"")
            ],
            payloads=packed.payloads.values(),
        ).SerializeToString()
        receipt = await self._ask(to, packed.kind, body, peer_id, _DELIVER_S)
        if receipt.status == Receipt.STATUS_BUSY:
            busy = AgreementUnknown if receipt.code == AgreementUnknown.code else Busy
            raise busy(f"{to} takes no tokens now: {receipt.reason}", retry_after_ms=receipt.retry_after_ms)
        if receipt.status != Receipt.STATUS_ACCEPTED:
            reason = receipt.reason or receipt.code
            if peer is not None and packed.cuts:  # it may be the pieces: the next time they go whole
                self._parting.forget(peer.peer_id)
                return Heard(Verdicts([Verdict(Answer.BUSY, reason, 1.0)] * len(tokens)))
            return Heard(Verdicts([Verdict(Answer.REFUSED, reason)] * len(tokens)))
        heard = read_receipts(to, receipt.body, len(tokens))
        if peer is not None:
            took = taken(tokens, heard.verdicts)
            await self._parting.answered(peer.peer_id, packed, took, heard.keeps, self._chains.now_ms())
        return heard

    async def _ask(self, to: str, kind: str, body: bytes, peer_id: str, deadline_s: float) -> Receipt:
        try:
            return await self._messenger.ask(to, kind, body, deadline_s=deadline_s, peer_id=peer_id)
        except (LinkError, Busy):
            raise
        except ComityError as error:  # the answer does not verify, or cannot be sealed now: it is asked again
            raise LinkClosed(f"{to} gave no answer that verifies: {error}") from error

    async def tell(self, to: str, notes: Sequence[Note]) -> None:
        """Bring notes to all linked nodes of an organization: which of them has a token is not kept.

        Raises:
            LinkError: none of them has heard all.
        """
        linked = self._nodes.linked(to) or [""]
        failures: list[LinkError] = []
        async with trio.open_nursery() as nursery:
            for peer_id in linked:
                nursery.start_soon(self._tell, to, peer_id, notes, failures)
        if len(failures) == len(linked):
            raise failures[0]

    async def _tell(self, to: str, peer_id: str, notes: Sequence[Note], failures: list[LinkError]) -> None:
        try:
            await self._tell_one(to, peer_id, notes)
        except LinkError as error:
            failures.append(error)

    async def _tell_one(self, to: str, peer_id: str, notes: Sequence[Note]) -> None:
        for start in range(0, len(notes), MAX_NOTES):
            body = pb.TokenNotes(
                notes=[
                    pb.TokenNote(kind=_KINDS[one.told], home=one.home, task_id=one.task_id, attempt=one.attempt)
                    for one in notes[start : start + MAX_NOTES]
                ]
            ).SerializeToString()
            try:
                await self._ask(to, TOKEN_NOTES, body, peer_id, _TELL_S)
            except Busy as error:
                raise LinkClosed(f"{to} hears no notes now: {error}") from error

    # -- in --------------------------------------------------------------------------------------------------------

    async def _on_tokens(self, sender: Attested, body: bytes) -> Receipt:
        delivery = self._parse(body)
        if delivery.payloads or any(one.parts for one in delivery.tokens):
            raise UnexpectedMessage(f"tokens with texts left out come as {TOKEN_PARTS!r}")
        joined = Joined([of_wire(one, delivery.agreement_digest) for one in delivery.tokens])
        return await self._take(sender, delivery, joined)

    async def _on_parts(self, sender: Attested, body: bytes) -> Receipt:
        delivery = self._parse(body)
        joined = await self._parting.join(sender.organization, delivery, self._chains.now_ms())
        return await self._take(sender, delivery, joined)

    def _parse(self, body: bytes) -> pb.TokenDelivery:
        """Return a delivery that is looked at now.

        Raises:
            UnexpectedMessage: it has too much.
            Busy: not now.
        """
        delivery = pb.TokenDelivery.FromString(body)
        if not 1 <= len(delivery.tokens) <= MAX_TOKENS or len(delivery.signers) > MAX_SIGNERS:
            raise UnexpectedMessage(f"a delivery has 1 to {MAX_TOKENS} tokens and at most {MAX_SIGNERS} chains")
        if self._receiver is None:
            raise Busy("the node is starting up")
        if self._gateway.awaits(delivery.agreement_digest):
            raise AgreementUnknown("no such agreement is known here yet", retry_after_ms=_NOT_YET_MS)
        return delivery

    async def _take(self, sender: Attested, delivery: pb.TokenDelivery, joined: Joined) -> Receipt:
        assert self._receiver is not None, "a delivery is parsed where there is a receiver"
        whole_ones = [token for token in joined.tokens if token is not None]
        await self._learn([tuple(one.chain) for one in delivery.signers])
        verdicts = await self._receiver.take(Caller.of(sender), whole_ones) if whole_ones else ()
        said = iter(verdicts)
        of_all = [MISSING if token is None else next(said) for token in joined.tokens]
        took = taken(joined.tokens, of_all)
        keeps = await self._parting.took(sender.organization, joined, took, self._chains.now_ms())
        wait_s = verdicts.wait_s if isinstance(verdicts, Verdicts) else None
        return accepted(write_receipts(of_all, wait_s, keeps))

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
