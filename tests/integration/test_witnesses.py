"""Members witness each other's audit logs: whoever rewrites its past, or puts an older copy back, is caught."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from comity import merkle
from comity.errors import AuditBroken, StorageError
from comity.trust import Attested, NodeIdentity
from comity.v1.task_pb2 import Receipt
from comity_node.protocol.witness import Submission, Verdict, WitnessLimits, parse_submission
from comity_node.runtime.cosigner import CHECKPOINT, Cosigner, origin_of, signer_of
from comity_node.runtime.witnesses import Witnesses
from comity_node.storage import audit, witness
from comity_node.storage.audit_verify import require_witnesses
from comity_node.storage.cosignature import cosign, cosigned_at
from comity_node.storage.note import Checkpoint, NoteSigner, note_text, parse_checkpoint, sign_note
from kit.lab import PATIENCE_S, Lab, Member, now_ms, policy, run, until


async def ask(log: Member, *others: Member) -> None:
    """Ask until each has answered: a node that has just been started refuses what was sent before."""
    wanted = {each.name for each in others}

    with trio.fail_after(PATIENCE_S):
        while True:
            wanted -= await log.up.runtime.witnesses.ask(sorted(wanted))
            if not wanted:
                return
            await trio.sleep(0.3)  # less often than a witness takes checkpoints


def key(lab: Lab, name: str) -> bytes:
    return lab.members[name].identity.key.public_key


async def grow(member: Member, count: int = 1) -> None:
    def write(connection: sqlite3.Connection) -> None:
        for number in range(count):
            audit.append(connection, audit.AuditEntry("effect", "test", detail={"number": number}), 1)

    await member.up.database.transact(write)


def evidence(member: Member) -> list[dict[str, Any]]:
    return [entry for entry in member.audited() if entry["kind"] == "evidence"]


def copy_file(member: Member, target: Path) -> None:
    """What a backup of a running node's file holds."""
    with closing(sqlite3.connect(member.file)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)


@pytest.mark.invariant("S8")
def test_after_work_everybody_has_the_others_cosignatures(tmp_path: Path) -> None:
    lab = Lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await lab.until_done(await lab.submit(lab.names[0]))
        for member in lab.members.values():
            await member.up.runtime.witnesses.ask_those_due()
            assert member.up.runtime.witnesses.counters()["witness.cosignatures"] == 2

    run(main)
    lab.verify_audit_logs()
    for name, member in lab.members.items():
        others = {key(lab, each) for each in lab.names if each != name}
        report = audit.verify_file(member.file, key(lab, name), witnesses=others)
        assert {each.public_key for each in report.witnesses} == others
        assert require_witnesses(report, others, 2) == report.witnesses[0].size > 20
        with pytest.raises(AuditBroken, match="2 of the 3 witnesses"):
            require_witnesses(report, {*others, key(lab, name)}, 3)
        asked = [one for one in member.audited() if one["action"] == "checkpoint.send"]
        assert [one["decision"] for one in asked] == ["allow", "allow"]
        assert len([one for one in member.audited() if one["action"] == "checkpoint.cosign"]) == 2


@pytest.mark.invariant("S8")
def test_the_next_exchange_begins_at_what_was_cosigned_last_and_a_restarted_witness_remembers(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)
    log, other = lab.members.values()
    sent: list[str] = []

    def look(carried: Any) -> None:
        if carried.kind == CHECKPOINT and carried.sender == log.name:
            old = carried.body.decode().split("\n", 1)[0]
            sent.append(old)

    lab.network.before = look

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await ask(log, other)
        name = origin_of(other.identity.node)
        first = await log.up.database.read(lambda c: witness.cosigned_size(c, name))
        await grow(log, 300)
        await lab.stop(other.name)
        await lab.start(nursery, other.name)
        await ask(log, other)
        assert sent[0] == "old 0"
        assert set(sent[1:]) == {f"old {first}"}
        kept = await other.up.database.read(lambda c: witness.head_of(c, origin_of(log.identity.node)))
        assert kept is not None
        assert kept.size > first + 300
        note = await log.up.database.read(lambda c: witness.cosigned_note(c, kept.size, least=1))
        assert note is not None
        assert cosigned_at(note, name, key(lab, other.name)) is not None

    run(main)


