"""A provenance that was touched anywhere, by anyone, its holder included, is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from comity.agreement import Agreed
from comity.digest import canonical_json, hex_digest
from comity.errors import ComityError
from comity.provenance import Provenance, make_provenance, verify_provenance
from comity.signing import PrivateKey
from comity.statement import (
    PREDICATE_CERTIFIED_RECORD,
    Statement,
    Subject,
    ed25519_signer,
    sign_statement,
)
from comity.v1.agreement_pb2 import Agreement, Obligations
from comity.v1.task_pb2 import CertifiedRecord
from kit.consortium import Consortium, consortium, names
from kit.documents import (
    RECORD,
    TASK_ID,
    agree,
    make_agreement,
    make_certified,
    make_history,
    make_passage,
    make_terms,
)
from kit.tamper import variants

AUTHOR, HOLDER, *REST = names(5)
SCORES = {HOLDER: 9000, REST[0]: 8000, REST[1]: 7000}


class World:
    def __init__(self) -> None:
        self.lab: Consortium = consortium(*names(5))
        self.agreed: Agreed = agree(self.lab)
        self.agreement = make_agreement(self.lab, make_terms(self.lab))
        self.certified = make_certified(self.lab, self.agreed, author=AUTHOR, holder=HOLDER, scores=SCORES)
        self.proof = make_provenance(self.lab.nodes[HOLDER], self.certified, self.agreement)

    def verify(self, proof: bytes) -> Provenance:
        return verify_provenance(proof, self.lab.trust)

    def statement(self) -> tuple[Subject, dict[str, Any]]:
        payload = json.loads(base64.b64decode(json.loads(self.proof)["payload"]))
        (subject,) = payload["subject"]
        return Subject(subject["name"], subject["digest"]["sha256"]), payload["predicate"]

    def signed(self, subject: Subject, predicate: dict[str, Any], key: PrivateKey | None = None) -> bytes:
        """Another statement, properly signed, by the holder unless another key is given."""
        statement = Statement((subject,), PREDICATE_CERTIFIED_RECORD, predicate)
        return sign_statement(statement, [ed25519_signer(key or self.lab.nodes[HOLDER].key)])


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.invariant("S9")
def test_a_provenance_says_where_a_record_came_from(world: World) -> None:
    proof = world.verify(world.proof)
    assert (proof.record, proof.author, proof.holder) == (RECORD, AUTHOR, HOLDER)
    assert {review.organization: review.review.score for review in proof.reviews} == SCORES
    assert [hop.action for hop in proof.hops] == [
        "record.create",
        "record.create",
        *["record.send"] * 3,
        "record.release",
    ]
    assert proof.agreed.digest == world.agreed.digest
    lines = "\n".join(proof.lines())
    assert f"author      {AUTHOR}" in lines
    assert "3 of 4 votes, 1 may be faulty" in lines
    assert hex_digest(RECORD) in lines


@pytest.mark.invariant("S9")
def test_any_changed_byte_of_it_is_refused(world: World) -> None:
    """Its own signature covers all of it."""
    for position in range(0, len(world.proof), 29):
        changed = bytearray(world.proof)
        changed[position] ^= 0x01
        with pytest.raises(ComityError):
            world.verify(bytes(changed))
    for cut in (0, 1, len(world.proof) // 2, len(world.proof) - 1):
        with pytest.raises(ComityError):
            world.verify(world.proof[:cut])


@pytest.mark.invariant("S9")
@pytest.mark.invariant("S5")
def test_whatever_its_holder_changes_in_the_certified_record_is_refused(world: World) -> None:
    """The holder signs the statement, so it can sign any other one: every document in it has to stand by itself."""
    accepted, tried = [], 0
    for what, changed in variants(world.certified):
        tried += 1
        try:
            world.verify(make_provenance(world.lab.nodes[HOLDER], changed, world.agreement))
        except ComityError:
            continue
        accepted.append(what)
    assert tried > 200
    # Votes are a set, and a prefix of a history says less, but nothing false.
    assert accepted == ["task.hops[5] dropped", "certificate.votes reversed"]


@pytest.mark.invariant("S1")
def test_whatever_its_holder_changes_in_the_agreement_is_refused(world: World) -> None:
    accepted, tried = [], 0
    for what, changed in variants(Agreement.FromString(world.agreement)):
        tried += 1
        try:
            world.verify(make_provenance(world.lab.nodes[HOLDER], world.certified, changed.SerializeToString()))
        except ComityError:
            continue
        accepted.append(what)
    assert tried > 100
    assert accepted == ["signatures reversed"]


@pytest.mark.invariant("S9")
@pytest.mark.parametrize("field", ["task", "home", "agreement", "certified", "holder", "holderChain"])
@pytest.mark.parametrize("value", ["", "x", None, 7, [], {}, ["QQ=="], "ff" * 16, AUTHOR, REST[2]])
def test_another_value_in_the_statement_is_refused(world: World, field: str, value: object) -> None:
    subject, predicate = world.statement()
    if predicate[field] == value:
        predicate.pop(field)
    else:
        predicate[field] = value
    with pytest.raises(ComityError):
        world.verify(world.signed(subject, predicate))
    predicate.pop(field, None)
    with pytest.raises(ComityError):
        world.verify(world.signed(subject, predicate))


@pytest.mark.invariant("S9")
@pytest.mark.parametrize(
    "change",
    [
        lambda subject: Subject(subject.name, "0" * 64),
        lambda subject: Subject("record/" + "00" * 16, subject.sha256),
        lambda subject: Subject("another name", subject.sha256),
    ],
)
def test_a_statement_about_something_else_is_refused(world: World, change: Callable[[Subject], Subject]) -> None:
    subject, predicate = world.statement()
    world.verify(world.signed(subject, predicate))
    with pytest.raises(ComityError):
        world.verify(world.signed(change(subject), predicate))


@pytest.mark.invariant("S9")
def test_a_statement_that_its_holder_did_not_sign(world: World) -> None:
    subject, predicate = world.statement()
    for key in (world.lab.nodes[REST[0]].key, PrivateKey.generate()):
        with pytest.raises(ComityError):
            world.verify(world.signed(subject, predicate, key))
    statement = Statement((subject,), PREDICATE_CERTIFIED_RECORD, predicate)
    both = [ed25519_signer(world.lab.nodes[name].key) for name in (HOLDER, REST[0])]
    with pytest.raises(ComityError, match="not signed by the holder"):
        world.verify(sign_statement(statement, both))
    outsider = consortium(*names(5), name="elsewhere").nodes[HOLDER]
    with pytest.raises(ComityError):
        world.verify(make_provenance(outsider, world.certified, world.agreement))


@pytest.mark.invariant("S9")
def test_a_holder_or_home_that_takes_no_part(world: World) -> None:
    lab = consortium(*names(5))
    few = lab.names[:4]
    terms = make_terms(lab, few)
    agreement = make_agreement(lab, terms)
    agreed = agree_among(lab, few)
    certified = make_certified(lab, agreed, author=AUTHOR, holder=HOLDER, scores={HOLDER: 9000, REST[0]: 9000})
    verify_provenance(make_provenance(lab.nodes[HOLDER], certified, agreement), lab.trust)
    with pytest.raises(ComityError, match="have to be participants"):
        verify_provenance(make_provenance(lab.nodes[lab.names[4]], certified, agreement), lab.trust)


def agree_among(lab: Consortium, members: tuple[str, ...]) -> Agreed:
    terms = make_terms(lab, members)
    return agree(lab, participants=list(terms.participants), review=terms.review)


@pytest.mark.invariant("S9")
def test_a_record_that_a_quorum_rejected_is_not_passed_off_as_certified(world: World) -> None:
    scores = dict.fromkeys(SCORES, 100)
    rejected = make_certified(world.lab, world.agreed, author=AUTHOR, holder=HOLDER, scores=scores, accept=False)
    with pytest.raises(ComityError, match="does not accept the record"):
        world.verify(make_provenance(world.lab.nodes[HOLDER], rejected, world.agreement))


@pytest.mark.invariant("S1")
def test_a_record_whose_home_does_not_attest_what_was_agreed(world: World) -> None:
    owed = {"obligations": Obligations(onward="never", min_distance_to_private=0.2)}
    agreed, agreement = agree(world.lab, **owed), make_agreement(world.lab, make_terms(world.lab, **owed))
    certified = make_certified(world.lab, agreed, author=AUTHOR, holder=HOLDER, scores=SCORES)
    with pytest.raises(ComityError, match="does not attest a distance"):
        world.verify(make_provenance(world.lab.nodes[HOLDER], certified, agreement))


@pytest.mark.invariant("S5")
def test_a_history_signed_by_another_member_is_refused(world: World) -> None:
    """Whoever has seen a record cannot pass it off as one of its own home."""
    copied = CertifiedRecord()
    copied.CopyFrom(world.certified)
    thief = world.lab.nodes[REST[2]]
    del copied.task.hops[:]
    copied.task.hops.extend(make_history(thief, [make_passage()]))
    copied.task.home = copied.certificate.author = REST[2]
    del copied.home_chain[:]
    copied.home_chain.extend(thief.chain)
    with pytest.raises(ComityError):
        world.verify(make_provenance(world.lab.nodes[HOLDER], copied, world.agreement))


def test_the_record_is_what_the_statement_is_about(world: World) -> None:
    changed = CertifiedRecord()
    changed.CopyFrom(world.certified)
    changed.task.record = canonical_json({"label": 0, "x": 2.5})
    assert changed.task.id == TASK_ID
    with pytest.raises(ComityError):
        world.verify(make_provenance(world.lab.nodes[HOLDER], changed, world.agreement))
