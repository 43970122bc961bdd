"""Two organizations that send each other tables: real policy, database, spool and files; the link is to order."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import trio

from comity.agreement import Agreed
from comity.errors import AgreementError, LinkClosed
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.admission import Gate
from comity_node.admission.gate import stored_high_water_ms
from comity_node.admission.records import Dataset
from comity_node.bulk.common import Progress, Stream, Surroundings
from comity_node.bulk.limits import BulkLimits
from comity_node.bulk.prepare import Order
from comity_node.bulk.service import BulkService
from comity_node.bulk.spool import Spool
from comity_node.policy.loader import loads_policy
from comity_node.protocol.freshness import Freshness
from comity_node.storage import bulk as journal
from comity_node.storage.bulk import BulkRow
from comity_node.storage.database import Database, open_database
from comity_node.transport.memory import MemoryNetwork
from comity_node.validators.schema import FieldSpec, Schema
from kit.consortium import attested, consortium, names
from kit.lab import now_ms

DATASET, PURPOSE = "tumours", "screening"
SCHEMA = Schema(
    "label",
    {
        "age": FieldSpec("integer", 0, 120),
        "size": FieldSpec("number", 0.0, 100.0),
        "label": FieldSpec("integer", 0, 1),
    },
)
#: Chunks small enough that a small table has many.
LIMITS = BulkLimits(chunk_bytes=64 * 1024, keep_free_bytes=0, sync_bytes=256 * 1024, silence_s=20, retry_s=20)


def policy(organization: str, *, send: str = "", receive: str = "", more: str = "") -> str:
    """A policy that lets tables go to everybody and come from everybody.

    Args:
        organization: whose it is.
        send: what the rule for sending says beside the action, in YAML's flow form (`obligations: {...}`).
        receive: the same for receiving.
        more: further rules, each a line.
    """
    return (
        f"version: 1\norganization: {organization}\nrules:\n"
        f'  - {{id: send, effect: allow, action: bulk.send, to: {{organization: "*"}}{", " if send else ""}{send}}}\n'
        '  - {id: receive, effect: allow, action: bulk.receive, from: {organization: "*"}'
        f"{', ' if receive else ''}{receive}}}\n{more}"
    )


def table(rows: int, seed: int = 0) -> pa.Table:
    """Rows that fit the schema."""
    rng = random.Random(seed)
    return pa.table(
        {
            "age": pa.array([rng.randrange(121) for _ in range(rows)], pa.int64()),
            "size": pa.array([rng.uniform(0, 100) for _ in range(rows)], pa.float64()),
            "label": pa.array([rng.randrange(2) for _ in range(rows)], pa.int64()),
        }
    )


def unknown_agreement(digest: bytes) -> Agreed:
    raise AgreementError(f"no agreement {digest.hex()[:12]} here")


@dataclass
class Party:
    """One organization; change it before it is started."""

    identity: NodeIdentity
    trust: TrustStore
    home: Path
    policy: str
    limits: BulkLimits = LIMITS
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    agreement: Callable[[bytes], Agreed] = unknown_agreement
    clock: Callable[[], int] = now_ms
    reports: list[Progress] = field(default_factory=list)

    service: BulkService = field(init=False)
    database: Database = field(init=False)
    parts: Surroundings = field(init=False)
    scope: trio.CancelScope = field(init=False)
    gone: trio.Event = field(init=False)

    @property
    def name(self) -> str:
        return self.identity.organization

    def order(self, path: Path | None, to: str, **changes: Any) -> Order:
        values: dict[str, Any] = {"to": to, "dataset": DATASET, "purpose": PURPOSE, "kind": "synthetic", "path": path}
        return Order(**{**values, **changes})

    def write(self, rows: int, seed: int = 0) -> Path:
        path = self.home / f"table-{seed}-{rows}.parquet"
        pq.write_table(table(rows, seed), path)
        return path

    async def rows(self) -> list[BulkRow]:
        """What the service lists, with the envelopes that a list leaves out."""
        listed = [one.row.transfer_id for one in await self.service.list()]
        found = await self.database.read(lambda c: [journal.get_bulk(c, each) for each in listed])
        return [row for row in found if row is not None]

    async def read(self, row: BulkRow) -> pa.Table:
        data = b"".join([piece async for piece in self.service.read(row.transfer_id.hex())])
        return pa.ipc.open_stream(data).read_all()

    def files(self) -> list[str]:
        spool = self.home / "bulk"
        return sorted(str(path.relative_to(spool)) for path in spool.rglob("*") if path.is_file())


class Pair:
    """A sender and a receiver, and what is between them."""

    def __init__(self, home: Path, count: int = 2) -> None:
        made = consortium(*names(count))
        self.parties = {
            name: Party(identity, made.trust, home / name, policy(name)) for name, identity in made.nodes.items()
        }
        for party in self.parties.values():
            party.home.mkdir(exist_ok=True)
        self.sender, self.receiver, *_ = self.parties.values()
        self.network = MemoryNetwork()
        #: Wraps the sender's end and the receiver's end of each stream.
        self.at_sender: Callable[[Stream], Stream] = lambda stream: stream
        self.at_receiver: Callable[[Stream], Stream] = lambda stream: stream
        self.opened = 0
        self._nursery: trio.Nursery

    async def start(self, nursery: trio.Nursery, *parties: Party) -> None:
        self._nursery = nursery
        for party in parties or tuple(self.parties.values()):
            await nursery.start(self._live, party)

    async def _live(self, party: Party, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        party.gone = trio.Event()
        try:
            with trio.CancelScope() as party.scope:
                async with open_database(party.home / "node.db") as database:
                    party.database = database
                    party.parts = Surroundings(
                        identity=party.identity,
                        trust=party.trust,
                        gate=await self._gate(party, database),
                        database=database,
                        spool=Spool(party.home / "bulk", keep_free_bytes=party.limits.keep_free_bytes),
                        datasets=party.datasets,
                        agreement=party.agreement,
                        limits=party.limits,
                    )
                    party.service = BulkService(party.parts, self, lambda peer_id: self.open(party, peer_id))
                    await party.service.recover()
                    async with trio.open_nursery() as nursery:
                        await nursery.start(party.service.run)
                        task_status.started()
                        await trio.sleep_forever()
        finally:
            party.gone.set()

    async def stop(self, party: Party) -> None:
        party.scope.cancel()
        await party.gone.wait()

    async def _gate(self, party: Party, database: Database) -> Gate:
        mark = await database.read(stored_high_water_ms)
        return Gate(
            identity=party.identity,
            policy=loads_policy(party.policy),
            database=database,
            freshness=Freshness(party.identity.peer_id, high_water_ms=mark),
            now_ms=lambda: party.clock(),
            random_bytes=random.randbytes,
        )

    def peer(self, organization: str) -> Attested | None:
        party = self.parties.get(organization)
        return None if party is None else attested(party.identity)

    async def open(self, party: Party, peer_id: str) -> Stream:
        """What `links.open_tunnel` does, without the links."""
        await trio.lowlevel.checkpoint()
        other = next(one for one in self.parties.values() if one.identity.peer_id == peer_id)
        ours, theirs = self.network.connect(party.identity.peer_id, peer_id)
        self.opened += 1
        self._nursery.start_soon(other.service.serve, attested(party.identity), self.at_receiver(theirs))
        return self.at_sender(ours)

    async def send(self, path: Path | None, **changes: Any) -> BulkRow:
        order = self.sender.order(path, self.receiver.name, **changes)
        return await self.sender.service.send(order, self.sender.reports.append)


class Tap:
    """A stream that counts what is sent on it, may break after so many bytes, and may change what passes."""

    def __init__(
        self, stream: Stream, *, breaks_after: int | None = None, change: Callable[[bytes], bytes] | None = None
    ) -> None:
        self.stream, self.left, self.change = stream, breaks_after, change
        self.sent = 0

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self.stream.receive(max_bytes)

    async def send(self, data: bytes) -> None:
        passed = data if self.change is None else self.change(data)
        if self.left is not None and len(passed) >= self.left:
            self.sent += self.left
            await self.stream.send(passed[: self.left])
            self.stream.reset()
            raise LinkClosed("the link broke, as the test wanted")
        if self.left is not None:
            self.left -= len(passed)
        self.sent += len(passed)
        await self.stream.send(passed)

    async def aclose(self) -> None:
        await self.stream.aclose()

    def reset(self) -> None:
        self.stream.reset()
