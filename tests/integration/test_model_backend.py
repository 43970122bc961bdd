"""Model back-ends against real servers on loopback: good ones, busy ones, slow ones and broken ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pickle
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from comity.errors import BackendBusy, BackendError, BackendReplyInvalid, BackendTimeout, ConfigError
from comity.models import BackendLimits, OpenAiBackend, Prices, Window
from comity.testing import FakeModel, Refusal
from kit.model_server import Behaviour, head, raw_server

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
ANSWER = {
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}
KEY = "sk-" + "k" * 20


def ask(backend: OpenAiBackend, messages: Any = "hi there", **options: Any) -> Any:
    try:
        return backend.complete_sync(messages, **options)
    finally:
        backend.close()


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": None}]}).encode() + b"\n\n"


def key_file(path: Path) -> Path:
    path.write_text(KEY + "\n")
    path.chmod(0o600)
    return path


# ---- what goes well


@pytest.mark.parametrize("streaming", [False, True])
def test_a_model_says_something_and_its_tokens_are_counted(streaming: bool) -> None:
    with FakeModel() as model:
        model.say("one two three")
        pieces: list[str] = []
        backend = OpenAiBackend(model.url, "m", streaming=streaming, prices=Prices(prompt=1e6, answer=2e6))
        said = ask(backend, "hi there", max_tokens=5, seed=7, on_text=pieces.append, options={"top_k": 3})
        assert (said.text, said.value, said.finish, said.model) == ("one two three", None, "stop", "m")
        assert said.usage.report() == {"tokens": 5, "cost": 8.0}
        assert not said.usage.estimated
        assert "".join(pieces) == ("one two three" if streaming else "")
        request = model.requests[0]
        assert request["messages"] == [{"role": "user", "content": "hi there"}]
        assert (request["max_tokens"], request["seed"], request["top_k"]) == (5, 7, 3)


@pytest.mark.parametrize("streaming", [False, True])
def test_json_is_asked_for_and_checked(streaming: bool) -> None:
    with FakeModel() as model:
        backend = OpenAiBackend(model.url, "m", streaming=streaming)
        assert backend.complete_sync("n?", schema=SCHEMA).value == {"n": 1}  # what the fake makes of the schema
        wanted = model.requests[0]["response_format"]
        assert wanted["type"] == "json_schema"
        assert wanted["json_schema"]["schema"] == SCHEMA
        for wrong, said in {
            '{"n": 10}': r"it\.n is out of range",
            '{"n": true}': r"it\.n is not of type integer",
            "{}": "it lacks 'n'",
            '{"n": 1, "m": 2}': "it has 'm', which was not asked for",
            '{"n": 1, "n": 2}': "a key stands twice",
            "not json": "it is no JSON",
        }.items():
            model.say(wrong)
            with pytest.raises(BackendReplyInvalid, match=said) as refused:
                backend.complete_sync("n?", schema=SCHEMA)
            assert refused.value.usage["tokens"] >= 2  # it was paid for
        backend.close()


def test_async_and_threads_share_one_window() -> None:
    release, arrived = threading.Event(), threading.Semaphore(0)

    def held(body: dict[str, Any]) -> str:
        arrived.release()
        assert release.wait(20)
        return "done"

    with FakeModel(held) as model:
        backend = OpenAiBackend(model.url, "m", window=Window(first=3, cap=3))

        async def many() -> None:
            calls = [asyncio.create_task(backend.complete("a")) for _ in range(6)]
            for _ in range(3):
                assert await asyncio.to_thread(arrived.acquire, timeout=20)
            assert (backend.outstanding, backend.window) == (3, 3)
            release.set()
            assert [call.text for call in await asyncio.gather(*calls)] == ["done"] * 6

        with ThreadPoolExecutor(6) as threads:
            others = [threads.submit(backend.complete_sync, "b") for _ in range(6)]
            asyncio.run(many())
            assert [other.result(20).text for other in others] == ["done"] * 6
        assert model.most_at_once == 3
        assert (backend.outstanding, backend.waiting) == (0, 0)
        backend.close()


def test_a_cancelled_call_closes_its_connection_and_frees_its_place() -> None:
    closed, asked = threading.Event(), threading.Event()

    def behave(connection: socket.socket, request: bytes) -> None:
        asked.set()
        if connection.recv(1) == b"":
            closed.set()

    async def main(url: str) -> None:
        backend = OpenAiBackend(url, "m", window=Window(first=1, cap=1))
        call = asyncio.create_task(backend.complete("a"))
        assert await asyncio.to_thread(asked.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(closed.wait, 10)
        await asyncio.to_thread(backend.close)
        assert (backend.outstanding, backend.window) == (0, 1)

    with raw_server(behave) as url:
        asyncio.run(main(url))


def test_a_pickled_backend_has_no_key_and_works(tmp_path: Path) -> None:
    with FakeModel(key=KEY) as model:
        backend = OpenAiBackend(model.url, "m", key_file=key_file(tmp_path / "key"))
        packed = pickle.dumps(backend)
        assert KEY.encode() not in packed
        assert ask(pickle.loads(packed), "yes").text == "yes"
        backend.close()


# ---- what is too much


def test_a_busy_server_is_asked_again_after_what_it_says() -> None:
    with FakeModel() as model:
        model.say(Refusal(429, retry_after="1"), Refusal(503))
        backend = OpenAiBackend(model.url, "m", window=Window(first=8, cap=8))
        began = time.monotonic()
        assert backend.complete_sync("again").text == "again"
        assert time.monotonic() - began >= 1.0
        assert len(model.requests) == 3
        assert backend.window < 8
        backend.close()


def test_the_window_pauses_for_everybody() -> None:
    with FakeModel() as model:
        model.say(Refusal(429, retry_after="1"))
        backend = OpenAiBackend(model.url, "m", limits=BackendLimits(attempts=1))
        with pytest.raises(BackendBusy):
            backend.complete_sync("a")
        began = time.monotonic()
        assert backend.complete_sync("b").text == "b"
        assert time.monotonic() - began > 0.5
        backend.close()


@pytest.mark.parametrize(
    ("refusal", "limits", "requests"),
    [
        (Refusal(429), BackendLimits(attempts=2), 2),
        (Refusal(429, retry_after="3600"), BackendLimits(), 1),
    ],
)
def test_a_server_that_stays_busy_is_given_up(refusal: Refusal, limits: BackendLimits, requests: int) -> None:
    with FakeModel(lambda body: refusal) as model:
        with pytest.raises(BackendBusy, match="429") as busy:
            ask(OpenAiBackend(model.url, "m", limits=limits), timeout_s=20)
        assert busy.value.retry_after_ms == 1000 * int(refusal.retry_after or 0)
        assert len(model.requests) == requests


def test_calls_beyond_the_queue_are_refused_at_once() -> None:
    release = threading.Event()

    def held(body: dict[str, Any]) -> str:
        release.wait(20)
        return "done"

    async def main(backend: OpenAiBackend) -> None:
        calls = [asyncio.create_task(backend.complete("a")) for _ in range(4)]  # they arrive in this order
        with pytest.raises(BackendBusy, match="2 calls wait"):
            await calls[3]
        release.set()
        assert [call.text for call in await asyncio.gather(*calls[:3])] == ["done"] * 3

    with FakeModel(held) as model:
        backend = OpenAiBackend(model.url, "m", window=Window(first=1, cap=1), limits=BackendLimits(waiting=2))
        asyncio.run(main(backend))
        backend.close()


def test_a_request_has_a_size() -> None:
    with pytest.raises(ConfigError, match="over 1000"):
        ask(OpenAiBackend("http://127.0.0.1:1/v1", "m", limits=BackendLimits(request_bytes=1000)), "x" * 1000)


@pytest.mark.parametrize("asked", [{"messages": None}, {"messages": 3}, {"messages": "a", "options": [1]}])
def test_what_is_no_request_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is no JSON"):
        ask(OpenAiBackend("http://127.0.0.1:1/v1", "m"), **asked)


# ---- what is too slow


def silent(connection: socket.socket, request: bytes) -> None:
    """Wait until the client goes away."""
    connection.recv(1)


def test_a_server_that_takes_no_connection_is_given_up() -> None:
    with socket.socket() as full, contextlib.ExitStack() as clients:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # nobody accepts them: the system lets no further one in
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        began = time.monotonic()
        with pytest.raises(BackendError, match="cannot reach") as failed:
            ask(OpenAiBackend(url, "m", limits=BackendLimits(connect_s=0.2, attempts=1, total_s=10)))
        assert not isinstance(failed.value, BackendTimeout)
        assert time.monotonic() - began < 5


def test_a_server_that_does_not_answer_in_time_is_left_and_the_window_shrinks() -> None:
    with raw_server(silent) as url:
        backend = OpenAiBackend(url, "m", limits=BackendLimits(total_s=0.2))
        with pytest.raises(BackendTimeout, match=r"within 0\.2 s"):
            backend.complete_sync("a")
        assert (backend.window, backend.outstanding) == (2, 0)
        with pytest.raises(BackendTimeout, match=r"within 0\.1 s"):
            backend.complete_sync("a", timeout_s=0.1)
        assert (backend.window, backend.outstanding) == (1, 0)
        backend.close()


def test_waiting_for_the_window_counts_as_time_too() -> None:
    asked = threading.Event()

    def behave(connection: socket.socket, request: bytes) -> None:
        asked.set()
        silent(connection, request)

    with raw_server(behave) as url:
        backend = OpenAiBackend(url, "m", window=Window(first=1, cap=1), limits=BackendLimits(total_s=5))
        with ThreadPoolExecutor(1) as threads:
            held = threads.submit(backend.complete_sync, "a", timeout_s=1.0)
            assert asked.wait(10)
            with pytest.raises(BackendTimeout):
                backend.complete_sync("b", timeout_s=0.1)
            assert (backend.waiting, backend.outstanding) == (0, 1)
            assert isinstance(held.exception(20), BackendTimeout)
        backend.close()


def test_a_call_whose_time_is_over_is_not_sent_and_says_nothing_of_the_server() -> None:
    with FakeModel() as model:
        backend = OpenAiBackend(model.url, "m")
        for timeout_s in (0.0, -1.0):
            with pytest.raises(BackendTimeout):
                backend.complete_sync("a", timeout_s=timeout_s)
        assert (len(model.requests), backend.window, backend.outstanding) == (0, 4, 0)
        backend.close()


def test_a_call_that_waited_for_most_of_its_time_does_not_shrink_the_window() -> None:
    held, release = threading.Event(), threading.Event()

    def behave(connection: socket.socket, request: bytes) -> None:
        if b"first" in request:
            held.set()
            assert release.wait(20)
            connection.sendall(head() + json.dumps(ANSWER).encode())
        else:
            silent(connection, request)

    with raw_server(behave) as url:
        backend = OpenAiBackend(url, "m", window=Window(first=2, cap=2))
        with ThreadPoolExecutor(3) as threads:
            first = [threads.submit(backend.complete_sync, "first") for _ in range(2)]
            assert held.wait(10)
            began = time.monotonic()
            late = threads.submit(backend.complete_sync, "late", timeout_s=2.0)
            late_by = threading.Timer(1.5 - (time.monotonic() - began), release.set)
            late_by.start()
            assert isinstance(late.exception(20), BackendTimeout)
            assert [one.result(20).text for one in first] == ["hello"] * 2
            assert (backend.window, backend.outstanding) == (2, 0)
        backend.close()


def test_a_stream_that_does_not_begin_is_given_up_early() -> None:
    def behave(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head(kind="text/event-stream") + b": wait\n\n")
        connection.recv(1)

    with raw_server(behave) as url:
        limits = BackendLimits(first_token_s=0.2)
        backend = OpenAiBackend(url, "m", streaming=True, limits=limits)
        with pytest.raises(BackendTimeout, match=r"began no answer within 0\.2 s"):
            backend.complete_sync("a")
        assert backend.window == 2
        backend.close()


def test_a_stream_that_began_has_all_its_time() -> None:
    def behave(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head(kind="text/event-stream") + event("a"))
        time.sleep(0.4)
        connection.sendall(event("b") + b"data: [DONE]\n\n")

    with raw_server(behave) as url:
        limits = BackendLimits(first_token_s=0.2)
        said = ask(OpenAiBackend(url, "m", streaming=True, limits=limits))
        assert said.text == "ab"
        assert said.usage.estimated  # it did not count
        assert said.usage.answer_tokens == 2


def test_an_answer_that_never_ends_is_cut() -> None:
    def drip(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head(kind="text/event-stream"))
        while True:
            connection.sendall(event("more"))
            time.sleep(0.001)

    with raw_server(drip) as url:
        with pytest.raises(BackendTimeout):
            ask(OpenAiBackend(url, "m", streaming=True, limits=BackendLimits(total_s=0.5)))
        with pytest.raises(BackendReplyInvalid, match="over 5000 bytes"):
            ask(OpenAiBackend(url, "m", streaming=True, limits=BackendLimits(reply_bytes=5000)))


# ---- what is broken


def answers(*data: bytes) -> Behaviour:
    def behave(connection: socket.socket, request: bytes) -> None:
        for each in data:
            connection.sendall(each)

    return behave


GOOD = json.dumps(ANSWER).encode()


@pytest.mark.parametrize(
    ("behave", "kind", "said"),
    [
        (answers(head(), b"<html>"), BackendReplyInvalid, "what is no JSON"),
        (answers(head(), b"[1]"), BackendReplyInvalid, "the answer is no object"),
        (answers(head(), b'{"choices": []}'), BackendReplyInvalid, "no choice"),
        (answers(head(), b'{"choices": [{}, {}]}'), BackendReplyInvalid, "choices is no list of one"),
        (answers(head(), b'{"choices": [{"message": {"content": null}}]}'), BackendReplyInvalid, "without a text"),
        (answers(head(), b"\xff\xfe"), BackendReplyInvalid, "what is no JSON"),
        (answers(head(), b"[" * 100_000), BackendReplyInvalid, "what is no JSON"),
        (answers(head("200 OK", "application/json", "content-encoding: gzip"), GOOD), BackendReplyInvalid, "packed"),
        (answers(head(), b" " * 300_000, GOOD), BackendReplyInvalid, "over 200000 bytes"),
        (answers(head("200 OK", "application/json", "content-length: 999"), GOOD), BackendError, "in the middle"),
        (answers(b"nonsense\r\n\r\n"), BackendError, "in the middle"),
        (answers(), BackendError, "in the middle"),
        (answers(head(kind="text/event-stream"), event("a")), BackendReplyInvalid, "ended its stream in the middle"),
        (answers(head(kind="text/event-stream"), b"data: {\n\n"), BackendReplyInvalid, "what is no JSON"),
        (
            answers(head(kind="text/event-stream"), b'data: {"error": {"message": "out of memory"}}\n\n'),
            BackendReplyInvalid,
            "broke off: out of memory",
        ),
        (answers(head("302 Found", "text/html", "location: http://127.0.0.1:1/")), BackendError, "elsewhere"),
        (answers(head("500 Oh"), b'{"error": {"message": "a\\nb"}}'), BackendError, "answered 500: a b"),
        (answers(head("400 Bad"), b"x" * 1_000_000), BackendError, "answered 400: xxx"),
    ],
)
def test_a_broken_server_is_an_error_once(behave: Behaviour, kind: type[BackendError], said: str) -> None:
    asked: list[bytes] = []

    def once(connection: socket.socket, request: bytes) -> None:
        asked.append(request)
        behave(connection, request)

    with raw_server(once) as url:
        backend = OpenAiBackend(url, "m", limits=BackendLimits(reply_bytes=200_000, total_s=10))
        with pytest.raises(kind, match=said) as failed:
            backend.complete_sync("a")
        assert type(failed.value) is kind
        assert len(asked) == 1  # it may have worked on it: not again
        assert (backend.outstanding, backend.window) == (0, 4)
        backend.close()


def test_a_server_that_comes_up_later_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    backend = OpenAiBackend(f"http://127.0.0.1:{port}/v1", "m", limits=BackendLimits(attempts=2))
    with pytest.raises(BackendError, match="cannot reach"):
        backend.complete_sync("a")
    assert backend.outstanding == 0
    backend.close()


# ---- keys and places


def test_the_key_is_sent_and_never_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def echo(connection: socket.socket, request: bytes) -> None:
        assert f"authorization: bearer {KEY}".encode() in request.lower()
        connection.sendall(head("401 No") + json.dumps({"error": {"message": f"bad key {KEY}"}}).encode())

    with raw_server(echo) as url:
        backend = OpenAiBackend(url, "m", key_file=key_file(tmp_path / "key"))
        with pytest.raises(BackendError, match=r"401: bad key \.\.\.") as refused:
            backend.complete_sync("a")
        assert "key_file" in refused.value.diagnostics()
        backend.close()
    assert KEY not in repr(backend) + str(refused.value) + caplog.text


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with FakeModel() as model:
        assert ask(OpenAiBackend(model.url, "m")).text == "hi there"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://models.example/v1", {}),
        ("http://10.0.0.1:8000/v1", {}),
        ("http://127.0.0.1.models.example/v1", {}),
        ("ftp://127.0.0.1/v1", {}),
        ("https://user:word@models.example/v1", {}),
        ("https://models.example/v1?key=1", {}),
        ("https:///v1", {}),
        ("https://models.example:99999/v1", {}),
        ("https://" + "m" * 3000 + "/v1", {}),
        ("https://models.example/v1", {"key_variable": "NO_SUCH_KEY"}),
        ("https://models.example/v1", {"key_file": "/nowhere/key"}),
        ("https://models.example/v1", {"window": Window(first=0)}),
        ("https://models.example/v1", {"ca_file": "/nowhere/ca.pem"}),
        ("https://models.example/v1", {"ca_file": __file__}),
        ("https://models.example/v1", {"proxy": "nowhere"}),
        ("https://models.example/v1", {"proxy": "gopher://proxy.example:1"}),
        ("https://xn--.example/v1", {}),
    ],
)
def test_what_is_no_place_for_a_model_is_refused(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        OpenAiBackend(url, "m", **options)


def test_plain_http_elsewhere_has_to_be_said() -> None:
    OpenAiBackend("http://10.0.0.1:8000/v1", "m", plain_http=True)


def test_a_key_is_for_its_owners_eyes(tmp_path: Path) -> None:
    path = key_file(tmp_path / "key")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        OpenAiBackend("https://models.example/v1", "m", key_file=path)
    path.chmod(0o600)
    for wrong in ("", "two words", "k" * 5000, "line\nbreak"):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match="holds no key"):
            OpenAiBackend("https://models.example/v1", "m", key_file=path)
    with pytest.raises(ConfigError, match="not from both"):
        OpenAiBackend("https://models.example/v1", "m", key_file=path, key_variable="X")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"pattern": "a"}, "'pattern', which is not checked"),
        ({"type": "text"}, "type is none of"),
        ({"properties": {"a": {"anyOf": []}}}, r"schema\.properties\.a has 'anyOf'"),
        ({"minimum": "1"}, "minimum is no number"),
        ({"maxItems": -1}, "maxItems is no count"),
        ({"required": "a"}, "required is no list"),
        ({"additionalProperties": {}}, "additionalProperties true or false"),
        ({"items": []}, "items is no object"),
    ],
)
def test_a_schema_that_cannot_be_checked_is_refused(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ask(OpenAiBackend("http://127.0.0.1:1/v1", "m"), schema=schema)


def test_a_schema_has_a_depth() -> None:
    schema: dict[str, Any] = {}
    for _ in range(20):
        schema = {"items": schema}
    with pytest.raises(ConfigError, match="deeper than 16"):
        ask(OpenAiBackend("http://127.0.0.1:1/v1", "m"), schema=schema)


def test_a_closed_backend_says_so() -> None:
    with FakeModel() as model:
        backend = OpenAiBackend(model.url, "m")
        assert backend.complete_sync("a").text == "a"
        backend.close()
        with pytest.raises(BackendError, match="closed"):
            backend.complete_sync("a")
        assert "comity-model-backend" not in {thread.name for thread in threading.enumerate()}


def test_the_fake_model_asks_for_its_key() -> None:
    os.environ["COMITY_TEST_KEY"] = KEY
    try:
        with FakeModel(key=KEY) as model:
            assert ask(OpenAiBackend(model.url, "m", key_variable="COMITY_TEST_KEY")).text == "hi there"
            with pytest.raises(BackendError, match="401"):
                ask(OpenAiBackend(model.url, "m"))
    finally:
        del os.environ["COMITY_TEST_KEY"]
