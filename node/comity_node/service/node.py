"""The node itself: who it is, its links and agents, and what it is told to do with itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable

from comity.trust import NodeIdentity, TrustStore
from comity.v1 import control_pb2 as pb
from comity_node.admission import Gate
from comity_node.runtime.certify import REVIEWER
from comity_node.runtime.core import Runtime
from comity_node.runtime.router import PeerView
from comity_node.runtime.score import mean
from comity_node.service.seams import Facts, Reload, Revoke
from comity_node.storage import audit, journal, records
from comity_node.storage.database import Database


class NodeService:
    """Answers about the node itself."""

    def __init__(
        self, identity: NodeIdentity, trust: TrustStore, gate: Gate, runtime: Runtime, database: Database, facts: Facts,
        revoke: Revoke, reload: Reload, stop: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        """Answer for `identity`'s node; `stop` begins its shutdown."""
        self._identity = identity
        self._trust = trust
        self._gate = gate
        self._runtime = runtime
        self._database = database
        self._facts = facts
        self._revoke = revoke
        self._reload = reload
        self._stop = stop

    async def get_status(self, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        """Who this node is, and what it has counted."""
        tasks = await self._database.read(journal.count_tasks_by_state)
        kept = await self._database.read(records.count_records)
        waiting = await self._database.read(journal.count_open)
        liars = await self._database.read(journal.list_equivocations)
        counters = {f"tasks.{state}": count for state, count in tasks.items()}
        counters |= {
            "records": sum(kept.values()),
            "outbox": sum(waiting.values()),
            "equivocations": len(liars),
            **self._runtime.counters(),
            **self._facts.counters(),
        }
        entries, size = await self._database.read(lambda c: (audit.head(c).size, _file_bytes(c)))
        now_ms = self._gate.now_ms()
        view = self._runtime.router_view()
        known = await self._database.read(lambda c: journal.list_reliability(c, now_ms))
        reliable = {row.organization: row.reliability for row in known if row.role == REVIEWER}
        bundle = self._trust.bundle
        return pb.GetStatusResponse(
            organization=self._identity.organization,
            node=str(self._identity.node),
            peer_id=self._identity.peer_id,
            consortium=bundle.consortium,
            bundle_epoch=bundle.epoch,
            version=self._facts.version,
            started_ms=self._facts.started_ms,
            addresses=list(self._facts.addresses()),
            policy_digest=self._gate.policy.digest.hex(),
            counters=counters,
            skills=list(self._facts.skills()),
            warnings=list(self._facts.warnings()),
            loads=list(self._facts.loads()),
            router=[_router_peer(one, reliable.get(one.organization, mean(0.0, 0.0))) for one in view.peers],
            fair_organizations=view.organizations,
            fair_workflows=view.workflows,
            audit_entries=entries,
            database_bytes=size,
        )

    async def list_peers(self, request: pb.ListPeersRequest) -> pb.ListPeersResponse:
        """Return the links."""
        return pb.ListPeersResponse(peers=list(self._facts.peers()))

    async def list_agents(self, request: pb.ListAgentsRequest) -> pb.ListAgentsResponse:
        """Return all known agents with what was learned about their organizations."""
        now_ms = self._gate.now_ms()
        known = await self._database.read(lambda c: journal.list_reliability(c, now_ms))
        counts = {(row.organization, row.role): row for row in known}
        agents = []
        for card in self._runtime.directory.cards():
            role = "reviewer" if any(skill.role == "validator" for skill in card.skills) else "generator"
            row = counts.get((card.organization, role))
            agreed, disagreed = (row.agreed, row.disagreed) if row else (0.0, 0.0)
            agents.append(
                pb.Agent(
                    organization=card.organization,
                    name=card.name,
                    skills=[skill.id for skill in card.skills],
                    peer_id=card.peer_id,
                    agreed=agreed,
                    disagreed=disagreed,
                    reliability=row.reliability if row else mean(agreed, disagreed),
                )
            )
        return pb.ListAgentsResponse(agents=agents)

    async def revoke_certificate(self, request: pb.RevokeCertificateRequest) -> pb.RevokeCertificateResponse:
        """Refuse a node's certificate from now on, and tell the other members."""
        revocation = await self._revoke(request.revocation)
        return pb.RevokeCertificateResponse(
            organization=revocation.organization,
            fingerprint=revocation.fingerprint.hex(),
            from_ms=revocation.issued_ms,
        )

    async def reload(self, request: pb.ReloadRequest) -> pb.ReloadResponse:
        """Look at the node's files now, and take in what has changed."""
        report = await self._reload()
        return pb.ReloadResponse(changed=list(report.changed), refused=list(report.refused))

    async def shutdown(self, request: pb.ShutdownRequest) -> pb.ShutdownResponse:
        """Begin the shutdown: drain, then stop."""
        await self._stop()
        return pb.ShutdownResponse()


def _file_bytes(connection: sqlite3.Connection) -> int:
    """Return how large the database is, without its write-ahead log."""
    pages, size = (connection.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "page_size"))
    return int(pages) * int(size)


def _router_peer(view: PeerView, reliability: float) -> pb.RouterPeer:
    return pb.RouterPeer(
        skill=view.skill,
        organization=view.organization,
        expected_ms=view.expected_s * 1000,
        outstanding=view.outstanding,
        window=view.window,
        circuit=view.circuit,
        answers=view.answers,
        failures=view.failures,
        busy=view.busy,
        share=view.award,
        price=view.price,
        reliability=reliability,
    )
