"""What the control API's calls do: the node's answers to its own organization, by subject."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from comity.trust import NodeIdentity, TrustStore
from comity_node.admission import Gate
from comity_node.runtime.core import Runtime
from comity_node.service.federation import BulkTransferService, FederationService
from comity_node.service.node import NodeService
from comity_node.service.policy import PolicyService
from comity_node.service.records import RecordService
from comity_node.service.seams import Bulk, Facts, Reload, Revoke, Tunnels
from comity_node.service.tasks import TaskService
from comity_node.service.workflows import WorkflowService
from comity_node.storage.database import Database

__all__ = ["Facts", "Service"]


class Service(
    NodeService, WorkflowService, TaskService, RecordService, PolicyService, FederationService, BulkTransferService
):
    """One node's control API (`ControlHandlers`)."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, runtime: Runtime, database: Database,
        tunnels: Tunnels, bulk: Bulk, facts: Facts, revoke: Revoke, reload: Reload,
        stop: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        """Answer for `identity`'s node; `stop` begins its shutdown."""
        NodeService.__init__(self, identity, trust, gate, runtime, database, facts, revoke, reload, stop)
        WorkflowService.__init__(self, runtime, database)
        TaskService.__init__(self, identity, trust, gate, runtime, database)
        RecordService.__init__(self, identity, gate, database)
        PolicyService.__init__(self, gate, database)
        FederationService.__init__(self, identity, runtime, tunnels)
        BulkTransferService.__init__(self, bulk)
