"""Tokens at the gate: what leaves, in which form and with which hop, and what is let in."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import trio

from comity import signed
from comity.agreement import Agreed
from comity.digest import canonical_json, sha256
from comity.envelope import open_document
from comity.errors import AgreementError, CertificateInvalid, SignatureInvalid, StorageFull
from comity.v1.agreement_pb2 import Obligations
from comity_node.admission import Gate, tokens
from comity_node.admission.records import Dataset
from comity_node.admission.token_frame import Frame, Promises
from comity_node.admission.token_hops import KIND, read_hop, verify_journey
from comity_node.admission.tokens import Denied, Leaving, TokenGate
from comity_node.policy.loader import loads_policy
from comity_node.protocol.flow import begin, encode_cursor, read_flow
from comity_node.protocol.freshness import Freshness
from comity_node.protocol.token import HOME, Outcome, Token
from comity_node.runtime.passing.gateway import TokenGateway
from comity_node.runtime.passing.journal import DurableJournal
from comity_node.runtime.passing.ports import Move, Outgoing
from comity_node.storage import audit, ledgers
from comity_node.storage.database import Database, open_database
from comity_node.validators.distance import PrivateReference
from comity_node.validators.schema import FieldSpec, Schema
from kit.consortium import NOW_MS, attested, consortium, names
from kit.documents import DATASET, agree
from kit.lab import policy

ADA, BEA, CYD = names(3)
LAB = consortium(*names(3))
SCHEMA = Schema("label", {"x": FieldSpec("number", 0, 100), "label": FieldSpec("integer", 0, 1)})
PRIVATE = np.array([[10.0], [20.0], [30.0], [90.0]])
FLOW = read_flow(
    {
        "state": {
            "type": "object",
            "properties": {
                "x": {"type": "number"},
                "label": {"type": "integer"},
                "name": {"type": "string", "maxLength": 100},
                "notes": {"type": "object", "properties": {"text": {"type": "string", "maxLength": 100}}},
            },
        },
        "start": "answer",
        "steps": {
            "answer": {"skill": "answer", "at": "others", "writes": ["label"], "next": "check"},
            "check": {"skill": "check", "at": "any", "writes": ["x"], "next": "end"},
        },
        "finish": "none",
    }
)
STATE = {"name": "Ann Lee", "notes": {"text": "secret"}}
CURSOR = encode_cursor(begin(FLOW, NOW_MS))

Came = list[Token | Denied]


def token(number: int = 0, **changes: Any) -> Token:
    """A task of the first organization that is to leave for its first step."""
    made = Token(
        task_id=number.to_bytes(16, "big"),
        agreement=b"",
        home=ADA,
        home_peer=LAB.nodes[ADA].peer_id,
        attempt=1,
        sequence=1,
        cursor=CURSOR,
        state=canonical_json(STATE),
        hops=(),
        deadline_ms=NOW_MS + 600_000,
    )
    return replace(made, **changes)


class Party:
    """One organization's gate for tokens."""

    def __init__(self, gate: Gate, database: Database, tokens: TokenGate) -> None:
        self.gate = gate
        self.database = database
        self.tokens = tokens

    async def out(self, agreed: Agreed, to: str, *leaving: Token, role: str = "answer") -> Came:
        kept: list[Came] = []

        def keep(_: sqlite3.Connection, came: Sequence[Token | Denied]) -> None:
            kept.append(list(came))

        rows = [Leaving(replace(one, agreement=agreed.digest), role) for one in leaving]
        came = await self.tokens.out(agreed, FLOW, to, rows, keep)
        assert kept[-1] == came
        return came

    async def arrive(self, agreed: Agreed, sender: str, *tokens: Token) -> list[Denied | None]:
        return await self.tokens.arrive(agreed, FLOW, attested(LAB.nodes[sender]), tokens)

    async def entries(self, action: str = "") -> list[audit.AuditEntry]:
        stored = await self.database.read(lambda c: audit.entries(c))
        return [one.entry for one in stored if action in ("", one.entry.action)]


