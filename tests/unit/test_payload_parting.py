"""Tokens with long texts, between two carriages: what goes over, and what a peer that does not keep to it gets."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from comity.digest import sha256
from comity.errors import Busy, ComityError, LinkClosed, UnexpectedMessage
from comity.trust import Attested
from comity.v1 import flow_pb2 as pb
from comity.v1.task_pb2 import Receipt
from comity_node.protocol.token import Token, encode_state
from comity_node.protocol.token_parts import cut
from comity_node.protocol.token_wire import of_wire, to_wire
from comity_node.runtime.kinds import TOKEN_PARTS, TOKENS
from comity_node.runtime.passing.carriage import Carriage
from comity_node.runtime.passing.parting import Parting
from comity_node.runtime.passing.payloads import PayloadLimits
from comity_node.runtime.passing.ports import Answer, Outgoing, Verdict, Verdicts

A, B = "a.example", "b.example"
PACT = bytes(32)
TEXT = "long text \u00e4 " * 1_000
SIZE = len(TEXT.encode())
DEADLINE = 10**9


def a_token(number: int = 1, text: str = TEXT, agreement: bytes = PACT, deadline_ms: int = DEADLINE) -> Token:
    state = encode_state({"document": text, "number": number})
    return Token(number.to_bytes(16), agreement, A, "peer", 1, 1, b"{}", state, (), deadline_ms)


class Taking:
    """An engine that takes every token and remembers it."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.answer = Verdict(Answer.TAKEN)

    async def take(self, sender: str, tokens: Sequence[Token]) -> Sequence[Verdict]:
        self.tokens += tokens
        return Verdicts([self.answer] * len(tokens), 0.5)

    def told(self, sender: str, notes: Sequence[Any]) -> None:
        """Hear nothing."""


class Pair:
    """A, which brings tokens to B; `sent` is what went over, and `spoil` may change it."""

    def __init__(self, **limits: Any) -> None:
        self.limits = PayloadLimits(**limits)
        self.engine = Taking()
        self.sender, self.parting = self._carriage(self._ask)
        self.receiver, self.kept = self._carriage(None)
        self.sent: list[tuple[str, bytes]] = []
        self.peer_id = "b-1"
        self.spoil: Callable[[str, Receipt], Receipt] = lambda kind, receipt: receipt
        self.now_ms = 0

    def _carriage(self, ask: Any) -> tuple[Carriage, Parting]:
        parting = Parting(self.limits)
        parts = {
            "messenger": SimpleNamespace(
                ask=ask, peer=lambda to, peer_id: self._peer(), nodes=lambda to: [self._peer()]
            ),
            "gateway": SimpleNamespace(
                check_again=lambda to, rows: {}, awaits=lambda digest: False, delivered=lambda keys: None
            ),
            "chains": SimpleNamespace(
                chains_of=lambda tokens, key: [], now_ms=lambda: self.now_ms, learn=lambda chains: []
            ),
            "database": None,
            "parting": parting,
        }
        carriage = Carriage(**cast(Any, parts))
        carriage.attach(cast(Any, self.engine))
        return carriage, parting

    def _peer(self) -> Any:
        return SimpleNamespace(organization=B, peer_id=self.peer_id, public_key=b"")

    def restart(self) -> None:
        """Have B come up anew, with nothing in its memory."""
        self.receiver, self.kept = self._carriage(None)

    async def _ask(self, to: str, kind: str, body: bytes, **how: Any) -> Receipt:
        self.sent.append((kind, body))
        assert kind == TOKENS or how["peer_id"] == self.peer_id
        return self.spoil(kind, await self.hear(kind, body))

    async def hear(self, kind: str, body: bytes, sender: str = A) -> Receipt:
        """What B answers."""
        return await self.receiver.handlers[kind](cast(Attested, SimpleNamespace(organization=sender)), body)

    async def bring(self, *tokens: Token) -> list[Answer]:
        """What became of tokens that A brought."""
        verdicts = await self.sender.deliver(B, [Outgoing(token, B, "s0", token) for token in tokens])
        return [each.answer for each in verdicts]


