"""Records at the gate, at the edges: each test here goes red for a wrong line of `admission.records`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from comity.agreement import Agreed
from comity.digest import canonical_json
from comity.envelope import sign_document
from comity.errors import CertificateInvalid, ComityError, PolicyDenied
from comity.hops import CREATE, KIND, RELEASE, SEND, Passage, sign_hop
from comity.v1.agreement_pb2 import Noise, Obligations
from comity.v1.task_pb2 import Task
from comity_node.admission import records
from comity_node.admission.records import Dataset, Draft, RecordGate, Refused, to_task
from comity_node.policy.conditions import Labels
from comity_node.storage.database import open_database
from comity_node.validators.distance import PrivateReference
from comity_node.validators.schema import FieldSpec, Schema
from kit.consortium import NOW_MS, attested, consortium, names
from kit.documents import DATASET, TASK_ID, agree, make_passage
from kit.enforcing import NODES, make_gate
from kit.lab import policy

HOME, REVIEWER, THIRD = names(3)
LAB = consortium(*names(3))
SCHEMA = Schema(
    "label",
    {"age": FieldSpec("number", 0, 120), "size": FieldSpec("number", 0, 100), "label": FieldSpec("integer", 0, 1)},
)
PRIVATE = PrivateReference(SCHEMA, np.array([[40.0, 10.0], [50.0, 20.0], [60.0, 30.0], [70.0, 90.0]]))
FAR = {"age": 100.0, "size": 55.0, "label": 1}
RECORD = canonical_json(FAR)
LAX = agree(LAB)


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS + 1000

    def __call__(self) -> int:
        return self.now_ms


def with_records(
    path: Path, main: Callable[[RecordGate], Awaitable[None]], *, of: str = HOME, text: str = "",
    clock: Clock | None = None,
) -> None:  # fmt: skip
    """Run `main` with the record gate of an organization, whose policy is `text`."""

    async def outer() -> None:
        async with open_database(path / f"{of}.db") as database:
            gate = await make_gate(database, text or policy(of), clock or Clock())
            await main(RecordGate(gate, {DATASET: Dataset(SCHEMA, PRIVATE)}))

    trio.run(outer)


def owing(**owed: Any) -> Agreed:
    return agree(LAB, obligations=Obligations(onward="never", **owed))


def draft(record: bytes = RECORD, history: tuple[bytes, ...] = ()) -> Draft:
    return Draft(TASK_ID, 0, record, history)


def one_of(out: Sequence[Draft | Refused]) -> Draft:
    (one,) = out
    assert isinstance(one, Draft), one
    return one


def refusal(out: Sequence[Draft | Refused]) -> Refused:
    (one,) = out
    assert isinstance(one, Refused), one
    return one


def history(*passages: Passage) -> tuple[bytes, ...]:
    hops: list[bytes] = []
    for passage in passages:
        hops.append(sign_hop(NODES[HOME], passage, hops))
    return tuple(hops)


def passage(action: str, to: str = "", **changes: Any) -> Passage:
    return make_passage(**{"action": action, "to": to, "record": RECORD, **changes})


def unreadable() -> bytes:
    """An envelope that verifies, and holds no hop."""
    return sign_document(NODES[HOME].key, KIND, b"\xff\xff\xff")


# -- on the way out ----------------------------------------------------------------------------------------------------


def test_a_record_may_have_its_whole_share_of_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(gate: RecordGate) -> None:
        whole = len(RECORD) * LAX.terms.batch_records
        monkeypatch.setattr(records, "_MAX_BATCH_BYTES", whole)
        one_of(gate.prepare(LAX, [draft()]))
        monkeypatch.setattr(records, "_MAX_BATCH_BYTES", whole - 1)
        assert "fits into no message" in refusal(gate.prepare(LAX, [draft()])).detail

    with_records(tmp_path, main)


@pytest.mark.invariant("S1")
def test_a_wrong_value_is_refused_even_where_it_would_be_redacted(tmp_path: Path) -> None:
    async def main(gate: RecordGate) -> None:
        wrong = canonical_json({**FAR, "size": 1000})
        one = refusal(gate.prepare(owing(redact=["size"]), [draft(wrong)]))
        assert one.reason == "schema"
        assert "size" in one.detail

    with_records(tmp_path, main)


def test_a_record_outside_the_schema_holds_up_none_after_it(tmp_path: Path) -> None:
    async def main(gate: RecordGate) -> None:
        out = gate.prepare(LAX, [draft(canonical_json({**FAR, "size": 1000})), draft()])
        assert [type(one) for one in out] == [Refused, Draft]

    with_records(tmp_path, main)


@pytest.mark.invariant("S4")
def test_without_a_good_key_no_pseudonym_is_made_and_the_record_stays(tmp_path: Path) -> None:
    async def main(gate: RecordGate) -> None:
        key = tmp_path / f"{HOME}.db.pseudonyms"
        key.write_bytes(b"short")
        key.chmod(0o600)
        one = refusal(gate.prepare(owing(hash=["size"]), [draft()]))
        assert one.reason == "obligations"
        assert "is no key of pseudonyms" in one.detail

    with_records(tmp_path, main)


@pytest.mark.invariant("S1")
def test_what_has_to_be_gone_by_now_is_not_made_and_not_sent(tmp_path: Path) -> None:
    clock = Clock()
    agreed = owing(expire_ms=clock.now_ms + 500)

    async def main(gate: RecordGate) -> None:
        ready = one_of(gate.prepare(agreed, [draft()]))
        clock.now_ms += 499
        one_of(await gate.send(agreed, [ready], REVIEWER))
        clock.now_ms += 1
        assert "must be gone by now" in refusal(gate.prepare(agreed, [draft()])).detail
        one = refusal(await gate.send(agreed, [ready], REVIEWER))
        assert "must be gone by now" in one.detail
        # Nobody is asked: it is refused for good, by the rule that had let it go.
        assert (one.until_ms, one.rules) == (0, ("record-send",))

    with_records(tmp_path, main, clock=clock)


@pytest.mark.invariant("S1")
def test_a_record_at_the_least_distance_may_leave(tmp_path: Path) -> None:
    distance = float(PRIVATE.distances([FAR])[0])

    async def main(gate: RecordGate) -> None:
        one_of(gate.prepare(owing(min_distance_to_private=distance), [draft()]))
        farther = float(np.nextafter(distance, np.inf))
        assert refusal(gate.prepare(owing(min_distance_to_private=farther), [draft()])).rules

    with_records(tmp_path, main)


@pytest.mark.invariant("S3")
def test_a_history_that_cannot_be_read_attests_nothing(tmp_path: Path) -> None:
    async def main(gate: RecordGate) -> None:
        agreed = owing(min_distance_to_private=0.01)
        one = refusal(await gate.send(agreed, [draft(history=(unreadable(),))], REVIEWER))
        assert "does not parse" in one.detail

    with_records(tmp_path, main)


@pytest.mark.invariant("S3")
def test_a_rule_about_a_distance_does_not_allow_what_cannot_be_measured(tmp_path: Path) -> None:
    rule = '  - {id: near, effect: allow, action: record.send, to: {organization: "*"}, when: {distance: {min: 0.01}}}'
    text = policy(HOME, without=["record.send"]) + "\n" + rule
    agreed = owing(redact=["size"])

    async def main(gate: RecordGate) -> None:
        ready = one_of(gate.prepare(agreed, [draft()]))
        refusal(await gate.send(agreed, [ready], REVIEWER))

    with_records(tmp_path, main, text=text)


def test_a_rule_about_a_score_is_asked_with_what_the_certificate_says(tmp_path: Path) -> None:
    rule = '  - {id: good, effect: allow, action: record.release, to: {organization: "*"}, when: {score: {min: 0.8}}}'
    text = policy(HOME, without=["record.release"]) + "\n" + rule

    async def main(gate: RecordGate) -> None:
        ready = one_of(gate.prepare(LAX, [draft()]))
        for known, leaves in (({"score": 0.9}, True), ({"score": 0.7}, False), ({}, False)):
            labels: Labels = known
            (one,) = await gate.release(LAX, [ready], REVIEWER, known={TASK_ID: labels})
            assert isinstance(one, Draft) is leaves

    with_records(tmp_path, main, text=text)


# -- again, later ------------------------------------------------------------------------------------------------------

_ROUNDED = Obligations(onward="never", noise={"age": Noise(epsilon=0.5, lower=0, upper=120)})
_SENT = (passage(CREATE), passage(SEND, REVIEWER))


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(
    ("agreed", "action", "owed", "why"),
    [
        (LAX, SEND, "", ""),
        (LAX, SEND, "retain: 1h", "asks for retain"),
        (LAX, RELEASE, "retain: 1h", "asks for retain"),
        (LAX, "record.receive", "retain: 1h", ""),
        (LAX, "record.receive", "review: {quorum: 3}", "asks for review"),
        (owing(expire_ms=1000), SEND, "", "must be gone by now"),
        (LAX, SEND, "redact: [size]", "should have been redacted"),
        (agree(LAB, obligations=_ROUNDED), SEND, "", "does not attest noise"),
        (owing(min_distance_to_private=0.1), SEND, "", "does not attest a distance"),
    ],
)
def test_why_a_record_that_has_passed_would_not_pass_now(
    tmp_path: Path, agreed: Agreed, action: str, owed: str, why: str
) -> None:
    task = to_task(agreed, HOME, draft(history=history(*_SENT)))

    async def main(gate: RecordGate) -> None:
        said = gate.why_not_now(agreed, task, REVIEWER, action=action, kind="synthetic")
        assert why in said
        assert bool(said) is bool(why)

    with_records(tmp_path, main, text=policy(HOME, obligations={action: owed} if owed else None))


@pytest.mark.invariant("S3")
def test_what_cannot_be_read_would_not_pass_now(tmp_path: Path) -> None:
    agreed = owing(min_distance_to_private=0.1)
    good = history(*_SENT)
    torn = good[0][:-1] + bytes([good[0][-1] ^ 1])
    tasks = {
        "a record is not JSON": draft(b"garbage"),
        "does not parse": draft(history=(unreadable(),)),
        "signature": draft(history=(torn,)),
    }

    async def main(gate: RecordGate) -> None:
        for why, one in tasks.items():
            said = gate.why_not_now(agreed, to_task(agreed, HOME, one), REVIEWER, action=SEND, kind="synthetic")
            assert why in said

    with_records(tmp_path, main)


@pytest.mark.invariant("S1")
def test_what_the_policy_forbids_by_now_would_not_pass(tmp_path: Path) -> None:
    task = to_task(LAX, HOME, draft(history=history(*_SENT)))

    async def main(gate: RecordGate) -> None:
        assert gate.why_not_now(LAX, task, REVIEWER, action=SEND, kind="synthetic")
        assert not gate.why_not_now(LAX, task, REVIEWER, action=RELEASE, kind="certified")

    with_records(tmp_path, main, text=policy(HOME, forbid=["record.send"]))


# -- on the way in -----------------------------------------------------------------------------------------------------


def received(
    tmp_path: Path, agreed: Agreed, *passages: Passage, revision: int = 0, action: str = SEND,
    kind: str = "synthetic", text: str = "",
) -> ComityError | None:  # fmt: skip
    """What the reviewer's gate says to a task of this history."""
    task: Task = to_task(agreed, HOME, Draft(TASK_ID, revision, RECORD, history(*passages)))
    said: list[ComityError | None] = []

    async def main(gate: RecordGate) -> None:
        try:
            assert len(await gate.receive(agreed, [task], attested(NODES[HOME]), action, kind)) == 1
            said.append(None)
        except ComityError as error:
            said.append(error)
        (limiter,) = gate._checkers.values()
        assert limiter.total_tokens == 1

    with_records(tmp_path, main, of=REVIEWER, text=text)
    return said[0]


