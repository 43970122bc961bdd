"""What the service asks of the rest of the node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from comity.revocation import Revocation
from comity.v1 import control_pb2 as pb

#: Takes a signed revocation; raises RevocationInvalid.
Revoke = Callable[[bytes], Awaitable[Revocation]]


class Reloaded(Protocol):
    """What became of a look at the node's files, in lines."""

    @property
    def changed(self) -> Sequence[str]:
        """What was taken in."""

    @property
    def refused(self) -> Sequence[str]:
        """What was refused, and why."""


#: Looks at the node's files, and takes in what has changed.
Reload = Callable[[], Awaitable[Reloaded]]


class Tunnels(Protocol):
    """What the control API asks of the tunnels."""

    async def serve(self, name: str, target: str, kind: str) -> None:
        """Serve a local service to the other organizations."""

    async def open(self, name: str, organization: str, port: int, app_digests: tuple[str, ...]) -> int:
        """Listen on loopback for a tunnel to another organization; returns the port."""


class Bulk(Protocol):
    """What the control API asks of the bulk transfers; the calls are those of `ControlHandlers`."""

    async def send_bulk(
        self, request: pb.SendBulkRequest, send: Callable[[pb.SendBulkResponse], Awaitable[None]]
    ) -> None:
        """Send a table and report progress."""

    async def list_bulk(self, request: pb.ListBulkRequest) -> pb.ListBulkResponse:
        """Return the transfers."""

    def read_bulk(self, request: pb.ReadBulkRequest) -> AsyncIterator[pb.ReadBulkResponse]:
        """Return a received table."""

    async def remove_bulk(self, request: pb.RemoveBulkRequest) -> pb.RemoveBulkResponse:
        """Delete a transfer's table."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the node is, for `GetStatus` and `ListPeers`."""

    version: str
    started_ms: int
    addresses: Callable[[], Sequence[str]]
    peers: Callable[[], Sequence[pb.Peer]]
    skills: Callable[[], Sequence[str]]
    counters: Callable[[], Mapping[str, int]]
    warnings: Callable[[], Sequence[str]] = tuple
    loads: Callable[[], Sequence[pb.SkillLoad]] = tuple
