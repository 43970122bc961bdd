"""The identity of an organization over time, at the command line: certificates, roots, members and their dates."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from comity.bundle import read_bundle
from comity.ca import read_certificates
from comity.provenance import make_provenance
from comity.trust import NodeIdentity, TrustStore
from comity_node.cli import app
from kit.consortium import NOW_MS, Consortium
from kit.documents import agree, make_agreement, make_certified

DAY_MS = 86_400_000
NAMES = ("mercy", "stlukes", "hope")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

#: Runs the command line and returns what it said as JSON; with `fails`, the one line of the error.
Run = Callable[..., Any]


@pytest.fixture
def run(cli: Callable[..., tuple[int, str, str]]) -> Run:
    def call(home: Path, *arguments: object, fails: bool = False) -> Any:
        code, out, err = cli("--home", home, "--json", *arguments)
        if fails:
            assert code == 1, out
            return json.loads(out)["error"]["message"]
        assert (code, err) == (0, ""), out + err
        return json.loads(out)

    return call


@pytest.fixture
def homes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Three organizations with a node each, in one consortium, at the time that the kit's documents go by."""
    later(monkeypatch, 0)
    made = {name: tmp_path / name for name in NAMES}
    bundle = tmp_path / "bundle.json"
    for name, home in made.items():
        run(home, "init", "--organization", f"{name}.example")
        run(home, "cert", "renew")
    certificates = [part for home in made.values() for part in ("--ca", home / "ca/ca.pem")]
    run(made["mercy"], "consortium", "create", bundle, "--name", "lab", *certificates)
    adopt(run, made, bundle, made)
    return made


def adopt(run: Run, homes: dict[str, Path], bundle: Path, signers: dict[str, Path]) -> None:
    for home in signers.values():
        run(home, "consortium", "sign", bundle)
    for home in homes.values():
        run(home, "consortium", "install", bundle)


def node(home: Path) -> NodeIdentity:
    return NodeIdentity.load(home / "keys/node.key", home / "keys/node.chain.pem")


def lab(homes: dict[str, Path]) -> Consortium:
    raw = (homes["mercy"] / "consortium.json").read_bytes()
    nodes = {f"{name}.example": node(homes[name]) for name in sorted(homes)}
    return Consortium(TrustStore(read_bundle(raw)), raw, nodes)


def provenance(homes: dict[str, Path], path: Path) -> Path:
    """A record of mercy that stlukes holds, with the certificates that the nodes have now."""
    consortium = lab(homes)
    agreed = agree(consortium)
    scores = {"hope.example": 9000, "stlukes.example": 8000}
    certified = make_certified(consortium, agreed, author="mercy.example", holder="stlukes.example", scores=scores)
    path.write_bytes(make_provenance(consortium.nodes["stlukes.example"], certified, make_agreement(consortium)))
    return path


