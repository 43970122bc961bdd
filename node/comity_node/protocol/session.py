"""One stream between two nodes as a state machine: bytes in, immutable events out, with no I/O.

A stream has an opener and an acceptor. Both present themselves and judge the other before anything else:

1. the opener sends HELLO;
2. the acceptor verifies it, and answers with its own HELLO (which says: accepted) or with a refusal;
3. the opener verifies that, and answers ACCEPT or a refusal.

Then, on a *messages* stream, the opener calls and the acceptor answers:

- a REQUEST ends with a RESPONSE or an ERROR;
- a STREAM brings any number of ITEMs, no more than the opener gives CREDIT for, and ends with END or ERROR;
- a NOTIFY has no answer; the acceptor says with SETTLED how many it has worked on.

Answers come in any order. Each call carries the time that is left for it. With CANCEL the opener says that it
does not wait any more: the acceptor still ends the call, once, and what comes for it is dropped here. Calls are
numbered 1, 2, 3, ...; how many may be outstanding the acceptor has said in its Hello (`set_window`), and neither
side is let over it. PING and PONG are signs of life; GOAWAY ends a stream in good order. On a *tunnel* stream the
opener names a tunnel and, once accepted, the stream is raw bytes both ways.

What may come and go in which state is one table, `session_states.TRANSITIONS`. Whatever is not in it is a
`ProtocolError`, after which the session is closed and the peer has been told why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from comity.errors import ProtocolError, UnexpectedMessage
from comity_node.protocol.session_account import Credit
from comity_node.protocol.session_calls import CallingSession
from comity_node.protocol.session_codec import (
    ANSWER_HEAD,
    CALL,
    CREDIT,
    ID,
    SETTLED,
    STREAM,
    read_exactly,
    write_error,
)
from comity_node.protocol.session_core import Reader
from comity_node.protocol.session_events import (
    CancelReceived,
    CreditReceived,
    Event,
    NoticeReceived,
    RequestReceived,
    StreamAsked,
)
from comity_node.protocol.session_limits import MAX_DEADLINE_MS, SessionLimits
from comity_node.protocol.session_states import Frame, Role, Service, Step

__all__ = ["MAX_DEADLINE_MS", "Session", "SessionLimits"]

_CALLS: Mapping[int, Callable[[int, int, bytes], Event]] = {
    Frame.REQUEST: RequestReceived,
    Frame.NOTIFY: NoticeReceived,
    Frame.STREAM: StreamAsked,
}
#: Bytes of a SETTLED frame.
_SETTLED_FRAME = 5 + SETTLED.size


class Session(CallingSession):
    """One end of one stream. Feed it what comes, send what `data_to_send` returns."""

    __slots__ = ("_cancels", "_unsettled", "_unsettled_bytes")

    def __init__(self, role: Role, service: Service, limits: SessionLimits | None = None) -> None:
        """Start a session in which nothing has been said."""
        super().__init__(role, service, limits)
        self._cancels = 0
        self._unsettled = 0
        self._unsettled_bytes = 0

    # What the acceptor says.

    def respond(self, request_id: int, payload: bytes) -> None:
        """Answer a request.

        Raises:
            FrameTooLarge: the payload is over `max_payload`; answer with an error instead.
            UnexpectedMessage: there is no such request without an answer.
            LinkClosed: the session is closed.
        """
        size = len(payload)
        if size > self.limits.max_payload:
            self._too_large(size)
        self._may_end(request_id, is_stream=False)
        self._account.end(request_id)
        self._put(ANSWER_HEAD.pack(1 + ID.size + size, Frame.RESPONSE, request_id), payload)

    def respond_error(self, request_id: int, code: str, text: str, *, retry_after_ms: int = 0) -> None:
        """End a request or a stream with an error.

        Raises:
            UnexpectedMessage: there is no such call without an answer.
            LinkClosed: the session is closed.
        """
        self._may_end(request_id, is_stream=None)
        self._account.end(request_id)
        self._queue(Frame.ERROR, write_error(request_id, code, text, retry_after_ms))

    def may_send_item(self, request_id: int) -> bool:
        """Whether the opener takes one more item of a stream now."""
        credit = self._account.credits.get(request_id)
        return credit is not None and credit.has_room

    def send_item(self, request_id: int, payload: bytes) -> None:
        """Send an item of a stream.

        Raises:
            FrameTooLarge: the payload is over `max_payload`.
            UnexpectedMessage: there is no such stream, or the opener takes no more of it now.
            LinkClosed: the session is closed.
        """
        size = len(payload)
        if size > self.limits.max_payload:
            self._too_large(size)
        self._may_send(Step.SEND_ITEM)
        self._credit(request_id).spend(size)
        self._put(ANSWER_HEAD.pack(1 + ID.size + size, Frame.ITEM, request_id), payload)

    def end_stream(self, request_id: int) -> None:
        """Say that a stream is complete.

        Raises:
            UnexpectedMessage: there is no such stream.
            LinkClosed: the session is closed.
        """
        self._may_end(request_id, is_stream=True)
        self._account.end(request_id)
        self._queue(Frame.END, ID.pack(request_id))

    def settle(self, size: int) -> None:
        """A notification with a payload of so many bytes has been worked on; the opener learns of it in time.

        Raises:
            UnexpectedMessage: there was no such notification.
            LinkClosed: the session is closed.
        """
        self._may_send(Step.SEND_ANSWER)
        self._account.settle(1, size)
        if not self._unsettled:
            self.pending_bytes += _SETTLED_FRAME  # the frame that `data_to_send` writes
        self._unsettled += 1
        self._unsettled_bytes += size

    def data_to_send(self, at_least: int = 256 * 1024) -> bytes:
        """See `SessionCore.data_to_send`."""
        if self._unsettled:
            self.pending_bytes -= _SETTLED_FRAME
            self._queue(Frame.SETTLED, SETTLED.pack(self._unsettled, self._unsettled_bytes))
            self._unsettled = self._unsettled_bytes = 0
        return super().data_to_send(at_least)

    # What the acceptor hears.

    def _on_call(self, buffer: bytes, begin: int, end: int) -> Event:
        if not self._stays >> Step.RECV_CALL & 1:
            self._step(Step.RECV_CALL)
        kind = buffer[begin - 1]
        items = granted = 0
        if kind == Frame.STREAM:
            at = begin + STREAM.size
            if end < at:
                raise ProtocolError("a truncated frame")
            request_id, deadline_ms, items, granted = STREAM.unpack_from(buffer, begin)
        else:
            at = begin + CALL.size
            if end < at:
                raise ProtocolError("a truncated frame")
            request_id, deadline_ms = CALL.unpack_from(buffer, begin)
        size, account = end - at, self._account
        if request_id != self._last_id + 1:
            raise UnexpectedMessage(f"call {request_id} comes after call {self._last_id}")
        if not 0 < deadline_ms <= MAX_DEADLINE_MS:
            raise ProtocolError(f"a deadline of {deadline_ms} ms; it is 1 to {MAX_DEADLINE_MS}")
        if size > self.limits.max_payload:
            self._too_large(size)
        if not account.has_room:
            raise UnexpectedMessage(f"more than {account.max_calls} calls or {account.max_bytes} bytes outstanding")
        self._last_id = request_id
        if kind == Frame.NOTIFY:
            account.note(size)
        else:
            if kind == Frame.STREAM:
                account.credits[request_id] = credit = Credit(0, 0)
                credit.grant(items, granted, self.limits.max_credit)
            account.sizes[request_id] = size
            account.bytes += size
        return _CALLS[kind](request_id, deadline_ms, buffer[at:end])

    def _on_cancel(self, buffer: bytes, begin: int, end: int) -> Event | None:
        self._step(Step.RECV_CANCEL)
        (request_id,) = read_exactly(ID, buffer, begin, end)
        account = self._account
        self._cancels += 1
        if request_id > self._last_id or self._cancels > self._last_id or request_id in account.cancelled:
            raise UnexpectedMessage(f"call {request_id} cannot be cancelled")
        if request_id not in account.sizes:
            return None  # our answer crossed it
        account.cancelled.add(request_id)
        return CancelReceived(request_id)

    def _on_credit(self, buffer: bytes, begin: int, end: int) -> Event | None:
        self._step(Step.RECV_CREDIT)
        request_id, items, size = read_exactly(CREDIT, buffer, begin, end)
        credit = self._account.credits.get(request_id)
        if credit is None:
            if request_id > self._last_id or request_id in self._account.sizes:
                raise UnexpectedMessage(f"call {request_id} is no stream")
            return None  # our end of it crossed the credit
        credit.grant(items, size, self.limits.max_credit)
        return CreditReceived(request_id)

    _READERS: ClassVar[Mapping[int, Reader]] = {
        **CallingSession._READERS,
        Frame.REQUEST: _on_call,
        Frame.NOTIFY: _on_call,
        Frame.STREAM: _on_call,
        Frame.CANCEL: _on_cancel,
        Frame.CREDIT: _on_credit,
    }

    def _may_end(self, request_id: int, *, is_stream: bool | None) -> None:
        if not self._stays >> Step.SEND_ANSWER & 1:
            self._may_send(Step.SEND_ANSWER)
        account = self._account
        if request_id not in account.sizes or is_stream not in (None, request_id in account.credits):
            raise UnexpectedMessage(f"call {request_id} waits for no such answer")
