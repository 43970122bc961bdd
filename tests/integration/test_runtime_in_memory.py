"""The way of a task between five organizations in one process: real trust, policy, database; the network is a call."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from comity.bundle import new_bundle, sign_bundle, verify_bundle
from comity.ca import OrganizationCa, certificate_request, read_certificates
from comity.errors import LinkClosed, PeerUnreachable
from comity.ids import SpiffeId
from comity.provenance import verify_provenance
from comity.signing import PrivateKey
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.admission import Gate
from comity_node.admission.records import Dataset
from comity_node.policy.loader import loads_policy
from comity_node.protocol.freshness import Freshness
from comity_node.runtime.core import Runtime, Surroundings
from comity_node.storage import audit, journal, records
from comity_node.storage.database import Database, open_database
from comity_node.validators.schema import FieldSpec, Schema

NAMES = tuple(f"{name}.example" for name in ("ada", "bea", "cyd", "dot", "eve"))
SCHEMA = Schema("label", {"x": FieldSpec("number", -1000.0, 1000.0), "label": FieldSpec("integer", 0, 1)})
WORKFLOW = {
    "name": "test",
    "purpose": "screening",
    "dataset": "rows",
    "records_per_organization": 10,
    "batch_records": 5,
    "repair_rounds": 1,
    "min_score": 5000,
    "lease_seconds": 20,
    "minimum_participants": 5,
}


def now_ms() -> int:
    return int(time.time() * 1000)


def policy_text(organization: str, floor: str = "") -> str:
    everything = [
        ("agent.discover", "to", ""),
        ("agreement.offer", "to", ""),
        ("agreement.accept", "from", floor),
        ("record.send", "to", "generalize: {x: 0.5}" if not floor else ""),
        ("record.receive", "from", ""),
        ("review.send", "to", ""),
        ("review.receive", "from", ""),
        ("record.release", "to", ""),
        ("record.accept", "from", ""),
    ]
    lines = ["version: 1", f"organization: {organization}", "rules:"]
    for action, side, obligations in everything:
        lines += [
            f"  - id: {action.replace('.', '-')}",
            "    effect: allow",
            f"    action: {action}",
            f'    {side}: {{organization: "*"}}',
            f"    obligations: {{{obligations}}}" if obligations else "    obligations: {onward: never}",
        ]
    return "\n".join(lines)


@dataclass
class Member:
    """One organization: identity, policy, database, and agents that are plain functions."""

    identity: NodeIdentity
    home: Path
    policy: str
    agents: Mapping[str, Callable[[Any], Any]]
    runtime: Runtime | None = None
    database: Database | None = None
    reviewing: trio.Event = field(default_factory=trio.Event)

    async def call(self, skill: str, payload: Any, *, deadline_s: float) -> Any:
        if skill == "review":
            self.reviewing.set()
        return json.loads(json.dumps(self.agents[skill](payload)))

    def skills(self) -> tuple[str, ...]:
        return tuple(self.agents)


class Network:
    """Carries requests between members that are up; `cut` ones are unreachable."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        self.members = members
        self.up: set[str] = set()
        self.cut: set[str] = set()

    def peers_of(self, me: Member) -> PeersOf:
        return PeersOf(self, me)


@dataclass
class PeersOf:
    network: Network
    me: Member

    def peer(self, organization: str) -> Attested | None:
        mine = self.me.identity.organization
        if {organization, mine} & self.network.cut or organization not in self.network.up:
            return None
        return attested(self.network.members[organization].identity)

    async def request(self, peer_id: str, payload: bytes, deadline_s: float) -> bytes:
        await trio.lowlevel.checkpoint()
        for organization in self.network.up:
            other = self.network.members[organization]
            if other.identity.peer_id == peer_id and self.peer(organization) is not None:
                assert other.runtime is not None
                with trio.move_on_after(deadline_s):
                    return await other.runtime.messenger.receive(attested(self.me.identity), payload)
                raise LinkClosed("too late")
        raise PeerUnreachable("not up")


def attested(identity: NodeIdentity) -> Attested:
    return Attested(identity.organization, identity.node, identity.key.public_key, identity.peer_id)


