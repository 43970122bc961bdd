from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from comity import merkle
from comity.errors import AuditBroken, StorageError
from comity.signing import PrivateKey
from comity_node.storage import audit, note, schema
from comity_node.storage.audit import AuditEntry, AuditLog, NoteSigner
from comity_node.storage.database import Database

KEY = PrivateKey(bytes(range(32)))
SIGNER = NoteSigner("mercy.example/node/n1", KEY.public_key, KEY.sign)
ENTRIES, EVERY = 40, 16


def decision(number: int) -> AuditEntry:
    return AuditEntry(
        kind="decision",
        action="record.send",
        decision="allow" if number % 3 else "deny",
        rules=("never-raw-rows", f"rule-{number}"),
        peer="stlukes.example",
        subject=bytes([number]) * 32,
        policy=b"p" * 32,
        agreement=b"a" * 32,
        detail={"batch": number, "names": ["é", "x"]},
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 40 entries with checkpoints of 16 and 32."""
    path = tmp_path_factory.mktemp("audit") / "node.db"
    Database.open(path).close()
    log = AuditLog(SIGNER, every=EVERY)
    with sqlite3.connect(path) as connection:
        for number in range(ENTRIES):
            log.append(connection, decision(number), 1000 + number)
    connection.close()
    return path


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(template, tmp_path / "node.db"))


def tamper(path: Path, change: Callable[[sqlite3.Connection], object]) -> None:
    with sqlite3.connect(path) as connection:
        change(connection)
    connection.close()


def rewrite(connection: sqlite3.Connection, change: Callable[[list[AuditEntry]], None]) -> None:
    """Do what a thief of the file without the key can do: write the log anew, chain, hashes and head and all."""
    found = audit.entries(connection)
    rewritten = [stored.entry for stored in found]
    change(rewritten)
    connection.execute("DELETE FROM audit_entries")
    connection.execute("DELETE FROM audit_head")
    for number, entry in enumerate(rewritten):
        audit.append(connection, entry, 1000 + number)


def broken(path: Path) -> AuditBroken:
    with pytest.raises(AuditBroken) as caught:
        audit.verify_file(path, KEY.public_key)
    return caught.value


def test_a_whole_log_verifies(path: Path) -> None:
    report = audit.verify_file(path, KEY.public_key)
    assert (report.entries, report.checkpoints, report.signed, report.unsigned) == (40, 2, 32, 8)
    assert report.signatures_checked
    assert report.origin == "mercy.example/node/n1"
    assert not audit.verify_file(path, None).signatures_checked


def test_an_empty_log_verifies(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    Database.open(path).close()
    assert audit.verify_file(path, KEY.public_key).root == merkle.EMPTY_ROOT
    tamper(path, lambda connection: audit.checkpoint(connection, SIGNER, 1))
    assert audit.verify_file(path, KEY.public_key).checkpoints == 1


def test_entries_come_back_as_they_were_written(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        stored = audit.entries(connection, start=7, limit=2)
    connection.close()
    assert [entry.index for entry in stored] == [7, 8]
    assert stored[0].entry == decision(7)
    assert stored[0].at_ms == 1007


@pytest.mark.invariant("S8")
@pytest.mark.parametrize("index", [0, 15, 16, 31, 39])
def test_a_changed_entry_is_found(path: Path, index: int) -> None:
    tamper(
        path,
        lambda connection: connection.execute(
            "UPDATE audit_entries SET entry = CAST(replace(entry, 'record.send', 'record.sent') AS BLOB)"
            " WHERE position = ?",
            (index,),
        ),
    )
    assert broken(path).index == index


@pytest.mark.invariant("S8")
@pytest.mark.parametrize("index", [0, 15, 16, 38, 39])
def test_a_deleted_entry_is_found(path: Path, index: int) -> None:
    tamper(path, lambda c: c.execute("DELETE FROM audit_entries WHERE position = ?", (index,)))
    assert broken(path).index == index


@pytest.mark.invariant("S8")
def test_a_deleted_entry_is_found_when_the_rest_moves_up(path: Path) -> None:
    def delete(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM audit_entries WHERE position = 20")
        connection.execute("UPDATE audit_entries SET position = position - 1 WHERE position > 20")

    tamper(path, delete)
    assert broken(path).index == 20


@pytest.mark.invariant("S8")
def test_reordered_entries_are_found(path: Path) -> None:
    def swap(connection: sqlite3.Connection) -> None:
        for old, new in ((5, -1), (6, 5), (-1, 6)):
            connection.execute("UPDATE audit_entries SET position = ? WHERE position = ?", (new, old))

    tamper(path, swap)
    assert broken(path).index == 5


@pytest.mark.invariant("S8")
def test_a_tail_cut_below_a_checkpoint_is_found(path: Path) -> None:
    def cut(connection: sqlite3.Connection) -> None:
        rewrite(connection, lambda entries: entries.__delitem__(slice(30, None)))

    tamper(path, cut)
    error = broken(path)
    assert error.index == 30
    assert "covers 32 entries" in str(error)


@pytest.mark.invariant("S8")
@pytest.mark.parametrize(("index", "first"), [(3, 0), (15, 0), (16, 16), (31, 16)])
def test_a_rewritten_middle_with_a_new_chain_is_found(path: Path, index: int, first: int) -> None:
    def forge(entries: list[AuditEntry]) -> None:
        entries[index] = decision(99)

    tamper(path, lambda connection: rewrite(connection, forge))
    error = broken(path)
    assert error.index == first
    assert "checkpoint" in str(error)


@pytest.mark.invariant("S8")
def test_a_rewritten_log_with_checkpoints_of_another_key_is_found(path: Path) -> None:
    thief = PrivateKey(b"t" * 32)
    signer = NoteSigner(SIGNER.name, thief.public_key, thief.sign)

    def forge(connection: sqlite3.Connection) -> None:
        rewrite(connection, lambda entries: entries.__setitem__(3, decision(99)))
        connection.execute("DELETE FROM audit_checkpoints")
        audit.checkpoint(connection, signer, 1)

    tamper(path, forge)
    assert "no signature" in str(broken(path))


@pytest.mark.invariant("S8")
def test_a_log_written_anew_by_the_keys_owner_contradicts_checkpoints_kept_elsewhere(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        kept = audit.checkpoints(connection)
    connection.close()
    assert audit.verify_file(path, KEY.public_key, known=kept).checkpoints == 4

    def forge(connection: sqlite3.Connection) -> None:
        rewrite(connection, lambda entries: entries.__setitem__(3, decision(99)))
        connection.execute("DELETE FROM audit_checkpoints")
        audit.checkpoint(connection, SIGNER, 1)

    tamper(path, forge)
    audit.verify_file(path, KEY.public_key)
    with pytest.raises(AuditBroken, match="checkpoint"):
        audit.verify_file(path, KEY.public_key, known=kept)


@pytest.mark.invariant("S8")
def test_a_tail_cut_above_the_checkpoints_is_counted_as_unsigned_and_found_by_the_head(path: Path) -> None:
    tamper(path, lambda c: c.execute("DELETE FROM audit_entries WHERE position >= 36"))
    assert "stored head" in str(broken(path))
    tamper(path, lambda connection: rewrite(connection, lambda entries: None))
    assert audit.verify_file(path, KEY.public_key).unsigned == 4


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit_checkpoints SET size = 33 WHERE size = 32",
        "UPDATE audit_checkpoints SET note = replace(note, 'mercy', 'mercx')",
        "UPDATE audit_checkpoints SET note = replace(note, 'mercy', 'mercx') WHERE size = 32",
        "UPDATE audit_checkpoints SET note = 'garbage' WHERE size = 32",
        "UPDATE audit_checkpoints SET note = (SELECT note FROM audit_checkpoints WHERE size = 16) WHERE size = 32",
        "UPDATE audit_head SET last_hash = zeroblob(32)",
        "UPDATE audit_head SET peaks = zeroblob(32)",
        "UPDATE audit_head SET size = 41",
        "DELETE FROM audit_head",
        "UPDATE audit_entries SET hash = zeroblob(32) WHERE position = 3",
    ],
)
def test_changed_bookkeeping_is_found(path: Path, change: str) -> None:
    tamper(path, lambda connection: connection.execute(change))
    broken(path)


def test_checkpoints_of_two_logs_are_found(path: Path) -> None:
    other = NoteSigner("mercy.example/node/n2", KEY.public_key, KEY.sign)
    tamper(path, lambda connection: audit.checkpoint(connection, other, 1))
    assert "several logs" in str(broken(path))


def test_a_checkpoint_verifies_as_a_note_and_is_made_once(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        first = audit.checkpoint(connection, SIGNER, 5)
        assert audit.checkpoint(connection, SIGNER, 6) == first
        tree = audit.head(connection)
        leaves = [entry.hash for entry in audit.entries(connection)]
    connection.close()
    checkpoint = note.parse_checkpoint(note.open_note(first, SIGNER.name, KEY.public_key))
    assert checkpoint == note.Checkpoint(SIGNER.name, 40, merkle.root_of(leaves))
    assert tree.root() == checkpoint.root


@pytest.mark.parametrize("size", [None, 33])
def test_inclusion_of_one_entry(path: Path, size: int | None) -> None:
    with sqlite3.connect(path) as connection:
        for index in range(33):
            proof = audit.prove_inclusion(connection, index, size=size)
            proof.verify()
            assert proof.size == (size or 40)
        for index in (-1, 40):
            with pytest.raises(AuditBroken, match="no entry"):
                audit.prove_inclusion(connection, index)
    connection.close()


@pytest.mark.parametrize(
    "entry",
    [
        AuditEntry(kind="effect", detail={"fraction": 0.5}),  # type: ignore[dict-item]
        AuditEntry(kind="effect", detail={"é": 1}),
        AuditEntry(kind="effect", detail={"large": 2**53}),
        AuditEntry(kind="effect", detail={"long": "x" * 20_000}),
        AuditEntry(kind="effect", detail={"surrogate": "\ud800"}),
        AuditEntry(kind="effect", detail={"a": [[[[[1]]]]]}),
    ],
)
def test_entries_that_could_not_be_read_the_same_everywhere_are_refused(entry: AuditEntry) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.prepare(connection, "memory")
    with pytest.raises(StorageError):
        audit.append(connection, entry, 1)
    assert audit.head(connection).size == 0
    connection.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text\n",
        "text\n\n",
        "text\n\nno dash AAAA\n",
        "text\n\n\u2014 name AAAA",
        "text\n\n\u2014 name !!!!\n",
        "text\n\n\u2014 name AAAA\n",
        "text\n\n\u2014 na+me AAAAAAAA\n",
        "te\txt\n\n\u2014 name AAAAAAAA\n",
    ],
)
def test_malformed_notes_are_refused(text: str) -> None:
    with pytest.raises(AuditBroken):
        note.note_text(text)


@pytest.mark.parametrize(
    "text", ["", "origin\n1\n", "origin\n01\nAAAA\n", "\n1\nAAAA\n", "origin\n1\nAAAA\n", "origin\n-1\nAAAA\n"]
)
def test_malformed_checkpoints_are_refused(text: str) -> None:
    with pytest.raises(AuditBroken):
        note.parse_checkpoint(text)


def test_names_and_texts_that_a_note_cannot_hold_are_refused() -> None:
    for name in ("", "two words", "a+b"):
        with pytest.raises(AuditBroken, match="key name"):
            note.sign_note("text\n", NoteSigner(name, KEY.public_key, KEY.sign))
    for text in ("no newline", "tab\t\n"):
        with pytest.raises(AuditBroken, match="text"):
            note.sign_note(text, SIGNER)
