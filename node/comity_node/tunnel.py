"""Flower's traffic through the nodes' links: an entry beside each SuperNode, an exit beside the SuperLink.

    SuperNode -> 127.0.0.1 -> entry -> link -> exit -> 127.0.0.1 -> SuperLink

Both ends terminate HTTP (`protocol.http_filter`) and look at each call (`protocol.fleet`): the exit so that a peer
reaches the Fleet API only and as one Flower node only; the entry so that the organization decides which app bundles
come in, and so that an answer cannot send its SuperNode elsewhere. Whether a tunnel may be opened or served at all is
the policy's decision (`tunnel.open`, `tunnel.serve`), made before a stream reaches this module.

Back-pressure: one request at a time on a connection, read in pieces of 64 KiB and only as fast as the other side
takes them. Connections, requests and answers are bounded in number, size and time.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

import trio

from comity.errors import (
    Busy,
    ComityError,
    ConfigError,
    DeadlineExceeded,
    LinkClosed,
    LinkError,
    PeerUnreachable,
    PolicyDenied,
    ProtocolError,
)
from comity_node.protocol.fleet import FleetCall, Pins, read_call
from comity_node.protocol.http_filter import (
    AnswerData,
    AnswerEnded,
    AnswerReader,
    AnswerStarted,
    ConnectionEnded,
    HttpLimits,
    RequestFilter,
    RequestReceived,
    RequestRefused,
)

FILTER = "flower-fleet"
_log = logging.getLogger(__name__)
_PIECE = 64 * 1024
_LOOPBACK = "127.0.0.1"


class Duplex(Protocol):
    """What a tunnel needs of a stream: `transport.base.ByteStream` is one, a local socket another."""

    async def receive(self, max_bytes: int = _PIECE) -> bytes:
        """Return some bytes, b"" at the end."""

    async def send(self, data: bytes) -> None:
        """Send all of `data`, waiting while the other side does not read."""

    async def aclose(self) -> None:
        """End the stream; what was sent still arrives."""

    def reset(self) -> None:
        """Tear the stream down at once."""


class Member(Protocol):
    """Who is at the other end of a stream: `comity.trust.Attested` is one."""

    @property
    def organization(self) -> str: ...  # noqa: D102
    @property
    def peer_id(self) -> str: ...  # noqa: D102


class StartedStatus(Protocol):
    """The part of `trio.TaskStatus` that an entry uses."""

    def started(self, value: int) -> None:
        """Report the port."""


@dataclass(frozen=True, slots=True)
class TunnelLimits:
    """Bounds of one end.

    An entry ends an idle connection before an exit does, so that it does not send a request into a stream that is
    just being closed.
    """

    #: Connections at a time: of the entry's SuperNode, of each peer at the exit.
    connections: int = 8
    entry_idle_s: float = 45.0
    exit_idle_s: float = 60.0
    #: From the end of a request to the end of its answer.
    answer_s: float = 120.0
    http: HttpLimits = field(default_factory=HttpLimits)


@dataclass(frozen=True, slots=True)
class TunnelEvent:
    """Something for the audit log: a call that was refused, or a Flower node that a member registered.

    `kind` is "refused" or "registered", `call` the Fleet call ("" if it was none), `organization` the other side.
    """

    kind: str
    tunnel: str
    organization: str
    call: str
    code: str
    reason: str


OnEvent = Callable[[TunnelEvent], Awaitable[None]]
OpenStream = Callable[[], Awaitable[Duplex]]


class FleetEntry:
    """Listens on loopback for this organization's SuperNode and carries its Fleet calls to the server's organization.

    Args:
        name: the tunnel's name at the other side.
        organization: who serves it.
        open_stream: opens a stream to that organization's exit, such as `links.open_tunnel`.
        app_digests: SHA-256 in hex of the app bundles that may come in. Flower's SuperNode runs no bundle whose
            content has another digest than the one it asked for, so refusing the question is enough.
        on_event: writes the audit log; awaited before a refusal is answered.
        port: where to listen; 0 for any free port.
    """

    def __init__(
        self,
        name: str,
        organization: str,
        open_stream: OpenStream,
        *,
        app_digests: Collection[str],
        on_event: OnEvent,
        port: int = 0,
        limits: TunnelLimits | None = None,
    ) -> None:
        self._name = name
        self._organization = organization
        self._open_stream = open_stream
        self._apps = frozenset(app_digests)
        self._on_event = on_event
        self._port = port
        self._limits = limits or TunnelLimits()
        self._open = 0

    async def run(self, *, task_status: StartedStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; `task_status` gets the port.

        Raises:
            ConfigError: the port is taken.
        """
        try:
            listeners = await trio.open_tcp_listeners(self._port, host=_LOOPBACK)
        except OSError as error:
            raise ConfigError(f"cannot listen on {_LOOPBACK}:{self._port} for the tunnel: {error.strerror}") from error
        port: int = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, listeners)
            task_status.started(port)

    async def _serve(self, stream: trio.SocketStream) -> None:
        local = SocketDuplex(stream)
        if self._open >= self._limits.connections:
            local.reset()
            return
        self._open += 1
        try:
            relay = _Relay(local, self._open_stream, self._check, self._report, self._limits, keep_upstream=True)
            await relay.run(self._limits.entry_idle_s)
        finally:
            self._open -= 1

    async def _check(self, call: FleetCall) -> None:
        if call.name == "get-fab" and call.fab not in self._apps:
            raise PolicyDenied(f"the app bundle {call.fab[:16]}... is not one that this organization lets in")

    async def _report(self, refused: RequestRefused, call: str) -> None:
        await self._on_event(TunnelEvent("refused", self._name, self._organization, call, refused.code, refused.reason))


