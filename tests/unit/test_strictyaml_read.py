"""YAML without surprises: what is refused, where, and what a value is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comity.errors import ConfigError
from comity_node import strictyaml
from comity_node.strictyaml import Node, loads, show_duration


def value(text: str) -> Node:
    """Return what `x:` is followed by."""
    return loads(f"x: {text}\n").mapping("x").required("x")


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("off", "off"),
        ("True", "True"),
        ("true", True),
        ("false", False),
        ("'true'", "true"),
        ("", None),
        ("~", None),
        ("null", None),
        ("''", ""),
        ("12", 12),
        ("-0", 0),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("'12'", "12"),
        ("012", "012"),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        (".5", ".5"),
        (".inf", ".inf"),
        ("2024-01-01", "2024-01-01"),
        ("[a, 1, {b: c}]", ["a", 1, {"b": "c"}]),
        ('"\\ud83d\\ude00"', "😀"),
    ],
)
def test_a_plain_word_is_what_it_looks_like(text: str, data: Any) -> None:
    read = value(text).data()
    assert read == data
    assert type(read) is type(data)


def test_a_key_is_always_a_word() -> None:
    assert loads("on: 1\nno: 2\n12: 3\n").data() == {"on": 1, "no": 2, "12": 3}


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "3:1", 'the key "a" is already there in line 1'),
        ("a: &x [1]\nb: 2\n", "1:4", "anchors"),
        ("a: *x\n", "1:4", "anchors"),
        ("*x : 1\n", "1:1", "anchors"),
        ("&x a: 1\n", "1:1", "anchors"),
        ("a: !!python/object:os.system {}\n", "1:4", "tags"),
        ("a: !!int '3'\n", "1:4", "tags"),
        ("? [a]\n: 1\n", "1:3", "a key must be a word"),
        ("? {a: b}\n: 1\n", "1:3", "a key must be a word"),
        ("~: 1\n", "1:1", "a key is empty"),
        ("a: 1\n--- \nb: 2\n", "2:1", "a second document"),
        ("", "1:1", "empty"),
        ("# nothing\n", "2:1", "empty"),
        ("a: [1,\n", "2:1", "no YAML"),
        ("a: b: c\n", "1:5", "no YAML"),
        ("a:\n\t- 1\n", "2:1", "no YAML"),
        ("a: '\x01'\n", "1:5", "no YAML"),
        ("[" * 1000, "1:33", "nested over 32"),
        ("- " * 1000, "1:65", "nested over 32"),
        ("? " * 100_000, "1:3", "a key must be a word"),
        ('a: "\\ud800"\n', "1:4", "surrogate"),
        ("a: b\n  c: d\n", "2:4", "no YAML"),
    ],
)
def test_refused_with_its_place(text: str, place: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        loads(text, "f.yaml")
    assert str(caught.value).startswith(f"f.yaml:{place}: " if place else "f.yaml: ")


def test_refuses_what_is_not_utf8_with_the_line() -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml:2:1: is not UTF-8"):
        loads(b"a: 1\nb: \xff\n", "f.yaml")
    with pytest.raises(ConfigError, match="UTF-8"):
        loads("a: 1".encode("utf-16"))
    with pytest.raises(ConfigError, match="UTF-8"):
        loads("a: \udc80")


@pytest.mark.invariant("S7")
def test_refuses_what_is_too_large_before_it_parses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="over 1048576 bytes"):
        loads(b"a" * (strictyaml.MAX_BYTES + 1))
    path = tmp_path / "big.yaml"
    path.write_bytes(b"a: " + b"1" * strictyaml.MAX_BYTES)
    with pytest.raises(ConfigError, match=r"big\.yaml: is over"):
        strictyaml.load(path)


@pytest.mark.invariant("S7")
def test_a_long_key_is_held_once(tmp_path: Path) -> None:
    """A list of n items below a key of k characters costs n + k, not n times k."""
    started = time.monotonic()
    node = loads("? " + "k" * 500_000 + "\n: [" + "1," * 10_000 + "]\n")
    assert time.monotonic() - started < 20
    ((_, _, items),) = node.table()
    assert len(items.items()) == 10_000
    assert len(items.items()[9].path) < 100


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.yaml", "no such file"), (tmp_path, "not a file")):
        with pytest.raises(ConfigError, match=message) as caught:
            strictyaml.load(path)
        assert caught.value.file == str(path)


def test_load_reads_a_file_and_marks_its_places(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: 1\nb:\n  - c: x\n")
    item = strictyaml.load(path).mapping("a", "b").required("b").items()[0]
    node = item.mapping("c").required("c")
    assert (node.mark.file, node.mark.line, node.mark.column) == (str(path), 3, 8)
    assert node.path == "b[0].c"
    assert str(node.mark) == f"{path}:3:8"


@pytest.mark.parametrize(
    ("text", "read", "expected"),
    [
        ("word", lambda n: n.string(), "word"),
        ("'12'", lambda n: n.string(), "12"),
        ("true", lambda n: n.boolean(), True),
        ("-5", lambda n: n.integer(-9, 9), -5),
        ("2", lambda n: n.number(0, 3), 2.0),
        ("500ms", lambda n: n.duration_ms(), 500),
        ("30s", lambda n: n.duration_ms(), 30_000),
        ("5m", lambda n: n.duration_ms(), 300_000),
        ("1h", lambda n: n.duration_ms(), 3_600_000),
        ("30d", lambda n: n.duration_ms(), 2_592_000_000),
        ("[a, b]", lambda n: n.strings(), ("a", "b")),
        ("a", lambda n: n.strings(), ("a",)),
        ("b", lambda n: n.choice(("a", "b")), "b"),
        ("[b]", lambda n: n.choices(("a", "b")), ("b",)),
        ("mercy.example", lambda n: n.organization(), "mercy.example"),
        ("sub/x.yaml", lambda n: n.file_path(Path("/etc")), Path("/etc/sub/x.yaml")),
        ("/x.yaml", lambda n: n.file_path(Path("/etc")), Path("/x.yaml")),
    ],
)
def test_readers(text: str, read: Callable[[Node], Any], expected: Any) -> None:
    assert read(value(text)) == expected


@pytest.mark.parametrize(
    ("text", "read", "message"),
    [
        ("12", lambda n: n.string(), "x: expected a string .*quotes.*, got the number 12"),
        ("true", lambda n: n.string(), "got the boolean true"),
        ("", lambda n: n.string(), "expected a string, got nothing"),
        ("''", lambda n: n.string(), "1 to 4096 characters, has 0"),
        ("[a]", lambda n: n.string(), "got a list"),
        ("no", lambda n: n.boolean(), 'expected true or false, got "no"'),
        ("'true'", lambda n: n.boolean(), "expected true or false"),
        ("True", lambda n: n.boolean(), "expected true or false"),
        ("1.0", lambda n: n.integer(0, 9), "whole number from 0 to 9"),
        ("'1'", lambda n: n.integer(0, 9), "whole number"),
        ("10", lambda n: n.integer(0, 9), "must be from 0 to 9, is 10"),
        ("9" * 5000, lambda n: n.integer(0, 9), "whole number"),
        ("true", lambda n: n.number(), "expected a number"),
        ("1e999", lambda n: n.number(), "expected a number"),
        (".nan", lambda n: n.number(), "expected a number"),
        ("3.5", lambda n: n.number(0, 3), "must be from 0 to 3, is 3.5"),
        ("5", lambda n: n.duration_ms(), "a duration such as"),
        ("5 m", lambda n: n.duration_ms(), "a duration such as"),
        ("-5m", lambda n: n.duration_ms(), "a duration such as"),
        ("1.5h", lambda n: n.duration_ms(), "a duration such as"),
        ("1h", lambda n: n.duration_ms(0, 60_000), "must be from 0ms to 1m, is 1h"),
        ("a", lambda n: n.items(), 'expected a list, got "a"'),
        ("[]", lambda n: n.strings(), "the list is empty"),
        ("[a, a]", lambda n: n.strings(), '"a" is listed twice'),
        ("[a, 1]", lambda n: n.strings(), r"x\[1\]: expected a string"),
        ("alow", lambda n: n.choice(("allow", "forbid"), "effect"), 'unknown effect "alow"; did you mean "allow"'),
        ("zzz", lambda n: n.choice(("allow", "forbid"), "effect"), "known: allow, forbid"),
        ("Mercy", lambda n: n.organization(), "is no organization name"),
        ("a", lambda n: n.mapping("b"), "expected a mapping"),
        ("{lst: 1}", lambda n: n.mapping("list", "limit"), 'unknown key "lst" in x; did you mean "list"'),
        ("{a: 1}", lambda n: n.mapping("a", "b").required("b"), 'the key "b" is missing'),
        ("'a\\0b'", lambda n: value('"a\\0b"').file_path(Path()), "NUL"),
    ],
)
def test_readers_refuse(text: str, read: Callable[[Node], Any], message: str) -> None:
    node = value(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read(node)
    assert caught.value.line == 1
    assert len(str(caught.value)) < 300


def test_an_absent_section_reads_as_its_defaults() -> None:
    top = loads("a: {n: 3, on: true, s: x, d: 2s, f: 0.5, l: [p]}\n").mapping("a", "b")
    for key, expected in (("a", (3, True, "x", 2000, 0.5, ("p",))), ("b", (7, False, "y", 9, 0.25, ()))):
        section = top.section(key, "n", "on", "s", "d", "f", "l")
        read = (
            section.integer("n", 7, 0, 9),
            section.boolean("on", False),
            section.string("s", "y"),
            section.duration_ms("d", 9, 0, 10_000),
            section.number("f", 0.25, 0, 1),
            section.strings("l"),
        )
        assert read == expected
    assert "n" in top.section("a", *"n on s d f l".split())
    assert list(top) == ["a"]


def test_durations_are_shown_in_their_largest_unit() -> None:
    assert [show_duration(ms) for ms in (0, 1, 1000, 90_000, 60_000, 86_400_000)] == [
        "0ms",
        "1ms",
        "1s",
        "90s",
        "1m",
        "1d",
    ]
