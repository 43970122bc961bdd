"""What can happen in a session: immutable values that `Session.receive` returns.

Those that come by the ten thousand are named tuples, which are made in half the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class HelloReceived:
    """The peer presented itself (a `comity.v1.Hello`, not yet verified). Judge it: accept or refuse."""

    hello: bytes


@dataclass(frozen=True, slots=True)
class Established:
    """Both sides have accepted each other's Hello."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The peer refused our Hello, or our wish to open a tunnel. Nothing more will come."""

    code: str
    reason: str


class RequestReceived(NamedTuple):
    """The peer wants an answer to `payload`, within `deadline_ms` milliseconds."""

    request_id: int
    deadline_ms: int
    payload: bytes


class NoticeReceived(NamedTuple):
    """The peer tells us something and waits for no answer; say `settle` when it has been worked on."""

    request_id: int
    deadline_ms: int
    payload: bytes


class StreamAsked(NamedTuple):
    """The peer wants a stream of items in answer to `payload`, within `deadline_ms` milliseconds."""

    request_id: int
    deadline_ms: int
    payload: bytes


class ResponseReceived(NamedTuple):
    """The answer to one of our requests."""

    request_id: int
    payload: bytes


class ItemReceived(NamedTuple):
    """One item of a stream that we asked for."""

    request_id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class EndReceived:
    """A stream that we asked for is complete."""

    request_id: int


@dataclass(frozen=True, slots=True)
class ErrorReceived:
    """The peer could not answer one of our requests, or ended a stream early."""

    request_id: int
    code: str
    text: str
    retry_after_ms: int


@dataclass(frozen=True, slots=True)
class CancelReceived:
    """The peer does not wait for this answer any more. The request still has to be ended, by an error say."""

    request_id: int


@dataclass(frozen=True, slots=True)
class CreditReceived:
    """The peer takes more items of this stream."""

    request_id: int


@dataclass(frozen=True, slots=True)
class RoomReceived:
    """The peer has worked on notifications: there is room for more calls."""


@dataclass(frozen=True, slots=True)
class PingReceived:
    """The peer asked for a sign of life. The answer is already among the bytes to send."""


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The answer to our last ping."""

    nonce: int


@dataclass(frozen=True, slots=True)
class GoingAway:
    """The peer takes no more requests on this stream; what is outstanding is still answered."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class TunnelAsked:
    """The peer wants to open the tunnel of this name. Accept it or refuse it."""

    name: str


@dataclass(frozen=True, slots=True)
class TunnelOpened:
    """The stream is raw from here on, both ways. `rest` are raw bytes that have already come."""

    rest: bytes


Event = (
    HelloReceived
    | Established
    | Refused
    | RequestReceived
    | NoticeReceived
    | StreamAsked
    | ResponseReceived
    | ItemReceived
    | EndReceived
    | ErrorReceived
    | CancelReceived
    | CreditReceived
    | RoomReceived
    | PingReceived
    | PongReceived
    | GoingAway
    | TunnelAsked
    | TunnelOpened
)
