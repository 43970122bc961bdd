"""A decision in the audit log can be asked again: the request that it was about is kept, once, within bounds."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from comity.errors import AuditBroken
from comity_node.admission import Gate, Question
from comity_node.admission.shapes import Shapes, find_request, make_shape
from comity_node.policy.cases import read_request
from comity_node.policy.model import ACTIONS, KINDS, Request
from comity_node.storage import audit, shapes
from comity_node.storage.connections import connect_writer, create
from comity_node.storage.database import Database, open_database
from comity_node.strictyaml import loads
from kit.consortium import NOW_MS, names
from kit.documents import DATASET, PURPOSE
from kit.enforcing import make_gate
from kit.lab import policy

ME, PEER, OTHER = names(3)


def request(**changes: Any) -> Request:
    usual: dict[str, Any] = {
        "action": "record.send",
        "organization": PEER,
        "role": "validator",
        "purpose": PURPOSE,
        "dataset": DATASET,
        "kind": "synthetic",
        "fields": frozenset({"x", "label"}),
    }
    return Request(**{**usual, **changes})


def connection(path: Path) -> Any:
    create(path)
    return connect_writer(path, None)


@pytest.mark.invariant("S8")
def test_a_decision_of_the_log_can_be_asked_again(tmp_path: Path) -> None:
    asked = [
        request(),
        request(labels={"records": 100, "min_score": 0.75, "tunnel": "a:b", "distinct_organizations": True}),
        request(action="record.release", kind="certified"),
        request(action="agent.discover", role="", purpose="", dataset="", kind="", fields=frozenset()),
    ]

    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            gate = await make_gate(database, policy(ME, forbid=["record.release"]), lambda: NOW_MS)
            before = await gate.decide([Question(each) for each in asked])
            stored = await database.read(audit.entries)
            for entry, decided, wanted in zip(stored, before, asked, strict=True):
                digest = bytes.fromhex(str(entry.entry.detail["request"]))
                found = await database.read(partial(find_request, digest=digest))
                assert found == wanted
                again = gate.policy.decide(found)
                assert (again.allowed, again.rules, again.reason) == (decided.allowed, decided.rules, decided.reason)
                assert entry.entry.decision == ("allow" if again.allowed else "deny")

    trio.run(main)


def test_requests_that_are_alike_are_kept_once_and_the_time_is_the_entrys(tmp_path: Path) -> None:
    async def decide(gate: Gate, at_ms: int) -> None:
        await gate.decide([Question(request(labels={"time_ms": at_ms, "records": 3})) for _ in range(50)])

    async def count(database: Database) -> int:
        return int(await database.read(lambda c: c.execute("SELECT count(*) FROM request_shapes").fetchone()[0]))

    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            gate = await make_gate(database, policy(ME), lambda: NOW_MS)
            await decide(gate, NOW_MS)
            await decide(gate, NOW_MS + 1)
            assert await count(database) == 1
            # A gate that remembers nothing, as after a restart, stores nothing twice.
            await decide(await make_gate(database, policy(ME), lambda: NOW_MS), NOW_MS + 2)
            assert await count(database) == 1
            entry = (await database.read(audit.entries))[-1]
            digest = bytes.fromhex(str(entry.entry.detail["request"]))
            found = await database.read(lambda c: find_request(c, digest, at_ms=entry.at_ms))
            assert found is not None
            assert found.labels == {"records": 3, "time_ms": entry.at_ms}

    trio.run(main)


def test_a_shape_whose_transaction_failed_is_stored_by_the_next_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            gate = await make_gate(database, policy(ME), lambda: NOW_MS)
            await database.transact(lambda c: c.execute("ALTER TABLE audit_head RENAME TO away").fetchall())
            with pytest.raises(Exception, match="audit_head"):
                await gate.decide([Question(request())])
            await database.transact(lambda c: c.execute("ALTER TABLE away RENAME TO audit_head").fetchall())
            await gate.decide([Question(request())])
            digest = bytes.fromhex(make_shape(request()).digest)
            assert await database.read(lambda c: find_request(c, digest)) == request()

    trio.run(main)


@pytest.mark.invariant("S7")
def test_an_organization_can_fill_its_own_room_for_requests_and_no_more(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            gate = await make_gate(database, policy(ME), lambda: NOW_MS)
            many = [request(labels={"records": number}) for number in range(1030)]
            assert all(one.allowed for one in await gate.decide([Question(each) for each in many]))
            (other,) = await gate.decide([Question(request(organization=OTHER))])
            assert other.allowed
            entries = await database.read(audit.entries)
            assert len(entries) == 1000  # a page
            entries += await database.read(lambda c: audit.entries(c, start=1000))
            digests = [bytes.fromhex(str(one.entry.detail["request"])) for one in entries]
            found = await database.read(lambda c: [find_request(c, digest) for digest in digests])
            assert [one is not None for one in found] == [True] * 1024 + [False] * 6 + [True]

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_request_of_many_kilobytes_is_decided_on_and_not_kept(tmp_path: Path) -> None:
    rows = connection(tmp_path / "node.db")
    huge = make_shape(request(fields=frozenset(f"field{number:06}" for number in range(2000))))
    assert len(huge.data) > 16 * 1024
    assert not shapes.put_shape(rows, bytes.fromhex(huge.digest), huge.data, PEER)
    assert rows.execute("SELECT count(*) FROM request_shapes").fetchone()[0] == 0
    rows.close()


def test_a_request_without_a_canonical_form_is_decided_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            gate = await make_gate(database, policy(ME), lambda: NOW_MS)
            await gate.decide([Question(request(labels={"bytes": 2**60}))])
            (entry,) = await database.read(audit.entries)
            assert "request" not in entry.entry.detail

    trio.run(main)


def test_a_stored_request_that_was_changed_is_noticed(tmp_path: Path) -> None:
    rows = connection(tmp_path / "node.db")
    shape = make_shape(request())
    digest = bytes.fromhex(shape.digest)
    assert shapes.put_shape(rows, digest, shape.data, PEER)
    rows.execute("UPDATE request_shapes SET shape = ?", (make_shape(request(role="trainer")).data,))
    with pytest.raises(AuditBroken, match="another one"):
        find_request(rows, digest)
    rows.close()


WORDS = st.sampled_from(["", "a", "b.c", "ß"])
REQUESTS = st.builds(
    Request,
    action=st.sampled_from(sorted(ACTIONS)),
    organization=st.sampled_from(names(3)),
    role=WORDS,
    purpose=WORDS,
    dataset=WORDS,
    kind=st.sampled_from(["", *KINDS]),
    fields=st.frozensets(st.sampled_from(["x", "notes.free_text", "ä"])),
    labels=st.dictionaries(st.sampled_from(["records", "score"]), st.floats(-1e9, 1e9)).map(MappingProxyType),
)


@given(REQUESTS)
def test_a_shape_reads_as_a_case_of_a_policys_tests_does(asked: Request) -> None:
    shape = make_shape(asked)
    assert read_request(loads(shape.data, "shape.json")) == asked
    assert json.loads(shape.data)["action"] == asked.action


@pytest.mark.invariant("S7")
def test_shapes_that_are_remembered_are_few_and_small() -> None:
    remembered = Shapes()
    first = remembered.of(request(labels={"records": 0}))
    assert remembered.of(request(labels={"records": 0})) is first
    for number in range(1, 256):
        remembered.of(request(labels={"records": number}))
    assert remembered.of(request(labels={"records": 0})) is first
    remembered.of(request(labels={"records": 256}))
    assert remembered.of(request(labels={"records": 0})) is not first
    small, large = (request(fields=frozenset(f"f{number}" for number in range(count))) for count in (1024, 1025))
    assert remembered.of(small) is remembered.of(small)
    assert remembered.of(large) is not remembered.of(large)


@pytest.mark.invariant("S8")
def test_a_decision_about_the_time_of_day_is_made_and_can_be_asked_again(tmp_path: Path) -> None:
    when = 'when: {time: {from: "08:00", to: "18:00"}}'
    rule = f'id: office, effect: allow, action: news.send, to: {{organization: "*"}}, {when}'
    clock = [0]

    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            gate = await make_gate(database, f"{policy(ME)}\n  - {{{rule}}}", lambda: clock[0])
            seen = []
            for hour in (7, 8, 17, 18):
                clock[0] = NOW_MS // 86_400_000 * 86_400_000 + hour * 3_600_000
                assert gate.consider(Request("news.send", PEER)).allowed is (8 <= hour < 18)
                (decided,) = await gate.decide([Question(Request("news.send", PEER))])
                seen.append(decided.allowed)
            assert seen == [False, True, True, False]
            entries = await database.read(audit.entries)
            assert len({entry.entry.detail["request"] for entry in entries}) == 1
            for entry, allowed in zip(entries, seen, strict=True):
                digest = bytes.fromhex(str(entry.entry.detail["request"]))
                find = partial(find_request, digest=digest, at_ms=entry.at_ms)
                found = await database.read(find)
                assert found is not None
                assert gate.policy.decide(found).allowed is allowed

    trio.run(main)
