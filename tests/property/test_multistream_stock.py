"""Our multistream-select and py-libp2p's agree on the same protocol, in both roles, however the bytes are cut."""

from __future__ import annotations

from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import comity_node.transport.stock  # noqa: F401  (imports py-libp2p without its warnings)
from comity_node.transport.multistream import HEADER, Listener, Opener, encode
from kit.wires import wire_pair

NAMES = ["/noise", "/tls/1.0.0", "/yamux/1.0.0", "/" + "long" * 80, "/é/1"]
FOLLOWS = b"the first bytes of the protocol"


async def our_opener(wire: Any, protocols: list[str]) -> str | None:
    opener = Opener(protocols)
    await wire.write(opener.start())
    while opener.wanted:
        data = await wire.read(1)
        if out := opener.receive(data):
            await wire.write(out)
    assert opener.rest() == b""
    return opener.chosen


async def our_listener(wire: Any, protocols: list[str]) -> str | None:
    listener = Listener(protocols)
    await wire.write(listener.start())
    while listener.wanted:
        data = await wire.read(1)
        if out := listener.receive(data):
            await wire.write(out)
    assert listener.rest() == b""
    return listener.chosen


async def stock_opener(wire: Any, protocols: list[str]) -> str | None:
    from libp2p.protocol_muxer.exceptions import MultiselectClientError
    from libp2p.protocol_muxer.multiselect_client import MultiselectClient
    from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

    try:
        return str(await MultiselectClient().select_one_of(protocols, MultiselectCommunicator(wire)))
    except MultiselectClientError:
        return None


async def stock_listener(wire: Any, protocols: list[str]) -> str | None:
    from libp2p.protocol_muxer.multiselect import Multiselect
    from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

    chosen, _ = await Multiselect(dict.fromkeys(protocols)).negotiate(MultiselectCommunicator(wire))
    return None if chosen is None else str(chosen)


def negotiated(opener: Any, listener: Any, proposed: list[str], spoken: list[str], max_piece: int) -> None:
    wanted = next((each for each in proposed if each in spoken), None)

    async def main() -> None:
        got: dict[str, str | None] = {}
        here, there = wire_pair(max_piece)

        async def open_() -> None:
            got["opener"] = await opener(here, proposed)
            await here.write(FOLLOWS)

        async with trio.open_nursery() as nursery:
            if wanted is None:
                nursery.start_soon(listener, there, spoken)
                assert await opener(here, proposed) is None
                nursery.cancel_scope.cancel()
                return
            nursery.start_soon(open_)
            got["listener"] = await listener(there, spoken)
            assert await there.read(len(FOLLOWS)) == FOLLOWS
        assert got == {"opener": wanted, "listener": wanted}

    trio.run(main)


SOME = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True)


@settings(max_examples=30)
@given(SOME, SOME, st.integers(1, 40))
def test_we_propose(proposed: list[str], spoken: list[str], max_piece: int) -> None:
    negotiated(our_opener, stock_listener, proposed, spoken, max_piece)


@settings(max_examples=30)
@given(SOME, SOME, st.integers(1, 40))
def test_we_choose(proposed: list[str], spoken: list[str], max_piece: int) -> None:
    negotiated(stock_opener, our_listener, proposed, spoken, max_piece)


@settings(max_examples=60)
@given(SOME, SOME, st.binary(max_size=50))
def test_what_follows_an_agreement_is_left_alone(proposed: list[str], spoken: list[str], follows: bytes) -> None:
    """`wanted` never reaches into what is not the negotiation's: an opener that does not wait loses nothing."""
    if proposed[0] not in spoken:
        return
    listener, opener = Listener(spoken), Opener(proposed)
    said = opener.start() + follows
    answer = listener.start()
    at = 0
    while wanted := listener.wanted:
        answer += listener.receive(said[at : at + wanted])
        at += wanted
    assert said[at:] == follows
    assert listener.rest() == b""
    assert answer == encode(HEADER) + encode(proposed[0])
    said, at = answer + follows, 0
    while wanted := opener.wanted:
        assert opener.receive(said[at : at + wanted]) == b""
        at += wanted
    assert (opener.chosen, said[at:]) == (proposed[0], follows)
