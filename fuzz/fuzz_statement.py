"""Fuzzes DSSE statements and provenances: as somebody else could send them, and as a member could sign them.

Run: python -m fuzz.run statement
"""

from __future__ import annotations

import base64

from comity.digest import hex_digest
from comity.errors import ComityError
from comity.export import Export, open_export, sign_export
from comity.provenance import make_provenance, verify_provenance
from comity.statement import (
    IN_TOTO_PAYLOAD_TYPE,
    PREDICATE_CERTIFIED_RECORD,
    Dsse,
    Statement,
    Subject,
    ed25519_signer,
    sign_statement,
)
from comity.strictjson import parse_json
from fuzz.world import AGREEMENT, END_MS, NOW_MS, OTHER_NODE, TRUST, certified_record

_CERTIFIED = certified_record()
_PROOF = make_provenance(OTHER_NODE, _CERTIFIED, AGREEMENT)
_EXPORT = sign_export(OTHER_NODE, Export("rows.jsonl", "0" * 64, "jsonl", 3, bytes(32), NOW_MS))
_SIGNER = ed25519_signer(OTHER_NODE.key)
_PREDICATE = parse_json(Dsse.decode(_PROOF, IN_TOTO_PAYLOAD_TYPE).payload, limit=1 << 20)["predicate"]

#: Where a fuzzer begins: an envelope, payloads of such, and a certified record.
SEEDS = (
    _EXPORT,
    Dsse.decode(_EXPORT, IN_TOTO_PAYLOAD_TYPE).payload,
    Dsse.decode(_PROOF, IN_TOTO_PAYLOAD_TYPE).payload[:2000],
    _CERTIFIED.SerializeToString(),
    b'{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"keyid":"k","sig":""}]}',
)
_HONEST = frozenset((_EXPORT, _PROOF))
_RECORD = _CERTIFIED.task.record


def one(data: bytes) -> None:
    """Open the bytes as an envelope, as what a member has signed, and as a record that a member vouches for."""
    _envelope(data)
    signed = Dsse(IN_TOTO_PAYLOAD_TYPE, data).signed_by(_SIGNER).encode()
    _open_both(signed)
    _vouched_for(data)


def _envelope(data: bytes) -> None:
    try:
        envelope = Dsse.decode(data, IN_TOTO_PAYLOAD_TYPE)
    except ComityError:
        return
    assert Dsse.decode(envelope.encode(), IN_TOTO_PAYLOAD_TYPE) == envelope
    if _open_both(data):
        honest = {Dsse.decode(each, IN_TOTO_PAYLOAD_TYPE).payload for each in _HONEST}
        assert envelope.payload in honest, "nobody has signed this"


def _open_both(data: bytes) -> bool:
    """Whether the bytes prove anything."""
    proved = False
    try:
        export = open_export(data, TRUST).export
        assert NOW_MS - 600_000 <= export.signed_ms < END_MS
        proved = True
    except ComityError:
        pass
    try:
        assert verify_provenance(data, TRUST).record == _RECORD
        proved = True
    except ComityError:
        pass
    return proved


def _vouched_for(data: bytes) -> None:
    """Whatever a holder puts into its statement, nothing comes of it but the record that was certified."""
    predicate = {**_PREDICATE, "certified": base64.b64encode(data).decode("ascii")}
    subject = Subject(f"record/{_CERTIFIED.task.id.hex()}", hex_digest(_RECORD))
    _open_both(sign_statement(Statement((subject,), PREDICATE_CERTIFIED_RECORD, predicate), [_SIGNER]))
