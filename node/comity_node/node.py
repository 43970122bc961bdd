"""The composition root: a checked `node.yaml` becomes a running node.

Started from the bottom up, each part before whoever needs it; stopped in the opposite order: no new work, links and
calls drain, the audit log gets its last checkpoint, the database closes.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

import comity
from comity.bundle import Anchor, Bundle
from comity.digest import sha256
from comity.errors import ComityError, ConfigError, MissingExtra
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1 import control_pb2 as pb
from comity.v1.link_pb2 import PeerHint
from comity_node import discovery
from comity_node.admission import Gate
from comity_node.admission.archive import remember_policy
from comity_node.admission.gate import stored_high_water_ms
from comity_node.admission.records import Dataset, RecordGate
from comity_node.bulk.common import Surroundings as BulkSurroundings
from comity_node.bulk.control import BulkControl
from comity_node.bulk.limits import BulkLimits
from comity_node.bulk.service import BulkService
from comity_node.bulk.spool import Spool
from comity_node.config import NodeConfig
from comity_node.control.address import ServerTls
from comity_node.control.server import ControlServer
from comity_node.control.workers import Capacity, WorkerLimits, WorkerPool
from comity_node.links import Links
from comity_node.metrics import MetricsServer, Reading
from comity_node.metrics_work import JournalCounts, WorkReading
from comity_node.network import Doings, LinkedPeers, Network, now_ms
from comity_node.policy.loader import load as load_policy
from comity_node.protocol import bulk as bulk_protocol
from comity_node.protocol.freshness import Freshness
from comity_node.reload import Reloader
from comity_node.reload.sources import (
    BundleSource,
    CertificateSource,
    PolicySource,
    Source,
    check_policy,
    read_verified_bundle,
    remember_bundle,
    remembered_anchor,
)
from comity_node.runtime.core import RecordGateFactory, Runtime, Surroundings
from comity_node.runtime.directory import ROLES
from comity_node.runtime.market_bids import Offer, own_offer
from comity_node.runtime.messenger import Peers
from comity_node.runtime.pace import PaceLimits
from comity_node.runtime.standing import Standing
from comity_node.runtime.upkeep import Upkeep
from comity_node.service import Facts, Service
from comity_node.storage import audit, journal, task_views
from comity_node.storage.database import Database, open_database
from comity_node.storage.note import NoteSigner
from comity_node.tracing import NULL, Tracer
from comity_node.transport.base import Priority
from comity_node.tunnels import TunnelManager
from comity_node.validators.distance import PrivateReference
from comity_node.validators.schema import Schema

if TYPE_CHECKING:
    from trio_typing import TaskStatus as _TaskStatus

TaskStatus: TypeAlias = "_TaskStatus[None]"

log = logging.getLogger(__name__)

_DRAIN_S = 5.0
#: How long the collector of spans may take to take the last ones.
_TRACES_END_S = 3.0
_WARNINGS_SHOWN = 32


PeersFactory = Callable[[Peers], Peers]


@dataclass(frozen=True, slots=True)
class Parts:
    """Seams of a node that tests and the demo's adversary put their own parts into."""

    record_gate: RecordGateFactory = RecordGate
    peers: PeersFactory = lambda peers: peers


