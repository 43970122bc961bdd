"""What an auditor does with the audit log: verify with witnesses, look, prove one entry, export, keep a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from comity.revocation import Revocation
from comity.signing import PrivateKey
from comity_node.storage import audit, revocations, witness
from comity_node.storage.audit import AuditEntry, NoteSigner, StoredEntry
from comity_node.storage.cosignature import cosign
from comity_node.storage.database import Database
from comity_node.storage.note import note_text
from comity_node.storage.reviews import Added, VoteRow, add_vote
from comity_node.storage.witness import Cosignature

Cli = Callable[..., tuple[int, str, str]]

KEY = PrivateKey(bytes(range(32)))
SIGNER = NoteSigner("mercy.example/node/n1", KEY.public_key, KEY.sign)
WITNESSES = [PrivateKey(bytes([number]) * 32) for number in (1, 2, 3)]
NAMES = [f"org{number}.example/node/n1" for number in (1, 2, 3)]
TASK = "5a" * 16
AT_MS = 1_760_000_000_000  # 2025-10-09T08:53:20Z


@dataclass(frozen=True)
class Log:
    """A node's database: 20 entries, a checkpoint of 10 that two witnesses cosigned, one of 15 that one did."""

    path: Path
    who: str


def entry(number: int) -> AuditEntry:
    subject = bytes([number]) * 32
    if number == 7:
        return AuditEntry("effect", "task.certified", subject=b"\x03" * 32, detail={"task": TASK})
    if number == 11:
        return AuditEntry("decision", "bulk.send", "deny", ("never",), "hope.example", subject, agreement=b"g" * 32)
    return AuditEntry("decision", "record.send", "allow", (f"rule-{number}",), "stlukes.example", subject)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli-audit") / "node.db"
    Database.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        for number in range(20):
            audit.append(connection, entry(number), AT_MS + 1000 * number)
            if number + 1 in (10, 15):
                note = audit.checkpoint(connection, SIGNER, AT_MS)
                for name, key in list(zip(NAMES, WITNESSES, strict=True))[: 2 if number == 9 else 1]:
                    line = cosign(note_text(note), NoteSigner(name, key.public_key, key.sign), AT_MS // 1000)
                    witness.put_cosignature(connection, Cosignature(number + 1, name, key.public_key, line))
        connection.commit()
    return path


@pytest.fixture
def log(template: Path, tmp_path: Path) -> Log:
    return Log(Path(shutil.copy(template, tmp_path / "node.db")), KEY.peer_id)


def names(*numbers: int) -> list[str]:
    return [word for number in numbers for word in ("--witness", WITNESSES[number].peer_id)]


@pytest.mark.invariant("S8")
@pytest.mark.parametrize(
    ("options", "cosigned"),
    [
        (names(0), 15),
        (names(1), 10),
        (names(0, 1), 10),
        ([*names(0, 1), "--witnesses", "1"], 15),
        ([*names(0, 1, 2), "--witnesses", "2"], 10),
    ],
)
def test_witnesses_are_counted(cli: Cli, log: Log, options: list[str], cosigned: int) -> None:
    code, out, err = cli("audit", "verify", log.path, "--peer-id", log.who, *options, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["valid"], report["cosigned"], report["cosignatures"]) == (True, cosigned, 3)
    assert [each["size"] for each in report["seen_by"]] == [15, 10]


@pytest.mark.invariant("S8")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (names(2), "0 of the 1 witnesses"),
        (names(0, 1, 2), "2 of the 3 witnesses"),
        ([*names(0), "--witnesses", "2"], "name each with --witness"),
        (["--witnesses", "0"], "--witnesses says 0"),
        (["--witness", "nobody"], "not a PeerId"),
    ],
)
def test_a_log_without_its_witnesses_does_not_pass(cli: Cli, log: Log, options: list[str], reason: str) -> None:
    code, _, err = cli("audit", "verify", log.path, "--peer-id", log.who, *options)
    assert code == 1
    assert reason in err


@pytest.mark.invariant("S8")
def test_a_checkpoint_that_was_kept_shows_a_log_that_was_cut(cli: Cli, log: Log, tmp_path: Path) -> None:
    code, out, _ = cli("audit", "checkpoint", log.path, "--json")
    assert (code, json.loads(out)["size"]) == (0, 15)
    kept = tmp_path / "kept.note"
    assert cli("audit", "checkpoint", log.path, "--out", kept)[0] == 0
    assert NAMES[0] in kept.read_text()
    verify = ("audit", "verify", log.path, "--peer-id", log.who, "--known", kept)
    assert cli(*verify)[0] == 0
    with closing(sqlite3.connect(log.path)) as connection:
        entries = [each.entry for each in audit.entries(connection, limit=12)]
        for table in ("audit_entries", "audit_head", "audit_checkpoints", "audit_cosignatures"):
            connection.execute(f"DELETE FROM {table}")
        for each in entries:
            audit.append(connection, each, AT_MS)
        connection.commit()
    assert cli("audit", "verify", log.path, "--peer-id", log.who)[0] == 0
    code, _, err = cli(*verify)
    assert code == 1
    assert "covers 15 entries and only 12" in err


