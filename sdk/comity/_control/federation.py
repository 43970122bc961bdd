"""Federated learning: model updates that leave and come in, and tunnels for what runs between organizations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from comity._control.connection import Call
from comity._control.defined import call
from comity._control.values import read_value
from comity.v1 import control_pb2 as pb


@dataclass(frozen=True, slots=True)
class ReleasedUpdate:
    """A signed manifest that lets a model update leave, and the certificate chain (DER) of its signer."""

    manifest: bytes
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a peer's update may be aggregated; if not, why."""

    code: str
    reason: str
    organization: str
    private_examples: int
    certified_examples: int

    @property
    def admitted(self) -> bool:
        """Whether it may."""
        return not self.code


class FederationCalls:
    """Calls about model updates and tunnels."""

    @call
    def release_update(
        self,
        *,
        to_organization: str,
        agreement: str,
        federation: str,
        round_number: int,
        update_digest: bytes,
        private_examples: int,
        certified_examples: int,
    ) -> Call[ReleasedUpdate]:
        """Ask that a model update may leave; `update_digest` is the SHA-256 of the packed arrays.

        Raises:
            ControlError: with code "policy_denied" if the policy says no.
        """
        request = pb.ReleaseUpdateRequest(
            to_organization=to_organization,
            agreement_digest=agreement,
            federation=federation,
            round=round_number,
            update_digest=update_digest,
            private_examples=private_examples,
            certified_examples=certified_examples,
        )
        return Call("ReleaseUpdate", request, lambda it: read_value(ReleasedUpdate, it))

    @call
    def admit_update(
        self, *, manifest: bytes, chain: Sequence[bytes], federation: str, round_number: int, update_digest: bytes
    ) -> Call[Admission]:
        """Have a peer's update checked before it is aggregated."""
        request = pb.AdmitUpdateRequest(
            manifest=manifest, chain=chain, federation=federation, round=round_number, update_digest=update_digest
        )
        return Call("AdmitUpdate", request, lambda it: read_value(Admission, it))

    @call
    def serve_tunnel(self, name: str, target: str, *, filter_name: str = "flower-fleet") -> Call[None]:
        """Serve the local HTTP server at `target` (host:port) to other organizations, through a filter."""
        request = pb.ServeTunnelRequest(name=name, target=target, filter=filter_name)
        return Call("ServeTunnel", request, lambda _: None)

    @call
    def open_tunnel(self, name: str, organization: str, *, port: int = 0, app_digests: Iterable[str] = ()) -> Call[int]:
        """Listen on loopback for a tunnel to `organization`; returns the port.

        Args:
            name: of the tunnel, as it is served there.
            organization: who serves it.
            port: where to listen; 0 for any free port.
            app_digests: SHA-256 in hex of the Flower app bundles that may come in through it; none: no app comes in.
        """
        request = pb.OpenTunnelRequest(name=name, organization=organization, port=port, app_digests=app_digests)
        return Call("OpenTunnel", request, lambda it: int(it.port))
