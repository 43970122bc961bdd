"""Masks, pseudonyms, noise and k-anonymity: what is done to a value, and what of it can be checked."""

from __future__ import annotations

import hashlib
import hmac
import math
from typing import Any

import pytest

from comity.agreement import parse_terms
from comity.errors import AgreementError, ConfigError, PolicyDenied
from comity.v1 import agreement_pb2
from comity_node.policy.obligations import (
    Approval,
    Budget,
    KAnonymity,
    Noise,
    Obligations,
    Quota,
    apply,
    covers,
    from_terms,
    merge,
    pseudonyms,
    resolve,
    shared,
    to_json,
    to_terms,
    too_rare,
    verify,
    verify_batch,
)

KEY = bytes(range(32))
PSEUDONYM = "hmac-sha256:" + 64 * "a"


def hashed(*paths: str) -> Obligations:
    return Obligations(hash=frozenset(paths))


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(
    ("kept", "text", "masked"),
    [
        (4, "0123456789", "******6789"),
        (4, "1234", "**34"),  # never more than half of it
        (4, "123", "**3"),
        (4, "1", "*"),
        (4, "", ""),
        (0, "secret", "******"),
        (64, "ab", "*b"),
        (2, "a*b*c", "****c"),
        (1, "naïve😀", "*****😀"),
        (2, ["abcd", None, "xy"], ["**cd", None, "*y"]),
        (2, None, None),
    ],
)
def test_a_mask_leaves_the_last_characters_and_never_more_than_half(kept: int, text: Any, masked: Any) -> None:
    duties = Obligations(mask={"x": kept})
    assert apply(duties, {"x": text}) == {"x": masked}
    verify(duties, {"x": masked})
    if text != masked:
        with pytest.raises(PolicyDenied, match="'x' should have been masked"):
            verify(duties, {"x": text})


@pytest.mark.invariant("S3")
@pytest.mark.parametrize("value", [12, 1.5, True, {}, [["a"]], {"y": "a"}])
def test_what_is_no_text_cannot_be_masked(value: Any) -> None:
    for act in (apply, verify):
        with pytest.raises(PolicyDenied, match="'x' is to be masked, but it is no text"):
            act(Obligations(mask={"x": 1}), {"x": value})


def test_a_pseudonym_passes_where_a_mask_is_asked_for() -> None:
    duties = merge(Obligations(mask={"x": 4}), hashed("x"))
    done = apply(duties, {"x": "0123456789"}, pseudonym=pseudonyms(KEY))
    verify(Obligations(mask={"x": 4}), done)
    with pytest.raises(PolicyDenied, match="masked"):
        verify(Obligations(mask={"x": 4}), {"x": PSEUDONYM + "a"})


def test_pseudonyms_are_keyed_and_of_one_field() -> None:
    done = apply(hashed("id", "n"), {"id": "p7", "n": 7, "k": [1]}, pseudonym=pseudonyms(KEY))
    assert done["id"] == "hmac-sha256:" + hmac.new(KEY, b'["id","p7"]', hashlib.sha256).hexdigest()
    verify(hashed("id", "n"), done)
    assert apply(hashed("id"), {"id": "p7"}, pseudonym=pseudonyms(KEY)) == {"id": done["id"]}
    others = [pseudonyms(KEY)("other", "p7"), pseudonyms(KEY)("id", "p8"), pseudonyms(bytes(32))("id", "p7")]
    assert len({done["id"], *others}) == 4
    assert apply(hashed("x"), {"x": ["a", None]}, pseudonym=pseudonyms(KEY))["x"][1] is None


@pytest.mark.invariant("S3")
def test_without_a_sound_key_nothing_is_hashed() -> None:
    with pytest.raises(PolicyDenied, match="no key for it here"):
        apply(hashed("x"), {"x": "a"})
    with pytest.raises(PolicyDenied, match="at least 16 bytes"):
        pseudonyms(bytes(15))
    with pytest.raises(PolicyDenied, match="is no pseudonym"):
        apply(hashed("x"), {"x": "a"}, pseudonym=lambda _, value: str(value))


