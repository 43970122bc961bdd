"""The gate: nothing passes without a decision, a message once, and what was decided is on disk."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.digest import sha256
from comity.envelope import open_message, seal
from comity.errors import (
    ComityError,
    EnvelopeMalformed,
    PolicyDenied,
    ReplayedMessage,
    SignatureInvalid,
    StaleMessage,
    StorageError,
    WrongAudience,
)
from comity.v1 import envelope_pb2
from comity_node.admission import Gate, Question
from comity_node.admission.gate import stored_high_water_ms
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Request
from comity_node.protocol.freshness import Freshness
from comity_node.storage import audit
from comity_node.storage.database import Database, open_database
from kit.consortium import NOW_MS, attested, consortium, names
from kit.documents import DATASET, PURPOSE
from kit.lab import policy

ME, PEER, OTHER = names(3)
NODES = consortium(*names(3)).nodes
SUBJECT = sha256(b"a record")


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


async def make_gate(database: Database, text: str, clock: Callable[[], int]) -> Gate:
    mark = await database.read(stored_high_water_ms)
    return Gate(
        identity=NODES[ME],
        policy=loads_policy(text),
        database=database,
        freshness=Freshness(NODES[ME].peer_id, high_water_ms=mark),
        now_ms=clock,
        random_bytes=random.randbytes,
    )


def with_gate(
    path: Path, main: Callable[[Gate, Database], Awaitable[None]], text: str = "", clock: Clock | None = None
) -> None:
    """Run `main` with a gate over the database at `path`, as one run of a node."""

    async def outer() -> None:
        async with open_database(path) as database:
            await main(await make_gate(database, text or policy(ME), clock or Clock()), database)

    trio.run(outer)


def question(action: str = "record.send", organization: str = PEER, **changes: Any) -> Question:
    request = Request(
        action=action,
        organization=organization,
        role="validator",
        purpose=PURPOSE,
        dataset=DATASET,
        kind="synthetic",
        fields=frozenset({"x", "label"}),
    )
    return Question(request, **{"subject": SUBJECT, **changes})


def logged(path: Path) -> list[tuple[str, str, tuple[str, ...], str]]:
    """(action, decision, rules, peer) of each entry that is on disk."""

    async def read() -> list[tuple[str, str, tuple[str, ...], str]]:
        async with open_database(path) as database:
            stored = [each.entry for each in await database.read(audit.entries)]
            assert all(one.subject == SUBJECT for one in stored)
            return [(one.action, one.decision, one.rules, one.peer) for one in stored]

    return trio.run(read)


@pytest.mark.invariant("S1")
@pytest.mark.invariant("S8")
def test_allow_and_deny_are_both_written_down(tmp_path: Path) -> None:
    path = tmp_path / "node.db"

    async def main(gate: Gate, _: Database) -> None:
        assert (await gate.demand(question())).rules == ("record-send",)
        with pytest.raises(PolicyDenied, match="forbidden by no-record-release") as caught:
            await gate.demand(question("record.release"))
        assert caught.value.rules == ("no-record-release",)
        with pytest.raises(PolicyDenied):
            await gate.demand(question("review.send"))

    with_gate(path, main, policy(ME, forbid=["record.release"], without=["review.send"]))
    assert logged(path) == [
        ("record.send", "allow", ("record-send",), PEER),
        ("record.release", "deny", ("no-record-release",), PEER),
        ("review.send", "deny", (), PEER),
    ]
    audit.verify_file(path, None)


@pytest.mark.invariant("S8")
def test_without_room_for_the_entry_there_is_no_decision(tmp_path: Path) -> None:
    """A decision that cannot be written down has no effect."""

    async def main(gate: Gate, database: Database) -> None:
        await database.transact(
            lambda c: c.execute(
                "CREATE TRIGGER full BEFORE INSERT ON audit_entries BEGIN SELECT RAISE(ABORT, 'no room'); END"
            )
        )
        with pytest.raises(ComityError, match="no room"):
            await gate.demand(question())

    with_gate(tmp_path / "node.db", main)


@pytest.mark.invariant("S3")
def test_a_gate_takes_only_its_own_organizations_policy(tmp_path: Path) -> None:
    async def main(_: Gate, database: Database) -> None:
        with pytest.raises(PolicyDenied, match=f"the policy is of {PEER}"):
            await make_gate(database, policy(PEER), Clock())

    with_gate(tmp_path / "node.db", main)


@pytest.mark.invariant("S1")
@pytest.mark.invariant("R2")
def test_a_rate_is_counted_across_restarts_and_names_its_rule(tmp_path: Path) -> None:
    path, clock = tmp_path / "node.db", Clock()
    text = policy(ME, obligations={"record.send": "rate: {records: 3, per: 1m}"})

    async def first(gate: Gate, _: Database) -> None:
        decisions = await gate.decide([question(), question()])
        assert [one.allowed for one in decisions] == [True, True]

    async def second(gate: Gate, _: Database) -> None:
        decisions = await gate.decide([question(), question(organization=OTHER), question(amount=2)])
        assert [one.allowed for one in decisions] == [True, False, False]
        assert decisions[1].rules == ("record-send",)
        assert "rate of rule record-send is used up: 3 records in 60 s" in decisions[1].reason

    async def third(gate: Gate, _: Database) -> None:
        assert (await gate.demand(question(amount=3))).allowed

    with_gate(path, first, text, clock)
    clock.now_ms += 1_000
    with_gate(path, second, text, clock)
    clock.now_ms += 61_000
    with_gate(path, third, text, clock)
    assert [decision for _, decision, _, _ in logged(path)] == ["allow"] * 3 + ["deny"] * 2 + ["allow"]


@pytest.mark.invariant("R2")
def test_a_decision_that_one_rate_denies_uses_up_no_other(tmp_path: Path) -> None:
    text = policy(ME, obligations={"record.send": "rate: {records: 5, per: 1m}"}) + (
        '\n  - {id: at-night, effect: allow, action: record.send, with: {organization: "*"},'
        " obligations: {rate: {records: 2, per: 1m}}}"
    )

    async def main(gate: Gate, _: Database) -> None:
        decisions = [(await gate.decide([question(amount=amount)]))[0] for amount in (1, 2, 2, 2, 1, 1)]
        assert [one.allowed for one in decisions] == [True, False, False, False, True, False]
        assert decisions[1].rules == ("at-night",)

    with_gate(tmp_path / "node.db", main, text)


@pytest.mark.invariant("S8")
def test_calls_that_come_together_share_a_commit_and_keep_their_order(tmp_path: Path) -> None:
    path, statements = tmp_path / "node.db", list[str]()
    text = policy(ME, obligations={"record.send": "rate: {records: 7, per: 1m}"})

    async def main(gate: Gate, database: Database) -> None:
        allowed = list[bool]()

        async def ask(number: int) -> None:
            (decision,) = await gate.decide([question(agreement=bytes([number]) * 32)])
            entries = await database.read(audit.entries)
            assert [one.entry.decision for one in entries if one.entry.agreement == bytes([number]) * 32] == [
                "allow" if decision.allowed else "deny"
            ], "the entry is on disk before the decision is known"
            allowed.append(decision.allowed)

        await database.transact(lambda connection: connection.set_trace_callback(statements.append))
        statements.clear()
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, number)
        assert sorted(allowed) == [False] * 13 + [True] * 7

    with_gate(path, main, text)
    assert statements.count("COMMIT") <= 3
    assert [decision for _, decision, _, _ in logged(path)] == ["allow"] * 7 + ["deny"] * 13
    assert audit.verify_file(path, None).entries == 20


@pytest.mark.invariant("S8")
def test_an_entry_that_cannot_be_written_costs_only_its_own_caller(tmp_path: Path) -> None:
    path = tmp_path / "node.db"

    async def main(gate: Gate, _: Database) -> None:
        async def ask(too_large: bool) -> None:
            asked = question()
            if not too_large:
                assert (await gate.demand(asked)).allowed
                return
            with pytest.raises(StorageError, match="an audit entry has"):
                await gate.decide([asked, replace(asked, subject=b"s" * 20_000)])

        async with trio.open_nursery() as nursery:
            for number in range(9):
                nursery.start_soon(ask, number % 3 == 0)

    with_gate(path, main)
    assert len(logged(path)) == 6, "nothing of a call that failed"
    audit.verify_file(path, None)


def test_messages_that_are_sealed_together_share_a_signature(tmp_path: Path) -> None:
    async def main(gate: Gate, _: Database) -> None:
        sealed_now: dict[str, bytes] = {}

        async def send(to: str, body: str) -> None:
            audience = NODES[to].peer_id
            sealed_now[body] = await gate.seal(
                "cards", body.encode(), audience=audience, message_id=gate.message_id(audience)
            )

        await send(PEER, "alone")
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(send, PEER, f"to a peer {number}")
                nursery.start_soon(send, OTHER, f"to another {number}")
        signatures = {signature(data) for body, data in sealed_now.items() if body != "alone"}
        assert len(signatures) == 1
        assert signature(sealed_now["alone"]) not in signatures
        assert sealed_now["alone"][-66:-64] == b"\x2a\x40", "the plain form"
        for body, data in sealed_now.items():
            message = open_message(data, {"cards"})
            to = OTHER if "another" in body else PEER
            assert (message.body, message.header.audience) == (body.encode(), NODES[to].peer_id)
            assert message.signer == NODES[ME].key.public_key
        with pytest.raises(EnvelopeMalformed, match="16 bytes"):
            await gate.seal("cards", b"", audience=NODES[PEER].peer_id, message_id=b"short")
        assert len({gate.new_id()[:8] for _ in range(20)}) == 20, "ids that are no message's say nothing"

    with_gate(tmp_path / "node.db", main)


def signature(data: bytes) -> bytes:
    return envelope_pb2.Envelope.FromString(data).signature[:64]


def sealed(
    signer: str = PEER, *, to: str = ME, kind: str = "cards", message_id: bytes = bytes(16), **more: Any
) -> bytes:
    audience = NODES[to].peer_id
    values = {"audience": audience, "message_id": message_id, "now_ms": NOW_MS, **more}
    return seal(NODES[signer].key, kind, b"a body", **values)


def forged() -> bytes:
    """A message whose signature has one bit changed."""
    payload = sealed()
    return payload[:-1] + bytes([payload[-1] ^ 1])


@pytest.mark.invariant("S2")
@pytest.mark.invariant("S5")
def test_a_message_passes_once(tmp_path: Path) -> None:
    async def main(gate: Gate, _: Database) -> None:
        message = await gate.open(attested(NODES[PEER]), sealed(), {"cards"})
        assert (message.kind, message.body, message.signer) == ("cards", b"a body", NODES[PEER].key.public_key)
        with pytest.raises(ReplayedMessage):
            await gate.open(attested(NODES[PEER]), sealed(), {"cards"})
        await gate.open(attested(NODES[OTHER]), sealed(OTHER), {"cards"})  # ids are each signer's own

    with_gate(tmp_path / "node.db", main)


@pytest.mark.invariant("S2")
@pytest.mark.invariant("S5")
@pytest.mark.parametrize(
    ("payload", "error", "reason"),
    [
        (sealed(to=OTHER), WrongAudience, "not for"),
        (sealed(OTHER), SignatureInvalid, "that somebody else signed"),
        (sealed(kind="records"), EnvelopeMalformed, "not expected"),
        (sealed(now_ms=NOW_MS - 200_000), StaleMessage, "expired"),
        (sealed(now_ms=NOW_MS + 200_000), StaleMessage, "from the future"),
        (forged(), SignatureInvalid, "signature"),
        (b"garbage", EnvelopeMalformed, "envelope"),
        (b"", EnvelopeMalformed, "envelope"),
    ],
    ids=["for another", "of another", "kind", "stale", "future", "forged", "garbage", "nothing"],
)
def test_a_message_that_is_refused(tmp_path: Path, payload: bytes, error: type[ComityError], reason: str) -> None:
    async def main(gate: Gate, database: Database) -> None:
        with pytest.raises(error, match=reason):
            await gate.open(attested(NODES[PEER]), payload, {"cards"})
        assert await database.read(stored_high_water_ms) == 0, "what was refused is not remembered"

    with_gate(tmp_path / "node.db", main)


@pytest.mark.invariant("S5")
@pytest.mark.invariant("R2")
def test_a_message_that_was_admitted_is_refused_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "node.db"

    async def first(gate: Gate, database: Database) -> None:
        await gate.open(attested(NODES[PEER]), sealed(), {"cards"})
        assert await database.read(stored_high_water_ms) >= NOW_MS, "on disk before anything is done about it"

    async def second(gate: Gate, _: Database) -> None:
        with pytest.raises(StaleMessage, match="last start"):
            await gate.open(attested(NODES[PEER]), sealed(), {"cards"})
        await gate.open(attested(NODES[PEER]), sealed(now_ms=NOW_MS + 5_000), {"cards"})

    with_gate(path, first)
    with_gate(path, second)
