"""A bulk transfer as two state machines with no input or output: bytes in, events out.

Both speak frames of `protocol.framing`'s form: a 32-bit big-endian length, a type byte, a payload.

    sender                                   receiver
    MANIFEST  signed, before anything else ->
                                          <- ANSWER    from which chunk to go on, or
                                          <- REFUSAL   why not, or
                                          <- RECEIPT   of what it has had all along
    LEAVES    the chunks' digests         ->            (unless the receiver holds them)
    CHUNK     one after another           ->
                                          <- PROGRESS  now and then
                                          <- RECEIPT   signed, when all is checked and journaled
    ABORT     code and reason, from either side, at any time

A chunk carries no number: they come in order from the one that the answer named. Each frame's length is compared with
what the state allows before anything is allocated for it; a chunk has exactly the length that the manifest gives it,
so a sender can send not one byte more than it declared (S7). Whether a chunk is the right one is the shell's to check,
against leaves that it has checked against the signed root.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum, IntEnum, auto
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from comity.errors import FrameTooLarge, LinkClosed, ProtocolError, UnexpectedMessage
from comity.v1.bulk_pb2 import BulkAbort, BulkAnswer, BulkProgress, BulkRefusal
from comity_node.protocol.bulk_events import (
    Aborted,
    ChunkReceived,
    Declined,
    Granted,
    LeavesReceived,
    Offered,
    Progressed,
    Receipted,
    ReceiverEvent,
    SenderEvent,
)
from comity_node.protocol.bulk_manifest import Geometry
from comity_node.protocol.framing import encode_frame

#: Name of the tunnel on which transfers run.
TUNNEL: Final = "bulk/1"
LEAF_BYTES: Final = 32
#: Digests in one frame.
LEAVES_PER_FRAME: Final = 2048

_MAX_MANIFEST = 512 * 1024
_MAX_SMALL = 8 * 1024
_MAX_TEXT = 512
_MAX_CODE = 64
_MAX_RULE = 128
_MAX_RULES = 16
_POOL = 4
_HEAD = struct.Struct(">IB")

_M = TypeVar("_M", bound=Message)


class Frame(IntEnum):
    """The type byte."""

    MANIFEST = 1
    ANSWER = 2
    REFUSAL = 3
    LEAVES = 4
    CHUNK = 5
    PROGRESS = 6
    RECEIPT = 7
    ABORT = 8


class State(Enum):
    """Where a transfer is. The receiver passes through all but SENT, the sender's word for CHECKING."""

    START = auto()
    OFFERED = auto()
    LEAVES = auto()
    CHUNKS = auto()
    CHECKING = auto()
    ENDED = auto()


#: What each side may be sent, and the largest payload of it; the length of CHUNK and LEAVES is the state's.
_TO_RECEIVER: Final[Mapping[tuple[State, int], int]] = {
    (State.START, Frame.MANIFEST): _MAX_MANIFEST,
    (State.LEAVES, Frame.LEAVES): LEAVES_PER_FRAME * LEAF_BYTES,
    (State.CHUNKS, Frame.CHUNK): 0,
    **{(state, Frame.ABORT): _MAX_SMALL for state in State if state is not State.ENDED},
}
_TO_SENDER: Final[Mapping[tuple[State, int], int]] = {
    (State.OFFERED, Frame.ANSWER): _MAX_SMALL,
    (State.OFFERED, Frame.REFUSAL): _MAX_SMALL,
    (State.OFFERED, Frame.RECEIPT): _MAX_SMALL,
    (State.CHECKING, Frame.RECEIPT): _MAX_SMALL,
    **{(state, Frame.PROGRESS): _MAX_SMALL for state in (State.LEAVES, State.CHUNKS, State.CHECKING)},
    **{(state, Frame.ABORT): _MAX_SMALL for state in State if state is not State.ENDED},
}