class Node:
    """One organization's node."""

    def __init__(self, config: NodeConfig, parts: Parts | None = None) -> None:
        """Load and check everything that does not need the network.

        Raises:
            ConfigError, TrustError, StorageError: a file is missing, wrong, or does not fit the others.
        """
        self._config = config
        self._parts = parts or Parts()
        self.identity = _load_identity(config)
        self.policy = load_policy(config.policy)
        check_policy(self.policy, config)
        self._datasets = {name: _load_dataset(each.schema, each.private) for name, each in config.datasets.items()}
        config.database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tracer, self._end_traces = _make_tracer(config, self.identity)
        self._stop = trio.Event()
        self._stopped = trio.Event()
        self._reload = trio.Event()
        self.started_ms = now_ms()

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Run until `stop` is called or the task is cancelled; then drain and close."""
        async with open_database(self._config.database) as database:
            try:
                await self._run(database, task_status)
            finally:
                with trio.CancelScope(shield=True):
                    await self._close(database)
        self._stopped.set()

    def stop(self) -> None:
        """Begin the shutdown."""
        self._stop.set()

    def reload(self) -> None:
        """Look at the policy, the trust bundle and the certificate now, and take in what has changed."""
        self._reload.set()

    async def stopped(self) -> None:
        """Wait until the node has stopped."""
        await self._stopped.wait()

    async def _run(self, database: Database, task_status: TaskStatus) -> None:
        config, identity = self._config, self.identity
        anchor = await database.read(remembered_anchor)
        trust = TrustStore(_load_bundle(config, identity, anchor), certificates_within_ms=config.certificates_within_ms)
        high_water_ms = await database.read(stored_high_water_ms)
        await self._note_start(database, trust.bundle)
        gate = Gate(
            identity=identity,
            policy=self.policy,
            database=database,
            freshness=Freshness(identity.peer_id, high_water_ms=high_water_ms),
            now_ms=now_ms,
            random_bytes=os.urandom,
        )
        workers = WorkerPool(config.organization, limits=WorkerLimits(workers=config.limits.workers))
        peers = self._parts.peers(LinkedPeers(lambda: network.links))
        runtime = Runtime(
            Surroundings(
                identity=identity,
                trust=trust,
                gate=gate,
                database=database,
                peers=peers,
                workers=workers,
                own_agents=lambda: [(agent.agent_id, agent.skills) for agent in workers.agents()],
                datasets=self._datasets,
                addresses=lambda: network.links.addresses(),
                hints=lambda: _hints(network.links),
                told=lambda peer_id, addresses: network.links.learn_addresses(peer_id, addresses),
                random=SystemRandom(),
                version=comity.__version__,
                suspension_ms=config.suspension_ms,
                tracer=self._tracer,
                pace=PaceLimits(config.limits.messages_per_second, 2 * config.limits.messages_per_second),
                offer=lambda skill: _own_offer(workers.capacity(skill), config.prices.get(skill, 0.0)),
            ),
            record_gate=self._parts.record_gate,
        )
        standing = Standing(identity=identity, trust=trust, gate=gate, database=database)
        network = Network(
            config, identity=identity, trust=trust, gate=gate, database=database,
            doings=self._doings(runtime, workers, standing),
        )  # fmt: skip
        links = network.links
        async with trio.open_nursery() as nursery:
            await runtime.load()
            await nursery.start(network.run)
            await nursery.start(runtime.run)
            tunnels = TunnelManager(gate=gate, links=links, peers=peers, database=database, nursery=nursery)
            bulk = self._bulk(gate, trust, database, runtime, links, peers)
            await bulk.recover()
            tunnels.always(bulk_protocol.TUNNEL, bulk.serve)
            await nursery.start(bulk.run)

            async def beside() -> None:
                network.look_again()
                await tunnels.look_again()
                await bulk.look_again()

            runtime.beside = beside
            reloader = self._reloader(gate, trust, database, runtime, network)

            def counters() -> dict[str, int]:
                witnessed = {**runtime.cosigner.counters(), **runtime.witnesses.counters()}
                return {**workers.counters(), **runtime.messenger.counters(), **network.counters(), **witnessed}

            facts = Facts(
                version=comity.__version__,
                started_ms=self.started_ms,
                addresses=links.addresses,
                peers=lambda: _peers(links, config.organization),
                skills=workers.skills,
                counters=counters,
                warnings=lambda: [*reloader.warnings(), *_warnings(runtime, links, trust)],
                loads=lambda: [pb.SkillLoad(**asdict(load)) for load in workers.queues()],
            )
            service = Service(
                identity=identity, trust=trust, gate=gate, runtime=runtime, database=database,
                tunnels=tunnels, bulk=BulkControl(bulk), facts=facts, revoke=network.revoke,
                reload=reloader.reload, stop=self._asked_to_stop,
            )  # fmt: skip
            tls = config.control.tls
            control = ControlServer(
                config.control.address,
                service,
                workers,
                tls=ServerTls(tls.key, tls.certificate, tls.client_ca) if tls else None,
            )
            await nursery.start(control.run)
            if config.network.metrics.host:
                read = partial(_reading, links, counters, runtime, workers, database)
                await nursery.start(MetricsServer(config.network.metrics.host, config.network.metrics.port, read).run)
            nursery.start_soon(self._kick_on_change, links, runtime)
            await nursery.start(Upkeep(database, self._signer(), now_ms, gate.approvals).run)
            await nursery.start(reloader.run)
            nursery.start_soon(self._reload_when_asked, reloader)
            task_status.started()
            await self._stop.wait()
            log.info("stopping: no new work; waiting up to %g s for what is under way", _DRAIN_S)
            await runtime.witnesses.farewell()
            await links.drain(_DRAIN_S)
            nursery.cancel_scope.cancel()

    def _reloader(
        self, gate: Gate, trust: TrustStore, database: Database, runtime: Runtime, network: Network
    ) -> Reloader:
        config, identity = self._config, self.identity

        async def bundle_changed() -> None:
            network.bundle_changed()
            await runtime.bundle_changed()

        async def certificate_changed() -> None:
            network.links.renew()

        sources: list[Source[Any]] = [
            BundleSource(config, identity, trust, gate, database, bundle_changed),
            CertificateSource(config, identity, trust, gate, database, certificate_changed),
            PolicySource(config, gate, database, runtime.recheck),
        ]
        return Reloader(
            sources, identity=identity, trust=trust, database=database, now_ms=now_ms, halt=runtime.agreements.halt
        )

    async def _reload_when_asked(self, reloader: Reloader) -> None:
        while True:
            await self._reload.wait()
            self._reload = trio.Event()
            reloader.ask()

    def _bulk(
        self, gate: Gate, trust: TrustStore, database: Database, runtime: Runtime, links: Links, peers: Peers
    ) -> BulkService:
        limits = BulkLimits()
        home = self._config.database.parent / "bulk"
        parts = BulkSurroundings(
            identity=self.identity,
            trust=trust,
            gate=gate,
            database=database,
            spool=Spool(home, keep_free_bytes=limits.keep_free_bytes),
            datasets=self._datasets,
            agreement=runtime.agreements.get,
            limits=limits,
        )
        return BulkService(
            parts, peers, lambda peer_id: links.open_tunnel(peer_id, bulk_protocol.TUNNEL, priority=Priority.BULK)
        )

    def _doings(self, runtime: Runtime, workers: WorkerPool, standing: Standing) -> Doings:
        async def on_request(sender: Attested, payload: bytes) -> bytes:
            return await runtime.messenger.receive(sender, payload)

        async def fetch_hints(organization: str) -> Sequence[discovery.PeerHint]:
            hints = await runtime.directory.fetch_hints(organization)
            return [discovery.PeerHint(each.peer_id, each.organization, tuple(each.addresses)) for each in hints]

        return Doings(
            on_request=on_request,
            fetch_hints=fetch_hints,
            own_cards=runtime.directory.public_cards,
            own_hints=standing.hints,
            own_evidence=runtime.suspensions.told,
            on_evidence=runtime.suspensions.heard,
            skills=workers.skills,
            changed=lambda: workers.changed,
            seek=tuple(ROLES),
            needed=lambda organization: any(organization in one.participants for one in runtime.agreements.all()),
        )

    async def _asked_to_stop(self) -> None:
        self.stop()

    def _signer(self) -> NoteSigner:
        key = self.identity.key
        return NoteSigner(str(self.identity.node).removeprefix("spiffe://"), key.public_key, key.sign)

    async def _kick_on_change(self, links: Links, runtime: Runtime) -> None:
        """Tell the outbox when a link comes up."""
        version = links.changes.version
        while True:
            for state in links.peers():
                if state.state == "connected":
                    runtime.outbox.kick(state.organization)
            runtime.directory.look_again()
            version = await links.changes.wait(version)

    async def _note_start(self, database: Database, bundle: Bundle) -> None:
        unfinished = await database.read(journal.count_tasks_by_state)
        waiting = sum((await database.read(journal.count_open)).values())
        log.info("recovered: tasks %s, %d messages to deliver", json.dumps(unfinished), waiting)
        entry = audit.AuditEntry(
            kind="start",
            policy=self.policy.digest,
            subject=bundle.digest,
            detail={
                "version": comity.__version__,
                "epoch": bundle.epoch,
                "waiting": waiting,
                "certificate": sha256(self.identity.chain[0]).hex(),
            },
        )
        at_ms = now_ms()

        def write(connection: sqlite3.Connection) -> None:
            audit.append(connection, entry, at_ms)
            remember_bundle(connection, bundle)
            remember_policy(connection, self.policy)

        await database.transact(write)

    async def _close(self, database: Database) -> None:
        with trio.move_on_after(_TRACES_END_S):
            await trio.to_thread.run_sync(self._end_traces, abandon_on_cancel=True)  # type: ignore[call-arg]  # stale stubs
        at_ms = now_ms()
        try:
            await database.transact(
                lambda c: (
                    audit.append(c, audit.AuditEntry(kind="stop"), at_ms),
                    audit.checkpoint(c, self._signer(), at_ms),
                )
            )
        except ComityError as error:  # the disk may be full: say so, and close all the same
            log.error("the audit log got no closing entry: %s", error.diagnostics())  # noqa: TRY400
        log.info("stopped")


#: New containers before the youngest generation is looked at, and how many such looks before each older one is.
_COLLECT_AFTER = (100_000, 50, 100)


def collect_rarely() -> None:
    """Have the collector of cycles leave alone what the node has from its start, and look at the rest less often.

    Modules, schemas and policies stay for good, and thousands of tasks under way are long-lived as well: with CPython's
    own thresholds each look at them holds the loop up for tens of milliseconds, and finds next to nothing, since what
    the node lets go of is freed by its reference counts. To be called once, in a process that only runs a node.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