def later(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    monkeypatch.setattr(app, "now_ms", lambda: NOW_MS + round(days * DAY_MS))


@pytest.mark.invariant("S4")
def test_a_renewal_keeps_the_key_and_changes_the_dates(
    run: Run, homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = homes["mercy"]
    key, before = (home / "keys/node.key").read_bytes(), run(home, "cert", "show")
    later(monkeypatch, 80)
    after = run(home, "cert", "renew", "--days", "30")
    assert (after["peer_id"], after["node"]) == (before["peer_id"], before["node"])
    assert after["valid_until"] > before["valid_until"]
    assert (home / "keys/node.key").read_bytes() == key
    assert run(home, "cert", "show")["days_left"] in (29, 30)


def test_without_the_ca_a_renewal_is_a_request(run: Run, homes: dict[str, Path], tmp_path: Path) -> None:
    home = homes["mercy"]
    before = (home / "keys/node.chain.pem").read_bytes()
    vault = tmp_path / "vault"
    (home / "ca").rename(vault)
    request = run(home, "cert", "renew")["request"]
    assert (home / "keys/node.chain.pem").read_bytes() == before
    chain = run(home, "cert", "approve", request, "--ca", vault)["chain"]
    run(home, "cert", "install", chain)
    assert (home / "keys/node.chain.pem").read_bytes() != before


@pytest.mark.invariant("S3")
def test_a_key_that_was_revoked_is_not_certified_again_unawares(
    run: Run, homes: dict[str, Path], tmp_path: Path
) -> None:
    home = homes["mercy"]
    run(home, "cert", "revoke", home / "keys/node.chain.pem", "--reason", "stolen", "--out", tmp_path / "r.json")
    before = (home / "keys/node.chain.pem").read_bytes()
    assert "was revoked" in run(home, "cert", "renew", fails=True)
    request = run(home, "cert", "request")["request"]
    assert "was revoked" in run(home, "cert", "approve", request, fails=True)
    assert (home / "keys/node.chain.pem").read_bytes() == before
    run(home, "cert", "root", tmp_path / "next")
    assert "was revoked" in run(home, "cert", "approve", request, "--ca", tmp_path / "next", fails=True)
    run(home, "cert", "renew", "--revoked")
    run(homes["hope"], "cert", "renew")


@pytest.mark.invariant("S9")
def test_an_auditor_who_has_a_revocation_takes_nothing_that_was_signed_after_it(
    run: Run, homes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, bundle, home = provenance(homes, tmp_path / "r.json"), tmp_path / "bundle.json", homes["stlukes"]
    verify = ("records", "verify", record, "--bundle", bundle)
    for day, name in ((0, "before"), (1, "after")):
        later(monkeypatch, day)
        revoke = ("cert", "revoke", home / "keys/node.chain.pem", "--reason", "lost", "--out", tmp_path / name)
        run(home, *revoke)
    assert run(home, *verify, "--revocation", tmp_path / "after")[0]["valid"]
    assert "revoked" in run(home, *verify, "--revocation", tmp_path / "before", fails=True)
    both = ("--revocation", tmp_path / "after", "--revocation", tmp_path / "before")
    assert "revoked" in run(home, *verify, *both, fails=True)
    assert "malformed revocation" in run(home, *verify, "--revocation", bundle, fails=True)


@needs_openssl
def test_a_request_is_an_ordinary_one_that_any_ca_signs(
    run: Run, homes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = homes["mercy"]
    request = Path(run(home, "cert", "request", "--out", tmp_path / "node.csr.pem")["request"])
    shown = openssl("req", "-in", request, "-verify", "-noout", "-text")
    assert "O=mercy.example,CN=n1" in shown.replace(" ", "")
    assert "URI:spiffe://mercy.example/node/n1" in shown
    assert "ED25519" in shown
    profile = tmp_path / "leaf.cnf"
    profile.write_text(
        "basicConstraints = critical, CA:FALSE\n"
        "keyUsage = critical, digitalSignature\n"
        "extendedKeyUsage = clientAuth, serverAuth\n"
        "authorityKeyIdentifier = keyid\n"
        "subjectAltName = URI:spiffe://mercy.example/node/n1\n"
    )
    leaf = tmp_path / "leaf.pem"
    keys = ("-CA", home / "ca/ca.pem", "-CAkey", home / "ca/ca.key")
    openssl("x509", "-req", "-in", request, *keys, "-days", "45", "-extfile", profile, "-out", leaf)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(leaf.read_bytes() + (home / "ca/ca.pem").read_bytes())
    at_ms = time.time_ns() // 1_000_000 + 1000  # OpenSSL goes by the machine's clock
    monkeypatch.setattr(app, "now_ms", lambda: at_ms)
    assert run(home, "cert", "install", chain)["days_left"] == 44
    lab(homes).trust.verify_chain(node(home).chain, at_ms)


def openssl(*arguments: object) -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout + done.stderr


@pytest.mark.invariant("S9")
def test_a_root_is_changed_in_two_epochs_and_what_was_signed_before_stays_proven(
    run: Run, homes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mercy, bundle = homes["mercy"], tmp_path / "bundle.json"
    old = provenance(homes, tmp_path / "old.json")
    vault = tmp_path / "next-ca"
    made = run(mercy, "cert", "root", vault)
    fails = run(mercy, "cert", "renew", "--ca", vault, fails=True)
    assert "is there an epoch to install first?" in fails

    later(monkeypatch, 1)
    proposed = run(mercy, "consortium", "rotate", bundle, vault / "ca.pem")
    assert (proposed["epoch"], proposed["must_sign"]) == (2, ["mercy.example"])
    run(mercy, "consortium", "sign", bundle, "--ca", vault)
    assert run(mercy, "consortium", "show", bundle)["must_sign"] == ["mercy.example"], "the old root has to sign, too"
    adopt(run, homes, bundle, homes)
    run(mercy, "cert", "renew", "--ca", vault)
    assert node(mercy).chain[1] == read_certificates((vault / "ca.pem").read_bytes())[0]

    later(monkeypatch, 2)
    retiring = read_bundle(bundle.read_bytes()).roots["mercy.example"][0].fingerprint
    assert retiring != made["fingerprint"]
    run(mercy, "consortium", "retire", bundle, retiring[:16])
    run(mercy, "consortium", "sign", bundle, "--ca", vault)
    adopt(run, homes, bundle, {name: homes[name] for name in ("stlukes", "hope")})
    shown = run(mercy, "consortium", "show")
    assert (shown["epoch"], shown["members"]["mercy.example"]["roots"]) == (3, [made["fingerprint"]])

    later(monkeypatch, 30)
    assert run(mercy, "records", "verify", old, "--bundle", bundle)[0]["valid"]
    forgotten = tmp_path / "alone.json"
    forgotten.write_bytes(read_bundle(bundle.read_bytes()).envelope.encode())
    assert "no root of mercy.example" in run(mercy, "records", "verify", old, "--bundle", forgotten, fails=True)
    stale = issued_by_the_old_ca(run, mercy, tmp_path)
    assert "no root of mercy.example" in run(mercy, "cert", "install", stale, fails=True)


def test_nobody_comes_in_beside_a_members_next_root(run: Run, homes: dict[str, Path], tmp_path: Path) -> None:
    bundle, both = tmp_path / "bundle.json", tmp_path / "both.pem"
    for name, organization in (("next", "mercy.example"), ("guest", "guest.example")):
        run(homes["mercy"], "cert", "root", tmp_path / name, "--organization", organization)
    both.write_bytes(b"".join((tmp_path / name / "ca.pem").read_bytes() for name in ("next", "guest")))
    before = bundle.read_bytes()
    assert "guest.example is no member" in run(homes["hope"], "consortium", "rotate", bundle, both, fails=True)
    assert bundle.read_bytes() == before


def test_an_export_whose_proof_is_lost_says_so(run: Run, homes: dict[str, Path], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"fields": {}}\n' * 2)
    said = run(homes["hope"], "records", "verify", rows, "--bundle", tmp_path / "bundle.json", fails=True)
    assert "rows.jsonl.provenance.jsonl" in said


@pytest.mark.parametrize("spoilt", ["a proposal", "damaged"])
def test_a_bundle_is_installed_over_what_no_node_can_run_with(
    run: Run, homes: dict[str, Path], tmp_path: Path, spoilt: str
) -> None:
    """Somebody proposed the next epoch in the node's own file, or the disk lost half of it."""
    home, bundle = homes["hope"], tmp_path / "bundle.json"
    old, target = bundle.read_bytes(), home / "consortium.json"
    run(homes["mercy"], "consortium", "renew", bundle, "--days", "300")
    for name in NAMES:
        run(homes[name], "consortium", "sign", bundle)
    if spoilt == "damaged":
        target.write_bytes(old[:1000])
    else:
        run(home, "consortium", "renew", target)
        (tmp_path / "old.json").write_bytes(old)
        assert "another bundle" not in run(home, "consortium", "install", tmp_path / "old.json")
        run(home, "consortium", "renew", target)
    assert run(home, "consortium", "install", bundle)["epoch"] == 2
    (tmp_path / "other.json").write_bytes(old)
    assert "older than epoch 2" in run(home, "consortium", "install", tmp_path / "other.json", fails=True)


def test_a_certificate_with_names_that_are_none_is_one_line(run: Run, homes: dict[str, Path], tmp_path: Path) -> None:
    key, names = Ed25519PrivateKey.generate(), x509.ObjectIdentifier("2.5.29.17")
    subject, now = x509.Name([]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.UnrecognizedExtension(names, bytes.fromhex("3003a30100")), critical=False)
        .sign(key, None)
    )
    path = tmp_path / "odd.pem"
    path.write_bytes(made.public_bytes(Encoding.PEM))
    for command in (("show", path), ("install", path), ("revoke", path, "--reason", "x")):
        assert "no node's" in run(homes["mercy"], "cert", *command, fails=True)


def issued_by_the_old_ca(run: Run, home: Path, directory: Path) -> Path:
    out = directory / "stale.pem"
    request = run(home, "cert", "request", "--out", directory / "again.csr.pem")["request"]
    run(home, "cert", "approve", request, "--ca", home / "ca", "--out", out)
    return out


def test_a_bundle_gets_new_dates_from_k_members_and_a_member_that_is_away_follows(
    run: Run, homes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.json"
    shown = run(homes["hope"], "consortium", "renew", bundle, "--threshold", "2")
    assert (shown["epoch"], shown["votes_needed"], shown["complete"]) == (2, 3, False)
    for name in NAMES:
        run(homes[name], "consortium", "sign", bundle)
    later(monkeypatch, 200)
    run(homes["hope"], "consortium", "renew", bundle)
    for name in ("mercy", "hope"):
        shown = run(homes[name], "consortium", "sign", bundle)
    assert (shown["epoch"], shown["complete"], shown["members"]["stlukes.example"]["signed"]) == (3, True, False)
    assert run(homes["stlukes"], "consortium", "install", bundle)["epoch"] == 3
    stale = homes["mercy"] / "consortium.json"
    assert "older than epoch 3" in run(homes["stlukes"], "consortium", "install", stale, fails=True)


@pytest.mark.parametrize(
    ("days", "level", "says"),
    [
        (10, "ok", ""),
        (70, "note", "(notice)"),
        (80, "warning", "(warning)"),
        (84, "warning", "(urgent)"),
        (89.5, "warning", "(critical)"),
        (91, "error", "expired on"),
    ],
)
def test_doctor_warns_weeks_ahead(
    cli: Callable[..., tuple[int, str, str]],
    homes: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    days: float,
    level: str,
    says: str,
) -> None:
    later(monkeypatch, days)
    findings = json.loads(cli("--home", homes["mercy"], "--json", "doctor")[1])["findings"]
    [found] = [one for one in findings if one["check"] == "certificate"]
    assert found["level"] == level
    assert says in found["detail"]
    assert ("comity cert renew" in found["detail"]) == (level != "ok")
