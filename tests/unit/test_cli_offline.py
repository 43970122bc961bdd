"""What an auditor does with files alone: `comity records verify` and `comity audit verify`."""

from __future__ import annotations

import base64
import json
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio

from comity.agreement import conclude, sign_terms
from comity.bundle import read_bundle
from comity.certificate import QuorumRule, build_certificate, check_review
from comity.digest import canonical_json, sha256
from comity.envelope import sign_document
from comity.hops import CREATE, SEND, Passage, sign_hop
from comity.provenance import make_provenance
from comity.trust import NodeIdentity, TrustStore
from comity.v1.agreement_pb2 import ReviewTerms, Terms
from comity.v1.task_pb2 import CertifiedRecord, Review, Task
from comity_node.storage.audit import AuditEntry, AuditLog, NoteSigner
from comity_node.storage.database import open_database

Cli = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True)
class Consortium:
    """Two organizations with keys and a bundle that both signed; the first is the record's author."""

    directory: Path
    bundle: Path
    author: NodeIdentity
    reviewer: NodeIdentity


@pytest.fixture
def consortium(cli: Cli, tmp_path: Path) -> Consortium:
    bundle, identities = tmp_path / "bundle.json", []
    for number, name in enumerate(("mercy", "stlukes")):
        home = tmp_path / name
        steps: list[tuple[str | Path, ...]] = [
            ("init", "--organization", f"{name}.example"),
            ("cert", "request"),
            ("cert", "approve", home / "keys/node.csr.pem"),
            ("cert", "install"),
        ]
        if number == 0:
            steps.append(("consortium", "create", bundle, "--name", "tumours"))
        else:
            steps.append(("consortium", "add", bundle, home / "ca/ca.pem"))
        for step in steps:
            assert cli("--home", home, *step)[0] == 0
        identities.append(NodeIdentity.load(home / "keys/node.key", home / "keys/node.chain.pem"))
    for name in ("mercy", "stlukes"):
        assert cli("--home", tmp_path / name, "consortium", "sign", bundle)[0] == 0
    return Consortium(tmp_path, bundle, *identities)


def provenance(consortium: Consortium, *, score: int = 9000) -> bytes:
    """The provenance of one record that the other organization has accepted with `score`."""
    author, reviewer = consortium.author, consortium.reviewer
    trust = TrustStore(read_bundle(consortium.bundle.read_bytes()))
    now_ms = time.time_ns() // 1_000_000
    rule = QuorumRule.of(1)
    terms = Terms(
        id="00" * 16,
        consortium="tumours",
        bundle_epoch=trust.bundle.epoch,
        initiator=author.organization,
        participants=[author.organization, reviewer.organization],
        purpose="screening",
        dataset="tumour-features",
        records_per_organization=10,
        batch_records=10,
        review=ReviewTerms(eligible=rule.eligible, faulty=rule.faulty, quorum=rule.quorum, min_score=700),
        lease_seconds=30,
        issued_ms=now_ms,
        expires_ms=now_ms + 3_600_000,
    ).SerializeToString()
    agreement = conclude(terms, [sign_terms(author, terms), sign_terms(reviewer, terms)])
    record, task_id = canonical_json({"age": 40}), bytes(range(16))
    history: list[bytes] = []
    for action, to in ((CREATE, ""), (SEND, reviewer.organization)):
        passage = Passage(task_id, 0, sha256(record), action, "screening", b"", now_ms, to, ("send-synthetic",))
        history.append(sign_hop(author, passage, history))
    review = Review(
        task_id=task_id,
        record_digest=sha256(record),
        agreement_digest=sha256(terms),
        bundle_epoch=trust.bundle.epoch,
        organization=reviewer.organization,
        accept=True,
        score=score,
        at_ms=now_ms,
        author=author.organization,
    )
    vote = check_review(sign_document(reviewer.key, "review", review.SerializeToString()), reviewer.chain, trust)
    task = Task(id=task_id, agreement_digest=sha256(terms), home=author.organization, record=record, hops=history)
    certificate = build_certificate([vote], author=author.organization, rule=rule, accept=True)
    certified = CertifiedRecord(task=task, certificate=certificate, home_chain=author.chain)
    return make_provenance(reviewer, certified, agreement)


