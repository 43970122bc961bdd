"""JSON in and out of agents: strict, and of bounded size.

Done in the loop: the C codec of the standard library holds the interpreter lock throughout, so a thread would gain
nothing. The limit bounds what that costs (about 10 ms a MiB).
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from comity.errors import AgentFailed


def encode(value: Any, limit: int, what: str) -> bytes:  # noqa: ANN401  (any JSON value)
    """Return `value` as JSON in UTF-8.

    Args:
        value: a JSON value.
        limit: bytes it may have.
        what: its name in the error.

    Raises:
        AgentFailed: it is no JSON value, or over the limit.
    """
    try:
        body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise AgentFailed(f"{what} is not JSON: {error}") from error
    _check_size(body, limit, what)
    return body


def decode(body: bytes, limit: int, what: str) -> Any:  # noqa: ANN401  (any JSON value)
    """Return the value that `body` holds; arguments and errors as for `encode`. NaN and infinities are no JSON."""
    _check_size(body, limit, what)
    try:
        return json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise AgentFailed(f"{what} is not JSON: {error}") from error


def _check_size(body: bytes, limit: int, what: str) -> None:
    if len(body) > limit:
        raise AgentFailed(f"{what} has {len(body)} bytes, and may have {limit}: do less at a time")


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
