"""libp2p's TLS: the certificates of the specification, those that prove nothing, and py-libp2p at the other end."""

from __future__ import annotations

import contextlib
import hmac
import importlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from OpenSSL import SSL, crypto

from comity.errors import ProtocolError
from comity.signing import PrivateKey, libp2p_public_key, peer_id
from comity_node.transport.tls import (
    EXTENSION,
    TlsHandshake,
    TlsIdentity,
    TlsSession,
    make_certificate,
    verify_certificate,
)
from comity_node.transport.wire import Wire
from kit.wires import wire_pair

ALICE, BOB = PrivateKey(b"\x01" * 32), PrivateKey(b"\x02" * 32)
YAMUX = "/yamux/1.0.0"
NOW = datetime(2026, 11, 22, tzinfo=UTC)
CA = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody")])

# https://github.com/libp2p/specs/blob/master/tls/tls.md#test-vectors
ED25519_VECTOR = (
    "308201773082011ea003020102020900f5bd0debaa597f52300a06082a8648ce3d04030230003020170d3735303130313030303030305a180f"
    "34303936303130313030303030305a30003059301306072a8648ce3d020106082a8648ce3d030107034200046bf9871220d71dcb3483ecdfcb"
    "fcc7c103f8509d0974b3c18ab1f1be1302d643103a08f7a7722c1b247ba3876fe2c59e26526f479d7718a85202ddbe47562358a37f307d307b"
    "060a2b0601040183a25a01010101ff046a30680424080112207fda21856709c5ae12fd6e8450623f15f11955d384212b89f56e7e136d2e1728"
    "0440aaa6bffabe91b6f30c35e3aa4f94b1188fed96b0ffdd393f4c58c1c047854120e674ce64c788406d1c2c4b116581fd7411b309881c3c7f"
    "20b46e54c7e6fe7f0f300a06082a8648ce3d040302034700304402207d1a1dbd2bda235ff2ec87daf006f9b04ba076a5a5530180cd9c2e8f63"
    "99e09d0220458527178c7e77024601dbb1b256593e9b96d961b96349d1f560114f61a87595"
)
ED25519_PEER = "12D3KooWJRSrypvnpHgc6ZAgyCni4KcSmbV7uGRaMw5LgMKT18fq"
ECDSA_VECTOR = (
    "308201c030820166a003020102020900eaf419a6e3edb4a6300a06082a8648ce3d04030230003020170d3735303130313030303030305a180f"
    "34303936303130313030303030305a30003059301306072a8648ce3d020106082a8648ce3d030107034200048dbf1116c7c608d6d5292bd826"
    "c3feb53483a89fce434bf64538a359c8e07538ff71f6766239be6a146dcc1a5f3bb934bcd4ae2ae1d4da28ac68b4a20593f06ba381c63081c3"
    "3081c0060a2b0601040183a25a01010101ff0481ae3081ab045f0803125b3059301306072a8648ce3d020106082a8648ce3d03010703420004"
    "84b93fa456a74bd0153919f036db7bc63c802f055bc7023395d0203de718ee0fc7b570b767cdd858aca6c7c4113ff002e78bd2138ac1a3b26d"
    "de3519e06979ad04483046022100bc84014cea5a41feabdf4c161096564b9ccf4b62fbef4fe1cd382c84e11101780221009204f086a84cb8ed"
    "8a9ddd7868dc90c792ee434adf62c66f99a08a5eba11615b300a06082a8648ce3d0403020348003045022054b437be9a2edf591312d68ff24b"
    "f91367ad4143f76cf80b5658f232ade820da022100e23b48de9df9c25d4c83ddddf75d2676f0b9318ee2a6c88a736d85eab94a912f"
)
INVALID_VECTOR = (
    "308201773082011da003020102020830a73c5d896a1109300a06082a8648ce3d04030230003020170d3735303130313030303030305a180f34"
    "303936303130313030303030305a30003059301306072a8648ce3d020106082a8648ce3d03010703420004bbe62df9a7c1c46b7f1f21d556de"
    "ec5382a36df146fb29c7f1240e60d7d5328570e3b71d99602b77a65c9b3655f62837f8d66b59f1763b8c9beba3be07778043a37f307d307b06"
    "0a2b0601040183a25a01010101ff046a3068042408011220ec8094573afb9728088860864f7bcea2d4fd412fef09a8e2d24d482377c20db604"
    "40ecabae8354afa2f0af4b8d2ad871e865cb5a7c0c8d3dbdbf42de577f92461a0ebb0a28703e33581af7d2a4f2270fc37aec6261fcc95f8af0"
    "8f3f4806581c730a300a06082a8648ce3d040302034800304502202dfb17a6fa0f94ee0e2e6a3b9fb6e986f311dee27392058016464bd13093"
    "0a61022100ba4b937a11c8d3172b81e7cd04aedb79b978c4379c2b5b24d565dd5d67d3cb3c"
)


