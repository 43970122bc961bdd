"""The engine of tasks under way with its durable, signed ports: what a node runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from random import Random

import trio

from comity.trust import TrustStore
from comity_node.admission import Gate
from comity_node.admission.records import Dataset
from comity_node.admission.tokens import TokenGate
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.author import Author
from comity_node.runtime.directory import Directory
from comity_node.runtime.flows import Flows
from comity_node.runtime.messenger import Messenger
from comity_node.runtime.passing.acquaintance import Bring
from comity_node.runtime.passing.carriage import Carriage
from comity_node.runtime.passing.engine import Engine, Ports
from comity_node.runtime.passing.gateway import TokenGateway, Versioned
from comity_node.runtime.passing.journal import DurableJournal, DurableLedger
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.pacts import AgreedPacts
from comity_node.runtime.passing.parting import Parting
from comity_node.runtime.router import Router
from comity_node.runtime.router_flows import FlowRouting
from comity_node.runtime.seams import Workers
from comity_node.runtime.watched import Watch, WatchedCarrier, WatchedGateway, WatchedReceiver
from comity_node.storage.database import Database


@dataclass(frozen=True, slots=True)
class Around:
    """What the engine's ports stand on; see `runtime.core.Surroundings`."""

    trust: TrustStore
    gate: Gate
    database: Database
    datasets: Mapping[str, Dataset]
    workers: Workers
    messenger: Messenger
    agreements: Agreements
    directory: Directory
    router: Router
    recheck: Versioned
    author: Author
    random: Random
    limits: PassingLimits
    watch: Watch
    suspended: Callable[[], Collection[str]] = tuple
    bring: Bring | None = None


def make_flows(around: Around) -> Flows:
    """Put the engine and its ports together; nothing runs yet. What comes in is served by `Flows.handlers`."""
    gate, messenger, identity = around.gate, around.messenger, around.gate.identity
    me, now_ms = identity.organization, gate.now_ms
    token_gate = TokenGate(gate, around.datasets, around.trust)
    pacts = AgreedPacts(
        around.agreements, me=me, own=around.workers.skills, others=around.directory.skills,
        reachable=messenger.reachable, now_ms=now_ms, suspended=around.suspended,
    )  # fmt: skip
    gateway = TokenGateway(token_gate, around.agreements, pacts, around.recheck)
    carriage = Carriage(
        messenger=messenger, gateway=gateway, chains=token_gate.chains, database=around.database,
        parting=Parting(counts=around.watch.payloads), bring=around.bring,
    )  # fmt: skip
    routing = FlowRouting(
        around.router, me=me, clock_s=trio.current_time, reachable=messenger.reachable, price=around.directory.price
    )
    flows = Flows(
        me=me, database=around.database, agreements=around.agreements, author=around.author, carriage=carriage,
        routing=routing, now_ms=now_ms,
    )  # fmt: skip
    ports = Ports(
        journal=DurableJournal(around.database, me, now_ms, gateway),
        ledger=DurableLedger(around.database, me, now_ms),
        gateway=WatchedGateway(gateway, around.watch),
        carrier=WatchedCarrier(carriage, around.watch),
        workers=around.workers,
        routing=routing,
        pacts=pacts,
        sink=flows,
    )
    engine = Engine(me, identity.peer_id, ports, random=around.random, now_ms=now_ms, limits=around.limits)
    flows.attach(engine)
    flows.tracer = around.watch.tracer
    carriage.attach(WatchedReceiver(engine, around.watch))
    return flows
