"""What peers say to each other on /meshsub/1.1.0: the RPC's protobuf, as values, and its frames.

Reading is bounded before anything is allocated: a frame's length is compared with the limit as soon as its varint is
there, and of each list only so many entries are taken, whatever the frame holds. A message that is not well formed
(too large, unsigned, without a topic) is counted and left out: it is for the router to hold it against the peer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from comity.errors import FrameTooLarge, ProtocolError
from comity_node.p2p.v1.pubsub_pb2 import PubSubMessage, PubSubPrune, PubSubRpc
from comity_node.protocol.gossip_message import SEQNO_BYTES, SIGNATURE_BYTES, GossipMessage, varint
from comity_node.protocol.gossip_params import GossipLimits

#: The protocol that peers negotiate.
MESHSUB: Final = "/meshsub/1.1.0"
_PUBLISH: Final = b"\x12"
_MAX_VARINT: Final = 9
#: No list of IDs is worth more than these; the specification's own IDs have 46 bytes.
_MAX_ID: Final = 128


@dataclass(frozen=True, slots=True)
class Prune:
    """A PRUNE: the topic, and for how many seconds the pruned peer must not graft again (0: not said)."""

    topic: str
    backoff_s: int = 0


@dataclass(frozen=True, slots=True)
class IHave:
    """An IHAVE: IDs of messages of a topic that the sender has."""

    topic: str
    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC.

    Attributes:
        subscriptions: topics, each with whether the sender subscribes (True) or leaves.
        messages: published or forwarded.
        ihave: what the sender has.
        iwant: IDs of messages that it asks for.
        graft: topics in whose mesh it puts us.
        prune: topics out of whose mesh it takes us.
        malformed: messages that were left out because they are not well formed; only of received RPCs.
    """

    subscriptions: tuple[tuple[str, bool], ...] = ()
    messages: tuple[GossipMessage, ...] = ()
    ihave: tuple[IHave, ...] = ()
    iwant: tuple[bytes, ...] = ()
    graft: tuple[str, ...] = ()
    prune: tuple[Prune, ...] = ()
    malformed: int = 0

    @property
    def is_control(self) -> bool:
        """Whether it must not get lost: it changes what the two sides take each other for."""
        return bool(self.subscriptions or self.graft or self.prune)


def encode_rpc(rpc: Rpc) -> bytes:
    """Return the protobuf of an RPC, without its length."""
    published = b"".join(
        part for message in rpc.messages for wire in (message.encode(),) for part in (_PUBLISH, varint(len(wire)), wire)
    )
    if not (rpc.subscriptions or rpc.ihave or rpc.iwant or rpc.graft or rpc.prune):
        return published
    wire = PubSubRpc()
    for topic, subscribe in rpc.subscriptions:
        wire.subscriptions.add(topic_id=topic, subscribe=subscribe)
    for have in rpc.ihave:
        wire.control.ihave.add(topic_id=have.topic, message_ids=have.ids)
    if rpc.iwant:
        wire.control.iwant.add(message_ids=rpc.iwant)
    for topic in rpc.graft:
        wire.control.graft.add(topic_id=topic)
    for prune in rpc.prune:
        wire.control.prune.add(topic_id=prune.topic, backoff=prune.backoff_s or None)
    return wire.SerializeToString() + published


def encode_frame(rpc: Rpc) -> bytes:
    """Return an RPC as it goes onto the stream."""
    data = encode_rpc(rpc)
    return varint(len(data)) + data


def decode_rpc(data: bytes, limits: GossipLimits) -> Rpc:
    """Read an RPC's protobuf; of each list, no more than the limits allow.

    Raises:
        FrameTooLarge: it is over the limit.
        ProtocolError: it is no RPC.
    """
    if len(data) > limits.rpc_bytes:
        raise FrameTooLarge(f"an RPC of {len(data)} bytes is over the limit of {limits.rpc_bytes}")
    wire = PubSubRpc()
    try:
        wire.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError("the peer sent what is no RPC of GossipSub") from error
    messages = [
        message
        for one in wire.publish[: limits.rpc_messages]
        if (message := _read_message(one, limits.message_bytes)) is not None
    ]
    taken = min(len(wire.publish), limits.rpc_messages)
    control, most = wire.control, limits.rpc_entries
    return Rpc(
        subscriptions=tuple((one.topic_id, one.subscribe) for one in wire.subscriptions[:most]),
        messages=tuple(messages),
        ihave=tuple(IHave(one.topic_id, _ids(one.message_ids, limits)) for one in control.ihave[:most]),
        iwant=_ids((one for part in control.iwant[:most] for one in part.message_ids), limits),
        graft=tuple(one.topic_id for one in control.graft[:most]),
        prune=tuple(_read_prune(one) for one in control.prune[:most]),
        malformed=taken - len(messages),
    )


def _read_message(wire: PubSubMessage, most: int) -> GossipMessage | None:
    good = (
        0 < len(wire.data) <= most
        and 0 < len(wire.author) <= _MAX_ID
        and len(wire.seqno) == SEQNO_BYTES
        and len(wire.signature) == SIGNATURE_BYTES
        and wire.topic
    )
    return GossipMessage(wire.author, wire.data, wire.seqno, wire.topic, wire.signature) if good else None


def _read_prune(wire: PubSubPrune) -> Prune:
    return Prune(wire.topic_id, wire.backoff)


def _ids(ids: Iterable[bytes], limits: GossipLimits) -> tuple[bytes, ...]:
    taken: dict[bytes, None] = {}
    for one in ids:
        if len(one) <= _MAX_ID:
            taken[one] = None
        if len(taken) >= limits.rpc_ids:
            break
    return tuple(taken)


class RpcReader:
    """Cuts a stream of bytes into RPCs, however the bytes are chunked. It holds one frame and one chunk at most."""

    __slots__ = ("_broken", "_buffer", "_limits")

    def __init__(self, limits: GossipLimits) -> None:
        """Make a reader."""
        self._limits = limits
        self._buffer = bytearray()
        self._broken = False

    @property
    def buffered(self) -> int:
        """Bytes that wait for the rest of their frame."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take bytes from the stream; call `next_rpc` until it returns None before feeding more."""
        self._buffer += data

    def next_rpc(self) -> Rpc | None:
        """Return the next whole RPC, or None if it is not there yet.

        Raises:
            FrameTooLarge: its length, which may be all that is there of it, is over the limit.
            ProtocolError: the length is no varint, the frame is no RPC, or the reader has raised before.
        """
        if self._broken:
            raise ProtocolError("this stream has broken the framing before")
        try:
            return self._next()
        except ProtocolError:
            self._broken = True
            self._buffer.clear()
            raise

    def _next(self) -> Rpc | None:
        length = shift = 0
        for index, byte in enumerate(self._buffer[: _MAX_VARINT + 1]):
            length |= (byte & 0x7F) << shift
            shift += 7
            if length > self._limits.rpc_bytes:
                raise FrameTooLarge(f"an RPC is announced that is over the limit of {self._limits.rpc_bytes} bytes")
            if byte < 0x80:
                return self._cut(index + 1, index + 1 + length)
            if index >= _MAX_VARINT:
                raise ProtocolError("the length of an RPC is no varint")
        return None

    def _cut(self, begin: int, end: int) -> Rpc | None:
        if len(self._buffer) < end:
            return None
        data = bytes(self._buffer[begin:end])
        del self._buffer[:end]
        return decode_rpc(data, self._limits)
