"""Keys that are held elsewhere: an HSM, another process. What is asked of a holder is one signature at a time.

`cryptography` builds certificates and requests with its own kinds of private keys. The two here are such keys to it,
and pass each message on to the holder; there is nothing else that can be had of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol, Self

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from comity.errors import KeyFileInvalid

if TYPE_CHECKING:
    from cryptography.utils import Buffer


class KeyHolder(Protocol):
    """Has a private key, and signs with it. Threads may share one."""

    @property
    def public_key(self) -> bytes:
        """Of an Ed25519 key its 32 bytes; of a P-256 key its point (SEC 1, uncompressed, 65 bytes)."""

    def sign(self, message: bytes) -> bytes:
        """Return the signature: Ed25519 (RFC 8032), 64 bytes; or ECDSA with SHA-256, in DER.

        Raises:
            KeyFileInvalid: the key cannot be used now; the message says why.
        """


class _Held:
    """What both kinds have in common: there is no key to be had, and a copy of one is the same."""

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> NoReturn:
        """Refuse: the key stays with its holder.

        Raises:
            KeyFileInvalid: always.
        """
        _keep()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[object, object]) -> Self:
        return self


class HeldEd25519(_Held, Ed25519PrivateKey):
    """An Ed25519 key that is held elsewhere."""

    def __init__(self, holder: KeyHolder) -> None:
        """Take the holder.

        Raises:
            KeyFileInvalid: it holds another kind of key.
        """
        self.holder = holder
        try:
            self._public = Ed25519PublicKey.from_public_bytes(holder.public_key)
        except ValueError as error:
            raise KeyFileInvalid(f"what is held there is no Ed25519 key: {error}") from error

    def public_key(self) -> Ed25519PublicKey:
        """Return the public key."""
        return self._public

    def sign(self, data: Buffer) -> bytes:
        """Have a message signed."""
        return self.holder.sign(bytes(data))

    def private_bytes_raw(self) -> NoReturn:
        """Refuse: see `private_bytes`."""
        _keep()


class HeldP256(_Held, ec.EllipticCurvePrivateKey):
    """A P-256 key that is held elsewhere."""

    def __init__(self, holder: KeyHolder) -> None:
        """Take the holder.

        Raises:
            KeyFileInvalid: it holds another kind of key.
        """
        self.holder = holder
        try:
            self._public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), holder.public_key)
        except ValueError as error:
            raise KeyFileInvalid(f"what is held there is no P-256 key: {error}") from error

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the public key."""
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        """P-256."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """In bits."""
        return self.curve.key_size

    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Have a message signed; by ECDSA with SHA-256, which is all that the profile of `comity.ca` uses.

        Raises:
            KeyFileInvalid: another algorithm is asked for.
        """
        algorithm = signature_algorithm.algorithm
        if isinstance(algorithm, Prehashed) or not isinstance(algorithm, hashes.SHA256):
            raise KeyFileInvalid("a key that is held elsewhere signs whole messages, by ECDSA with SHA-256")
        return self.holder.sign(bytes(data))

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        """Refuse: it is there to sign."""
        _keep()

    def private_numbers(self) -> NoReturn:
        """Refuse: see `private_bytes`."""
        _keep()


def _keep() -> NoReturn:
    raise KeyFileInvalid("this key is held elsewhere: it signs, and cannot be had")
