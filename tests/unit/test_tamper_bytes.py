"""No byte of a signed document can be changed without being noticed by who checks it offline.

Every byte of each document is flipped, one at a time. What two signers, or one signer twice, can say in other bytes is
at the end: it is the same thing said, by those who may say it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from google.protobuf.message import DecodeError

from comity.agreement import open_agreement
from comity.bundle import new_bundle, read_bundle, sign_bundle, verify_bundle
from comity.ca import OrganizationCa, certificate_request, read_certificates
from comity.certificate import check_review
from comity.errors import CertificateInvalid, ComityError, SignatureInvalid
from comity.export import open_export
from comity.hops import verify_hops
from comity.ids import SpiffeId
from comity.provenance import make_provenance, verify_certified, verify_provenance
from comity.revocation import sign_revocation, verify_revocation
from comity.signing import PrivateKey
from comity.trust import TrustStore
from comity.v1.agreement_pb2 import Agreement
from comity.v1.task_pb2 import CertifiedRecord
from comity_node.cli.export_files import proof_of, verify_file
from kit.consortium import NOW_MS, attested
from kit.documents import RECORD, TASK_ID, make_history, make_passage, make_vote
from kit.exported import AUTHOR, HOLDER, REST, Holding
from kit.tamper import flips

pytestmark = [pytest.mark.invariant("S5"), pytest.mark.invariant("S9")]

#: The order of P-256 (FIPS 186-5; SEC 2, section 2.4.2).
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True)
class World:
    """A consortium with documents, and a CA whose key is at hand."""

    holding: Holding
    ca: OrganizationCa
    leaf: bytes

    @property
    def trust(self) -> TrustStore:
        return self.holding.lab.trust

    @property
    def own_bundle(self) -> bytes:
        raw = new_bundle("lab", [self.ca.certificate_pem], issued_ms=NOW_MS - 1000, expires_ms=NOW_MS + 1_000_000)
        return sign_bundle(raw, self.ca)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    now = datetime.fromtimestamp(NOW_MS / 1000, UTC)
    ca = OrganizationCa.create("own.example", tmp_path_factory.mktemp("own"), now)
    request = certificate_request(PrivateKey(bytes(32)), SpiffeId("own.example", "node", "n1"))
    # One whose last bit is 0: a parser that took it for unused would read another signature.
    leaf = next(
        der for der in (read_certificates(ca.issue(request, now=now))[0] for _ in range(100)) if not der[-1] & 1
    )
    return World(Holding.make(), ca, leaf)


def refused(document: bytes, check: Callable[[bytes], object], bits: int = 1) -> int:
    """Check that the document is good and none that has one byte flipped; returns how many were tried."""
    check(document)
    tried = 0
    for position, changed in flips(document, bits):
        tried += 1
        try:
            check(changed)
        except ComityError:
            continue
        raise AssertionError(f"byte {position} of {len(document)} can be changed: {document[position]:#04x}")
    return tried


def test_every_byte_of_a_certificate_chain(world: World) -> None:
    trust = TrustStore(verify_bundle(world.own_bundle, now_ms=NOW_MS, own_ca=None))
    root = world.ca.certificate.der
    assert trust.verify_chain((world.leaf, root), NOW_MS).organization == "own.example"
    assert refused(world.leaf, lambda leaf: trust.verify_chain((leaf, root), NOW_MS), bits=8) > 3000
    assert refused(root, lambda changed: trust.verify_chain((world.leaf, changed), NOW_MS), bits=4) > 1000


def test_every_byte_of_a_root_that_a_bundle_holds(world: World) -> None:
    """Were it signed: the root itself does not fit its own signature any more."""

    def check(root: bytes) -> None:
        fields = json.loads(base64.b64decode(json.loads(world.own_bundle)["payload"]))
        fields["members"] = {"own.example": [base64.b64encode(root).decode()]}
        payload = base64.b64encode(json.dumps(fields).encode()).decode()
        envelope = {**json.loads(world.own_bundle), "payload": payload, "signatures": []}
        read_bundle(json.dumps(envelope).encode())

    assert refused(world.ca.certificate.der, check, bits=2) > 800


def test_every_byte_of_a_trust_bundle(world: World) -> None:
    bundle = world.holding.lab.bundle
    assert refused(bundle, lambda raw: verify_bundle(raw, now_ms=NOW_MS, own_ca=None)) > 3000


def test_every_byte_of_a_revocation(world: World) -> None:
    trusted = verify_bundle(world.own_bundle, now_ms=NOW_MS, own_ca=None)
    revocation = sign_revocation(world.ca, world.leaf, issued_ms=NOW_MS, reason="lost")
    assert refused(revocation, lambda raw: verify_revocation(raw, trusted, now_ms=NOW_MS), bits=2) > 1500


def test_every_byte_of_a_hop(world: World) -> None:
    home = world.holding.lab.nodes[AUTHOR]
    first, second = make_history(home, [make_passage(), make_passage("record.send", to=HOLDER)])

    def check(history: list[bytes]) -> None:
        verify_hops(history, task_id=TASK_ID, record=RECORD, home=attested(home))

    assert refused(first, lambda hop: check([hop, second]), bits=8) > 2000
    assert refused(second, lambda hop: check([first, hop]), bits=8) > 2000


def test_every_byte_of_an_agreement(world: World) -> None:
    assert refused(world.holding.agreement, lambda raw: open_agreement(raw, world.trust)) > 2000


def test_every_byte_of_a_review(world: World) -> None:
    vote = make_vote(world.holding.lab, world.holding.agreed, HOLDER, 9000, author=AUTHOR)
    assert refused(vote.envelope, lambda raw: check_review(raw, vote.chain, world.trust), bits=4) > 1000


def test_every_byte_of_a_certified_record(world: World) -> None:
    """Also where no holder has signed it yet: task, history, the quorum's certificate and its votes."""

    def check(raw: bytes) -> None:
        try:
            certified = CertifiedRecord.FromString(raw)
        except DecodeError as error:  # as whoever receives one says it
            raise CertificateInvalid("it does not parse") from error
        verify_certified(certified, world.holding.agreed, world.trust)

    certified = base64.b64decode(provenance_predicate(world)["certified"])
    assert refused(certified, check) > 4000


