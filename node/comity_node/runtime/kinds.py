"""The kinds of messages by which records travel (the domain of their signatures, too)."""

from __future__ import annotations

from typing import Final

#: From the initiator to a participant: a concluded agreement.
AGREEMENT: Final = "agreement"
#: From a home to a reviewer: rows to judge.
OFFER: Final = "task-offer"
#: From a reviewer to the home: signed reviews.
REVIEWS: Final = "reviews"
#: From the home to a participant: certified records.
RECORDS: Final = "records"
