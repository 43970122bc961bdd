"""multistream-select 1.0.0, without I/O: how two ends of a connection or stream agree on a protocol.

A message is a varint length, text and a newline (https://github.com/multiformats/multistream-select). Both ends say
which version they speak; the `Opener` then proposes protocols, the `Listener` echoes one or says "na". The opener's
first bytes of the protocol itself may follow its proposal at once: whoever turns out to be refused has wasted them.

Lengths, and how many messages there may be, are bounded before anything is kept. `ls` is answered like a protocol
that is not spoken: nobody who has not proved a key learns what a node serves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from comity.errors import FrameTooLarge, ProtocolError, UnexpectedMessage
from comity_node.transport.varint import Delimited, decode_varint, delimit

HEADER = "/multistream/1.0.0"
_REFUSAL = "na"
#: The longest message, as in other implementations.
MAX_MESSAGE = 1024
#: What one negotiation may cost each way: the version, and so many proposals.
MAX_MESSAGES = 16


def encode(text: str) -> bytes:
    """Return `text` as one message.

    Raises:
        ValueError: it is empty, longer than a message may be, or has a newline in it.
    """
    body = text.encode() + b"\n"
    if not 1 < len(body) <= MAX_MESSAGE or "\n" in text:
        raise ValueError(f"{text!r} is no protocol name")
    return delimit(body)


_HEADER = encode(HEADER)
_NA = encode(_REFUSAL)


class _Messages:
    """Takes texts out of a stream of bytes."""

    def __init__(self) -> None:
        self._delimited = Delimited(MAX_MESSAGE)
        self._left = MAX_MESSAGES

    @property
    def rest(self) -> bytes:
        """What has come beyond the messages that were taken."""
        return self._delimited.rest

    @property
    def missing(self) -> int:
        """Bytes until the message that has begun is whole, as far as it can be told; at least one."""
        rest = self.rest
        prefix = decode_varint(rest)
        return 1 if prefix is None else sum(prefix) - len(rest)

    def feed(self, data: bytes) -> None:
        self._delimited.receive(data)

    def next(self) -> str | None:
        """Return the next message, None until it is whole."""
        message = self._delimited.take()
        if message is None:
            return None
        self._left -= 1
        if self._left < 0:
            raise FrameTooLarge(f"the negotiation has more than {MAX_MESSAGES} messages")
        return _text(message)


class Opener:
    """The end that proposes."""

    def __init__(self, protocols: Sequence[str]) -> None:
        """Make an opener.

        Args:
            protocols: what to propose, the best first; at least one.

        Raises:
            ValueError: one of them is no protocol name, or there are too many or none.
        """
        if not 0 < len(protocols) < MAX_MESSAGES:
            raise ValueError(f"between one and {MAX_MESSAGES - 1} protocols can be proposed")
        self._proposals = [encode(each) for each in protocols]
        self._protocols = list(protocols)
        self._messages = _Messages()
        self._greeted = False
        self._at = 0
        self._unseen = len(_HEADER) + len(self._proposals[0])
        #: What the peer has agreed to.
        self.chosen: str | None = None
        #: Whether it has refused every proposal.
        self.refused = False

    def start(self) -> bytes:
        """Return the opening: the version and the first proposal."""
        return _HEADER + self._proposals[0]

    @property
    def proposed(self) -> str:
        """The proposal that the peer has not answered yet, or the last that it has."""
        return self._protocols[self._at]

    @property
    def wanted(self) -> int:
        """How many bytes can be read without reading what is not the negotiation's; 0 when it is over."""
        return 0 if self.chosen is not None or self.refused else max(1, self._unseen)

    def receive(self, data: bytes) -> bytes:
        """Take in bytes and return those to send.

        Raises:
            ProtocolError: the peer does not speak multistream-select.
            FrameTooLarge: it says too much.
        """
        self._unseen -= len(data)
        self._messages.feed(data)
        out = b""
        while not (self.chosen is not None or self.refused) and (message := self._messages.next()) is not None:
            out += self._on_message(message)
        return out

    def rest(self) -> bytes:
        """Return what the peer has sent after its agreement."""
        return self._messages.rest

    def _on_message(self, message: str) -> bytes:
        if not self._greeted:
            _check_header(message)
            self._greeted = True
        elif message == self._protocols[self._at]:
            self.chosen = message
        elif message != _REFUSAL:
            raise UnexpectedMessage(f"the peer answered {message[:40]!r} to {self._protocols[self._at]}")
        elif self._at + 1 == len(self._protocols):
            self.refused = True
        else:
            self._at += 1
            self._unseen = len(self._proposals[self._at]) - len(self._messages.rest)
            return self._proposals[self._at]
        return b""


class Listener:
    """The end that chooses."""

    def __init__(self, protocols: Collection[str]) -> None:
        """Make a listener that speaks `protocols`."""
        self._protocols = protocols
        self._messages = _Messages()
        self._greeted = False
        self._error: ProtocolError | None = None
        #: Whether a proposal was refused.
        self.has_refused = False
        #: What both ends speak from now on.
        self.chosen: str | None = None

    def start(self) -> bytes:
        """Return the opening: the version."""
        return _HEADER

    @property
    def wanted(self) -> int:
        """How many bytes can be read without reading what is not the negotiation's; 0 when it is over.

        The version has one form and the length of a proposal has to follow it: both are read at once.
        """
        if self.chosen is not None:
            return 0
        if self._error is not None:
            return 1  # nothing: the next call says what is wrong
        if not self._greeted:
            return max(1, len(_HEADER) + 1 - len(self._messages.rest))
        return self._messages.missing

    def receive(self, data: bytes) -> bytes:
        """Take in bytes and return those to send.

        What is malformed after something that is answered is raised by the next call, which may have no bytes: a
        dialler that has gone on in a protocol that is not spoken learns that before the connection is closed.

        Raises:
            ProtocolError: the peer does not speak multistream-select.
            FrameTooLarge: it says too much.
        """
        if self._error is not None:
            raise self._error
        self._messages.feed(data)
        out = b""
        try:
            while self.chosen is None and (message := self._messages.next()) is not None:
                out += self._on_message(message)
        except ProtocolError as error:
            if not out:
                raise
            self._error = error
        return out

    def _on_message(self, message: str) -> bytes:
        if not self._greeted:
            _check_header(message)
            self._greeted = True
            return b""
        if message in self._protocols:
            self.chosen = message
            return encode(message)
        self.has_refused = True
        return _NA

    def rest(self) -> bytes:
        """Return what the peer has sent after the proposal that was chosen."""
        return self._messages.rest


def _check_header(message: str) -> None:
    if message != HEADER:
        raise ProtocolError(f"the peer speaks {message[:40]!r} instead of {HEADER}")


def _text(body: bytes) -> str:
    if not body.endswith(b"\n"):
        raise ProtocolError("the peer does not speak multistream-select: a message without its newline")
    try:
        return body[:-1].decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("the peer does not speak multistream-select: a message is no text") from error
