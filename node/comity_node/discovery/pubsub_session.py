"""What a gossiping node has of each peer, and what it is told to keep to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import trio

from comity_node.links import Changes, LinkState
from comity_node.protocol.gossip import Verdict
from comity_node.protocol.gossip_params import GossipParams
from comity_node.protocol.gossip_queue import SendQueue
from comity_node.transport.base import ByteStream

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Received:
    """A message whose signature holds.

    Attributes:
        topic: where it was published.
        data: the payload.
        author: the PeerId of who has signed it.
        source: the PeerId of the first who brought it.
    """

    topic: str
    data: bytes
    author: str
    source: str


Validator = Callable[[Received], Awaitable[Verdict]]
Handler = Callable[[Received], Awaitable[None]]


class Randomness(Protocol):
    """What is needed of `random.Random`."""

    def random(self) -> float:
        """Return a number from 0 up to 1."""
        ...

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        """Return `k` different members of a sequence."""
        ...


class LinkView(Protocol):
    """What is needed of `Links`."""

    @property
    def changes(self) -> Changes:
        """Counts changes of any link's state."""
        ...

    def peers(self) -> list[LinkState]:
        """The state of every link."""
        ...


@dataclass(frozen=True, slots=True)
class PubSubSettings:
    """Bounds and times of the service.

    Attributes:
        gossip: the router's.
        queue_bytes: of messages and gossip that wait for one peer; then the oldest are dropped.
        queue_control: control RPCs that wait for one peer; then its session ends.
        validators: messages that are validated, and handed out, at once.
        validate_s: for one validator's word, then the message is ignored; and for one handler.
        open_s: for opening a stream.
        receive_per_s: bytes a second that are read from one peer; faster ones wait.
        receive_burst: of them, at once after a quiet time.
        backoff_first_s: before a session that ended begins anew; doubles each time, with jitter.
        backoff_max_s: the longest such time.
    """

    gossip: GossipParams = field(default_factory=GossipParams)
    queue_bytes: int = 1024 * 1024
    queue_control: int = 256
    validators: int = 4
    validate_s: float = 5.0
    open_s: float = 10.0
    receive_per_s: float = 1024 * 1024
    receive_burst: float = 4 * 1024 * 1024
    backoff_first_s: float = 0.25
    backoff_max_s: float = 30.0


class Session:
    """One peer for as long as nothing breaks."""

    def __init__(self, peer: str, key: bytes, settings: PubSubSettings) -> None:
        self.peer, self.key = peer, key
        self.queue = SendQueue(most_bytes=settings.queue_bytes, most_control=settings.queue_control)
        self.outbound: ByteStream | None = None
        self.inbound: ByteStream | None = None
        self.closed = False
        self._wake = trio.Event()

    def wake(self) -> None:
        """There is something to write, or nothing any more."""
        self._wake.set()

    async def wait(self) -> None:
        """Wait until there is something to write."""
        while not self.queue and not self.closed:
            self._wake = trio.Event()
            await self._wake.wait()
