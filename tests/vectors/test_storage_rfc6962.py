"""Published vectors of the Merkle tree and of signed notes.

Merkle: the inputs, roots and paths of the certificate-transparency project's test data (RFC 6962, section 2.1), which
all of its implementations share.
Notes: the example of https://c2sp.org/signed-note's first implementation, golang.org/x/mod/sumdb/note.
"""

from __future__ import annotations

import base64

import pytest

from comity import merkle
from comity.errors import AuditBroken, ProofInvalid
from comity.signing import PrivateKey
from comity_node.storage import note

INPUTS = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
#: Size of the tree, index (from 0), path.
PATHS = [
    (1, 0, []),
    (
        8,
        0,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        8,
        5,
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (3, 2, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        5,
        1,
        [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]
LEAVES = [merkle.leaf_hash(data) for data in INPUTS]

NOTE_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
NOTE_SIGNATURE = (
    "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
NOTE_NAME = "PeterNeumann"
#: The last fields of the published keys: an algorithm byte and the key, the private one a seed.
NOTE_PUBLIC = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")[1:]
NOTE_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]


def test_the_empty_tree() -> None:
    assert merkle.CompactRange().root().hex() == EMPTY


@pytest.mark.parametrize("size", range(1, 9))
def test_roots(size: int) -> None:
    assert merkle.root_of(LEAVES[:size]).hex() == ROOTS[size - 1]


@pytest.mark.parametrize(("size", "index", "path"), PATHS)
def test_inclusion_paths(size: int, index: int, path: list[str]) -> None:
    assert [step.hex() for step in merkle.inclusion_proof(LEAVES[:size], index)] == path
    merkle.verify_inclusion(
        LEAVES[index], index, size, [bytes.fromhex(step) for step in path], bytes.fromhex(ROOTS[size - 1])
    )


@pytest.mark.parametrize("size", range(1, 9))
def test_a_whole_tree_has_the_same_roots(size: int) -> None:
    assert merkle.Tree(LEAVES[:size]).root.hex() == ROOTS[size - 1]
    assert merkle.CompactRange().extend(LEAVES[:3]).extend(LEAVES[3:size]).root().hex() == ROOTS[max(size, 3) - 1]


@pytest.mark.parametrize(("size", "index", "path"), PATHS)
def test_a_path_leads_to_its_root(size: int, index: int, path: list[str]) -> None:
    assert merkle.path_length(index, size) == len(path)
    steps = [bytes.fromhex(step) for step in path]
    assert merkle.root_from_path(LEAVES[index], index, size, steps).hex() == ROOTS[size - 1]


def test_the_empty_whole_tree() -> None:
    assert merkle.Tree([]).root.hex() == EMPTY
    with pytest.raises(ProofInvalid, match="no entry 0 in a tree of 0"):
        merkle.Tree([]).path(0)


def test_the_note_is_made() -> None:
    key = PrivateKey(NOTE_SEED)
    assert key.public_key == NOTE_PUBLIC
    assert note.key_id(NOTE_NAME, NOTE_PUBLIC).hex() == "c74f20a3"
    signer = note.NoteSigner(NOTE_NAME, key.public_key, key.sign)
    assert note.sign_note(NOTE_TEXT, signer) == f"{NOTE_TEXT}\n{NOTE_SIGNATURE}"


def test_the_note_is_opened() -> None:
    assert note.open_note(f"{NOTE_TEXT}\n{NOTE_SIGNATURE}", NOTE_NAME, NOTE_PUBLIC) == NOTE_TEXT


def test_signatures_of_unknown_keys_are_passed_over() -> None:
    other = PrivateKey(bytes(32))
    foreign = note.sign_note(NOTE_TEXT, note.NoteSigner("witness.example", other.public_key, other.sign))
    line = foreign.removeprefix(f"{NOTE_TEXT}\n")
    assert note.open_note(f"{NOTE_TEXT}\n{line}{NOTE_SIGNATURE}", NOTE_NAME, NOTE_PUBLIC) == NOTE_TEXT
    with pytest.raises(AuditBroken, match="carries no signature"):
        note.open_note(foreign, NOTE_NAME, NOTE_PUBLIC)


def test_a_changed_note_is_refused() -> None:
    with pytest.raises(AuditBroken, match="does not verify"):
        note.open_note(f"{NOTE_TEXT.replace('is', 'was', 1)}\n{NOTE_SIGNATURE}", NOTE_NAME, NOTE_PUBLIC)
