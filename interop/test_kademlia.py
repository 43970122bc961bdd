"""Kademlia with js-libp2p: provider records that either side keeps for the other, and finds at the other."""

from __future__ import annotations

import time

import trio

from comity_node.discovery.kad import Kademlia, KademliaSettings
from comity_node.protocol.kad import Contact, skill_key
from jslab.ours import Node, running
from jslab.peer import JsPeer, js_peer

SKILL = "score-tumours"
KEY = skill_key(SKILL).hex()


class Searcher(Node):
    """One of ours with its part of the table, open to strangers, which links with whoever is named."""

    def __init__(self) -> None:
        super().__init__()
        self.kad = Kademlia(
            self.transport,
            self._reach,
            now_ms=lambda: time.time_ns() // 1_000_000,
            settings=KademliaSettings(allow_private=True),
            strangers=True,
        )

    async def _reach(self, _: Contact) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    async def run(self, nursery: trio.Nursery) -> None:
        await super().run(nursery)
        await nursery.start(self.kad.run)

    async def meet(self, js: JsPeer) -> None:
        """Connect with a peer, and each take the other into its table."""
        await self.transport.dial(js.peer_id, js.addresses)
        self.kad.peer_up(js.peer_id, _without_peer(js))
        await js.do("routing", peer=self.peer_id)


def _without_peer(js: JsPeer) -> list[str]:
    return [each.removesuffix(f"/p2p/{js.peer_id}") for each in js.addresses]


async def find(node: Searcher, count: int) -> dict[str, tuple[str, ...]]:
    """Search until so many providers are found: a record is on its way for a moment."""
    while True:
        found = {each.peer_id: each.addresses for each in await node.kad.find(SKILL)}
        if len(found) >= count:
            return found
        await trio.sleep(0.05)


def test_js_keeps_our_record_and_another_of_ours_finds_it_there() -> None:
    provider, seeker = Searcher(), Searcher()

    async def main() -> None:
        async with running(provider, seeker), js_peer() as js:
            for each in (provider, seeker):
                await each.meet(js)
            assert await seeker.kad.find(SKILL) == []
            provider.kad.provide([SKILL])
            assert await find(seeker, 1) == {provider.peer_id: tuple(provider.transport.addresses())}
            assert seeker.kad.records == 0  # it has asked, and not been told

    trio.run(main)


def test_we_keep_the_record_of_js_and_another_of_js_finds_it_here() -> None:
    node = Searcher()

    async def main() -> None:
        async with running(node), js_peer() as provider, js_peer() as seeker:
            for each in (provider, seeker):
                await node.meet(each)
            assert (await seeker.do("find", key=KEY))["providers"] == []
            await provider.do("provide", key=KEY)
            assert await find(node, 1) == {provider.peer_id: tuple(_without_peer(provider))}
            assert node.kad.records == 1
            assert (await seeker.do("find", key=KEY))["providers"] == [
                {"peer": provider.peer_id, "addresses": _without_peer(provider)}
            ]

    trio.run(main)


def test_each_side_finds_the_other_itself() -> None:
    node = Searcher()

    async def main() -> None:
        async with running(node), js_peer() as js:
            await node.meet(js)
            node.kad.provide([SKILL])
            assert (await js.do("find", key=KEY, count=1))["providers"] == [
                {"peer": node.peer_id, "addresses": node.transport.addresses()}
            ]
            await js.do("provide", key=KEY)
            assert await find(node, 1) == {js.peer_id: tuple(_without_peer(js))}

    trio.run(main)


def test_a_search_of_ours_goes_on_to_those_whom_js_names() -> None:
    node = Searcher()

    async def main() -> None:
        # node - near - far: the record is at `far` alone, whom the node hears of from `near`.
        async with running(node), js_peer() as near, js_peer() as far:
            await near.do("dial", address=far.addresses[0])
            await near.do("routing", peer=far.peer_id)
            await far.do("provide", key=KEY, local=True)
            await node.meet(near)
            assert await find(node, 1) == {far.peer_id: tuple(_without_peer(far))}
            assert node.transport.connections.of(far.peer_id)

    trio.run(main)
