"""Calls between two event loops: gRPC's asyncio on a thread of its own, and the node's trio.

Each direction is one `Lane`: a queue that wakes the other loop once for a whole batch of entries, because waking a loop
costs more than running a callback in it. Lanes are bounded by admission: nothing enters a lane but on behalf of a call,
at most `max_calls` calls are let in, and a stream has at most `window` messages under way in each direction.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import trio

from comity.errors import Busy, DeadlineExceeded, NodeStopping

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # mypy sees trio through trio-typing's stubs, which libp2p brings

T = TypeVar("T")
In = TypeVar("In")
Out = TypeVar("Out")
InCo = TypeVar("InCo", covariant=True)
OutContra = TypeVar("OutContra", contravariant=True)

#: Entries that one wake-up runs before the loop gets a turn at something else.
_BATCH = 128


class Lane:
    """One direction: entries put by one thread, run in batches by the loop of the other.

    Args:
        wake: schedules a function in the consuming loop; safe to call from any thread.
    """

    def __init__(self, wake: Callable[[Callable[[], None]], object]) -> None:
        self._wake = wake
        self._entries: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._awake = False

    def put(self, function: Callable[..., None], *args: Any) -> None:  # noqa: ANN401  (the function's own)
        """Have `function(*args)` run in the consuming loop, after everything put before it. It must not raise."""
        self._entries.append((function, args))
        if not self._awake:
            self._awake = True
            try:
                self._wake(self._drain)
            except RuntimeError:  # trio.RunFinishedError, or the asyncio loop is closed: nobody is left to tell
                self._entries.clear()

    def _drain(self) -> None:
        # Cleared first: an entry put from here on brings a wake-up of its own.
        self._awake = False
        for _ in range(min(_BATCH, len(self._entries))):
            function, args = self._entries.popleft()
            function(*args)
        if self._entries and not self._awake:
            self._awake = True
            self._wake(self._drain)


class _Call(Generic[T]):
    """One run of a trio function for somebody in asyncio."""

    __slots__ = ("cancelled", "future", "run", "scope", "timeout_s", "unary")

    def __init__(
        self, run: Callable[[], Awaitable[T]], timeout_s: float | None, future: asyncio.Future[T], *, unary: bool
    ) -> None:
        self.run, self.timeout_s, self.future, self.unary = run, timeout_s, future, unary
        self.scope: trio.CancelScope | None = None  # trio's
        self.cancelled = False  # trio's


class Stream(Protocol[InCo, OutContra]):
    """trio's end of a bidirectional stream."""

    async def receive(self) -> InCo:
        """Return the next message.

        Raises:
            trio.EndOfChannel: the other side sends no more.
        """

    async def send(self, message: OutContra) -> None:
        """Send one message; waits while `window` messages are not yet taken by the other side."""

    def send_nowait(self, message: OutContra) -> None:
        """Send one message at once. The caller bounds how many it sends."""


