"""Watching a node decide: the log is the buffer, the gate waits for nobody, and a candidate is tried beside it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from comity.errors import Busy
from comity_node.admission import Gate, Question
from comity_node.admission.watching import Sight, Wanted, Watching, WatchLimits
from comity_node.control.handlers import ControlHandlers
from comity_node.control.server import ControlServer
from comity_node.control.workers import WorkerPool
from comity_node.service import Service
from comity_node.storage.database import Database, open_database
from kit.consortium import NOW_MS
from kit.decided import ME, OTHER, PEER, POLICY, asking
from kit.enforcing import make_gate

NOT_QUIET = WatchLimits(pause_s=0.01, quiet_s=1e6)


@asynccontextmanager
async def deciding(path: Path) -> AsyncIterator[tuple[Database, Gate]]:
    async with open_database(path) as database:
        yield database, await make_gate(database, POLICY, lambda: NOW_MS)


def questions(count: int, **changes: str) -> list[Question]:
    return [Question(asking(**changes)) for _ in range(count)]


async def seen(database: Database, wanted: Wanted, limits: WatchLimits, act: Callable[[], Any], count: int) -> Sight:
    """What a watcher is told of what `act` does, once it has `count` decisions."""
    decisions: list[Any] = []
    dropped = 0
    async with aclosing(Watching(database, limits).follow(wanted)) as sights:
        async for sight in sights:
            if act is not None:
                await act()
                act = cast(Any, None)
            decisions += sight.decisions
            dropped += sight.dropped
            if len(decisions) >= count:
                return Sight(tuple(decisions), dropped)
    raise AssertionError("the watch ended")


def test_a_watcher_is_told_what_it_asks_for_and_nothing_of_before(tmp_path: Path) -> None:
    async def main() -> None:
        async with deciding(tmp_path / "node.db") as (database, gate):
            await gate.decide(questions(3))

            async def act() -> None:
                await gate.decide([*questions(2), *questions(1, organization=OTHER), *questions(1, kind="raw")])

            everything = await seen(database, Wanted(), NOT_QUIET, act, 4)
            assert [each.entry.index for each in everything.decisions] == [3, 4, 5, 6]
            assert json.loads(everything.decisions[0].request)["organization"] == PEER
            denied = await seen(database, Wanted(denied=True), NOT_QUIET, act, 2)
            assert [each.entry.index for each in denied.decisions] == [9, 10]
            other = await seen(database, Wanted("record.send", OTHER), NOT_QUIET, act, 1)
            assert [each.entry.index for each in other.decisions] == [13]

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_watcher_that_is_late_skips_and_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with deciding(tmp_path / "node.db") as (database, gate):
            limits = WatchLimits(behind=50, page=20, pause_s=0.01, quiet_s=1e6)
            late = await seen(database, Wanted(), limits, lambda: gate.decide(questions(200)), 20)
            assert late.dropped == 180
            assert [each.entry.index for each in late.decisions] == list(range(180, 200))
            early = await seen(database, Wanted(), limits, lambda: gate.decide(questions(50)), 50)
            assert (len(early.decisions), early.dropped) == (50, 0)

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_watcher_reads_a_page_at_a_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with deciding(tmp_path / "node.db") as (database, gate):
            sizes: list[int] = []
            follow = Watching(database, WatchLimits(page=16, pause_s=0.01, quiet_s=1e6)).follow(Wanted())
            async with aclosing(follow) as sights:
                await anext(sights)
                await gate.decide(questions(40))
                while sum(sizes) < 40:
                    sizes.append(len((await anext(sights)).decisions))
            assert max(sizes) <= 16

    trio.run(main)


@pytest.mark.invariant("S7")
def test_watchers_are_few_and_leave_their_places(tmp_path: Path) -> None:
    async def main() -> None:
        async with deciding(tmp_path / "node.db") as (database, _):
            watching = Watching(database, WatchLimits(watchers=2))
            first, second, third = (watching.follow(Wanted()) for _ in range(3))
            assert await anext(first) == await anext(second) == Sight()
            with pytest.raises(Busy, match="2 watch already"):
                await anext(third)
            await first.aclose()
            again = watching.follow(Wanted())
            assert await anext(again) == Sight()
            await again.aclose()
            await second.aclose()

    trio.run(main)


def test_a_quiet_watch_shows_that_it_is_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with deciding(tmp_path / "node.db") as (database, _):
            limits = WatchLimits(pause_s=0.001, quiet_s=0.002)
            async with aclosing(Watching(database, limits).follow(Wanted())) as sights:
                assert [await anext(sights) for _ in range(3)] == [Sight()] * 3

    trio.run(main)


def test_watch_from_the_command_line_with_a_candidate(tmp_path: Path) -> None:
    candidate, home = tmp_path / "candidate.yaml", tmp_path / "home"
    wider = POLICY.replace(f"organization: [{PEER}]", f"organization: [{PEER}, {OTHER}]")
    candidate.write_text(wider.replace("retain: 30d", "retain: 90d"))
    home.mkdir(mode=0o700)
    (home / "policy.yaml").write_text(POLICY)
    (home / "node.yaml").write_text(
        f"version: 1\norganization: {ME}\nnode: n1\nlisten: /ip4/127.0.0.1/tcp/4101\n"
        f"control: {{address: 'unix:{home}/c.sock'}}\n"
    )
    command = [sys.executable, "-m", "comity_node.cli", "--home", str(home), "policy", "watch"]

    async def main() -> None:
        async with deciding(home / "node.db") as (database, gate), trio.open_nursery() as nursery:
            anything: Any = None
            service = Service(
                identity=gate.identity, trust=anything, gate=gate, runtime=anything, database=database,
                tunnels=anything, bulk=anything, facts=anything, revoke=anything, reload=anything,
                stop=anything,
            )  # fmt: skip
            workers = WorkerPool(ME)
            server = ControlServer(f"unix:{home}/c.sock", cast(ControlHandlers, service), workers)
            await nursery.start(server.run)
            more = ["--json", "--candidate", str(candidate)]
            process = await trio.lowlevel.open_process(
                [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            with trio.fail_after(60):
                lines = await _decide_until_seen(process, gate, database)
                process.send_signal(signal.SIGINT)
                lines += (await _rest(process)).splitlines()
            assert process.returncode == 0, await _errors(process)
            told = [json.loads(line) for line in lines]
            by_other = {each["organization"]: each["candidate"] for each in told if "candidate" in each}
            assert by_other[OTHER]["change"] == "deny->allow"
            assert by_other[PEER]["change"] == "obligations"
            summary = told[-1]["summary"]
            assert summary["changes"]["deny->allow"] == summary["denied"] >= 1
            assert summary["changes"]["obligations"] == summary["allowed"] >= 1
            assert (summary["dropped"], summary["not_kept"]) == (0, 0)
            nursery.cancel_scope.cancel()

    trio.run(main)


async def _decide_until_seen(process: trio.Process, gate: Gate, database: Database) -> list[str]:
    """Decide again and again until the watcher, whose start nobody is told of, has printed both sorts."""
    assert process.stdout is not None
    text = b""

    async def decide() -> None:
        while True:
            await gate.decide([*questions(1), *questions(1, organization=OTHER)])
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(decide)
        while text.count(b"\n") < 4:
            part = await process.stdout.receive_some()
            assert part, await _errors(process)
            text += part
        nursery.cancel_scope.cancel()
    if not text.endswith(b"\n"):
        text += await process.stdout.receive_some()
    return text.decode().splitlines()


async def _rest(process: trio.Process) -> str:
    assert process.stdout is not None
    text = b""
    async for part in process.stdout:
        text += part
    await process.wait()
    return text.decode()


async def _errors(process: trio.Process) -> str:
    assert process.stderr is not None
    return (await process.stderr.receive_some()).decode()
