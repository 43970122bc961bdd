"""What a model is asked, as the body of a request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from comity.errors import ConfigError
from comity.models.shape import check_schema

Messages = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is wanted; the fields as the arguments of `OpenAiBackend.complete`."""

    messages: Messages
    schema: Mapping[str, Any] | None
    max_tokens: int | None
    temperature: float | None
    seed: int | None
    options: Mapping[str, Any] | None

    def encode(self, model: str, *, streaming: bool, limit: int) -> bytes:
        """Return the body of the request.

        Raises:
            ConfigError: it is no JSON or has over `limit` bytes, or the schema has what is not checked.
        """
        if self.schema is not None:
            check_schema(self.schema)
        try:
            request = json.dumps(self._body(model, streaming), allow_nan=False, default=_mapping).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"the request to the model is no JSON: {error}") from error
        if len(request) > limit:
            raise ConfigError(f"the request to the model has {len(request)} bytes, over {limit}")
        return request

    def _body(self, model: str, streaming: bool) -> dict[str, Any]:
        said = self.messages
        body: dict[str, Any] = {**(self.options or {}), "model": model}
        body["messages"] = [{"role": "user", "content": said}] if isinstance(said, str) else list(said)
        named = {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        body.update({name: value for name, value in named.items() if value is not None})
        if streaming:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.schema is not None:
            wanted = {"name": "answer", "schema": self.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        return body


def _mapping(value: object) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def retry_after_s(text: str, now: float) -> float:
    """Return the seconds that a Retry-After header says (RFC 9110, section 10.2.3), 0 if it says none.

    Args:
        text: the header.
        now: seconds since the epoch.
    """
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return 0.0