@pytest.mark.invariant("S8")
def test_a_log_that_forgot_its_cosignatures_is_told_where_to_begin(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)
    log, other = lab.members.values()

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await ask(log, other)
        await log.up.database.transact(lambda c: c.execute("DELETE FROM audit_cosignatures"))
        await grow(log)
        await ask(log, other)
        assert log.up.runtime.witnesses.counters() == {"witness.cosignatures": 2}
        assert lab.network.kinds(log.name).count(CHECKPOINT) == 3
        await other.up.database.transact(lambda c: c.execute("DELETE FROM witness_heads"))
        await ask(log, other)
        assert log.up.runtime.witnesses.counters() == {"witness.cosignatures": 3}, "a witness that forgot begins anew"

    run(main)
    assert not evidence(log)
    assert not evidence(other)


@pytest.mark.invariant("S8")
def test_a_database_that_was_put_back_is_caught_by_its_peers(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 3)
    log, *others = lab.members.values()
    backup = tmp_path / "backup.db"

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await grow(log, 5)
        copy_file(log, backup)
        await grow(log, 50)
        await ask(log, *others)
        await lab.stop(log.name)
        for file in log.home.glob("node.db*"):
            file.unlink()
        shutil.copy(backup, log.file)
        await lab.start(nursery, log.name)
        await ask(log, *others)
        assert log.up.runtime.witnesses.counters() == {"witness.contradicted": 2}
        assert [line.split(" ")[0] for line in log.up.runtime.witnesses.warnings()] == [each.name for each in others]
        for other in others:
            [warning] = other.up.runtime.cosigner.warnings()
            assert origin_of(log.identity.node) in warning

    run(main)
    for other in others:
        found = evidence(other)[0]
        assert (found["action"], found["peer"]) == ("checkpoint.shrunk", log.name)
        sizes = [parse_checkpoint(note_text(found["detail"][which])).size for which in ("first", "second")]
        assert sizes[0] > sizes[1]
    assert {entry["action"] for entry in evidence(log)} == {"checkpoint.contradicted"}
    audit.verify_file(log.file, key(lab, log.name))  # by itself it looks whole
    kept = [evidence(other)[0]["detail"]["first"] for other in others]
    with pytest.raises(AuditBroken, match="covers"):
        audit.verify_file(log.file, key(lab, log.name), known=kept)


def rewrite(member: Member) -> None:
    """What the owner of the log and of its key can do: write it anew, without one deny, longer than before."""
    found = [entry for entry in member.audited() if entry["detail"] != {"number": 2}]
    with closing(sqlite3.connect(member.file)) as connection:
        for table in ("audit_entries", "audit_head", "audit_checkpoints", "audit_cosignatures", "audit_subtrees"):
            connection.execute(f"DELETE FROM {table}")
        for entry in found:
            audit.append(connection, audit.AuditEntry(entry["kind"], entry["action"], detail=entry["detail"]), 1)
        connection.commit()


@pytest.mark.invariant("S8")
def test_a_log_that_was_written_anew_is_caught_by_its_peers(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)
    log, other = lab.members.values()

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await grow(log, 5)
        await ask(log, other)
        await lab.stop(log.name)
        rewrite(log)
        await lab.start(nursery, log.name)
        await grow(log, 10)
        await ask(log, other)
        assert log.up.runtime.witnesses.counters() == {"witness.contradicted": 1}
        assert other.up.runtime.cosigner.counters()["witness.contradictions"] >= 1

    run(main)
    found = evidence(other)[0]
    assert found["action"] == "checkpoint.forked"
    assert found["detail"]["first"] != found["detail"]["second"]
    [own] = evidence(log)
    assert own["detail"]["first"] == found["detail"]["first"]
    audit.verify_file(log.file, key(lab, log.name))
    with pytest.raises(AuditBroken, match="checkpoint"):
        audit.verify_file(log.file, key(lab, log.name), known=[found["detail"]["first"]])


