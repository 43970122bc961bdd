"""Fuzz target: the length-delimited messages of circuit relay v2, identify and DCUtR.

The first byte says into how long pieces a network cuts the rest; then each message is read by every decoder. What a
decoder accepts must be the same when it is written and read again.

Run: python -m fuzz.run relay
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from comity.errors import ComityError
from comity.signing import PrivateKey
from comity_node.transport.address import Address
from comity_node.transport.dcutr import PunchConnect, PunchSync, decode_punch, encode_punch
from comity_node.transport.identify import Identity, decode_identity, encode_identity
from comity_node.transport.multiaddr import decode_multiaddr, encode_multiaddr
from comity_node.transport.relay import (
    Answer,
    Connect,
    Reserve,
    Status,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
    open_voucher,
    seal_voucher,
)
from comity_node.transport.varint import Delimited, delimit

T = TypeVar("T")
_MAX_MESSAGE = 4096
_KEY, _PEER = PrivateKey(bytes(32)), PrivateKey(bytes([1] * 32)).peer_id


def one(data: bytes) -> None:
    """Read `data` with every decoder; raises only if one of them is wrong."""
    if not data:
        return
    for message in _messages(data[0] + 1, data[1:]):
        assert len(message) <= _MAX_MESSAGE
        _comes_back(message, decode_hop, lambda value: _content(encode_hop(value)))
        _comes_back(message, decode_stop, lambda value: _content(encode_stop(value)))
        _comes_back(message, decode_punch, encode_punch)
        _comes_back(message, decode_identity, lambda value: _content(encode_identity(value)))
        _comes_back(message, decode_multiaddr, encode_multiaddr)
        try:
            open_voucher(message, relay=_KEY.peer_id, peer=_PEER)
        except ComityError:
            pass


def _seeds() -> tuple[bytes, ...]:
    address = Address("ip4", "192.0.2.1", 4001)
    relay = Address("ip4", "192.0.2.1", 4001, _KEY.peer_id)
    voucher = seal_voucher(_KEY, _PEER, 1_800_000_000)
    good = Answer(Status.OK, limit_s=60, limit_bytes=4096, expires_s=1_800_000_000, addresses=(relay,), voucher=voucher)
    messages = [
        encode_hop(Reserve()),
        encode_hop(Connect(_PEER)),
        encode_hop(good),
        encode_stop(Connect(_PEER, 60, 4096)),
        encode_stop(Answer(Status.OK)),
        delimit(encode_punch(PunchConnect((address,)))),
        delimit(encode_punch(PunchSync())),
        encode_identity(Identity("comity/1", (address, relay.through()), ("/a/1",), address, b"k")),
        delimit(voucher),
    ]
    return (*(b"\xff" + message for message in messages), b"\x02" + b"".join(messages))


def _messages(cut: int, stream: bytes) -> list[bytes]:
    delimited = Delimited(_MAX_MESSAGE)
    messages: list[bytes] = []
    try:
        for start in range(0, len(stream), cut):
            delimited.receive(stream[start : start + cut])
            while (message := delimited.take()) is not None:
                messages.append(message)
            assert delimited.wanted <= _MAX_MESSAGE + 5
    except ComityError:
        pass
    return messages


def _content(message: bytes) -> bytes:
    [content] = _messages(len(message), message)
    return content


def _comes_back(message: bytes, decode: Callable[[bytes], T], encode: Callable[[T], bytes]) -> None:
    try:
        value = decode(message)
    except ComityError:
        return
    assert decode(encode(value)) == value


#: Inputs to begin with: one good message of each kind, and all of them.
SEEDS = _seeds()
