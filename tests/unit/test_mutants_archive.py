"""Decisions read back, at the edges: each test goes red for a wrong line of `admission.archive` or `watching`."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from comity.digest import sha256
from comity.errors import AuditBroken, Busy, ConfigError
from comity_node.admission import archive, watching
from comity_node.admission.archive import Archive, read_request, recall_policy, remember_policy
from comity_node.admission.watching import Seen, Sight, Wanted, Watching, WatchLimits
from comity_node.policy.engine import Policy
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Request
from comity_node.storage import audit
from comity_node.storage.audit import StoredEntry
from comity_node.storage.audit_entry import AuditEntry
from comity_node.storage.connections import connect_writer, create
from comity_node.storage.policies import put_policy
from comity_node.storage.shapes import put_shape
from kit.consortium import NOW_MS
from kit.decided import OTHER, PEER, POLICY, asking

RECORD, ANOTHER = sha256(b"a record"), sha256(b"another")
NAMED = sha256(b"{}")


def entry(kind: str = "decision", subject: bytes = b"", decision: str = "allow", **detail: Any) -> AuditEntry:
    return AuditEntry(kind, "record.send", decision, peer=PEER, subject=subject, detail=detail)


def write(connection: sqlite3.Connection, *entries: AuditEntry) -> None:
    """Append entries, a second apart."""
    start = audit.head(connection).size
    audit.append_all(connection, [(each, NOW_MS + 1000 * at) for at, each in enumerate(entries, start)])


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    create(tmp_path / "node.db")
    with closing(connect_writer(tmp_path / "node.db", None)) as opened:
        yield opened


@pytest.fixture
def log(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Decisions at 0, 1, 3, 4 and 6, and two other entries; 0 and 4 are about a record, and 1 only names it."""
    write(
        connection,
        entry(subject=RECORD), entry(subject=ANOTHER, about={"subject": RECORD.hex()}), entry("effect", RECORD),
        entry(), entry(subject=RECORD), entry("effect"), entry(request=NAMED.hex()),
    )  # fmt: skip
    return connection


def test_a_policy_without_files_is_not_kept(connection: sqlite3.Connection) -> None:
    policy = loads_policy(POLICY)
    assert not remember_policy(connection, Policy(replace(policy.document, files={})))
    assert recall_policy(connection, policy.digest) is None
    assert [remember_policy(connection, policy) for _ in range(2)] == [True, False]
    kept = recall_policy(connection, policy.digest)
    assert kept is not None
    assert kept.digest == policy.digest
    put_policy(connection, bytes(32), "policy.yaml", policy.document.files)
    with pytest.raises(AuditBroken, match="is another one"):
        recall_policy(connection, bytes(32))


def test_a_decision_comes_with_its_request_at_its_time(
    log: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "find_request", lambda _, digest: {NAMED: asking()}.get(digest))
    reader = Archive(log)
    found = reader.entry(6)
    assert (found.entry.index, found.digest) == (6, NAMED)
    assert found.request is not None
    assert found.request.labels["time_ms"] == NOW_MS + 6000
    unnamed = reader.entry(3)
    assert (unnamed.entry.index, unnamed.digest, unnamed.request) == (3, b"", None)
    lost = replace(found.entry, entry=entry(request=bytes(32).hex()))
    assert (reader.recorded(lost).digest, reader.recorded(lost).request) == (bytes(32), None)
    with pytest.raises(AuditBroken, match="names no request"):
        reader.recorded(replace(found.entry, entry=entry(request="no digits")))


