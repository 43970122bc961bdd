"""Forms of records at the edges: each test here goes red for a line of `policy.shaping` that is a little wrong."""

from __future__ import annotations

from typing import Any

import pytest

from comity.errors import PolicyDenied
from comity_node.policy.lattice import KAnonymity, Noise, Obligations
from comity_node.policy.shaping import MAX_NESTING, PSEUDONYM, _rounder, apply, pseudonyms, verify, verify_batch

A = frozenset({"a"})


def test_a_key_has_sixteen_bytes() -> None:
    text = pseudonyms(bytes(16))("a", 1)
    assert text.startswith(PSEUDONYM)
    assert text != pseudonyms(bytes(15) + b"\x01")("a", 1)
    with pytest.raises(PolicyDenied, match="at least 16 bytes"):
        pseudonyms(bytes(15))


@pytest.mark.invariant("S7")
def test_lists_and_objects_are_nested_as_deep_as_is_allowed_and_no_deeper() -> None:
    def lists(depth: int) -> list[Any]:
        value: Any = {"a": 1, "b": 2}
        for _ in range(depth):
            value = [value]
        return list(value)

    def objects(depth: int) -> tuple[str, dict[str, Any]]:
        value: Any = {"a": 1, "b": 2}
        for _ in range(depth):
            value = {"a": value}
        return ".".join(["a"] * (depth + 1)), value

    inner = Obligations(redact=frozenset({"top.a"}))
    deepest = MAX_NESTING - 1  # the record itself is one
    verify(inner, apply(inner, {"top": lists(deepest)}))
    path, nested = objects(MAX_NESTING)
    gone = Obligations(redact=frozenset({path}))
    with pytest.raises(PolicyDenied, match="should have been redacted"):
        verify(gone, nested)
    verify(gone, apply(gone, nested))
    path, nested = objects(MAX_NESTING + 1)
    for duties, record in ((inner, {"top": lists(deepest + 1)}), (Obligations(redact=frozenset({path})), nested)):
        for use in (apply, verify):
            with pytest.raises(PolicyDenied, match="nested over 64 levels"):
                use(duties, record)


def test_a_key_without_a_name_is_no_part_of_a_path() -> None:
    record = {"": {"a": 1}, "b": 2}
    duties = Obligations(redact=A)
    assert apply(duties, record) == record
    verify(duties, record)


@pytest.mark.parametrize(
    ("value", "good"), [(10**300 - 1, True), (1 - 10**300, True), (10**300, False), (-(10**300), False)]
)
def test_the_greatest_number_that_gets_a_pseudonym(value: int, good: bool) -> None:
    duties = Obligations(hash=A)

    def pseudonym(path: str, value: object) -> str:
        return PSEUDONYM + "0" * 64

    if good:
        verify(duties, apply(duties, {"a": value}, pseudonym=pseudonym))
        return
    with pytest.raises(PolicyDenied, match="no text, number or boolean"):
        apply(duties, {"a": value}, pseudonym=pseudonym)


def test_one_whole_number_within_the_bounds_is_enough() -> None:
    one, none = (Obligations(noise={"a": Noise(1.0, low, 3.5)}) for low in (2.5, 3.25))
    shaped = apply(one, {"a": 9}, noise=lambda path, value, noise: value + 100)
    assert shaped == {"a": 3}
    assert isinstance(shaped["a"], int)
    verify(one, shaped)
    with pytest.raises(PolicyDenied, match="no value within its bounds"):
        apply(none, {"a": 9}, noise=lambda path, value, noise: value)


def test_rows_are_counted_as_often_as_their_values_come() -> None:
    duties = Obligations(k_anonymity=KAnonymity(2, A))
    verify_batch(duties, [{"a": 1}, {"a": 1}])
    with pytest.raises(PolicyDenied, match="1 of 3 rows share their identifying values with fewer than 2"):
        verify_batch(duties, [{"a": 1}, {"a": 1}, {"a": 2}])
    verify_batch(Obligations(), [{"a": 1}])


@pytest.mark.parametrize(
    ("drawn", "lower", "upper", "rounded"),
    [
        (9.9, 0.0, 10.0, 10.0),
        (0.1, 0.0, 10.0, 0.0),
        (2.0, 2.0, 20.0, 5.0),
        (18.0, 2.0, 18.0, 15.0),
        (7.0, 2.0, 20.0, 5.0),
    ],
)
def test_a_noisy_number_is_rounded_to_a_multiple_within_its_bounds(
    drawn: float, lower: float, upper: float, rounded: float
) -> None:
    duties = Obligations(noise={"a": Noise(1.0, lower, upper)}, generalize={"a": 5.0})
    shaped = apply(duties, {"a": 1.5}, noise=lambda path, value, noise: drawn)
    assert shaped == {"a": rounded}
    verify(duties, shaped)


def test_without_a_multiple_within_the_bounds_there_is_no_form() -> None:
    """The normal form of obligations redacts such a field: this holds whatever becomes of it."""
    with pytest.raises(PolicyDenied, match="no multiple of 5 within its bounds"):
        _rounder("a", 5.0, Noise(1.0, 1.0, 4.0))(3.0)


@pytest.mark.parametrize("value", [10**300, -(10**300), True, "1", None])
def test_what_is_rounded_is_a_finite_number(value: object) -> None:
    duties = Obligations(generalize={"a": 5.0})
    if value is None:
        assert apply(duties, {"a": value}) == {"a": None}
        return
    with pytest.raises(PolicyDenied, match="no finite number"):
        apply(duties, {"a": value})


@pytest.mark.parametrize("value", [10**300 - 5, 5 - 10**300])
def test_the_greatest_numbers_are_rounded_exactly(value: int) -> None:
    assert apply(Obligations(generalize={"a": 5.0}), {"a": value}) == {"a": value}


@pytest.mark.parametrize(
    ("value", "grid", "rounded"),
    [
        (1.3522987986828882e16, 0.3, 1.3522987986828882e16),  # the quotient has no bit left for what is to be told
        (9425983978.895277, 1e-6, 9425983978.895277),
        (7016325989.287166, 3e-6, 7016325989.287167),
        (2.0**48 * 5 + 2.5, 5.0, 2.0**48 * 5),
        (12.5, 5.0, 10.0),
        (17.5, 5.0, 20.0),
    ],
)
def test_the_nearest_multiple_also_where_a_quotient_of_floats_does_not_tell(
    value: float, grid: float, rounded: float
) -> None:
    assert apply(Obligations(generalize={"a": grid}), {"a": value}) == {"a": rounded}
