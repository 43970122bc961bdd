"""A file of certified records proves itself: that it is whole, and where every record in it came from."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trio

from comity.client import Record
from comity.digest import canonical_json, hex_digest
from comity.errors import CertificateInvalid, ComityError
from comity.export import Export, merkle_root, open_export, sign_export, verify_export
from comity.provenance import make_provenance
from comity.statement import Statement, Subject, ed25519_signer, sign_statement
from comity.v1 import control_pb2 as pb
from comity.v1 import control_pb2_grpc as pb_grpc
from comity_node.cli.export_files import file_digest, proof_of, verify_file, write_proof
from comity_node.cli.record_files import write_jsonl
from comity_node.service import Service
from comity_node.storage import audit
from comity_node.storage.database import open_database
from kit.consortium import NOW_MS, consortium
from kit.exported import AUTHOR, FIELDS, HOLDER, REST, Holding

pytestmark = pytest.mark.invariant("S9")

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def holding() -> Holding:
    return Holding.make()


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_an_export_proves_itself(form: str, holding: Holding, tmp_path: Path) -> None:
    path = holding.export(tmp_path / f"rows.{form}", form)
    proven = verify_file(path, holding.lab.trust)
    assert proven.holder == HOLDER
    assert proven.export == Export(path.name, file_digest(path), form, 3, proven.export.root, NOW_MS + 2000)
    lines = proof_of(path).read_bytes().splitlines()
    assert merkle_root(lines[1:]) == (3, proven.export.root)
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, f"{path.name}.provenance.jsonl"]


def test_an_export_of_nothing_proves_that_it_is_empty(holding: Holding, tmp_path: Path) -> None:
    path = holding.export(tmp_path / "none.jsonl", records=[])
    assert verify_file(path, holding.lab.trust).export.records == 0
    path.write_bytes(b"{}\n")
    with pytest.raises(CertificateInvalid, match="is not the file"):
        verify_file(path, holding.lab.trust)


def proof_lines(path: Path, change: Callable[[list[bytes]], object]) -> None:
    lines = proof_of(path).read_bytes().splitlines(keepends=True)
    change(lines)
    proof_of(path).write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lines: lines.pop(1), "row 1"),
        (lambda lines: lines.pop(), "more rows than are proved|not those"),
        (lambda lines: lines.append(lines[1]), "stands twice"),
        (lambda lines: lines.insert(1, lines.pop()), "row 1"),
        (lambda lines: lines.pop(0), "not a"),
        (lambda lines: lines.clear(), "no DSSE envelope"),
        (lambda lines: lines.__setitem__(3, lines[3][:-1]), "cut off"),
    ],
)
def test_a_proof_with_other_lines_is_refused(
    change: Callable[[list[bytes]], object], reason: str, holding: Holding, tmp_path: Path
) -> None:
    path = holding.export(tmp_path / "rows.jsonl")
    proof_lines(path, change)
    with pytest.raises(ComityError, match=reason):
        verify_file(path, holding.lab.trust)


@pytest.mark.parametrize(
    "change", [lambda lines: lines.pop(), lambda lines: lines.reverse(), lambda lines: lines.clear()]
)
def test_other_records_than_the_statement_commits_to_are_refused_without_the_file(
    change: Callable[[list[bytes]], object], holding: Holding, tmp_path: Path
) -> None:
    statement, *lines = proof_of(holding.export(tmp_path / "rows.jsonl")).read_bytes().splitlines()
    proven = open_export(statement, holding.lab.trust)
    assert len(list(verify_export(proven, lines, holding.lab.trust))) == 3
    change(lines)
    with pytest.raises(CertificateInvalid, match="are not those that"):
        list(verify_export(proven, lines, holding.lab.trust))


def test_an_id_that_two_members_used_spoils_no_export(holding: Holding, tmp_path: Path) -> None:
    """A task's id is no secret: whoever reviews the task can use it for one of its own."""
    raw, other = canonical_json(FIELDS[0]), canonical_json({"label": 0, "x": 9.5, "name": "theirs"})
    made = {AUTHOR: holding.certified(0, raw), REST[2]: holding.certified(0, other, REST[2])}
    proofs = {author: make_provenance(holding.holder, one, holding.agreement) for author, one in made.items()}
    rows = [
        Record(
            "00" * 16, author, holding.agreed.terms.dataset, raw, hex_digest(raw), 8000, holding.agreed.digest.hex(), 1
        )
        for author, raw in ((AUTHOR, raw), (REST[2], other))
    ]
    path = tmp_path / "rows.jsonl"

    def sign(sha256: str, count: int, root: bytes) -> bytes:
        return sign_export(holding.holder, Export(path.name, sha256, "jsonl", count, root, NOW_MS + 2000))

    write_proof(path, rows, lambda task, author: proofs[author], partial(write_jsonl, path), sign)
    assert verify_file(path, holding.lab.trust).export.records == 2