def parties(path: Path, main: Callable[..., Awaitable[None]], **texts: str) -> None:
    """Run `main` with the gates of all three; `texts`: another policy for one of them."""

    async def outer() -> None:
        async with AsyncExitStack() as stack:
            made = {}
            for short, name in zip(("ada", "bea", "cyd"), (ADA, BEA, CYD), strict=True):
                database = await stack.enter_async_context(open_database(path / f"{name}.db"))
                gate = Gate(
                    identity=LAB.nodes[name],
                    policy=loads_policy(texts.get(short) or policy(name)),
                    database=database,
                    freshness=Freshness(LAB.nodes[name].peer_id),
                    now_ms=lambda: NOW_MS + 1000,
                    random_bytes=random.randbytes,
                )
                dataset = Dataset(SCHEMA, PrivateReference(SCHEMA, PRIVATE))
                made[short] = Party(gate, database, TokenGate(gate, {DATASET: dataset}, LAB.trust))
            await main(**made)

    trio.run(outer)


def passed(came: Came) -> list[Token]:
    assert not [one for one in came if isinstance(one, Denied)], came
    return [one for one in came if isinstance(one, Token)]


def reasons(came: Sequence[Token | Denied | None]) -> list[str]:
    return [one.reason if isinstance(one, Denied) else "" for one in came]


@pytest.mark.invariant("S8")
def test_tokens_of_one_decision_share_an_entry_that_names_each_of_them(tmp_path: Path) -> None:
    agreed = agree(LAB)

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        gone = passed(await ada.out(agreed, BEA, *(token(number) for number in range(5))))
        (entry,) = await ada.entries("record.send")
        assert (entry.decision, entry.detail["tokens"]) == ("allow", 5)
        for one in gone:
            assert signed.head_of(signed.open_signed(one.hops[-1], (KIND,))) == entry.subject
        alone = passed(await ada.out(agreed, BEA, token(9)))
        assert (
            signed.head_of(signed.open_signed(alone[0].hops[-1], (KIND,)))
            == (await ada.entries("record.send"))[1].subject
        )
        assert await bea.arrive(agreed, ADA, *gone[1:3], gone[4]) == [None] * 3
        (entry,) = await bea.entries("record.receive")
        assert (entry.detail["tokens"], entry.detail["places"]) == (3, [1, 2, 4])

    parties(tmp_path, main)


def test_where_a_rule_counts_each_token_is_counted_and_has_its_entry(tmp_path: Path) -> None:
    agreed = agree(LAB)
    text = policy(ADA, obligations={"record.send": "rate: {records: 3, per: 1h}"})

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        came = await ada.out(agreed, BEA, *(token(number) for number in range(5)))
        assert [isinstance(one, Token) for one in came] == [True] * 3 + [False] * 2
        entries = await ada.entries("record.send")
        assert [one.decision for one in entries] == ["allow"] * 3 + ["deny"] * 2
        for one, entry in zip(passed(came[:3]), entries, strict=False):
            assert signed.leaf_of(signed.open_signed(one.hops[-1], (KIND,))) == entry.subject

    parties(tmp_path, main, ada=text)


@pytest.mark.invariant("S1")
def test_neither_policy_alone_lets_a_token_pass(tmp_path: Path) -> None:
    agreed = agree(LAB)

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        (no,) = await ada.out(agreed, CYD, token())
        assert isinstance(no, Denied)
        (entry,) = await ada.entries("record.send")
        assert (entry.decision, entry.rules) == ("deny", ("not-to-cyd",))
        (gone,) = passed(await ada.out(agreed, BEA, token()))
        (denied,) = await bea.arrive(agreed, ADA, gone)
        assert denied is not None
        assert [one.decision for one in await bea.entries("record.receive")] == ["deny"]

    never = "\n  - {id: not-to-cyd, effect: forbid, action: record.send, to: {organization: [" + CYD + "]}}"
    parties(tmp_path, main, ada=policy(ADA) + never, bea=policy(BEA, without=["record.receive"]))


def test_rules_can_name_the_skill_that_a_token_is_sent_for(tmp_path: Path) -> None:
    agreed = agree(LAB)
    text = policy(ADA, without=["record.send"]) + (
        "\n  - {id: to-answer, effect: allow, action: record.send, to: {organization: [" + BEA + "], role: [answer]},"
        " obligations: {onward: never}}"
    )

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        passed(await ada.out(agreed, BEA, token()))
        (no,) = await ada.out(agreed, BEA, token(1), role="check")
        assert isinstance(no, Denied)

    parties(tmp_path, main, ada=text)


