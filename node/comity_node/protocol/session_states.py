"""The states of a session, what moves it, and the one table that says what is allowed when."""

from __future__ import annotations

from enum import Enum, IntEnum, auto
from typing import Final


class Frame(IntEnum):
    """The type byte of a frame."""

    HELLO = 1
    HELLO_ANSWER = 2
    REQUEST = 3
    RESPONSE = 4
    ERROR = 5
    PING = 6
    PONG = 7
    GOAWAY = 8
    TUNNEL_OPEN = 9
    TUNNEL_ANSWER = 10


class Role(Enum):
    """Which end of the stream this is."""

    OPENER = auto()
    ACCEPTOR = auto()


class Service(Enum):
    """What the stream is for."""

    MESSAGES = auto()
    TUNNEL = auto()


class State(Enum):
    """Where a session stands."""

    START = auto()
    #: Our Hello is out; the peer judges it.
    GREETING = auto()
    #: The peer's Hello is here; we judge it.
    JUDGING = auto()
    OPEN = auto()
    #: A GOAWAY went or came: no new requests, outstanding ones are still answered.
    DRAINING = auto()
    #: The opener has named a tunnel and waits; the acceptor decides.
    ASKING = auto()
    RAW = auto()
    CLOSED = auto()


class Step(Enum):
    """What moves a session: a frame that goes or comes."""

    SEND_HELLO = auto()
    RECV_HELLO = auto()
    SEND_ACCEPT = auto()
    RECV_ACCEPT = auto()
    SEND_REFUSE = auto()
    RECV_REFUSE = auto()
    SEND_REQUEST = auto()
    RECV_REQUEST = auto()
    SEND_ANSWER = auto()
    RECV_ANSWER = auto()
    SEND_PING = auto()
    RECV_PING = auto()
    SEND_PONG = auto()
    RECV_PONG = auto()
    SEND_GOAWAY = auto()
    RECV_GOAWAY = auto()
    SEND_TUNNEL_OPEN = auto()
    RECV_TUNNEL_OPEN = auto()
    SEND_TUNNEL_ACCEPT = auto()
    RECV_TUNNEL_ACCEPT = auto()
    SEND_TUNNEL_REFUSE = auto()
    RECV_TUNNEL_REFUSE = auto()


Table = dict[tuple[State, Step], State]

_HELLO: Final[dict[Role, Table]] = {
    Role.OPENER: {
        (State.START, Step.SEND_HELLO): State.GREETING,
        (State.GREETING, Step.RECV_HELLO): State.JUDGING,
        (State.GREETING, Step.RECV_REFUSE): State.CLOSED,
        (State.JUDGING, Step.SEND_ACCEPT): State.OPEN,
        (State.JUDGING, Step.SEND_REFUSE): State.CLOSED,
    },
    Role.ACCEPTOR: {
        (State.START, Step.RECV_HELLO): State.JUDGING,
        (State.JUDGING, Step.SEND_HELLO): State.GREETING,
        (State.JUDGING, Step.SEND_REFUSE): State.CLOSED,
        (State.GREETING, Step.RECV_ACCEPT): State.OPEN,
        (State.GREETING, Step.RECV_REFUSE): State.CLOSED,
    },
}

TRANSITIONS: Final[dict[tuple[Role, Service], Table]] = {
    (Role.OPENER, Service.MESSAGES): _HELLO[Role.OPENER]
    | {
        (State.OPEN, Step.SEND_REQUEST): State.OPEN,
        (State.OPEN, Step.RECV_ANSWER): State.OPEN,
        (State.OPEN, Step.SEND_PING): State.OPEN,
        (State.OPEN, Step.RECV_PONG): State.OPEN,
        (State.OPEN, Step.SEND_GOAWAY): State.DRAINING,
        (State.OPEN, Step.RECV_GOAWAY): State.DRAINING,
        (State.DRAINING, Step.RECV_ANSWER): State.DRAINING,
        (State.DRAINING, Step.SEND_PING): State.DRAINING,
        (State.DRAINING, Step.RECV_PONG): State.DRAINING,
        (State.DRAINING, Step.SEND_GOAWAY): State.DRAINING,
        (State.DRAINING, Step.RECV_GOAWAY): State.DRAINING,
    },
    (Role.ACCEPTOR, Service.MESSAGES): _HELLO[Role.ACCEPTOR]
    | {
        (State.OPEN, Step.RECV_REQUEST): State.OPEN,
        (State.OPEN, Step.SEND_ANSWER): State.OPEN,
        (State.OPEN, Step.RECV_PING): State.OPEN,
        (State.OPEN, Step.SEND_PONG): State.OPEN,
        (State.OPEN, Step.SEND_GOAWAY): State.DRAINING,
        (State.OPEN, Step.RECV_GOAWAY): State.DRAINING,
        # Requests that crossed our GOAWAY still come, and still get an answer.
        (State.DRAINING, Step.RECV_REQUEST): State.DRAINING,
        (State.DRAINING, Step.SEND_ANSWER): State.DRAINING,
        (State.DRAINING, Step.RECV_PING): State.DRAINING,
        (State.DRAINING, Step.SEND_PONG): State.DRAINING,
        (State.DRAINING, Step.SEND_GOAWAY): State.DRAINING,
        (State.DRAINING, Step.RECV_GOAWAY): State.DRAINING,
    },
    (Role.OPENER, Service.TUNNEL): _HELLO[Role.OPENER]
    | {
        (State.OPEN, Step.SEND_TUNNEL_OPEN): State.ASKING,
        (State.ASKING, Step.RECV_TUNNEL_ACCEPT): State.RAW,
        (State.ASKING, Step.RECV_TUNNEL_REFUSE): State.CLOSED,
        # A Hello was accepted but its ACCEPT could not be: the acceptor says so.
        (State.ASKING, Step.RECV_GOAWAY): State.CLOSED,
    },
    (Role.ACCEPTOR, Service.TUNNEL): _HELLO[Role.ACCEPTOR]
    | {
        (State.OPEN, Step.RECV_TUNNEL_OPEN): State.ASKING,
        (State.ASKING, Step.SEND_TUNNEL_ACCEPT): State.RAW,
        (State.ASKING, Step.SEND_TUNNEL_REFUSE): State.CLOSED,
    },
}

#: The states in which the peer has not been accepted, or has not accepted us.
HANDSHAKE: Final = frozenset({State.START, State.GREETING, State.JUDGING})
