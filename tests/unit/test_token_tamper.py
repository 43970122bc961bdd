"""No byte of a delivery of tokens can be changed on its way: what is taken is what its sender let pass, or nothing.

Every byte of the message is flipped, one at a time: the frame of each token, its hops, cursor and state, and the chains
of those who signed. Whoever is between two nodes could write so, were the link not encrypted.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from google.protobuf.message import DecodeError

from comity.digest import canonical_json
from comity.errors import ComityError
from comity.v1 import flow_pb2 as pb
from comity.v1.agreement_pb2 import Obligations
from comity_node.admission import Gate
from comity_node.admission.records import Dataset
from comity_node.admission.tokens import Leaving, TokenGate
from comity_node.policy.loader import loads_policy
from comity_node.protocol.flow import Cursor, begin, encode_cursor, read_flow
from comity_node.protocol.freshness import Freshness
from comity_node.protocol.token import HOME, Outcome, Token
from comity_node.protocol.token_wire import of_wire, to_wire
from comity_node.storage.database import Database, open_database
from comity_node.validators.schema import FieldSpec, Schema
from kit.consortium import NOW_MS, attested, consortium, names
from kit.documents import DATASET, agree
from kit.lab import policy
from kit.tamper import flips

pytestmark = [pytest.mark.invariant("S2"), pytest.mark.invariant("S5")]

ADA, BEA, CYD = names(3)
LAB = consortium(*names(3))
AGREED = agree(LAB, obligations=Obligations(onward="allowed"))
FLOW = read_flow(
    {
        "state": {
            "type": "object",
            "properties": {"label": {"type": "integer"}, "name": {"type": "string", "maxLength": 100}},
        },
        "start": "answer",
        "steps": {
            "answer": {"skill": "answer", "at": "others", "writes": ["label"], "next": "check"},
            "check": {"skill": "check", "at": "any", "writes": ["label"], "next": "end"},
        },
        "finish": "none",
    }
)
FIRST = begin(FLOW, NOW_MS)
SECOND = Cursor("check", visits={"answer": 1, "check": 1}, steps=1, tokens=7, begun_ms=NOW_MS)


class Party:
    """One organization's gate for tokens, and how a message comes to it (`Carriage`)."""

    def __init__(self, name: str, database: Database) -> None:
        self.name = name
        self.node = LAB.nodes[name]
        self.database = database
        gate = Gate(
            identity=self.node,
            policy=loads_policy(policy(name).replace("onward: never", "onward: allowed")),
            database=database,
            freshness=Freshness(self.node.peer_id),
            now_ms=lambda: NOW_MS + 1000,
            random_bytes=random.randbytes,
        )
        schema = Schema("label", {"label": FieldSpec("integer", 0, 1), "x": FieldSpec("number", 0, 1)})
        self._made = partial(TokenGate, gate, {DATASET: Dataset(schema, None)}, LAB.trust)
        self.tokens = self._made()

    def forget(self) -> None:
        """Know no chains and no hops, as after a restart."""
        self.tokens = self._made()

    async def send(self, to: str, role: str, *leaving: Token) -> tuple[bytes, list[Token]]:
        """Return the message that brings tokens to somebody, and the tokens."""
        rows = [Leaving(replace(one, agreement=AGREED.digest), role) for one in leaving]
        came = await self.tokens.out(AGREED, FLOW, to, rows, lambda _connection, _came: None)
        gone = [one for one in came if isinstance(one, Token)]
        assert len(gone) == len(rows), came
        chains = self.tokens.chains.chains_of(gone, LAB.nodes[to].key.public_key)
        delivery = pb.TokenDelivery(
            agreement_digest=AGREED.digest,
            tokens=map(to_wire, gone),
            signers=[pb.SignerChain(chain=chain) for chain in chains],
        )
        return delivery.SerializeToString(), gone

    async def take(self, sender: str, body: bytes) -> list[Token]:
        """Return the tokens of a message that are taken."""
        try:
            delivery = pb.TokenDelivery.FromString(body)
            if delivery.agreement_digest != AGREED.digest:
                return []  # there is no such agreement
            tokens = [of_wire(one, delivery.agreement_digest) for one in delivery.tokens]
        except (ComityError, DecodeError):
            return []
        self.tokens.chains.learn([tuple(one.chain) for one in delivery.signers])
        came = await self.tokens.arrive(AGREED, FLOW, attested(LAB.nodes[sender]), tokens)
        return [token for token, denied in zip(tokens, came, strict=True) if denied is None]


def first(number: int = 0) -> Token:
    """A task of the first organization, for its first step."""
    return Token(
        task_id=bytes([number + 1]) * 16,
        agreement=b"",
        home=ADA,
        home_peer=LAB.nodes[ADA].peer_id,
        attempt=1,
        sequence=1,
        cursor=encode_cursor(FIRST),
        state=canonical_json({"name": f"Ann {number}"}),
        hops=(),
        deadline_ms=NOW_MS + 600_000,
    )


def done(token: Token, **changes: Any) -> Token:
    """The same after somebody has worked on it."""
    state = canonical_json({"label": 1, "name": "Ann"})
    return replace(token, sequence=token.sequence + 1, cursor=encode_cursor(SECOND), state=state, **changes)


async def every_flip(receiver: Party, sender: str, body: bytes, sent: Sequence[Token], bits: int) -> None:
    """Flip each byte of a message: nothing is taken but what was sent, all of it only if no token was touched."""
    frames = pb.TokenDelivery.FromString(body)
    frames.ClearField("signers")
    chains_at = frames.ByteSize()
    assert await receiver.take(sender, body) == list(sent)
    for position, changed in flips(body, bits):
        receiver.forget()
        taken = await receiver.take(sender, changed)
        where = f"byte {position} of {len(body)} can be changed: {body[position]:#04x}"
        assert all(token in sent for token in taken), where
        assert len(taken) < len(sent) or position >= chains_at, where
    assert await receiver.take(sender, body) == list(sent), "what was refused has left nothing behind"


def run(path: Path, main: Callable[[Party, Party, Party], Awaitable[None]]) -> None:
    async def outer() -> None:
        async with AsyncExitStack() as stack:
            made = []
            for name in (ADA, BEA, CYD):
                database = await stack.enter_async_context(open_database(path / f"{name}.db"))
                made.append(Party(name, database))
            await main(*made)

    trio.run(outer)


def test_every_byte_of_a_delivery_from_the_home(tmp_path: Path) -> None:
    """Two tokens under one signature: a byte of the one does not harm the other."""

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        body, sent = await ada.send(BEA, "answer", first(), first(1))
        await every_flip(bea, ADA, body, sent, bits=2)

    run(tmp_path, main)


def test_every_byte_of_a_delivery_that_comes_home(tmp_path: Path) -> None:
    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        body, (gone,) = await ada.send(BEA, "answer", first())
        assert await bea.take(ADA, body) == [gone]
        back = done(gone, outcome=Outcome.FAILED, reason="it broke")
        body, sent = await bea.send(ADA, HOME, back)
        await every_flip(ada, BEA, body, sent, bits=3)

    run(tmp_path, main)


def test_every_byte_of_a_delivery_to_a_third(tmp_path: Path) -> None:
    """Who takes it has never seen its home's hop: the chain that comes along vouches for it."""

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        body, (gone,) = await ada.send(BEA, "answer", first())
        assert await bea.take(ADA, body) == [gone]
        body, sent = await bea.send(CYD, "check", done(gone))
        await every_flip(cyd, BEA, body, sent, bits=2)

    run(tmp_path, main)
