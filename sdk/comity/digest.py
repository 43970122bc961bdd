"""SHA-256 digests and the canonical form of JSON that they are taken over (RFC 8785)."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785


def sha256(data: bytes) -> bytes:
    """Return the 32-byte SHA-256 of `data`."""
    return hashlib.sha256(data).digest()


def hex_digest(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:  # noqa: ANN401  (any JSON value)
    """Return `value` in RFC 8785 form.

    Raises:
        ValueError: a number is not finite or over 2^53, or a value is no JSON.
    """
    return rfc8785.dumps(value)
