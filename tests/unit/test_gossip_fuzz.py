"""The fuzz target, on inputs that are nearly good: what an hour under atheris finds should be found by none here."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity_node.protocol.gossip_rpc import IHave, Prune, Rpc, encode_frame
from fuzz.fuzz_gossip import SEEDS, one
from kit.gossipnet import unsigned


def stream(chance: random.Random) -> bytes:
    frames = []
    for _ in range(chance.randrange(1, 12)):
        topic = chance.choice(("t", "t", "t", "u", ""))
        message = unsigned(
            b"a%d" % chance.randrange(5), chance.randrange(20), topic=topic, data=chance.choice((b"!", b"1", b"22"))
        )
        frames.append(
            encode_frame(
                Rpc(
                    subscriptions=((topic, chance.random() < 0.8),),
                    messages=(message,) * chance.randrange(3),
                    ihave=(IHave(topic, (message.id, b"x")),),
                    iwant=(message.id,),
                    graft=(topic,),
                    prune=(Prune(topic, chance.randrange(3)),) if chance.random() < 0.3 else (),
                )
            )
        )
    return b"".join(frames)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("seed", range(8))
def test_streams_with_bytes_changed_break_nothing(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        data = bytearray(bytes([chance.randrange(256)]) + stream(chance))
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        one(bytes(data))


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_seeds_break_nothing(seed: bytes) -> None:
    one(seed)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_break_nothing(data: bytes) -> None:
    one(data)
