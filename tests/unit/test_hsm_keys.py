"""Keys that are held elsewhere: the CA and the node sign through their holder, and nothing else is to be had of it."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from comity.bundle import new_bundle, sign_bundle, verify_bundle
from comity.ca import CA_KEY_FILE, OrganizationCa, certificate_request, read_certificates
from comity.errors import KeyFileInvalid
from comity.hsm import KeyUri, open_key
from comity.ids import SpiffeId
from comity.keyholder import HeldEd25519, HeldP256
from comity.signing import PrivateKey, verify
from comity.trust import NodeIdentity, TrustStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
GOOD = "pkcs11:token=comity;object=ca?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/etc/comity/pin"


class Ed25519Elsewhere:
    """Stands for a holder: the key is in here, and only signatures come out."""

    def __init__(self) -> None:
        self._key = PrivateKey.generate()
        self.asked: list[bytes] = []

    @property
    def public_key(self) -> bytes:
        return self._key.public_key

    def sign(self, message: bytes) -> bytes:
        self.asked.append(message)
        return self._key.sign(message)


class P256Elsewhere:
    """The same for a CA's key."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.asked = 0

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def sign(self, message: bytes) -> bytes:
        self.asked += 1
        return self.key.sign(message, ec.ECDSA(hashes.SHA256()))


def whole_walk(ca: OrganizationCa, key: PrivateKey) -> None:
    """A root that signs a bundle and a node's certificate, and a node that is verified by them."""
    leaf = ca.issue(certificate_request(key, SpiffeId("mercy.example", "node", "n1")), now=NOW)
    identity = NodeIdentity.of(key, read_certificates(leaf))
    raw = new_bundle("lab", [ca.certificate_pem], issued_ms=NOW_MS, expires_ms=NOW_MS + 1000)
    bundle = verify_bundle(sign_bundle(raw, ca), now_ms=NOW_MS, own_ca=ca.certificate.der)
    assert TrustStore(bundle).verify_chain(identity.chain, NOW_MS).public_key == key.public_key
    verify(key.public_key, key.sign(b"a message"), b"a message")


@pytest.mark.invariant("S4")
def test_a_node_and_a_ca_sign_through_their_holders(tmp_path: Path) -> None:
    node, root = Ed25519Elsewhere(), P256Elsewhere()
    made = OrganizationCa.create("mercy.example", tmp_path, NOW)
    holder = P256Elsewhere()
    ca_key = HeldP256(holder)
    with pytest.raises(KeyFileInvalid, match="do not belong together"):
        OrganizationCa(ca_key, made.certificate)
    ca = OrganizationCa.self_signed("mercy.example", HeldP256(root), NOW)
    whole_walk(ca, PrivateKey.held_by(node))
    assert root.asked == 3, "its own certificate, the node's, the bundle"
    assert len(node.asked) == 2
    assert node.asked[-1] == b"a message"


@pytest.mark.invariant("S4")
def test_a_key_that_is_held_elsewhere_cannot_be_had(tmp_path: Path) -> None:
    held = PrivateKey.held_by(Ed25519Elsewhere())
    adapter, root = held.to_cryptography(), HeldP256(P256Elsewhere())
    attempts: list[Callable[[], object]] = [
        lambda: held.seed,
        lambda: held.save(tmp_path / "node.key"),
        lambda: adapter.private_bytes_raw(),
        lambda: adapter.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        lambda: root.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        lambda: root.private_numbers(),
        lambda: root.exchange(ec.ECDH(), root.public_key()),
        lambda: root.sign(b"x", ec.ECDSA(hashes.SHA512())),
    ]
    for attempt in attempts:
        with pytest.raises(KeyFileInvalid, match="held elsewhere"):
            attempt()
    assert not (tmp_path / "node.key").exists()
    assert copy.copy(root) is root
    assert copy.deepcopy(adapter) is adapter


def test_a_holder_of_another_kind_of_key_is_refused() -> None:
    with pytest.raises(KeyFileInvalid, match="no Ed25519 key"):
        HeldEd25519(P256Elsewhere())
    with pytest.raises(KeyFileInvalid, match="no P-256 key"):
        HeldP256(Ed25519Elsewhere())


def test_a_uri_names_token_key_module_and_pin() -> None:
    uri = KeyUri.parse(GOOD + "\n")
    assert (uri.token, uri.label, uri.id) == ("comity", "ca", b"")
    assert (uri.module, uri.pin_file) == (MODULE, Path("/etc/comity/pin"))
    other = KeyUri.parse("pkcs11:token=a%20b;id=%01%ff;type=private?module-path=m&pin-source=file:/p")
    assert (other.token, other.label, other.id, other.pin_file) == ("a b", "", b"\x01\xff", Path("/p"))


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "one line"),
        ("http://x", "one line"),
        (GOOD + "\nmore", "one line"),
        (GOOD + "x" * 5000, "one line"),
        (GOOD.replace("token=comity;", ""), "needs token"),
        (GOOD.replace("object=ca", "type=private"), "object or id"),
        (GOOD.replace("module-path=/usr/lib/softhsm/libsofthsm2.so&", ""), "needs module-path"),
        (GOOD.partition("&")[0], "needs pin-source"),
        (GOOD + "&pin-value=1234", "PIN does not belong"),
        (GOOD.replace("object=ca", "object=ca;slot-id=1"), "'slot-id' in a key's URI is unknown"),
        (GOOD.replace("object=ca", "object=ca;object=cb"), "stands twice"),
        (GOOD.replace("object=ca", "object=ca;type=public"), "names a private key"),
        (GOOD.replace("object=ca", "object=%ff"), "not UTF-8"),
        (GOOD.replace("object=ca", "object"), "unknown here"),
    ],
)
def test_a_uri_that_does_not_say_enough_is_refused(text: str, reason: str) -> None:
    with pytest.raises(KeyFileInvalid, match=reason):
        KeyUri.parse(text)


