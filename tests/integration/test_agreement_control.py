"""`comity agreement` against a node, and nodes killed between any two steps of a negotiation."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from comity.v1.agreement_pb2 import Proposal
from comity.v1.task_pb2 import Receipt
from comity_node.cli import main as run_cli
from comity_node.control.handlers import ControlHandlers
from comity_node.control.server import ControlServer
from comity_node.control.workers import WorkerPool
from comity_node.service.workflows import WorkflowService
from kit.hostile import concluded
from kit.lab import Carried, Lab, run, until

ADA, BEA, CYD = (f"org{number:02}.example" for number in range(3))
SMALL: dict[str, Any] = {"records_per_organization": 2, "batch_records": 2}
Cli = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="comity-") as directory:  # pytest's own are too long for a socket
        yield Path(directory) / "control.sock"


async def serve(lab: Lab, name: str, socket: Path, nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]) -> Cli:
    up = lab.members[name].up
    handlers = cast(ControlHandlers, WorkflowService(up.runtime, up.database))  # nothing else is asked of it
    address = await nursery.start(ControlServer(f"unix:{socket}", handlers, WorkerPool(name)).run)

    async def cli(command: str, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        words = ["agreement", command, *arguments, "--control", address]
        code = await trio.to_thread.run_sync(partial(run_cli, words))
        out, err = capsys.readouterr()
        return code, out, err

    return cli


def test_people_see_amend_export_and_end_an_agreement(
    tmp_path: Path, socket: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        old = await concluded(lab, ADA, BEA, CYD)
        cli = await serve(lab, BEA, socket, nursery, capsys)
        digest, bundle, file = old.digest.hex(), tmp_path / "bundle.json", tmp_path / "agreement.json"
        bundle.write_bytes(lab.consortium.bundle)
        code, out, _ = await cli("list", "--json")
        assert [(one["digest"], one["state"]) for one in json.loads(out)] == [(digest, "active")]
        code, out, _ = await cli("show", digest[:8])
        assert code == 0
        assert "2 of the 2 others have to give a record 0.5 or more" in out
        assert lab.consortium.nodes[CYD].peer_id in out

        code, _, err = await cli("show", digest[:5])
        assert code == 1
        assert "comity agreement list" in err
        changes = tmp_path / "changes.yaml"
        changes.write_text("records_per_organization: 7\n")
        code, out, _ = await cli("amend", digest, str(changes), "--json")
        assert code == 0
        workflow_id = json.loads(out)["workflow_id"]

        async def amended() -> bool:
            newest, *others = json.loads((await cli("list", "--json"))[1])
            return newest["terms"]["replaces"] == digest and any(one["state"] == "replaced" for one in others)

        await until(amended, "the amendment is there")
        found = {one["state"]: one["digest"] for one in json.loads((await cli("list", "--json"))[1])}
        assert set(found) == {"active", "replaced"}
        assert (await cli("show", workflow_id, "--json"))[0] == 0, "its id names it, too"
        new = found["active"]

        assert (await cli("export", new, "--out", str(file), "--bundle", str(bundle)))[0] == 0
        assert run_cli(["agreement", "verify", str(file), "--bundle", str(bundle)]) == 0
        code, out, _ = await cli("withdraw", new, "--reason", "the study is over")
        assert code == 0
        assert "what is certified stays" in out
        code, out, _ = await cli("show", new, "--json")
        shown = json.loads(out)
        assert shown["state"] == "withdrawn"
        assert [(one["organization"], one["reason"]) for one in shown["withdrawals"]] == [(BEA, "the study is over")]
        assert len(shown["signatures"]) == 3
        code, _, err = await cli("withdraw", new)
        assert code == 1
        assert "withdrawn from already" in err
        code, _, err = await cli("amend", digest, str(changes))
        assert code == 1
        assert "over" in err

    run(main)
    lab.verify_audit_logs()


def is_signing(carried: Carried) -> bool:
    return carried.kind == "proposal" and bool(Proposal.FromString(carried.body).sign)


STEPS: dict[str, Callable[[Carried], bool]] = {
    "a request to sign": lambda carried: is_signing(carried),
    "the agreement": lambda carried: carried.kind == "agreement",
}


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
@pytest.mark.parametrize("victim", [ADA, BEA])
@pytest.mark.parametrize(
    ("step", "moment"), [("a request to sign", "before"), ("a request to sign", "after"), ("the agreement", "before")]
)
def test_a_node_that_dies_at_a_step_of_the_negotiation_changes_nothing(
    tmp_path: Path, victim: str, moment: str, step: str
) -> None:
    """It goes down the moment that the first such message arrives, or was handled and its answer is on the way."""
    lab = Lab(tmp_path)
    for member in lab.members.values():
        member.hold()

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        hit = trio.Event()

        def strike(carried: Carried, receipt: Receipt | None = None) -> None:
            if not hit.is_set() and carried.receiver == BEA and STEPS[step](carried):
                hit.set()
                lab.members[victim].up.scope.cancel()

        if moment == "before":
            lab.network.before = strike
        else:
            lab.network.after = strike
        workflow_id = await lab.submit(ADA, **SMALL)
        gone = lab.members[victim].up.gone
        await hit.wait()
        await gone.wait()
        await lab.start(nursery, victim)

        async def everywhere() -> bool:
            states = [await lab.state(name, workflow_id) for name in lab.names]
            return states == [("running", "")] * 3

        await until(everywhere, "everybody has it")
        digests = {lab.members[name].rows("SELECT digest FROM agreements")[0][0] for name in lab.names}
        assert len(digests) == 1
        for name in (BEA, CYD):
            (promise,) = lab.members[name].rows("SELECT digest, stage FROM promises")
            assert promise == (*digests, "concluded")
        assert not lab.members[ADA].rows("SELECT 1 FROM negotiations")

    run(main)
    lab.verify_audit_logs()
