"""DSSE's Pre-Authentication Encoding (secure-systems-lab/dsse, protocol.md) and its example."""

from __future__ import annotations

import pytest

from comity.statement import pae


@pytest.mark.parametrize(
    ("payload_type", "payload", "expected"),
    [
        # The example of protocol.md.
        ("http://example.com/HelloWorld", b"hello world", b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"),
        ("", b"", b"DSSEv1 0  0 "),
        # Lengths count bytes: two letters of two and three bytes.
        ("\u00e9", "\u20ac".encode(), b"DSSEv1 2 \xc3\xa9 3 \xe2\x82\xac"),
        ("t", b"\x00\xff\n 7", b"DSSEv1 1 t 5 \x00\xff\n 7"),
    ],
)
def test_pae(payload_type: str, payload: bytes, expected: bytes) -> None:
    assert pae(payload_type, payload) == expected


def test_no_two_inputs_share_an_encoding() -> None:
    """A space or a number moved between type and payload makes another encoding."""
    inputs = [("a", b"b c"), ("a b", b"c"), ("a 3 b", b""), ("a", b"3 b c"), ("", b"a"), ("a", b"")]
    assert len({pae(kind, payload) for kind, payload in inputs}) == len(inputs)
