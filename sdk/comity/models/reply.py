"""What a model's server answers: whole, or as a stream of events. No socket, no clock.

The form is that of OpenAI's chat/completions, as vLLM, SGLang and llama.cpp speak it; a stream is one of server-sent
events (WHATWG HTML, section 9.2) that ends with `data: [DONE]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comity.errors import BackendReplyInvalid
from comity.strictjson import MAX_INTEGER, parse_json

_MAX_SAID = 500
_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Prices:
    """What a million tokens cost, in any one currency."""

    prompt: float = 0.0
    answer: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What calls have cost.

    Attributes:
        prompt_tokens: that went in.
        answer_tokens: that came out.
        cost: by the prices of the back-end; 0 without prices.
        estimated: the server did not count; bytes were counted for tokens, of which there are never more.
    """

    prompt_tokens: int = 0
    answer_tokens: int = 0
    cost: float = 0.0
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
            self.cost + other.cost,
            self.estimated or other.estimated,
        )

    def report(self) -> dict[str, float]:
        """What a skill returns as `usage` beside its output, so that a flow counts it."""
        return {"tokens": self.prompt_tokens + self.answer_tokens, "cost": self.cost}


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model said.

    Attributes:
        text: as it said it.
        value: the same, parsed, if JSON was asked for; else None.
        usage: what it cost.
        finish: "stop", "length" (it was cut off) or another word of the server's.
        model: the name that the server gave.
    """

    text: str
    value: Any
    usage: Usage
    finish: str
    model: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer, taken apart; `tokens` is None if the server did not count."""

    text: str
    finish: str
    model: str
    tokens: tuple[int, int] | None

    def usage(self, prompt_bytes: int, prices: Prices) -> Usage:
        """Return what it cost."""
        prompt, answer = self.tokens or (prompt_bytes, len(self.text.encode()))
        cost = (prompt * prices.prompt + answer * prices.answer) / 1e6
        return Usage(prompt, answer, cost, self.tokens is None)


def read_reply(body: bytes) -> Reply:
    """Read a whole answer.

    Raises:
        BackendReplyInvalid: it is none.
    """
    answer = _object(_parse(body), "the answer")
    choice = _first(answer)
    if choice is None:
        raise BackendReplyInvalid("the model's server answered with no choice")
    text = _object(choice.get("message"), "message").get("content")
    if not isinstance(text, str):
        raise BackendReplyInvalid("the model's server answered without a text")
    return Reply(text, _word(choice.get("finish_reason")), _word(answer.get("model")), _tokens(answer.get("usage")))


def read_error(body: bytes) -> str:
    """Return what a server says of its refusal, on one line; whatever came if it says it in no known form."""
    try:
        value = parse_json(body, limit=len(body))
    except ValueError:
        value = body.decode("utf-8", "replace")
    if isinstance(value, dict):
        value = value.get("error", value)
    if isinstance(value, dict):
        value = value.get("message", value)
    return " ".join("".join(each if each.isprintable() else " " for each in str(value)[:_MAX_SAID]).split())


class StreamedReply:
    """Puts an answer together from the bytes of an event stream."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._texts: list[str] = []
        self._finish = self._model = ""
        self._tokens: tuple[int, int] | None = None
        self.done = False

    def feed(self, data: bytes) -> str:
        """Take bytes in; returns the text that came with them.

        Raises:
            BackendReplyInvalid: an event is not what it should be.
        """
        searched = len(self._rest)
        self._rest += data
        if self._rest.find(b"\n", searched) < 0:
            return ""
        *lines, rest = self._rest.split(b"\n")
        self._rest = rest
        before = len(self._texts)
        for line in lines:
            if line.startswith(b"data:") and not self.done:
                self._event(bytes(line[5:]).strip())
        return "".join(self._texts[before:])

    def finish(self) -> Reply:
        """Return the answer, when the stream is over.

        Raises:
            BackendReplyInvalid: it was not at its end.
        """
        if not self.done:
            raise BackendReplyInvalid("the model's server ended its stream in the middle")
        return Reply("".join(self._texts), self._finish, self._model, self._tokens)

    def _event(self, data: bytes) -> None:
        if data == _DONE:
            self.done = True
            return
        event = _object(_parse(data), "an event")
        if "error" in event:
            raise BackendReplyInvalid(f"the model's server broke off: {read_error(data)}")
        self._model = self._model or _word(event.get("model"))
        self._tokens = _tokens(event.get("usage")) or self._tokens
        choice = _first(event)
        if choice is None:
            return  # the last event, of the usage, has none
        self._finish = _word(choice.get("finish_reason")) or self._finish
        text = _object(choice.get("delta"), "delta").get("content")
        if isinstance(text, str) and text:
            self._texts.append(text)


def _parse(body: bytes) -> Any:  # noqa: ANN401  (any JSON value)
    try:
        return parse_json(body, limit=len(body))
    except ValueError as error:
        raise BackendReplyInvalid(f"the model's server answered with what is no JSON: {error}") from error


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BackendReplyInvalid(f"the model's server answered in another form: {what} is no object")
    return value


def _first(answer: dict[str, Any]) -> dict[str, Any] | None:
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) > 1:
        raise BackendReplyInvalid("the model's server answered in another form: choices is no list of one")
    return _object(choices[0], "a choice") if choices else None


def _word(value: object) -> str:
    return value[:200] if isinstance(value, str) else ""


def _tokens(usage: object) -> tuple[int, int] | None:
    if not isinstance(usage, dict):
        return None
    prompt, answer = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    counts = (prompt, answer)
    if not all(type(each) is int and 0 <= each <= MAX_INTEGER for each in counts):
        return None
    return (int(prompt), int(answer)) if prompt is not None else None
