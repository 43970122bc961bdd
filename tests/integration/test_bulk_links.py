"""Bulk transfers over real links: encrypted, attested, beside other traffic."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.errors import LinkError
from comity.trust import Attested
from comity_node.bulk import sender as sending
from comity_node.bulk.common import Progress, Stream
from comity_node.links import Links
from comity_node.protocol import bulk as protocol
from comity_node.transport.base import ByteStream, Priority
from comity_node.transport.libp2p_transport import Libp2pTransport
from kit.bulk import Pair, Party, table
from kit.lab import now_ms, run

ROWS = 300_000


async def echo(_: Attested, payload: bytes) -> bytes:
    return payload


class Linked(Pair):
    """The same two, over libp2p on loopback."""

    async def link(self, nursery: trio.Nursery) -> None:
        self.links = {party.identity.peer_id: self._links(party) for party in self.parties.values()}
        for links in self.links.values():
            await nursery.start(links.run)
        ours, theirs = self.links.values()
        ours.add_peer(theirs.peer_id, theirs.addresses())
        await ours.wait_for(theirs.peer_id, 30)

    def _links(self, party: Party) -> Links:
        async def on_tunnel(sender: Attested, name: str, stream: ByteStream) -> None:
            assert name == protocol.TUNNEL
            await party.service.serve(sender, stream)

        return Links(
            Libp2pTransport(party.identity.key, ["/ip4/127.0.0.1/tcp/0"], allow_private=True),
            party.identity,
            party.trust,
            echo,
            now_ms=now_ms,
            random_bytes=os.urandom,
            on_tunnel=on_tunnel,
            allow_private=True,
        )

    async def open(self, party: Party, peer_id: str) -> Stream:
        self.opened += 1
        links = self.links[party.identity.peer_id]
        return self.at_sender(await links.open_tunnel(peer_id, protocol.TUNNEL, priority=Priority.BULK))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_FIRST_WAIT_S", 0.05)


@pytest.mark.invariant("R1")
def test_a_table_crosses_a_link_that_is_cut_in_the_middle(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Linked(tmp_path)
        await pair.start(nursery)
        await pair.link(nursery)
        ours, theirs = pair.links.values()
        cut = trio.Event()

        def watch(progress: Progress) -> None:
            if progress.state == "sending" and progress.bytes_done > progress.bytes_total // 3:
                cut.set()

        async def cutter() -> None:
            await cut.wait()
            await ours._transport.disconnect(theirs.peer_id)

        nursery.start_soon(cutter)
        order = pair.sender.order(pair.sender.write(ROWS), pair.receiver.name)
        with trio.fail_after(60):
            sent = await pair.sender.service.send(order, watch)
        assert sent.state == "done"
        assert pair.opened > 1
        (received,) = await pair.receiver.rows()
        assert await pair.receiver.read(received) == table(ROWS)

    run(main)


def test_requests_are_answered_while_a_table_crosses(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = Linked(tmp_path)
        await pair.start(nursery)
        await pair.link(nursery)
        ours, theirs = pair.links.values()
        done = trio.Event()
        answers = 0

        async def ask(_: Any = None) -> None:
            nonlocal answers
            while not done.is_set():
                with suppress(LinkError):
                    assert await ours.request(theirs.peer_id, b"meanwhile", 10) == b"meanwhile"
                    answers += 1

        nursery.start_soon(ask)
        with trio.fail_after(60):
            sent = await pair.send(pair.sender.write(ROWS))
        done.set()
        assert sent.state == "done"
        assert answers > 5

    run(main)
