"""What is remembered of a token's bytes is what reading them anew says, whatever was written and whatever comes."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from comity.errors import ComityError
from comity_node.policy import obligations as duties
from comity_node.policy.lattice import Obligations
from comity_node.policy.shaping import pseudonyms
from comity_node.protocol.flow import Cursor, check_cursor, check_state, decode_cursor, encode_cursor, read_flow
from comity_node.protocol.token import Token, decode_state, encode_state
from comity_node.protocol.token_read import fitting, note_state, state_of
from comity_node.protocol.token_wire import of_bytes, to_bytes

FLOW = read_flow(
    {
        "state": {
            "type": "object",
            "properties": {
                "x": {"type": "number"},
                "many": {"type": "array", "items": {"type": "integer"}},
                "word": {"type": "string", "enum": ["good", "bad", "ä"]},
                "yes": {"type": "boolean"},
            },
        },
        "start": "one",
        "steps": {"one": {"skill": "s", "at": "any", "writes": ["x"], "next": "end"}},
        "limits": {"seconds": 60},
        "finish": "none",
    }
)
NUMBERS = st.one_of(
    st.integers(-(1 << 53), 1 << 53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-1000, 1000).map(float),
    st.sampled_from([0.0, -0.0, 1e15, 1e16, 1e21, 1e-7, 5e-324]),
)
VALUES = st.one_of(NUMBERS, st.booleans(), st.text(max_size=8), st.none(), st.lists(st.integers(0, 9), max_size=3))
STATES = st.dictionaries(st.sampled_from(["x", "many", "word", "yes", "other"]), VALUES, max_size=5)
ASKED = [
    Obligations(generalize={"x": 5.0}),
    Obligations(hash=frozenset({"x"})),
    Obligations(mask={"word": 1}),
    Obligations(redact=frozenset({"x"})),
]
PSEUDONYM = pseudonyms(b"k" * 32)


def outcome(work: Any) -> Any:
    """Return what came of some work: its result, or which error (of several that there are, any is told)."""
    try:
        return work()
    except ComityError as error:
        return type(error)


@given(STATES)
@settings(max_examples=300, deadline=None)
def test_what_was_written_says_the_same_as_its_bytes(state: dict[str, Any]) -> None:
    try:
        data = encode_state(state)
        anew = decode_state(bytes(bytearray(data)))
    except (ValueError, ComityError):  # a state that no flow lets anybody write
        return
    note_state(data, state)
    noted = state_of(data)
    assert dict(noted) == anew
    assert encode_state(noted) == data
    assert outcome(lambda: check_state(FLOW, noted)) == outcome(lambda: check_state(FLOW, anew))
    for asked in ASKED:
        one, other = (
            outcome(lambda: encode_state(duties.apply(asked, each, pseudonym=PSEUDONYM)))  # noqa: B023  (at once)
            for each in (noted, anew)
        )
        assert one == other


@given(STATES, st.data())
@settings(max_examples=300, deadline=None)
def test_a_token_of_changed_bytes_is_read_as_if_it_were_the_first(state: dict[str, Any], data: st.DataObject) -> None:
    cursor = encode_cursor(Cursor("one", visits={"one": 1}, begun_ms=1))
    try:
        sound = Token(b"t" * 16, bytes(32), "ada.example", "peer", 1, 0, cursor, encode_state(state), (), 9_000)
    except ValueError:
        return
    raw = bytearray(to_bytes(sound))
    outcome(lambda: fitting(FLOW, sound, over=False))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    try:
        token = of_bytes(bytes(raw), bytes(32))
    except ComityError:
        return

    def plainly() -> Any:
        cursor, state = decode_cursor(token.cursor), decode_state(token.state)
        check_cursor(FLOW, cursor, token.home, over=False)
        check_state(FLOW, state)
        return cursor, state

    for _ in range(2):
        assert outcome(lambda: fitting(FLOW, token, over=False)) == outcome(plainly)