@pytest.mark.invariant("S3")
@pytest.mark.parametrize("value", [{}, [["a"]], {"y": 1}, math.nan, 10**400])
def test_what_is_no_single_value_cannot_be_hashed(value: Any) -> None:
    with pytest.raises(PolicyDenied, match="'x' is to be hashed"):
        apply(hashed("x"), {"x": value}, pseudonym=pseudonyms(KEY))


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("value", ["p7", 7, "hmac-sha256:", PSEUDONYM[:-1], PSEUDONYM.upper(), PSEUDONYM + "\n"])
def test_what_has_not_the_form_of_a_pseudonym_does_not_pass(value: Any) -> None:
    with pytest.raises(PolicyDenied, match="'x' should have been hashed"):
        verify(hashed("x"), {"x": value})


@pytest.mark.parametrize(
    ("value", "drawn", "noisy"),
    [(5, 7.4, 7), (5, 99.0, 10), (5, -99.0, 0), (5.0, 7.4, 7.4), (5.0, 99.0, 10.0), (5, math.inf, 10), (None, 1, None)],
)
def test_noise_is_clamped_and_keeps_whole_numbers_whole(value: Any, drawn: float, noisy: Any) -> None:
    duties = Obligations(noise={"x": Noise(1, 0, 10)})
    done = apply(duties, {"x": value}, noise=lambda *_: drawn)["x"]
    assert done == noisy
    assert type(done) is type(noisy)
    verify(duties, {"x": done})


def test_what_is_drawn_from_is_within_the_bounds() -> None:
    seen: list[tuple[str, float, Noise]] = []

    def draw(path: str, value: float, noise: Noise) -> float:
        seen.append((path, value, noise))
        return value

    noise = Noise(0.5, 0, 10)
    apply(Obligations(noise={"x": noise}), {"x": [99.0, -99.0, 5.0]}, noise=draw)
    assert seen == [("x", 10, noise), ("x", 0, noise), ("x", 5.0, noise)]


@pytest.mark.parametrize(("grid", "drawn", "rounded"), [(4, 9.9, 8), (4, 0.1, 0), (6, 10, 6), (3, 4.4, 3)])
def test_noise_and_a_grid_end_on_a_multiple_within_the_bounds(grid: float, drawn: float, rounded: int) -> None:
    duties = Obligations(noise={"x": Noise(1, 0, 10)}, generalize={"x": grid})
    done = apply(duties, {"x": 5}, noise=lambda *_: drawn)
    assert done == {"x": rounded}
    verify(duties, done)


@pytest.mark.invariant("S3")
def test_noise_needs_a_source_a_number_and_bounds_that_hold() -> None:
    duties = Obligations(noise={"x": Noise(1, 0.25, 0.75)})
    with pytest.raises(PolicyDenied, match="no source of it"):
        apply(duties, {"x": 0.5})
    for value in ("1", True, math.nan):
        with pytest.raises(PolicyDenied, match="'x' is to get noise, but it is no finite number"):
            apply(duties, {"x": value}, noise=lambda *_: 0.5)
    for value, drawn in ((1, 0.5), (0.5, math.nan)):
        with pytest.raises(PolicyDenied, match="no value within its bounds"):
            apply(duties, {"x": value}, noise=lambda *_: drawn)  # noqa: B023  (called here)
    for outside in (0.2, 0.76, "0.5"):
        with pytest.raises(PolicyDenied, match="'x'"):
            verify(duties, {"x": outside})


def test_k_anonymity_counts_combinations() -> None:
    duties = Obligations(k_anonymity=KAnonymity(2, frozenset({"age", "where.zip"})))
    rows: list[dict[str, Any]] = [
        {"age": 30, "where": {"zip": "1"}},
        {"age": 30, "where.zip": "1"},  # another spelling of the same
        {"age": 30, "where": {"zip": "2"}},
        {"age": 30.0, "where": {"zip": "2"}, "more": 1},
        {"age": 31, "where": {"zip": "2"}},
        {"where": {"zip": "2"}},
    ]
    assert too_rare(duties, rows) == [4, 5]
    verify_batch(duties, rows[:4])
    with pytest.raises(PolicyDenied, match="2 of 6 rows share their identifying values with fewer than 2"):
        verify_batch(duties, rows)
    with pytest.raises(PolicyDenied, match="1 of 1 rows"):
        verify_batch(duties, rows[:1])
    verify_batch(duties, [])


def test_a_batch_is_checked_row_by_row_too() -> None:
    with pytest.raises(PolicyDenied, match="redacted"):
        verify_batch(Obligations(redact=frozenset({"x"})), [{"y": 1}, {"x": 1}])


NOISE = Noise(1, 0, 10)


