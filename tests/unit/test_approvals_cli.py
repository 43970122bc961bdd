"""`comity approvals` against the control API of a gate."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio

from comity.errors import ApprovalPending
from comity_node.admission import Gate, Question
from comity_node.control.handlers import ControlHandlers
from comity_node.control.server import ControlServer
from comity_node.control.workers import WorkerPool
from comity_node.policy.model import Request
from comity_node.service.policy import PolicyService
from comity_node.storage.database import open_database
from kit.consortium import NOW_MS, names
from kit.documents import DATASET, PURPOSE
from kit.enforcing import make_gate
from kit.lab import policy

ME, PEER, _ = names(3)
Cli = Callable[..., tuple[int, str, str]]
Run = Callable[..., Awaitable[tuple[int, str, str]]]
QUESTION = Question(
    Request("agreement.accept", PEER, purpose=PURPOSE, dataset=DATASET, labels={"records": 7}), bytes(32)
)


@pytest.fixture
def socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="comity-") as directory:  # pytest's own are too long for a socket
        yield Path(directory) / "control.sock"


def with_cli(home: Path, socket: Path, cli: Cli, test: Callable[[Gate, Run], Awaitable[None]], owed: str) -> None:
    async def main() -> None:
        async with open_database(home / "node.db") as database, trio.open_nursery() as nursery:
            gate = await make_gate(database, policy(ME, obligations={"agreement.accept": owed}), lambda: NOW_MS)
            handlers = cast(ControlHandlers, PolicyService(gate, database))  # nothing else is asked of it
            address = await nursery.start(ControlServer(f"unix:{socket}", handlers, WorkerPool(ME)).run)

            async def run(*arguments: str) -> tuple[int, str, str]:
                return await trio.to_thread.run_sync(partial(cli, "approvals", *arguments, "--control", address))

            with trio.fail_after(60):
                await test(gate, run)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_person_sees_what_waits_and_says_yes_or_no(tmp_path: Path, socket: Path, cli: Cli) -> None:
    async def test(gate: Gate, run: Run) -> None:
        assert await run("list") == (0, "(none)\n", "")
        with pytest.raises(ApprovalPending) as no:
            await gate.demand(QUESTION)
        name = no.value.approval[:12]
        code, out, _ = await run("list")
        assert (code, out.split()[8:13]) == (0, [name, "pending", "agreement.accept", PEER, PURPOSE])
        code, out, _ = await run("show", name)
        assert code == 0
        assert {"good for  " + "00" * 32, 'labels        {"records": 7}'} & {line.strip() for line in out.splitlines()}

        changed = gate.approvals.changed
        code, out, err = await run("approve", name, "--reason", "the board says yes", "--json")
        assert (code, err) == (0, "")
        told = json.loads(out)
        assert (told["state"], told["reason"], told["request"]["labels"]) == (
            "approved",
            "the board says yes",
            {"records": 7},
        )
        assert changed.is_set()
        assert (await gate.demand(QUESTION)).allowed
        assert await run("list") == (0, "(none)\n", "")

        code, out, _ = await run("deny", name)
        assert (code, out) == (0, f"denied: agreement.accept with {PEER} (rule agreement-accept)\n")
        assert not (await gate.decide([QUESTION]))[0].allowed
        code, out, _ = await run("list", "--all", "--json")
        assert [(one["id"], one["state"]) for one in json.loads(out)] == [(no.value.approval, "denied")]

    with_cli(tmp_path, socket, cli, test, "approval: {within: 1h}")


def test_an_approval_that_there_is_not_says_what_to_do(tmp_path: Path, socket: Path, cli: Cli) -> None:
    async def test(gate: Gate, run: Run) -> None:
        for command in ("approve", "deny", "show"):
            code, _, err = await run(command, "00" * 16)
            assert code == 1
            assert "`comity approvals list" in err
        code, _, err = await run("approve", "00" * 16, "--reason", "x" * 501)
        assert code == 1
        assert "may have 500" in err

    with_cli(tmp_path, socket, cli, test, "approval: {within: 1h}")


def test_notices_are_listed(tmp_path: Path, socket: Path, cli: Cli) -> None:
    async def test(gate: Gate, run: Run) -> None:
        await gate.decide([QUESTION] * 3)
        code, out, _ = await run("notices")
        assert code == 0
        assert out.splitlines()[1].split()[1:5] == ["dpo@ada.example", "agreement.accept", PEER, PURPOSE]
        code, out, _ = await run("notices", "--json")
        (told,) = json.loads(out)
        assert (told["persons"], told["times"], told["rules"]) == (["dpo@ada.example"], 3, ["agreement-accept"])

    with_cli(tmp_path, socket, cli, test, "notify: dpo@ada.example")


def test_the_help_teaches(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli("approvals", "--help")
    assert done.value.code == 0
    assert "approval: {within: 2d}" in " ".join(capsys.readouterr().out.split())
