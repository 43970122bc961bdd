"""`make bench-policy`: decisions, the audit log and the way through the gate, beside what they are compared with.

Every arm of a `decide` work answers the same requests about the same rules, and is checked to answer them alike before
anything is timed. cedarpy and casbin have their policies parsed beforehand, as ours are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import casbin
import cedarpy
import trio

from bench.common import Cell, Ratio, cell, compare, interleave, rate, write
from bench.micro import OURS, Arms, audit_arms
from comity.bundle import new_bundle, sign_bundle, verify_bundle
from comity.ca import OrganizationCa, certificate_request, read_certificates
from comity.digest import sha256
from comity.envelope import seal
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.admission import Gate, Question
from comity_node.policy import cedar
from comity_node.policy.engine import Policy
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Request
from comity_node.protocol.freshness import Freshness
from comity_node.storage.database import Database, open_database

RULES = (20, 200, 2000)
_REQUESTS = 100
_ACTIONS = ("record.send", "record.receive", "record.review", "record.release", "record.accept")
_KINDS = ("raw", "synthetic", "certified", "update")
_ROLES = ("validator", "trainer", "")
_INWARD = frozenset({"record.receive", "record.review", "record.accept"})
#: Of ten rules, one forbids.
_ONE_FORBIDS_OF = 10
#: Messages that are under way at once, and how many each of them is followed by, in a measurement of `admission`.
_SENDERS, _MESSAGES_EACH = 128, 8
_BODY_BYTES = 1024
_KIND, _RECEIPT = "records", "receipt"
_MERCY, _HOPE = "mercy.example", "hope.example"

_CASBIN_MODEL = """
[request_definition]
r = action, organization, role, dataset, kind, purpose
[policy_definition]
p = action, organization, role, dataset, kind, purpose, eft
[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
[matchers]
m = p.action == r.action && (p.organization == "*" || p.organization == r.organization) && \
(p.role == "*" || p.role == r.role) && (p.dataset == "*" || p.dataset == r.dataset) && \
(p.kind == "*" || p.kind == r.kind) && (p.purpose == "*" || p.purpose == r.purpose)
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule that all three engines can say: each condition is one value, or any (`*`)."""

    forbids: bool
    action: str
    organization: str
    role: str
    dataset: str
    kind: str
    purpose: str

    def yaml(self, number: int) -> str:
        """Return it in our language."""
        side = "from" if self.action in _INWARD else "to"
        role = f", role: [{self.role}]" if self.role != "*" else ""
        data = ", ".join(
            f"{key}: {value}" for key, value in (("dataset", self.dataset), ("kind", self.kind)) if value != "*"
        )
        parts = [
            f"id: r{number}",
            f"effect: {'forbid' if self.forbids else 'allow'}",
            f"action: {self.action}",
            f"{side}: {{organization: {self.organization}{role}}}",
            *([f"data: {{{data}}}"] if data else []),
            *([f"purpose: [{self.purpose}]"] if self.purpose != "*" else []),
        ]
        return f"- {{{', '.join(parts)}}}"

    def casbin(self) -> list[str]:
        """Return it as a line of casbin's policy."""
        words = [self.action, self.organization, self.role, self.dataset, self.kind, self.purpose]
        return [*words, "deny" if self.forbids else "allow"]


@dataclass(frozen=True, slots=True)
class World:
    """The names of a consortium: one organization to ten rules, from 4 to 20 of them."""

    organizations: tuple[str, ...]
    datasets: tuple[str, ...]
    purposes: tuple[str, ...]

    @classmethod
    def of(cls, rules: int) -> World:
        """Return the world of so many rules."""
        count = min(max(4, rules // 10), 20)
        return cls(
            tuple(f"o{number}.eu" for number in range(count)),
            tuple(f"d{number}" for number in range(8)),
            tuple(f"p{number}" for number in range(8)),
        )

    def rules(self, count: int, random_: random.Random) -> list[Rule]:
        """Draw rules; half of them name no role, a quarter no kind, no purpose and no dataset."""
        pick = random_.choice
        return [
            Rule(
                forbids=number % _ONE_FORBIDS_OF == _ONE_FORBIDS_OF - 1,
                action=pick(_ACTIONS),
                organization=pick(self.organizations),
                role=pick(("*", "*", *_ROLES[:2])),
                dataset=pick((*self.datasets, "*", "*")),
                kind=pick(("*", *_KINDS[:3])),
                purpose=pick((*self.purposes, "*", "*")),
            )
            for number in range(count)
        ]

    def requests(self, rules: Sequence[Rule], random_: random.Random) -> list[Request]:
        """Draw requests: two of three are what an allow rule speaks of, the rest is anything."""
        return [self._request(random_.choice(rules), random_, meant=number % 3 != 0) for number in range(_REQUESTS)]

    def _request(self, rule: Rule, random_: random.Random, *, meant: bool) -> Request:
        def value(wanted: str, values: Sequence[str]) -> str:
            return wanted if meant and wanted != "*" else random_.choice(values)

        return Request(
            action=value(rule.action, _ACTIONS),
            organization=value(rule.organization, self.organizations),
            role=value(rule.role, _ROLES),
            purpose=value(rule.purpose, self.purposes),
            dataset=value(rule.dataset, self.datasets),
            kind=value(rule.kind, _KINDS[:3]),
        )


def our_policy(world: World, rules: Sequence[Rule]) -> Policy:
    """Return the rules as our policy."""
    datasets = "\n".join(f"  {name}: {{classification: internal}}" for name in world.datasets)
    purposes = "\n".join(f"  {name}: {{}}" for name in world.purposes)
    written = "\n  ".join(rule.yaml(number) for number, rule in enumerate(rules))
    return loads_policy(
        f"version: 1\norganization: {_MERCY}\npurposes:\n{purposes}\ndatasets:\n{datasets}\nrules:\n  {written}\n"
    )


def casbin_enforcer(rules: Sequence[Rule]) -> casbin.Enforcer:
    """Return the rules in casbin."""
    model = casbin.Enforcer.new_model(text=_CASBIN_MODEL)
    enforcer = casbin.Enforcer(model)
    enforcer.add_policies([list(line) for line in dict.fromkeys(tuple(rule.casbin()) for rule in rules)])
    return enforcer


def decide_arms(count: int) -> Arms:
    """The same rules and requests in three engines.

    Raises:
        ValueError: two of them answer a request differently: then there is nothing to compare.
    """
    random_ = random.Random(count)
    world = World.of(count)
    rules = world.rules(count, random_)
    requests = world.requests(rules, random_)
    policy = our_policy(world, rules)
    exported = cedar.export(policy.document)
    policies = cedarpy.PolicySet.from_str(exported.policies)
    entities = cedarpy.Entities.from_json_str(json.dumps(list(exported.entities)))
    cedar_requests = [cedar.to_request(each) for each in requests]
    enforcer = casbin_enforcer(rules)
    lines = [(r.action, r.organization, r.role, r.dataset, r.kind, r.purpose) for r in requests]

    def ours() -> list[bool]:
        return [policy.decide(each).allowed for each in requests]

    def peer_cedar() -> list[bool]:
        answers = cedarpy.is_authorized_batch(cedar_requests, policies, entities)
        return [each.decision == cedarpy.Decision.Allow for each in answers]

    turns = itertools.cycle(lines)

    def one_casbin() -> bool:
        return bool(enforcer.enforce(*next(turns)))

    answers = ours()
    if answers != peer_cedar() or answers != [bool(enforcer.enforce(*line)) for line in lines]:
        raise ValueError(f"the engines do not agree about {count} rules")
    if not 0.2 < sum(answers) / len(answers) < 0.8:
        raise ValueError(f"{sum(answers)} of {len(answers)} requests are allowed: that compares one answer only")
    return {
        OURS: lambda: rate(ours, count=_REQUESTS),
        "cedarpy": lambda: rate(peer_cedar, count=_REQUESTS),
        "casbin": lambda: rate(one_casbin),
    }


def load_arms() -> Arms:
    """Seconds to read, check and compile a policy of 10,000 rules."""
    world = World.of(10_000)
    drawn = world.rules(10_000, random.Random(1))
    rules = [replace(rule, role="*", kind="*", dataset="*") for rule in drawn]  # a policy has a mebibyte at most

    def load() -> float:
        began = time.perf_counter()
        our_policy(world, rules)
        return time.perf_counter() - began

    return {OURS: load}


# The way through the gate.


@dataclass(frozen=True, slots=True)
class Party:
    """One side of the admission, with its gate."""

    identity: NodeIdentity
    gate: Gate

    @property
    def attested(self) -> Attested:
        """How the other side knows it."""
        key = self.identity.key
        return Attested(self.identity.organization, self.identity.node, key.public_key, key.peer_id)


class Admission:
    """Two organizations: what one signs, the other verifies, decides on, writes down and answers, signed, too."""

    def __init__(self, directory: Path) -> None:
        """Make their keys and certificates in `directory`."""
        self._directory = directory
        now = datetime.now(UTC)
        cas = [OrganizationCa.create(name, directory / name, now) for name in (_MERCY, _HOPE)]
        issued_ms, lasts = round(now.timestamp() * 1000) - 1000, timedelta(days=1)
        raw = new_bundle(
            "bench", [ca.certificate_pem for ca in cas], issued_ms=issued_ms,
            expires_ms=issued_ms + lasts // timedelta(milliseconds=1),
        )  # fmt: skip
        for ca in cas:
            raw = sign_bundle(raw, ca)
        self._trust = TrustStore(verify_bundle(raw, now_ms=_now_ms(), own_ca=None))
        self._identities = [_identity(ca, now) for ca in cas]
        self._files = (directory / f"admission-{number}.db" for number in itertools.count())

    def run(self, *, batch: bool) -> float:
        """Return the messages that were admitted a second; `batch`: those of one moment share a signature."""
        return trio.run(self._run, batch)

    async def _run(self, batch: bool) -> float:
        async with AsyncExitStack() as stack:
            databases = [await stack.enter_async_context(open_database(next(self._files))) for _ in range(2)]
            mercy, hope = (
                Party(identity, _gate(identity, database))
                for identity, database in zip(self._identities, databases, strict=True)
            )
            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for number in range(_SENDERS):
                    nursery.start_soon(self._send, mercy, hope, batch, number)
            return _SENDERS * _MESSAGES_EACH / (time.perf_counter() - began)

    async def _send(self, mercy: Party, hope: Party, batch: bool, number: int) -> None:
        body = random.Random(number).randbytes(_BODY_BYTES)
        for _ in range(_MESSAGES_EACH):
            sealed = await _seal(mercy, hope, _KIND, body, batch)
            message = await hope.gate.open(mercy.attested, sealed, {_KIND})
            request = Request("record.receive", _MERCY, "validator", "screening", "tumours", "synthetic")
            await hope.gate.demand(Question(request, sha256(message.body)))
            receipt = await _seal(hope, mercy, _RECEIPT, sha256(message.body), batch, message.header.id)
            await mercy.gate.open(hope.attested, receipt, {_RECEIPT})


async def _seal(by: Party, to: Party, kind: str, body: bytes, batch: bool, in_reply_to: bytes = b"") -> bytes:
    audience = to.identity.peer_id
    message_id = by.gate.message_id(audience)
    if batch:
        return await by.gate.seal(kind, body, audience=audience, message_id=message_id, in_reply_to=in_reply_to)
    await trio.lowlevel.checkpoint()
    return seal(
        by.identity.key, kind, body, audience=audience, message_id=message_id, now_ms=_now_ms(),
        in_reply_to=in_reply_to,
    )  # fmt: skip


_POLICY = """version: 1
organization: {organization}
rules:
  - id: take
    effect: allow
    action: record.receive
    from: {{organization: {other}, role: [validator]}}
    data: {{kind: synthetic}}
    purpose: [screening]
  - id: never-raw
    effect: forbid
    action: "*"
    data: {{kind: raw}}
"""


def _gate(identity: NodeIdentity, database: Database) -> Gate:
    other = _HOPE if identity.organization == _MERCY else _MERCY
    return Gate(
        identity=identity,
        policy=loads_policy(_POLICY.format(organization=identity.organization, other=other)),
        database=database,
        freshness=Freshness(identity.peer_id),
        now_ms=_now_ms,
        random_bytes=os.urandom,
    )


def _identity(ca: OrganizationCa, now: datetime) -> NodeIdentity:
    key = PrivateKey.generate()
    request = certificate_request(key, SpiffeId(ca.organization, "node", "n1"))
    return NodeIdentity.of(key, read_certificates(ca.issue(request, now=now)))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def measure(scratch: Path, repeats: int, works: Sequence[str]) -> tuple[list[Cell], list[Ratio]]:
    """Measure the works that are named, in their order."""
    cells: list[Cell] = []
    ratios: list[Ratio] = []
    for work, (unit, make) in _works(scratch).items():
        if work not in works:
            continue
        measured = [cell(work, arm, runs, unit) for arm, runs in interleave(make(), repeats).items()]
        print(f"{work}: " + ", ".join(f"{each.arm} {each.value:,.3g}" for each in measured), flush=True)
        cells += measured
        ratios += [compare(measured[0], peer) for peer in measured[1:]]
    return cells, ratios


def _works(scratch: Path) -> dict[str, tuple[str, Callable[[], Arms]]]:
    def admission_arms() -> Arms:
        admission = Admission(scratch)
        return {
            OURS: lambda: admission.run(batch=True),
            f"{OURS}-each-signed": lambda: admission.run(batch=False),
        }

    return {
        **{f"decide-{count}": ("decisions/s", partial(decide_arms, count)) for count in RULES},
        "load-10000": ("s", load_arms),
        "audit-append": ("entries/s", lambda: audit_arms(scratch)),
        "admission": ("messages/s", admission_arms),
    }


def main() -> None:
    """Run the benchmark and write `bench-out/policy.json`."""
    parser = argparse.ArgumentParser(prog="bench.policy", description=__doc__)
    names = list(_works(Path()))
    parser.add_argument("--repeats", type=int, default=5, help="runs of each arm (5)")
    parser.add_argument("--works", nargs="+", choices=names, default=names, metavar="WORK", help="only these")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-policy-") as directory:
        write("policy", *measure(Path(directory), arguments.repeats, arguments.works))


if __name__ == "__main__":
    main()
