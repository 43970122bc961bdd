"""The Merkle tree of RFC 6962, section 2.1 (the same in RFC 9162), over SHA-256.

The tree over n leaves is kept as a *compact range*: the roots of the full subtrees that n's binary digits name, largest
first. It is all that appending and the root need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from comity.errors import AuditBroken

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf: SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True)
class CompactRange:
    """A tree of `size` leaves by the roots of its full subtrees, largest first."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def append(self, leaf: bytes) -> CompactRange:
        """Return the tree with one more leaf, given by its hash."""
        peaks = list(self.peaks)
        merged = leaf
        # As many peaks merge as the old size has trailing one bits.
        for _ in range((~self.size & (self.size + 1)).bit_length() - 1):
            merged = node_hash(peaks.pop(), merged)
        return CompactRange(self.size + 1, (*peaks, merged))

    def root(self) -> bytes:
        """Return the tree's head, MTH of RFC 6962."""
        if not self.peaks:
            return EMPTY_ROOT
        root = self.peaks[-1]
        for peak in self.peaks[-2::-1]:
            root = node_hash(peak, root)
        return root


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Return the head of the tree over leaf hashes."""
    tree = CompactRange()
    for leaf in leaves:
        tree = tree.append(leaf)
    return tree.root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the audit path of leaf `index` (RFC 6962, section 2.1.1), nearest sibling first.

    Args:
        leaves: the leaf hashes of the whole tree.
        index: from 0.

    Raises:
        AuditBroken: there is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise AuditBroken(f"there is no entry {index} in a tree of {len(leaves)}")
    path: list[bytes] = []
    start, end = 0, len(leaves)
    while end - start > 1:
        middle = start + _largest_power_below(end - start)
        if index < middle:
            path.append(root_of(leaves[middle:end]))
            end = middle
        else:
            path.append(root_of(leaves[start:middle]))
            start = middle
    return tuple(reversed(path))


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that a leaf stands at `index` of the tree with `size` leaves and head `root` (RFC 9162, section 2.1.3.2).

    Args:
        leaf: the leaf's hash.
        index: from 0.
        size: leaves in the tree.
        proof: what `inclusion_proof` returned.
        root: the tree's head.

    Raises:
        AuditBroken: it does not.
    """
    if not 0 <= index < size:
        raise AuditBroken(f"there is no entry {index} in a tree of {size}")
    position, last, hashed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise AuditBroken("the inclusion proof is too long", index=index)
        if position & 1 or position == last:
            hashed = node_hash(sibling, hashed)
            while position and not position & 1:
                position >>= 1
                last >>= 1
        else:
            hashed = node_hash(hashed, sibling)
        position >>= 1
        last >>= 1
    if last != 0:
        raise AuditBroken("the inclusion proof is too short", index=index)
    if hashed != root:
        raise AuditBroken("the inclusion proof leads to another tree head", index=index)


def _largest_power_below(count: int) -> int:
    """Return the largest power of two that is smaller than `count` (at least 2)."""
    return 1 << ((count - 1).bit_length() - 1)
