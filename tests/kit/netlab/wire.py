"""The wire's process: packets from TUN to TUN through the router, and commands from the lab.

    python -S -m kit.netlab.wire FD SEED

FD is a SOCK_SEQPACKET socket on which the lab sends one JSON object at a time (the TUN of a new site as ancillary
data) and gets one back. The process ends when the lab closes it, however that comes about.
"""

from __future__ import annotations

import json
import math
import os
import select
import socket
import sys
import time
from typing import Any

from kit.netlab.line import Shape
from kit.netlab.nat import NatSettings
from kit.netlab.router import Router

_MAX_COMMAND = 64 * 1024
_MAX_PACKET = 65535
#: Packets read from one site before the others have a turn.
_BATCH = 64


class Wire:
    """Owns the sites' TUN devices."""

    def __init__(self, control: socket.socket, seed: int) -> None:
        """Serve the lab at the other end of `control`."""
        self._control = control
        self._router = Router(seed)
        self._tuns: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._poll = select.epoll()
        self._undelivered = 0

    def run(self) -> None:
        """Forward until the lab is gone."""
        self._poll.register(self._control, select.EPOLLIN)
        control, router = self._control.fileno(), self._router
        while True:
            due = router.next_due
            timeout = None if due == math.inf else max(0.0, due - time.monotonic())
            for descriptor, _ in self._poll.poll(timeout):
                if descriptor == control:
                    if not self._command():
                        return
                else:
                    self._read(descriptor)
            if due != math.inf or router.next_due != math.inf:
                self._deliver(router.pump(time.monotonic()))

    def _read(self, tun: int) -> None:
        name, send = self._names[tun], self._router.send
        for _ in range(_BATCH):
            try:
                packet = os.read(tun, _MAX_PACKET)
            except BlockingIOError:
                return
            if out := send(name, packet, time.monotonic()):
                self._deliver(out)

    def _deliver(self, packets: list[tuple[str, bytes]]) -> None:
        for name, packet in packets:
            try:
                os.write(self._tuns[name], packet)
            except OSError:  # no room in the kernel, or the device is down: lost, as on any network
                self._undelivered += 1

    def _command(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, _MAX_COMMAND, 1)
        if not data:
            return False
        try:
            answer = {"ok": True, "result": self._do(json.loads(data), descriptors)}
        except (ValueError, KeyError, TypeError) as error:
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        self._control.send(json.dumps(answer).encode())
        return True

    def _do(self, command: dict[str, Any], descriptors: list[int]) -> Any:
        match command:
            case {"do": "site", "name": name, "inside": inside, "public": public, "nat": nat}:
                self._router.add(name, inside, public, NatSettings(**nat) if nat else None)
                [tun] = descriptors
                self._tuns[name], self._names[tun] = tun, name
                self._poll.register(tun, select.EPOLLIN)
            case {"do": "shape", "name": name, "directions": directions, "shape": shape}:
                self._router.shape(name, Shape(**shape), directions)
            case {"do": "cut", "pairs": pairs}:
                for here, there in pairs:
                    self._router.cut(here, there)
            case {"do": "heal", "pairs": pairs}:
                for here, there in pairs:
                    self._router.heal(here, there)
            case {"do": "stats"}:
                return {"sites": self._router.stats(), "undelivered": self._undelivered}
            case {"do": "carried", "pair": [here, there]}:
                return self._router.carried[here, there]
            case _:
                raise ValueError(f"unknown command {command!r}")
        return None


def main() -> None:
    """Run the wire that the command line describes."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        Wire(control, int(sys.argv[2])).run()


if __name__ == "__main__":
    main()
