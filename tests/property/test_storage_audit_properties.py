from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comity import merkle
from comity.digest import canonical_json
from comity.errors import AuditBroken, ProofInvalid
from comity.signing import PrivateKey
from comity_node.storage import audit
from comity_node.storage.audit import AuditEntry, NoteSigner
from comity_node.storage.audit_entry import decode, encode
from comity_node.storage.database import Database

KEY = PrivateKey(bytes(32))
SIGNER = NoteSigner("mercy.example/node/n1", KEY.public_key, KEY.sign)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1)
KEYS = st.text(st.characters(max_codepoint=127), max_size=6)
DETAIL = st.dictionaries(
    KEYS,
    st.one_of(TEXT, NUMBERS, st.booleans(), st.none(), st.lists(TEXT, max_size=3), st.dictionaries(KEYS, NUMBERS)),
    max_size=5,
)
DIGEST = st.binary(min_size=32, max_size=32) | st.just(b"")
ENTRY = st.builds(
    AuditEntry,
    kind=TEXT,
    action=TEXT,
    decision=st.sampled_from(["", "allow", "deny"]),
    rules=st.lists(TEXT, max_size=3).map(tuple),
    peer=TEXT,
    subject=DIGEST,
    policy=DIGEST,
    agreement=DIGEST,
    detail=DETAIL,
)


@given(ENTRY, st.integers(0, 2**40), NUMBERS)
def test_an_entry_is_canonical_json_and_comes_back(entry: AuditEntry, index: int, now_ms: int) -> None:
    data = encode(entry, index, bytes(32), now_ms)
    assert data == canonical_json(json.loads(data))
    stored = decode(index, data, b"h")
    assert (stored.entry, stored.at_ms) == (entry, now_ms)


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=70), st.data())
def test_every_leaf_is_proved_and_nothing_else(leaves: list[bytes], data: st.DataObject) -> None:
    hashes = [merkle.leaf_hash(leaf) for leaf in leaves]
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = merkle.inclusion_proof(hashes, index)
    root = _recursive_root(hashes)
    assert merkle.root_of(hashes) == root
    merkle.verify_inclusion(hashes[index], index, len(hashes), path, root)
    with pytest.raises(ProofInvalid, match="another tree head"):
        merkle.verify_inclusion(merkle.leaf_hash(b"other"), index, len(hashes), path, root)
    with pytest.raises(ProofInvalid, match="too long"):
        merkle.verify_inclusion(hashes[index], index, len(hashes), (*path, root), root)
    if path:
        with pytest.raises(ProofInvalid, match="too short"):
            merkle.verify_inclusion(hashes[index], index, len(hashes), path[:-1], root)


def _recursive_root(leaves: list[bytes]) -> bytes:
    """The definition of RFC 6962, section 2.1, word for word."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return merkle.node_hash(_recursive_root(leaves[:split]), _recursive_root(leaves[split:]))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audit") / "node.db"
    Database.open(path).close()
    with sqlite3.connect(path) as connection:
        for number in range(20):
            audit.append(connection, AuditEntry("decision", subject=bytes([number]) * 32), number)
        audit.checkpoint(connection, SIGNER, 20)
    connection.close()
    return path


@pytest.mark.invariant("S8")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_of_any_entry_is_found(log: Path, data: st.DataObject) -> None:
    """Also when whoever flips it puts the hash, the rest of the chain and the head right again."""
    connection = sqlite3.connect(log, isolation_level=None)
    try:
        audit.verify_file(log, KEY.public_key)
        before = audit.entries(connection)
        target = data.draw(st.sampled_from(before))
        bit = data.draw(st.integers(0, 8 * len(target.data) - 1))
        changed = bytearray(target.data)
        changed[bit // 8] ^= 1 << bit % 8
        rehash = data.draw(st.booleans())
        hashed = merkle.leaf_hash(bytes(changed)) if rehash else target.hash
        connection.execute(
            "UPDATE audit_entries SET entry = ?, hash = ? WHERE position = ?", (bytes(changed), hashed, target.index)
        )
        try:
            with pytest.raises(AuditBroken) as caught:
                audit.verify_file(log, KEY.public_key)
        finally:
            connection.execute(
                "UPDATE audit_entries SET entry = ?, hash = ? WHERE position = ?",
                (target.data, target.hash, target.index),
            )
        # With its hash put right, it is the next entry's link or the checkpoint of the whole log that does not fit.
        assert caught.value.index in ((target.index, target.index + 1, 0) if rehash else (target.index,))
    finally:
        connection.close()
