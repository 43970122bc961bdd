"""What a witness judges, what is sent to it, and when; cosignatures, byte by byte."""

from __future__ import annotations

import base64
import hashlib
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from comity import merkle
from comity.errors import AuditBroken, UnexpectedMessage
from comity.signing import PrivateKey
from comity_node.protocol.witness import Head, Submission, Verdict, WitnessLimits, is_due, judge, parse_submission
from comity_node.storage import cosignature, note

LEAVES = [merkle.leaf_hash(bytes([number])) for number in range(64)]
OTHER = [merkle.leaf_hash(b"other"), *LEAVES[1:]]
KEY = PrivateKey(bytes(range(32)))
SIGNER = note.NoteSigner("stlukes.example/node/n1", KEY.public_key, KEY.sign)
LOG = note.NoteSigner("mercy.example/node/n1", KEY.public_key, KEY.sign)
CHECKPOINT = note.Checkpoint(LOG.name, 7, merkle.root_of(LEAVES[:7])).text()
SIZES = st.integers(0, 64)


def head(size: int, leaves: list[bytes] = LEAVES) -> Head:
    return Head(size, merkle.root_of(leaves[:size]))


def proof(old: int, new: int, leaves: list[bytes] = LEAVES) -> tuple[bytes, ...]:
    return merkle.Tree(leaves[:new]).consistency(old)


@pytest.mark.invariant("S8")
@given(SIZES, SIZES)
def test_a_log_that_grew_is_cosigned_and_one_with_another_past_is_not(one: int, two: int) -> None:
    old, new = sorted((one, two))
    assert judge(head(old), old, head(new), proof(old, new)) is Verdict.COSIGN
    if old:
        assert judge(head(old), old, head(new, OTHER), proof(old, new, OTHER)) is Verdict.FORKED
    if old != new:
        assert judge(head(new), old, head(old), ()) is Verdict.SHRUNK
        assert judge(head(old), old + 1, head(new), proof(old + 1, new)) is (
            Verdict.ELSEWHERE if new > old else Verdict.COSIGN
        )


@pytest.mark.invariant("S8")
@given(st.lists(st.tuples(SIZES, SIZES, st.booleans(), st.booleans()), max_size=20))
def test_whatever_is_asked_what_was_cosigned_is_always_one_log(steps: list[tuple[int, int, bool, bool]]) -> None:
    """Of all that a witness ever cosigns, each tree begins with the one before."""
    last: Head | None = None
    cosigned: list[tuple[int, list[bytes]]] = []
    for old, new, forked, honest in steps:
        leaves = OTHER if forked else LEAVES
        begin = (last.size if last else 0) if honest else old
        given_proof = proof(begin, new, leaves) if begin <= new else ()
        if judge(last, begin, head(new, leaves), given_proof) is Verdict.COSIGN:
            last = head(new, leaves)
            cosigned.append((new, leaves))
    for (size, leaves), (later, later_leaves) in pairwise(cosigned):
        assert size <= later
        assert leaves[:size] == later_leaves[:size]


def test_who_was_never_seen_is_trusted_once_and_proves_nothing() -> None:
    assert judge(None, 0, head(5), ()) is Verdict.COSIGN
    assert judge(None, 3, head(5), proof(3, 5)) is Verdict.ELSEWHERE
    assert judge(None, 0, Head(0, bytes(32)), ()) is Verdict.FORKED


@given(st.integers(0, 2**60), st.lists(st.binary(min_size=32, max_size=32), max_size=63).map(tuple))
def test_a_submission_comes_back(old: int, hashes: tuple[bytes, ...]) -> None:
    made = Submission(old, hashes, note.sign_note(CHECKPOINT, LOG))
    assert parse_submission(made.encode()) == made


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(body: bytes) -> None:
    for each in (body, b"old 1\n" + body, b"old 1\n\n" + body):
        try:
            parse_submission(each)
        except UnexpectedMessage:
            continue


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 1\n",
        b"old 01\n\nx",
        b"old -1\n\nx",
        b"old 1\nAAAA\n\nx",
        b"old 1\n!\n\nx",
        b"old \xff\n\nx",
    ],
)
def test_malformed_submissions_are_refused(body: bytes) -> None:
    with pytest.raises(UnexpectedMessage):
        parse_submission(body)


