"""Where the control API listens: a unix socket that only its owner can reach, or TCP with mutual TLS."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from comity.errors import ConfigError

#: sockaddr_un holds 108 bytes on Linux and 104 on macOS, the closing NUL included (man 7 unix).
_MAX_SOCKET_PATH = 100
_PROBE_S = 1.0


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Files (PEM) for mutual TLS: the server's key and chain, and the CA that clients' certificates come from."""

    key: Path
    certificate: Path
    client_ca: Path

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Return key, chain and CA.

        Raises:
            ConfigError: one of the files cannot be read.
        """
        return _read(self.key), _read(self.certificate), _read(self.client_ca)


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """`unix:/path/to/socket`."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """`host:port`; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> UnixAddress | TcpAddress:
    """Parse `unix:PATH`, `unix://PATH` or `HOST:PORT`.

    Raises:
        ConfigError: it is neither, or the path is too long for a socket.
    """
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:").removeprefix("//")).absolute()
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            raise ConfigError(
                f"the control socket's path has {len(os.fsencode(path))} bytes and may have {_MAX_SOCKET_PATH} "
                f"(a limit of the system): choose a shorter one than {path}"
            )
        return UnixAddress(path)
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{text!r} is no control address: write unix:/path/to/socket or host:port")
    return TcpAddress(host.removeprefix("[").removesuffix("]"), int(port))


@contextlib.contextmanager
def claim_socket(address: UnixAddress) -> Iterator[None]:
    """Hold the right to listen on `address`, from here until the end of the block.

    The directory is made with mode 0700, so nobody else can reach the socket between its creation and its chmod. The
    right is a lock on `<path>.lock`, which the kernel gives back when the process dies; a socket file that a dead
    process left is removed.

    Raises:
        ConfigError: another node runs there, the directory is open to others, or the path is something else.
    """
    path = address.path
    _private_directory(path.parent)
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another node runs on {address}; stop it first, or use another socket") from error
        _remove_stale(address)
        yield
        path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _private_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise ConfigError(f"cannot make the control socket's directory {directory}: {error.strerror}") from error
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"the control socket's directory {directory} is open to others: make it yours alone with "
            f"chmod 700, or choose another directory"
        )


def _remove_stale(address: UnixAddress) -> None:
    path = address.path
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is no socket: remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigError(f"cannot tell whether a node runs on {address}: {error.strerror}") from error
    raise ConfigError(f"another node runs on {address}; stop it first, or use another socket")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read it: {error.strerror}", file=str(path)) from error
