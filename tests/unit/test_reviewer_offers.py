"""A reviewer among homes that try what they can: certify twice, be judged beyond the agreement, fill its disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.agreement import Agreed, open_agreement
from comity.digest import canonical_json, sha256
from comity.errors import AgentFailed
from comity.hops import CREATE, SEND
from comity.v1.task_pb2 import CertifiedRecord, Receipt, RecordDelivery, TaskOffer
from comity_node.runtime import reviewer
from comity_node.runtime.messenger import accepted
from comity_node.storage import audit, journal
from kit.consortium import NOW_MS
from kit.documents import TASK_ID, make_agreement, make_certified, make_history, make_passage, make_terms
from kit.lab import Lab, now_ms, policy, run, until

ADA, BEA, CYD = (f"org{number:02}.example" for number in range(3))
ONE, TWO = b"1" * 16, b"2" * 16


async def concluded(lab: Lab, **changes: Any) -> Agreed:
    """An agreement among all that bea knows; nobody makes records under it but the test, in ada's name."""
    terms = make_terms(lab.consortium, issued_ms=NOW_MS, expires_ms=now_ms() + 600_000, **changes)
    data = make_agreement(lab.consortium, terms)
    await lab.members[BEA].up.runtime.agreements.add(data)
    return open_agreement(data, lab.consortium.trust)


def offer(
    lab: Lab, agreed: Agreed, *tasks: tuple[int, float], batch: bytes = ONE, revision: int = 0, home: str = ADA
) -> bytes:
    """An offer of a home's to bea; a task is its number and its x."""
    made = TaskOffer(batch_id=batch)
    for number, x in tasks:
        record = canonical_json({"x": x, "label": 1})
        task_id = sha256(bytes([number]))[:16]
        passage: dict[str, Any] = {"task_id": task_id, "record": record, "revision": revision}
        passages = [make_passage(CREATE, **passage), make_passage(SEND, to=BEA, **passage)]
        history = make_history(lab.consortium.nodes[home], passages)
        made.tasks.add(
            id=task_id,
            agreement_digest=agreed.digest,
            home=home,
            revision=revision,
            record=record,
            hops=history,
        )
    return made.SerializeToString()


async def code(lab: Lab, body: bytes) -> str:
    return (await lab.deliver(ADA, BEA, "task-offer", body)).code


async def until_answered(lab: Lab, count: int = 1) -> None:
    async def answered() -> bool:
        return len(lab.members[BEA].rows("SELECT 1 FROM inbox WHERE state = 'done'")) >= count

    await until(answered, f"bea has answered {count} offers")


def lone_reviewer(tmp_path: Path, main: Callable[[Lab], Any]) -> None:
    """Run `main` while ada's and bea's nodes are up; bea's agents judge, ada's do nothing."""
    lab = Lab(tmp_path)

    async def outer(nursery: trio.Nursery) -> None:
        await lab.start(nursery, ADA, BEA)
        await main(lab)

    run(outer)
    for name in (ADA, BEA):
        audit.verify_file(lab.members[name].file, None)


# -- what is reviewed --------------------------------------------------------------------------------------------------


@pytest.mark.invariant("S9")
def test_of_a_tasks_revision_one_record_is_reviewed(tmp_path: Path) -> None:
    """Two accept certificates for one task would otherwise be a matter of asking twice."""

    async def main(lab: Lab) -> None:
        agreed = await concluded(lab)
        bea = lab.members[BEA]
        assert await code(lab, offer(lab, agreed, (1, 1.0), (2, 1.0))) == ""
        await until_answered(lab)
        entries = len(bea.audited())
        for body in (
            offer(lab, agreed, (1, 2.0), batch=TWO),
            offer(lab, agreed, (1, 1.0), batch=TWO),
            offer(lab, agreed, (3, 1.0), (1, 2.0), batch=TWO),
            offer(lab, agreed, (1, 2.0), batch=TWO, revision=1),
        ):
            assert await code(lab, body) == "agreement_violated"
        assert len(bea.audited()) == entries, "what is refused for this costs no audit entries"
        assert bea.calls.count("review") == 1
        assert await code(lab, offer(lab, agreed, (1, 2.0), revision=1)) == "", "a repair"
        assert await code(lab, offer(lab, agreed, (4, 2.0), batch=TWO, revision=1)) == "", "others had it before"
        await until_answered(lab, 3)

    lone_reviewer(tmp_path, main)


