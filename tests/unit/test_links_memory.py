"""Links over the in-memory network, with real certificates and a virtual clock."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
import trio.testing

from comity.errors import (
    Busy,
    ConfigError,
    DeadlineExceeded,
    FrameTooLarge,
    LinkClosed,
    LinkError,
    PeerNotAttested,
    PeerRefused,
    PeerUnreachable,
    PolicyDenied,
    SignatureInvalid,
)
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.links import LinkLimits, Links
from comity_node.links.inbound import InboundLink
from comity_node.links.life import Life
from comity_node.links.table import PeerTable
from comity_node.protocol.session import SessionLimits
from comity_node.transport.base import ByteStream, Priority
from comity_node.transport.memory import MemoryNetwork, MemoryTransport

Consortium = Callable[..., tuple[TrustStore, dict[str, NodeIdentity]]]
MERCY, STLUKES, HOPE = "mercy.example", "stlukes.example", "hope.example"


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def echo(_: Attested, payload: bytes) -> bytes:
    return payload


@dataclass
class Net:
    """Nodes on one network, each with its own trust store."""

    network: MemoryNetwork = field(default_factory=MemoryNetwork)

    def links(
        self,
        identity: NodeIdentity,
        trust: TrustStore,
        on_request: Callable[[Attested, bytes], Awaitable[bytes]] = echo,
        *,
        limits: LinkLimits | None = None,
        **rest: Any,
    ) -> tuple[Links, MemoryTransport]:
        transport = self.network.transport(identity.peer_id)
        links = Links(
            transport,
            identity,
            trust,
            on_request,
            now_ms=lambda: time.time_ns() // 1_000_000,
            random_bytes=lambda count: bytes(count),
            limits=limits,
            **rest,
        )
        return links, transport


def running(*links: Links) -> AbstractAsyncContextManager[trio.Nursery]:
    @asynccontextmanager
    async def scope() -> Any:
        async with trio.open_nursery() as nursery:
            for each in links:
                await nursery.start(each.run)
            yield nursery
            nursery.cancel_scope.cancel()

    return scope()


async def until(links: Links, condition: Callable[[], bool], timeout_s: float = 120) -> None:
    with trio.fail_after(timeout_s):
        while True:
            version = links.changes.version
            if condition():
                return
            await links.changes.wait(version)


def test_two_members_link_and_answer_each_other(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)
    seen: list[tuple[str, bytes]] = []

    async def answer(who: Attested, payload: bytes) -> bytes:
        seen.append((who.organization, payload))
        return payload[::-1]

    async def main() -> None:
        net = Net()
        a, _ = net.links(nodes[MERCY], trust, answer)
        b, _ = net.links(nodes[STLUKES], trust, answer)
        async with running(a, b):
            a.add_peer(b.peer_id)
            assert (await a.wait_for(b.peer_id, 10)).organization == STLUKES
            assert await a.request(b.peer_id, b"abc", 5) == b"cba"
            # b has learned of a from a's Hello alone.
            await b.wait_for(a.peer_id, 10)
            assert await b.request(a.peer_id, b"xyz", 5) == b"zyx"
            state = b.state(a.peer_id)
            assert state is not None
            assert (state.organization, state.node) == (MERCY, "spiffe://mercy.example/node/n1")
            assert (state.messages_sent, state.messages_received) == (2, 2)
            assert state.bytes_sent > 0
            assert state.bytes_received > 0

    run(main)
    assert seen == [(MERCY, b"abc"), (STLUKES, b"xyz")]


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("dialler", ["stranger", "member"])
def test_a_node_of_a_foreign_ca_is_cut_and_gets_no_answer(consortium: Consortium, dialler: str) -> None:
    trust, nodes = consortium(MERCY)
    foreign_trust, foreign = consortium(STLUKES)
    # The stranger claims the same consortium, epoch and digest; only its CA is not ours.
    lying = TrustStore(replace(trust.bundle, members={**trust.bundle.members, **foreign_trust.bundle.members}))
    requests: list[bytes] = []

    async def count(_: Attested, payload: bytes) -> bytes:
        requests.append(payload)
        return b""

    async def main() -> None:
        net = Net()
        member, member_transport = net.links(nodes[MERCY], trust, count)
        stranger, _ = net.links(foreign[STLUKES], lying, count)
        async with running(member, stranger):
            if dialler == "stranger":
                stranger.add_peer(member.peer_id)
            else:
                member.add_peer(stranger.peer_id)
            side, other = (stranger, member) if dialler == "stranger" else (member, stranger)
            await until(
                side, lambda: (s := side.state(other.peer_id)) is not None and s.state == "down" and bool(s.reason)
            )
            state = side.state(other.peer_id)
            assert state is not None
            assert "stlukes.example is no member" in state.reason
            with pytest.raises(PeerUnreachable):
                await side.request(other.peer_id, b"please", 5)
            assert stranger.peer_id in member_transport.disconnected
            assert stranger.peer_id not in member_transport.confirmed

    run(main)
    assert requests == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"epoch": 7}, "wrong_epoch"),
        ({"consortium": "cardiology"}, "wrong_consortium"),
        ({"digest": b"x" * 32}, "wrong_bundle"),
    ],
)
def test_another_bundle_is_refused_with_the_reason(consortium: Consortium, change: dict[str, Any], reason: str) -> None:
    trust, nodes = consortium(MERCY, STLUKES)

    async def main() -> None:
        net = Net()
        a, _ = net.links(nodes[MERCY], trust)
        b, _ = net.links(nodes[STLUKES], TrustStore(replace(trust.bundle, **change)))
        async with running(a, b):
            b.add_peer(a.peer_id)
            await until(b, lambda: (s := b.state(a.peer_id)) is not None and reason in s.reason)
            assert a.peers() == []

    run(main)


@pytest.mark.invariant("S2")
def test_nodes_one_epoch_apart_link_and_who_was_expelled_is_refused(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES, HOPE)
    members = {name: roots for name, roots in trust.bundle.members.items() if name != HOPE}
    ahead = replace(trust.bundle, epoch=2, digest=b"2" * 32, members=members, history=(trust.bundle,))
    forked = replace(trust.bundle, digest=b"x" * 32)

    async def main() -> None:
        net = Net()
        a, _ = net.links(nodes[MERCY], TrustStore(ahead))
        behind, _ = net.links(nodes[STLUKES], trust)
        expelled, _ = net.links(nodes[HOPE], trust)
        async with running(a, behind, expelled):
            behind.add_peer(a.peer_id)
            expelled.add_peer(a.peer_id)
            await behind.wait_for(a.peer_id, 5)
            await a.wait_for(behind.peer_id, 5)
            await until(expelled, lambda: (s := expelled.state(a.peer_id)) is not None and "no member" in s.reason)
            assert {state.organization for state in a.peers()} == {STLUKES}
            assert (behind.latest_epoch, a.latest_epoch) == (2, 1)
        other, _ = Net().links(nodes[MERCY], TrustStore(ahead))
        with pytest.raises(PeerNotAttested, match="another trust bundle of the same epoch 1"):
            other._greeter.judge(
                link_hello(nodes[STLUKES], TrustStore(forked)), nodes[STLUKES].peer_id, [Priority.WORK],
                needs_window=False,
            )  # fmt: skip

    run(main)


def link_hello(identity: NodeIdentity, trust: TrustStore) -> bytes:
    links, _ = Net().links(identity, trust)
    return links._greeter.hello(Priority.WORK)


@pytest.mark.invariant("S2")
def test_who_is_expelled_while_it_is_linked_is_cut_at_once_and_the_others_stay(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES, HOPE)
    members = {name: roots for name, roots in trust.bundle.members.items() if name != HOPE}
    ahead = replace(trust.bundle, epoch=2, digest=b"2" * 32, members=members)

    async def main() -> None:
        net = Net()
        mine = TrustStore(trust.bundle)
        a, transport = net.links(nodes[MERCY], mine)
        others = [net.links(nodes[name], trust)[0] for name in (STLUKES, HOPE)]
        async with running(a, *others):
            for other in others:
                other.add_peer(a.peer_id)
                await other.wait_for(a.peer_id, 5)
                await a.wait_for(other.peer_id, 5)
            began = trio.current_time()
            mine.replace(ahead)
            a.look_again()
            await until(others[1], lambda: (s := others[1].state(a.peer_id)) is not None and s.state != "connected")
            assert trio.current_time() - began < 1, "not only when the next sign of life is due"
            assert transport.disconnected[:1] == [others[1].peer_id]
            state = a.state(others[0].peer_id)
            assert state is not None
            assert (state.state, state.reconnects) == ("connected", 0)
            with pytest.raises(LinkError):
                await others[1].request(a.peer_id, b"please", 5)

    run(main)


@pytest.mark.invariant("S5")
def test_a_chain_shown_by_another_peer_is_refused(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES, HOPE)
    thief = NodeIdentity(nodes[HOPE].key, nodes[STLUKES].node, nodes[STLUKES].chain)

    async def main() -> None:
        net = Net()
        a, _ = net.links(nodes[MERCY], trust)
        b, _ = net.links(thief, trust)
        async with running(a, b):
            b.add_peer(a.peer_id)
            await until(b, lambda: (s := b.state(a.peer_id)) is not None and "wrong_peer" in s.reason)
            assert a.peers() == []

    run(main)


def test_errors_of_the_handler_come_back_with_their_code(
    consortium: Consortium, caplog: pytest.LogCaptureFixture
) -> None:
    trust, nodes = consortium(MERCY, STLUKES)

    async def answer(_: Attested, payload: bytes) -> bytes:
        if payload == b"deny":
            raise PolicyDenied("rule never-raw-rows says no")
        if payload == b"busy":
            raise Busy("come back", retry_after_ms=1234)
        if payload == b"bug":
            raise ZeroDivisionError("secret detail")
        return b"x" * 5_000_000 if payload == b"large" else b"fine"

    async def main() -> None:
        net = Net()
        a, _ = net.links(nodes[MERCY], trust)
        b, _ = net.links(nodes[STLUKES], trust, answer)
        async with running(a, b):
            a.add_peer(b.peer_id)
            await a.wait_for(b.peer_id, 10)
            with pytest.raises(PeerRefused, match="never-raw-rows") as refused:
                await a.request(b.peer_id, b"deny", 5)
            assert refused.value.remote_code == "policy_denied"
            with pytest.raises(Busy) as busy:
                await a.request(b.peer_id, b"busy", 5)
            assert busy.value.retry_after_ms == 1234
            with pytest.raises(PeerRefused) as bug:
                await a.request(b.peer_id, b"bug", 5)
            assert "secret" not in str(bug.value)
            with pytest.raises(FrameTooLarge):
                await a.request(b.peer_id, b"large", 5)
            with pytest.raises(FrameTooLarge):
                await a.request(b.peer_id, b"x" * 5_000_000, 5)
            assert await a.request(b.peer_id, b"", 5) == b"fine"

    run(main)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.invariant("R4")
@pytest.mark.invariant("S7")
def test_an_overloaded_peer_is_felt_as_waiting_and_stays_bounded(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)
    gate = trio.Event()
    working = 0
    most = 0

    async def slow(_: Attested, payload: bytes) -> bytes:
        nonlocal working, most
        working += 1
        most = max(most, working)
        await gate.wait()
        working -= 1
        return payload

    async def main() -> None:
        net = Net()
        limits = LinkLimits(session=SessionLimits(max_outstanding=64), max_handlers=10, max_waiting=30)
        a, _ = net.links(nodes[MERCY], trust, limits=limits)
        b, _ = net.links(nodes[STLUKES], trust, slow, limits=limits)
        results: list[str] = []

        async def ask(number: int) -> None:
            try:
                results.append((await a.request(b.peer_id, b"%d" % number, 60)).decode())
            except Busy as error:
                results.append(str(error))

        async with running(a, b):
            a.add_peer(b.peer_id)
            await a.wait_for(b.peer_id, 10)
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(ask, number)
                await trio.testing.wait_all_tasks_blocked()
                state, there = a.state(b.peer_id), b.state(a.peer_id)
                assert state is not None
                assert there is not None
                assert (state.in_flight, state.waiting, there.serving) == (64, 30, 64)
                assert results == [f"30 calls wait for {b.peer_id} already"] * 6, "that is all there is of it"
                gate.set()
            assert len({each for each in results if each.isdigit()}) == 94, "each of the others has its answer"
            assert most == 10
            assert await a.request(b.peer_id, b"again", 5) == b"again"

    run(main)


@pytest.mark.invariant("S7")
def test_requests_being_worked_on_are_bounded_in_bytes(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)
    gate = trio.Event()

    async def slow(_: Attested, payload: bytes) -> bytes:
        await gate.wait()
        return b"done"

    async def main() -> None:
        net = Net()
        limits = LinkLimits(max_handler_bytes=100_000)
        a, _ = net.links(nodes[MERCY], trust, limits=limits)
        b, _ = net.links(nodes[STLUKES], trust, slow, limits=limits)
        async with running(a, b) as nursery:
            a.add_peer(b.peer_id)
            await a.wait_for(b.peer_id, 10)
            for _ in range(2):
                nursery.start_soon(a.request, b.peer_id, b"x" * 45_000, 60)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Busy, match="90000 bytes"):
                await a.request(b.peer_id, b"x" * 45_000, 60)
            gate.set()
            assert await a.request(b.peer_id, b"x" * 45_000, 60) == b"done"

    run(main)


def test_a_deadline_passes_and_the_late_answer_is_dropped(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)
    gate = trio.Event()

    async def slow(_: Attested, payload: bytes) -> bytes:
        if payload == b"slow":
            await gate.wait()
        return payload

    async def main() -> None:
        net = Net()
        a, _ = net.links(nodes[MERCY], trust)
        b, _ = net.links(nodes[STLUKES], trust, slow)
        async with running(a, b):
            a.add_peer(b.peer_id)
            await a.wait_for(b.peer_id, 10)
            with pytest.raises(DeadlineExceeded):
                await a.request(b.peer_id, b"slow", 2)
            gate.set()
            assert await a.request(b.peer_id, b"next", 5) == b"next"
            state = a.state(b.peer_id)
            assert state is not None
            assert state.reconnects == 0

    run(main)


@pytest.mark.invariant("R3")
def test_a_partition_is_noticed_within_seconds_and_healed(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)

    async def main() -> None:
        net = Net()
        a, _ = net.links(nodes[MERCY], trust)
        b, _ = net.links(nodes[STLUKES], trust, limits=LinkLimits(dead_after_s=1000, idle_s=1000))
        async with running(a, b):
            a.add_peer(b.peer_id)
            await a.wait_for(b.peer_id, 10)
            began = trio.current_time()
            net.network.partition(a.peer_id, b.peer_id)
            with pytest.raises(LinkClosed):
                await a.request(b.peer_id, b"anybody?", 60)
            assert trio.current_time() - began <= LinkLimits().dead_after_s
            await until(a, lambda: (s := a.state(b.peer_id)) is not None and "no sign of life" in s.reason)
            with pytest.raises(PeerUnreachable, match="no link to"):
                await a.request(b.peer_id, b"anybody?", 60)
            net.network.heal(a.peer_id, b.peer_id)
            state = await a.wait_for(b.peer_id, 60)
            assert state.reconnects == 1
            assert await a.request(b.peer_id, b"hello", 5) == b"hello"

    run(main)


def test_broken_streams_reconnect_and_fail_what_was_outstanding(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)
    entered = trio.Event()

    async def never(_: Attested, payload: bytes) -> bytes:
        if payload == b"never":
            entered.set()
            await trio.sleep_forever()
        return payload

    async def main() -> None:
        net = Net()
        a, _ = net.links(nodes[MERCY], trust)
        b, _ = net.links(nodes[STLUKES], trust, never)

        async def kill() -> None:
            await entered.wait()
            net.network.kill(a.peer_id, b.peer_id)

        async with running(a, b) as nursery:
            a.add_peer(b.peer_id)
            await a.wait_for(b.peer_id, 10)
            nursery.start_soon(kill)
            with pytest.raises(LinkClosed):
                await a.request(b.peer_id, b"never", 60)
            await a.wait_for(b.peer_id, 10)
            assert await a.request(b.peer_id, b"again", 5) == b"again"

    run(main)


def test_backoff_grows_with_jitter_and_a_peer_that_comes_back_is_dialled_at_once(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)

    async def main() -> None:
        net = Net()
        a, _ = net.links(nodes[MERCY], trust)
        attempts: list[float] = []
        reachable = net.network.reachable

        def watched(source: str, target: str) -> MemoryTransport | None:
            attempts.append(trio.current_time())
            return reachable(source, target)

        net.network.reachable = watched  # type: ignore[method-assign]
        async with running(a) as nursery:
            a.add_peer(nodes[STLUKES].peer_id)
            await trio.sleep(200)
            gaps = [later - earlier for earlier, later in itertools.pairwise(attempts)]
            assert gaps[:4] == pytest.approx([0.25, 0.5, 1.0, 2.0])  # half of 0.5, 1, ...: the random bytes are zero
            assert gaps[-1] == pytest.approx(15)
            b, _ = net.links(nodes[STLUKES], trust)
            await nursery.start(b.run)
            b.add_peer(a.peer_id)
            began = trio.current_time()
            await a.wait_for(b.peer_id, 60)
            assert trio.current_time() - began < 1

    run(main)


@pytest.mark.invariant("R5")
def test_drain_finishes_what_was_taken_and_takes_no_more(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)
    entered, gate = trio.Event(), trio.Event()

    async def slow(_: Attested, payload: bytes) -> bytes:
        entered.set()
        await gate.wait()
        return payload

    async def main() -> None:
        net = Net()
        a, _ = net.links(nodes[MERCY], trust)
        b, _ = net.links(nodes[STLUKES], trust, slow)
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append(await a.request(b.peer_id, b"taken", 60))

        async with running(a, b) as nursery:
            a.add_peer(b.peer_id)
            await a.wait_for(b.peer_id, 10)
            nursery.start_soon(ask)
            await entered.wait()
            async with trio.open_nursery() as draining:
                draining.start_soon(b.drain, 30)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(LinkError):
                    await a.request(b.peer_id, b"too late", 5)
                gate.set()
            await until(a, lambda: bool(answers))
            assert answers == [b"taken"]
            await until(a, lambda: (s := a.state(b.peer_id)) is not None and "shutting down" in s.reason)

    run(main)


@pytest.mark.invariant("R5")
def test_a_request_that_crosses_the_goodbye_is_told_to_come_back(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)
    gate = trio.Event()

    async def slow(_: Attested, payload: bytes) -> bytes:
        await gate.wait()
        return payload

    async def main() -> None:
        net = Net()
        a, _ = net.links(nodes[MERCY], trust)
        b, _ = net.links(nodes[STLUKES], trust, slow)
        outcomes: list[str] = []

        async def ask(payload: bytes) -> None:
            try:
                outcomes.append((await a.request(b.peer_id, payload, 60)).decode())
            except Busy as error:
                outcomes.append(str(error))

        async with running(a, b) as nursery:
            a.add_peer(b.peer_id)
            await a.wait_for(b.peer_id, 10)
            nursery.start_soon(ask, b"taken")
            await trio.testing.wait_all_tasks_blocked()
            net.network.partition(a.peer_id, b.peer_id)
            nursery.start_soon(ask, b"crossing")
            nursery.start_soon(b.drain, 30)
            await trio.testing.wait_all_tasks_blocked()
            net.network.heal(a.peer_id, b.peer_id)
            await trio.testing.wait_all_tasks_blocked()
            assert outcomes == ["the node is shutting down"]
            gate.set()
            await trio.testing.wait_all_tasks_blocked()
            assert outcomes == ["the node is shutting down", "taken"]

    run(main)


def test_limits_of_the_peer_table_and_malformed_peers(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES, HOPE)

    async def main() -> None:
        net = Net()
        a, _ = net.links(nodes[MERCY], trust, limits=LinkLimits(max_peers=1, max_addresses=2))
        a.add_peer(nodes[STLUKES].peer_id, ["/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.1/tcp/2", "/ip4/192.0.2.1/tcp/3"])
        assert len(a.peers()[0].addresses) == 2
        with pytest.raises(Busy):
            a.add_peer(nodes[HOPE].peer_id)
        with pytest.raises(SignatureInvalid):
            a.add_peer("12D3KooWnonsense")
        with pytest.raises(ConfigError, match="not an address of"):
            a.add_peer(nodes[STLUKES].peer_id, [f"/ip4/192.0.2.1/tcp/1/p2p/{nodes[HOPE].peer_id}"])
        b, _ = net.links(nodes[HOPE], trust)
        async with running(a, b):
            b.add_peer(a.peer_id)
            await until(b, lambda: (s := b.state(a.peer_id)) is not None and "no room" in s.reason)
            await a.remove_peer(nodes[STLUKES].peer_id)
            await until(a, lambda: [state.organization for state in a.peers()] == [HOPE])
        with pytest.raises(PeerNotAttested):
            Links(
                net.network.transport(nodes[HOPE].peer_id),
                nodes[MERCY],
                trust,
                echo,
                now_ms=lambda: 0,
                random_bytes=bytes,
            )

    run(main)


@pytest.mark.parametrize("direction", ["outbound", "inbound", "table"])
def test_a_certificate_that_expires_ends_the_link(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    trust, nodes = consortium(MERCY, STLUKES)
    expires_ms = trust.bundle.expires_ms

    async def forever(*_: object) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        net = Net()
        a, transport = net.links(nodes[MERCY], trust)
        b, _ = net.links(nodes[STLUKES], trust)
        # a's clock runs with the virtual one, from just before the bundle expires.
        base_ms = int(trio.current_time() * 1000)
        a._greeter._now_ms = lambda: expires_ms - 20_000 + int(trio.current_time() * 1000) - base_ms
        async with running(a, b):
            a.add_peer(b.peer_id)
            await a.wait_for(b.peer_id, 10)
            await b.wait_for(a.peer_id, 10)
            await until(a, lambda: (s := a.state(b.peer_id)) is not None and s.state == "down")
            await trio.sleep(1)  # for the farewell
            assert trio.current_time() * 1000 - base_ms < 30_000
            assert b.peer_id in transport.disconnected

    # The other checks are switched off, so that this one alone must notice.
    checks = {"outbound": (Life, "_keep_alive"), "inbound": (InboundLink, "_watch"), "table": (PeerTable, "_watch")}
    for name, (owner, check) in checks.items():
        if name != direction:
            monkeypatch.setattr(owner, check, forever)
    run(main)


def test_tunnels_carry_bytes_and_are_refused_with_the_reason(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)

    async def serve(who: Attested, name: str, stream: ByteStream) -> None:
        assert who.organization == MERCY
        if name != "flower":
            raise PolicyDenied(f"no tunnel {name}")
        while data := await stream.receive():
            await stream.send(data.upper())
        await stream.aclose()

    async def main() -> None:
        net = Net()
        limits = LinkLimits(max_tunnels=2)
        a, _ = net.links(nodes[MERCY], trust, limits=limits)
        b, _ = net.links(nodes[STLUKES], trust, on_tunnel=serve, limits=limits)
        async with running(a, b):
            a.add_peer(b.peer_id)
            with pytest.raises(PeerRefused, match="no tunnel ssh") as refused:
                await a.open_tunnel(b.peer_id, "ssh")
            assert refused.value.remote_code == "policy_denied"
            first, second = [await _opened(a, b, b"abc") for _ in range(2)]
            with pytest.raises(Busy, match="tunnels to"):
                await a.open_tunnel(b.peer_id, "flower")
            await first.send(b"more")
            await first.send_eof()
            assert await _all(first) == b"MORE"
            await first.aclose()
            second.reset()
            third = await _opened(a, b, b"def")
            await third.aclose()
            with pytest.raises(PeerUnreachable):
                await a.open_tunnel(nodes[MERCY].peer_id, "flower")

    run(main)


@pytest.mark.invariant("S7")
def test_a_peer_that_opens_too_many_tunnels_is_told_so(consortium: Consortium) -> None:
    trust, nodes = consortium(MERCY, STLUKES)

    async def serve(_: Attested, __: str, stream: ByteStream) -> None:
        while data := await stream.receive():
            await stream.send(data.upper())

    async def main() -> None:
        net = Net()
        a, _ = net.links(nodes[MERCY], trust)
        b, _ = net.links(nodes[STLUKES], trust, on_tunnel=serve, limits=LinkLimits(max_tunnels=1))
        async with running(a, b):
            a.add_peer(b.peer_id)
            first = await _opened(a, b, b"abc")
            with pytest.raises(Busy, match="tunnels of yours"):
                await a.open_tunnel(b.peer_id, "flower")
            await first.aclose()
            await trio.testing.wait_all_tasks_blocked()
            await (await _opened(a, b, b"def")).aclose()

    run(main)


async def _opened(a: Links, b: Links, probe: bytes) -> ByteStream:
    # The server accepts with its first use of the stream, which here is a read.
    tunnel = await a.open_tunnel(b.peer_id, "flower")
    await tunnel.send(probe)
    assert await tunnel.receive() == probe.upper()
    return tunnel


async def _all(stream: ByteStream) -> bytes:
    data = b""
    while piece := await stream.receive():
        data += piece
    return data
