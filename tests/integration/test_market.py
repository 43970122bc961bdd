"""The market between nodes in one process: who may call and bid, what is promised, and what becomes of awards."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from comity.digest import canonical_json
from comity.errors import Busy, PeerUnreachable
from comity.v1.task_pb2 import Receipt
from comity_node.protocol.market import Bid, Call, decode_bid, encode_award, encode_call
from comity_node.runtime import market, market_bids
from comity_node.runtime.market import Market
from comity_node.runtime.market_bids import Offer, own_offer
from comity_node.runtime.router import Candidate
from kit.hostile import concluded, refusal
from kit.lab import Lab, now_ms, policy, run, until

ADA, BEA, CYD = (f"org{number:02}.example" for number in range(3))
SKILL = "answer"


def laboratory(home: Path) -> Lab:
    lab = Lab(home)
    lab.members[BEA].offers = {SKILL: Offer(10.0, 1.0, 0.1)}
    lab.members[CYD].offers = {SKILL: Offer(10.0, 2.0, 0.1)}
    return lab


def call_of(agreement: bytes, purpose: str, **changes: object) -> Call:
    call = Call(agreement, SKILL, purpose, 5.0, 9.0, now_ms() + 30_000)
    return replace(call, **changes)  # type: ignore[arg-type]


def test_bids_become_shares_and_shares_the_odds_of_the_router(tmp_path: Path) -> None:
    lab = laboratory(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        agreed = await concluded(lab, ADA, BEA, CYD)
        runtime = lab.members[ADA].up.runtime
        runtime.market.want(agreed.digest, SKILL, 10.0)
        await both_share(runtime.market, agreed.digest)
        award = runtime.market.award(agreed.digest, SKILL)
        assert award is not None
        assert sum(award.shares.values()) == pytest.approx(1.0)
        assert award.shares[BEA] > 2 * award.shares[CYD], "at half the price"

        async def told() -> bool:
            return all(lab.members[name].up.runtime.market.awarded() for name in (BEA, CYD))

        await until(told, "both know")
        (mine,) = lab.members[BEA].up.runtime.market.awarded()
        assert mine.rows_per_s == pytest.approx(award.shares[BEA] * 10.0, abs=0.01)
        picks = [runtime.router.pick(SKILL, [Candidate(BEA), Candidate(CYD)], trio.current_time()) for _ in range(300)]
        assert picks.count(BEA) > 1.5 * picks.count(CYD) > 0

        await lab.stop(BEA)
        runtime.market.look_again()

        async def alone() -> bool:
            now = runtime.market.award(agreed.digest, SKILL)
            return now is not None and dict(now.shares) == {CYD: 1.0}

        await until(alone, "who has left has no share")
        runtime.market.want(agreed.digest, SKILL, 0)
        assert runtime.market.award(agreed.digest, SKILL) is None

    run(main)


async def both_share(one: Market, agreement: bytes) -> None:
    async def shared() -> bool:
        award = one.award(agreement, SKILL)
        return award is not None and set(award.shares) == {BEA, CYD}

    await until(shared, "both have a share")


def rounds_of(one: Market, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When its rounds begin from now on."""
    began: list[float] = []
    real = one._follow

    def follow() -> None:
        began.append(trio.current_time())
        real()

    monkeypatch.setattr(one, "_follow", follow)
    return began


