"""A message is good once, for one recipient, for a bounded time (S5).

The rule that makes it so: *every message that was admitted is either in the table of ids, or below a floor under which
nothing is admitted any more.* There are two floors.

* An id is forgotten when its message has expired (and the allowed skew is over); the first floor is the latest expiry
  that was ever forgotten, and a message that expires no later is refused. So whatever the clock does, also when it is
  set back, a message that was forgotten stays refused; and a clock that only runs forward never refuses a fresh one.
* A restart forgets everything; the second floor is the high-water mark that was persisted before: a message issued no
  later is refused. Its sender seals the same content again, with a new id.

The table is bounded for each signer, for each group of signers (an organization, whose CA makes as many signers as it
likes) and in all. A full table refuses; it never evicts, since what is evicted could be played again.

No I/O, clock or randomness: the time is an argument, and persisting the mark is the caller's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from comity.envelope import MAX_LIFETIME_MS, Header
from comity.errors import ReplayedMessage, ReplayTableFull, StaleMessage, WrongAudience

_BUCKET_MS = 1000


@dataclass(frozen=True, slots=True)
class FreshnessLimits:
    """How much time and memory a node gives to messages of others.

    Attributes:
        lifetime_ms: the longest time from issue to expiry.
        skew_ms: how far another clock may be off, either way.
        ids_per_signer: ids that are kept for one signer; about 100 bytes each. A signer whose messages live `t` seconds
            can have `ids_per_signer / (t + skew)` of them admitted a second, for good.
        ids_per_group: ids that are kept for one group: a share of `ids`, so that no organization takes all of it.
        ids: ids that are kept in all.
        mark_step_ms: the high-water mark moves in steps of this size, so that it is persisted at most once in this
            time; after a restart messages issued up to this much after the latest admitted one are refused.
    """

    lifetime_ms: int = MAX_LIFETIME_MS
    skew_ms: int = 30_000
    ids_per_signer: int = 65_536
    ids_per_group: int = 65_536
    ids: int = 262_144
    mark_step_ms: int = 1000


class Freshness:
    """Judges headers of messages whose signature, and whose signer's chain, have verified."""

    def __init__(self, me: str, *, high_water_ms: int = 0, limits: FreshnessLimits | None = None) -> None:
        """Start with an empty table.

        Args:
            me: the PeerId of this node.
            high_water_ms: the last persisted value of `high_water_ms()`; 0 for a node that has never run.
            limits: time and memory.
        """
        self._me = me
        self._limits = limits or FreshnessLimits()
        self._restart_floor_ms = high_water_ms
        self._mark_ms = high_water_ms
        self._forgotten_ms = 0
        self._seen: dict[bytes, set[bytes]] = {}
        self._count = 0
        self._counts: Counter[str] = Counter()
        #: Second of expiry to (signer, group) to ids.
        self._buckets: dict[int, dict[tuple[bytes, str], list[bytes]]] = {}
        self._swept_second = 0

    def __len__(self) -> int:
        """The number of ids that are kept."""
        return self._count

    def high_water_ms(self) -> int:
        """Return the mark that must be on disk before anything is done about a message that was admitted.

        It only grows, in steps of `mark_step_ms`: persist it when it differs from what is on disk.
        """
        return self._mark_ms

    def check(self, signer: bytes, header: Header, now_ms: int, group: str = "") -> None:
        """Admit a message, once: it is remembered when this returns.

        Args:
            signer: the 32-byte public key whose signature verified.
            header: the message's header.
            now_ms: the time, in milliseconds since the Unix epoch.
            group: whose signer it is, an organization; "" for a signer of its own.

        Raises:
            WrongAudience: it is for another node.
            StaleMessage: expired, from the future, good for too long, or older than this node can vouch for.
            ReplayedMessage: it was admitted before.
            ReplayTableFull: the table is full, for this signer, its group or in all; nothing is remembered.
        """
        if header.audience != self._me:
            raise WrongAudience(f"the message is for {header.audience}, not for {self._me}")
        self._check_times(header, now_ms)
        self._sweep(now_ms)
        self._check_floors(header)
        self._remember(signer, header, group)

    def _check_times(self, header: Header, now_ms: int) -> None:
        limits = self._limits
        if not 0 < header.expires_ms - header.issued_ms <= limits.lifetime_ms:
            raise StaleMessage(f"a message may be good for {limits.lifetime_ms} ms at most")
        if header.issued_ms > now_ms + limits.skew_ms:
            raise StaleMessage(f"the message is {header.issued_ms - now_ms} ms from the future: compare the clocks")
        if header.expires_ms + limits.skew_ms < now_ms:
            raise StaleMessage(f"the message expired {now_ms - header.expires_ms} ms ago")

    def _check_floors(self, header: Header) -> None:
        if header.issued_ms <= self._restart_floor_ms:
            raise StaleMessage("the message is from before this node's last start: send it again")
        if header.expires_ms <= self._forgotten_ms:
            raise StaleMessage("the message is older than this node can vouch for: its clock was set back")

    def _remember(self, signer: bytes, header: Header, group: str) -> None:
        seen = self._seen.get(signer) or set()
        if header.id in seen:
            raise ReplayedMessage(f"the message {header.id.hex()} was admitted before")
        limits = self._limits
        crowded = bool(group) and self._counts[group] >= limits.ids_per_group
        if crowded or len(seen) >= limits.ids_per_signer or self._count >= limits.ids:
            raise ReplayTableFull("too many messages are in flight: send fewer, or let them live shorter")
        self._seen.setdefault(signer, set()).add(header.id)
        bucket = self._buckets.setdefault(header.expires_ms // _BUCKET_MS, {})
        bucket.setdefault((signer, group), []).append(header.id)
        self._count += 1
        self._counts[group] += 1
        if header.issued_ms > self._mark_ms:
            self._mark_ms = header.issued_ms + self._limits.mark_step_ms

    def _sweep(self, now_ms: int) -> None:
        """Forget what expired more than the skew ago; at most once for each second of the clock."""
        second = now_ms // _BUCKET_MS
        if second == self._swept_second:
            return
        self._swept_second = second
        for bucket in [one for one in self._buckets if self._last_of(one) + self._limits.skew_ms < now_ms]:
            for (signer, group), ids in self._buckets.pop(bucket).items():
                self._forget(signer, group, ids)
            self._forgotten_ms = max(self._forgotten_ms, self._last_of(bucket))

    def _forget(self, signer: bytes, group: str, ids: list[bytes]) -> None:
        seen = self._seen[signer]
        seen.difference_update(ids)
        self._count -= len(ids)
        self._counts[group] -= len(ids)
        if not seen:
            del self._seen[signer]
        if not self._counts[group]:
            del self._counts[group]

    @staticmethod
    def _last_of(bucket: int) -> int:
        """The latest expiry that falls into a bucket, in milliseconds."""
        return (bucket + 1) * _BUCKET_MS - 1
