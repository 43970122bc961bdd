"""What a failed call means, as an error of ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from grpc.aio import AioRpcError

from comity.errors import ControlError


def to_control_error(error: object, address: str, method: str) -> ControlError:
    """Return what a failed call (a `grpc.RpcError`) means: the node's own error if it sent one, else what gRPC says."""
    if not isinstance(error, (grpc.Call, AioRpcError)):
        return ControlError(f"{method} on {address}: {error}")
    metadata = _metadata(error.trailing_metadata() or ())
    details = error.details() or ""
    if "comity-code" in metadata:
        rules = _text(metadata.get("comity-rules-bin"))
        return ControlError(
            details,
            code=_text(metadata["comity-code"]),
            advice=_text(metadata.get("comity-advice-bin")),
            rules=tuple(rules.split("\n")) if rules else (),
        )
    status_code = error.code()
    if status_code is grpc.StatusCode.UNAVAILABLE:
        why = "" if address.startswith("unix:") else f" ({details})"
        return ControlError(
            f"no node answers at {address}{why}", code="node_unreachable", advice="start it with: comity node run"
        )
    if status_code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return too_slow(method)
    return ControlError(f"{method}: {details or status_code.name}", code=status_code.name.lower())


def too_slow(method: str) -> ControlError:
    """Return the error for an answer that did not come."""
    return ControlError(f"the node did not answer {method} in time", code="deadline_exceeded")


def not_ready(address: str, timeout_s: float) -> ControlError:
    """Return the error for a node that did not come up."""
    return ControlError(
        f"no node answered at {address} within {timeout_s:g} s",
        code="node_unreachable",
        advice="start it with: comity node run",
    )


def _metadata(pairs: Iterable[Any]) -> dict[str, str | bytes]:
    # Two kinds of tuples, by the kind of the channel; both are pairs.
    return {key: value for key, value in pairs}


def _text(value: str | bytes | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""
