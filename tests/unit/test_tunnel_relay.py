"""Both ends of a tunnel at work: a local client, an entry, streams in memory, an exit, and a server on loopback."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.node_pb2 import Node
from trio.testing import MockClock, wait_all_tasks_blocked

from comity.errors import Busy, ConfigError, PolicyDenied, StorageError
from comity_node.transport.memory import MemoryNetwork, MemoryTransport
from comity_node.tunnel import Duplex, FleetEntry, FleetExit, TunnelEvent, TunnelLimits

PROTOCOL = "/test"
ANSWER = bytes(range(256)) * 4


@dataclass(frozen=True)
class Member:
    organization: str
    peer_id: str


def call(name: str, body: bytes, key: bytes = b"key", **headers: str) -> bytes:
    fields = {
        "host": "x",
        "content-type": "application/protobuf",
        "content-length": str(len(body)),
        "flwr-public-key": base64.b64encode(key).decode(),
        **headers,
    }
    lines = [f"POST /v1/{name} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def register(key: bytes = b"key") -> bytes:
    return call("fleet/register-node", RegisterNodeFleetRequest(public_key=key).SerializeToString(), key)


def pull(key: bytes = b"key") -> bytes:
    return call("fleet/pull-messages", PullMessagesRequest(node=Node(node_id=5)).SerializeToString(), key)


def ok(body: bytes = ANSWER) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


@dataclass
class World:
    """A server that answers with `reply`, an exit before it, and as many entries as are asked for."""

    nursery: trio.Nursery
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    events: list[TunnelEvent] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    reply: Callable[[], Awaitable[bytes]] = field(default=lambda: _answered())
    exit: FleetExit | None = None

    async def on_event(self, event: TunnelEvent) -> None:
        self.events.append(event)

    async def serve(self, stream: trio.SocketStream) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some()
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += await stream.receive_some()
        self.requests.append(head + b"\r\n\r\n" + body)
        await stream.send_all(await self.reply())
        await stream.aclose()

    async def start(self, *, limits: TunnelLimits | None = None, port: int | None = None) -> None:
        if port is None:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]
            self.nursery.start_soon(trio.serve_listeners, self.serve, listeners)
        self.exit = FleetExit("flower", f"127.0.0.1:{port}", on_event=self.on_event, limits=limits)
        server = self.network.transport("server")
        end = self.exit
        server.serve(
            PROTOCOL, lambda stream: end.handle(Member(f"{stream.remote_peer}.example", stream.remote_peer), stream)
        )
        await self.nursery.start(server.run)

    async def member(self, name: str) -> MemoryTransport:
        transport = self.network.transport(name)
        await self.nursery.start(transport.run)
        return transport

    async def entry(self, name: str, *, apps: tuple[str, ...] = (), limits: TunnelLimits | None = None) -> int:
        transport = await self.member(name)
        entry = FleetEntry(
            "flower",
            "server.example",
            partial(transport.open_stream, "server", (), PROTOCOL),
            app_digests=apps,
            on_event=self.on_event,
            limits=limits,
        )
        port: int = await self.nursery.start(entry.run)
        return port


async def _answered() -> bytes:
    return ok()


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(nursery)
        nursery.cancel_scope.cancel()


async def ask(port: int, *requests: bytes) -> list[bytes]:
    """Send requests one after the other on one connection; return the answers."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    answers = []
    for request in requests:
        await stream.send_all(request)
        answers.append(await whole_answer(stream))
    await stream.aclose()
    return answers


