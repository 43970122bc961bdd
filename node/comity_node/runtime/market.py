"""Standing assignments between the participants of an agreement: calls out, bids in, awards out; and the other way.

Only participants of an agreement in force are called, may bid, and are heard; what they say is signed by the envelope
of its message, as everything is. Nothing about data crosses: how many rows, at which price. Who may know what this
organization can do is asked of the policy as for its cards (`agent.discover`). Awards become the odds of the router,
and what the router has seen done is held against what was promised (`protocol.market`). What the own workers can do
goes to them first, and is not traded.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import trio
from google.protobuf.message import DecodeError

from comity.errors import AgreementError, Busy, ComityError, PeerUnreachable
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate
from comity_node.protocol.market import (
    Award,
    Awarded,
    Call,
    MarketRules,
    Standing,
    decode_bid,
    encode_award,
    encode_call,
)
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.kinds import MARKET_AWARD, MARKET_CALL
from comity_node.runtime.market_bids import Bidder, Offer
from comity_node.runtime.messenger import Handler, Messenger
from comity_node.runtime.router import Router
from comity_node.runtime.seams import TaskStatus

log = logging.getLogger(__name__)

_ASK_S = 5.0
_AT_ONCE = 16
#: Pause between two looks at what is wanted, in seconds.
_PAUSE_S = 5.0
#: Skills under agreements that are called for.
_MAX_WANTS = 256
#: Rows per second that are called for before it is known how many come.
_FIRST_ROWS_PER_S = 1.0
#: Rows that have to have gone out before it is judged who did how much.
_LEAST_ROWS = 20


@dataclass(frozen=True, slots=True)
class Demand:
    """A skill that is asked for under an agreement, so that its work is worth assigning.

    Attributes:
        agreement: digest of the agreement.
        skill: which.
        most_price: of a row.
    """

    agreement: bytes
    skill: str
    most_price: float


@dataclass(slots=True)
class _Want:
    rows_per_s: float
    most_price: float
    standing: Standing
    #: When what was done was looked at last, and what had been answered by then, by organization.
    seen_s: float
    seen: dict[str, int]
    #: It comes from `demand`, and ends with it; its rows are what was done lately and half as many more.
    follows: bool = False


@dataclass(frozen=True, slots=True)
class _Asking:
    """How many are asked at once in a round, and who has not answered in it."""

    limiter: trio.CapacityLimiter
    silent: set[str]


def _no_demand() -> Iterable[Demand]:
    return ()


class Market:
    """Calls for bids in the name of one organization, and bids in it."""

    def __init__(
        self, *, organization: str, gate: Gate, messenger: Messenger, agreements: Agreements, router: Router,
        offer: Callable[[str], Offer | None], rules: MarketRules | None = None,
        demand: Callable[[], Iterable[Demand]] = _no_demand,
    ) -> None:  # fmt: skip
        """Trade in the name of `organization`.

        Args:
            organization: whose node this is.
            gate: asks the policy.
            messenger: reaches the others.
            agreements: under which is traded.
            router: gets the awards, and knows what was done.
            offer: says what the own workers can do of a skill.
            rules: how shares are made.
            demand: says what is to be assigned beside what `want` is told.
        """
        self._me = organization
        self._gate, self._messenger, self._agreements, self._router = gate, messenger, agreements, router
        self._demand = demand
        self._rules = rules or MarketRules()
        self._wants: dict[tuple[bytes, str], _Want] = {}
        self._news = trio.Event()
        self._bidder = Bidder(gate=gate, agreements=agreements, offer=offer, rules=self._rules)
        self.handlers: Mapping[str, Handler] = self._bidder.handlers

    # -- what is wanted here ---------------------------------------------------------------------------------------

    def want(self, agreement: bytes, skill: str, rows_per_s: float, most_price: float = math.inf) -> None:
        """Have a skill's work assigned, from now on; 0 rows end that. A change is called for at the next look.

        Args:
            agreement: digest of an agreement in force.
            skill: of steps that others may do.
            rows_per_s: that are expected to come.
            most_price: of a row.

        Raises:
            Busy: too much is wanted already.
        """
        key = (agreement, skill)
        known = self._wants.get(key)
        if rows_per_s <= 0:
            self._wants.pop(key, None)
            self._weigh(skill)
        elif known is not None:
            known.rows_per_s, known.most_price = rows_per_s, most_price
        elif len(self._wants) >= _MAX_WANTS:
            raise Busy(f"{_MAX_WANTS} skills are called for already")
        else:
            self._wants[key] = _Want(rows_per_s, most_price, Standing(self._rules), self._now_s(), self._answers(skill))
            self.look_again()

    def award(self, agreement: bytes, skill: str) -> Award | None:
        """Return the standing award of a skill; None if none is wanted."""
        want = self._wants.get((agreement, skill))
        return want.standing.award if want is not None else None

    def awarded(self) -> tuple[Awarded, ...]:
        """Return what others have awarded to this organization, as far as it is good now."""
        return self._bidder.awarded()

    def look_again(self) -> None:
        """Call soon: a link came or went, an agreement has changed, or the own workers have."""
        self._news.set()

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Call for bids and award, until cancelled."""
        task_status.started()
        while True:
            self._news = trio.Event()
            self._follow()
            await self._round()
            with trio.move_on_after(_PAUSE_S):
                await self._news.wait()
                await trio.sleep(_PAUSE_S / 10)  # whatever comes and goes: no more than so many rounds

    def _follow(self) -> None:
        """Want what there is demand for, and no more what there is none for any more."""
        demand = {(each.agreement, each.skill): each for each in self._demand()}
        for agreement, skill in [key for key, want in self._wants.items() if want.follows and key not in demand]:
            self.want(agreement, skill, 0)
        for key, each in demand.items():
            if key not in self._wants and len(self._wants) < _MAX_WANTS:
                self.want(each.agreement, each.skill, _FIRST_ROWS_PER_S, each.most_price)
                self._wants[key].follows = True

    async def _round(self) -> None:
        """Call for all that is wanted; who does not answer in time is asked for nothing more this time."""
        asking = _Asking(trio.CapacityLimiter(_AT_ONCE), set())
        async with trio.open_nursery() as nursery:
            for (agreement, skill), want in self._wants.items():
                nursery.start_soon(self._negotiate, agreement, skill, want, asking)

    async def _negotiate(self, agreement: bytes, skill: str, want: _Want, asking: _Asking) -> None:
        """Measure, call, decide, and tell those whose share has changed."""
        now_ms = self._gate.now_ms()
        try:
            agreed = self._agreements.get(agreement)
        except (AgreementError, Busy) as error:
            log.info("no %r is called for: %s", skill, error)
            if self._agreements.is_over(agreement):
                self.want(agreement, skill, 0)
            else:
                want.standing = Standing(self._rules)
                self._weigh(skill)
            return
        self._measure(skill, want)
        call = Call(
            agreement, skill, agreed.terms.purpose, want.rows_per_s, want.most_price, now_ms + self._rules.lasts_ms
        )
        async with trio.open_nursery() as nursery:
            for organization in sorted(agreed.participants - {self._me}):
                nursery.start_soon(self._call, organization, call, want.standing, asking)
        if self._wants.get((agreement, skill)) is not want:
            return  # it is not wanted any more
        old = want.standing.award
        fresh = want.standing.decide(want.rows_per_s, want.most_price, self._gate.now_ms())
        if fresh is None:
            return
        self._weigh(skill)
        async with trio.open_nursery() as nursery:
            for organization in sorted(old.shares.keys() | fresh.shares.keys()):
                nursery.start_soon(self._tell, organization, call, fresh, want.standing, asking)

    async def _call(self, organization: str, call: Call, standing: Standing, asking: _Asking) -> None:
        async with asking.limiter:
            if organization in asking.silent or not self._messenger.reachable(organization):
                standing.left(organization)
                return
            try:
                receipt = await self._messenger.ask(organization, MARKET_CALL, encode_call(call), deadline_s=_ASK_S)
                if receipt.status != Receipt.STATUS_ACCEPTED:
                    standing.left(organization)
                    return
                bid = decode_bid(call, receipt.body, call.until_ms)
            except (ComityError, DecodeError) as error:
                log.info("no bid of %s for %r: %s", organization, call.skill, error)
                asking.silent.add(organization)
                standing.left(organization)
                return
        standing.bid(organization, bid)

    async def _tell(self, organization: str, call: Call, award: Award, standing: Standing, asking: _Asking) -> None:
        share = award.shares.get(organization, 0.0)
        body = encode_award(call, share, share * award.rows_per_s, award.until_ms)
        async with asking.limiter:
            try:
                if organization in asking.silent:
                    raise PeerUnreachable("it does not answer")
                receipt = await self._messenger.ask(organization, MARKET_AWARD, body, deadline_s=_ASK_S)
            except ComityError as error:
                asking.silent.add(organization)
                log.info("%s was not told of its share of %r: %s", organization, call.skill, error)
            else:
                if receipt.status == Receipt.STATUS_ACCEPTED:
                    return
        if share:
            standing.left(organization)  # and the next look gives its share to others
            self.look_again()

    def _measure(self, skill: str, want: _Want) -> None:
        """Hold what each did against its share, if there was enough to do."""
        now_s, answers = self._now_s(), self._answers(skill)
        shares = want.standing.award.shares
        # What is done at home, or by whom nothing is awarded, is no work that these were given.
        done = {name: max(0, answers.get(name, 0) - want.seen.get(name, 0)) for name in shares or answers}
        rows, seconds = sum(done.values()), now_s - want.seen_s
        if rows < _LEAST_ROWS or seconds <= 0:
            return
        if want.follows:
            want.rows_per_s = max(_FIRST_ROWS_PER_S, 1.5 * rows / seconds)
        for organization, share in shares.items():
            want.standing.performed(organization, share * rows / seconds, done.get(organization, 0) / seconds)
        want.seen_s, want.seen = now_s, answers

    def _weigh(self, skill: str) -> None:
        """Give the router the shares of a skill, over all agreements under which it is wanted."""
        awards = [want.standing.award for (_, one), want in self._wants.items() if one == skill]
        rows = sum(award.rows_per_s for award in awards if award.shares)
        shares: dict[str, float] = {}
        for award in awards:
            for organization, share in award.shares.items():
                shares[organization] = shares.get(organization, 0.0) + share * award.rows_per_s / rows
        until_ms = min((award.until_ms for award in awards if award.shares), default=0)
        self._router.weights(skill, shares, self._now_s() + (until_ms - self._gate.now_ms()) / 1000)

    def _answers(self, skill: str) -> dict[str, int]:
        return self._router.answers(skill)

    def _now_s(self) -> float:
        return trio.current_time()  # the router's clock
