"""The router as the engine of tasks under way sees it (`passing.ports.Routing`): names instead of candidates, no clock.

What the router is told of each candidate comes from where it is known: the links (who is reachable), the journal (how
reliable somebody is), and the market (what it asks for).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from comity_node.runtime.router import Candidate, Router


class FlowRouting:
    """Picks holders of tokens with the router that reviews are drawn with."""

    def __init__(
        self, router: Router, *, me: str, clock_s: Callable[[], float], reachable: Callable[[str], bool],
        price: Callable[[str, str], float] = lambda organization, skill: 0.0,
    ) -> None:  # fmt: skip
        """Pick in the name of organization `me`.

        Args:
            router: the node's.
            me: the own organization: always reachable.
            clock_s: the monotonic clock that the router is used with everywhere, in seconds.
            reachable: whether a node of an organization is linked.
            price: what an organization asks for a row of a skill.
        """
        self._router, self._me = router, me
        self._clock_s, self._reachable, self._price = clock_s, reachable, price
        #: Means of the journal's counts, for whom there are any; whoever reads the journal keeps it fresh.
        self.reliability: Mapping[str, float] = {}

    def pick(self, skill: str, candidates: Sequence[str], now_s: float) -> str | None:
        """Return one of `candidates` for a piece of work, None if none of them should be asked now."""
        del now_s  # the router's own clock is asked: all its users have to have the same one
        known = [
            Candidate(
                each,
                each == self._me or self._reachable(each),
                self.reliability.get(each, 0.5),
                self._price(each, skill),
            )
            for each in dict.fromkeys(candidates)
        ]
        return self._router.pick(skill, known, self._clock_s())

    def asked(self, organization: str, skill: str, workflow: str = "") -> None:
        """Note that a token of a workflow went to an organization."""
        self._router.asked(skill, organization, self._clock_s(), workflow)

    def answered(self, organization: str, skill: str, after_s: float, good: bool) -> None:
        """Note that it came back (`good`), or that it was refused or its lease ran out."""
        self._router.answered(skill, organization, self._clock_s(), after_s, good)

    def overtaken(self, organization: str, skill: str, after_s: float) -> None:
        """Note that it is not wanted back any more: somebody else's came first."""
        self._router.overtaken(skill, organization, self._clock_s(), after_s)

    def released(self, organization: str, skill: str, after_s: float) -> None:
        """Note that it is not wanted back any more: the task was called off."""
        self._router.released(skill, organization, self._clock_s(), after_s)

    def hinted(self, organization: str, wait_s: float) -> None:
        """Note that an organization says that a token it gets now would take it so many seconds."""
        self._router.hinted(organization, self._clock_s(), wait_s)

    def busy(self, organization: str, retry_after_s: float) -> None:
        """Note that an organization takes nothing for so long."""
        self._router.quiet(organization, self._clock_s(), retry_after_s)
