"""Whose memory a connection's unread bytes are: of an organization, once links have said whose node it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from comity.signing import PrivateKey
from comity_node.transport.arrivals import Arrivals
from comity_node.transport.budget import BudgetLimits
from comity_node.transport.connections import Connection, Connections
from comity_node.transport.limits import Libp2pLimits

LIMITS = Libp2pLimits(budget=BudgetLimits(total=100, per_organization=50, per_peer=40))


def connection(peer_id: str, budgets: list[Any]) -> Connection:
    mux: Any = SimpleNamespace(
        remote_peer=peer_id, is_usable=True, set_limits=lambda limits, budget: budgets.append(budget)
    )
    return Connection(mux, "", "", inbound=True, opened_at=0.0, source="x")


@pytest.mark.invariant("S7")
def test_nodes_of_one_organization_share_its_memory_however_often_they_are_confirmed() -> None:
    connections = Connections(LIMITS, Arrivals(LIMITS).pace)
    budgets: list[Any] = []
    peers = [PrivateKey(bytes([number] * 32)).peer_id for number in (1, 2)]
    for peer in peers:
        connections.add(connection(peer, budgets))
        connections.confirm(peer, "evil.example")  # it has opened a stream to us
        connections.confirm(peer, "")  # and we one to it
        connections.add(connection(peer, budgets))
    first, second = budgets[2], budgets[-1]
    assert first.take(40)
    assert not second.take(11), "the organization has ten left"
    assert second.take(10)
    assert connections.budgets.total.used == 50
