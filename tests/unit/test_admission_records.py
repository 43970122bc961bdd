"""Records at the gate: the form in which they leave, and what is checked when they come in."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from comity.agreement import Agreed
from comity.digest import canonical_json, sha256
from comity.errors import AgreementError, CertificateInvalid, ComityError, InvalidRecord, PolicyDenied
from comity.hops import CREATE, RELEASE, SEND, sign_hop, verify_hops
from comity.v1.agreement_pb2 import Obligations
from comity.v1.task_pb2 import Task
from comity_node.admission import Gate
from comity_node.admission.records import Dataset, Draft, RecordGate, Refused, to_task
from comity_node.policy.loader import loads_policy
from comity_node.protocol.freshness import Freshness
from comity_node.storage.database import open_database
from comity_node.validators.distance import PrivateReference
from comity_node.validators.schema import FieldSpec, Schema
from kit.consortium import NOW_MS, attested, consortium, names
from kit.documents import DATASET, TASK_ID, agree, make_passage
from kit.lab import policy

HOME, REVIEWER, THIRD = names(3)
LAB = consortium(*names(3))
SCHEMA = Schema(
    "label",
    {
        "age": FieldSpec("number", 0, 120),
        "size": FieldSpec("number", 0, 100),
        "label": FieldSpec("integer", 0, 1),
    },
)
PRIVATE = np.array([[40.0, 10.0], [50.0, 20.0], [60.0, 30.0], [70.0, 90.0]])
#: Far from all private rows.
FAR = {"age": 100.0, "size": 55.0, "label": 1}
Party = tuple[RecordGate, Gate]


def party(
    path: Path,
    organization: str,
    main: Callable[[RecordGate], Awaitable[None]],
    *,
    text: str = "",
    private: bool = True,
) -> None:
    """Run `main` with the record gate of an organization."""

    async def outer() -> None:
        async with open_database(path / f"{organization}.db") as database:
            gate = Gate(
                identity=LAB.nodes[organization],
                policy=loads_policy(text or policy(organization)),
                database=database,
                freshness=Freshness(LAB.nodes[organization].peer_id),
                now_ms=lambda: NOW_MS + 1000,
                random_bytes=random.randbytes,
            )
            dataset = Dataset(SCHEMA, PrivateReference(SCHEMA, PRIVATE) if private else None)
            await main(RecordGate(gate, {DATASET: dataset}))

    trio.run(outer)


def draft(fields: Any = None, task_id: bytes = TASK_ID) -> Draft:
    return Draft(task_id, 0, canonical_json(FAR if fields is None else fields))


def passed(out: Sequence[Draft | Refused]) -> list[Draft]:
    assert all(isinstance(one, Draft) for one in out), out
    return [one for one in out if isinstance(one, Draft)]


def refused(out: Sequence[Draft | Refused]) -> list[Refused]:
    assert all(isinstance(one, Refused) for one in out), out
    return [one for one in out if isinstance(one, Refused)]


# -- on the way out ----------------------------------------------------------------------------------------------------


@pytest.mark.invariant("S1")
def test_what_leaves_has_one_form_for_everybody_and_a_signed_history(tmp_path: Path) -> None:
    """Agreement and rules are merged: all reviewers judge, and sign for, the same bytes."""
    agreed = agree(LAB, obligations=Obligations(onward="never", generalize={"age": 5.0}))

    async def main(gate: RecordGate) -> None:
        (ready,) = passed(gate.prepare(agreed, [draft({"age": 63.0, "size": 33.4, "label": 1})]))
        assert ready.record == canonical_json({"age": 65.0, "size": 32.0, "label": 1})
        (sent,) = passed(await gate.send(agreed, [ready], REVIEWER))
        (both,) = passed(await gate.send(agreed, [sent], THIRD))
        home = attested(LAB.nodes[HOME])
        hops = verify_hops(both.history, task_id=TASK_ID, record=both.record, home=home)
        assert [(hop.action, hop.to_organization) for hop in hops] == [(CREATE, ""), (SEND, REVIEWER), (SEND, THIRD)]
        assert hops[0].attested["min_distance_to_private"] == "0.1"
        assert list(hops[1].rules) == ["record-send"]

    asked = {"record.send": "generalize: {size: 4}, min_distance_to_private: 0.1"}
    party(tmp_path, HOME, main, text=policy(HOME, obligations=asked))


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("of", ["the agreement", "the policy"])
def test_a_row_too_close_to_a_private_one_stays(tmp_path: Path, of: str) -> None:
    copies = [
        draft({"age": 50.0, "size": 20.0, "label": 1}, bytes(16)),
        draft({"age": 50.1, "size": 20.1, "label": 0}, b"\1" * 16),
    ]

    async def main(gate: RecordGate) -> None:
        agreed = agree(LAB, **changes)
        out = gate.prepare(agreed, [*copies, draft()])
        assert {one.reason for one in refused(out[:2])} == {"min_distance_to_private"}
        assert [one.rules for one in refused(out[:2])] == [rules] * 2
        assert "0.000 from a private row; 0.2 is the least" in refused(out[:1])[0].detail
        passed(out[2:])

    if of == "the agreement":
        changes: dict[str, Any] = {"obligations": Obligations(onward="never", min_distance_to_private=0.2)}
        text, rules = policy(HOME, without=["record.send"]), ("agreement",)
    else:
        changes, rules = {}, ("record-send",)
        text = policy(HOME, obligations={"record.send": "min_distance_to_private: 0.2"})
    party(tmp_path, HOME, main, text=text)


@pytest.mark.invariant("S3")
def test_a_distance_that_cannot_be_measured_is_not_kept(tmp_path: Path) -> None:
    far = Obligations(onward="never", min_distance_to_private=0.2)

    async def without_rows(gate: RecordGate) -> None:
        (one,) = refused(gate.prepare(agree(LAB, obligations=far), [draft()]))
        assert one.detail == "there are no private rows to measure to"

    party(tmp_path, HOME, without_rows, private=False)

    async def with_a_field_missing(gate: RecordGate) -> None:
        both = Obligations(onward="never", min_distance_to_private=0.2, redact=["size"])
        refused(gate.prepare(agree(LAB, obligations=both), [draft()]))

    party(tmp_path, HOME, with_a_field_missing)


@pytest.mark.invariant("S1")
def test_a_redacted_field_does_not_leave(tmp_path: Path) -> None:
    agreed = agree(LAB, obligations=Obligations(onward="never", redact=["size"]))
    tasks: list[Task] = []

    async def send(gate: RecordGate) -> None:
        (ready,) = passed(gate.prepare(agreed, [draft()]))
        assert ready.record == canonical_json({"age": 100.0, "label": 1})
        tasks.extend(to_task(agreed, HOME, one) for one in passed(await gate.send(agreed, [ready], REVIEWER)))

    async def receive(gate: RecordGate) -> None:
        await gate.receive(agreed, tasks, attested(LAB.nodes[HOME]), SEND, "synthetic")

    party(tmp_path, HOME, send)
    party(tmp_path, REVIEWER, receive)


@pytest.mark.parametrize(
    "record",
    [
        {"age": 100.0, "size": 55.0},
        {**FAR, "name": "Ann"},
        {**FAR, "age": "old"},
        {**FAR, "age": 121},
        {**FAR, "label": 0.5},
        {**FAR, "size": None},
        [1, 2],
        "text",
        7,
    ],
)
def test_what_the_own_agent_made_is_checked_too(tmp_path: Path, record: object) -> None:
    async def main(gate: RecordGate) -> None:
        out = gate.prepare(agree(LAB), [draft(record), draft()])
        assert refused(out[:1])[0].reason == "schema"
        passed(out[1:])

    party(tmp_path, HOME, main)


@pytest.mark.invariant("S3")
def test_obligations_that_a_record_cannot_meet(tmp_path: Path) -> None:
    async def main(gate: RecordGate) -> None:
        for owed in (
            Obligations(onward="never", redact=["age", "size"]),
            Obligations(onward="never", generalize={"age": 500.0}, min_distance_to_private=50.0),
        ):
            refused(gate.prepare(agree(LAB, obligations=owed), [draft()]))

    party(tmp_path, HOME, main)


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(("action", "kind"), [("record.send", SEND), ("record.release", RELEASE)])
def test_each_recipient_is_asked_about(tmp_path: Path, action: str, kind: str) -> None:
    text = policy(HOME).replace(
        f'action: {action}, with: {{organization: "*"}}', f"action: {action}, to: {{organization: {THIRD}}}"
    )

    async def main(gate: RecordGate) -> None:
        agreed = agree(LAB)
        (ready,) = passed(gate.prepare(agreed, [draft()]))
        ask = gate.send if kind == SEND else gate.release
        (no,) = refused(await ask(agreed, [ready], REVIEWER))
        assert no.reason == action
        (yes,) = passed(await ask(agreed, [ready], THIRD))
        assert len(yes.history) == 2

    party(tmp_path, HOME, main, text=text)


def test_a_dataset_that_this_node_does_not_have(tmp_path: Path) -> None:
    async def main(gate: RecordGate) -> None:
        with pytest.raises(AgreementError, match=r"no dataset 'others'; name it in node\.yaml"):
            gate.prepare(agree(LAB, dataset="others"), [draft()])

    party(tmp_path, HOME, main)


# -- on the way in -----------------------------------------------------------------------------------------------------


def offered(agreed: Agreed, *, record: bytes | None = None, to: str = REVIEWER, **changes: Any) -> Task:
    """A task as `HOME` would send it; `changes` are made to its last hop."""
    home, body = LAB.nodes[HOME], canonical_json(FAR) if record is None else record
    history = [sign_hop(home, make_passage(record=body), [])]
    history.append(sign_hop(home, make_passage(**{"action": SEND, "to": to, "record": body, **changes}), history))
    return to_task(agreed, HOME, Draft(TASK_ID, 0, body, tuple(history)))


def receive(
    tmp_path: Path, agreed: Agreed, tasks: Sequence[Task], *, sender: str = HOME, text: str = ""
) -> ComityError | None:
    """What the reviewer's gate says to these tasks."""
    said: list[ComityError | None] = []

    async def main(gate: RecordGate) -> None:
        try:
            await gate.receive(agreed, tasks, attested(LAB.nodes[sender]), SEND, "synthetic")
            said.append(None)
        except ComityError as error:
            said.append(error)

    party(tmp_path, REVIEWER, main, text=text)
    return said[0]


