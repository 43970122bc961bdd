"""What the router remembers: IDs that it has seen, messages that others may ask for, back-offs and promises.

Every table has a bound and says what happens at it. Python's dicts keep the order of insertion, which here is the order
of time: what is oldest stands first, and nothing is searched when things expire.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from comity_node.protocol.gossip_message import SEQNO_BYTES, GossipMessage


class Bucket:
    """So many turns a second and a burst of them; kept as the time at which it is full again (ITU-T I.371, GCRA)."""

    __slots__ = ("_full_ms",)

    def __init__(self) -> None:
        self._full_ms = 0.0

    def has_turn(self, now_ms: int, per_s: float, burst: float) -> bool:
        """Whether a turn is there; it is not taken."""
        return max(self._full_ms, now_ms) + 1000 / per_s - burst * 1000 / per_s <= now_ms

    def take(self, now_ms: int, per_s: float, burst: float) -> bool:
        """Take a turn if one is there, and say whether it was."""
        if not self.has_turn(now_ms, per_s, burst):
            return False
        self._full_ms = max(self._full_ms, now_ms) + 1000 / per_s
        return True


@dataclass(slots=True)
class Author:
    """What is remembered of an author.

    Attributes:
        bucket: how many messages of it are taken.
        floor: the highest number of its messages that have been forgotten: what is not above it is a replay.
    """

    bucket: Bucket = field(default_factory=Bucket)
    floor: int = -1


class Authors:
    """Authors of verified messages; when there are too many, the one that was silent for longest is forgotten."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[bytes, Author] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, author: bytes) -> Author | None:
        """Return what is known of an author."""
        return self._known.get(author)

    def touch(self, author: bytes) -> Author:
        """Return what is known of an author that was just heard of."""
        known = self._known.get(author)
        if known is None:
            known = self._known[author] = Author()
            if len(self._known) > self._most:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(author)
        return known


class Seen:
    """IDs of messages that were looked at, for a time; a full table forgets the oldest.

    What is forgotten raises its author's floor, so that it is not taken a second time.
    """

    def __init__(self, authors: Authors, *, most: int, ttl_ms: int) -> None:
        self._authors, self._most, self._ttl_ms = authors, most, ttl_ms
        self._until: dict[bytes, int] = {}
        self._rejected: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, message_id: bytes) -> bool:
        return message_id in self._until

    def add(self, message_id: bytes, now_ms: int) -> None:
        """Remember an ID."""
        self._until[message_id] = now_ms + self._ttl_ms
        if len(self._until) > self._most:
            self._forget(next(iter(self._until)))

    def reject(self, message_id: bytes) -> None:
        """What is behind a remembered ID was rejected: whoever sends it again sends something invalid."""
        if message_id in self._until:
            self._rejected.add(message_id)

    def was_rejected(self, message_id: bytes) -> bool:
        """Whether what is behind the ID was rejected."""
        return message_id in self._rejected

    def is_replay(self, message_id: bytes) -> bool:
        """Whether an ID is of a message that was forgotten, or of one that is older still."""
        author = self._authors.find(message_id[:-SEQNO_BYTES])
        return author is not None and int.from_bytes(message_id[-SEQNO_BYTES:], "big") <= author.floor

    def expire(self, now_ms: int) -> None:
        """Forget what is old."""
        while self._until:
            oldest = next(iter(self._until))
            if self._until[oldest] > now_ms:
                return
            self._forget(oldest)

    def _forget(self, message_id: bytes) -> None:
        del self._until[message_id]
        self._rejected.discard(message_id)
        author = self._authors.touch(message_id[:-SEQNO_BYTES])
        author.floor = max(author.floor, int.from_bytes(message_id[-SEQNO_BYTES:], "big"))


