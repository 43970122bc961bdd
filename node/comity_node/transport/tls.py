"""libp2p's TLS 1.3 (https://github.com/libp2p/specs/blob/master/tls/tls.md), without I/O.

Each end shows one self-signed certificate, of a key made for it, with an extension that holds the identity key and
that key's signature of the certificate's. There is no certification authority: the chain is not checked by OpenSSL
but the one certificate here, in `verify_certificate`. Python's `ssl` cannot ask for a certificate without checking
its chain; pyOpenSSL can. The stream multiplexer is agreed on by ALPN
(https://github.com/libp2p/specs/blob/master/connections/inlined-muxer-negotiation.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import SSL

from comity.ca import X509_ERRORS
from comity.errors import LinkClosed, ProtocolError, SignatureInvalid
from comity.signing import PrivateKey, from_libp2p_public_key, libp2p_public_key, verify
from comity_node.transport.secured import Proved, check_peer

if TYPE_CHECKING:
    from OpenSSL.SSL import _NoOverlappingProtocols as _NoOverlap

PROTOCOL_ID = "/tls/1.0.0"
#: The ALPN name that leaves the multiplexer to be negotiated afterwards.
ALPN = "libp2p"
EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
_SIGNED = b"libp2p-tls-handshake:"
#: DER of SignedKey, a sequence of two octet strings, around an Ed25519 key (36 bytes) and signature (64 bytes).
_SIGNED_KEY, _SIGNATURE = b"\x30\x68\x04\x24", b"\x04\x40"
_KEY_BYTES, _SIGNATURE_BYTES = 36, 64
#: Clocks may be wrong by so much; and how long a certificate, which is made anew at each start, is valid.
_BACKDATED, _VALID = timedelta(hours=1), timedelta(days=3650)
_RSA_BITS = 2048
_DIGEST_BYTES = 32
#: TLS's largest record; what is sealed or opened at once; what that grows by.
_RECORD = 16 * 1024
_BATCH = 128 * 1024
_OVERHEAD = 1024
#: What OpenSSL is given at once, and what its answers (to a peer that asks for new keys) may add up to before they go.
_SLICE = 64 * 1024
_MAX_ANSWERS = 16 * 1024


class TlsIdentity:
    """A certificate that names a node, and its key."""

    def __init__(self, key: PrivateKey, muxers: Sequence[str], now: datetime) -> None:
        """Make a certificate.

        Args:
            key: the node's.
            muxers: multiplexers that are spoken, the best first.
            now: when it begins to be valid, with an hour to spare for clocks that are late.
        """
        own = ec.generate_private_key(ec.SECP256R1())
        self.certificate = make_certificate(key, own, now)
        self.protocols = [*(each.encode() for each in muxers), ALPN.encode()]
        self._contexts = {initiator: self._context(initiator, own) for initiator in (False, True)}

    def connection(self, *, initiator: bool) -> SSL.Connection:
        """Return a new connection that reads and writes memory."""
        connection = SSL.Connection(self._contexts[initiator], None)
        if initiator:
            connection.set_connect_state()
        else:
            connection.set_accept_state()
        return connection

    def _context(self, initiator: bool, own: ec.EllipticCurvePrivateKey) -> SSL.Context:
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET)
        context.use_certificate(self.certificate)
        context.use_privatekey(own)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _accept)
        if initiator:
            context.set_alpn_protos(self.protocols)
        else:
            context.set_alpn_select_callback(self._select)
        return context

    def _select(self, _: SSL.Connection, offered: list[bytes]) -> bytes | _NoOverlap:
        """The first of the dialler's that is spoken here."""
        return next((each for each in offered if each in self.protocols), SSL.NO_OVERLAPPING_PROTOCOLS)


