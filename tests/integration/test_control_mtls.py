"""The control API over TCP: mutual TLS, and nobody without a certificate gets in."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from comity.client import Client, Tls
from comity.errors import ConfigError, ControlError
from comity.v1 import control_pb2 as pb
from comity_node.control.address import ServerTls
from comity_node.control.server import ControlServer
from comity_node.control.workers import WorkerPool


class Authority:
    """A CA that writes key and certificate files."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory, self._key = directory, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        authority = x509.BasicConstraints(ca=True, path_length=0)
        certificate = self._builder(self._name, self._key).add_extension(authority, critical=True)
        self.ca = directory / f"{name}-ca.pem"
        self.ca.write_bytes(certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = self._builder(subject, key).add_extension(loopback, critical=False)
        key_path, certificate_path = self._directory / f"{name}.key", self._directory / f"{name}.pem"
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        signed = certificate.sign(self._key, hashes.SHA256())
        certificate_path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return key_path, certificate_path

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )


class Handlers:
    async def get_status(self, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(organization="mercy.example")


def server_for(address: str, tls: ServerTls) -> ControlServer:
    return ControlServer(address, Handlers(), WorkerPool("mercy.example"), tls=tls)  # type: ignore[arg-type]


@pytest.mark.invariant("S3")
def test_only_those_with_a_certificate_of_the_ca_get_in(tmp_path: Path) -> None:
    own, foreign = Authority(tmp_path, "own"), Authority(tmp_path, "foreign")
    node_key, node_certificate = own.issue("node")
    tls = ServerTls(node_key, node_certificate, own.ca)

    def use(address: str) -> None:
        with Client(address, tls=Tls(*own.issue("client"), ca=own.ca)) as node:
            assert node.status().organization == "mercy.example"
        stranger = Tls(*foreign.issue("stranger"), ca=own.ca)
        fooled = Tls(*own.issue("fooled"), ca=foreign.ca)
        for wrong in (stranger, fooled, None):
            with Client(address, tls=wrong) as node, pytest.raises(ControlError, match="no node answers at 127"):
                node.status()

    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                address = await nursery.start(server_for("127.0.0.1:0", tls).run)
                assert not address.endswith(":0")
                with pytest.raises(ConfigError, match=f"cannot listen on {address}: is the port in use"):
                    await server_for(address, tls).run()
                await trio.to_thread.run_sync(use, address)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_files_that_do_not_belong_together_are_refused_at_the_start(tmp_path: Path) -> None:
    own = Authority(tmp_path, "own")
    (_, certificate), (other_key, _) = own.issue("node"), own.issue("other")

    async def main(tls: ServerTls) -> None:
        with trio.fail_after(30):
            await server_for("127.0.0.1:0", tls).run()

    with pytest.raises(ConfigError, match="cannot listen on"):
        trio.run(main, ServerTls(other_key, certificate, own.ca))
    with pytest.raises(ConfigError, match="none\\.key: cannot read it"):
        trio.run(main, ServerTls(tmp_path / "none.key", certificate, own.ca))


def test_a_clients_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"cannot read .*none\.pem"):
        Client("127.0.0.1:1", tls=Tls(tmp_path / "k", tmp_path / "c", tmp_path / "none.pem"))
