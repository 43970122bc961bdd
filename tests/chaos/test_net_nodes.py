"""Three organizations' nodes and workers in three network namespaces complete a workflow over slow lines.

In the layouts with NAT, mercy and hope have no listening port, and each is behind a router of its own: what they say to
each other goes through the relay of the third member.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from comity.client import Client
from comity_node.demo import scenario
from kit.netlab import NetLab, unavailable
from kit.netlab_nodes import HOPE, MERCY, RELAY, SIZE, Federation, Layout, federation, run_workflow

REASON = unavailable()
pytestmark = [
    pytest.mark.skipif(bool(REASON), reason=f"no network lab: {REASON}"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]
#: The layouts that nodes can live in.
LAYOUTS = ("public", "cone", "symmetric")


def everybody_has_the_same_records(running: Federation) -> int:
    stores = []
    for home in running.homes:
        with Client(home.control) as client:
            stores.append({(record.task_id, record.record_digest) for record in client.records()})
    assert all(store == stores[0] for store in stores)
    return len(stores[0])


def links_of(running: Federation, organization: str) -> dict[str, tuple[str, ...]]:
    """Organizations that a node is linked with, and where it dials them."""
    home = next(each for each in running.homes if each.organization == organization)
    with Client(home.control) as client:
        return {peer.organization: peer.addresses for peer in client.peers() if peer.state == "connected"}


@pytest.mark.invariant("S1")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_three_sites_complete_a_workflow(layout: Layout, tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="nl-") as sockets,
        NetLab(seed=1) as lab,
        federation(lab, tmp_path, Path(sockets), layout) as running,
    ):
        for site in running.sites.values():
            lab.shape(site, delay_ms=10)
        scenario.start(running.homes, running.processes, print)
        workflow_id = run_workflow(running)
        counts = scenario.task_counts(running.homes, workflow_id)
        assert {sum(states.values()) for states in counts.values()} == {SIZE.records}
        assert everybody_has_the_same_records(running) == 3 * SIZE.records
        assert links_of(running, MERCY).keys() == {HOPE, RELAY}
        mercy, hope, relay = (running.sites[name] for name in (MERCY, HOPE, RELAY))
        assert min(lab.carried(mercy, relay), lab.carried(relay, hope)) > 100
        if layout == "public":
            assert lab.carried(mercy, hope) > 100
        elif layout == "symmetric":  # no hole can be punched
            assert lab.carried(mercy, hope) == lab.carried(hope, mercy) == 0
        if layout != "public":
            assert all("/p2p-circuit" in address for address in links_of(running, MERCY)[HOPE])
        running.processes.stop()
