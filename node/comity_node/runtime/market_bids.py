"""The other side of the market: bids in the name of one organization, and what others have awarded to it.

A bid is what is left of the own workers beside what was awarded by others; an award answers a bid that stands, and is
for no more than that. What cannot be done is bid for with nothing, and takes no place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from comity.agreement import Agreed
from comity.errors import AgreementError, Busy, UnexpectedMessage
from comity.trust import Attested
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate, Question
from comity_node.policy.model import Request
from comity_node.protocol.market import Awarded, Bid, Call, MarketRules, decode_award, decode_call, encode_bid
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.kinds import MARKET_AWARD, MARKET_CALL
from comity_node.runtime.messenger import Handler, accepted

#: That an item takes at the own workers before any was done.
_UNKNOWN_S = 1.0
#: Bids and awards of others that are remembered, and bids to one of them.
_MAX_PROMISES = 1024
_MAX_BIDS_TO_ONE = 128


@dataclass(frozen=True, slots=True)
class Offer:
    """What this organization can do of a skill, by itself.

    Attributes:
        rows_per_s: with all its workers.
        price: that it asks for a row.
        latency_s: that an answer takes.
    """

    rows_per_s: float
    price: float
    latency_s: float


def own_offer(slots: int, seconds: float | None, price: float) -> Offer | None:
    """Return what so many places at workers can do; None without any.

    Args:
        slots: items that the workers do at once.
        seconds: that one takes; None: not known, and taken for one second.
        price: of a row.
    """
    takes_s = max(_UNKNOWN_S if seconds is None else seconds, 0.001)
    return Offer(slots / takes_s, price, takes_s) if slots else None


class Bidder:
    """Bids for the work of others, with what the own workers can do."""

    def __init__(
        self, *, gate: Gate, agreements: Agreements, offer: Callable[[str], Offer | None], rules: MarketRules
    ) -> None:
        """Bid under `agreements`; see `Market` for the arguments."""
        self._gate, self._agreements, self._offer, self._rules = gate, agreements, offer, rules
        #: What was bid to whom, and what was awarded by whom: (sender, agreement, skill).
        self._bids: dict[tuple[str, bytes, str], Bid] = {}
        self._awarded: dict[tuple[str, bytes, str], Awarded] = {}
        self.handlers: dict[str, Handler] = {MARKET_CALL: self._on_call, MARKET_AWARD: self._on_award}

    def awarded(self) -> tuple[Awarded, ...]:
        """Return what others have awarded to this organization, as far as it is good now."""
        now_ms = self._gate.now_ms()
        return tuple(each for each in self._awarded.values() if each.until_ms > now_ms)

    async def _on_call(self, sender: Attested, body: bytes) -> Receipt:
        call = decode_call(body)
        agreed = self._agreed(sender, call.agreement)
        if call.purpose != agreed.terms.purpose:
            raise AgreementError("the call is for another purpose than the agreement")
        request = Request(action="agent.discover", organization=sender.organization)
        await self._gate.demand(Question(request, agreement=agreed.digest))
        now_ms = self._gate.now_ms()
        key = (sender.organization, call.agreement, call.skill)
        bid = self._own_bid(call, key, now_ms)
        self._drop_old(now_ms)
        self._bids.pop(key, None)
        if not bid.rows_per_s:
            return accepted(encode_bid(call, bid))  # nothing is promised by that
        theirs = sum(sender.organization == each for each, _, _ in self._bids)
        if len(self._bids) >= _MAX_PROMISES or theirs >= _MAX_BIDS_TO_ONE:
            raise Busy(f"{theirs} bids to you stand already", retry_after_ms=10_000)
        self._bids[key] = bid
        return accepted(encode_bid(call, bid))

    def _own_bid(self, call: Call, key: tuple[str, bytes, str], now_ms: int) -> Bid:
        """Return what is left of the own capacity beside what was awarded by others; at least the even part of one.

        So nobody gets a hold of all of it by awarding more than it has work for.
        """
        until_ms = min(call.until_ms, now_ms + self._rules.lasts_ms)
        own = self._offer(call.skill)
        if own is None or own.price > call.most_price:
            return Bid(0.0, own.price if own else 0.0, 0.0, until_ms)
        promises = {
            other: each.rows_per_s
            for other, each in self._awarded.items()
            if other != key and each.skill == call.skill and each.until_ms > now_ms
        }
        even = own.rows_per_s / (1 + len({other for other, _, _ in promises} - {key[0]}))
        theirs = sum(rows for (other, _, _), rows in promises.items() if other == key[0])
        rest = max(own.rows_per_s - sum(promises.values()), even - theirs, 0.0)
        return Bid(rest, own.price, own.latency_s, until_ms)

    async def _on_award(self, sender: Attested, body: bytes) -> Receipt:
        award = decode_award(body)
        self._agreed(sender, award.agreement)
        key = (sender.organization, award.agreement, award.skill)
        bid = self._bids.get(key)
        if not award.share:
            self._awarded.pop(key, None)
            return accepted()
        if bid is None or bid.until_ms <= self._gate.now_ms():
            raise UnexpectedMessage("an award answers a bid, and there is none that stands")
        if award.rows_per_s > bid.rows_per_s + 0.001 or award.until_ms > bid.until_ms + self._rules.lasts_ms:
            raise UnexpectedMessage("the award is for more than was bid")
        self._awarded[key] = award
        return accepted()

    def _agreed(self, sender: Attested, digest: bytes) -> Agreed:
        agreed = self._agreements.get(digest)
        if sender.organization not in agreed.participants:
            raise AgreementError(f"{sender.organization} takes no part in agreement {digest.hex()[:12]}")
        return agreed

    def _drop_old(self, now_ms: int) -> None:
        latest_ms = now_ms + 2 * self._rules.lasts_ms  # what is good for longer is of before the clock was set back
        self._bids = {key: bid for key, bid in self._bids.items() if now_ms < bid.until_ms <= latest_ms}
        self._awarded = {key: each for key, each in self._awarded.items() if now_ms < each.until_ms <= latest_ms}
