"""Ed25519 keys (RFC 8032) that are libp2p identities at the same time.

Verification goes through libsodium (PyNaCl), which refuses small-order and non-canonical public keys;
OpenSSL accepts signatures under them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import cast

import base58
import nacl.bindings
import nacl.exceptions
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from comity import hsm
from comity.errors import KeyFileInvalid, SignatureInvalid
from comity.keyholder import HeldEd25519, KeyHolder

#: libp2p PublicKey protobuf: field 1 (type) = 1 (Ed25519), field 2 (data) = 32 bytes.
_LIBP2P_ED25519 = b"\x08\x01\x12\x20"
#: Multihash "identity" of 36 bytes.
_IDENTITY_36 = b"\x00\x24"
_SIGNATURE_BYTES = 64
_PUBLIC_KEY_BYTES = 32
_SIGN_BIT = 1 << 255
_FIELD = 2**255 - 19
#: A y coordinate of the points of order 8; the other is its negative.
_OF_ORDER_8 = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)  # fmt: skip
#: The y coordinates of all eight points whose order divides 8.
_SMALL_ORDER = frozenset({0, 1, _FIELD - 1, _OF_ORDER_8, _FIELD - _OF_ORDER_8})
#: Characters of an Ed25519 PeerId: the six bytes that each begins with leave no other length.
_PEER_ID_LENGTH = 52


class PrivateKey:
    """An Ed25519 private key: here in memory, or with a holder that signs for us (`comity.keyholder`)."""

    __slots__ = ("_holder", "_secret", "_seed", "public_key")

    def __init__(self, seed: bytes) -> None:
        """Make the key of a 32-byte seed."""
        self._seed, self._holder = seed, cast("KeyHolder | None", None)
        self.public_key, self._secret = nacl.bindings.crypto_sign_seed_keypair(seed)

    @classmethod
    def held_by(cls, holder: KeyHolder) -> PrivateKey:
        """Use a key that is held elsewhere.

        Raises:
            KeyFileInvalid: it is no Ed25519 key.
        """
        key = cls.__new__(cls)
        key.public_key = HeldEd25519(holder).public_key().public_bytes_raw()
        key._seed, key._secret, key._holder = b"", b"", holder
        return key

    @property
    def seed(self) -> bytes:
        """The 32 bytes of which the key is made.

        Raises:
            KeyFileInvalid: the key is held elsewhere.
        """
        if self._holder is not None:
            raise KeyFileInvalid("this key is held elsewhere: it signs, and cannot be had")
        return self._seed

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
        if self._holder is not None:
            return self._holder.sign(message)
        return nacl.bindings.crypto_sign(message, self._secret)[:_SIGNATURE_BYTES]

    def to_cryptography(self) -> Ed25519PrivateKey:
        """Return the key for `cryptography` (certificate requests)."""
        if self._holder is not None:
            return HeldEd25519(self._holder)
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
        """Read a key written by `save`, or find the one that the file names (`comity.hsm`).

        Raises:
            KeyFileInvalid: the file is missing, holds no Ed25519 key, or others may read it.
        """
        key = load_pem_private_key_file(path)
        if isinstance(key, HeldEd25519):
            return cls.held_by(key.holder)
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
    """Read a PEM private key that only its owner can read, or find the one that its file names (`comity.hsm`).

    Raises:
        KeyFileInvalid: the file is missing, no PEM key, or readable by others, or the key it names cannot be used.
    """
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except OSError as error:
        raise KeyFileInvalid(f"cannot read the key {path}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileInvalid(f"{path} can be read by others (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}")
    if data.startswith(hsm.SCHEME):
        try:
            return hsm.open_key(data.decode("utf-8"))
        except (KeyFileInvalid, UnicodeDecodeError) as error:
            raise KeyFileInvalid(f"{path}: {error}") from error
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


def check_public_key(public_key: bytes) -> None:
    """Refuse a key that is nobody's: of small order, under which anybody can sign, or not in its one form.

    Nothing verifies under such a key (`verify`); this refuses its name, too, before anything is signed.

    Raises:
        SignatureInvalid: it is such a key.
    """
    y = int.from_bytes(public_key, "little") & (_SIGN_BIT - 1)
    if y >= _FIELD or y in _SMALL_ORDER:
        raise SignatureInvalid("this Ed25519 key is of small order or not in its one form: nobody has it")


def libp2p_public_key(public_key: bytes) -> bytes:
    """Return the libp2p PublicKey protobuf of an Ed25519 public key (36 bytes)."""
    return _LIBP2P_ED25519 + public_key


def from_libp2p_public_key(data: bytes) -> bytes:
    """Return the Ed25519 public key of a libp2p PublicKey protobuf.

    Raises:
        SignatureInvalid: it is not an Ed25519 key in the one form that libp2p's specification allows, or a key that
            nobody can have.
    """
    if len(data) != len(_LIBP2P_ED25519) + _PUBLIC_KEY_BYTES or not data.startswith(_LIBP2P_ED25519):
        raise SignatureInvalid("not an Ed25519 libp2p public key")
    public_key = data[len(_LIBP2P_ED25519) :]
    check_public_key(public_key)
    return public_key


def peer_id_bytes(public_key: bytes) -> bytes:
    """Return the PeerId's multihash (38 bytes) of an Ed25519 public key (libp2p peer-ids specification)."""
    return _IDENTITY_36 + libp2p_public_key(public_key)


def peer_id(public_key: bytes) -> str:
    """Return the PeerId (`12D3KooW...`) of an Ed25519 public key."""
    return str(base58.b58encode(peer_id_bytes(public_key)), "ascii")


def peer_id_to_bytes(text: str) -> bytes:
    """Return the multihash of a PeerId given in base58.

    Raises:
        SignatureInvalid: it is no PeerId of an Ed25519 key, in its one form, or of a key that nobody can have.
    """
    if len(text) != _PEER_ID_LENGTH:  # before it is decoded, which takes the square of its length
        raise SignatureInvalid(f"{text[:_PEER_ID_LENGTH]!r} is not a PeerId")
    try:
        data = bytes(base58.b58decode(text))
    except ValueError as error:
        raise SignatureInvalid(f"{text!r} is not a PeerId") from error
    if len(data) != 38 or not data.startswith(_IDENTITY_36):
        raise SignatureInvalid(f"{text!r} is not the PeerId of an Ed25519 key")
    from_libp2p_public_key(data[len(_IDENTITY_36) :])
    return data
