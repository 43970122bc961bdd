"""Whatever is changed in an audit log, an export of it or a proof from it is found by the offline verifiers.

The bytes are flipped systematically: each byte of each column that the log consists of, one bit after the other.
"""

from __future__ import annotations

import base64
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import trio

from comity import merkle
from comity.errors import AuditBroken, ComityError, StorageError, StorageFull
from comity.signing import PrivateKey
from comity_node.storage import audit, cosignature, schema, witness
from comity_node.storage.audit import AuditEntry, NoteSigner
from comity_node.storage.audit_export import export_lines, open_export
from comity_node.storage.audit_proof import parse_proof, prove_entry, verify_proof
from comity_node.storage.audit_verify import AuditReport, require_witnesses, stored_log, verify_log
from comity_node.storage.cosignature import cosign
from comity_node.storage.database import Database, open_database
from comity_node.storage.note import note_signature_lines, note_text
from comity_node.storage.witness import Cosignature

KEY = PrivateKey(bytes(range(32)))
SIGNER = NoteSigner("mercy.example/node/n1", KEY.public_key, KEY.sign)
WITNESS = PrivateKey(b"w" * 32)
NAME = "stlukes.example/node/n1"
#: All that a log consists of. When a checkpoint was made (`created_ms`) says its file alone, and nothing relies on it.
COLUMNS = {
    "audit_entries": ("position", "entry", "hash"),
    "audit_head": ("size", "peaks", "last_hash"),
    "audit_checkpoints": ("size", "note"),
    "audit_cosignatures": ("size", "witness", "public_key", "line"),
}


@dataclass(frozen=True)
class Change:
    """One byte, or one number, of one column of one row."""

    table: str
    column: str
    row: int
    value: object
    changed: object
    text: bool

    def __str__(self) -> str:
        return f"{self.table}.{self.column} of row {self.row}: {self.changed!r} instead of {self.value!r}"


def make(path: Path, entries: int, every: int) -> None:
    Database.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        for number in range(entries):
            entry = AuditEntry("decision", "record.send", "allow", (f"r{number}",), "hope.example", b"s" * 32)
            audit.append(connection, entry, 1000 + number)
            if (number + 1) % every == 0:
                sign(connection)
        connection.commit()


def sign(connection: sqlite3.Connection) -> str:
    """Sign and have cosigned what there is."""
    note = audit.checkpoint(connection, SIGNER, 1)
    line = cosign(note_text(note), NoteSigner(NAME, WITNESS.public_key, WITNESS.sign), 1)
    size = audit.head(connection).size
    witness.put_cosignature(connection, Cosignature(size, NAME, WITNESS.public_key, line))
    return note


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight entries; checkpoints, cosigned, of three and six."""
    path = tmp_path_factory.mktemp("tampering") / "node.db"
    make(path, 8, 3)
    return path


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(template, tmp_path / "node.db"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Four entries; one checkpoint, cosigned, of three."""
    path = tmp_path / "small.db"
    make(path, 4, 3)
    return path


def changes(connection: sqlite3.Connection) -> Iterator[Change]:
    for table, columns in COLUMNS.items():
        key = "rowid" if table != "audit_cosignatures" else "size"
        for column in columns:
            as_is = f"typeof({column}), CAST({column} AS BLOB)"
            for row, value, kind, data in connection.execute(
                f"SELECT {key}, {column}, {as_is} FROM {table}"
            ).fetchall():
                if kind == "integer":
                    yield from (Change(table, column, row, value, value + step, False) for step in (-100, 64))
                    continue
                for at in range(len(data)):
                    changed = bytearray(data)
                    changed[at] ^= 1 << at % 8
                    yield Change(table, column, row, data, bytes(changed), kind == "text")


def apply(connection: sqlite3.Connection, change: Change) -> None:
    key = "rowid" if change.table != "audit_cosignatures" else "size"
    new = "CAST(? AS TEXT)" if change.text else "?"
    connection.execute(
        f"UPDATE {change.table} SET {change.column} = {new} WHERE {key} = ?", (change.changed, change.row)
    )


@pytest.mark.invariant("S8")
def test_any_byte_of_any_column_that_is_changed_is_found(small: Path) -> None:
    audit.verify_file(small, KEY.public_key)
    count = 0
    with closing(sqlite3.connect(small, isolation_level=None)) as connection:
        for change in list(changes(connection)):
            connection.execute("BEGIN")
            apply(connection, change)
            try:
                verify_log(stored_log(connection), KEY.public_key)
            except (AuditBroken, sqlite3.OperationalError):  # the latter: text that is not UTF-8
                count += 1
            else:
                pytest.fail(f"not found: {change}")
            connection.rollback()
    audit.verify_file(small, KEY.public_key)
    assert count > 1500