TAKEN = [Answer.TAKEN]


def test_a_text_goes_over_once_and_what_is_taken_is_the_whole_token() -> None:
    async def main() -> None:
        pair = Pair()
        tokens = [a_token(number) for number in range(1, 6)]
        for token in tokens:
            assert await pair.bring(token) == TAKEN
        assert pair.engine.tokens == tokens
        assert [kind for kind, _ in pair.sent] == [TOKENS, *[TOKEN_PARTS] * 4]
        assert [len(body) > SIZE for _, body in pair.sent] == [True, False, False, False, False]
        assert all(len(body) < 300 for _, body in pair.sent[1:])
        assert pair.parting.counts == {"sent": SIZE, "saved": 4 * SIZE}

    trio.run(main)


def test_a_text_that_is_new_comes_with_its_delivery_once_and_under_each_agreement() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.bring(a_token())
        new = [a_token(number, TEXT * 2) for number in (2, 3)]
        assert await pair.bring(*new) == TAKEN * 2
        kind, body = pair.sent[-1]
        delivery = pb.TokenDelivery.FromString(body)
        assert kind == TOKEN_PARTS
        assert [len(each) for each in delivery.payloads] == [2 * SIZE]
        assert await pair.bring(a_token(4, agreement=b"q" * 32)) == TAKEN
        assert len(pb.TokenDelivery.FromString(pair.sent[-1][1]).payloads) == 1, "of another agreement, it comes again"
        assert await pair.bring(a_token(5, "short")) == TAKEN
        assert pair.sent[-1][0] == TOKENS
        assert pair.engine.tokens[1:3] == new

    trio.run(main)


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
def test_who_does_not_have_it_any_more_says_so_and_gets_it_whole() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.bring(a_token(1))
        pair.restart()
        assert await pair.bring(a_token(2), a_token(3, "short")) == TAKEN * 2
        assert [kind for kind, _ in pair.sent] == [TOKENS, TOKEN_PARTS, TOKENS]
        assert len(pb.TokenDelivery.FromString(pair.sent[-1][1]).tokens) == 1, "what was taken does not go again"
        assert [token.task_id[-1] for token in pair.engine.tokens] == [1, 3, 2], "each once"
        assert pair.parting.counts["missing"] == SIZE
        assert await pair.bring(a_token(4)) == TAKEN
        assert len(pair.sent[-1][1]) < 300

    trio.run(main)


def test_a_second_time_it_is_missing_it_waits() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.bring(a_token(1))
        missing = pb.TokenReceipts(receipts=[pb.TokenReceipt(outcome=pb.TokenReceipt.OUTCOME_MISSING)])
        pair.spoil = lambda kind, receipt: Receipt(status=receipt.status, body=missing.SerializeToString())
        assert await pair.bring(a_token(2)) == [Answer.BUSY]
        assert [kind for kind, _ in pair.sent] == [TOKENS, TOKEN_PARTS, TOKENS]

    trio.run(main)


@pytest.mark.parametrize("error", [LinkClosed("cut"), Busy("full")])
def test_who_gives_no_answer_to_the_whole_changes_nothing_of_what_was_answered(error: LinkClosed | Busy) -> None:
    async def main() -> None:
        pair = Pair()
        await pair.bring(a_token(1))
        pair.restart()

        def spoil(kind: str, receipt: Receipt) -> Receipt:
            if kind == TOKENS:
                raise error
            return receipt

        pair.spoil = spoil
        rows = [Outgoing(token, B, "s0", token) for token in (a_token(2), a_token(3, "short"))]
        one, other = await pair.sender.deliver(B, rows)
        assert (one.answer, other.answer) == (Answer.BUSY, Answer.TAKEN)
        assert one.unsure == isinstance(error, LinkClosed), "it may have come there"

    trio.run(main)


