"""The handshake pattern XX of the Noise Protocol Framework over X25519, ChaCha20-Poly1305 and SHA-256.

The Noise Protocol Framework, revision 34: https://noiseprotocol.org/noise.html, sections 5 and 7.5. Randomness comes
from outside: ephemeral keys are passed in, and each is good for one handshake.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from comity.errors import LinkClosed, ProtocolError, UnexpectedMessage

#: What the tag adds to a message.
TAG = 16
_KEY = 32
#: Noise reserves the highest nonce.
_LAST_NONCE = 2**64 - 2
_NAME = b"Noise_XX_25519_ChaChaPoly_SHA256"  # 32 bytes, the size of a hash, so that it is one
_XX = (("e",), ("e", "ee", "s", "es"), ("s", "se"))


class CipherState:
    """A key and the number of the next message under it."""

    __slots__ = ("_aead", "nonce")

    def __init__(self, key: bytes) -> None:
        """Make the state of a fresh 32-byte key."""
        self._aead = ChaCha20Poly1305(key)
        self.nonce = 0

    def encrypt(self, plaintext: bytes | memoryview, associated: bytes | None = None) -> bytes:
        """Return the ciphertext and its tag.

        Raises:
            LinkClosed: the key has been used as often as a key may be.
        """
        return self._aead.encrypt(self._next(), plaintext, associated)

    def decrypt(self, ciphertext: bytes | memoryview, associated: bytes | None = None) -> bytes:
        """Return the plain text of the next message.

        Raises:
            ProtocolError: it was not encrypted by whoever has the key.
            LinkClosed: the key has been used as often as a key may be.
        """
        try:
            return self._aead.decrypt(self._next(), ciphertext, associated)
        except InvalidTag as error:
            raise ProtocolError(
                "the encryption broke: a message was not made with the key of this connection"
            ) from error

    def _next(self) -> bytes:
        nonce = self.nonce
        if nonce > _LAST_NONCE:
            raise LinkClosed("the key of the connection is used up; connect again")
        self.nonce = nonce + 1
        return (nonce << 32).to_bytes(12, "little")  # four zero bytes, then the number


class XX:
    """The handshake pattern XX: three messages, after which both ends have proved their static keys."""

    def __init__(
        self, *, initiator: bool, static: X25519PrivateKey, ephemeral: X25519PrivateKey, prologue: bytes = b""
    ) -> None:
        """Make one end of a handshake.

        Args:
            initiator: whether this end sends the first message.
            static: the key to prove.
            ephemeral: a key that was made for this handshake.
            prologue: what both ends have to know alike; libp2p has none.
        """
        self._initiator = initiator
        self._static, self._ephemeral = static, ephemeral
        self._remote_ephemeral = self._remote_static = b""
        self._hash = hashlib.sha256(_NAME + prologue).digest()
        self._chaining = _NAME
        self._cipher: CipherState | None = None
        self._at = 0

    @property
    def is_finished(self) -> bool:
        """Whether all three messages have passed."""
        return self._at == len(_XX)

    @property
    def writes_next(self) -> bool:
        """Whether the next message is this end's."""
        return not self.is_finished and (self._at % 2 == 0) == self._initiator

    @property
    def remote_static(self) -> bytes:
        """The static key that the other end has proved; b"" until it has sent it."""
        return self._remote_static

    @property
    def handshake_hash(self) -> bytes:
        """What identifies this handshake once it is finished (Noise, section 11.2)."""
        return self._hash

    def write(self, payload: bytes) -> bytes:
        """Return the next message of this end."""
        if not self.writes_next:
            raise UnexpectedMessage("it is the other end's turn in the handshake")
        out = []
        for token in _XX[self._at]:
            if token == "e":
                out.append(self._ephemeral.public_key().public_bytes_raw())
                self._mix_hash(out[-1])
            elif token == "s":
                out.append(self._encrypt_and_hash(self._static.public_key().public_bytes_raw()))
            else:
                self._mix_dh(token)
        out.append(self._encrypt_and_hash(payload))
        self._at += 1
        return b"".join(out)

    def read(self, message: bytes | memoryview) -> bytes:
        """Take in the next message of the other end and return its payload.

        Raises:
            ProtocolError: it is not what a holder of the keys would have sent.
            UnexpectedMessage: it is this end's turn, or the handshake is over.
        """
        if self.is_finished or self.writes_next:
            raise UnexpectedMessage("a message of the handshake out of turn")
        rest = bytes(message)
        for token in _XX[self._at]:
            if token == "e":
                self._remote_ephemeral, rest = _cut(rest, _KEY)
                self._mix_hash(self._remote_ephemeral)
            elif token == "s":
                sealed, rest = _cut(rest, _KEY + TAG)
                self._remote_static = self._decrypt_and_hash(sealed)
            else:
                self._mix_dh(token)
        payload = self._decrypt_and_hash(rest)
        self._at += 1
        return payload

    def split(self) -> tuple[CipherState, CipherState]:
        """Return the ciphers to send and to receive with."""
        first, second = _hkdf(self._chaining, b"")
        ours, theirs = (first, second) if self._initiator else (second, first)
        return CipherState(ours), CipherState(theirs)

    def _mix_dh(self, token: str) -> None:
        """Mix a shared secret in: of the initiator's key of the first kind and the responder's of the second."""
        own, other = (token[0], token[1]) if self._initiator else (token[1], token[0])
        secret = _exchange(
            self._ephemeral if own == "e" else self._static,
            self._remote_ephemeral if other == "e" else self._remote_static,
        )
        self._chaining, key = _hkdf(self._chaining, secret)
        self._cipher = CipherState(key)

    def _mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def _encrypt_and_hash(self, plaintext: bytes) -> bytes:
        sealed = self._cipher.encrypt(plaintext, self._hash) if self._cipher else plaintext
        self._mix_hash(sealed)
        return sealed

    def _decrypt_and_hash(self, sealed: bytes) -> bytes:
        plaintext = self._cipher.decrypt(sealed, self._hash) if self._cipher else sealed
        self._mix_hash(sealed)
        return plaintext


def _exchange(own: X25519PrivateKey, public: bytes) -> bytes:
    """Return the shared secret; a public key of small order, which would give one of zeros, is refused."""
    try:
        secret = own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise ProtocolError("the peer's Noise key is of small order") from error
    if not any(secret):
        raise ProtocolError("the peer's Noise key is of small order")
    return secret


def _hkdf(chaining: bytes, material: bytes) -> tuple[bytes, bytes]:
    """Noise's HKDF with two outputs (section 4.3)."""
    temporary = hmac.digest(chaining, material, "sha256")
    first = hmac.digest(temporary, b"\x01", "sha256")
    return first, hmac.digest(temporary, first + b"\x02", "sha256")


def _cut(data: bytes, length: int) -> tuple[bytes, bytes]:
    if len(data) < length:
        raise ProtocolError("a message of the handshake is too short")
    return data[:length], data[length:]