def test_what_leaves_is_in_the_form_that_agreement_and_rules_ask_for(tmp_path: Path) -> None:
    owed = Obligations(onward="never", redact=["notes.text"])
    agreed = agree(LAB, obligations=owed)
    text = policy(ADA, obligations={"record.send": "mask: {name: 3}"})

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        (gone,) = passed(await ada.out(agreed, BEA, token()))
        assert gone.state == canonical_json({"name": "****Lee", "notes": {}})
        assert await bea.arrive(agreed, ADA, gone) == [None]

    parties(tmp_path, main, ada=text)


def test_what_did_not_get_its_form_is_not_taken(tmp_path: Path) -> None:
    agreed = agree(LAB)

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        plain, bare = token(), token(1, state=canonical_json({"name": "Ann Lee"}))
        gone = passed(await ada.out(agreed, BEA, plain, bare))
        first, second = reasons(await bea.arrive(agreed, ADA, *gone))
        assert "notes.text" in first
        assert not second

    parties(tmp_path, main, bea=policy(BEA, obligations={"record.receive": "redact: [notes.text]"}))


@pytest.mark.parametrize(
    "asked", ["noise: {x: {epsilon: 1, lower: 0, upper: 9}}", "k_anonymity: {k: 2, fields: [name]}"]
)
def test_noise_and_k_anonymity_refuse_a_token_and_say_so(tmp_path: Path, asked: str) -> None:
    agreed = agree(LAB)

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        (no,) = await ada.out(agreed, BEA, token())
        assert isinstance(no, Denied)
        assert asked.partition(":")[0] in no.reason
        assert [one.action for one in await ada.entries()] == ["token.refused"]

    parties(tmp_path, main, ada=policy(ADA, obligations={"record.send": asked}))


def test_the_distance_to_private_rows_is_measured_of_whole_rows(tmp_path: Path) -> None:
    agreed = agree(LAB, obligations=Obligations(onward="never", min_distance_to_private=0.2))
    rows = {
        "none of a row": {"name": "x"},
        "far": {"x": 60.0, "label": 1},
        "near": {"x": 20.0, "label": 1},
        "a part": {"x": 60.0},
    }

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        tokens = [token(number, state=canonical_json(state)) for number, state in enumerate(rows.values())]
        came = await ada.out(agreed, BEA, *tokens)
        assert [isinstance(one, Token) for one in came] == [True, True, False, False]
        assert "part of a row" in reasons(came)[3]
        gone = passed(came[:2])
        assert [dict(read_hop(one.hops[0]).attested) for one in gone] == [{}, {"min_distance_to_private": "0.2"}]
        assert await bea.arrive(agreed, ADA, *gone) == [None, None]

    parties(tmp_path, main)


def test_whoever_does_not_attest_the_distance_is_refused(tmp_path: Path) -> None:
    plain = agree(LAB)

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        (gone,) = passed(await ada.out(plain, BEA, token(state=canonical_json({"x": 60.0, "label": 1}))))
        (denied,) = await bea.arrive(plain, ADA, gone)
        assert denied is not None
        assert "distance" in denied.reason

    parties(tmp_path, main, bea=policy(BEA, obligations={"record.receive": "min_distance_to_private: 0.2"}))


SPOILED: dict[str, Callable[[Token], Token]] = {
    "another state": lambda one: replace(one, state=canonical_json({"name": "Bob"})),
    "another cursor": lambda one: replace(one, cursor=encode_cursor(begin(FLOW, NOW_MS + 1))),
    "another outcome": lambda one: replace(one, outcome=Outcome.DONE),
    "a later deadline": lambda one: replace(one, deadline_ms=one.deadline_ms + 1),
    "another attempt": lambda one: replace(one, attempt=2),
    "another sequence": lambda one: replace(one, sequence=2),
    "another task": lambda one: replace(one, task_id=bytes(15) + b"x"),
    "another home": lambda one: replace(one, home=CYD),
    "another node of the home": lambda one: replace(one, home_peer=LAB.nodes[CYD].peer_id),
    "no hop": lambda one: replace(one, hops=()),
    "a hop before": lambda one: replace(one, hops=(one.hops[0], one.hops[0])),
    "no hop at all": lambda one: replace(one, hops=(b"hop",)),
    "a broken signature": lambda one: replace(one, hops=(one.hops[0][:-1] + bytes([one.hops[0][-1] ^ 1]),)),
}


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("how", SPOILED)
def test_a_token_that_its_last_hop_does_not_vouch_for_is_refused(tmp_path: Path, how: str) -> None:
    agreed = agree(LAB)

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        (gone,) = passed(await ada.out(agreed, BEA, token()))
        (denied,) = await bea.arrive(agreed, ADA, SPOILED[how](gone))
        assert denied is not None
        assert not await bea.entries(), "nothing of it was put to the policy"

    parties(tmp_path, main)


