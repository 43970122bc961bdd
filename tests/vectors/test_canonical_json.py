"""RFC 8785, appendix B and section 3.2.3, through the function that all digests of JSON are taken over.

And what is read: I-JSON (RFC 7493), without what two readers could understand differently.
"""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.digest import canonical_json
from comity.strictjson import Fields, parse_json

pytestmark = pytest.mark.invariant("S5")

#: Appendix B: the bits of a double, and how it is written.
NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}


@pytest.mark.parametrize(("bits", "text"), NUMBERS.items(), ids=NUMBERS)
def test_numbers_of_appendix_b(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_json(number) == text.encode()
    assert struct.pack(">d", float(text)) == bytes.fromhex(bits.replace("8000000000000000", "0" * 16))


@pytest.mark.parametrize("bits", ["7fffffffffffffff", "7ff0000000000000", "fff0000000000000"])
def test_what_is_no_number_is_refused(bits: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    with pytest.raises(ValueError, match=r"(?i)nan|inf|float"):
        canonical_json(number)


def test_keys_are_ordered_by_their_utf_16_code_units() -> None:
    """Section 3.2.3: a smiling face, whose first code unit is d83d, stands before fb33."""
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    ordered = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    written = canonical_json(dict.fromkeys(keys, 0))
    assert list(json.loads(written)) == ordered
    assert written.startswith(b'{"\\r":0,"1":0,"\xc2\x80":0,')


def test_strings_are_escaped_in_one_way() -> None:
    """Section 3.2.2.2: two letters where JSON has them, four digits for other controls, the rest as it is."""
    assert canonical_json('\u20ac$\x0f\nA\'B"\\\\"/') == b'"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'
    assert canonical_json("\b\t\n\f\r\x00\x1f\x7f") == b'"\\b\\t\\n\\f\\r\\u0000\\u001f\x7f"'


@pytest.mark.parametrize("value", ["\ud800", "a\udfff", "\udc00b"])
def test_half_a_character_is_not_written(value: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        canonical_json(value)


@pytest.mark.parametrize("number", [2**53, -(2**53), 2**60])
def test_an_integer_that_readers_would_round_is_not_written(number: int) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        canonical_json(number)
    assert canonical_json([2**53 - 1, 1 - 2**53]) == b"[9007199254740991,-9007199254740991]"


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":1}', '{"a":{"b":1,"b":2}}', '{"a":1,"\\u0061":2}', "NaN", "[Infinity]", '{"a":-Infinity}', "01",
        "1.", "1e400", "-1e400", "9007199254740992", "9007199254740993", "-9007199254740992", "1" + "0" * 5000,
        "'a'", "[1,]", "", "\ufeff1", "[" * 100_000,
    ],
)  # fmt: skip
def test_what_two_readers_could_understand_differently_is_not_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_json(text.encode(), limit=1 << 20)


@pytest.mark.parametrize("data", [b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'\xfe\xff\x00"'])
def test_what_is_no_utf_8_is_not_read(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_json(data, limit=100)


@pytest.mark.parametrize("text", ['"\\ud800"', '"\\udc00"', '{"\\ud83d":1}', '["\\ud83dx"]', '{"a":[{"b":"\\udfff"}]}'])
def test_half_a_character_is_not_read(text: str) -> None:
    with pytest.raises(ValueError, match="half a character"):
        parse_json(text.encode(), limit=100)


def test_a_whole_character_of_two_halves_is_read() -> None:
    assert parse_json(b'"\\ud83d\\ude00"', limit=100) == "\U0001f600"


@pytest.mark.parametrize("text", ["-1", "1.0", "1e3", "true", '"1"', "null"])
def test_what_is_no_integer_that_everybody_reads_alike_is_not_taken_for_one(text: str) -> None:
    with pytest.raises(ValueError, match="no integer from 0"):
        Fields(parse_json(b'{"n":%s}' % text.encode(), limit=100), "it").integer("n")
    assert Fields({"n": 2**53 - 1}, "it").integer("n") == 2**53 - 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 2**53, 2**53 - 1) | st.floats(1 - 2.0**53, 2.0**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_what_is_written_is_read_as_it_was_and_written_alike(value: object) -> None:
    written = canonical_json(value)
    assert canonical_json(parse_json(written, limit=1 << 20)) == written
