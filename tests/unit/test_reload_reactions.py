"""Transfers and tunnels that are under way when the policy changes: cut if it lets them be no more, and only then."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from comity.errors import AgreementStopped, LinkClosed, PeerRefused, PolicyDenied
from comity.trust import Attested
from comity_node.admission import Gate
from comity_node.bulk import sender as sending
from comity_node.policy.loader import loads_policy
from comity_node.protocol.freshness import Freshness
from comity_node.storage import audit
from comity_node.storage.database import Database, open_database
from comity_node.tunnels import TunnelManager
from kit.bulk import Pair, Party, Tap, policy
from kit.consortium import NOW_MS, attested, consortium, names
from kit.lab import run, until

ROWS = 40_000
FORBID = "  - {id: withdrawn, effect: forbid, action: %s, purpose: [screening]}\n"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(sending, "_LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(sending, "_LAST_WORDS_S", 0.05)


class Halfway(Tap):
    """A stream on which a transfer stops in its middle, and waits for somebody to see it."""

    def __init__(self, stream: Any, there: trio.Event) -> None:
        super().__init__(stream)
        self.there, self.chunks = there, 0

    async def send(self, data: bytes) -> None:
        await super().send(data)
        self.chunks += len(data) > 60_000
        if self.chunks == 3:
            self.there.set()
            await trio.sleep_forever()


async def change(party: Party, text: str) -> None:
    await party.parts.gate.replace(loads_policy(text))
    await party.service.look_again()


def under_way(tmp_path: Path, test: Callable[[Pair, Callable[[], BaseException | None]], Awaitable[None]]) -> None:
    """Run `test` with a transfer that stands still in its middle; it is given how that has ended."""

    async def main(nursery: trio.Nursery) -> None:
        pair, there, over = Pair(tmp_path), trio.Event(), trio.Event()
        ended: list[BaseException | None] = []
        await pair.start(nursery)
        pair.at_sender = lambda stream: Halfway(stream, there)

        async def send() -> None:
            try:
                await pair.send(pair.sender.write(ROWS))
            except (PolicyDenied, PeerRefused, AgreementStopped, LinkClosed) as error:
                ended.append(error)
            over.set()

        nursery.start_soon(send)
        await there.wait()

        def end() -> BaseException | None:
            return ended[0] if ended else None

        with trio.fail_after(10):
            await test(pair, end)
            await over.wait()
        pair.at_sender = lambda stream: stream
        for party in (pair.sender, pair.receiver):
            await change(party, policy(party.name))
        (row,) = await pair.sender.rows()
        done = await pair.sender.service.resume(row.transfer_id.hex(), lambda progress: None)
        assert done.state == "done", "a later policy lets it go on where it stopped"

    run(main)


@pytest.mark.invariant("S1")
def test_a_transfer_that_may_not_leave_any_more_is_cut_at_once(tmp_path: Path) -> None:
    async def test(pair: Pair, end: Callable[[], BaseException | None]) -> None:
        await change(pair.sender, policy(pair.sender.name, more=FORBID % "bulk.receive"))
        await wait_all_tasks_blocked()
        assert end() is None, "what is forbidden is something else"
        await change(pair.sender, policy(pair.sender.name, more=FORBID % "bulk.send"))

        async def ended() -> bool:
            return isinstance(end(), PolicyDenied)

        await until(ended, "it is cut")
        (row,) = await pair.sender.rows()
        assert row.state == "open"
        entries = await pair.sender.database.read(lambda c: audit.entries(c, start=0, limit=100))
        assert [(one.entry.action, one.entry.decision) for one in entries][-1] == ("bulk.send", "deny")

    under_way(tmp_path, test)


@pytest.mark.invariant("S1")
def test_a_transfer_that_may_not_come_in_any_more_is_cut_at_once(tmp_path: Path) -> None:
    async def test(pair: Pair, end: Callable[[], BaseException | None]) -> None:
        await change(pair.receiver, policy(pair.receiver.name, more=FORBID % "bulk.receive"))

        async def stopped() -> bool:
            return not any(one.running for one in await pair.receiver.service.list())

        await until(stopped, "nothing is taken in")

        async def ended() -> bool:
            error = end()
            return isinstance(error, PeerRefused) and error.remote_code == "policy_denied"

        await until(ended, "the sender knows why")

    under_way(tmp_path, test)


# -- tunnels ---------------------------------------------------------------------------------------------------------

ME, PEER = names(2)
NODES = consortium(ME, PEER).nodes
TUNNELS = (
    "version: 1\norganization: {me}\nrules:\n"
    "  - {{id: open, effect: allow, action: tunnel.open, with: {{organization: {peer}}}}}\n"
    "  - {{id: serve, effect: allow, action: tunnel.serve, with: {{organization: {peer}}}}}\n"
)


class Raw:
    """A stream on which nothing comes."""

    remote_peer = ""

    def __init__(self) -> None:
        self.was_reset = trio.Event()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await self.was_reset.wait()
        raise LinkClosed("reset")

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        self.was_reset.set()

    async def aclose(self) -> None:
        self.reset()


class OneStream:
    """Links that open the same stream for every tunnel."""

    def __init__(self, stream: Raw) -> None:
        self.stream = stream

    def on_tunnel(self, handler: object) -> None:
        self.handler = handler

    async def open_tunnel(self, peer_id: str, name: str) -> Raw:
        await trio.lowlevel.checkpoint()
        return self.stream

    def peer(self, organization: str) -> Attested:
        return attested(NODES[organization])


def with_tunnels(path: Path, test: Callable[[TunnelManager, Gate, Database, Raw], Awaitable[None]]) -> None:
    async def main(nursery: trio.Nursery) -> None:
        async with open_database(path / "node.db") as database:
            gate = Gate(
                identity=NODES[ME],
                policy=loads_policy(TUNNELS.format(me=ME, peer=PEER)),
                database=database,
                freshness=Freshness(NODES[ME].peer_id),
                now_ms=lambda: NOW_MS,
                random_bytes=random.randbytes,
            )
            links: Any = OneStream(Raw())
            async with trio.open_nursery() as inner:
                manager = TunnelManager(gate=gate, links=links, peers=links, database=database, nursery=inner)
                with trio.fail_after(20):
                    await test(manager, gate, database, links.stream)
                inner.cancel_scope.cancel()

    run(main)


def without(action: str) -> str:
    return TUNNELS.format(me=ME, peer=PEER) + f"  - {{id: withdrawn, effect: forbid, action: {action}}}\n"


@pytest.mark.invariant("S1")
def test_a_tunnel_that_is_open_is_cut_when_the_policy_lets_it_be_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, ended = trio.Event(), trio.Event()

    async def handle(self: object, sender: Attested, stream: Raw) -> None:
        serving.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async def test(manager: TunnelManager, gate: Gate, database: Database, stream: Raw) -> None:
        await manager.serve("flower", "127.0.0.1:9092", "flower-fleet")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.serve_peer, attested(NODES[PEER]), "flower", stream)
            await serving.wait()
            await gate.replace(loads_policy(without("tunnel.open")))
            await manager.look_again()
            assert not ended.is_set(), "what is forbidden is another direction"
            await gate.replace(loads_policy(without("tunnel.serve")))
            await manager.look_again()
            await ended.wait()
        assert stream.was_reset.is_set()
        entries = await database.read(lambda c: audit.entries(c, start=0, limit=100))
        assert [(one.entry.action, one.entry.decision) for one in entries][-1] == ("tunnel.serve", "deny")

    monkeypatch.setattr("comity_node.tunnel.FleetExit.handle", handle)
    with_tunnels(tmp_path, test)


@pytest.mark.invariant("S1")
def test_a_tunnel_to_a_peer_is_cut_and_the_next_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    async def run_entry(self: Any, *, task_status: Any) -> None:
        task_status.started(1)
        opened.append(await self._open_stream())
        await trio.sleep_forever()

    async def test(manager: TunnelManager, gate: Gate, database: Database, stream: Raw) -> None:
        await manager.open("flower", PEER, 0, ())

        async def is_open() -> bool:
            return bool(opened)

        await until(is_open, "a stream is open")
        await gate.replace(loads_policy(without("tunnel.serve")))
        await manager.look_again()
        assert not stream.was_reset.is_set()
        await gate.replace(loads_policy(without("tunnel.open")))
        await manager.look_again()
        assert stream.was_reset.is_set()
        with pytest.raises(PolicyDenied):
            await manager.open("flower", PEER, 0, ())

    monkeypatch.setattr("comity_node.tunnel.FleetEntry.run", run_entry)
    with_tunnels(tmp_path, test)
