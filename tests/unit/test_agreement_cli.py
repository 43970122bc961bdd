"""`comity agreement`: in words for people, as JSON for programs, and a file that proves itself to an auditor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comity.agreement import open_document_of_agreement, sign_withdrawal
from comity.errors import AgreementError, ComityError
from comity.v1.agreement_pb2 import AgreementDocument, Obligations, SignedWithdrawal
from comity_node.cli import main
from comity_node.cli.agreement import _render
from comity_node.cli.agreement_words import terms_json, terms_text
from kit.consortium import NOW_MS, Consortium, consortium, names
from kit.documents import agree, make_agreement, make_terms

MEMBERS = names(3)
OWED = Obligations(onward="never", redact=["name"], generalize={"age": 5}, min_distance_to_private=0.15)


@pytest.fixture(scope="module")
def lab() -> Consortium:
    return consortium(*MEMBERS)


def document(lab: Consortium, *withdrawn: str) -> bytes:
    terms = make_terms(lab, obligations=OWED)
    digest = agree(lab, obligations=OWED).digest
    statements = [
        SignedWithdrawal.FromString(sign_withdrawal(lab.nodes[name], digest, "the study is over", NOW_MS))
        for name in withdrawn
    ]
    return AgreementDocument(agreement=make_agreement(lab, terms), withdrawals=statements).SerializeToString()


def exported(lab: Consortium, path: Path, *withdrawn: str) -> tuple[Path, Path]:
    """An exported agreement, and the bundle to verify it with."""
    data = document(lab, *withdrawn)
    agreed, ended = open_document_of_agreement(data, lab.trust)
    file, bundle = path / "agreement.json", path / "bundle.json"
    file.write_bytes(_render(agreed, ended, data))
    bundle.write_bytes(lab.bundle)
    return file, bundle


def verify(file: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any, str]:
    code = main(["agreement", "verify", str(file), "--bundle", str(bundle), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_an_auditor_verifies_an_agreement_with_a_file_and_a_bundle(
    lab: Consortium, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, bundle = exported(lab, tmp_path, MEMBERS[1])
    code, (answer,), _ = verify(file, bundle, capsys)
    assert code == 0
    assert answer["valid"] is True
    assert [one["organization"] for one in answer["signatures"]] == list(MEMBERS)
    assert answer["signatures"][0]["peer_id"] == lab.nodes[MEMBERS[0]].peer_id
    assert [(one["organization"], one["reason"]) for one in answer["withdrawals"]] == [
        (MEMBERS[1], "the study is over")
    ]
    assert main(["agreement", "verify", str(file), "--bundle", str(bundle)]) == 0
    text = capsys.readouterr().out
    for part in ("proven", "redact name", "generalize age 5", "2 of the 2 others", "SIGNED BY", "the study is over"):
        assert part in text


@pytest.mark.invariant("S2")
def test_every_byte_of_an_exported_agreement_counts(
    lab: Consortium, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, bundle = exported(lab, tmp_path, MEMBERS[1])
    good = file.read_bytes()
    for position in [*range(0, len(good), 61), len(good) - 1]:
        changed = bytearray(good)
        changed[position] ^= 0x01
        file.write_bytes(changed)
        code, answer, err = verify(file, bundle, capsys)
        assert code == 1, f"byte {position} does not count"
        assert answer["error"]["message"]
        assert err.startswith("error: ")


@pytest.mark.invariant("S2")
def test_every_byte_of_the_signed_document_counts(lab: Consortium) -> None:
    good = document(lab, MEMBERS[1])
    for position in range(0, len(good), 3):
        for bit in (0x01, 0x80):
            changed = bytearray(good)
            changed[position] ^= bit
            with pytest.raises(ComityError):
                open_document_of_agreement(bytes(changed), lab.trust)
    for extra in (good + b"\xfa\x01\x01x", good + good):
        with pytest.raises(ComityError):
            open_document_of_agreement(extra, lab.trust)


def test_files_that_are_no_exported_agreement(
    lab: Consortium, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, bundle = exported(lab, tmp_path)
    value = json.loads(file.read_text())
    for changes in ({"format": "other"}, {"document": 7}, {"document": "%%%"}, {"document": "AAAA"}, {"document": ""}):
        file.write_text(json.dumps({**value, **changes}))
        assert verify(file, bundle, capsys)[0] == 1
    for text in ("", "[]", "{", "{}"):
        file.write_text(text)
        assert verify(file, bundle, capsys)[0] == 1
    assert verify(tmp_path / "none", bundle, capsys)[0] == 1


@pytest.mark.invariant("S2")
def test_a_withdrawal_from_another_agreement_or_of_a_stranger_proves_nothing(lab: Consortium) -> None:
    good = AgreementDocument.FromString(document(lab))
    for organization, digest in ((MEMBERS[0], bytes(32)),):
        statement = sign_withdrawal(lab.nodes[organization], digest, "", NOW_MS)
        wrong = AgreementDocument(agreement=good.agreement, withdrawals=[SignedWithdrawal.FromString(statement)])
        with pytest.raises(AgreementError, match="from another agreement"):
            open_document_of_agreement(wrong.SerializeToString(), lab.trust)


def test_the_reason_of_a_withdrawal_is_a_line_of_500_characters(lab: Consortium) -> None:
    assert sign_withdrawal(lab.nodes[MEMBERS[0]], bytes(32), "x" * 500, NOW_MS)
    for reason in ("two\nlines", "x" * 501):
        with pytest.raises(AgreementError, match="one line"):
            sign_withdrawal(lab.nodes[MEMBERS[0]], bytes(32), reason, NOW_MS)


def test_an_exported_agreement_has_4_mib(lab: Consortium, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, bundle = exported(lab, tmp_path)
    with file.open("ab") as more:
        more.write(b" " * (4 << 20))
    code, answer, _ = verify(file, bundle, capsys)
    assert code == 1
    assert "larger than" in answer["error"]["message"]


def test_terms_in_words(lab: Consortium) -> None:
    terms = make_terms(lab, obligations=OWED, replaces=bytes(range(32)))
    text = terms_text(terms)
    assert f"{MEMBERS[0]}, who proposed it, and {MEMBERS[1]} and {MEMBERS[2]}" in text
    assert "replaces" in text
    value = terms_json(terms)
    assert value["review"] == {
        "eligible": 2, "faulty": 0, "quorum": 2, "min_score": 0.5, "panel": 0, "commit_reveal": False,
    }  # fmt: skip
    assert value["obligations"]["generalize"] == {"age": 5}
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize("command", ["list", "show", "withdraw", "amend", "export", "verify"])
def test_the_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["agreement", command, "--help"])
    assert end.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 5
