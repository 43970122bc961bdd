"""One organization of a world of faults: a real runtime on a real database, which can be killed, frozen and starved."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Protocol, TypeVar

import trio

from comity.errors import ComityError, LinkClosed, NoWorker, WorkerLost
from comity.ids import SpiffeId
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.admission import Gate
from comity_node.admission.gate import stored_high_water_ms
from comity_node.admission.records import Dataset
from comity_node.policy.loader import loads_policy
from comity_node.protocol.freshness import Freshness
from comity_node.runtime.core import Runtime, Surroundings
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.storage.database import Database, open_database
from kit.chaos_plan import On
from kit.consortium import NOW_MS
from kit.documents import DATASET
from kit.lab import SCHEMA, policy

T = TypeVar("T")

#: When the world begins: certificates and bundle have been good for a while, also by a clock that is behind.
BASE_MS = NOW_MS + 600_000
#: Pages that a database may have when its disk is not full (https://www.sqlite.org/limits.html).
_PAGES = 1_073_741_823


class Network(Protocol):
    """What a member needs of what connects it."""

    def peer(self, me: Member, organization: str) -> Attested | None:
        """Return who is linked."""

    async def request(self, me: Member, peer_id: str, payload: bytes, deadline_s: float) -> bytes:
        """Carry a request."""


class Agents(Protocol):
    """The own agents of all members."""

    async def work(self, member: Member, skill: str, payload: Any) -> Any:
        """Do what is asked."""


@dataclass
class Up:
    """What runs while a node is up."""

    runtime: Runtime
    database: Database
    scope: trio.CancelScope
    nursery: trio.Nursery
    gone: trio.Event

    async def within(self, work: Callable[[], Awaitable[T]]) -> T:
        """Have the node do something, and return the result.

        Raises:
            LinkClosed: the node went away meanwhile.
            ComityError: what `work` raises.
        """
        box: list[T | ComityError] = []
        over = trio.Event()

        async def run() -> None:
            try:
                box.append(await work())
            except ComityError as error:
                box.append(error)
            finally:
                over.set()

        if self.scope.cancel_called:
            raise LinkClosed("the node is down")
        self.nursery.start_soon(run)
        await over.wait()
        if not box or self.scope.cancel_called:
            raise LinkClosed("the node went away")
        if isinstance(box[0], ComityError):
            raise box[0]
        return box[0]


@dataclass
class Member:
    """One organization."""

    number: int
    identity: NodeIdentity
    trust: TrustStore
    home: Path
    network: Network
    agents: Agents
    seed: int
    #: Told of each event at this member (`On`); may kill or freeze it.
    happens: Callable[[Member, On], None]
    offset_ms: int = 0
    disk_full: bool = False
    worker_down: bool = False
    starts: int = 0
    node: Up | None = None
    thawed: trio.Event | None = None
    events: Counter[On] = field(default_factory=Counter)
    calls: set[trio.CancelScope] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.identity.organization

    @property
    def file(self) -> Path:
        return self.home / "node.db"

    @property
    def alive(self) -> bool:
        """Whether its node is up and not about to be gone."""
        return self.node is not None and not self.node.scope.cancel_called

    def now_ms(self) -> int:
        """Its own clock."""
        return BASE_MS + int(trio.current_time() * 1000) + self.offset_ms

    def rows(self, sql: str, *values: object) -> list[Any]:
        """What is in its file at this moment, committed."""
        with closing(sqlite3.connect(f"file:{self.file}?mode=ro", uri=True)) as connection:
            return connection.execute(sql, values).fetchall()

    # -- living ----------------------------------------------------------------------------------------------------

    async def live(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Be up until cancelled."""
        gone = trio.Event()
        self.starts += 1
        draws = Random(f"{self.seed} {self.number} {self.starts}")
        try:
            with trio.CancelScope() as scope:
                async with open_database(self.file, offload=self._offload) as database, trio.open_nursery() as nursery:
                    # No power is lost here, only processes: what the system has been given is as good as on the disk.
                    database._writer.execute("PRAGMA synchronous = OFF")
                    gate = await self._gate(database, draws)
                    runtime = Runtime(self._surroundings(gate, database, draws))
                    await runtime.load()
                    await nursery.start(runtime.run)
                    self.node = Up(runtime, database, scope, nursery, gone)
                    self.fill(self.disk_full)
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self.node = None
            gone.set()

    async def _gate(self, database: Database, draws: Random) -> Gate:
        mark = await database.read(stored_high_water_ms)
        return Gate(
            identity=self.identity,
            policy=loads_policy(policy(self.name)),
            database=database,
            freshness=Freshness(self.identity.peer_id, high_water_ms=mark),
            now_ms=self.now_ms,
            random_bytes=draws.randbytes,
        )

    def _surroundings(self, gate: Gate, database: Database, draws: Random) -> Surroundings:
        return Surroundings(
            identity=self.identity,
            trust=self.trust,
            gate=gate,
            database=database,
            peers=self,
            workers=self,
            own_agents=lambda: [(SpiffeId(self.name, "agent", "a"), self.skills())],
            datasets={DATASET: Dataset(SCHEMA, None)},
            addresses=lambda: [],
            hints=lambda: [],
            told=lambda peer_id, addresses: None,
            random=draws,
            version="chaos",
            passing=PassingLimits(lease_s=5.0),
        )

    async def _offload(
        self, work: Callable[[], T], limiter: trio.CapacityLimiter | None, /, after: Callable[[], None] | None = None
    ) -> T:
        """Do the database's work on the loop; a commit (only these have an `after`) is an event before and after."""
        await self.when_thawed()
        if after is None:
            await trio.lowlevel.checkpoint()
            return work()
        await trio.sleep(0.001)
        self.happens(self, On.COMMIT)
        try:
            result = work()
            self.happens(self, On.COMMITTED)
            return result
        finally:
            after()

    async def when_thawed(self) -> None:
        """Wait while frozen."""
        while self.thawed is not None:
            await self.thawed.wait()

    # -- what the runtime asks of links and workers -----------------------------------------------------------------

    def peer(self, organization: str) -> Attested | None:
        return self.network.peer(self, organization)

    async def request(self, peer_id: str, payload: bytes, deadline_s: float) -> bytes:
        return await self.network.request(self, peer_id, payload, deadline_s)

    def skills(self) -> tuple[str, ...]:
        return ("generate", "repair", "review", "draft", "label")

    async def call(self, skill: str, payload: Any, *, deadline_s: float) -> Any:
        await trio.lowlevel.checkpoint()
        if self.worker_down:
            raise NoWorker(f"nobody offers {skill!r}")
        with trio.move_on_after(deadline_s) as scope:
            self.calls.add(scope)
            try:
                answer = await self.agents.work(self, skill, json.loads(json.dumps(payload)))
                await self.when_thawed()
                return json.loads(json.dumps(answer))
            finally:
                self.calls.discard(scope)
        raise WorkerLost(f"the worker that did {skill!r} is gone")

    # -- what goes wrong -------------------------------------------------------------------------------------------

    def fill(self, full: bool) -> None:
        """Let its disk be full, or have room again."""
        self.disk_full = full
        if self.node is not None and not self.node.database._closed:
            writer = self.node.database._writer
            pages = writer.execute("PRAGMA page_count").fetchone()[0] if full else _PAGES
            writer.execute(f"PRAGMA max_page_count = {pages}")

    def lose_worker(self) -> None:
        """Let its worker be gone: calls under way fail."""
        self.worker_down = True
        for scope in tuple(self.calls):
            scope.cancel()

    def snapshot(self) -> Path:
        """Copy what its disk holds at this moment, and return where to."""
        kept = self.home / f"killed-{self.starts}"
        kept.mkdir()
        for file in self._files():
            if file.exists():
                shutil.copyfile(file, kept / file.name)
        return kept

    def restore(self, kept: Path) -> None:
        """Have the disk hold what it held at an earlier moment; its node is down."""
        self.file.with_name("node.db-shm").unlink(missing_ok=True)
        for file in self._files():
            file.unlink(missing_ok=True)
            if (kept / file.name).exists():
                shutil.move(kept / file.name, file)
        kept.rmdir()

    def _files(self) -> tuple[Path, ...]:
        return self.file, self.file.with_name("node.db-wal")
