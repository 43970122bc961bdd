"""Fuzzes agreements and their terms: as anybody could send them, and as all participants could sign them.

Run: python -m fuzz.run terms
"""

from __future__ import annotations

from comity.agreement import open_agreement, parse_terms, read_terms
from comity.digest import sha256
from comity.errors import ComityError
from comity.v1.agreement_pb2 import Agreement, Obligations, Terms
from fuzz.world import AGREEMENT, END_MS, HOME, NOW_MS, OTHER, TERMS, TRUST, agreement_over


def _with(**obligations: object) -> bytes:
    terms = Terms.FromString(TERMS)
    terms.obligations.CopyFrom(Obligations(onward="allowed", **obligations))  # type: ignore[arg-type]
    return terms.SerializeToString()


#: Where a fuzzer begins.
SEEDS = (
    TERMS,
    AGREEMENT,
    _with(redact=["a.b"], generalize={"x": 0.5}, min_distance_to_private=0.1),
    _with(retain_seconds=86_400),
)


def one(data: bytes) -> None:
    """Read the bytes as terms, as an agreement, and as terms that both participants have signed."""
    try:
        agreed = parse_terms(data)
    except ComityError:
        pass
    else:
        assert agreed.digest == sha256(data)
        terms = agreed.terms
        assert 2 <= len(terms.participants) <= 256
        assert terms.initiator in agreed.participants
        assert 0 < terms.expires_ms - terms.issued_ms <= 366 * 86_400_000
        signed = _opened(agreement_over(data))
        if signed is not None:
            assert signed == sha256(data)
            assert list(terms.participants) == [HOME, OTHER]
            assert terms.issued_ms < END_MS, "signed when no bundle was in force"
            assert terms.expires_ms >= NOW_MS - 60_000, "signed before the certificates were valid"
    try:
        read_terms(data)
    except ComityError:
        pass
    if (digest := _opened(data)) is not None:
        assert digest == sha256(TERMS), "terms that nobody has signed"
        assert Agreement.FromString(data).terms == TERMS


def _opened(agreement: bytes) -> bytes | None:
    try:
        return open_agreement(agreement, TRUST).digest
    except ComityError:
        return None