@pytest.mark.invariant("S7")
def test_the_quota_counts_tasks_and_not_repairs_or_revisions(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        agreed = await concluded(lab, records_per_organization=3, batch_records=2)
        assert await code(lab, offer(lab, agreed, (1, 1.0), (2, 1.0))) == ""
        assert await code(lab, offer(lab, agreed, (1, 2.0), (2, 2.0), revision=1)) == ""
        entries = len(lab.members[BEA].audited())
        assert await code(lab, offer(lab, agreed, (3, 1.0), (4, 1.0), batch=TWO, revision=1)) == "agreement_violated"
        assert not [one for one in lab.members[BEA].audited()[entries:] if one["action"] == "record.receive"]
        assert await code(lab, offer(lab, agreed, (3, 1.0), batch=TWO)) == ""
        assert await code(lab, offer(lab, agreed, (5, 1.0), batch=b"3" * 16)) == "agreement_violated"
        await until_answered(lab, 3)

    lone_reviewer(tmp_path, main)


@pytest.mark.invariant("R2")
def test_a_batch_that_was_just_finished_is_not_judged_again(tmp_path: Path) -> None:
    """The look for what waits may be older than the end of a judgement."""

    async def main(lab: Lab) -> None:
        agreed = await concluded(lab)
        bea = lab.members[BEA]
        bea.hold()
        database = bea.up.database
        read = database.read
        looks = 0

        async def stale(function: Callable[[sqlite3.Connection], Any]) -> Any:
            nonlocal looks
            if function is not journal.held_offers:
                return await read(function)
            looks += 1
            row = await read(lambda c: c.execute("SELECT digest, home, agreement_digest FROM inbox").fetchone())
            return [journal.HeldOffer(*row)] if row and looks < 20 else []

        database.read = stale  # type: ignore[method-assign]
        assert await code(lab, offer(lab, agreed, (1, 1.0))) == ""
        bea.free.set()
        await until_answered(lab)

        async def looked() -> bool:
            return looks >= 20

        await until(looked, "bea has looked again and again")
        assert bea.calls.count("review") == 1
        assert bea.rows("SELECT organization, agreed, disagreed FROM reliability") == [(ADA, 1.0, 0.0)]

    lone_reviewer(tmp_path, main)


@pytest.mark.invariant("R2")
def test_a_judgement_that_comes_second_counts_nothing(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        agreed = await concluded(lab)
        bea = lab.members[BEA]
        body = offer(lab, agreed, (1, 1.0))
        assert await code(lab, body) == ""
        await until_answered(lab)
        row = await bea.up.database.read(lambda c: journal.get_offer(c, journal.offer_digest(ADA, ONE, 0)))
        assert row is not None
        answer = {"reviews": [{"score": 0, "axes": {}, "feedback": []}], "validator": "late"}
        await bea.up.runtime.reviewer._deliver(agreed, row, TaskOffer.FromString(body), answer)
        (known,) = await bea.up.database.read(lambda c: journal.list_reliability(c, now_ms()))
        assert (round(known.agreed, 3), known.disagreed) == (1.0, 0.0)
        again = await bea.up.database.read(lambda c: journal.get_offer(c, row.digest))
        assert again is not None
        assert again.reviews == row.reviews

    lone_reviewer(tmp_path, main)


# -- what it sends -----------------------------------------------------------------------------------------------------


@pytest.mark.invariant("S7")
def test_an_offer_that_comes_again_and_again_has_one_answer_waiting(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        agreed = await concluded(lab)
        bea = lab.members[BEA]
        receipts = [Receipt(status=Receipt.STATUS_BUSY, retry_after_ms=2**32 - 1)]

        async def take(*_: object) -> Receipt:
            await trio.lowlevel.checkpoint()
            return receipts[-1]

        lab.members[ADA].up.runtime.messenger.serve({"reviews": take})
        body = offer(lab, agreed, (1, 1.0))
        clock, past = bea.up.gate.now_ms, [0]
        bea.up.gate.now_ms = lambda: clock() + past[0]
        await code(lab, body)
        await until_answered(lab)
        for _ in range(5):
            past[0] += 1100
            assert await code(lab, body) == ""
        ((state,),) = bea.rows("SELECT state FROM outbox WHERE organization = ?", ADA)
        assert state in ("pending", "sent")
        assert bea.calls.count("review") == 1

    lone_reviewer(tmp_path, main)


@pytest.mark.invariant("R3")
@pytest.mark.parametrize("first", [accepted(), Receipt(status=Receipt.STATUS_REFUSED, code="x", reason="not now")])
def test_a_home_that_asks_again_gets_the_same_reviews_again(tmp_path: Path, first: Receipt) -> None:
    async def main(lab: Lab) -> None:
        agreed = await concluded(lab)
        seen: list[bytes] = []

        async def take(_: object, body: bytes) -> Receipt:
            await trio.lowlevel.checkpoint()
            seen.append(body)
            return first

        async def times(count: int) -> None:
            async def closed() -> bool:
                return lab.members[BEA].rows("SELECT state FROM outbox") in ([("done",)], [("failed",)])

            async def come() -> bool:
                return len(seen) == count and await closed()

            await until(come, f"the reviews came {count} times")

        lab.members[ADA].up.runtime.messenger.serve({"reviews": take})
        body = offer(lab, agreed, (1, 1.0))
        for count in (1, 2, 3):
            assert await code(lab, body) == ""
            await times(count)
        assert len(set(seen)) == 1

    lone_reviewer(tmp_path, main)


@pytest.mark.invariant("R4")
def test_a_home_that_takes_no_messages_holds_up_no_judgement(tmp_path: Path) -> None:
    """Its reviews are kept; they go when it asks for them and takes messages again."""

    async def main(lab: Lab) -> None:
        agreed = await concluded(lab)
        bea = lab.members[BEA]

        def fill(connection: sqlite3.Connection) -> None:
            row = "INSERT INTO outbox VALUES (?, ?, 'x', x'', ?, 'pending', '', 0, ?, ?, 0, 0)"
            later = now_ms() + 500_000
            values = [(number.to_bytes(16, "big"), ADA, f"full/{number}", later, later) for number in range(10_000)]
            connection.executemany(row, values)

        await bea.up.database.transact(fill)
        body = offer(lab, agreed, (1, 1.0))
        assert await code(lab, body) == ""
        await until_answered(lab)
        assert not bea.rows("SELECT 1 FROM outbox WHERE kind = 'reviews'")
        again = await lab.deliver(ADA, BEA, "task-offer", body)
        assert again.status == Receipt.STATUS_BUSY
        await bea.up.database.transact(lambda c: c.execute("DELETE FROM outbox WHERE kind = 'x'"))
        assert await code(lab, body) == ""
        assert bea.rows("SELECT 1 FROM outbox WHERE kind = 'reviews'")
        assert bea.calls.count("review") == 1

    lone_reviewer(tmp_path, main)


@pytest.mark.invariant("R3")
def test_a_review_whose_rate_is_used_up_goes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reviewer, "_RATE_RETRY_S", (0.05, 0.05))
    lab = Lab(tmp_path)
    bea = lab.members[BEA]
    bea.policy = policy(BEA, obligations={"review.send": "rate: {records: 1, per: 1s}"})

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, ADA, BEA)
        agreed = await concluded(lab)
        too_many = offer(lab, agreed, (7, 1.0), (8, 1.0), batch=b"3" * 16)
        for body in (offer(lab, agreed, (1, 1.0)), offer(lab, agreed, (2, 1.0), batch=TWO), too_many):
            assert await code(lab, body) == ""
        await until_answered(lab, 3)
        answered = bea.rows("SELECT length(reviews) > 0 FROM inbox ORDER BY batch_id")
        assert answered == [(1,), (1,), (0,)], "what no rate ever lets pass is given up"

    run(main)
    assert bea.calls.count("review") == 3, "nothing is judged anew while it waits"
    denied = [one for one in bea.audited() if (one["action"], one["decision"]) == ("review.send", "deny")]
    assert len(denied) >= 2


# -- giving up ---------------------------------------------------------------------------------------------------------


def test_what_is_given_up_ends_then_and_not_when_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reviewer, "_AGENT_RETRY_S", 0.05)

    async def main(lab: Lab) -> None:
        agreed = await concluded(lab, lease_seconds=1)

        def fail(_: object) -> Any:
            raise AgentFailed("these rows crash it")

        lab.members[BEA].agents["review"] = fail
        assert await code(lab, offer(lab, agreed, (1, 1.0))) == ""
        await until_answered(lab)
        ((reviews, done_ms, lease_until_ms),) = lab.members[BEA].rows(
            "SELECT reviews, done_ms, lease_until_ms FROM inbox"
        )
        assert reviews == b""
        assert done_ms >= lease_until_ms

    lone_reviewer(tmp_path, main)