class TlsHandshake:
    """The `Handshake` of libp2p's TLS."""

    def __init__(
        self, identity: TlsIdentity, *, initiator: bool, now: datetime, expected_peer: str | None = None
    ) -> None:
        """Make one end.

        Args:
            identity: what this end proves.
            initiator: whether this end begins.
            now: when the peer's certificate has to be valid.
            expected_peer: the PeerId to find at the other end.
        """
        self._connection = identity.connection(initiator=initiator)
        self._now, self._expected = now, expected_peer
        self.proved: Proved | None = None

    def start(self) -> bytes:
        """See `Handshake.start`."""
        return self._go_on()

    def receive(self, data: bytes) -> bytes:
        """See `Handshake.receive`."""
        if data:
            self._connection.bio_write(data)
        return self._go_on()

    def _go_on(self) -> bytes:
        connection = self._connection
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            return _outgoing(connection)
        except SSL.Error as error:
            raise ProtocolError(f"the TLS handshake failed: {_reason(error)}") from error
        # Nothing of ours that names us has been sent to a peer that is found to be the wrong one here.
        peer = check_peer(verify_certificate(self._shown(), self._now), self._expected)
        muxer = connection.get_alpn_proto_negotiated().decode()
        self.proved = Proved(peer, "" if muxer == ALPN else muxer, TlsSession(connection))
        return _outgoing(connection)

    def _shown(self) -> x509.Certificate:
        """The one certificate of the peer; what a listener is shown beyond the first lies apart."""
        try:
            certificate = self._connection.get_peer_certificate(as_cryptography=True)
            chain = self._connection.get_peer_cert_chain(as_cryptography=True) or []
        except X509_ERRORS as error:  # OpenSSL reads some that `cryptography` does not
            raise ProtocolError(f"the peer's certificate cannot be read: {error}") from error
        if certificate is None or [each for each in chain if each != certificate]:
            raise ProtocolError("the peer has to show one certificate, no chain of them")
        return certificate


class TlsSession:
    """The `Session` of a connection whose handshake is over."""

    def __init__(self, connection: SSL.Connection) -> None:
        """Go on with `connection`."""
        self._connection = connection
        self._ended = False
        #: What came and OpenSSL has not been given yet.
        self._sealed: bytes | memoryview = b""
        self._answers = b""

    @property
    def is_ended(self) -> bool:
        """See `Session.is_ended`."""
        return self._ended

    @property
    def is_cut(self) -> bool:
        """See `Session.is_cut`: not told, as many implementations close without TLS's farewell; Yamux has its own."""
        return False

    def seal(self, data: bytes) -> Iterator[bytes]:
        """See `Session.seal`."""
        view = memoryview(data)
        at = 0
        while at < len(data):
            end = min(at + _BATCH, len(data))
            try:
                while at < end:  # a record at a time
                    at += self._connection.send(view[at:end])
            except SSL.Error as error:
                raise LinkClosed(f"the encryption broke: {_reason(error)}") from error
            answers, self._answers = self._answers, b""
            yield answers + _outgoing(self._connection)

    def feed(self, data: bytes) -> None:
        """See `Session.feed`."""
        self._sealed = memoryview(data)

    def take(self) -> bytes:
        """See `Session.take`."""
        pieces: list[bytes] = []
        size = 0
        try:
            while size < _BATCH:
                try:
                    pieces.append(piece := self._connection.recv(_RECORD))
                    size += len(piece)
                except SSL.WantReadError:
                    if not self._next_slice():
                        break
        except SSL.ZeroReturnError:
            self._ended = True
        except SSL.Error as error:
            raise ProtocolError(f"the encryption broke: {_reason(error)}") from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _next_slice(self) -> bool:
        """Give OpenSSL more of what came, unless it has all; what it answers by itself waits to be sent, bounded."""
        self._answers += _outgoing(self._connection)
        if len(self._answers) > _MAX_ANSWERS:
            raise ProtocolError("the peer asks for new keys again and again")
        sealed = self._sealed
        if not sealed:
            return False
        self._connection.bio_write(sealed[:_SLICE])
        self._sealed = sealed[_SLICE:] or b""  # an idle connection would keep what came last
        return True


