"""The outbox delivers what the journal holds until it is acknowledged, and nothing twice that was."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from comity.errors import EnvelopeMalformed, LinkClosed, SignatureInvalid
from comity.v1.task_pb2 import Receipt
from comity_node.runtime.messenger import Messenger, accepted
from comity_node.runtime.outbox import Outbox
from comity_node.storage import journal
from comity_node.storage.database import Database, inline, open_database

PEER, OTHER = "peer.example", "other.example"
START_MS = 1_700_000_000_000
BUSY = Receipt(status=Receipt.STATUS_BUSY, reason="later", retry_after_ms=700)
REFUSED = Receipt(status=Receipt.STATUS_REFUSED, code="policy_denied", reason="no", rules=["never"])

Answer = Receipt | Exception


class World:
    """An outbox over a real database under a virtual clock; the messenger answers as the test says."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.linked = True
        self.answers: list[Answer] = []
        self.asked: list[tuple[float, str, str, bytes]] = []
        self.ended: list[tuple[str, Receipt | None]] = []
        self.started_at = trio.current_time()
        self.outbox = self.make()

    def make(self) -> Outbox:
        return Outbox(
            self.database,
            self,  # type: ignore[arg-type]  # what it uses of a Messenger is below
            now_ms=self.now_ms,
            random=Random(1),
            outcome=self.outcome,
        )

    def now_ms(self) -> int:
        return START_MS + round((trio.current_time() - self.started_at) * 1000)

    def reachable(self, organization: str) -> bool:
        return self.linked

    async def ask(self, organization: str, kind: str, body: bytes, *, deadline_s: float = 30.0) -> Receipt:
        await trio.lowlevel.checkpoint()
        self.asked.append((trio.current_time() - self.started_at, organization, kind, body))
        answer = self.answers.pop(0) if self.answers else accepted()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def outcome(self, item: journal.OutboxRow, receipt: Receipt | None) -> None:
        await trio.lowlevel.checkpoint()
        self.ended.append((item.dedup_key, receipt))

    async def put(self, key: str, *, organization: str = PEER, lifetime_ms: int = 600_000, **changes: Any) -> None:
        row = journal.OutboxRow(
            message_id=key.encode().ljust(16),
            organization=organization,
            kind="records",
            body=key.encode(),
            dedup_key=key,
            created_ms=self.now_ms(),
            expires_ms=self.now_ms() + lifetime_ms,
            **changes,
        )
        await self.database.transact(lambda c: journal.enqueue(c, row))
        self.outbox.kick(organization)

    async def states(self) -> dict[str, tuple[str, int]]:
        def read(connection: sqlite3.Connection) -> dict[str, tuple[str, int]]:
            rows = connection.execute("SELECT dedup_key, state, attempts FROM outbox")
            return {key: (state, attempts) for key, state, attempts in rows}

        return await self.database.read(read)

    def times(self) -> list[float]:
        return [round(at, 3) for at, *_ in self.asked]


def with_world(path: Path, main: Callable[[World, trio.Nursery], Awaitable[None]]) -> None:
    async def outer() -> None:
        async with open_database(path / "node.db", offload=inline) as database, trio.open_nursery() as nursery:
            world = World(database)
            await main(world, nursery)
            nursery.cancel_scope.cancel()

    trio.run(outer, clock=MockClock(autojump_threshold=0))


def test_the_messenger_has_what_the_world_stands_in_for() -> None:
    assert set(vars(Messenger)) >= {"reachable", "ask"}


@pytest.mark.invariant("R1")
def test_a_message_is_delivered_and_closed(tmp_path: Path) -> None:
    async def main(world: World, nursery: trio.Nursery) -> None:
        await nursery.start(world.outbox.run)
        await world.put("one")
        await world.put("two", organization=OTHER)
        await trio.sleep(1)
        assert [asked[1:] for asked in world.asked] == [(PEER, "records", b"one"), (OTHER, "records", b"two")]
        assert await world.states() == {"one": ("done", 0), "two": ("done", 0)}
        assert [(key, receipt.status if receipt else None) for key, receipt in world.ended] == [
            ("one", Receipt.STATUS_ACCEPTED),
            ("two", Receipt.STATUS_ACCEPTED),
        ]

    with_world(tmp_path, main)


@pytest.mark.invariant("R2")
def test_what_was_acknowledged_is_not_sent_again(tmp_path: Path) -> None:
    async def main(world: World, nursery: trio.Nursery) -> None:
        await nursery.start(world.outbox.run)
        await world.put("one")
        await trio.sleep(1)
        await world.put("one")
        await trio.sleep(60)
        assert len(world.asked) == 1
        assert len(world.ended) == 1

    with_world(tmp_path, main)


@pytest.mark.invariant("R1")
@pytest.mark.parametrize(
    "answer",
    [LinkClosed("gone"), EnvelopeMalformed("noise"), SignatureInvalid("not its key"), BUSY],
    ids=lambda a: str(a)[:6],
)
def test_a_message_stays_until_it_is_acknowledged_and_is_tried_later_and_later(tmp_path: Path, answer: Answer) -> None:
    async def main(world: World, nursery: trio.Nursery) -> None:
        world.answers = [answer] * 8
        await nursery.start(world.outbox.run)
        await world.put("one")
        await trio.sleep(120)
        gaps = [later - earlier for earlier, later in pairwise(world.times())]
        assert len(world.asked) == 9
        assert all(later > earlier for earlier, later in pairwise(gaps[3:7])), gaps
        assert max(gaps) <= 15.1, "at most the longest back-off"
        if isinstance(answer, Receipt):
            assert min(gaps) >= 0.7, "not before the peer asked for it"
        assert await world.states() == {"one": ("done", 8)}
        assert [key for key, _ in world.ended] == ["one"]

    with_world(tmp_path, main)


