"""The two state machines of a bulk transfer: what each state takes, and what it refuses before it allocates."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from comity.errors import FrameTooLarge, LinkClosed, ProtocolError, UnexpectedMessage
from comity.v1.bulk_pb2 import BulkAnswer, BulkProgress
from comity_node.protocol.bulk import LEAF_BYTES, Frame, Receiver, Sender, State
from comity_node.protocol.bulk_events import (
    Aborted,
    ChunkReceived,
    Declined,
    Granted,
    LeavesReceived,
    Offered,
    Progressed,
    Receipted,
)
from comity_node.protocol.bulk_manifest import Geometry
from comity_node.protocol.framing import encode_frame

GEOMETRY = Geometry(25, 10)
LEAVES = b"L" * (3 * LEAF_BYTES)
CHUNKS = [b"a" * 10, b"b" * 10, b"c" * 5]


def offered() -> Receiver:
    receiver = Receiver()
    assert receiver.receive_data(encode_frame(Frame.MANIFEST, b"m")) == [Offered(b"m")]
    return receiver


def taking(next_chunk: int = 0, *, leaves_known: bool = True) -> Receiver:
    receiver = offered()
    receiver.answer(GEOMETRY, next_chunk, leaves_known=leaves_known)
    return receiver


def granted(next_chunk: int = 0, *, leaves_known: bool = True) -> Sender:
    sender = Sender(GEOMETRY)
    sender.offer(b"m")
    answer = BulkAnswer(next_chunk=next_chunk, leaves_known=leaves_known)
    found = sender.receive_data(encode_frame(Frame.ANSWER, answer.SerializeToString()))
    assert found == [Granted(next_chunk, leaves_known)]
    return sender


def test_the_whole_way() -> None:
    sender, receiver = Sender(GEOMETRY), Receiver()
    assert receiver.receive_data(sender.offer(b"manifest")) == [Offered(b"manifest")]
    assert sender.receive_data(receiver.answer(GEOMETRY, 0, leaves_known=False)) == [Granted(0, False)]
    assert receiver.receive_data(sender.leaves(LEAVES)) == [LeavesReceived(LEAVES)]
    wire = b"".join(head + CHUNKS[index] for index, head in sender.next_chunks(2))
    assert receiver.receive_data(wire) == [
        ChunkReceived(0, bytearray(CHUNKS[0])),
        ChunkReceived(1, bytearray(CHUNKS[1])),
    ]
    assert sender.receive_data(receiver.progress(2, 0)) == [Progressed(2, 0)]
    ((index, head),) = sender.next_chunks(2)
    assert receiver.receive_data(head + CHUNKS[index]) == [ChunkReceived(2, bytearray(CHUNKS[2]))]
    assert sender.next_chunks(2) == []
    assert (sender.state, receiver.state) == (State.CHECKING, State.CHECKING)
    assert sender.receive_data(receiver.progress(3, 3)) == [Progressed(3, 3)]
    assert sender.receive_data(receiver.receipt(b"signed")) == [Receipted(b"signed")]
    assert (sender.state, receiver.state) == (State.ENDED, State.ENDED)
    assert sender.abort("x", "y") == receiver.abort("x", "y") == b""


def test_a_transfer_goes_on_at_the_chunk_that_is_missing() -> None:
    sender, receiver = granted(2), taking(2)
    ((index, head),) = sender.next_chunks(5)
    assert index == 2
    assert receiver.receive_data(head + CHUNKS[2]) == [ChunkReceived(2, bytearray(CHUNKS[2]))]


def test_all_that_is_left_may_be_the_check() -> None:
    sender, receiver = granted(3), taking(3)
    assert sender.next_chunks(5) == []
    assert sender.receive_data(receiver.receipt(b"signed")) == [Receipted(b"signed")]


def test_a_refusal_has_code_reason_rules_and_patience() -> None:
    receiver = offered()
    sender = Sender(GEOMETRY)
    sender.offer(b"m")
    words = receiver.refuse("policy_denied", "no" * 1000, ["rule"] * 50, 7)
    assert sender.receive_data(words) == [Declined("policy_denied", ("no" * 1000)[:512], ("rule",) * 16, 7)]


def test_either_side_ends_it_with_a_reason() -> None:
    assert taking().receive_data(granted().abort("c", "because")) == [Aborted("c", "because")]
    assert granted().receive_data(taking().abort("c", "because")) == [Aborted("c", "because")]


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    ("machine", "frame", "error"),
    [
        (Receiver, encode_frame(Frame.CHUNK, b"x"), UnexpectedMessage),
        (Receiver, encode_frame(99, b"x"), UnexpectedMessage),
        (Receiver, struct.pack(">IB", 2**31, Frame.MANIFEST), FrameTooLarge),
        (Receiver, struct.pack(">IB", 0, 0), ProtocolError),
        (offered, encode_frame(Frame.MANIFEST, b"again"), UnexpectedMessage),
        (offered, encode_frame(Frame.CHUNK, CHUNKS[0]), UnexpectedMessage),
        (taking, encode_frame(Frame.LEAVES, LEAVES), UnexpectedMessage),
        (taking, encode_frame(Frame.CHUNK, b"a" * 11), ProtocolError),
        (taking, encode_frame(Frame.CHUNK, b"a" * 9), ProtocolError),
        (taking, struct.pack(">IB", 2**31, Frame.CHUNK), ProtocolError),
        (lambda: taking(2), encode_frame(Frame.CHUNK, CHUNKS[0]), ProtocolError),
        (lambda: taking(3), encode_frame(Frame.CHUNK, CHUNKS[0]), UnexpectedMessage),
        (lambda: taking(leaves_known=False), encode_frame(Frame.CHUNK, CHUNKS[0]), UnexpectedMessage),
        (lambda: taking(leaves_known=False), encode_frame(Frame.LEAVES, LEAVES + LEAVES[:32]), ProtocolError),
        (lambda: taking(leaves_known=False), encode_frame(Frame.LEAVES, LEAVES[:33]), ProtocolError),
        (lambda: taking(leaves_known=False), encode_frame(Frame.LEAVES), ProtocolError),
        (granted, encode_frame(Frame.RECEIPT, b"too soon"), UnexpectedMessage),
        (granted, encode_frame(Frame.ANSWER, b""), UnexpectedMessage),
        (granted, encode_frame(Frame.PROGRESS, BulkProgress(stored=1).SerializeToString()), ProtocolError),
        (granted, encode_frame(Frame.PROGRESS, b"\xff"), ProtocolError),
        (granted, struct.pack(">IB", 2**31, Frame.ABORT), FrameTooLarge),
        (lambda: Sender(GEOMETRY), encode_frame(Frame.ANSWER, b""), UnexpectedMessage),
    ],
)
def test_what_a_state_does_not_know_is_refused(
    machine: Callable[[], Receiver | Sender], frame: bytes, error: type[ProtocolError]
) -> None:
    with pytest.raises(error):
        machine().receive_data(frame)


@pytest.mark.invariant("S7")
def test_a_receiver_cannot_lie_about_what_it_holds() -> None:
    sender = Sender(GEOMETRY)
    sender.offer(b"m")
    with pytest.raises(ProtocolError, match="holds 4 chunks of 3"):
        sender.receive_data(encode_frame(Frame.ANSWER, BulkAnswer(next_chunk=4).SerializeToString()))


def test_an_end_before_the_end_is_named() -> None:
    for machine in (Receiver(), offered(), taking(), granted()):
        with pytest.raises(LinkClosed, match="can be resumed"):
            machine.receive_data(b"")


def test_calls_out_of_turn_are_faults_of_the_caller() -> None:
    with pytest.raises(UnexpectedMessage):
        Receiver().answer(GEOMETRY, 0, leaves_known=True)
    with pytest.raises(UnexpectedMessage):
        taking().receipt(b"")
    with pytest.raises(UnexpectedMessage):
        Sender(GEOMETRY).next_chunks(1)
    with pytest.raises(UnexpectedMessage):
        granted().leaves(LEAVES)


def test_buffers_are_used_again() -> None:
    receiver = taking()
    (first,) = receiver.receive_data(encode_frame(Frame.CHUNK, CHUNKS[0]))
    assert isinstance(first, ChunkReceived)
    receiver.recycle(first.data)
    (second,) = receiver.receive_data(encode_frame(Frame.CHUNK, CHUNKS[1]))
    assert isinstance(second, ChunkReceived)
    assert second.data is first.data
    assert second.data == CHUNKS[1]