def make_trust(home: Path) -> tuple[TrustStore, dict[str, NodeIdentity]]:
    now = datetime.now(UTC)
    identities, roots, authorities = {}, [], []
    for name in NAMES:
        ca = OrganizationCa.create(name, home / name / "keys", now)
        key = PrivateKey.generate()
        leaf = ca.issue(certificate_request(key, SpiffeId(name, "node", "n1")), now=now)
        identities[name] = NodeIdentity.of(key, read_certificates(leaf))
        roots.append(ca.certificate_pem)
        authorities.append(ca)
    raw = new_bundle("lab", roots, issued_ms=now_ms() - 1000, expires_ms=now_ms() + 3_600_000)
    for ca in authorities:
        raw = sign_bundle(raw, ca)
    return TrustStore(verify_bundle(raw, now_ms=now_ms(), own_ca=None)), identities


def good_agents(seed: int) -> dict[str, Callable[[Any], Any]]:
    rng = Random(seed)

    def generate(work: Any) -> Any:
        return {"records": [{"x": round(rng.uniform(0, 10), 3), "label": 1} for _ in range(work["count"])]}

    def repair(work: Any) -> Any:
        return {"records": [{**one, "x": abs(one["x"])} for one in work["records"]]}

    def review(work: Any) -> Any:
        scores = [9000 if one["x"] >= 0 else 100 for one in work["records"]]
        return {
            "reviews": [
                {"score": score, "axes": {"range": score}, "feedback": [] if score > 5000 else ["range: x is negative"]}
                for score in scores
            ],
            "validator": "test",
        }

    return {"generate": generate, "repair": repair, "review": review}


def liar_agents() -> dict[str, Callable[[Any], Any]]:
    def generate(work: Any) -> Any:
        return {"records": [{"x": -5.0, "label": 0} for _ in range(work["count"])]}

    def repair(work: Any) -> Any:
        return {"records": work["records"]}

    def review(work: Any) -> Any:
        return {
            "reviews": [{"score": 0, "axes": {"spite": 0}, "feedback": []} for _ in work["records"]],
            "validator": "liar",
        }

    return {"generate": generate, "repair": repair, "review": review}


class Running:
    """One run of a node."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.up, self.down = trio.Event(), trio.Event()


class Lab:
    def __init__(self, home: Path) -> None:
        self.trust, identities = make_trust(home)
        self.members = {
            name: Member(
                identities[name],
                home / name,
                policy_text(name, "min_distance_to_private: 0" if name != "bea.example" else "generalize: {x: 2}"),
                good_agents(index) if name != "eve.example" else liar_agents(),
            )
            for index, name in enumerate(NAMES)
        }
        self.network = Network(self.members)

    async def start(self, name: str, stack: trio.Nursery) -> Running:
        """Start a member's node; cancelling its scope is what a power cut looks like to the rest."""
        member = self.members[name]
        running = Running()

        async def live() -> None:
            async with open_database(member.home / "node.db") as database:
                member.database = database
                async with trio.open_nursery() as nursery:
                    high_water = await member.database.read(lambda c: journal.get_number(c, "freshness.high_water_ms"))
                    gate = Gate(
                        identity=member.identity,
                        policy=loads_policy(member.policy),
                        database=member.database,
                        freshness=Freshness(member.identity.peer_id, high_water_ms=high_water),
                        now_ms=now_ms,
                        random_bytes=lambda n: Random().randbytes(n),
                    )
                    member.runtime = Runtime(
                        Surroundings(
                            identity=member.identity,
                            trust=self.trust,
                            gate=gate,
                            database=member.database,
                            peers=self.network.peers_of(member),
                            workers=member,
                            own_agents=lambda: [(SpiffeId(name, "agent", "a"), member.skills())],
                            datasets={"rows": Dataset(SCHEMA, None)},
                            addresses=lambda: [],
                            hints=lambda: [],
                            random=Random(7),
                            version="test",
                        )
                    )
                    await member.runtime.load()
                    await nursery.start(member.runtime.run)
                    self.network.up.add(name)
                    running.up.set()
                    await trio.sleep_forever()

        async def life() -> None:
            with running.scope:
                await live()
            self.network.up.discard(name)
            running.down.set()

        stack.start_soon(life)
        await running.up.wait()
        return running

    async def workflow(self, name: str, workflow_id: str) -> journal.WorkflowRow:
        database = self.members[name].database
        assert database is not None
        row = await database.read(lambda c: journal.get_workflow(c, workflow_id))
        assert row is not None
        return row

    async def until_done(self, workflow_id: str, names: tuple[str, ...] = NAMES) -> None:
        with trio.fail_after(40):
            for name in names:
                while True:
                    database = self.members[name].database
                    assert database is not None
                    row = await database.read(lambda c: journal.get_workflow(c, workflow_id))
                    if row is not None and row.state == "failed":
                        pytest.fail(f"{name}: {row.reason}")
                    if row is not None and row.state == "done":
                        break
                    await trio.sleep(0.02)

    async def counts(self, name: str) -> dict[str, int]:
        database = self.members[name].database
        assert database is not None
        return await database.read(journal.count_tasks_by_state)


