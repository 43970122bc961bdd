"""The rooms behind the gate at the edges: each test goes red for a line of them that is a little wrong.

They are `admission.drafts`, `attested`, `labels`, `pseudonyms` and `noise`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import opendp.prelude as dp
import pytest

from comity.digest import canonical_json, sha256
from comity.envelope import sign_document
from comity.errors import CertificateInvalid, InvalidRecord, KeyFileInvalid, PolicyDenied
from comity.hops import CREATE, KIND, SEND, sign_hop
from comity.v1 import agreement_pb2 as terms
from comity.v1.task_pb2 import Certificate, Hop
from comity_node.admission import noise
from comity_node.admission.attested import DISTANCE, NOISE, check, distance_of, made_by, noise_note, spending_of
from comity_node.admission.drafts import Draft, Refused, check_flat, check_promised, problem, read_fields, together
from comity_node.admission.labels import certificate_labels, terms_labels
from comity_node.admission.noise import NoiseSource
from comity_node.admission.pseudonyms import Pseudonyms
from comity_node.admission.questions import Spending
from comity_node.policy.lattice import KAnonymity, Noise, Obligations
from comity_node.validators.schema import FieldSpec, Schema
from kit.consortium import consortium, names
from kit.decided import ME, PEER
from kit.documents import RECORD, agree, make_passage
from kit.enforcing import NODES

LAB = consortium(*names(3))
SCHEMA = Schema("age", {"age": FieldSpec("number", 0, 120), "size": FieldSpec("number", 0, 100)})
DIGEST = sha256(RECORD)
NOISY = Obligations(noise={"age": Noise(0.5, 0, 120)})
DEEP = b"[" * 100_000


# Drafts.


def test_who_said_no_is_told_with_the_rules_where_there_are_any() -> None:
    assert Refused(b"", "no", ("a", "b")).label == "a, b: no"
    assert Refused(b"", "no", ()).label == "no"


def test_the_longest_record_is_read_and_a_longer_one_is_not() -> None:
    most = 256 * 1024
    longest = canonical_json({"a": "x" * (most - len('{"a":""}'))})
    assert len(longest) == most
    assert len(read_fields(longest)["a"]) == most - len('{"a":""}')
    with pytest.raises(InvalidRecord, match="262145 bytes; at most 262144"):
        read_fields(canonical_json({"a": "x" * (most + 1 - len('{"a":""}'))}))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (b"{", "is not JSON"),
        (DEEP, "is not JSON"),
        (b"[]", "not a JSON object in"),
        (b'{"a": 1}', "not a JSON object in"),
    ],
    ids=["cut short", "deep", "a list", "a blank"],
)
def test_what_is_no_record(record: bytes, says: str) -> None:
    with pytest.raises(InvalidRecord, match=says):
        read_fields(record)


def test_a_record_has_the_names_of_its_schema_and_single_values() -> None:
    check_flat(SCHEMA, {"age": 1, "size": None})
    for fields, says in (
        ({"age": 1, "weight": 2}, "'weight' is no field"),
        ({"age": {}}, "no single value"),
        ({"age": []}, "no single value"),
    ):
        with pytest.raises(InvalidRecord, match=says):
            check_flat(SCHEMA, fields)


def test_what_is_hashed_or_masked_or_redacted_need_not_fit_the_schema() -> None:
    more = {name: FieldSpec("number", 0, 9) for name in ("code", "gone", "label")}
    schema = Schema("age", {**SCHEMA.fields, **more})
    owed = Obligations(hash=frozenset({"size"}), mask={"code": 1}, redact=frozenset({"gone"}))
    assert problem(schema, owed, {"age": 1.0, "label": 1, "size": "hmac-sha256:00", "code": "1***"}) == ""
    assert problem(schema, owed, {"age": 121.0, "label": 1, "size": "hmac-sha256:00", "code": "1***"})
    assert problem(SCHEMA, Obligations(), {"age": 1.0, "size": 1.0}) == ""


@pytest.mark.invariant("S1")
def test_an_agreement_has_to_promise_what_a_rule_asks_of_others() -> None:
    agreed = agree(LAB, obligations=terms.Obligations(onward="never", retain_seconds=60))
    check_promised(agreed, Obligations(retain_ms=60_000), ("retain_ms", "onward"))
    check_promised(agreed, Obligations(retain_ms=59_000), ("onward",))
    with pytest.raises(PolicyDenied, match="asks for retain,"):
        check_promised(agreed, Obligations(retain_ms=59_000), ("onward", "retain_ms"))


@pytest.mark.invariant("S1")
def test_the_rows_that_are_rare_are_the_ones_that_stay() -> None:
    owed = Obligations(k_anonymity=KAnonymity(2, frozenset({"label"})))
    one, other, like_it = (
        Draft(bytes([at]), 0, canonical_json({"label": label})) for at, label in enumerate((0, 1, 1))
    )
    refused = Refused(b"r", "before", ())
    out = together(owed, [refused, one, other, like_it])
    assert [type(each) for each in out] == [Refused, Refused, Draft, Draft]
    assert out[0] is refused
    assert out[1] == Refused(b"\0", "k_anonymity", (), "fewer than 2 rows of the batch have its values of label")
    assert together(Obligations(), [one, refused]) == [one, refused]


# What is attested.


def hop(note: object = None, distance: str | None = None, **changes: Any) -> Hop:
    """The hop that made `RECORD`, and what it attests."""
    told = {NOISE: note if isinstance(note, str) else json.dumps(note)} if note is not None else {}
    told |= {DISTANCE: distance} if distance is not None else {}
    return Hop(node="spiffe://a/node/n1", action=CREATE, attested=told, **{"record_digest": DIGEST, **changes})


def note(cost: object = 1, release: str = "00" * 32, **paths: object) -> dict[str, object]:
    return {"cost": cost, "paths": paths, "release": release}


def test_what_a_note_says_is_rounded_up() -> None:
    source = NoiseSource()
    source.epsilon, source.paths = 2.5e-6, {"age": 1.5e-6}
    assert noise_note(source, bytes(32)) == f'{{"cost":3,"paths":{{"age":2}},"release":"{"00" * 32}"}}'


def test_the_hop_that_made_the_present_revision_is_the_last_that_creates() -> None:
    home = NODES[ME]
    first = sign_hop(home, make_passage(CREATE, attested={DISTANCE: "1"}), ())
    sent = sign_hop(home, make_passage(SEND, to=PEER), (first,))
    second = sign_hop(home, make_passage(CREATE, attested={DISTANCE: "2"}), (first, sent))
    last = sign_hop(home, make_passage(SEND, to=PEER), (first, sent, second))
    assert distance_of(made_by((first, sent))) == 1.0
    assert distance_of(made_by((first, sent, second, last))) == 2.0
    assert made_by((sent,)) is None
    with pytest.raises(CertificateInvalid, match="does not parse"):
        made_by((sign_document(home.key, KIND, b"\xff\xff"),))


def test_what_noise_costs() -> None:
    assert spending_of(None) is None
    assert spending_of(hop()) is None
    assert spending_of(hop(note(7, "ab" * 32, age=7))) == Spending(b"\xab" * 32, 7)
    assert spending_of(hop(note(0, age=0))) == Spending(bytes(32), 0)


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(
    "said",
    [
        "no JSON", "[]", {}, note(-1), note(1.5), note(age=-1), note(age=1.5), note(True), note(release="00" * 31),
        note(release="no"), {**note(), "paths": []}, DEEP.decode(),
    ],
    ids=range(12),
)  # fmt: skip
def test_a_note_that_makes_no_sense(said: object) -> None:
    with pytest.raises(CertificateInvalid, match="makes no sense"):
        spending_of(hop(said))
    with pytest.raises(PolicyDenied, match="makes no sense"):
        check(NOISY, hop(said), {"age": 1.0}, DIGEST)


def test_the_distance_that_is_attested() -> None:
    assert [distance_of(each) for each in (None, hop(), hop(distance="far"), hop(distance="0.25"))] == [0, 0, 0, 0.25]


@pytest.mark.invariant("S1")
def test_a_distance_that_is_owed_has_to_be_attested() -> None:
    owed = Obligations(min_distance_to_private=0.2)
    check(Obligations(), None, {}, DIGEST)
    for enough in ("0.2", "0.3"):
        check(owed, hop(distance=enough), {}, DIGEST)
    for too_near in ("0.1", "nan"):
        with pytest.raises(PolicyDenied, match=r"does not attest a distance of 0\.2"):
            check(owed, hop(distance=too_near), {}, DIGEST)
    for made in (None, hop(distance="0.2", record_digest=bytes(32))):
        with pytest.raises(PolicyDenied, match="nobody attests how"):
            check(owed, made, {}, DIGEST)


@pytest.mark.invariant("S1")
def test_noise_that_is_owed_has_to_be_attested_of_each_number_that_is_there() -> None:
    fields = {"age": 1.0}
    for enough in (note(age=500_000), note(age=499_999)):
        check(NOISY, hop(enough), fields, DIGEST)
    check(NOISY, hop(), {"size": 1.0}, DIGEST)
    check(NOISY, hop(), {"age": None}, DIGEST)
    for wanting in (None, note(), note(age=500_001), note(size=1)):
        with pytest.raises(PolicyDenied, match=r"noise of epsilon 0\.5 on the field 'age'"):
            check(NOISY, hop(wanting), fields, DIGEST)
    check(Obligations(noise={"age": Noise(1.5e-6, 0, 1)}), hop(note(age=2)), fields, DIGEST)
    with pytest.raises(PolicyDenied, match="nobody attests how"):
        check(NOISY, None, fields, DIGEST)
    with pytest.raises(PolicyDenied, match="a distance of 0 "):
        check(NOISY, hop(note(age=1), distance="-0.5"), fields, DIGEST)


# Labels.


def test_what_an_agreement_says_as_labels() -> None:
    agreed = agree(LAB, repair_rounds=3, obligations=terms.Obligations(onward="never"))
    labels = terms_labels(agreed, lambda _: True)
    review = agreed.terms.review
    assert labels == {
        "records": 20, "batch_records": 10, "repair_rounds": 3, "participants": 3, "eligible": review.eligible,
        "faulty": review.faulty, "quorum": review.quorum, "min_score": 0.5, "lease_seconds": 30,
        "lifetime_seconds": 3600, "distinct_organizations": True,
    }  # fmt: skip
    rare = agree(LAB, obligations=terms.Obligations(k_anonymity=terms.KAnonymity(k=5, fields=["label"])))
    assert terms_labels(rare, lambda name: name == "k") == {"k": 5}
    assert terms_labels(rare, lambda name: name == "records") == {"records": 20}


def test_what_a_certificate_says_as_labels() -> None:
    certificate = Certificate(score=7500)
    certificate.votes.add()
    assert certificate_labels(certificate) == {"score": 0.75, "reviews": 1}


# Pseudonyms.


def pseudonyms(path: Path, byte: int = 1) -> Pseudonyms:
    return Pseudonyms(path / "node.db", ME, lambda count: bytes([byte]) * count)


def made(path: Path, byte: int = 1) -> str:
    return str(pseudonyms(path, byte).of("rows")("size", 5.0))


def test_a_secret_is_made_once_for_its_owner_alone_and_kept(tmp_path: Path) -> None:
    first = made(tmp_path)
    secret = tmp_path / "node.db.pseudonyms"
    assert (secret.read_bytes(), secret.stat().st_mode & 0o777) == (b"\x01" * 32, 0o600)
    assert [each.name for each in tmp_path.iterdir()] == [secret.name]
    assert made(tmp_path, 2) == first, "what is there is read"
    secret.unlink()
    assert made(tmp_path, 2) != first


def test_what_was_left_of_a_secret_that_was_not_written_to_the_end_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "node.db.pseudonyms.new").write_bytes(b"half")
    made(tmp_path)
    assert (tmp_path / "node.db.pseudonyms").read_bytes() == b"\x01" * 32


@pytest.mark.invariant("S3")
@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601])
def test_a_secret_that_others_can_use_in_any_way_is_refused(tmp_path: Path, mode: int) -> None:
    made(tmp_path)
    (tmp_path / "node.db.pseudonyms").chmod(mode)
    with pytest.raises(KeyFileInvalid, match=f"can be read by others \\(mode {mode:o}\\)"):
        made(tmp_path)


def test_a_secret_that_is_none(tmp_path: Path) -> None:
    secret = tmp_path / "node.db.pseudonyms"
    made(tmp_path)
    for size in (31, 33):
        secret.write_bytes(bytes(size))
        with pytest.raises(KeyFileInvalid, match=f"it has {size} bytes, not 32"):
            made(tmp_path)
    secret.unlink()
    secret.mkdir()
    with pytest.raises(KeyFileInvalid, match="it holds the key of the pseudonyms"):
        made(tmp_path)


@pytest.mark.invariant("R1")
def test_a_secret_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "node.db.pseudonyms"
    synced: list[tuple[str, bool]] = []

    def fsync(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        synced.append((kind, secret.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    before = os.listdir("/dev/fd")
    made(tmp_path)
    assert synced == [("file", False), ("directory", True)]
    assert len(os.listdir("/dev/fd")) == len(before), "what was opened is closed"


# Noise.


@pytest.fixture
def mechanisms() -> Iterator[None]:
    """None is kept ready from before, nor for later."""
    noise._mechanism.cache_clear()
    yield
    noise._mechanism.cache_clear()


class Fake:
    """A mechanism that is worth what the test says."""

    def __init__(self, worth: float) -> None:
        self.worth = worth

    def map(self, *, d_in: float) -> float:
        assert d_in > 0
        return self.worth


def worth(monkeypatch: pytest.MonkeyPatch, *values: float) -> list[float]:
    """Let the mechanisms be worth these, one after the other; return the list of scales that were tried."""
    scales: list[float] = []

    def make_laplace(*_: object, scale: float) -> Fake:
        scales.append(scale)
        return Fake(values[len(scales) - 1])

    monkeypatch.setattr(dp.m, "make_laplace", make_laplace)
    return scales


def test_the_scale_grows_by_as_little_as_it_can() -> None:
    assert noise._STEPS == (1 + 2.220446049250313e-16, 1 + 2**-48, 1 + 2**-40, 1 + 2**-30)
    assert all(less < more for less, more in pairwise((1.0, *noise._STEPS)))


@pytest.mark.invariant("R2")
@pytest.mark.usefixtures("mechanisms")
def test_the_first_mechanism_is_taken_that_is_worth_no_more_than_its_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    scales = worth(monkeypatch, float("inf"), 2.5 + 1e-9, 2.5)
    assert noise._mechanism(2.5, 7.0).worth == 2.5
    assert scales == [7.0 / 2.5 * step for step in noise._STEPS[:3]]


@pytest.mark.invariant("R2")
@pytest.mark.usefixtures("mechanisms")
def test_no_mechanism_is_taken_that_is_worth_more(monkeypatch: pytest.MonkeyPatch) -> None:
    worth(monkeypatch, 3.0, float("nan"), float("-inf"), 2.6)
    with pytest.raises(PolicyDenied, match=r"epsilon 2\.5 over 7 cannot be drawn$"):
        noise._mechanism(2.5, 7.0)


@pytest.mark.usefixtures("mechanisms")
def test_what_the_library_refuses_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_laplace(*_: object, scale: float) -> None:
        raise dp.OpenDPException("MakeMeasurement", f"no scale {scale:g}")

    monkeypatch.setattr(dp.m, "make_laplace", make_laplace)
    with pytest.raises(PolicyDenied, match=r"cannot be drawn: no scale 4$"):
        noise._mechanism(2.0, 8.0)


@pytest.mark.usefixtures("mechanisms")
def test_without_the_library_noise_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opendp.prelude", None)
    with pytest.raises(PolicyDenied, match="OpenDP is not installed"):
        noise._mechanism(2.0, 8.0)


@pytest.mark.usefixtures("mechanisms")
def test_the_library_is_told_that_its_contributions_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(dp, "enable_features", told.append)
    worth(monkeypatch, 1.0)
    noise._mechanism(1.0, 1.0)
    assert told == ["contrib"]


@pytest.mark.usefixtures("mechanisms")
def test_a_real_mechanism_is_worth_its_epsilon() -> None:
    mechanism = noise._mechanism(0.3, 120.0)
    assert 0.299999 < mechanism.map(d_in=120.0) <= 0.3
    assert isinstance(mechanism(1.0), float)


def test_what_was_drawn_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []

    def mechanism(epsilon: float, distance: float) -> Any:
        asked.append((epsilon, distance))
        return lambda value: value + 1

    monkeypatch.setattr(noise, "_mechanism", mechanism)
    source = NoiseSource()
    assert (source.epsilon, source.drawn, source.paths) == (0.0, 0, {})
    for path, epsilon in (("age", 0.5), ("age", 0.25), ("size", 0.25)):
        assert source.draw(path, 60, Noise(epsilon, 50, 100)) == 61.0
    assert asked == [(0.5, 50), (0.25, 50), (0.25, 50)]
    assert (source.epsilon, source.drawn, source.paths) == (1.0, 3, {"age": 0.5, "size": 0.25})
