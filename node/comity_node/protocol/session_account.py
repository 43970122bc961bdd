"""What is outstanding on a stream of messages. Both ends keep the same account of it, and hold each other to it.

Calls, and items of a stream, may go as long as there is room for one in their number and for one byte in their
bytes. So at most one payload goes over the limit in bytes, and one that is larger than the limit can still go.
"""

from __future__ import annotations

from comity.errors import UnexpectedMessage


class Credit:
    """How much of one stream may still come."""

    __slots__ = ("bytes", "items")

    def __init__(self, items: int, size: int) -> None:
        self.items, self.bytes = items, size

    @property
    def has_room(self) -> bool:
        """Whether one more item may go."""
        return self.items > 0 and self.bytes > 0

    def grant(self, items: int, size: int, limit: int) -> None:
        """Let so many more items and bytes go.

        Raises:
            UnexpectedMessage: it grants nothing, or more than `limit` would be granted and not used.
        """
        if not (items or size) or self.items + items > limit or self.bytes + size > limit:
            raise UnexpectedMessage(f"a credit of {items} items and {size} bytes makes no sense")
        self.items += items
        self.bytes += size

    def spend(self, size: int) -> None:
        """One item of so many bytes goes.

        Raises:
            UnexpectedMessage: there is no credit for it.
        """
        if not self.has_room:
            raise UnexpectedMessage("an item beyond the credit of its stream")
        self.items -= 1
        self.bytes -= size


class Account:
    """The calls that have no answer yet."""

    __slots__ = ("bytes", "cancelled", "credits", "max_bytes", "max_calls", "notice_bytes", "notices", "sizes")

    def __init__(self, max_calls: int, max_bytes: int) -> None:
        self.max_calls, self.max_bytes = max_calls, max_bytes
        #: Bytes of the payload of each call that is to be answered.
        self.sizes: dict[int, int] = {}
        #: Of them, the streams.
        self.credits: dict[int, Credit] = {}
        #: Of them, those that the opener does not wait for.
        self.cancelled: set[int] = set()
        #: Notifications that are not settled, and the bytes of their payloads.
        self.notices = 0
        self.notice_bytes = 0
        #: Bytes of all payloads together.
        self.bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether one more call may go."""
        return len(self.sizes) + self.notices < self.max_calls and self.bytes < self.max_bytes

    @property
    def outstanding(self) -> int:
        """Calls without an answer and notifications that are not settled."""
        return len(self.sizes) + self.notices

    def end(self, request_id: int) -> bool:
        """A call that is there ends. Returns whether the opener still waits for it."""
        self.bytes -= self.sizes.pop(request_id)
        if self.credits:
            self.credits.pop(request_id, None)
        if self.cancelled and request_id in self.cancelled:
            self.cancelled.remove(request_id)
            return False
        return True

    def note(self, size: int) -> None:
        """A notification goes."""
        self.notices += 1
        self.notice_bytes += size
        self.bytes += size

    def settle(self, count: int, size: int) -> None:
        """Notifications have been worked on.

        Raises:
            UnexpectedMessage: there are not that many, or not with so many bytes.
        """
        left, bytes_left = self.notices - count, self.notice_bytes - size
        if count == 0 or left < 0 or bytes_left < 0 or (left == 0 and bytes_left):
            raise UnexpectedMessage(f"{count} notifications of {size} bytes settled, which were not outstanding")
        self.notices, self.notice_bytes = left, bytes_left
        self.bytes -= size
