"""`comity policy diff` and `explain` over a node's audit log."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from comity import hops
from comity.digest import sha256
from comity.errors import AuditBroken, StorageError
from comity_node.admission.archive import Archive, recall_policy, remember_policy
from comity_node.policy.loader import load, loads_policy
from comity_node.storage.connections import connect_readonly, connect_writer, create
from comity_node.storage.tasks import TaskRow, put_tasks
from comity_node.storage.workflows import AgreementRow, put_agreement
from kit.consortium import NOW_MS
from kit.decided import ME, OTHER, PEER, POLICY, asking, decide_all
from kit.enforcing import NODES

Cli = Callable[..., tuple[int, str, str]]
RECORD = sha256(b"record")
WIDER = POLICY.replace(f"organization: [{PEER}]", f"organization: [{PEER}, {OTHER}]")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Six decisions: two allowed, one for another organization and a raw one denied, and a rate used up."""
    asked = [(asking(), RECORD), (asking(), RECORD), (asking(organization=OTHER), RECORD), (asking("raw"), b"")]
    cards = [(asking("", action="agent.discover"), b"")] * 3
    decide_all(tmp_path / "node.db", POLICY, [*asked, *cards])
    return tmp_path / "node.db"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(POLICY)
    new.write_text(WIDER)
    return old, new


def test_diff_says_what_would_be_widened(cli: Cli, log: Path, files: tuple[Path, Path]) -> None:
    old, new = files
    code, out, err = cli("policy", "diff", old, new, "--database", log)
    assert (code, err) == (1, "error: 1 decisions would be allowed that were denied; --fail-on none lets that pass\n")
    assert out.splitlines()[0] == (
        f"deny->allow: record.send with {OTHER} for screening tumours synthetic validator (entry 2)"
    )
    assert "1 of 7 decisions change (4 distinct requests)" in out
    assert "made otherwise" not in out, "a rate that was used up is no drift"
    assert cli("policy", "diff", old, new, "--database", log, "--fail-on", "none")[0] == 0
    assert cli("policy", "diff", new, old, "--database", log)[0] == 0, "narrowed is not widened"
    assert cli("policy", "diff", new, old, "--database", log, "--fail-on", "any")[0] == 1
    answer = json.loads(cli("policy", "diff", old, new, "--database", log, "--json", "--fail-on", "none")[1])
    assert answer["changes"] == {
        "deny->allow": 1, "allow->deny": 0, "obligations": 0, "rules": 0, "unknown": 0, "same": 6,
    }  # fmt: skip
    assert answer["groups"][0]["organization"] == OTHER
    assert answer["examples"][0]["new"]["determined_by"] == ["send-synthetic"]


def test_diff_of_a_part_of_the_log(cli: Cli, log: Path, files: tuple[Path, Path]) -> None:
    def asked(*more: str) -> int:
        answer = cli("policy", "diff", *files, "--database", log, "--json", "--fail-on", "none", *more)
        return int(json.loads(answer[1])["asked"])

    assert asked("--last", "3") == 3
    assert asked("--last", "100") == 7
    assert asked("--last", "0") == 0
    later = f"{(NOW_MS + 2000) / 1000:.3f}"
    assert asked("--since", datetime.fromtimestamp(float(later), UTC).isoformat()) == 5
    assert asked("--since", "9999-01-01") == 0


def test_diff_of_cases_needs_no_database(cli: Cli, files: tuple[Path, Path], tmp_path: Path) -> None:
    cases = tmp_path / "cases.yaml"
    cases.write_text(
        "version: 1\npolicy: nowhere.yaml\ncases:\n  - name: to the other one\n    expect: deny\n    request: {action: "
        f"record.send, organization: {OTHER}, purpose: screening, dataset: tumours, kind: synthetic}}\n"
    )
    code, out, _ = cli("policy", "diff", *files, "--cases", cases)
    assert code == 1
    assert f"({cases}:4:5: to the other one)" in out
    code, _, err = cli("policy", "diff", *files, "--cases", cases, "--last", "3")
    assert (code, "not from both" in err) == (2, True)
    assert cli("policy", "diff", *files, "--database", tmp_path / "none.db")[0] == 1
    assert cli("policy", "diff", *files, "--since", "yesterday")[0] == 2


def test_a_decision_is_explained_by_the_policy_that_made_it(cli: Cli, log: Path, files: tuple[Path, Path]) -> None:
    _, new = files
    code, out, _ = cli("policy", "explain", "--entry", "2", "--database", log, "--policy", new)
    assert code == 0
    assert "is not today's" in out
    assert "send-synthetic would allow it if organization were" in out
    assert "today's policy decides it otherwise (deny->allow)" in out
    answer = json.loads(cli("policy", "explain", "--entry", "2", "--database", log, "--policy", new, "--json")[1])
    assert answer["explanation"]["decision"] == answer["recorded"]["decision"] == "deny"
    assert not answer["explained_by_todays_policy"]


def test_a_limit_that_was_used_up_is_told_from_the_policy(cli: Cli, log: Path, files: tuple[Path, Path]) -> None:
    code, out, _ = cli("policy", "explain", "--entry", "6", "--database", log, "--policy", files[0])
    assert code == 0
    assert "the rate of rule show-cards is used up" in out
    assert "the policy alone allows it" in out