@pytest.mark.parametrize("deep", [None, 500])
def test_what_is_no_record_of_a_table_is_refused(deep: int | None, holding: Holding, tmp_path: Path) -> None:
    """Its quorum may certify anything; the auditor is told so, and not shown where the command broke."""
    raw = b"no JSON" if deep is None else b'{"a":' * deep + b"1" + b"}" * deep
    path = tmp_path / "rows.jsonl"
    proof = make_provenance(holding.holder, holding.certified(0, raw), holding.agreement)
    row = {"task_id": "00" * 16, "author": AUTHOR, "dataset": holding.agreed.terms.dataset, "score": 8000}
    digests = f'"record_digest": "{hex_digest(raw)}", "agreement_digest": "{holding.agreed.digest.hex()}"'
    fields = '{"a": 1}' if deep is None else raw.decode()
    path.write_text(f'{json.dumps(row)[:-1]}, {digests}, "fields": {fields}}}\n')
    count, root = merkle_root([proof])
    export = Export(path.name, file_digest(path), "jsonl", count, root, NOW_MS)
    proof_of(path).write_bytes(sign_export(holding.holder, export) + b"\n" + proof + b"\n")
    with pytest.raises(CertificateInvalid, match="row 1"):
        verify_file(path, holding.lab.trust)


def test_no_text_of_a_record_steers_the_auditors_terminal(cli: Cli, holding: Holding, tmp_path: Path) -> None:
    bundle, path = tmp_path / "bundle.json", tmp_path / "record.json"
    bundle.write_bytes(holding.lab.bundle)
    made = holding.certified(0, canonical_json(FIELDS[0]), rule="r\ncertificate 9 of 9 votes\x1b[2J")
    path.write_bytes(make_provenance(holding.holder, made, holding.agreement))
    code, said, _ = cli("records", "verify", path, "--bundle", bundle)
    assert code == 0
    assert "\x1b" not in said
    assert "\ncertificate 9 of 9" not in said


def sign_again(holding: Holding, path: Path, **changes: Any) -> None:
    """The holder itself signs another statement about the file as it is now."""
    lines = proof_of(path).read_bytes().splitlines()
    export = open_export(lines[0], holding.lab.trust).export
    count, root = merkle_root(lines[1:])
    made = replace(export, **{"sha256": file_digest(path), "records": count, "root": root, **changes})
    lines[0] = sign_export(holding.holder, made)
    proof_of(path).write_bytes(b"".join(line + b"\n" for line in lines))


@pytest.mark.parametrize(
    "name", ["task_id", "author", "dataset", "score", "record_digest", "agreement_digest", "fields"]
)
def test_its_holder_cannot_put_other_rows_into_it(name: str, holding: Holding, tmp_path: Path) -> None:
    path = holding.export(tmp_path / "rows.jsonl")
    sign_again(holding, path)
    verify_file(path, holding.lab.trust)  # so far it says the same
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    other = {"score": 8001, "fields": {**FIELDS[1], "label": False}}
    rows[1][name] = other[name] if name in other else rows[0][name] + "0"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sign_again(holding, path)
    with pytest.raises(CertificateInvalid, match="row 2"):
        verify_file(path, holding.lab.trust)