def test_a_task_that_is_taken(tmp_path: Path) -> None:
    agreed = agree(LAB)
    assert receive(tmp_path, agreed, [offered(agreed)]) is None


@pytest.mark.invariant("S1")
def test_the_receivers_policy_and_obligations(tmp_path: Path) -> None:
    agreed = agree(LAB)
    error = receive(tmp_path, agreed, [offered(agreed)], text=policy(REVIEWER, forbid=["record.receive"]))
    assert isinstance(error, PolicyDenied)
    assert error.rules == ("no-record-receive",)
    coarse = policy(REVIEWER, obligations={"record.receive": "generalize: {age: 30}"})
    error = receive(tmp_path, agreed, [offered(agreed)], text=coarse)
    assert isinstance(error, PolicyDenied)
    assert "rounded to multiples of 30" in str(error)
    owed = agree(LAB, obligations=Obligations(onward="never", redact=["size"]))
    error = receive(tmp_path, owed, [offered(owed)])
    assert isinstance(error, PolicyDenied)
    assert "should have been redacted" in str(error)


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("record", [{**FAR, "name": "Ann"}, {**FAR, "age": 121}, {"age": 1, "label": 1}])
def test_a_record_outside_the_schema(tmp_path: Path, record: dict[str, Any]) -> None:
    agreed = agree(LAB)
    good = offered(agreed)
    error = receive(tmp_path, agreed, [good, offered(agreed, record=canonical_json(record))])
    assert isinstance(error, InvalidRecord)