def provenance_predicate(world: World) -> dict[str, Any]:
    statement = json.loads(world.holding.provenance("00" * 16))
    predicate: dict[str, Any] = json.loads(base64.b64decode(statement["payload"]))["predicate"]
    return predicate


def test_every_byte_of_a_records_provenance(world: World) -> None:
    proof = world.holding.provenance("00" * 16)
    assert refused(proof, lambda raw: verify_provenance(raw, world.trust)) > 10_000


def test_every_byte_of_an_export_and_of_its_statement(world: World, tmp_path: Path) -> None:
    path = world.holding.export(tmp_path / "rows.jsonl")
    data, proof = path.read_bytes(), proof_of(path).read_bytes()
    statement, rest = proof.split(b"\n", 1)

    def check_file(changed: bytes) -> None:
        path.write_bytes(changed)
        verify_file(path, world.trust)

    def check_statement(changed: bytes) -> None:
        export = open_export(changed, world.trust).export
        assert export == open_export(statement, world.trust).export

    assert refused(data, check_file) > 700
    path.write_bytes(data)
    assert refused(statement, check_statement, bits=2) > 2000
    for position in range(0, len(rest), 997):  # lines whose every byte is tried above
        changed = bytearray(rest)
        changed[position] ^= 1
        proof_of(path).write_bytes(statement + b"\n" + changed)
        with pytest.raises(ComityError):
            verify_file(path, world.trust)


# What is accepted in other bytes, and why that harms nobody.


def other_sign_of_s(signature: bytes) -> bytes:
    """The second ECDSA signature that follows from a first: (r, n - s). No key is needed for it."""
    r, s = decode_dss_signature(signature)
    return encode_dss_signature(r, P256_ORDER - s)


