"""Methods that both clients have, from one definition of the call.

A method that is decorated with `call` or `stream` returns what to ask. As a method of a `Connection` it asks, and
returns the value or a generator of values; as one of an `AsyncConnection` it is to be awaited, or returns an async
generator.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from functools import wraps
from inspect import signature
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from comity._control.connection import AsyncConnection, Call, Connection, Stream

P = ParamSpec("P")
T = TypeVar("T")


class call(Generic[P, T]):
    """A method with one result."""

    def __init__(self, make: Callable[Concatenate[Any, P], Call[T]]) -> None:
        """Take the method that returns the call."""

        @wraps(make)
        def ask(connection: Connection, *args: P.args, **kwargs: P.kwargs) -> T:
            return connection._ask(make(connection, *args, **kwargs))

        @wraps(make)
        async def ask_async(connection: AsyncConnection, *args: P.args, **kwargs: P.kwargs) -> T:
            return await connection._ask(make(connection, *args, **kwargs))

        self._ask, self._ask_async = ask, ask_async
        for function in (ask, ask_async):
            _declare(function, make, "{}")

    @overload
    def __get__(self, client: Connection, kind: type[Connection]) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncConnection, kind: type[AsyncConnection]) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, client: None, kind: type[Connection]) -> Callable[Concatenate[Connection, P], T]: ...
    @overload
    def __get__(
        self, client: None, kind: type[AsyncConnection]
    ) -> Callable[Concatenate[AsyncConnection, P], Coroutine[Any, Any, T]]: ...
    def __get__(self, client: object, kind: type) -> object:
        """Return the method as the client's kind has it."""
        method = self._ask_async if issubclass(kind, AsyncConnection) else self._ask
        return method if client is None else MethodType(method, client)


class stream(Generic[P, T]):
    """A method that yields its results."""

    def __init__(self, make: Callable[Concatenate[Any, P], Stream[T]]) -> None:
        """Take the method that returns the stream."""

        @wraps(make)
        def read(connection: Connection, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
            return connection._read(make(connection, *args, **kwargs))

        @wraps(make)
        def read_async(connection: AsyncConnection, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T, None]:
            return connection._read(make(connection, *args, **kwargs))

        self._read, self._read_async = read, read_async
        _declare(read, make, "Generator[{}, None, None]")
        _declare(read_async, make, "AsyncGenerator[{}, None]")

    @overload
    def __get__(self, client: Connection, kind: type[Connection]) -> Callable[P, Generator[T, None, None]]: ...
    @overload
    def __get__(self, client: AsyncConnection, kind: type[AsyncConnection]) -> Callable[P, AsyncGenerator[T, None]]: ...
    @overload
    def __get__(
        self, client: None, kind: type[Connection]
    ) -> Callable[Concatenate[Connection, P], Generator[T, None, None]]: ...
    @overload
    def __get__(
        self, client: None, kind: type[AsyncConnection]
    ) -> Callable[Concatenate[AsyncConnection, P], AsyncGenerator[T, None]]: ...
    def __get__(self, client: object, kind: type) -> object:
        """Return the method as the client's kind has it."""
        method = self._read_async if issubclass(kind, AsyncConnection) else self._read
        return method if client is None else MethodType(method, client)


def _declare(function: Callable[..., object], make: Callable[..., object], form: str) -> None:
    """Have `help` and other readers see what the method returns: the T of the definition's `Call[T]`, in `form`."""
    value = str(make.__annotations__["return"]).partition("[")[2].removesuffix("]")
    returns = form.format(value)
    function.__annotations__ = {**make.__annotations__, "return": returns}
    function.__signature__ = signature(make).replace(return_annotation=returns)  # type: ignore[attr-defined]
