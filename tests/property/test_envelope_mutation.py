"""No byte of an envelope can be changed, left out or added."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.envelope import (
    DOCUMENT_KINDS,
    MESSAGE_KINDS,
    open_document,
    open_message,
    seal,
    sign_document,
)
from comity.errors import EnvelopeError, SignatureInvalid
from comity.signing import PrivateKey

KEY = PrivateKey(b"k" * 32)
AUDIENCE = PrivateKey(b"a" * 32).peer_id
REFUSED = (EnvelopeError, SignatureInvalid)

bodies = st.binary(max_size=300)
message_kinds = st.sampled_from(sorted(MESSAGE_KINDS))


def sealed(kind: str, body: bytes) -> bytes:
    return seal(KEY, kind, body, audience=AUDIENCE, message_id=b"i" * 16, now_ms=1_750_000_000_000)


@given(st.data(), message_kinds, bodies)
def test_one_changed_byte_is_refused(data: st.DataObject, kind: str, body: bytes) -> None:
    envelope = bytearray(sealed(kind, body))
    at = data.draw(st.integers(0, len(envelope) - 1))
    envelope[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(REFUSED):
        open_message(bytes(envelope), MESSAGE_KINDS)


@pytest.mark.invariant("S2")
def test_every_changed_byte_is_refused() -> None:
    """All 255 other values of each byte around the fields' borders, and one bit of every byte."""
    envelope = sealed("receipt", b"some body")
    for at in range(len(envelope)):
        for flip in range(1, 256) if at < 4 or 36 < at < 60 or at > len(envelope) - 68 else (1, 128):
            changed = envelope[:at] + bytes([envelope[at] ^ flip]) + envelope[at + 1 :]
            with pytest.raises(REFUSED):
                open_message(changed, MESSAGE_KINDS)


@given(st.data(), bodies)
def test_a_cut_or_an_addition_is_refused(data: st.DataObject, body: bytes) -> None:
    envelope = sealed("receipt", body)
    at = data.draw(st.integers(0, len(envelope)))
    added = data.draw(st.binary(min_size=1, max_size=40))
    with pytest.raises(REFUSED):
        open_message(envelope[:at] + added + envelope[at:], MESSAGE_KINDS)
    cut = data.draw(st.integers(0, len(envelope) - 1))
    with pytest.raises(REFUSED):
        open_message(envelope[:cut], MESSAGE_KINDS)


@given(st.binary(max_size=400))
def test_noise_is_refused(noise: bytes) -> None:
    for data in (noise, b"\x0a\x24\x08\x01\x12\x20" + noise):
        with pytest.raises(REFUSED):
            open_message(data, MESSAGE_KINDS)
        with pytest.raises(REFUSED):
            open_document(data, "hop")


@given(st.sampled_from(sorted(DOCUMENT_KINDS)), bodies, st.binary(min_size=32, max_size=32))
def test_what_was_signed_comes_back(kind: str, body: bytes, seed: bytes) -> None:
    key = PrivateKey(seed)
    document = open_document(sign_document(key, kind, body), kind)
    assert (document.signer, document.kind, document.body) == (key.public_key, kind, body)


@given(message_kinds, bodies, st.binary(min_size=16, max_size=16), st.integers(0, 2**52), st.integers(1, 300_000))
def test_what_was_sealed_comes_back(kind: str, body: bytes, name: bytes, now_ms: int, lifetime_ms: int) -> None:
    data = seal(KEY, kind, body, audience=AUDIENCE, message_id=name, now_ms=now_ms, lifetime_ms=lifetime_ms)
    message = open_message(data, {kind})
    assert (message.kind, message.body, message.signer) == (kind, body, KEY.public_key)
    header = message.header
    assert (header.audience, header.id, header.issued_ms) == (AUDIENCE, name, now_ms)
    assert header.expires_ms == now_ms + lifetime_ms
