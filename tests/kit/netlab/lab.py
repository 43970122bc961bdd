"""A network in a test: sites in namespaces of their own, and a wire between them that can be slow, lossy or cut.

    with NetLab(seed=1) as lab:
        mercy, hope = lab.site("mercy"), lab.site("hope", nat="cone")
        lab.shape(mercy, delay_ms=100, loss=0.01, rate_bps=1_000_000)
        server = mercy.run([sys.executable, "server.py", mercy.address])
        lab.cut(mercy, hope)
        lab.heal()

Leaving the lab ends every process that was run in it and the wire; the kernel then removes namespaces and devices by
itself. When the process with the lab is killed, what it ran is killed with it. Packets are forwarded by one Python
process: some 100 Mbit/s on one core.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from kit.netlab import kernel
from kit.netlab.line import Shape
from kit.netlab.nat import NatSettings
from kit.netlab.router import Direction

T = TypeVar("T")

_KIT = Path(__file__).resolve().parents[2]
_ENTER = Path(__file__).with_name("enter.py")
_MAX_ANSWER = 256 * 1024
_ANSWER_S = 20.0
_STOP_S = 10.0
_MAX_SITES = 200
#: Public addresses are ones that count as global, each in a network of its own. None leaves the lab.
_PUBLIC = "11.0.{}.2"
_PRIVATE = "192.168.{}.2"


class NetLabError(Exception):
    """The wire did not do as it was told."""


class Site:
    """One place in the network, with its own interfaces, routes and ports."""

    def __init__(self, lab: NetLab, name: str, address: str, public_address: str, namespace: int) -> None:
        """Made by `NetLab.site`."""
        self._lab, self._namespace = lab, namespace
        self.name = name
        #: Of its device: what its programs listen on.
        self.address = address
        #: What others see: the NAT router's, if it has one.
        self.public_address = public_address
        self._processes: list[subprocess.Popen[bytes]] = []

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program here, in a session of its own.

        It is killed when the lab is left, and when the thread that calls this ends: run a lab in one thread.
        """
        enter = [sys.executable, "-I", "-S", str(_ENTER), str(self._namespace), str(os.getpid())]
        process = subprocess.Popen(
            [*enter, *map(str, argv)],
            env=dict(os.environ if env is None else env),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(self._namespace,),
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in a thread that is here; sockets that it makes belong to this site for good."""
        return kernel.inside(self._namespace, function)

    def close(self) -> None:
        """Kill what runs here, and let go of the namespace."""
        for process in self._processes:
            _kill(process)
        if self._namespace >= 0:
            os.close(self._namespace)
            self._namespace = -1


class NetLab:
    """Sites and the wire between them."""

    def __init__(self, seed: int = 0, *, mtu: int = 1500) -> None:
        """Make a lab; entering it starts the wire.

        Args:
            seed: of loss, jitter and ports.
            mtu: bytes of the largest packet.
        """
        self._seed, self._mtu = seed, mtu
        self._sites: dict[str, Site] = {}
        self._shapes: dict[tuple[str, Direction], Shape] = {}
        self._control: socket.socket | None = None
        self._wire: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> NetLab:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_ANSWER_S)
        self._control = ours
        with theirs:
            self._wire = subprocess.Popen(
                [sys.executable, "-S", "-m", "kit.netlab.wire", str(theirs.fileno()), str(self._seed)],
                env={**os.environ, "PYTHONPATH": str(_KIT)},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything; a second time it does nothing."""
        try:
            for site in self._sites.values():
                site.close()
        finally:
            if self._control is not None:
                self._control.close()
            if self._wire is not None:
                _kill(self._wire)

    def site(self, name: str, *, nat: str | NatSettings | None = None) -> Site:
        """Add a site.

        Args:
            name: for people.
            nat: None for a public address; "cone", "symmetric" or settings for one behind a NAT router.

        Raises:
            NetLabError: the name is taken, or the wire is gone.
            OSError: the kernel refuses a namespace.
        """
        number = len(self._sites) + 1
        if number > _MAX_SITES:
            raise NetLabError(f"a lab has at most {_MAX_SITES} sites")
        settings = NatSettings.named(nat) if isinstance(nat, str) else nat
        public = _PUBLIC.format(number)
        address = _PRIVATE.format(number) if settings else public
        namespace, tun = kernel.new_site(address, mtu=self._mtu)
        try:
            command = {
                "do": "site",
                "name": name,
                "inside": address,
                "public": public,
                "nat": asdict(settings) if settings else None,
            }
            self._tell(command, [tun])
        except BaseException:
            os.close(namespace)
            raise
        finally:
            os.close(tun)
        site = self._sites[name] = Site(self, name, address, public, namespace)
        return site

    def shape(self, site: Site, *, directions: Iterable[Direction] = ("up", "down"), **changes: float) -> None:
        """Change a site's line, the rest of it staying as it is; fields as those of `line.Shape`.

        `delay_ms` counts in each direction: 100 on both of one site's are a round trip of 200 ms.

        Raises:
            ValueError: a line cannot be like this.
        """
        for direction in directions:
            key = (site.name, direction)
            shape = replace(self._shapes.get(key, Shape()), **changes)  # type: ignore[arg-type]  # checked by Shape
            self._tell({"do": "shape", "name": site.name, "directions": [direction], "shape": asdict(shape)})
            self._shapes[key] = shape

    def cut(self, source: Site, destination: Site | None = None, *, one_way: bool = False) -> None:
        """Let nothing pass between two sites; without `destination`, between one and all others.

        Args:
            source: a site.
            destination: the other.
            one_way: only what goes from `source` is lost; the way back stays.
        """
        self._tell({"do": "cut", "pairs": self._pairs(source, destination, one_way=one_way)})

    def heal(self, source: Site | None = None, destination: Site | None = None) -> None:
        """Undo the cuts between two sites, of one, or all."""
        if source is None:
            pairs: list[tuple[str | None, str | None]] = [(None, None)]
        else:
            pairs = list(self._pairs(source, destination, one_way=False))
        self._tell({"do": "heal", "pairs": pairs})

    def stats(self) -> dict[str, dict[str, int]]:
        """Return, for each site, what happened to its packets: sent, received, lost_up, cut, nat_filtered, ..."""
        sites: dict[str, dict[str, int]] = self._tell({"do": "stats"})["sites"]
        return sites

    def carried(self, source: Site, destination: Site) -> int:
        """Return how many packets have got from one site to another."""
        return int(self._tell({"do": "carried", "pair": [source.name, destination.name]}))

    def _pairs(self, source: Site, destination: Site | None, *, one_way: bool) -> list[tuple[str, str]]:
        others = [destination.name] if destination else [name for name in self._sites if name != source.name]
        there = [(source.name, other) for other in others]
        return there if one_way else [*there, *((other, source.name) for other in others)]

    def _tell(self, command: Mapping[str, Any], descriptors: Sequence[int] = ()) -> Any:
        if self._control is None:
            raise NetLabError("the lab has not been entered")
        with self._lock:
            try:
                socket.send_fds(self._control, [json.dumps(command).encode()], descriptors)
                data = self._control.recv(_MAX_ANSWER)
            except OSError as error:
                raise NetLabError(f"the wire does not answer: {error}") from error
        if not data:
            raise NetLabError("the wire has ended")
        answer = json.loads(data)
        if not answer["ok"]:
            raise NetLabError(answer["error"])
        return answer["result"]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and its session, whatever state it is in."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # not yet the leader of its session, or gone in this moment
            process.kill()
        process.wait(_STOP_S)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None and not pipe.closed:
            try:
                pipe.close()
            except BrokenPipeError:  # what was still to be written has no reader any more
                continue
