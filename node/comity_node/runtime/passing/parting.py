"""Long texts of tokens travel once: left out where the recipient has them, and put in again before anything is read.

A recipient says with its receipts what it keeps of the tokens that it took. From then on whoever brought them leaves
out, under the same agreement, what that node was brought before (`token_parts`). A recipient that does not have it any
more says so of that token, and gets it whole.

Invariants
  S2  what is checked, decided on and used is the whole state, as if it had come in one piece.
  S7  how much a delivery becomes is known, and bounded, before anything of it is allocated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, TypeVar

import trio

from comity.digest import sha256
from comity.errors import UnexpectedMessage
from comity.v1 import flow_pb2 as pb
from comity_node.protocol.token import Token, TokenLimits
from comity_node.protocol.token_parts import Cut, Part, cut, splice, whole_size
from comity_node.protocol.token_wire import of_wire, to_wire
from comity_node.runtime.kinds import TOKEN_PARTS, TOKENS
from comity_node.runtime.passing.payloads import PayloadLimits, Shelf

T = TypeVar("T")
_STATE_BYTES: Final = TokenLimits().state_bytes
#: More bytes than these are hashed and searched beside the loop.
_FEW_BYTES: Final = 1 << 18


class Packed(NamedTuple):
    """Tokens as they are delivered.

    Attributes:
        kind: of the message.
        tokens: its tokens.
        payloads: texts that come with them, by digest.
        cuts: the states of the tokens without their long texts; nothing if they are whole.
    """

    kind: str
    tokens: Sequence[pb.Token]
    payloads: Mapping[bytes, bytes]
    cuts: Sequence[Cut] = ()


class Joined(NamedTuple):
    """Tokens as they came.

    Attributes:
        tokens: each, or None: something of it is not here.
        parts: what was left out of each; nothing if they came whole.
        texts: all of it that is here, by digest.
    """

    tokens: Sequence[Token | None]
    parts: Sequence[Sequence[Part]] = ()
    texts: Mapping[bytes, bytes] = {}


class _Keeps(NamedTuple):
    over: int
    room: int


class Parting:
    """Leaves texts out of tokens for nodes that have them, and puts in what others leave out."""

    def __init__(self, limits: PayloadLimits | None = None, counts: Counter[str] | None = None) -> None:
        """Know nothing yet of what others keep, and keep nothing; count in `counts`."""
        self._limits = limits or PayloadLimits()
        self._brought = Shelf(self._limits, self._limits.all_bytes)
        self._there = Shelf(self._limits, self._limits.there_bytes)
        self._keeps: dict[str, _Keeps] = {}
        self._own = trio.CapacityLimiter(1)
        #: Bytes of long texts: `sent`, `saved` (the other side had them), `missing` (it had them no longer).
        self.counts: Counter[str] = counts if counts is not None else Counter()

    def forget_old(self, now_ms: int) -> None:
        """Keep nothing of tasks whose time is over."""
        self._brought.forget_old(now_ms)
        self._there.forget_old(now_ms)

    # -- out -------------------------------------------------------------------------------------------------------

    async def pack(self, peer_id: str, tokens: Sequence[Token], now_ms: int) -> Packed:
        """Write tokens of one agreement for a node, without what it has."""
        keeps = self._keeps.get(peer_id)
        if keeps is None or not any(len(token.state) > keeps.over for token in tokens):
            return whole(tokens)
        cuts = await self._cut(tokens, keeps.over)
        if not any(one.parts for one in cuts):
            return whole(tokens)
        payloads: dict[bytes, bytes] = {}
        messages: list[pb.Token] = []
        for token, one in zip(tokens, cuts, strict=True):
            for digest, text in one.texts.items():
                if self._there.get(peer_id, token.agreement, digest, now_ms) is None:
                    payloads[digest] = text
            message = to_wire(replace(token, state=one.rest))
            message.parts.extend(pb.TokenPart(offset=at, digest=digest, size=size) for at, digest, size in one.parts)
            messages.append(message)
        return Packed(TOKEN_PARTS, messages, payloads, cuts)

    async def answered(
        self, peer_id: str, packed: Packed, took: Sequence[Token | None], keeps: pb.Keeps | None, now_ms: int
    ) -> None:
        """Know what a node has by now.

        Args:
            peer_id: which node.
            packed: what it was brought.
            took: these tokens, None for each that it did not take.
            keeps: what it says that it keeps.
            now_ms: the time.
        """
        if keeps is None:
            if packed.cuts:
                self.forget(peer_id)
            return
        over = max(self._limits.cut_over, keeps.over)
        if peer_id not in self._keeps and len(self._keeps) >= self._limits.peers:
            self._keeps.clear()
        # The two sides count a little differently, and what was left out in vain costs a whole round.
        known = self._keeps[peer_id] = _Keeps(over, keeps.room - keeps.room // 4)
        new = set(packed.payloads)
        cuts = packed.cuts or await self._cut(took, over)
        for token, one in zip(took, cuts, strict=True):
            if token is None:
                continue
            for part in one.parts:
                sent = not packed.cuts or part.digest in new
                new.discard(part.digest)
                self.counts["sent" if sent else "saved"] += part.size
                self._there.keep(
                    peer_id, token.agreement, part.digest, b"", size=part.size, until_ms=token.deadline_ms,
                    now_ms=now_ms, room=known.room,
                )  # fmt: skip

    def missing(self, peer_id: str, agreement: bytes, cuts: Iterable[Cut]) -> None:
        """Know that a node does not have all of what was left out of these."""
        for one in cuts:
            self.counts["missing"] += sum(part.size for part in one.parts)
            for digest in one.texts:
                self._there.forget(peer_id, agreement, digest)

    def forget(self, peer_id: str) -> None:
        """Know nothing any more of what a node keeps: the next tokens go to it whole."""
        self._keeps.pop(peer_id, None)
        self._there.forget_all(peer_id)

    # -- in --------------------------------------------------------------------------------------------------------

    async def join(self, sender: str, delivery: pb.TokenDelivery, now_ms: int) -> Joined:
        """Put into tokens what `sender` left out of them and has brought, now or before under this agreement.

        Raises:
            UnexpectedMessage: it does not fit together, or becomes too much; nothing of it is used.
        """
        agreement = delivery.agreement_digest
        parts = [[Part(one.offset, one.digest, one.size) for one in token.parts] for token in delivery.tokens]
        sizes = self._declared(delivery.tokens, parts)
        brought: Sequence[bytes] = delivery.payloads
        digests = await self._off_loop(lambda: [sha256(text) for text in brought], sum(map(len, brought)))
        texts = dict(zip(digests, brought, strict=True))
        if len(texts) != len(brought) or any(sizes.get(digest) != len(text) for digest, text in texts.items()):
            raise UnexpectedMessage("a delivery brings each text that its tokens leave out once, and no others")
        for digest in sizes:
            if digest not in texts and (text := self._brought.get(sender, agreement, digest, now_ms)) is not None:
                texts[digest] = text
        tokens: list[Token | None] = []
        for message, left_out in zip(delivery.tokens, parts, strict=True):
            if all(part.digest in texts for part in left_out):
                tokens.append(replace(of_wire(message, agreement), state=splice(message.state, left_out, texts)))
            else:
                tokens.append(None)
        return Joined(tokens, parts, texts)

    def _declared(self, messages: Sequence[pb.Token], parts: Sequence[Sequence[Part]]) -> dict[bytes, int]:
        """Return the sizes of what is left out, by digest, if all together may be.

        Raises:
            UnexpectedMessage: it may not.
        """
        over, most = self._limits.cut_over, self._limits.joined_bytes
        total, sizes = 0, dict[bytes, int]()
        for message, left_out in zip(messages, parts, strict=True):
            total += whole_size(message.state, left_out, over=over, most=_STATE_BYTES)
            if total > most:
                raise UnexpectedMessage(f"states of one delivery have at most {most} bytes together")
            for part in left_out:
                sizes[part.digest] = part.size
        return sizes

    async def took(
        self, sender: str, joined: Joined, took: Sequence[Token | None], now_ms: int
    ) -> pb.Keeps | None:  # fmt: skip
        """Keep the long texts of those of a delivery's tokens that are taken, and return what to tell the sender."""
        limits = self._limits
        if joined.parts:
            parts, texts = joined.parts, joined.texts
        elif any(token is not None and len(token.state) > limits.cut_over for token in took):
            cuts = await self._cut(took, limits.cut_over)
            parts = [one.parts for one in cuts]
            texts = {digest: text for one in cuts for digest, text in one.texts.items()}
        else:
            return None
        for token, left_out in zip(took, parts, strict=True):
            if token is None:
                continue
            for part in left_out:
                self._brought.keep(
                    sender, token.agreement, part.digest, texts[part.digest], size=part.size,
                    until_ms=token.deadline_ms, now_ms=now_ms,
                )  # fmt: skip
        return pb.Keeps(over=limits.cut_over, room=limits.per_peer_bytes)

    # --------------------------------------------------------------------------------------------------------------

    async def _cut(self, tokens: Sequence[Token | None], over: int) -> list[Cut]:
        states = [b"" if token is None else token.state for token in tokens]
        return await self._off_loop(lambda: [cut(state, over) for state in states], sum(map(len, states)))

    async def _off_loop(self, work: Callable[[], T], many_bytes: int) -> T:
        if many_bytes <= _FEW_BYTES:
            return work()
        return await trio.to_thread.run_sync(work, limiter=self._own)


def whole(tokens: Sequence[Token]) -> Packed:
    """Write tokens as they are."""
    return Packed(TOKENS, [to_wire(token) for token in tokens], {})
