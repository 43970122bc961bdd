"""Two organizations, from nothing to a consortium that both have signed: through the command line."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from comity_node.cli import app

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(cli: Callable[..., tuple[int, str, str]]) -> Cli:
    return lambda *arguments: Outcome(*cli(*arguments))


def ok(outcome: Outcome) -> Outcome:
    assert (outcome.code, outcome.err) == (0, "")
    return outcome


def refused(outcome: Outcome, *says: str, code: int = 1) -> Outcome:
    assert outcome.code == code, outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1, "errors are one line"
    for text in says:
        assert text in outcome.err
    return outcome


def organization(cli: Cli, directory: Path, name: str) -> Path:
    home = directory / name.partition(".")[0]
    ok(cli("--home", home, "init", "--organization", name))
    ok(cli("--home", home, "cert", "request"))
    ok(cli("--home", home, "cert", "approve", home / "keys/node.csr.pem"))
    ok(cli("--home", home, "cert", "install"))
    return home


@pytest.fixture
def homes(cli: Cli, tmp_path: Path) -> tuple[Path, Path]:
    return organization(cli, tmp_path, "mercy.example"), organization(cli, tmp_path, "stlukes.example")


def make_bundle(cli: Cli, homes: tuple[Path, Path], path: Path) -> Path:
    mercy, stlukes = homes
    ok(cli("--home", mercy, "consortium", "create", path, "--name", "tumours"))
    ok(cli("--home", mercy, "consortium", "add", path, stlukes / "ca/ca.pem"))
    return path


def test_the_whole_walk(cli: Cli, homes: tuple[Path, Path], tmp_path: Path) -> None:
    mercy, stlukes = homes
    bundle = make_bundle(cli, homes, tmp_path / "bundle.json")

    refused(cli("--home", mercy, "consortium", "verify", bundle), "not signed by mercy.example, stlukes.example")
    ok(cli("--home", mercy, "consortium", "sign", bundle))
    refused(cli("--home", mercy, "consortium", "verify", bundle), "not signed by stlukes.example")
    signed = ok(cli("--home", stlukes, "consortium", "sign", bundle, "--json")).json
    assert all(member["signed"] for member in signed["members"].values())

    for home in homes:
        shown = ok(cli("consortium", "verify", bundle, "--home", home, "--json")).json
        assert (shown["valid"], shown["consortium"], shown["epoch"]) == (True, "tumours", 1)
        assert set(shown["members"]) == {"mercy.example", "stlukes.example"}
        ok(cli("--home", home, "consortium", "install", bundle))
        assert (home / "consortium.json").read_bytes() == bundle.read_bytes()
    assert "stlukes.example  signed" in ok(cli("--home", mercy, "consortium", "show")).out


def test_a_member_is_taken_out(cli: Cli, homes: tuple[Path, Path], tmp_path: Path) -> None:
    mercy, stlukes = homes
    bundle = make_bundle(cli, homes, tmp_path / "bundle.json")
    refused(cli("consortium", "remove", bundle, "hope.example"), "no member")
    third = organization(cli, tmp_path, "hope.example")
    ok(cli("consortium", "add", bundle, third / "ca/ca.pem", "--threshold", "2"))
    for home in (mercy, stlukes, third):
        ok(cli("--home", home, "consortium", "sign", bundle))
    ok(cli("consortium", "remove", bundle, "stlukes.example"))
    ok(cli("--home", mercy, "consortium", "sign", bundle))
    refused(cli("--home", mercy, "consortium", "verify", bundle), "1 of 2 votes")
    ok(cli("--home", third, "consortium", "sign", bundle))
    shown = ok(cli("--home", mercy, "--json", "consortium", "verify", bundle)).json
    assert (shown["epoch"], sorted(shown["members"])) == (2, ["hope.example", "mercy.example"])
    refused(cli("--home", stlukes, "consortium", "install", bundle), "own CA is not in it")
    stranger = organization(cli, tmp_path, "stranger.example")
    refused(cli("--home", stranger, "consortium", "sign", bundle), "do not sign it")


def test_the_key_stays_and_is_the_identity(cli: Cli, tmp_path: Path) -> None:
    home = tmp_path / "mercy"
    made = ok(cli("--home", home, "--json", "init", "--organization", "mercy.example")).json
    request = ok(cli("--home", home, "--json", "cert", "request")).json
    issued = ok(cli("--home", home, "--json", "cert", "approve", request["request"], "--days", "30")).json
    ok(cli("--home", home, "cert", "install", issued["chain"]))
    shown = ok(cli("--home", home, "--json", "cert", "show")).json
    assert made["peer_id"] == request["peer_id"] == issued["peer_id"] == shown["peer_id"]
    assert shown["node"] == "spiffe://mercy.example/node/n1"
    assert shown["days_left"] in (29, 30)


@pytest.mark.invariant("S4")
def test_private_keys_are_for_their_owner_and_leave_in_no_file(
    cli: Cli, homes: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle = make_bundle(cli, homes, tmp_path / "bundle.json")
    ok(cli("--home", homes[0], "consortium", "sign", bundle))
    private = [path for path in tmp_path.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert sorted(path.name for path in private) == ["ca.key", "ca.key", "node.key", "node.key"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    (homes[0] / "keys/node.key").chmod(0o640)
    refused(cli("--home", homes[0], "cert", "request"), "can be read by others", "chmod 600")


def test_init_never_overwrites(cli: Cli, tmp_path: Path) -> None:
    ok(cli("--home", tmp_path, "init", "--organization", "mercy.example"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused(cli("--home", tmp_path, "init", "--organization", "other.example"), "node.yaml", "nothing was changed")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_bad_address_leaves_nothing_behind(cli: Cli, tmp_path: Path) -> None:
    arguments = ("init", "--organization", "mercy.example", "--listen", "/ip4/0.0.0.0/udp/1")
    refused(cli("--home", tmp_path, *arguments), "node.yaml:", "/ip4/HOST/tcp/PORT")
    assert list(tmp_path.iterdir()) == []


def test_a_ca_certifies_only_its_own(cli: Cli, homes: tuple[Path, Path]) -> None:
    mercy, stlukes = homes
    refused(cli("--home", stlukes, "cert", "approve", mercy / "keys/node.csr.pem"), "only its own CA can vouch for it")


def test_a_chain_of_another_node_is_not_installed(cli: Cli, homes: tuple[Path, Path]) -> None:
    mercy, stlukes = homes
    before = (mercy / "keys/node.chain.pem").read_bytes()
    refused(cli("--home", mercy, "cert", "install", stlukes / "keys/node.chain.pem"), "of another key")
    assert (mercy / "keys/node.chain.pem").read_bytes() == before


def test_an_expired_bundle(cli: Cli, homes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(cli, homes, tmp_path / "bundle.json")
    for home in homes:
        ok(cli("--home", home, "consortium", "sign", bundle))
    ok(cli("--home", homes[0], "consortium", "verify", bundle))
    later = app.now_ms() + 366 * DAY_MS
    monkeypatch.setattr(app, "now_ms", lambda: later)
    refused(cli("--home", homes[0], "consortium", "verify", bundle), str(bundle), "has expired", "ask the consortium")


@pytest.mark.invariant("S3")
def test_a_bundle_that_is_tampered_with_foreign_or_older(cli: Cli, homes: tuple[Path, Path], tmp_path: Path) -> None:
    mercy, stlukes = homes
    alone = tmp_path / "alone.json"
    ok(cli("--home", mercy, "consortium", "create", alone, "--name", "alone"))
    ok(cli("--home", mercy, "consortium", "sign", alone))
    refused(cli("--home", stlukes, "consortium", "verify", alone), "own CA is not in it")
    refused(cli("--home", stlukes, "consortium", "sign", alone), "do not sign it")
    refused(cli("--home", stlukes, "consortium", "install", alone), "own CA is not in it")

    bundle = make_bundle(cli, homes, tmp_path / "bundle.json")
    for home in homes:
        ok(cli("--home", home, "consortium", "sign", bundle))
    ok(cli("--home", mercy, "consortium", "install", bundle))
    refused(cli("--home", mercy, "consortium", "install", alone), "a bundle of 'alone', and 'tumours' was seen here")
    spoiled = json.loads(bundle.read_text())
    spoiled["signatures"][0]["sig"] = spoiled["signatures"][1]["sig"]
    bundle.write_text(json.dumps(spoiled))
    refused(cli("--home", mercy, "consortium", "verify", bundle))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version: 1\norganization: [mercy\n", "node.yaml:"),
        (
            "version: 1\norganization: mercy.example\nnode: n1\nlisten: []\nbotstrap: []\n",
            'node.yaml:5:1: unknown key "botstrap"',
        ),
        ("", "node.yaml"),
    ],
)
def test_a_bad_node_yaml_is_one_line_with_its_place(cli: Cli, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "node.yaml").write_text(text)
    refused(cli("--home", tmp_path, "cert", "request"), says)
    answer = cli("--home", tmp_path, "cert", "request", "--json")
    assert answer.json["error"]["code"] == "config_invalid"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("cert",),
        ("cert", "approve"),
        ("cert", "approve", "x", "--days", "0"),
        ("init",),
        ("consortium", "create", "x"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    refused(cli(*arguments), "--help", code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("cert", "approve", "no-such-file"),
        ("consortium", "show", "no-such-file"),
        ("consortium", "verify", "no-such-file", "--auditor"),
        ("consortium", "create", "/dev/null/x", "--name", "y"),
        ("audit", "verify", "no-such-file", "--unsigned"),
    ],
)
def test_files_that_are_not_there(cli: Cli, homes: tuple[Path, Path], arguments: tuple[str, ...]) -> None:
    refused(cli("--home", homes[0], *arguments))


def test_a_home_that_is_none(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMITY_HOME", str(tmp_path))
    refused(cli("cert", "request"), "no node's home", "comity init")


def test_an_interrupt_is_130(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "now_ms", interrupted)
    outcome = cli("--home", tmp_path, "cert", "request")
    assert (outcome.code, outcome.out) == (130, "")


def test_a_full_disk_is_one_line(cli: Cli, homes: tuple[Path, Path]) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    (homes[0] / "keys/.full.new").symlink_to("/dev/full")
    refused(cli("--home", homes[0], "cert", "request", "--out", homes[0] / "keys/full"), "No space left")
