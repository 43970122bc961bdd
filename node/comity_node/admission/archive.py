"""What the node has decided, read back: the entries of the audit log with their requests, and the policies of the time.

Everything here only reads, but `remember_policy`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from comity.errors import AuditBroken, ConfigError
from comity_node.admission.shapes import TIME_LABEL, find_request
from comity_node.policy.engine import Policy
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Request
from comity_node.storage import audit
from comity_node.storage.audit import StoredEntry
from comity_node.storage.policies import get_policy, put_policy

_PAGE: Final = 1000
#: Requests that a reader keeps at hand, and field names of one that it keeps.
_MAX_HELD: Final = 4096
_MAX_HELD_FIELDS: Final = 1024
_MAX_SUBJECTS: Final = 100
DECISION: Final = "decision"


def remember_policy(connection: sqlite3.Connection, policy: Policy) -> bool:
    """Keep the files of a policy, so that its decisions can be explained when it is no longer the active one.

    Call it at start and at each reload, in the transaction that says so in the audit log.

    Returns:
        Whether it was new. A policy that was not read from files has nothing to keep.
    """
    document = policy.document
    if not document.files:
        return False
    return put_policy(connection, document.digest, document.source, document.files)


def recall_policy(connection: sqlite3.Connection, digest: bytes) -> Policy | None:
    """Return the policy with this digest, None if it was not kept.

    Raises:
        ConfigError: the language has changed since, and the policy is not understood any more.
        AuditBroken: what is stored is not what the digest names.
        StorageError: the row is damaged.
    """
    kept = get_policy(connection, digest)
    if kept is None:
        return None
    source, files = kept
    text = files.pop("", b"")
    policy = loads_policy(text, file=source, schemas=files)
    if policy.digest != digest:
        raise AuditBroken(f"the policy stored as {digest.hex()} is another one")
    return policy


@dataclass(frozen=True, slots=True)
class Recorded:
    """A decision as the audit log has it.

    Attributes:
        entry: its entry.
        digest: names the request, the same for all alike; empty in an entry of an older version.
        request: what was asked, with the time of the decision; None if it was not kept.
    """

    entry: StoredEntry
    digest: bytes
    request: Request | None


class Archive:
    """Reads decisions with their requests; each distinct request is looked up once in a while."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Read from a connection to a node's database."""
        self._connection = connection
        self._held: dict[bytes, Request | None] = {}

    def recorded(self, entry: StoredEntry) -> Recorded:
        """Return a decision's entry with its request.

        Raises:
            AuditBroken: the stored request is not the one that the entry names.
        """
        named = entry.entry.detail.get("request")
        try:
            digest = bytes.fromhex(named) if isinstance(named, str) else b""
        except ValueError as error:
            raise AuditBroken("it names no request", index=entry.index) from error
        request = self._find(digest) if digest else None
        return Recorded(entry, digest, None if request is None else _at(request, entry.at_ms))

    def _find(self, digest: bytes) -> Request | None:
        if digest in self._held:
            return self._held[digest]
        request = find_request(self._connection, digest)
        if len(self._held) >= _MAX_HELD:
            self._held.clear()
        if request is None or len(request.fields) <= _MAX_HELD_FIELDS:
            self._held[digest] = request
        return request

    def decisions(self, *, start: int = 0, since_ms: int = 0) -> Iterator[Recorded]:
        """Yield the decisions from index `start` on that were made at `since_ms` or later, a page at a time.

        Raises:
            AuditBroken: an entry is not what this log writes.
        """
        while page := audit.entries(self._connection, start=start, limit=_PAGE):
            for entry in page:
                if entry.entry.kind == DECISION and entry.at_ms >= since_ms:
                    yield self.recorded(entry)
            start = page[-1].index + 1

    def start_of_last(self, count: int) -> int:
        """Return the index from which on the log has its last `count` decisions (0 if it has fewer)."""
        end = audit.head(self._connection).size
        if count <= 0:
            return end
        while end > 0:
            start = max(end - _PAGE, 0)
            page = audit.entries(self._connection, start=start, limit=end - start)
            for entry in reversed(page):
                count -= entry.entry.kind == DECISION
                if count <= 0:
                    return entry.index
            end = start
        return 0

    def entry(self, index: int) -> Recorded:
        """Return the decision at `index`.

        Raises:
            ConfigError: there is no such entry, or it is no decision.
        """
        found = audit.entries(self._connection, start=index, limit=1)
        if not found or found[0].index != index:
            raise ConfigError(f"the audit log has no entry {index}; it ends at {audit.head(self._connection).size - 1}")
        if found[0].entry.kind != DECISION:
            raise ConfigError(
                f"entry {index} is no decision, it is of kind {found[0].entry.kind!r}; "
                "`comity audit show --kind decision` lists them"
            )
        return self.recorded(found[0])

    def about(self, subjects: Iterable[bytes]) -> Iterator[Recorded]:
        """Yield the decisions about any of these subjects (32 bytes each, 100 of them at most), oldest first.

        SQLite searches the log for them, so a long one costs reading it once and no more.
        """
        wanted = sorted({each.hex() for each in subjects})[:_MAX_SUBJECTS]
        if not wanted:
            return
        where = " OR ".join(["instr(entry, ?)"] * len(wanted))
        rows = self._connection.execute(
            f"SELECT position FROM audit_entries WHERE {where} ORDER BY position",
            [f'"subject":"{each}"'.encode() for each in wanted],
        )
        for (position,) in rows:
            found = audit.entries(self._connection, start=position, limit=1)[0]
            if found.entry.kind == DECISION and found.entry.subject.hex() in wanted:
                yield self.recorded(found)


def read_request(data: bytes, at_ms: int) -> Request:
    """Return the request that a watched decision was about, from its bytes and the time of the decision.

    Raises:
        AuditBroken: it is no request.
    """
    try:
        said = json.loads(data)
        labels = {str(name): value for name, value in said.pop("labels", {}).items()}
        request = Request(**{**said, "fields": frozenset(said.get("fields", ())), "labels": labels})
    except (ValueError, TypeError, AttributeError) as error:
        raise AuditBroken("what was kept as a request is none") from error
    return _at(request, at_ms)


def _at(request: Request, at_ms: int) -> Request:
    labels: Mapping[str, int | float | str | bool] = {**request.labels, TIME_LABEL: at_ms}
    return replace(request, labels=MappingProxyType(labels))
