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
    #: A request that gets no answer.
    NOTIFY = 11
    #: So many notifications have been worked on: their room is free again.
    SETTLED = 12
    #: A request that is answered by any number of items, then an end or an error.
    STREAM = 13
    ITEM = 14
    END = 15
    #: The opener takes so many more items and bytes of a stream.
    CREDIT = 16
    #: The opener does not wait for the answer any more. The acceptor still ends the request, by an error say.
    CANCEL = 17


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


class Step(IntEnum):
    """What moves a session: a frame that goes or comes."""

    SEND_HELLO = auto()
    RECV_HELLO = auto()
    SEND_ACCEPT = auto()
    RECV_ACCEPT = auto()
    SEND_REFUSE = auto()
    RECV_REFUSE = auto()
    #: A REQUEST, a NOTIFY or a STREAM.
    SEND_CALL = auto()
    RECV_CALL = auto()
    #: What ends a call: a RESPONSE, an END or an ERROR; or SETTLED for notifications.
    SEND_ANSWER = auto()
    RECV_ANSWER = auto()
    SEND_ITEM = auto()
    RECV_ITEM = auto()
    SEND_CREDIT = auto()
    RECV_CREDIT = auto()
    SEND_CANCEL = auto()
    RECV_CANCEL = auto()
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


def _stays(state: State, *steps: Step) -> Table:
    return {(state, step): state for step in steps}


def _drains(*steps: Step) -> Table:
    """What goes on while the last calls are answered; a GOAWAY of either side brings it about."""
    table = _stays(State.DRAINING, *steps)
    for step in (Step.SEND_GOAWAY, Step.RECV_GOAWAY):
        table[State.OPEN, step] = table[State.DRAINING, step] = State.DRAINING
    return table


_ASKS = (
    Step.RECV_ANSWER,
    Step.RECV_ITEM,
    Step.SEND_CREDIT,
    Step.SEND_CANCEL,
    Step.SEND_PING,
    Step.RECV_PONG,
)
_ANSWERS = (
    Step.RECV_CALL,
    Step.SEND_ANSWER,
    Step.SEND_ITEM,
    Step.RECV_CREDIT,
    Step.RECV_CANCEL,
    Step.RECV_PING,
    Step.SEND_PONG,
)

TRANSITIONS: Final[dict[tuple[Role, Service], Table]] = {
    (Role.OPENER, Service.MESSAGES): _HELLO[Role.OPENER] | _stays(State.OPEN, Step.SEND_CALL, *_ASKS) | _drains(*_ASKS),
    # Calls that crossed our GOAWAY still come, and still get an answer.
    (Role.ACCEPTOR, Service.MESSAGES): _HELLO[Role.ACCEPTOR] | _stays(State.OPEN, *_ANSWERS) | _drains(*_ANSWERS),
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


def staying(table: Table, state: State) -> int:
    """Return the steps that leave `state` as it is, as bits: bit n for the step of value n.

    The frames of an open session are among them, so one test of a bit stands for a look into the table.
    """
    return sum(1 << step for (source, step), target in table.items() if source is state is target)
