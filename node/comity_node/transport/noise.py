"""libp2p's Noise, without I/O (https://github.com/libp2p/specs/tree/master/noise).

`NoiseHandshake` puts into the handshake `XX` what libp2p says there: each end's identity key, that key's signature of
the static Noise key, and the stream multiplexers it speaks. `NoiseSession` is what follows: messages of at most 65,535
bytes, each with its length in two bytes before it, of which many are sealed or opened at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.message import DecodeError

from comity.errors import FrameTooLarge, ProtocolError, SignatureInvalid
from comity.signing import PrivateKey, from_libp2p_public_key, libp2p_public_key, verify
from comity_node.p2p.v1.noise_pb2 import NoisePayload
from comity_node.transport.noise_xx import TAG, XX, CipherState
from comity_node.transport.secured import Proved, check_peer

PROTOCOL_ID = "/noise"
#: The longest Noise message, and what of it can be plain text.
MAX_MESSAGE = 65535
MAX_PLAINTEXT = MAX_MESSAGE - TAG
#: The longest message of the handshake that is read; with an Ed25519 identity it has some 200 bytes.
MAX_HANDSHAKE_MESSAGE = 4096
#: Multiplexers of a peer that are looked at.
_MAX_MUXERS = 32
#: What long data are cut into: OpenSSL takes a third longer for what is not a multiple of 128 bytes.
CUT = MAX_PLAINTEXT // 128 * 128
#: What is sealed into one piece at most: a batch of the multiplexer's, control frames included.
MAX_SEALED = 5 * (2 + CUT + TAG)
#: What is opened into one piece, at least, if there is as much.
_BATCH = 256 * 1024
_SIGNED = b"noise-libp2p-static-key:"


class Frames:
    """Cuts bytes into messages by the two bytes before each; copies a message only where it came in pieces."""

    def __init__(self, max_length: int = MAX_MESSAGE) -> None:
        """Refuse messages of more than `max_length` bytes."""
        self.max_length = max_length
        self._data: bytes | bytearray = b""
        self._at = 0
        self._partial = bytearray()
        self._whole: bytearray | None = None

    @property
    def is_cut(self) -> bool:
        """Whether a message has begun that is not whole."""
        return bool(self._partial)

    def feed(self, data: bytes) -> None:
        """Take in bytes, after `next` has returned None.

        Raises:
            FrameTooLarge: a message says that it is longer than allowed; nothing was kept for it.
        """
        self._data, self._at = data, self._fill(data) if data and self._partial else 0

    def _fill(self, data: bytes) -> int:
        """Add to the message that has begun; returns how many bytes that took."""
        partial = self._partial
        taken = 2 - len(partial) if len(partial) < 2 else 0
        partial += data[:taken]
        missing = 2 + self._length(partial, 0) - len(partial)
        partial += memoryview(data)[taken : taken + missing]
        if missing <= len(data) - taken:
            self._whole, self._partial = partial, bytearray()
        return min(taken + missing, len(data))

    def next(self) -> memoryview | None:
        """Return the next message, None until it is whole.

        Raises:
            FrameTooLarge: it says that it is longer than allowed; nothing was kept for it.
        """
        if self._whole is not None:
            whole, self._whole = self._whole, None
            return memoryview(whole)[2:]
        data, at = self._data, self._at
        if len(data) - at >= 2:
            end = at + 2 + self._length(data, at)
            if end <= len(data):
                self._at = end
                return memoryview(data)[at + 2 : end]
        if at < len(data):
            self._partial += memoryview(data)[at:]
            self._data, self._at = b"", 0
        return None

    def _length(self, data: bytes | bytearray, at: int) -> int:
        length = data[at] << 8 | data[at + 1]
        if length > self.max_length:
            raise FrameTooLarge(f"a message of {length} bytes where {self.max_length} are the most")
        return length


class NoiseSession:
    """The two ciphers of a connection, over messages."""

    def __init__(self, send: CipherState, receive: CipherState, frames: Frames) -> None:
        """Go on from a handshake: `frames` holds what came after its last message."""
        self._send, self._receive, self._frames = send, receive, frames
        frames.max_length = MAX_MESSAGE

    @property
    def is_ended(self) -> bool:
        """See `Session.is_ended`: Noise has no word for it."""
        return False

    @property
    def is_cut(self) -> bool:
        """See `Session.is_cut`."""
        return self._frames.is_cut

    def seal(self, data: bytes) -> Iterator[bytes]:
        """Return what to write for `data`, in pieces of at most `MAX_SEALED` bytes."""
        if len(data) <= MAX_PLAINTEXT:
            sealed = self._send.encrypt(data)
            yield len(sealed).to_bytes(2, "big") + sealed
            return
        view = memoryview(data)
        pieces: list[bytes] = []
        size = 0
        for at in range(0, len(data), CUT):
            sealed = self._send.encrypt(view[at : at + CUT])
            if size + 2 + len(sealed) > MAX_SEALED:
                yield b"".join(pieces)
                pieces, size = [], 0
            pieces += (len(sealed).to_bytes(2, "big"), sealed)
            size += 2 + len(sealed)
        yield b"".join(pieces)

    def feed(self, data: bytes) -> None:
        """Take in bytes from the wire, after `take` has returned b""."""
        self._frames.feed(data)

    def take(self) -> bytes:
        """Return plain text, some 320 KiB at most; b"" when more bytes are needed.

        Raises:
            ProtocolError: a message was not made with the key of this connection.
        """
        pieces: list[bytes] = []
        size = 0
        while size < _BATCH and (message := self._frames.next()) is not None:
            if len(message) < TAG:
                raise ProtocolError(f"a message of {len(message)} bytes has no room for its tag")
            pieces.append(plain := self._receive.decrypt(message))
            size += len(plain)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@dataclass(frozen=True, slots=True)
class NoiseIdentity:
    """What a node proves in each of its handshakes.

    Attributes:
        static: the Noise key.
        payload: what goes with it: the identity key, its signature of the Noise key, the multiplexers.
        muxers: multiplexers that are spoken, the best first.
    """

    static: X25519PrivateKey
    payload: bytes
    muxers: tuple[str, ...]

    @classmethod
    def of(cls, key: PrivateKey, static: X25519PrivateKey, muxers: Sequence[str]) -> NoiseIdentity:
        """Bind the Noise key `static` to the identity `key`."""
        message = NoisePayload(
            identity_key=libp2p_public_key(key.public_key),
            identity_sig=key.sign(_SIGNED + static.public_key().public_bytes_raw()),
        )
        message.extensions.stream_muxers.extend(muxers)
        return cls(static, message.SerializeToString(), tuple(muxers))


class NoiseHandshake:
    """The `Handshake` of libp2p's Noise."""

    def __init__(
        self,
        identity: NoiseIdentity,
        *,
        initiator: bool,
        ephemeral: X25519PrivateKey,
        expected_peer: str | None = None,
    ) -> None:
        """Make one end.

        Args:
            identity: what this end proves.
            initiator: whether this end begins.
            ephemeral: a key that was made for this handshake.
            expected_peer: the PeerId to find at the other end; anybody else is told nothing about who we are.
        """
        self._identity = identity
        self._initiator = initiator
        self._expected = expected_peer
        self._xx = XX(initiator=initiator, static=identity.static, ephemeral=ephemeral)
        self._frames = Frames(MAX_HANDSHAKE_MESSAGE)
        self._peer_id = ""
        self._muxers: tuple[str, ...] = ()
        self.proved: Proved | None = None

    def start(self) -> bytes:
        """See `Handshake.start`."""
        return self._write(b"") if self._initiator else b""

    def receive(self, data: bytes) -> bytes:
        """See `Handshake.receive`."""
        self._frames.feed(data)
        out = b""
        while self.proved is None and (message := self._frames.next()) is not None:
            payload = self._xx.read(message)
            if self._xx.remote_static:
                self._check(payload)
            if self._xx.writes_next:
                out += self._write(self._identity.payload)
            if self._xx.is_finished:
                self.proved = Proved(self._peer_id, self._muxer(), NoiseSession(*self._xx.split(), self._frames))
        return out

    def _write(self, payload: bytes) -> bytes:
        message = self._xx.write(payload)
        return len(message).to_bytes(2, "big") + message

    def _check(self, data: bytes) -> None:
        """Verify whose Noise key it is."""
        try:
            payload = NoisePayload.FromString(data)
            public_key = from_libp2p_public_key(payload.identity_key)
            verify(public_key, payload.identity_sig, _SIGNED + self._xx.remote_static)
        except (DecodeError, SignatureInvalid) as error:
            raise ProtocolError(
                "the peer has not proved its key: it needs an Ed25519 identity that signs its Noise key"
            ) from error
        self._peer_id = check_peer(public_key, self._expected)
        self._muxers = tuple(payload.extensions.stream_muxers[:_MAX_MUXERS])

    def _muxer(self) -> str:
        """The first of the initiator's multiplexers that the responder speaks, too; "" if one of them names none."""
        ours, theirs = self._identity.muxers, self._muxers
        if not (ours and theirs):
            return ""
        first, second = (ours, theirs) if self._initiator else (theirs, ours)
        for muxer in first:
            if muxer in second:
                return muxer
        raise ProtocolError(f"the peer speaks none of the multiplexers {', '.join(ours)}")
