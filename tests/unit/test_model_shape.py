"""What is checked of a model's JSON, and the fake model that says what fits; beside a whole JSON Schema."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.errors import BackendReplyInvalid
from comity.fake_model import _smallest
from comity.models.reply import Prices, StreamedReply, Usage, read_error, read_reply
from comity.models.request import retry_after_s
from comity.models.shape import check_schema, find_misfit

SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-5, 5) | st.text("ab\N{PILE OF POO}", max_size=4)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
)
TYPES = st.sampled_from(["object", "array", "string", "number", "integer", "boolean", "null"])


def schemas(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES | st.lists(TYPES, min_size=1, max_size=3, unique=True),
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
            "additionalProperties": st.booleans(),
            "items": inner,
            "enum": st.lists(VALUES, min_size=1, max_size=3),
            "const": VALUES,
            "minimum": st.integers(-3, 3),
            "maximum": st.floats(-3, 3),
            "minLength": st.integers(0, 3),
            "maxLength": st.integers(0, 3),
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(0, 2),
        },
    )


@given(schema=schemas(schemas(st.just({}))), value=VALUES)
def test_what_fits_is_what_json_schema_says(schema: dict[str, Any], value: Any) -> None:
    check_schema(schema)
    expected = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert (find_misfit(schema, value) == "") is expected


PLAIN = st.recursive(
    st.fixed_dictionaries({"type": st.sampled_from(["string", "boolean", "null"])})
    | st.fixed_dictionaries({"type": st.just("integer"), "minimum": st.integers(-3, 9)})
    | st.fixed_dictionaries({"type": st.just("number"), "maximum": st.integers(-3, 9)})
    | st.fixed_dictionaries({"enum": st.lists(SCALARS, min_size=1, max_size=2)}),
    lambda inner: (
        st.fixed_dictionaries({"type": st.just("array"), "items": inner, "minItems": st.integers(0, 2)})
        | st.dictionaries(st.sampled_from("abc"), inner).map(
            lambda each: {"type": "object", "properties": each, "required": list(each), "additionalProperties": False}
        )
    ),
)


@given(schema=PLAIN)
def test_the_fake_model_says_what_fits(schema: dict[str, Any]) -> None:
    assert find_misfit(schema, json.loads(json.dumps(_smallest(schema)))) == ""


EVENTS = (
    b'data: {"model":"m","choices":[{"delta":{"role":"assistant","content":""}}]}\r\n\r\n'
    b': a comment\n\nid: 7\ndata: {"choices":[{"delta":{"content":"h\xc3\xa9"},"finish_reason":null}]}\n\n'
    b'data:{"choices":[{"delta":{"content":"llo"},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\ndata: ignored\n\n'
)


@given(cuts=st.lists(st.integers(0, len(EVENTS)), max_size=8))
def test_a_stream_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(EVENTS)]
    stream = StreamedReply()
    text = "".join(stream.feed(EVENTS[a:b]) for a, b in itertools.pairwise(places))
    reply = stream.finish()
    assert (text, reply.text, reply.finish, reply.model, reply.tokens) == ("h\xe9llo", "h\xe9llo", "stop", "m", (3, 2))


@given(data=st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_an_answer_is_read_or_refused(data: bytes) -> None:
    with pytest.raises(BackendReplyInvalid):
        read_reply(data)
    stream = StreamedReply()
    try:
        stream.feed(b"data: " + data + b"\n")
    except BackendReplyInvalid:
        pass
    with pytest.raises(BackendReplyInvalid):
        stream.finish()
    assert read_error(data).isprintable()
    assert len(read_error(data)) <= 500


@pytest.mark.parametrize(
    "usage",
    [None, 5, {}, {"prompt_tokens": -1}, {"prompt_tokens": True}, {"prompt_tokens": "3"}, {"prompt_tokens": 1.5}],
)
def test_tokens_that_were_not_counted_are_no_fewer_than_there_can_be(usage: object) -> None:
    answer = {"choices": [{"message": {"content": "h\xe9"}}], "usage": usage}
    reply = read_reply(json.dumps(answer).encode())
    assert reply.usage(100, Prices()) == Usage(100, 3, 0.0, estimated=True)


def test_usages_add_up() -> None:
    total = Usage(1, 2, 0.5) + Usage(3, 4, 0.25, estimated=True)
    assert total == Usage(4, 6, 0.75, estimated=True)
    assert total.report() == {"tokens": 10, "cost": 0.75}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("", 0.0),
        ("soon", 0.0),
        ("-5", 0.0),
        ("1.5", 0.0),
        ("9" * 400, 999_999_999.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 37.0),  # the date of RFC 9110, section 5.6.7
        ("Sun, 06 Nov 1994 08:48:37 GMT", 0.0),
        ("Sun, 06 Nov 99999 08:48:37 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float) -> None:
    assert retry_after_s(text, 784_111_740.0) == seconds
