"""Each obligation: the sender does it, and the receiver refuses what a sender has not done, whoever asks for it."""

from __future__ import annotations

import json
import random
import stat
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from comity.agreement import Agreed
from comity.digest import canonical_json
from comity.errors import Busy, CertificateInvalid, InvalidRecord, KeyFileInvalid, PolicyDenied
from comity.hops import CREATE, SEND, sign_hop
from comity.trust import Attested
from comity.v1.agreement_pb2 import KAnonymity, Noise, Obligations, ReviewTerms
from comity_node.admission import noise as noise_module
from comity_node.admission.attested import NOISE, made_by, spending_of
from comity_node.admission.gate import Gate
from comity_node.admission.pseudonyms import Pseudonyms
from comity_node.admission.records import Dataset, Draft, RecordGate, Refused, to_task
from comity_node.policy.loader import loads_policy
from comity_node.storage import ledgers
from comity_node.storage.database import Database, open_database
from comity_node.validators.distance import PrivateReference
from comity_node.validators.schema import FieldSpec, Schema
from kit.consortium import NOW_MS, attested, consortium, names
from kit.documents import DATASET, agree, make_passage
from kit.enforcing import NODES, make_gate
from kit.lab import policy

HOME, REVIEWER, THIRD = names(3)
LAB = consortium(*names(3))
SCHEMA = Schema(
    "label",
    {"age": FieldSpec("number", 0, 120), "size": FieldSpec("number", 0, 100), "label": FieldSpec("integer", 0, 1)},
)
PRIVATE = np.array([[40.0, 10.0], [50.0, 20.0], [60.0, 30.0], [70.0, 90.0]])
ROWS = [{"age": 101.7, "size": 55.5, "label": 1}, {"age": 11.3, "size": 5.5, "label": 1}]
#: An obligation in an agreement and in a policy; and rows of a sender that has not fulfilled it.
TABLE: dict[str, tuple[Obligations, str, list[dict[str, Any]]]] = {
    "redact": (Obligations(redact=["size"]), "redact: [size]", ROWS),
    "generalize": (Obligations(generalize={"age": 5.0}), "generalize: {age: 5}", ROWS),
    "hash": (Obligations(hash=["size"]), "hash: [size]", ROWS),
    "noise": (
        Obligations(noise={"age": Noise(epsilon=0.5, lower=0, upper=120)}),
        "noise: {age: {epsilon: 0.5, lower: 0, upper: 120}}",
        ROWS,
    ),
    "noise beyond its bounds": (
        Obligations(noise={"age": Noise(epsilon=0.5, lower=20, upper=90)}),
        "noise: {age: {epsilon: 0.5, lower: 20, upper: 90}}",
        ROWS,
    ),
    "k_anonymity": (
        Obligations(k_anonymity=KAnonymity(k=2, fields=["label"])),
        "k_anonymity: {k: 2, fields: [label]}",
        [ROWS[0], {**ROWS[1], "label": 0}],
    ),
    "min_distance": (Obligations(min_distance_to_private=0.2), "min_distance_to_private: 0.2", ROWS),
    "expire": (Obligations(expire_ms=1000), 'expire: "1970-01-02"', ROWS),
}
CASES = pytest.mark.parametrize("owed", TABLE)


class Parties:
    """The gates of a home and of a reviewer."""

    def __init__(self, stack: AsyncExitStack, path: Path) -> None:
        self._stack, self._path = stack, path
        self.gates: dict[str, Gate] = {}
        self.databases: dict[str, Database] = {}

    async def add(self, organization: str, obligations: dict[str, str] | None = None) -> RecordGate:
        database = await self._stack.enter_async_context(open_database(self._path / f"{organization}.db"))
        gate = await make_gate(database, policy(organization, obligations=obligations), lambda: NOW_MS + 1000)
        self.gates[organization], self.databases[organization] = gate, database
        return RecordGate(gate, {DATASET: Dataset(SCHEMA, PrivateReference(SCHEMA, PRIVATE))})


