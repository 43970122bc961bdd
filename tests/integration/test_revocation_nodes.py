"""A revoked node, in processes of their own: its links are cut within seconds, and stay cut over restarts."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.homes import Cli, mercy_and, ok, running, state_of

pytestmark = pytest.mark.slow


@pytest.fixture
def homes(cli: Cli) -> Iterator[dict[str, Path]]:
    """Two organizations that are one consortium; mercy listens, hope only dials."""
    with tempfile.TemporaryDirectory(prefix="comity") as directory:
        yield mercy_and(cli, Path(directory), "hope", options={})


@pytest.mark.invariant("S2")
def test_a_revoked_node_is_cut_off_at_once_and_after_a_restart(cli: Cli, homes: dict[str, Path]) -> None:
    mercy, hope = homes["mercy"], homes["hope"]
    with running(mercy) as at_mercy, running(hope) as at_hope:
        state_of(at_mercy, "hope.example", lambda state, _: state == "connected")
        chain = hope / "keys/node.chain.pem"
        said = json.loads(ok(cli, hope, "--json", "cert", "revoke", chain, "--reason", "its key was copied"))
        began = time.monotonic()
        ok(cli, mercy, "cert", "publish", said["revocation"])
        state_of(at_mercy, "hope.example", lambda state, reason: state != "connected")
        assert time.monotonic() - began < 20
        state_of(at_hope, "mercy.example", lambda state, reason: state != "connected" and "revoked" in reason)
    with running(mercy) as at_mercy, running(hope) as at_hope:
        state_of(at_hope, "mercy.example", lambda state, reason: "revoked" in reason)
        assert all(peer.state != "connected" for peer in at_mercy.peers())
