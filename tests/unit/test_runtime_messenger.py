"""Requests and receipts: what reaches a handler, what is answered when one raises, which answers count."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from comity.envelope import open_message, seal
from comity.errors import (
    AgreementError,
    Busy,
    ComityError,
    EnvelopeError,
    EnvelopeMalformed,
    PeerUnreachable,
    PolicyDenied,
    ReplayedMessage,
    SignatureInvalid,
    StorageFull,
    WrongAudience,
)
from comity.trust import Attested
from comity.v1.envelope_pb2 import Envelope
from comity.v1.task_pb2 import Receipt, TaskOffer
from comity_node.admission import Gate
from comity_node.policy.loader import loads_policy
from comity_node.protocol.freshness import Freshness
from comity_node.runtime.messenger import Messenger, accepted
from comity_node.runtime.pace import Pace, PaceLimits
from comity_node.storage.database import Database, open_database
from comity_node.transport.base import Priority
from kit.consortium import NOW_MS, attested, consortium, names
from kit.lab import policy

ME, PEER, OTHER = names(3)
NODES = consortium(*names(3)).nodes


@dataclass
class Wire:
    """The other end: gives what `answer` makes of a request."""

    answer: Callable[[bytes], bytes] = lambda payload: payload
    linked: bool = True
    sent: list[bytes] = field(default_factory=list)

    def peer(self, organization: str) -> Attested | None:
        return attested(NODES[organization]) if self.linked else None

    async def request(self, peer_id: str, payload: bytes, deadline_s: float) -> bytes:
        await trio.lowlevel.checkpoint()
        assert peer_id == NODES[PEER].peer_id
        self.sent.append(payload)
        return self.answer(payload)


@dataclass
class ClassedWire(Wire):
    """One that schedules."""

    classes: list[Priority] = field(default_factory=list)

    async def request(
        self, peer_id: str, payload: bytes, deadline_s: float, *, priority: Priority = Priority.WORK
    ) -> bytes:
        self.classes.append(priority)
        return await super().request(peer_id, payload, deadline_s)


def gate(database: Database, organization: str = ME) -> Gate:
    return Gate(
        identity=NODES[organization],
        policy=loads_policy(policy(organization)),
        database=database,
        freshness=Freshness(NODES[organization].peer_id),
        now_ms=lambda: NOW_MS,
        random_bytes=random.randbytes,
    )


def with_messenger(path: Path, main: Callable[[Messenger, Wire], Awaitable[None]]) -> None:
    async def outer() -> None:
        async with open_database(path / "node.db") as database:
            wire = Wire()
            await main(Messenger(gate(database), wire), wire)

    trio.run(outer)


def request(signer: str = PEER, *, to: str = ME, kind: str = "cards", body: bytes = b"hello") -> bytes:
    audience, message_id = NODES[to].peer_id, random.randbytes(16)
    return seal(NODES[signer].key, kind, body, audience=audience, message_id=message_id, now_ms=NOW_MS)


def read_receipt(answer: bytes, asked: bytes) -> Receipt:
    """Check that the answer is for whoever asked, about what was asked, and return it."""
    message = open_message(answer, {"receipt"})
    assert message.signer == NODES[ME].key.public_key
    assert message.header.audience == NODES[PEER].peer_id
    assert message.header.in_reply_to == open_message(asked, {"cards"}).header.id
    return Receipt.FromString(message.body)


# -- serving -----------------------------------------------------------------------------------------------------------


def test_a_request_reaches_its_handler_and_is_answered(tmp_path: Path) -> None:
    async def main(messenger: Messenger, _: Wire) -> None:
        async def handle(sender: Attested, body: bytes) -> Receipt:
            await trio.lowlevel.checkpoint()
            return accepted(body + b" from " + sender.organization.encode())

        messenger.serve({"cards": handle})
        asked = request()
        receipt = read_receipt(await messenger.receive(attested(NODES[PEER]), asked), asked)
        assert (receipt.status, receipt.body) == (Receipt.STATUS_ACCEPTED, b"hello from " + PEER.encode())
        assert messenger.counters() == {"received.cards": 1}

    with_messenger(tmp_path, main)


@pytest.mark.invariant("S2")
@pytest.mark.invariant("S5")
def test_no_handler_sees_what_was_not_sent_to_it_by_whom_it_came_from(tmp_path: Path) -> None:
    replayed = request()
    spoiled = request()
    cases: list[tuple[bytes, type[ComityError], str]] = [
        (replayed, ReplayedMessage, "refused.replayed"),
        (request(OTHER), SignatureInvalid, "refused.signature_invalid"),
        (request(to=OTHER), WrongAudience, "refused.wrong_audience"),
        (spoiled[:-1] + bytes([spoiled[-1] ^ 1]), SignatureInvalid, "refused.signature_invalid"),
        (request(kind="records"), EnvelopeMalformed, "refused.envelope_malformed"),
        (b"\x16\x03\x01 garbage", EnvelopeMalformed, "refused.envelope_malformed"),
    ]

    async def main(messenger: Messenger, _: Wire) -> None:
        handled: list[bytes] = []

        async def handle(sender: Attested, body: bytes) -> Receipt:
            await trio.lowlevel.checkpoint()
            handled.append(body)
            return accepted()

        messenger.serve({"cards": handle})
        await messenger.receive(attested(NODES[PEER]), replayed)
        for payload, error, counter in cases:
            before = messenger.counters().get(counter, 0)
            with pytest.raises(error):
                await messenger.receive(attested(NODES[PEER]), payload)
            assert messenger.counters()[counter] == before + 1
        assert handled == [b"hello"]

    with_messenger(tmp_path, main)


@pytest.mark.parametrize(
    ("raised", "status", "code", "retry_after_ms"),
    [
        (PolicyDenied("not yours", rules=("never-raw", "b")), Receipt.STATUS_REFUSED, "policy_denied", 0),
        (AgreementError("it is over"), Receipt.STATUS_REFUSED, "agreement_violated", 0),
        (Busy("full", retry_after_ms=1234), Receipt.STATUS_BUSY, "busy", 1234),
        (StorageFull("no room"), Receipt.STATUS_BUSY, "storage_full", 5000),
    ],
)
def test_what_a_handler_raises_is_a_receipt(
    tmp_path: Path, raised: ComityError, status: int, code: str, retry_after_ms: int
) -> None:
    async def main(messenger: Messenger, _: Wire) -> None:
        async def handle(sender: Attested, body: bytes) -> Receipt:
            await trio.lowlevel.checkpoint()
            raise raised

        messenger.serve({"cards": handle})
        asked = request()
        receipt = read_receipt(await messenger.receive(attested(NODES[PEER]), asked), asked)
        assert (receipt.status, receipt.code, receipt.retry_after_ms) == (status, code, retry_after_ms)
        assert tuple(receipt.rules) == (raised.rules if isinstance(raised, PolicyDenied) else ())
        assert receipt.reason

    with_messenger(tmp_path, main)


def test_a_body_that_does_not_parse_is_refused_with_a_receipt(tmp_path: Path) -> None:
    async def main(messenger: Messenger, _: Wire) -> None:
        async def handle(sender: Attested, body: bytes) -> Receipt:
            await trio.lowlevel.checkpoint()
            TaskOffer.FromString(body)
            return accepted()

        messenger.serve({"cards": handle})
        asked = request(body=b"\xff\xff\xff")
        receipt = read_receipt(await messenger.receive(attested(NODES[PEER]), asked), asked)
        assert (receipt.status, receipt.reason) == (Receipt.STATUS_REFUSED, "the cards does not parse")
        assert messenger.counters()["refused.envelope_malformed"] == 1

    with_messenger(tmp_path, main)


# -- pace --------------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("S7")
def test_who_sends_too_fast_is_told_to_wait_and_no_handler_works_for_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            guard, handled = gate(database), []
            messenger = Messenger(guard, Wire(), pace=Pace(PaceLimits(per_second=10, burst=3, retry_after_ms=5)))

            async def handle(sender: Attested, body: bytes) -> Receipt:
                await trio.lowlevel.checkpoint()
                handled.append(sender.organization)
                return accepted()

            async def send(signer: str) -> Receipt:
                answer = await messenger.receive(attested(NODES[signer]), request(signer))
                return Receipt.FromString(open_message(answer, {"receipt"}).body)

            messenger.serve({"cards": handle})
            receipts = [await send(PEER) for _ in range(5)]
            assert [one.status == Receipt.STATUS_BUSY for one in receipts] == [False] * 3 + [True] * 2
            assert (receipts[-1].code, receipts[-1].retry_after_ms) == ("busy", 100)
            assert (await send(OTHER)).status == Receipt.STATUS_ACCEPTED, "each organization has a pace of its own"
            guard.now_ms = lambda: NOW_MS + 100
            assert [(await send(PEER)).status for _ in range(2)] == [Receipt.STATUS_ACCEPTED, Receipt.STATUS_BUSY]
            assert handled == [PEER] * 3 + [OTHER, PEER]
            assert messenger.counters() == {"received.cards": 8, "busy.too_fast": 3}

    trio.run(main)


@pytest.mark.invariant("S7")
@pytest.mark.invariant("S7")
def test_refused_messages_do_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main(messenger: Messenger, _: Wire) -> None:
        async def handle(sender: Attested, body: bytes) -> Receipt:
            await trio.lowlevel.checkpoint()
            raise AgreementError("no")

        messenger.serve({"cards": handle})
        for number in range(100):
            with pytest.raises(EnvelopeMalformed):
                await messenger.receive(attested(NODES[PEER]), b"garbage")
            if number < 12:  # of one epoch each
                await messenger.receive(attested(NODES[PEER]), request())
        assert messenger.counters()["refused.envelope_malformed"] == 100
        assert messenger.counters()[f"refused.{AgreementError.code}"] == 12
        with pytest.raises(EnvelopeMalformed):
            await messenger.receive(attested(NODES[OTHER]), b"garbage")

    with_messenger(tmp_path, main)
    lines = [record.getMessage() for record in caplog.records]
    assert sum(PEER in line for line in lines) == 20
    assert sum(OTHER in line for line in lines) == 1, "another organization has a share of its own"


def test_a_bucket_holds_no_more_than_its_burst_and_survives_a_clock_that_goes_back() -> None:
    pace = Pace(PaceLimits(per_second=200, burst=500, retry_after_ms=100))
    assert [pace.take(PEER, 0) for _ in range(501)] == [0] * 500 + [100]
    assert pace.take(PEER, -3_600_000) == 100
    assert pace.take(PEER, 3_600_000) == 0
    assert sum(pace.take(PEER, 3_600_000) == 0 for _ in range(1000)) == 499
    sustained = sum(pace.take(PEER, 3_600_000 + at_ms) == 0 for at_ms in range(10_000))
    assert 1990 <= sustained <= 2000
    slow = Pace(PaceLimits(per_second=0.5, burst=1))
    assert [slow.take(PEER, 0), slow.take(PEER, 0)] == [0, 2000]


# -- asking ------------------------------------------------------------------------------------------------------------


def answer(
    payload: bytes, *, signer: str = PEER, to: str = ME, reply_to: bytes | None = None, body: bytes = b""
) -> bytes:
    asked = open_message(payload, {"cards"}).header.id
    return seal(
        NODES[signer].key,
        "receipt",
        body or Receipt(status=Receipt.STATUS_ACCEPTED, body=b"here").SerializeToString(),
        audience=NODES[to].peer_id,
        message_id=random.randbytes(16),
        now_ms=NOW_MS,
        in_reply_to=asked if reply_to is None else reply_to,
    )


def test_asking(tmp_path: Path) -> None:
    async def main(messenger: Messenger, wire: Wire) -> None:
        wire.answer = answer
        assert messenger.reachable(PEER)
        receipt = await messenger.ask(PEER, "cards", b"hello")
        assert receipt.body == b"here"
        sent = open_message(wire.sent[0], {"cards"})
        assert (sent.header.audience, sent.body) == (NODES[PEER].peer_id, b"hello")
        wire.linked = False
        assert not messenger.reachable(PEER)
        with pytest.raises(PeerUnreachable, match=f"no node of {PEER} is linked"):
            await messenger.ask(PEER, "cards", b"hello")
        assert len(wire.sent) == 1

    with_messenger(tmp_path, main)


def test_a_question_is_sent_in_its_class(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            wire = ClassedWire(answer=answer)
            messenger = Messenger(gate(database), wire)
            await messenger.ask(PEER, "cards", b"hello")
            for priority in Priority:
                await messenger.ask(PEER, "cards", b"hello", priority=priority)
            assert wire.classes == [Priority.WORK, *Priority]

    trio.run(main)


def test_questions_that_are_asked_together_are_answered_each_for_itself(tmp_path: Path) -> None:
    """Two whole nodes: requests and receipts are signed in batches, and each finds its own."""

    async def main() -> None:
        async with open_database(tmp_path / "a.db") as mine, open_database(tmp_path / "b.db") as theirs:
            server = Messenger(gate(theirs, PEER), Wire())

            async def handle(sender: Attested, body: bytes) -> Receipt:
                await trio.lowlevel.checkpoint()
                return accepted(body[::-1] + sender.organization.encode())

            server.serve({"cards": handle})

            class Near(Wire):
                async def request(self, peer_id: str, payload: bytes, deadline_s: float) -> bytes:
                    self.sent.append(payload)
                    return await server.receive(attested(NODES[ME]), payload)

            near = Near()
            client = Messenger(gate(mine), near)

            async def ask(number: int) -> None:
                receipt = await client.ask(PEER, "cards", b"%03d" % number)
                assert receipt.body == (b"%03d" % number)[::-1] + ME.encode()

            for _ in range(3):
                async with trio.open_nursery() as nursery:
                    for number in range(200):
                        nursery.start_soon(ask, number)
            assert len(near.sent) == 600
            assert len({Envelope.FromString(payload).signature[:64] for payload in near.sent}) < 60

    trio.run(main)


@pytest.mark.invariant("S7")
def test_by_default_an_organization_is_bounded_too() -> None:
    pace = Pace()
    assert sum(pace.take(PEER, 0) == 0 for _ in range(20_000)) == 10_000
    assert sum(pace.take(PEER, 1_000) == 0 for _ in range(20_000)) == 5_000


@pytest.mark.invariant("S2")
@pytest.mark.invariant("S5")
def test_an_answer_counts_only_from_the_peer_that_was_asked_and_for_this_question(tmp_path: Path) -> None:
    first: list[bytes] = []

    def again(payload: bytes) -> bytes:
        first.append(answer(payload))
        return first[0]

    answers: list[tuple[Callable[[bytes], bytes], type[ComityError]]] = [
        (lambda payload: answer(payload, reply_to=bytes(16)), ReplayedMessage),
        (lambda payload: answer(payload, reply_to=b""), ReplayedMessage),
        (lambda payload: answer(payload, signer=OTHER), SignatureInvalid),
        (lambda payload: answer(payload, to=OTHER), WrongAudience),
        (lambda payload: answer(payload, body=b"\xff\xff"), EnvelopeMalformed),
        (lambda payload: payload, EnvelopeError),
        (lambda payload: b"", EnvelopeMalformed),
    ]

    async def main(messenger: Messenger, wire: Wire) -> None:
        for each, error in answers:
            wire.answer = each
            with pytest.raises(error):
                await messenger.ask(PEER, "cards", b"hello")
        wire.answer = again
        await messenger.ask(PEER, "cards", b"hello")
        with pytest.raises(ReplayedMessage):
            await messenger.ask(PEER, "cards", b"hello")

    with_messenger(tmp_path, main)


@pytest.mark.invariant("S7")
def test_the_texts_of_a_receipt_are_cut(tmp_path: Path) -> None:
    """They go to the journal, to logs and to terminals."""
    loud = Receipt(
        status=Receipt.STATUS_REFUSED,
        code="c" * 100_000,
        reason="\x1b[2J\u202e\n" + "r" * 1_000_000,
        rules=["x" * 10_000] * 100,
    )
    plain = Receipt(status=Receipt.STATUS_REFUSED, code="policy_denied", reason="Größe: 7 €", rules=["never-raw"])

    async def main(messenger: Messenger, wire: Wire) -> None:
        wire.answer = lambda payload: answer(payload, body=loud.SerializeToString())
        receipt = await messenger.ask(PEER, "cards", b"hello")
        assert (len(receipt.code), len(receipt.reason), len(receipt.rules)) == (64, 512, 16)
        assert {len(rule) for rule in receipt.rules} == {128}
        assert receipt.reason.startswith(" [2J  rrr")
        wire.answer = lambda payload: answer(payload, body=plain.SerializeToString())
        assert await messenger.ask(PEER, "cards", b"hello") == plain

    with_messenger(tmp_path, main)