def run(config: NodeConfig, parts: Parts | None = None, on_ready: Callable[[Node], None] | None = None) -> None:
    """Run a node until SIGINT or SIGTERM; SIGHUP has it look at its files.

    Raises:
        ComityError: it could not start.
    """
    node = Node(config, parts)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_heed_signals, node)
            await nursery.start(node.run)
            collect_rarely()
            if on_ready is not None:
                on_ready(node)
            log.info("node %s is up as %s", node.identity.node, node.identity.peer_id)
            await node.stopped()
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    except* ComityError as group:
        raise _first(group) from None


async def _heed_signals(node: Node) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async for one in signals:
            if one == signal.SIGHUP:
                node.reload()
            else:
                node.stop()


def _first(group: BaseExceptionGroup[ComityError]) -> ComityError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ComityError)
    return error


def _load_identity(config: NodeConfig) -> NodeIdentity:
    identity = NodeIdentity.load(config.key, config.chain)
    if identity.node != config.node:
        raise ConfigError(f"the certificate {config.chain} is of {identity.node}, node.yaml says {config.node}")
    return identity


def _nothing() -> None:
    """There are no spans to be sent."""


def _make_tracer(config: NodeConfig, identity: NodeIdentity) -> tuple[Tracer, Callable[[], None]]:
    """Return what takes spans, and what sends the last ones.

    Raises:
        MissingExtra: traces are wanted, and OpenTelemetry is not installed.
    """
    if (wanted := config.traces) is None:
        return NULL, _nothing
    try:
        from comity_node.tracing.otel import OtelTracer, exporting
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "comity", "comity_node"):
            raise
        raise MissingExtra("otel", package) from error
    tracer = OtelTracer(
        exporting(wanted.endpoint), organization=identity.organization, node=str(identity.node),
        service=wanted.service, sample=wanted.sample,
    )  # fmt: skip
    return tracer, tracer.close


