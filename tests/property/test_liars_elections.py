"""S9 against every lie that the threat model lists: n reviewers, f of them liars, the author may be with them."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity_node.protocol.quorum import Outcome
from kit.liars import STRATEGIES, Record, Tally, World

SIZES = (4, 7, 10)
#: Lies that leave two signed documents which contradict each other in the home's hands.
PROVEN = frozenset({"equivocate"})


def check_promises(world: World) -> None:
    """What S9 promises, whatever was done."""
    tally = world.tally
    assert tally.bad_certified == 0, "no bad record is certified"
    assert tally.good_rejected == 0, "no certificate says that a good record is bad"
    assert tally.both_sides == 0, "no certificate is made of lies"
    assert not world.suspended() & world.honest, "no honest organization is suspended"
    known = world.reliability()
    for name in world.honest:
        assert known.get(name, 0.5) >= 0.5, "none falls below a newcomer"


@pytest.mark.invariant("S9")
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("eligible", SIZES)
def test_liars_of_one_mind_certify_nothing_bad_and_expel_nobody_good(eligible: int, strategy: str) -> None:
    world = World(eligible, seed=eligible)
    plan = dict.fromkeys(world.liars, strategy)
    for number in range(4):
        world.hold(world.record(number, good=number % 2 == 0), plan)
    check_promises(world)
    tally = world.tally
    assert (tally.good_certified, tally.bad_rejected) == (2, 2), "n - f who agree are a quorum: nothing good is lost"
    assert world.suspended() == (world.liars if strategy in PROVEN else frozenset())


@pytest.mark.invariant("S9")
@settings(max_examples=12, deadline=None)
@given(st.sampled_from(SIZES), st.integers(0, 2**20), st.data())
def test_liars_of_many_minds_neither(eligible: int, seed: int, data: st.DataObject) -> None:
    world = World(eligible, seed=seed)
    for number in range(4):
        plan = {name: data.draw(st.sampled_from(sorted(STRATEGIES)), label=name) for name in sorted(world.liars)}
        world.hold(world.record(number, good=data.draw(st.booleans())), plan)
    check_promises(world)
    assert world.tally.undecided == 0


@pytest.mark.invariant("S9")
@pytest.mark.parametrize("eligible", [7, 10])
def test_a_panel_bears_as_many_liars_as_its_size_says(eligible: int) -> None:
    """Four are drawn of seven or ten; one liar among all, so at most one in any panel."""
    for strategy in STRATEGIES:
        world = World(eligible, seed=eligible, panel=4, liars=1)
        for number in range(2):
            world.hold(world.record(number, good=number % 2 == 0), dict.fromkeys(world.liars, strategy))
        check_promises(world)
        assert world.tally.undecided == 0


@pytest.mark.parametrize("eligible", SIZES)
def test_with_a_quorum_of_liars_everything_is_lost(eligible: int) -> None:
    """The tests above are ones that can fail."""
    world = World(eligible, seed=1, liars=(2 * eligible) // 3 + 1)
    outcome = world.hold(world.record(0, good=False), dict.fromkeys(world.liars, "accept all"))
    assert outcome is Outcome.ACCEPT
    assert world.tally.bad_certified == 1
    with pytest.raises(AssertionError, match="no bad record"):
        check_promises(world)


# -- records that honest reviewers do not see the same way -------------------------------------------------------------


def shares(world: World, opinions: list[tuple[Record, dict[str, int]]], name: str) -> tuple[int, int]:
    """Of records: how many liars cannot keep `name` from agreeing on, and on how many they can have it outvoted."""
    rule, safe, lost = world.agreed.rule, 0, 0
    for record, differs in opinions:
        says = {one: differs.get(one, 9000 if record.good else 500) >= 5000 for one in world.honest}
        with_it = sum(says[one] == says[name] for one in world.honest)
        safe += with_it >= rule.quorum
        lost += len(world.honest) - with_it >= rule.quorum - rule.faulty
    return safe, lost


@pytest.mark.invariant("S9")
@settings(max_examples=10, deadline=None)
@given(st.sampled_from(SIZES), st.integers(0, 2**20), st.data())
def test_a_coalition_moves_no_honest_reviewer_below_the_bound(eligible: int, seed: int, data: st.DataObject) -> None:
    """docs/reliability.md: B = min(1/2, U / (U + E)), over the records of this run."""
    world, random = World(eligible, seed=seed), Random(seed)
    held: list[tuple[Record, dict[str, int]]] = []
    for number in range(6):
        record = world.record(number, good=data.draw(st.booleans()), contested=random.random() < 0.5)
        differs = {}
        if record.contested:
            differs = {name: 500 if record.good else 9000 for name in sorted(world.honest) if random.random() < 0.4}
        plan = {name: data.draw(st.sampled_from(sorted(STRATEGIES)), label=name) for name in sorted(world.liars)}
        world.hold(record, plan, differs)
        held.append((record, differs))
        known = world.reliability()
        for name in world.honest:
            safe, lost = shares(world, held, name)
            bound = min(0.5, safe / (safe + lost) if safe + lost else 0.5)
            assert known.get(name, 0.5) >= bound - 1e-3
    assert not world.suspended() & world.honest
    assert world.tally.both_sides == 0


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("S9")
def test_figures_of_all_lies() -> None:
    """The table of docs/reliability.md: `pytest tests/property/test_liars_elections.py -k figures -s`."""
    lines = ["n f elections bad-certified good-lost forged refused honest-suspended honest-below-B liars-suspended"]
    for eligible in SIZES:
        total, below, suspended, caught, count = Tally(), 0, 0, 0, 0
        for index, strategy in enumerate(STRATEGIES):
            world = World(eligible, seed=100 + index)
            for number in range(2):
                world.hold(world.record(number, good=number == 0), dict.fromkeys(world.liars, strategy))
                count += 1
            for name in vars(total):
                setattr(total, name, getattr(total, name) + getattr(world.tally, name))
            known = world.reliability()
            below += sum(known.get(name, 0.5) < 0.5 for name in world.honest)
            suspended += len(world.suspended() & world.honest)
            caught += len(world.suspended() & world.liars)
        lost = total.good_rejected + total.undecided
        lines.append(
            f"{eligible} {(eligible - 1) // 3} {count} {total.bad_certified} {lost} {total.both_sides}"
            f" {total.refused} {suspended} {below} {caught}"
        )
        assert (total.bad_certified, lost, total.both_sides, suspended, below) == (0, 0, 0, 0, 0)
        assert total.refused > 0
        assert caught > 0
    print("\n" + "\n".join(lines))