@pytest.mark.parametrize(
    ("options", "indexes"),
    [
        (["--last", "3"], [17, 18, 19]),
        (["--kind", "effect"], [7]),
        (["--action", "bulk.*"], [11]),
        (["--decision", "deny"], [11]),
        (["--peer", "hope.example"], [11]),
        (["--rule", "rule-4"], [4]),
        (["--subject", "0202"], [2]),
        (["--agreement", "6767"], [11]),
        (["--task", "5a5a5a"], [3, 7]),
        (["--since", "2025-10-09T08:53:35", "--until", "2025-10-09T08:53:37Z"], [15, 16]),
        (["--since", "1h"], []),
        (["--start", "18", "--decision", "allow"], [18, 19]),
        (["--decision", "allow", "--action", "bulk.send"], []),
    ],
)
def test_what_is_shown(cli: Cli, log: Log, options: list[str], indexes: list[int]) -> None:
    code, out, err = cli("audit", "show", log.path, *options, "--json")
    assert (code, err) == (0, "")
    assert [each["index"] for each in json.loads(out)] == indexes
    assert cli("audit", "show", log.path, *options)[0] == 0


@pytest.mark.parametrize("options", [["--task", "xyz"], ["--since", "yesterday"], ["--last", "-1"]])
def test_filters_that_say_nothing_are_refused(cli: Cli, log: Log, options: list[str]) -> None:
    assert cli("audit", "show", log.path, *options)[0] == 2


@pytest.mark.invariant("S8")
def test_an_entry_is_proved_without_the_database(cli: Cli, log: Log, tmp_path: Path) -> None:
    file = tmp_path / "proof"
    assert cli("audit", "prove", "7", log.path, "--out", file)[0] == 0
    assert cli("audit", "prove", "7", log.path, "--out", file)[0] == 1, "nothing is overwritten unasked"
    log.path.unlink()
    code, out, err = cli("audit", "verify-proof", file, "--peer-id", log.who, *names(0, 1), "--json")
    assert (code, err) == (0, "")
    proved = json.loads(out)
    assert (proved["size"], proved["entry"]["index"], proved["entry"]["action"]) == (10, 7, "task.certified")
    assert cli("audit", "verify-proof", file, "--peer-id", WITNESSES[0].peer_id)[0] == 1
    assert "0 of the witnesses" in cli("audit", "verify-proof", file, "--peer-id", log.who, *names(2))[2]
    assert "whose log" in cli("audit", "verify-proof", file)[2]
    assert cli("audit", "verify-proof", file, "--unsigned")[0] == 0


def test_what_cannot_be_proved(cli: Cli, log: Log, tmp_path: Path) -> None:
    assert "no checkpoint covers it yet" in cli("audit", "prove", "15", log.path, "--out", tmp_path / "x")[2]
    assert cli("audit", "prove", "-1", log.path)[0] == 2


