"""What a node stands on says weeks ahead that it ends."""

from __future__ import annotations

import pytest

from comity.bundle import read_bundle
from comity.errors import ChainInvalid
from comity.expiry import Expiry, Level, expiries
from kit.epochs import BEGIN_MS, DAY_MS, authority, first, node_of, with_root

A, B = authority("a"), authority("b")
NEXT_A = authority("a", 1)


@pytest.mark.parametrize(
    ("left_ms", "level", "days"),
    [
        (30 * DAY_MS + 1, "ok", 30),
        (30 * DAY_MS, "notice", 30),
        (14 * DAY_MS + 1, "notice", 14),
        (14 * DAY_MS, "warning", 14),
        (7 * DAY_MS, "urgent", 7),
        (DAY_MS + 1, "urgent", 1),
        (DAY_MS, "critical", 1),
        (1, "critical", 0),
        (0, "expired", 0),
        (-1, "expired", -1),
    ],
)
def test_levels(left_ms: int, level: Level, days: int) -> None:
    expiry = Expiry.of("bundle", "epoch 1", BEGIN_MS + left_ms, BEGIN_MS)
    assert (expiry.level, expiry.days_left) == (level, days)


def test_the_certificate_every_own_root_and_the_bundle_the_soonest_first() -> None:
    raw = with_root(first("a", "b"), NEXT_A, A, NEXT_A, B)
    found = expiries(node_of(A, days=10).chain, read_bundle(raw), BEGIN_MS)
    assert [(one.what, one.level) for one in found] == [
        ("certificate", "warning"),
        ("bundle", "ok"),
        ("root", "ok"),
        ("root", "ok"),
    ]
    assert found[0].at_ms == BEGIN_MS + 10 * DAY_MS
    alone = expiries(node_of(A, days=10).chain[:1], read_bundle(raw), BEGIN_MS)
    assert [one.what for one in alone] == ["certificate", "bundle", "root", "root"], "a chain may be one certificate"
    stranger = expiries(node_of(authority("z")).chain, read_bundle(raw), BEGIN_MS)
    assert [one.what for one in stranger] == ["certificate", "bundle", "root"]
    with pytest.raises(ChainInvalid, match="no certificate"):
        expiries([b"garbage"], read_bundle(raw), BEGIN_MS)
