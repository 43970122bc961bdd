"""Long texts of tasks between two organizations: real gates, signatures and databases; what went over the network."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.digest import sha256
from comity.errors import EnvelopeError
from comity.v1 import flow_pb2 as pb
from comity.v1.task_pb2 import Receipt
from comity_node.runtime.kinds import TOKEN_NOTES, TOKEN_PARTS, TOKENS
from comity_node.storage import journeys
from kit.lab import Lab, run, until

ADA, BEA = "org00.example", "org01.example"
SIZE = 64 * 1024
TURNS, TASKS = 10, 3
_TEXT: dict[str, Any] = {"type": "string", "maxLength": 2 * SIZE}
FLOW: dict[str, Any] = {
    "state": {
        "type": "object",
        "properties": {
            "document": _TEXT,
            "notes": {"type": "array", "items": {"type": "string", "maxLength": 100}, "maxItems": 64},
        },
    },
    "start": "write",
    "steps": {
        "write": {"skill": "write", "at": "home", "writes": ["document"], "next": "talk"},
        "talk": {
            "dialogue": [{"skill": "reply", "at": "others"}, {"skill": "ask", "at": "home"}],
            "appends": ["notes"],
            "turns": TURNS,
            "next": "end",
        },
    },
    "finish": "none",
    "limits": {"seconds": 120},
}
WORKFLOW = {"flow": FLOW, "homes": "initiator", "records_per_organization": TASKS, "lease_seconds": 60}


def document(number: int) -> str:
    return f'{number} "ä"\n'.ljust(SIZE, "x")


class Talk(Lab):
    """Two organizations that talk about long documents of the first one."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, 2)
        made = iter(range(1_000_000))

        def write(work: Any) -> Any:
            return {"state": {"document": document(next(made))}}

        def say(work: Any) -> Any:
            assert work["state"]["document"][8:] == "x" * (SIZE - 8)
            return {"state": {"notes": [str(work["turn"])]}}

        for member in self.members.values():
            member.agents = {**member.agents, "write": write, "reply": say, "ask": say}

    def deliveries(self, sender: str) -> list[tuple[str, pb.TokenDelivery, int]]:
        """The deliveries of a sender: their kind, what they say and how many bytes they have."""
        return [
            (one.kind, pb.TokenDelivery.FromString(one.body), len(one.body))
            for one in self.network.carried
            if one.sender == sender and one.kind in (TOKENS, TOKEN_PARTS)
        ]

    async def check_ends(self) -> None:
        """All tasks are done, each with all its turns, and each way verifies."""
        ended = self.members[ADA].rows("SELECT ending, state FROM journeys")
        assert [ending for ending, _ in ended] == ["done"] * TASKS
        states = [json.loads(state) for _, state in ended]
        assert sorted(state["document"] for state in states) == sorted(map(document, range(TASKS)))
        assert all(state["notes"] == [str(turn) for turn in range(TURNS)] for state in states)
        read = self.members[ADA].up.database.read
        for (task,) in self.members[ADA].rows("SELECT task_id FROM journeys"):
            assert len(await read(lambda c: journeys.way_of(c, task))) == TURNS  # noqa: B023


