"""Tokens and journeys in the database: what is kept, and what is forgotten."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from comity.digest import sha256
from comity.envelope import Unsigned
from comity.errors import UnexpectedMessage
from comity.signed import Batch
from comity.signing import PrivateKey
from comity.v1.flow_pb2 import FlowHop
from comity_node.protocol.token import Outcome, Token
from comity_node.protocol.token_wire import HOP_KIND, content_digest, of_bytes, to_bytes
from comity_node.storage import journeys, schema, tokens
from comity_node.storage.journeys import EndRow
from comity_node.storage.tokens import HeldRow, OutRow

AGREEMENT = bytes(32)
KEY = PrivateKey.generate()
HOME, OTHER = "mercy.example", "hope.example"


def token(number: int = 0, attempt: int = 1, sequence: int = 1) -> Token:
    return Token(
        number.to_bytes(16, "big"), AGREEMENT, HOME, "peer", attempt, sequence, b"{}", b'{"a":1}', (b"hop", b"two"),
        9_000, Outcome.DROPPED, "why",
    )  # fmt: skip


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as opened:
        opened.execute("PRAGMA foreign_keys = ON")
        schema.prepare(opened, "node.db")
        yield opened


def test_a_token_comes_back_from_its_bytes() -> None:
    assert of_bytes(to_bytes(token()), AGREEMENT) == token()
    for wrong in (b"\xff", to_bytes(token()).replace(b"dropped", b"dropper")):
        with pytest.raises(UnexpectedMessage):
            of_bytes(wrong, AGREEMENT)


def test_the_digest_of_a_token_tells_its_parts_from_each_other() -> None:
    parts = [
        token(),
        replace(token(), cursor=b'{}{"a":1}', state=b""),
        replace(token(), reason="", outcome=Outcome.DONE),
    ]
    assert len({content_digest(one) for one in parts}) == 3
    assert content_digest(token(7, 3, 2)) == content_digest(token()), "what it says, not which one it is"


@pytest.mark.invariant("R2")
def test_the_last_visit_of_a_task_is_remembered(connection: sqlite3.Connection) -> None:
    for attempt, sequence in ((1, 1), (1, 3), (1, 2), (2, 1), (1, 9)):
        tokens.hold(connection, [HeldRow(token(0, attempt, sequence), OTHER)])
    assert tokens.seen(connection, 0) == {(HOME, bytes(16)): (2, 1, 9_000)}
    assert len(tokens.all_held(connection)) == 5
    tokens.hold(connection, [HeldRow(replace(token(0, 2, 1), state=b"{}"), "evil.example")])
    assert HeldRow(token(0, 2, 1), OTHER) in tokens.all_held(connection), "what is in custody stays as it is"
    assert tokens.count_held(connection) == {HOME: 5}
    tokens.release_held(connection, [row.token.key for row in tokens.all_held(connection)])
    assert not tokens.all_held(connection)
    assert tokens.seen(connection, 9_000) == {}
    assert (tokens.forget_seen(connection, 8_999), tokens.forget_seen(connection, 9_000)) == (0, 1)


def test_what_passed_takes_the_place_of_what_is_to_leave(connection: sqlite3.Connection) -> None:
    one, gone = token(1), token(2)
    passed = replace(one, hops=(*one.hops, b"three"))
    tokens.put_out(connection, [OutRow(one, OTHER, "answer")])
    tokens.set_passed(connection, [(one.key, passed), (gone.key, gone)])
    assert tokens.all_out(connection) == [OutRow(passed, OTHER, "answer", True)]
    tokens.set_passed(connection, [(one.key, None)])
    assert not tokens.all_out(connection)[0].passed
    tokens.put_out(connection, [OutRow(one, HOME, "home")])
    assert tokens.all_out(connection) == [OutRow(one, HOME, "home")]
    tokens.release_out_of(connection, HOME, [one.task_id])
    assert not tokens.all_out(connection)


def test_chains_of_so_many_nodes_are_kept(connection: sqlite3.Connection) -> None:
    keys = [sha256(number.to_bytes(4, "big")) for number in range(4_200)]
    for at_ms, some in enumerate((keys[:150], keys[150:])):
        tokens.put_signers(connection, {key: [b"chain", b"root"] for key in some}, at_ms)
    kept = tokens.all_signers(connection)
    assert len(kept) == 4_096
    assert connection.execute("SELECT count(*) FROM hop_signers").fetchone() == (4_096,)
    assert kept[keys[-1]] == (b"chain", b"root")


@pytest.mark.invariant("R2")
def test_the_first_end_of_a_task_counts(connection: sqlite3.Connection) -> None:
    assert journeys.open_journeys(connection, [token(1), token(2), token(1)], 5) == [True, True, False]
    gone = replace(token(1), attempt=2, sequence=3, cursor=b"later")
    journeys.sent(connection, [(gone, OTHER)], 6)
    assert (gone, OTHER) in journeys.open_rows(connection)
    assert dict((one.task_id, (one.attempt, by)) for one, by in journeys.open_rows(connection)) == {
        token(1).task_id: (2, OTHER),
        token(2).task_id: (1, ""),
    }
    assert journeys.count_journeys(connection, AGREEMENT) == {("", OTHER): 1, ("", ""): 1}
    done = EndRow(token(1).task_id, AGREEMENT, "done", b'{"a":2}', (b"one",), 2, "", 7)
    late = replace(done, ending="failed", reason="late")
    assert journeys.end(connection, [done, late]) == [done]
    journeys.checkpoint(connection, [token(1)], 8)
    assert journeys.unheard(connection) == [done]
    journeys.heard(connection, [done.task_id])
    assert journeys.unheard(connection) == []
    assert journeys.to_batch(connection, AGREEMENT, limit=10) == [(done.task_id, b'{"a":2}', (b"one",))]
    journeys.batched(connection, [(done.task_id, b"r" * 16)])
    assert journeys.count_to_batch(connection, AGREEMENT) == 0
    assert journeys.journey_of_record(connection, b"r" * 16) == done.task_id
    assert journeys.journey_digests(connection, [b"r" * 16, b"s" * 16]) == {b"r" * 16: sha256(b"one")}
    assert [one.ending for one in journeys.list_journeys(connection, AGREEMENT)] == ["done", ""]


def chain(sequence: int, count: int, previous: bytes = b"") -> tuple[bytes, ...]:
    """So many signed hops, each of which commits to the one before."""
    hops: list[bytes] = []
    for place in range(sequence, sequence + count):
        hop = FlowHop(sequence=place, previous=sha256(hops[-1] if hops else previous) if hops or previous else b"")
        hops += Batch([Unsigned(HOP_KIND, hop.SerializeToString())]).sign(KEY)
    return tuple(hops)


def test_the_whole_way_of_a_task_is_at_home_until_it_is_forgotten(connection: sqlite3.Connection) -> None:
    journeys.open_journeys(connection, [token(1)], 5)
    first = chain(1, 2)
    second = chain(3, 2, first[-1])
    last = chain(5, 2, second[-1])
    journeys.keep_ways(connection, [replace(token(1), sequence=3, hops=first)])
    journeys.keep_ways(connection, [replace(token(1), sequence=3, hops=(b"x",))])
    journeys.keep_ways(connection, [replace(token(1), sequence=5, hops=second)])
    journeys.checkpoint(connection, [replace(token(1), sequence=4, hops=second)], 6)
    assert journeys.way_of(connection, token(1).task_id) == (*first, *second), "what leaves once more is there once"
    journeys.end(connection, [EndRow(token(1).task_id, AGREEMENT, "done", b"{}", last, 1, "", 7)])
    assert journeys.way_of(connection, token(1).task_id) == (*first, *second, *last)
    assert journeys.forget_journeys(connection, 100) == 0, "its end was not told"
    journeys.heard(connection, [token(1).task_id])
    assert journeys.forget_journeys(connection, 7) == 0
    assert journeys.forget_journeys(connection, 8) == 1
    assert connection.execute("SELECT count(*) FROM journey_ways").fetchone() == (0,)
    assert journeys.way_of(connection, token(1).task_id) == ()


def test_the_way_of_an_attempt_that_was_overtaken_and_came_first_is_its_own(connection: sqlite3.Connection) -> None:
    journeys.open_journeys(connection, [token(1)], 5)
    first = chain(1, 2)
    other, late = chain(3, 2, first[-1]), chain(3, 3, first[-1])
    journeys.keep_ways(connection, [replace(token(1), sequence=3, hops=first)])
    journeys.keep_ways(connection, [replace(token(1), attempt=2, sequence=5, hops=other)])
    journeys.end(connection, [EndRow(token(1).task_id, AGREEMENT, "done", b"{}", late, 1, "", 7)])
    assert journeys.way_of(connection, token(1).task_id) == (*first, *late)
