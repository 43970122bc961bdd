"""What every stream between two nodes has: the Hello exchange, signs of life, the farewell, and tunnels.

`protocol.session` builds the calls on top of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import ClassVar

from comity.errors import FrameTooLarge, LinkClosed, ProtocolError, UnexpectedMessage
from comity.v1 import link_pb2
from comity_node.protocol.framing import PREFIX_BYTES, FrameDecoder, encode_frame
from comity_node.protocol.session_codec import (
    ID,
    read_exactly,
    read_tunnel_name,
    read_verdict,
    write_verdict,
)
from comity_node.protocol.session_events import (
    Established,
    Event,
    GoingAway,
    HelloReceived,
    PingReceived,
    PongReceived,
    Refused,
    TunnelAsked,
    TunnelOpened,
)
from comity_node.protocol.session_limits import SessionLimits
from comity_node.protocol.session_states import HANDSHAKE, TRANSITIONS, Frame, Role, Service, State, Step, staying

#: Takes a frame's payload: the buffer, and where it begins and ends there.
Reader = Callable[..., Event | None]


class SessionCore:
    """One end of one stream, without calls."""

    __slots__ = (
        "_decoder",
        "_out",
        "_ping",
        "_reads_frames",
        "_role",
        "_state",
        "_stays",
        "_table",
        "frames_received",
        "frames_sent",
        "limits",
        "pending_bytes",
    )

    def __init__(self, role: Role, service: Service, limits: SessionLimits | None = None) -> None:
        """Start a session in which nothing has been said."""
        self.limits = limits or SessionLimits()
        #: Bytes that wait in `data_to_send`.
        self.pending_bytes = 0
        #: Frames so far.
        self.frames_sent = 0
        self.frames_received = 0
        self._role = role
        self._table = TRANSITIONS[role, service]
        self._decoder = FrameDecoder(self.limits.max_hello)
        self._out: deque[bytes] = deque()
        self._ping: int | None = None
        self._enter(State.START)

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._state

    # What we say.

    def greet(self, hello: bytes) -> None:
        """Present ourselves; as the acceptor this also says that we accept the opener.

        Args:
            hello: an encoded `comity.v1.Hello`.

        Raises:
            FrameTooLarge: the Hello is over `max_hello`.
        """
        if 1 + len(hello) > self.limits.max_hello:
            raise FrameTooLarge(f"our Hello of {len(hello)} bytes is over the limit of {self.limits.max_hello}")
        self._send(Step.SEND_HELLO, Frame.HELLO, hello)

    def accept(self) -> None:
        """As the opener: accept the acceptor's Hello. The session is open from here on."""
        self._send(Step.SEND_ACCEPT, Frame.HELLO_ANSWER, b"")
        self._opened()

    def refuse(self, code: str, reason: str) -> None:
        """Refuse the peer's Hello and close."""
        self._send(Step.SEND_REFUSE, Frame.HELLO_ANSWER, write_verdict(code, reason))

    def ping(self, nonce: int) -> None:
        """Ask for a sign of life; one at a time."""
        if self._ping is not None:
            raise UnexpectedMessage("a ping is under way already")
        self._send(Step.SEND_PING, Frame.PING, ID.pack(nonce))
        self._ping = nonce

    @property
    def awaits_pong(self) -> bool:
        """Whether a ping has no answer yet."""
        return self._ping is not None

    def go_away(self, code: str, reason: str) -> None:
        """Say that no more requests are made or taken here."""
        self._send(Step.SEND_GOAWAY, Frame.GOAWAY, write_verdict(code, reason))

    def open_tunnel(self, name: str) -> None:
        """As the opener: ask for the tunnel of this name."""
        self._send(Step.SEND_TUNNEL_OPEN, Frame.TUNNEL_OPEN, link_pb2.TunnelOpen(name=name).SerializeToString())

    def accept_tunnel(self) -> bytes:
        """As the acceptor: accept the tunnel. Returns raw bytes that have already come."""
        self._send(Step.SEND_TUNNEL_ACCEPT, Frame.TUNNEL_ANSWER, b"")
        return self._decoder.take_rest()

    def refuse_tunnel(self, code: str, reason: str) -> None:
        """As the acceptor: refuse the tunnel and close."""
        self._send(Step.SEND_TUNNEL_REFUSE, Frame.TUNNEL_ANSWER, write_verdict(code, reason))

    def data_to_send(self, at_least: int = 256 * 1024) -> bytes:
        """Return and forget what is to be sent: in order, until it is `at_least` bytes or all."""
        out = self._out
        if self.pending_bytes <= at_least:
            data = b"".join(out)
            out.clear()
            self.pending_bytes = 0
            return data
        taken: list[bytes] = []
        size = 0
        while out and size < at_least:
            piece = out.popleft()
            taken.append(piece)
            size += len(piece)
        self.pending_bytes -= size
        return b"".join(taken)

    # What we hear.

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the stream and return what they mean.

        Raises:
            ProtocolError: the peer broke the protocol. The session is closed, and what `data_to_send`
                returns tells the peer why.
        """
        if self._state is State.CLOSED:
            return []
        decoder, readers = self._decoder, self._READERS
        events: list[Event] = []
        try:
            decoder.feed(data)
            for kind, begin, end in decoder.frames() if self._reads_frames else ():
                self.frames_received += 1
                event = readers.get(kind, SessionCore._unknown)(self, decoder.buffer, begin, end)
                if event is not None:
                    events.append(event)
                if not self._reads_frames:
                    break
            if self._role is Role.ACCEPTOR and self._state is State.ASKING:
                self._check_early_bytes()
        except ProtocolError as error:
            self._fail(error)
            raise
        if events and isinstance(events[-1], TunnelOpened):  # no frames follow: the rest is the tunnel's
            events[-1] = TunnelOpened(decoder.take_rest())
        return events

    def receive_eof(self) -> None:
        """The peer ends the stream.

        Raises:
            ProtocolError: in the middle of a frame.
        """
        if self._state is State.RAW:
            return
        self._enter(State.CLOSED)
        if self._decoder.buffered:
            raise ProtocolError("the stream ended in the middle of a frame")

    def _check_early_bytes(self) -> None:
        if self._decoder.buffered > self.limits.max_frame + PREFIX_BYTES:
            raise FrameTooLarge("too many bytes for a tunnel that is not open yet")

    def _unknown(self, buffer: bytes, begin: int, _: int) -> None:
        raise ProtocolError(f"a frame of unknown type {buffer[begin - 1]}")

    def _on_hello(self, buffer: bytes, begin: int, end: int) -> Event:
        self._step(Step.RECV_HELLO)
        return HelloReceived(buffer[begin:end])

    def _on_hello_answer(self, buffer: bytes, begin: int, end: int) -> Event:
        code, reason = read_verdict(buffer[begin:end])
        if code:
            self._step(Step.RECV_REFUSE)
            return Refused(code, reason)
        self._step(Step.RECV_ACCEPT)
        self._opened()
        return Established()

    def _on_ping(self, buffer: bytes, begin: int, end: int) -> Event:
        self._step(Step.RECV_PING)
        (nonce,) = read_exactly(ID, buffer, begin, end)
        self._send(Step.SEND_PONG, Frame.PONG, ID.pack(nonce))
        return PingReceived()

    def _on_pong(self, buffer: bytes, begin: int, end: int) -> Event:
        self._step(Step.RECV_PONG)
        (nonce,) = read_exactly(ID, buffer, begin, end)
        if nonce != self._ping:
            raise UnexpectedMessage("a pong that answers no ping")
        self._ping = None
        return PongReceived(nonce)

    def _on_goaway(self, buffer: bytes, begin: int, end: int) -> Event:
        self._step(Step.RECV_GOAWAY)
        return GoingAway(*read_verdict(buffer[begin:end]))

    def _on_tunnel_open(self, buffer: bytes, begin: int, end: int) -> Event:
        self._step(Step.RECV_TUNNEL_OPEN)
        return TunnelAsked(read_tunnel_name(buffer[begin:end]))

    def _on_tunnel_answer(self, buffer: bytes, begin: int, end: int) -> Event:
        code, reason = read_verdict(buffer[begin:end])
        if code:
            self._step(Step.RECV_TUNNEL_REFUSE)
            return Refused(code, reason)
        self._step(Step.RECV_TUNNEL_ACCEPT)
        return TunnelOpened(b"")

    _READERS: ClassVar[Mapping[int, Reader]] = {
        Frame.HELLO: _on_hello,
        Frame.HELLO_ANSWER: _on_hello_answer,
        Frame.PING: _on_ping,
        Frame.PONG: _on_pong,
        Frame.GOAWAY: _on_goaway,
        Frame.TUNNEL_OPEN: _on_tunnel_open,
        Frame.TUNNEL_ANSWER: _on_tunnel_answer,
    }

    def _opened(self) -> None:
        self._decoder.limit = self.limits.max_frame

    def _enter(self, state: State) -> None:
        self._state = state
        #: The steps that change nothing, as bits: a test of one stands for a look into the table.
        self._stays = staying(self._table, state)
        # What comes while a tunnel is being decided on, or after it is open, is not frames any more.
        undecided = state is State.ASKING and self._role is Role.ACCEPTOR
        self._reads_frames = not undecided and state not in (State.RAW, State.CLOSED)

    def _step(self, step: Step) -> None:
        if self._stays >> step & 1:
            return
        state = self._table.get((self._state, step))
        if state is None:
            raise UnexpectedMessage(f"{step.name.lower()} makes no sense when {self._state.name.lower()}")
        self._enter(state)

    def _may_send(self, step: Step) -> None:
        """Take the step of a frame that goes, or say that the link is on its way down."""
        if self._state in (State.CLOSED, State.DRAINING) and (self._state, step) not in self._table:
            raise LinkClosed("the link is going away" if self._state is State.DRAINING else "the link is closed")
        self._step(step)

    def _send(self, step: Step, frame: Frame, *parts: bytes) -> None:
        self._may_send(step)
        self._queue(frame, *parts)

    def _queue(self, frame: Frame, *parts: bytes) -> None:
        data = encode_frame(frame, *parts)
        self._out.append(data)
        self.pending_bytes += len(data)
        self.frames_sent += 1

    def _fail(self, error: ProtocolError) -> None:
        frame = Frame.HELLO_ANSWER if self._state in HANDSHAKE else Frame.GOAWAY
        self._queue(frame, write_verdict(error.code, str(error)))
        self._enter(State.CLOSED)
