"""Revocations: who can take back which certificate, and that the list of them only grows."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.bundle import Bundle, new_bundle, sign_bundle, verify_bundle
from comity.ca import OrganizationCa, certificate_request, read_certificates
from comity.digest import canonical_json, hex_digest, sha256
from comity.errors import ChainInvalid, RevocationInvalid
from comity.ids import SpiffeId
from comity.revocation import (
    MAX_CHANGES,
    MAX_REVOCATION,
    REVOCATION_PAYLOAD_TYPE,
    Revocation,
    RevocationList,
    sign_revocation,
    verify_revocation,
)
from comity.signing import PrivateKey
from comity.statement import Dsse, Signer
from comity.trust import NodeIdentity, TrustStore
from kit.consortium import NOW_MS

HOUR_MS = 3_600_000


@dataclass(frozen=True)
class World:
    cas: Mapping[str, OrganizationCa]
    bundle: Bundle

    def leaf(self, organization: str, seed: int = 1) -> NodeIdentity:
        key = PrivateKey(bytes([seed]) * 32)
        request = certificate_request(key, SpiffeId(organization, "node", f"n{seed}"))
        pem = self.cas[organization].issue(request, now=datetime.fromtimestamp(NOW_MS / 1000, UTC))
        return NodeIdentity.of(key, read_certificates(pem))

    def verify(self, raw: bytes, now_ms: int = NOW_MS) -> Revocation:
        return verify_revocation(raw, self.bundle, now_ms=now_ms)


@cache
def world() -> World:
    now = datetime.fromtimestamp(NOW_MS / 1000, UTC)
    with tempfile.TemporaryDirectory() as directory:
        cas = {
            name: OrganizationCa.create(name, Path(directory) / name, now)
            for name in ("hope.example", "mercy.example", "stranger.example")
        }
    members = [cas["hope.example"], cas["mercy.example"]]
    raw = new_bundle("lab", [ca.certificate_pem for ca in members], issued_ms=NOW_MS, expires_ms=NOW_MS + HOUR_MS)
    for ca in members:
        raw = sign_bundle(raw, ca)
    return World(cas, verify_bundle(raw, now_ms=NOW_MS, own_ca=None))


MERCY = world().leaf("mercy.example")
GOOD = sign_revocation(world().cas["mercy.example"], MERCY.chain[0], issued_ms=NOW_MS, reason="the laptop was stolen")


def changed(signer: str = "mercy.example", **changes: Any) -> bytes:
    """The payload with some fields changed, signed anew."""
    fields = json.loads(Dsse.decode(GOOD, REVOCATION_PAYLOAD_TYPE).payload) | changes
    ca = world().cas[signer]
    payload = canonical_json({key: value for key, value in fields.items() if value is not None})
    return Dsse(REVOCATION_PAYLOAD_TYPE, payload).signed_by(Signer(ca.certificate.fingerprint, ca.sign)).encode()


def test_a_revocation_says_whose_which_and_when() -> None:
    revocation = world().verify(GOOD)
    assert revocation == Revocation(
        "mercy.example", sha256(MERCY.chain[0]), NOW_MS, "the laptop was stolen", GOOD, MERCY.chain[0]
    )  # fmt: skip
    assert world().verify(changed()).fingerprint == revocation.fingerprint


def test_a_trust_store_refuses_the_certificate_from_then_on() -> None:
    trust = TrustStore(world().bundle)
    trust.verify_chain(MERCY.chain, NOW_MS + 1)
    revocation = world().verify(GOOD)
    trust.revoke(revocation.certificate, revocation.issued_ms)
    with pytest.raises(ChainInvalid, match="revoked"):
        trust.verify_chain(MERCY.chain, NOW_MS + 1)


def test_an_organization_cannot_revoke_anothers_node() -> None:
    hope = world().leaf("hope.example", 2)
    with pytest.raises(RevocationInvalid, match="somebody else"):
        sign_revocation(world().cas["mercy.example"], hope.chain[0], issued_ms=NOW_MS, reason="")
    forged = changed(
        certificate=base64.b64encode(hope.chain[0]).decode(), fingerprint=hex_digest(hope.chain[0])
    )  # fmt: skip
    with pytest.raises(RevocationInvalid, match="somebody else"):
        world().verify(forged)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (changed("hope.example"), "by no CA"),
        (changed("stranger.example", organization="stranger.example"), "no member"),
        (changed(organization="hope.example"), "by no CA"),
        (changed(version=2), "version"),
        (changed(fingerprint="0" * 64), "fingerprint"),
        (changed(fingerprint=None), "fingerprint"),
        (changed(certificate="????"), "malformed"),
        (changed(certificate=base64.b64encode(b"x").decode(), fingerprint=hex_digest(b"x")), "no certificate"),
        (changed(issued_ms=-1), "issued_ms"),
        (changed(issued_ms=1.5), "issued_ms"),
        (changed(reason="x" * 257), "reason"),
        (changed(reason="a\nb"), "printable"),
        (changed(more=1), "unknown"),
        (GOOD.replace(b'"sig":"', b'"sig":"AAAA'), "verify"),
        (GOOD + b" ", "8785"),
        (GOOD.replace(b",", b", "), "8785"),
        (b"{}", "malformed"),
        (b"", "malformed"),
        (b" " * (MAX_REVOCATION + 1), "limit"),
        (Dsse("text/plain", b"x").encode(), "type"),
        (Dsse(REVOCATION_PAYLOAD_TYPE, Dsse.decode(GOOD, REVOCATION_PAYLOAD_TYPE).payload).encode(), "one signature"),
    ],
)
def test_whatever_is_wrong_with_it_refuses_it(raw: bytes, why: str) -> None:
    with pytest.raises(RevocationInvalid, match=why):
        world().verify(raw)


def test_a_root_is_not_revoked() -> None:
    ca = world().cas["mercy.example"]
    with pytest.raises(RevocationInvalid, match="bundle"):
        sign_revocation(ca, ca.certificate.der, issued_ms=NOW_MS, reason="")


def test_it_is_not_from_the_future_by_more_than_clocks_differ() -> None:
    world().verify(GOOD, NOW_MS - 60_000)
    with pytest.raises(RevocationInvalid, match="future"):
        world().verify(GOOD, NOW_MS - 60_001)


@pytest.mark.parametrize(
    ("issued_ms", "reason"), [(-1, ""), (2**60, ""), (1_750_000_000_000, "x" * 257), (1_750_000_000_000, "\x1b[2J")]
)
def test_what_cannot_be_read_is_not_made(issued_ms: int, reason: str) -> None:
    with pytest.raises(RevocationInvalid):
        sign_revocation(world().cas["mercy.example"], MERCY.chain[0], issued_ms=issued_ms, reason=reason)


def revocation(fingerprint: int, issued_ms: int, organization: str = "mercy.example") -> Revocation:
    return Revocation(organization, bytes([fingerprint]) * 32, issued_ms, "", b"%d-%d" % (fingerprint, issued_ms), b"")


@given(st.lists(st.builds(revocation, st.integers(0, 4), st.integers(0, 5))), st.randoms(use_true_random=False))
def test_the_order_in_which_revocations_come_does_not_matter(given_: list[Revocation], chance: Any) -> None:
    shuffled = list(given_)
    chance.shuffle(shuffled)
    first, second = RevocationList(), RevocationList()
    for one in given_:
        before = {each.fingerprint: each.issued_ms for each in first}
        first.add(one)
        after = {each.fingerprint: each.issued_ms for each in first}
        assert all(after[key] <= issued_ms for key, issued_ms in before.items()), "never taken back"
    for one in shuffled:
        second.add(one)
    assert list(first) == list(second)
    assert all(not first.add(one) for one in given_)


@pytest.mark.invariant("S7")
def test_an_organization_has_room_for_so_many_and_takes_nobody_elses() -> None:
    revocations = RevocationList(most=3)
    for number in range(3):
        assert revocations.add(revocation(number, 5))
    with pytest.raises(RevocationInvalid, match="3 certificates"):
        revocations.add(revocation(9, 5))
    assert revocations.add(revocation(1, 4))
    assert revocations.add(revocation(9, 5, "hope.example"))
    assert len(revocations) == 4
    found = revocations.find(bytes([1]) * 32)
    assert found is not None
    assert found.issued_ms == 4


@pytest.mark.invariant("S7")
def test_a_ca_cannot_make_everybody_pass_on_one_revocation_for_ever() -> None:
    """Each one that begins a millisecond earlier is new, is forwarded by every member, and written to its disk."""
    revocations = RevocationList()
    for issued_ms in range(1000, 999 - MAX_CHANGES, -1):
        assert revocations.add(revocation(1, issued_ms))
    for issued_ms in (500, 100, 1):
        with pytest.raises(RevocationInvalid, match="put back"):
            revocations.add(revocation(1, issued_ms))
    assert len(revocations) == 1
    assert revocations.add(revocation(2, 5))  # another certificate's
