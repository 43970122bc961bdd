"""A node's database with decisions in it, made by a real gate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from comity_node.admission import Question
from comity_node.admission.archive import remember_policy
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Request
from comity_node.storage.database import open_database
from kit.consortium import NOW_MS, names
from kit.enforcing import make_gate

ME, PEER, OTHER = names(3)

POLICY = f"""\
version: 1
organization: {ME}
datasets:
  tumours: {{classification: confidential, schema: {{age: {{type: integer, min: 0, max: 120}}}}}}
rules:
  - id: send-synthetic
    effect: allow
    action: record.send
    to: {{organization: [{PEER}]}}
    data: {{dataset: tumours, kind: synthetic}}
    purpose: [screening]
    obligations: {{onward: never, retain: 30d}}
  - id: show-cards
    effect: allow
    action: agent.discover
    to: {{organization: "*"}}
    obligations: {{rate: {{records: 2, per: 1h}}}}
  - id: never-raw-rows
    effect: forbid
    action: "*"
    data: {{kind: raw}}
"""


def asking(kind: str = "synthetic", organization: str = PEER, action: str = "record.send") -> Request:
    """Return a request that the policy above has an answer to."""
    return Request(action, organization, "validator", "screening", "tumours", kind, frozenset({"age"}))


def decide_all(
    path: Path, text: str, asked: Sequence[tuple[Request, bytes]], *, at_ms: int = NOW_MS, remember: bool = True
) -> None:
    """Have a gate with the policy `text` decide on each request about a subject, a second apart."""

    async def main() -> None:
        now = [at_ms]
        async with open_database(path) as database:
            gate = await make_gate(database, text, lambda: now[0])
            if remember:
                await database.transact(lambda c: remember_policy(c, loads_policy(text)))
            for request, subject in asked:
                await gate.decide([Question(request, subject)])
                now[0] += 1000

    trio.run(main)
