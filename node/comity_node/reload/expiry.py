"""What is about to expire: said in the log when so many days are left, and in the node's status as long as it holds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

#: Days before the end at which the log has a line.
DAYS: Final = (30, 14, 7, 1)
_DAY_MS: Final = 24 * 3600 * 1000


def step(until_ms: int, now_ms: int) -> int | None:
    """Return the last of `DAYS` that has been reached; 0 when it is over, None while there is more time than that.

    Args:
        until_ms: until when it is good; milliseconds since the Unix epoch.
        now_ms: the time.
    """
    if now_ms >= until_ms:
        return 0
    return min((days for days in DAYS if until_ms - now_ms <= days * _DAY_MS), default=None)


def warning(what: str, advice: str, until_ms: int, now_ms: int) -> str:
    """Return a line about something that expires; "" while there is time.

    Args:
        what: its name, at the beginning of the line.
        advice: what to do.
        until_ms: until when it is good; milliseconds since the Unix epoch.
        now_ms: the time.
    """
    reached = step(until_ms, now_ms)
    if reached is None:
        return ""
    end = f"{datetime.fromtimestamp(until_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    if reached == 0:
        return f"{what} has expired ({end}): {advice}"
    left = (until_ms - now_ms) / _DAY_MS
    amount = f"{left:.0f} days" if left >= 2 else f"{left * 24:.0f} hours"
    return f"{what} expires in {amount} ({end}): {advice}"


class Reminders:
    """Says of each thing once for each of `DAYS` that it is about to expire."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[int, int]] = {}

    def is_due(self, what: str, until_ms: int, now_ms: int) -> bool:
        """Return whether a further one of `DAYS` has been reached; another end begins anew."""
        reached = step(until_ms, now_ms)
        if reached is None or self._said.get(what) == (until_ms, reached):
            return False
        self._said[what] = (until_ms, reached)
        return True
