"""Bad policies: each is refused with its file, line and column, and with what to do about it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from comity.errors import ConfigError
from comity_node.policy.loader import load, loads_policy
from kit.bad_policies import HEAD, RULE, RULES, START, TO, TOPS


def refused(text: str, where: str, message: str) -> None:
    """Expect a refusal; `where` is `line:column`."""
    with pytest.raises(ConfigError, match=message) as caught:
        loads_policy(text, file="p.yaml")
    assert (caught.value.file, f"{caught.value.line}:{caught.value.column}") == ("p.yaml", where)


def at_mark(text: str) -> tuple[str, str]:
    """Return the text without its `@`, and where that was."""
    before, _, after = text.partition("@")
    return before + after, f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(("rest", "message"), RULES)
def test_a_rule_is_refused_where_it_is_wrong(rest: str, message: str) -> None:
    text, where = at_mark(HEAD + RULE.format(rest=rest))
    refused(text, where, message)


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(("more", "message"), TOPS)
def test_a_policy_is_refused_where_it_is_wrong(more: str, message: str) -> None:
    text, where = at_mark(START + more)
    refused(text, where, message)


def test_a_condition_on_jurisdictions_needs_facts() -> None:
    text, where = at_mark(
        "version: 1\norganization: own.example\nrules:\n" + RULE.format(rest=f"{TO}, when: {{jurisdiction: @EU}}")
    )
    refused(text, where, "write them under organizations")


@pytest.mark.invariant("S3")
def test_a_policy_that_is_cut_off_anywhere_is_refused_or_says_less() -> None:
    text = HEAD + RULE.format(rest=TO) + "\n" + RULE.format(rest=TO).replace("id: a", "id: b") + "\n"
    whole = loads_policy(text).document.rules
    for length in range(len(text)):
        try:
            rules = loads_policy(text[:length], file="p.yaml").document.rules
        except ConfigError as error:
            assert error.file == "p.yaml"  # noqa: PT017
            continue
        assert [rule.id for rule in rules] == [rule.id for rule in whole][: len(rules)]


@pytest.mark.invariant("S7")
def test_a_policy_of_10_mb_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(START.encode() + b"#" * 10_000_000)
    started = time.monotonic()
    with pytest.raises(ConfigError, match="is over 1048576 bytes") as caught:
        load(path)
    assert caught.value.file == str(path)
    assert time.monotonic() - started < 1


@pytest.mark.invariant("S7")
def test_aliases_that_would_grow_without_end_are_refused_at_the_first() -> None:
    bomb = START + "x0: &x0 [1]\n" + "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 30))
    refused(bomb, "4:5", "anchors and aliases are not allowed; write the value out")


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("large", [False, True])
def test_groups_are_16_deep(large: bool) -> None:
    def nested(count: int) -> str:
        groups = "".join(f"  g{n}: {{group: [g{n + 1}]}}\n" for n in range(count - 1))
        padding = ("#" * 100 + "\n") * 400 if large else ""  # read with the other parser
        return f"{START}{padding}groups:\n{groups}  g{count - 1}: {{organization: a.example}}\n"

    assert loads_policy(nested(16)).document.groups["g0"] == {"a.example"}
    with pytest.raises(ConfigError, match="nested over 16 levels"):
        loads_policy(nested(17))


def test_many_groups_that_share_others_are_read_once_each() -> None:
    layers = "".join(
        f"  a{n}: {{group: [a{n + 1}, b{n + 1}]}}\n  b{n}: {{group: [a{n + 1}, b{n + 1}]}}\n" for n in range(14)
    )
    last = "  a14: {organization: a.example}\n  b14: {organization: b.example}\n"
    assert loads_policy(f"{START}groups:\n{layers}{last}").document.groups["a0"] == {"a.example", "b.example"}
