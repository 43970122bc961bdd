"""What waits to be written to one peer: bounded, control before gossip, and only gossip is ever dropped."""

from __future__ import annotations

from collections import deque
from typing import Final

from comity.errors import Busy
from comity_node.protocol.gossip_rpc import Rpc, encode_frame

#: Bytes of a message beside its payload and topic, and of an ID in a list: enough for the sum to be a bound.
_MESSAGE_BYTES: Final = 256
_ID_BYTES: Final = 64


class SendQueue:
    """RPCs on their way to a peer that may be slow.

    When gossip (messages, IHAVE, IWANT) is too much, the oldest of it goes: it can be asked for again. Control
    (subscriptions, GRAFT, PRUNE) is never dropped; a peer for which too much of it waits does not read.
    """

    def __init__(self, *, most_bytes: int, most_control: int) -> None:
        """Make a queue.

        Args:
            most_bytes: of gossip.
            most_control: RPCs of control.
        """
        self._most_bytes, self._most_control = most_bytes, most_control
        self._control: deque[Rpc] = deque()
        self._gossip: deque[tuple[Rpc, int]] = deque()
        #: Bytes of gossip that wait.
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._control) + len(self._gossip)

    def put(self, rpc: Rpc) -> list[Rpc]:
        """Add an RPC, and return the older ones that were dropped for it.

        Raises:
            Busy: too much control waits.
        """
        if rpc.is_control:
            if len(self._control) >= self._most_control:
                raise Busy(f"{len(self._control)} control messages wait for a peer that does not read")
            self._control.append(rpc)
            return []
        size = _size(rpc)
        self._gossip.append((rpc, size))
        self.bytes += size
        dropped: list[Rpc] = []
        while self.bytes > self._most_bytes:
            oldest, size = self._gossip.popleft()
            self.bytes -= size
            dropped.append(oldest)
        return dropped

    def take(self, most_bytes: int) -> bytes:
        """Return the frames that go next, and forget them: one at least, and further ones up to a size."""
        frames: list[bytes] = []
        size = 0
        while self and size < most_bytes:
            if self._control:
                frame = encode_frame(self._control.popleft())
            else:
                rpc, bytes_ = self._gossip.popleft()
                self.bytes -= bytes_
                frame = encode_frame(rpc)
            frames.append(frame)
            size += len(frame)
        return b"".join(frames)


def _size(rpc: Rpc) -> int:
    ids = len(rpc.iwant) + sum(len(have.ids) for have in rpc.ihave)
    return ids * _ID_BYTES + sum(len(message.data) + _MESSAGE_BYTES for message in rpc.messages)