@pytest.mark.invariant("S5")
def test_a_token_is_good_for_one_recipient_from_its_sender(tmp_path: Path) -> None:
    agreed, other = agree(LAB), agree(LAB, purpose="other")

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        (gone,) = passed(await ada.out(agreed, BEA, token()))
        assert reasons(await bea.arrive(agreed, CYD, gone)) != [""]
        assert reasons(await cyd.arrive(agreed, ADA, gone)) != [""]
        assert reasons(await bea.arrive(other, ADA, gone)) != [""]
        (home,) = passed(await ada.out(agreed, BEA, token(), role=HOME))
        assert reasons(await bea.arrive(agreed, ADA, home)) != [""]
        (wrong,) = passed(await ada.out(agreed, BEA, token(), role="check"))
        assert reasons(await bea.arrive(agreed, ADA, wrong)) != [""]

    parties(tmp_path, main)


def test_a_task_that_ended_with_its_last_step_or_too_dear_comes_home(tmp_path: Path) -> None:
    agreed, limits = agree(LAB), FLOW.limits
    last = replace(begin(FLOW, NOW_MS), steps=limits.steps)
    dear = replace(last, tokens=limits.tokens + 1, cost=limits.cost + 1)

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        ends = [(last, Outcome.DONE, True), (dear, Outcome.FAILED, True), (dear, Outcome.DROPPED, True)]
        going_on = [(last, Outcome.UNDER_WAY, False), (dear, Outcome.GIVEN_BACK, False)]
        for number, (cursor, outcome, comes) in enumerate(ends + going_on):
            (gone,) = passed(await ada.out(agreed, BEA, token(number)))
            assert await bea.arrive(agreed, ADA, gone) == [None]
            over = replace(gone, sequence=2, cursor=encode_cursor(cursor), outcome=outcome)
            (back,) = passed(await bea.out(agreed, ADA, over, role=HOME))
            (came,) = await ada.arrive(agreed, BEA, back)
            assert (came is None) == comes, (outcome, came)

    parties(tmp_path, main)


def test_the_agreement_says_whether_a_token_may_go_on_to_a_third(tmp_path: Path) -> None:
    never, allowed = agree(LAB), agree(LAB, obligations=Obligations(onward="allowed"))

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        for agreed, may in ((never, False), (allowed, True)):
            (gone,) = passed(await ada.out(agreed, BEA, token(int(may))))
            assert await bea.arrive(agreed, ADA, gone) == [None]
            (on,) = await bea.out(agreed, CYD, replace(gone, sequence=2))
            assert isinstance(on, Token) == may
        assert isinstance(on, Token)
        assert "chain" in reasons(await cyd.arrive(allowed, BEA, on))[0]
        cyd.tokens.chains.learn(bea.tokens.chains.chains_of([on], b"") + ada.tokens.chains.chains_of([on], b""))
        assert await cyd.arrive(allowed, BEA, on) == [None]
        (back,) = passed(await cyd.out(allowed, ADA, replace(on, sequence=3), role=HOME))
        assert reasons(await ada.arrive(allowed, CYD, back)) != [""], "the chain of the second is not known"
        ada.tokens.chains.learn(bea.tokens.chains.chains_of([back], b"") + cyd.tokens.chains.chains_of([back], b""))
        assert await ada.arrive(allowed, CYD, back) == [None]
        chains = {identity.key.public_key: identity.chain for identity in LAB.nodes.values()}
        hops = verify_journey(back.hops, chains, LAB.trust, ADA, NOW_MS)
        assert [(hop.to_organization, hop.sequence) for hop in hops] == [(BEA, 1), (CYD, 2), (ADA, 3)]
        await check_left_out(ada, allowed, back)

    texts = {
        short: policy(name).replace("onward: never", "onward: allowed")
        for short, name in (("ada", ADA), ("bea", BEA), ("cyd", CYD))
    }
    parties(tmp_path, main, **texts)


