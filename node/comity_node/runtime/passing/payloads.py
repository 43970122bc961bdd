"""Texts that one party brought under one agreement, kept for a while so that they need not come again.

Whoever asks by a digest gets what that very party brought under that very agreement, and nothing of anybody else's.

Invariant
  S7  what is kept is bounded for each party and in all; who brings much loses what it brought itself.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

#: What an entry takes beside its text.
_ENTRY_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class PayloadLimits:
    """What is left out of tokens, and what is kept to put it in again.

    Attributes:
        cut_over: texts of more bytes are left out.
        per_peer_bytes: bytes that are kept of one organization, under all agreements.
        all_bytes: bytes that are kept in all.
        there_bytes: bytes of which it is remembered that others keep them, in all.
        kept_s: seconds for which a text is kept at most after it was of use; the deadline of its task may be sooner.
        joined_bytes: bytes that the states of one delivery have at most once all is in them.
        peers: nodes of which it is remembered what they keep.
    """

    cut_over: int = 4_096
    per_peer_bytes: int = 16 << 20
    all_bytes: int = 64 << 20
    there_bytes: int = 512 << 20
    kept_s: float = 3_600.0
    joined_bytes: int = 4 << 20
    peers: int = 1_024


@dataclass(frozen=True, slots=True)
class _Entry:
    text: bytes
    size: int
    until_ms: int


@dataclass(slots=True)
class _Owned:
    """What is kept of one party: by agreement and digest, what was of use last at the end."""

    entries: OrderedDict[tuple[bytes, bytes], _Entry] = field(default_factory=OrderedDict)
    size: int = 0


class Shelf:
    """Keeps texts, or only that there are such, by (party, agreement, digest)."""

    def __init__(self, limits: PayloadLimits, all_bytes: int) -> None:
        """Keep no more than `limits` say of one party, and `all_bytes` in all."""
        self._limits = limits
        self._all_bytes = all_bytes
        self._owned: dict[str, _Owned] = {}
        self.size = 0

    def __len__(self) -> int:
        """Return how many there are."""
        return sum(len(one.entries) for one in self._owned.values())

    def get(self, party: str, agreement: bytes, digest: bytes, now_ms: int) -> bytes | None:
        """Return the text that `party` brought under `agreement`; None: it is not here, or no longer."""
        owned = self._owned.get(party)
        if owned is None or (entry := owned.entries.get((agreement, digest))) is None:
            return None
        if entry.until_ms <= now_ms:
            self._drop(party, (agreement, digest))
            return None
        owned.entries.move_to_end((agreement, digest))
        return entry.text

    def keep(
        self, party: str, agreement: bytes, digest: bytes, text: bytes, *, size: int, until_ms: int, now_ms: int,
        room: int | None = None,
    ) -> None:  # fmt: skip
        """Keep a text of `size` bytes that `party` brought.

        Args:
            party: whose it is; what it brought before makes room.
            agreement: under which it came.
            digest: of the text.
            text: it, or nothing where it only counts that it is there.
            size: bytes that count for it.
            until_ms: when its task is over.
            now_ms: the time.
            room: bytes for this party, if these are fewer than the limits'.
        """
        until_ms = min(until_ms, now_ms + round(self._limits.kept_s * 1000))
        per_peer = self._limits.per_peer_bytes if room is None else min(room, self._limits.per_peer_bytes)
        size += _ENTRY_BYTES
        if size > per_peer or until_ms <= now_ms:
            return
        owned = self._owned.setdefault(party, _Owned())
        key = agreement, digest
        before = owned.entries.pop(key, None)
        if before is not None:
            owned.size -= before.size
            self.size -= before.size
            until_ms = max(until_ms, before.until_ms)
        owned.entries[key] = _Entry(text, size, until_ms)
        owned.size += size
        self.size += size
        while owned.size > per_peer:
            self._drop(party, next(iter(owned.entries)))
        while self.size > self._all_bytes:
            most = max(self._owned, key=lambda each: self._owned[each].size)
            self._drop(most, next(iter(self._owned[most].entries)))

    def forget(self, party: str, agreement: bytes, digest: bytes) -> None:
        """Keep one no longer."""
        owned = self._owned.get(party)
        if owned is not None and (agreement, digest) in owned.entries:
            self._drop(party, (agreement, digest))

    def forget_all(self, party: str) -> None:
        """Keep nothing of `party` any longer."""
        if (owned := self._owned.pop(party, None)) is not None:
            self.size -= owned.size

    def forget_old(self, now_ms: int) -> None:
        """Keep nothing whose time is over."""
        for party, owned in list(self._owned.items()):
            for key in [key for key, entry in owned.entries.items() if entry.until_ms <= now_ms]:
                self._drop(party, key)

    def _drop(self, party: str, key: tuple[bytes, bytes]) -> None:
        owned = self._owned[party]
        size = owned.entries.pop(key).size
        owned.size -= size
        self.size -= size
        if not owned.entries:
            del self._owned[party]