@pytest.mark.invariant("R3")
def test_a_peer_that_is_away_costs_others_nothing_and_gets_its_messages_when_it_is_back(tmp_path: Path) -> None:
    async def main(world: World, nursery: trio.Nursery) -> None:
        reads = 0
        read = world.database.read

        async def counting(function: Callable[[sqlite3.Connection], Any]) -> Any:
            nonlocal reads
            reads += 1
            return await read(function)

        world.linked = False
        await nursery.start(world.outbox.run)
        await world.put("one")
        world.database.read = counting  # type: ignore[method-assign]
        await trio.sleep(60)
        assert not world.asked
        assert reads <= 120, "it waits for news instead of asking the database all the time"
        world.linked = True
        world.outbox.kick(PEER)
        await trio.sleep(0.1)
        assert [key for key, _ in world.ended] == ["one"]

    with_world(tmp_path, main)


@pytest.mark.invariant("R1")
def test_what_an_earlier_run_left_is_delivered(tmp_path: Path) -> None:
    async def first(world: World, nursery: trio.Nursery) -> None:
        await world.put("one", priority=0)
        await world.put("two", priority=1)
        await world.put("three", organization=OTHER)

    async def second(world: World, nursery: trio.Nursery) -> None:
        await nursery.start(world.outbox.run)
        await trio.sleep(1)
        assert sorted(body for *_, body in world.asked) == [b"one", b"three", b"two"]

    with_world(tmp_path, first)
    with_world(tmp_path, second)


def test_what_is_refused_is_over_and_its_owner_hears_why(tmp_path: Path) -> None:
    async def main(world: World, nursery: trio.Nursery) -> None:
        world.answers = [REFUSED]
        await nursery.start(world.outbox.run)
        await world.put("one")
        await trio.sleep(60)
        assert len(world.asked) == 1
        assert world.ended == [("one", REFUSED)]
        assert await world.states() == {"one": ("failed", 0)}

    with_world(tmp_path, main)


@pytest.mark.invariant("R3")
def test_what_expires_is_over_and_its_owner_hears_it(tmp_path: Path) -> None:
    async def main(world: World, nursery: trio.Nursery) -> None:
        world.answers = [LinkClosed("gone")] * 1000
        await nursery.start(world.outbox.run)
        await world.put("one", lifetime_ms=5_000)
        await trio.sleep(30)
        assert world.ended == [("one", None)]
        assert (await world.states())["one"][0] == "failed"
        asked = len(world.asked)
        await trio.sleep(60)
        assert len(world.asked) == asked
        assert all(at < 5 for at in world.times())

    with_world(tmp_path, main)


@pytest.mark.invariant("R3")
def test_what_expires_while_its_recipient_is_away_is_over_too(tmp_path: Path) -> None:
    async def main(world: World, nursery: trio.Nursery) -> None:
        world.linked = False
        await nursery.start(world.outbox.run)
        for number in range(100):
            await world.put(f"{number:03}", lifetime_ms=5_000)
        await trio.sleep(4)
        assert not world.ended
        await trio.sleep(10)
        assert sorted(world.ended, key=lambda one: one[0]) == [(f"{number:03}", None) for number in range(100)]
        assert not world.asked

    with_world(tmp_path, main)


@pytest.mark.invariant("R2")
@pytest.mark.parametrize("last", [accepted(), LinkClosed("gone")])
def test_what_expires_on_its_way_ends_once(tmp_path: Path, last: Answer) -> None:
    async def main(world: World, nursery: trio.Nursery) -> None:
        async def slow(organization: str, kind: str, body: bytes, *, deadline_s: float = 30.0) -> Receipt:
            await trio.sleep(20)
            if isinstance(last, Exception):
                raise last
            return last

        world.ask = slow  # type: ignore[method-assign]
        await nursery.start(world.outbox.run)
        await world.put("one", lifetime_ms=5_000)
        await trio.sleep(15)
        assert not world.ended, "it may still arrive"
        await trio.sleep(15)
        assert world.ended == [("one", last if isinstance(last, Receipt) else None)]
        await trio.sleep(60)
        assert len(world.ended) == 1

    with_world(tmp_path, main)


@pytest.mark.invariant("S7")
def test_a_peer_cannot_put_a_message_off_for_ever(tmp_path: Path) -> None:
    async def main(world: World, nursery: trio.Nursery) -> None:
        world.answers = [Receipt(status=Receipt.STATUS_BUSY, retry_after_ms=2**32 - 1)]
        await nursery.start(world.outbox.run)
        await world.put("one", lifetime_ms=3_600_000)
        await trio.sleep(700)
        assert len(world.asked) == 2
        assert await world.states() == {"one": ("done", 1)}

    with_world(tmp_path, main)


@pytest.mark.invariant("R4")
def test_one_peer_has_a_bounded_number_of_messages_under_way(tmp_path: Path) -> None:
    async def main(world: World, nursery: trio.Nursery) -> None:
        under_way, most = 0, 0

        async def slow(organization: str, kind: str, body: bytes, *, deadline_s: float = 30.0) -> Receipt:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await trio.sleep(1)
            under_way -= 1
            return accepted()

        world.ask = slow  # type: ignore[method-assign]
        for number in range(50):
            await world.put(f"{number:02}")
        await nursery.start(world.outbox.run)
        await trio.sleep(60)
        assert len(world.ended) == 50
        assert most == 16

    with_world(tmp_path, main)
