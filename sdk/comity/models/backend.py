"""The back-end itself: one call after another to `POST base_url/chat/completions`, as many at a time as do well.

What is done about what goes wrong:

| what | the window | the call |
|---|---|---|
| 429, 503 | shrinks, and pauses for Retry-After | is made again while attempts and time are left |
| no connection | stays | the same: the server has seen nothing |
| no first token in time | shrinks | `BackendTimeout`; the server may have worked, so not again |
| no answer in time | shrinks, if the server had half of it | the same |
| broken in the middle, another 5xx | stays | `BackendError`; not again, for the same reason |
| another status, no answer in the known form, too long | stays | `BackendError`, `BackendReplyInvalid` |
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comity.errors import BackendBusy, BackendError, BackendReplyInvalid, BackendTimeout, ConfigError
from comity.models.address import check_url, read_key
from comity.models.connection import open_client
from comity.models.gate import Gate
from comity.models.loop import LoopThread
from comity.models.reply import Completion, Prices, Reply, StreamedReply, read_error, read_reply
from comity.models.request import Asked, Messages, retry_after_s
from comity.models.shape import find_misfit
from comity.pacing import AimdWindow
from comity.strictjson import parse_json

if TYPE_CHECKING:
    import httpx

OnText = Callable[[str], None]

_BUSY = (429, 503)
_ERROR_BYTES = 16 * 1024
_BACKOFF_S = 0.25
_ADVICE = {
    401: "give the right key: key_file or key_variable",
    403: "give the right key: key_file or key_variable",
    404: "is the URL that up to /v1, and does the server have this model?",
}


@dataclass(frozen=True, slots=True)
class Window:
    """How many calls may be under way at once: additive increase, multiplicative decrease, from `first` on."""

    first: int = 4
    floor: int = 1
    cap: int = 64


@dataclass(frozen=True, slots=True)
class BackendLimits:
    """What one back-end may cost.

    Attributes:
        total_s: seconds of a call, with all its waiting and attempts, unless it says less itself.
        first_token_s: seconds from the request to the first token, of a streamed answer.
        connect_s: seconds to connect.
        attempts: of one call.
        waiting: calls that wait for the window.
        reply_bytes: of an answer, as it comes over the wire.
        request_bytes: of a request.
        pause_s: the longest Retry-After that is waited for.
    """

    total_s: float = 300.0
    first_token_s: float = 60.0
    connect_s: float = 5.0
    attempts: int = 4
    waiting: int = 1024
    reply_bytes: int = 8 * 1024 * 1024
    request_bytes: int = 8 * 1024 * 1024
    pause_s: float = 60.0


class OpenAiBackend:
    """A model of a server with the OpenAI chat/completions API. Usable from threads and from any asyncio loop.

    It goes to no other place than `base_url`: no proxy of the environment, no redirect, nothing about itself. It can be
    pickled; the key is not in the pickle, but read again from where it was.

    Args:
        base_url: up to `/v1`. Plain http is for this machine, unless `plain_http`.
        model: its name at the server.
        key_file: a file with the key, for its owner's eyes alone.
        key_variable: or the environment variable that has it.
        window: how many calls may be under way.
        limits: see `BackendLimits`.
        streaming: have answers streamed, so that one that does not begin is given up early.
        prices: of a million tokens, for `Usage.cost`; None: it costs nothing.
        plain_http: allow http to other machines.
        ca_file: the CA (PEM) of the server's certificate; None: those that httpx brings.
        proxy: go through this HTTP proxy; None: through none.

    Raises:
        ConfigError: the URL, the key, the CA, the proxy or the window is none.
        MissingExtra: httpx is not installed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_file: str | Path | None = None,
        key_variable: str | None = None,
        window: Window = Window(),
        limits: BackendLimits = BackendLimits(),
        streaming: bool = False,
        prices: Prices | None = None,
        plain_http: bool = False,
        ca_file: str | Path | None = None,
        proxy: str | None = None,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "base_url": base_url, "model": model, "key_file": key_file, "key_variable": key_variable, "window": window,
            "limits": limits, "streaming": streaming, "prices": prices, "plain_http": plain_http, "ca_file": ca_file,
            "proxy": proxy,
        }  # fmt: skip
        self._url, self._model = check_url(base_url, plain_http=plain_http) + "/chat/completions", model
        self._key = read_key(Path(key_file) if key_file is not None else None, key_variable)
        self._limits, self._streaming, self._prices = limits, streaming, prices or Prices()
        try:
            aimd = AimdWindow(first=window.first, floor=window.floor, cap=window.cap)
        except ValueError as error:
            raise ConfigError(f"the window of a model's server: {error}") from error
        self._gate, self._cap = Gate(aimd, limits.waiting), window.cap
        self._thread = LoopThread()
        self._client = open_client(
            self._url, self._key, None if ca_file is None else str(ca_file), proxy, limits.connect_s, self._cap
        )

    def __repr__(self) -> str:
        return f"OpenAiBackend({self._arguments['base_url']!r}, {self._model!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (self._arguments,)

    @property
    def window(self) -> int:
        """How many calls may be under way now."""
        return self._gate.window.size

    @property
    def outstanding(self) -> int:
        """How many are."""
        return self._gate.window.outstanding

    @property
    def waiting(self) -> int:
        """How many wait for the window."""
        return self._gate.waiting

    async def complete(
        self,
        messages: Messages,
        *,
        schema: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        on_text: OnText | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Have the model go on from `messages`. Cancelled, it closes the connection, which ends the server's work, too.

        Args:
            messages: role and content each; a text stands for one of the user's.
            schema: the JSON that is wanted (see `comity.models.shape`): the server is asked to constrain the model to
                it (`response_format`), and what comes is checked.
            max_tokens: of the answer.
            temperature: of the sampling.
            seed: of the sampling.
            timeout_s: seconds that this call may take, waiting included; at most `limits.total_s`.
            on_text: called with each piece of a streamed answer, on the back-end's thread; it must not block or raise.
            options: other fields of the request, as the server knows them.

        Raises:
            ConfigError: the request is too large or no JSON, or the schema has what is not checked.
            BackendBusy: the server turned it away to the last, or too many calls wait.
            BackendTimeout: no answer in time.
            BackendReplyInvalid: the answer is none, too long, cut off, or does not fit the schema; has the usage.
            BackendError: the server cannot be reached, refused the request, or broke off in the middle.
        """
        asked = Asked(messages, schema, max_tokens, temperature, seed, options)
        return await asyncio.wrap_future(self._submit(asked, timeout_s, on_text))

    def complete_sync(
        self,
        messages: Messages,
        *,
        schema: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        on_text: OnText | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Do what `complete` does, for skills that run on threads."""
        asked = Asked(messages, schema, max_tokens, temperature, seed, options)
        return self._submit(asked, timeout_s, on_text).result()

    def close(self) -> None:
        """Give up what is under way, and close the connections."""
        self._thread.close(self._client.aclose())

    def _submit(self, asked: Asked, timeout_s: float | None, on_text: OnText | None) -> Future[Completion]:
        request = asked.encode(self._model, streaming=self._streaming, limit=self._limits.request_bytes)
        return self._thread.submit(self._run(request, asked.schema, timeout_s, on_text))

    # ---- on the back-end's loop

    async def _run(
        self, request: bytes, schema: Mapping[str, Any] | None, timeout_s: float | None, on_text: OnText | None
    ) -> Completion:
        total_s = min(self._limits.total_s, math.inf if timeout_s is None else max(0.0, timeout_s))
        try:
            reply = await self._attempts(request, total_s, on_text)
        except TimeoutError as error:
            raise BackendTimeout(f"no answer of the model's server within {total_s:g} s") from error
        usage = reply.usage(len(request), self._prices)
        value = None
        if schema is not None:
            misfit = ""
            try:
                value = parse_json(reply.text.encode(), limit=self._limits.reply_bytes)
                misfit = find_misfit(schema, value)
            except ValueError as error:
                misfit = f"it is no JSON{', cut off at max_tokens' if reply.finish == 'length' else ''}: {error}"
            if misfit:
                raise BackendReplyInvalid(f"the model did not say what was asked for: {misfit}", usage=usage.report())
        return Completion(reply.text, value, usage, reply.finish, reply.model)

    async def _attempts(self, request: bytes, total_s: float, on_text: OnText | None) -> Reply:
        """Make attempts until one says something, or none may be made any more.

        The time-outs follow one another, none is inside of another with the same end: two that strike at once would
        hide from the attempt that it was too slow.
        """
        clock = asyncio.get_running_loop().time
        import httpx

        attempt, deadline = 0, clock() + total_s
        while True:
            attempt += 1
            if clock() >= deadline:
                raise TimeoutError  # and nothing is sent: a time-out strikes only where one has to wait
            async with asyncio.timeout_at(deadline):
                await self._gate.enter()
            try:
                return await self._attempt(request, deadline, deadline - total_s / 2, on_text)
            except BackendBusy as busy:
                wait_s = busy.retry_after_ms / 1000
                if attempt >= self._limits.attempts or wait_s > self._limits.pause_s:
                    raise
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                wait_s = 0.0
                if attempt >= self._limits.attempts:
                    raise BackendError(f"cannot reach the model's server: {_words(error)}") from error
            except httpx.HTTPError as error:
                what = "the connection to the model's server broke in the middle"
                raise BackendError(f"{what}: {_words(error)}") from error
            async with asyncio.timeout_at(deadline):
                await asyncio.sleep(max(wait_s, _BACKOFF_S * 2**attempt * random.uniform(0.5, 1.0)))

    async def _attempt(self, request: bytes, deadline: float, half: float, on_text: OnText | None) -> Reply:
        """Make one attempt, and tell the window how it went.

        One that began after `half` of the call's time and did not end in time says nothing of the server: the call has
        waited too long, and a smaller window would make others wait longer still.
        """
        clock, window = asyncio.get_running_loop().time, self._gate.window
        began, tell = clock(), window.released
        try:
            async with asyncio.timeout_at(deadline):
                reply = await self._exchange(request, deadline, on_text)
            tell = window.succeeded
        except (BackendBusy, BackendTimeout, TimeoutError) as error:
            if isinstance(error, BackendBusy):
                self._gate.pause(min(error.retry_after_ms / 1000, self._limits.pause_s))

            def overloaded() -> None:
                window.overloaded(clock(), clock() - began)

            if began <= half or not isinstance(error, TimeoutError):
                tell = overloaded
            raise
        finally:
            tell()
            self._gate.admit()
        return reply

    async def _exchange(self, request: bytes, deadline: float, on_text: OnText | None) -> Reply:
        clock = asyncio.get_running_loop().time
        first_by = clock() + self._limits.first_token_s
        early = self._streaming and first_by < deadline
        patience = asyncio.timeout_at(first_by if early else None)
        try:
            async with patience, self._client.stream("POST", self._url, content=request) as response:
                if response.status_code != 200:
                    raise await self._refusal(response)
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise BackendReplyInvalid("the model's server packed its answer, which it was asked not to do")
                if response.headers.get("content-type", "").startswith("text/event-stream"):
                    return await self._streamed(response, patience, on_text)
                return read_reply(await self._whole(response))
        except TimeoutError as error:
            if not patience.expired():
                raise
            what = f"the model's server began no answer within {self._limits.first_token_s:g} s"
            raise BackendTimeout(what) from error

    async def _whole(self, response: httpx.Response) -> bytes:
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            self._check_size(len(body))
        return bytes(body)

    async def _streamed(self, response: httpx.Response, patience: asyncio.Timeout, on_text: OnText | None) -> Reply:
        reply, size = StreamedReply(), 0
        async for piece in response.aiter_raw():
            size += len(piece)
            self._check_size(size)
            text = reply.feed(piece)
            if text:
                patience.reschedule(None)
                if on_text is not None:
                    on_text(text)
            if reply.done:
                break
        return reply.finish()

    def _check_size(self, size: int) -> None:
        if size > self._limits.reply_bytes:
            raise BackendReplyInvalid(f"the model's server answered with over {self._limits.reply_bytes} bytes")

    async def _refusal(self, response: httpx.Response) -> BackendError:
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > _ERROR_BYTES:
                break
        status, said = response.status_code, read_error(bytes(body[:_ERROR_BYTES]))
        if self._key:
            said = said.replace(self._key, "...")
        text = f"the model's server answered {status}: {said or response.reason_phrase or 'no reason'}"
        if status in _BUSY:
            after_s = retry_after_s(response.headers.get("retry-after", ""), time.time())
            return BackendBusy(text, retry_after_ms=math.ceil(after_s * 1000))
        if 300 <= status < 400:
            return BackendError(f"the model's server wants to send us elsewhere ({status}): name the right URL")
        error = BackendError(text)
        error.advice = _ADVICE.get(status, "")
        return error


def _make(arguments: dict[str, Any]) -> OpenAiBackend:
    return OpenAiBackend(**arguments)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