@pytest.mark.invariant("S1")
@pytest.mark.invariant("S9")
def test_five_organizations_agree_generate_review_and_certify(tmp_path: Path) -> None:
    async def main() -> None:
        lab = Lab(tmp_path)
        async with trio.open_nursery() as nursery:
            for name in NAMES:
                await lab.start(name, nursery)
            submitter = lab.members["ada.example"].runtime
            assert submitter is not None
            workflow_id = await submitter.workflows.submit(json.dumps(WORKFLOW).encode())
            await lab.until_done(workflow_id)
            for name in NAMES:
                wanted = {"rejected": 10} if name == "eve.example" else {"certified": 10}
                assert await lab.counts(name) == wanted
            await check_records(lab)
            await check_negotiation(lab, workflow_id)
            nursery.cancel_scope.cancel()
        for name in NAMES:
            report = audit.verify_file(lab.members[name].home / "node.db", None)
            assert report.entries > 100

    trio.run(main)


async def check_records(lab: Lab) -> None:
    """Everybody gets everybody's certified records, at bea's grid, with a provenance that verifies offline."""
    for member in lab.members.values():
        assert member.database is not None
        with trio.fail_after(10):
            while True:
                page = await member.database.read(lambda c: records.list_records(c, limit=100))
                if len(page.records) == 40:
                    break
                await trio.sleep(0.02)
        assert "eve.example" not in {record.author for record in page.records}
        assert all(json.loads(record.record)["x"] % 2 == 0 for record in page.records)
        task_id = page.records[0].task_id
        row = await member.database.read(lambda c: records.get_record(c, task_id))  # noqa: B023
        assert row is not None
        proof = verify_provenance(row.provenance, lab.trust)
        assert proof.record == row.record
        assert proof.holder == member.identity.organization
        assert len(proof.reviews) == 3


async def check_negotiation(lab: Lab, workflow_id: str) -> None:
    database = lab.members["ada.example"].database
    assert database is not None
    steps = await database.read(lambda c: journal.workflow_steps(c, workflow_id))
    seen = [(step.organization, step.step) for step in steps]
    assert ("bea.example", "countered") in seen
    assert ("bea.example", "accepted") in seen
    assert seen[-1] == ("ada.example", "concluded")


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
@pytest.mark.invariant("R3")
def test_a_node_that_goes_away_in_the_middle_comes_back_and_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    async def main() -> None:
        lab = Lab(tmp_path)
        async with trio.open_nursery() as nursery:
            runs = {name: await lab.start(name, nursery) for name in NAMES}
            submitter = lab.members["ada.example"].runtime
            assert submitter is not None
            workflow_id = await submitter.workflows.submit(json.dumps(WORKFLOW).encode())
            with trio.fail_after(30):
                await lab.members["cyd.example"].reviewing.wait()
            runs["cyd.example"].scope.cancel()
            with trio.fail_after(5):
                await runs["cyd.example"].down.wait()
            await lab.start("cyd.example", nursery)
            await lab.until_done(workflow_id)
            for name in NAMES:
                counts = await lab.counts(name)
                assert sum(counts.values()) == 10
                assert set(counts) <= {"certified", "rejected", "undecided"}
                if name != "eve.example":
                    assert counts == {"certified": 10}
            nursery.cancel_scope.cancel()

    trio.run(main)