@pytest.mark.parametrize(
    ("a", "b", "merged"),
    [
        (Obligations(mask={"x": 4}), Obligations(mask={"x": 2}), Obligations(mask={"x": 2})),
        (Obligations(mask={"x": 4}), hashed("x"), hashed("x")),
        (hashed("x.y"), Obligations(redact=frozenset({"x"})), Obligations(redact=frozenset({"x"}))),
        (hashed("x"), Obligations(generalize={"x": 5}), Obligations(redact=frozenset({"x"}))),
        (Obligations(mask={"x": 4}), Obligations(noise={"x": NOISE}), Obligations(redact=frozenset({"x"}))),
        (Obligations(noise={"x": NOISE}), Obligations(noise={"x": Noise(0.5, 5, 20)}),
         Obligations(noise={"x": Noise(0.5, 5, 10)})),
        (Obligations(noise={"x": NOISE}), Obligations(noise={"x": Noise(1, 10, 20)}),
         Obligations(redact=frozenset({"x"}))),
        (Obligations(noise={"x": Noise(1, 1, 4)}), Obligations(generalize={"x": 5}),
         Obligations(redact=frozenset({"x"}))),
        (Obligations(noise={"x": Noise(1, 1, 5)}), Obligations(generalize={"x": 5}),
         Obligations(noise={"x": Noise(1, 1, 5)}, generalize={"x": 5})),
        (Obligations(noise={"x": Noise(1, 0.05, 0.3)}), Obligations(generalize={"x": 0.3}),
         Obligations(noise={"x": Noise(1, 0.05, 0.3)}, generalize={"x": 0.3})),
        (Obligations(k_anonymity=KAnonymity(2, frozenset("a"))), Obligations(k_anonymity=KAnonymity(5, frozenset("b"))),
         Obligations(k_anonymity=KAnonymity(5, frozenset("ab")))),
        (Obligations(approvals=(Approval(5, "a"), Approval(7, "b"))), Obligations(approvals=(Approval(3, "a"),)),
         Obligations(approvals=(Approval(3, "a"), Approval(7, "b")))),
        (Obligations(quotas=(Quota(1, "a"),)), Obligations(quotas=(Quota(1, "b"), Quota(1, "a"))),
         Obligations(quotas=(Quota(1, "a"), Quota(1, "b")))),
        (Obligations(budgets=(Budget(1, (), "a"),)), Obligations(budgets=(Budget(1, ("purpose",), "a"),)),
         Obligations(budgets=(Budget(1, (), "a"), Budget(1, ("purpose",), "a")))),
        (Obligations(notify=frozenset({"dpo"})), Obligations(notify=frozenset({"desk"})),
         Obligations(notify=frozenset({"dpo", "desk"}))),
        (Obligations(expire_ms=9), Obligations(expire_ms=5), Obligations(expire_ms=5)),
        (Obligations(drop_personal=True), Obligations(), Obligations(drop_personal=True)),
    ],
)  # fmt: skip
def test_the_strictest_form_wins(a: Obligations, b: Obligations, merged: Obligations) -> None:
    assert merge(a, b) == merge(b, a) == merged
    assert covers(merged, a)
    assert covers(merged, b)


def test_what_the_sender_counts_asks_and_tells_is_shared_with_nobody() -> None:
    own = Obligations(
        quotas=(Quota(1, "a"),), budgets=(Budget(1, (), "a"),), notify=frozenset({"dpo"}), approvals=(Approval(5, "a"),)
    )
    assert shared(own) == Obligations()
    assert covers(Obligations(), own)
    assert not covers(Obligations(), Obligations(drop_personal=True))
    assert from_terms(to_terms(own)) == Obligations()


def test_personal_fields_that_are_dropped_are_redacted_by_name() -> None:
    duties = resolve(Obligations(drop_personal=True, mask={"name": 2, "phone": 4}), frozenset({"name"}))
    assert duties == Obligations(redact=frozenset({"name"}), mask={"phone": 4})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Obligations(mask={"x": -1}),
        lambda: Obligations(mask={"x": 65}),
        lambda: Obligations(budgets=(Budget(0, (), "a"),)),
        lambda: Obligations(budgets=(Budget(math.nan, (), "a"),)),
        lambda: Noise(0, 0, 1),
        lambda: Noise(-1, 0, 1),
        lambda: Noise(math.nan, 0, 1),
        lambda: Noise(2e6, 0, 1),
        lambda: Noise(1, 1, 1),
        lambda: Noise(1, 0, math.inf),
        lambda: Noise(1, -2e12, 0),
        lambda: KAnonymity(1, frozenset("a")),
        lambda: KAnonymity(1_000_001, frozenset("a")),
        lambda: KAnonymity(2, frozenset()),
    ],
)
def test_values_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


