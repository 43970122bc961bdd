"""One epoch after another: who has to sign it, what a node that was away needs, and that a fork is found."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity import bundle as bundles
from comity.bundle import (
    BUNDLE_PAYLOAD_TYPE,
    Anchor,
    add_member,
    bundle_approval,
    new_bundle,
    next_epoch,
    read_bundle,
    remove_member,
    remove_root,
    sign_bundle,
    verify_bundle,
)
from comity.digest import canonical_json
from comity.epoch import default_threshold
from comity.errors import BundleInvalid
from comity.statement import Dsse, Signer
from comity.trust import NodeIdentity, OrganizationCa, TrustStore
from comity_node.reload.sources import read_verified_bundle
from kit.epochs import BEGIN_MS, DAY_MS, YEAR_MS, authority, first, node_of, signed, with_root

A, B, C, D, E = (authority(name) for name in "abcde")
NEXT_A = authority("a", 1)
NOW_MS = BEGIN_MS + 2 * DAY_MS
DATES = {"issued_ms": BEGIN_MS + DAY_MS, "expires_ms": BEGIN_MS + YEAR_MS}


def verified(raw: bytes, own: OrganizationCa | None = A, seen: bytes | None = None) -> bundles.Bundle:
    anchor = None if seen is None else Anchor.of(read_bundle(seen))
    return verify_bundle(raw, now_ms=NOW_MS, own_ca=own.certificate.der if own else None, anchor=anchor)


def test_the_default_is_over_two_thirds() -> None:
    assert [default_threshold(n) for n in range(1, 11)] == [1, 2, 3, 3, 4, 5, 5, 6, 7, 7]


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    ("signers", "wanting"),
    [
        ((A, B, C, E), None),
        ((A, B, C), r"e\.example \(without e\.example it does not hold"),
        ((A, B, E), r"c\.example, d\.example; 2 of 3 votes"),
        ((E,), r"0 of 3 votes"),
        ((), r"without e\.example it does not hold.*0 of 3 votes"),
        ((A, B, C, D, E), None),
    ],
)
def test_a_member_is_added_by_k_of_n_and_itself(signers: tuple[OrganizationCa, ...], wanting: str | None) -> None:
    before = first("a", "b", "c", "d")
    after = with_root(before, E, *signers)
    assert bundle_approval(after).complete == (wanting is None)
    if wanting is None:
        bundle = verified(after, seen=before)
        assert (bundle.epoch, len(bundle.members), bundle.threshold) == (2, 5, 4)
        assert verified(after, E).digest == bundle.digest
    else:
        with pytest.raises(BundleInvalid, match=wanting):
            verified(after, seen=before)


@pytest.mark.invariant("S3")
def test_a_member_is_expelled_without_its_consent_and_not_by_fewer_than_k() -> None:
    before = first("a", "b", "c", "d")
    after = remove_member(before, "d.example", **DATES)
    with pytest.raises(BundleInvalid, match=r"2 of 3 votes"):
        verified(signed(after, (A, B)), seen=before)
    assert set(verified(signed(after, (A, B, C)), seen=before).members) == {"a.example", "b.example", "c.example"}
    assert verified(signed(after, (A, B, D)), seen=before).epoch == 2, "its own vote counts, too"
    with pytest.raises(BundleInvalid, match="own CA is not in it"):
        verified(signed(after, (A, B, C)), D, seen=before)


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    ("signers", "holds"),
    [
        ((A, NEXT_A, B, C), True),
        ((A, B, C), False),  # the next root has not consented
        ((NEXT_A, B, C, D), False),  # k others cannot change a member's root
        ((A, NEXT_A, B), False),
    ],
)
def test_a_member_changes_its_root_with_both_and_k(signers: tuple[OrganizationCa, ...], holds: bool) -> None:
    before = first("a", "b", "c", "d")
    after = with_root(before, NEXT_A, *signers)
    if not holds:
        with pytest.raises(BundleInvalid, match="is not signed by"):
            verified(after, seen=before)
        return
    assert len(verified(after, seen=before).members["a.example"]) == 2
    last = remove_root(after, A.certificate.fingerprint[:12], **DATES)
    with pytest.raises(BundleInvalid, match=r"without a\.example"):
        verified(signed(last, (B, C, D)), B, seen=after)
    done = verified(signed(last, (NEXT_A, B, C)), NEXT_A, seen=after)
    assert done.members["a.example"] == (NEXT_A.certificate.der,)
    assert [one.epoch for one in done.lineage] == [1, 2, 3]
    with pytest.raises(BundleInvalid, match="the only root"):
        remove_root(signed(last, (NEXT_A, B, C)), NEXT_A.certificate.fingerprint, **DATES)
    with pytest.raises(BundleInvalid, match="0 roots"):
        remove_root(signed(last, (NEXT_A, B, C)), A.certificate.fingerprint, **DATES)


@pytest.mark.invariant("S3")
def test_a_node_that_was_away_follows_the_history_and_nothing_else() -> None:
    one = first("a", "b", "c")
    two = with_root(one, D, A, B, C, D)
    three = signed(remove_member(two, "b.example", **DATES), (A, B, C))
    assert verified(three, seen=one).epoch == 3
    assert verified(three, seen=two).epoch == 3
    alone = read_bundle(three).envelope.encode()
    with pytest.raises(BundleInvalid, match=r"by no member's CA|is not signed by"):
        verified(alone, seen=one)
    other = first("a", "b", "d")
    with pytest.raises(BundleInvalid, match="a fork"):
        verified(with_root(other, C, A, B, D, C), seen=one)
    outer = json.loads(three)
    outer["history"] = outer["history"][:1]
    with pytest.raises(BundleInvalid, match=r"does not follow|no member's CA"):
        verified(canonical_json(outer), seen=one)


@pytest.mark.invariant("S3")
def test_of_a_fork_the_error_names_who_signed_both() -> None:
    one = first("a", "b", "c", "d")
    left = signed(remove_member(one, "d.example", **DATES), (A, B, C))
    right = signed(remove_member(one, "c.example", **DATES), (A, B, D))
    with pytest.raises(BundleInvalid, match=r"a fork: .*epoch 2 .*both are signed by a\.example, b\.example:"):
        verified(right, seen=left)
    trust = TrustStore(read_bundle(left))
    with pytest.raises(BundleInvalid, match=r"a fork"):
        trust.replace(read_bundle(right))
    further = with_root(right, E, A, B, D, E)
    with pytest.raises(BundleInvalid, match=r"both are signed by a\.example, b\.example"):
        verified(further, seen=left)
    assert trust.bundle.raw == left


def test_a_node_on_the_wrong_side_of_a_fork_comes_back_by_an_epoch_that_all_have_signed() -> None:
    """An abandoned proposal has signatures, which nobody can take back: the one that lacked may come years later."""
    one = first("a", "b", "c", "d", threshold=3)
    abandoned, taken = (
        signed(
            remove_member(one, "c.example", issued_ms=BEGIN_MS + DAY_MS + at, expires_ms=BEGIN_MS + YEAR_MS), signers
        )
        for at, signers in ((0, (A, B, D)), (1, (A, B, C)))
    )
    three = next_epoch(read_bundle(taken), read_bundle(taken).members, **DATES | {"issued_ms": BEGIN_MS + DAY_MS + 2})
    most, everybody = signed(three, (A, B)), signed(three, (A, B, D))
    with pytest.raises(BundleInvalid, match="a fork"):
        verified(everybody, D, seen=abandoned)
    assert verified(read_bundle(everybody).envelope.encode(), D, seen=abandoned).epoch == 3
    with pytest.raises(BundleInvalid, match="not signed by d"):
        verified(read_bundle(most).envelope.encode(), D, seen=abandoned)


def test_what_a_node_remembers_survives_a_restart() -> None:
    one = first("a", "b", "c")
    anchor = Anchor.of(read_bundle(one))
    assert Anchor.decode(anchor.encode()) == anchor
    assert anchor.signers == {"a.example", "b.example", "c.example"}
    for garbage in (b"", b"{}", b"[]", anchor.encode().replace(b"epoch", b"epoxy"), b"\xff" * 9, b" " * (1 << 20)):
        with pytest.raises(BundleInvalid, match="remembered"):
            Anchor.decode(garbage)
    with pytest.raises(BundleInvalid, match="is a bundle of 'lab', and 'other' was seen"):
        verify_bundle(one, now_ms=NOW_MS, own_ca=None, anchor=replace(anchor, consortium="other"))
    with pytest.raises(BundleInvalid, match="older than epoch 2"):
        verify_bundle(one, now_ms=NOW_MS, own_ca=None, anchor=replace(anchor, epoch=2))


@pytest.mark.invariant("S7")
def test_what_is_remembered_of_an_epoch_is_bounded() -> None:
    def remembered(*signers: str) -> bytes:
        return canonical_json({"consortium": "lab", "epoch": 1, "digest": "", "signers": list(signers)})

    assert len(Anchor.decode(remembered(*(f"o{number}.example" for number in range(1024)))).signers) == 1024
    with pytest.raises(BundleInvalid, match="at most 1024 items"):
        Anchor.decode(remembered(*(f"o{number}.example" for number in range(1025))))
    with pytest.raises(BundleInvalid, match="limit"):
        Anchor.decode(remembered("o.example") + b" " * (512 * 1024))


@pytest.mark.invariant("S3")
def test_nobody_holds_a_node_on_an_old_epoch_for_ever() -> None:
    one = first("a", "b", "c", expires_ms=BEGIN_MS + 3 * DAY_MS)
    verified(one)
    with pytest.raises(BundleInvalid, match="expired"):
        verify_bundle(one, now_ms=BEGIN_MS + 3 * DAY_MS, own_ca=None)
    two = signed(next_epoch(read_bundle(one), read_bundle(one).members, **DATES), (A, B, C))
    later = verify_bundle(two, now_ms=BEGIN_MS + 9 * DAY_MS, own_ca=None, anchor=Anchor.of(read_bundle(one)))
    assert (later.epoch, dict(later.members)) == (2, dict(read_bundle(one).members))


@pytest.mark.invariant("S3")
@pytest.mark.parametrize("threshold", [0, 1, 2, 5, 2**40])
def test_a_threshold_is_over_half_and_at_most_all(threshold: int) -> None:
    with pytest.raises(BundleInvalid, match="threshold"):
        first("a", "b", "c", "d", threshold=threshold)


def test_a_threshold_that_was_chosen_stays_and_the_epoch_before_says_which_counts() -> None:
    one = first("a", "b", "c", "d", threshold=4)
    stays = read_bundle(add_member(one, E.certificate_pem, **DATES))
    assert stays.threshold == 4
    other = add_member(one, E.certificate_pem, **DATES, threshold=3)
    with pytest.raises(BundleInvalid, match="3 of 4 votes"):
        verified(signed(other, (A, B, C, E)))
    two = signed(other, (A, B, C, D, E))
    assert verified(signed(remove_member(two, "e.example", **DATES), (A, B, C))).epoch == 3
    with pytest.raises(BundleInvalid, match="threshold"):
        remove_member(one, "d.example", **DATES)  # four of the three that are left: somebody has to say how many


def version_1(epoch: int, *members: OrganizationCa) -> bytes:
    payload = canonical_json(
        {
            "version": 1,
            "consortium": "lab",
            "epoch": epoch,
            "issued_ms": BEGIN_MS,
            "expires_ms": BEGIN_MS + YEAR_MS,
            "members": {ca.organization: [b64encode(ca.certificate.der).decode()] for ca in members},
        }
    )
    envelope = Dsse(BUNDLE_PAYLOAD_TYPE, payload)
    for ca in members:
        envelope = envelope.signed_by(Signer(ca.certificate.fingerprint, ca.sign))
    return envelope.encode()


@pytest.mark.invariant("S3")
def test_bundles_of_version_1_stay_good_and_all_sign_what_follows() -> None:
    old, newer = version_1(6, A, B, C), version_1(7, A, B, C, D)
    assert (verified(old).epoch, verified(newer, seen=old).epoch) == (6, 7)
    after = with_root(newer, E, A, B, C, E)
    with pytest.raises(BundleInvalid, match=r"not signed by d\.example"):
        verified(after, seen=newer)  # three of four are enough votes, and version 1 promised consent of all
    after = sign_bundle(after, D)
    assert (verified(after, seen=newer).epoch, verified(after, seen=newer).version) == (8, 2)
    assert verified(after, seen=old).epoch == 8, "begins after what was seen, and with what this organization signed"


@pytest.mark.invariant("S3")
def test_a_root_slipped_in_beside_ones_own_does_not_sign_for_one() -> None:
    impostor = authority("a", 7)
    payload = json.loads(b64decode(json.loads(version_1(9, A, E))["payload"]))
    payload["members"]["a.example"].append(b64encode(impostor.certificate.der).decode())
    forged = Dsse(BUNDLE_PAYLOAD_TYPE, canonical_json(payload))
    for ca in (impostor, E):
        forged = forged.signed_by(Signer(ca.certificate.fingerprint, ca.sign))
    with pytest.raises(BundleInvalid, match="not signed by this organization's own CA"):
        verified(forged.encode())


@pytest.mark.invariant("S3")
@pytest.mark.parametrize("certificates", [1, 2])
def test_a_node_whose_chain_has_no_root_takes_no_forged_bundle_either(certificates: int, tmp_path: Path) -> None:
    """A chain may be the node's certificate alone; the root that issued it has to have signed all the same."""
    impostor, node = authority("a", 7), node_of(A)
    payload = json.loads(b64decode(json.loads(version_1(9, A, E))["payload"]))
    payload["members"]["a.example"].append(b64encode(impostor.certificate.der).decode())
    forged = Dsse(BUNDLE_PAYLOAD_TYPE, canonical_json(payload))
    for ca in (impostor, E):
        forged = forged.signed_by(Signer(ca.certificate.fingerprint, ca.sign))
    identity, path = NodeIdentity.of(node.key, node.chain[:certificates]), tmp_path / "bundle.json"
    seen = read_bundle(first("a", "b", "c"))
    path.write_bytes(seen.raw)
    assert read_verified_bundle(path, identity, Anchor.of(seen), NOW_MS).digest == seen.digest
    path.write_bytes(forged.encode())
    with pytest.raises(BundleInvalid, match="not signed by this organization's own CA"):
        read_verified_bundle(path, identity, Anchor.of(seen), NOW_MS)


