"""Fuzz target: what peers say to a meeting point, what one answers, and signed peer records.

The first byte says who asks; the rest is a message, and a record. `one` holds what must be true of any input: errors of
the tree and no others, tables within their bounds, and nobody registered but by itself.

Run: python -m fuzz.run rendezvous
"""

from __future__ import annotations

from comity.errors import ComityError, ProtocolError
from comity.signing import PrivateKey
from comity_node.discovery.rendezvous import RendezvousPoint, RendezvousSettings, read_message, read_registrations
from comity_node.p2p.v1 import rendezvous_pb2 as pb
from comity_node.protocol.rendezvous import RendezvousLimits
from comity_node.transport.address import Address
from comity_node.transport.memory import MemoryNetwork
from comity_node.transport.peer_record import open_record, sign_record

_US, *_SENDERS = (PrivateKey(bytes([number] * 32)) for number in (1, 2, 3))
_LIMITS = RendezvousLimits(lives_s=1000, per_peer=2, registrations=3, answer=2)
_ADDRESS = Address("ip4", "8.8.8.8", 4001)
_NOW_MS = 1_700_000_000_000


def one(data: bytes) -> None:
    """Read one input."""
    how, message = (data[0], data[1:]) if data else (0, b"")
    sender = _SENDERS[how % len(_SENDERS)].peer_id
    try:
        assert open_record(message).peer_id
    except ProtocolError:
        pass
    try:
        read = read_message(message)
    except ComityError:
        return
    assert len(read_registrations(read.discover_response, _LIMITS, allow_private=False)) <= _LIMITS.answer
    point = RendezvousPoint(
        MemoryNetwork().transport(_US.peer_id), now_ms=lambda: _NOW_MS, settings=RendezvousSettings(limits=_LIMITS)
    )
    for _ in range(2):
        try:
            answer = point.answer(sender, read)
        except ComityError:
            return
        assert len(point) <= 1
        if answer is not None:
            assert read_message(answer.SerializeToString()) == answer
    if len(point):
        assert open_record(read.register.signed_peer_record).peer_id == sender


def _seeds() -> tuple[bytes, ...]:
    records = [sign_record(key, 7, [_ADDRESS]) for key in _SENDERS]
    entries = [pb.RendezvousRegister(ns="comity/x", signed_peer_record=record, ttl=60) for record in records]
    messages = [
        *(pb.RendezvousMessage(register=entry) for entry in entries),
        pb.RendezvousMessage(type=pb.RENDEZVOUS_TYPE_UNREGISTER, unregister=pb.RendezvousUnregister(ns="comity/x")),
        pb.RendezvousMessage(
            type=pb.RENDEZVOUS_TYPE_DISCOVER, discover=pb.RendezvousDiscover(ns="comity/x", limit=1, cookie=bytes(8))
        ),
        pb.RendezvousMessage(
            type=pb.RENDEZVOUS_TYPE_DISCOVER_RESPONSE,
            discover_response=pb.RendezvousDiscoverResponse(registrations=entries, cookie=bytes(8)),
        ),
    ]
    return (*(b"\x00" + message.SerializeToString() for message in messages), b"\x00" + records[0])


#: One good message of each kind.
SEEDS = _seeds()
