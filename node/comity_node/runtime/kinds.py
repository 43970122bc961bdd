"""The kinds of messages by which records travel (the domain of their signatures, too)."""

from __future__ import annotations

from typing import Final

#: From the initiator to a participant: a concluded agreement.
AGREEMENT: Final = "agreement"
#: From a participant to a node of another one that does not know it: a concluded agreement.
BROUGHT: Final = "agreement-brought"
#: From a home to a reviewer: rows to judge.
OFFER: Final = "task-offer"
#: From a reviewer to the home: signed reviews.
REVIEWS: Final = "reviews"
#: From the home to a participant: certified records.
RECORDS: Final = "records"
#: From a reviewer to the home, where scores are committed to first: its signed commitment to them.
COMMITMENTS: Final = "commitments"
#: From the home to who has committed: all commitments that count.
COMMITMENT_SET: Final = "commitment-set"
#: Tasks under way, to whoever is to do their next step, or home.
TOKENS: Final = "tokens"
#: The same, with long texts left out that the recipient was brought before (`passing.parting`).
TOKEN_PARTS: Final = "token-parts"
#: What holders and homes of tasks under way tell each other.
TOKEN_NOTES: Final = "token-notes"
#: Between participants: a call for bids, answered in the receipt, and what a bidder got.
MARKET_CALL: Final = "market-call"
MARKET_AWARD: Final = "market-award"
