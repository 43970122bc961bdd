"""`comity policy` and `comity doctor`."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., tuple[int, str, str]]

POLICY = """\
version: 1
organization: mercy.example
datasets:
  tumours: {classification: confidential, schema: {age: {type: integer, min: 0, max: 120}}}
rules:
  - id: send-synthetic
    effect: allow
    action: record.send
    to: {organization: [stlukes.example]}
    data: {dataset: tumours, kind: synthetic}
    purpose: [screening]
  - id: never-raw-rows
    effect: forbid
    action: "*"
    data: {kind: raw}
"""

CASES = """\
version: 1
policy: policy.yaml
cases:
  - name: reviewers get synthetic rows
    request: {action: record.send, organization: stlukes.example, purpose: screening, dataset: tumours, kind: synthetic}
    expect: allow
    rules: [send-synthetic]
  - name: nobody gets raw rows
    request: {action: record.send, organization: stlukes.example, purpose: screening, dataset: tumours, kind: raw}
    expect: deny
"""


def request(kind: str = "synthetic", organization: str = "stlukes.example") -> tuple[str, ...]:
    words = {
        "action": "record.send",
        "organization": organization,
        "purpose": "screening",
        "dataset": "tumours",
        "kind": kind,
    }
    return tuple(part for name, value in words.items() for part in (f"--{name}", value))


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def test_lint(cli: Cli, policy: Path) -> None:
    code, out, _ = cli("policy", "lint", policy)
    assert code == 0, out
    assert "2 rules, 0 warnings" in out
    policy.write_text(POLICY.replace("organization: [stlukes.example]", "organization: [mercy.example]"))
    code, out, err = cli("policy", "lint", policy)
    assert code == 1
    assert f"{policy}:6" in out
    assert err.startswith("error: ")
    assert json.loads(cli("policy", "lint", policy, "--json")[1])["warnings"] == 1


@pytest.mark.invariant("S3")
def test_a_policy_that_is_wrong_is_refused_with_its_place(cli: Cli, policy: Path) -> None:
    policy.write_text(POLICY.replace("effect: forbid", "effekt: forbid"))
    code, _, err = cli("policy", "lint", policy)
    assert code == 1
    assert err.startswith(f"error: {policy}:13:5")
    assert 'did you mean "effect"' in err


def test_explain(cli: Cli, policy: Path, tmp_path: Path) -> None:
    code, out, _ = cli("policy", "explain", "--policy", policy, *request())
    assert (code, out.splitlines()[0]) == (0, "ALLOW: allowed by send-synthetic")
    answer = json.loads(cli("policy", "explain", "--policy", policy, "--json", *request("raw"))[1])
    assert (answer["decision"], answer["determined_by"]) == ("deny", ["never-raw-rows"])
    (tmp_path / "r.json").write_text(json.dumps(answer["request"] | {"kind": "synthetic"}))
    assert cli("policy", "explain", "--policy", policy, "--request", tmp_path / "r.json")[1].startswith("ALLOW")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--action", "record.send"), 2, "--organization"),
        (("--action", "record.sned", "--organization", "a.example"), 1, 'did you mean "record.send"'),
        (("--action", "record.send", "--organization", "a.example", "--label", "x"), 2, "NAME=VALUE"),
        (
            ("--action", "record.send", "--organization", "a.example", "--label", "recods=1"),
            1,
            'did you mean "records"',
        ),
    ],
)
def test_a_request_that_is_wrong(cli: Cli, policy: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    answered, _, err = cli("policy", "explain", "--policy", policy, *arguments)
    assert answered == code
    assert says in err


def test_cases(cli: Cli, policy: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases.yaml"
    cases.write_text(CASES)
    assert cli("policy", "test", cases) == (0, "2 of 2 cases passed\n", "")
    cases.write_text(CASES.replace("expect: deny", "expect: allow"))
    code, out, err = cli("policy", "test", cases)
    assert code == 1
    assert "nobody gets raw rows" in out
    assert err == "error: 1 of 2 cases failed\n"


def findings(out: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for each in json.loads(out)["findings"]:
        found.setdefault(each["check"], []).append(each)
    return found


@pytest.fixture
def home(cli: Cli, tmp_path: Path) -> Path:
    """A node's home where everything is in place but the node does not run."""
    home = tmp_path / "mercy"
    steps: tuple[tuple[str | Path, ...], ...] = (
        ("init", "--organization", "mercy.example", "--listen", "/ip4/127.0.0.1/tcp/0"),
        ("cert", "request"),
        ("cert", "approve", home / "keys/node.csr.pem"),
        ("cert", "install"),
        ("consortium", "create", tmp_path / "bundle.json", "--name", "tumours"),
        ("consortium", "sign", tmp_path / "bundle.json"),
        ("consortium", "install", tmp_path / "bundle.json"),
    )
    for step in steps:
        code, _, err = cli("--home", home, *step)
        assert code == 0, err
    return home


def test_the_doctor_finds_nothing_wrong(cli: Cli, home: Path) -> None:
    code, out, err = cli("--home", home, "doctor", "--json")
    found = findings(out)
    assert code == 0, err
    assert found["attestation"][0]["level"] == "ok"
    assert found["control"][0]["level"] == "note"
    assert {each["level"] for each in found["policy"]} == {"note"}, "a policy that allows nothing is worth a note"


def test_the_doctor_finds_what_is_wrong_and_goes_on(cli: Cli, home: Path) -> None:
    (home / "keys/node.key").chmod(0o644)
    (home / "policy.yaml").write_text("version: 1\n")
    (home / "consortium.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        text = (home / "node.yaml").read_text().replace("/tcp/0", f"/tcp/{port}")
        (home / "node.yaml").write_text(text + "datasets: {tumours: {schema: none.json}}\n")
        code, out, err = cli("--home", home, "doctor", "--json")
    found = findings(out)
    assert code == 1
    assert "findings keep this node from running" in err
    for check, says in {
        "key": "chmod 600",
        "policy": "policy.yaml:1:1",
        "bundle": "consortium.json",
        "dataset tumours": "none.json",
        "port": "Address already in use",
    }.items():
        assert found[check][0]["level"] == "error", check
        assert says in found[check][0]["detail"]
    assert found["disk"], "the checks after a failed one are made"


def test_the_doctor_without_a_home(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("--home", tmp_path, "doctor")
    assert code == 1
    assert "comity init" in out
