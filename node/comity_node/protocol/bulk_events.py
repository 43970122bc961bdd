"""What the two state machines of a bulk transfer report (`protocol.bulk`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Offered:
    """The sender's manifest: an envelope that nobody has verified yet."""

    envelope: bytes


@dataclass(frozen=True, slots=True)
class LeavesReceived:
    """All digests of the chunks, joined. They have to be checked against the root before the next event is used."""

    leaves: bytes


@dataclass(frozen=True, slots=True)
class ChunkReceived:
    """A chunk of the right length. Give `data` back with `recycle` when it is written."""

    index: int
    data: bytearray


@dataclass(frozen=True, slots=True)
class Granted:
    """The receiver takes it: go on at `next_chunk`, with the leaves before it unless it holds them."""

    next_chunk: int
    leaves_known: bool


@dataclass(frozen=True, slots=True)
class Declined:
    """The receiver does not take it."""

    code: str
    reason: str
    rules: tuple[str, ...]
    retry_after_ms: int


@dataclass(frozen=True, slots=True)
class Progressed:
    """The receiver has `stored` chunks on its disk and has read `checked` of them again."""

    stored: int
    checked: int


@dataclass(frozen=True, slots=True)
class Receipted:
    """The receiver's signed receipt: an envelope that nobody has verified yet."""

    envelope: bytes


@dataclass(frozen=True, slots=True)
class Aborted:
    """The other side ended the transfer."""

    code: str
    reason: str


ReceiverEvent = Offered | LeavesReceived | ChunkReceived | Aborted
SenderEvent = Granted | Declined | Progressed | Receipted | Aborted
