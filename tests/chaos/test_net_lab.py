"""The lab itself, with the kernel's own TCP: it does to packets what it says, and leaves nothing behind."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kit.netlab import NetLab, NetLabError, Site, has_privileges, unavailable

REASON = unavailable()
needs_lab = pytest.mark.skipif(bool(REASON), reason=f"no network lab: {REASON}")
PORT = 4001
#: Answers each byte with one byte, except that a line of 8 bytes "s" + count makes it send so many.
SERVER = """
import socket, sys, threading
def serve(connection):
    with connection:
        while data := connection.recv(8):
            if data[:1] == b"s":
                connection.sendall(bytes(int(data[1:])))
            else:
                connection.sendall(data)
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


def test_with_the_privileges_there_is_a_lab() -> None:
    if not has_privileges():
        pytest.skip("this process has not the capabilities, or there is no TUN device")
    assert unavailable() == ""


@contextmanager
def served(site: Site) -> Iterator[None]:
    process = site.run([sys.executable, "-c", SERVER, site.address, str(PORT)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield


def connect(here: Site, there: Site, timeout_s: float = 10.0) -> socket.socket:
    address = (there.public_address, PORT)
    return here.call(lambda: socket.create_connection(address, timeout_s))


def round_trip_ms(connection: socket.socket) -> float:
    began = time.monotonic()
    connection.sendall(b"p")
    assert connection.recv(1) == b"p"
    return (time.monotonic() - began) * 1000


def fetch(connection: socket.socket, count: int) -> float:
    """Let the server send `count` bytes; returns the seconds."""
    began = time.monotonic()
    connection.sendall(b"s%07d" % count)
    while count:
        count -= len(connection.recv(min(count, 65536)))
    return time.monotonic() - began


@needs_lab
def test_delay_loss_and_rate_are_what_was_asked_for() -> None:
    with NetLab(seed=1) as lab:
        a, b = lab.site("a"), lab.site("b")
        with served(b), connect(a, b) as connection:
            plain = statistics.median(round_trip_ms(connection) for _ in range(20))
            assert plain < 50
            lab.shape(a, delay_ms=100)
            assert 190 <= statistics.median(round_trip_ms(connection) for _ in range(5)) <= 260
            # 1 Mbit/s of whole packets: the payload of 1500 bytes is 1448.
            lab.shape(a, delay_ms=5, rate_bps=1_000_000)
            seconds = fetch(connection, 250_000)
            assert 0.85e6 < 250_000 * 8 / seconds < 1e6
            lab.shape(a, delay_ms=0, rate_bps=0, loss=0.01)
            before = lab.stats()["b"]["sent"]
            fetch(connection, 3_000_000)
            stats = lab.stats()
            assert stats["b"]["sent"] - before > 2000
            assert 0.003 < stats["a"]["lost_down"] / (stats["b"]["sent"] - before) < 0.03


@needs_lab
def test_cuts_stop_one_way_or_both_and_heal() -> None:
    with NetLab(seed=1) as lab:
        a, b = lab.site("a"), lab.site("b")
        with served(b), connect(a, b) as connection:
            round_trip_ms(connection)
            connection.settimeout(0.3)
            lab.cut(b, a, one_way=True)
            received = lab.stats()["b"]["received"]
            with pytest.raises(TimeoutError):
                round_trip_ms(connection)
            assert lab.stats()["b"]["received"] > received, "the request got through, the answer did not"
            lab.heal()
            connection.settimeout(20)
            assert connection.recv(1) == b"p", "TCP sends it again"
            lab.cut(a)
            with pytest.raises(TimeoutError):
                connect(a, b, 0.5)


@needs_lab
def test_a_site_behind_nat_reaches_out_and_nobody_reaches_in() -> None:
    with NetLab(seed=1) as lab, ExitStack() as stack:
        mercy, hope, public = lab.site("mercy", nat="cone"), lab.site("hope", nat="symmetric"), lab.site("public")
        for site in (mercy, hope, public):
            stack.enter_context(served(site))
        for site in (mercy, hope):
            with connect(site, public) as connection:
                assert round_trip_ms(connection) < 1000
        for here, there in ((public, mercy), (public, hope), (mercy, hope), (hope, mercy)):
            with pytest.raises(TimeoutError):
                connect(here, there, 0.5)
        stats = lab.stats()
        assert stats["mercy"]["nat_filtered"] > 0
        assert stats["hope"]["nat_filtered"] > 0


def lab_processes() -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
        if parent == os.getpid() and (b"netlab" in command or b"create_server" in command):
            found.add(int(entry.name))
    return found


@needs_lab
def test_nothing_is_left_after_a_failure() -> None:
    before = lab_processes()
    descriptors = set(os.listdir("/proc/self/fd"))

    def fail() -> None:
        with NetLab() as lab:
            site = lab.site("a")
            with served(site):
                assert lab_processes() - before
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert lab_processes() == before
    assert set(os.listdir("/proc/self/fd")) == descriptors


@needs_lab
def test_what_runs_in_a_lab_dies_with_whoever_made_it() -> None:
    script = (
        "import subprocess, sys, time\nfrom kit.netlab import NetLab\n"
        "with NetLab() as lab:\n"
        "    process = lab.site('a').run(['sleep', '300'], stdout=subprocess.DEVNULL)\n"
        "    print(process.pid, lab._wire.pid, flush=True)\n"
        "    time.sleep(300)\n"
    )
    root = Path(__file__).resolve().parents[1]
    maker = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}
    )
    with maker:
        assert maker.stdout is not None
        pids = [int(pid) for pid in maker.stdout.readline().split()]
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        maker.kill()
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@needs_lab
def test_mistakes_are_named() -> None:
    with NetLab() as lab:
        site = lab.site("a")
        with pytest.raises(NetLabError, match="there is a site 'a'"):
            lab.site("a")
        with pytest.raises(ValueError, match="cannot be"):
            lab.shape(site, loss=2)
    with pytest.raises(NetLabError, match="wire"):
        lab.stats()
