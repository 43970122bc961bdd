"""The gate at the edges: each test here goes red for a line of `admission.gate` that is a little wrong."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from comity.digest import sha256
from comity.envelope import seal
from comity.errors import ApprovalPending, ConfigError, OwnCertificateExpired, PolicyDenied
from comity_node.admission import Gate, Question
from comity_node.admission.gate import used_up
from comity_node.admission.knowledge import RELIABILITY, Knowledge
from comity_node.policy.conditions import TIME
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Request
from comity_node.storage.database import Database, open_database
from comity_node.storage.reliability import add_agreement, add_disagreement
from kit.consortium import NOW_MS, attested, names
from kit.documents import DATASET, PURPOSE
from kit.enforcing import NODES, make_gate
from kit.lab import policy

ME, PEER, OTHER = names(3)
SUBJECT = sha256(b"a record")
RELIABLE = (
    policy(ME, without=["news.send"])
    + '\n  - {id: reliable, effect: allow, action: news.send, to: {organization: "*"}, when: {reliability: {min: 0.4}}}'
)


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


def with_gate(
    path: Path, main: Callable[[Gate, Database], Awaitable[None]], text: str = "", clock: Clock | None = None
) -> None:
    async def outer() -> None:
        async with open_database(path / "node.db") as database:
            await main(await make_gate(database, text or policy(ME), clock or Clock()), database)

    trio.run(outer)


def question(action: str = "record.send", organization: str = PEER) -> Question:
    request = Request(action, organization, "validator", PURPOSE, DATASET, "synthetic", frozenset({"x", "label"}))
    return Question(request, SUBJECT)


@pytest.mark.invariant("S3")
def test_a_policy_of_another_organization_takes_no_ones_place(tmp_path: Path) -> None:
    async def main(gate: Gate, _: Database) -> None:
        before = gate.policy
        with pytest.raises(PolicyDenied, match=f"the policy is of {PEER}"):
            await gate.replace(loads_policy(policy(PEER)))
        assert gate.policy is before

    with_gate(tmp_path, main)


def test_what_was_learned_about_others_counts_from_then_on(tmp_path: Path) -> None:
    """For a policy that takes the place of one, for who looks first, and for who asks at once."""
    request = Request("news.send", PEER)

    async def learn(database: Database, agreed: float, disagreed: float) -> None:
        def write(connection: sqlite3.Connection) -> None:
            for role in ("generator", "reviewer"):
                add_agreement(connection, PEER, role, agreed, now_ms=NOW_MS)
                add_disagreement(connection, PEER, role, disagreed, now_ms=NOW_MS)

        await database.transact(write)

    async def main(gate: Gate, database: Database) -> None:
        await learn(database, 0, 9)
        await gate.replace(loads_policy(RELIABLE))
        assert not gate.consider(request).allowed, "read when the policy came"
        assert gate.consider(replace(request, organization=OTHER)).allowed, "nothing known is 0.5"
        await learn(database, 99, 0)
        assert not gate.consider(request).allowed
        await gate.look()
        assert gate.consider(request).allowed
        await learn(database, 0, 999)
        assert (await gate.decide([Question(request)]))[0].rules == ()
        assert (await gate.decide([Question(replace(request, organization=OTHER))]))[0].rules == ("reliable",)

    with_gate(tmp_path, main)


def test_what_a_request_says_is_written_once(tmp_path: Path) -> None:
    statements = list[str]()

    async def main(gate: Gate, database: Database) -> None:
        await database.transact(lambda connection: connection.set_trace_callback(statements.append))
        for wanted in (True, False, False):
            statements.clear()
            assert (await gate.demand(question())).allowed
            assert any("request_shapes" in each for each in statements) is wanted

    with_gate(tmp_path, main)


def test_the_nodes_log_says_who_waits_for_a_person_and_what_that_one_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(gate: Gate, _: Database) -> None:
        with caplog.at_level(logging.INFO), pytest.raises(ApprovalPending) as caught:
            await gate.demand(question())
        assert caught.value.deadline_ms == NOW_MS + 3_600_000
        name = caught.value.approval[:12]
        assert caplog.messages[-1].endswith(f"comity approvals approve {name}")
        with pytest.raises(ConfigError, match="the reason has 501 characters"):
            await gate.approvals.decide(name, approve=True, reason="x" * 501)
        with caplog.at_level(logging.INFO):
            row = await gate.approvals.decide(name, approve=True, reason="x" * 500)
        assert row.reason == "x" * 500
        assert caplog.messages[-1] == f"approval {name} of record-send: approved"

    with_gate(tmp_path, main, policy(ME, obligations={"record.send": "approval: {within: 1h}"}))


def test_an_id_has_sixteen_bytes(tmp_path: Path) -> None:
    async def main(gate: Gate, _: Database) -> None:
        assert len(gate.new_id()) == len(gate.message_id(PEER)) == 16

    with_gate(tmp_path, main)


def test_a_node_signs_until_its_certificate_expires(tmp_path: Path) -> None:
    clock = Clock()

    async def main(gate: Gate, _: Database) -> None:
        audience = NODES[PEER].peer_id
        clock.now_ms = gate.identity.valid_ms[1]
        assert await gate.seal("cards", b"", audience=audience, message_id=bytes(16))
        clock.now_ms += 1
        with pytest.raises(OwnCertificateExpired):
            await gate.seal("cards", b"", audience=audience, message_id=bytes(16))

    with_gate(tmp_path, main, clock=clock)


@pytest.mark.invariant("S5")
def test_the_mark_is_written_when_it_moves_and_not_for_each_message(tmp_path: Path) -> None:
    statements = list[str]()

    async def main(gate: Gate, database: Database) -> None:
        await database.transact(lambda connection: connection.set_trace_callback(statements.append))
        for number, commits in ((0, 1), (1, 0), (2, 0)):
            statements.clear()
            sealed = seal(
                NODES[PEER].key, "cards", b"", audience=NODES[ME].peer_id,
                message_id=bytes(15) + bytes([number]), now_ms=NOW_MS,
            )  # fmt: skip
            await gate.open(attested(NODES[PEER]), sealed, {"cards"})
            assert statements.count("COMMIT") == commits

    with_gate(tmp_path, main)


def test_a_rate_that_is_used_up_is_told_of_denials_alone(tmp_path: Path) -> None:
    async def main(gate: Gate, _: Database) -> None:
        allowed, denied = await gate.decide([question(), question()])
        assert (allowed.allowed, denied.allowed) == (True, False)
        assert allowed.obligations.rates
        assert used_up(allowed) is None
        assert used_up(denied) == allowed.obligations.rates[0]
        (never,) = await gate.decide([question("record.release")])
        assert used_up(never) is None

    text = policy(ME, obligations={"record.send": "rate: {records: 1, per: 1m}"}, forbid=["record.release"])
    with_gate(tmp_path, main, text)


ASKED = {
    "nothing": "",
    "time": ', when: {time: {from: "08:00", to: "18:00"}}',
    "reliability": ", when: {reliability: {min: 0.4}}",
    "both": ', when: {reliability: {min: 0.4}, time: {from: "08:00", to: "18:00"}}',
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_request_gets_what_a_rule_asks_about_and_nothing_else(tmp_path: Path, asked: str) -> None:
    text = f'  - {{id: one, effect: allow, action: "*", with: {{organization: "*"}}{ASKED[asked]}}}'
    known = loads_policy(f"version: 1\norganization: {ME}\nrules:\n{text}\n")
    wanted = {"nothing": set(), "both": {TIME, RELIABILITY}, "time": {TIME}, "reliability": {RELIABILITY}}[asked]

    async def main(_: Gate, database: Database) -> None:
        knowledge = Knowledge(database)
        await database.transact(lambda c: add_agreement(c, PEER, "reviewer", 8, now_ms=0))
        await knowledge.refresh(known, 0)
        for action, reliability in (("record.send", 0.9), ("record.receive", 0.5), ("news.send", 0.5)):
            request = Request(action, PEER, labels={"records": 3})
            full = knowledge.complete(known, request, NOW_MS)
            values = {TIME: NOW_MS, RELIABILITY: reliability}
            assert full.labels == {"records": 3, **{name: values[name] for name in wanted}}
            assert (full is request) is not bool(wanted)
        assert knowledge.adds(known) is bool(wanted)

    with_gate(tmp_path, main)
