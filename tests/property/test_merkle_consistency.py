"""Consistency proofs against the recursive definition of RFC 6962, section 2.1.2, written down here once more."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity import merkle
from comity.digest import sha256
from comity.errors import ProofInvalid
from comity.merkle import CompactRange, Tree

MOST = 300
LEAVES = [merkle.leaf_hash(str(number).encode()) for number in range(MOST)]
SIZES = st.integers(1, MOST)


@cache
def mth(start: int, end: int) -> bytes:
    """MTH(D[start:end])."""
    if start == end:
        return sha256(b"")
    if end - start == 1:
        return LEAVES[start]
    middle = start + split(end - start)
    return sha256(b"\x01" + mth(start, middle) + mth(middle, end))


def split(count: int) -> int:
    power = 1
    while power * 2 < count:
        power *= 2
    return power


def subproof(old: int, start: int, end: int, *, known: bool) -> list[bytes]:
    """SUBPROOF(old, D[start:end], known)."""
    if old == end - start:
        return [] if known else [mth(start, end)]
    middle = start + split(end - start)
    if old <= middle - start:
        return [*subproof(old, start, middle, known=known), mth(middle, end)]
    return [*subproof(old - (middle - start), middle, end, known=False), mth(start, middle)]


@pytest.mark.parametrize("new", range(1, 34))
def test_every_small_proof_is_that_of_the_definition_and_verifies(new: int) -> None:
    tree = Tree(LEAVES[:new])
    for old in range(1, new + 1):
        proof = tree.consistency(old)
        assert list(proof) == subproof(old, 0, new, known=True)
        merkle.verify_consistency(old, mth(0, old), new, mth(0, new), proof)


def test_the_example_of_the_rfc() -> None:
    """RFC 6962, section 2.1.3: seven leaves; proofs from three, four and six of them."""
    hashed = {name: mth(*ends) for name, ends in {"c": (2, 3), "d": (3, 4), "g": (0, 2), "l": (4, 7)}.items()}
    tree = Tree(LEAVES[:7])
    assert tree.consistency(3) == (hashed["c"], hashed["d"], hashed["g"], hashed["l"])
    assert tree.consistency(4) == (hashed["l"],)
    assert tree.consistency(6) == (mth(4, 6), mth(6, 7), mth(0, 4))


@given(SIZES, SIZES)
def test_proofs_and_paths_from_subtrees_are_those_of_the_tree(one: int, other: int) -> None:
    old, new = sorted((one, other))

    def subtree(height: int, place: int) -> bytes:
        assert (place + 1) << height <= new, "only full subtrees are asked for"
        return mth(place << height, (place + 1) << height)

    ranges = merkle.consistency_ranges(old, new)
    assert [merkle.range_root(*each, subtree) for each in ranges] == subproof(old, 0, new, known=True)
    index = old - 1
    path = [merkle.range_root(*each, subtree) for each in merkle.inclusion_ranges(index, new)]
    assert tuple(path) == Tree(LEAVES[:new]).path(index)


@given(SIZES, SIZES, st.data())
def test_nothing_else_is_a_proof(one: int, other: int, data: st.DataObject) -> None:
    old, new = sorted((one, other))
    proof = Tree(LEAVES[:new]).consistency(old)
    roots = mth(0, old), mth(0, new)
    forged = sha256(b"another head")
    cases = [(old, forged, new, roots[1], proof), (old, roots[0], new, forged, proof)]
    cases += [(old, roots[0], new, roots[1], (*proof, forged))]
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        cases += [(old, roots[0], new, roots[1], (*proof[:at], *proof[at + 1 :]))]
        cases += [(old, roots[0], new, roots[1], (*proof[:at], forged, *proof[at + 1 :]))]
    for case in cases:
        with pytest.raises(ProofInvalid):
            merkle.verify_consistency(*case)


@given(st.integers(1, MOST - 1), st.data())
def test_a_leaf_that_was_changed_cannot_be_hidden(old: int, data: st.DataObject) -> None:
    """Whatever proof the owner of the changed log makes, it does not fit the head that was signed before."""
    new = data.draw(st.integers(old, MOST))
    index = data.draw(st.integers(0, old - 1))
    changed = Tree([*LEAVES[:index], merkle.leaf_hash(b"changed"), *LEAVES[index + 1 : new]])
    with pytest.raises(ProofInvalid):
        merkle.verify_consistency(old, mth(0, old), new, changed.root, changed.consistency(old))


def test_the_empty_tree_grows_into_any_and_no_tree_shrinks() -> None:
    merkle.verify_consistency(0, merkle.EMPTY_ROOT, 5, mth(0, 5), ())
    merkle.verify_consistency(0, merkle.EMPTY_ROOT, 0, merkle.EMPTY_ROOT, ())
    with pytest.raises(ProofInvalid, match="different heads"):
        merkle.verify_consistency(0, bytes(32), 5, mth(0, 5), ())
    with pytest.raises(ProofInvalid, match="did not grow"):
        merkle.verify_consistency(5, mth(0, 5), 4, mth(0, 4), ())
    with pytest.raises(ProofInvalid, match="did not grow"):
        merkle.verify_consistency(-1, mth(0, 5), 4, mth(0, 4), ())


@given(st.lists(st.integers(0, 40), max_size=12))
def test_a_tree_that_grows_in_steps_is_told_of_each_full_subtree_once(steps: list[int]) -> None:
    tree, seen = CompactRange(), {}

    def completed(height: int, place: int, roots: object) -> None:
        assert isinstance(roots, list)
        for number, root in enumerate(roots, place):
            assert (height, number) not in seen
            seen[height, number] = root

    for step in steps:
        if tree.size + step > MOST:
            break
        tree = tree.extend(LEAVES[tree.size : tree.size + step], completed)
        assert tree.root() == mth(0, tree.size)
    assert seen == {
        (height, place): mth(place << height, (place + 1) << height)
        for height in range(1, 9)
        for place in range(tree.size >> height)
    }