def with_parties(path: Path, main: Callable[[Parties], Awaitable[None]]) -> None:
    async def outer() -> None:
        async with AsyncExitStack() as stack:
            await main(Parties(stack, path))

    trio.run(outer)


def drafts(rows: list[dict[str, Any]]) -> list[Draft]:
    return [Draft(bytes([number]) * 16, 0, canonical_json(row)) for number, row in enumerate(rows)]


def terms(obligations: Obligations) -> Agreed:
    asked = Obligations(onward="never")
    asked.MergeFrom(obligations)
    return agree(LAB, obligations=asked)


LAX = terms(Obligations())


async def pass_on(
    home: RecordGate, reviewer: RecordGate, agreed: Agreed, rows: list[dict[str, Any]], *, as_if: Agreed = LAX,
    change: Callable[[list[Draft]], list[Draft]] = lambda sent: sent,
) -> list[Draft]:  # fmt: skip
    """Have the home prepare and send rows as if they were under `as_if`, and the reviewer take them under `agreed`."""
    ready = await trio.to_thread.run_sync(home.prepare, as_if, drafts(rows))
    sent = await home.send(as_if, [one for one in ready if isinstance(one, Draft)], REVIEWER)
    passed = change([one for one in sent if isinstance(one, Draft)])
    tasks = [to_task(agreed, HOME, one) for one in passed]
    if tasks:
        await reviewer.receive(agreed, tasks, sender(), SEND, "synthetic")
    return passed


def said(one: Draft) -> dict[str, str]:
    """What the hop that made a record attests."""
    made = made_by(one.history)
    assert made is not None
    return dict(made.attested)


def sender() -> Attested:
    return attested(NODES[HOME])


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(
    ("owed", "asked_by"),
    [
        (owed, by)
        for owed in TABLE
        for by in ("the agreement", "the sender's rule")
        # What changes the fields themselves has to be in the agreement: else they do not fit the receiver's schema.
        if not (by == "the sender's rule" and owed in ("redact", "hash"))
    ],
)
def test_the_sender_does_what_is_asked_and_the_receiver_takes_it(tmp_path: Path, owed: str, asked_by: str) -> None:
    obligations, rule, bad = TABLE[owed]

    async def main(parties: Parties) -> None:
        by_rule = asked_by == "the sender's rule"
        home = await parties.add(HOME, {"record.send": rule} if by_rule else None)
        reviewer = await parties.add(REVIEWER)
        agreed = LAX if by_rule else terms(obligations)
        passed = await pass_on(home, reviewer, agreed, bad, as_if=agreed)
        rows = [json.loads(one.record) for one in passed]
        match owed:
            case "redact":
                assert [set(row) for row in rows] == [{"age", "label"}] * 2
            case "generalize":
                assert [row["age"] for row in rows] == [100.0, 10.0]
            case "hash":
                assert all(row["size"].startswith("hmac-sha256:") for row in rows)
            case "noise" | "noise beyond its bounds":
                assert [row["age"] for row in rows] != [row["age"] for row in bad]
                assert [json.loads(said(one)[NOISE])["cost"] for one in passed] == [500_000] * 2
            case "k_anonymity" | "expire":
                assert rows == []
            case "min_distance":
                assert len(rows) == 2
                assert [said(one)["min_distance_to_private"] for one in passed] == ["0.2"] * 2

    with_parties(tmp_path, main)


@pytest.mark.invariant("S1")
@CASES
@pytest.mark.parametrize("asked_by", ["the agreement", "the receiver's rule"])
def test_the_receiver_refuses_what_a_sender_has_not_done(tmp_path: Path, owed: str, asked_by: str) -> None:
    obligations, rule, bad = TABLE[owed]

    async def main(parties: Parties) -> None:
        home = await parties.add(HOME)
        by_rule = asked_by == "the receiver's rule"
        reviewer = await parties.add(REVIEWER, {"record.receive": rule} if by_rule else None)
        agreed = LAX if by_rule else terms(obligations)
        with pytest.raises((PolicyDenied, CertificateInvalid)):
            await pass_on(home, reviewer, agreed, bad)

    with_parties(tmp_path, main)


