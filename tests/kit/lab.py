"""Organizations in one process: real trust, policy, database and runtime; the network is a function call.

What a test wants to see or to spoil it does in the network: every request passes `Network.request`.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.envelope import MESSAGE_KINDS, open_message, seal
from comity.errors import LinkClosed, PeerUnreachable
from comity.ids import SpiffeId
from comity.trust import Attested, NodeIdentity
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate
from comity_node.admission.gate import stored_high_water_ms
from comity_node.admission.records import Dataset
from comity_node.policy.loader import loads_policy
from comity_node.protocol.freshness import Freshness, MessageIds
from comity_node.runtime.core import Runtime, Surroundings
from comity_node.runtime.market_bids import Offer
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.storage import audit, journal
from comity_node.storage.database import Database, open_database
from comity_node.tracing import NULL, Tracer
from comity_node.validators.schema import FieldSpec, Schema
from kit.consortium import Consortium, attested, consortium, names
from kit.documents import DATASET, PURPOSE

SCHEMA = Schema("label", {"x": FieldSpec("number", -1000.0, 1000.0), "label": FieldSpec("integer", 0, 1)})
WORKFLOW: dict[str, Any] = {
    "name": "test",
    "purpose": PURPOSE,
    "dataset": DATASET,
    "records_per_organization": 4,
    "batch_records": 2,
    "repair_rounds": 0,
    "min_score": 5000,
    "lease_seconds": 20,
}
_SENDING = ("agreement.offer", "record.send", "review.send", "record.release")
_RECEIVING = ("agreement.accept", "record.receive", "review.receive", "record.accept")
_BOTH = ("agent.discover", "update.send", "update.receive", "checkpoint.send", "checkpoint.cosign")
#: Seconds that a test waits for something that takes milliseconds on an idle machine.
PATIENCE_S = 40

Agents = dict[str, Callable[[Any], Any]]


def policy(
    organization: str,
    *,
    without: Sequence[str] = (),
    forbid: Sequence[str] = (),
    obligations: Mapping[str, str] | None = None,
) -> str:
    """A policy that allows every action to everybody.

    Args:
        organization: whose it is.
        without: actions that no rule allows.
        forbid: actions that a rule `no-<action>` forbids.
        obligations: what the rule of an action asks for, in YAML, beside `onward: never`.
    """
    asked = obligations or {}
    lines = ["version: 1", f"organization: {organization}", "rules:"]
    for action in (*_SENDING, *_RECEIVING, *_BOTH):
        if action not in without:
            owed = ", ".join(["onward: never", *([asked[action]] if action in asked else [])])
            rule = f'id: {action.replace(".", "-")}, effect: allow, action: {action}, with: {{organization: "*"}}'
            lines.append(f"  - {{{rule}, obligations: {{{owed}}}}}")
    for action in forbid:
        lines.append(f"  - {{id: no-{action.replace('.', '-')}, effect: forbid, action: {action}}}")
    return "\n".join(lines)


def honest_agents(seed: int) -> Agents:
    """Make rows, repair them, and refuse those whose x is negative."""
    rng = random.Random(seed)

    def generate(work: Any) -> Any:
        return {"records": [{"x": round(rng.uniform(0, 10), 3), "label": 1} for _ in range(work["count"])]}

    def repair(work: Any) -> Any:
        return {"records": [{**one, "x": abs(one["x"])} for one in work["records"]]}

    def review(work: Any) -> Any:
        scores = [9000 if one.get("x", 0) >= 0 else 100 for one in work["records"]]
        return {
            "reviews": [
                {"score": score, "axes": {"range": score}, "feedback": [] if score > 5000 else ["x: negative"]}
                for score in scores
            ],
            "validator": "test",
        }

    return {"generate": generate, "repair": repair, "review": review}


def _set_event() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


@dataclass
class Member:
    """One organization: identity, policy, database, and agents that are plain functions."""

    identity: NodeIdentity
    home: Path
    policy: str
    agents: Agents
    dataset: Dataset = field(default_factory=lambda: Dataset(SCHEMA, None))
    max_bytes: int | None = None
    calls: list[str] = field(default_factory=list)
    #: What it can do of each skill, for the market.
    offers: dict[str, Offer] = field(default_factory=dict)
    tracer: Tracer = NULL
    node: Up | None = None
    free: trio.Event = field(default_factory=_set_event)

    @property
    def name(self) -> str:
        return self.identity.organization

    @property
    def up(self) -> Up:
        assert self.node is not None, f"the node of {self.name} is down"
        return self.node

    @property
    def file(self) -> Path:
        return self.home / "node.db"

    async def call(self, skill: str, payload: Any, *, deadline_s: float) -> Any:
        await trio.lowlevel.checkpoint()
        self.calls.append(skill)
        await self.free.wait()
        return json.loads(json.dumps(self.agents[skill](payload)))

    def hold(self) -> None:
        """Let its agents take work and not end it, until `free` is set."""
        self.free = trio.Event()

    def skills(self) -> tuple[str, ...]:
        return tuple(self.agents)

    def rows(self, sql: str, *values: object) -> list[Any]:
        """What is in its file at this moment, committed."""
        with closing(sqlite3.connect(f"file:{self.file}?mode=ro", uri=True)) as connection:
            return connection.execute(sql, values).fetchall()

    def audited(self) -> list[dict[str, Any]]:
        """The entries of its audit log at this moment, committed."""
        empty = {"action": "", "decision": "", "rules": [], "peer": "", "subject": "", "detail": {}}
        stored = self.rows("SELECT entry FROM audit_entries ORDER BY position")
        return [{**empty, **json.loads(entry)} for (entry,) in stored]


@dataclass
class Up:
    """What runs while a node is up."""

    runtime: Runtime
    database: Database
    gate: Gate
    scope: trio.CancelScope
    gone: trio.Event


@dataclass(frozen=True)
class Carried:
    """A request on the wire: who sent it to whom, and what it says."""

    sender: str
    receiver: str
    kind: str
    body: bytes
    payload: bytes


class Network:
    """Carries requests between members that are up."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        self.members = members
        self.carried: list[Carried] = []
        #: Called before a request is delivered, and after it was answered with a receipt.
        self.before: Callable[[Carried], None] = lambda carried: None
        self.after: Callable[[Carried, Receipt], None] = lambda carried, receipt: None

    def kinds(self, sender: str) -> list[str]:
        return [one.kind for one in self.carried if one.sender == sender]

    async def request(self, me: Member, peer_id: str, payload: bytes, deadline_s: float) -> bytes:
        await trio.lowlevel.checkpoint()
        other = next(each for each in self.members.values() if each.identity.peer_id == peer_id)
        if other.node is None:
            raise PeerUnreachable(f"{other.name} is down")
        message = open_message(payload, MESSAGE_KINDS)
        carried = Carried(me.name, other.name, message.kind, message.body, payload)
        self.before(carried)
        self.carried.append(carried)
        with trio.move_on_after(deadline_s):
            answer = await other.node.runtime.messenger.receive(attested(me.identity), payload)
            self.after(carried, Receipt.FromString(open_message(answer, {"receipt"}).body))
            return answer
        raise LinkClosed("too late")


