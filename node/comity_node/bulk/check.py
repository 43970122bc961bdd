"""The check of a complete table: the bytes on the disk against the tree, and the rows in them against what is asked.

Both in one pass: what is hashed is what is parsed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from comity.errors import ChunkInvalid
from comity.merkle import leaf_hash
from comity.trust import TrustStore
from comity_node.bulk import forms, shape
from comity_node.bulk.certified import Verifier
from comity_node.bulk.ipc import StreamReader
from comity_node.bulk.spool import PartFile, leaf_at
from comity_node.policy.model import Obligations
from comity_node.protocol.bulk_manifest import Manifest
from comity_node.validators.schema import Schema

#: Batches in one step, at most: empty ones have no bytes, and a file can be full of them.
_STEP_BATCHES: Final = 256


class VerifiedReader:
    """Reads a file from its beginning; each chunk is compared with its leaf before a byte of it is given out."""

    def __init__(self, part: PartFile, leaves: bytes, chunks: int) -> None:
        self._part, self._leaves, self._chunks = part, leaves, chunks
        self._chunk = b""
        self._at = 0
        #: Chunks that were read.
        self.done = 0

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, fewer only at the end.

        Raises:
            ChunkInvalid: a chunk is not the one that its leaf stands for.
        """
        pieces = []
        while count and (self._at < len(self._chunk) or self._next_chunk()):
            piece = self._chunk[self._at : self._at + count]
            self._at += len(piece)
            count -= len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _next_chunk(self) -> bool:
        if self.done == self._chunks:
            return False
        self._chunk, self._at = self._part.read(self.done), 0
        if leaf_hash(self._chunk) != leaf_at(self._leaves, self.done):
            raise ChunkInvalid(self.done, "on this disk")
        self.done += 1
        return True


class TableCheck:
    """Checks one table.

    Args:
        manifest: what it has to be.
        leaves: of its chunks, checked against the root.
        part: the file.
        owed: what has to hold of its rows.
        schema: of its dataset, if this node knows it.
        trust: for the proofs of certified rows.
    """

    def __init__(
        self,
        manifest: Manifest,
        leaves: bytes,
        part: PartFile,
        owed: Obligations,
        schema: Schema | None,
        trust: TrustStore,
    ) -> None:
        self._reader = VerifiedReader(part, leaves, manifest.geometry.chunks)
        self._stream = StreamReader(self._reader.read, manifest.columns, manifest.rows)
        self._certified = manifest.kind == "certified"
        self._verifier = Verifier(trust, owed, manifest.dataset, manifest.organization, manifest.to_organization)
        self._grids = shape.generalized(owed, manifest.columns)
        self._forms = forms.forms_of(owed, manifest.columns) if not self._certified else {}
        self._classes = forms.Classes(owed, manifest.columns, manifest.rows)
        self._schema = schema.without(owed.redact | shape.texts(owed)) if schema is not None else None

    @property
    def chunks(self) -> int:
        """Chunks that were read."""
        return self._reader.done

    @property
    def expire_ms(self) -> int | None:
        """When the rows must be gone by those agreements; None if none says so."""
        return self._verifier.expire_ms

    @property
    def retain_ms(self) -> int | None:
        """How long the rows may be kept by the agreements under which they were certified; None if none says so."""
        return self._verifier.retain_ms

    def steps(self, step_bytes: int) -> Iterator[int]:
        """Do the work, yielding after each `step_bytes` or so, and after some batches however small they are.

        Raises:
            ChunkInvalid: a chunk changed on the disk.
            InvalidRecord, PolicyDenied, CertificateInvalid: the rows are not what they have to be.
        """
        done = batches = 0
        for batch in self._stream.batches():
            if self._certified:
                self._verifier.check(batch)
            else:
                if self._schema is not None:
                    shape.check_schema(self._schema, batch)
                shape.verify(self._grids, batch)
                forms.verify(self._forms, batch)
            self._classes.add(batch)
            done += batch.nbytes
            batches += 1
            if self._certified or done >= step_bytes or batches == _STEP_BATCHES:
                yield self.chunks
                done = batches = 0
        self._classes.finish()
