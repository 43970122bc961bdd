"""Bad policies: one line that says where and what, exit code 1, never a traceback, whichever command reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., tuple[int, str, str]]

TOP = "version: 1\norganization: mercy.example\n"
RULE = "  - {id: x, effect: allow, action: record.send, to: {organization: [stlukes.example]}%s}\n"
GOOD = TOP + "rules:\n" + RULE % ", data: {kind: synthetic}"
LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

BAD: dict[str, tuple[bytes, str, str]] = {
    # name: (the file, line:column, what is said)
    "empty": (b"", "1:1", "the file is empty"),
    "truncated in a list": (GOOD.encode()[:-30], r"\d+:\d+", "is no YAML"),
    "truncated in a word": ((TOP + "rul").encode(), "3:4", "is no YAML"),
    "no rules": (TOP.encode(), "1:1", '"rules" is missing'),
    "ten megabytes": (GOOD.encode() + b"#" * (10 << 20), "", "is over 1048576 bytes"),
    "ten megabytes of rules": ((TOP + "rules:\n" + RULE % "" * 140_000).encode(), "", "is over 1048576 bytes"),
    "aliases that multiply": (LAUGHS.encode(), "1:4", "anchors and aliases are not allowed"),
    "an alias of itself": (b"&a [*a]\n", "1:1", "anchors and aliases are not allowed"),
    "nested too deep": (TOP.encode() + b"rules: " + b"[" * 50 + b"]" * 50, r"3:\d+", "levels deep"),
    "a key twice": ((GOOD + "organization: other.example\n").encode(), "5:1", "is already there in line 2"),
    "a key twice in a rule": (GOOD.replace("id: x", "id: x, id: y").encode(), r"4:\d+", "is already there"),
    "an id twice": ((GOOD + RULE % "").encode(), r"5:\d+", "is already taken by"),
    "no as a boolean": (
        (TOP + "rules:\n" + RULE % ", when: {distinct_organizations: no}").encode(), r"4:\d+", "expected true or false",
    ),
    "on as a boolean": (
        (TOP + "rules:\n" + RULE % ", obligations: {drop_personal: on}").encode(), r"4:\d+", "expected true or false",
    ),
    "a number as a version": (GOOD.replace("version: 1", "version: 01").encode(), "1:10", "a whole number"),
    "a name in Cyrillic": (GOOD.replace("mercy", "mеrcy").encode(), "2:15", "organization"),
    "a partner in Cyrillic": (GOOD.replace("stlukes", "stlukеs").encode(), r"4:\d+", "organization"),
    "an action in Cyrillic": (
        GOOD.replace("record.send", "rеcord.send").encode(), r"4:\d+", "U+0435, CYRILLIC SMALL LETTER IE",
    ),
    "a key in full width": (GOOD.replace("effect", "ｅffect").encode(), r"4:\d+", "unknown key"),
    "a right-to-left override": (GOOD.replace("id: x", 'id: "x\u202e"').encode(), r"4:\d+", "is no id"),
    "groups in a circle": (
        GOOD.replace("rules:", "groups: {a: {group: b}, b: {group: a}}\nrules:").encode(), r"3:\d+", "holds itself",
    ),
    "a group of itself": (GOOD.replace("rules:", "groups: {a: {group: a}}\nrules:").encode(), r"3:\d+", "holds itself"),
    "purposes in a circle": (
        GOOD.replace("rules:", "purposes: {a: {parent: b}, b: {parent: a}}\nrules:").encode(), r"3:\d+", "own ancestor",
    ),
    "a negative rate": (
        (TOP + "rules:\n" + RULE % ", obligations: {rate: {records: -1, per: 1h}}").encode(), r"4:\d+", "from 0 to",
    ),
    "a rate per nothing": (
        (TOP + "rules:\n" + RULE % ", obligations: {rate: {records: 1, per: 0s}}").encode(), r"4:\d+", "must be from",
    ),
    "a rate per minus a second": (
        (TOP + "rules:\n" + RULE % ", obligations: {rate: {records: 1, per: -1s}}").encode(), r"4:\d+", "a duration",
    ),
    "a negative quota": (
        (TOP + "rules:\n" + RULE % ", obligations: {quota: {records: -5}}").encode(), r"4:\d+", "from 0 to",
    ),
    "an endless number": (
        (TOP + "rules:\n" + RULE % ", obligations: {quota: {records: 1e999}}").encode(), r"4:\d+", "a whole number",
    ),
    "an unknown key": (GOOD.replace("effect", "efect").encode(), r"4:\d+", 'did you mean "effect"'),
    "an unknown obligation": (
        (TOP + "rules:\n" + RULE % ", obligations: {redcat: [a]}").encode(), r"4:\d+", 'did you mean "redact"',
    ),
    "a tag": (GOOD.replace("mercy", "!!python/object:os.system mercy").encode(), "2:15", "tags are not allowed"),
    "two documents": ((GOOD + "---\n" + GOOD).encode(), "5:1", "a second document"),
    "no UTF-8": (GOOD.encode() + b"# \xff\xfe\n", "5:1", "is not UTF-8"),
    "a NUL": (GOOD.encode() + b"# \x00\n", "5:3", "is no YAML"),
    "a tab": ((TOP + "rules:\n\t- {}\n").encode(), "4:1", "is no YAML"),
    "a schema that is not there": (
        GOOD.replace("rules:", "datasets: {d: {classification: public, schema: none.json}}\nrules:").encode(),
        "", "none.json: there is no such file",
    ),
}  # fmt: skip


@pytest.mark.invariant("S3")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_policy_is_refused_in_one_line_with_its_place(cli: Cli, tmp_path: Path, name: str) -> None:
    data, place, says = BAD[name]
    path, good, cases = (tmp_path / each for each in ("policy.yaml", "good.yaml", "cases.yaml"))
    path.write_bytes(data)
    good.write_text(GOOD)
    request = "{action: record.send, organization: stlukes.example}"
    cases.write_text(f"version: 1\npolicy: policy.yaml\ncases: [{{name: x, expect: deny, request: {request}}}]\n")
    said = set()
    for arguments in (
        ("lint", path),
        ("explain", "--policy", path, "--action", "record.send", "--organization", "stlukes.example"),
        ("test", cases),
        ("diff", good, path, "--cases", cases),
    ):
        code, out, err = cli("policy", *arguments)
        assert (code, out) == (1, ""), arguments
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert err[:-1].isprintable(), "what is in the file cannot steer the terminal"
        said.add(err)
    (line,) = said
    assert says in line, line
    if place:
        assert re.match(rf"error: {re.escape(str(path))}:{place}: ", line), line
    code, out, _ = cli("policy", "lint", path, "--json")
    assert code == 1
    assert says in json.loads(out)["error"]["message"]


def test_the_good_one_is_good(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    assert cli("policy", "lint", path)[0] == 0


@pytest.mark.parametrize("what", ["a directory", "nothing", "a FIFO"])
def test_what_is_no_file_is_refused(cli: Cli, tmp_path: Path, what: str) -> None:
    path = tmp_path / "policy.yaml"
    if what == "a directory":
        path.mkdir()
    elif what == "a FIFO":
        import os

        os.mkfifo(path)
    code, out, err = cli("policy", "lint", path)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: {path}: ")


def test_a_policy_full_of_other_names_is_read_to_the_last_rule(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        TOP
        + "rules:\n"
        + (RULE % ", data: {kind: synthetic}").replace("id: x", "id: y")
        + RULE % ", data: {kind: syntetic}"
    )
    code, _, err = cli("policy", "lint", path)
    assert code == 1
    assert 'did you mean "synthetic"' in err
    assert f"{path}:5:" in err