@pytest.mark.invariant("R5")
def test_a_batch_whose_agreement_is_gone_is_given_up(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    bea = lab.members[BEA]

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, ADA, BEA)
        agreed = await concluded(lab)
        bea.hold()
        assert await code(lab, offer(lab, agreed, (1, 1.0))) == ""
        await lab.stop(BEA)
        with closing(sqlite3.connect(bea.file)) as connection, connection:
            connection.execute("UPDATE agreements SET state = 'void'")
        await lab.start(nursery, BEA)
        await until_answered(lab)

    run(main)
    assert bea.rows("SELECT state, reviews FROM inbox") == [("done", b"")]


# -- certified records -------------------------------------------------------------------------------------------------


@pytest.mark.invariant("S7")
@pytest.mark.invariant("S8")
def test_a_record_that_comes_again_leaves_no_second_trace(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        agreed = await concluded(lab)
        bea = lab.members[BEA]
        scores = {BEA: 9000, CYD: 9000}
        good = make_certified(lab.consortium, agreed, author=ADA, holder=BEA, scores=scores)
        body = RecordDelivery(records=[good]).SerializeToString()
        async with trio.open_nursery() as nursery:  # none of them finds it there when it looks
            for _ in range(3):
                nursery.start_soon(lab.deliver, ADA, BEA, "records", body)
        entries = bea.audited()
        assert sum(one["action"] == "record.stored" for one in entries) == 1
        twice = RecordDelivery(records=[good] * 2).SerializeToString()
        assert (await lab.deliver(ADA, BEA, "records", twice)).code == "unexpected_message"
        for _ in range(5):
            assert (await lab.deliver(ADA, BEA, "records", body)).status == Receipt.STATUS_ACCEPTED
        assert bea.audited() == entries
        assert bea.rows("SELECT task_id FROM records") == [(TASK_ID,)]

    lone_reviewer(tmp_path, main)


@pytest.mark.invariant("S9")
def test_a_second_record_for_a_task_is_refused_for_good(tmp_path: Path) -> None:
    """Not put off: its sender would send it again until the agreement ends."""

    async def main(lab: Lab) -> None:
        agreed = await concluded(lab)
        other = await concluded(lab, id="0b" * 16)
        scores = {BEA: 9000, CYD: 9000}
        good = make_certified(lab.consortium, agreed, author=ADA, holder=BEA, scores=scores)
        assert (await release(lab, good)).status == Receipt.STATUS_ACCEPTED
        second = make_certified(lab.consortium, other, author=ADA, holder=BEA, scores=scores)
        assert (await release(lab, second)).status == Receipt.STATUS_ACCEPTED, "the same record"
        await lab.members[BEA].up.database.transact(
            lambda c: c.execute("UPDATE records SET record_digest = ?", (sha256(b"another"),))
        )
        receipt = await release(lab, second)
        assert (receipt.status, receipt.code) == (Receipt.STATUS_REFUSED, "certificate_invalid")

    async def release(lab: Lab, certified: CertifiedRecord) -> Receipt:
        return await lab.deliver(ADA, BEA, "records", RecordDelivery(records=[certified]).SerializeToString())

    lone_reviewer(tmp_path, main)
