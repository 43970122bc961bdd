"""The market of standing assignments: who does which share of the work of one skill, until when.

A contract net (Smith, "The Contract Net Protocol", IEEE Transactions on Computers C-29, 1980) between the participants
of an agreement: a call for proposals goes out, bids come back, and shares are awarded. What a bidder says of itself is
believed until it does less than it was given: then what was measured is (`Standing.performed`).

No I/O, no clock and no randomness; milliseconds since the Unix epoch are passed in.

Invariants
  * the shares of an award sum to 1, and nobody gets more rows than its bid (and than what it has shown) says;
  * shares that hardly change stay as they are: work does not move to and fro with every bid (hysteresis).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from comity.errors import UnexpectedMessage
from comity.v1.market_pb2 import MarketAward, MarketBid, MarketCall

#: Integers on the wire: rows in this many seconds, parts of a unit of price, parts of the whole.
ROWS_SECONDS: Final = 1_000
PRICE_PARTS: Final = 1_000_000
SHARE_PARTS: Final = 1_000_000
_MAX_SKILL: Final = 128
_MAX_PURPOSE: Final = 256
#: Rows per second, price and latency that make sense; a message that says more is refused.
_MAX_ROWS_PER_S: Final = 1e6
_MAX_PRICE: Final = 1e6
_MAX_LATENCY_S: Final = 3_600.0
_DIGEST_BYTES: Final = 32
_TINY: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Call:
    """What is wanted.

    Attributes:
        agreement: digest of the agreement.
        skill: that is needed.
        purpose: of the agreement.
        rows_per_s: that are expected to come.
        most_price: of a row.
        until_ms: how long an award is good at most.
    """

    agreement: bytes
    skill: str
    purpose: str
    rows_per_s: float
    most_price: float
    until_ms: int


@dataclass(frozen=True, slots=True)
class Bid:
    """What an organization offers.

    Attributes:
        rows_per_s: that it can do.
        price: of a row.
        latency_s: that an answer takes.
        until_ms: how long it stands by that.
    """

    rows_per_s: float
    price: float
    latency_s: float
    until_ms: int


@dataclass(frozen=True, slots=True)
class Award:
    """Who does what.

    Attributes:
        shares: of each organization that has one; they sum to 1, or there is none at all.
        rows_per_s: in all: what is wanted, or what the bidders can do, if that is less.
        until_ms: how long.
    """

    shares: Mapping[str, float]
    rows_per_s: float
    until_ms: int


@dataclass(frozen=True, slots=True)
class MarketRules:
    """How shares are made, and when they change.

    Attributes:
        second_price: what a second of waiting for an answer costs, in units of price.
        keenness: how strongly the cheaper are preferred: shares go with capacity over cost to this power.
        least_change: the part of the work that has to move, or the award stays as it is.
        short: who does less than this part of what it was given is believed what was measured.
        lasts_ms: how long an award is good.
        renew_ms: before its end that it is made anew.
    """

    second_price: float = 0.1
    keenness: float = 2.0
    least_change: float = 0.1
    short: float = 0.7
    lasts_ms: int = 60_000
    renew_ms: int = 20_000


def assign(
    wanted: float, bids: Mapping[str, Bid], capacity: Mapping[str, float], rules: MarketRules
) -> dict[str, float]:
    """Return how many rows per second each bidder gets.

    The work is poured over the bidders in proportion to capacity over cost; who is full is left out and the rest goes
    on. In all it is `wanted`, or what all can do, if that is less.

    Args:
        wanted: rows per second.
        bids: of each organization.
        capacity: of each organization in rows per second: its bid, or less.
        rules: how cost is weighed.
    """
    cost = {name: bid.price + bid.latency_s * rules.second_price + _TINY for name, bid in bids.items()}
    cheapest = min(cost.values(), default=1.0)
    open_ones = {
        name: capacity[name] * (cheapest / cost[name]) ** rules.keenness for name in bids if capacity[name] > _TINY
    }
    given: dict[str, float] = {}
    left = min(wanted, sum(capacity[name] for name in open_ones))
    while open_ones and left > _TINY:
        whole = sum(open_ones.values())
        full = [name for name, weight in open_ones.items() if weight / whole * left >= capacity[name] - _TINY]
        if not full:
            given |= {name: weight / whole * left for name, weight in open_ones.items()}
            break
        for name in full:
            given[name] = capacity[name]
            left -= capacity[name]
            del open_ones[name]
    return given


class Standing:
    """The standing assignment of one skill under one agreement: bids in, awards out."""

    def __init__(self, rules: MarketRules | None = None) -> None:
        """Begin without bids."""
        self._rules = rules or MarketRules()
        self._bids: dict[str, Bid] = {}
        self._shown: dict[str, float] = {}
        self.award = Award({}, 0.0, 0)

    @property
    def bids(self) -> Mapping[str, Bid]:
        """The bids that stand."""
        return self._bids

    def bid(self, organization: str, bid: Bid) -> None:
        """Take a bid; a later one of the same organization replaces it."""
        self._bids[organization] = bid

    def left(self, organization: str) -> None:
        """Forget the bid of somebody who does not bid, or is not there any more."""
        self._bids.pop(organization, None)

    def capacity(self, organization: str) -> float:
        """Return what is believed that somebody can do, in rows per second: never more than it says."""
        bid = self._bids[organization].rows_per_s
        return min(bid, self._shown.get(organization, bid))

    def performed(self, organization: str, given: float, done: float) -> None:
        """Learn what somebody did of what it was given, in rows per second over some time.

        Who did less than it was given is believed that it can do what it did and a tenth more; who did all of it is
        believed twice as much, up to its bid: a liar does not get its share back by bidding again.
        """
        if given <= _TINY:
            return
        if done < self._rules.short * given:
            self._shown[organization] = max(done * 1.1, given * 0.01)
        elif organization in self._shown:
            self._shown[organization] = max(self._shown[organization], done) * 2.0
            if (bid := self._bids.get(organization)) and self._shown[organization] >= bid.rows_per_s:
                del self._shown[organization]

    def decide(self, wanted: float, most_price: float, now_ms: int) -> Award | None:
        """Return a new award, or None while the present one stays.

        It changes when it is about to end, when somebody who has a share has no bid any more or may get less than it
        has, when more is wanted and can be had, or when enough of the work would go to others.
        """
        rules = self._rules
        for organization in [name for name, bid in self._bids.items() if bid.until_ms <= now_ms]:
            del self._bids[organization]
        bids = {name: bid for name, bid in self._bids.items() if bid.price <= most_price}
        capacity = {name: self.capacity(name) for name in bids}
        given = assign(wanted, bids, capacity, rules)
        rows = sum(given.values())
        until_ms = min([now_ms + rules.lasts_ms, *(bids[name].until_ms for name in given)])
        fresh = Award({name: each / rows for name, each in given.items()}, rows, until_ms) if rows else None
        old = self.award
        if fresh is None:
            fresh = Award({}, 0.0, now_ms)
            if not old.shares:
                return None
        elif self._stays(old, fresh, capacity, now_ms):
            return None
        elif old.until_ms > now_ms and self._still_good(old, fresh, capacity):
            until_ms = min([now_ms + rules.lasts_ms, *(bids[name].until_ms for name in old.shares)])
            fresh = replace(old, until_ms=until_ms)  # only its time is over
        self.award = fresh
        return fresh

    def _stays(self, old: Award, fresh: Award, capacity: Mapping[str, float], now_ms: int) -> bool:
        left_ms = old.until_ms - now_ms  # more than an award lasts: the clock was set back
        return self._rules.renew_ms < left_ms <= self._rules.lasts_ms and self._still_good(old, fresh, capacity)

    def _still_good(self, old: Award, fresh: Award, capacity: Mapping[str, float]) -> bool:
        """Whether shares can stay: nobody has left or has too much, and little would move."""
        if not old.shares:
            return False
        fits = all(share * old.rows_per_s <= capacity.get(name, 0.0) + _TINY for name, share in old.shares.items())
        names = old.shares.keys() | fresh.shares.keys()
        moved = sum(
            abs(old.shares.get(name, 0.0) * old.rows_per_s - fresh.shares.get(name, 0.0) * fresh.rows_per_s)
            for name in names
        )
        most = max(old.rows_per_s, fresh.rows_per_s)
        return fits and moved / 2 <= self._rules.least_change * most


# -- on the wire ---------------------------------------------------------------------------------------------------


def encode_call(call: Call) -> bytes:
    """Return the body of a `market-call`."""
    return MarketCall(
        agreement_digest=call.agreement,
        skill=call.skill,
        purpose=call.purpose,
        rows=round(min(call.rows_per_s, _MAX_ROWS_PER_S) * ROWS_SECONDS),
        most_price=round(min(call.most_price, _MAX_PRICE) * PRICE_PARTS),
        until_ms=call.until_ms,
    ).SerializeToString()


def decode_call(body: bytes) -> Call:
    """Read the body of a `market-call`.

    Raises:
        DecodeError: it does not parse.
        UnexpectedMessage: it says what makes no sense.
    """
    said = MarketCall.FromString(body)
    _check(said.agreement_digest, said.skill, said.rows / ROWS_SECONDS, said.most_price / PRICE_PARTS)
    if len(said.purpose) > _MAX_PURPOSE:
        raise UnexpectedMessage(f"a purpose has at most {_MAX_PURPOSE} characters")
    return Call(
        agreement=said.agreement_digest,
        skill=said.skill,
        purpose=said.purpose,
        rows_per_s=said.rows / ROWS_SECONDS,
        most_price=said.most_price / PRICE_PARTS,
        until_ms=said.until_ms,
    )


def encode_bid(call: Call, bid: Bid) -> bytes:
    """Return the body of the receipt that answers a call."""
    return MarketBid(
        agreement_digest=call.agreement,
        skill=call.skill,
        rows=int(min(bid.rows_per_s, _MAX_ROWS_PER_S) * ROWS_SECONDS),
        price=round(min(bid.price, _MAX_PRICE) * PRICE_PARTS),
        latency_ms=round(min(bid.latency_s, _MAX_LATENCY_S) * 1000),
        until_ms=bid.until_ms,
    ).SerializeToString()


def decode_bid(call: Call, body: bytes, longest_ms: int) -> Bid:
    """Read the answer to a call; it is believed until `longest_ms`, whatever it says.

    Raises:
        DecodeError: it does not parse.
        UnexpectedMessage: it answers another call, or says what makes no sense.
    """
    said = MarketBid.FromString(body)
    if (said.agreement_digest, said.skill) != (call.agreement, call.skill):
        raise UnexpectedMessage("the bid answers another call")
    latency_s = said.latency_ms / 1000
    _check(said.agreement_digest, said.skill, said.rows / ROWS_SECONDS, said.price / PRICE_PARTS)
    if latency_s > _MAX_LATENCY_S:
        raise UnexpectedMessage(f"nobody waits {latency_s:.0f} s for an answer")
    until_ms = min(said.until_ms, longest_ms)
    return Bid(said.rows / ROWS_SECONDS, said.price / PRICE_PARTS, latency_s, until_ms)


def encode_award(call: Call, share: float, rows_per_s: float, until_ms: int) -> bytes:
    """Return the body of a `market-award`."""
    return MarketAward(
        agreement_digest=call.agreement,
        skill=call.skill,
        share=round(share * SHARE_PARTS),
        rows=round(min(rows_per_s, _MAX_ROWS_PER_S) * ROWS_SECONDS),
        until_ms=until_ms,
    ).SerializeToString()


@dataclass(frozen=True, slots=True)
class Awarded:
    """What this organization got.

    Attributes:
        agreement: digest of the agreement.
        skill: that is needed.
        share: of the rows, 0 to 1.
        rows_per_s: that will come.
        until_ms: how long.
    """

    agreement: bytes
    skill: str
    share: float
    rows_per_s: float
    until_ms: int


def decode_award(body: bytes) -> Awarded:
    """Read the body of a `market-award`.

    Raises:
        DecodeError: it does not parse.
        UnexpectedMessage: it says what makes no sense.
    """
    said = MarketAward.FromString(body)
    _check(said.agreement_digest, said.skill, said.rows / ROWS_SECONDS, 0.0)
    if said.share > SHARE_PARTS:
        raise UnexpectedMessage("a share is at most the whole")
    return Awarded(said.agreement_digest, said.skill, said.share / SHARE_PARTS, said.rows / ROWS_SECONDS, said.until_ms)


def _check(digest: bytes, skill: str, rows_per_s: float, price: float) -> None:
    if len(digest) != _DIGEST_BYTES:
        raise UnexpectedMessage("a call, a bid and an award name an agreement")
    if not 0 < len(skill) <= _MAX_SKILL or not skill.isprintable():
        raise UnexpectedMessage(f"a skill's name is printable and has at most {_MAX_SKILL} characters")
    if rows_per_s > _MAX_ROWS_PER_S or price > _MAX_PRICE:
        raise UnexpectedMessage(f"at most {_MAX_ROWS_PER_S:.0f} rows/s at a price of {_MAX_PRICE:.0f} make sense")
