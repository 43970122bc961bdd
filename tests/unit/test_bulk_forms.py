"""Whole tables: masks, pseudonyms, noise and k-anonymity are done by the sender and refused by the receiver if not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.errors import ApprovalPending, ComityError, PolicyDenied, TransferFailed
from comity_node.admission.noise import NoiseSource
from comity_node.bulk import forms, shape
from comity_node.bulk.ipc import columns_of
from comity_node.policy import obligations as duties
from comity_node.policy.lattice import KAnonymity, Noise, Obligations
from comity_node.policy.obligations import pseudonyms
from comity_node.protocol.bulk_manifest import Column
from comity_node.storage import bulk as journal
from comity_node.storage import ledgers
from kit.bulk import Pair, policy
from kit.lab import run

KEY = pseudonyms(bytes(range(32)))
DATASET = "patients"
TABLE = pa.table(
    {
        "name": ["Ada Lovelace", "Bea", None, "Ada Lovelace"] * 5,
        "ward": ["w1", "w1", "w2", "w2"] * 5,
        "age": [36, 41, 52, 12] * 5,
        "dose": [1.5, 2.5, None, 0.25] * 5,
    }
)
FORMS = {
    "mask": "mask: {name: 3}",
    "hash": "hash: [name]",
    "hash of numbers": "hash: [age, dose]",
    "noise": "noise: {age: {epsilon: 1, lower: 0, upper: 100}, dose: {epsilon: 2, lower: 0, upper: 5}}",
    "noise on a grid": "noise: {age: {epsilon: 1, lower: 0, upper: 100}}, generalize: {age: 5}",
    "k_anonymity": "k_anonymity: {k: 4, fields: [ward]}",
}


def write(pair: Pair, table: Any = TABLE) -> Path:
    path = pair.sender.home / "table.parquet"
    import pyarrow.parquet as pq

    pq.write_table(table, path)
    return path


def a_pair(home: Path, *, send: str = "", receive: str = "") -> Pair:
    """Two organizations; what the sender's rule says, and what the receiver's does."""
    pair = Pair(home)
    pair.sender.policy = policy(pair.sender.name, send=send)
    pair.receiver.policy = policy(pair.receiver.name, receive=receive)
    return pair


def rule(owed: str) -> str:
    return f"obligations: {{{owed}}}"


async def send(pair: Pair, table: Any = TABLE) -> Any:
    done = await pair.send(write(pair, table), dataset=DATASET)
    (row,) = await pair.receiver.rows()
    assert done.state == row.state == "done"
    return await pair.receiver.read(row)


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("owed", FORMS)
def test_a_table_leaves_in_the_form_that_is_asked_for(tmp_path: Path, owed: str) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = a_pair(tmp_path, send=rule(FORMS[owed]), receive=rule(FORMS[owed]))
        await pair.start(nursery)
        came = await send(pair)
        assert came.num_rows == TABLE.num_rows
        match owed:
            case "mask":
                assert came["name"].to_pylist()[:4] == ["*********ace", "**a", None, "*********ace"]
            case "hash":
                names = came["name"].to_pylist()
                assert names[0] == names[3] != names[1]
                assert names[2] is None
            case "hash of numbers":
                assert len({*came["age"].to_pylist()}) == 4
                assert all(text is None or text.startswith("hmac-sha256:") for text in came["dose"].to_pylist())
            case "noise":
                assert came["age"].to_pylist() != TABLE["age"].to_pylist()
                assert all(type(age) is int and 0 <= age <= 100 for age in came["age"].to_pylist())
                assert [dose is None for dose in came["dose"].to_pylist()] == [False, False, True, False] * 5
            case "noise on a grid":
                assert all(age % 5 == 0 for age in came["age"].to_pylist())
            case "k_anonymity":
                assert came["ward"].to_pylist() == TABLE["ward"].to_pylist()

    run(main)


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("owed", FORMS)
def test_a_receiver_refuses_what_the_sender_does_not_even_say_it_did(tmp_path: Path, owed: str) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = a_pair(tmp_path, receive=rule(FORMS[owed]))
        await pair.start(nursery)
        with pytest.raises(ComityError, match=r"form that is asked for|4-anonymous|has to be rounded"):
            await pair.send(write(pair), dataset=DATASET)
        assert [row for row in await pair.receiver.rows() if row.state == "done"] == []

    run(main)


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("owed", ["mask", "hash", "noise beyond its bounds", "k_anonymity"])
def test_a_sender_that_says_it_and_does_not_do_it_is_found_out(
    tmp_path: Path, owed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    beyond = "noise: {age: {epsilon: 1, lower: 20, upper: 50}}"
    asked = {**FORMS, "noise beyond its bounds": beyond}[owed]
    table = TABLE if owed != "k_anonymity" else pa.table({"ward": ["w1"] * 5 + ["w2"] * 3})

    async def main(nursery: trio.Nursery) -> None:
        pair = a_pair(tmp_path, send=rule(asked))
        await pair.start(nursery)
        monkeypatch.setattr(forms, "apply", lambda form, name, column, kind, pseudonym, noise: column)
        add, finish = forms.Classes.add, forms.Classes.finish  # the sender's run first, and are lax
        monkeypatch.setattr(forms.Classes, "add", lambda self, batch: None)
        monkeypatch.setattr(forms.Classes, "finish", lambda self: None)
        original = pair.sender.service._preparer._release

        async def release(*arguments: Any) -> Any:
            row = await original(*arguments)
            monkeypatch.setattr(forms.Classes, "add", add)
            monkeypatch.setattr(forms.Classes, "finish", finish)
            return row

        monkeypatch.setattr(pair.sender.service._preparer, "_release", release)
        with pytest.raises(TransferFailed):
            await pair.send(write(pair, table), dataset=DATASET)
        assert [row.state for row in await pair.receiver.rows()] == ["failed"]

    run(main)


@pytest.mark.invariant("R2")
def test_a_table_costs_the_noise_of_all_its_numbers(tmp_path: Path) -> None:
    owed = "noise: {age: {epsilon: 1, lower: 0, upper: 100}}, budget: {epsilon: 30}"

    async def main(nursery: trio.Nursery) -> None:
        pair = a_pair(tmp_path, send=rule(owed))
        await pair.start(nursery)
        await send(pair)
        with pytest.raises(
            PolicyDenied, match="privacy budget of rule send is used up: 10 of 30 is left, and this costs 20"
        ):
            await pair.send(write(pair), dataset=DATASET)
        spent = await pair.sender.database.read(lambda c: ledgers.epsilon_spent(c, '["send"]'))
        assert spent == 20_000_000
        assert pair.sender.files() == []

    run(main)


@pytest.mark.invariant("S1")
def test_a_table_in_which_too_few_are_alike_stays_here(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = a_pair(tmp_path, send=rule("k_anonymity: {k: 4, fields: [ward, age]}, generalize: {age: 50}"))
        await pair.start(nursery)
        with pytest.raises(PolicyDenied, match="1 rows share their values of ward, age with fewer than 4"):
            await pair.send(write(pair, pa.concat_tables([TABLE, odd])), dataset=DATASET)
        assert pair.sender.files() == []
        assert await pair.receiver.rows() == []

    odd = pa.table({**TABLE.slice(0, 1).to_pydict(), "age": [99]})
    run(main)


@pytest.mark.invariant("S1")
def test_a_table_waits_for_a_person_and_goes_when_it_is_sent_again(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = a_pair(tmp_path, send=rule("approval: {within: 1h}"))
        await pair.start(nursery)
        with pytest.raises(ApprovalPending) as no:
            await pair.send(write(pair), dataset=DATASET)
        assert pair.sender.files() == []
        await pair.sender.parts.gate.approvals.decide(no.value.approval, approve=True)
        assert (await send(pair)).num_rows == 20
        (row,) = await pair.sender.database.read(journal.list_bulk)
        assert row.state == "done"

    run(main)


def test_a_time_that_is_over_lets_nothing_leave(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = a_pair(tmp_path, send=rule('expire: "2001-01-01"'))
        await pair.start(nursery)
        with pytest.raises(PolicyDenied, match="must be gone by now"):
            await pair.send(write(pair), dataset=DATASET)

    run(main)


def test_a_received_table_is_kept_until_the_earlier_of_two_times(tmp_path: Path) -> None:
    async def main(nursery: trio.Nursery) -> None:
        pair = a_pair(tmp_path, send=rule('expire: "2999-01-01", retain: 30d'), receive=rule("retain: 1d"))
        await pair.start(nursery)
        await send(pair)
        (row,) = await pair.receiver.rows()
        assert row.retain_until_ms is not None
        assert abs(row.retain_until_ms - row.updated_ms - 86_400_000) < 60_000

    run(main)


@pytest.mark.parametrize(
    ("owed", "column"),
    [
        (Obligations(mask={"x": 1}), Column("x", "int64")),
        (Obligations(mask={"x": 1}), Column("x.y", "string")),
        (Obligations(hash=frozenset({"x"})), Column("x", "binary")),
        (Obligations(noise={"x": Noise(1, 0, 1)}), Column("x", "string")),
        (Obligations(noise={"x": Noise(1, 0, 1)}), Column("x.y", "double")),
    ],
)
def test_a_column_that_cannot_have_its_form_is_refused(owed: Obligations, column: Column) -> None:
    with pytest.raises(PolicyDenied):
        forms.forms_of(owed, [column])


VALUES = st.lists(st.one_of(st.none(), st.text(max_size=8)), min_size=1, max_size=12)
NUMBERS = st.lists(st.one_of(st.none(), st.integers(-(2**40), 2**40)), min_size=1, max_size=12)


@given(st.one_of(VALUES, NUMBERS), st.sampled_from(["mask", "hash", "noise"]))
@settings(max_examples=30, deadline=None)
def test_by_columns_is_as_by_records(values: list[Any], what: str) -> None:
    text = any(isinstance(value, str) for value in values)
    owed = {
        "mask": Obligations(mask={"x": 3}),
        "hash": Obligations(hash=frozenset({"x"})),
        "noise": Obligations(noise={"x": Noise(1e6, -1e12, 1e12)}),
    }[what]
    kind = pa.string() if text else pa.int64()
    batch = pa.RecordBatch.from_arrays([pa.array(values, kind), pa.array([1] * len(values))], names=["x", "y"])
    columns = columns_of(batch.schema)
    if (what == "mask" and not text) or (what == "noise" and text):
        with pytest.raises(PolicyDenied):
            shape.Shaper(owed, columns, KEY)
        return
    shaped = shape.Shaper(owed, columns, KEY).apply(batch)
    forms.verify(forms.forms_of(owed, columns), shaped)
    came = shaped.column("x").to_pylist()
    if what == "noise":
        assert [each is None for each in came] == [each is None for each in values]
        return
    expected = [duties.apply(owed, {"x": value}, pseudonym=KEY, noise=NoiseSource().draw)["x"] for value in values]
    assert came == expected
    assert json.dumps(came)


@pytest.mark.invariant("S7")
def test_a_table_with_too_many_combinations_is_refused() -> None:
    owed = Obligations(k_anonymity=KAnonymity(2, frozenset({"x"})))
    count = 200_001
    classes = forms.Classes(owed, [Column("x", "int64")], 2 * count)
    batch = pa.RecordBatch.from_arrays([pa.array(range(count))], names=["x"])
    classes_of_half = batch.slice(0, count - 1)
    classes.add(classes_of_half)
    classes.add(classes_of_half)
    with pytest.raises(PolicyDenied, match="over 200000 combinations"):
        classes.add(batch)


def test_more_combinations_than_rows_allow_are_noticed_at_once() -> None:
    owed = Obligations(k_anonymity=KAnonymity(5, frozenset({"x"})))
    classes = forms.Classes(owed, [Column("x", "int64")], 20)
    with pytest.raises(PolicyDenied, match="over 4 combinations of x"):
        classes.add(pa.RecordBatch.from_arrays([pa.array(range(5))], names=["x"]))
