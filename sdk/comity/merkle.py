"""The Merkle tree of RFC 6962, section 2.1 (the same in RFC 9162), over SHA-256.

It stands in two places: the audit log, which grows for ever, is kept as a *compact range*; a batch of envelopes that
one signature covers is built at once, as a `Tree`. Both have the same heads and the same proofs.

A tree's head says nothing about how many leaves it has: whoever signs a head signs the size beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from comity.errors import ProofInvalid

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes | bytearray | memoryview) -> bytes:
    """Return the hash of a leaf: SHA-256(0x00 || data). A large one is not copied."""
    hashed = hashlib.sha256(b"\x00")
    hashed.update(data)
    return hashed.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True)
class CompactRange:
    """A tree of `size` leaves by the roots of its full subtrees, largest first.

    The subtrees are those that the binary digits of `size` name. It is all that appending and the root need.
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def append(self, leaf: bytes) -> CompactRange:
        """Return the tree with one more leaf, given by its hash."""
        return self.extend((leaf,))

    def extend(self, leaves: Sequence[bytes]) -> CompactRange:
        """Return the tree with more leaves, given by their hashes."""
        size, peaks = self.size, list(self.peaks)
        for leaf in leaves:
            merged, ones = leaf, size
            while ones & 1:  # as many peaks merge as the size so far has trailing one bits
                merged = node_hash(peaks.pop(), merged)
                ones >>= 1
            peaks.append(merged)
            size += 1
        return CompactRange(size, tuple(peaks))

    def root(self) -> bytes:
        """Return the tree's head, MTH of RFC 6962."""
        if not self.peaks:
            return EMPTY_ROOT
        root = self.peaks[-1]
        for peak in self.peaks[-2::-1]:
            root = node_hash(peak, root)
        return root


class Tree:
    """A whole tree with all its nodes: its head, and the proof of each leaf, at a hash a leaf."""

    __slots__ = ("_levels", "size")

    def __init__(self, leaves: Sequence[bytes]) -> None:
        """Build the tree over leaf hashes.

        Level by level, nodes are paired from the left and an odd last one moves up as it is: that is the tree of RFC
        6962, whose left part is always the largest full one.
        """
        self.size = len(leaves)
        level = list(leaves)
        self._levels = [level]
        while len(level) > 1:
            above = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
            if len(level) & 1:
                above.append(level[-1])
            self._levels.append(above)
            level = above

    @property
    def root(self) -> bytes:
        """The tree's head."""
        return self._levels[-1][0] if self.size else EMPTY_ROOT

    def path(self, index: int) -> tuple[bytes, ...]:
        """Return the audit path of leaf `index` (RFC 6962, section 2.1.1), nearest sibling first.

        Raises:
            ProofInvalid: there is no such leaf.
        """
        _check_index(index, self.size)
        path = []
        for level in self._levels[:-1]:
            if index ^ 1 < len(level):
                path.append(level[index ^ 1])
            index >>= 1
        return tuple(path)


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Return the head of the tree over leaf hashes."""
    return CompactRange().extend(leaves).root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the audit path of one leaf; see `Tree.path`.

    Args:
        leaves: the leaf hashes of the whole tree.
        index: from 0.

    Raises:
        ProofInvalid: there is no such leaf.
    """
    return Tree(leaves).path(index)


def path_length(index: int, size: int) -> int:
    """Return how many hashes the audit path of leaf `index` in a tree of `size` has.

    Raises:
        ProofInvalid: there is no such leaf.
    """
    _check_index(index, size)
    length, last = 0, size - 1
    while last:
        length += index ^ 1 <= last
        index >>= 1
        last >>= 1
    return length


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the head that `path` leads to from a leaf (RFC 9162, section 2.1.3.2).

    Args:
        leaf: the leaf's hash.
        index: from 0.
        size: leaves in the tree.
        path: what `Tree.path` returned.

    Raises:
        ProofInvalid: there is no such leaf, or the path is not as long as that of this leaf.
    """
    _check_index(index, size)
    last, hashed = size - 1, leaf
    for sibling in path:
        while index == last and not index & 1:  # an odd last node, which has no sibling, moves up as it is
            if not last:
                raise ProofInvalid(f"the inclusion proof of entry {index} is too long")
            index >>= 1
            last >>= 1
        pair = b"\x01" + sibling + hashed if index & 1 else b"\x01" + hashed + sibling
        hashed = hashlib.sha256(pair).digest()  # `node_hash`, without the call: this is done for every message
        index >>= 1
        last >>= 1
    if last:
        raise ProofInvalid("the inclusion proof is too short")
    return hashed


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that a leaf stands at `index` of the tree with `size` leaves and head `root`.

    Args:
        leaf: the leaf's hash.
        index: from 0.
        size: leaves in the tree.
        proof: what `inclusion_proof` returned.
        root: the tree's head.

    Raises:
        ProofInvalid: it does not.
    """
    if root_from_path(leaf, index, size, proof) != root:
        raise ProofInvalid(f"the inclusion proof of entry {index} leads to another tree head")


def _check_index(index: int, size: int) -> None:
    if not 0 <= index < size:
        raise ProofInvalid(f"there is no entry {index} in a tree of {size}")
