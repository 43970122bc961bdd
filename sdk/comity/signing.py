"""Ed25519 keys (RFC 8032) that are libp2p identities at the same time.

Verification goes through libsodium (PyNaCl), which refuses small-order and non-canonical public keys;
OpenSSL accepts signatures under them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import base58
import nacl.bindings
import nacl.exceptions
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from comity.errors import KeyFileInvalid, SignatureInvalid

#: libp2p PublicKey protobuf: field 1 (type) = 1 (Ed25519), field 2 (data) = 32 bytes.
_LIBP2P_ED25519 = b"\x08\x01\x12\x20"
#: Multihash "identity" of 36 bytes.
_IDENTITY_36 = b"\x00\x24"
_SIGNATURE_BYTES = 64
_PUBLIC_KEY_BYTES = 32
#: Characters of an Ed25519 PeerId: the six bytes that each begins with leave no other length.
_PEER_ID_LENGTH = 52


class PrivateKey:
    """An Ed25519 private key."""

    __slots__ = ("_secret", "public_key", "seed")

    def __init__(self, seed: bytes) -> None:
        """Make the key of a 32-byte seed."""
        self.seed = seed
        self.public_key, self._secret = nacl.bindings.crypto_sign_seed_keypair(seed)

    @classmethod
    def generate(cls) -> PrivateKey:
        """Make a new key from the operating system's randomness."""
        return cls(os.urandom(32))

    @property
    def peer_id(self) -> str:
        """The libp2p PeerId of this key."""
        return peer_id(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of `message`."""
        return nacl.bindings.crypto_sign(message, self._secret)[:_SIGNATURE_BYTES]

    def to_cryptography(self) -> Ed25519PrivateKey:
        """Return the key for `cryptography` (certificate requests)."""
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    def save(self, path: Path) -> None:
        """Write the key as PKCS#8 PEM that only its owner can read.

        Raises:
            FileExistsError: there is a file already; keys are never overwritten.
        """
        pem = self.to_cryptography().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private(path, pem)

    @classmethod
    def load(cls, path: Path) -> PrivateKey:
        """Read a key written by `save`.

        Raises:
            KeyFileInvalid: the file is missing, holds no Ed25519 key, or others may read it.
        """
        key = load_pem_private_key_file(path)
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFileInvalid(f"{path} holds no Ed25519 key")
        return cls(key.private_bytes_raw())


def write_private(path: Path, data: bytes) -> None:
    """Create `path` with mode 0600 and write `data`, durably.

    Raises:
        FileExistsError: there is a file already.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def load_pem_private_key_file(path: Path) -> object:
    """Read a PEM private key that only its owner can read.

    Raises:
        KeyFileInvalid: the file is missing, no PEM key, or readable by others.
    """
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except OSError as error:
        raise KeyFileInvalid(f"cannot read the key {path}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileInvalid(f"{path} can be read by others (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}")
    try:
        return load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise KeyFileInvalid(f"{path} holds no unencrypted PEM private key") from error


def verify(public_key: bytes, signature: bytes, message: bytes) -> None:
    """Check an Ed25519 signature.

    Raises:
        SignatureInvalid: the signature is not that of `message` under `public_key`.
    """
    if len(signature) != _SIGNATURE_BYTES or len(public_key) != _PUBLIC_KEY_BYTES:
        raise SignatureInvalid("an Ed25519 signature has 64 bytes and a public key 32")
    try:
        nacl.bindings.crypto_sign_open(signature + message, public_key)
    except nacl.exceptions.BadSignatureError as error:
        raise SignatureInvalid("the signature does not verify") from error


def libp2p_public_key(public_key: bytes) -> bytes:
    """Return the libp2p PublicKey protobuf of an Ed25519 public key (36 bytes)."""
    return _LIBP2P_ED25519 + public_key


def from_libp2p_public_key(data: bytes) -> bytes:
    """Return the Ed25519 public key of a libp2p PublicKey protobuf.

    Raises:
        SignatureInvalid: it is not an Ed25519 key in the one form that libp2p's specification allows.
    """
    if len(data) != len(_LIBP2P_ED25519) + _PUBLIC_KEY_BYTES or not data.startswith(_LIBP2P_ED25519):
        raise SignatureInvalid("not an Ed25519 libp2p public key")
    return data[len(_LIBP2P_ED25519) :]


def peer_id_bytes(public_key: bytes) -> bytes:
    """Return the PeerId's multihash (38 bytes) of an Ed25519 public key (libp2p peer-ids specification)."""
    return _IDENTITY_36 + libp2p_public_key(public_key)


def peer_id(public_key: bytes) -> str:
    """Return the PeerId (`12D3KooW...`) of an Ed25519 public key."""
    return str(base58.b58encode(peer_id_bytes(public_key)), "ascii")


def peer_id_to_bytes(text: str) -> bytes:
    """Return the multihash of a PeerId given in base58.

    Raises:
        SignatureInvalid: it is no PeerId of an Ed25519 key, in its one form.
    """
    if len(text) != _PEER_ID_LENGTH:  # before it is decoded, which takes the square of its length
        raise SignatureInvalid(f"{text[:_PEER_ID_LENGTH]!r} is not a PeerId")
    try:
        data = bytes(base58.b58decode(text))
    except ValueError as error:
        raise SignatureInvalid(f"{text!r} is not a PeerId") from error
    if len(data) != 38 or not data.startswith(_IDENTITY_36):
        raise SignatureInvalid(f"{text!r} is not the PeerId of an Ed25519 key")
    return data
