"""What a Flower SuperNode may say to a SuperLink through a tunnel: the Fleet API of Flower 1.41, and no more.

Flower serves its Fleet, Control and Runtime APIs on one port; the last two start code on every SuperNode and ask for
no credentials. So the tunnel's ends terminate HTTP and let only the calls below pass. Each is a POST of one protobuf
message (flwr.proto: fleet, message, run, fab and heartbeat), authenticated by the node's public key in a header; the
SuperLink checks that header's signature and that the key belongs to the node id in the body. It does not check who a
pushed message says it is from: that is done here.

`Pins` binds a peer to the one Flower node it registered. The messages are read by a reader of our own that is stricter
than protobuf's: a field that a second reader could understand differently (twice the same one, a wrong wire type) is
refused. So nothing passes here that means something else there.

Sans-IO: no socket, no clock, no random.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from comity.errors import PolicyDenied, ProtocolError

PREFIX = "/v1/fleet/"
#: Headers of a call that mean something to a SuperLink; all others stay here.
KEY_HEADER = "flwr-public-key"
PASSED_HEADERS = frozenset(
    {
        "content-type",
        "accept",
        KEY_HEADER,
        "flwr-signature",
        "flwr-timestamp",
        "flwr-package-name",
        "flwr-package-version",
        "flwr-component-name",
    }
)
#: Calls whose body names the node by its key, by its id, or by a Node message.
_BY_KEY = frozenset({"register-node", "activate-node"})
_BY_ID = frozenset({"deactivate-node", "unregister-node"})
_BY_NODE = frozenset(
    {
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    }
)
CALLS = _BY_KEY | _BY_ID | _BY_NODE

_MAX_KEY_BYTES = 1024
_MAX_PUSHED_MESSAGES = 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class FleetCall:
    """A call that is well formed.

    Attributes:
        name: the last part of its path, such as `pull-messages`.
        public_key: the key of the Flower node that makes it, as in the header.
        node_id: the id in the body; None before the node has one.
        fab: SHA-256 in hex of the app bundle that a `get-fab` asks for, else "".
    """

    name: str
    public_key: bytes
    node_id: int | None
    fab: str


def read_call(path: str, headers: Mapping[str, str], body: bytes) -> FleetCall:
    """Read a call.

    Raises:
        PolicyDenied: the path is none of the Fleet API's.
        ProtocolError: the body is not the message of that call, or contradicts itself or the headers.
    """
    name = path.removeprefix(PREFIX)
    if not path.startswith(PREFIX) or name not in CALLS:
        raise PolicyDenied("only Flower's Fleet API passes this tunnel")
    key = _key(headers)
    fields = _read(body)
    if name in _BY_KEY:
        if _one(fields, 1, _BYTES) != key:
            raise ProtocolError(f"{name}: the key in the body is not the key in the header")
        return FleetCall(name, key, None, "")
    if name in _BY_ID:
        return FleetCall(name, key, _integer(_one(fields, 1, _VARINT)), "")
    node_id = _integer(_one(_read(_bytes(_one(fields, 1, _BYTES))), 1, _VARINT))
    if name == "push-messages":
        _check_source(fields, node_id)
    fab = _text(_one(fields, 2, _BYTES)) if name == "get-fab" else ""
    return FleetCall(name, key, node_id, fab)


def _check_source(fields: Mapping[int, list[tuple[int, int | bytes]]], node_id: int) -> None:
    """A pushed message must be from the node that pushes it (Message.metadata.src_node_id)."""
    pushed = fields.get(2, [])
    if not 0 < len(pushed) <= _MAX_PUSHED_MESSAGES:
        raise ProtocolError("push-messages: no messages, or too many")
    for kind, message in pushed:
        if kind != _BYTES:
            raise ProtocolError("push-messages: a message of the wrong wire type")
        metadata = _read(_bytes(_one(_read(_bytes(message)), 1, _BYTES)))
        if _integer(_one(metadata, 3, _VARINT)) != node_id:
            raise ProtocolError("push-messages: a message claims to come from another node")


@dataclass(slots=True)
class Pins:
    """Which Flower node each peer acts as: one at a time, and never one that another peer has been.

    A SuperNode makes a new key at each start, so a peer may register again; its pin moves, the old key is dead for
    good, and `registrations` bounds how often. Two peers never share a key.
    """

    registrations: int = 32
    _current: dict[str, bytes] = field(default_factory=dict)
    _owners: dict[bytes, str] = field(default_factory=dict)
    _count: dict[str, int] = field(default_factory=dict)

    def check(self, peer: str, call: FleetCall) -> bool:
        """Admit a call of `peer` (a PeerId); return whether it pinned the peer to a node.

        Raises:
            PolicyDenied: the peer is not, or no longer, the Flower node whose key the call carries.
        """
        owner = self._owners.get(call.public_key)
        if owner is not None and owner != peer:
            raise PolicyDenied("this Flower node belongs to another member")
        if self._current.get(peer) == call.public_key:
            return False
        if owner == peer:
            raise PolicyDenied("this member has registered another Flower node since")
        first = peer not in self._current and call.name == "activate-node"
        if call.name != "register-node" and not first:
            raise PolicyDenied("this member has not registered this Flower node")
        if self._count.get(peer, 0) >= self.registrations:
            raise PolicyDenied(f"this member has registered {self.registrations} Flower nodes; restart the tunnel")
        self._count[peer] = self._count.get(peer, 0) + 1
        self._current[peer] = call.public_key
        self._owners[call.public_key] = peer
        return True


def _key(headers: Mapping[str, str]) -> bytes:
    try:
        key = base64.b64decode(headers[KEY_HEADER], validate=True)
    except KeyError as error:
        raise ProtocolError(f"the call has no {KEY_HEADER} header") from error
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"the {KEY_HEADER} header is no base64") from error
    if not 0 < len(key) <= _MAX_KEY_BYTES:
        raise ProtocolError(f"the {KEY_HEADER} header holds no key")
    return key


def _read(data: bytes) -> dict[int, list[tuple[int, int | bytes]]]:
    """Return the fields of a protobuf message: number to (wire type, value), in order."""
    fields: dict[int, list[tuple[int, int | bytes]]] = {}
    for number, kind, value in _walk(memoryview(data)):
        fields.setdefault(number, []).append((kind, value))
    return fields


def _walk(data: memoryview) -> Iterator[tuple[int, int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if number == 0 or tag >= 1 << 32:
            raise ProtocolError("the body is no protobuf message: bad field number")
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, kind, value
            continue
        if kind == _BYTES:
            length, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ProtocolError("the body is no protobuf message that Flower sends: bad wire type")
        if length > len(data) - at:
            raise ProtocolError("the body is no protobuf message: it is cut short")
        yield number, kind, bytes(data[at : at + length])
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if at >= len(data):
            raise ProtocolError("the body is no protobuf message: it is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at
    raise ProtocolError("the body is no protobuf message: a number is too long")


def _one(fields: Mapping[int, list[tuple[int, int | bytes]]], number: int, kind: int) -> int | bytes:
    """Return the value of a field that must be there exactly once."""
    values = fields.get(number, [])
    if len(values) != 1 or values[0][0] != kind:
        raise ProtocolError(f"field {number} of the body is missing, repeated or of another type")
    return values[0][1]


def _bytes(value: int | bytes) -> bytes:
    assert isinstance(value, bytes)
    return value


def _integer(value: int | bytes) -> int:
    assert isinstance(value, int)
    return value


def _text(value: int | bytes) -> str:
    try:
        return _bytes(value).decode("ascii")
    except UnicodeDecodeError as error:
        raise ProtocolError("a digest in the body is no text") from error