@pytest.mark.invariant("S9")
def test_a_record_is_proven_with_nothing_but_the_bundle(cli: Cli, consortium: Consortium) -> None:
    path = consortium.directory / "p.json"
    path.write_bytes(provenance(consortium))
    code, out, err = cli("records", "verify", path, "--bundle", consortium.bundle)
    assert (code, err) == (0, "")
    assert "mercy.example" in out
    assert "1 of 1 votes, 0 may be faulty" in out
    answer = json.loads(cli("records", "verify", path, "--bundle", consortium.bundle, "--json")[1])[0]
    assert (answer["valid"], answer["author"], answer["holder"]) == (True, "mercy.example", "stlukes.example")
    assert answer["votes"] == {"stlukes.example": 9000}
    assert [hop["rules"] for hop in answer["hops"]] == [["send-synthetic"]] * 2


@pytest.mark.invariant("S9")
def test_a_record_that_is_not_proven(cli: Cli, consortium: Consortium, tmp_path: Path) -> None:
    path = consortium.directory / "p.json"
    envelope = json.loads(provenance(consortium))
    spoiled = json.loads(base64.b64decode(envelope["payload"]))
    spoiled["predicate"]["task"] = "ff" * 16
    envelope["payload"] = base64.b64encode(json.dumps(spoiled).encode()).decode()
    for text in (json.dumps(envelope), "{}", "garbage", ""):
        path.write_text(text)
        code, out, err = cli("records", "verify", path, "--bundle", consortium.bundle)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1

    path.write_bytes(provenance(consortium, score=600))
    assert cli("records", "verify", path, "--bundle", consortium.bundle)[0] == 1, "a score below what was agreed"

    path.write_bytes(provenance(consortium))
    alone = tmp_path / "alone.json"
    assert cli("--home", tmp_path / "mercy", "consortium", "create", alone, "--name", "tumours")[0] == 0
    assert cli("--home", tmp_path / "mercy", "consortium", "sign", alone)[0] == 0
    code, _, err = cli("records", "verify", path, "--bundle", alone)
    assert code == 1
    assert "stlukes.example is no member" in err


def test_a_bundle_that_has_expired_since(cli: Cli, consortium: Consortium) -> None:
    path = consortium.directory / "p.json"
    path.write_bytes(provenance(consortium))
    later, now = "2200-01-01", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60))
    assert "has expired" in cli("records", "verify", path, "--bundle", consortium.bundle, "--at", later)[2]
    assert cli("records", "verify", path, "--bundle", consortium.bundle, "--at", now)[0] == 0
    assert cli("records", "verify", path, "--bundle", consortium.bundle, "--at", "soon")[0] == 2


def write_log(path: Path, identity: NodeIdentity, entries: int) -> None:
    async def write() -> None:
        log = AuditLog(NoteSigner("mercy.example/node/n1", identity.key.public_key, identity.key.sign), every=4)
        async with open_database(path) as database:
            for number in range(entries):
                entry = AuditEntry("decision", "record.send", "allow", (f"rule-{number}",), "stlukes.example")
                await database.transact(partial(log.append, entry=entry, now_ms=1_700_000_000_000))

    trio.run(write)


@pytest.mark.invariant("S8")
def test_the_audit_log_is_verified_and_shown(cli: Cli, consortium: Consortium) -> None:
    home = consortium.directory / "mercy"
    write_log(home / "node.db", consortium.author, 10)
    code, out, err = cli("--home", home, "audit", "verify", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["entries"], report["signed"], report["unsigned"]) == (10, 8, 2)
    assert report["signatures_checked"]
    assert cli("audit", "verify", home / "node.db", "--peer-id", consortium.author.peer_id)[0] == 0
    assert cli("audit", "verify", home / "node.db", "--chain", home / "keys/node.chain.pem")[0] == 0
    shown = json.loads(cli("audit", "show", home / "node.db", "--last", "3", "--json")[1])
    assert [each["rules"] for each in shown] == [["rule-7"], ["rule-8"], ["rule-9"]]


@pytest.mark.invariant("S8")
def test_an_audit_log_that_was_changed(cli: Cli, consortium: Consortium) -> None:
    database = consortium.directory / "mercy/node.db"
    write_log(database, consortium.author, 10)
    code, _, err = cli("audit", "verify", database, "--peer-id", consortium.reviewer.peer_id)
    assert code == 1
    assert "carries no signature" in err
    assert "--peer-id" in cli("audit", "verify", database)[2], "whose log it is has to be said"
    with sqlite3.connect(database) as connection:
        connection.execute(
            "UPDATE audit_entries SET entry = CAST(replace(entry, 'rule-3', 'rule-4') AS BLOB) WHERE position = 3"
        )
    connection.close()
    code, out, err = cli("audit", "verify", database, "--peer-id", consortium.author.peer_id)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "3" in err
