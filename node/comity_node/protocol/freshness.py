"""A message is good once, for one recipient, for a bounded time (S5).

A message's id is an *epoch*, 8 random bytes that its sender made when it started, and a *counter* of 8 bytes
(big-endian) that goes up by one with each message to one recipient (`MessageIds`). For each signer and epoch a node
keeps the highest counter that it admitted and a window of the counters below it, one bit each: the anti-replay window
of IPsec and DTLS (RFC 4303, section 3.4.3; RFC 6347, section 4.1.2.6; as a ring, RFC 6479). So what is remembered does
not grow with the number of messages, and no rate is too high.

The rule that makes it so: *every message that was admitted is either a bit that is set in a window, or below a window,
or below a floor, and none of these is ever admitted.* There are two floors.

* An epoch is forgotten when everything that it admitted has expired (and the allowed skew is over); the first floor is
  the latest expiry that was ever forgotten, and a message that expires no later is refused. So whatever the clock does,
  also when it is set back, a message that was forgotten stays refused; and a clock that only runs forward never refuses
  a fresh one.
* A restart forgets everything; the second floor is the high-water mark that was persisted before: a message issued no
  later is refused.

Whose message is refused as stale seals the same content again, with a new id.

The number of epochs is bounded for each signer, for each group of signers (an organization, whose CA makes as many
signers as it likes) and in all. A full table refuses a new epoch; it never evicts, since what is evicted could be
played again.

No I/O, clock or randomness: the time is an argument, as is where random bytes come from, and persisting the mark is the
caller's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from comity.envelope import MAX_LIFETIME_MS, Header
from comity.errors import ReplayedMessage, ReplayTableFull, StaleMessage, WrongAudience

_Key = TypeVar("_Key", bytes, str)

_SWEEP_MS = 1000
_EPOCH_BYTES = 8
_COUNTER_BYTES = 8


@dataclass(frozen=True, slots=True)
class FreshnessLimits:
    """How much time and memory a node gives to messages of others.

    Attributes:
        lifetime_ms: the longest time from issue to expiry.
        skew_ms: how far another clock may be off, either way.
        window: how many messages of one epoch may overtake another one, which still is admitted; a multiple of 8.
        epochs_per_signer: epochs that are kept for one signer: how often it may start within the time that its messages
            live; about `window / 8 + 450` bytes each.
        epochs_per_group: epochs that are kept for one group: a share of `epochs`, so that no organization takes all.
        epochs: epochs that are kept in all.
        mark_step_ms: the high-water mark moves in steps of this size, so that it is persisted at most once in this
            time; after a restart messages issued up to this much after the latest admitted one are refused.
    """

    lifetime_ms: int = MAX_LIFETIME_MS
    skew_ms: int = 30_000
    window: int = 16_384
    epochs_per_signer: int = 16
    epochs_per_group: int = 64
    epochs: int = 4096
    mark_step_ms: int = 1000


class MessageIds:
    """Makes the ids of the messages that one node sends.

    Each recipient has an epoch and a counter of its own: so its window holds its own messages alone, and no recipient
    learns from the counter how much is sent to others.
    """

    def __init__(self, random_bytes: Callable[[int], bytes], *, audiences: int = 4096) -> None:
        """Make new epochs from `random_bytes`; remember the counters of so many recipients, those of the latest."""
        self._random_bytes = random_bytes
        self._audiences = audiences
        self._next: dict[str, tuple[bytes, int]] = {}

    def next(self, audience: str) -> bytes:
        """Return the 16-byte id of the next message to a recipient; no two are ever the same."""
        if audience in self._next:
            epoch, counter = self._next.pop(audience)
        else:
            epoch, counter = self._random_bytes(_EPOCH_BYTES), 0
        if len(self._next) >= self._audiences:
            del self._next[next(iter(self._next))]  # the one that was written to longest ago; it begins a new epoch
        self._next[audience] = (epoch, counter + 1)
        return epoch + counter.to_bytes(_COUNTER_BYTES, "big")


class _Window:
    """Which counters of one epoch were admitted: those below the window, and those whose bit is set.

    Bit `c % 8` of byte `c / 8 mod len(ring)` is counter c's. The ring has a byte more than the window takes, so that a
    byte is cleared, when the window moves on to it, before it holds a counter of the window again (RFC 6479).
    """

    __slots__ = ("group", "highest", "last_expiry_ms", "ring")

    def __init__(self, size: int, highest: int, group: str) -> None:
        self.ring = bytearray(size // 8 + 1)
        self.highest = highest
        self.last_expiry_ms = 0
        self.group = group

    def holds(self, counter: int) -> bool:
        """Whether a counter that is not below the window was admitted."""
        return counter <= self.highest and bool(self.ring[(counter >> 3) % len(self.ring)] >> (counter & 7) & 1)

    def add(self, counter: int, expires_ms: int) -> None:
        """Admit a counter that is not below the window."""
        if counter > self.highest:
            self._move_on(counter)
        self.ring[(counter >> 3) % len(self.ring)] |= 1 << (counter & 7)
        self.last_expiry_ms = max(self.last_expiry_ms, expires_ms)

    def _move_on(self, highest: int) -> None:
        ring = self.ring
        cleared = min((highest >> 3) - (self.highest >> 3), len(ring))
        if cleared:
            start = ((self.highest >> 3) + 1) % len(ring)
            wrapped = max(0, start + cleared - len(ring))
            ring[start : start + cleared] = bytes(cleared - wrapped)
            ring[:wrapped] = bytes(wrapped)
        self.highest = highest


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
        #: By signer and epoch.
        self._windows: dict[tuple[bytes, bytes], _Window] = {}
        self._of_signer: Counter[bytes] = Counter()
        self._of_group: Counter[str] = Counter()
        self._swept = 0

    def __len__(self) -> int:
        """The number of epochs that are kept."""
        return len(self._windows)

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
            StaleMessage: expired, from the future, good for too long, overtaken by too many others, or older than this
                node can vouch for.
            ReplayedMessage: it was admitted before.
            ReplayTableFull: there is no room for another epoch of this signer, of its group or in all; nothing is
                remembered.
        """
        if header.audience != self._me:
            raise WrongAudience(f"the message is for {header.audience}, not for {self._me}")
        self._check_times(header, now_ms)
        if now_ms // _SWEEP_MS != self._swept:
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
        epoch, counter = header.id[:_EPOCH_BYTES], int.from_bytes(header.id[_EPOCH_BYTES:], "big")
        window = self._windows.get((signer, epoch))
        if window is None:
            window = self._open(signer, epoch, counter, group)
        elif counter <= window.highest - self._limits.window:
            behind = window.highest - counter
            raise StaleMessage(f"the message was overtaken by {behind} others: seal it anew and send it again")
        elif window.holds(counter):
            raise ReplayedMessage(f"the message {header.id.hex()} was admitted before")
        window.add(counter, header.expires_ms)
        if header.issued_ms > self._mark_ms:
            self._mark_ms = header.issued_ms + self._limits.mark_step_ms

    def _open(self, signer: bytes, epoch: bytes, counter: int, group: str) -> _Window:
        limits = self._limits
        crowded = bool(group) and self._of_group[group] >= limits.epochs_per_group
        if crowded or self._of_signer[signer] >= limits.epochs_per_signer or len(self._windows) >= limits.epochs:
            raise ReplayTableFull("too many epochs are alive: start less often, or let messages live shorter")
        window = self._windows[signer, epoch] = _Window(limits.window, counter, group)
        self._of_signer[signer] += 1
        self._of_group[group] += 1
        return window

    def _sweep(self, now_ms: int) -> None:
        """Forget the epochs whose messages all expired more than the skew ago; once for each second of the clock."""
        self._swept = now_ms // _SWEEP_MS
        over = [key for key, one in self._windows.items() if one.last_expiry_ms + self._limits.skew_ms < now_ms]
        for key in over:
            window = self._windows.pop(key)
            self._forgotten_ms = max(self._forgotten_ms, window.last_expiry_ms)
            _count_down(self._of_signer, key[0])
            _count_down(self._of_group, window.group)


def _count_down(counts: Counter[_Key], key: _Key) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