async def check_left_out(ada: Party, agreed: Agreed, back: Token) -> None:
    """Nobody can leave a hop out, or put another's in its place."""
    chains = {identity.key.public_key: identity.chain for identity in LAB.nodes.values()}
    first, second, third = back.hops
    for hops in ((first, third), (second, third), (second, first, third), (first, first, third)):
        assert reasons(await ada.arrive(agreed, CYD, replace(back, hops=hops))) != [""]
        with pytest.raises(CertificateInvalid):
            verify_journey(hops, chains, LAB.trust, ADA, NOW_MS)
    forged = signed.sign(LAB.nodes[CYD].key, signed.Unsigned(KIND, open_document(second, KIND).body))
    with pytest.raises((CertificateInvalid, SignatureInvalid)):
        verify_journey((first, forged), chains, LAB.trust, ADA, NOW_MS)


@pytest.mark.invariant("S1")
def test_a_policy_that_is_replaced_in_the_middle_decides(tmp_path: Path) -> None:
    agreed = agree(LAB)

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        settle = ada.gate.settle

        async def slow(*arguments: Any) -> Any:
            if ada.gate.policy.document.rules[-1].id != "no-record-send":  # the questions have been put together
                await ada.gate.replace(loads_policy(policy(ADA, forbid=["record.send"])))
            return await settle(*arguments)

        ada.gate.settle = slow  # type: ignore[assignment,method-assign]
        (no,) = await ada.out(agreed, BEA, token())
        assert isinstance(no, Denied)
        assert ada.tokens.why_not_now(agreed, FLOW, token(agreement=agreed.digest), BEA, "answer")

    parties(tmp_path, main)


def again(who: str, envelope: bytes, **changes: Any) -> bytes:
    """A hop with something else in it, signed by whoever."""
    hop = read_hop(envelope)
    for name, value in changes.items():
        setattr(hop, name, value)
    return signed.sign(LAB.nodes[who].key, signed.Unsigned(KIND, hop.SerializeToString()))


def test_a_hop_is_signed_by_who_brings_it_now_and_before_the_deadline(tmp_path: Path) -> None:
    agreed = agree(LAB)

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        (gone,) = passed(await ada.out(agreed, BEA, token()))
        (hop,) = gone.hops
        assert reasons(await bea.arrive(agreed, ADA, replace(gone, hops=(again(ADA, hop),)))) == [""]
        over = replace(gone, deadline_ms=NOW_MS + 1000)
        for wrong in (
            replace(gone, hops=(again(CYD, hop),)),
            replace(gone, hops=(again(ADA, hop, at_ms=NOW_MS + 62_000),)),
            replace(over, hops=(again(ADA, hop, deadline_ms=NOW_MS + 1000),)),
        ):
            assert reasons(await bea.arrive(agreed, ADA, wrong)) != [""]

    parties(tmp_path, main)


def test_a_task_of_somebody_who_is_no_home_is_refused_and_so_is_all_after_the_agreement(tmp_path: Path) -> None:
    agreed, over = agree(LAB, homes=[CYD]), agree(LAB, expires_ms=NOW_MS + 500)

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        for one in (agreed, over):
            (gone,) = passed(await ada.out(one, BEA, token()))
            assert reasons(await bea.arrive(one, ADA, gone)) != [""]

    parties(tmp_path, main)