@pytest.mark.invariant("S7")
def test_few_requests_are_held_and_no_large_one(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_MAX_HELD", 2)
    monkeypatch.setattr(archive, "_MAX_HELD_FIELDS", 1)
    stored: dict[bytes, Request | None] = {each: asking() for each in (b"a", b"b", b"c")}
    stored |= {b"large": replace(asking(), fields=frozenset({"age", "size"})), b"none": None}
    looked: list[bytes] = []

    def find(_: sqlite3.Connection, digest: bytes) -> Request | None:
        looked.append(digest)
        return stored[digest]

    monkeypatch.setattr(archive, "find_request", find)

    def lookups(*digests: bytes) -> list[bytes]:
        looked.clear()
        reader = Archive(connection)
        assert [reader._find(each) for each in digests] == [stored[each] for each in digests]
        return list(looked)

    assert lookups(b"a", b"b", b"a", b"c", b"a") == [b"a", b"b", b"c", b"a"]
    assert lookups(b"large", b"large") == [b"large"] * 2
    assert lookups(b"none", b"none") == [b"none"]


@pytest.mark.parametrize("page", [1, 2, 3, 4, 1000])
def test_a_log_is_read_a_page_at_a_time(log: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    monkeypatch.setattr(archive, "_PAGE", page)
    reader = Archive(log)

    def indexes(**which: int) -> list[int]:
        return [each.entry.index for each in islice(reader.decisions(**which), 20)]

    assert indexes() == [0, 1, 3, 4, 6]
    assert indexes(start=1) == [1, 3, 4, 6]
    assert indexes(since_ms=NOW_MS + 3000) == [3, 4, 6]
    assert [reader.start_of_last(count) for count in range(-1, 8)] == [7, 7, 6, 4, 3, 1, 0, 0, 0]


def test_an_entry_is_asked_for_by_its_index(log: sqlite3.Connection) -> None:
    reader = Archive(log)
    for index in (-1, 7):
        with pytest.raises(ConfigError, match=f"no entry {index}; it ends at 6"):
            reader.entry(index)
    with pytest.raises(ConfigError, match="entry 2 is no decision, it is of kind 'effect'"):
        reader.entry(2)
    assert [reader.entry(index).entry.index for index in (0, 1, 3)] == [0, 1, 3]


def test_decisions_about_subjects_are_those_that_say_so(log: sqlite3.Connection) -> None:
    reader = Archive(log)
    assert [each.entry.index for each in reader.about([RECORD])] == [0, 4]
    assert [each.entry.index for each in reader.about([ANOTHER, RECORD])] == [0, 1, 4]
    assert list(reader.about([])) == list(reader.about([bytes(32)])) == []


def test_a_request_that_was_watched() -> None:
    data = (
        b'{"action":"record.send","organization":"a","purpose":"p","dataset":"d","kind":"raw","role":"r",'
        b'"fields":["x"],"labels":{"k":3}}'
    )
    expected = Request("record.send", "a", "r", "p", "d", "raw", frozenset({"x"}), {"k": 3, "time_ms": 5})
    assert read_request(data, 5) == expected


@pytest.mark.parametrize("data", [b"no JSON", b"[]", b"3", b'{"labels":[]}', b'{"what":1}', b'{"fields":3}'])
def test_what_is_no_request(data: bytes) -> None:
    with pytest.raises(AuditBroken, match="as a request is none"):
        read_request(data, 5)


# Watching.


@pytest.mark.parametrize(
    ("wanted", "takes"),
    [
        (Wanted(), "adn"),
        (Wanted(denied=True), "dn"),
        (Wanted("record.send"), "ad"),
        (Wanted("news.send"), "n"),
        (Wanted("record.send", denied=True), "d"),
        (Wanted(organization=PEER), "ad"),
        (Wanted(organization=OTHER), "n"),
        (Wanted("record.send", OTHER), ""),
    ],
)
def test_which_decisions_a_watcher_is_told(wanted: Wanted, takes: str) -> None:
    entries = {
        "a": entry(),
        "d": entry(decision="deny"),
        "n": replace(entry(decision="deny"), action="news.send", peer=OTHER),
        "e": entry("effect"),
        "f": entry("effect", decision="deny"),
    }
    found = [name for name, each in entries.items() if wanted.takes(StoredEntry(0, b"", 0, each, b""))]
    assert "".join(found) == takes


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    ("at", "end", "told", "dropped", "more"),
    [(2, 5, [3, 4], 0, True), (1, 7, [4, 6], 3, False), (5, 7, [6], 0, False), (7, 7, [], 0, False)],
)
def test_a_watcher_goes_on_where_it_was_or_skips(
    log: sqlite3.Connection, at: int, end: int, told: list[int], dropped: int, more: bool
) -> None:
    on, sight, left = watching._next(log, at, Wanted(), WatchLimits(behind=5, page=3))
    assert (on, [each.entry.index for each in sight.decisions], sight.dropped, left) == (end, told, dropped, more)


def test_a_decision_is_told_with_its_request_where_it_was_kept(log: sqlite3.Connection) -> None:
    def requests() -> list[bytes]:
        return [each.request for each in watching._next(log, 0, Wanted(), WatchLimits())[1].decisions]

    assert requests() == [b""] * 5
    put_shape(log, NAMED, b"{}", PEER)
    assert requests() == [b"", b"", b"", b"", b"{}"]


class Reader:
    """Stands for a database, in the thread of the test: time stands still while it reads."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def read(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        return work(self._connection)


def with_watching(connection: sqlite3.Connection, limits: WatchLimits, main: Callable[[Watching], Any]) -> None:
    async def outer() -> None:
        with trio.fail_after(1000):
            await main(Watching(cast(Any, Reader(connection)), limits))

    trio.run(outer, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.invariant("S7")
def test_when_a_watcher_is_told(log: sqlite3.Connection) -> None:
    """At once of a decision and of what it missed; after three seconds that there is nothing."""

    async def main(watching: Watching) -> None:
        began = trio.current_time()
        sights = watching.follow(Wanted())

        async def following() -> tuple[float, list[int], int]:
            sight = await anext(sights)
            return trio.current_time() - began, [each.entry.index for each in sight.decisions], sight.dropped

        assert await following() == (0, [], 0)
        assert await following() == (3, [], 0)
        assert await following() == (6, [], 0)
        write(log, entry())
        assert await following() == (7, [7], 0)
        write(log, *[entry()] * 4)
        assert await following() == (8, [8, 9, 10], 0)
        assert await following() == (8, [11], 0), "the next page without a pause"
        write(log, *[entry("effect")] * 6)
        assert await following() == (9, [], 3)
        assert await following() == (12, [], 0)
        await sights.aclose()

    with_watching(log, WatchLimits(behind=5, page=3, pause_s=1, quiet_s=3), main)


@pytest.mark.invariant("S7")
def test_so_many_watch_and_no_more(log: sqlite3.Connection) -> None:
    async def main(watching: Watching) -> None:
        async def begun() -> AsyncGenerator[Sight, None]:
            sights = watching.follow(Wanted())
            assert await anext(sights) == Sight()
            return sights

        for _ in range(2):
            first, second = await begun(), await begun()
            with pytest.raises(Busy, match="2 watch already"):
                await begun()
            await first.aclose()
            third = await begun()
            with pytest.raises(Busy, match="2 watch already"):
                await begun()
            await second.aclose()
            await third.aclose()

    with_watching(log, WatchLimits(watchers=2), main)


def test_what_is_seen_is_the_entry_of_the_log(log: sqlite3.Connection) -> None:
    _, sight, _ = watching._next(log, 6, Wanted(), WatchLimits())
    assert sight.decisions == (Seen(audit.entries(log, start=6, limit=1)[0], b""),)
