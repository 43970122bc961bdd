"""Reaching a peer at one of several addresses, fast: the first at once, the others soon after."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

import trio

from comity.errors import ComityError, PeerUnreachable
from comity_node.transport.address import Address, ip_address, is_own_machine
from comity_node.transport.wire import RawStream, SocketRaw

#: The "Connection Attempt Delay" that RFC 8305 recommends.
STAGGER_S: Final = 0.25
#: Addresses of one name that are tried.
_MAX_RESOLVED: Final = 8
#: How often another local port is tried.
_OTHER_PORTS: Final = 4

R = TypeVar("R", bound=RawStream)
C = TypeVar("C")


class Race(Generic[R, C]):
    """Tries addresses until one works: in the order given, each 250 ms after the last or as soon as one has failed.

    As RFC 8305 does it, with one change: while a connection is there and being secured, no other is begun. A slow
    handshake is no reason to make another one with the same peer.
    """

    def __init__(
        self,
        reach: Callable[[Address], Awaitable[R]],
        secure: Callable[[Address, R], Awaitable[C]],
        *,
        stagger_s: float = STAGGER_S,
    ) -> None:
        """Make a race.

        Args:
            reach: connects to an address.
            secure: makes of that what is wanted; called for one address at a time. What it raises counts as failed.
            stagger_s: before the next address is tried.
        """
        self._reach, self._secure, self._stagger_s = reach, secure, stagger_s
        self._turn = trio.Lock()
        self._progress = trio.lowlevel.ParkingLot()
        self._failures: list[str] = []
        self._securing = 0
        self._won: list[C] = []

    async def run(self, peer_id: str, addresses: Sequence[Address]) -> C:
        """Return what the first address gave that worked.

        Raises:
            PeerUnreachable: none did; the message says what each one said.
        """
        async with trio.open_nursery() as nursery:
            for number, address in enumerate(addresses, start=1):
                nursery.start_soon(self._attempt, address, nursery.cancel_scope)
                if number < len(addresses):
                    await self._wait_for_next()
        if self._won:
            return self._won[0]
        why = "; ".join(self._failures) or "no address is known"
        raise PeerUnreachable(f"{peer_id} cannot be reached ({why})")

    async def _wait_for_next(self) -> None:
        failed = len(self._failures)
        with trio.move_on_after(self._stagger_s):
            while len(self._failures) == failed:
                await self._progress.park()
        while self._securing and len(self._failures) == failed:
            await self._progress.park()

    async def _attempt(self, address: Address, scope: trio.CancelScope) -> None:
        try:
            raw = await self._reach(address)
            try:
                self._securing += 1
                async with self._turn:
                    if not self._won:
                        self._won.append(await self._secure(address, raw))
                        scope.cancel()
                        return
            except BaseException:  # also a cancellation leaves no socket behind; raised again
                raw.abort()
                raise
            finally:
                self._securing -= 1
            raw.abort()
        except (ComityError, OSError) as error:
            self._failures.append(f"{address}: {error}")
            self._progress.unpark_all()


class DialledSocket(SocketRaw):
    """A socket that we have connected."""

    def __init__(self, stream: trio.SocketStream) -> None:
        """Take over `stream`."""
        super().__init__(stream)
        #: From which it was connected. Others may be reached from it, too (`connect_from`).
        self.local_port: int = stream.socket.getsockname()[1]


async def open_socket(
    address: Address, *, timeout_s: float, allow_own_machine: bool, allow_private: bool = True
) -> DialledSocket:
    """Connect to an address, from a local port that may be used for other connections, too.

    Those to whom we connect from the same port see us, behind most address translations, at the same address: it is
    the one at which a peer can meet us half-way (`transport.dcutr`).

    Args:
        address: a direct one.
        timeout_s: for all of it.
        allow_own_machine: whether a name may lead to this machine.
        allow_private: whether a name may lead to a private address: whoever names a name chooses where it leads.

    Raises:
        PeerUnreachable: no answer in time, or a name leads to this machine or into a private network.
        OSError: the connection was refused, the name is unknown.
    """
    try:
        with trio.fail_after(timeout_s):
            if address.kind in ("ip4", "ip6"):
                return DialledSocket(await connect_from(0, address))
            found = await _resolve(address)
            if not allow_own_machine:
                found = _elsewhere(found)
            if not allow_private:
                found = _public(found)
            return await Race[DialledSocket, DialledSocket](_connect, _as_it_is).run(address.host, found)
    except trio.TooSlowError as error:
        raise PeerUnreachable(f"no answer in {timeout_s:g} s") from error


def _elsewhere(found: list[Address]) -> list[Address]:
    """Those addresses of a name that are not this machine's."""
    other = [each for each in found if not is_own_machine(each.host)]
    if found and not other:  # nothing has been said there
        raise PeerUnreachable(f"the name leads to {found[0].host}, on this machine or its link: name its IP address")
    return other


def _public(found: list[Address]) -> list[Address]:
    """Those addresses of a name that mean the same to everybody."""
    public = [each for each in found if not each.is_private]
    if found and not public:
        raise PeerUnreachable(
            f"the name leads to {found[0].host}, in a private network; if that is where the peer is, "
            "name it under `network` in node.yaml"
        )
    return public


def reusable_socket(kind: str, port: int) -> trio.socket.SocketType:
    """Make a TCP socket that is bound to a port of every own address, beside others that are.

    Args:
        kind: ip4 or ip6.
        port: 0 for any that is free.

    Raises:
        OSError: somebody who does not share it has the port.
    """
    family = socket.AF_INET6 if kind == "ip6" else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if kind == "ip6":
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(("::" if kind == "ip6" else "0.0.0.0", port))
        return trio.socket.from_stdlib_socket(made)
    except BaseException:  # also a cancellation leaves no socket behind; raised again
        made.close()
        raise


async def connect_from(port: int, address: Address) -> trio.SocketStream:
    """Connect to an IP address from a local port (0 for any) that others may use at the same time.

    Raises:
        OSError: it was refused, or the port cannot be used.
    """
    for _ in range(_OTHER_PORTS if port == 0 else 0):
        try:
            return await _connect_from(port, address)
        except OSError as error:
            # The port was chosen before it was known for whom: a connection from it to there may just have ended.
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    return await _connect_from(port, address)


async def _connect_from(port: int, address: Address) -> trio.SocketStream:
    made = reusable_socket(address.kind, port)
    try:
        await made.connect((address.host, address.port))
        return trio.SocketStream(made)
    except BaseException:  # also a cancellation leaves no socket behind; raised again
        made.close()
        raise


async def _connect(address: Address) -> DialledSocket:
    return DialledSocket(await connect_from(0, address))


async def _as_it_is(_: Address, raw: DialledSocket) -> DialledSocket:
    await trio.lowlevel.checkpoint()
    return raw


async def _resolve(address: Address) -> list[Address]:
    family = {"dns4": socket.AF_INET, "dns6": socket.AF_INET6}.get(address.kind, socket.AF_UNSPEC)
    found = await trio.socket.getaddrinfo(address.host, address.port, family=family, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(str(name[0]), address.port) for *_, name in found))[:_MAX_RESOLVED]