def test_a_bundle_with_the_other_ecdsa_signature_is_the_same_bundle(world: World) -> None:
    """What names an epoch is the digest of what was signed, not of who has signed it how."""
    envelope = json.loads(world.own_bundle)
    [one] = envelope["signatures"]
    one["sig"] = base64.b64encode(other_sign_of_s(base64.b64decode(one["sig"]))).decode()
    changed = json.dumps(envelope, sort_keys=True, separators=(",", ":")).encode()
    assert changed != world.own_bundle
    first, second = (verify_bundle(raw, now_ms=NOW_MS, own_ca=None) for raw in (world.own_bundle, changed))
    assert first.digest == second.digest
    assert first.members == second.members
    trust = TrustStore(first)
    assert not trust.replace(second), "the same epoch, in other bytes, changes nothing"


def test_a_leaf_with_the_other_ecdsa_signature_is_the_same_node_and_as_revoked(world: World) -> None:
    """A certificate is named by what its CA has signed: nobody gets a revoked one back by changing the signature."""
    trust = TrustStore(verify_bundle(world.own_bundle, now_ms=NOW_MS, own_ca=None))
    length = len(world.leaf)
    signature = next(world.leaf[at:] for at in range(length - 72, length) if world.leaf[at - 1 : at + 1] == b"\x00\x30")
    other = other_sign_of_s(signature)
    changed = _with_signature(world.leaf, signature, other)
    assert changed != world.leaf
    assert trust.verify_chain((changed,), NOW_MS) == trust.verify_chain((world.leaf,), NOW_MS)
    trust.revoke(world.leaf, NOW_MS)
    for leaf in (world.leaf, changed):
        with pytest.raises(ComityError, match="revoked"):
            trust.verify_chain((leaf,), NOW_MS)


def _with_signature(leaf: bytes, old: bytes, new: bytes) -> bytes:
    """A certificate (DER) with another signature, of whatever length."""
    assert leaf[:2] == b"\x30\x82"
    assert leaf.endswith(b"\x03" + bytes([len(old) + 1]) + b"\x00" + old)
    body = leaf[4 : -len(old) - 3] + b"\x03" + bytes([len(new) + 1]) + b"\x00" + new
    return b"\x30\x82" + len(body).to_bytes(2, "big") + body


@pytest.mark.parametrize("form", ["long length", "padded integer", "trailing byte", "negative", "indefinite"])
def test_an_ecdsa_signature_that_is_no_der_is_refused(form: str, world: World) -> None:
    signature = world.ca.sign(b"m")
    world.ca.certificate.verify(signature, b"m")
    r, s = decode_dss_signature(signature)
    integers = signature[2:]
    changed = {
        "long length": b"\x30\x81" + signature[1:],
        "padded integer": b"\x30" + bytes([len(integers) + 1, 2, integers[1] + 1, 0]) + integers[2:],
        "trailing byte": signature + b"\x00",
        "negative": encode_dss_signature(r, s + P256_ORDER),
        "indefinite": b"\x30\x80" + integers + b"\x00\x00",
    }[form]
    with pytest.raises(SignatureInvalid):
        world.ca.certificate.verify(changed, b"m")


def test_an_agreements_signatures_may_stand_in_any_order_and_be_made_again(world: World) -> None:
    """What a task commits to is the digest of the terms: the same terms, signed by the same, are the same agreement."""
    turned = Agreement.FromString(world.holding.agreement)
    signatures = list(turned.signatures)[::-1]
    del turned.signatures[:]
    turned.signatures.extend(signatures)
    assert open_agreement(turned.SerializeToString(), world.trust).digest == world.holding.agreed.digest


def test_an_envelope_in_other_json_is_the_same_statement(world: World) -> None:
    """DSSE signs the payload's bytes: white space around them says nothing."""
    proof = world.holding.provenance("00" * 16)
    spaced = json.dumps(json.loads(proof), indent=1).encode()
    assert spaced != proof
    assert verify_provenance(spaced, world.trust) == verify_provenance(proof, world.trust)


def test_nobody_else_can_sign_a_certified_record_away(world: World) -> None:
    """A provenance that another participant signs says that this one holds the record, and proves the same history."""
    made = CertifiedRecord.FromString(base64.b64decode(provenance_predicate(world)["certified"]))
    other = make_provenance(world.holding.lab.nodes[REST[0]], made, world.holding.agreement)
    proven = verify_provenance(other, world.trust)
    assert (proven.holder, proven.author, proven.record) == (REST[0], AUTHOR, made.task.record)