def of_hex(text: str) -> x509.Certificate:
    return x509.load_der_x509_certificate(bytes.fromhex(text))


def test_the_specification_s_certificates() -> None:
    assert peer_id(verify_certificate(of_hex(ED25519_VECTOR), NOW)) == ED25519_PEER
    for text in (ECDSA_VECTOR, INVALID_VECTOR):  # an identity of another kind than ours, and a lie
        with pytest.raises(ProtocolError, match="proves no Ed25519 identity"):
            verify_certificate(of_hex(text), NOW)


def test_our_certificate_proves_who_we_are_and_nothing_else() -> None:
    certificate = make_certificate(ALICE, ec.generate_private_key(ec.SECP256R1()), NOW)
    assert verify_certificate(certificate, NOW) == ALICE.public_key
    assert [each.oid for each in certificate.extensions] == [EXTENSION]  # js-libp2p looks at the first one only
    assert certificate.version is x509.Version.v3


@dataclass
class Parts:
    """Of a certificate that somebody made."""

    own: Any = None
    signs: Any = None
    names: bytes = ALICE.public_key
    prefix: bytes = b"libp2p-tls-handshake:"
    begins: datetime = NOW - timedelta(hours=1)
    ends: datetime = NOW + timedelta(hours=1)
    extension: bool = True
    other: tuple[str, bool] | None = None
    content: bytes = b"\x05\x00"
    cut: int = 0
    algorithm: Any = None

    def certificate(self) -> x509.Certificate:
        own = self.own or ec.generate_private_key(ec.SECP256R1())
        spki = own.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        value = b"\x30\x68\x04\x24" + libp2p_public_key(self.names) + b"\x04\x40" + ALICE.sign(self.prefix + spki)
        builder = (
            x509.CertificateBuilder()
            .serial_number(7)
            .subject_name(CA)
            .issuer_name(CA)
            .not_valid_before(self.begins)
            .not_valid_after(self.ends)
            .public_key(own.public_key())
        )
        if self.other is not None:
            oid, critical = self.other
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), self.content), critical
            )
        if self.extension:
            builder = builder.add_extension(
                x509.UnrecognizedExtension(EXTENSION, value[: len(value) - self.cut]), critical=True
            )
        key = self.signs or own
        algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else self.algorithm or hashes.SHA256()
        return builder.sign(key, algorithm)


GOOD: dict[str, Callable[[], Parts]] = {
    "plain": Parts,
    "ed25519": lambda: Parts(own=ed25519.Ed25519PrivateKey.generate()),
    "p384": lambda: Parts(own=ec.generate_private_key(ec.SECP384R1()), algorithm=hashes.SHA384()),
    "rsa": lambda: Parts(own=rsa.generate_private_key(65537, 2048)),
    "another extension": lambda: Parts(other=("1.2.3.4", False)),
}


@pytest.mark.parametrize("name", GOOD)
def test_certificates_that_others_may_make(name: str) -> None:
    assert verify_certificate(GOOD[name]().certificate(), NOW) == ALICE.public_key


BAD: dict[str, Callable[[], Parts]] = {
    "expired": lambda: Parts(ends=NOW - timedelta(seconds=1)),
    "not yet": lambda: Parts(begins=NOW + timedelta(seconds=1)),
    "no extension": lambda: Parts(extension=False),
    "another's name": lambda: Parts(names=BOB.public_key),
    "another purpose": lambda: Parts(prefix=b"noise-libp2p-static-key:"),
    "cut short": lambda: Parts(cut=1),
    "signed by another": lambda: Parts(signs=ec.generate_private_key(ec.SECP256R1())),
    "signed by another kind": lambda: Parts(signs=ed25519.Ed25519PrivateKey.generate()),
    "critical": lambda: Parts(other=("1.2.3.4", True)),
    "a short digest": lambda: Parts(algorithm=hashes.SHA224()),
    "a short key": lambda: Parts(own=rsa.generate_private_key(65537, 1024)),
    "a small-order key": lambda: Parts(names=b"\x01" + bytes(31)),
    "an X.400 address": lambda: Parts(other=("2.5.29.17", False), content=bytes.fromhex("3002a300")),
}


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("name", BAD)
def test_certificates_that_prove_nothing(name: str) -> None:
    with pytest.raises(ProtocolError):
        verify_certificate(BAD[name]().certificate(), NOW)


