"""What bulk transfers may cost a node."""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1024 * 1024
_GIB = 1024 * _MIB
_DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class BulkLimits:
    """Bounds of one node; all of them hold before anything is allocated or written.

    Attributes:
        chunk_bytes: bytes of the chunks that this node sends.
        max_bytes: bytes of one transfer.
        quota_bytes: bytes that the spool holds in each direction, open transfers counted at their full length.
        quota_per_organization: the same for what comes from one organization.
        keep_free_bytes: what has to stay free on the spool's disk.
        transfers: that run at a time in each direction.
        transfers_per_organization: of these with one organization.
        open_per_organization: transfers of one organization that wait to be resumed.
        silence_s: seconds without a chunk, an answer or a sign of progress after which a try is given up.
        retry_s: seconds for which a sender goes on trying without getting any further.
        lifetime_ms: how long a transfer can be resumed.
        sync_bytes: bytes after which what was written is brought to the disk and noted.
        remember_ms: how long a transfer that is over is still listed.
    """

    chunk_bytes: int = _MIB
    max_bytes: int = 64 * _GIB
    quota_bytes: int = 128 * _GIB
    quota_per_organization: int = 64 * _GIB
    keep_free_bytes: int = _GIB
    transfers: int = 8
    transfers_per_organization: int = 2
    open_per_organization: int = 16
    silence_s: float = 60.0
    retry_s: float = 120.0
    lifetime_ms: int = 7 * _DAY_MS
    sync_bytes: int = 64 * _MIB
    remember_ms: int = 90 * _DAY_MS
