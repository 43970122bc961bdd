"""The node's tunnels: how many may be open, and what counts as open."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from comity.errors import ConfigError, PolicyDenied
from comity_node.admission import Gate
from comity_node.policy.loader import loads_policy
from comity_node.protocol.freshness import Freshness
from comity_node.storage.database import open_database
from comity_node.tunnel import StartedStatus
from comity_node.tunnels import TunnelManager
from kit.consortium import NOW_MS, consortium, names
from kit.lab import policy

ME, PEER = names(2)
NODES = consortium(ME, PEER).nodes


class NoLinks:
    def on_tunnel(self, handler: object) -> None:
        self.handler = handler


@dataclass
class World:
    manager: TunnelManager
    #: Where entries run: cancelling it ends them.
    scope: trio.CancelScope


def with_manager(path: Path, main: Callable[[World], Awaitable[None]]) -> None:
    text = policy(ME) + (
        f"\n  - {{id: tunnels, effect: allow, action: tunnel.open, with: {{organization: {PEER}}},"
        " obligations: {onward: never}}\n"
    )

    async def outer() -> None:
        async with open_database(path / "node.db") as database, trio.open_nursery() as nursery:
            gate = Gate(
                identity=NODES[ME],
                policy=loads_policy(text),
                database=database,
                freshness=Freshness(NODES[ME].peer_id),
                now_ms=lambda: NOW_MS,
                random_bytes=random.randbytes,
            )
            manager = TunnelManager(
                gate=gate,
                links=NoLinks(),  # type: ignore[arg-type]
                peers=None,  # type: ignore[arg-type]  # nothing connects to the entries here
                database=database,
                nursery=nursery,
            )
            with trio.fail_after(60):
                await main(World(manager, nursery.cancel_scope))
            nursery.cancel_scope.cancel()

    trio.run(outer)


@pytest.mark.invariant("S7")
def test_tunnels_that_fail_to_open_use_nothing_up(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        taken = await world.manager.open("flower", PEER, 0, ())
        for _ in range(20):
            with pytest.raises(ConfigError, match="cannot listen"):
                await world.manager.open("flower", PEER, taken, ())
        for _ in range(5):
            with pytest.raises(PolicyDenied):
                await world.manager.open("flower", "stranger.example", 0, ())
        for port in (-1, 65536, 2**32):
            with pytest.raises(ConfigError, match="is no port"):
                await world.manager.open("flower", PEER, port, ())
        assert await world.manager.open("flower", PEER, 0, ()) not in (0, taken)

    with_manager(tmp_path, main)


@pytest.mark.invariant("S7")
def test_tunnels_are_bounded_also_when_they_are_opened_at_once(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        ports: list[int] = []
        refused: list[str] = []

        async def open_one() -> None:
            try:
                ports.append(await world.manager.open("flower", PEER, 0, ()))
            except ConfigError as error:
                refused.append(str(error))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(open_one)
        assert len(set(ports)) == 16
        assert refused == ["16 tunnels are open already"] * 4

    with_manager(tmp_path, main)


def test_a_tunnel_that_ends_gives_its_place_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = trio.Event()

    async def run(self: object, *, task_status: StartedStatus) -> None:
        task_status.started(1)
        await ends.wait()

    async def main(world: World) -> None:
        for _ in range(16):
            await world.manager.open("flower", PEER, 0, ())
        with pytest.raises(ConfigError, match="are open already"):
            await world.manager.open("flower", PEER, 0, ())
        ends.set()
        await wait_all_tasks_blocked()
        assert await world.manager.open("flower", PEER, 0, ()) == 1

    monkeypatch.setattr("comity_node.tunnel.FleetEntry.run", run)
    with_manager(tmp_path, main)