@pytest.mark.invariant("S1")
@CASES
def test_what_was_made_under_an_older_policy_does_not_leave_under_a_newer_one(tmp_path: Path, owed: str) -> None:
    _, rule, bad = TABLE[owed]

    async def main(parties: Parties) -> None:
        home = await parties.add(HOME)
        ready = home.prepare(LAX, drafts(bad))
        assert all(isinstance(one, Draft) for one in ready)
        await parties.gates[HOME].replace(loads_policy(policy(HOME, obligations={"record.send": rule})))
        sent = await home.send(LAX, [one for one in ready if isinstance(one, Draft)], REVIEWER)
        assert all(isinstance(one, Refused) for one in sent)
        if owed != "k_anonymity":  # that is about the rows together
            task = to_task(LAX, HOME, next(one for one in ready if isinstance(one, Draft)))
            assert home.why_not_now(LAX, task, REVIEWER, action=SEND, kind="synthetic")

    with_parties(tmp_path, main)


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(
    "note",
    [
        "",
        "no JSON",
        "[]",
        '{"cost":1,"paths":{"age":500001},"release":"' + "00" * 32 + '"}',
        '{"cost":1,"paths":{"size":1},"release":"' + "00" * 32 + '"}',
        '{"cost":1,"paths":{"age":1.5},"release":"' + "00" * 32 + '"}',
        '{"cost":-1,"paths":{"age":1},"release":"' + "00" * 32 + '"}',
        '{"cost":1,"paths":{"age":1},"release":"00"}',
        '{"cost":1,"paths":[],"release":"' + "00" * 32 + '"}',
        "[" * 100_000,
    ],
    ids=range(10),
)
def test_an_attestation_of_noise_that_does_not_say_enough(tmp_path: Path, note: str) -> None:
    obligations, _, rows = TABLE["noise"]

    def retold(sent: list[Draft]) -> list[Draft]:
        return [replace(one, history=history(one, {NOISE: note} if note else {})) for one in sent]

    async def main(parties: Parties) -> None:
        home, reviewer = await parties.add(HOME), await parties.add(REVIEWER)
        with pytest.raises(PolicyDenied):
            await pass_on(home, reviewer, terms(obligations), rows, change=retold)

    with_parties(tmp_path, main)


def history(one: Draft, said: dict[str, str]) -> tuple[bytes, ...]:
    made = sign_hop(NODES[HOME], make_passage(CREATE, record=one.record, task_id=one.task_id, attested=said), ())
    sent = make_passage(SEND, record=one.record, task_id=one.task_id, to=REVIEWER)
    return (made, sign_hop(NODES[HOME], sent, (made,)))


def test_enough_attested_noise_is_believed(tmp_path: Path) -> None:
    """The control of the test above: it is the attestation that is refused there."""
    obligations, _, rows = TABLE["noise"]
    note = '{"cost":500000,"paths":{"age":500000},"release":"' + "00" * 32 + '"}'

    async def main(parties: Parties) -> None:
        home, reviewer = await parties.add(HOME), await parties.add(REVIEWER)

        def retold(sent: list[Draft]) -> list[Draft]:
            return [replace(one, history=history(one, {NOISE: note})) for one in sent]

        assert len(await pass_on(home, reviewer, terms(obligations), rows, change=retold)) == 2

    with_parties(tmp_path, main)


