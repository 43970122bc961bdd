"""What gRPC's arms share: mutual TLS with P-256 certificates, a service of raw bytes, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

UNARY: Final = "/bench.Bench/Unary"
STREAM: Final = "/bench.Bench/Stream"
BULK: Final = "/bench.Bench/Bulk"
OPTIONS: Final = (
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
    # A new channel dials anew: without this it would find the connection of one that was closed before.
    ("grpc.use_local_subchannel_pool", 1),
)


def make_certificates(directory: Path) -> None:
    """Write a CA and one certificate for both ends into `directory`."""
    now = datetime.now(UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench CA")])

    def builder(name: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(days=1))
        )

    ca = (
        builder(ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    leaf = (
        builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    directory.mkdir(exist_ok=True)
    (directory / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    (directory / "leaf.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    (directory / "leaf.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


class Service(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    """Bytes in, bytes out: no protobuf to blame."""

    def __init__(self, handlers: Mapping[str, Any]) -> None:
        """Serve these methods."""
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401  (gRPC's is untyped)
        """Return what serves a call."""
        return self._handlers[handler_call_details.method]


def server_credentials(directory: Path) -> grpc.ServerCredentials:
    """The server's side of mutual TLS."""
    read = _read(directory)
    return grpc.ssl_server_credentials([(read[1], read[2])], read[0], require_client_auth=True)


def channel_credentials(directory: Path) -> grpc.ChannelCredentials:
    """The client's side of mutual TLS."""
    read = _read(directory)
    return grpc.ssl_channel_credentials(read[0], read[1], read[2])


def _read(directory: Path) -> tuple[bytes, bytes, bytes]:
    ca, key, leaf = ((directory / "grpc" / name).read_bytes() for name in ("ca.pem", "leaf.key", "leaf.pem"))
    return ca, key, leaf
