"""What the runtime needs of the parts above and beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from comity_node.tracing import Subject

if TYPE_CHECKING:
    from trio_typing import TaskStatus as _TaskStatus  # mypy sees trio through trio-typing's stubs

#: What `trio.Nursery.start` gives a task to say that it is up.
TaskStatus: TypeAlias = "_TaskStatus[None]"
#: Any JSON value.
Json: TypeAlias = Any


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


@runtime_checkable
class Knowing(Protocol):
    """Workers that want to know for which tasks they are called."""

    async def call_for(self, subjects: Sequence[Subject], skill: str, payload: Json, *, deadline_s: float) -> Json:
        """Do as `Workers.call` does, for these tasks."""


async def call_for(
    workers: Workers, subjects: Sequence[Subject], skill: str, payload: Json, *, deadline_s: float
) -> Json:
    """Have workers do a piece of work for some tasks, as `Workers.call` does."""
    if isinstance(workers, Knowing):
        return await workers.call_for(subjects, skill, payload, deadline_s=deadline_s)
    return await workers.call(skill, payload, deadline_s=deadline_s)