@pytest.mark.invariant("R2")
def test_noise_is_paid_for_from_the_budget_once_for_all_who_get_it(tmp_path: Path) -> None:
    rule = "noise: {age: {epsilon: 0.5, lower: 0, upper: 120}}, budget: {epsilon: 1.2}"

    async def main(parties: Parties) -> None:
        home = await parties.add(HOME, {"record.send": rule})
        rows = [{**ROWS[0], "size": float(number)} for number in range(4)]
        ready = [one for one in home.prepare(LAX, drafts(rows)) if isinstance(one, Draft)]
        spent = [spending_of(made_by(one.history)) for one in ready]
        assert len({one.release for one in spent if one is not None}) == 4
        sent = await home.send(LAX, ready, REVIEWER)
        assert [isinstance(one, Draft) for one in sent] == [True, True, False, False]
        assert all("privacy budget" in one.detail for one in sent if isinstance(one, Refused))
        again = await home.send(LAX, ready, THIRD)  # the same bytes
        assert [isinstance(one, Draft) for one in again] == [True, True, False, False]
        anew = [one for one in home.prepare(LAX, drafts(rows)) if isinstance(one, Draft)]  # other noise
        assert all(isinstance(one, Refused) for one in await home.send(LAX, anew, THIRD))
        read = parties.databases[HOME].read
        assert await read(lambda c: ledgers.epsilon_spent(c, '["record-send"]')) == 1_000_000

    with_parties(tmp_path, main)


def test_without_opendp_noise_is_refused_and_the_extra_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    noise_module._mechanism.cache_clear()
    monkeypatch.setitem(sys.modules, "opendp.prelude", None)
    obligations, _, rows = TABLE["noise"]

    async def main(parties: Parties) -> None:
        home = await parties.add(HOME)
        (one, _) = home.prepare(terms(obligations), drafts(rows))
        assert isinstance(one, Refused)
        assert "pip install 'comity[dp]'" in one.detail

    with_parties(tmp_path, main)
    noise_module._mechanism.cache_clear()


def test_noise_is_worth_no_more_than_its_epsilon() -> None:
    """OpenDP's own bound of the mechanism that is used, over a range of what a policy may say."""
    for epsilon in (1e-3, 0.1, 0.3, 1.0, 7.7, 100.0):
        for distance in (1e-3, 1.0, 3.3, 120.0, 1e9):
            assert noise_module._mechanism(epsilon, distance).map(d_in=distance) <= epsilon


def test_noise_has_the_scale_of_its_bounds() -> None:
    from comity_node.policy.lattice import Noise as Form

    source = noise_module.NoiseSource()
    drawn = [abs(source.draw("age", 50.0, Form(2.0, 0, 100)) - 50.0) for _ in range(4000)]
    # The mean of |Laplace(b)| is b = 50, its standard deviation b: over 4000 draws the mean is within 5 sigma of it.
    assert abs(sum(drawn) / len(drawn) - 50.0) < 5 * 50.0 / 4000**0.5
    assert (source.drawn, source.epsilon, source.paths) == (4000, 8000.0, {"age": 2.0})


@pytest.mark.invariant("S1")
def test_rows_that_too_few_are_like_stay_here_with_the_rule_and_the_reason(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "label": 1}] * 3 + [{**ROWS[1], "label": 0}]

    async def main(parties: Parties) -> None:
        home = await parties.add(HOME, {"record.send": "k_anonymity: {k: 2, fields: [label]}"})
        out = home.prepare(LAX, drafts(rows))
        assert [isinstance(one, Draft) for one in out] == [True, True, True, False]
        rare = out[3]
        assert isinstance(rare, Refused)
        assert rare.reason == "k_anonymity"
        assert rare.detail == "fewer than 2 rows of the batch have its values of label"
        ready = [one for one in out if isinstance(one, Draft)]
        # A part of the batch is looked at by itself.
        assert all(isinstance(one, Refused) for one in await home.send(LAX, ready[:1], REVIEWER))
        assert home.together(LAX, ready[:1], REVIEWER) == []
        assert home.together(LAX, ready, REVIEWER) == ready

    with_parties(tmp_path, main)


