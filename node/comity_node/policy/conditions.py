"""What a rule's `when` can ask about a request's labels, and how that is decided: a pure function of the labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

LabelValue = int | float | str | bool
Labels = Mapping[str, LabelValue]


class Label(StrEnum):
    """The type of a label's value."""

    NUMBER = "number"
    TEXT = "text"
    FLAG = "flag"


#: The label that holds the time of the decision, in milliseconds since 1970, UTC.
TIME = "time_ms"

#: What a rule's `when` can ask about. Scores and reliabilities are 0 to 1.
LABELS: Mapping[str, Label] = MappingProxyType(
    {
        "records": Label.NUMBER,  # records of each organization, or in this message
        "batch_records": Label.NUMBER,
        "repair_rounds": Label.NUMBER,
        "participants": Label.NUMBER,  # organizations in the agreement
        "eligible": Label.NUMBER,  # reviewers that may vote
        "faulty": Label.NUMBER,  # of which this many may be liars
        "quorum": Label.NUMBER,
        "min_score": Label.NUMBER,
        "score": Label.NUMBER,  # of the record, by its reviewers
        "reviews": Label.NUMBER,  # that the record has
        "reliability": Label.NUMBER,  # of the other side, as this node has learned it
        "distance": Label.NUMBER,  # of the record to the nearest private one
        "k": Label.NUMBER,  # rows that share each combination of identifying values, at least
        "lease_seconds": Label.NUMBER,
        "lifetime_seconds": Label.NUMBER,
        "bytes": Label.NUMBER,
        "round": Label.NUMBER,  # of training
        "examples": Label.NUMBER,  # that an update was trained on
        "norm": Label.NUMBER,  # of an update
        TIME: Label.NUMBER,
        "distinct_organizations": Label.FLAG,
        "tunnel": Label.TEXT,  # name of the service
        "skill": Label.TEXT,  # of the other side's agent
        "model": Label.TEXT,
    }
)

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY = 24 * 60
WEEK = 7 * DAY
_MINUTE_MS = 60_000
#: 1970 began on a Thursday; weeks are counted from Monday.
_FIRST_MINUTE = 3 * DAY
#: The end of the year 9999.
_MAX_TIME_MS = 253_402_300_800_000


@dataclass(frozen=True, slots=True)
class NumberCondition:
    """A label lies in an inclusive range."""

    label: str
    minimum: float
    maximum: float

    def holds(self, labels: Labels) -> bool | None:
        """Whether it does; None if the label is missing or no number."""
        value = labels.get(self.label)
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            return None
        return self.minimum <= value <= self.maximum

    def __str__(self) -> str:
        low = f"at least {self.minimum:g}" if self.minimum > -math.inf else ""
        high = f"at most {self.maximum:g}" if self.maximum < math.inf else ""
        return " and ".join(part for part in (low, high) if part)


@dataclass(frozen=True, slots=True)
class TextCondition:
    """A label is one of these words."""

    label: str
    words: frozenset[str]

    def holds(self, labels: Labels) -> bool | None:
        """Whether it is; None if the label is missing or no text."""
        value = labels.get(self.label)
        return value in self.words if isinstance(value, str) else None

    def __str__(self) -> str:
        return " or ".join(sorted(self.words))


@dataclass(frozen=True, slots=True)
class FlagCondition:
    """A label is true, or is false."""

    label: str
    value: bool

    def holds(self, labels: Labels) -> bool | None:
        """Whether it is as wanted; None if the label is missing or no boolean."""
        value = labels.get(self.label)
        return value is self.value if isinstance(value, bool) else None

    def __str__(self) -> str:
        return str(self.value).lower()


@dataclass(frozen=True, slots=True)
class TimeCondition:
    """It is a time of day on a day of the week.

    Attributes:
        start: the first minute of the day that is within.
        end: the first one that is not; at or before `start` it is one of the next day.
        days: days on which it may begin: 0 is Monday.
        offset: minutes by which local time is ahead of UTC.
    """

    start: int
    end: int
    days: frozenset[int]
    offset: int = 0
    label: str = TIME

    def holds(self, labels: Labels) -> bool | None:
        """Whether it is; None if the time is not known."""
        minute = minute_of_week(labels)
        if minute is None:
            return None
        day, minute = divmod((minute + self.offset) % WEEK, DAY)
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        return (minute >= self.start and day in self.days) or (minute < self.end and (day - 1) % 7 in self.days)

    def intervals(self) -> Iterator[tuple[int, int]]:
        """Yield the minutes of a week in UTC that are within, as half-open ranges within 0 to `WEEK`."""
        length = (self.end - self.start) % DAY or DAY
        for day in sorted(self.days):
            begin = (day * DAY + self.start - self.offset) % WEEK
            yield begin, min(begin + length, WEEK)
            if begin + length > WEEK:
                yield 0, begin + length - WEEK

    def __str__(self) -> str:
        days = "" if len(self.days) == len(DAYS) else f" on {', '.join(DAYS[day] for day in sorted(self.days))}"
        return f"from {_clock(self.start)} to {_clock(self.end)}{days} ({show_zone(self.offset)})"


Condition = NumberCondition | TextCondition | FlagCondition | TimeCondition


def minute_of_week(labels: Labels) -> int | None:
    """Return the minute of the week, in UTC, that the time label lies in; None if there is no sound one."""
    time_ms = labels.get(TIME)
    if isinstance(time_ms, bool) or not isinstance(time_ms, int | float) or not 0 <= time_ms < _MAX_TIME_MS:
        return None
    return int(time_ms // _MINUTE_MS + _FIRST_MINUTE) % WEEK


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def show_zone(offset: int) -> str:
    """Return an offset from UTC, in minutes, as it is written in policies."""
    return f"{'-' if offset < 0 else '+'}{_clock(abs(offset))}"
