"""Fuzz target: what a peer can send about a bulk transfer, up to the rows themselves.

`one` takes any bytes: frames for both state machines, a manifest, an Arrow IPC stream. Anything but an error of ours
is a finding.

Run: python -m fuzz.run bulk
"""

from __future__ import annotations

import io
from contextlib import suppress

import pyarrow as pa
import pyarrow.ipc

from comity.errors import ComityError
from comity.v1.bulk_pb2 import BulkAnswer, BulkField, BulkManifest, BulkProgress
from comity_node.bulk.ipc import StreamReader, read_head
from comity_node.protocol.bulk import Frame, Receiver, Sender
from comity_node.protocol.bulk_events import Offered
from comity_node.protocol.bulk_manifest import Column, Geometry, parse_manifest
from comity_node.protocol.framing import encode_frame

_GEOMETRY = Geometry(1000, 64)
_COLUMNS = (Column("x", "int64"), Column("s", "string"))


def one(data: bytes) -> None:
    """Feed one input; the first byte chooses how it is cut and what it is taken for."""
    how, rest = data[:1] or b"\0", data[1:]
    piece = 1 + how[0] % 61
    _receive(rest, piece)
    _send(rest, piece)
    with suppress(ComityError):
        manifest = parse_manifest(rest)
        assert manifest.geometry.chunks >= 1
        assert parse_manifest(manifest.encode()) == manifest
    with suppress(ComityError):
        head = read_head(rest)
        assert head.body >= 0
        assert head.rows >= 0
    with suppress(ComityError):
        for batch in StreamReader(io.BytesIO(rest).read, _COLUMNS, 1000).batches():
            assert batch.num_rows <= 1000
            batch.to_pylist()


def _receive(data: bytes, piece: int) -> None:
    receiver = Receiver()
    with suppress(ComityError):
        for at in range(0, len(data), piece):
            for event in receiver.receive_data(data[at : at + piece]):
                if isinstance(event, Offered):
                    receiver.answer(_GEOMETRY, piece % 17, leaves_known=piece % 2 == 0)


def _send(data: bytes, piece: int) -> None:
    sender = Sender(_GEOMETRY)
    sender.offer(b"manifest")
    with suppress(ComityError):
        for at in range(0, len(data), piece):
            sender.receive_data(data[at : at + piece])


def _seeds() -> tuple[bytes, ...]:
    manifest = BulkManifest(
        id=bytes(16), organization="a.example", to_organization="b.example", dataset="d", kind="synthetic",
        purpose="p", fields=[BulkField(name="x", type="int64")], rows=3, bytes=100_000, chunk_bytes=65_536,
        root=bytes(32), policy_digest=bytes(32), issued_ms=1, expires_ms=2,
    ).SerializeToString()  # fmt: skip
    frames = [
        encode_frame(Frame.MANIFEST, manifest),
        encode_frame(Frame.LEAVES, bytes(512)),
        *(encode_frame(Frame.CHUNK, bytes(64)) for _ in range(3)),
        encode_frame(Frame.ANSWER, BulkAnswer(next_chunk=2).SerializeToString()),
        encode_frame(Frame.PROGRESS, BulkProgress(stored=1).SerializeToString()),
        encode_frame(Frame.RECEIPT, b"receipt"),
    ]
    sink = io.BytesIO()
    batch = pa.record_batch({"x": pa.array([1, 2, 3]), "s": pa.array(["a", None, "c"])})
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return tuple(b"\x3c" + each for each in (manifest, b"".join(frames), b"".join(frames[5:]), sink.getvalue()))


#: A manifest, the frames of either side, and a stream of rows.
SEEDS = _seeds()
