"""The calls of a session, as their opener makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NoReturn

from comity.errors import Busy, FrameTooLarge, ProtocolError, UnexpectedMessage
from comity_node.protocol.session_account import Account, Credit
from comity_node.protocol.session_codec import CALL, CALL_HEAD, CREDIT, ID, SETTLED, STREAM, read_error, read_exactly
from comity_node.protocol.session_core import Reader, SessionCore
from comity_node.protocol.session_events import EndReceived, Event, ItemReceived, ResponseReceived, RoomReceived
from comity_node.protocol.session_limits import MAX_DEADLINE_MS, SessionLimits
from comity_node.protocol.session_states import Frame, Role, Service, Step


class CallingSession(SessionCore):
    """A session with the account of its calls, and what the opener says and hears."""

    __slots__ = ("_account", "_last_id")

    def __init__(self, role: Role, service: Service, limits: SessionLimits | None = None) -> None:
        """Start a session in which nothing has been said."""
        super().__init__(role, service, limits)
        self._account = Account(self.limits.max_outstanding, self.limits.max_outstanding_bytes)
        self._last_id = 0

    def set_window(self, calls: int, size: int) -> None:
        """Take over what the acceptor has said in its Hello; both ends do, before the session is open.

        Args:
            calls: how many may be outstanding; never more than `max_outstanding`.
            size: bytes of their payloads; never more than `max_outstanding_bytes`.
        """
        self._account.max_calls = min(calls, self.limits.max_outstanding)
        self._account.max_bytes = min(size, self.limits.max_outstanding_bytes)

    @property
    def outstanding(self) -> int:
        """Calls that have no answer yet, also if nobody waits any more: the peer still works on them."""
        return self._account.outstanding

    @property
    def streams(self) -> int:
        """Of them, those that are answered by a stream."""
        return len(self._account.credits)

    @property
    def has_room(self) -> bool:
        """Whether one more call may go."""
        return self._account.has_room

    # What the opener says.

    def request(self, payload: bytes, deadline_ms: int = MAX_DEADLINE_MS) -> int:
        """Send a request.

        Args:
            payload: opaque, at most `max_payload` bytes.
            deadline_ms: how long the acceptor may take; the longest is a day.

        Returns:
            Its id, which the answer carries.

        Raises:
            FrameTooLarge: the payload is over `max_payload`.
            Busy: as many calls or bytes as the acceptor takes have no answer yet.
            LinkClosed: the session is closed or draining.
        """
        request_id = self._begin(payload)
        self._account.sizes[request_id] = size = len(payload)
        self._account.bytes += size
        self._put(CALL_HEAD.pack(1 + CALL.size + size, Frame.REQUEST, request_id, _milliseconds(deadline_ms)), payload)
        return request_id

    def notify(self, payload: bytes, deadline_ms: int = MAX_DEADLINE_MS) -> None:
        """Send something to which no answer comes. Arguments and errors are those of `request`."""
        request_id = self._begin(payload)
        size = len(payload)
        self._account.note(size)
        self._put(CALL_HEAD.pack(1 + CALL.size + size, Frame.NOTIFY, request_id, _milliseconds(deadline_ms)), payload)

    def stream(self, payload: bytes, items: int, size: int, deadline_ms: int = MAX_DEADLINE_MS) -> int:
        """Ask for a stream of items and take so many of them, and bytes, before more is granted.

        Returns:
            Its id, which the items carry.

        Raises:
            FrameTooLarge: the payload is over `max_payload`.
            Busy: as many calls or bytes as the acceptor takes have no answer yet.
            LinkClosed: the session is closed or draining.
            UnexpectedMessage: the credit is none, or over `max_credit`.
        """
        credit = Credit(0, 0)
        credit.grant(items, size, self.limits.max_credit)
        request_id = self._begin(payload)
        self._account.sizes[request_id] = len(payload)
        self._account.bytes += len(payload)
        self._account.credits[request_id] = credit
        self._queue(Frame.STREAM, STREAM.pack(request_id, _milliseconds(deadline_ms), items, size), payload)
        return request_id

    def grant(self, request_id: int, items: int, size: int) -> None:
        """Take more of a stream; of no effect on one that has ended."""
        if credit := self._account.credits.get(request_id):
            self._may_send(Step.SEND_CREDIT)
            credit.grant(items, size, self.limits.max_credit)
            self._queue(Frame.CREDIT, CREDIT.pack(request_id, items, size))

    def cancel(self, request_id: int) -> None:
        """Wait for a call no more: what still comes for it is dropped here. No effect on one that has ended."""
        account = self._account
        if request_id in account.sizes and request_id not in account.cancelled:
            self._send(Step.SEND_CANCEL, Frame.CANCEL, ID.pack(request_id))
            account.cancelled.add(request_id)

    # What the opener hears.

    def _on_response(self, buffer: bytes, begin: int, end: int) -> Event | None:
        at = begin + ID.size
        if end < at:
            raise ProtocolError("a truncated frame")
        if end - at > self.limits.max_payload:
            self._too_large(end - at)
        (request_id,) = ID.unpack_from(buffer, begin)
        if self._ends(request_id, is_stream=False):
            return ResponseReceived(request_id, buffer[at:end])
        return None

    def _on_error(self, buffer: bytes, begin: int, end: int) -> Event | None:
        error = read_error(buffer[begin:end])
        return error if self._ends(error.request_id, is_stream=None) else None

    def _on_end(self, buffer: bytes, begin: int, end: int) -> Event | None:
        (request_id,) = read_exactly(ID, buffer, begin, end)
        return EndReceived(request_id) if self._ends(request_id, is_stream=True) else None

    def _on_item(self, buffer: bytes, begin: int, end: int) -> Event | None:
        self._step(Step.RECV_ITEM)
        at = begin + ID.size
        if end < at:
            raise ProtocolError("a truncated frame")
        if end - at > self.limits.max_payload:
            self._too_large(end - at)
        (request_id,) = ID.unpack_from(buffer, begin)
        self._credit(request_id).spend(end - at)
        if request_id in self._account.cancelled:
            return None
        return ItemReceived(request_id, buffer[at:end])

    def _on_settled(self, buffer: bytes, begin: int, end: int) -> Event:
        self._step(Step.RECV_ANSWER)
        self._account.settle(*read_exactly(SETTLED, buffer, begin, end))
        return RoomReceived()

    _READERS: ClassVar[Mapping[int, Reader]] = {
        **SessionCore._READERS,
        Frame.RESPONSE: _on_response,
        Frame.ERROR: _on_error,
        Frame.END: _on_end,
        Frame.ITEM: _on_item,
        Frame.SETTLED: _on_settled,
    }

    def _begin(self, payload: bytes) -> int:
        """Check that a call may go, and return its id."""
        if len(payload) > self.limits.max_payload:
            self._too_large(len(payload))
        if not self._stays >> Step.SEND_CALL & 1:
            self._may_send(Step.SEND_CALL)
        account = self._account
        if not account.has_room:
            raise Busy(f"{account.outstanding} calls wait for this peer already", retry_after_ms=100)
        self._last_id += 1
        return self._last_id

    def _put(self, head: bytes, payload: bytes) -> None:
        self._out.append(head)
        self._out.append(payload)
        self.pending_bytes += len(head) + len(payload)
        self.frames_sent += 1

    def _ends(self, request_id: int, *, is_stream: bool | None) -> bool:
        if not self._stays >> Step.RECV_ANSWER & 1:
            self._step(Step.RECV_ANSWER)
        account = self._account
        if request_id not in account.sizes or is_stream not in (None, request_id in account.credits):
            raise UnexpectedMessage(f"an answer to call {request_id}, which waits for no such one")
        return account.end(request_id)

    def _credit(self, request_id: int) -> Credit:
        credit = self._account.credits.get(request_id)
        if credit is None:
            raise UnexpectedMessage(f"an item of call {request_id}, which is no stream")
        return credit

    def _too_large(self, size: int) -> NoReturn:
        raise FrameTooLarge(f"a payload of {size} bytes is over the limit of {self.limits.max_payload}")


def _milliseconds(deadline_ms: int) -> int:
    return deadline_ms if 0 < deadline_ms < MAX_DEADLINE_MS else min(max(deadline_ms, 1), MAX_DEADLINE_MS)
