"""A request's shape: what it says, without when, as bytes that can be kept and asked again.

Records of a batch share their shape, so a decision's audit entry names the SHA-256 of it, and the shape itself is
stored once. It is canonical JSON with the words that the cases of a policy's tests use for a request. The time is left
out: it is the `at_ms` of the entry, to the millisecond.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from comity.digest import canonical_json, sha256
from comity.errors import AuditBroken
from comity_node.policy.conditions import TIME
from comity_node.policy.model import Request
from comity_node.storage.shapes import get_shape, put_shape

#: The label that holds the time of the decision, in milliseconds since the Unix epoch.
TIME_LABEL: Final = TIME
#: Shapes whose digests are remembered.
_MAX_KNOWN: Final = 256
#: Field names of a shape that is remembered, so that the memory of them is bounded too.
_MAX_FIELDS: Final = 1024
_WORDS: Final = ("action", "organization", "role", "purpose", "dataset", "kind")


@dataclass(slots=True)
class Shape:
    """A request's bytes and their SHA-256 in hex.

    Attributes:
        data: canonical JSON.
        digest: 64 hex digits; empty if the request has no canonical form, such as one with a number over 2^53.
        organization: the other side, whose room it takes.
        settled: whether nothing is left to be stored.
    """

    data: bytes
    digest: str
    organization: str
    settled: bool = False


class Shapes:
    """Gives requests their shapes, and remembers the last few."""

    def __init__(self) -> None:
        self._known: dict[object, Shape] = {}

    def of(self, request: Request) -> Shape:
        """Return the shape of `request`."""
        key = (
            request.action, request.organization, request.role, request.purpose, request.dataset, request.kind,
            request.fields, _timeless(request) if request.labels else (),
        )  # fmt: skip
        shape = self._known.get(key)
        if shape is None:
            shape = make_shape(request)
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            if len(request.fields) <= _MAX_FIELDS:
                self._known[key] = shape
        return shape


def _timeless(request: Request) -> tuple[object, ...]:
    return tuple((name, type(value), value) for name, value in sorted(request.labels.items()) if name != TIME_LABEL)


def make_shape(request: Request) -> Shape:
    """Return the shape of `request`."""
    said: dict[str, object] = {word: value for word in _WORDS if (value := getattr(request, word))}
    if request.fields:
        said["fields"] = sorted(request.fields)
    if labels := {name: value for name, value in request.labels.items() if name != TIME_LABEL}:
        said["labels"] = labels
    try:
        data = canonical_json(said)
    except ValueError:
        return Shape(b"", "", request.organization, settled=True)
    return Shape(data, sha256(data).hex(), request.organization)


def keep(connection: sqlite3.Connection, shapes: Iterable[Shape]) -> list[Shape]:
    """Store the shapes that may not be stored yet, in the caller's transaction.

    Returns:
        Those that are now, to be marked `settled` once the transaction is committed. One that there is no room for is
        left out.
    """
    return [
        shape
        for shape in shapes
        if not shape.settled and put_shape(connection, bytes.fromhex(shape.digest), shape.data, shape.organization)
    ]


def find_request(connection: sqlite3.Connection, digest: bytes, *, at_ms: int | None = None) -> Request | None:
    """Return the request that a decision was made about.

    Args:
        connection: the node's database.
        digest: 32 bytes: `detail["request"]` of the decision's audit entry, from hex.
        at_ms: the entry's `at_ms`; the request's time is set to it.

    Returns:
        None if the request was not kept: there was no room for it.

    Raises:
        AuditBroken: what is stored is not what the digest names.
    """
    data = get_shape(connection, digest)
    if data is None:
        return None
    if sha256(data) != digest:
        raise AuditBroken(f"the request stored as {digest.hex()} is another one")
    said = json.loads(data)
    labels = dict(said.pop("labels", {}))
    request = Request(**{**said, "fields": frozenset(said.get("fields", ()))})
    if at_ms is not None:
        labels[TIME_LABEL] = at_ms
    return replace(request, labels=MappingProxyType(labels)) if labels else request
