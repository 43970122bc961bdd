"""Text and numbers that a report may hold and show: bounded, printable, and marked when they are missing."""

from __future__ import annotations

import math
from collections.abc import Mapping

#: Longest text that is taken over from elsewhere, in characters.
MAX_TEXT = 400
_MAX_NAMES = 20
_OTHER = "(others)"


def clean(text: object, limit: int = MAX_TEXT) -> str:
    """Return text from elsewhere without control characters, and not longer than `limit` characters.

    Peers choose reasons and names of axes; a terminal that prints them must not obey them.
    """
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text)[: limit + 1])
    return printable if len(printable) <= limit else printable[: limit - 1] + "…"


def largest(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts by cleaned name, largest first; what is beyond the twenty largest is one sum."""
    merged: dict[str, int] = {}
    for number, (name, count) in enumerate(sorted(counts.items(), key=lambda item: (-item[1], item[0]))):
        key = clean(name, 80) if number < _MAX_NAMES else _OTHER
        merged[key] = merged.get(key, 0) + int(count)
    return merged


def finite(value: object, digits: int = 4) -> float | None:
    """Return a number rounded, None if it is none or is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(float(value), digits)


def decimal(value: float | None, digits: int = 3) -> str:
    """Return a number as text, a dash when it is missing."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 4) -> str:
    """Return a difference as text with its sign, a dash when it is missing."""
    return "–" if value is None else f"{value:+.{digits}f}"


def percent(part: int, whole: int) -> str:
    """Return a share in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def listed(words: list[str]) -> str:
    """Return words as an enumeration: a, b and c."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" and {words[-1]}" if words else "none"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural by an s unless it is one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(count: float) -> str:
    """Return a number of bytes in a unit that reads well."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def kind_name(kind: str) -> str:
    """Return the name of a kind of corruption, an arm or a step as words."""
    return kind.replace("_", " ")