class FrameReader:
    """Cuts bytes into frames; each payload is gathered in one buffer of its declared length.

    Args:
        admit: called with type and length as soon as both are there; returns the buffer to fill (exactly as long), or
            raises to refuse the frame.
    """

    __slots__ = ("_admit", "_buffer", "_filled", "_head", "_kind")

    def __init__(self, admit: Callable[[int, int], bytearray]) -> None:
        self._admit = admit
        self._head = bytearray()
        self._kind = 0
        self._buffer: bytearray | None = None
        self._filled = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytearray]]:
        """Yield the frames that are complete with `data`; go through all of them before feeding more.

        Raises:
            ProtocolError: an empty frame, or whatever `admit` raised.
        """
        view = memoryview(data)
        while view:
            if self._buffer is None:
                view = self._read_head(view)
                if self._buffer is None:
                    return
            if view:
                count = min(len(view), len(self._buffer) - self._filled)
                self._buffer[self._filled : self._filled + count] = view[:count]
                self._filled += count
                view = view[count:]
            if self._filled == len(self._buffer):
                done, self._buffer = self._buffer, None
                yield self._kind, done

    def _read_head(self, view: memoryview) -> memoryview:
        missing = _HEAD.size - len(self._head)
        self._head += view[:missing]
        if len(self._head) == _HEAD.size:
            length, self._kind = _HEAD.unpack(self._head)
            self._head.clear()
            if length == 0:
                raise ProtocolError("a frame without a type")
            self._buffer, self._filled = self._admit(self._kind, length - 1), 0
        return view[missing:]


class Receiver:
    """The receiver's side. After an error nothing more can be done with it."""

    def __init__(self) -> None:
        self.state = State.START
        self._reader = FrameReader(self._admit)
        self._geometry = Geometry(0, 1)
        self._next = 0
        self._leaves = bytearray()
        self._pool: list[bytearray] = []

    def receive_data(self, data: bytes) -> list[ReceiverEvent]:
        """Take bytes from the sender; b"" is the end of them.

        Raises:
            LinkClosed: they ended before the transfer did.
            ProtocolError: the sender breaks the protocol: a frame that this state does not know, or of a wrong length.
        """
        if not data and self.state is not State.ENDED:
            raise LinkClosed("the sender broke off; what is verified is kept, and the transfer can be resumed")
        events = (self._event(kind, payload) for kind, payload in self._reader.feed(data))
        return [event for event in events if event is not None]

    def answer(self, geometry: Geometry, next_chunk: int, *, leaves_known: bool) -> bytes:
        """Return the frame that takes the transfer, from `next_chunk` on."""
        self._expect(State.OFFERED)
        self._geometry, self._next = geometry, next_chunk
        self.state = self._after_leaves() if leaves_known else State.LEAVES
        return _encode(Frame.ANSWER, BulkAnswer(next_chunk=next_chunk, leaves_known=leaves_known))

    def refuse(self, code: str, reason: str, rules: Sequence[str] = (), retry_after_ms: int = 0) -> bytes:
        """Return the frame that does not take the transfer."""
        self._expect(State.OFFERED)
        self.state = State.ENDED
        known = [rule[:_MAX_RULE] for rule in rules[:_MAX_RULES]]
        refusal = BulkRefusal(
            code=code[:_MAX_CODE], reason=reason[:_MAX_TEXT], rules=known, retry_after_ms=retry_after_ms
        )
        return _encode(Frame.REFUSAL, refusal)

    def progress(self, stored: int, checked: int) -> bytes:
        """Return the frame that says how far it is."""
        self._expect(State.LEAVES, State.CHUNKS, State.CHECKING)
        return _encode(Frame.PROGRESS, BulkProgress(stored=stored, checked=checked))

    def receipt(self, envelope: bytes) -> bytes:
        """Return the frame with the signed receipt, the last one."""
        self._expect(State.OFFERED, State.CHECKING)
        self.state = State.ENDED
        return encode_frame(Frame.RECEIPT, envelope)

    def abort(self, code: str, reason: str) -> bytes:
        """Return the frame that ends the transfer; b"" if it is over already."""
        return _abort(self, code, reason)

    def recycle(self, buffer: bytearray) -> None:
        """Give back the buffer of a chunk."""
        if len(self._pool) < _POOL:
            self._pool.append(buffer)

    def _admit(self, kind: int, length: int) -> bytearray:
        limit = _limit(_TO_RECEIVER, self.state, kind)
        if kind == Frame.CHUNK:
            wanted = self._geometry.size(self._next)
            if length != wanted:
                raise ProtocolError(f"chunk {self._next} has {length} bytes instead of {wanted}")
            return self._buffer(wanted)
        if kind == Frame.LEAVES:
            missing = self._geometry.chunks * LEAF_BYTES - len(self._leaves)
            if not 0 < length <= min(limit, missing) or length % LEAF_BYTES:
                raise ProtocolError(f"{length} bytes of digests; at most {min(limit, missing)} belong here")
        elif length > limit:
            raise FrameTooLarge(f"a frame of {length} bytes is over the limit of {limit}")
        return bytearray(length)

    def _buffer(self, size: int) -> bytearray:
        while self._pool:
            buffer = self._pool.pop()
            if len(buffer) == size:
                return buffer
        return bytearray(size)

    def _event(self, kind: int, payload: bytearray) -> ReceiverEvent | None:
        if kind == Frame.CHUNK:
            index, self._next = self._next, self._next + 1
            if self._next == self._geometry.chunks:
                self.state = State.CHECKING
            return ChunkReceived(index, payload)
        if kind == Frame.MANIFEST:
            self.state = State.OFFERED
            return Offered(bytes(payload))
        if kind == Frame.ABORT:
            return _aborted(self, payload)
        return self._leaves_came(payload)

    def _leaves_came(self, payload: bytearray) -> LeavesReceived | None:
        self._leaves += payload
        if len(self._leaves) < self._geometry.chunks * LEAF_BYTES:
            return None
        self.state = self._after_leaves()
        return LeavesReceived(bytes(self._leaves))

    def _after_leaves(self) -> State:
        return State.CHUNKS if self._next < self._geometry.chunks else State.CHECKING

    def _expect(self, *states: State) -> None:
        if self.state not in states:
            raise UnexpectedMessage(f"the transfer is in the state {self.state.name.lower()}")