class FleetExit:
    """Serves streams of other organizations: passes their Fleet calls to the SuperLink on loopback.

    Args:
        name: the tunnel's name.
        target: `host:port` of the SuperLink; a loopback address.
        on_event: writes the audit log; awaited before a refusal is answered.

    Raises:
        ConfigError: `target` is no loopback address.
    """

    def __init__(self, name: str, target: str, *, on_event: OnEvent, limits: TunnelLimits | None = None) -> None:
        host, _, port = target.rpartition(":")
        if (
            host not in (_LOOPBACK, "localhost")
            or not port.isascii()
            or not port.isdigit()
            or not 0 < int(port) < 65536
        ):
            raise ConfigError(f"a tunnel's target is {_LOOPBACK}:PORT, not {target!r}")
        self._name = name
        self._port = int(port)
        self._on_event = on_event
        self._limits = limits or TunnelLimits()
        self._pins = Pins()
        self._open: dict[str, int] = {}

    async def handle(self, member: Member, stream: Duplex) -> None:
        """Serve one stream that an attested member has opened; returns when it is over.

        Raises:
            Busy: the member has as many streams open as it may.
        """
        peer = member.peer_id
        if self._open.get(peer, 0) >= self._limits.connections:
            raise Busy(f"{member.organization} has {self._limits.connections} connections to {self._name!r} already")
        self._open[peer] = self._open.get(peer, 0) + 1

        async def report(refused: RequestRefused, call: str) -> None:
            event = TunnelEvent("refused", self._name, member.organization, call, refused.code, refused.reason)
            await self._on_event(event)

        async def check(call: FleetCall) -> None:
            if self._pins.check(peer, call):
                event = TunnelEvent("registered", self._name, member.organization, call.name, "", "")
                await self._on_event(event)

        try:
            relay = _Relay(stream, self._connect, check, report, self._limits, keep_upstream=False)
            await relay.run(self._limits.exit_idle_s)
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]

    async def _connect(self) -> Duplex:
        try:
            return SocketDuplex(await trio.open_tcp_stream(_LOOPBACK, self._port))
        except OSError as error:
            raise PeerUnreachable(f"the SuperLink does not answer on port {self._port}") from error


class SocketDuplex:
    """A local TCP connection as a `Duplex`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def receive(self, max_bytes: int = _PIECE) -> bytes:
        """See `Duplex.receive`."""
        try:
            return bytes(await self._stream.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkClosed("the local connection broke") from error

    async def send(self, data: bytes) -> None:
        """See `Duplex.send`."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkClosed("the local connection broke") from error

    async def aclose(self) -> None:
        """See `Duplex.aclose`."""
        await self._stream.aclose()

    def reset(self) -> None:
        """See `Duplex.reset`."""
        self._stream.socket.close()


