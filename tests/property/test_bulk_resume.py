"""Broken at any byte, any number of times: what arrives in the end is what was sent, or there is a named error."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from comity.errors import ChunkInvalid, ComityError, LinkClosed, UnexpectedMessage
from comity.merkle import leaf_hash, root_of
from comity_node.protocol.bulk import LEAF_BYTES, Receiver, Sender, State
from comity_node.protocol.bulk_events import (
    ChunkReceived,
    Granted,
    LeavesReceived,
    Offered,
    Receipted,
)
from comity_node.protocol.bulk_manifest import Geometry


def split(leaves: bytes) -> list[bytes]:
    return [leaves[at : at + LEAF_BYTES] for at in range(0, len(leaves), LEAF_BYTES)]


@dataclass
class Wire:
    """One direction of one try: lets so many bytes through, then nothing; may spoil one of them."""

    budget: int
    spoil: int = -1
    passed: int = 0

    def carry(self, data: bytes) -> bytes:
        carried = bytearray(data[: max(0, self.budget - self.passed)])
        at = self.spoil - self.passed
        if 0 <= at < len(carried):
            carried[at] ^= 0x55
        self.passed += len(carried)
        return bytes(carried)


@dataclass
class Held:
    """What the receiver's disk holds between tries."""

    geometry: Geometry
    root: bytes
    leaves: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    done: bool = False


@dataclass
class Source:
    data: bytes
    chunk_bytes: int

    def __post_init__(self) -> None:
        self.geometry = Geometry(len(self.data), self.chunk_bytes)
        pieces = [self.data[at : at + self.chunk_bytes] for at in range(0, len(self.data), self.chunk_bytes)]
        self.pieces = pieces
        self.leaves = b"".join(map(leaf_hash, pieces))
        self.root = root_of(split(self.leaves))


def attempt(source: Source, held: Held, out: Wire, back: Wire, piece: int) -> list[int]:
    """One try; returns the chunks that were sent in it. Raises what either side meets."""
    sender, receiver = Sender(source.geometry), Receiver()
    sent: list[int] = []
    to_receiver, to_sender = sender.offer(b"manifest"), b""
    while True:
        to_sender += _receive(receiver, held, out.carry(to_receiver), piece)
        to_receiver = b""
        answer = back.carry(to_sender)
        if len(answer) < len(to_sender) or not answer:
            raise LinkClosed("broken")
        to_sender = b""
        for event in sender.receive_data(answer):
            if isinstance(event, Receipted):
                return sent
            if isinstance(event, Granted) and not event.leaves_known:
                to_receiver += sender.leaves(source.leaves)
        if sender.state is State.CHUNKS:
            for index, head in sender.next_chunks(2):
                sent.append(index)
                to_receiver += head + source.pieces[index]


def _receive(receiver: Receiver, held: Held, data: bytes, piece: int) -> bytes:
    """What the receiver's shell does, with a disk of lists; returns what it says."""
    said = b""
    for at in range(0, len(data), piece):
        for event in receiver.receive_data(data[at : at + piece]):
            match event:
                case Offered():
                    said += receiver.answer(held.geometry, len(held.chunks), leaves_known=bool(held.leaves))
                case LeavesReceived(leaves):
                    if root_of(split(leaves)) != held.root:
                        raise UnexpectedMessage("wrong leaves")
                    held.leaves = leaves
                case ChunkReceived(index, chunk):
                    if leaf_hash(chunk) != split(held.leaves)[index]:
                        raise ChunkInvalid(index, "here")
                    assert index == len(held.chunks)
                    held.chunks.append(bytes(chunk))
                    receiver.recycle(chunk)
                case _:
                    raise UnexpectedMessage("not now")
    if receiver.state is State.CHECKING:
        held.done = b"".join(map(leaf_hash, held.chunks)) == held.leaves
        return said + receiver.receipt(b"signed")
    return said + (receiver.progress(len(held.chunks), 0) if receiver.state is State.CHUNKS else b"")


SOURCES = st.builds(Source, st.binary(min_size=1, max_size=300), st.sampled_from([1, 7, 16, 64]))
#: For each try: bytes that pass to the receiver, and to the sender.
BREAKS = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 200)), max_size=12)


@given(SOURCES, BREAKS, st.integers(1, 64))
def test_any_breaks_then_the_same_bytes(source: Source, breaks: list[tuple[int, int]], piece: int) -> None:
    held = Held(source.geometry, source.root)
    for out, back in breaks:
        before = len(held.chunks)
        try:
            sent = attempt(source, held, Wire(out), Wire(back), piece)
        except LinkClosed:
            continue
        assert all(index >= before for index in sent), "what was verified is not sent again"
    attempt(source, held, Wire(10**9), Wire(10**9), piece)
    assert held.done
    assert b"".join(held.chunks) == source.data


@given(SOURCES, st.integers(0, 4000), st.booleans(), st.integers(1, 64))
def test_a_spoilt_byte_is_never_a_wrong_file(source: Source, spoil: int, outwards: bool, piece: int) -> None:
    held = Held(source.geometry, source.root)
    out, back = Wire(10**9, spoil if outwards else -1), Wire(10**9, -1 if outwards else spoil)
    with suppress(ComityError):
        attempt(source, held, out, back, piece)
    assert source.data.startswith(b"".join(held.chunks))
    if held.done:
        assert b"".join(held.chunks) == source.data


@given(st.binary(max_size=2000), st.integers(1, 100))
def test_any_bytes_are_events_or_an_error_with_a_name(data: bytes, piece: int) -> None:
    for machine in (Receiver(), Sender(Geometry(10, 3))):
        if isinstance(machine, Sender):
            machine.offer(b"m")
        with suppress(ComityError):
            for at in range(0, len(data), piece):
                machine.receive_data(data[at : at + piece])