def test_a_pseudonym_is_the_same_for_all_and_after_a_restart_and_another_organizations_is_another(
    tmp_path: Path,
) -> None:
    seen: list[list[str]] = []

    async def main(parties: Parties) -> None:
        home = await parties.add(HOME, {"record.send": "hash: [size]"})
        ready = [one for one in home.prepare(LAX, drafts([ROWS[0], ROWS[0], ROWS[1]])) if isinstance(one, Draft)]
        seen.append([json.loads(one.record)["size"] for one in ready])

    for _ in range(2):
        with_parties(tmp_path, main)
    assert seen[0] == seen[1]
    assert seen[0][0] == seen[0][1] != seen[0][2]
    key = tmp_path / f"{HOME}.db.pseudonyms"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key.read_bytes() not in (tmp_path / f"{HOME}.db").read_bytes()
    mine = Pseudonyms(tmp_path / f"{HOME}.db", HOME, random.randbytes)
    theirs = Pseudonyms(tmp_path / f"{HOME}.db", REVIEWER, random.randbytes)
    names = {make("size", 55.5) for make in (mine.of(DATASET), mine.of("other"), theirs.of(DATASET))}
    assert len(names) == 3
    assert seen[0][0] in names


@pytest.mark.invariant("S4")
def test_a_key_of_pseudonyms_that_others_can_read_is_refused(tmp_path: Path) -> None:
    Pseudonyms(tmp_path / "node.db", HOME, random.randbytes).of(DATASET)
    key = tmp_path / "node.db.pseudonyms"
    key.chmod(0o640)
    with pytest.raises(KeyFileInvalid, match="chmod 600"):
        Pseudonyms(tmp_path / "node.db", HOME, random.randbytes).of(DATASET)
    key.chmod(0o600)
    key.write_bytes(b"short")
    with pytest.raises(KeyFileInvalid, match="5 bytes, not 32"):
        Pseudonyms(tmp_path / "node.db", HOME, random.randbytes).of(DATASET)


@pytest.mark.invariant("S1")
def test_a_receiver_that_waits_for_a_person_says_later_and_not_no(tmp_path: Path) -> None:
    async def main(parties: Parties) -> None:
        home = await parties.add(HOME)
        reviewer = await parties.add(REVIEWER, {"record.receive": "approval: {within: 1h}"})
        with pytest.raises(Busy, match="a person here has to approve it first"):
            await pass_on(home, reviewer, LAX, ROWS)
        (row,) = await parties.gates[REVIEWER].approvals.list()
        assert row.scope == LAX.digest
        await parties.gates[REVIEWER].approvals.decide(row.approval_id.hex(), approve=True)
        assert len(await pass_on(home, reviewer, LAX, ROWS)) == 2

    with_parties(tmp_path, main)


@pytest.mark.invariant("S1")
def test_a_sender_that_waits_for_a_person_says_until_when(tmp_path: Path) -> None:
    async def main(parties: Parties) -> None:
        home = await parties.add(HOME, {"record.send": "approval: {within: 1h}"})
        ready = [one for one in home.prepare(LAX, drafts(ROWS)) if isinstance(one, Draft)]
        sent = await home.send(LAX, ready, REVIEWER)
        assert [one.until_ms for one in sent if isinstance(one, Refused)] == [NOW_MS + 1000 + 3_600_000] * 2
        (row,) = await parties.gates[HOME].approvals.list()
        await parties.gates[HOME].approvals.decide(row.approval_id.hex(), approve=True)
        assert all(isinstance(one, Draft) for one in await home.send(LAX, ready, REVIEWER))

    with_parties(tmp_path, main)


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ("records: {max: 100}", True),
        ("participants: {max: 3}", True),
        ("bytes: {max: 10}", False),
        ("bytes: {max: 1000}", True),
        ("distance: {min: 0.01}", True),
        ("distance: {min: 1000}", False),
        ("quorum: {min: 1}", True),
        ("reliability: {min: 0.5}", True),
        ("reliability: {min: 0.6}", False),
    ],
)
def test_a_rule_about_what_is_known_of_a_record_can_be_decided(tmp_path: Path, when: str, holds: bool) -> None:
    rule = f'  - {{id: when, effect: allow, action: record.send, to: {{organization: "*"}}, when: {{{when}}}}}'

    async def main(parties: Parties) -> None:
        home = await parties.add(HOME)
        text = "\n".join(line for line in policy(HOME).splitlines() if "record-send" not in line) + f"\n{rule}"
        await parties.gates[HOME].replace(loads_policy(text))
        ready = [one for one in home.prepare(LAX, drafts(ROWS)) if isinstance(one, Draft)]
        sent = await home.send(LAX, ready, REVIEWER)
        details = [one.detail for one in sent if isinstance(one, Refused)]
        assert len(details) == (0 if holds else 2), details
        assert not any("cannot be decided" in detail for detail in details)

    with_parties(tmp_path, main)


