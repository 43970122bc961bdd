"""Statements that other tools can verify: in-toto Statement v1 in DSSE v1.

DSSE (https://github.com/secure-systems-lab/dsse, protocol.md and envelope.md) signs PAE(type, payload), so neither the
payload nor its encoding is ever interpreted before the signature is checked; the payload that was verified is the
payload that is used. Who may sign, and with which algorithm, is the caller's: a trust bundle is signed with ECDSA by
organizations' CAs, a record's provenance with Ed25519 by nodes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from comity.digest import canonical_json
from comity.errors import EnvelopeMalformed, SignatureInvalid
from comity.signing import PrivateKey, verify
from comity.strictjson import Fields, parse_json

#: `payloadType` of an in-toto Statement (in-toto attestation v1, envelope.md).
IN_TOTO_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
#: `_type` of an in-toto Statement v1.
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
#: A certified record: where it came from, who reviewed it and which quorum certified it.
PREDICATE_CERTIFIED_RECORD: Final = "urn:comity:predicate:certified-record:v1"
#: A file of certified records: how many, and what commits to where each came from.
PREDICATE_DATASET: Final = "urn:comity:predicate:dataset:v1"
#: A model update: what it was trained on and by whom.
PREDICATE_MODEL_UPDATE: Final = "urn:comity:predicate:model-update:v1"

#: Bytes of the largest DSSE envelope that is read.
MAX_STATEMENT: Final = 4 * 1024 * 1024
_MAX_SIGNATURES = 1024
_MAX_SUBJECTS = 4096


@dataclass(frozen=True, slots=True)
class Signer:
    """Somebody who can sign.

    Attributes:
        keyid: a hint for the verifier which key it was; it is not signed.
        sign: returns the signature of the bytes that it is given.
    """

    keyid: str
    sign: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature of a DSSE envelope: the hint at its key, and the signature."""

    keyid: str
    signature: bytes


#: Checks one signature of a message, and raises `SignatureInvalid` (or another `ComityError`) if it does not hold.
Verifier = Callable[[Signature, bytes], None]


def ed25519_signer(key: PrivateKey) -> Signer:
    """Return the signer of a node's key; the key's PeerId is the hint."""
    return Signer(key.peer_id, key.sign)


def ed25519_verifier(keys: Mapping[str, bytes]) -> Verifier:
    """Return a verifier that knows some nodes.

    Args:
        keys: PeerId to the node's 32-byte public key.
    """

    def check(signature: Signature, message: bytes) -> None:
        if signature.keyid not in keys:
            raise SignatureInvalid(f"the key {signature.keyid!r} is not known here")
        verify(keys[signature.keyid], signature.signature, message)

    return check


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's Pre-Authentication Encoding, the bytes that are signed; lengths count bytes, not characters."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True, slots=True)
class Dsse:
    """A DSSE envelope. It says nothing until `verify_all` or the signatures' owners have spoken.

    Attributes:
        payload_type: the media type of the payload.
        payload: the bytes, as received.
        signatures: in the order in which they stand.
    """

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...] = ()

    @property
    def message(self) -> bytes:
        """The bytes that each signature covers."""
        return pae(self.payload_type, self.payload)

    def signed_by(self, signer: Signer) -> Dsse:
        """Return the envelope with one more signature."""
        signature = Signature(signer.keyid, signer.sign(self.message))
        return Dsse(self.payload_type, self.payload, (*self.signatures, signature))

    def verify_all(self, verifier: Verifier) -> None:
        """Check every signature; there must be one at least.

        Raises:
            SignatureInvalid: there is none, or one does not hold.
        """
        if not self.signatures:
            raise SignatureInvalid("nobody has signed")
        message = self.message
        for signature in self.signatures:
            verifier(signature, message)

    def encode(self) -> bytes:
        """Return the JSON form (DSSE, envelope.md), in RFC 8785 form."""
        return canonical_json(
            {
                "payloadType": self.payload_type,
                "payload": _to_base64(self.payload),
                "signatures": [{"keyid": one.keyid, "sig": _to_base64(one.signature)} for one in self.signatures],
            }
        )

    @classmethod
    def decode(cls, data: bytes, payload_type: str) -> Dsse:
        """Read the JSON form; the payload is not looked at.

        Args:
            data: the bytes as received.
            payload_type: the type that is expected here.

        Raises:
            EnvelopeMalformed: no DSSE envelope, too large, or of another type.
        """
        try:
            envelope = _read(data)
        except ValueError as error:
            raise EnvelopeMalformed(f"no DSSE envelope: {error}") from error
        if envelope.payload_type != payload_type:
            raise EnvelopeMalformed(f"the payload's type is {envelope.payload_type!r}, not {payload_type!r}")
        return envelope