FULL = Obligations(
    mask={"phone": 4}, hash=frozenset({"id"}), noise={"age": NOISE}, expire_ms=5,
    k_anonymity=KAnonymity(5, frozenset({"age"})),
)  # fmt: skip


def test_an_agreement_carries_the_forms() -> None:
    message = to_terms(FULL)
    back = from_terms(agreement_pb2.Obligations.FromString(message.SerializeToString()))
    assert back == FULL
    assert to_json(FULL) == {
        "mask": {"phone": 4},
        "hash": ["id"],
        "noise": {"age": {"epsilon": 1, "lower": 0, "upper": 10}},
        "k_anonymity": {"k": 5, "fields": ["age"]},
        "expire_ms": 5,
        "onward": "allowed",
    }


@pytest.mark.invariant("S3")
def test_an_obligation_that_is_not_known_is_not_ignored() -> None:
    unknown = b"\xf2\x06\x01a"  # field 110, one byte
    data = to_terms(FULL).SerializeToString()
    with pytest.raises(AgreementError, match="does not know: update this node"):
        from_terms(agreement_pb2.Obligations.FromString(data + unknown))
    message = agreement_pb2.Obligations(k_anonymity=agreement_pb2.KAnonymity(k=2, fields=["a"]))
    message.k_anonymity.MergeFromString(unknown)
    with pytest.raises(AgreementError, match="does not know"):
        from_terms(message)


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    ("message", "problem", "in_terms"),
    [
        ({"mask": {"": 1}}, "empty path", ""),
        ({"hash": [""]}, "empty path", ""),
        ({"mask": {"x": 65}}, "a mask leaves", "a mask leaves over 64"),
        ({"noise": {"x": {"epsilon": -1, "upper": 1}}}, "epsilon must be", "noise has no epsilon"),
        ({"noise": {"x": {"epsilon": math.nan, "upper": 1}}}, "epsilon must be", "noise has no epsilon"),
        ({"noise": {"x": {"epsilon": 1, "upper": math.inf}}}, "lower below upper", "noise has no epsilon"),
        ({"noise": {"x": {"epsilon": 1}}}, "lower below upper", "noise has no epsilon"),
        ({"noise": {"x": {"epsilon": 2e6, "upper": 1}}}, "epsilon must be", "noise has no epsilon"),
        ({"noise": {"x": {"epsilon": 1, "upper": 2e12}}}, "lower below upper", "noise has no epsilon"),
        ({"k_anonymity": {"k": 1, "fields": ["a"]}}, "k must be", "k_anonymity has no k"),
        ({"k_anonymity": {"k": 2_000_000, "fields": ["a"]}}, "k must be", "k_anonymity has no k"),
        ({"k_anonymity": {"k": 2}}, "names no fields", "k_anonymity has no k"),
        ({"k_anonymity": {"k": 2, "fields": [""]}}, "empty path", ""),
        ({"expire_ms": -1}, "before 1970", "expire_ms is before 1970"),
        ({"hash": [str(n) for n in range(257)]}, "", "over 256 fields"),
        ({"k_anonymity": {"k": 2, "fields": [str(n) for n in range(257)]}}, "", "over 256 fields"),
    ],
)
def test_forms_that_make_no_sense_are_refused_in_agreements(message: Any, problem: str, in_terms: str) -> None:
    owed = agreement_pb2.Obligations(**message)
    if problem:
        with pytest.raises(AgreementError, match=problem):
            from_terms(owed)
    terms = agreement_pb2.Terms(
        id="1", participants=["a.example", "b.example"], initiator="a.example", records_per_organization=1,
        batch_records=1, lease_seconds=1, issued_ms=1, expires_ms=2, obligations=owed,
        review=agreement_pb2.ReviewTerms(eligible=1, faulty=0, quorum=1),
    )  # fmt: skip
    if in_terms:
        with pytest.raises(AgreementError, match=in_terms):
            parse_terms(terms.SerializeToString())
    terms.ClearField("obligations")
    assert parse_terms(terms.SerializeToString())
