"""Statements: in-toto in DSSE; what was signed is what is read."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.errors import ComityError, EnvelopeMalformed, SignatureInvalid
from comity.signing import PrivateKey
from comity.statement import (
    IN_TOTO_PAYLOAD_TYPE,
    MAX_STATEMENT,
    PREDICATE_CERTIFIED_RECORD,
    STATEMENT_TYPE,
    Dsse,
    Statement,
    Subject,
    ed25519_signer,
    ed25519_verifier,
    open_statement,
    pae,
    sign_statement,
)

ALICE, BOB = PrivateKey(b"a" * 32), PrivateKey(b"b" * 32)
KNOWN = ed25519_verifier({key.peer_id: key.public_key for key in (ALICE, BOB)})
STATEMENT = Statement(
    (Subject("record", "ab" * 32),), PREDICATE_CERTIFIED_RECORD, {"score": 9000, "é": ["x", None, True]}
)


def signed(*keys: PrivateKey) -> bytes:
    return sign_statement(STATEMENT, [ed25519_signer(key) for key in keys or (ALICE,)])


def with_payload(payload: bytes) -> bytes:
    return Dsse(IN_TOTO_PAYLOAD_TYPE, payload).signed_by(ed25519_signer(ALICE)).encode()


def test_a_statement_comes_back() -> None:
    assert open_statement(signed(ALICE, BOB), PREDICATE_CERTIFIED_RECORD, KNOWN) == STATEMENT


def test_the_wire_form_is_that_of_the_specifications() -> None:
    """So that cosign, in-toto and others read it: names and encodings, not only our own reader."""
    outer = json.loads(signed())
    assert outer["payloadType"] == "application/vnd.in-toto+json"
    payload = b64decode(outer["payload"], validate=True)
    assert json.loads(payload) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "record", "digest": {"sha256": "ab" * 32}}],
        "predicateType": PREDICATE_CERTIFIED_RECORD,
        "predicate": {"score": 9000, "é": ["x", None, True]},
    }
    (signature,) = outer["signatures"]
    ALICE.to_cryptography().public_key().verify(
        b64decode(signature["sig"], validate=True), pae("application/vnd.in-toto+json", payload)
    )


@pytest.mark.invariant("S2")
@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.update(payload=b64encode(b64decode(e["payload"]) + b" ").decode()),
        lambda e: e["signatures"][0].update(sig=b64encode(bytes(64)).decode()),
        lambda e: e["signatures"][0].update(keyid=BOB.peer_id),
        lambda e: e["signatures"][0].update(keyid="somebody"),
        lambda e: e["signatures"].append({"keyid": BOB.peer_id, "sig": e["signatures"][0]["sig"]}),
        lambda e: e["signatures"].clear(),
    ],
)
def test_every_signature_must_hold_and_there_must_be_one(change: Callable[[dict[str, Any]], object]) -> None:
    outer = json.loads(signed())
    change(outer)
    with pytest.raises(SignatureInvalid):
        open_statement(json.dumps(outer).encode(), PREDICATE_CERTIFIED_RECORD, KNOWN)


@pytest.mark.invariant("S2")
def test_the_payload_is_not_read_before_the_signature_holds() -> None:
    data = Dsse(IN_TOTO_PAYLOAD_TYPE, b"no JSON").signed_by(ed25519_signer(PrivateKey(b"e" * 32))).encode()
    with pytest.raises(SignatureInvalid):
        open_statement(data, PREDICATE_CERTIFIED_RECORD, KNOWN)


def test_a_signature_is_for_one_payload_type() -> None:
    outer = json.loads(signed())
    outer["payloadType"] = "application/other"
    with pytest.raises(SignatureInvalid):
        Dsse.decode(json.dumps(outer).encode(), "application/other").verify_all(KNOWN)
    with pytest.raises(EnvelopeMalformed, match="payload's type"):
        Dsse.decode(json.dumps(outer).encode(), IN_TOTO_PAYLOAD_TYPE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e: e.pop("payload"), "no 'payload'"),
        (lambda e: e.update(payload=7), "'payload'"),
        (lambda e: e.update(payload="A"), "base64"),
        (lambda e: e.update(payload="AB=="), "base64"),
        (lambda e: e.update(payload=e["payload"] + "\n"), "base64"),
        (lambda e: e.update(payload="é"), "base64"),
        (lambda e: e["signatures"][0].update(sig=urlsafe_b64encode(b"\xff" * 64).decode()), "base64"),
        (lambda e: e["signatures"][0].update(cert="x"), "unknown field 'cert'"),
        (lambda e: e["signatures"][0].pop("keyid"), "no 'keyid'"),
        (lambda e: e.update(signatures=e["signatures"] * 2000), "no array of at most"),
        (lambda e: e.update(extra=1), "unknown field 'extra'"),
    ],
)
def test_a_malformed_envelope_is_refused(change: Callable[[dict[str, Any]], object], reason: str) -> None:
    outer = json.loads(signed())
    change(outer)
    with pytest.raises(EnvelopeMalformed, match=reason):
        open_statement(json.dumps(outer).encode(), PREDICATE_CERTIFIED_RECORD, KNOWN)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "_type"),
        (lambda s: s.update(subject=[]), "needs a subject"),
        (lambda s: s.update(predicate=[]), "needs a subject"),
        (lambda s: s.pop("predicate"), "no 'predicate'"),
        (lambda s: s["subject"][0]["digest"].update(sha256="AB" * 32), "lower-case"),
        (lambda s: s["subject"][0]["digest"].update(sha256="ab"), "lower-case"),
        (lambda s: s["subject"][0].update(digest={"sha512": "ab"}), "no 'sha256'"),
        (lambda s: s.update(predicateType="urn:other"), "is a 'urn:other'"),
    ],
)
def test_a_signed_payload_that_is_no_statement_is_refused(
    change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    payload = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": "record", "digest": {"sha256": "ab" * 32}}],
        "predicateType": PREDICATE_CERTIFIED_RECORD,
        "predicate": {},
    }
    change(payload)
    with pytest.raises(EnvelopeMalformed, match=reason):
        open_statement(with_payload(json.dumps(payload).encode()), PREDICATE_CERTIFIED_RECORD, KNOWN)


def test_fields_that_are_not_known_are_ignored_inside_the_statement() -> None:
    """in-toto asks consumers for it; the bytes are signed all the same."""
    payload = json.loads(b64decode(json.loads(signed())["payload"]))
    payload["annotation"] = {"x": 1}
    payload["subject"][0]["mediaType"] = "application/json"
    opened = open_statement(with_payload(json.dumps(payload).encode()), PREDICATE_CERTIFIED_RECORD, KNOWN)
    assert opened == STATEMENT


@pytest.mark.parametrize("payload", [b'{"a":1,"a":2}', b'{"predicate":{"a":NaN}}', b"\xff", b"", b"[]", b"7"])
def test_json_with_surprises_is_refused(payload: bytes) -> None:
    with pytest.raises(EnvelopeMalformed):
        open_statement(with_payload(payload), PREDICATE_CERTIFIED_RECORD, KNOWN)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("data", [b" " * (MAX_STATEMENT + 1), b"[" * 200_000, b'{"payload":' * 100_000])
def test_too_large_or_too_deep(data: bytes) -> None:
    with pytest.raises(EnvelopeMalformed, match=r"limit|deep"):
        open_statement(data, PREDICATE_CERTIFIED_RECORD, KNOWN)


def test_what_is_not_signed() -> None:
    with pytest.raises(EnvelopeMalformed, match="at least one subject"):
        sign_statement(Statement((), "urn:x", {}), [ed25519_signer(ALICE)])
    with pytest.raises(EnvelopeMalformed, match="no JSON"):
        sign_statement(Statement(STATEMENT.subjects, "urn:x", {"x": float("nan")}), [ed25519_signer(ALICE)])
    with pytest.raises(SignatureInvalid, match="nobody"):
        sign_statement(STATEMENT, [])


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_one_changed_byte_is_refused(where: int, flip: int) -> None:
    data = bytearray(signed())
    data[where % len(data)] ^= flip
    with pytest.raises(ComityError):
        open_statement(bytes(data), PREDICATE_CERTIFIED_RECORD, KNOWN)


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_noise_is_no_statement(noise: bytes) -> None:
    with pytest.raises(EnvelopeMalformed):
        open_statement(noise, PREDICATE_CERTIFIED_RECORD, KNOWN)