def test_who_is_busy_keeps_what_it_has() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.bring(a_token(1))
        asked = pair.spoil
        pair.spoil = lambda kind, receipt: Receipt(status=Receipt.STATUS_BUSY, retry_after_ms=10)
        with pytest.raises(Busy):
            await pair.bring(a_token(2))
        pair.spoil = asked
        assert await pair.bring(a_token(2)) == TAKEN
        assert [kind for kind, _ in pair.sent] == [TOKENS, TOKEN_PARTS, TOKEN_PARTS]

    trio.run(main)


@pytest.mark.parametrize("how", ["refuses", "breaks off"])
def test_a_node_that_takes_no_pieces_any_more_gets_tokens_whole(how: str) -> None:
    async def main() -> None:
        pair = Pair()
        await pair.bring(a_token(1))

        def spoil(kind: str, receipt: Receipt) -> Receipt:
            if kind != TOKEN_PARTS:
                return Receipt(
                    status=receipt.status,
                    body=pb.TokenReceipts(
                        receipts=pb.TokenReceipts.FromString(receipt.body).receipts
                    ).SerializeToString(),
                )
            if how == "breaks off":
                raise LinkClosed("what is that?")
            return Receipt(status=Receipt.STATUS_REFUSED, code="x", reason="what is that?")

        pair.spoil = spoil
        if how == "refuses":
            assert await pair.bring(a_token(2)) == [Answer.BUSY]
        else:
            with pytest.raises(LinkClosed):
                await pair.bring(a_token(2))
        for number in (2, 3):
            assert await pair.bring(a_token(number)) == TAKEN
        assert [kind for kind, _ in pair.sent] == [TOKENS, TOKEN_PARTS, TOKENS, TOKENS], "as to an older node"

    trio.run(main)


@pytest.mark.parametrize("answer", [Answer.REFUSED, Answer.BUSY, Answer.STALE, Answer.OVER])
def test_what_was_not_taken_is_not_kept_on_either_side(answer: Answer) -> None:
    async def main() -> None:
        pair = Pair()
        await pair.bring(a_token(1))
        pair.engine.answer = Verdict(answer)
        assert await pair.bring(a_token(2, TEXT * 2)) == [answer]
        pair.engine.answer = Verdict(Answer.TAKEN)
        await pair.bring(a_token(3, TEXT * 2))
        assert pair.sent[-1][0] == TOKEN_PARTS
        assert len(pair.sent[-1][1]) > 2 * SIZE
        assert len(pair.kept._brought) == 2

    trio.run(main)


def test_what_is_kept_goes_with_the_deadline_of_its_task() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.bring(a_token(1, deadline_ms=1_000))
        pair.now_ms = 1_000
        await pair.bring(a_token(2))
        assert len(pair.sent[-1][1]) > SIZE
        pair.parting.forget_old(DEADLINE)
        pair.kept.forget_old(DEADLINE)
        assert len(pair.kept._brought) == len(pair.parting._there) == 0

    trio.run(main)


def test_what_is_over_is_let_go_of_also_where_nothing_comes_any_more() -> None:
    async def main() -> None:
        pair = Pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.receiver.run)
            await pair.bring(a_token(1, deadline_ms=1_000))
            await trio.sleep(61)
            assert len(pair.kept._brought) == 1
            pair.now_ms = 1_000
            await trio.sleep(61)
            assert len(pair.kept._brought) == 0
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def a_delivery(*tokens: Token, payloads: bool = False, agreement: bytes = PACT) -> pb.TokenDelivery:
    """Tokens in pieces, as somebody would write them who has no carriage."""
    delivery = pb.TokenDelivery(agreement_digest=agreement)
    texts: dict[bytes, bytes] = {}
    for token in tokens:
        rest, parts, found = cut(token.state, 4_096)
        texts |= found
        message = to_wire(replace(token, state=rest))
        message.parts.extend(pb.TokenPart(offset=at, digest=digest, size=size) for at, digest, size in parts)
        delivery.tokens.append(message)
    if payloads:
        delivery.payloads.extend(texts.values())
    return delivery