@pytest.mark.invariant("S8")
@pytest.mark.parametrize("table", COLUMNS)
def test_a_change_on_disk_is_found_in_the_file(small: Path, table: str) -> None:
    with closing(sqlite3.connect(small)) as connection:
        change = next(each for each in changes(connection) if each.table == table)
        apply(connection, change)
        connection.commit()
    with pytest.raises(AuditBroken):
        audit.verify_file(small, KEY.public_key)
    with closing(sqlite3.connect(small)) as connection:
        connection.execute("UPDATE audit_checkpoints SET note = CAST(x'ff' AS TEXT)")
        connection.commit()
    with pytest.raises(StorageError, match="UTF-8"):
        audit.verify_file(small, KEY.public_key)


@pytest.mark.invariant("S8")
def test_any_byte_of_the_file_that_is_changed_is_found_or_changes_nothing(path: Path) -> None:
    """Most of a file is of other tables, or empty; where the log is, no bit goes unnoticed."""
    whole = path.read_bytes()
    report, found = audit.verify_file(path, KEY.public_key), 0
    with path.open("r+b", buffering=0) as file:
        for at in range(0, len(whole), 997):
            file.seek(at)
            file.write(bytes([whole[at] ^ 1 << at % 8]))
            try:
                assert audit.verify_file(path, KEY.public_key) == report, f"byte {at}"
            except ComityError:
                found += 1
            file.seek(at)
            file.write(whole[at : at + 1])
    assert audit.verify_file(path, KEY.public_key) == report
    assert found


