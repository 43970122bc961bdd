"""Two honest sessions over a pipe that cuts what goes anywhere, and one session against any frames."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from comity.errors import Busy, LinkClosed, ProtocolError, UnexpectedMessage
from comity_node.protocol import session_events as ev
from comity_node.protocol.framing import encode_frame
from comity_node.protocol.session import Session, SessionLimits
from comity_node.protocol.session_states import Frame, Role, Service, State

LIMITS = SessionLimits(max_payload=200, max_outstanding=5, max_outstanding_bytes=300, max_credit=1000)
PAYLOADS = st.binary(max_size=200)


def opened() -> tuple[Session, Session]:
    opener, acceptor = (Session(role, Service.MESSAGES, LIMITS) for role in (Role.OPENER, Role.ACCEPTOR))
    opener.greet(b"o")
    acceptor.receive(opener.data_to_send())
    acceptor.greet(b"a")
    opener.receive(acceptor.data_to_send())
    opener.accept()
    acceptor.receive(opener.data_to_send())
    return opener, acceptor


class Conversation(RuleBasedStateMachine):
    """The acceptor does what it may in any order; the opener asks, cancels and grants as it likes."""

    @initialize()
    def start(self) -> None:
        self.opener, self.acceptor = opened()
        self.there, self.back = bytearray(), bytearray()
        self.asked: set[int] = set()
        self.streams: dict[int, list[int]] = {}  # credit that the opener gave and that is not used: items, bytes
        self.cancelled: set[int] = set()
        self.outcomes: Counter[int] = Counter()
        self.open_here: dict[int, str] = {}  # what the acceptor has not ended
        self.notices: list[int] = []
        self.told = self.heard = 0
        self.draining = False

    # The opener.

    @rule(payload=PAYLOADS)
    def request(self, payload: bytes) -> None:
        with suppress(Busy, LinkClosed):
            self.asked.add(self.opener.request(payload, 1000))

    @rule(payload=PAYLOADS)
    def notify(self, payload: bytes) -> None:
        with suppress(Busy, LinkClosed):
            self.opener.notify(payload)
            self.told += 1

    @rule(payload=PAYLOADS, items=st.integers(0, 4), size=st.integers(1, 300))
    def stream(self, payload: bytes, items: int, size: int) -> None:
        with suppress(Busy, LinkClosed):
            request_id = self.opener.stream(payload, items, size)
            self.asked.add(request_id)
            self.streams[request_id] = [items, size]

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), items=st.integers(0, 3), size=st.integers(1, 200))
    def grant(self, data: st.DataObject, items: int, size: int) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.streams)))
        if self.outcomes[request_id]:
            return
        credit = self.streams[request_id]
        if credit[0] + items <= LIMITS.max_credit and credit[1] + size <= LIMITS.max_credit:
            self.opener.grant(request_id, items, size)
            credit[0] += items
            credit[1] += size

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.asked)))
        if not self.outcomes[request_id]:
            self.cancelled.add(request_id)
        self.opener.cancel(request_id)

    @rule()
    def ping(self) -> None:
        if not self.opener.awaits_pong:
            self.opener.ping(7)

    @rule(which=st.booleans())
    def go_away(self, which: bool) -> None:
        (self.opener if which else self.acceptor).go_away("bye", "bye")

    # The acceptor.

    @precondition(lambda self: self.open_here)
    @rule(data=st.data(), payload=PAYLOADS, well=st.booleans())
    def end(self, data: st.DataObject, payload: bytes, well: bool) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.open_here)))
        kind = self.open_here.pop(request_id)
        if not well:
            self.acceptor.respond_error(request_id, "no", "no")
        elif kind == "stream":
            self.acceptor.end_stream(request_id)
        else:
            self.acceptor.respond(request_id, payload)

    @precondition(lambda self: any(kind == "stream" for kind in self.open_here.values()))
    @rule(data=st.data(), payload=PAYLOADS)
    def item(self, data: st.DataObject, payload: bytes) -> None:
        request_id = data.draw(st.sampled_from(sorted(k for k, v in self.open_here.items() if v == "stream")))
        if self.acceptor.may_send_item(request_id):
            self.acceptor.send_item(request_id, payload)
        else:
            with pytest.raises(UnexpectedMessage):
                self.acceptor.send_item(request_id, payload)

    @precondition(lambda self: self.notices)
    @rule()
    def settle(self) -> None:
        self.acceptor.settle(self.notices.pop())

    # The pipe.

    @rule(forward=st.booleans(), count=st.integers(1, 60))
    def carry(self, forward: bool, count: int) -> None:
        self._carry(forward, count)

    def _carry(self, forward: bool, count: int) -> None:
        if forward:
            self.there += self.opener.data_to_send()
            events = self.acceptor.receive(bytes(self.there[:count]))
            del self.there[:count]
            for event in events:
                self._at_acceptor(event)
        else:
            self.back += self.acceptor.data_to_send()
            events = self.opener.receive(bytes(self.back[:count]))
            del self.back[:count]
            for event in events:
                self._at_opener(event)

    def _at_acceptor(self, event: ev.Event) -> None:
        if isinstance(event, ev.RequestReceived):
            self.open_here[event.request_id] = "request"
        elif isinstance(event, ev.StreamAsked):
            self.open_here[event.request_id] = "stream"
        elif isinstance(event, ev.NoticeReceived):
            self.notices.append(len(event.payload))
            self.heard += 1
        elif isinstance(event, ev.CancelReceived):
            assert event.request_id in self.open_here

    def _at_opener(self, event: ev.Event) -> None:
        if isinstance(event, ev.ItemReceived):
            assert event.request_id not in self.cancelled, "dropped for whoever does not wait"
            assert not self.outcomes[event.request_id], "nothing comes after the end"
            credit = self.streams[event.request_id]
            assert credit[0] > 0
            assert credit[1] > 0
            credit[0] -= 1
            credit[1] -= len(event.payload)
        elif isinstance(event, (ev.ResponseReceived, ev.EndReceived, ev.ErrorReceived)):
            assert event.request_id not in self.cancelled
            self.outcomes[event.request_id] += 1

    @invariant()
    def nothing_is_over_its_bounds(self) -> None:
        if hasattr(self, "opener"):
            for session in (self.opener, self.acceptor):
                assert session.outstanding <= LIMITS.max_outstanding
            assert all(count == 1 for count in self.outcomes.values() if count)

    def teardown(self) -> None:
        if not hasattr(self, "opener"):
            return
        # Whatever was asked is ended exactly once when everything has arrived.
        for _ in range(4):
            while self.there or self.opener.pending_bytes:
                self._carry(True, 1000)
            for request_id, kind in list(self.open_here.items()):
                del self.open_here[request_id]
                if kind == "stream":
                    self.acceptor.end_stream(request_id)
                else:
                    self.acceptor.respond(request_id, b"")
            while self.notices:
                self.acceptor.settle(self.notices.pop())
            while self.back or self.acceptor.pending_bytes:
                self._carry(False, 1000)
        assert {number for number, count in self.outcomes.items() if count == 1} == self.asked - self.cancelled
        assert self.heard == self.told
        assert self.opener.outstanding == self.acceptor.outstanding == 0


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 18), st.binary(max_size=40)), max_size=10), st.booleans(), st.booleans())
def test_any_frames_give_events_or_a_protocol_error(
    frames: list[tuple[int, bytes]], fresh: bool, as_opener: bool
) -> None:
    if fresh:
        session = Session(Role.OPENER if as_opener else Role.ACCEPTOR, Service.MESSAGES, LIMITS)
    else:
        session = opened()[0 if as_opener else 1]
        if as_opener:
            session.request(b"")
            session.stream(b"", 2, 50)
            session.notify(b"x")
    refused = False
    for kind, payload in frames:
        try:
            session.receive(encode_frame(kind, payload))
        except ProtocolError:
            refused = True
        assert session.state is State.CLOSED or not refused
    assert session.outstanding <= LIMITS.max_outstanding
    assert session.pending_bytes < 10_000


IDS = st.integers(0, 5)
_SMALL = st.integers(0, 3)


def _frame(kind: Frame, request_id: int, first: int, second: int, rest: bytes) -> bytes:
    numbers = request_id.to_bytes(8, "big"), first.to_bytes(4, "big"), second.to_bytes(4, "big")
    match kind:
        case Frame.REQUEST | Frame.NOTIFY:
            return encode_frame(kind, numbers[0], numbers[1], rest)
        case Frame.STREAM:
            return encode_frame(kind, numbers[0], numbers[1], numbers[2], numbers[1], rest)
        case Frame.CREDIT:
            return encode_frame(kind, *numbers)
        case Frame.CANCEL | Frame.END | Frame.PING | Frame.PONG:
            return encode_frame(kind, numbers[0])
        case Frame.SETTLED:
            return encode_frame(kind, numbers[1], numbers[2])
        case Frame.ERROR:
            return encode_frame(kind, numbers[0], numbers[1], b"\x00", rest)
        case _:
            return encode_frame(kind, numbers[0], rest)


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.sampled_from(list(Frame)[2:8] + list(Frame)[10:]), IDS, _SMALL, _SMALL, st.binary(max_size=9))
    ),
    st.booleans(),
)
def test_any_well_formed_frames_keep_the_account_within_its_bounds(
    frames: list[tuple[Frame, int, int, int, bytes]], as_opener: bool
) -> None:
    opener, acceptor = opened()
    session = opener if as_opener else acceptor
    if as_opener:
        session.request(b"")
        session.stream(b"", 2, 50)
        session.notify(b"x")
    with suppress(ProtocolError):
        for frame in frames:
            session.receive(_frame(*frame))
            assert session.outstanding <= LIMITS.max_outstanding
            assert session.streams <= session.outstanding
