"""Arm `memory`: the same five organizations in one process, where a message to a peer is a function call.

Real identities, trust bundle, policies, databases and audit logs, from the same homes as the processes have; no libp2p,
no gRPC, no workers. What is left out is what the difference to the arm `processes` is made of.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from random import Random
from types import TracebackType
from typing import Any

import trio

from bench.instant import InstantSkills
from bench.journey import encode
from comity.bundle import load_bundle
from comity.errors import AgentFailed, DeadlineExceeded, LinkClosed, PeerUnreachable
from comity.ids import SpiffeId
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node import config
from comity_node.admission import Gate
from comity_node.admission.records import Dataset
from comity_node.demo.homes import Home
from comity_node.policy.loader import load as load_policy
from comity_node.protocol.freshness import Freshness
from comity_node.runtime.core import Runtime, Surroundings
from comity_node.runtime.workflows import SKILLS
from comity_node.storage.database import Database, open_database
from comity_node.validators.distance import PrivateReference
from comity_node.validators.schema import Schema

_START_S = 60.0
_STOP_S = 30.0


def now_ms() -> int:
    """Return the time in milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


class Network:
    """Who can be called, by organization and by PeerId."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.by_peer: dict[str, Member] = {}

    def add(self, member: Member) -> None:
        """Let the others reach `member`."""
        self.members[member.attested.organization] = member
        self.by_peer[member.attested.peer_id] = member


class Member:
    """One organization: what `comity_node.node` makes of a home, but for its links, control API and workers."""

    def __init__(self, home: Home, network: Network) -> None:
        """Read the home.

        Raises:
            ConfigError, TrustError: a file of it is wrong.
        """
        self.settings = config.load(home.path / config.FILE_NAME)
        identity = NodeIdentity.load(self.settings.key, self.settings.chain)
        self.identity = identity
        self.attested = Attested(identity.organization, identity.node, identity.key.public_key, identity.peer_id)
        self.trust = TrustStore(load_bundle(self.settings.bundle, now_ms=now_ms(), own_ca=None))
        self._network = network
        self._runtime: Runtime | None = None
        (self._dataset,) = self.settings.datasets.values()
        self._schema = Schema.load(self._dataset.schema)
        self._skills = InstantSkills(self._schema)

    @property
    def runtime(self) -> Runtime:
        """The runtime, once it runs."""
        assert self._runtime is not None
        return self._runtime

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ANN401  (see Database.run)
        """Run until cancelled."""
        async with open_database(self.settings.database) as database, trio.open_nursery() as nursery:
            self._runtime = Runtime(self._surroundings(database))
            await self._runtime.load()
            await nursery.start(self._runtime.run)
            self._network.add(self)
            task_status.started()

    def _surroundings(self, database: Database) -> Surroundings:
        gate = Gate(
            identity=self.identity,
            policy=load_policy(self.settings.policy),
            database=database,
            freshness=Freshness(self.identity.peer_id),
            now_ms=now_ms,
            random_bytes=os.urandom,
        )
        agent = SpiffeId(self.identity.organization, "agent", "instant")
        private = self._dataset.private
        reference = PrivateReference.load(private, self._schema) if private is not None else None
        return Surroundings(
            identity=self.identity,
            trust=self.trust,
            gate=gate,
            database=database,
            peers=self,
            workers=self,
            own_agents=lambda: [(agent, self.skills())],
            datasets={self._dataset.name: Dataset(self._schema, reference)},
            addresses=lambda: [],
            hints=lambda: [],
            told=lambda peer_id, addresses: None,
            random=Random(7),
            version="bench",
        )

    # -- what the runtime asks of links and workers ----------------------------------------------------------------

    def peer(self, organization: str) -> Attested | None:
        """Return the node of `organization`."""
        other = self._network.members.get(organization)
        return None if other is None else other.attested

    async def request(self, peer_id: str, payload: bytes, deadline_s: float) -> bytes:
        """Have the peer's runtime serve a request."""
        await trio.lowlevel.checkpoint()
        other = self._network.by_peer.get(peer_id)
        if other is None:
            raise PeerUnreachable(f"{peer_id} is not up")
        with trio.move_on_after(deadline_s):
            return await other.runtime.messenger.receive(self.attested, payload)
        raise LinkClosed(f"{peer_id} did not answer in {deadline_s:g} s")

    async def call(self, skill: str, payload: Any, *, deadline_s: float) -> Any:  # noqa: ANN401  (JSON in, JSON out)
        """Have the instant agent work; input and result go through JSON, as they do to a worker."""
        await trio.lowlevel.checkpoint()
        return json.loads(json.dumps(self._skills.call(skill, json.loads(json.dumps(payload)))))

    def skills(self) -> tuple[str, ...]:
        """Return the skills of the instant agent."""
        return ("generate", "repair", "review")


class InMemory:
    """Five organizations on a thread of this process; a `journey.Site`."""

    def __init__(self, homes: Sequence[Home]) -> None:
        """Run the organizations of `homes` when entered."""
        self.homes = homes
        self._network = Network()
        self._thread = threading.Thread(target=self._run, name="organizations")
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._failure: BaseException | None = None

    def __enter__(self) -> InMemory:
        self._thread.start()
        in_time = self._ready.wait(_START_S)
        self.check()
        if not in_time:
            self._stop()
            raise DeadlineExceeded(f"the organizations do not know each other after {_START_S:g} s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def submit(self, document: Mapping[str, Any]) -> str:
        """Submit a workflow at the first organization."""
        submitter = self._network.members[self.homes[0].organization].runtime.workflows.submit
        workflow_id: str = trio.from_thread.run(submitter, encode(document), trio_token=self._token)
        return workflow_id

    def check(self) -> None:
        """Raise if the thread has failed.

        Raises:
            AgentFailed: it has; the cause says why.
        """
        if self._failure is not None:
            raise AgentFailed("the organizations in this process stopped") from self._failure

    def cpu_seconds(self) -> float:
        """Return the processor time of this process; the looking on is a small part of it."""
        return time.process_time()

    def _stop(self) -> None:
        if self._token is not None and self._thread.is_alive():
            self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:  # noqa: BLE001  handed to the thread that waits, which raises it
            self._failure = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        members = [Member(home, self._network) for home in self.homes]
        with self._scope:
            async with trio.open_nursery() as nursery:
                for member in members:
                    await nursery.start(member.run)
                await self._meet()
                self._ready.set()

    async def _meet(self) -> None:
        """Let everybody fetch everybody's card.

        Raises:
            AgentFailed: one was not shown.
        """
        for member in self._network.members.values():
            directory = member.runtime.directory
            others = self._network.members.keys() - {member.identity.organization}
            for organization in sorted(others):
                await directory.fetch(organization)
            if directory.organizations_with(SKILLS) != others:
                raise AgentFailed(f"{member.identity.organization} does not see the cards of all others")
