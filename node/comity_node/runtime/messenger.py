"""Questions to other organizations and answers from them: sealed requests out, receipts back.

One kind of handler a message kind; each returns a receipt or raises. What it raises becomes a receipt that refuses,
signed like any other: the peer learns the code, the reason and the rules, and the node stays up.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

from google.protobuf.message import DecodeError

from comity.errors import (
    Busy,
    ComityError,
    EnvelopeMalformed,
    PeerUnreachable,
    PolicyDenied,
    ReplayedMessage,
    StorageError,
)
from comity.trust import Attested
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate
from comity_node.runtime.pace import Pace, PaceLimits
from comity_node.transport.base import Priority

log = logging.getLogger(__name__)

RECEIPT = "receipt"
#: Characters of a peer's receipt that are kept, and rules in it.
_MAX_REASON = 512
_MAX_CODE = 64
_MAX_RULE = 128
_MAX_RULES = 16
#: Lines of the log about refused messages of one organization: it can send without end what is refused.
_LOG_PACE = PaceLimits(per_second=1.0, burst=20)

#: Takes (who sent it, the body) and returns the receipt.
Handler = Callable[[Attested, bytes], Awaitable[Receipt]]


class Peers(Protocol):
    """What the messenger needs of the links."""

    def peer(self, organization: str) -> Attested | None:
        """Return a linked node of `organization`, if there is one."""

    async def request(self, peer_id: str, payload: bytes, deadline_s: float) -> bytes:
        """Send a request and return the answer."""


class PrioritizingPeers(Peers, Protocol):
    """Links that schedule: what `Messenger.ask` needs for any priority but that of ordinary work."""

    async def request(
        self, peer_id: str, payload: bytes, deadline_s: float, *, priority: Priority = Priority.WORK
    ) -> bytes:
        """Send a request in its class and return the answer."""


@runtime_checkable
class NamedPeers(Protocol):
    """Links that find one node of several that an organization has."""

    def node(self, peer_id: str) -> Attested | None:
        """Return a linked node by its PeerId, if it is linked."""


@runtime_checkable
class ManyPeers(Protocol):
    """Links that know all the nodes of an organization."""

    def nodes(self, organization: str) -> Sequence[Attested]:
        """Return the linked nodes of `organization`, in an order that stays."""


def accepted(body: bytes = b"") -> Receipt:
    """Return the receipt of something that is on disk now (or the answer to a question)."""
    return Receipt(status=Receipt.STATUS_ACCEPTED, body=body)


class Messenger:
    """Sends requests and serves those of others."""

    def __init__(self, gate: Gate, peers: Peers, *, pace: Pace | None = None) -> None:
        """Send and receive through `gate`, over `peers`; `pace` bounds what one organization may send."""
        self._gate = gate
        self._peers = peers
        self._many = peers if isinstance(peers, ManyPeers) else None
        self._pace = pace or Pace()
        self._log_pace = Pace(_LOG_PACE)
        self._handlers: dict[str, Handler] = {}
        self._counts: Counter[str] = Counter()

    def serve(self, handlers: Mapping[str, Handler]) -> None:
        """Serve these kinds of messages, too."""
        self._handlers.update(handlers)

    def counters(self) -> dict[str, int]:
        """Return how many messages came in, by kind, how many were refused, by code, and how many came too fast."""
        return dict(self._counts)

    def peer(self, organization: str, peer_id: str = "") -> Attested | None:
        """Return a linked node of `organization`, if there is one; with `peer_id`: the one that has it."""
        peer = self._peers.peer(organization)
        if not peer_id or peer is None or peer.peer_id == peer_id:
            return peer
        named = self._peers.node(peer_id) if isinstance(self._peers, NamedPeers) else None
        return named if named is not None and named.organization == organization else None

    def nodes(self, organization: str) -> Sequence[Attested]:
        """Return the linked nodes of `organization`; one, where the links know of one only."""
        if self._many is not None:
            return self._many.nodes(organization)
        peer = self._peers.peer(organization)
        return [] if peer is None else [peer]

    def reachable(self, organization: str) -> bool:
        """Tell whether a node of `organization` is linked right now."""
        return self._peers.peer(organization) is not None

    async def ask(
        self,
        organization: str,
        kind: str,
        body: bytes,
        *,
        deadline_s: float = 30.0,
        priority: Priority = Priority.WORK,
        peer_id: str = "",
    ) -> Receipt:
        """Send `body` to `organization` and return its receipt.

        Args:
            organization: whose linked node is asked.
            kind: what the message is.
            body: what it says.
            deadline_s: seconds to wait for the answer.
            priority: what it may overtake on the way. Any but `WORK` takes links that are `PrioritizingPeers`.
            peer_id: which of its nodes, where it has several and it matters; empty: any.

        Raises:
            LinkError: not linked, no answer in time, or the peer did not take the message.
            EnvelopeError: the answer is not a fresh receipt for this very message.
        """
        peer = self.peer(organization, peer_id)
        if peer is None:
            raise PeerUnreachable(f"no node of {organization} is linked, or not the one that is meant")
        message_id = self._gate.message_id(peer.peer_id)
        payload = await self._gate.seal(kind, body, audience=peer.peer_id, message_id=message_id)
        answer = await self._request(peer.peer_id, payload, deadline_s, priority)
        message = await self._gate.open(peer, answer, {RECEIPT})
        if message.header.in_reply_to != message_id:
            raise ReplayedMessage(f"{organization} answered another message")
        return _parse_receipt(message.body)

    async def _request(self, peer_id: str, payload: bytes, deadline_s: float, priority: Priority) -> bytes:
        if priority is Priority.WORK:
            return await self._peers.request(peer_id, payload, deadline_s)
        peers = cast("PrioritizingPeers", self._peers)
        return await peers.request(peer_id, payload, deadline_s, priority=priority)

    async def receive(self, attested: Attested, payload: bytes) -> bytes:
        """Serve one request of an attested peer; returns the sealed receipt.

        Raises:
            EnvelopeError: the message was refused before its body was read.
            SignatureInvalid: the signature does not verify.
        """
        try:
            message = await self._gate.open(attested, payload, self._handlers)
        except ComityError as error:
            self._counts[f"refused.{error.code}"] += 1
            self._warn(attested, "refused a message of %s unread: %s", attested.organization, error)
            raise
        self._counts[f"received.{message.kind}"] += 1
        if retry_after_ms := self._pace.take(attested.organization, self._gate.now_ms()):
            self._counts["busy.too_fast"] += 1
            receipt = _too_fast(retry_after_ms)
        else:
            receipt = await self._handle(attested, message.kind, message.body)
        if receipt.status == Receipt.STATUS_REFUSED:
            self._counts[f"refused.{receipt.code}"] += 1
        return await self._gate.seal(
            RECEIPT,
            receipt.SerializeToString(),
            audience=attested.peer_id,
            message_id=self._gate.message_id(attested.peer_id),
            in_reply_to=message.header.id,
        )

    def _warn(self, attested: Attested, text: str, *values: object) -> None:
        """Write a line about a refused message, unless this organization has had its share: the counters have all."""
        if not self._log_pace.take(attested.organization, self._gate.now_ms()):
            log.warning(text, *values)

    async def _handle(self, attested: Attested, kind: str, body: bytes) -> Receipt:
        try:
            return await self._handlers[kind](attested, body)
        except Busy as error:
            return Receipt(
                status=Receipt.STATUS_BUSY, code=error.code, reason=str(error), retry_after_ms=error.retry_after_ms
            )
        except StorageError as error:
            log.error("cannot store a %s of %s: %s", kind, attested.organization, error.diagnostics())  # noqa: TRY400
            return Receipt(status=Receipt.STATUS_BUSY, code=error.code, reason="cannot store it", retry_after_ms=5_000)
        except ComityError as error:
            rules, told = (error.rules, error.told) if isinstance(error, PolicyDenied) else ((), str(error))
            self._warn(attested, "refused a %s of %s: %s", kind, attested.organization, error)
            return Receipt(status=Receipt.STATUS_REFUSED, code=error.code, reason=told, rules=rules)
        except DecodeError:
            self._warn(attested, "refused a %s of %s: it does not parse", kind, attested.organization)
            return Receipt(
                status=Receipt.STATUS_REFUSED, code=EnvelopeMalformed.code, reason=f"the {kind} does not parse"
            )


def _too_fast(retry_after_ms: int) -> Receipt:
    reason = "more messages than this node takes of one organization"
    return Receipt(status=Receipt.STATUS_BUSY, code=Busy.code, reason=reason, retry_after_ms=retry_after_ms)


def _parse_receipt(body: bytes) -> Receipt:
    """Parse a receipt; its texts, which end up in journals, logs and terminals, are cut to what is of use there."""
    try:
        receipt = Receipt.FromString(body)
    except DecodeError as error:
        raise EnvelopeMalformed("the receipt does not parse") from error
    receipt.code = _clip(receipt.code, _MAX_CODE)
    receipt.reason = _clip(receipt.reason, _MAX_REASON)
    receipt.rules[:] = [_clip(rule, _MAX_RULE) for rule in receipt.rules[:_MAX_RULES]]
    return receipt


def _clip(text: str, most: int) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[:most])