class Sender:
    """The sender's side. After an error nothing more can be done with it.

    Args:
        geometry: of the stream that is sent.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.state = State.START
        self._geometry = geometry
        self._reader = FrameReader(self._admit)
        self._next = 0

    def offer(self, envelope: bytes) -> bytes:
        """Return the frame with the signed manifest, the first one."""
        self._expect(State.START)
        self.state = State.OFFERED
        return encode_frame(Frame.MANIFEST, envelope)

    def leaves(self, leaves: bytes) -> bytes:
        """Return the frames with all digests of the chunks, joined in `leaves`."""
        self._expect(State.LEAVES)
        self.state = self._after_leaves()
        step = LEAVES_PER_FRAME * LEAF_BYTES
        return b"".join(encode_frame(Frame.LEAVES, leaves[at : at + step]) for at in range(0, len(leaves), step))

    def next_chunks(self, most: int) -> list[tuple[int, bytes]]:
        """Return the next chunks to send, at most so many: each one's index and the frame's bytes before its data."""
        self._expect(State.CHUNKS, State.CHECKING)
        last = min(self._next + most, self._geometry.chunks)
        found = [(index, _HEAD.pack(self._geometry.size(index) + 1, Frame.CHUNK)) for index in range(self._next, last)]
        self._next = last
        self.state = self._after_leaves()
        return found

    def receive_data(self, data: bytes) -> list[SenderEvent]:
        """Take bytes from the receiver; b"" is the end of them.

        Raises:
            LinkClosed: they ended before the transfer did.
            ProtocolError: the receiver breaks the protocol, or says what cannot be.
        """
        if not data and self.state is not State.ENDED:
            raise LinkClosed("the receiver broke off; the transfer can be resumed")
        return [self._event(kind, payload) for kind, payload in self._reader.feed(data)]

    def abort(self, code: str, reason: str) -> bytes:
        """Return the frame that ends the transfer; b"" if it is over already."""
        return _abort(self, code, reason)

    def _admit(self, kind: int, length: int) -> bytearray:
        limit = _limit(_TO_SENDER, self.state, kind)
        if length > limit:
            raise FrameTooLarge(f"a frame of {length} bytes is over the limit of {limit}")
        return bytearray(length)

    def _event(self, kind: int, payload: bytearray) -> SenderEvent:
        # A frame that was admitted may be complete only after another one has moved the state on.
        _limit(_TO_SENDER, self.state, kind)
        if kind == Frame.ANSWER:
            return self._granted(_decode(BulkAnswer(), payload))
        if kind == Frame.PROGRESS:
            return self._progressed(_decode(BulkProgress(), payload))
        if kind == Frame.ABORT:
            return _aborted(self, payload)
        self.state = State.ENDED
        if kind == Frame.RECEIPT:
            return Receipted(bytes(payload))
        refusal = _decode(BulkRefusal(), payload)
        rules = tuple(_clip(rule, _MAX_RULE) for rule in refusal.rules[:_MAX_RULES])
        return Declined(_clip(refusal.code, _MAX_CODE), _clip(refusal.reason, _MAX_TEXT), rules, refusal.retry_after_ms)

    def _granted(self, answer: BulkAnswer) -> Granted:
        if answer.next_chunk > self._geometry.chunks:
            raise ProtocolError(
                f"the receiver says that it holds {answer.next_chunk} chunks of {self._geometry.chunks}"
            )
        self._next = answer.next_chunk
        self.state = self._after_leaves() if answer.leaves_known else State.LEAVES
        return Granted(answer.next_chunk, answer.leaves_known)

    def _progressed(self, progress: BulkProgress) -> Progressed:
        if progress.stored > self._next or progress.checked > self._geometry.chunks:
            raise ProtocolError(f"the receiver says that it stored {progress.stored} chunks of {self._next}")
        return Progressed(progress.stored, progress.checked)

    def _after_leaves(self) -> State:
        return State.CHUNKS if self._next < self._geometry.chunks else State.CHECKING

    def _expect(self, *states: State) -> None:
        if self.state not in states:
            raise UnexpectedMessage(f"the transfer is in the state {self.state.name.lower()}")


def _limit(table: Mapping[tuple[State, int], int], state: State, kind: int) -> int:
    limit = table.get((state, kind))
    if limit is None:
        raise UnexpectedMessage(f"a frame of type {kind} in the state {state.name.lower()}")
    return limit


def _encode(kind: Frame, message: Message) -> bytes:
    return encode_frame(kind, message.SerializeToString())


def _decode(message: _M, payload: bytearray) -> _M:
    try:
        message.ParseFromString(bytes(payload))
    except DecodeError as error:
        raise ProtocolError(f"a {type(message).__name__} that does not parse") from error
    return message


def _abort(side: Receiver | Sender, code: str, reason: str) -> bytes:
    if side.state is State.ENDED:
        return b""
    side.state = State.ENDED
    return _encode(Frame.ABORT, BulkAbort(code=code[:_MAX_CODE], reason=reason[:_MAX_TEXT]))


def _aborted(side: Receiver | Sender, payload: bytearray) -> Aborted:
    side.state = State.ENDED
    abort = _decode(BulkAbort(), payload)
    return Aborted(_clip(abort.code, _MAX_CODE), _clip(abort.reason, _MAX_TEXT))


def _clip(text: str, most: int) -> str:
    """Return a peer's words, cut to what journals, logs and terminals can use, and on one line."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:most])
