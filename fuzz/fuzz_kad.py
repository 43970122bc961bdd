"""Fuzz target: what peers say of the provider table, as questions, as answers, and as a search is led by them.

The first byte says how; the rest is a message. `one` holds what must be true of any input: errors of the tree and no
others, tables within their bounds, records of the sender alone, and searches that end.

Run: python -m fuzz.run kad
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comity.errors import ComityError
from comity.signing import PrivateKey, peer_id_to_bytes
from comity_node.discovery.kad import Kademlia, KademliaSettings, read_contacts, read_message
from comity_node.p2p.v1 import kad_pb2 as pb
from comity_node.protocol.kad import Contact, K, ProviderLimits, Search, skill_key
from comity_node.transport.address import Address
from comity_node.transport.memory import MemoryNetwork
from comity_node.transport.multiaddr import encode_multiaddr

_US, _SENDER, _OTHER = (PrivateKey(bytes([number] * 32)).peer_id for number in (1, 2, 3))
_KEY = skill_key("review")
_SETTINGS = KademliaSettings(providers=ProviderLimits(keys=2, per_key=2, per_provider=2, lives_ms=10))


async def _nobody(_: Contact) -> bool:
    return False


def one(data: bytes) -> None:
    """Read one input."""
    how, message = (data[0], data[1:]) if data else (0, b"")
    try:
        read = read_message(message)
    except ComityError:
        return
    _as_question(read, now_ms=how)
    _as_answers(read, most=1 + how % 8)


def _as_question(message: pb.KadMessage, now_ms: int) -> None:
    node = Kademlia(MemoryNetwork().transport(_US), _nobody, now_ms=lambda: now_ms, settings=_SETTINGS)
    node.peer_up(_OTHER, ["/ip4/8.8.8.8/tcp/1"])
    try:
        answer = node.answer(_SENDER, message)
    except ComityError:
        return
    assert node.records <= _SETTINGS.providers.keys
    assert {each.peer_id for each in node.providers(message.key)} <= {_SENDER}
    if answer is not None:
        assert {peer.id for peer in answer.closer_peers} <= {peer_id_to_bytes(_OTHER)}
        assert read_message(answer.SerializeToString()) == answer


def _as_answers(message: pb.KadMessage, most: int) -> None:
    closer = read_contacts(message.closer_peers, _SENDER, _SETTINGS)
    assert len(closer) <= K
    for contact in closer:
        peer_id_to_bytes(contact.peer_id)
    search = Search(_KEY, [_SENDER, _OTHER], most=most, me=_US)
    asked = 0
    while not search.done:
        for contact in search.next():
            assert contact.peer_id != _US
            asked += 1
            search.answered(contact.peer_id, closer)
    assert asked <= most
    assert len(search.nearest()) <= K


def _seeds() -> tuple[bytes, ...]:
    address = encode_multiaddr(Address("ip4", "8.8.8.8", 4001))
    sender, other = (pb.KadPeer(id=peer_id_to_bytes(peer), addrs=[address]) for peer in (_SENDER, _OTHER))
    kinds: list[tuple[Any, Sequence[pb.KadPeer], Sequence[pb.KadPeer]]] = [
        (pb.KAD_MESSAGE_TYPE_PING, [], []),
        (pb.KAD_MESSAGE_TYPE_FIND_NODE, [], [sender, other]),
        (pb.KAD_MESSAGE_TYPE_GET_PROVIDERS, [other], [sender]),
        (pb.KAD_MESSAGE_TYPE_ADD_PROVIDER, [sender, other], []),
        (pb.KAD_MESSAGE_TYPE_ADD_PROVIDER, [pb.KadPeer(id=b"\x00\x24"), sender], []),
    ]
    messages = [pb.KadMessage(type=kind, key=_KEY, provider_peers=p, closer_peers=c) for kind, p, c in kinds]
    return tuple(b"\x07" + message.SerializeToString() for message in messages)


#: One good message of each kind.
SEEDS = _seeds()
