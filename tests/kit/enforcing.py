"""A gate over a database, for tests of what it enforces."""

from __future__ import annotations

import random
from collections.abc import Callable

from comity_node.admission import Gate
from comity_node.admission.gate import stored_high_water_ms
from comity_node.policy.loader import loads_policy
from comity_node.protocol.freshness import Freshness
from comity_node.storage.database import Database
from kit.consortium import consortium, names

NODES = consortium(*names(3)).nodes


async def make_gate(database: Database, text: str, clock: Callable[[], int]) -> Gate:
    """Return the gate of the organization whose policy `text` is, as one run of its node makes it."""
    mark = await database.read(stored_high_water_ms)
    policy = loads_policy(text)
    identity = NODES[policy.organization]
    return Gate(
        identity=identity,
        policy=policy,
        database=database,
        freshness=Freshness(identity.peer_id, high_water_ms=mark),
        now_ms=clock,
        random_bytes=random.randbytes,
    )
