"""What can happen in a session: frozen values that `Session.receive` returns."""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """The peer wants an answer to `payload`."""

    request_id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """The answer to one of our requests."""

    request_id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class ErrorReceived:
    """The peer could not answer one of our requests."""

    request_id: int
    code: str
    text: str
    retry_after_ms: int


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
    | ResponseReceived
    | ErrorReceived
    | PingReceived
    | PongReceived
    | GoingAway
    | TunnelAsked
    | TunnelOpened
)