@pytest.mark.invariant("S2")
def test_the_home_finds_what_holders_have_changed_in_the_history(tmp_path: Path) -> None:
    agreed = agree(LAB, obligations=Obligations(onward="allowed"))

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        for party in (bea, cyd):
            ada.tokens.chains.learn([party.gate.identity.chain])
        gone = passed(await ada.out(agreed, BEA, token()))[0]
        other = passed(await ada.out(agreed, BEA, token(), token(1)))[0]
        assert gone.hops != other.hops, "the same, signed beside another"
        (on,) = passed(await bea.out(agreed, CYD, replace(gone, sequence=2)))
        (back,) = passed(await cyd.out(agreed, ADA, replace(on, sequence=3), role=HOME))
        first, second, third = back.hops
        assert reasons(await ada.arrive(agreed, CYD, back)) == [""]
        swapped = replace(back, hops=(other.hops[0], second, third))
        bent = again(BEA, second, before=bytes(32))
        named = again(BEA, second, node=f"spiffe://{BEA}/node/n2")
        for wrong in (
            swapped,
            *(
                replace(back, hops=(first, hop, again(CYD, third, previous=sha256(hop))))
                for hop in (bent, named, again(CYD, second))
            ),
        ):
            assert reasons(await ada.arrive(agreed, CYD, wrong)) != [""]

    texts = {
        short: policy(name).replace("onward: never", "onward: allowed")
        for short, name in (("ada", ADA), ("bea", BEA), ("cyd", CYD))
    }
    parties(tmp_path, main, **texts)


def test_what_had_to_be_gone_by_now_does_not_leave(tmp_path: Path) -> None:
    agreed = agree(LAB, obligations=Obligations(onward="never", expire_ms=NOW_MS + 1))

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        (no,) = await ada.out(agreed, BEA, token())
        assert isinstance(no, Denied)
        assert "expire" in no.reason

    parties(tmp_path, main)


@pytest.mark.invariant("S1")
def test_a_third_does_not_take_what_the_agreement_does_not_let_go_on(tmp_path: Path) -> None:
    agreed = agree(LAB)

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        (gone,) = passed(await ada.out(agreed, BEA, token()))
        (hop,) = gone.hops
        node, after = str(LAB.nodes[BEA].node), read_hop(hop).after
        on = again(BEA, hop, previous=sha256(hop), before=after, node=node, to_organization=CYD, sequence=2)
        cyd.tokens.chains.learn([ada.gate.identity.chain])
        (denied,) = await cyd.arrive(agreed, BEA, replace(gone, sequence=2, hops=(hop, on)))
        assert denied is not None
        assert "onward" in denied.reason

    parties(tmp_path, main)


def next_hop(who: str, to: str, one: Token, **changes: Any) -> Token:
    """A token with one more hop, by whoever, who says what he likes about where it is."""
    said = {"attempt": one.attempt, "sequence": one.sequence + 1, "deadline_ms": one.deadline_ms, **changes}
    last = one.hops[-1]
    hop = again(
        who, last, previous=sha256(last), before=read_hop(last).after, node=str(LAB.nodes[who].node),
        to_organization=to, **said,
    )  # fmt: skip
    return replace(one, hops=(*one.hops, hop), **said)


ONWARD = Obligations(onward="allowed")


def onward_texts() -> dict[str, str]:
    return {
        short: policy(name).replace("onward: never", "onward: allowed")
        for short, name in (("ada", ADA), ("bea", BEA), ("cyd", CYD))
    }


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    "changes",
    [{"attempt": 1000}, {"sequence": 900}, {"sequence": 1}, {"deadline_ms": NOW_MS + 601_000}],
    ids=lambda changes: "-".join(changes),
)
def test_a_holder_cannot_say_another_attempt_place_or_deadline(tmp_path: Path, changes: dict[str, int]) -> None:
    """Else it could have a third take an attempt that was never made for the last one, and so refuse the home's."""
    agreed = agree(LAB, obligations=ONWARD)

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        for party in (ada, cyd):
            party.tokens.chains.learn([other.gate.identity.chain for other in (ada, bea, cyd)])
        (gone,) = passed(await ada.out(agreed, BEA, token()))
        assert reasons(await cyd.arrive(agreed, BEA, next_hop(BEA, CYD, gone))) == [""]
        wrong = next_hop(BEA, CYD, gone, **changes)
        assert "another attempt, place or deadline" in reasons(await cyd.arrive(agreed, BEA, wrong))[0]
        back = next_hop(BEA, ADA, gone)
        back = replace(back, hops=(*gone.hops, again(BEA, back.hops[-1], role=HOME)))
        assert reasons(await ada.arrive(agreed, BEA, back)) == [""]
        wrong = next_hop(BEA, ADA, gone, **changes)
        wrong = replace(wrong, hops=(*gone.hops, again(BEA, wrong.hops[-1], role=HOME)))
        assert "another attempt, place or deadline" in reasons(await ada.arrive(agreed, BEA, wrong))[0]

    parties(tmp_path, main, **onward_texts())


