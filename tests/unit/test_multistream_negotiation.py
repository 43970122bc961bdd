"""The agreement on a stream's protocol: bounded, and without a round trip before the first bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing

from comity.errors import FrameTooLarge, LinkClosed, PeerUnreachable, ProtocolError, UnexpectedMessage
from comity_node.transport.base import Priority
from comity_node.transport.multistream import HEADER, MAX_MESSAGE, MAX_MESSAGES, Listener, Opener, encode
from comity_node.transport.upgrade import agree, propose

ECHO = "/echo/1"
NA = encode("na")


@dataclass
class MemoryStream:
    """A `ByteStream` in memory that counts what is received."""

    stream: Any
    remote_peer: str = "somebody"
    received: int = 0
    was_reset: bool = False
    is_closed: bool = False
    priority: Priority = Priority.WORK

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = bytes(await self.stream.receive_some(max_bytes))
        self.received += len(data)
        return data

    async def send(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise LinkClosed("the stream is gone") from error

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def aclose(self) -> None:
        self.is_closed = True
        await self.stream.aclose()

    def reset(self) -> None:
        self.was_reset = True

    def set_priority(self, priority: Priority) -> None:
        self.priority = priority


def stream_pair() -> tuple[MemoryStream, MemoryStream]:
    here, there = trio.testing.memory_stream_pair()
    return MemoryStream(here), MemoryStream(there)


def test_what_is_sent_does_not_wait_for_the_answer() -> None:
    async def main() -> None:
        here, there = stream_pair()
        proposed = await propose(here, ECHO)
        await proposed.send(b"first")  # before the other end has looked
        assert await agree(there, [ECHO]) == ECHO
        assert await there.receive() == b"first"
        await there.send(b"answer")
        assert await proposed.receive(3) == b"ans"
        assert await proposed.receive() == b"wer"
        assert here.received == len(encode(HEADER) + encode(ECHO)) + len(b"answer")

    trio.run(main)


def test_a_refusal_comes_with_the_first_receive() -> None:
    async def main() -> None:
        for wait in ("confirmed", "receive"):
            here, there = stream_pair()
            proposed = await propose(here, ECHO)
            await there.send(encode(HEADER) + NA)
            for _ in range(2):
                with pytest.raises(PeerUnreachable, match=f"somebody does not speak {ECHO}"):
                    await getattr(proposed, wait)()
            assert here.was_reset

    trio.run(main)


def test_who_listens_refuses_until_it_is_asked_for_what_it_speaks() -> None:
    async def main() -> None:
        here, there = stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agree, there, [ECHO])
            await here.send(encode(HEADER) + encode("/other/1") + encode("ls") + encode(ECHO))
            answer = b""
            while len(answer) < 20 + 4 + 4 + 9:
                answer += await here.receive()
            assert answer == encode(HEADER) + NA + NA + encode(ECHO)

    trio.run(main)


@pytest.mark.parametrize("follows", [b"\x00\x00garbage", b"\xff\xff\xff\xff\xff", b"\x05abcde"])
def test_a_refusal_reaches_an_opener_that_has_gone_on(follows: bytes) -> None:
    async def main() -> None:
        here, there = stream_pair()
        proposed = await propose(here, "/other/1")
        await proposed.send(follows)
        with pytest.raises(ProtocolError):
            await agree(there, [ECHO])
        assert there.is_closed  # a reset, which may overtake the refusal, has no effect any more
        with pytest.raises(PeerUnreachable):
            await proposed.receive()

    trio.run(main)


def test_a_confirmed_stream_is_only_passed_through() -> None:
    async def main() -> None:
        here, there = stream_pair()
        proposed = await propose(here, ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agree, there, [ECHO])
            await proposed.confirmed()
            await proposed.confirmed()
        proposed.set_priority(Priority.BULK)
        assert (here.priority, proposed.remote_peer) == (Priority.BULK, "somebody")
        await proposed.aclose()
        assert await there.receive() == b""
        proposed.reset()
        assert here.was_reset

    trio.run(main)


@pytest.mark.parametrize("end", ["send_eof", "aclose"])
def test_only_the_end_waits_for_the_answer(end: str) -> None:
    """js-libp2p resets a stream whose proposal, bytes and end it reads at once."""

    async def main() -> None:
        here, there = stream_pair()
        proposed = await propose(here, ECHO)
        await proposed.send(b"all of it")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(getattr(proposed, end))
            if end == "send_eof":
                nursery.start_soon(proposed.receive)  # both wait for the one answer
            await trio.testing.wait_all_tasks_blocked()
            assert await agree(there, [ECHO]) == ECHO
            assert await there.receive() == b"all of it"
            assert await there.receive() == b""
            await there.send_eof()

    trio.run(main)


def test_a_stream_closes_without_an_answer_in_the_end() -> None:
    async def main() -> None:
        began = trio.current_time()
        here, _ = stream_pair()
        await (await propose(here, ECHO)).aclose()
        assert here.is_closed
        assert trio.current_time() == pytest.approx(began + 10)
        here, there = stream_pair()
        proposed = await propose(here, ECHO)
        await there.send(encode(HEADER) + NA)
        await proposed.aclose()
        assert here.is_closed
        assert trio.current_time() == pytest.approx(began + 10)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_cancelled_wait_for_the_answer_loses_nothing() -> None:
    async def main() -> None:
        here, there = stream_pair()
        proposed = await propose(here, ECHO)
        answer = encode(HEADER) + encode(ECHO) + b"data"
        for at in range(len(answer)):
            with trio.move_on_after(0.001):
                await proposed.confirmed()
            await there.send(answer[at : at + 1])
        assert await proposed.receive() == b"data"

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("said", [b"", encode(HEADER)])
def test_a_stream_that_ends_instead_of_an_answer_is_closed(said: bytes) -> None:
    async def main() -> None:
        here, there = stream_pair()
        proposed = await propose(here, ECHO)
        await there.send(said)
        await there.send_eof()
        with pytest.raises(LinkClosed, match="before it agreed"):
            await proposed.receive()
        here, there = stream_pair()
        await here.send(said)
        await here.send_eof()
        with pytest.raises(LinkClosed, match="ended the stream"):
            await agree(there, [ECHO])

    trio.run(main)


@pytest.mark.parametrize("said", [encode(ECHO), encode(HEADER) + encode("/other/1"), b"\x00" * 40, b"\xff" * 40])
def test_another_answer_is_none(said: bytes) -> None:
    async def main() -> None:
        here, there = stream_pair()
        proposed = await propose(here, ECHO)
        await there.send(said)
        with pytest.raises(ProtocolError):
            await proposed.receive()
        assert here.was_reset

    trio.run(main)


BAD = {
    "a gigabyte": b"\x80\x80\x80\x80\x04",
    "an endless length": b"\xff" * 30,
    "too long by one": encode(HEADER) + b"\x81\x08",
    "nothing": encode(HEADER) + b"\x00",
    "a length in two forms": b"\x93\x00" + encode(HEADER)[1:],
    "no newline": encode(HEADER) + b"\x05/echo",
    "no text": encode(HEADER) + b"\x03\xff\xff\n",
    "another version": encode("/multistream/2.0.0"),
    "no version": encode(ECHO),
    "too many": encode(HEADER) + encode("/x") * MAX_MESSAGES,
}


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("name", BAD)
def test_malformed_or_too_much_is_refused(name: str) -> None:
    async def main() -> None:
        here, there = stream_pair()
        await here.send(BAD[name])
        with pytest.raises(ProtocolError):
            await agree(there, [ECHO])
        assert there.received <= 1024

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_negotiation_of_a_stream_costs_a_kilobyte() -> None:
    async def main() -> None:
        here, there = stream_pair()
        await here.send(encode(HEADER) + encode("/" + "x" * 500) * 3)
        with pytest.raises(FrameTooLarge, match="more than 1024 bytes"):
            await agree(there, [ECHO])
        assert there.received <= 1024

    trio.run(main)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("end", [Listener([ECHO]), Opener([ECHO])], ids=["listener", "opener"])
def test_a_length_is_refused_before_its_message_comes(end: Listener | Opener) -> None:
    end.receive(encode(HEADER))
    with pytest.raises(FrameTooLarge):
        end.receive((MAX_MESSAGE + 1).to_bytes(1, "big") if MAX_MESSAGE < 127 else b"\x81\x08")


def test_the_second_proposal_follows_a_refusal() -> None:
    opener = Opener(["/a", "/b"])
    assert opener.start() == encode(HEADER) + encode("/a")
    assert opener.receive(encode(HEADER) + NA) == encode("/b")
    assert (opener.proposed, opener.chosen, opener.refused) == ("/b", None, False)
    assert opener.receive(encode("/b") + b"rest") == b""
    assert (opener.chosen, opener.rest(), opener.wanted) == ("/b", b"rest", 0)
    opener = Opener(["/a", "/b"])
    opener.receive(encode(HEADER) + NA + NA)
    assert (opener.chosen, opener.refused, opener.wanted) == (None, True, 0)


def test_an_answer_to_what_was_not_asked_is_unexpected() -> None:
    opener = Opener(["/a", "/b"])
    with pytest.raises(UnexpectedMessage):
        opener.receive(encode(HEADER) + encode("/b"))


@pytest.mark.parametrize("name", ["", "a\nb", "x" * MAX_MESSAGE])
def test_what_is_no_protocol_name_is_not_proposed(name: str) -> None:
    with pytest.raises(ValueError, match="no protocol name"):
        Opener([name])


@pytest.mark.parametrize("count", [0, MAX_MESSAGES])
def test_as_many_are_proposed_as_are_answered(count: int) -> None:
    with pytest.raises(ValueError, match="between one and"):
        Opener(["/x"] * count)
