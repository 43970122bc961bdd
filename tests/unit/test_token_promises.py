"""What is owed under an agreement is remembered of each decision, and of each way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from comity.errors import PolicyDenied
from comity.v1.agreement_pb2 import Terms
from comity_node.admission.token_frame import Promises
from comity_node.policy.lattice import Obligations


def agreed(digest: bytes, *redacted: str) -> Any:
    terms = Terms()
    terms.obligations.redact.extend(redacted)
    return SimpleNamespace(digest=digest, terms=terms)


def test_what_one_decision_asks_for_is_not_owed_for_another() -> None:
    promises, name, place = (
        Promises(),
        Obligations(redact=frozenset({"name"})),
        Obligations(redact=frozenset({"place"})),
    )
    for _ in range(2):
        for asked in (name, place, Obligations()):
            owed = promises.owed(agreed(b"one"), asked, leaves=False)
            assert (owed.obligations.redact, owed.has_form) == (asked.redact, bool(asked.redact))


def test_what_one_agreement_promises_is_not_owed_under_another() -> None:
    promises, nothing = Promises(), Obligations()
    for _ in range(2):
        assert promises.owed(agreed(b"one"), nothing, leaves=False).obligations.redact == frozenset()
        assert promises.owed(agreed(b"two", "name"), nothing, leaves=False).obligations.redact == {"name"}


def test_what_others_are_not_bound_to_does_not_leave_though_it_came_in() -> None:
    promises, asked = Promises(), Obligations(retain_ms=1_000)
    for _ in range(2):
        promises.owed(agreed(b"one"), asked, leaves=False)
        with pytest.raises(PolicyDenied, match="for less"):
            promises.owed(agreed(b"one"), asked, leaves=True)