@pytest.mark.invariant("R2")
def test_a_document_goes_over_once_in_each_direction(tmp_path: Path) -> None:
    lab = Talk(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await lab.until_done(await lab.submit(ADA, **WORKFLOW), ADA)
        await lab.check_ends()
        for name in (ADA, BEA):
            carried = lab.deliveries(name)
            hops = sum(len(delivery.tokens) for _, delivery, _ in carried)
            assert hops == TURNS // 2 * TASKS
            texts = Counter(
                document
                for _, delivery, _ in carried
                for document in (*delivery.payloads, *(one.state for one in delivery.tokens if len(one.state) > SIZE))
            )
            assert len(texts) == TASKS
            total = sum(size for _, _, size in carried)
            assert TASKS * SIZE < total < TASKS * SIZE + hops * 10_000, "each document once, and what else a hop takes"
            counted = lab.members[name].up.runtime.counters()
            assert TASKS * SIZE <= counted["payloads.sent"] <= TASKS * (SIZE + 10), "with what is escaped"
            assert counted["payloads.saved"] == counted["payloads.sent"] * (TURNS // 2 - 1)

    run(main)
    lab.verify_audit_logs()


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
def test_a_node_that_comes_up_anew_says_what_is_missing_and_gets_it_whole(tmp_path: Path) -> None:
    lab = Talk(tmp_path)
    answers: list[list[int]] = []

    def after(carried: Any, receipt: Receipt) -> None:
        if carried.receiver == BEA and carried.kind == TOKEN_PARTS:
            answers.append([one.outcome for one in pb.TokenReceipts.FromString(receipt.body).receipts])

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        bea = lab.members[BEA]
        bea.hold()
        workflow_id = await lab.submit(ADA, **WORKFLOW)

        async def there() -> bool:
            return bea.calls.count("reply") == TASKS

        await until(there, "all tasks are at the other side")
        await lab.stop(BEA)
        lab.network.after = after
        bea.hold()
        await lab.start(nursery, BEA)

        async def hears() -> bool:
            """It takes no messages that may be from before it came up."""
            with suppress(EnvelopeError):
                await lab.deliver(ADA, BEA, TOKEN_NOTES, b"")
                return True
            return False

        await until(hears, "it takes messages of now")
        bea.free.set()
        await lab.until_done(workflow_id, ADA)
        await lab.check_ends()
        missing = sum(each.count(pb.TokenReceipt.OUTCOME_MISSING) for each in answers)
        assert missing == TASKS, "what it kept is gone, which each task finds out once"
        assert bea.calls.count("reply") == TASKS * (TURNS // 2 + 1), "those that were cut off once more, and no others"
        assert lab.members[ADA].up.runtime.counters()["payloads.missing"] > TASKS * SIZE
        for name in (ADA, BEA):
            assert not lab.members[name].rows("SELECT 1 FROM tokens_held UNION ALL SELECT 1 FROM tokens_out")

    run(main)
    lab.verify_audit_logs()


@pytest.mark.invariant("S2")
def test_a_token_whose_pieces_make_another_state_is_refused_as_if_it_came_whole(tmp_path: Path) -> None:
    """The text is one that this very peer brought, and the hop is signed: but over another state."""
    lab = Talk(tmp_path)
    answers: list[pb.TokenReceipt] = []

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        bea = lab.members[BEA]
        bea.hold()
        await lab.submit(ADA, **WORKFLOW)

        async def there() -> bool:
            return bea.calls.count("reply") == TASKS

        await until(there, "all tasks are at the other side")
        tokens = [(sent.agreement_digest, one) for _, sent, _ in lab.deliveries(ADA) for one in sent.tokens]
        (digest, one), (_, other) = tokens[:2]
        begin = len(b'{"document":"')
        for text_of in (one, other):
            mixed = pb.Token.FromString(one.SerializeToString())
            text = text_of.state[begin : text_of.state.rindex(b'"')]
            mixed.state = one.state[:begin] + one.state[one.state.rindex(b'"') :]
            mixed.parts.add(offset=begin, digest=sha256(text), size=len(text))
            delivery = pb.TokenDelivery(agreement_digest=digest, tokens=[mixed])
            receipt = await lab.deliver(ADA, BEA, TOKEN_PARTS, delivery.SerializeToString())
            answers.extend(pb.TokenReceipts.FromString(receipt.body).receipts)
        bea.free.set()

    run(main)
    known, refused = answers
    assert known.outcome == pb.TokenReceipt.OUTCOME_KNOWN, "with its own text it is the token that came before"
    assert (refused.outcome, refused.reason) == (
        pb.TokenReceipt.OUTCOME_REFUSED,
        "the last hop of the token is about another one",
    )
