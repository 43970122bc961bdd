"""Keys in a PKCS#11 token, named by a URI (RFC 7512): an HSM, a smart card, SoftHSM.

Where a key's file (`ca.key`, `node.key`) would hold PEM it holds one line instead:

    pkcs11:token=comity;object=ca?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/etc/comity/pin

`token` is the token's label; `object` (the label) or `id` (hex bytes, percent-encoded) says which key, `module-path`
which library to load, and `pin-source` which file holds the PIN, for its owner's eyes alone. A PIN in the URI itself is
refused. A CA's key is P-256, a node's Ed25519 (PKCS#11 3.0, Edwards curves); they are made in the token, by its own
tools, with their public keys beside them, and cannot be had out of it.

It takes the extra `hsm` (python-pkcs11).
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote_to_bytes

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from comity.errors import KeyFileInvalid
from comity.keyholder import HeldEd25519, HeldP256

if TYPE_CHECKING:
    import pkcs11

#: What a key's file begins with if it holds a URI.
SCHEME: Final = b"pkcs11:"
_MAX_URI = 4096
_MAX_PIN = 256
_PATH, _QUERY = frozenset({"token", "object", "id", "type"}), frozenset({"module-path", "pin-source"})
_P256_OID = bytes.fromhex("06082a8648ce3d030107")
_POINT_BYTES = 65
_ED25519_BYTES = 32


@dataclass(frozen=True, slots=True)
class KeyUri:
    """A `pkcs11:` URI, read.

    Attributes:
        token: the token's label.
        label: of the key; empty if it is not named by that.
        id: of the key; empty if it is not named by that.
        module: the PKCS#11 library.
        pin_file: the file that holds the PIN.
    """

    token: str
    label: str
    id: bytes
    module: Path
    pin_file: Path

    @classmethod
    def parse(cls, text: str) -> KeyUri:
        """Read a URI; attributes that are not known here are refused.

        Raises:
            KeyFileInvalid: it is malformed, or does not say enough.
        """
        head, _, query = text.strip().partition("?")
        if len(text) > _MAX_URI or not head.startswith(SCHEME.decode()) or "\n" in text.strip():
            raise KeyFileInvalid("a key's URI is one line: pkcs11:token=...;object=...?module-path=...&pin-source=...")
        path = _attributes(head.removeprefix(SCHEME.decode()), ";", _PATH)
        asked = _attributes(query, "&", _QUERY)
        missing = [name for name in ("token", *sorted(_QUERY)) if not {**path, **asked}.get(name)]
        if missing or not (path.get("object") or path.get("id")):
            raise KeyFileInvalid(f"a key's URI needs {', '.join([*missing, 'and object or id'])}")
        if path.get("type", b"private") != b"private":
            raise KeyFileInvalid("a key's URI names a private key (type=private)")
        try:
            return cls(
                path["token"].decode(),
                path.get("object", b"").decode(),
                path.get("id", b""),
                Path(asked["module-path"].decode()),
                Path(asked["pin-source"].decode().removeprefix("file:")),
            )
        except UnicodeDecodeError as error:
            raise KeyFileInvalid("a key's URI is not UTF-8") from error


def open_key(text: str) -> HeldEd25519 | HeldP256:
    """Find the key that a URI names, and log in to its token.

    Raises:
        KeyFileInvalid: the extra, the library, the token or the key is missing, or the PIN is wrong or open to others.
    """
    uri = KeyUri.parse(text)
    try:
        import pkcs11
    except ImportError as error:
        raise KeyFileInvalid("a key in a PKCS#11 token needs an extra: pip install 'comity[hsm]'") from error
    pin = _read_pin(uri.pin_file)
    try:
        token = pkcs11.lib(str(uri.module)).get_token(token_label=uri.token)
        try:
            session = token.open(user_pin=pin)
        except pkcs11.exceptions.UserAlreadyLoggedIn:  # for another key: a login is the whole process's
            session = token.open()
        named: dict[str, Any] = {"label": uri.label} if uri.label else {}
        named |= {"id": uri.id} if uri.id else {}
        key = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, **named)
        public = session.get_key(object_class=pkcs11.ObjectClass.PUBLIC_KEY, **named)
        return _held(cast("pkcs11.PrivateKey", key), cast("pkcs11.PublicKey", public))
    except (pkcs11.PKCS11Error, RuntimeError) as error:  # RuntimeError: of the library, when it is loaded
        reason = str(error) or type(error).__name__
        raise KeyFileInvalid(f"the key in the token {uri.token!r} cannot be used: {reason}") from error


class _TokenKey:
    """One key of one session. A session does one thing at a time."""

    def __init__(self, key: Any, public_key: bytes, mechanism: Any, *, ecdsa: bool) -> None:  # noqa: ANN401  (an extra's)
        self._key, self._mechanism, self._ecdsa = key, mechanism, ecdsa
        self._public_key = public_key
        self._lock = Lock()

    @property
    def public_key(self) -> bytes:
        return self._public_key

    def sign(self, message: bytes) -> bytes:
        import pkcs11

        data = sha256(message).digest() if self._ecdsa else message
        try:
            with self._lock:
                signature: bytes = self._key.sign(data, mechanism=self._mechanism)
        except pkcs11.PKCS11Error as error:
            raise KeyFileInvalid(f"the token does not sign: {str(error) or type(error).__name__}") from error
        if not self._ecdsa:
            return signature
        half = len(signature) // 2
        return encode_dss_signature(int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))


def _held(key: pkcs11.PrivateKey, public: pkcs11.PublicKey) -> HeldEd25519 | HeldP256:
    import pkcs11

    # CKA_EC_POINT is a DER OCTET STRING; of some tokens and Edwards curves, the bare bytes.
    point = bytes(public[pkcs11.Attribute.EC_POINT])
    if key.key_type == pkcs11.KeyType.EC and bytes(public[pkcs11.Attribute.EC_PARAMS]) == _P256_OID:
        return HeldP256(_TokenKey(key, point[-_POINT_BYTES:], pkcs11.Mechanism.ECDSA, ecdsa=True))
    if key.key_type == pkcs11.KeyType.EC_EDWARDS:
        return HeldEd25519(_TokenKey(key, point[-_ED25519_BYTES:], pkcs11.Mechanism.EDDSA, ecdsa=False))
    raise KeyFileInvalid("the key in the token is neither P-256 nor Ed25519")


def _attributes(text: str, separator: str, known: frozenset[str]) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    for part in text.split(separator) if text else ():
        name, equals, value = part.partition("=")
        if name in ("pin-value", "pin"):
            raise KeyFileInvalid("a PIN does not belong into a URI: name the file that holds it (pin-source)")
        if not equals or name not in known or name in found:
            raise KeyFileInvalid(f"{name!r} in a key's URI is unknown here, or stands twice")
        found[name] = unquote_to_bytes(value)
    return found


def _read_pin(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            pin = file.read(_MAX_PIN + 1)
    except OSError as error:
        raise KeyFileInvalid(f"cannot read the PIN in {path}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileInvalid(f"{path} can be read by others (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}")
    if len(pin) > _MAX_PIN:
        raise KeyFileInvalid(f"{path} holds over {_MAX_PIN} bytes: that is no PIN")
    try:
        return pin.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise KeyFileInvalid(f"the PIN in {path} is not UTF-8") from error