@pytest.mark.invariant("S1")
def test_a_third_cannot_make_up_a_task_of_a_home(tmp_path: Path) -> None:
    """Else it could fill the room that a holder has for that home, or name an attempt that the home never made."""
    agreed = agree(LAB, obligations=ONWARD)

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        for party in (bea, cyd):
            party.tokens.chains.learn([other.gate.identity.chain for other in (ada, bea, cyd)])
        (gone,) = passed(await ada.out(agreed, CYD, token()))
        first = again(CYD, gone.hops[0], attempt=9)  # in the home's name
        forged = next_hop(CYD, BEA, replace(gone, attempt=9, hops=(first,)))
        assert "somebody else" in reasons(await bea.arrive(agreed, CYD, forged))[0]
        own = again(CYD, gone.hops[0], attempt=9, node=str(LAB.nodes[CYD].node))
        forged = next_hop(CYD, BEA, replace(gone, attempt=9, hops=(own,)))
        assert "had the token" in reasons(await bea.arrive(agreed, CYD, forged))[0]
        alone = next_hop(CYD, BEA, replace(gone, sequence=0))
        alone = replace(alone, hops=(again(CYD, alone.hops[-1], previous=b""),))
        assert "had the token" in reasons(await bea.arrive(agreed, CYD, alone))[0]
        assert reasons(await bea.arrive(agreed, CYD, next_hop(CYD, BEA, gone))) == [""]

    parties(tmp_path, main, **onward_texts())


@pytest.mark.invariant("S7")
def test_a_deadline_is_no_later_than_the_flow_and_the_agreement_let_it_be(tmp_path: Path) -> None:
    """Until it is over a holder remembers the task: who could choose it would choose when that ends."""
    agreed = agree(LAB)
    latest = NOW_MS + 1000 + FLOW.limits.seconds * 1000

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        tokens = [token(number, deadline_ms=latest + late) for number, late in enumerate((0, 60_000, 60_001))]
        gone = passed(await ada.out(agreed, BEA, *tokens))
        assert [bool(each) for each in reasons(await bea.arrive(agreed, ADA, *gone))] == [False, False, True]

    parties(tmp_path, main)


def test_who_has_to_wait_for_a_rate_or_a_person_is_told_for_how_long(tmp_path: Path) -> None:
    agreed = agree(LAB)
    owed = {
        "ada": policy(ADA, obligations={"record.send": "rate: {records: 1, per: 1m}"}),
        "bea": policy(BEA, obligations={"record.receive": "approval: {within: 1h}"}),
    }

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        first, second = await ada.out(agreed, BEA, token(), token(1))
        assert isinstance(first, Token)
        assert isinstance(second, Denied)
        assert second.retry_after_s == 6.0
        (denied,) = await bea.arrive(agreed, ADA, first)
        assert denied is not None
        assert denied.retry_after_s == 5.0

    parties(tmp_path, main, **owed)


def test_what_is_counted_for_ever_is_no_reason_to_wait(tmp_path: Path) -> None:
    """A quota that is used up stays so: the task goes elsewhere, also where the rule has a rate that opens again."""
    agreed = agree(LAB)
    owed = "rate: {records: 2, per: 1m}, quota: {records: 1}"

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        first, second = await ada.out(agreed, BEA, token(), token(1))
        assert isinstance(first, Token)
        assert isinstance(second, Denied)
        assert "the quota of rule" in second.reason
        assert second.retry_after_s == 0.0

    parties(tmp_path, main, ada=policy(ADA, obligations={"record.send": owed}))


