"""What a peer says cannot make a decision too large for the audit log, nor stay in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from comity_node.admission import Question, settling
from comity_node.admission.shapes import Shape
from comity_node.policy import matching
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Decision, Obligations, Request
from comity_node.storage import audit
from comity_node.storage.database import open_database
from kit.consortium import names
from kit.enforcing import make_gate

ME, PEER, OTHER = names(3)
NOW_MS = 1_800_000_000_000

TEXT = f"""
version: 1
organization: {ME}
rules:
  - id: few-fields
    effect: allow
    action: record.receive
    from: {{organization: "*"}}
    data: {{fields: [age]}}
"""


def asks(organization: str, *fields: str) -> Request:
    return Request(
        action="record.receive", organization=organization, role="validator", purpose="care", dataset="rows",
        kind="synthetic", fields=frozenset(fields),
    )  # fmt: skip


def long_fields() -> list[str]:
    return [f"{number}{'x' * 20_000}" for number in range(8)]


@pytest.mark.invariant("S7")
def test_a_reason_does_not_grow_with_what_a_peer_says() -> None:
    decision = loads_policy(TEXT).decide(asks(PEER, *long_fields()))
    assert not decision.allowed
    assert len(decision.reason) < 2_000
    said = Request(
        action="record.receive", organization=PEER, role="validator", purpose="p" * 50_000, dataset="d", kind="raw"
    )
    narrow = TEXT.replace("data: {fields: [age]}", "purpose: care")
    assert len(loads_policy(narrow).decide(said).reason) < 2_000


@pytest.mark.invariant("S7")
def test_field_names_of_a_peer_are_not_kept() -> None:
    matching._listed.cache_clear()
    policy = loads_policy(TEXT)
    policy.decide(asks(PEER, "a"))
    before = matching._listed.cache_info().currsize
    for number in range(20):
        assert not policy.decide(asks(PEER, f"made-up-{number}")).allowed
    assert matching._listed.cache_info().currsize == before


@pytest.mark.invariant("S8")
def test_many_rules_that_speak_at_once_are_written_down(tmp_path: Path) -> None:
    rules = "".join(
        f"  - {{id: never-from-there-{'x' * 60}-{number}, effect: forbid, action: record.receive,"
        f" from: {{organization: {PEER}}}}}\n"
        for number in range(300)
    )

    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            gate = await make_gate(database, TEXT + rules, lambda: NOW_MS)
            bad, good = await gate.decide([Question(asks(PEER, "age")), Question(asks(OTHER, "age"))])
            assert not bad.allowed
            assert good.allowed
            first, second = await database.read(audit.entries)
            assert (first.entry.decision, second.entry.decision) == ("deny", "allow")
            assert first.entry.rules
            assert set(first.entry.rules) <= set(bad.rules)

    trio.run(main)


@pytest.mark.invariant("S8")
def test_an_entry_has_50_rules_a_reason_of_1000_characters_and_texts_of_128() -> None:
    """Of what a decision says, however long it is: the entry has to fit the log."""
    policy = loads_policy(TEXT)
    request = replace(asks(PEER, "age"), purpose="p" * 500, dataset="d" * 500, kind="k" * 500)
    rules = tuple(f"rule-{number:02}" for number in range(60))
    decision = Decision(False, rules, "x" * 5000, Obligations())
    entry = settling._entry(Question(request), decision, policy, Shape(b"", "", PEER))
    assert (len(entry.rules), entry.detail["more_rules"], len(str(entry.detail["reason"]))) == (50, 10, 1000)
    assert {len(str(entry.detail[name])) for name in ("purpose", "dataset", "kind")} == {128}


def test_a_denial_gives_8_reasons_and_counts_the_rest() -> None:
    rules = "".join(
        f"  - {{id: never-{number}, effect: forbid, action: record.receive, from: {{organization: {PEER}}}}}\n"
        for number in range(12)
    )
    decision = loads_policy(TEXT + rules).decide(asks(PEER, "age"))
    assert decision.reason.count("forbidden by") == 8
    assert decision.reason.endswith("and 4 more")
    assert len(decision.rules) == 12