def outcomes(receipt: Receipt) -> list[int]:
    return [one.outcome for one in pb.TokenReceipts.FromString(receipt.body).receipts]


MISSING = pb.TokenReceipt.OUTCOME_MISSING


@pytest.mark.invariant("S1")
def test_a_digest_gets_nothing_but_what_that_organization_brought_under_that_agreement() -> None:
    """And neither the answer nor what is taken tells it what others have brought."""

    async def main() -> None:
        pair = Pair()
        await pair.bring(a_token(1))
        body = a_delivery(a_token(2)).SerializeToString()
        never = a_delivery(a_token(2, TEXT * 2)).SerializeToString()
        elsewhere = a_delivery(a_token(2), agreement=b"q" * 32).SerializeToString()
        answers = [
            await pair.hear(TOKEN_PARTS, body, "mallory.example"),
            await pair.hear(TOKEN_PARTS, never, "mallory.example"),
            await pair.hear(TOKEN_PARTS, elsewhere),
        ]
        assert [outcomes(one) for one in answers] == [[MISSING]] * 3
        assert len({one.SerializeToString() for one in answers}) == 1, "no answer says more than another one"
        assert len(pair.engine.tokens) == 1
        assert outcomes(await pair.hear(TOKEN_PARTS, body)) == [pb.TokenReceipt.OUTCOME_TAKEN]
        assert pair.engine.tokens[-1] == a_token(2)

    trio.run(main)


def spoiled(what: str) -> pb.TokenDelivery:
    delivery = a_delivery(a_token(1), payloads=True)
    part = delivery.tokens[0].parts[0]
    match what:
        case "another text":
            delivery.payloads[0] = bytes([delivery.payloads[0][0] ^ 1]) + delivery.payloads[0][1:]
        case "a text twice":
            delivery.payloads.append(delivery.payloads[0])
        case "a text that nobody names":
            delivery.payloads.append(b"x" * 5_000)
        case "another size":
            part.size += 1
        case "a part twice":
            delivery.tokens[0].parts.append(part)
        case "another place":
            part.offset += 1
        case "short":
            delivery = a_delivery(a_token(1), payloads=True)
            part = delivery.tokens[0].parts[0]
            part.size, part.digest = 10, sha256(b"x" * 10)
            delivery.payloads[:] = [b"x" * 10]
        case "two sizes":
            other = a_delivery(a_token(2)).tokens[0]
            other.parts[0].size += 1
            delivery.tokens.append(other)
        case "a digest of another length":
            part.digest = part.digest[:31]
    return delivery


_SPOILED = [
    "another text", "a text twice", "a text that nobody names", "another size", "a part twice", "another place",
    "short", "two sizes", "a digest of another length",
]  # fmt: skip


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("what", _SPOILED)
def test_pieces_that_do_not_fit_are_refused_all_together(what: str) -> None:
    async def main() -> None:
        pair = Pair()
        with pytest.raises(UnexpectedMessage):
            await pair.hear(TOKEN_PARTS, spoiled(what).SerializeToString())
        assert not pair.engine.tokens
        assert not len(pair.kept._brought)
        good = await pair.hear(TOKEN_PARTS, a_delivery(a_token(1), payloads=True).SerializeToString())
        assert outcomes(good) == [pb.TokenReceipt.OUTCOME_TAKEN]

    trio.run(main)


def test_a_size_that_is_not_that_of_what_was_brought_before_is_refused() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.bring(a_token(1))
        delivery = a_delivery(a_token(2))
        delivery.tokens[0].parts[0].size -= 1
        with pytest.raises(UnexpectedMessage):
            await pair.hear(TOKEN_PARTS, delivery.SerializeToString())

    trio.run(main)