def _read(data: bytes) -> Dsse:
    fields = Fields(parse_json(data, limit=MAX_STATEMENT), "the envelope")
    payload_type = fields.text("payloadType", longest=256)
    payload = _from_base64(fields.text("payload", longest=MAX_STATEMENT))
    signatures = tuple(_read_signature(one) for one in fields.array("signatures", longest=_MAX_SIGNATURES))
    fields.close()
    return Dsse(payload_type, payload, signatures)


def _read_signature(value: object) -> Signature:
    fields = Fields(value, "a signature")
    signature = Signature(fields.text("keyid", longest=256), _from_base64(fields.text("sig", longest=4096)))
    fields.close()
    return signature


@dataclass(frozen=True, slots=True)
class Subject:
    """What a statement is about: a name and the SHA-256 of its bytes, as 64 lower-case hex digits."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Statement:
    """An in-toto Statement v1 (https://github.com/in-toto/attestation, spec/v1/statement.md).

    Attributes:
        subjects: what it is about; at least one.
        predicate_type: one of the `PREDICATE_...` URIs, or somebody else's.
        predicate: what is said about the subjects: a JSON object.
    """

    subjects: tuple[Subject, ...]
    predicate_type: str
    predicate: Mapping[str, Any]


def sign_statement(statement: Statement, signers: Iterable[Signer]) -> bytes:
    """Return the DSSE envelope (JSON) of a statement, with one signature of each signer.

    Raises:
        EnvelopeMalformed: the statement has no subject, or the predicate is no JSON.
        SignatureInvalid: there is no signer.
    """
    if not statement.subjects:
        raise EnvelopeMalformed("a statement has at least one subject")
    try:
        payload = canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "subject": [{"name": one.name, "digest": {"sha256": one.sha256}} for one in statement.subjects],
                "predicateType": statement.predicate_type,
                "predicate": dict(statement.predicate),
            }
        )
    except ValueError as error:
        raise EnvelopeMalformed(f"the predicate is no JSON: {error}") from error
    envelope = Dsse(IN_TOTO_PAYLOAD_TYPE, payload)
    for signer in signers:
        envelope = envelope.signed_by(signer)
    if not envelope.signatures:
        raise SignatureInvalid("nobody has signed")
    return envelope.encode()


def open_statement(data: bytes, predicate_type: str, verifier: Verifier) -> Statement:
    """Verify a statement, every signature of it, and read it.

    Args:
        data: the DSSE envelope (JSON).
        predicate_type: the type that is expected here.
        verifier: checks one signature.

    Raises:
        EnvelopeMalformed: no DSSE envelope, no Statement v1, or of another predicate type.
        SignatureInvalid: nobody has signed, or a signature does not hold.
    """
    envelope = Dsse.decode(data, IN_TOTO_PAYLOAD_TYPE)
    envelope.verify_all(verifier)
    try:
        statement = _read_statement(envelope.payload)
    except ValueError as error:
        raise EnvelopeMalformed(f"no in-toto Statement: {error}") from error
    if statement.predicate_type != predicate_type:
        raise EnvelopeMalformed(f"the statement is a {statement.predicate_type!r}, not a {predicate_type!r}")
    return statement


def _read_statement(payload: bytes) -> Statement:
    # Fields beyond these are ignored, as the specification asks of consumers.
    fields = Fields(parse_json(payload, limit=MAX_STATEMENT), "the statement")
    if fields.text("_type") != STATEMENT_TYPE:
        raise ValueError("its _type is another")
    subjects = tuple(_read_subject(one) for one in fields.array("subject", longest=_MAX_SUBJECTS))
    predicate = fields.get("predicate")
    if not subjects or not isinstance(predicate, dict):
        raise ValueError("it needs a subject and a predicate")
    return Statement(subjects, fields.text("predicateType"), predicate)


def _read_subject(value: object) -> Subject:
    fields = Fields(value, "a subject")
    digest = fields.object("digest").text("sha256", longest=64)
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError("a subject's sha256 is not 64 lower-case hex digits")
    return Subject(fields.text("name"), digest)


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str) -> bytes:
    """Read standard base64 in its one form: padded, no white space, no stray bits."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError("not standard base64") from error
    if _to_base64(data) != text:
        raise ValueError("not standard base64")
    return data