def make_certificate(key: PrivateKey, own: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """Return a certificate of `own`, signed by it, that names the identity `key` and nothing else.

    js-libp2p accepts no certificate in which another extension comes first.
    """
    signature = key.sign(_SIGNED + _spki(own.public_key()))
    signed_key = _SIGNED_KEY + libp2p_public_key(key.public_key) + _SIGNATURE + signature
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .issuer_name(x509.Name([]))
        .subject_name(x509.Name([]))
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _VALID)
        .public_key(own.public_key())
        .add_extension(x509.UnrecognizedExtension(EXTENSION, signed_key), critical=False)
        .sign(own, hashes.SHA256())
    )


def verify_certificate(certificate: x509.Certificate, now: datetime) -> bytes:
    """Return the Ed25519 public key that a certificate proves.

    1. It is valid now.
    2. It has libp2p's extension, and no critical one that is not understood.
    3. It is signed by its own key, by an algorithm that can be trusted.
    4. The extension holds an Ed25519 key and that key's signature of the certificate's key.

    Raises:
        ProtocolError: one of these does not hold.
    """
    try:
        # 1
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise ProtocolError("the peer's certificate is not valid now; is a clock wrong?")
        # 2
        signed_key = _signed_key(certificate)
        # 3
        public = certificate.public_key()
        _verify_self_signature(certificate, public)
        # 4
        identity = from_libp2p_public_key(signed_key[len(_SIGNED_KEY) : -len(_SIGNATURE) - _SIGNATURE_BYTES])
        verify(identity, signed_key[-_SIGNATURE_BYTES:], _SIGNED + _spki(public))
    except (*X509_ERRORS, InvalidSignature, SignatureInvalid) as error:
        raise ProtocolError(
            f"the peer's certificate proves no Ed25519 identity: {error or type(error).__name__}"
        ) from error
    return identity


def _signed_key(certificate: x509.Certificate) -> bytes:
    """The content of libp2p's extension, which has one form where the identity is an Ed25519 key."""
    found = b""
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.UnrecognizedExtension):
            if extension.oid == EXTENSION:
                found = extension.value.value
            elif extension.critical:
                raise ValueError(f"the critical extension {extension.oid.dotted_string} is not known")
    middle = len(_SIGNED_KEY) + _KEY_BYTES
    if len(found) != middle + len(_SIGNATURE) + _SIGNATURE_BYTES:
        raise ValueError("it has no such extension, or one with another kind of key")
    if not found.startswith(_SIGNED_KEY) or not found.startswith(_SIGNATURE, middle):
        raise ValueError("its extension is malformed")
    return found


def _verify_self_signature(certificate: x509.Certificate, public: CertificatePublicKeyTypes) -> None:
    signature, signed, algorithm = (
        certificate.signature,
        certificate.tbs_certificate_bytes,
        certificate.signature_hash_algorithm,
    )
    if algorithm is not None and algorithm.digest_size < _DIGEST_BYTES:
        raise ValueError(f"it is signed with {algorithm.name}")
    match public, certificate.signature_algorithm_parameters:
        case ed25519.Ed25519PublicKey(), _:
            public.verify(signature, signed)
        case ec.EllipticCurvePublicKey(), ec.ECDSA() as scheme:
            public.verify(signature, signed, scheme)
        case rsa.RSAPublicKey(key_size=bits), (padding.PKCS1v15() | padding.PSS()) as scheme if (
            bits >= _RSA_BITS and algorithm is not None
        ):
            public.verify(signature, signed, scheme, algorithm)
        case _:
            raise ValueError("it is signed in a way that is not accepted")


def _spki(public: CertificatePublicKeyTypes) -> bytes:
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _outgoing(connection: SSL.Connection) -> bytes:
    """What OpenSSL wants sent."""
    pieces = []
    try:
        while True:
            pieces.append(connection.bio_read(_BATCH + _OVERHEAD))
    except SSL.WantReadError:
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _accept(*_: object) -> bool:
    """Let OpenSSL go on: it can check a chain only, and there is none."""
    return True


def _reason(error: SSL.Error) -> str:
    """What OpenSSL says, in words: its errors are lists of (library, function, reason)."""
    if error.args and isinstance(error.args[0], list) and error.args[0]:
        return str(error.args[0][0][-1])
    return str(error) or type(error).__name__