@pytest.mark.invariant("S3")
def test_a_history_that_begins_after_what_was_seen_takes_ones_own_signature() -> None:
    one = first("a", "b", "c")
    others = signed(
        new_bundle("lab", [B.certificate_pem, C.certificate_pem], issued_ms=BEGIN_MS, expires_ms=BEGIN_MS + YEAR_MS),
        (B, C),
    )
    payload = json.loads(b64decode(json.loads(others)["payload"]))
    payload.update(epoch=5, previous="ab" * 32)
    checkpoint = Dsse(BUNDLE_PAYLOAD_TYPE, canonical_json(payload))
    for ca in (B, C):
        checkpoint = checkpoint.signed_by(Signer(ca.certificate.fingerprint, ca.sign))
    back = with_root(checkpoint.encode(), A, B, C, A)
    with pytest.raises(BundleInvalid, match="history begins with epoch 5, after epoch 1"):
        verified(back, A, seen=one)
    assert verified(back, B, seen=one).epoch == 6


@pytest.mark.parametrize("name", ["lab\x1b[2J", "lab\nall have signed", "", "\u202elab"])
def test_a_consortiums_name_steers_no_terminal(name: str) -> None:
    """It is shown to whoever signs a bundle that came from somebody."""
    with pytest.raises(BundleInvalid, match="name"):
        new_bundle(name, [A.certificate_pem], issued_ms=BEGIN_MS, expires_ms=BEGIN_MS + YEAR_MS)