def test_a_policy_that_was_not_kept_is_told(cli: Cli, tmp_path: Path, files: tuple[Path, Path]) -> None:
    file = tmp_path / "other.db"
    decide_all(file, POLICY, [(asking(organization=OTHER), RECORD)], remember=False)
    code, out, _ = cli("policy", "explain", "--entry", "0", "--database", file, "--policy", files[1])
    assert code == 0
    assert "the policy of that time was not kept" in out
    assert "today's policy speaks instead" in out
    code, out, _ = cli("policy", "explain", "--entry", "0", "--database", file)
    assert code == 0, "a database alone is enough to say what the log says"
    assert out.startswith("entry 0, ")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--entry", "99"), 1, "no entry 99; it ends at 6"),
        (("--entry", "-1"), 2, "-1"),
        (("--task", "ab"), 2, "32 hexadecimal digits"),
        (("--task", "ab" * 16), 1, "no task"),
        (("--entry", "1", "--task", "ab" * 16), 2, "one of"),
        (("--entry", "1", "--action", "record.send"), 2, "one of"),
    ],
)
def test_what_cannot_be_explained(
    cli: Cli, log: Path, files: tuple[Path, Path], arguments: tuple[str, ...], code: int, says: str
) -> None:
    answered, _, err = cli("policy", "explain", "--database", log, "--policy", files[0], *arguments)
    assert answered == code
    assert says in err


def test_decisions_about_a_subject_are_found_whatever_else_the_log_holds(log: Path) -> None:
    connection = connect_readonly(log)
    try:
        archive = Archive(connection)
        assert [each.entry.index for each in archive.about([RECORD])] == [0, 1, 2]
        assert list(archive.about([sha256(b"another")])) == list(archive.about([])) == []
        assert [archive.start_of_last(count) for count in (1, 2, 7, 8)] == [6, 5, 0, 0]
    finally:
        connection.close()


def test_a_kept_policy_is_the_very_one_with_its_schemas(tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    schema = tmp_path / "schemas" / "tumours.json"
    schema.write_text('{"version": 1, "fields": {"age": {"type": "number"}}}')
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY.replace("schema: {age: {type: integer, min: 0, max: 120}}", "schema: schemas/tumours.json"))
    policy = load(path)
    create(tmp_path / "node.db")
    connection: Any = connect_writer(tmp_path / "node.db", None)
    try:
        assert remember_policy(connection, policy)
        assert not remember_policy(connection, policy), "once is enough"
        schema.unlink()
        path.unlink()
        kept = recall_policy(connection, policy.digest)
        assert kept is not None
        assert (kept.digest, kept.document) == (policy.digest, policy.document)
        assert recall_policy(connection, bytes(32)) is None
        connection.execute("UPDATE policies SET digest = ?", (bytes(32),))
        with pytest.raises(AuditBroken, match="is another one"):
            recall_policy(connection, bytes(32))
        connection.execute("UPDATE policies SET files = ?", (b"no files",))
        with pytest.raises(StorageError, match="damaged"):
            recall_policy(connection, bytes(32))
        assert kept.organization == ME
        assert loads_policy(POLICY).digest != policy.digest
    finally:
        connection.close()


def keep_task(path: Path, task_id: bytes, records: list[bytes]) -> None:
    """Store a task of the node of `ME` whose record had these forms, each made and then sent."""
    identity = NODES[ME]
    history: list[bytes] = []
    for revision, record in enumerate(records):
        for action in (hops.CREATE, hops.SEND):
            passage = hops.Passage(task_id, revision, sha256(record), action, "screening", bytes(32), NOW_MS)
            history.append(hops.sign_hop(identity, passage, history))
    agreement = AgreementRow(bytes(32), b"", ME, "screening", "tumours", NOW_MS, "active", NOW_MS)
    task = TaskRow(
        task_id, bytes(32), "w1", bytes(16), 0, len(records) - 1, "offered", records[-1], sha256(records[-1]),
        hops=tuple(history),
    )  # fmt: skip
    connection = connect_writer(path, None)
    try:
        put_agreement(connection, agreement)
        assert put_tasks(connection, [task]) == 1
    finally:
        connection.close()


def test_all_decisions_about_a_task_in_each_of_its_revisions(
    cli: Cli, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    path, task_id = tmp_path / "node.db", bytes(range(16))
    first, second, other = b'{"age":40}', b'{"age":41}', b'{"age":99}'
    asked = [(asking(), first), (asking(organization=OTHER), first), (asking(), other), (asking(), second)]
    decide_all(path, POLICY, [(request, sha256(record)) for request, record in asked])
    keep_task(path, task_id, [first, second])
    code, out, _ = cli("policy", "explain", "--task", task_id.hex(), "--database", path, "--policy", files[0])
    assert code == 0
    heads = [line for line in out.splitlines() if line.startswith("entry ")]
    assert [head.split()[1:4:2] for head in heads] == [["0,", "allow"], ["1,", "deny"], ["3,", "allow"]]
    answer = json.loads(
        cli("policy", "explain", "--task", task_id.hex(), "--database", path, "--policy", files[0], "--json")[1]
    )
    assert [each["index"] for each in answer["decisions"]] == [0, 1, 3], "another task's record is not among them"
    assert [each["recorded"]["decision"] for each in answer["decisions"]] == ["allow", "deny", "allow"]
    near = answer["decisions"][1]["explanation"]
    assert near["rules"][0]["failed"] == [{"condition": "organization", "wanted": PEER, "got": OTHER}]


def test_a_task_without_decisions_is_told(cli: Cli, log: Path, files: tuple[Path, Path]) -> None:
    keep_task(log, bytes(16), [b'{"age":1}'])
    code, out, _ = cli("policy", "explain", "--task", "00" * 16, "--database", log, "--policy", files[0])
    assert (code, out) == (0, "the log has no decision about this task's record\n")
