"""What the runtime needs of the parts above and beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from trio_typing import TaskStatus as _TaskStatus  # mypy sees trio through trio-typing's stubs

#: What `trio.Nursery.start` gives a task to say that it is up.
TaskStatus: TypeAlias = "_TaskStatus[None]"


class Workers(Protocol):
    """The organization's own agents."""

    async def call(self, skill: str, payload: Any, *, deadline_s: float) -> Any:  # noqa: ANN401  (JSON in, JSON out)
        """Have an agent with `skill` work on `payload` and return its answer.

        Raises:
            AgentError: nobody offers the skill, the worker was lost, or the agent failed.
            Busy: every worker is busy and the queue is full.
        """

    def skills(self) -> tuple[str, ...]:
        """Return the skills that connected workers offer."""
