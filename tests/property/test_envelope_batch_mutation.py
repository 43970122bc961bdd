"""No byte of an envelope of a batch can be changed, left out or added, whatever the batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity import merkle
from comity.envelope import (
    DOCUMENT_KINDS,
    MESSAGE_KINDS,
    Unsigned,
    open_document,
    open_message,
    sign_all,
    unsigned_document,
    unsigned_message,
)
from comity.errors import EnvelopeError, ProofInvalid, SignatureInvalid
from comity.signing import PrivateKey
from comity.v1 import envelope_pb2

KEY = PrivateKey(b"k" * 32)
AUDIENCE = PrivateKey(b"a" * 32).peer_id
REFUSED = (EnvelopeError, SignatureInvalid)

sizes = st.one_of(st.integers(2, 9), st.integers(2, 140))


def messages(size: int, body: bytes) -> list[Unsigned]:
    return [
        unsigned_message(
            "receipt",
            body,
            audience=AUDIENCE,
            message_id=number.to_bytes(16, "big"),
            now_ms=1_750_000_000_000,
        )
        for number in range(size)
    ]


@st.composite
def batched(draw: st.DrawFn) -> bytes:
    """One of a batch; half of the time its signature is known already."""
    size = draw(sizes)
    envelopes = sign_all(KEY, messages(size, draw(st.binary(max_size=300))))
    if draw(st.booleans()):
        open_message(draw(st.sampled_from(envelopes)), MESSAGE_KINDS)
    return draw(st.sampled_from(envelopes))


@pytest.mark.invariant("S2")
@given(st.data(), batched())
def test_one_changed_byte_is_refused(data: st.DataObject, envelope: bytes) -> None:
    at = data.draw(st.integers(0, len(envelope) - 1))
    changed = bytes([envelope[at] ^ data.draw(st.integers(1, 255))])
    with pytest.raises(REFUSED):
        open_message(envelope[:at] + changed + envelope[at + 1 :], MESSAGE_KINDS)


@given(st.data(), batched())
def test_a_cut_or_an_addition_is_refused(data: st.DataObject, envelope: bytes) -> None:
    at = data.draw(st.integers(0, len(envelope)))
    added = data.draw(st.one_of(st.binary(min_size=1, max_size=40), st.just(bytes(32)), st.just(envelope[-32:])))
    with pytest.raises(REFUSED):
        open_message(envelope[:at] + added + envelope[at:], MESSAGE_KINDS)
    with pytest.raises(REFUSED):
        open_message(envelope[: data.draw(st.integers(0, len(envelope) - 1))], MESSAGE_KINDS)


@pytest.mark.invariant("S2")
@given(st.data(), batched())
def test_another_signature_field_is_refused(data: st.DataObject, envelope: bytes) -> None:
    """Its parts put together in any other way, with parts of another batch of the same messages among them."""
    parsed = envelope_pb2.Envelope.FromString(envelope)
    proof = parsed.signature
    other = sign_all(KEY, [Unsigned("receipt", parsed.payload), *messages(2, b"more")])[0]
    pieces = [proof[at : at + 32] for at in range(68, len(proof), 32)]
    pieces += [envelope_pb2.Envelope.FromString(other).signature[68:100], bytes(32)]
    changed = b"".join(
        (
            data.draw(st.sampled_from([proof[:64], envelope_pb2.Envelope.FromString(other).signature[:64]])),
            data.draw(st.one_of(st.just(proof[64:66]), st.binary(min_size=2, max_size=2))),
            data.draw(st.one_of(st.just(proof[66:68]), st.binary(min_size=2, max_size=2))),
            *data.draw(st.lists(st.sampled_from(pieces), max_size=13)),
        )
    )
    if changed != proof:
        parsed.signature = changed
        with pytest.raises(REFUSED):
            open_message(parsed.SerializeToString(), MESSAGE_KINDS)


@given(
    st.lists(st.tuples(st.sampled_from(sorted(DOCUMENT_KINDS)), st.binary(max_size=40)), max_size=40),
    st.binary(min_size=32, max_size=32),
)
def test_what_was_signed_together_comes_back_one_by_one(documents: list[tuple[str, bytes]], seed: bytes) -> None:
    key = PrivateKey(seed)
    envelopes = sign_all(key, [unsigned_document(kind, body) for kind, body in documents])
    for envelope, (kind, body) in zip(envelopes, documents, strict=True):
        document = open_document(envelope, kind)
        assert (document.signer, document.kind, document.body) == (key.public_key, kind, body)


@given(st.integers(1, 200), st.integers(1, 200))
def test_a_tree_built_at_once_is_the_one_that_grew(first: int, more: int) -> None:
    leaves = [merkle.leaf_hash(number.to_bytes(2, "big")) for number in range(first + more)]
    grown = merkle.CompactRange().extend(leaves[:first]).extend(leaves[first:])
    by_one = merkle.CompactRange()
    for leaf in leaves:
        by_one = by_one.append(leaf)
    tree = merkle.Tree(leaves)
    assert grown == by_one
    assert tree.root == grown.root()
    for index, leaf in enumerate(leaves):
        path = tree.path(index)
        assert merkle.path_length(index, tree.size) == len(path)
        assert merkle.root_from_path(leaf, index, tree.size, path) == tree.root
        for wrong in (path[:-1], (*path, bytes(32))):
            with pytest.raises(ProofInvalid):
                merkle.root_from_path(leaf, index, tree.size, wrong)