def _load_bundle(config: NodeConfig, identity: NodeIdentity, anchor: Anchor) -> Bundle:
    return read_verified_bundle(config.bundle, identity, anchor, now_ms())


def _warnings(runtime: Runtime, links: Links, trust: TrustStore) -> list[str]:
    """What somebody should see to, beside the files: agreements that are suspended, an epoch that others have."""
    suspended = runtime.agreements.suspended()
    lines = [*runtime.suspensions.warnings(), *runtime.witnesses.warnings(), *runtime.cosigner.warnings()]
    lines += [f"agreement {digest.hex()[:12]} is suspended: {reason}" for digest, reason in suspended.items()]
    epoch = trust.bundle.epoch
    if links.latest_epoch > epoch:
        lines.append(f"others have the trust bundle of epoch {links.latest_epoch}, this node {epoch}: get it from them")
    return lines[:_WARNINGS_SHOWN]


def _load_dataset(schema: Path, private: Path | None) -> Dataset:
    read = Schema.load(schema)
    return Dataset(read, PrivateReference.load(private, read) if private is not None else None)


def _own_offer(capacity: Capacity, price: float) -> Offer | None:
    """What the own workers can do of a skill, for others to know."""
    return own_offer(capacity.at_once, capacity.seconds, price)


def _hints(links: Links) -> Sequence[PeerHint]:
    return [
        PeerHint(peer_id=state.peer_id, organization=state.organization, addresses=state.addresses)
        for state in links.peers()
        if state.state == "connected" and state.addresses
    ]


async def _reading(
    links: Links, counters: Callable[[], dict[str, int]], runtime: Runtime, workers: WorkerPool, database: Database
) -> Reading:
    """How the node is, for Prometheus."""
    now = await database.read(task_views.count_all)
    work = WorkReading(
        journal=JournalCounts(now.tasks, now.journeys, now.votes, now.tasks.get("certified", 0), now.outbox),
        passing=runtime.counters(),
        router=runtime.router_view().peers,
        queues=workers.queues(),
        calls=runtime.watch.calls,
    )
    return Reading(links.peers(), counters(), work)


def _peers(links: Links, own: str) -> Sequence[pb.Peer]:
    return [
        pb.Peer(
            organization=state.organization,
            node=state.node,
            peer_id=state.peer_id,
            addresses=state.addresses,
            state=state.state,
            reason=state.reason,
            bytes_sent=state.bytes_sent,
            bytes_received=state.bytes_received,
            messages_sent=state.messages_sent,
            messages_received=state.messages_received,
            reconnects=state.reconnects,
            round_trip_ms=state.round_trip_ms,
            frames_sent=state.frames_sent,
            frames_received=state.frames_received,
            in_flight=state.in_flight,
            waiting=state.waiting,
            serving=state.serving,
            queued_bytes=state.queued_bytes,
            window_bytes=state.window_bytes,
            path=state.path,
        )
        for state in links.peers()
    ]
