"""Anyone can verify an export: `examples/verify-provenance`, in a Python that has no Comity."""

from __future__ import annotations

import base64
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comity.envelope import Unsigned, sign_all
from comity.errors import ComityError
from comity.provenance import make_provenance, verify_provenance
from comity.signing import PrivateKey
from comity.v1.task_pb2 import CertifiedRecord
from comity_node.cli.export_files import proof_of
from kit.consortium import NOW_MS
from kit.exported import HOLDER, Holding
from kit.tamper import variants

pytestmark = pytest.mark.invariant("S9")

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "verify-provenance" / "verify.py"
#: Runs the script where nothing of Comity, and no protobuf, can be imported.
BARE = """
import runpy, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("comity", "comity_node", "google"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Nothing())
try:
    import comity
except ImportError:
    pass
else:
    sys.exit("comity is there")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def verify(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-I", "-c", BARE, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def holding() -> Holding:
    return Holding.make()


@pytest.fixture
def bundle(holding: Holding, tmp_path: Path) -> Path:
    path = tmp_path / "bundle.json"
    path.write_bytes(holding.lab.bundle)
    return path


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_an_export_and_a_record_are_proved(form: str, holding: Holding, bundle: Path, tmp_path: Path) -> None:
    path = holding.export(tmp_path / f"rows.{form}", form)
    record = tmp_path / "record.json"
    record.write_bytes(holding.provenance("01" * 16))
    code, said = verify("--bundle", bundle, record, "--export", path)
    assert code == 0, said
    assert f"{path}: proven, 3 records" in said
    assert said.count(f"held by {HOLDER}: ") == 4


def other_value(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"-0.25", b"-0.26"))


def other_vote(path: Path) -> None:
    lines = proof_of(path).read_bytes().splitlines(keepends=True)
    statement = json.loads(lines[2])
    at = len(statement["payload"]) // 2
    letter = "A" if statement["payload"][at] != "A" else "B"
    statement["payload"] = statement["payload"][:at] + letter + statement["payload"][at + 1 :]
    lines[2] = json.dumps(statement).encode() + b"\n"
    proof_of(path).write_bytes(b"".join(lines))


def left_out(path: Path) -> None:
    lines = proof_of(path).read_bytes().splitlines(keepends=True)
    proof_of(path).write_bytes(b"".join(lines[:-1]))


def other_order(path: Path) -> None:
    first, *rest = proof_of(path).read_bytes().splitlines(keepends=True)
    proof_of(path).write_bytes(first + b"".join(rest[::-1]))


@pytest.mark.parametrize("spoil", [other_value, other_vote, left_out, other_order])
def test_an_export_that_was_touched_is_not(
    spoil: Callable[[Path], None], holding: Holding, bundle: Path, tmp_path: Path
) -> None:
    path = holding.export(tmp_path / "rows.jsonl")
    spoil(path)
    code, said = verify("--bundle", bundle, "--export", path)
    assert code == 1
    assert f"{path}: NOT PROVEN" in said
    assert "Traceback" not in said


def test_nothing_is_proved_with_the_bundle_of_others(holding: Holding, tmp_path: Path) -> None:
    from kit.consortium import consortium, names

    other, record = tmp_path / "other.json", tmp_path / "record.json"
    other.write_bytes(consortium(*names(5), name="impostors").bundle)
    record.write_bytes(holding.provenance("01" * 16))
    code, said = verify("--bundle", other, record)
    assert code == 1
    assert "no root of its organization vouches" in said


def test_it_does_not_let_what_it_refuses_steer_the_terminal(bundle: Path, tmp_path: Path) -> None:
    spoilt = json.loads(bundle.read_bytes())
    spoilt["payloadType"] = "\x1b[1A\x1b[2Kall is proven\n"
    bundle.write_text(json.dumps(spoilt))
    code, said = verify("--bundle", bundle, tmp_path / "record.json")
    assert code == 1
    assert "NOT PROVEN" in said
    assert "\x1b" not in said
    assert len(said.splitlines()) == 1


def test_a_time_that_is_none_is_refused(holding: Holding, bundle: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    for wrong in ("1" * 400, "1e400", "true"):
        envelope = json.loads(holding.provenance("01" * 16))
        payload = base64.b64decode(envelope["payload"]).decode()
        start = payload.index('"signedMs":') + len('"signedMs":')
        end = start + len(payload[start:]) - len(payload[start:].lstrip("0123456789"))
        envelope["payload"] = base64.b64encode((payload[:start] + wrong + payload[end:]).encode()).decode()
        record.write_text(json.dumps(envelope))
        code, said = verify("--bundle", bundle, record)
        assert (code, "Traceback" in said) == (1, False), wrong


class Script:
    """The script's own functions, in this process: for many tries."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = runpy.run_path(str(SCRIPT))

    def main(self, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        code: int = self.names["main"]()
        return code


def test_it_says_no_to_every_changed_byte_and_never_fails(
    holding: Holding, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, record = Script(), tmp_path / "record.json"
    for good, arguments in ((holding.provenance("01" * 16), (record,)), (holding.lab.bundle, ())):
        target = record if arguments else bundle
        record.write_bytes(holding.provenance("01" * 16))
        assert script.main(monkeypatch, "--bundle", bundle, record) == 0
        for position in range(0, len(good), 47):
            changed = bytearray(good)
            changed[position] ^= 1 << position % 7
            target.write_bytes(changed)
            assert script.main(monkeypatch, "--bundle", bundle, record) == 1, position
        target.write_bytes(good)
    assert "NOT PROVEN" in capsys.readouterr().err


def test_it_refuses_what_a_holder_changes_as_comity_does(holding: Holding) -> None:
    """Each field of the certified record changed, emptied, dropped or doubled, and signed by the holder."""
    script = Script()
    roots = script.names["read_bundle"](holding.lab.bundle)
    payload = json.loads(base64.b64decode(json.loads(holding.provenance("01" * 16))["payload"]))
    certified = CertifiedRecord.FromString(base64.b64decode(payload["predicate"]["certified"]))
    tried, proved = 0, list[str]()
    for change, changed in variants(certified):
        proof = make_provenance(holding.holder, changed, holding.agreement, at_ms=NOW_MS + 2000)
        here = _proves((ComityError,), verify_provenance, proof, holding.lab.trust)
        there = _proves(script.names["MALFORMED"], script.names["verify_record"], proof, roots)
        assert here == there, change
        tried += 1
        proved += [change] * here
    assert tried > 200
    # The beginning of a history is good, too: it just says less. So are votes in another order.
    assert proved == ["task.hops[4] dropped", "certificate.votes reversed"]


def _proves(refusals: tuple[type[Exception], ...], verify: Callable[..., object], *arguments: object) -> bool:
    try:
        verify(*arguments)
    except Exception as error:  # what is no refusal is raised again
        if isinstance(error, refusals) or type(error).__name__ == "Unproven":
            return False
        raise
    return True


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_it_reads_signatures_over_many(size: int) -> None:
    script, key = Script(), PrivateKey(bytes(32))
    made = sign_all(key, [Unsigned("hop", b"%d" % number) for number in range(size)])
    for number, envelope in enumerate(made):
        assert script.names["open_envelope"](envelope, b"hop") == (key.public_key, b"%d" % number)
        with pytest.raises(Exception, match=r".*") as refused:
            script.names["open_envelope"](envelope[:-1] + bytes([envelope[-1] ^ 1]), b"hop")
        assert type(refused.value).__name__ in ("InvalidSignature", "Unproven")


def test_it_needs_what_its_requirements_say() -> None:
    wanted = {line.split(">=")[0] for line in (SCRIPT.parent / "requirements.txt").read_text().split()}
    assert wanted == {"cryptography", "securesystemslib[crypto]"}
    assert "import comity" not in SCRIPT.read_text()