class _BridgedStream(Generic[In, Out]):
    """A `Stream` whose other end is in asyncio. Each attribute belongs to one of the two threads."""

    def __init__(self, bridge: Bridge, window: int) -> None:
        self._bridge = bridge
        self._batch = max(1, window // 2)
        # trio's
        self._inbox: deque[In] = deque()
        self._arrived = trio.Event()
        self._no_more = False
        self._taken = 0
        self._room = trio.Semaphore(window)
        # asyncio's
        self._allowed = asyncio.Semaphore(window)
        self._outbox: deque[Out] = deque()
        self._windowed = 0
        self._changed = asyncio.Event()
        self._ended = False

    # trio's side
    async def receive(self) -> In:
        while not self._inbox:
            if self._no_more:
                raise trio.EndOfChannel
            self._arrived = trio.Event()
            await self._arrived.wait()
        self._taken += 1
        if self._taken >= self._batch:
            self._bridge.to_asyncio.put(self._allow, self._taken)
            self._taken = 0
        return self._inbox.popleft()

    async def send(self, message: Out) -> None:
        await self._room.acquire()
        self._bridge.to_asyncio.put(self._take, message, 1)

    def send_nowait(self, message: Out) -> None:
        self._bridge.to_asyncio.put(self._take, message, 0)

    def _deliver(self, message: In) -> None:
        self._inbox.append(message)
        self._arrived.set()

    def _deliver_end(self) -> None:
        self._no_more = True
        self._arrived.set()

    # asyncio's side
    def _allow(self, count: int) -> None:
        for _ in range(count):
            self._allowed.release()

    def _take(self, message: Out, windowed: int) -> None:
        self._outbox.append(message)
        self._windowed += windowed
        self._changed.set()

    async def pump(self, incoming: AsyncIterator[In]) -> None:
        """Carry `incoming` to trio, at most a window ahead of it."""
        try:
            async for message in incoming:
                await self._allowed.acquire()
                self._bridge.to_trio.put(self._deliver, message)
        finally:
            self._bridge.to_trio.put(self._deliver_end)

    def end(self) -> None:
        """No more will come from trio."""
        self._ended = True
        self._changed.set()

    async def outgoing(self) -> AsyncGenerator[Out, None]:
        """Yield what trio sends, until `end`."""
        while True:
            while self._outbox:
                yield self._outbox.popleft()
                if self._windowed:
                    self._windowed -= 1
                    self._bridge.to_trio.put(self._room.release)
            if self._ended:
                return
            self._changed.clear()
            await self._changed.wait()


class Bridge:
    """Runs an asyncio loop on a thread and carries calls between it and trio.

    Args:
        max_calls: calls that may be in flight from asyncio to trio; one more is refused with `Busy`.
        window: messages of one stream that may be under way in each direction.
        stop_s: how long `stop` waits for the thread, in seconds.
    """

    to_trio: Lane
    to_asyncio: Lane

    def __init__(self, *, max_calls: int = 1024, window: int = 32, stop_s: float = 5.0) -> None:
        self._max_calls, self._window, self._stop_s = max_calls, window, stop_s
        self._refusing = False
        # asyncio's
        self._in_flight: set[_Call[Any]] = set()
        # trio's
        self._calls: trio.Nursery | None = None
        self._running: set[_Call[Any]] = set()
        self._cancelling = False
        self._idle = trio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._halt: asyncio.Event
        self._thread_ended = trio.Event()
        self._abandoned = False
        self._thread_error: BaseException | None = None

    # ---- trio's side

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the thread and run the calls that come from it, until `stop`.

        A cancellation from outside does not end it: whoever started it drains first, then calls `stop`.
        """
        with trio.CancelScope(shield=True):
            ready = trio.Event()
            token = trio.lowlevel.current_trio_token()
            self.to_trio = Lane(token.run_sync_soon)
            thread = threading.Thread(target=self._thread, args=(token, ready), name="comity-control", daemon=True)
            thread.start()
            await ready.wait()
            async with trio.open_nursery() as nursery:
                self._calls = nursery
                task_status.started()
                await self._thread_ended.wait()
                nursery.cancel_scope.cancel()
            if not self._abandoned:
                thread.join(1.0)  # its last act was to tell us: no wait worth the name
            if self._thread_error is not None:
                raise self._thread_error

    async def call_asyncio(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:  # noqa: ANN401
        """Run `function(*args)` in the asyncio loop and return what it returns; a cancellation cancels it there."""
        done = trio.Event()
        task: asyncio.Task[T] | None = None

        def start() -> None:
            nonlocal task
            task = self._loop.create_task(function(*args))
            task.add_done_callback(lambda _: self.to_trio.put(done.set))

        def cancel() -> None:
            if task is not None:
                task.cancel()

        self.to_asyncio.put(start)
        try:
            await done.wait()
        except trio.Cancelled:
            self.to_asyncio.put(cancel)
            raise
        if task is None or task.cancelled():
            raise NodeStopping("the control API has stopped")
        return task.result()

    async def drain(self, timeout_s: float) -> None:
        """Refuse new calls; give unary calls `timeout_s` seconds to end; cancel what is left.

        Whoever waits for a cancelled call gets `NodeStopping`.
        """
        self._refusing = True
        with trio.move_on_after(timeout_s):
            while any(call.unary for call in self._running):
                self._idle = trio.Event()
                await self._idle.wait()
        self._cancelling = True
        for call in self._running:
            self._cancel(call)

    async def stop(self) -> None:
        """End the thread and with it `run`. Everything that still waits in asyncio is cancelled."""
        self._refusing = self._cancelling = True
        self.to_asyncio.put(self._halt.set)
        with trio.move_on_after(self._stop_s) as scope:
            await self._thread_ended.wait()
        if scope.cancelled_caught:  # the thread hangs in gRPC; it is a daemon, and does not keep the process
            self._abandoned = True
            self._thread_ended.set()

    def _start(self, call: _Call[T]) -> None:
        if self._calls is None or self._cancelling:
            self.to_asyncio.put(self._finish, call, None, NodeStopping("the node is stopping"))
            return
        call.scope = trio.CancelScope()
        if call.cancelled:
            call.scope.cancel()
        self._running.add(call)
        self._calls.start_soon(self._perform, call, call.scope)

    def _cancel(self, call: _Call[T]) -> None:
        call.cancelled = True
        if call.scope is not None:
            call.scope.cancel()

    async def _perform(self, call: _Call[T], scope: trio.CancelScope) -> None:
        value: T | None = None
        error: BaseException | None = NodeStopping("the node is stopping")
        try:
            with scope:
                if call.timeout_s is not None:
                    scope.deadline = trio.current_time() + call.timeout_s
                value = await call.run()
                error = None
            if scope.cancelled_caught and not self._cancelling:
                error = DeadlineExceeded("the call's deadline passed before it was done")
        except Exception as raised:  # noqa: BLE001  carried to whoever called; the other calls go on
            error = raised
        finally:
            self._running.discard(call)
            self._idle.set()
            self.to_asyncio.put(self._finish, call, value, error)

    # ---- asyncio's side

    def _thread(self, token: trio.lowlevel.TrioToken, ready: trio.Event) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._live(token, ready))
        except BaseException as error:  # noqa: BLE001  raised again by `run`, in trio
            self._thread_error = error
        finally:
            try:
                token.run_sync_soon(ready.set)
                token.run_sync_soon(self._thread_ended.set)
            except trio.RunFinishedError:
                pass  # trio did not wait for us (`stop` gave up)

    async def _live(self, token: trio.lowlevel.TrioToken, ready: trio.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._halt = asyncio.Event()
        self.to_asyncio = Lane(self._loop.call_soon_threadsafe)
        token.run_sync_soon(ready.set)
        await self._halt.wait()
        for call in self._in_flight:
            if not call.future.done():
                call.future.set_exception(NodeStopping("the node is stopping"))

    async def call(self, function: Callable[[In], Awaitable[T]], request: In, *, timeout_s: float | None = None) -> T:
        """Run `function(request)` in trio, and return or raise what it returns or raises.

        Args:
            function: an async trio function; it is cancelled when the caller is, or when the time is over.
            request: its argument.
            timeout_s: seconds it may take; None: as long as it likes.

        Raises:
            Busy: too many calls are in flight.
            DeadlineExceeded: it took longer than `timeout_s`.
            NodeStopping: the node is draining, or stopped before the call was done.
        """
        return await self._call(lambda: function(request), timeout_s, unary=True)

    async def stream(
        self, function: Callable[[Stream[In, Out]], Awaitable[None]], incoming: AsyncIterator[In]
    ) -> AsyncGenerator[Out, None]:
        """Run `function(stream)` in trio: it receives what `incoming` yields; what it sends is yielded here.

        Raises:
            Busy, NodeStopping: as `call`; and what `function` raises.
        """
        pipe: _BridgedStream[In, Out] = _BridgedStream(self, self._window)

        call = asyncio.ensure_future(self._call(lambda: function(pipe), None, unary=False))
        call.add_done_callback(lambda _: pipe.end())
        pump = asyncio.ensure_future(pipe.pump(incoming))
        try:
            async for message in pipe.outgoing():
                yield message
            await call
        finally:
            pump.cancel()
            call.cancel()
            await asyncio.gather(pump, call, return_exceptions=True)

    async def _call(self, run: Callable[[], Awaitable[T]], timeout_s: float | None, *, unary: bool) -> T:
        if self._refusing:
            raise NodeStopping("the node is stopping")
        if len(self._in_flight) >= self._max_calls:
            raise Busy(f"{self._max_calls} calls are in flight already")
        call: _Call[T] = _Call(run, timeout_s, asyncio.get_running_loop().create_future(), unary=unary)
        self._in_flight.add(call)
        self.to_trio.put(self._start, call)
        try:
            return await call.future
        except asyncio.CancelledError:
            self.to_trio.put(self._cancel, call)
            raise

    def _finish(self, call: _Call[T], value: T, error: BaseException | None) -> None:
        self._in_flight.discard(call)
        if call.future.done():  # cancelled, or the loop is going down
            return
        if error is None:
            call.future.set_result(value)
        else:
            call.future.set_exception(error)