PROMISES = {
    "retain": (Obligations(retain_seconds=3600), "retain: 1h"),
    "expire": (Obligations(expire_ms=3_900_000_000_000), 'expire: "2096-01-01"'),
    "onward": (Obligations(onward="with_consent"), "onward: with_consent"),
    "review": (Obligations(), "review: {quorum: 2, min_score: 0.7}"),
}


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("owed", PROMISES)
def test_what_others_have_to_do_is_agreed_or_nothing_leaves(tmp_path: Path, owed: str) -> None:
    """How long it is kept, whether it goes on, who has to certify it: only the agreement binds the others to that."""
    obligations, rule = PROMISES[owed]
    loose = Obligations(onward="allowed")
    strict = Obligations(onward="allowed")
    strict.MergeFrom(obligations)

    async def main(parties: Parties) -> None:
        home = await parties.add(HOME)
        said = rule if owed == "onward" else f"onward: allowed, {rule}"
        text = policy(HOME, obligations={"record.send": "@"}).replace("onward: never, @", said)
        await parties.gates[HOME].replace(loads_policy(text))
        for asked, score, leaves in ((loose, 5000, False), (strict, 7000, True)):
            review = ReviewTerms(eligible=2, faulty=0, quorum=2, min_score=score)
            agreed = agree(LAB, obligations=asked, review=review)
            ready = [one for one in home.prepare(agreed, drafts(ROWS)) if isinstance(one, Draft)]
            out = await home.send(agreed, ready, REVIEWER)
            assert [isinstance(one, Draft) for one in out] == [leaves] * 2
            if not leaves:
                assert all(f"asks for {owed}" in one.detail for one in out if isinstance(one, Refused))

    with_parties(tmp_path, main)


@pytest.mark.invariant("S1")
def test_who_wants_a_certificate_by_more_takes_no_rows_under_an_agreement_that_asks_for_fewer(tmp_path: Path) -> None:
    async def main(parties: Parties) -> None:
        home = await parties.add(HOME)
        reviewer = await parties.add(REVIEWER, {"record.receive": "review: {quorum: 3}"})
        with pytest.raises(PolicyDenied, match="the rule asks for review"):
            await pass_on(home, reviewer, LAX, ROWS)

    with_parties(tmp_path, main)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    "bad",
    [{f"made-up-{number}": 1 for number in range(9_000)}, {"age": {f"z{number}": 1 for number in range(9_000)}}],
    ids=["names", "nested"],
)
def test_names_that_no_schema_has_are_refused_before_policy_and_obligations_look_at_each(
    tmp_path: Path, bad: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def padded(sent: list[Draft]) -> list[Draft]:
        grown = [replace(one, record=canonical_json({**json.loads(one.record), **bad})) for one in sent]
        return [replace(one, history=history(one, {})) for one in grown]

    async def main(parties: Parties) -> None:
        home, reviewer = await parties.add(HOME), await parties.add(REVIEWER)
        monkeypatch.setattr(reviewer, "_request", lambda *_, **__: pytest.fail("the policy was asked"))
        many = terms(Obligations(redact=[f"age.a{number}" for number in range(200)]))
        with pytest.raises(InvalidRecord):
            await pass_on(home, reviewer, many, ROWS, change=padded)

    with_parties(tmp_path, main)