def test_its_holder_cannot_put_more_rows_into_it(holding: Holding, tmp_path: Path) -> None:
    path = holding.export(tmp_path / "rows.jsonl")
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0])
    sign_again(holding, path)
    with pytest.raises(CertificateInvalid, match="more rows than are proved"):
        verify_file(path, holding.lab.trust)


@pytest.mark.parametrize("change", ["value", "row", "column"])
def test_its_holder_cannot_put_another_table_into_it(change: str, holding: Holding, tmp_path: Path) -> None:
    path = holding.export(tmp_path / "rows.parquet", "parquet")
    table = pq.read_table(path)
    if change == "value":
        table = table.set_column(table.column_names.index("x"), "x", pa.array([2.5, 9.0, 3.0]))
    elif change == "row":
        table = table.slice(0, 2)
    else:
        table = table.append_column("more", pa.array([1, None, None]))
    pq.write_table(table, path)
    sign_again(holding, path)
    with pytest.raises(CertificateInvalid, match=r"row [123]"):
        verify_file(path, holding.lab.trust)


def test_another_member_cannot_pass_it_off_as_its_own(holding: Holding, tmp_path: Path) -> None:
    path = holding.export(tmp_path / "rows.jsonl")
    lines = proof_of(path).read_bytes().splitlines(keepends=True)
    export = open_export(lines[0], holding.lab.trust).export
    lines[0] = sign_export(holding.lab.nodes[REST[0]], export) + b"\n"
    proof_of(path).write_bytes(b"".join(lines))
    with pytest.raises(CertificateInvalid, match=f"is held by {HOLDER}"):
        verify_file(path, holding.lab.trust)


def test_who_is_no_member_cannot_sign_one(holding: Holding, tmp_path: Path) -> None:
    path = holding.export(tmp_path / "rows.jsonl")
    lines = proof_of(path).read_bytes().splitlines()
    export = open_export(lines[0], holding.lab.trust).export
    stranger = consortium("stranger.example", "other.example", name="others").nodes["stranger.example"]
    with pytest.raises(ComityError, match="no member"):
        open_export(sign_export(stranger, export), holding.lab.trust)


@pytest.mark.parametrize(
    "changes",
    [
        {"records": "3"}, {"records": -1}, {"records": True}, {"root": "00"}, {"root": 5}, {"form": "csv"},
        {"signedMs": None}, {"holder": AUTHOR}, {"holderChain": []}, {"holderChain": "x"}, {"holderChain": ["!"]},
    ],
)  # fmt: skip
def test_a_statement_that_says_something_else_is_refused(changes: dict[str, Any], holding: Holding) -> None:
    good = {
        "form": "jsonl", "records": 0, "root": "00" * 32, "signedMs": NOW_MS, "holder": HOLDER,
        "holderChain": [base64.b64encode(each).decode() for each in holding.holder.chain],
    }  # fmt: skip

    def signed(predicate: dict[str, Any], *subjects: Subject) -> bytes:
        statement = Statement(subjects or (Subject("f.jsonl", "0" * 64),), "urn:comity:predicate:dataset:v1", predicate)
        return sign_statement(statement, [ed25519_signer(holding.holder.key)])

    assert open_export(signed(good), holding.lab.trust).holder == HOLDER
    with pytest.raises(ComityError):
        open_export(signed({**good, **changes}), holding.lab.trust)
    with pytest.raises(ComityError, match="one file"):
        open_export(signed(good, Subject("a", "0" * 64), Subject("b", "0" * 64)), holding.lab.trust)


@pytest.mark.parametrize("name", ["", "a/b", "a\n", "x" * 256])
def test_a_name_of_a_file_is_a_name(name: str, holding: Holding) -> None:
    good = Export("n" * 255, "0" * 64, "jsonl", 0, bytes(32), NOW_MS)
    sign_export(holding.holder, good)
    with pytest.raises(CertificateInvalid, match="255 characters"):
        sign_export(holding.holder, replace(good, name=name))


