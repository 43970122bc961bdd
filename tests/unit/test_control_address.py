"""Where the control API may listen, and who else does."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from comity.errors import ConfigError
from comity_node.control.address import ServerTls, TcpAddress, UnixAddress, claim_socket, parse_address
from comity_node.control.server import ControlServer
from comity_node.control.workers import WorkerPool


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/c/s", UnixAddress(Path("/run/c/s"))),
        ("unix:///run/c/s", UnixAddress(Path("/run/c/s"))),
        ("unix:s", UnixAddress(Path.cwd() / "s")),
        ("127.0.0.1:7000", TcpAddress("127.0.0.1", 7000)),
        ("[::1]:7000", TcpAddress("::1", 7000)),
        ("node.mercy.example:0", TcpAddress("node.mercy.example", 0)),
    ],
)
def test_addresses(text: str, address: object) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["", "localhost", ":7000", "host:", "host:70000", "host:-1", "host:٣"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match=r"unix:/path/to/socket or host:port"):
        parse_address(text)


def test_a_path_too_long_for_a_socket_is_named() -> None:
    with pytest.raises(ConfigError, match=r"has 120 bytes and may have 100"):
        parse_address("unix:/" + 119 * "x")


def test_tcp_without_tls_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs mutual TLS"):
        ControlServer("127.0.0.1:0", None, WorkerPool("mercy.example"))  # type: ignore[arg-type]


def test_an_unreadable_tls_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}/key.pem: cannot read it: No such file"):
        ServerTls(tmp_path / "key.pem", tmp_path / "c.pem", tmp_path / "ca.pem").read()


def test_a_new_directory_is_private(tmp_path: Path) -> None:
    address = UnixAddress(tmp_path / "new" / "s")
    with claim_socket(address):
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    os.chmod(tmp_path / "open", 0o755)
    with pytest.raises(ConfigError, match="chmod 700"), claim_socket(UnixAddress(tmp_path / "open" / "s")):
        pass


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/deep: "), claim_socket(UnixAddress(tmp_path / "file" / "deep" / "s")):
        pass


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o700)
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with claim_socket(UnixAddress(path)):
        assert not path.exists()


def test_a_live_socket_is_another_node(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o700)
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        with pytest.raises(ConfigError, match=f"another node runs on unix:{path}"), claim_socket(UnixAddress(path)):
            pass
        assert path.exists()


def test_two_nodes_that_start_at_once_do_not_both_win(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o700)
    address = UnixAddress(tmp_path / "s")
    with claim_socket(address):
        with pytest.raises(ConfigError, match="another node runs on"), claim_socket(address):
            pass
    with claim_socket(address):
        pass


def test_something_else_at_the_path_is_left_alone(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o700)
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is no socket"), claim_socket(UnixAddress(path)):
        pass
    assert path.read_text() == "precious"