@dataclass(slots=True)
class Cached:
    """A message that others may ask for; `beat`: the heartbeat it came in; `sent`: how often to whom, on demand."""

    message: GossipMessage
    beat: int
    sent: dict[bytes, int] | None = None

    def count(self, peer: bytes) -> int:
        """Count one more time that it is sent to a peer, and return how often that was."""
        if self.sent is None:
            self.sent = {}
        self.sent[peer] = self.sent.get(peer, 0) + 1
        return self.sent[peer]

    def uncount(self, peer: bytes) -> None:
        """It was dropped on its way to a peer that had asked for it."""
        if self.sent is not None and self.sent.get(peer):
            self.sent[peer] -= 1


class MessageCache:
    """The latest accepted messages, in windows of one heartbeat; a full cache forgets the oldest (mcache)."""

    def __init__(self, *, most: int, most_bytes: int, length: int) -> None:
        self._most, self._most_bytes, self._length = most, most_bytes, length
        self._entries: dict[bytes, Cached] = {}
        self._beat = 0
        #: Bytes of the payloads.
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, message: GossipMessage) -> None:
        """Keep a message."""
        if message.id in self._entries:
            return
        self._entries[message.id] = Cached(message, self._beat)
        self.bytes += len(message.data)
        while len(self._entries) > self._most or self.bytes > self._most_bytes:
            self._drop_oldest()

    def get(self, message_id: bytes) -> Cached | None:
        """Return a message that is there."""
        return self._entries.get(message_id)

    def ids(self, topic: str, *, windows: int, most: int) -> tuple[bytes, ...]:
        """Return IDs of a topic's messages of the latest windows, newest first."""
        found: list[bytes] = []
        for message_id, entry in reversed(self._entries.items()):
            if entry.beat <= self._beat - windows or len(found) >= most:
                break
            if entry.message.topic == topic:
                found.append(message_id)
        return tuple(found)

    def shift(self) -> None:
        """Begin a new window, and forget the oldest."""
        self._beat += 1
        while self._entries and next(iter(self._entries.values())).beat <= self._beat - self._length:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = next(iter(self._entries))
        self.bytes -= len(self._entries.pop(oldest).message.data)


class Backoffs:
    """Who must not be in the mesh of a topic until when; when there are too many, the oldest is forgotten."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._until: dict[tuple[str, bytes], int] = {}

    def __len__(self) -> int:
        return len(self._until)

    def add(self, topic: str, peer: bytes, until_ms: int) -> None:
        """Back off; never for a shorter time than before."""
        key = topic, peer
        self._until[key] = max(until_ms, self._until.get(key, 0))
        if len(self._until) > self._most:
            del self._until[next(iter(self._until))]

    def until(self, topic: str, peer: bytes) -> int:
        """Return until when; 0 if there is no back-off."""
        return self._until.get((topic, peer), 0)

    def expire(self, now_ms: int) -> None:
        """Forget those that are over."""
        if any(until <= now_ms for until in self._until.values()):
            self._until = {key: until for key, until in self._until.items() if until > now_ms}


class Promises:
    """Messages that peers said to have and were asked for; when there are too many, further ones are not tracked."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[bytes, dict[bytes, int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, message_id: bytes, peer: bytes, deadline_ms: int) -> None:
        """A peer was asked for what it said to have."""
        if self._count < self._most and peer not in self._open.get(message_id, ()):
            self._open.setdefault(message_id, {})[peer] = deadline_ms
            self._count += 1

    def keep(self, message_id: bytes) -> None:
        """The message came, from whomever: nobody has broken a promise."""
        self._count -= len(self._open.pop(message_id, ()))

    def broken(self, now_ms: int) -> Iterator[bytes]:
        """Return the peers that have not kept theirs in time, once for each, and forget those promises."""
        for message_id, peers in list(self._open.items()):
            for peer in [peer for peer, deadline_ms in peers.items() if deadline_ms <= now_ms]:
                del peers[peer]
                self._count -= 1
                yield peer
            if not peers:
                del self._open[message_id]
