"""Where a node's control API is, and the options of every channel to it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import grpc

from comity.errors import ControlError

ENVIRONMENT = "COMITY_CONTROL"
#: Options of every channel. A worker's results have at most 4 MiB, a page of records at most 8.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 8 * 1024 * 1024),
    ("grpc.max_send_message_length", 8 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),  # the node is ours: no proxy stands between
    ("grpc.use_local_subchannel_pool", 1),  # else a new client waits out the back-off of an old one
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),  # an idle worker finds out, too, that its node is gone
)


@dataclass(frozen=True, slots=True)
class Tls:
    """Files (PEM) for mutual TLS to a node's TCP address: own key, own certificate chain, the CA of the node's."""

    key: Path
    certificate: Path
    ca: Path

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            ControlError: one of them cannot be read.
        """
        try:
            return grpc.ssl_channel_credentials(
                self.ca.read_bytes(), self.key.read_bytes(), self.certificate.read_bytes()
            )
        except OSError as error:
            raise ControlError(f"cannot read {error.filename}: {error.strerror}", code="key_file_invalid") from error


def control_address(address: str | None) -> str:
    """Return `address`, or what COMITY_CONTROL says.

    Raises:
        ControlError: neither says where the node is.
    """
    found = address or os.environ.get(ENVIRONMENT, "")
    if not found:
        raise ControlError(
            "no control address is given",
            advice=f"pass one (unix:/path/to/socket or host:port), or set {ENVIRONMENT}",
        )
    return found