@pytest.mark.invariant("S7")
def test_a_history_has_as_many_hops_as_the_agreement_can_need_and_no_more(tmp_path: Path) -> None:
    most = (LAX.terms.repair_rounds + 2) * len(LAX.participants)
    middle = [passage(SEND, THIRD)] * (most - 2)
    assert received(tmp_path, LAX, passage(CREATE), *middle, passage(SEND, REVIEWER)) is None
    error = received(tmp_path, LAX, passage(CREATE), *middle, passage(SEND, THIRD), passage(SEND, REVIEWER))
    assert isinstance(error, CertificateInvalid)
    assert f"over {most} hops" in str(error)


@pytest.mark.invariant("S1")
def test_what_was_agreed_has_to_be_attested_in_the_history(tmp_path: Path) -> None:
    error = received(tmp_path, owing(min_distance_to_private=0.1), *_SENT)
    assert isinstance(error, CertificateInvalid)
    assert "does not attest a distance" in str(error)


@pytest.mark.invariant("S1")
def test_what_the_present_revision_attests_counts(tmp_path: Path) -> None:
    asks = policy(REVIEWER, obligations={"record.receive": "min_distance_to_private: 0.2"})
    near, far = {"min_distance_to_private": "0.1"}, {"min_distance_to_private": "0.3"}
    before = passage(CREATE, record=canonical_json({**FAR, "age": 99.0}), attested=near)
    now, sent = passage(CREATE, revision=1, attested=far), passage(SEND, REVIEWER, revision=1)
    assert received(tmp_path, LAX, before, now, sent, revision=1, text=asks) is None
    assert received(tmp_path, LAX, passage(CREATE, attested=far), passage(SEND, REVIEWER), text=asks) is None
    error = received(tmp_path, LAX, passage(CREATE, attested=near), passage(SEND, REVIEWER), text=asks)
    assert isinstance(error, PolicyDenied)


@pytest.mark.invariant("S1")
def test_a_certified_record_is_accepted_by_another_rule_than_a_synthetic_one(tmp_path: Path) -> None:
    released = (passage(CREATE), passage(RELEASE, REVIEWER))
    no_rows, no_certified = (policy(REVIEWER, forbid=[each]) for each in ("record.receive", "record.accept"))
    assert received(tmp_path, LAX, *released, action=RELEASE, kind="certified", text=no_rows) is None
    error = received(tmp_path, LAX, *released, action=RELEASE, kind="certified", text=no_certified)
    assert isinstance(error, PolicyDenied)
    assert error.rules == ("no-record-accept",)
    assert received(tmp_path, LAX, *_SENT, text=no_certified) is None
