"""A value of a document with the way to it, so that every complaint says where."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from comity.errors import ConfigError
from comity.strictjson import MAX_INTEGER

#: Characters of a word.
_MAX_WORD = 256


@dataclass(frozen=True, slots=True)
class Spot:
    """A value, and the keys and positions that lead to it.

    Attributes:
        value: a JSON value, from anybody.
        path: the way to it, from the top of the document.
    """

    value: Any
    path: tuple[str | int, ...] = ()

    def fail(self, message: str) -> NoReturn:
        """Raise a `ConfigError` that points here."""
        path = (each if isinstance(each, int) else each[:64].encode(errors="replace").decode() for each in self.path)
        where = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in path)
        raise ConfigError(f"{where.removeprefix('.')}: {message}" if where else message, path=self.path)

    def _expected(self, what: str) -> NoReturn:
        kinds = {dict: "a mapping", list: "a list", bool: "true or false", str: "a text", type(None): "nothing"}
        self.fail(f"expected {what}, got {kinds.get(type(self.value), 'a number')}")

    def table(self, most: int) -> dict[str, Spot]:
        """Read a mapping whose keys are names that the author chose."""
        if not isinstance(self.value, dict):
            self._expected("a mapping")
        if len(self.value) > most:
            self.fail(f"has {len(self.value)} entries; at most {most}")
        for key in self.value:
            if not isinstance(key, str):
                self.fail("a key is no text")
        return {key: Spot(inner, (*self.path, key)) for key, inner in self.value.items()}

    def mapping(self, known: Collection[str]) -> Mapping[str, Spot]:
        """Read a mapping that has no keys but `known`."""
        if not isinstance(self.value, dict):
            self._expected("a mapping")
        for key in self.value:
            if key not in known:
                Spot(None, (*self.path, str(key))).fail(
                    f"there is no such key here{suggest(str(key), known)}; known: {', '.join(sorted(known))}"
                )
        return {key: Spot(inner, (*self.path, key)) for key, inner in self.value.items()}

    def mapping_with(self, key: str) -> Spot:
        """Return the value under `key` of a mapping."""
        if not isinstance(self.value, dict):
            self._expected("a mapping")
        if key not in self.value:
            self.fail(f"the key {key!r} is missing")
        return Spot(self.value[key], (*self.path, key))

    def items(self, most: int) -> list[Spot]:
        """Read a list."""
        if not isinstance(self.value, list):
            self._expected("a list")
        if len(self.value) > most:
            self.fail(f"has {len(self.value)} items; at most {most}")
        return [Spot(inner, (*self.path, number)) for number, inner in enumerate(self.value)]

    def text(self, most: int) -> str:
        """Read a text that is not empty."""
        if not isinstance(self.value, str):
            self._expected("a text")
        if not 0 < len(self.value) <= most:
            self.fail(f"has {len(self.value)} characters; 1 to {most}")
        if any("\ud800" <= each <= "\udfff" for each in self.value):
            self.fail("holds half a character")
        return self.value

    def name(self, pattern: re.Pattern[str], rule: str) -> str:
        """Read a text that `pattern` matches; `rule` says in words which those are."""
        text = self.text(_MAX_WORD)
        if not pattern.fullmatch(text):
            self.fail(f"{text[:64]!r} is no name: {rule}")
        return text

    def choice(self, known: Collection[str], what: str) -> Any:  # noqa: ANN401  (one of `known`, with its own type)
        """Read one of a closed list of words."""
        text = self.text(_MAX_WORD)
        if text not in known:
            self.fail(f"{text[:64]!r} is no {what}{suggest(text, known)}; known: {', '.join(sorted(known))}")
        return text

    def words(self, most: int) -> tuple[str, ...]:
        """Read a list of texts, or one; none twice."""
        spots = self.items(most) if isinstance(self.value, list) else [self]
        seen: list[str] = []
        for spot in spots:
            text = spot.text(_MAX_WORD)
            if text in seen:
                spot.fail(f"{text[:64]!r} is listed twice")
            seen.append(text)
        return tuple(seen)

    def integer(self, low: int, high: int) -> int:
        """Read a whole number of an inclusive range."""
        value = self.value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self._expected(f"a whole number from {low} to {high}")
        if not low <= value <= high:
            self.fail(f"has to be from {low} to {high}")
        return value

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """Read a finite number of an inclusive range."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # NaN
            self._expected("a number")
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            self.fail("is over 2^53 - 1")
        if not low <= value <= high:
            self.fail(f"has to be from {low:g} to {high:g}")
        return value

    def boolean(self) -> bool:
        """Read true or false."""
        if not isinstance(self.value, bool):
            self._expected("true or false")
        return self.value


def suggest(word: str, known: Collection[str]) -> str:
    """Return `; did you mean 'x'?` for the known word nearest to `word`, or nothing."""
    close = difflib.get_close_matches(word[:64], sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
