"""A grid that asks for replies as soon as they can be there.

Flower's own grid waits three seconds between two looks, which is most of a small round.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid


class PromptGrid(Grid):  # type: ignore[misc]  # flwr ships no types
    """Wraps a grid and looks for replies every `interval_s` seconds."""

    def __init__(self, inner: Grid, *, interval_s: float = 0.25) -> None:
        self._inner = inner
        self._interval_s = interval_s

    def set_run(self, run: Any) -> None:  # noqa: ANN401  (flwr's Run)
        """Leave it to the inner grid."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:  # noqa: ANN401  (flwr's Run)
        """The run of the inner grid."""
        return self._inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Leave it to the inner grid."""
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Leave it to the inner grid."""
        node_ids: Iterable[int] = self._inner.get_node_ids()
        return node_ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Leave it to the inner grid."""
        message_ids: Iterable[str] = self._inner.push_messages(messages)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Leave it to the inner grid."""
        messages: Iterable[Message] = self._inner.pull_messages(message_ids)
        return messages

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages, and return the replies that came within `timeout` seconds (None: all of them)."""
        waiting = {message_id for message_id in self.push_messages(messages) if message_id}
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting:
            got = list(self.pull_messages(sorted(waiting)))
            replies.extend(got)
            waiting -= {message.metadata.reply_to_message_id for message in got}
            if not waiting or (deadline is not None and time.monotonic() >= deadline):
                break
            time.sleep(self._interval_s)
        return replies
