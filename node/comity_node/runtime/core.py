"""The runtime, put together: everything between the links below and the control API above."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import trio

from comity.trust import NodeIdentity, TrustStore
from comity.v1.link_pb2 import PeerHint
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate
from comity_node.admission.records import Dataset, RecordGate
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.author import Author
from comity_node.runtime.ballots import BallotBox
from comity_node.runtime.certify import Certifier
from comity_node.runtime.directory import Directory, OwnAgents
from comity_node.runtime.kinds import OFFER
from comity_node.runtime.messenger import Messenger, Peers
from comity_node.runtime.negotiator import Negotiator
from comity_node.runtime.offering import Offering
from comity_node.runtime.outbox import Outbox
from comity_node.runtime.pace import Pace, PaceLimits
from comity_node.runtime.reviewer import Reviewer
from comity_node.runtime.router import Router
from comity_node.runtime.seams import TaskStatus, Workers
from comity_node.runtime.updates import Updates
from comity_node.runtime.workflows import Workflows
from comity_node.storage import journal
from comity_node.storage.database import Database

RecordGateFactory = Callable[[Gate, Mapping[str, Dataset]], RecordGate]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the runtime stands on, and what it is told of the world.

    Attributes:
        identity: the node's own.
        trust: the consortium.
        gate: the policy enforcement point.
        database: the node's state; running.
        peers: the links to the others.
        workers: the own agents.
        own_agents: which of them are connected, with their skills.
        datasets: what this node can work with.
        addresses: where this node can be dialled.
        hints: what is known of others' addresses.
        told: takes where a peer says it can be dialled.
        random: for draws and back-off.
        version: of this software.
        pace: how many messages of one organization are handled.
    """

    identity: NodeIdentity
    trust: TrustStore
    gate: Gate
    database: Database
    peers: Peers
    workers: Workers
    own_agents: OwnAgents
    datasets: Mapping[str, Dataset]
    addresses: Callable[[], Sequence[str]]
    hints: Callable[[], Sequence[PeerHint]]
    told: Callable[[str, Sequence[str]], None]
    random: Random
    version: str
    pace: PaceLimits = field(default_factory=PaceLimits)


class Runtime:
    """The parts, wired; `run` starts them in their order."""

    def __init__(self, around: Surroundings, *, record_gate: RecordGateFactory = RecordGate) -> None:
        """Wire the parts; nothing runs yet."""
        identity, trust, gate, database = around.identity, around.trust, around.gate, around.database
        guard = record_gate(gate, around.datasets)
        self.messenger = Messenger(gate, around.peers, pace=Pace(around.pace))
        self.agreements = Agreements(database, trust, identity.organization, gate.now_ms)
        self.outbox = Outbox(
            database, self.messenger, now_ms=gate.now_ms, random=around.random, outcome=self._delivered
        )
        certifier = Certifier(
            identity=identity, trust=trust, gate=gate, record_gate=guard, agreements=self.agreements,
            database=database, outbox=self.outbox,
        )  # fmt: skip
        router = Router(around.random)
        offering = Offering(
            identity=identity, gate=gate, record_gate=guard, messenger=self.messenger, database=database,
            outbox=self.outbox, router=router,
        )  # fmt: skip
        ballots = BallotBox(
            identity=identity, trust=trust, gate=gate, agreements=self.agreements, database=database,
            certifier=certifier, router=router, news=lambda batch: self.author.news(batch),
        )  # fmt: skip
        self.author = Author(
            identity=identity, gate=gate, workers=around.workers, database=database, offering=offering,
            ballots=ballots, certifier=certifier,
        )  # fmt: skip
        self.reviewer = Reviewer(
            identity=identity, trust=trust, gate=gate, record_gate=guard, workers=around.workers,
            agreements=self.agreements, database=database, outbox=self.outbox,
        )  # fmt: skip
        self.directory = Directory(
            identity=identity, trust=trust, gate=gate, messenger=self.messenger, own_agents=around.own_agents,
            addresses=around.addresses, hints=around.hints, told=around.told, version=around.version,
        )  # fmt: skip
        negotiator = Negotiator(
            identity=identity, trust=trust, gate=gate, messenger=self.messenger, agreements=self.agreements,
            datasets=frozenset(around.datasets),
        )  # fmt: skip
        self.workflows = Workflows(
            identity=identity, gate=gate, negotiator=negotiator, agreements=self.agreements,
            directory=self.directory, author=self.author, database=database, outbox=self.outbox,
        )  # fmt: skip
        self.updates = Updates(identity=identity, trust=trust, gate=gate, agreements=self.agreements, database=database)
        for part in (self.directory, negotiator, self.workflows, ballots, self.reviewer):
            self.messenger.serve(part.handlers)

    async def _delivered(self, item: journal.OutboxRow, receipt: Receipt | None) -> None:
        if item.kind == OFFER:
            await self.author.offer_ended(item, receipt)

    async def load(self) -> None:
        """Read what messages that come in are judged by; before the links serve any."""
        await self.agreements.load()

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Recover what an earlier run left and go on, until cancelled; `load` goes before."""
        async with trio.open_nursery() as nursery:
            for part in (self.outbox, self.author, self.reviewer, self.directory, self.workflows):
                await nursery.start(part.run)
            task_status.started()
