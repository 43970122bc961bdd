"""The keys of pseudonyms: one secret of this organization, from which each dataset's key is derived.

The secret lies beside the database, for its owner alone (0600), and leaves in nothing: whoever copies the database has
no key. It is made when it is first needed. Whoever has it can find out which value a pseudonym stands for by trying;
whoever deletes it breaks the link between the pseudonyms of before and those of after.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from comity.digest import canonical_json
from comity.errors import KeyFileInvalid
from comity_node.policy.obligations import Pseudonym, pseudonyms

_SECRET_BYTES: Final = 32
_SUFFIX: Final = ".pseudonyms"
_OWN: Final = "comity pseudonyms v1"


class Pseudonyms:
    """Makes the functions that make pseudonyms."""

    def __init__(self, database: Path, organization: str, random_bytes: Callable[[int], bytes]) -> None:
        """Keep the secret beside `database`.

        Args:
            database: the node's database; the secret's file has its name with `.pseudonyms` at the end.
            organization: whose they are: another one's have other keys, even from the same secret.
            random_bytes: returns so many random bytes, fit for a key.
        """
        self.path = database.with_name(database.name + _SUFFIX)
        self._organization = organization
        self._random_bytes = random_bytes
        self._guard = threading.Lock()
        self._secret = b""

    def of(self, dataset: str) -> Pseudonym:
        """Return the function for a dataset; may be called from a thread.

        Raises:
            KeyFileInvalid: the secret cannot be read or written, others can read it, or it is none.
        """
        with self._guard:
            if not self._secret:
                self._secret = self._load()
        # HKDF with SHA-256 (RFC 5869).
        info = canonical_json([_OWN, self._organization, dataset])
        return pseudonyms(HKDF(algorithm=SHA256(), length=_SECRET_BYTES, salt=None, info=info).derive(self._secret))

    def _load(self) -> bytes:
        try:
            if not self.path.exists():
                self._create()
            mode = self.path.stat().st_mode & 0o777
            secret = self.path.read_bytes()
        except OSError as error:
            raise KeyFileInvalid(f"{self.path}: {error.strerror}; it holds the key of the pseudonyms") from error
        if mode & 0o077:
            raise KeyFileInvalid(f"{self.path} can be read by others (mode {mode:o}): chmod 600 it")
        if len(secret) != _SECRET_BYTES:
            raise KeyFileInvalid(
                f"{self.path} is no key of pseudonyms: it has {len(secret)} bytes, not {_SECRET_BYTES}"
            )
        return secret

    def _create(self) -> None:
        """Write a new secret so that it is there as a whole or not at all, and stays after a loss of power."""
        temporary = self.path.with_name(self.path.name + ".new")
        with suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, self._random_bytes(_SECRET_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