@pytest.mark.invariant("S2")
@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"garbage",
        b'{"age": 1}',
        b"[1]",
        b'{"age":1,"age":2}',
        b'{"age":NaN}',
        b"[" * 5000,
        b'"' + b"x" * 262_144 + b'"',
    ],
    ids=["empty", "garbage", "spaces", "list", "twice", "nan", "deep", "large"],
)
def test_a_record_that_is_no_canonical_json(tmp_path: Path, record: bytes) -> None:
    agreed = agree(LAB)
    assert isinstance(receive(tmp_path, agreed, [offered(agreed, record=record)]), InvalidRecord)


@pytest.mark.invariant("S5")
@pytest.mark.parametrize(
    "changes",
    [{"to": THIRD}, {"action": RELEASE}, {"action": CREATE, "to": ""}, {"purpose": "marketing"}, {"revision": 1}],
    ids=["for another", "another action", "no sending", "another purpose", "another revision"],
)
def test_a_hop_that_was_not_made_for_this(tmp_path: Path, changes: dict[str, Any]) -> None:
    agreed = agree(LAB)
    assert isinstance(receive(tmp_path, agreed, [offered(agreed, **changes)]), AgreementError)


@pytest.mark.invariant("S5")
def test_a_task_that_somebody_else_passes_on(tmp_path: Path) -> None:
    agreed, other = agree(LAB), agree(LAB, purpose="marketing")
    assert isinstance(receive(tmp_path, agreed, [offered(agreed)], sender=THIRD), AgreementError)
    stolen = offered(agreed)
    stolen.home = THIRD
    assert isinstance(receive(tmp_path, agreed, [stolen], sender=THIRD), CertificateInvalid)
    assert isinstance(receive(tmp_path, agreed, [offered(other)]), AgreementError)
    unproven = offered(agreed)
    unproven.record = canonical_json({**FAR, "age": 99.0})
    assert sha256(unproven.record) not in {sha256(offered(agreed).record)}
    assert isinstance(receive(tmp_path, agreed, [unproven]), CertificateInvalid)


@pytest.mark.invariant("S1")
def test_an_agreement_that_is_over_or_of_others(tmp_path: Path) -> None:
    over = agree(LAB, issued_ms=NOW_MS - 10_000, expires_ms=NOW_MS)
    error = receive(tmp_path, over, [offered(over)])
    assert isinstance(error, AgreementError)
    assert "has expired" in str(error)
    two = consortium(*names(3))
    terms = agree(two).terms
    del terms.participants[:]
    terms.participants.extend([HOME, THIRD])
    others = Agreed(terms, agree(two).digest)
    error = receive(tmp_path, others, [offered(others)])
    assert isinstance(error, AgreementError)
    assert "does not take part" in str(error)
