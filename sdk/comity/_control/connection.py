"""The connections below the clients: the three kinds of calls, carried out with and without a loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc
from google.protobuf.message import Message
from grpc import aio

from comity._control.channel import CHANNEL_OPTIONS, Tls, control_address
from comity._control.failures import not_ready, to_control_error, too_slow
from comity.v1 import control_pb2_grpc as pb_grpc

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and one response.

    Attributes:
        method: its name.
        request: what is asked.
        parse: makes the value of a response.
    """

    method: str
    request: Message
    parse: Callable[[Any], T]


@dataclass(frozen=True, slots=True)
class Followed(Call[T]):
    """One request, and responses that tell how far it is; it takes as long as it takes, and the last is the result.

    Attributes:
        before: the value before the first response.
        on_each: called with the value of each.
    """

    before: T
    on_each: Callable[[T], None] | None


@dataclass(frozen=True, slots=True)
class Stream(Call[Iterable[T]]):
    """One request and many responses, each with any number of values.

    Attributes:
        quiet_s: seconds without a response that are allowed, if a call may not take as long anyway.
    """

    quiet_s: float = 0.0


class Connection:
    """A connection for programs without a loop; usable from several threads."""

    def __init__(self, address: str | None = None, *, tls: Tls | None = None, timeout_s: float = 30.0) -> None:
        self.address = control_address(address)
        self._timeout_s = timeout_s
        self._channel = (
            grpc.insecure_channel(self.address, CHANNEL_OPTIONS)
            if tls is None
            else grpc.secure_channel(self.address, tls.credentials(), CHANNEL_OPTIONS)
        )
        self._stub = pb_grpc.ControlServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls in flight fail."""
        self._channel.close()

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the node accepts the connection.

        Raises:
            ControlError: it did not within `timeout_s` seconds.
        """
        try:
            grpc.channel_ready_future(self._channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError as error:
            raise not_ready(self.address, timeout_s) from error

    def _ask(self, call: Call[T]) -> T:
        if isinstance(call, Followed):
            followed: Followed[T] = call
            return self._follow(followed)
        try:
            return call.parse(getattr(self._stub, call.method)(call.request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise to_control_error(error, self.address, call.method) from error

    def _follow(self, call: Followed[T]) -> T:
        responses = getattr(self._stub, call.method)(call.request)
        last = call.before
        try:
            for response in responses:
                last = call.parse(response)
                if call.on_each is not None:
                    call.on_each(last)
        except grpc.RpcError as error:
            raise to_control_error(error, self.address, call.method) from error
        finally:
            responses.cancel()
        return last

    def _read(self, stream: Stream[T]) -> Generator[T, None, None]:
        responses = getattr(self._stub, stream.method)(stream.request)
        quiet_s = max(self._timeout_s, stream.quiet_s)
        try:
            while (response := _next(responses, quiet_s, stream.method)) is not None:
                yield from stream.parse(response)
        except grpc.RpcError as error:
            raise to_control_error(error, self.address, stream.method) from error
        finally:
            responses.cancel()


class AsyncConnection:
    """A connection for asyncio."""

    def __init__(self, address: str | None = None, *, tls: Tls | None = None, timeout_s: float = 30.0) -> None:
        self.address = control_address(address)
        self._timeout_s = timeout_s
        self._channel = (
            aio.insecure_channel(self.address, CHANNEL_OPTIONS)
            if tls is None
            else aio.secure_channel(self.address, tls.credentials(), CHANNEL_OPTIONS)
        )
        self._stub = pb_grpc.ControlServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in flight fail."""
        await self._channel.close(None)

    async def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the node accepts the connection.

        Raises:
            ControlError: it did not within `timeout_s` seconds.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._channel.channel_ready()
        except TimeoutError as error:
            raise not_ready(self.address, timeout_s) from error

    async def _ask(self, call: Call[T]) -> T:
        if isinstance(call, Followed):
            followed: Followed[T] = call
            return await self._follow(followed)
        try:
            return call.parse(await getattr(self._stub, call.method)(call.request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise to_control_error(error, self.address, call.method) from error

    async def _follow(self, call: Followed[T]) -> T:
        responses = getattr(self._stub, call.method)(call.request)
        last = call.before
        try:
            async for response in responses:
                last = call.parse(response)
                if call.on_each is not None:
                    call.on_each(last)
        except grpc.RpcError as error:
            raise to_control_error(error, self.address, call.method) from error
        finally:
            responses.cancel()
        return last

    async def _read(self, stream: Stream[T]) -> AsyncGenerator[T, None]:
        responses = getattr(self._stub, stream.method)(stream.request)
        try:
            while True:
                async with asyncio.timeout(max(self._timeout_s, stream.quiet_s)):  # a response's, not the reader's
                    response = await responses.read()
                if not isinstance(response, Message):
                    return
                for value in stream.parse(response):
                    yield value
        except TimeoutError as error:
            raise too_slow(stream.method) from error
        except grpc.RpcError as error:
            raise to_control_error(error, self.address, stream.method) from error
        finally:
            responses.cancel()


def _next(responses: Any, timeout_s: float, method: str) -> Any:  # noqa: ANN401  (grpc's call and message objects)
    """Return the next response, None after the last; the limit on time is a response's, not the reader's."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        responses.cancel()

    timer = threading.Timer(timeout_s, expire)
    timer.daemon = True
    timer.start()
    try:
        return next(responses, None)
    except grpc.RpcError as error:
        if expired.is_set():
            raise too_slow(method) from error
        raise
    finally:
        timer.cancel()
