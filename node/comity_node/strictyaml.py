"""YAML as a configuration language, without YAML's surprises.

Built on PyYAML's event stream (YAML 1.1 syntax) and nothing above it, so none of its implicit types apply:

- `true` and `false` are the only booleans, numbers are JSON numbers, `null`, `~` and nothing are empty, and every other
  plain word (`no`, `on`, `1_000`, `012`, `2024-01-01`) is the string that it looks like;
- anchors, aliases, tags, complex keys, several documents and duplicate keys are refused;
- a file is at most 1 MiB of UTF-8 and 32 levels deep.

Every key and value knows its file, line and column, and every complaint is a `ConfigError` that says where. Whoever
reads a mapping says which keys it may have; a key that was not named is refused, with the one that was probably meant.

    top = load(path).mapping("listen", "limits")
    listen = top.required("listen").string()
    limits = top.section("limits", "frames", "idle")          # an absent section is an empty one
    frames = limits.integer("frames", 64, 1, 1024)
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from comity.errors import ConfigError, InvalidName
from comity.ids import organization_name

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_STRING = 4096
#: Characters from which libyaml is worth it, and texts that it is known to read as PyYAML does: no tabs, no escapes, no
#: tags, no directives, no complex keys, no block scalars, nothing but ASCII.
_LARGE = 32 * 1024
_ALIKE = re.compile(r"[\n \"#$&'()*+,\-./0-9:;<=@A-Z\[\]^_`a-z{}~]*")
_MAX_DIGITS = 40
_MAX_SHOWN = 60

_EMPTY = frozenset({"", "~", "null"})
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
#: What `duration_ms` reads.
DURATION = r"(0|[1-9][0-9]{0,11})(ms|s|m|h|d)"
_DURATION = re.compile(DURATION)
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def fail(self, message: str) -> NoReturn:
        """Raise a `ConfigError` that points here."""
        raise ConfigError(message, file=self.file, line=self.line, column=self.column)


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean "x"?` for the known word nearest to `word`, or an empty string."""
    close = difflib.get_close_matches(word[:_MAX_SHOWN], sorted(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?{_look_alike(word, close[0])}' if close else ""


def _look_alike(word: str, meant: str) -> str:
    """Name the first character that is not ASCII where none was meant: it may look like one that is."""
    strange = next((character for character in word[:_MAX_SHOWN] if ord(character) > 127), "")
    if not strange or not meant.isascii():
        return ""
    return f" (one of its characters is U+{ord(strange):04X}, {unicodedata.name(strange, 'without a name')})"


def shown(text: str) -> str:
    """Return `text` in quotes, cut to what fits in a line of output."""
    return f'"{text}"' if len(text) <= _MAX_SHOWN else f'"{text[:_MAX_SHOWN]}…"'


@dataclass(frozen=True, slots=True)
class _Step:
    """One key or position on the way to a value; linked, so that a long key costs its memory once."""

    parent: _Step | None
    name: str | int


@dataclass(frozen=True, slots=True)
class Node:
    """A value of the file. The readers below raise `ConfigError` with its place when it is of another type.

    Attributes:
        mark: where it stands.
        value: text of a scalar, items of a sequence, or entries of a mapping.
        plain: for a scalar: written without quotes.
        step: the key or position under which it stands, and what it stands in.
    """

    mark: Mark
    value: str | tuple[Node, ...] | dict[str, tuple[Mark, Node]] = field(repr=False)
    plain: bool = False
    step: _Step | None = field(default=None, repr=False)

    # What it is.

    @property
    def path(self) -> str:
        """How to reach it from the top, such as `rules[0].to`; empty for the top."""
        parts: list[str] = []
        step = self.step
        while step is not None:
            parts.append(f"[{step.name}]" if isinstance(step.name, int) else f".{step.name[:_MAX_SHOWN]}")
            step = step.parent
        return "".join(reversed(parts)).removeprefix(".")

    @property
    def is_mapping(self) -> bool:
        """Whether this is a mapping."""
        return isinstance(self.value, dict)

    @property
    def is_list(self) -> bool:
        """Whether this is a list."""
        return isinstance(self.value, tuple)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was written: no value, `~` or `null`."""
        return self.plain and self.value in _EMPTY

    @property
    def is_boolean(self) -> bool:
        """Whether this is `true` or `false`, unquoted."""
        return self.plain and self.value in ("true", "false")

    @property
    def is_number(self) -> bool:
        """Whether this is an unquoted JSON number."""
        return self.plain and isinstance(self.value, str) and _NUMBER.fullmatch(self.value) is not None

    @property
    def is_string(self) -> bool:
        """Whether this is text that is no boolean, no number and not empty, or is quoted."""
        return isinstance(self.value, str) and not (self.is_empty or self.is_boolean or self.is_number)

    def describe(self) -> str:
        """Return what was written, for a message."""
        if self.is_mapping or self.is_list:
            return "a mapping" if self.is_mapping else "a list"
        if self.is_empty:
            return "nothing"
        kind = "the boolean " if self.is_boolean else "the number " if self.is_number else ""
        return kind + (str(self.value)[:_MAX_SHOWN] if kind else shown(str(self.value)))

    def fail(self, message: str) -> NoReturn:
        """Raise a `ConfigError` at this value."""
        self.mark.fail(f"{self.path}: {message}" if self.path else message)

    def _expected(self, what: str) -> NoReturn:
        self.fail(f"expected {what}, got {self.describe()}")

    # Scalars.

    def string(self, *, max_length: int = MAX_STRING) -> str:
        """Read a string that is not empty."""
        if not isinstance(self.value, str) or self.is_empty:
            self._expected("a string")
        if not self.is_string:
            self._expected("a string (put it in quotes if it is meant as text)")
        if not 0 < len(self.value) <= max_length:
            self.fail(f"must have 1 to {max_length} characters, has {len(self.value)}")
        return self.value

    def boolean(self) -> bool:
        """Read `true` or `false`."""
        if not self.is_boolean:
            self._expected("true or false")
        return self.value == "true"

    def integer(self, minimum: int, maximum: int) -> int:
        """Read a whole number within an inclusive range."""
        text = self.value
        if not (self.plain and isinstance(text, str) and len(text) <= _MAX_DIGITS and _INTEGER.fullmatch(text)):
            self._expected(f"a whole number from {minimum} to {maximum}")
        number = int(text)
        if not minimum <= number <= maximum:
            self.fail(f"must be from {minimum} to {maximum}, is {number}")
        return number

    def number(self, minimum: float = -math.inf, maximum: float = math.inf) -> float:
        """Read a finite number within an inclusive range."""
        number = float(self.value) if self.is_number and isinstance(self.value, str) else math.nan
        if not math.isfinite(number):
            self._expected("a number")
        if not minimum <= number <= maximum:
            self.fail(f"must be from {minimum:g} to {maximum:g}, is {self.value}")
        return number

    def duration_ms(self, minimum: int = 0, maximum: int = 10 * 366 * 86_400_000) -> int:
        """Read a duration such as `500ms`, `30s`, `5m`, `1h` or `30d`; return milliseconds within a range."""
        match = _DURATION.fullmatch(self.value) if isinstance(self.value, str) else None
        if not match:
            self._expected("a duration such as 500ms, 30s, 5m, 1h or 30d")
        milliseconds = int(match[1]) * _UNIT_MS[match[2]]
        if not minimum <= milliseconds <= maximum:
            self.fail(f"must be from {show_duration(minimum)} to {show_duration(maximum)}, is {self.value}")
        return milliseconds

    def choice(self, known: Collection[str], what: str = "") -> str:
        """Read one string of a closed list."""
        text = self.string()
        if text not in known:
            self.fail(f"unknown {what or 'value'} {shown(text)}{suggest(text, known) or _listed(known)}")
        return text

    def organization(self) -> str:
        """Read the name of an organization."""
        try:
            return organization_name(self.string())
        except InvalidName as error:
            self.fail(str(error))

    def file_path(self, base: Path) -> Path:
        """Read a file's path; one that is not absolute starts at `base`."""
        text = self.string()
        if "\0" in text:
            self.fail("a path cannot hold a NUL character")
        return base / text

    # Lists.

    def items(self) -> tuple[Node, ...]:
        """Read a list."""
        if not isinstance(self.value, tuple):
            self._expected("a list")
        return self.value

    def one_or_more(self) -> tuple[Node, ...]:
        """Read a list that is not empty, or a single value as a list of one."""
        items = self.value if isinstance(self.value, tuple) else (self,)
        if not items:
            self.fail("the list is empty")
        return items

    def strings(self) -> tuple[str, ...]:
        """Read a list of strings, or one string; none may appear twice."""
        return self._unique([(item, item.string()) for item in self.one_or_more()])

    def choices(self, known: Collection[str], what: str = "") -> tuple[str, ...]:
        """Read a list of strings of a closed list, or one; none may appear twice."""
        return self._unique([(item, item.choice(known, what)) for item in self.one_or_more()])

    def _unique(self, read: list[tuple[Node, str]]) -> tuple[str, ...]:
        seen: set[str] = set()
        for item, text in read:
            if text in seen:
                item.fail(f"{shown(text)} is listed twice")
            seen.add(text)
        return tuple(text for _, text in read)

    # Mappings.

    def mapping(self, *known: str) -> Section:
        """Read a mapping that has no keys but `known`."""
        entries = self._entries()
        for key, (mark, _) in entries.items():
            if key not in known:
                where = f" in {self.path}" if self.path else ""
                mark.fail(f"unknown key {shown(key)}{where}{suggest(key, known) or _listed(known)}")
        return Section(self, entries)

    def table(self) -> tuple[tuple[str, Mark, Node], ...]:
        """Read a mapping whose keys are names that the author chose: (key, place of the key, value) in order."""
        return tuple((key, mark, value) for key, (mark, value) in self._entries().items())

    def _entries(self) -> dict[str, tuple[Mark, Node]]:
        if not isinstance(self.value, dict):
            self._expected("a mapping")
        return self.value

    # Anything.

    def data(self) -> Any:  # noqa: ANN401  (any JSON value)
        """Return the value as JSON data: `None`, bool, int, float, str, list or dict."""
        if isinstance(self.value, dict):
            return {key: value.data() for key, (_, value) in self.value.items()}
        if isinstance(self.value, tuple):
            return [item.data() for item in self.value]
        if self.is_empty:
            return None
        if self.is_boolean:
            return self.boolean()
        if not self.is_number:
            return self.value
        whole = _INTEGER.fullmatch(self.value) is not None
        return self.integer(-(2**63), 2**63 - 1) if whole else self.number()


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping whose keys have been checked."""

    node: Node
    _entries: Mapping[str, tuple[Mark, Node]] = field(repr=False)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def required(self, key: str) -> Node:
        """Return the value of `key`; a `ConfigError` at the mapping when it is missing."""
        if key not in self._entries:
            self.node.fail(f"the key {shown(key)} is missing")
        return self._entries[key][1]

    def optional(self, key: str) -> Node | None:
        """Return the value of `key`, or None when it is missing."""
        return self._entries[key][1] if key in self._entries else None

    def section(self, key: str, *known: str) -> Section:
        """Return the mapping under `key`, which has no keys but `known`; an empty one when it is missing."""
        node = self.optional(key)
        return Section(self.node, {}) if node is None else node.mapping(*known)

    def string(self, key: str, default: str) -> str:
        """Read a string, or return `default` when the key is missing."""
        node = self.optional(key)
        return default if node is None else node.string()

    def boolean(self, key: str, default: bool) -> bool:
        """Read a boolean, or return `default` when the key is missing."""
        node = self.optional(key)
        return default if node is None else node.boolean()

    def integer(self, key: str, default: int, minimum: int, maximum: int) -> int:
        """Read a whole number, or return `default` when the key is missing."""
        node = self.optional(key)
        return default if node is None else node.integer(minimum, maximum)

    def number(self, key: str, default: float, minimum: float, maximum: float) -> float:
        """Read a number, or return `default` when the key is missing."""
        node = self.optional(key)
        return default if node is None else node.number(minimum, maximum)

    def duration_ms(self, key: str, default: int, minimum: int, maximum: int) -> int:
        """Read a duration in milliseconds, or return `default` when the key is missing."""
        node = self.optional(key)
        return default if node is None else node.duration_ms(minimum, maximum)

    def strings(self, key: str) -> tuple[str, ...]:
        """Read a list of strings, or return none when the key is missing."""
        node = self.optional(key)
        return () if node is None else node.strings()


def show_duration(milliseconds: int) -> str:
    """Return a duration in the largest unit that it is a whole number of."""
    for unit in ("d", "h", "m", "s"):
        if milliseconds and milliseconds % _UNIT_MS[unit] == 0:
            return f"{milliseconds // _UNIT_MS[unit]}{unit}"
    return f"{milliseconds}ms"


def load(path: Path) -> Node:
    """Read a YAML (or JSON) file.

    Raises:
        ConfigError: it cannot be read, is not UTF-8, is over 1 MiB, or is not in the subset described above.
    """
    return loads(read_file(path), str(path))


def read_file(path: Path) -> bytes:
    """Return the bytes of a regular file of at most 1 MiB.

    Raises:
        ConfigError: there is no such file, it is no regular file, too large, or cannot be read.
    """
    try:
        if not path.is_file():
            raise ConfigError("there is no such file" if not path.exists() else "not a file", file=str(path))
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from error


def loads(data: bytes | str, file: str = "<text>") -> Node:
    """Parse YAML text; `file` names it in errors.

    Raises:
        ConfigError: it is not UTF-8, over 1 MiB, or not in the subset described above.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"is over {MAX_BYTES} bytes", file=file)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError("is not UTF-8", file=file, line=line, column=1) from error
    try:
        return _build(text, file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        problem = error.problem or error.context
        raise ConfigError(f"is no YAML: {problem}", file=file, line=line, column=column) from error
    except yaml.YAMLError as error:
        problem = str(error).splitlines()[0]
        before = text[: getattr(error, "position", 0)]  # of a character that YAML does not have
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise ConfigError(f"is no YAML: {problem}", file=file, line=line, column=column) from error


def _build(text: str, file: str) -> Node:
    """Return the document; with libyaml, which is twenty times as fast, where it reads exactly as PyYAML itself does.

    What is not taken that way is read again by the other, whose word counts. The two differ in one thing that is let
    stand: in which column of its line a value stands that is not there.
    """
    if len(text) >= _LARGE and yaml.__with_libyaml__ and _ALIKE.fullmatch(text):
        with contextlib.suppress(yaml.YAMLError, ConfigError):
            return _Builder(text, file, yaml.CSafeLoader).document()
    return _Builder(text, file, yaml.SafeLoader).document()


def _listed(known: Collection[str]) -> str:
    return f"; known: {', '.join(sorted(known))}" if 0 < len(known) <= 24 else ""


def _whole(text: str, mark: Mark) -> str:
    """Return `text` with the surrogate pairs of JSON's escapes joined; half a pair is refused."""
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        mark.fail("half a surrogate pair is no character")


class _Builder:
    """Nodes from events, with a limit on depth, so that no input costs the interpreter's stack."""

    def __init__(self, text: str, file: str, loader: Any) -> None:  # noqa: ANN401  (either loader of PyYAML)
        self._file = file
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=loader)

    def document(self) -> Node:
        next(self._events)  # StreamStartEvent
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            self._mark(event).fail("the file is empty")
        node = self._node(next(self._events), None, 1)
        next(self._events)  # DocumentEndEvent
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            self._mark(event).fail("a second document starts here; a file holds one")
        return node

    def _mark(self, event: yaml.Event) -> Mark:
        place = event.start_mark
        return Mark(self._file, place.line + 1, place.column + 1) if place else Mark(self._file, 0, 0)

    def _node(self, event: yaml.Event, step: _Step | None, depth: int) -> Node:
        mark = self._mark(event)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            mark.fail("anchors and aliases are not allowed; write the value out")
        if getattr(event, "tag", None) is not None:
            mark.fail("tags are not allowed")
        if depth > MAX_DEPTH:
            mark.fail(f"is nested over {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.ScalarEvent):
            return Node(mark, _whole(event.value, mark), plain=not event.style, step=step)
        if isinstance(event, yaml.SequenceStartEvent):
            return Node(mark, tuple(self._items(step, depth)), step=step)
        return Node(mark, self._entries(step, depth), step=step)

    def _items(self, parent: _Step | None, depth: int) -> Iterator[Node]:
        position = 0
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            yield self._node(event, _Step(parent, position), depth + 1)
            position += 1

    def _entries(self, parent: _Step | None, depth: int) -> dict[str, tuple[Mark, Node]]:
        entries: dict[str, tuple[Mark, Node]] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
                self._mark(event).fail("a key must be a word, not a list or a mapping")
            key = self._node(event, parent, depth)
            if not isinstance(key.value, str) or key.is_empty:
                key.mark.fail("a key is empty")
            if key.value in entries:
                first = entries[key.value][0]
                key.mark.fail(f"the key {shown(key.value)} is already there in line {first.line}")
            entries[key.value] = (key.mark, self._node(next(self._events), _Step(parent, key.value), depth + 1))
        return entries
