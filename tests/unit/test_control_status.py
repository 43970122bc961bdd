"""Errors as gRPC statuses, and back."""

from __future__ import annotations

import logging

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from comity import errors
from comity._control.failures import to_control_error
from comity.errors import ComityError
from comity_node.control.status import Status, code_of, sole, status_of

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.PolicyDenied("no"), Code.PERMISSION_DENIED),
        (errors.ConfigError("bad", file="policy.yaml", line=3), Code.INVALID_ARGUMENT),
        (errors.Busy("full"), Code.RESOURCE_EXHAUSTED),
        (errors.DeadlineExceeded("late"), Code.DEADLINE_EXCEEDED),
        (errors.PeerUnreachable("gone"), Code.UNAVAILABLE),
        (errors.NodeStopping("bye"), Code.UNAVAILABLE),
        (errors.NoWorker("none"), Code.UNAVAILABLE),
        (errors.AgentFailed("raised"), Code.FAILED_PRECONDITION),
        (errors.ReplayedMessage("twice"), Code.INVALID_ARGUMENT),
        (errors.NotFound("what?"), Code.NOT_FOUND),
        (errors.StorageError("disk full"), Code.INTERNAL),
        (errors.AuditBroken("hash"), Code.DATA_LOSS),
        (errors.ComityError("?"), Code.UNKNOWN),
    ],
)
def test_an_error_keeps_its_code_and_text(error: ComityError, code: grpc.StatusCode) -> None:
    status = status_of(error, "get_status")
    assert status.code is code
    assert dict(status.metadata)["comity-code"] == error.code
    back = to_control_error(failed(status), "unix:/s", "GetStatus")
    assert (back.code, str(back), back.advice) == (error.code, str(error), error.advice)


def test_every_error_of_the_tree_has_a_status() -> None:
    def walk(kind: type[ComityError]) -> list[type[ComityError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in walk(child))]

    assert [kind for kind in walk(ComityError) if code_of(kind) is Code.UNKNOWN] == [ComityError, errors.ControlError]


def test_rules_and_retry_after_travel() -> None:
    denied = status_of(errors.PolicyDenied("no", rules=("never-raw-rows", "zweite-Regel-ü")), "m")
    back = to_control_error(failed(denied), "unix:/s", "M")
    assert back.rules == ("never-raw-rows", "zweite-Regel-ü")
    assert dict(status_of(errors.Busy("full", retry_after_ms=250), "m").metadata)["comity-retry-after-ms"] == "250"


def test_an_unexpected_error_is_logged_and_keeps_its_text_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise KeyError("patient 4711")
    except KeyError as error:
        with caplog.at_level(logging.ERROR):
            status = status_of(error, "get_record")
    assert status.code is Code.INTERNAL
    assert "4711" not in status.message
    assert "KeyError" in status.message
    assert "get_record failed" in caplog.text
    assert "Traceback" in caplog.text


def test_a_group_of_one_counts_as_that_one() -> None:
    inner = errors.PolicyDenied("no")
    assert sole(ExceptionGroup("nursery", [ExceptionGroup("nursery", [inner])])) is inner
    assert status_of(ExceptionGroup("nursery", [inner]), "m").code is Code.PERMISSION_DENIED
    two = ExceptionGroup("nursery", [inner, ValueError()])
    assert sole(two) is two
    assert status_of(two, "m").code is Code.INTERNAL


@pytest.mark.parametrize("text", ["x" * 100_000, "ü" * 100_000, "\N{PILE OF POO}" * 10_000])
def test_a_long_text_still_fits_into_headers(text: str) -> None:
    status = status_of(errors.ConfigError(text), "m")
    assert len(status.message.encode()) <= 2003
    assert status.message.endswith("...")


def failed(status: Status) -> AioRpcError:
    """A failed call as a client sees it."""
    trailing = Metadata(*status.metadata)
    return AioRpcError(status.code, Metadata(), trailing, details=status.message, debug_error_string="")