@pytest.mark.invariant("S7")
def test_a_submission_and_its_checkpoint_are_bounded() -> None:
    assert len(parse_submission(Submission(0, (), "x" * 6144).encode()).note) == 6144
    for body, reason in (
        (Submission(0, (), "x" * 6145).encode(), "over 6144 bytes"),
        (Submission(0, (), "\u2014" * 2049).encode(), "over 6144 bytes"),
        (b"old 1" + b" " * 16384, "at most 16384 bytes"),
        (Submission(0, (bytes(32),) * 64, "x").encode(), "no `old` line"),
    ):
        with pytest.raises(UnexpectedMessage, match=reason):
            parse_submission(body)


@pytest.mark.parametrize(
    ("elapsed_s", "grown", "due"),
    [
        (None, 0, True),
        (1, 5, False),
        (600, 9, True),
        (600, 8, False),
        (599, 9, False),
        (599, 4096, True),
        (599, 4095, False),
        (3599, 8, False),
        (3600, 0, True),
    ],
)
def test_when_a_witness_is_asked_again(elapsed_s: float | None, grown: int, due: bool) -> None:
    assert is_due(WitnessLimits(), elapsed_s, grown, 8) is due


def test_a_cosignature_is_what_the_specification_says() -> None:
    """Put together here from https://c2sp.org/tlog-cosignature, with another library's Ed25519."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    signed = f"cosignature/v1\ntime 1679315147\n{CHECKPOINT}".encode()
    public = key.public_key().public_bytes_raw()
    identifier = hashlib.sha256(SIGNER.name.encode() + b"\n\x04" + public).digest()[:4]
    value = identifier + (1679315147).to_bytes(8, "big") + key.sign(signed)
    line = cosignature.cosign(CHECKPOINT, SIGNER, 1679315147)
    assert line == f"\u2014 {SIGNER.name} {base64.b64encode(value).decode()}\n"
    whole = cosignature.with_cosignatures(note.sign_note(CHECKPOINT, LOG), [line])
    assert cosignature.cosigned_at(whole, SIGNER.name, KEY.public_key) == 1679315147
    assert note.open_note(whole, LOG.name, KEY.public_key) == CHECKPOINT


def test_the_id_of_a_published_witness_key() -> None:
    """The verifier key of a public witness, as https://github.com/transparency-dev/formats has it in its tests."""
    key = base64.b64decode("BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2")
    assert (key[0], cosignature.key_id("remora.n621.de", key[1:]).hex()) == (4, "da77ade7")


def test_a_cosignature_is_of_one_name_key_checkpoint_and_time() -> None:
    plain = note.sign_note(CHECKPOINT, LOG)
    line = cosignature.cosign(CHECKPOINT, SIGNER, 100)
    later = cosignature.cosign(CHECKPOINT, SIGNER, 200)
    assert cosignature.cosigned_at(plain, SIGNER.name, KEY.public_key) is None
    assert cosignature.cosigned_at(plain, LOG.name, KEY.public_key) is None, "the log's own signature is none"
    assert cosignature.cosigned_at(plain + line, SIGNER.name, PrivateKey(b"o" * 32).public_key) is None
    assert cosignature.cosigned_at(plain + line, "hope.example/node/n1", KEY.public_key) is None
    assert cosignature.cosigned_at(plain + later + line, SIGNER.name, KEY.public_key) == 200
    other = note.sign_note(CHECKPOINT.replace("\n7\n", "\n8\n"), LOG)
    with pytest.raises(AuditBroken, match="does not verify"):
        cosignature.cosigned_at(other + line, SIGNER.name, KEY.public_key)


def test_every_changed_byte_of_a_cosignature_is_noticed() -> None:
    plain, line = note.sign_note(CHECKPOINT, LOG), cosignature.cosign(CHECKPOINT, SIGNER, 100)
    whole = (plain + line).encode()
    for at in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[at] ^= 1 << bit
            try:
                text = changed.decode()
                note.open_note(text, LOG.name, KEY.public_key)
                if cosignature.cosigned_at(text, SIGNER.name, KEY.public_key) is None:
                    continue
            except (AuditBroken, UnicodeDecodeError):
                continue
            pytest.fail(f"bit {bit} of byte {at} can be changed")
