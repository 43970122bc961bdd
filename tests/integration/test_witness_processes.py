"""Two nodes as processes: each leaves with the other's cosignature, and a database that was put back is found."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from comity.client import Client
from comity.trust import NodeIdentity
from kit.homes import Cli, mercy_and, ok, running, state_of
from kit.lab import policy

pytestmark = pytest.mark.slow


def meet(home: Path, client: Client) -> None:
    """Let a node link with stlukes, so that it has somebody to ask before it stops."""
    with running(home) as mine:
        state_of(mine, "stlukes.example", lambda state, _: state == "connected")
        state_of(client, "mercy.example", lambda state, _: state == "connected")


@pytest.mark.invariant("S8")
def test_a_node_that_stops_is_witnessed_and_a_database_that_was_put_back_is_found(cli: Cli) -> None:
    with tempfile.TemporaryDirectory(prefix="comity") as directory:
        homes = mercy_and(cli, Path(directory), "stlukes", options={})
        for name, home in homes.items():
            (home / "policy.yaml").write_text(policy(f"{name}.example"))
        mercy, stlukes = homes["mercy"], homes["stlukes"]
        who = NodeIdentity.load(stlukes / "keys/node.key", stlukes / "keys/node.chain.pem").peer_id
        verify = ("--json", "audit", "verify", "--witness", who)
        with running(stlukes) as client:
            meet(mercy, client)
            report = json.loads(ok(cli, mercy, *verify))
            assert report["cosigned"] > 2
            assert report["entries"] - report["cosigned"] <= 10, "all but the last words"
            [database] = mercy.rglob("*.db")
            database.unlink()  # the oldest copy of all
            meet(mercy, client)
        kept = Path(directory) / "kept"
        code, out, _ = cli("--home", stlukes, "audit", "evidence", "--out", kept)
        assert code == 1, out
        assert "two pasts" in out or "an older copy was put in its place" in out
        assert cli("--home", mercy, "audit", "evidence")[0] == 1, "and the node itself was told"
        first = next(kept.glob("*-first.note"))
        code, _, err = cli("--home", mercy, "audit", "verify", "--known", first)
        assert code == 1
        assert "checkpoint" in err
        assert json.loads(cli("--home", stlukes, "--json", "audit", "witnesses")[1])["witnesses"][0]["contradictions"]
