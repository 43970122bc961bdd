"""The supervisor of worker processes, with processes that do not even try."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path

import pytest

from comity.errors import AgentError, ConfigError, WorkerLost
from comity.worker import Stop, serve_processes
from comity.worker.processes import ProcessesReport, ProcessLimits, Supervisor

#: Says into a FIFO that it is there, and is deaf to SIGTERM.
DEAF = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).write_text("up")
while True:
    time.sleep(60)
"""
DIES = """
import pathlib, sys, time
with pathlib.Path(sys.argv[1]).open("a") as log:
    log.write(f"{time.monotonic()}\\n")
"""


def supervisor(script: str, path: Path, limits: ProcessLimits) -> Supervisor:
    return Supervisor([sys.executable, "-c", script, str(path)], "x", 1, drain_s=0.0, limits=limits)


def test_a_process_that_does_not_leave_is_killed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "up")

    async def main() -> ProcessesReport:
        stop = Stop()
        running = asyncio.create_task(supervisor(DEAF, tmp_path / "up", ProcessLimits(leave_s=0.2)).run(stop))
        assert await asyncio.to_thread((tmp_path / "up").read_text) == "up"
        stop.leave()
        async with asyncio.timeout(20):
            return await running

    report = asyncio.run(main())
    assert report.killed == 1
    assert str(report).endswith("0 restart(s), 1 killed")


def test_pauses_grow_up_to_a_limit_and_deaths_end_it(tmp_path: Path) -> None:
    limits = ProcessLimits(quick_deaths=5, first_backoff_s=0.1, max_backoff_s=0.3)
    with pytest.raises(WorkerLost, match="5 worker processes died at once, one after another; the last: exit status 0"):
        asyncio.run(supervisor(DIES, tmp_path / "log", limits).run(Stop()))
    starts = [float(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(starts) == 5
    pauses = [after - before for before, after in itertools.pairwise(starts)]
    assert all(pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.3, 0.3), strict=True))


def test_one_that_lived_for_long_enough_counts_afresh(tmp_path: Path) -> None:
    limits = ProcessLimits(quick_s=0.0, quick_deaths=1, first_backoff_s=0.01)
    os.mkfifo(tmp_path / "log")

    async def main() -> ProcessesReport:
        stop = Stop()
        running = asyncio.create_task(supervisor(DIES, tmp_path / "log", limits).run(stop))
        for _ in range(4):
            assert await asyncio.to_thread((tmp_path / "log").read_text)
        stop.now()
        return await running

    assert asyncio.run(main()).restarts >= 3


def test_more_processes_than_may_be_are_refused() -> None:
    limits = ProcessLimits(processes=1)
    with pytest.raises(ConfigError, match="2 processes cannot be kept up, only 1 to 1"):
        serve_processes("nowhere:agent", "unix:/nowhere/s", processes=2, limits=limits)


#: Dies of a real-time signal, which has no name; `DIES` counts the starts.
SIGNALLED = (
    DIES
    + """
import os
os.kill(os.getpid(), 40)
"""
)


def test_a_death_by_a_signal_without_a_name_is_a_death_like_others(tmp_path: Path) -> None:
    limits = ProcessLimits(quick_deaths=2, first_backoff_s=0.01)
    with pytest.raises(WorkerLost, match="2 worker processes died at once, one after another; the last: killed by sig"):
        asyncio.run(supervisor(SIGNALLED, tmp_path / "log", limits).run(Stop()))


#: Says why it cannot go on, in characters of four bytes.
COMPLAINS = """
import sys
from comity.worker.processes import Supervised
Supervised(int(sys.argv[-1])).fail(chr(0x1F600) * 2000)
"""


def test_a_long_last_word_in_any_script_is_heard(tmp_path: Path) -> None:
    with pytest.raises(AgentError) as caught:
        asyncio.run(supervisor(COMPLAINS, tmp_path, ProcessLimits()).run(Stop()))
    assert str(caught.value) == chr(0x1F600) * 2000


#: Starts a process of its own that does not end, says so, and is deaf to SIGTERM.
PARENT = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
while True:
    time.sleep(60)
"""


def test_what_a_killed_process_started_is_killed_with_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "up")

    async def main() -> int:
        stop = Stop()
        running = asyncio.create_task(supervisor(PARENT, tmp_path / "up", ProcessLimits(leave_s=0.2)).run(stop))
        child = int(await asyncio.to_thread((tmp_path / "up").read_text))
        watched = os.pidfd_open(child)
        stop.leave()
        await running
        over = asyncio.Event()
        asyncio.get_running_loop().add_reader(watched, over.set)
        try:
            async with asyncio.timeout(20):
                await over.wait()
        finally:
            asyncio.get_running_loop().remove_reader(watched)
            os.close(watched)
        return child

    assert asyncio.run(main())


def test_only_a_second_word_hurries() -> None:
    async def main() -> None:
        stop = Stop()
        stop.finish()
        stop.finish()
        stop.leave()
        assert (stop.leaving.is_set(), stop.hurried.is_set()) == (True, False)
        stop.leave()
        assert stop.hurried.is_set()

    asyncio.run(main())
