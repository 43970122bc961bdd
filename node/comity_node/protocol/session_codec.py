"""How the parts of a session's frames are written and read. All numbers are big-endian, lengths are in bytes.

- REQUEST, NOTIFY: id 8, milliseconds left 4, payload
- STREAM: id 8, milliseconds left 4, items 4, bytes 4, payload
- RESPONSE, ITEM: id 8, payload
- END, CANCEL: id 8
- CREDIT: id 8, items 4, bytes 4
- SETTLED: notifications 4, bytes of their payloads 4
- ERROR: id 8, milliseconds after which to try again 4, length of the code 1, code, text
- PING, PONG: nonce 8
- the others: a message of comity.v1
"""

from __future__ import annotations

import struct

from google.protobuf.message import DecodeError

from comity.errors import ProtocolError
from comity.v1 import link_pb2
from comity_node.protocol.session_events import ErrorReceived

#: Characters of an error's or a refusal's code, and of its text.
MAX_CODE = 64
MAX_TEXT = 512
MAX_TUNNEL_NAME = 128
_U32 = 0xFFFFFFFF

ID = struct.Struct(">Q")
CALL = struct.Struct(">QI")
STREAM = struct.Struct(">QIII")
CREDIT = struct.Struct(">QII")
SETTLED = struct.Struct(">II")
_ERROR = struct.Struct(">QIB")
#: With length and type in front: what is written most is written in one go.
CALL_HEAD = struct.Struct(">IBQI")
ANSWER_HEAD = struct.Struct(">IBQ")
#: Bytes of a frame before its payload, type not counted; an error is all header.
LONGEST_HEADER = max(STREAM.size, _ERROR.size + MAX_CODE + 4 * MAX_TEXT)


def read_exactly(form: struct.Struct, buffer: bytes, begin: int, end: int) -> tuple[int, ...]:
    """Read a frame that is nothing but these numbers.

    Raises:
        ProtocolError: it is longer or shorter.
    """
    if end - begin != form.size:
        raise ProtocolError(f"a frame of {end - begin} bytes where {form.size} belong")
    return form.unpack_from(buffer, begin)


def printable(text: str, limit: int) -> str:
    """Text of a peer for a person's terminal or log: one line, no control characters."""
    return "".join(character if character.isprintable() else " " for character in text[:limit])


def write_verdict(code: str, reason: str) -> bytes:
    """A refusal or a farewell: HelloAnswer and TunnelAnswer have the same two fields."""
    text = reason[:MAX_TEXT].encode("utf-8", "replace").decode()  # lone surrogates are no protobuf string
    return link_pb2.HelloAnswer(code=code or "refused", reason=text).SerializeToString()


def read_verdict(payload: bytes) -> tuple[str, str]:
    """The code and the reason of a refusal or a farewell; both empty for an acceptance.

    Raises:
        ProtocolError: it does not parse.
    """
    try:
        answer = link_pb2.HelloAnswer.FromString(payload)
    except DecodeError as error:
        raise ProtocolError("a malformed answer") from error
    return printable(answer.code, MAX_CODE), printable(answer.reason, MAX_TEXT)


def write_error(request_id: int, code: str, text: str, retry_after_ms: int) -> bytes:
    """The payload of an ERROR; code and text are cut to their limits."""
    code_bytes = code.encode("ascii", "replace")[:MAX_CODE]
    head = _ERROR.pack(request_id, min(max(retry_after_ms, 0), _U32), len(code_bytes))
    return head + code_bytes + text[:MAX_TEXT].encode("utf-8", "replace")


def read_error(payload: bytes) -> ErrorReceived:
    """What an ERROR says.

    Raises:
        ProtocolError: it is truncated, or its code does not fit.
    """
    if len(payload) < _ERROR.size:
        raise ProtocolError("a truncated error")
    request_id, retry_after_ms, code_length = _ERROR.unpack_from(payload)
    code_end = _ERROR.size + code_length
    if code_length > MAX_CODE or len(payload) < code_end:
        raise ProtocolError("an error whose code does not fit")
    code = printable(payload[_ERROR.size : code_end].decode("ascii", "replace"), MAX_CODE)
    text = printable(payload[code_end : code_end + 4 * MAX_TEXT].decode("utf-8", "replace"), MAX_TEXT)
    return ErrorReceived(request_id, code or "error", text, retry_after_ms)


def read_tunnel_name(payload: bytes) -> str:
    """The name in a TunnelOpen.

    Raises:
        ProtocolError: it does not parse, or is not a short printable name.
    """
    try:
        name = link_pb2.TunnelOpen.FromString(payload).name
    except DecodeError as error:
        raise ProtocolError("a malformed TunnelOpen") from error
    if not name or len(name) > MAX_TUNNEL_NAME or not name.isprintable():
        raise ProtocolError(f"a tunnel's name has 1 to {MAX_TUNNEL_NAME} printable characters")
    return name
