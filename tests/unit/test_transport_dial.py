"""Which of several addresses is dialled when, and what becomes of those that lose."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from comity.errors import LinkClosed, PeerUnreachable
from comity.signing import PrivateKey
from comity_node.transport import dial
from comity_node.transport.address import Address, parse_address
from comity_node.transport.dial import Race
from comity_node.transport.libp2p_transport import Libp2pTransport

ADDRESSES = [Address("ip4", f"192.0.2.{number}", 4001) for number in range(1, 6)]


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


class Raw:
    """A connection to an address."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.remote_address = ""
        self.aborted = False

    async def receive_some(self, max_bytes: int) -> bytes:
        raise NotImplementedError

    async def send_all(self, data: bytes) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        self.aborted = True


class Net:
    """Addresses of which each answers, or refuses, after some time; None never answers."""

    def __init__(self, reach_s: list[float | None], *, refuse: Collection[int] = (), secure_s: float = 0.0) -> None:
        self.reach_s, self.refuse, self.secure_s = reach_s, refuse, secure_s
        self.began: list[tuple[int, float]] = []
        self.raws: list[Raw] = []
        self.bad_keys: set[int] = set()
        self.start = trio.current_time()
        self.securing = 0

    @property
    def now(self) -> float:
        return round(trio.current_time() - self.start, 6)

    async def reach(self, address: Address) -> Raw:
        number = int(address.host.rpartition(".")[2])
        self.began.append((number, self.now))
        after = self.reach_s[number - 1]
        await trio.sleep(float("inf") if after is None else after)
        if number in self.refuse:
            raise ConnectionRefusedError(111, "Connection refused")
        self.raws.append(Raw(number))
        return self.raws[-1]

    async def secure(self, _: Address, raw: Raw) -> int:
        self.securing += 1
        assert self.securing == 1
        await trio.sleep(self.secure_s)
        self.securing -= 1
        if raw.number in self.bad_keys:
            raise LinkClosed("somebody else is there")
        return raw.number

    async def race(self) -> int:
        return await Race[Raw, int](self.reach, self.secure).run("the peer", ADDRESSES[: len(self.reach_s)])


def test_the_first_is_dialled_at_once_and_the_others_in_steps() -> None:
    async def main() -> None:
        net = Net([None, None, 0.1, None])
        assert await net.race() == 3
        assert net.began == [(1, 0.0), (2, 0.25), (3, 0.5)]
        assert net.now == 0.6

    run(main)


def test_an_address_that_refuses_delays_nothing() -> None:
    async def main() -> None:
        net = Net([0.01, 0.01, 0.01], refuse={1, 2})
        assert await net.race() == 3
        assert net.began == [(1, 0.0), (2, 0.01), (3, 0.02)]

    run(main)


def test_a_slow_handshake_starts_no_others() -> None:
    async def main() -> None:
        net = Net([0.1, 0.1], secure_s=2.0)
        assert await net.race() == 1
        assert net.began == [(1, 0.0)]

    run(main)


def test_when_the_handshake_fails_the_next_one_has_its_turn() -> None:
    async def main() -> None:
        net = Net([0.3, 0.1, None], secure_s=1.0)  # the second is there first, with the wrong key
        net.bad_keys = {2}
        assert await net.race() == 1
        assert net.began[:2] == [(1, 0.0), (2, 0.25)]
        assert [raw.aborted for raw in net.raws if raw.number == 2] == [True]
        assert [raw.aborted for raw in net.raws if raw.number == 1] == [False]

    run(main)


def test_those_that_lose_are_closed() -> None:
    async def main() -> None:
        net = Net([0.3, 0.06], secure_s=0.5)  # both are there before either is secured
        assert await net.race() == 1
        assert sorted((raw.number, raw.aborted) for raw in net.raws) == [(1, False), (2, True)]

    run(main)


def test_when_none_works_each_says_why() -> None:
    async def main() -> None:
        net = Net([0.0, 0.0], refuse={1})
        net.bad_keys = {2}
        with pytest.raises(PeerUnreachable, match=r"192\.0\.2\.1.*Connection refused; .*192\.0\.2\.2.*somebody else"):
            await net.race()
        with pytest.raises(PeerUnreachable, match="no address is known"):
            await Race[Raw, int](net.reach, net.secure).run("the peer", [])

    run(main)


class Resolver(trio.abc.HostnameResolver):
    """Says that every name is at a private address."""

    async def getaddrinfo(self, host: bytes | None, port: Any, *_: int, **__: int) -> Any:
        await trio.lowlevel.checkpoint()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.1.2.3", int(port)))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


@pytest.mark.invariant("S7")
def test_no_name_but_the_operators_leads_into_our_own_network() -> None:
    """A peer that names a name chooses where it leads; the operator's own names lead where they always did."""

    class Tried(OSError):
        pass

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(Resolver())
        tried: list[str] = []

        async def connect_from(port: int, address: Address) -> trio.SocketStream:
            await trio.lowlevel.checkpoint()
            tried.append(address.host)
            raise Tried("refused")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dial, "connect_from", connect_from)
            transport = Libp2pTransport(
                PrivateKey(bytes(32)), [], allow_private=False, own_names=["Node.Mercy.example"]
            )
            with pytest.raises(PeerUnreachable, match="private network"):
                await transport._reach(parse_address("/dns4/db.evil.example/tcp/5432"), "peer")
            assert tried == []
            with pytest.raises(PeerUnreachable, match="refused"):
                await transport._reach(parse_address("/dns4/node.mercy.example/tcp/4001"), "peer")
            assert tried == ["10.1.2.3"]

    run(main)