# Handshakes.


def identity(key: PrivateKey, *muxers: str) -> TlsIdentity:
    return TlsIdentity(key, muxers, NOW)


def handshake(own: TlsIdentity, *, initiator: bool, expected: str | None = None) -> TlsHandshake:
    return TlsHandshake(own, initiator=initiator, now=NOW, expected_peer=expected)


def shake_hands(dialler: TlsHandshake, listener: TlsHandshake) -> None:
    there = dialler.start()
    while there:
        back = listener.receive(there)
        there = dialler.receive(back) if back else b""


@pytest.mark.parametrize(
    ("ours", "theirs", "muxer"),
    [
        ((YAMUX,), (YAMUX,), YAMUX),
        (("/a", "/b"), ("/b", "/a"), "/a"),  # the dialler's order counts
        ((YAMUX,), (), ""),
        ((), (YAMUX,), ""),
        (("/a",), ("/b",), ""),
    ],
)
def test_both_ends_learn_who_is_there_and_agree_on_a_multiplexer(
    ours: tuple[str, ...], theirs: tuple[str, ...], muxer: str
) -> None:
    dialler = handshake(identity(ALICE, *ours), initiator=True, expected=BOB.peer_id)
    listener = handshake(identity(BOB, *theirs), initiator=False)
    shake_hands(dialler, listener)
    assert dialler.proved is not None
    assert listener.proved is not None
    assert (dialler.proved.peer_id, listener.proved.peer_id) == (BOB.peer_id, ALICE.peer_id)
    assert (dialler.proved.muxer, listener.proved.muxer) == (muxer, muxer)


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("initiator", [False, True])
def test_a_certificate_that_proves_nothing_ends_the_handshake(initiator: bool) -> None:
    own = ec.generate_private_key(ec.SECP256R1())
    liar_identity = identity(ALICE, YAMUX)
    for context in liar_identity._contexts.values():
        context.use_certificate(Parts(own=own, names=BOB.public_key).certificate())
        context.use_privatekey(own)
    liar = handshake(liar_identity, initiator=initiator)
    honest = handshake(identity(BOB, YAMUX), initiator=not initiator)
    with pytest.raises(ProtocolError, match="proves no Ed25519 identity"):
        shake_hands(*((liar, honest) if initiator else (honest, liar)))
    assert honest.proved is None


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("initiator", [False, True])
@pytest.mark.parametrize(
    ("place", "byte"),
    [
        (bytes.fromhex("a003020102"), 0x3A),  # a version that X.509 does not have
        (bytes.fromhex("170d"), 0x58),  # a time of validity that is none
    ],
)
def test_a_certificate_that_only_openssl_can_read_ends_the_handshake_and_nothing_else(
    initiator: bool, place: bytes, byte: int
) -> None:
    own = ec.generate_private_key(ec.SECP256R1())
    der = bytearray(make_certificate(ALICE, own, NOW).public_bytes(Encoding.DER))
    der[der.index(place) + len(place) - (place[0] == 0xA0)] = byte
    odd = crypto.load_certificate(crypto.FILETYPE_ASN1, bytes(der))
    with pytest.raises((ValueError, x509.InvalidVersion)):
        odd.to_cryptography()
    odd_identity = identity(ALICE, YAMUX)
    for context in odd_identity._contexts.values():
        SSL._lib.SSL_CTX_use_certificate(context._context, odd._x509)  # type: ignore[attr-defined]
        context.use_privatekey(own)
    liar, honest = handshake(odd_identity, initiator=initiator), handshake(identity(BOB), initiator=not initiator)
    with pytest.raises(ProtocolError, match="certificate"):
        shake_hands(*((liar, honest) if initiator else (honest, liar)))


