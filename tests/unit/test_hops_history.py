"""The signed history of a task: nothing of it can be left out, put in, reordered or taken to another task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from comity.digest import canonical_json, sha256
from comity.envelope import sign_document
from comity.errors import CertificateInvalid, EnvelopeError, TrustError
from comity.hops import CREATE, SEND, check_attested, sign_hop, verify_hops
from comity.trust import NodeIdentity
from comity.v1.task_pb2 import Hop
from kit.consortium import attested, consortium, names
from kit.documents import RECORD, TASK_ID, make_history, make_passage

HOME, OTHER, THIRD = names(3)
NEWER = canonical_json({"label": 0, "x": 3.5})


@pytest.fixture(scope="module")
def home() -> NodeIdentity:
    return consortium(*names(3)).nodes[HOME]


@pytest.fixture(scope="module")
def other() -> NodeIdentity:
    return consortium(*names(3)).nodes[OTHER]


def history_of(home: NodeIdentity, task_id: bytes = TASK_ID) -> list[bytes]:
    """Made, sent to two, repaired, sent again."""
    repaired: dict[str, Any] = {"revision": 1, "record": NEWER}
    return make_history(
        home,
        [
            make_passage(task_id=task_id),
            make_passage(SEND, to=OTHER, task_id=task_id),
            make_passage(SEND, to=THIRD, task_id=task_id),
            make_passage(task_id=task_id, **repaired),
            make_passage(SEND, to=OTHER, task_id=task_id, **repaired),
        ],
    )


def verify(home: NodeIdentity, history: list[bytes], record: bytes = NEWER) -> tuple[Hop, ...]:
    return verify_hops(history, task_id=TASK_ID, record=record, home=attested(home))


def test_a_history_and_its_prefixes(home: NodeIdentity) -> None:
    hops = verify(home, history_of(home))
    assert [hop.action for hop in hops] == [CREATE, SEND, SEND, CREATE, SEND]
    assert [hop.to_organization for hop in hops] == ["", OTHER, THIRD, "", OTHER]
    for length in (1, 2, 3):
        assert len(verify(home, history_of(home)[:length], RECORD)) == length


@pytest.mark.invariant("S5")
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda hops: hops.pop(0), "hop 0 does not follow"),
        (lambda hops: hops.pop(1), "hop 1 does not follow"),
        (lambda hops: hops.pop(3), "hop 3 does not follow"),
        (lambda hops: hops.pop(), None),
        (lambda hops: hops.insert(1, hops.pop(2)), "hop 1 does not follow"),
        (lambda hops: hops.reverse(), "hop 0 does not follow"),
        (lambda hops: hops.insert(2, hops[1]), "hop 2 does not follow"),
        (lambda hops: hops.append(hops[0]), "hop 5 does not follow"),
        (lambda hops: hops.clear(), "does not begin with the making"),
    ],
)
def test_a_history_that_was_changed(
    home: NodeIdentity, spoil: Callable[[list[bytes]], object], reason: str | None
) -> None:
    history = history_of(home)
    spoil(history)
    if reason is None:  # a prefix is good: it just says less
        verify(home, history)
        return
    with pytest.raises(CertificateInvalid, match=reason):
        verify(home, history)


@pytest.mark.invariant("S5")
def test_hops_of_another_task_or_another_node(home: NodeIdentity, other: NodeIdentity) -> None:
    with pytest.raises(CertificateInvalid, match="another task"):
        verify(home, history_of(home, bytes(16)))
    mixed = history_of(home)[:2]
    mixed.append(sign_hop(home, make_passage(SEND, to=THIRD, task_id=bytes(16)), mixed))
    with pytest.raises(CertificateInvalid, match="hop 2 belongs to another task"):
        verify(home, mixed, RECORD)
    with pytest.raises(CertificateInvalid, match="not signed by the home's node"):
        verify(home, history_of(other))
    foreign = [
        *history_of(home),
        sign_hop(other, make_passage(SEND, to=THIRD, revision=1, record=NEWER), history_of(home)),
    ]
    with pytest.raises(CertificateInvalid, match="hop 5 was not signed by the home's node"):
        verify(home, foreign)


@pytest.mark.invariant("S5")
def test_a_hop_signed_in_the_name_of_another_node(home: NodeIdentity, other: NodeIdentity) -> None:
    hop = Hop(task_id=TASK_ID, record_digest=sha256(RECORD), node=str(home.node), action=CREATE)
    with pytest.raises(CertificateInvalid, match="not signed by the home's node"):
        verify(home, [sign_document(other.key, "hop", hop.SerializeToString())], RECORD)


@pytest.mark.invariant("S5")
def test_a_history_of_another_record_or_an_earlier_revision(home: NodeIdentity) -> None:
    with pytest.raises(CertificateInvalid, match="another record"):
        verify(home, history_of(home), RECORD)
    history = history_of(home)
    history.append(sign_hop(home, make_passage(SEND, to=OTHER), history))
    with pytest.raises(CertificateInvalid, match="earlier revision"):
        verify(home, history, RECORD)
    begun_late = make_history(home, [make_passage(SEND, to=OTHER)])
    with pytest.raises(CertificateInvalid, match="begin with the making"):
        verify(home, begun_late, RECORD)


@pytest.mark.invariant("S2")
def test_bytes_that_are_no_hop(home: NodeIdentity) -> None:
    for spoiled in (b"", b"garbage", history_of(home)[0][:-1], sign_document(home.key, "review", b"")):
        with pytest.raises((EnvelopeError, TrustError)):
            verify(home, [spoiled])
    with pytest.raises(CertificateInvalid, match="does not parse"):
        verify(home, [sign_document(home.key, "hop", b"\xff\xff")])
    first = history_of(home)[0]
    for position in range(0, len(first), 7):
        changed = bytearray(first)
        changed[position] ^= 0x10
        with pytest.raises((EnvelopeError, TrustError, CertificateInvalid)):
            verify(home, [bytes(changed)], RECORD)


@pytest.mark.invariant("S7")
def test_a_history_without_end(home: NodeIdentity) -> None:
    history: list[bytes] = []
    for _ in range(513):
        history.append(sign_hop(home, make_passage(), history))
    assert len(verify(home, history[:512], RECORD)) == 512
    with pytest.raises(CertificateInvalid, match="over 512 hops"):
        verify(home, history, RECORD)


@pytest.mark.invariant("S1")
def test_a_home_has_to_attest_the_distance_that_was_agreed(home: NodeIdentity) -> None:
    def hops(*attested: str | None, repaired: bool = False) -> tuple[Hop, ...]:
        passages = [
            make_passage(
                CREATE if number == 0 or repaired else SEND,
                revision=number if repaired else 0,
                attested={} if text is None else {"min_distance_to_private": text},
            )
            for number, text in enumerate(attested)
        ]
        return verify(home, make_history(home, passages), RECORD)

    for good in (("0.2", None), ("0.25", "0.1"), ("1e3",)):
        check_attested(hops(*good), 0.2)
    check_attested(hops(None), 0.0)
    check_attested(hops("0.1", "0.2", repaired=True), 0.2)
    for bad in (None, "0.1", "", "far", "nan", "-1"):
        with pytest.raises(CertificateInvalid, match=r"does not attest a distance of 0\.2"):
            check_attested(hops(bad, "0.5"), 0.2)
    with pytest.raises(CertificateInvalid, match="does not attest"):
        check_attested(hops("0.2", "0.1", repaired=True), 0.2)