def test_a_proposal_is_changed_until_somebody_has_signed_it_and_nothing_follows_it_before_it_holds() -> None:
    one = first("a", "b", "c")
    draft = with_root(one, D)
    amended = with_root(draft, E)
    assert (read_bundle(amended).epoch, len(read_bundle(amended).members)) == (2, 5)
    with pytest.raises(BundleInvalid, match="is a proposal still"):
        with_root(sign_bundle(draft, A), E)
    with pytest.raises(BundleInvalid, match="do not sign"):
        sign_bundle(draft, E)
    empty = new_bundle("lab", [A.certificate_pem], **DATES)
    assert read_bundle(with_root(empty, B)).epoch == 1


def change_payload(raw: bytes, change: Callable[[dict[str, Any]], object], *signers: OrganizationCa) -> bytes:
    outer = json.loads(raw)
    payload = json.loads(b64decode(outer["bundle"]["payload"]))
    change(payload)
    envelope = Dsse(BUNDLE_PAYLOAD_TYPE, canonical_json(payload))
    for ca in signers:
        envelope = envelope.signed_by(Signer(ca.certificate.fingerprint, ca.sign))
    return canonical_json({**outer, "bundle": json.loads(envelope.encode())})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p.update(epoch=3), "does not follow"),
        (lambda p: p.update(previous="00" * 32), "does not follow"),
        (lambda p: p.update(previous=""), "names the digest"),
        (lambda p: p.update(previous="zz" * 32), "malformed"),
        (lambda p: p.update(consortium="other"), "another consortium"),
        (lambda p: p.update(issued_ms=BEGIN_MS - 1), "issued before epoch 1"),
        (lambda p: p.update(version=1), "unknown field"),
        (lambda p: (p.update(version=1), p.pop("threshold"), p.pop("previous")), "does not follow"),
        (lambda p: p.pop("threshold"), "no 'threshold'"),
        (lambda p: p.update(epoch=1, previous=""), "does not follow"),
    ],
)
def test_an_epoch_that_does_not_follow_is_refused_although_all_have_signed(
    change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    after = with_root(first("a", "b", "c"), D)
    verified(change_payload(after, lambda _: None, A, B, C, D))
    with pytest.raises(BundleInvalid, match=reason):
        verified(change_payload(after, change, A, B, C, D))


@pytest.mark.parametrize("name", ["mercу.example", "Mercy.example", "a.exаmple", "a..example", "xn--.é", ""])
def test_a_look_alike_name_is_no_members(name: str) -> None:
    def rename(payload: dict[str, Any]) -> None:
        payload["members"][name] = payload["members"].pop("d.example")

    with pytest.raises(BundleInvalid, match="no organization name"):
        read_bundle(change_payload(with_root(first("a", "b", "c"), D), rename))


def test_a_long_history_is_shortened_to_an_epoch_that_all_have_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "MAX_EPOCHS", 4)

    def renewed(raw: bytes, *signers: OrganizationCa) -> bytes:
        bundle = read_bundle(raw)
        return signed(next_epoch(bundle, bundle.members, **DATES), signers)

    one = first("a", "b", "c", "d")
    two = renewed(one, A, B, C)
    three = renewed(two, A, B, C, D)
    four = renewed(three, A, B, C)
    five = renewed(four, B, C, D)
    assert [one.epoch for one in verified(five, seen=four).lineage] == [3, 4, 5]
    assert verified(five, seen=one).epoch == 5, "what was left out was before an epoch that this organization signed"
    six = renewed(five, A, B, C)
    with pytest.raises(BundleInvalid, match="history is full"):
        renewed(six, A, B, C)
    assert verified(renewed(sign_bundle(six, D), A, B, C)).epoch == 7


def test_a_file_with_more_epochs_than_64_is_refused() -> None:
    outer = json.loads(with_root(first("a", "b", "c"), D, A, B, C, D))
    read_bundle(canonical_json({**outer, "history": outer["history"] * 63}))
    with pytest.raises(BundleInvalid, match="at most 63 items"):
        read_bundle(canonical_json({**outer, "history": outer["history"] * 64}))


CHAIN = with_root(first("a", "b", "c"), D, A, B, C, D)


@given(st.integers(0, len(CHAIN) - 1), st.integers(1, 255))
def test_one_changed_byte_of_a_history_is_refused(where: int, flip: int) -> None:
    raw = bytearray(CHAIN)
    raw[where] ^= flip
    with pytest.raises(BundleInvalid):
        verified(bytes(raw))