@dataclass
class Links:
    """What one member's messenger sees of the network."""

    network: Network
    me: Member

    def peer(self, organization: str) -> Attested | None:
        other = self.network.members.get(organization)
        return None if other is None or other.node is None else attested(other.identity)

    async def request(self, peer_id: str, payload: bytes, deadline_s: float) -> bytes:
        return await self.network.request(self.me, peer_id, payload, deadline_s)


class Lab:
    """`count` organizations; change `members` before they are started."""

    def __init__(self, home: Path, count: int = 3) -> None:
        self.consortium: Consortium = consortium(*names(count))
        self.members = {
            name: Member(identity, home / name, policy(name), honest_agents(number))
            for number, (name, identity) in enumerate(self.consortium.nodes.items())
        }
        self.network = Network(self.members)
        self.passing = PassingLimits()
        #: Of messages that a test seals itself, past the sender's gate.
        self._ids = MessageIds(random.randbytes)
        for member in self.members.values():
            member.home.mkdir()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.members)

    async def start(self, nursery: trio.Nursery, *wanted: str) -> None:
        """Start the nodes of `wanted` (of everybody, if none are named)."""
        for name in wanted or self.names:
            await nursery.start(self._live, self.members[name])
        for member in self.members.values():
            if member.node is not None:  # as when links come up
                member.node.runtime.directory.look_again()
                for organization in self.names:
                    member.node.runtime.outbox.kick(organization)

    async def _live(self, member: Member, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        gone = trio.Event()
        try:
            with trio.CancelScope() as scope:
                async with open_database(member.file, max_bytes=member.max_bytes) as database:
                    gate = await self._gate(member, database)
                    runtime = Runtime(self._surroundings(member, gate, database))
                    async with trio.open_nursery() as nursery:
                        await runtime.load()
                        await nursery.start(runtime.run)
                        member.node = Up(runtime, database, gate, scope, gone)
                        task_status.started()
                        await trio.sleep_forever()
        finally:
            member.node = None
            gone.set()

    async def stop(self, name: str) -> None:
        """End a node at once: no farewell to anybody."""
        node = self.members[name].up
        node.scope.cancel()
        await node.gone.wait()

    async def _gate(self, member: Member, database: Database) -> Gate:
        mark = await database.read(stored_high_water_ms)
        return Gate(
            identity=member.identity,
            policy=loads_policy(member.policy),
            database=database,
            freshness=Freshness(member.identity.peer_id, high_water_ms=mark),
            now_ms=now_ms,
            random_bytes=random.randbytes,
        )

    def _surroundings(self, member: Member, gate: Gate, database: Database) -> Surroundings:
        return Surroundings(
            identity=member.identity,
            trust=self.consortium.trust,
            gate=gate,
            database=database,
            peers=self.links(member),
            workers=member,
            own_agents=lambda: [(SpiffeId(member.name, "agent", "a"), member.skills())],
            datasets={DATASET: member.dataset},
            addresses=lambda: [],
            hints=lambda: [],
            told=lambda peer_id, addresses: None,
            random=random.Random(7),
            version="test",
            offer=member.offers.get,
            passing=self.passing,
            tracer=member.tracer,
        )

    def links(self, member: Member) -> Links:
        """Return what a member's messenger sees of the network."""
        return Links(self.network, member)

    async def change_policy(self, name: str, text: str) -> None:
        """Put another policy in force at a member, as a node does that finds its file changed."""
        member = self.members[name]
        member.policy = text
        await member.up.gate.replace(loads_policy(text))
        await member.up.runtime.recheck()

    async def submit(self, name: str, **changes: Any) -> str:
        document = {**WORKFLOW, "minimum_participants": len(self.members), **changes}
        return await self.members[name].up.runtime.workflows.submit(json.dumps(document).encode())

    async def state(self, name: str, workflow_id: str) -> tuple[str, str]:
        """State of a workflow at one member, and the reason for it."""
        row = await self.members[name].up.database.read(lambda c: journal.get_workflow(c, workflow_id))
        return ("", "") if row is None else (row.state, row.reason)

    async def until_done(self, workflow_id: str, *wanted: str) -> None:
        """Wait until all own tasks of `wanted` (of everybody, if none are named) have ended."""
        for name in wanted or self.names:
            await until(partial(self._done, name, workflow_id), f"{name} is done")

    async def _done(self, name: str, workflow_id: str) -> bool:
        state, reason = await self.state(name, workflow_id)
        assert state != "failed", f"{name}: {reason}"
        return state == "done"

    async def counts(self, name: str) -> dict[str, int]:
        """How many of a member's own tasks are in each state."""
        return await self.members[name].up.database.read(journal.count_tasks_by_state)

    async def records(self, name: str) -> int:
        """How many certified records a member holds."""
        return len(self.members[name].rows("SELECT 1 FROM records"))

    def seal(self, sender: str, receiver: str, kind: str, body: bytes, **changes: Any) -> bytes:
        """What `sender` would send to `receiver`."""
        audience = self.members[receiver].identity.peer_id
        message_id = self._ids.next(f"{sender} to {receiver}")
        values: dict[str, Any] = {"audience": audience, "message_id": message_id, "now_ms": now_ms()}
        return seal(self.members[sender].identity.key, kind, body, **{**values, **changes})

    async def deliver(self, sender: str, receiver: str, kind: str, body: bytes, **changes: Any) -> Receipt:
        """Send a message in the name of `sender`, past its own node, and return the receipt."""
        payload = self.seal(sender, receiver, kind, body, **changes)
        node = self.members[receiver].up
        answer = await node.runtime.messenger.receive(attested(self.members[sender].identity), payload)
        return Receipt.FromString(open_message(answer, {"receipt"}).body)

    def verify_audit_logs(self) -> None:
        """Check every member's log, as an auditor would."""
        for member in self.members.values():
            audit.verify_file(member.file, None)


async def until(ready: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait until `ready` says yes."""
    try:
        with trio.fail_after(PATIENCE_S):
            while True:
                if await ready():
                    return
                await trio.sleep(0.01)
    except trio.TooSlowError:
        pytest.fail(f"not within {PATIENCE_S} s: {what}")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def run(main: Callable[[trio.Nursery], Any]) -> None:
    """Run `main(nursery)` and cancel the nursery when it returns; an error of one kind comes out as itself."""

    async def outer() -> None:
        async with trio.open_nursery() as nursery:
            await main(nursery)
            nursery.cancel_scope.cancel()

    try:
        trio.run(outer)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None