def submission(identity: NodeIdentity, entries: list[bytes], old: int = 0, name: str = "") -> bytes:
    """A checkpoint over made-up leaves, signed as a bad member would sign it."""
    tree = merkle.Tree([merkle.leaf_hash(each) for each in entries])
    signer = signer_of(identity)
    signer = replace(signer, name=name or signer.name)
    note = sign_note(Checkpoint(signer.name, tree.size, tree.root).text(), signer)
    return Submission(old, tree.consistency(old), note).encode()


def relabelled(identity: NodeIdentity) -> bytes:
    """Another log's checkpoint, signed under the own name."""
    checkpoint = Checkpoint("hope.example/node/n1", 0, merkle.EMPTY_ROOT)
    return Submission(0, (), sign_note(checkpoint.text(), signer_of(identity))).encode()


@pytest.mark.invariant("S8")
def test_what_a_witness_refuses(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)
    bad, other = lab.members.values()
    stranger = lab.members[other.name].identity

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)

        async def send(body: bytes) -> Receipt:
            return await lab.deliver(bad.name, other.name, CHECKPOINT, body)

        me = bad.identity
        assert (await send(submission(me, [b"a", b"b"]))).status == Receipt.STATUS_ACCEPTED
        kept = await other.up.database.read(lambda c: witness.head_of(c, origin_of(me.node)))
        assert kept is not None
        for body, code in (
            (submission(me, [b"a", b"x"]), Verdict.FORKED.value),
            (submission(me, [b"a"]), Verdict.SHRUNK.value),
            (submission(me, [b"a", b"b", b"c"]), Verdict.ELSEWHERE.value),
            (submission(me, [b"a", b"x", b"c"], old=2), Verdict.FORKED.value),
        ):
            receipt = await send(body)
            assert (receipt.status, receipt.code) == (Receipt.STATUS_REFUSED, code)
            assert receipt.body.decode() == kept.note
        foreign = submission(me, [b"a"]).replace(b"/n1", b"/n2")
        forged, misnamed = (submission(who, [b"a"], name=origin_of(me.node)) for who in (stranger, me))
        misnamed = misnamed.replace(origin_of(me.node).encode(), b"a/node/b", 1)
        strange = submission(stranger, [b"a"])
        for body in (
            b"",
            b"old 1",
            foreign,
            strange,
            forged,
            misnamed,
            relabelled(me),
            submission(me, [b"a"], name="a/b"),
        ):
            receipt = await send(body)
            assert (receipt.status, receipt.code) == (Receipt.STATUS_REFUSED, "unexpected_message")
            other.up.runtime.cosigner._pace._buckets.clear()
        assert (await send(submission(me, [b"a", b"b", b"c"], old=2))).status == Receipt.STATUS_ACCEPTED

    run(main)
    assert [entry["action"] for entry in evidence(other)] == [
        "checkpoint.forked",
        "checkpoint.shrunk",
        "checkpoint.forked",
    ]


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("refuser", ["sender", "witness"])
def test_both_policies_decide_who_witnesses(tmp_path: Path, refuser: str) -> None:
    lab = Lab(tmp_path, 2)
    log, other = lab.members.values()
    if refuser == "sender":
        log.policy = policy(log.name, without=["checkpoint.send"])
    else:
        other.policy = policy(other.name, without=["checkpoint.cosign"])

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await log.up.runtime.witnesses.ask([other.name])

    run(main)
    assert (CHECKPOINT in lab.network.kinds(log.name)) == (refuser == "witness")
    denying = log if refuser == "sender" else other
    assert [one["decision"] for one in denying.audited() if one["action"].startswith("checkpoint.")] == ["deny"]
    assert not log.rows("SELECT 1 FROM audit_cosignatures")
    assert not other.rows("SELECT 1 FROM witness_heads")


def with_limits(lab: Lab, name: str, limits: WitnessLimits) -> Cosigner:
    """Let a member witness within other limits."""
    member = lab.members[name]
    made = Cosigner(identity=member.identity, gate=member.up.gate, database=member.up.database, limits=limits)
    member.up.runtime.messenger.serve(made.handlers)
    return made


