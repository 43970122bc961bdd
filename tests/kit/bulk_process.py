"""One side of a bulk transfer as a process of its own, over a unix socket: what tests kill, and measure.

    python bulk_process.py receive HOME PEER-HOME
    python bulk_process.py send HOME PEER-HOME FILE
    python bulk_process.py resume HOME PEER-HOME ID

The receiver prints `ready`, `wrote N` after each small chunk that it has written, and `rss BASE PEAK` (kilobytes) after
each transfer; the sender prints its progress, `rss BASE PEAK` and `done`. With BULK_STOP_AT=N the receiver prints
`stopped` after its Nth chunk and goes on when it gets a line.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import ssl
import sys
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import trio

from comity.agreement import Agreed
from comity.bundle import verify_bundle
from comity.errors import AgreementError, PeerUnreachable
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.admission import Gate
from comity_node.admission.gate import stored_high_water_ms
from comity_node.bulk.common import Progress, Stream, Surroundings
from comity_node.bulk.limits import BulkLimits
from comity_node.bulk.prepare import Order
from comity_node.bulk.service import BulkService
from comity_node.bulk.spool import PartFile, Spool
from comity_node.policy.loader import load
from comity_node.protocol.freshness import Freshness
from comity_node.storage.database import Database, open_database
from comity_node.tunnel import SocketDuplex
from kit.consortium import NOW_MS, Consortium, attested
from kit.lab import now_ms

DATASET, PURPOSE = "tumours", "screening"
CHUNK_BYTES = int(os.environ.get("BULK_CHUNK", 64 * 1024))
LIMITS = BulkLimits(chunk_bytes=CHUNK_BYTES, keep_free_bytes=0, sync_bytes=16 * CHUNK_BYTES, silence_s=30)


def write_homes(made: Consortium, directory: Path, policy: str) -> list[Path]:
    """Write what each organization's process needs; `policy` has a `{organization}` in it."""
    homes = []
    for name, identity in made.nodes.items():
        home = directory / name
        home.mkdir()
        identity.key.save(home / "node.key")
        (home / "chain.pem").write_text("".join(map(ssl.DER_cert_to_PEM_cert, identity.chain)))
        (home / "bundle.json").write_bytes(made.bundle)
        (home / "policy.yaml").write_text(policy.format(organization=name))
        homes.append(home)
    return homes


def _identity(home: Path) -> NodeIdentity:
    return NodeIdentity.load(home / "node.key", home / "chain.pem")


class _Peers:
    """The other side, always there."""

    def __init__(self, peer: Attested) -> None:
        self._peer = peer

    def peer(self, organization: str) -> Attested | None:
        return self._peer if organization == self._peer.organization else None


def _no_agreement(digest: bytes) -> Agreed:
    raise AgreementError("there are no agreements here")


async def _service(home: Path, peer_home: Path, database: Database) -> tuple[BulkService, Attested]:
    identity, peer = _identity(home), attested(_identity(peer_home))
    trust = TrustStore(verify_bundle((home / "bundle.json").read_bytes(), now_ms=NOW_MS, own_ca=None))
    mark = await database.read(stored_high_water_ms)
    gate = Gate(
        identity=identity,
        policy=load(home / "policy.yaml"),
        database=database,
        freshness=Freshness(identity.peer_id, high_water_ms=mark),
        now_ms=now_ms,
        random_bytes=random.randbytes,
    )
    parts = Surroundings(
        identity=identity,
        trust=trust,
        gate=gate,
        database=database,
        spool=Spool(home / "bulk"),
        datasets={},
        agreement=_no_agreement,
        limits=LIMITS,
    )

    async def open_stream(peer_id: str) -> Stream:
        try:
            return SocketDuplex(await trio.open_unix_socket(str(peer_home / "socket")))
        except OSError as error:
            raise PeerUnreachable(f"the receiver is down: {error}") from error

    service = BulkService(parts, _Peers(peer), open_stream)
    await service.recover()
    return service, peer


def _say(*words: object) -> None:
    print(*words, flush=True)


def _memory(name: str) -> int:
    """Kilobytes of resident memory: VmRSS now, VmHWM at most. (ru_maxrss begins with that of the parent.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _base() -> int:
    """What is resident now; the highest mark is measured from here on."""
    pa.array([0])  # with its first array pyarrow loads pandas, if that is there: 38 MiB, once a process
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _memory("VmRSS")


async def _receive(home: Path, peer_home: Path) -> None:
    real, count, stop_at = PartFile.write, itertools.count(1), int(os.environ.get("BULK_STOP_AT", "0"))

    def write(self: PartFile, index: int, data: bytearray | bytes) -> None:
        real(self, index, data)
        if CHUNK_BYTES <= 64 * 1024:
            _say("wrote", index)
        if next(count) == stop_at:
            _say("stopped")
            sys.stdin.readline()

    PartFile.write = write  # type: ignore[method-assign]
    async with open_database(home / "node.db") as database:
        service, peer = await _service(home, peer_home, database)
        path = home / "socket"
        path.unlink(missing_ok=True)
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(str(path))
        listening.listen(8)
        base = _base()
        _say("ready")

        async def serve(stream: trio.SocketStream) -> None:
            await service.serve(peer, SocketDuplex(stream))
            _say("rss", base, _memory("VmHWM"))

        await trio.serve_listeners(serve, [trio.SocketListener(listening)])


async def _send(home: Path, peer_home: Path, what: str, name: str) -> None:
    async with open_database(home / "node.db") as database:
        service, peer = await _service(home, peer_home, database)
        base = _base()

        def report(progress: Progress) -> None:
            said = asdict(progress)
            _say(said["state"], said["bytes_done"], said["transfer_id"])

        if what == "send":
            await service.send(Order(peer.organization, DATASET, PURPOSE, "synthetic", Path(name)), report)
        else:
            await service.resume(name, report)
        _say("rss", base, _memory("VmHWM"))
        _say("done")


if __name__ == "__main__":
    role, own, other = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if role == "receive":
        trio.run(_receive, own, other)
    else:
        trio.run(_send, own, other, role, sys.argv[4])