class _Relay:
    """One connection: requests come from `down`, pass the check, go up, and their answers come back."""

    def __init__(
        self,
        down: Duplex,
        connect: OpenStream,
        check: Callable[[FleetCall], Awaitable[None]],
        report: Callable[[RequestRefused, str], Awaitable[None]],
        limits: TunnelLimits,
        *,
        keep_upstream: bool,
    ) -> None:
        self._down = down
        self._connect = connect
        self._check = check
        self._report = report
        self._limits = limits
        self._keep = keep_upstream
        self._up: Duplex | None = None
        self._filter = RequestFilter(limits.http)

    async def run(self, idle_s: float) -> None:
        """Serve requests until the connection ends, is idle, or something is refused."""
        clean = False
        try:
            while not self._filter.is_over:
                event = await self._receive(idle_s)
                if isinstance(event, RequestReceived):
                    await self._serve(event)
                elif isinstance(event, RequestRefused):
                    await self._refuse(event, "")
            clean = True
        except LinkError as error:
            # The connection is gone: its other side sees that, and asks again if it wants to.
            _log.debug("a tunnel's connection broke: %s", error)
        except ComityError as error:
            # Such as a full disk under the audit log: what cannot be written down does not happen.
            _log.warning("a tunnel's connection was dropped: %s", error.diagnostics())
        finally:
            self._drop_upstream()
            if not clean:
                self._down.reset()
        await self._down.aclose()

    async def _receive(self, idle_s: float) -> RequestReceived | RequestRefused | ConnectionEnded:
        """Read until a request is complete; an idle connection counts as broken."""
        with trio.move_on_after(idle_s):
            while True:
                event = self._filter.receive_data(await self._down.receive(_PIECE))
                if event is not None:
                    return event
        raise LinkClosed("nothing came for too long")

    async def _serve(self, request: RequestReceived) -> None:
        """Check a request, pass it on, and pass its answer back."""
        name = request.path.rpartition("/")[2]
        try:
            await self._check(read_call(request.path, request.headers, request.body))
        except (PolicyDenied, ProtocolError) as error:
            status = 403 if isinstance(error, PolicyDenied) else 400
            await self._refuse(self._filter.refuse(status, error), name)
            return
        answer = _Answer(self._filter, self._down)
        try:
            with trio.fail_after(self._limits.answer_s):
                await self._exchange(request, answer)
        except trio.TooSlowError as error:
            await self._fail(answer, DeadlineExceeded("the other side did not answer in time"), error)
        except ComityError as error:
            await self._fail(answer, error, error)

    async def _exchange(self, request: RequestReceived, answer: _Answer) -> None:
        if self._up is None:
            self._up = await self._connect()
        up = self._up
        reader = AnswerReader(request, _LOOPBACK, self._limits.http)
        await up.send(reader.send(keep_alive=self._keep))
        while True:
            data = await up.receive(_PIECE)
            for event in reader.receive_data(data):
                await answer.pass_on(event)
                if isinstance(event, AnswerEnded):
                    if not event.keep_alive:
                        self._drop_upstream()
                    return
            if not data:
                raise LinkClosed("the other side closed before its answer was complete")

    async def _fail(self, answer: _Answer, error: ComityError, cause: BaseException) -> None:
        """Answer 503, which a SuperNode repeats, if nothing of an answer has gone out yet; else break off."""
        self._drop_upstream()
        if answer.started:
            raise LinkClosed(f"the answer broke off: {error}") from cause
        status = 403 if isinstance(error, PolicyDenied) else 503
        await self._down.send(self._filter.refuse(status, error).reply)

    async def _refuse(self, refused: RequestRefused, call: str) -> None:
        await self._report(refused, call)
        await self._down.send(refused.reply)

    def _drop_upstream(self) -> None:
        if self._up is not None:
            self._up.reset()
            self._up = None


class _Answer:
    """Passes an answer down as it comes."""

    def __init__(self, http: RequestFilter, down: Duplex) -> None:
        self._http = http
        self._down = down
        self.started = False

    async def pass_on(self, event: AnswerStarted | AnswerData | AnswerEnded) -> None:
        if isinstance(event, AnswerStarted):
            data = self._http.start_answer(event.status, event.headers, event.length)
        elif isinstance(event, AnswerData):
            data = self._http.answer_data(event.data)
        else:
            data = self._http.end_answer()
        self.started = True
        if data:
            await self._down.send(data)
