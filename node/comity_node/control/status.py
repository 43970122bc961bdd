"""Comity's errors as gRPC statuses, and back in trailing metadata what a status cannot say.

Trailing metadata of a refused call: `comity-code` (the error's code), `comity-advice-bin` and `comity-rules-bin`
(UTF-8; the rules one a line) and `comity-retry-after-ms`, each where the error has one. Keys that end in `-bin` carry
any bytes (https://grpc.io/docs/guides/metadata/).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import grpc

from comity import errors
from comity.errors import ComityError

_log = logging.getLogger(__name__)

#: The nearest base class counts.
_CODES: dict[type[ComityError], grpc.StatusCode] = {
    errors.ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidName: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidRecord: grpc.StatusCode.INVALID_ARGUMENT,
    errors.EnvelopeError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ProtocolError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CertificateInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TrustError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AgreementError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TransferFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AgentError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModelError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LinkError: grpc.StatusCode.UNAVAILABLE,
    errors.NoWorker: grpc.StatusCode.UNAVAILABLE,
    errors.NodeStopping: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.PolicyDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.StorageError: grpc.StatusCode.INTERNAL,
    errors.AuditBroken: grpc.StatusCode.DATA_LOSS,
}
#: Status messages travel in headers, all of which together may have 8 KiB.
_MAX_TEXT = 2000


@dataclass(frozen=True, slots=True)
class Status:
    """What a refused call is answered with."""

    code: grpc.StatusCode
    message: str
    metadata: tuple[tuple[str, str | bytes], ...] = ()


def status_of(error: Exception, method: str) -> Status:
    """Return the status for `error`, raised while `method` was handled.

    An error that is not Comity's own is a fault of the node: it is logged with its traceback and answered with
    INTERNAL, without its text, which may hold what the caller should not see.
    """
    inner = sole(error)
    if not isinstance(inner, ComityError):
        _log.error("%s failed: %s", method, type(inner).__name__, exc_info=inner)
        return Status(
            grpc.StatusCode.INTERNAL,
            f"the node failed ({type(inner).__name__}); its log has the details",
            (("comity-code", "internal"),),
        )
    code = code_of(type(inner))
    metadata: list[tuple[str, str | bytes]] = [("comity-code", inner.code)]
    if inner.advice:
        metadata.append(("comity-advice-bin", _cut(inner.advice).encode()))
    if isinstance(inner, errors.PolicyDenied) and inner.rules:
        metadata.append(("comity-rules-bin", _cut("\n".join(inner.rules)).encode()))
    if isinstance(inner, errors.Busy):
        metadata.append(("comity-retry-after-ms", str(inner.retry_after_ms)))
    return Status(code, _cut(str(inner) or type(inner).__name__), tuple(metadata))


def code_of(kind: type[ComityError]) -> grpc.StatusCode:
    """Return the gRPC code for errors of this class."""
    return next((_CODES[base] for base in kind.__mro__ if base in _CODES), grpc.StatusCode.UNKNOWN)


def sole(error: BaseException) -> BaseException:
    """Return the one exception inside nested groups of one, as a trio nursery raises them; else `error`."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _cut(text: str) -> str:
    """Return `text`, shortened to what `_MAX_TEXT` bytes of a percent-encoded header hold."""
    size = 0
    for index, character in enumerate(text):
        size += 1 if character.isascii() else 3 * len(character.encode("utf-8", "replace"))
        if size > _MAX_TEXT:
            return text[:index] + "..."
    return text
