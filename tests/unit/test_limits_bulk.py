"""Limits of bulk transfers that no other test would miss."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from comity.errors import Busy, LinkClosed
from kit.bulk import LIMITS, Pair, Tap
from kit.lab import now_ms

pytestmark = pytest.mark.invariant("S7")


def run(main: Callable[[trio.Nursery], Awaitable[None]]) -> None:
    async def whole() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                await main(nursery)
                nursery.cancel_scope.cancel()

    trio.run(whole)


def test_so_many_transfers_are_sent_and_received_at_a_time_whoever_they_are_of(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        for party in pair.parties.values():
            party.limits = replace(LIMITS, transfers=2, transfers_per_organization=8, retry_s=0.0)
        await pair.start(nursery)
        table = pair.sender.write(10)
        sending: Any = pair.sender.service._sender._running
        for number, name in enumerate(("one.example", "two.example")):
            sending[bytes([number])] = SimpleNamespace(row=SimpleNamespace(organization=name))
        with pytest.raises(Busy, match="as many transfers as may"):
            await pair.send(table)
        sending.clear()
        receiving: Any = pair.receiver.service._receiver._running
        for number, name in enumerate(("one.example", "two.example")):
            receiving[bytes([number])] = SimpleNamespace(offer=SimpleNamespace(sender=name))
        with pytest.raises(Busy, match="as many transfers as may"):
            await pair.send(table)
        receiving.clear()
        assert (await pair.send(table)).state == "done"

    run(main)


def test_a_sender_gives_up_when_it_gets_no_further(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Pair(tmp_path)
        pair.sender.limits = replace(LIMITS, retry_s=1.0)
        pair.at_sender = lambda stream: Tap(stream, breaks_after=0)
        await pair.start(nursery)
        began = trio.current_time()
        with pytest.raises(LinkClosed):
            await pair.send(pair.sender.write(10))
        assert trio.current_time() - began < 10
        assert pair.opened >= 2

    run(main)


def test_a_transfer_that_is_over_is_forgotten_in_the_end(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        clock = [now_ms()]
        pair = Pair(tmp_path)
        pair.sender.clock = lambda: clock[0]
        pair.sender.limits = replace(LIMITS, remember_ms=1000)
        await pair.start(nursery)
        assert (await pair.send(pair.sender.write(10))).state == "done"
        assert len(await pair.sender.rows()) == 1
        clock[0] += 1001
        await pair.sender.service.sweep()
        assert await pair.sender.rows() == []

    run(main)
