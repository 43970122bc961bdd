"""So many things a second and no more: what strangers can make a node compute is bounded, and shared out fairly."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final

import trio

from comity.errors import Busy, ConfigError
from comity_node.transport.address import parse_address

#: Sources that are remembered; 4096 networks take about a megabyte.
_MAX_SOURCES: Final = 4096
#: Prefixes that one customer of a network usually holds.
_IP4_PREFIX: Final = 24
_IP6_PREFIX: Final = 56


class Pace:
    """Turns at a steady rate, a burst of them at once; who would wait too long is refused at once.

    A token bucket that is kept as the time at which it is full again (the generic cell rate algorithm of ITU-T I.371).
    """

    def __init__(self, per_s: float, *, burst: float, longest_wait_s: float) -> None:
        """Make a pace.

        Args:
            per_s: turns a second, in the long run.
            burst: turns that are given without waiting after a quiet time.
            longest_wait_s: whoever would have to wait longer is refused instead.
        """
        self._each_s = 1 / per_s
        self._ahead_s = burst / per_s
        self._longest_wait_s = longest_wait_s
        self._full_at = float("-inf")

    @property
    def is_full(self) -> bool:
        """Whether a whole burst is there: a pace that is full is like a new one."""
        return self._full_at <= trio.current_time()

    async def turn(self, count: int = 1) -> None:
        """Wait for a turn, or for `count` of them together.

        Raises:
            Busy: there are too many before us.
        """
        await trio.sleep(self.claim(count))

    def claim(self, count: int = 1) -> float:
        """Take `count` turns, and return for how many seconds they have to be waited for.

        Raises:
            Busy: there are too many before us.
        """
        now = trio.current_time()
        full_at = max(self._full_at, now) + self._each_s * count
        wait_s = full_at - self._ahead_s - now
        if wait_s > self._longest_wait_s:
            raise Busy("too many at once", retry_after_ms=round(wait_s * 1000))
        self._full_at = full_at
        return max(wait_s, 0)


class FairPace:
    """A pace for all, of which no source gets more than its share, and a reserve for sources that are known.

    A source is an IPv4 /24 or an IPv6 /56 (`source_of`). A flood from one source is refused by that source's share. A
    flood from many uses the total up, and sources from which members have come before live on the reserve.
    """

    def __init__(self, total: Pace, reserve: Pace, *, source_per_s: float, source_burst: float) -> None:
        """Make a pace.

        Args:
            total: for all sources.
            reserve: for known sources when the total is used up.
            source_per_s: turns of one source a second, in the long run.
            source_burst: of them, at once after a quiet time.
        """
        self._total, self._reserve = total, reserve
        self._source_per_s, self._source_burst = source_per_s, source_burst
        self._sources: OrderedDict[str, Pace] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()
        #: Turns that were refused.
        self.refused = 0

    def remember(self, source: str) -> None:
        """A member has come from this source."""
        self._known[source] = None
        self._known.move_to_end(source)
        if len(self._known) > _MAX_SOURCES:
            self._known.popitem(last=False)

    def knows(self, source: str) -> bool:
        """Whether a member has come from this source before."""
        return source in self._known

    async def turn(self, source: str) -> None:
        """Wait for a turn.

        Raises:
            Busy: there are too many before us.
        """
        await trio.sleep(self._claim(source))

    def _claim(self, source: str) -> float:
        try:
            share_s = self._share(source).claim()
            try:
                return max(share_s, self._total.claim())
            except Busy:
                if not self.knows(source):
                    raise
                return max(share_s, self._reserve.claim())
        except Busy:
            self.refused += 1
            raise

    def _share(self, source: str) -> Pace:
        share = self._sources.get(source)
        if share is None:
            # The oldest goes when there are too many: sources without number are the total's business.
            while len(self._sources) >= _MAX_SOURCES:
                self._sources.popitem(last=False)
            share = Pace(self._source_per_s, burst=self._source_burst, longest_wait_s=1.0)
            self._sources[source] = share
        self._sources.move_to_end(source)
        return share


class BytePace:
    """So many bytes a second, for several that share them."""

    def __init__(self, bytes_per_s: float) -> None:
        """Make a pace; a tenth of a second's bytes may go at once."""
        self._pace = Pace(bytes_per_s, burst=bytes_per_s / 10, longest_wait_s=float("inf"))

    async def turn(self, count: int) -> None:
        """Wait until `count` more bytes may go."""
        await self._pace.turn(count)


def source_of(address: str) -> str:
    """The source that an address counts for: its IPv4 /24, its IPv6 /56, or the relay that it comes through.

    Args:
        address: a multiaddr; one that is "" or of a name counts as it is.
    """
    try:
        parsed = parse_address(address)
        if parsed.relay:
            return f"/p2p/{parsed.relay}"
        host = ipaddress.ip_address(parsed.host)
    except (ConfigError, ValueError):
        return address
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    host = mapped or host
    prefix = _IP4_PREFIX if host.version == 4 else _IP6_PREFIX
    return str(ipaddress.ip_network((host, prefix), strict=False))