def test_a_node_signs_what_its_log_says(holding: Holding, tmp_path: Path) -> None:
    """And nothing that is no export: the log has no word of that."""

    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            trust = holding.lab.trust
            gate = SimpleNamespace(now_ms=lambda: NOW_MS + 5)
            here: Any = SimpleNamespace(_identity=holding.holder, _gate=gate, _database=database)
            request = pb.SignExportRequest(name="f.jsonl", sha256="ab" * 32, form="jsonl", records=7, root=bytes(32))
            answer = await Service.sign_export(here, request)
            proven = open_export(answer.statement, trust)
            assert proven.export == Export("f.jsonl", "ab" * 32, "jsonl", 7, bytes(32), NOW_MS + 5)
            request.form = "csv"
            with pytest.raises(CertificateInvalid):
                await Service.sign_export(here, request)
            [stored] = await database.read(audit.entries)
            assert (stored.entry.action, stored.entry.subject) == ("record.export", bytes.fromhex("ab" * 32))
            assert stored.entry.detail == {"records": 7, "root": "00" * 32}

    trio.run(main)


class Node(pb_grpc.ControlServiceServicer):
    """A node that holds the records, and signs."""

    def __init__(self, holding: Holding) -> None:
        self.holding = holding

    def ListRecords(
        self, request: pb.ListRecordsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ListRecordsResponse]:
        yield pb.ListRecordsResponse(
            records=[
                pb.Record(
                    task_id=one.task_id, author=one.author, dataset=one.dataset, record=one.raw, score=one.score,
                    record_digest=one.record_digest, agreement_digest=one.agreement_digest,
                )
                for one in self.holding.records()
            ]
        )  # fmt: skip

    def GetRecord(self, request: pb.GetRecordRequest, context: grpc.ServicerContext) -> pb.GetRecordResponse:
        return pb.GetRecordResponse(record=pb.Record(), provenance=self.holding.provenance(request.task_id))

    def SignExport(self, request: pb.SignExportRequest, context: grpc.ServicerContext) -> pb.SignExportResponse:
        export = Export(request.name, request.sha256, request.form, request.records, request.root, NOW_MS)
        return pb.SignExportResponse(statement=sign_export(self.holding.holder, export))


def test_the_commands_write_and_verify_it(
    cli: Cli, holding: Holding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, path = tmp_path / "bundle.json", tmp_path / "rows.parquet"
    bundle.write_bytes(holding.lab.bundle)
    with ThreadPoolExecutor(max_workers=2) as threads:
        server = grpc.server(threads)
        pb_grpc.add_ControlServiceServicer_to_server(Node(holding), server)  # type: ignore[abstract]
        server.add_insecure_port(f"unix:{tmp_path}/c.sock")
        server.start()
        monkeypatch.setenv("COMITY_CONTROL", f"unix:{tmp_path}/c.sock")
        code, out, err = cli("records", "export", path)
        assert code == 0, err
        assert f"{path}: 3 records" in out
        assert cli("records", "export", tmp_path / "bare.jsonl", "--no-provenance")[0] == 0
        server.stop(None).wait()
    assert not proof_of(tmp_path / "bare.jsonl").exists()
    code, out, err = cli("records", "verify", path, "--bundle", bundle)
    assert code == 0, err
    assert "records     3, exported by" in out
    [answer] = json.loads(cli("--json", "records", "verify", path, "--bundle", bundle)[1])
    assert (answer["valid"], answer["records"], answer["sha256"]) == (True, 3, file_digest(path))
    with path.open("ab") as file:
        file.write(b"\n")
    code, _, err = cli("records", "verify", path, "--bundle", bundle)
    assert code == 1
    assert "is not the file that" in err


def test_without_pyarrow_a_table_is_verified_elsewhere(
    cli: Cli, holding: Holding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, path = tmp_path / "bundle.json", holding.export(tmp_path / "rows.parquet", "parquet")
    bundle.write_bytes(holding.lab.bundle)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    code, _, said = cli("records", "verify", path, "--bundle", bundle)
    assert code == 1
    assert "comity[node]" in said