@pytest.mark.invariant("S4")
def test_without_the_extra_or_with_an_open_pin_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin, key = tmp_path / "pin", tmp_path / "node.key"
    pin.write_text("1234")
    pin.chmod(0o644)
    key.write_text(GOOD.replace("/etc/comity/pin", str(pin)))
    key.chmod(0o644)
    with pytest.raises(KeyFileInvalid, match=r"node\.key can be read by others"):
        PrivateKey.load(key)
    key.chmod(0o600)
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(KeyFileInvalid, match=r"node\.key: .*pip install 'comity\[hsm\]'"):
        PrivateKey.load(key)
    monkeypatch.setitem(sys.modules, "pkcs11", ModuleType("pkcs11"))
    with pytest.raises(KeyFileInvalid, match=r"pin can be read by others"):
        PrivateKey.load(key)
    pin.chmod(0o600)
    pin.write_text("1" * 300)
    with pytest.raises(KeyFileInvalid, match="no PIN"):
        PrivateKey.load(key)
    pin.write_bytes(b"\xff\xfe")
    with pytest.raises(KeyFileInvalid, match="not UTF-8"):
        PrivateKey.load(key)
    pin.unlink()
    with pytest.raises(KeyFileInvalid, match="cannot read the PIN"):
        PrivateKey.load(key)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A SoftHSM token with a P-256 key `ca` and an Ed25519 key `node`; its folder has the PIN's file.

    Nobody is logged in to it at first: the first test that uses it is the one about wrong PINs.
    """
    pkcs11 = pytest.importorskip("pkcs11")
    if not MODULE.exists() or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM is not installed")

    folder = tmp_path_factory.mktemp("token")
    (folder / "objects").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/objects\n")
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    command = ["softhsm2-util", "--init-token", "--free", "--label", "comity", "--pin", "2468", "--so-pin", "1357"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    (folder / "pin").touch(mode=0o600)
    (folder / "pin").write_text("2468\n")
    curve = bytes.fromhex("06082a8648ce3d030107")  # the OID of P-256, DER
    edwards = b"\x13\x0cedwards25519"  # PKCS#11 3.0, 2.3.5: the curve's name as a PrintableString
    kinds = pkcs11.KeyType
    with pkcs11.lib(str(MODULE)).get_token(token_label="comity").open(rw=True, user_pin="2468") as session:
        for kind, label, parameters in ((kinds.EC, "ca", curve), (kinds.EC_EDWARDS, "node", edwards)):
            domain = session.create_domain_parameters(kind, {pkcs11.Attribute.EC_PARAMS: parameters}, local=True)
            domain.generate_keypair(store=True, label=label)
    yield folder
    if before is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = before


def named(folder: Path, label: str) -> str:
    return f"pkcs11:token=comity;object={label}?module-path={MODULE}&pin-source={folder}/pin"


@pytest.mark.invariant("S3")
def test_a_token_or_key_that_is_not_there(token: Path, tmp_path: Path) -> None:
    wrong_pin = tmp_path / "pin"
    wrong_pin.touch(mode=0o600)
    wrong_pin.write_text("0000")
    good = named(token, "ca")
    for text, reason in (
        (good.replace(f"{token}/pin", str(wrong_pin)), "cannot be used: PinIncorrect"),
        (good.replace("object=ca", "object=other"), "cannot be used: NoSuchKey|No key matching"),
        (good.replace("token=comity", "token=other"), "cannot be used: NoSuchToken|No token matching"),
        (good.replace(str(MODULE), str(tmp_path / "none.so")), "cannot be used: .*none.so"),
    ):
        with pytest.raises(KeyFileInvalid, match=reason):
            open_key(text)


@pytest.mark.invariant("S4")
def test_a_ca_and_a_node_in_a_pkcs11_token(token: Path, tmp_path: Path) -> None:
    key, ca = tmp_path / "node.key", tmp_path / "ca"
    key.touch(mode=0o600)
    key.write_text(named(token, "node"))
    made = OrganizationCa.create("mercy.example", ca, NOW, key_uri=named(token, "ca"))
    loaded = OrganizationCa.load(ca)
    assert loaded.certificate.der == made.certificate.der
    assert (ca / CA_KEY_FILE).stat().st_mode & 0o777 == 0o600
    whole_walk(loaded, PrivateKey.load(key))
    with pytest.raises(KeyFileInvalid, match="must be P-256"):
        OrganizationCa.create("mercy.example", tmp_path / "other", NOW, key_uri=named(token, "node"))
    assert b"PRIVATE" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
