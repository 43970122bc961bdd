"""Comity's links, three ways.

`plain`: without encryption; no node does that: it shows what encryption costs. `secured`: encrypted, both sides
attested. `admitted`: each request and each answer is signed and verified, good once, and each request is decided on by
the policy and in the audit log on disk before it is answered.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from bench.links import consortium
from bench.links.arm import Order, next_order, say
from comity.digest import sha256
from comity.errors import LinkClosed
from comity.trust import Attested
from comity_node.admission import Gate
from comity_node.admission.gate import Question
from comity_node.links import LinkLimits, Links
from comity_node.policy.loader import load as load_policy
from comity_node.policy.model import Request
from comity_node.protocol.freshness import Freshness
from comity_node.storage.database import open_database
from comity_node.transport.base import ByteStream, Transport
from comity_node.transport.libp2p_transport import Libp2pTransport

_BULK = "bench/1"
_DEADLINE_S = 60.0
_KIND, _RECEIPT = "records", "receipt"


def serve(name: str, directory: Path) -> None:
    """Serve until the input ends."""
    trio.run(_serve, name, directory)


def drive(name: str, directory: Path, ready: dict[str, Any]) -> None:
    """Do what is ordered."""
    trio.run(_drive, name, directory, ready)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _transport(name: str, directory: Path, organization: str, listen: list[str]) -> Transport:
    key = consortium.identity(directory / "comity", organization).key
    if name == "plain":
        from bench.links.plain import plain_transport

        return plain_transport(key, listen)
    return Libp2pTransport(key, listen)


def _links(
    transport: Transport,
    directory: Path,
    organization: str,
    on_request: Callable[[Attested, bytes], Awaitable[bytes]],
    on_tunnel: Callable[[Attested, str, ByteStream], Awaitable[None]] | None = None,
) -> Links:
    return Links(
        transport,
        consortium.identity(directory / "comity", organization),
        consortium.trust(directory / "comity"),
        on_request,
        now_ms=_now_ms,
        random_bytes=os.urandom,
        limits=LinkLimits(max_handlers=512),
        on_tunnel=on_tunnel,
        allow_private=True,
    )


@asynccontextmanager
async def _gate(directory: Path, organization: str) -> AsyncIterator[Gate]:
    async with open_database(directory / f"{organization}.{os.getpid()}.db") as database:
        identity = consortium.identity(directory / "comity", organization)
        yield Gate(
            identity=identity,
            policy=load_policy(directory / "comity" / f"{organization}.yaml"),
            database=database,
            freshness=Freshness(identity.peer_id),
            now_ms=_now_ms,
            random_bytes=os.urandom,
        )


async def _count(attested: Attested, name: str, stream: ByteStream) -> None:
    left = int.from_bytes(await stream.receive(8), "big")
    while left:
        data = await stream.receive(1 << 20)
        if not data:
            raise LinkClosed("the bytes ended early")
        left -= len(data)
    await stream.send(b"!")
    await stream.aclose()


async def _echo(attested: Attested, payload: bytes) -> bytes:
    return payload


async def _serve(name: str, directory: Path) -> None:
    transport = _transport(name, directory, consortium.SERVER, ["/ip4/127.0.0.1/tcp/0"])
    async with _gate(directory, consortium.SERVER) as gate, trio.open_nursery() as nursery:

        async def admit(attested: Attested, payload: bytes) -> bytes:
            message = await gate.open(attested, payload, {_KIND})
            request = Request(
                "record.receive",
                attested.organization,
                purpose="breast-cancer-screening",
                dataset="tumour-features",
                kind="synthetic",
            )
            await gate.demand(Question(request, subject=sha256(message.body)))
            return await gate.seal(
                _RECEIPT,
                message.body,
                audience=attested.peer_id,
                message_id=gate.message_id(attested.peer_id),
                in_reply_to=message.header.id,
            )

        links = _links(transport, directory, consortium.SERVER, admit if name == "admitted" else _echo, _count)
        await nursery.start(links.run)
        say(peer=transport.peer_id, addresses=links.addresses())
        await trio.to_thread.run_sync(sys.stdin.read)
        await links.drain(1)
        nursery.cancel_scope.cancel()


async def _drive(name: str, directory: Path, ready: dict[str, Any]) -> None:
    transport = _transport(name, directory, consortium.CLIENT, [])
    server = consortium.identity(directory / "comity", consortium.SERVER)
    peer, addresses = ready["peer"], ready["addresses"]
    attested = Attested(server.organization, server.node, server.key.public_key, server.peer_id)
    async with _gate(directory, consortium.CLIENT) as gate, trio.open_nursery() as nursery:
        links = _links(transport, directory, consortium.CLIENT, _echo)

        async def plainly(payload: bytes) -> bytes:
            return await links.request(peer, payload, _DEADLINE_S)

        async def admitted(payload: bytes) -> bytes:
            message_id = gate.message_id(peer)
            sealed = await gate.seal(_KIND, payload, audience=peer, message_id=message_id)
            message = await gate.open(attested, await links.request(peer, sealed, _DEADLINE_S), {_RECEIPT})
            assert message.header.in_reply_to == message_id
            return message.body

        await nursery.start(links.run)
        links.add_peer(peer, addresses)
        await links.wait_for(peer, 10)
        while (order := await trio.to_thread.run_sync(next_order)) is not None:
            if order.work == "connect":
                say(seconds=await _connect(links, peer, addresses))
            elif order.work == "request":
                await _request(order, admitted if name == "admitted" else plainly)
            else:
                say(count=order.bytes, seconds=await _send(links, peer, order))
        nursery.cancel_scope.cancel()


async def _connect(links: Links, peer: str, addresses: list[str]) -> float:
    await links.remove_peer(peer)
    began = time.perf_counter()
    links.add_peer(peer, addresses)
    await links.wait_for(peer, 10)
    return time.perf_counter() - began


async def _request(order: Order, ask: Callable[[bytes], Awaitable[bytes]]) -> None:
    payload, count = bytes(order.size), 0
    began = time.perf_counter()
    stop = began + order.seconds

    async def one() -> None:
        nonlocal count
        while time.perf_counter() < stop:
            assert len(await ask(payload)) == order.size
            count += 1

    async with trio.open_nursery() as nursery:
        for _ in range(order.in_flight):
            nursery.start_soon(one)
    say(count=count, seconds=time.perf_counter() - began)


async def _send(links: Links, peer: str, order: Order) -> float:
    piece = bytes(order.piece)
    began = time.perf_counter()
    stream = await links.open_tunnel(peer, _BULK)
    await stream.send(order.bytes.to_bytes(8, "big"))
    for _ in range(order.bytes // order.piece):
        await stream.send(piece)
    assert await stream.receive(1) == b"!"
    seconds = time.perf_counter() - began
    await stream.aclose()
    return seconds
