"""Obligations: what an allow decision asks to be done, how they combine, and how a record is brought under them.

Obligations form a lattice in which stricter is higher. `merge` is the least upper bound: what satisfies `merge(a, b)`
satisfies `a` and satisfies `b`, and it is idempotent, commutative and associative. `Obligations()` asks for nothing and
is its neutral element. `covers(a, b)` is the order: `merge(a, b)` asks for no more than `a` does.

    redact          union of the paths; a path covers everything below it; it beats every other form
    hash            union; beats mask
    mask            fewest characters
    generalize      least common multiple of the grids; a field without a common grid up to 1e9 is redacted
    noise           smallest epsilon, bounds that both allow; a field without such bounds is redacted
    drop_personal   if either asks for it
    k_anonymity     greatest k, union of the fields
    min_distance    greatest
    rates, quotas, budgets, approvals       all of them hold, each counted or asked by its rule (of one rule's
                    approvals the soonest)
    notify          union
    retain, expire  shortest, soonest
    review          greatest quorum, greatest score, distinct organizations if either asks for it
    onward          never < with_consent < allowed: the first in this order

`generalize` and `noise` are for numbers, `mask` and `hash` give a text: a field of which both sorts are asked for is
redacted, for no value would satisfy both. `generalize` and `noise` go together: the noisy value is rounded, to a
multiple within the bounds.

A path names a field of a record, `notes.free_text` one inside another; lists on the way are entered. A key that itself
holds a dot (`"notes.free_text"`) is the same path, so that no spelling gets around a redaction.

The values are in `lattice`, what is done to records in `shaping`, agreements and JSON in `terms`; all of it is named
here.
"""

from __future__ import annotations

from comity_node.policy.lattice import (
    MAX_BOUND,
    MAX_EPSILON,
    MAX_GRID,
    MAX_K,
    MAX_KEPT,
    PER,
    Approval,
    Budget,
    KAnonymity,
    Noise,
    Obligations,
    Onward,
    Quota,
    Rate,
    ReviewTerms,
    covers,
    is_under,
    merge,
    merge_all,
    resolve,
    shared,
)
from comity_node.policy.shaping import (
    GRID_TOLERANCE,
    MAX_NESTING,
    PSEUDONYM,
    Drawing,
    Pseudonym,
    apply,
    pseudonyms,
    too_rare,
    verify,
    verify_batch,
)
from comity_node.policy.terms import from_terms, to_json, to_score, to_terms

__all__ = [
    "GRID_TOLERANCE", "MAX_BOUND", "MAX_EPSILON", "MAX_GRID", "MAX_K", "MAX_KEPT", "MAX_NESTING", "PER", "PSEUDONYM",
    "Approval", "Budget", "Drawing", "KAnonymity", "Noise", "Obligations", "Onward", "Pseudonym", "Quota", "Rate",
    "ReviewTerms", "apply", "covers", "from_terms", "is_under", "merge", "merge_all", "pseudonyms", "resolve", "shared",
    "to_json", "to_score", "to_terms", "too_rare", "verify", "verify_batch",
]  # fmt: skip
