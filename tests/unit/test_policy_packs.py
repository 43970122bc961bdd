"""The ready policies decide what their cases say, every rule of theirs is tested, and the linter finds nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from comity_node.policy import cases
from comity_node.policy.lint import lint
from comity_node.policy.loader import load

POLICIES = Path(__file__).parents[2] / "policies"
PACKS = sorted(path.name.removesuffix(".tests.yaml") for path in POLICIES.glob("*.tests.yaml"))


def test_every_policy_has_cases() -> None:
    policies = {path.stem for path in POLICIES.glob("*.yaml") if not path.name.endswith(".tests.yaml")}
    assert policies == set(PACKS) >= {"hospital-research", "bank-fraud"}


@pytest.mark.parametrize("pack", PACKS)
def test_pack_decides_as_its_cases_say(pack: str) -> None:
    report = cases.run(POLICIES / f"{pack}.tests.yaml")
    assert [str(failure) for failure in report.failures] == []
    assert report.passed
    assert report.results
    assert report.untested == ()


@pytest.mark.parametrize("pack", PACKS)
def test_pack_has_no_findings(pack: str) -> None:
    assert [str(finding) for finding in lint(load(POLICIES / f"{pack}.yaml"))] == []