@pytest.mark.parametrize("name", ["/not/offered", "\xff"])
def test_a_listener_that_picks_what_was_not_offered_is_refused(name: str) -> None:
    odd = identity(BOB, YAMUX)
    odd._contexts[False].set_alpn_select_callback(lambda _, __: name.encode("latin-1"))
    with pytest.raises(ProtocolError):
        shake_hands(handshake(identity(ALICE, YAMUX), initiator=True), handshake(odd, initiator=False))


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("initiator", [False, True])
def test_a_chain_of_certificates_is_refused(initiator: bool) -> None:
    long_identity = identity(ALICE, YAMUX)
    for context in long_identity._contexts.values():
        context.add_extra_chain_cert(Parts().certificate())
    long, honest = handshake(long_identity, initiator=initiator), handshake(identity(BOB), initiator=not initiator)
    with pytest.raises(ProtocolError, match="one certificate"):
        shake_hands(*((long, honest) if initiator else (honest, long)))


@pytest.mark.invariant("S2")
@pytest.mark.parametrize(
    ("version", "shows", "why"),
    [
        (ssl.TLSVersion.TLSv1_2, True, "unsupported protocol"),
        (ssl.TLSVersion.TLSv1_3, False, "did not return a certificate"),
    ],
)
def test_a_dialler_without_a_certificate_or_with_an_older_tls_is_refused(
    tmp_path: Path, version: ssl.TLSVersion, shows: bool, why: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = version
    context.set_alpn_protocols(["libp2p"])
    if shows:
        own = ec.generate_private_key(ec.SECP256R1())
        key = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / "own.pem").write_bytes(key + make_certificate(ALICE, own, NOW).public_bytes(Encoding.PEM))
        context.load_cert_chain(tmp_path / "own.pem")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    stranger = context.wrap_bio(incoming, outgoing)
    listener = handshake(identity(BOB), initiator=False)

    def go_on() -> None:
        for _ in range(10):  # more than a handshake takes
            with contextlib.suppress(ssl.SSLWantReadError):
                stranger.do_handshake()
            incoming.write(listener.receive(outgoing.read()))

    with pytest.raises(ProtocolError, match=f"TLS handshake failed: .*{why}"):
        go_on()
    assert listener.proved is None


def test_tls_resumes_no_session() -> None:
    """Every connection shows a certificate; none rests on the one before it."""
    alice, bob = identity(ALICE), identity(BOB)
    dialler, listener = handshake(alice, initiator=True), handshake(bob, initiator=False)
    shake_hands(dialler, listener)
    assert dialler.proved is not None
    dialler.proved.session.take()  # where a ticket would be read
    session = dialler._connection.get_session()
    assert session is not None
    again, listener = handshake(alice, initiator=True), handshake(bob, initiator=False)
    again._connection.set_session(session)
    shake_hands(again, listener)
    assert listener.proved is not None
    assert listener.proved.peer_id == ALICE.peer_id
    assert not SSL._lib.SSL_session_reused(listener._connection._ssl)  # type: ignore[attr-defined]


