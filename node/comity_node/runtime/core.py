"""The runtime, put together: everything between the links below and the control API above."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import trio

from comity.trust import NodeIdentity, TrustStore
from comity.v1.link_pb2 import PeerHint
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate
from comity_node.admission.records import Dataset, RecordGate
from comity_node.protocol.witness import WitnessLimits
from comity_node.runtime.agreement_control import AgreementControl
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.author import Author
from comity_node.runtime.ballots import BallotBox
from comity_node.runtime.certify import Certifier
from comity_node.runtime.cosigner import Cosigner
from comity_node.runtime.directory import Directory, OwnAgents
from comity_node.runtime.kinds import COMMITMENTS, OFFER
from comity_node.runtime.market import Market
from comity_node.runtime.market_bids import Offer
from comity_node.runtime.market_demand import flow_demand
from comity_node.runtime.messenger import Messenger, Peers
from comity_node.runtime.negotiator import Negotiator
from comity_node.runtime.offering import Offering
from comity_node.runtime.outbox import Outbox
from comity_node.runtime.pace import Pace, PaceLimits
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.wired import Around, make_flows
from comity_node.runtime.patience import patiently
from comity_node.runtime.recheck import Recheck
from comity_node.runtime.responder import Responder
from comity_node.runtime.reviewer import Reviewer
from comity_node.runtime.router import Router, RouterView
from comity_node.runtime.sealing import Sealing
from comity_node.runtime.seams import TaskStatus, Workers
from comity_node.runtime.sharing import Sharing
from comity_node.runtime.suspensions import SUSPENSION_MS, Suspensions
from comity_node.runtime.updates import Updates
from comity_node.runtime.watched import Watch, WatchedWorkers
from comity_node.runtime.withdrawals import Withdrawals
from comity_node.runtime.witnesses import Witnesses
from comity_node.runtime.workflows import Workflows
from comity_node.storage import journal
from comity_node.storage.database import Database
from comity_node.tracing import NULL, Tracer

RecordGateFactory = Callable[[Gate, Mapping[str, Dataset]], RecordGate]


async def _nothing() -> None:
    """Nothing is under way beside the runtime."""


def _no_offer(skill: str) -> Offer | None:
    """This organization offers nothing to others."""
    del skill
    return None


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
        suspension_ms: for how long who is proven to have lied is not asked.
        witness: when audit logs are witnessed, and what that may cost.
        offer: what the own workers can do of a skill, and its price; None: nothing.
        passing: what tasks under way may cost.
        tracer: is told where tasks spend their time.
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
    witness: WitnessLimits = field(default_factory=WitnessLimits)
    suspension_ms: int = SUSPENSION_MS
    offer: Callable[[str], Offer | None] = _no_offer
    passing: PassingLimits = field(default_factory=PassingLimits)
    tracer: Tracer = NULL


class Runtime:
    """The parts, wired; `run` starts them in their order."""

    def __init__(self, around: Surroundings, *, record_gate: RecordGateFactory = RecordGate) -> None:
        """Wire the parts; nothing runs yet."""
        identity, trust, gate, database = around.identity, around.trust, around.gate, around.database
        guard = record_gate(gate, around.datasets)
        guard.tracer = around.tracer
        #: What was seen of tasks on their way, and of agents.
        self.watch = Watch(around.tracer)
        workers = WatchedWorkers(around.workers, self.watch)
        self._gate = gate
        self.messenger = Messenger(gate, around.peers, pace=Pace(around.pace))
        self.agreements = Agreements(database, trust, identity.organization, gate.now_ms)
        self._recheck = Recheck(gate=gate, record_gate=guard, trust=trust, agreements=self.agreements)
        self.agreements.judge = self._recheck.agreement
        self.agreements.on_stopped = self._look_again
        #: Awaited when what is under way beside the runtime (tunnels, transfers) has to be looked at again.
        self.beside: Callable[[], Awaitable[None]] = _nothing
        self.outbox = Outbox(
            database, self.messenger, now_ms=gate.now_ms, random=around.random, outcome=self._delivered,
            censor=self._recheck,
        )  # fmt: skip
        certifier = Certifier(
            identity=identity, trust=trust, gate=gate, record_gate=guard, agreements=self.agreements,
            database=database, outbox=self.outbox,
        )  # fmt: skip
        certifier.tracer = around.tracer
        self.router = router = Router(around.random)
        self.market = Market(
            organization=identity.organization, gate=gate, messenger=self.messenger, agreements=self.agreements,
            router=router, offer=around.offer,
            demand=lambda: flow_demand(self.agreements, router, identity.organization),
        )  # fmt: skip
        self.suspensions = Suspensions(
            trust=trust, database=database, now_ms=gate.now_ms, suspension_ms=around.suspension_ms, gate=gate
        )
        offering = Offering(
            identity=identity, gate=gate, record_gate=guard, messenger=self.messenger, database=database,
            outbox=self.outbox, router=router, suspensions=self.suspensions,
        )  # fmt: skip
        sealing = Sealing(
            identity=identity, trust=trust, gate=gate, agreements=self.agreements, database=database,
            outbox=self.outbox, suspensions=self.suspensions, news=lambda batch: self.author.news(batch),
        )  # fmt: skip
        ballots = BallotBox(
            identity=identity, trust=trust, gate=gate, agreements=self.agreements, database=database,
            certifier=certifier, router=router, sealing=sealing, suspensions=self.suspensions,
            news=lambda batch: self.author.news(batch),
        )  # fmt: skip
        self.author = Author(
            identity=identity, gate=gate, workers=workers, database=database, offering=offering,
            ballots=ballots, certifier=certifier, sealing=sealing, agreements=self.agreements,
        )  # fmt: skip
        self.reviewer = Reviewer(
            identity=identity, trust=trust, gate=gate, record_gate=guard, workers=workers,
            agreements=self.agreements, database=database, outbox=self.outbox, recheck=self._recheck,
        )  # fmt: skip
        self.directory = Directory(
            identity=identity, trust=trust, gate=gate, messenger=self.messenger, own_agents=around.own_agents,
            addresses=around.addresses, hints=around.hints, told=around.told, version=around.version,
            offer=around.offer,
        )  # fmt: skip
        negotiator = Negotiator(
            identity=identity, trust=trust, gate=gate, messenger=self.messenger, agreements=self.agreements,
            database=database, datasets={name: each.schema.label for name, each in around.datasets.items()},
            suspended=self.suspensions.now,
        )  # fmt: skip
        self.responder = Responder(
            identity=identity, trust=trust, gate=gate, messenger=self.messenger, agreements=self.agreements,
            database=database, datasets=frozenset(around.datasets),
            take=lambda sender, data, statements: self.workflows.take(sender, data, statements),
            suspended=self.suspensions.now,
        )  # fmt: skip
        self.withdrawals = Withdrawals(
            identity=identity, trust=trust, gate=gate, agreements=self.agreements, database=database,
            outbox=self.outbox,
        )  # fmt: skip
        self.sharing = Sharing(
            me=identity.organization, messenger=self.messenger, agreements=self.agreements, database=database,
            datasets=frozenset(around.datasets), take=self._take_brought, withdrawn=self.withdrawals.take,
            now_ms=gate.now_ms,
        )  # fmt: skip
        self.flows = make_flows(
            Around(
                trust=trust, gate=gate, database=database, datasets=around.datasets, workers=workers,
                messenger=self.messenger, agreements=self.agreements, directory=self.directory, router=router,
                recheck=self._recheck, author=self.author, random=around.random, limits=around.passing,
                watch=self.watch, suspended=self.suspensions.now, bring=self.sharing.bring,
            )
        )  # fmt: skip
        self.workflows = Workflows(
            identity=identity, gate=gate, negotiator=negotiator, agreements=self.agreements,
            directory=self.directory, author=self.author, database=database, outbox=self.outbox,
            responder=self.responder, withdrawals=self.withdrawals, flows=self.flows,
            own_skills=around.workers.skills,
        )  # fmt: skip
        self.agreement_control = AgreementControl(database, self.workflows, self.withdrawals)
        self.updates = Updates(identity=identity, trust=trust, gate=gate, agreements=self.agreements, database=database)
        self.cosigner = Cosigner(identity=identity, gate=gate, database=database, limits=around.witness)
        self.witnesses = Witnesses(
            identity=identity, trust=trust, gate=gate, messenger=self.messenger, database=database,
            random=around.random, limits=around.witness,
        )  # fmt: skip
        for part in (
            self.directory,
            self.responder,
            self.withdrawals,
            self.sharing,
            self.flows,
            self.workflows,
            ballots,
            sealing,
            self.reviewer,
            self.cosigner,
            self.market,
        ):
            self.messenger.serve(part.handlers)

    async def _delivered(self, item: journal.OutboxRow, receipt: Receipt | None) -> None:
        if self.watch.tracer.enabled:
            self.watch.delivered(item, receipt)
        if item.kind == OFFER:
            await self.author.offer_ended(item, receipt)
        elif item.kind == COMMITMENTS:
            await self.reviewer.commitment_ended(item, receipt)

    async def _take_brought(self, sender: str, data: bytes, statements: list[bytes], *, brought: bool) -> None:
        await self.workflows.take(sender, data, statements, brought=brought)

    async def load(self) -> None:
        """Read what messages that come in are judged by; before the links serve any."""
        await self.agreements.load()
        await self.workflows.load()
        await self.suspensions.load()
        await self.withdrawals.load()
        await self._gate.look()
        self.agreements.look_again()
        await self.agreements.settle()

    def router_view(self) -> RouterView:
        """Return what the router knows now, by the clock that it goes by."""
        return self.router.snapshot(trio.current_time())

    def counters(self) -> dict[str, int]:
        """Return how many tasks are where on their way, and how often somebody else was asked for one."""
        now = self.flows.engine.counts
        return {
            "passing.open": now.open_tasks,
            "passing.custody": now.custody,
            "passing.waiting": now.waiting,
            "passing.running": now.running,
            "passing.outgoing": now.outgoing,
            "passing.taken_over": now.taken_over,
            "passing.hedged": now.hedged,
            "passing.called_twice": now.called_twice,
            **self.watch.counters(),
        }

    async def recheck(self) -> None:
        """Look again at all that is under way: the policy or the trust bundle has changed.

        What the policy does not carry any more has stopped when this gives way for the first time; then the journal
        follows, messages that wait are dropped, and batches in custody are given back.
        """
        self.agreements.look_again()
        self._recheck.changed()
        await self.beside()
        await patiently(self.agreements.settle, "what was suspended")
        await self._look_again()
        self.directory.look_again()

    async def bundle_changed(self) -> None:
        """Look again at all that is under way: there is another trust bundle."""
        self._recheck.changed()
        await patiently(self.agreements.end_unverifiable, "agreements of those who have left")
        await self.recheck()

    async def _look_again(self) -> None:
        self._recheck.changed()
        await self._gate.look()
        self.author.look_again()
        self.reviewer.look_again()
        self.flows.look_again()
        self.market.look_again()
        await self.beside()
        await patiently(self.outbox.look_over, "what waits in the outbox")

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Recover what an earlier run left and go on, until cancelled; `load` goes before."""
        async with trio.open_nursery() as nursery:
            for part in (
                self.outbox,
                self.author,
                self.reviewer,
                self.directory,
                self.flows,
                self.workflows,
                self.responder,
                self.sharing,
                self.witnesses,
                self.suspensions,
                self.market,
            ):
                await nursery.start(part.run)
            task_status.started()
