"""Envelopes: what is sealed comes back, and everything else is refused."""

from __future__ import annotations

import pytest

from comity import signing
from comity.envelope import (
    DOCUMENT_KINDS,
    MAX_ENVELOPE,
    MAX_LIFETIME_MS,
    MESSAGE_KINDS,
    open_document,
    open_message,
    seal,
    sign_document,
)
from comity.errors import EnvelopeMalformed, SignatureInvalid
from comity.v1 import envelope_pb2

KEY = signing.PrivateKey(bytes(range(32)))
OTHER = signing.PrivateKey(b"o" * 32)
NOW = 1_750_000_000_000


def sealed(body: bytes = b"body", *, kind: str = "task-offer") -> bytes:
    return seal(KEY, kind, body, audience=OTHER.peer_id, message_id=b"i" * 16, now_ms=NOW)


def signed_as(kind: str, payload: bytes, *, domain: str | None = None) -> bytes:
    """Sign any payload, with the protobuf library instead of our own writer."""
    parts = [(domain or f"comity/v1/{kind}").encode(), f"/comity/v1/{kind}".encode(), payload]
    message = b"".join(bytes([len(part)]) + part for part in parts)
    return envelope_pb2.Envelope(
        public_key=signing.libp2p_public_key(KEY.public_key),
        payload_type=parts[1],
        payload=payload,
        signature=KEY.sign(message),
    ).SerializeToString()


def test_a_message_comes_back() -> None:
    data = seal(
        KEY,
        "receipt",
        b"body",
        audience=OTHER.peer_id,
        message_id=b"i" * 16,
        now_ms=NOW,
        lifetime_ms=5000,
        in_reply_to=b"r" * 16,
    )
    message = open_message(data, {"receipt"})
    assert (message.kind, message.signer, message.body) == ("receipt", KEY.public_key, b"body")
    assert message.peer_id == KEY.peer_id
    header = message.header
    assert (header.audience, header.id, header.in_reply_to) == (OTHER.peer_id, b"i" * 16, b"r" * 16)
    assert (header.issued_ms, header.expires_ms) == (NOW, NOW + 5000)


@pytest.mark.parametrize("kind", sorted(DOCUMENT_KINDS))
@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 70_000])
def test_a_document_comes_back(kind: str, size: int) -> None:
    document = open_document(sign_document(KEY, kind, b"x" * size), kind)
    assert (document.kind, document.signer, document.body) == (kind, KEY.public_key, b"x" * size)
    assert document.peer_id == KEY.peer_id


@pytest.mark.parametrize("size", [0, 5, 100])
def test_the_bytes_are_those_of_the_protobuf_library(size: int) -> None:
    assert sign_document(KEY, "hop", b"x" * size) == signed_as("hop", b"x" * size)


@pytest.mark.invariant("S2")
def test_a_kind_is_a_domain_of_its_own() -> None:
    hop = sign_document(KEY, "hop", b"body")
    with pytest.raises(EnvelopeMalformed, match="'hop' is not expected"):
        open_document(hop, "review")
    relabelled = envelope_pb2.Envelope.FromString(hop)
    relabelled.payload_type = b"/comity/v1/review"
    with pytest.raises(SignatureInvalid):
        open_document(relabelled.SerializeToString(), "review")
    with pytest.raises(SignatureInvalid):
        open_document(signed_as("review", b"body", domain="comity/v1/hop"), "review")


@pytest.mark.invariant("S2")
def test_a_document_is_never_a_message() -> None:
    assert not MESSAGE_KINDS & DOCUMENT_KINDS
    payload = envelope_pb2.Message(body=b"x").SerializeToString()
    with pytest.raises(EnvelopeMalformed, match="no kind of message"):
        open_message(sign_document(KEY, "hop", payload), {"hop"})
    with pytest.raises(EnvelopeMalformed, match="no kind of document"):
        sign_document(KEY, "task-offer", payload)
    with pytest.raises(EnvelopeMalformed, match="no kind of document"):
        open_document(sealed(), "task-offer")


@pytest.mark.parametrize("kind", ["hop", "unheard-of", ""])
def test_only_messages_are_sealed(kind: str) -> None:
    with pytest.raises(EnvelopeMalformed, match="no kind of message"):
        sealed(kind=kind)


@pytest.mark.invariant("S2")
def test_the_kind_is_refused_before_the_signature_is_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the signature was looked at")

    data = sealed()
    monkeypatch.setattr(signing, "verify", never)
    with pytest.raises(EnvelopeMalformed, match="not expected"):
        open_message(data, {"receipt"})
    with pytest.raises(EnvelopeMalformed, match="no kind that is known"):
        open_message(signed_as("unheard-of", b"x"), MESSAGE_KINDS)
    with pytest.raises(EnvelopeMalformed, match="limit"):
        open_message(data + bytes(MAX_ENVELOPE), MESSAGE_KINDS)