@pytest.mark.invariant("S8")
@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.3, 0.5, 0.7])
def test_a_truncated_file_is_refused(path: Path, part: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(StorageError):
        audit.verify_file(path, KEY.public_key)


@pytest.mark.invariant("S8")
@pytest.mark.parametrize("left", [0, 2, 3, 5])
def test_a_log_that_was_cut_below_what_was_cosigned_is_found(path: Path, left: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        entries = [each.entry for each in audit.entries(connection)][:left]
        for table in COLUMNS:
            connection.execute(
                f"DELETE FROM {table}" + (f" WHERE size > {left}" if "co" in table or "ch" in table else "")
            )
        for number, entry in enumerate(entries):
            audit.append(connection, entry, 1000 + number)
        connection.commit()
    report = audit.verify_file(path, KEY.public_key)
    assert report.entries == left
    if left < 3:
        with pytest.raises(AuditBroken, match="0 of the 1 witnesses"):
            require_witnesses(report, {WITNESS.public_key}, 1)
    else:
        assert require_witnesses(report, {WITNESS.public_key}, 1) == 3, "three of the six that were cosigned are left"


@pytest.mark.invariant("S8")
def test_checkpoints_that_were_deleted_are_missed(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        kept = audit.checkpoints(connection)
        connection.execute("DELETE FROM audit_checkpoints WHERE size = 6")
        connection.commit()
        with pytest.raises(AuditBroken, match="checkpoint of 6, which is not there"):
            audit.verify_file(path, KEY.public_key)
        connection.execute("DELETE FROM audit_cosignatures WHERE size = 6")
        connection.commit()
    report = audit.verify_file(path, KEY.public_key)
    assert (report.signed, require_witnesses(report, {WITNESS.public_key}, 1)) == (3, 3)
    assert audit.verify_file(path, KEY.public_key, known=kept).signed == 6, "one that was kept elsewhere is as good"


def cosigned_note(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        note = witness.cosigned_note(connection, 9, least=1)
    assert note is not None
    return note


@pytest.mark.invariant("S8")
def test_of_two_heads_of_one_log_each_shows_that_the_other_is_one_too_many(path: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(path, tmp_path / "fork.db"))
    notes, cosigned = {}, {}
    for each, action in ((path, "record.send"), (other, "record.release")):
        with closing(sqlite3.connect(each)) as connection:
            audit.append(connection, AuditEntry("decision", action), 5000)
            notes[each] = sign(connection)
            connection.commit()
        audit.verify_file(each, KEY.public_key)
        cosigned[each] = cosigned_note(each)
    for each, contradicting in ((path, other), (other, path)):
        with pytest.raises(AuditBroken, match=f"{NAME} cosigned both"):
            audit.verify_file(each, KEY.public_key, known=[cosigned[contradicting]])
    for each, contradicting in ((path, other), (other, path)):
        with pytest.raises(AuditBroken, match="entries 6 to 8 are not those that a checkpoint of 9 covers"):
            audit.verify_file(each, KEY.public_key, known=[notes[contradicting]])


@pytest.mark.invariant("S8")
def test_a_stored_subtree_that_was_changed_is_found_and_one_that_is_missing_is_made(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    make(path, 600, 300)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        before = [audit.prove_consistency(connection, old, 600) for old in (1, 255, 300, 512, 599)]
        stored = connection.execute("SELECT place, hash FROM audit_subtrees").fetchall()
        assert [place for place, _ in stored] == [0, 1]
        for place, root in stored:
            for at in range(place, 32, 2):  # the even bytes of the one, the odd ones of the other
                changed = bytearray(root)
                changed[at] ^= 1 << at % 8
                connection.execute("UPDATE audit_subtrees SET hash = ? WHERE place = ?", (bytes(changed), place))
                with pytest.raises(AuditBroken, match="subtree"):
                    audit.verify_file(path, KEY.public_key)
            connection.execute("UPDATE audit_subtrees SET hash = ? WHERE place = ?", (root, place))
        for change in ("place = 7", "height = 16"):
            connection.execute(f"UPDATE audit_subtrees SET {change} WHERE place = 1")
            with pytest.raises(AuditBroken, match="subtree"):
                audit.verify_file(path, KEY.public_key)
            connection.execute("UPDATE audit_subtrees SET place = 1, height = 8 WHERE place <> 0 OR height = 16")
        audit.verify_file(path, KEY.public_key)
        connection.execute("DELETE FROM audit_subtrees")
        assert [audit.prove_consistency(connection, old, 600) for old in (1, 255, 300, 512, 599)] == before
    audit.verify_file(path, KEY.public_key)


def verify_export(path: Path, key: bytes) -> AuditReport:
    with open_export(path) as log:
        return verify_log(log, key)


@pytest.mark.invariant("S8")
def test_any_byte_of_an_export_that_is_changed_is_found(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    with closing(sqlite3.connect(small)) as connection:
        whole = b"".join(export_lines(connection))
    file.write_bytes(whole)
    key = WITNESS.public_key.hex().encode()
    report = verify_export(file, KEY.public_key)
    assert (report.entries, report.cosignatures) == (4, 1)
    with file.open("r+b", buffering=0) as written:
        for at, byte in enumerate(whole):
            written.seek(at)
            written.write(bytes([byte ^ 1 << at % 8]))
            with pytest.raises((AuditBroken, StorageError)):
                verify_export(file, KEY.public_key)
            written.seek(at)
            written.write(bytes([byte]))
    verify_export(file, KEY.public_key)
    for changed in (whole.replace(b'{"checkpoint"', b'{ "checkpoint"'), whole.replace(key, key.upper())):
        assert changed != whole
        file.write_bytes(changed)
        with pytest.raises(AuditBroken):
            verify_export(file, KEY.public_key)
    lines = whole.splitlines(keepends=True)
    for made in (
        lines[:-1],
        [*lines, lines[-1]],
        [*lines[:-2], lines[-1], lines[-2]],
        lines[:1] + lines[2:],
        [],
        [b"\n"],
    ):
        file.write_bytes(b"".join(made))
        with pytest.raises(AuditBroken):
            verify_export(file, KEY.public_key)


@pytest.mark.invariant("S8")
def test_any_byte_of_a_proof_that_is_changed_is_found(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        proofs = [prove_entry(connection, index) for index in range(6)]
        with pytest.raises(AuditBroken, match="no checkpoint covers it yet"):
            prove_entry(connection, 6)
    for proof in proofs:
        proved = verify_proof(parse_proof(proof.encode()), KEY.public_key, witnesses={WITNESS.public_key})
        assert (proved.entry.index, proved.size, proved.witnesses) == (proof.index, 6, ((NAME, 1),))
    whole = proofs[2].encode().encode()
    for at, bit in product(range(len(whole)), range(8)):
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        try:
            proof = parse_proof(changed.decode())
            if not verify_proof(proof, KEY.public_key, witnesses={WITNESS.public_key}).witnesses:
                continue  # a cosignature under another name or key is none of the witness's
        except (AuditBroken, UnicodeDecodeError):
            continue
        pytest.fail(f"bit {bit} of byte {at} can be changed")


@pytest.mark.invariant("S8")
def test_a_full_disk_refuses_the_entry_and_the_log_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    Database.open(path).close()
    most = path.stat().st_size + 64 * 1024

    async def fill(database: Database) -> None:
        entry = AuditEntry("decision", detail={"long": "x" * 1000})
        for number in range(10_000):
            await database.transact(partial(audit.append, entry=entry, now_ms=number))

    async def main() -> int:
        async with open_database(path, max_bytes=most) as database:
            with pytest.raises(StorageFull, match="disk is full"):
                await fill(database)
            kept = await database.read(lambda c: audit.head(c).size)
        async with open_database(path) as database:
            await database.transact(lambda c: audit.append(c, AuditEntry("start"), 1))
        return kept

    kept = trio.run(main)
    assert kept > 10
    assert audit.verify_file(path, None).entries == kept + 1


@pytest.mark.invariant("S8")
def test_a_log_whose_node_has_another_key_now_verifies_with_both(path: Path) -> None:
    renewed = PrivateKey(b"n" * 32)
    with closing(sqlite3.connect(path)) as connection:
        audit.checkpoint(connection, NoteSigner(SIGNER.name, renewed.public_key, renewed.sign), 1)
        connection.commit()
    for alone in (KEY, renewed):
        with pytest.raises(AuditBroken, match="no signature"):
            audit.verify_file(path, alone.public_key)
    assert audit.verify_file(path, renewed.public_key, former=[KEY.public_key]).signed == 8
    with pytest.raises(AuditBroken, match="no signature"):
        audit.verify_file(path, WITNESS.public_key, former=[KEY.public_key])


@pytest.mark.invariant("S8")
def test_a_log_that_an_older_version_wrote_verifies_grows_and_is_proved(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    make(path, 300, 300)
    with closing(sqlite3.connect(path)) as connection:
        leaves = [bytes(hashed) for (hashed,) in connection.execute("SELECT hash FROM audit_entries ORDER BY position")]
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        since = re.findall(r"CREATE TABLE (\w+)", schema.ADDED[4] + schema.ADDED[5])
        for (name,) in tables:
            if name in since:
                connection.execute(f"DROP TABLE {name}")
        connection.execute("PRAGMA user_version = 3")
        connection.commit()
    assert audit.verify_file(path, KEY.public_key).entries == 300
    Database.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        for number in range(300):
            leaves.append(audit.append(connection, AuditEntry("effect"), number).hash)
        connection.commit()
        assert connection.execute("SELECT place FROM audit_subtrees").fetchall() == [(1,)]
        assert audit.prove_consistency(connection, 77, 600) == merkle.Tree(leaves).consistency(77)
    assert audit.verify_file(path, KEY.public_key).entries == 600


@pytest.mark.invariant("S8")
def test_a_witness_counts_once_under_however_many_names(path: Path) -> None:
    other = PrivateKey(b"o" * 32).public_key
    with closing(sqlite3.connect(path)) as connection:
        proof = prove_entry(connection, 1)
        [line] = [line for name, line in note_signature_lines(proof.note) if name == NAME]
        value = base64.b64decode(line.split(" ")[2])
        second = "hope.example/node/n1"
        renamed = base64.b64encode(cosignature.key_id(second, WITNESS.public_key) + value[4:]).decode()
        connection.execute(
            "INSERT INTO audit_cosignatures VALUES (6, ?, ?, ?)",
            (second, WITNESS.public_key, f"\u2014 {second} {renamed}\n"),
        )
        connection.commit()
        proof = prove_entry(connection, 1)
    keys = {WITNESS.public_key, other}
    assert len(verify_proof(proof, KEY.public_key, witnesses=keys).witnesses) == 1
    report = audit.verify_file(path, KEY.public_key, witnesses=keys)
    with pytest.raises(AuditBroken, match="1 of the 2 witnesses"):
        require_witnesses(report, keys, 2)


def test_checkpoints_that_witnesses_cosigned_last_outlive_the_thinning(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    make(path, 9, 3)
    with closing(sqlite3.connect(path)) as connection:
        for number in range(20):
            audit.append(connection, AuditEntry("effect"), number)
            audit.checkpoint(connection, SIGNER, 1)
        assert audit.thin_checkpoints(connection, keep=5) == 17
        sizes = [size for (size,) in connection.execute("SELECT size FROM audit_checkpoints ORDER BY size")]
        assert sizes == [9, 25, 26, 27, 28, 29]
        assert [each.size for each in witness.newest_by_witness(connection)] == [9]
        assert not witness.cosignatures(connection, 3), "what belonged to others went with them"
        connection.commit()
    assert audit.verify_file(path, KEY.public_key).cosignatures == 1
