"""The bounds of what a policy and an agreement's obligations can say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from comity.agreement import parse_terms
from comity.errors import AgreementError, ConfigError
from comity.v1 import agreement_pb2
from comity_node.policy import matching
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Request
from comity_node.policy.obligations import KAnonymity, Noise, Obligations

START = """\
version: 1
organization: own.example
rules: [{id: r, effect: allow, action: record.send, to: {organization: "*"}"""


def read(duties: str) -> None:
    loads_policy(f"{START}, obligations: {{{duties}}}}}]")


def noise(numbers: str) -> str:
    return f"noise: {{x: {{{numbers}}}}}"


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("generalize: {x: 1000000000}", "generalize: {x: 1050000000}"),
        ("mask: {x: 64}", "mask: {x: 65}"),
        ("k_anonymity: {k: 1000000, fields: x}", "k_anonymity: {k: 1000001, fields: x}"),
        (noise("epsilon: 1000000, lower: 0, upper: 1"), noise("epsilon: 1000001, lower: 0, upper: 1")),
        (noise("epsilon: 1, lower: 0, upper: 1000000000000"), noise("epsilon: 1, lower: 0, upper: 1050000000000")),
        ("min_distance_to_private: 1000000000", "min_distance_to_private: 1000000001"),
        ("review: {quorum: 1000}", "review: {quorum: 1001}"),
        (f"notify: {'n' * 100}", f"notify: {'n' * 101}"),
        (f"redact: {'n' * 4096}", f"redact: {'n' * 4097}"),
    ],
)
def test_a_policys_numbers_and_texts_keep_their_bounds(good: str, bad: str) -> None:
    read(good)
    with pytest.raises(ConfigError):
        read(bad)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (lambda: Obligations(generalize={"x": 1e9}), lambda: Obligations(generalize={"x": 1.05e9})),
        (lambda: Obligations(mask={"x": 64}), lambda: Obligations(mask={"x": 65})),
        (lambda: Noise(1e6, 0, 1), lambda: Noise(1_000_001, 0, 1)),
        (lambda: Noise(1, -1e12, 1e12), lambda: Noise(1, 0, 1.05e12)),
        (lambda: KAnonymity(1_000_000, frozenset("x")), lambda: KAnonymity(1_000_001, frozenset("x"))),
    ],
)
def test_obligations_keep_their_bounds(good: Callable[[], object], bad: Callable[[], object]) -> None:
    good()
    with pytest.raises(ConfigError):
        bad()


def terms(owed: agreement_pb2.Obligations) -> bytes:
    return agreement_pb2.Terms(
        id="1", participants=["a.example", "b.example"], initiator="a.example", records_per_organization=1,
        batch_records=1, lease_seconds=1, issued_ms=1, expires_ms=2, obligations=owed,
        review=agreement_pb2.ReviewTerms(eligible=1, faulty=0, quorum=1),
    ).SerializeToString()  # fmt: skip


def wire_noise(epsilon: float, upper: float) -> agreement_pb2.Obligations:
    return agreement_pb2.Obligations(noise={"x": agreement_pb2.Noise(epsilon=epsilon, upper=upper)})


def wire_k(k: int) -> agreement_pb2.Obligations:
    return agreement_pb2.Obligations(k_anonymity=agreement_pb2.KAnonymity(k=k, fields=["x"]))


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (agreement_pb2.Obligations(mask={"x": 64}), agreement_pb2.Obligations(mask={"x": 65})),
        (wire_noise(1e6, 1), wire_noise(1_000_001, 1)),
        (wire_noise(1, 1e12), wire_noise(1, 1.05e12)),
        (wire_k(1_000_000), wire_k(1_000_001)),
    ],
)
def test_obligations_in_terms_keep_their_bounds(
    good: agreement_pb2.Obligations, bad: agreement_pb2.Obligations
) -> None:
    parse_terms(terms(good))
    with pytest.raises(AgreementError):
        parse_terms(terms(bad))


@pytest.mark.invariant("S7")
def test_a_long_request_is_not_remembered() -> None:
    policy = loads_policy(f"{START.replace('*', 'a.example')}}}]")
    short = Request("record.send", "b.example", "", "p" * 1000, "d", "raw")  # 1,024 characters in all
    assert policy.decide(short) is policy.decide(short)
    long = Request("record.send", "b.example", "", "p" * 1001, "d", "raw")
    assert policy.decide(long) is not policy.decide(long)
    assert policy.decide(long) == policy.decide(long)


@pytest.mark.invariant("S7")
def test_denials_by_default_are_remembered_4096_at_a_time() -> None:
    policy = loads_policy(f"{START.replace('*', 'a.example')}}}]")
    for number in range(4100):
        policy.decide(Request("record.send", "b.example", "", str(number), "d", "raw"))
    assert len(policy._denied) == 4


@pytest.mark.invariant("S7")
def test_words_of_4096_conditions_are_remembered() -> None:
    for number in range(4100):
        matching._listed(frozenset({f"w{number}"}))
    assert matching._listed.cache_info().currsize == 4096