def limited(tmp_path: Path, limits: WitnessLimits, main: Callable[[Lab, Member, Member], Any]) -> None:
    lab = Lab(tmp_path, 2)
    bad, other = lab.members.values()

    async def outer(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        with_limits(lab, other.name, limits)
        await main(lab, bad, other)

    run(outer)


@pytest.mark.invariant("S7")
def test_checkpoints_of_one_organization_are_taken_at_a_bounded_pace(tmp_path: Path) -> None:
    async def main(lab: Lab, bad: Member, other: Member) -> None:
        body = submission(bad.identity, [b"a"])
        codes = [(await lab.deliver(bad.name, other.name, CHECKPOINT, body)).status for _ in range(6)]
        assert codes == [Receipt.STATUS_ACCEPTED] * 3 + [Receipt.STATUS_BUSY] * 3

    limited(tmp_path, WitnessLimits(requests_burst=3, requests_s=3600), main)


@pytest.mark.invariant("S7")
def test_evidence_against_one_log_is_bounded(tmp_path: Path) -> None:
    async def main(lab: Lab, bad: Member, other: Member) -> None:
        for number in range(6):
            await lab.deliver(bad.name, other.name, CHECKPOINT, submission(bad.identity, [b"%d" % number]))
        assert len(evidence(other)) == 2

    limited(tmp_path, WitnessLimits(contradictions=2), main)


@pytest.mark.invariant("S7")
def test_logs_of_one_organization_that_are_witnessed_are_bounded(tmp_path: Path) -> None:
    async def main(lab: Lab, bad: Member, other: Member) -> None:
        def fill(connection: sqlite3.Connection) -> None:
            for number in range(2):
                head = witness.WitnessedHead(f"{bad.name}/node/x{number}", bad.name, 1, "note", 1)
                witness.put_head(connection, head)

        await other.up.database.transact(fill)
        receipt = await lab.deliver(bad.name, other.name, CHECKPOINT, submission(bad.identity, [b"a"]))
        assert receipt.status == Receipt.STATUS_REFUSED
        assert "witnesses 2 logs" in receipt.reason

    limited(tmp_path, WitnessLimits(origins=2), main)


@pytest.mark.invariant("S7")
def test_who_was_not_asked_for_longest_is_asked_first_and_no_more_than_so_many(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 4)
    log, *others = lab.members.values()

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        up = log.up
        made = Witnesses(
            identity=log.identity, trust=lab.consortium.trust, gate=up.gate, messenger=up.runtime.messenger,
            database=up.database, random=up.runtime.witnesses._random, limits=WitnessLimits(witnesses=2),
        )  # fmt: skip
        await made.ask_those_due()
        await made.ask_those_due()

    run(main)
    asked = [one.receiver for one in lab.network.carried if one.kind == CHECKPOINT and one.sender == log.name]
    assert set(asked[:2]) == {others[0].name, others[1].name}
    assert asked[2] == others[2].name


def test_a_silent_witness_delays_the_farewell_by_a_bounded_time(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)
    log, other = lab.members.values()

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        up = log.up
        made = Witnesses(
            identity=log.identity, trust=lab.consortium.trust, gate=up.gate, messenger=up.runtime.messenger,
            database=up.database, random=up.runtime.witnesses._random, limits=WitnessLimits(farewell_s=0.2),
        )  # fmt: skip

        async def never(attested: Attested, payload: bytes) -> bytes:
            await trio.sleep_forever()

        other.up.runtime.messenger.receive = never  # type: ignore[method-assign]
        with trio.fail_after(5):
            await made.farewell()
        await up.runtime.witnesses.farewell()

    run(main)


@pytest.mark.invariant("S8")
def test_nobody_has_to_ask_for_it(tmp_path: Path) -> None:
    """The loop asks by itself, goes on when the log cannot be read, and asks nobody again who was asked just now."""
    lab = Lab(tmp_path, 2)
    log, other = lab.members.values()

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        up, failures = log.up, [StorageError("the disk gave an error")] * 2
        made = Witnesses(
            identity=log.identity, trust=lab.consortium.trust, gate=up.gate, messenger=up.runtime.messenger,
            database=up.database, random=up.runtime.witnesses._random, limits=WitnessLimits(look_s=0.02),
        )  # fmt: skip
        looks, look = 0, made.ask_those_due

        async def unwell() -> None:
            nonlocal looks
            looks += 1
            if failures:
                raise failures.pop()
            await look()

        made.ask_those_due = unwell  # type: ignore[method-assign]
        await nursery.start(made.run)

        async def enough() -> bool:
            return looks > 10 and bool(made.counters())

        await until(enough, "the log was witnessed, and looked at again")
        assert made.counters() == {"witness.cosignatures": 1}
        assert other.up.runtime.cosigner.counters() == {"witness.cosigned": 1}

    run(main)


@pytest.mark.invariant("S2")
@pytest.mark.invariant("S8")
def test_nonsense_from_a_witness_is_neither_kept_nor_believed(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)
    log, other = lab.members.values()
    me, stranger = signer_of(log.identity), signer_of(other.identity)
    now_s = now_ms() // 1000
    answer = Receipt()
    asked = 0

    async def serve(_sender: object, body: bytes) -> Receipt:
        nonlocal asked
        asked += 1
        note = parse_submission(body).note
        text = note_text(note)
        made = Receipt()
        made.CopyFrom(answer)
        made.body = {
            b"late": cosign(text, stranger, now_s - 3600).encode(),
            b"early": cosign(text, stranger, now_s + 3600).encode(),
            b"another key": cosign(text, replace(stranger, public_key=key(lab, log.name)), now_s).encode(),
            b"another name": cosign(text, replace(stranger, name="hope.example/node/n1"), now_s).encode(),
            b"another text": cosign(text.replace("\n", "x\n", 1), stranger, now_s).encode(),
            b"two lines": 2 * cosign(text, stranger, now_s).encode(),
        }.get(answer.body, answer.body)
        return made

    def claimed(size: int, signer: NoteSigner, name: str = "") -> bytes:
        return sign_note(Checkpoint(name or signer.name, size, bytes(32)).text(), signer).encode()

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        other.up.runtime.messenger.serve({CHECKPOINT: serve})
        elsewhere, forked = Verdict.ELSEWHERE.value, Verdict.FORKED.value
        for status, code, body in (
            *((Receipt.STATUS_ACCEPTED, "", body) for body in (b"", b"\xff\n", b"x" * 7000 + b"\n", b"late", b"early")),
            *((Receipt.STATUS_ACCEPTED, "", b"another " + what) for what in (b"key", b"name", b"text")),
            (Receipt.STATUS_ACCEPTED, "", b"two lines"),
            (Receipt.STATUS_REFUSED, "whatever", b""),
            (Receipt.STATUS_REFUSED, elsewhere, b"no note"),
            (Receipt.STATUS_REFUSED, elsewhere, b"x" * 7000),
            (Receipt.STATUS_REFUSED, elsewhere, claimed(3, stranger, me.name)),
            (Receipt.STATUS_REFUSED, forked, claimed(3, replace(stranger, name=me.name))),
            (Receipt.STATUS_REFUSED, forked, claimed(3, me, "hope.example/node/n1")),
        ):
            answer.status, answer.code, answer.body = status, code, body
            before = asked
            await log.up.runtime.witnesses.ask([other.name])
            assert before < asked <= before + 3, "and it is asked a few times at most"
        assert log.up.runtime.witnesses.counters() == {}
        assert not log.up.runtime.witnesses.warnings()

    run(main)
    assert not log.rows("SELECT 1 FROM audit_cosignatures")
    assert not evidence(log)


@pytest.mark.invariant("S7")
def test_a_checkpoint_of_more_entries_than_can_be_kept_is_refused(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)
    bad, other = lab.members.values()

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        signer = signer_of(bad.identity)
        note = sign_note(Checkpoint(signer.name, 10**19 - 1, bytes(32)).text(), signer)
        for _ in range(2):  # and it goes on answering
            receipt = await lab.deliver(bad.name, other.name, CHECKPOINT, Submission(0, (), note).encode())
            assert (receipt.status, receipt.code) == (Receipt.STATUS_REFUSED, "unexpected_message")

    run(main)
    assert not other.rows("SELECT 1 FROM witness_heads")