@pytest.mark.invariant("S8")
def test_an_export_verifies_without_the_database(cli: Cli, log: Log, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    assert cli("audit", "export", log.path, "--out", file)[0] == 0
    assert "--force" in cli("audit", "export", log.path, "--out", file)[2]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[-1]["rules"] == ["rule-19"], "an entry is a line of JSON that any tool reads"
    verify = ("audit", "verify", "--export", file, "--peer-id", log.who)
    code, out, err = cli(*verify, *names(0, 1), "--json")
    assert (code, err) == (0, "")
    assert (json.loads(out)["entries"], json.loads(out)["cosigned"]) == (20, 10)
    assert "not both" in cli(*verify, log.path)[2]
    assert "whose log" in cli("audit", "verify", "--export", file)[2]


def test_evidence_is_shown_with_both_notes(cli: Cli, log: Log, tmp_path: Path) -> None:
    code, out, _ = cli("audit", "evidence", log.path)
    assert (code, out.strip()) == (0, "no contradictions are known")
    with closing(sqlite3.connect(log.path)) as connection:
        first, second = reversed(audit.checkpoints(connection))
        detail = {"origin": SIGNER.name, "first": first, "second": second}
        audit.append(
            connection, AuditEntry("evidence", "checkpoint.forked", peer="mercy.example", detail=detail), AT_MS
        )
        connection.commit()
    code, out, _ = cli("audit", "evidence", log.path)
    assert code == 1
    assert "two pasts" in out
    assert all(line.strip() in out for line in first.splitlines())
    [found] = json.loads(cli("audit", "evidence", log.path, "--json")[1])
    assert (found["first"], found["second"]) == (first, second)
    assert cli("audit", "evidence", log.path, "--out", tmp_path / "notes")[0] == 1
    assert (tmp_path / "notes/20-first.note").read_text() == first
    kept = tmp_path / "notes/20-second.note"
    assert cli("audit", "verify", log.path, "--peer-id", log.who, "--known", kept)[0] == 0


def test_witnesses_are_shown_and_what_is_kept_of_others_is_written(cli: Cli, log: Log, tmp_path: Path) -> None:
    head = witness.WitnessedHead("hope.example/node/n1", "hope.example", 5, "a note\n", AT_MS)
    with closing(sqlite3.connect(log.path)) as connection:
        witness.put_head(connection, head)
        witness.count_contradiction(connection, head.origin)
        connection.commit()
    code, out, _ = cli("audit", "witnesses", log.path, "--json", "--out", tmp_path / "kept")
    shown = json.loads(out)
    assert (code, shown["entries"]) == (0, 20)
    assert [(each["name"], each["peer_id"], each["size"], each["at_s"]) for each in shown["witnessed_by"]] == [
        (NAMES[0], WITNESSES[0].peer_id, 15, AT_MS // 1000),
        (NAMES[1], WITNESSES[1].peer_id, 10, AT_MS // 1000),
    ]
    [kept] = shown["witnesses"]
    assert (kept["origin"], kept["size"], kept["contradictions"]) == (head.origin, 5, 1)
    assert (tmp_path / "kept/hope.example-node-n1.note").read_text() == head.note
    assert "hope.example/node/n1" in cli("audit", "witnesses", log.path)[1]


def test_two_reviews_of_one_record_are_evidence(cli: Cli, log: Log, tmp_path: Path) -> None:
    with closing(sqlite3.connect(log.path)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        vote = VoteRow(b"t" * 16, 0, "hope.example", b"yes", (b"chain",), True, 9000, AT_MS, b"s" * 32)
        assert add_vote(connection, vote) is Added.NEW
        assert add_vote(connection, replace(vote, review=b"again")) is Added.SAME
        for _ in range(2):
            assert add_vote(connection, replace(vote, review=b"no", accept=False)) is Added.DIFFERENT
        connection.commit()
    code, out, _ = cli("audit", "evidence", log.path, "--out", tmp_path / "reviews")
    assert code == 1
    assert "two signed reviews" in out
    assert sorted(each.read_bytes() for each in (tmp_path / "reviews").iterdir()) == [b"no", b"yes"]
    [found] = json.loads(cli("audit", "evidence", log.path, "--json")[1])
    assert (found["peer"], found["task"]) == ("hope.example", (b"t" * 16).hex())
    assert (found["first.review"], found["second.review"]) == (b"yes".hex(), b"no".hex())


def test_a_revocation_is_in_the_log_once(log: Log) -> None:
    revocation = Revocation("hope.example", b"f" * 32, 5000, "lost", b"raw", b"certificate")
    with closing(sqlite3.connect(log.path)) as connection:
        for _ in range(2):
            revocations.keep(connection, revocation, AT_MS)
        entries = [each.entry for each in audit.entries(connection, start=20)]
    assert [(each.kind, each.action, each.peer) for each in entries] == [("key", "certificate.revoked", "hope.example")]


@pytest.mark.parametrize("command", ["show", "checkpoint", "export", "evidence", "verify"])
def test_a_file_that_is_no_database_is_refused(cli: Cli, tmp_path: Path, command: str) -> None:
    file = tmp_path / "x.db"
    options = ["--unsigned"] if command == "verify" else []
    assert cli("audit", command, file, *options)[0] == 1
    file.write_bytes(b"no database" * 1000)
    code, _, err = cli("audit", command, file, *options)
    assert code == 1
    assert "no SQLite database" in err


def test_the_end_of_a_long_log_is_shown_without_reading_all_of_it(
    cli: Cli, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    entries = audit.entries

    def counted(*arguments: object, **options: int) -> list[StoredEntry]:
        page = entries(*arguments, **options)  # type: ignore[arg-type]
        read.extend(each.index for each in page)
        return page

    monkeypatch.setattr(audit, "entries", counted)
    code, out, _ = cli("audit", "show", log.path, "--last", "2", "--json")
    assert (code, [each["index"] for each in json.loads(out)]) == (0, [18, 19])
    assert set(read) == {18, 19}
    code, out, _ = cli("audit", "show", log.path, "--last", "100", "--json")
    assert (code, len(json.loads(out))) == (0, 20)


def test_a_log_of_millions_can_be_shown_from_its_middle(cli: Cli, log: Log) -> None:
    assert cli("audit", "show", log.path, "--start", "3000000", "--json")[:2] == (0, "[]\n")
    assert cli("audit", "show", log.path, "--start", "-1")[0] == 2


def test_an_export_that_nobody_reads_on_ends_quietly(log: Log) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "import sys; from comity_node.cli.app import main; sys.exit(main())"]
    command += ["audit", "export", str(log.path)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_what_stands_in_no_log_is_not_promised_a_proof(cli: Cli, log: Log) -> None:
    code, _, err = cli("audit", "prove", "20", log.path)
    assert (code, "there is no such entry" in err) == (1, True)
    code, _, err = cli("audit", "prove", "19", log.path)
    assert (code, "no checkpoint covers it yet" in err) == (1, True)