@pytest.mark.invariant("S1")
@pytest.mark.invariant("S3")
def test_only_participants_of_an_agreement_in_force_are_heard(tmp_path: Path) -> None:
    lab = laboratory(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        agreed = await concluded(lab, ADA, BEA)
        purpose = agreed.terms.purpose
        good = call_of(agreed.digest, purpose)
        receipt = await lab.deliver(ADA, BEA, "market-call", encode_call(good))
        assert decode_bid(good, receipt.body, good.until_ms) == Bid(10.0, 1.0, 0.1, good.until_ms)
        assert "takes no part" in refusal(await lab.deliver(CYD, BEA, "market-call", encode_call(good)))[1]
        other = call_of(agreed.digest, "marketing")
        assert "another purpose" in refusal(await lab.deliver(ADA, BEA, "market-call", encode_call(other)))[1]
        unknown = call_of(bytes(32), purpose)
        assert "no agreement" in refusal(await lab.deliver(ADA, BEA, "market-call", encode_call(unknown)))[1]
        await lab.change_policy(BEA, policy(BEA, forbid=["agent.discover"]))
        assert refusal(await lab.deliver(ADA, BEA, "market-call", encode_call(good)))[0] == "policy_denied"
        award = encode_award(good, 1.0, 5.0, good.until_ms)
        assert "takes no part" in refusal(await lab.deliver(CYD, BEA, "market-award", award))[1]

    run(main)


@pytest.mark.invariant("S7")
def test_an_award_answers_a_bid_and_is_for_no_more_than_that(tmp_path: Path) -> None:
    lab = laboratory(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        agreed = await concluded(lab, ADA, BEA, CYD)
        call = call_of(agreed.digest, agreed.terms.purpose)
        award = encode_award(call, 1.0, 8.0, call.until_ms)
        assert "answers a bid" in refusal(await lab.deliver(ADA, BEA, "market-award", award))[1]
        for sender in (ADA, CYD):
            await lab.deliver(sender, BEA, "market-call", encode_call(call))
        more = encode_award(call, 1.0, 10.1, call.until_ms)
        assert "more than was bid" in refusal(await lab.deliver(ADA, BEA, "market-award", more))[1]
        longer = encode_award(call, 1.0, 8.0, call.until_ms + 10**9)
        assert "more than was bid" in refusal(await lab.deliver(ADA, BEA, "market-award", longer))[1]
        assert (await lab.deliver(ADA, BEA, "market-award", award)).status == Receipt.STATUS_ACCEPTED
        bids = {}
        for sender in (ADA, CYD):
            receipt = await lab.deliver(sender, BEA, "market-call", encode_call(call))
            bids[sender] = decode_bid(call, receipt.body, call.until_ms).rows_per_s
        assert bids == {ADA: 10.0, CYD: 5.0}, "what is promised to one is not offered to another, but its even part"
        dear = call_of(agreed.digest, agreed.terms.purpose, most_price=0.5)
        receipt = await lab.deliver(CYD, BEA, "market-call", encode_call(dear))
        assert decode_bid(dear, receipt.body, dear.until_ms).rows_per_s == 0
        await lab.deliver(ADA, BEA, "market-award", encode_award(call, 0.0, 0.0, call.until_ms))
        assert lab.members[BEA].up.runtime.market.awarded() == ()

    run(main)


@pytest.mark.invariant("S7")
def test_wants_and_bids_that_stand_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = laboratory(tmp_path)
    assert (market._MAX_WANTS, market_bids._MAX_PROMISES, market_bids._MAX_BIDS_TO_ONE) == (256, 1024, 128)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        agreed = await concluded(lab, ADA, BEA)
        bea = lab.members[BEA].up.runtime.market
        statuses = []
        bea._bidder._offer = lambda skill: Offer(10.0, 1.0, 0.1)
        for number in range(130):
            call = call_of(agreed.digest, agreed.terms.purpose, skill=f"s{number}")
            receipt = await lab.deliver(ADA, BEA, "market-call", encode_call(call))
            statuses.append(receipt.status)
        assert statuses == [Receipt.STATUS_ACCEPTED] * 128 + [Receipt.STATUS_BUSY] * 2, "of one organization"
        bid = next(iter(bea._bidder._bids.values()))
        bea._bidder._bids = {(f"o{number}.example", agreed.digest, SKILL): bid for number in range(1_024)}
        receipt = await lab.deliver(ADA, BEA, "market-call", encode_call(call))
        assert receipt.status == Receipt.STATUS_BUSY
        bea._bidder._bids.clear()
        bea._bidder._offer = lambda skill: None
        for number in range(130):
            call = call_of(agreed.digest, agreed.terms.purpose, skill=f"s{number}")
            receipt = await lab.deliver(ADA, BEA, "market-call", encode_call(call))
            assert receipt.status == Receipt.STATUS_ACCEPTED, "what cannot be done takes no place"
        assert not bea._bidder._bids
        for number in range(256):
            bea.want(agreed.digest, f"s{number}", 1.0)
        with pytest.raises(Busy, match="called for already"):
            bea.want(agreed.digest, "one-more", 1.0)

    run(main)


def test_what_workers_can_do_is_their_places_over_their_time() -> None:
    assert own_offer(8, 0.5, 1.5) == Offer(16.0, 1.5, 0.5)
    assert own_offer(8, None, 0.0) == Offer(8.0, 0.0, 1.0)
    assert own_offer(0, 0.5, 1.5) is None


def test_the_skills_of_flows_are_called_for_once_they_are_asked_for(tmp_path: Path) -> None:
    flow = {
        "state": {"type": "object", "properties": {"text": {"type": "string", "maxLength": 20}}},
        "start": "draft",
        "steps": {
            "draft": {"skill": "draft", "at": "home", "writes": ["text"], "next": "answer"},
            "answer": {"skill": SKILL, "at": "others", "reads": ["text"], "writes": ["text"], "next": "end"},
        },
        "limits": {"steps": 8, "seconds": 60},
        "finish": "none",
    }
    lab = laboratory(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        agreed = await concluded(lab, ADA, BEA, CYD, flow=canonical_json(flow))
        runtime = lab.members[ADA].up.runtime
        for skill in ("draft", SKILL):
            runtime.router.asked(skill, BEA, trio.current_time())
        runtime.market.look_again()

        async def shared() -> bool:
            award = runtime.market.award(agreed.digest, SKILL)
            return award is not None and bool(award.shares)

        await until(shared, "what others may do is called for")
        assert runtime.market.award(agreed.digest, "draft") is None, "that is done at home"

    run(main)


@pytest.mark.invariant("S7")
def test_an_award_for_a_bid_that_is_over_is_refused(tmp_path: Path) -> None:
    """As one that is brought again later, or for a call that asked for a bid of a moment."""
    lab = laboratory(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        agreed = await concluded(lab, ADA, BEA)
        call = call_of(agreed.digest, agreed.terms.purpose, until_ms=now_ms() + 1)
        await lab.deliver(ADA, BEA, "market-call", encode_call(call))
        await trio.sleep(0.01)
        award = encode_award(call, 1.0, 5.0, now_ms() + 30_000)
        assert "none that stands" in refusal(await lab.deliver(ADA, BEA, "market-award", award))[1]
        assert lab.members[BEA].up.runtime.market.awarded() == ()

    run(main)


@pytest.mark.invariant("R3")
def test_one_that_holds_its_answers_back_does_not_hold_the_others_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for once a round, however many skills are called for."""
    lab = laboratory(tmp_path)
    monkeypatch.setattr(market, "_ASK_S", 1.0)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        agreed = await concluded(lab, ADA, BEA, CYD)
        ada = lab.members[ADA].up.runtime.market
        asks, real = Counter[str](), ada._messenger.ask

        async def ask(organization: str, kind: str, body: bytes, *, deadline_s: float) -> Receipt:
            if organization == CYD:
                asks[CYD] += 1
                await trio.sleep(deadline_s)
                raise PeerUnreachable("it does not answer")
            return await real(organization, kind, body, deadline_s=deadline_s)

        monkeypatch.setattr(ada._messenger, "ask", ask)
        rounds = rounds_of(ada, monkeypatch)
        monkeypatch.setattr(market, "_PAUSE_S", 0.2)
        began = trio.current_time()
        for number in range(200):
            ada.want(agreed.digest, SKILL if not number else f"s{number}", 10.0)

        async def shared() -> bool:
            award = ada.award(agreed.digest, SKILL)
            return award is not None and bool(award.shares) and len(rounds) > 1

        await until(shared, "a round has ended, and who bids has its share")
        assert trio.current_time() - began < 12, "200 skills, a second for each"
        assert asks[CYD] <= 2 * market._AT_ONCE

    run(main)


def test_a_want_that_ends_while_bids_come_in_ends_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = laboratory(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        agreed = await concluded(lab, ADA, BEA, CYD)
        ada = lab.members[ADA].up.runtime.market
        real = ada._messenger.ask

        async def ask(organization: str, kind: str, body: bytes, *, deadline_s: float) -> Receipt:
            for skill in (SKILL, "other"):
                ada.want(agreed.digest, skill, 0)
            return await real(organization, kind, body, deadline_s=deadline_s)

        monkeypatch.setattr(ada._messenger, "ask", ask)
        for skill in (SKILL, "other"):
            ada.want(agreed.digest, skill, 10.0)
        rounds = rounds_of(ada, monkeypatch)
        monkeypatch.setattr(market, "_PAUSE_S", 0.2)

        async def over() -> bool:
            return len(rounds) > 1

        await until(over, "rounds go on")
        assert ada.award(agreed.digest, SKILL) is None
        assert ada._router.snapshot(trio.current_time()).peers == ()
        assert not ada._router._awards, "what is not wanted any more has no odds"

    run(main)


@pytest.mark.parametrize("own", [0, 900])
def test_who_does_all_it_is_asked_for_is_not_doubted_for_what_is_done_at_home(tmp_path: Path, own: int) -> None:
    lab = laboratory(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        agreed = await concluded(lab, ADA, BEA, CYD)
        runtime = lab.members[ADA].up.runtime
        runtime.market.want(agreed.digest, SKILL, 10.0)
        await both_share(runtime.market, agreed.digest)
        want = runtime.market._wants[agreed.digest, SKILL]
        shares = want.standing.award.shares
        for name, rows in ((ADA, own), (BEA, round(shares[BEA] * 100)), (CYD, round(shares[CYD] * 100))):
            for _ in range(rows):
                runtime.router.answered(SKILL, name, trio.current_time(), 0.1)
        want.seen_s -= 100.0
        runtime.market._measure(SKILL, want)
        assert want.seen != {}, "it was measured"
        for name in (BEA, CYD):
            assert want.standing.capacity(name) == 10.0

    run(main)


def test_prices_of_cards_reach_the_picks_of_flows(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    skill = lab.members[BEA].skills()[0]
    lab.members[BEA].offers = {skill: Offer(10.0, 1.5, 0.1)}

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        runtime = lab.members[ADA].up.runtime

        async def known() -> bool:
            return runtime.directory.price(BEA, skill) == 1.5

        await until(known, "its card names a price")
        assert runtime.directory.price(BEA, "nothing") == runtime.directory.price(CYD, skill) == 0.0
        for name in (BEA, CYD):
            runtime.flows._routing.asked(name, skill)
            runtime.flows._routing.answered(name, skill, 0.1, good=True)
        assert runtime.flows._routing.pick(skill, [BEA], 0.0) == BEA
        (view,) = [one for one in runtime.router.snapshot(trio.current_time()).peers if one.organization == BEA]
        assert view.expected_s < 10, "its clock is the router's"
        picks = [runtime.flows._routing.pick(skill, [BEA, CYD], 0.0) for _ in range(60)]
        assert picks.count(CYD) > 45, "at no price, and as fast"

    run(main)