async def whole_answer(stream: trio.SocketStream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        got = await stream.receive_some()
        if not got:
            return data
        data += got
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        got = await stream.receive_some()
        if not got:
            break
        body += got
    return head + b"\r\n\r\n" + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def test_calls_pass_and_their_answers_come_back() -> None:
    async def main() -> None:
        async with world() as it:
            await it.start()
            port = await it.entry("a")
            answers = await ask(port, register(), pull(), pull())
            assert [status(answer) for answer in answers] == [200, 200, 200]
            assert all(answer.endswith(ANSWER) for answer in answers)
            assert [request.split(b" ")[1] for request in it.requests[:2]] == [
                b"/v1/fleet/register-node",
                b"/v1/fleet/pull-messages",
            ]
            assert [(event.kind, event.organization) for event in it.events] == [("registered", "a.example")]

    trio.run(main)


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("path", ["control/start-run", "control/list-runs", "runtime/push-messages"])
def test_an_entry_refuses_other_apis(path: str) -> None:
    async def main() -> None:
        async with world() as it:
            await it.start()
            (answer,) = await ask(await it.entry("a"), call(path, b""))
            assert status(answer) == 403
            assert not it.requests
            assert [(event.kind, event.code) for event in it.events] == [("refused", "policy_denied")]

    trio.run(main)


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(
    "path", ["control/start-run", "control/list-runs", "runtime/push-messages", "fleet/../control/x"]
)
def test_an_exit_refuses_other_apis_to_a_peer_that_has_no_entry(path: str) -> None:
    async def main() -> None:
        async with world() as it:
            await it.start()
            stream = await (await it.member("bad")).open_stream("server", (), PROTOCOL)
            await stream.send(call(path, b""))
            assert status(await stream.receive()) == 403
            assert not it.requests
            (event,) = it.events
            assert (event.kind, event.organization, event.code) == ("refused", "bad.example", "policy_denied")

    trio.run(main)


@pytest.mark.invariant("S5")
def test_a_peer_cannot_act_as_another_peers_node() -> None:
    async def main() -> None:
        async with world() as it:
            await it.start()
            await ask(await it.entry("a"), register(b"of a"))
            port = await it.entry("bad")
            for request in (register(b"of a"), pull(b"of a"), pull(b"of nobody")):
                (answer,) = await ask(port, request)
                assert status(answer) == 403
            assert len(it.requests) == 1
            (answer,) = await ask(port, register(b"of bad"))
            assert status(answer) == 200

    trio.run(main)


@pytest.mark.invariant("S6")
def test_only_app_bundles_that_the_organization_knows_come_in() -> None:
    def fab(digest: str) -> bytes:
        body = GetFabRequest(node=Node(node_id=5), hash_str=digest, run_id=1).SerializeToString()
        return call("fleet/get-fab", body)

    async def main() -> None:
        async with world() as it:
            await it.start()
            port = await it.entry("a", apps=("ab" * 32,))
            answers = await ask(port, register(), fab("ab" * 32), fab("cd" * 32))
            assert [status(answer) for answer in answers] == [200, 200, 403]
            assert len(it.requests) == 2

    trio.run(main)


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 307 Elsewhere\r\nlocation: http://10.0.0.1/\r\ncontent-length: 0\r\n\r\n",
        b"garbage\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_answer_becomes_one_that_a_supernode_repeats(reply: bytes) -> None:
    async def answered() -> bytes:
        return reply

    async def main() -> None:
        async with world() as it:
            it.reply = answered
            await it.start()
            (answer,) = await ask(await it.entry("a"), register())
            assert status(answer) == 503
            assert b"10.0.0.1" not in answer

    trio.run(main)


def test_an_answer_that_breaks_off_is_not_completed() -> None:
    async def answered() -> bytes:
        return ok()[:-10]

    async def main() -> None:
        async with world() as it:
            it.reply = answered
            await it.start()
            async with await trio.open_tcp_stream("127.0.0.1", await it.entry("a")) as stream:
                await stream.send_all(register())
                with suppress(trio.BrokenResourceError):
                    assert not (await whole_answer(stream)).endswith(ANSWER)

    trio.run(main)


def test_a_dead_superlink_is_an_answer_that_a_supernode_repeats() -> None:
    async def main() -> None:
        async with world() as it:
            await it.start(port=1)
            (answer,) = await ask(await it.entry("a"), register())
            assert status(answer) == 503

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_peer_has_only_so_many_connections() -> None:
    async def main() -> None:
        limits = TunnelLimits(connections=2)
        async with world() as it:
            await it.start(limits=limits)
            assert it.exit is not None
            member = await it.member("a")
            streams = [await member.open_stream("server", (), PROTOCOL) for _ in range(2)]
            await streams[0].send(register())
            await streams[0].receive()
            ours, _ = it.network.connect("server", "a")
            with pytest.raises(Busy):
                await it.exit.handle(Member("a.example", "a"), ours)
            other, _ = it.network.connect("server", "b")
            with trio.move_on_after(0):
                await it.exit.handle(Member("b.example", "b"), other)

    trio.run(main)


@pytest.mark.invariant("R4")
def test_a_large_answer_waits_for_its_reader() -> None:
    body = bytes(8 * 1024 * 1024)

    async def answered() -> bytes:
        return ok(body)

    async def main() -> None:
        async with world() as it:
            it.reply = answered
            await it.start()
            async with await trio.open_tcp_stream("127.0.0.1", await it.entry("a")) as stream:
                await stream.send_all(register())
                await wait_all_tasks_blocked(0.05)
                assert len(await whole_answer(stream)) > len(body)

    trio.run(main)


def test_an_idle_connection_is_ended() -> None:
    async def main() -> None:
        async with world() as it:
            await it.start(limits=TunnelLimits(exit_idle_s=50))
            stream = await (await it.member("a")).open_stream("server", (), PROTOCOL)
            await stream.send(register()[:20])
            started = trio.current_time()
            with pytest.raises(Exception, match="reset"):
                await stream.receive()
            assert trio.current_time() - started == pytest.approx(50)

    trio.run(main, clock=MockClock(autojump_threshold=0.2))


def test_an_idle_connection_is_ended_by_its_entry_first() -> None:
    async def main() -> None:
        async with world() as it:
            await it.start()
            stream = await trio.open_tcp_stream("127.0.0.1", await it.entry("a", limits=TunnelLimits(entry_idle_s=40)))
            await stream.send_all(register()[:20])
            started = trio.current_time()
            with suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
            assert trio.current_time() - started == pytest.approx(40)
            await stream.aclose()

    trio.run(main, clock=MockClock(autojump_threshold=0.2))


def test_an_answer_that_does_not_come_is_given_up() -> None:
    async def never() -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async def main() -> None:
        async with world() as it:
            it.reply = never
            await it.start(limits=TunnelLimits(answer_s=30))
            stream = await (await it.member("a")).open_stream("server", (), PROTOCOL)
            await stream.send(register())
            started = trio.current_time()
            assert status(await stream.receive()) == 503
            assert trio.current_time() - started == pytest.approx(30)

    trio.run(main, clock=MockClock(autojump_threshold=0.2))


@pytest.mark.invariant("S8")
def test_what_cannot_be_written_down_does_not_happen() -> None:
    async def full(_: TunnelEvent) -> None:
        raise StorageError("the disk is full")

    async def main() -> None:
        async with world() as it:
            it.on_event = full  # type: ignore[assignment, method-assign]
            await it.start()
            stream = await (await it.member("a")).open_stream("server", (), PROTOCOL)
            await stream.send(register())
            with pytest.raises(Exception, match="reset"):
                await stream.receive()
            assert not it.requests

    trio.run(main)


def test_a_tunnel_that_the_other_side_refuses_says_so() -> None:
    async def refused() -> Duplex:
        raise PolicyDenied("no tunnel for you")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            entry = FleetEntry("flower", "s.example", refused, app_digests=(), on_event=_nothing)
            port = await nursery.start(entry.run)
            (answer,) = await ask(port, register())
            assert status(answer) == 403
            nursery.cancel_scope.cancel()

    trio.run(main)


async def _nothing(_: TunnelEvent) -> None: ...


@pytest.mark.parametrize(
    "target", ["10.0.0.1:80", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:70000", "evil.example:80", ""]
)
def test_an_exit_serves_loopback_only(target: str) -> None:
    with pytest.raises(ConfigError):
        FleetExit("flower", target, on_event=_nothing)


def test_a_port_in_use_is_an_error_of_the_configuration() -> None:
    async def main() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            port = listener.socket.getsockname()[1]
            entry = FleetEntry("f", "s.example", _never_opened, app_digests=(), on_event=_nothing, port=port)
            with pytest.raises(ConfigError, match=str(port)):
                await entry.run()

    trio.run(main)


async def _never_opened() -> Duplex:
    raise AssertionError