def test_a_node_that_lost_its_dataset_refuses_and_goes_on(tmp_path: Path) -> None:
    """As after `node.yaml` was changed while agreements run: what cannot be measured denies, out and in."""
    agreed, row = agree(LAB), canonical_json({"x": 55, "label": 1})
    text = policy(BEA, without=["record.send"], obligations={"record.receive": "min_distance_to_private: 0.2"})
    far = '{id: far, effect: allow, action: record.send, to: {organization: "*"}, when: {distance: {min: 0.2}}}'

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        own = token(state=row, home=BEA, home_peer=LAB.nodes[BEA].peer_id)
        passed(await bea.out(agreed, CYD, own))
        gone = passed(await ada.out(agreed, BEA, token(state=row)))
        bea.tokens = TokenGate(bea.gate, {}, LAB.trust)
        for denied in (*await bea.arrive(agreed, ADA, *gone), *await bea.out(agreed, CYD, own)):
            assert isinstance(denied, Denied)

    parties(tmp_path, main, bea=f"{text}\n  - {far}")


@pytest.mark.invariant("S1")
def test_tokens_of_one_batch_are_decided_on_by_what_each_of_them_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is the same of some is asked once for these, not for those beside them."""
    agreed, plain = agree(LAB), canonical_json({"label": 1})
    batch = [token(number, state=plain if number in (0, 2, 3) else canonical_json(STATE)) for number in range(5)]
    nameless = '  - {id: nameless, effect: forbid, action: "*", data: {fields: [name]}}'

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        allowed = [isinstance(one, Token) for one in await ada.out(agreed, BEA, *batch)]
        assert allowed == [True, False, True, True, False]
        with monkeypatch.context() as lying:  # signed together, whatever they have
            lying.setattr(tokens, "key_of", lambda _: "all")
            sent = passed(await cyd.out(agreed, BEA, *(replace(one, home=CYD) for one in batch)))
        came = await bea.arrive(agreed, CYD, *sent)
        assert [one is None for one in came] == allowed

    texts = {short: f"{policy(name)}\n{nameless}" for short, name in (("ada", ADA), ("bea", BEA))}
    parties(tmp_path, main, **texts)


def test_who_may_bring_one_token_may_not_bring_those_of_everybody(tmp_path: Path) -> None:
    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        frame = Frame(bea.gate, {}, agree(LAB), FLOW, Promises())
        for _ in range(2):
            frame.check_parties(ADA, ADA)
            frame.check_parties(ADA, BEA)
            with pytest.raises(AgreementError, match="onward"):
                frame.check_parties(ADA, CYD)
            for sender, home in (("eve.example", ADA), (ADA, "eve.example")):
                with pytest.raises(AgreementError, match="does not take part"):
                    frame.check_parties(sender, home)

    parties(tmp_path, main)


@pytest.mark.invariant("S8")
@pytest.mark.invariant("R1")
def test_a_token_is_put_out_with_its_decision_or_neither_is_and_it_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed = agree(LAB)

    async def main(ada: Party, bea: Party, cyd: Party) -> None:
        gateway = TokenGateway(
            ada.tokens,
            cast("Any", SimpleNamespace(get=lambda _: agreed)),
            cast("Any", SimpleNamespace(pact=lambda _: SimpleNamespace(flow=FLOW))),
            SimpleNamespace(version=0),
        )
        journal = DurableJournal(ada.database, ADA, lambda: NOW_MS, gateway)
        rows = [Outgoing(replace(token(number), agreement=agreed.digest), BEA, "answer") for number in range(3)]

        async def there() -> tuple[int, list[str], int]:
            sent = [one.decision for one in await ada.entries("record.send")]
            used = await ada.database.read(lambda c: ledgers.quota_used(c, "record-send"))
            return len((await journal.recover()).outgoing), sent, used

        written = journal._write

        def full(*args: Any) -> None:
            written(*args)
            raise StorageFull("no room")

        with monkeypatch.context() as broken:
            broken.setattr(journal, "_write", full)
            with pytest.raises(StorageFull):
                await journal.finish([Move(None, row) for row in rows])
        assert await there() == (0, [], 0)
        await journal.finish([Move(None, row) for row in rows])
        assert await there() == (3, ["allow", "allow", "deny"], 2)
        came = await gateway.leave(BEA, rows)
        assert [isinstance(one, Token) for one in came] == [True, True, False]
        assert await there() == (3, ["allow", "allow", "deny"], 2), "nothing is decided on, or counted, once more"
        left = (await journal.recover()).outgoing
        assert sorted(row.passed is not None for row in left) == [False, True, True], "the denied one has not passed"

    parties(tmp_path, main, ada=policy(ADA, obligations={"record.send": "quota: {records: 2}"}))