def sessions() -> tuple[TlsSession, TlsSession]:
    dialler, listener = handshake(identity(ALICE), initiator=True), handshake(identity(BOB), initiator=False)
    shake_hands(dialler, listener)
    assert dialler.proved is not None
    assert listener.proved is not None
    here, there = dialler.proved.session, listener.proved.session
    assert isinstance(here, TlsSession)
    assert isinstance(there, TlsSession)
    return here, there


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 16 * 1024 + 1, 500_000])
@pytest.mark.parametrize("step", [1000, 1_000_000])
def test_what_is_sealed_comes_out(size: int, step: int) -> None:
    sender, receiver = sessions()
    data = bytes(range(256)) * (size // 256 + 1)
    got = b""
    for piece in sender.seal(data[:size]):
        for at in range(0, len(piece), step):
            receiver.feed(piece[at : at + step])
            while plain := receiver.take():
                assert len(plain) <= 2 * 128 * 1024
                got += plain
    assert got == data[:size]


@pytest.mark.invariant("S2")
def test_a_changed_byte_is_refused() -> None:
    sender, receiver = sessions()
    sealed = bytearray(b"".join(sender.seal(b"hello")))
    sealed[-1] ^= 1
    receiver.feed(bytes(sealed))
    with pytest.raises(ProtocolError, match="encryption broke"):
        receiver.take()


def key_updates(secret: bytes, count: int) -> bytes:
    """So many records, each of which asks for a new key and is sealed with the one before (RFC 8446, 4.6.3)."""

    def expanded(name: bytes, size: int) -> bytes:
        label = size.to_bytes(2, "big") + bytes([6 + len(name)]) + b"tls13 " + name + b"\x00\x01"
        return hmac.digest(secret, label, "sha384")[:size]

    records = b""
    for _ in range(count):
        message = bytes([24, 0, 0, 1, 1]) + b"\x16"
        head = b"\x17\x03\x03" + (len(message) + 16).to_bytes(2, "big")
        records += head + AESGCM(expanded(b"key", 32)).encrypt(expanded(b"iv", 12), message, head)
        secret = expanded(b"traffic upd", 48)
    return records


def listener_with_the_diallers_secret() -> tuple[TlsSession, TlsSession, bytes]:
    secrets: dict[bytes, bytes] = {}
    alice = identity(ALICE)
    alice._contexts[True].set_keylog_callback(
        lambda _, line: secrets.update({line.split()[0]: bytes.fromhex(line.split()[2].decode())})
    )
    dialler, listener = handshake(alice, initiator=True), handshake(identity(BOB), initiator=False)
    shake_hands(dialler, listener)
    assert dialler.proved is not None
    assert listener.proved is not None
    here, there = dialler.proved.session, listener.proved.session
    assert isinstance(here, TlsSession)
    assert isinstance(there, TlsSession)
    return here, there, secrets[b"CLIENT_TRAFFIC_SECRET_0"]


@pytest.mark.invariant("S7")
def test_a_peer_cannot_let_answers_pile_up_that_it_never_reads() -> None:
    _, listener, secret = listener_with_the_diallers_secret()
    listener.feed(key_updates(secret, 5000))
    with pytest.raises(ProtocolError, match="keys"):
        listener.take()


def test_a_peer_may_ask_for_new_keys_and_gets_them_with_what_is_sent_next() -> None:
    dialler, listener, secret = listener_with_the_diallers_secret()
    listener.feed(key_updates(secret, 20))
    assert listener.take() == b""
    for piece in listener.seal(b"hello"):
        dialler.feed(piece)
    assert dialler.take() == b"hello"


def test_the_farewell_of_tls_is_an_end() -> None:
    sender, receiver = sessions()
    sealed = b"".join(sender.seal(b"hello"))
    sender._connection.shutdown()
    receiver.feed(sealed + sender._connection.bio_read(1000))
    assert receiver.take() == b"hello"
    assert receiver.is_ended
    assert receiver.take() == b""


class Connection:
    """A wire as py-libp2p's TLS reads it: what is there, and no more than it asks for."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.write, self.close = wire.write, wire.close

    async def read(self, n: int) -> bytes:
        data = await self.wire.receive()
        self.wire.unread(data[n:])
        return data[:n]


@pytest.mark.parametrize("stock_dials", [False, True])
def test_ours_and_py_libp2p_s_tls(stock_dials: bool) -> None:
    importlib.import_module("comity_node.transport.stock")  # imports py-libp2p without its warnings
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID
    from libp2p.security.tls.transport import TLSTransport

    async def main() -> None:
        wires = wire_pair(budget=1_000_000)
        ours, theirs = wires[1 if stock_dials else 0], Connection(wires[0 if stock_dials else 1])
        stock = TLSTransport(create_new_key_pair(BOB.seed), muxers=[YAMUX])
        now = datetime.now(UTC)
        own = TlsHandshake(TlsIdentity(ALICE, [YAMUX], now), initiator=not stock_dials, now=now)
        got: list[Any] = []

        async def them() -> None:
            if stock_dials:
                got.append(await stock.secure_outbound(theirs, ID.from_base58(ALICE.peer_id)))
            else:
                got.append(await stock.secure_inbound(theirs))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(them)
            if out := own.start():
                await ours.write(out)
            while own.proved is None:
                if out := own.receive(await ours.receive()):
                    await ours.write(out)
        assert own.proved.peer_id == BOB.peer_id
        assert own.proved.muxer == YAMUX
        assert str(got[0].get_remote_peer()) == ALICE.peer_id
        session = own.proved.session
        for sealed in session.seal(b"ours" * 10_000):
            await ours.write(sealed)
        back = b""
        while len(back) < 40_000:
            back += await got[0].read(40_000 - len(back))
        assert back == b"ours" * 10_000
        await got[0].write(b"theirs")
        while not (plain := session.take()):
            session.feed(await ours.receive())
        assert plain == b"theirs"

    trio.run(main)
