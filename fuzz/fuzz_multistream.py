"""Fuzzes multistream-select: whatever the peer says, and in whatever pieces, costs little and means the same.

Run: python -m fuzz.run multistream
"""

from __future__ import annotations

from comity.errors import ProtocolError
from comity_node.transport.multistream import HEADER, MAX_MESSAGE, MAX_MESSAGES, Listener, Opener, encode

PROTOCOLS = ("/noise", "/tls/1.0.0")
_NA = encode("na")
#: Where a fuzzer begins: the whole grammar, and what has hurt others.
SEEDS = (
    b"\x00" + encode(HEADER) + encode("/noise") + b"and more",
    b"\x01" + encode(HEADER) + _NA + encode("/tls/1.0.0") + b"and more",
    b"\x01" + encode(HEADER) + _NA + _NA,
    b"\x00" + encode(HEADER) + encode("ls") + encode("/noise"),
    b"\x00" + encode(HEADER) + encode("/x") * MAX_MESSAGES,
    b"\x00" + encode(HEADER) + encode("/x") * (MAX_MESSAGES - 1) + b"\x03" + b"\xff" * 9,
    b"\x00\x80\x80\x80\x80\x04",
    b"\x00\xff\xff\xff\xff\xff\xff\xff",
    b"\x01\x00",
    b"\x00\x93\x00/multistream/1.0.0\n",
    b"\x00\x05\xff\xfe\xfd\xfc\n",
)


def one(data: bytes) -> None:
    """Feed what follows the first byte to a listener or an opener, at once and byte by byte."""
    role, said = data[:1], data[1:]
    make = _opener if role and role[0] % 2 else _listener
    whole = _outcome(make(), [said])
    pieces = _outcome(make(), [said[at : at + 1] for at in range(len(said))])
    assert whole == pieces, (whole, pieces)


def _listener() -> Listener:
    return Listener(PROTOCOLS)


def _opener() -> Opener:
    return Opener(PROTOCOLS)


def _outcome(end: Listener | Opener, pieces: list[bytes]) -> tuple[str | None, bytes, bytes, str]:
    """What was chosen, what was answered, what came after it; or how it failed."""
    out, rest, kept = b"", b"", 0
    for number, piece in enumerate(pieces):
        kept += len(piece)
        try:
            while more := end.receive(piece):
                out += more
                piece = b""
                if not end.wanted:
                    break
        except ProtocolError as error:
            answered = out if isinstance(end, Listener) else b""  # an opener says no more to whom it gives up
            return None, answered, b"", type(error).__name__
        if not end.wanted:
            rest = end.rest() + b"".join(pieces[number + 1 :])
            break
        assert 0 < end.wanted <= MAX_MESSAGE
        if len(pieces) > 1:  # never more than a message and its length is kept
            assert len(end.rest()) <= MAX_MESSAGE + 2
    assert len(out) <= MAX_MESSAGES * (MAX_MESSAGE + 2)
    if end.chosen is not None:
        assert end.chosen in PROTOCOLS
    return end.chosen, out, rest, ""