@pytest.mark.invariant("S2")
def test_the_body_is_not_read_before_the_signature_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoMessage:
        def __init__(self) -> None:
            raise AssertionError("the payload was parsed")

    forged = bytearray(sealed())
    forged[-1] ^= 1
    monkeypatch.setattr(envelope_pb2, "Message", NoMessage)
    with pytest.raises(SignatureInvalid):
        open_message(bytes(forged), MESSAGE_KINDS)


@pytest.mark.invariant("S7")
def test_size_limit() -> None:
    room = MAX_ENVELOPE - len(sign_document(KEY, "hop", b"x" * 3_000_000)) + 3_000_000
    assert len(open_document(sign_document(KEY, "hop", bytes(room)), "hop").body) == room
    with pytest.raises(EnvelopeMalformed, match="limit"):
        sign_document(KEY, "hop", bytes(room + 1))


@pytest.mark.parametrize("key_type", [0, 2, 3])
def test_a_signer_that_is_not_ed25519_is_refused(key_type: int) -> None:
    data = bytearray(sign_document(KEY, "hop", b"body"))
    data[3] = key_type
    with pytest.raises(SignatureInvalid, match="Ed25519"):
        open_document(bytes(data), "hop")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda e: e.ClearField("public_key"), id="no-key"),
        pytest.param(lambda e: e.ClearField("payload_type"), id="no-type"),
        pytest.param(lambda e: e.ClearField("signature"), id="no-signature"),
        pytest.param(lambda e: setattr(e, "signature", e.signature[:-1]), id="short-signature"),
        pytest.param(lambda e: setattr(e, "public_key", e.public_key[:-1]), id="short-key"),
        pytest.param(lambda e: setattr(e, "public_key", e.public_key + b"\x00"), id="long-key"),
    ],
)
def test_a_missing_or_wrong_field_is_refused(change: object) -> None:
    envelope = envelope_pb2.Envelope.FromString(sign_document(KEY, "hop", b"body"))
    assert callable(change)
    change(envelope)
    with pytest.raises(EnvelopeMalformed):
        open_document(envelope.SerializeToString(), "hop")


@pytest.mark.parametrize("body", [b"", b"body"])
def test_there_is_one_encoding(body: bytes) -> None:
    """What the protobuf library would read as the same envelope is refused: unknown, repeated and reordered fields."""
    data = sign_document(KEY, "hop", body)
    signature = data[-66:]
    others = [
        data + b"\x30\x01",
        data + signature,
        signature + data[:-66],
        data[:-66] + b"\x30\x01" + signature,
        data[:-66] + b"\x1a\x00" + signature,
    ]
    if body:
        others.append(data.replace(b"\x1a\x04body", b"\x1a\x84\x00body"))
    else:
        others.append(data[:-66] + b"\x1a\x80\x00" + signature)
    for other in others:
        assert other != data
        assert envelope_pb2.Envelope.FromString(other).signature
        with pytest.raises(EnvelopeMalformed):
            open_document(other, "hop")


def header(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "audience": signing.peer_id_bytes(OTHER.public_key),
        "id": b"i" * 16,
        "issued_ms": NOW,
        "expires_ms": NOW + 1,
        "in_reply_to": b"",
    }
    return envelope_pb2.Message(header=envelope_pb2.Header(**(fields | changes))).SerializeToString()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "payload",
    [
        header(audience=b""),
        header(audience=signing.peer_id_bytes(OTHER.public_key)[:-1]),
        header(audience=b"\x12\x20" + bytes(36)),
        header(id=b""),
        header(id=b"i" * 15),
        header(in_reply_to=b"r"),
        header(issued_ms=-1),
        header(expires_ms=NOW),
        header(expires_ms=2**62),
        b"",
        b"\xff",
    ],
)
def test_a_malformed_header_is_refused(payload: bytes) -> None:
    with pytest.raises(EnvelopeMalformed):
        open_message(signed_as("receipt", payload), {"receipt"})


def test_a_well_formed_header_of_the_protobuf_library_is_read() -> None:
    assert open_message(signed_as("receipt", header()), {"receipt"}).header.issued_ms == NOW


@pytest.mark.parametrize("lifetime_ms", [0, -1, MAX_LIFETIME_MS + 1])
def test_a_lifetime_out_of_bounds_is_not_sealed(lifetime_ms: int) -> None:
    with pytest.raises(EnvelopeMalformed, match="good for"):
        seal(KEY, "receipt", b"", audience=OTHER.peer_id, message_id=b"i" * 16, now_ms=NOW, lifetime_ms=lifetime_ms)


@pytest.mark.parametrize("message_id", [b"", b"i" * 15, b"i" * 17])
def test_an_id_of_another_length_is_not_sealed(message_id: bytes) -> None:
    with pytest.raises(EnvelopeMalformed, match="16 bytes"):
        seal(KEY, "receipt", b"", audience=OTHER.peer_id, message_id=message_id, now_ms=NOW)


def test_an_audience_that_is_no_peer_is_not_sealed() -> None:
    with pytest.raises(SignatureInvalid, match="PeerId"):
        seal(KEY, "receipt", b"", audience="somebody", message_id=b"i" * 16, now_ms=NOW)
