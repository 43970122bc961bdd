"""What tests of hostile members share."""

from __future__ import annotations

from typing import Any

from comity.agreement import Agreed, open_agreement
from comity.v1.task_pb2 import Receipt
from kit.consortium import NOW_MS
from kit.documents import make_agreement, make_terms
from kit.lab import Lab, now_ms


async def concluded(lab: Lab, *wanted: str, **changes: Any) -> Agreed:
    """Have `wanted` take part in an agreement that nobody negotiated; their own agents are held."""
    for name in wanted:
        lab.members[name].hold()
    terms = make_terms(lab.consortium, wanted, issued_ms=NOW_MS, expires_ms=now_ms() + 600_000, **changes)
    data = make_agreement(lab.consortium, terms)
    for name in wanted:
        await lab.members[name].up.runtime.agreements.add(data)
    return open_agreement(data, lab.consortium.trust)


def refusal(receipt: Receipt) -> tuple[str, str]:
    """Code and reason of a receipt that refuses, and gives nothing away."""
    assert receipt.status == Receipt.STATUS_REFUSED
    assert receipt.reason
    assert not receipt.body
    return receipt.code, receipt.reason
