"""The trust bundle: nobody is let in, and nobody's roots change, without the signature of every member."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.bundle import BUNDLE_PAYLOAD_TYPE, remove_member
from comity.digest import canonical_json, sha256
from comity.errors import BundleInvalid, ChainInvalid
from comity.statement import Dsse, Signer
from comity.trust import (
    OrganizationCa,
    add_member,
    load_bundle,
    new_bundle,
    read_bundle,
    sign_bundle,
    unsigned_members,
    verify_bundle,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
END_MS = NOW_MS + 1_000_000


@dataclass(frozen=True)
class Authorities:
    mercy: OrganizationCa
    hope: OrganizationCa
    third: OrganizationCa

    def signed(self) -> bytes:
        raw = new_bundle(
            "tumours", [self.mercy.certificate_pem, self.hope.certificate_pem], issued_ms=NOW_MS, expires_ms=END_MS
        )
        return sign_bundle(sign_bundle(raw, self.mercy), self.hope)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    directory = tmp_path_factory.mktemp("organizations")
    return Authorities(
        *(OrganizationCa.create(f"{name}.example", directory / name, NOW) for name in ("mercy", "hope", "third"))
    )


def changed(raw: bytes, change: Callable[[dict[str, Any]], object], *signers: OrganizationCa) -> bytes:
    """The bundle with another payload, signed anew by `signers`; with none, the old signatures are kept."""
    outer = json.loads(raw)
    payload = json.loads(b64decode(outer["payload"]))
    change(payload)
    data = canonical_json(payload)
    if not signers:
        return canonical_json(outer | {"payload": b64encode(data).decode()})
    envelope = Dsse(BUNDLE_PAYLOAD_TYPE, data)
    for signer in signers:
        envelope = envelope.signed_by(Signer(signer.certificate.fingerprint, signer.sign))
    return envelope.encode()


def test_a_bundle_that_all_have_signed(ca: Authorities) -> None:
    raw = ca.signed()
    bundle = verify_bundle(raw, now_ms=NOW_MS, own_ca=ca.mercy.certificate.der, minimum_epoch=1)
    assert (bundle.consortium, bundle.epoch) == ("tumours", 1)
    assert (bundle.issued_ms, bundle.expires_ms) == (NOW_MS, END_MS)
    assert dict(bundle.members) == {
        "hope.example": (ca.hope.certificate.der,),
        "mercy.example": (ca.mercy.certificate.der,),
    }
    assert bundle.raw == raw
    assert bundle.digest == sha256(b64decode(json.loads(raw)["payload"]))


def test_signatures_come_one_by_one(ca: Authorities) -> None:
    raw = new_bundle(
        "tumours", [ca.mercy.certificate_pem, ca.hope.certificate_pem], issued_ms=NOW_MS, expires_ms=END_MS
    )
    assert unsigned_members(raw) == ("hope.example", "mercy.example")
    with pytest.raises(BundleInvalid, match=r"not signed by hope\.example, mercy\.example"):
        verify_bundle(raw, now_ms=NOW_MS, own_ca=None)
    raw = sign_bundle(raw, ca.mercy)
    assert unsigned_members(raw) == ("hope.example",)
    with pytest.raises(BundleInvalid, match=r"not signed by hope\.example"):
        verify_bundle(raw, now_ms=NOW_MS, own_ca=ca.mercy.certificate.der)
    again = sign_bundle(raw, ca.mercy)
    assert unsigned_members(again) == ("hope.example",), "a second signature replaces the first"
    verify_bundle(sign_bundle(again, ca.hope), now_ms=NOW_MS, own_ca=None)


def test_a_new_member_makes_a_new_epoch_that_all_sign(ca: Authorities) -> None:
    raw = add_member(ca.signed(), ca.third.certificate_pem, issued_ms=NOW_MS + 5, expires_ms=END_MS + 5)
    bundle = read_bundle(raw)
    assert (bundle.epoch, bundle.issued_ms, bundle.expires_ms) == (2, NOW_MS + 5, END_MS + 5)
    assert unsigned_members(raw) == ("hope.example", "mercy.example", "third.example")
    raw = sign_bundle(sign_bundle(raw, ca.third), ca.mercy)
    with pytest.raises(BundleInvalid, match=r"epoch 2 is not signed by hope\.example"):
        verify_bundle(raw, now_ms=NOW_MS, own_ca=None)
    assert verify_bundle(sign_bundle(raw, ca.hope), now_ms=NOW_MS, own_ca=None).epoch == 2
    with pytest.raises(BundleInvalid, match="already"):
        add_member(raw, ca.third.certificate_pem, issued_ms=NOW_MS, expires_ms=END_MS)


def test_a_member_leaves(ca: Authorities) -> None:
    raw = remove_member(ca.signed(), "hope.example", issued_ms=NOW_MS, expires_ms=END_MS)
    assert unsigned_members(raw) == ("mercy.example",)
    raw = sign_bundle(raw, ca.mercy)
    with pytest.raises(BundleInvalid, match=r"not signed by hope\.example; 1 of 2 votes"):
        verify_bundle(raw, now_ms=NOW_MS, own_ca=None)  # of two, none can throw the other out
    assert verify_bundle(sign_bundle(raw, ca.hope), now_ms=NOW_MS, own_ca=None).epoch == 2
    with pytest.raises(BundleInvalid, match="no member"):
        remove_member(raw, "hope.example", issued_ms=NOW_MS, expires_ms=END_MS)


@pytest.mark.invariant("S3")
def test_who_is_left_out_refuses(ca: Authorities) -> None:
    with pytest.raises(BundleInvalid, match="own CA is not in it"):
        verify_bundle(ca.signed(), now_ms=NOW_MS, own_ca=ca.third.certificate.der)
    with pytest.raises(BundleInvalid, match="do not sign"):
        sign_bundle(ca.signed(), ca.third)


def test_another_ca_of_the_same_name_does_not_sign(ca: Authorities, tmp_path: Path) -> None:
    impostor = OrganizationCa.create("mercy.example", tmp_path, NOW)
    with pytest.raises(BundleInvalid, match="do not sign"):
        sign_bundle(ca.signed(), impostor)
    with pytest.raises(BundleInvalid, match="own CA is not in it"):
        verify_bundle(ca.signed(), now_ms=NOW_MS, own_ca=impostor.certificate.der)


@pytest.mark.invariant("S3")
def test_times_and_epochs(ca: Authorities) -> None:
    raw = ca.signed()
    verify_bundle(raw, now_ms=END_MS - 1, own_ca=None)
    with pytest.raises(BundleInvalid, match="expired"):
        verify_bundle(raw, now_ms=END_MS, own_ca=None)
    verify_bundle(raw, now_ms=NOW_MS - 60_000, own_ca=None)
    with pytest.raises(BundleInvalid, match="future"):
        verify_bundle(raw, now_ms=NOW_MS - 60_001, own_ca=None)
    with pytest.raises(BundleInvalid, match="older than epoch 2"):
        verify_bundle(raw, now_ms=NOW_MS, own_ca=None, minimum_epoch=2)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.update(epoch=2),
        lambda p: p.update(expires_ms=END_MS + 1),
        lambda p: p.update(consortium="other"),
        lambda p: p["members"].pop("hope.example"),
        lambda p: p["members"]["mercy.example"].append(p["members"]["mercy.example"][0]),
    ],
)
def test_a_changed_payload_is_refused(ca: Authorities, change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(BundleInvalid):
        verify_bundle(changed(ca.signed(), change), now_ms=NOW_MS, own_ca=None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p.update(version=3), "version is not 1 or 2"),
        (lambda p: p.update(epoch=0), "an epoch from 1"),
        (lambda p: p.update(epoch=True), "'epoch'"),
        (lambda p: p.update(epoch=1.5), "'epoch'"),
        (lambda p: p.pop("epoch"), "no 'epoch'"),
        (lambda p: p.update(consortium=""), "consortium's name"),
        (lambda p: p.update(consortium=7), "'consortium'"),
        (lambda p: p.update(expires_ms=p["issued_ms"]), "before it was issued"),
        (lambda p: p.update(members={}), "members"),
        (lambda p: p.update(members=[]), "no JSON object"),
        (lambda p: p.update(surprise=1), "unknown field 'surprise'"),
        (lambda p: p["members"].update({"hope.example": []}), "different certificates"),
        (lambda p: p["members"].update({"hope.example": ["%%"]}), "malformed"),
        (lambda p: p["members"].update({"hope.example": ["AAAA"]}), "no CA certificate"),
        (lambda p: p["members"].update({"hope.example": p["members"]["mercy.example"]}), "names another"),
        (lambda p: p["members"].update({"evil.example": p["members"]["mercy.example"]}), "names another"),
        (lambda p: p["members"].update({"hope.example": p["members"]["hope.example"] * 2}), "different certificates"),
    ],
)
def test_a_malformed_payload_is_refused_although_all_have_signed(
    ca: Authorities, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    with pytest.raises(BundleInvalid, match=reason):
        verify_bundle(changed(ca.signed(), change, ca.mercy, ca.hope), now_ms=NOW_MS, own_ca=None)


def test_a_signature_counts_for_its_own_ca_only(ca: Authorities) -> None:
    """Mercy signs twice, the second time under Hope's name; and a stranger's signature condemns the whole."""
    unsigned = new_bundle(
        "tumours", [ca.mercy.certificate_pem, ca.hope.certificate_pem], issued_ms=NOW_MS, expires_ms=END_MS
    )
    envelope = Dsse.decode(unsigned, BUNDLE_PAYLOAD_TYPE)
    mercy = Signer(ca.mercy.certificate.fingerprint, ca.mercy.sign)
    hope = Signer(ca.hope.certificate.fingerprint, ca.hope.sign)
    whole = envelope.signed_by(mercy).signed_by(hope)
    verify_bundle(whole.encode(), now_ms=NOW_MS, own_ca=None)
    for wrong in (
        envelope.signed_by(mercy).signed_by(replace(hope, sign=ca.mercy.sign)),
        whole.signed_by(Signer(ca.third.certificate.fingerprint, ca.third.sign)),
        whole.signed_by(mercy),
    ):
        with pytest.raises(BundleInvalid, match=r"does not verify|by no member's CA"):
            verify_bundle(wrong.encode(), now_ms=NOW_MS, own_ca=None)


def test_what_cannot_be_a_bundle(ca: Authorities) -> None:
    with pytest.raises(BundleInvalid, match="members"):
        new_bundle("tumours", [], issued_ms=NOW_MS, expires_ms=END_MS)
    with pytest.raises(BundleInvalid, match="before it was issued"):
        new_bundle("tumours", [ca.mercy.certificate_pem], issued_ms=NOW_MS, expires_ms=NOW_MS)
    with pytest.raises(BundleInvalid, match="can be made"):
        new_bundle("tumours", [ca.mercy.certificate_pem], issued_ms=NOW_MS, expires_ms=2**60)
    with pytest.raises(ChainInvalid, match="no PEM certificates"):
        new_bundle("tumours", [b"garbage"], issued_ms=NOW_MS, expires_ms=END_MS)


@pytest.mark.invariant("S3")
def test_a_file_is_named_in_the_error(ca: Authorities, tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    with pytest.raises(BundleInvalid, match=r"bundle\.json: cannot be read"):
        load_bundle(path, now_ms=NOW_MS, own_ca=None)
    path.write_bytes(b"{}")
    with pytest.raises(BundleInvalid, match=r"bundle\.json: malformed trust bundle"):
        load_bundle(path, now_ms=NOW_MS, own_ca=None)
    path.write_bytes(b" " * 5_000_000)
    with pytest.raises(BundleInvalid, match=r"bundle\.json: .*limit"):
        load_bundle(path, now_ms=NOW_MS, own_ca=None)
    raw = ca.signed()
    path.write_bytes(raw)
    with pytest.raises(BundleInvalid, match=r"bundle\.json: epoch 1 has expired"):
        load_bundle(path, now_ms=END_MS, own_ca=None)
    assert load_bundle(path, now_ms=NOW_MS, own_ca=ca.hope.certificate.der).raw == raw


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_one_changed_byte_is_refused(ca: Authorities, where: int, flip: int) -> None:
    raw = bytearray(ca.signed())
    raw[where % len(raw)] ^= flip
    with pytest.raises(BundleInvalid):
        verify_bundle(bytes(raw), now_ms=NOW_MS, own_ca=None)


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_noise_is_no_bundle(noise: bytes) -> None:
    with pytest.raises(BundleInvalid):
        verify_bundle(noise, now_ms=NOW_MS, own_ca=None)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"payloadType":' + "[" * 100_000])
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(BundleInvalid, match="nested too deep"):
        verify_bundle(text.encode(), now_ms=NOW_MS, own_ca=None)
