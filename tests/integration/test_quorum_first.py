"""A quorum is asked first, and further ones when somebody is late, refuses, or votes otherwise."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from comity.certificate import QuorumRule
from comity_node.protocol.quorum import Ballot
from comity_node.runtime.assignments import Assigned
from comity_node.runtime.offering import Offering
from comity_node.runtime.router import REVIEW, Router
from comity_node.storage import journal
from kit.lab import Lab, policy, run, until

ADA = "org00.example"
NOW_MS = 1_000_000
LEASE_MS = 30_000


class Votes:
    """A ballot with so many votes of each side."""

    def __init__(self, accepts: int, rejects: int = 0) -> None:
        self._votes = {True: [object()] * accepts, False: [object()] * rejects}

    def votes(self, accept: bool) -> list[object]:
        return self._votes[accept]


def row(state: Assigned, age_ms: int = 0) -> journal.AssignmentRow:
    began_ms = NOW_MS - age_ms
    return journal.AssignmentRow(bytes(16), 0, "x.example", state.value, began_ms, began_ms + LEASE_MS)


def offering(router: Router) -> Offering:
    nothing = cast("Any", None)
    identity = cast("Any", SimpleNamespace(organization=ADA))
    return Offering(
        identity=identity, gate=nothing, record_gate=nothing, messenger=nothing, database=nothing, outbox=nothing,
        router=router, suspensions=nothing,
    )  # fmt: skip


def missing(
    votes: list[Votes], assignments: list[journal.AssignmentRow], *, eligible: int = 7, router: Router | None = None
) -> int:
    terms = SimpleNamespace(lease_seconds=LEASE_MS // 1000, review=SimpleNamespace(commit_reveal=False))
    agreed = cast("Any", SimpleNamespace(rule=QuorumRule.of(eligible), terms=terms))
    made = offering(router or cast("Any", SimpleNamespace(late_after_s=lambda skill: 2.0)))
    return made.missing(agreed, cast("list[Ballot]", votes), assignments, NOW_MS)


HELD, SLOW, LATE = row(Assigned.HELD), row(Assigned.HELD, 3_000), row(Assigned.HELD, LEASE_MS + 1)
VOTED, REFUSED = row(Assigned.VOTED, 500), row(Assigned.REFUSED)


@pytest.mark.invariant("R3")
@pytest.mark.parametrize(
    ("votes", "assignments", "more"),
    [
        (Votes(0), [HELD] * 5, 0),  # 5 of 7 are a quorum, 2 may be faulty
        (Votes(3), [VOTED] * 3 + [HELD] * 2, 0),
        (Votes(0), [HELD] * 4 + [REFUSED], 1),
        (Votes(0), [HELD] * 4 + [LATE], 1),
        (Votes(0), [HELD] * 4 + [SLOW], 1),
        (Votes(0), [HELD] * 5 + [SLOW], 0),  # one has been asked beside it
        (Votes(0), [SLOW] * 5, 2),  # no more than f of them at a time
        (Votes(0), [SLOW] * 7, 0),
        (Votes(3, 1), [VOTED] * 4 + [HELD], 1),  # one vote against: one more is needed for a quorum
        (Votes(3, 2), [VOTED] * 5, 2),
        (Votes(4, 2), [VOTED] * 6, 1),
        (Votes(4, 3), [VOTED] * 7, 0),  # nobody is left
        (Votes(3, 1), [VOTED] * 4 + [HELD, REFUSED, REFUSED], 0),
    ],
)
def test_how_many_more_are_asked(votes: Votes, assignments: list[journal.AssignmentRow], more: int) -> None:
    assert missing([votes], assignments) == more


def test_the_task_that_lacks_most_says_how_many_more() -> None:
    assert missing([Votes(5), Votes(3, 2)], [VOTED] * 5) == 2


def test_who_is_slow_is_known_from_what_came_and_ends_with_the_lease() -> None:
    router = cast("Any", SimpleNamespace(late_after_s=lambda skill: None))
    assert missing([Votes(0)], [HELD] * 4 + [SLOW], router=router) == 0
    half = row(Assigned.HELD, LEASE_MS // 2)
    assert missing([Votes(0)], [HELD] * 4 + [half], router=router) == 1
    terms = cast("Any", SimpleNamespace(terms=SimpleNamespace(lease_seconds=30)))
    for late_s, wait_ms in ((0.001, 250), (2.0, 2_000), (900.0, LEASE_MS)):
        router = cast("Any", SimpleNamespace(late_after_s=lambda skill, late_s=late_s: late_s))
        assert offering(router).slow_at_ms(terms, HELD) == NOW_MS + wait_ms


def test_while_votes_agree_nobody_beyond_a_quorum_is_asked(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 5)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA)
        await lab.until_done(workflow_id)
        for name in lab.names:
            assert await lab.counts(name) == {"certified": 4}
            batches = dict(lab.members[name].rows("SELECT batch_id, COUNT(*) FROM assignments GROUP BY batch_id"))
            assert sorted(batches.values()) == [3, 3], "3 of 4 are a quorum"

    run(main)


@pytest.mark.invariant("R3")
def test_beside_a_mute_reviewer_another_is_asked_long_before_its_lease_ends(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 5)
    mute = lab.names[4]

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        router = lab.members[ADA].up.runtime.router
        for _ in range(20):  # it knows how fast the others are
            router.answered(REVIEW, lab.names[1], trio.current_time(), 0.05)
        lab.members[mute].hold()
        began = trio.current_time()
        workflow_id = await lab.submit(ADA, lease_seconds=300, expires_seconds=3_000, records_per_organization=16)
        await lab.until_done(workflow_id, ADA)
        assert trio.current_time() - began < 30, "a lease is 300 s"
        assert await lab.counts(ADA) == {"certified": 16}
        asked = [name for (name,) in lab.members[ADA].rows("SELECT organization FROM assignments")]
        assert mute in asked
        peers = {each.organization: each for each in router.snapshot(trio.current_time()).peers}
        assert peers[mute].failures >= 1, "a batch that was decided without it says that it was too slow"
        assert peers[mute].outstanding == 0, "and it takes no room in its window for that any more"
        assert router.snapshot(trio.current_time()).workflows == 1.0, "there is one, and it is counted"
        before = peers[mute].answers
        lab.members[mute].free.set()

        async def voted() -> bool:
            late = lab.members[ADA].rows("SELECT state FROM assignments WHERE organization = ?", mute)
            return all(state == "voted" for (state,) in late)

        await until(voted, "its votes come late")
        peers = {each.organization: each for each in router.snapshot(trio.current_time()).peers}
        assert peers[mute].answers == before, "and no request ends twice"

    run(main)


@pytest.mark.invariant("S1")
def test_what_one_reviewer_may_not_see_is_taken_to_another_alone(tmp_path: Path) -> None:
    """One of the four refuses to receive: three are left, which is the quorum."""
    lab = Lab(tmp_path, 5)
    refuser = lab.members[lab.names[4]]
    refuser.policy = policy(refuser.name, without=["record.receive"])

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA)
        await lab.until_done(workflow_id, ADA)
        assert await lab.counts(ADA) == {"certified": 4}
        voted = "SELECT COUNT(*) FROM assignments WHERE state = 'voted'"
        assert lab.members[ADA].rows(voted) == [(6,)]

    run(main)
