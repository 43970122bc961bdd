"""Two nodes that listen on nothing find each other through the member that carries for them, on a fast network.

There, a node says hello before it has its reservation: where it can be reached nobody knows until it says so again.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from kit.homes import Cli, mercy_and, running, state_of

pytestmark = pytest.mark.slow

_POLICY = """version: 1
organization: {name}.example
rules:
  - {{id: show, effect: allow, action: agent.discover, to: {{organization: "*"}}}}
  - {{id: carry, effect: allow, action: relay.carry, from: {{organization: "*"}}}}
"""


def test_two_nodes_without_a_port_find_each_other_through_their_relay(cli: Cli) -> None:
    with tempfile.TemporaryDirectory(prefix="comity") as directory, ExitStack() as stack:
        behind = ("--relay", "{mercy}")
        options = {"mercy": ("--carry",), "hope": behind, "stlukes": behind}
        homes = mercy_and(cli, Path(directory), "hope", "stlukes", options=options)
        for name, home in homes.items():
            (home / "policy.yaml").write_text(_POLICY.format(name=name))
        clients = {name: stack.enter_context(running(home)) for name, home in homes.items()}
        state_of(clients["hope"], "stlukes.example", lambda state, _: state == "connected")
        (path,) = (peer.path for peer in clients["hope"].peers() if peer.organization == "stlukes.example")
        assert path == "relayed via mercy.example" or path == "direct"
