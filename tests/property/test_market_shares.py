"""Shares of a standing assignment: they sum to 1, nobody gets over its bid, and what is shown beats what is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.errors import UnexpectedMessage
from comity.v1.market_pb2 import MarketAward, MarketBid, MarketCall
from comity_node.protocol.market import (
    Bid,
    Call,
    MarketRules,
    Standing,
    assign,
    decode_award,
    decode_bid,
    decode_call,
    encode_award,
    encode_bid,
    encode_call,
)

CALL = Call(bytes(32), "answer", "research", 20.0, 5.0, 90_000)
_rates = st.floats(0.0, 1e4, allow_nan=False)
_bids = st.builds(Bid, _rates, st.floats(0.0, 100.0), st.floats(0.0, 60.0), st.integers(1, 200_000))
_names = st.sampled_from([f"o{number}.example" for number in range(6)])
_steps = st.one_of(
    st.tuples(st.just("bid"), _names, _bids),
    st.tuples(st.just("left"), _names),
    st.tuples(st.just("did"), _names, _rates, _rates),
    st.tuples(st.just("decide"), _rates, st.floats(0.0, 200.0)),
)


def good(price: float = 1.0, rows: float = 10.0, until_ms: int = 10**9) -> Bid:
    return Bid(rows, price, 0.1, until_ms)


@given(_rates, st.dictionaries(_names, _bids))
def test_nobody_is_given_more_than_it_can_do_and_all_together_what_is_wanted(
    wanted: float, bids: dict[str, Bid]
) -> None:
    capacity = {name: bid.rows_per_s for name, bid in bids.items()}
    given_rows = assign(wanted, bids, capacity, MarketRules())
    assert all(0 <= rows <= capacity[name] + 1e-6 for name, rows in given_rows.items())
    assert sum(given_rows.values()) == pytest.approx(min(wanted, sum(capacity.values())), rel=1e-6, abs=1e-6)


@given(st.lists(_steps, max_size=40))
def test_shares_sum_to_one_and_stay_within_what_bidders_say_and_show(steps: list[tuple[object, ...]]) -> None:
    standing, now_ms = Standing(), 0
    for step in steps:
        now_ms += 1_000
        match step:
            case ("bid", str(name), Bid() as bid):
                standing.bid(name, bid)
            case ("left", str(name)):
                standing.left(name)
            case ("did", str(name), float(rows), float(done)):
                standing.performed(name, rows, done)
            case ("decide", float(wanted), float(most)):
                standing.decide(wanted, most, now_ms)
                award = standing.award
                if not award.shares or award.until_ms <= now_ms:
                    continue
                assert sum(award.shares.values()) == pytest.approx(1.0)
                for name, share in award.shares.items():
                    assert 0 <= share * award.rows_per_s <= standing.capacity(name) + 1e-6
                    assert standing.bids[name].price <= most
                    assert standing.bids[name].until_ms > now_ms


def test_the_cheaper_get_more_and_the_full_pass_on() -> None:
    bids = {"cheap": good(1.0), "dear": good(2.0), "far": Bid(10.0, 1.0, 30.0, 10**9)}
    rows = assign(9.0, bids, {name: 10.0 for name in bids}, MarketRules())
    assert rows["cheap"] > rows["dear"] > rows["far"] > 0
    rows = assign(28.0, bids, {name: 10.0 for name in bids}, MarketRules())
    assert rows["cheap"] == 10.0
    assert sum(rows.values()) == pytest.approx(28.0)


def test_a_liar_who_bids_too_much_loses_its_share_to_what_was_measured() -> None:
    standing, really, wanted = Standing(), {"liar": 5.0, "a": 10.0, "b": 10.0}, 20.0
    shares = []
    for number in range(12):
        for name in really:
            standing.bid(name, good(rows=100.0 if name == "liar" else 10.0))
        standing.decide(wanted, 9.0, number * 50_000)
        award = standing.award
        shares.append(award.shares["liar"])
        for name, share in award.shares.items():
            rows = share * award.rows_per_s
            standing.performed(name, rows, min(rows, really[name]))
    assert shares[0] > 0.7, "at first it is believed"
    assert shares[1] * wanted < 1.2 * really["liar"], "after one look it is not"
    assert max(shares[1:]) * wanted < 2.5 * really["liar"], "and does not get it back by bidding again"
    assert standing.capacity("a") == 10.0, "nobody else is doubted"


def test_who_was_slow_for_a_while_is_believed_again_step_by_step() -> None:
    standing = Standing()
    standing.bid("a", good(rows=64.0))
    standing.performed("a", 64.0, 4.0)
    assert standing.capacity("a") == pytest.approx(4.4)
    for _ in range(4):
        standing.performed("a", standing.capacity("a"), standing.capacity("a"))
    assert standing.capacity("a") == 64.0


def test_small_changes_move_nothing_and_large_ones_do() -> None:
    standing = Standing()
    standing.bid("a", good(1.0))
    standing.bid("b", good(1.0))
    assert standing.decide(10.0, 9.0, 0) is not None
    standing.bid("b", good(1.05))
    assert standing.decide(10.0, 9.0, 1_000) is None
    standing.bid("b", good(3.0))
    changed = standing.decide(10.0, 9.0, 2_000)
    assert changed is not None
    assert changed.shares["a"] > 0.7
    standing.bid("c", good(0.2))
    changed = standing.decide(10.0, 9.0, 3_000)
    assert changed is not None, "somebody much cheaper has come"
    assert changed.shares["c"] > 0.7


def test_who_leaves_loses_its_share_at_once_and_an_end_renews_the_same() -> None:
    rules = MarketRules()
    standing = Standing(rules)
    for name in ("a", "b"):
        standing.bid(name, good())
    standing.decide(10.0, 9.0, 0)
    before = standing.award.shares
    assert standing.decide(10.0, 9.0, rules.lasts_ms - rules.renew_ms - 1) is None
    standing.bid("b", good(1.05))
    renewed = standing.decide(10.0, 9.0, rules.lasts_ms - rules.renew_ms)
    assert renewed is not None
    assert (renewed.shares, renewed.until_ms) == (before, 2 * rules.lasts_ms - rules.renew_ms)
    standing.left("b")
    alone = standing.decide(10.0, 9.0, rules.lasts_ms)
    assert alone is not None
    assert alone.shares == {"a": 1.0}
    standing.left("a")
    nobody = standing.decide(10.0, 9.0, rules.lasts_ms + 1)
    assert nobody is not None
    assert nobody.shares == {}
    assert standing.decide(10.0, 9.0, rules.lasts_ms + 2) is None


def test_a_bid_is_good_for_its_time_and_its_price_is_in_the_limit() -> None:
    standing = Standing()
    standing.bid("a", good(until_ms=5_000))
    standing.bid("b", good(price=7.0))
    award = standing.decide(10.0, 5.0, 0)
    assert award is not None
    assert (dict(award.shares), award.until_ms) == ({"a": 1.0}, 5_000)
    gone = standing.decide(10.0, 5.0, 5_000)
    assert gone is not None
    assert not gone.shares


@given(_bids, st.floats(0.0, 1.0))
def test_what_is_encoded_is_what_is_read(bid: Bid, share: float) -> None:
    assert decode_call(encode_call(CALL)) == CALL
    read = decode_bid(CALL, encode_bid(CALL, bid), 10**9)
    assert read.rows_per_s <= bid.rows_per_s
    assert read.rows_per_s == pytest.approx(bid.rows_per_s, abs=0.001)
    assert read.price == pytest.approx(bid.price, abs=1e-5)
    assert read.latency_s == pytest.approx(bid.latency_s, abs=0.001)
    assert decode_bid(CALL, encode_bid(CALL, bid), 7).until_ms <= 7
    awarded = decode_award(encode_award(CALL, share, 3.0, 60_000))
    assert awarded.share == pytest.approx(share, abs=1e-6)
    assert (awarded.agreement, awarded.skill, awarded.rows_per_s, awarded.until_ms) == (
        bytes(32),
        "answer",
        3.0,
        60_000,
    )


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"agreement_digest": b"short"}, "name an agreement"),
        ({"skill": ""}, "skill's name"),
        ({"skill": "s" * 129}, "skill's name"),
        ({"purpose": "p" * 257}, "purpose"),
        ({"rows": 2 * 10**9}, "make sense"),
        ({"most_price": 2 * 10**12}, "make sense"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(changes: dict[str, object], what: str) -> None:
    said = MarketCall.FromString(encode_call(CALL))
    for name, value in changes.items():
        setattr(said, name, value)
    with pytest.raises(UnexpectedMessage, match=what):
        decode_call(said.SerializeToString())


@pytest.mark.invariant("S7")
def test_a_bid_or_an_award_that_makes_no_sense_is_refused() -> None:
    for body, what in (
        (MarketBid(agreement_digest=bytes(32), skill="other"), "another call"),
        (MarketBid(agreement_digest=bytes(32), skill="answer", latency_ms=3_700_000), "nobody waits"),
        (MarketBid(agreement_digest=bytes(32), skill="answer", rows=2 * 10**9), "make sense"),
        (MarketBid(agreement_digest=bytes(32), skill="answer", price=2 * 10**12), "make sense"),
    ):
        with pytest.raises(UnexpectedMessage, match=what):
            decode_bid(CALL, body.SerializeToString(), 10**9)
    with pytest.raises(UnexpectedMessage, match="at most the whole"):
        decode_award(MarketAward(agreement_digest=bytes(32), skill="answer", share=1_000_001).SerializeToString())
