"""The Merkle tree of RFC 6962, section 2.1 (the same in RFC 9162), over SHA-256.

It stands in two places: the audit log, which grows for ever, is kept as a *compact range*; a batch of envelopes that
one signature covers is built at once, as a `Tree`. Both have the same heads and the same proofs.

A tree's head says nothing about how many leaves it has: whoever signs a head signs the size beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from comity.errors import ProofInvalid

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

#: Gives the root of a full subtree by its height and its place from the left at that height.
Subtree: TypeAlias = Callable[[int, int], bytes]
#: Is told of full subtrees that came to be: their height, the place of the first one, and their roots.
Completed: TypeAlias = Callable[[int, int, Sequence[bytes]], None]


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

    def extend(self, leaves: Sequence[bytes], completed: Completed | None = None) -> CompactRange:
        """Return the tree with more leaves, given by their hashes.

        Height by height: the nodes that came to be at one are paired for the next, and an odd last one is a new peak.

        Args:
            leaves: their hashes.
            completed: is told of the full subtrees of each height from 1 on that these leaves complete.
        """
        peaks, alone, height, level = list(self.peaks), [], 0, list(leaves)
        while level:
            if completed is not None and height:
                completed(height, self.size >> height, level)
            if self.size >> height & 1:
                level.insert(0, peaks.pop())
            if len(level) & 1:
                alone.append(level.pop())
            sides = iter(level)
            level = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in zip(sides, sides, strict=True)]
            height += 1
        return CompactRange(self.size + len(leaves), (*peaks, *reversed(alone)))

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

    def consistency(self, old: int) -> tuple[bytes, ...]:
        """Return the proof that the tree of the first `old` leaves grew into this one (RFC 6962, section 2.1.2).

        Raises:
            ProofInvalid: this tree is smaller.
        """
        return tuple(self._node(start, end) for start, end in consistency_ranges(old, self.size))

    def _node(self, start: int, end: int) -> bytes:
        height = (end - start - 1).bit_length()
        return self._levels[height][start >> height]


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


def inclusion_ranges(index: int, size: int) -> list[tuple[int, int]]:
    """Return whose roots make the audit path of leaf `index`: ranges of leaves, `(first, one past the last)`.

    Raises:
        ProofInvalid: there is no such leaf.
    """
    _check_index(index, size)
    ranges, start, end = [], 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        ranges.append((middle, end) if index < middle else (start, middle))
        start, end = (start, middle) if index < middle else (middle, end)
    return ranges[::-1]


def consistency_ranges(old: int, new: int) -> list[tuple[int, int]]:
    """Return whose roots prove that a tree of `old` leaves grew into one of `new` (RFC 6962, section 2.1.2).

    Nothing is needed for the empty tree, which grows into any, nor for a tree that stayed as it was.

    Raises:
        ProofInvalid: `new` is smaller than `old`.
    """
    if not 0 <= old <= new:
        raise ProofInvalid(f"a tree of {new} did not grow from one of {old}")
    if old in (0, new):
        return []
    ranges, start, end = [], 0, new
    while old != end:
        middle = start + _split(end - start)
        ranges.append((middle, end) if old <= middle else (start, middle))
        start, end = (start, middle) if old <= middle else (middle, end)
    if start:  # else it is the old tree itself, whose root the verifier has
        ranges.append((start, end))
    return ranges[::-1]


def range_root(start: int, end: int, subtree: Subtree) -> bytes:
    """Return the root over the leaves from `start` to before `end`, a range of the two functions above.

    Args:
        start: the first leaf.
        end: one past the last leaf.
        subtree: gives the roots of the full subtrees that it is put together from, at most one of each height.
    """
    parts = []
    while start < end:
        height = (end - start).bit_length() - 1
        parts.append(subtree(height, start >> height))
        start += 1 << height
    root = parts[-1]
    for part in parts[-2::-1]:
        root = node_hash(part, root)
    return root


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of `new` leaves begins with the tree of `old` leaves (RFC 9162, section 2.1.4.2).

    Args:
        old: leaves of the old tree.
        old_root: its head.
        new: leaves of the new tree.
        new_root: its head.
        proof: what `Tree.consistency` returned.

    Raises:
        ProofInvalid: it does not, or the proof is no proof of it.
    """
    if len(proof) != len(consistency_ranges(old, new)):
        raise ProofInvalid(f"the consistency proof from {old} to {new} leaves is too short or too long")
    if old in (0, new):
        if old_root != (new_root if old else EMPTY_ROOT):
            raise ProofInvalid(f"two trees of {old} leaves have different heads")
        return
    at, last = old - 1, new - 1
    while at & 1:  # up to the largest full subtree that ends where the old tree does
        at, last = at >> 1, last >> 1
    steps = list(proof) if at else [old_root, *proof]  # `at` is 0 if that is the old tree itself
    before = after = steps[0]
    for step in steps[1:]:
        if at & 1 or at == last:
            before, after = node_hash(step, before), node_hash(step, after)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            after = node_hash(after, step)
        at, last = at >> 1, last >> 1
    if before != old_root or after != new_root:
        raise ProofInvalid(f"the tree of {new} leaves did not grow from the tree of {old} leaves")


def _split(size: int) -> int:
    """The largest power of two below `size`: where RFC 6962 divides a tree."""
    return 1 << (size - 1).bit_length() - 1


def _check_index(index: int, size: int) -> None:
    if not 0 <= index < size:
        raise ProofInvalid(f"there is no entry {index} in a tree of {size}")