@pytest.mark.parametrize("what", ["parts", "payloads"])
def test_pieces_under_the_name_of_whole_tokens_are_refused(what: str) -> None:
    async def main() -> None:
        pair, delivery = Pair(), a_delivery(a_token(1), payloads=True)
        if what == "parts":
            del delivery.payloads[:]
        else:
            delivery.tokens[0].ClearField("parts")
        with pytest.raises(UnexpectedMessage):
            await pair.hear(TOKENS, delivery.SerializeToString())

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_delivery_does_not_become_more_than_it_may() -> None:
    """512 tokens that each name one text of 4 KiB 60 times: 120 MiB out of 1.3 MiB."""

    async def main() -> None:
        pair = Pair()
        text = "x" * 4_097
        state = encode_state({f"f{number:02}": text for number in range(60)})
        token = replace(a_token(1), state=state)
        few = a_delivery(*[token] * 17, payloads=True)
        assert outcomes(await pair.hear(TOKEN_PARTS, few.SerializeToString())) == [pb.TokenReceipt.OUTCOME_TAKEN] * 17
        pair.engine.tokens.clear()
        body = a_delivery(*[token] * 512, payloads=True).SerializeToString()
        tracemalloc.start()
        try:
            with pytest.raises(UnexpectedMessage, match="together"):
                await pair.hear(TOKEN_PARTS, body)
            assert tracemalloc.get_traced_memory()[1] < 20 << 20
        finally:
            tracemalloc.stop()
        assert not pair.engine.tokens

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_state_does_not_become_longer_than_a_state_may_be() -> None:
    async def main() -> None:
        pair = Pair()
        token = replace(a_token(1), state=encode_state({"document": "x" * (1 << 18)}))
        with pytest.raises(UnexpectedMessage, match="262144"):
            await pair.hear(TOKEN_PARTS, a_delivery(token, payloads=True).SerializeToString())

    trio.run(main)


@pytest.mark.invariant("S7")
def test_of_so_many_bytes_it_is_remembered_that_others_have_them() -> None:
    async def main() -> None:
        pair = Pair(there_bytes=2 * (SIZE + 256))
        for number in range(1, 4):
            await pair.bring(a_token(number, str(number) + TEXT[1:]))
        assert len(pair.parting._there) == 2
        await pair.bring(a_token(4, "1" + TEXT[1:]))
        assert len(pair.sent[-1][1]) > SIZE, "the oldest goes again"

    trio.run(main)


@pytest.mark.invariant("S7")
def test_of_so_many_nodes_it_is_remembered_what_they_keep() -> None:
    async def main() -> None:
        pair = Pair(peers=3)
        for number in range(1, 9):
            pair.peer_id = f"b-{number}"
            await pair.bring(a_token(number))
            assert len(pair.parting._keeps) <= 3

    trio.run(main)


def test_what_a_node_has_no_room_for_is_not_counted_on() -> None:
    async def main() -> None:
        pair = Pair()

        def spoil(kind: str, receipt: Receipt) -> Receipt:
            answer = pb.TokenReceipts.FromString(receipt.body)
            answer.keeps.room = 100
            return Receipt(status=receipt.status, body=answer.SerializeToString())

        pair.spoil = spoil
        for number in (1, 2):
            assert await pair.bring(a_token(number)) == TAKEN
        assert len(pair.sent[-1][1]) > SIZE
        assert pair.parting.counts["saved"] == 0

    trio.run(main)


def test_while_the_agreement_is_not_known_nothing_is_put_together() -> None:
    async def main() -> None:
        pair = Pair()
        vars(pair.receiver)["_gateway"] = SimpleNamespace(awaits=lambda digest: True)
        with pytest.raises(Busy):
            await pair.hear(TOKEN_PARTS, spoiled("another text").SerializeToString())

    trio.run(main)


def test_every_refusal_is_one_of_ours() -> None:
    for what in _SPOILED:
        delivery = spoiled(what)
        for message in delivery.tokens:
            assert of_wire(message, PACT).agreement == PACT
    assert issubclass(UnexpectedMessage, ComityError)
