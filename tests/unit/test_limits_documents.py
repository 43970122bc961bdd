"""What signed documents and files may hold, by the number: one more is refused."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comity.agent import encode_result
from comity.agreement import parse_terms
from comity.bundle import BUNDLE_PAYLOAD_TYPE, read_bundle
from comity.ca import CaCertificate
from comity.card import AgentCard, Skill, sign_card
from comity.certificate import check_review
from comity.digest import canonical_json, hex_digest
from comity.errors import (
    AgentFailed,
    AgreementError,
    BundleInvalid,
    CardInvalid,
    CertificateInvalid,
    ChainInvalid,
    ComityError,
    ConfigError,
    EnvelopeMalformed,
    InvalidName,
    StorageError,
)
from comity.flower.packing import unpack
from comity.hops import verify_hops
from comity.ids import SpiffeId, organization_name
from comity.revocation import _read_payload
from comity.statement import Dsse, _read_statement
from comity.v1.agreement_pb2 import KAnonymity, Noise, Obligations, ReviewTerms
from comity_node import strictyaml
from comity_node.config.node import load as load_node
from comity_node.runtime.workflow import parse_workflow
from comity_node.storage.audit_entry import AuditEntry, encode
from comity_node.storage.meta import set_meta
from kit.consortium import NOW_MS, attested, consortium, names
from kit.documents import RECORD, TASK_ID, make_history, make_passage, make_terms

pytestmark = pytest.mark.invariant("S7")

#: The longest that an agreement is in force.
MOST_MS = 366 * 86_400_000


# Documents.


def test_a_history_has_512_hops() -> None:
    home = consortium(*names(3)).nodes[names(3)[0]]
    history = make_history(home, [make_passage()] + [make_passage("record.send", to=names(3)[1])] * 512)

    def verify(hops: int) -> int:
        return len(verify_hops(history[:hops], task_id=TASK_ID, record=RECORD, home=attested(home)))

    assert verify(512) == 512
    with pytest.raises(CertificateInvalid, match="over 512 hops"):
        verify(513)


def bundle_of(members: int, roots: int = 1) -> bytes:
    root = consortium(*names(2)).trust.bundle.members[names(2)[0]][0]
    others = [base64.b64encode(root + bytes([number])).decode() for number in range(roots)]
    fields = {
        "version": 1,
        "consortium": "lab",
        "epoch": 1,
        "issued_ms": 1,
        "expires_ms": 2,
        "members": {f"o{number}.example": others for number in range(members)},
    }
    return Dsse(BUNDLE_PAYLOAD_TYPE, canonical_json(fields)).encode()


@pytest.mark.parametrize(
    ("good", "bad", "why"),
    [((1000, 1), (1001, 1), "more than 1000 fields"), ((1, 4), (1, 5), "no array of at most 4 items")],
)
def test_a_bundle_has_1000_members_of_four_roots(good: tuple[int, int], bad: tuple[int, int], why: str) -> None:
    with pytest.raises(BundleInvalid, match=why):
        read_bundle(bundle_of(*bad))
    with pytest.raises(BundleInvalid) as refused:  # the certificates are none
        read_bundle(bundle_of(*good))
    assert why not in str(refused.value)


def owing(**obligations: Any) -> Obligations:
    return Obligations(onward="never", **obligations)


def noise(*, epsilon: float = 1, lower: float = 0, upper: float = 1) -> Obligations:
    return owing(noise={"a": Noise(epsilon=epsilon, lower=lower, upper=upper)})


@pytest.mark.parametrize(
    ("name", "good", "bad", "why"),
    [
        ("records_per_organization", 1_000_000, 1_000_001, "records_per_organization"),
        ("batch_records", 256, 257, "batch_records"),
        ("repair_rounds", 10, 11, "repair_rounds"),
        ("lease_seconds", 3600, 3601, "lease_seconds"),
        ("purpose", "p" * 128, "p" * 129, "over 128 characters"),
        pytest.param("expires_ms", NOW_MS + MOST_MS, NOW_MS + MOST_MS + 1, "366 days", id="expires_ms"),
        (
            "obligations",
            Obligations(onward="never", redact=[f"f{number}" for number in range(256)]),
            Obligations(onward="never", redact=[f"f{number}" for number in range(257)]),
            "over 256 fields",
        ),
        (
            "obligations",
            Obligations(onward="never", retain_seconds=100 * 366 * 86_400),
            Obligations(onward="never", retain_seconds=100 * 366 * 86_400 + 1),
            "100 years",
        ),
        ("obligations", owing(mask={"a": 64}), owing(mask={"a": 65}), "over 64 characters"),
        (
            "obligations",
            owing(k_anonymity=KAnonymity(k=1_000_000, fields=["a"])),
            owing(k_anonymity=KAnonymity(k=1_000_001, fields=["a"])),
            "k_anonymity",
        ),
        ("obligations", noise(epsilon=1e6), noise(epsilon=2e6), "noise has no epsilon"),
        ("obligations", noise(upper=1e12), noise(upper=2e12), "noise has no epsilon"),
        ("obligations", noise(lower=-1e12), noise(lower=-2e12), "noise has no epsilon"),
    ],
)  # fmt: skip
def test_terms_keep_their_bounds(name: str, good: object, bad: object, why: str) -> None:
    lab = consortium(*names(3))
    parse_terms(make_terms(lab, **{name: good}).SerializeToString())
    with pytest.raises(AgreementError, match=why):
        parse_terms(make_terms(lab, **{name: bad}).SerializeToString())


def test_an_agreement_has_256_participants() -> None:
    def terms(count: int) -> bytes:
        others = sorted(f"o{number:03}.example" for number in range(count))
        review = ReviewTerms(eligible=count - 1, faulty=0, quorum=count - 1, min_score=1)
        made = make_terms(consortium(*names(3)), participants=others, initiator=others[0], review=review)
        return made.SerializeToString()

    parse_terms(terms(256))
    with pytest.raises(AgreementError, match="participants"):
        parse_terms(terms(257))


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"expires_ms": NOW_MS + 7 * 86_400_000}, {"expires_ms": NOW_MS + 7 * 86_400_000 + 1}),
        ({"addresses": ("/a",) * 16}, {"addresses": ("/a",) * 17}),
        ({"description": "d" * 2048}, {"description": "d" * 2049}),
        ({"name": "n" * 128}, {"name": "n" * 129}),
        ({"skills": (Skill("s", "S", "", tags=("t",) * 16),)}, {"skills": (Skill("s", "S", "", tags=("t",) * 17),)}),
    ],
)
def test_a_card_keeps_its_bounds(good: dict[str, Any], bad: dict[str, Any]) -> None:
    identity = consortium(*names(3)).nodes[names(3)[0]]
    values: dict[str, Any] = {
        "agent": SpiffeId(identity.organization, "agent", "g"),
        "peer_id": identity.peer_id,
        "name": "g",
        "description": "",
        "version": "1",
        "skills": (Skill("s", "S", ""),),
        "addresses": (),
        "issued_ms": NOW_MS,
        "expires_ms": NOW_MS + 1000,
    }
    sign_card(identity, AgentCard(**{**values, **good}))
    with pytest.raises(CardInvalid):
        sign_card(identity, AgentCard(**{**values, **bad}))


@pytest.mark.parametrize(
    ("read", "most", "error", "why"),
    [
        (lambda data: check_review(data, (), consortium(*names(3)).trust), 32 * 1024, CertificateInvalid, "bytes; at"),
        (CaCertificate.parse, 16 * 1024, ChainInvalid, "over the limit"),
        (lambda data: Dsse.decode(data, "t"), 4 << 20, EnvelopeMalformed, "over the limit"),
        (parse_workflow, 64 * 1024, ConfigError, "bytes; at most"),
    ],
    ids=["review", "root", "statement", "workflow"],
)  # fmt: skip
def test_a_document_that_is_too_long_is_not_read(
    read: Callable[[bytes], object], most: int, error: type[ComityError], why: str
) -> None:
    with pytest.raises(error, match=why):
        read(b" " * (most + 1))
    with pytest.raises(ComityError) as refused:
        read(b" " * most)
    assert why not in str(refused.value)


@pytest.mark.parametrize(("signatures", "refused"), [(1024, False), (1025, True)])
def test_a_statement_has_1024_signatures(signatures: int, refused: bool) -> None:
    one = {"keyid": "k", "sig": ""}
    data = json.dumps({"payloadType": "t", "payload": "", "signatures": [one] * signatures}).encode()
    if refused:
        with pytest.raises(EnvelopeMalformed, match="1024"):
            Dsse.decode(data, "t")
    else:
        assert len(Dsse.decode(data, "t").signatures) == signatures


def test_an_organizations_name_has_255_characters() -> None:
    label = "a" * 63
    name = f"{label}.{label}.{label}.{label}"
    assert organization_name(name) == name
    with pytest.raises(InvalidName):
        organization_name(name + ".a")


def test_a_result_of_an_agent_has_4_mib_and_64_levels() -> None:
    def nested(levels: int) -> object:
        value: object = 1
        for _ in range(levels):
            value = [value]
        return value

    encode_result(nested(63), "here")
    with pytest.raises(AgentFailed, match="deeper than 64"):
        encode_result(nested(65), "here")
    encode_result("x" * ((4 << 20) - 2), "here")
    with pytest.raises(AgentFailed, match="may have 4194304"):
        encode_result("x" * ((4 << 20) - 1), "here")


def test_an_audit_entry_has_16_kib_and_five_levels() -> None:
    def write(detail: Any) -> bytes:
        return encode(AuditEntry("k", detail=detail), 0, bytes(32), 1)

    write({"text": "x" * 16_000})
    with pytest.raises(StorageError, match="may have 16384"):
        write({"text": "x" * 16_400})
    write({"a": {"b": {"c": 1}}})
    with pytest.raises(StorageError, match="nested too deep"):
        write({"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}})


# What a node reads of its own organization, and what it keeps.


def test_a_configuration_has_1_mib_32_levels_and_numbers_of_40_digits() -> None:
    strictyaml.loads(b"a: " + b"x" * ((1 << 20) - 3))
    with pytest.raises(ConfigError, match="over 1048576 bytes"):
        strictyaml.loads(b"a: " + b"x" * ((1 << 20) - 2))
    strictyaml.loads("[" * 31 + "]" * 31)
    with pytest.raises(ConfigError, match="over 32 levels"):
        strictyaml.loads("[" * 40 + "]" * 40)
    assert strictyaml.loads("9" * 40).integer(0, 10**40) == 10**40 - 1
    with pytest.raises(ConfigError, match="a whole number"):
        strictyaml.loads("9" * 41).integer(0, 10**50)


def test_a_value_beside_the_tables_has_64_kib() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB)")
    set_meta(connection, "k", bytes(65_536))
    with pytest.raises(StorageError, match="may have 65536"):
        set_meta(connection, "k", bytes(65_537))
    connection.close()


def test_a_statement_has_4096_subjects() -> None:
    def payload(subjects: int) -> bytes:
        return canonical_json(
            {
                "_type": "https://in-toto.io/Statement/v1",
                "predicateType": "urn:p",
                "predicate": {},
                "subject": [{"name": "n", "digest": {"sha256": "0" * 64}}] * subjects,
            }
        )

    _read_statement(payload(4096))
    with pytest.raises(ValueError, match="at most 4096 items"):
        _read_statement(payload(4097))


def test_a_revocation_says_why_in_256_characters() -> None:
    with pytest.raises(ValueError, match="at most 256 characters"):
        _read_payload(_revocation("r" * 257))
    assert _read_payload(_revocation("r" * 256)).reason == "r" * 256


def _revocation(reason: str) -> bytes:
    certificate = b"a certificate"
    return canonical_json(
        {
            "version": 1,
            "organization": "a.example",
            "issued_ms": 1,
            "reason": reason,
            "certificate": base64.b64encode(certificate).decode(),
            "fingerprint": hex_digest(certificate),
        }
    )


# Model updates.


def test_an_update_has_4096_arrays_of_eight_dimensions_and_a_header_of_1_mib() -> None:
    def packed(header: object) -> bytes:
        encoded = canonical_json(header)
        return b"CMP1" + len(encoded).to_bytes(4, "big") + encoded

    def empty(count: int, dimensions: int = 1, longest: int = 1) -> list[object]:
        return [[f"{number:04}" + "n" * longest, "<f4", [0] * dimensions] for number in range(count)]

    assert len(unpack(packed(empty(4096)))) == 4096
    with pytest.raises(EnvelopeMalformed, match="canonical form"):
        unpack(packed(empty(4097)))
    unpack(packed(empty(1, 8)))
    with pytest.raises(EnvelopeMalformed, match="dtype, shape"):
        unpack(packed(empty(1, 9)))
    with pytest.raises(EnvelopeMalformed, match="longer than it may be"):
        unpack(packed(empty(1, 1, 1 << 20)))


# The node's configuration.


def test_node_yaml_bounds_what_others_cost(tmp_path: Path) -> None:
    def limits(**values: int) -> Any:
        file = tmp_path / "node.yaml"
        lines = "".join(f"  {name}: {value}\n" for name, value in values.items())
        file.write_text(
            f"version: 1\norganization: a.example\nnode: n1\nlisten: [/ip4/127.0.0.1/tcp/0]\nlimits:\n{lines}"
        )
        return load_node(file).limits

    few = limits(peers=3, requests_per_peer=2, messages_per_second=7, workers=1)
    assert (few.peers, few.requests_per_peer, few.messages_per_second, few.workers) == (3, 2, 7, 1)
    for name in ("peers", "requests_per_peer", "messages_per_second", "workers"):
        with pytest.raises(ConfigError, match=name):
            limits(**{name: 0})
