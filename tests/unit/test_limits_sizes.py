"""Sizes of what others send, by the number: what is one more is refused, or not read."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest
import trio
from trio.testing import MockClock

from comity.card import AgentCard, Skill, open_card, sign_card
from comity.envelope import unsigned_message
from comity.errors import (
    Busy,
    CardInvalid,
    EnvelopeMalformed,
    FrameTooLarge,
    InvalidRecord,
    ProtocolError,
    RevocationInvalid,
)
from comity.ids import SpiffeId
from comity.revocation import verify_revocation
from comity.signing import PrivateKey
from comity.v1.bulk_pb2 import BulkField, BulkManifest
from comity_node.bulk.ipc import StreamReader
from comity_node.discovery.kad import KADEMLIA, Kademlia, KademliaSettings
from comity_node.discovery.paces import PeerPaces
from comity_node.discovery.rendezvous import RENDEZVOUS, RendezvousPoint
from comity_node.links.greeting import HelloRefused, _checked_addresses
from comity_node.metrics import MetricsServer, Reading
from comity_node.p2p.v1 import rendezvous_pb2 as pb
from comity_node.protocol.bulk import Frame, Receiver
from comity_node.protocol.bulk_manifest import Column, parse_manifest
from comity_node.protocol.framing import encode_frame
from comity_node.runtime import reviewer
from comity_node.runtime.agreements import Agreements
from comity_node.transport.address import Address
from comity_node.transport.dcutr import Puncher
from comity_node.transport.memory import MemoryNetwork
from comity_node.transport.multistream import Listener
from comity_node.transport.peer_record import open_record
from comity_node.transport.relay import Answer, Status, decode_hop, encode_hop
from comity_node.transport.varint import Delimited, encode_varint
from kit.consortium import NOW_MS, consortium

pytestmark = pytest.mark.invariant("S7")

US, PEER = (PrivateKey(bytes([number] * 32)) for number in (1, 2))


async def takes(handler: Callable[[Any], Any], length: int) -> bool:
    """Whether a handler waits for a message of this length; it has not come yet."""
    ours, theirs = MemoryNetwork().connect(PEER.peer_id, US.peer_id)
    await ours.send(encode_varint(length))
    with trio.move_on_after(1) as scope:
        try:
            await handler(theirs)
        except FrameTooLarge:
            return False
    return scope.cancelled_caught


def test_messages_of_small_protocols_are_refused_by_their_length() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        transport = network.transport(US.peer_id)

        async def reach(_: object) -> bool:
            return False

        Kademlia(transport, reach, now_ms=lambda: 0, settings=KademliaSettings())
        RendezvousPoint(transport, now_ms=lambda: 0)
        relayed = SimpleNamespace(relay="relay")
        host: Any = SimpleNamespace(
            connections=SimpleNamespace(best=lambda _: relayed),
            observed_through=lambda _: (1, Address("ip4", "8.8.8.8", 1)),
        )
        for handler, most in (
            (transport._handlers[KADEMLIA], 32 * 1024),
            (transport._handlers[RENDEZVOUS], 16 * 1024),
            (Puncher(host, allow_private=False).serve, 4096),
        ):
            serve: Any = handler[0] if isinstance(handler, tuple) else handler
            assert await takes(serve, most)
            assert not await takes(serve, most + 1)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_namespace_has_255_characters() -> None:
    point = RendezvousPoint(MemoryNetwork().transport(US.peer_id), now_ms=lambda: 0)

    def status(namespace: str) -> int:
        answer = point.answer(PEER.peer_id, pb.RendezvousMessage(register=pb.RendezvousRegister(ns=namespace)))
        assert answer is not None
        return answer.register_response.status

    assert status("x" * 255) == pb.RENDEZVOUS_STATUS_INVALID_SIGNED_PEER_RECORD
    assert status("x" * 256) == status("") == pb.RENDEZVOUS_STATUS_INVALID_NAMESPACE


def test_the_paces_of_1024_peers_are_remembered() -> None:
    async def main() -> None:
        paces = PeerPaces(1, burst=5, longest_wait_s=1)
        for number in range(3000):
            await paces.turn(f"peer{number}")
        assert len(paces._paces) == 1024

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_negotiation_has_16_messages() -> None:
    hello, unknown = b"\x13/multistream/1.0.0\n", b"\x03/x\n"
    assert Listener(["/y"]).receive(hello + 15 * unknown) == 15 * b"\x03na\n"
    listener = Listener(["/y"])
    listener.receive(hello + 15 * unknown)
    with pytest.raises(FrameTooLarge, match="more than 16 messages"):
        listener.receive(unknown)


def test_a_revocation_has_32_kib() -> None:
    world = consortium("a.example")
    with pytest.raises(RevocationInvalid, match="over the limit of 32768 bytes"):
        verify_revocation(b" " * 32_769, world.trust.bundle, now_ms=NOW_MS)
    with pytest.raises(RevocationInvalid) as refused:
        verify_revocation(b" " * 32_768, world.trust.bundle, now_ms=NOW_MS)
    assert "over the limit" not in str(refused.value)


def test_a_reviewer_holds_256_batches_of_one_home(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"full.example": 256, "other.example": 255}
    monkeypatch.setattr("comity_node.storage.journal.count_held", lambda _: held)
    monkeypatch.setattr("comity_node.storage.journal.count_new_tasks", lambda *_: 1)
    monkeypatch.setattr("comity_node.storage.journal.reserved", lambda *_: 0)
    monkeypatch.setattr(reviewer, "quota", lambda *_: None)
    monkeypatch.setattr(reviewer, "check_quota", lambda *_: None)
    check: Any = reviewer.Reviewer._check_room
    check(None, None, None, SimpleNamespace(home="other.example", received_ms=1), ())
    with pytest.raises(Busy, match=r"256 batches of full\.example"):
        check(None, None, None, SimpleNamespace(home="full.example", received_ms=1), ())


def test_a_relay_names_eight_addresses() -> None:
    relay = Address("ip4", "192.0.2.1", 4001, PEER.peer_id)
    answer = Answer(Status.OK, expires_s=1, addresses=(relay,) * 20)
    delimited = Delimited(4096)
    delimited.receive(encode_hop(answer))
    message = delimited.take()
    assert message is not None
    read = decode_hop(message)
    assert isinstance(read, Answer)
    assert len(read.addresses) == 8


def test_a_peer_record_has_8_kib() -> None:
    with pytest.raises(ProtocolError, match="a peer record of 8193 bytes"):
        open_record(bytes(8193))
    with pytest.raises(ProtocolError) as refused:
        open_record(bytes(8192))
    assert "bytes" not in str(refused.value)


def test_a_hello_has_16_addresses() -> None:
    address = "/ip4/8.8.8.8/tcp/1"
    assert len(_checked_addresses([address] * 16, allow_private=False)) == 16
    with pytest.raises(HelloRefused, match="more than 16 addresses"):
        _checked_addresses([address] * 17, allow_private=False)


def test_a_card_has_64_skills_and_64_kib() -> None:
    world = consortium("a.example")
    identity = world.nodes["a.example"]

    def card(skills: int, text: str = "") -> AgentCard:
        return AgentCard(
            SpiffeId("a.example", "agent", "g"), identity.peer_id, "g", text, "1",
            tuple(Skill(f"s{number}", "S", text) for number in range(skills)), (), NOW_MS, NOW_MS + 1000,
        )  # fmt: skip

    sign_card(identity, card(64))
    with pytest.raises(CardInvalid, match="from 1 to 64 skills"):
        sign_card(identity, card(65))
    with pytest.raises(CardInvalid):
        sign_card(identity, card(64, "x" * 1100))
    with pytest.raises(CardInvalid, match="65536"):
        open_card(b" " * 65_537, world.trust, NOW_MS, identity.peer_id)


def test_a_message_is_good_for_five_minutes_at_most() -> None:
    def seal(lifetime_ms: int) -> object:
        return unsigned_message(
            "proposal", b"", audience=PEER.peer_id, message_id=bytes(16), now_ms=1, lifetime_ms=lifetime_ms
        )  # fmt: skip

    seal(300_000)
    with pytest.raises(EnvelopeMalformed, match="300001"):
        seal(300_001)


def manifest(**changes: Any) -> bytes:
    made = BulkManifest(
        id=bytes(16), organization="a.example", to_organization="b.example", dataset="d", kind="synthetic",
        purpose="p", fields=[BulkField(name="x", type="int64")], rows=3, bytes=100_000, chunk_bytes=65_536,
        root=bytes(32), policy_digest=bytes(32), issued_ms=1, expires_ms=2,
    )  # fmt: skip
    fields = changes.pop("columns", 1)
    made.ClearField("fields")
    made.fields.extend(BulkField(name=f"x{number}", type="int64") for number in range(fields))
    for name, value in changes.items():
        setattr(made, name, value)
    return made.SerializeToString()


@pytest.mark.parametrize(
    ("good", "bad", "why"),
    [
        ({"columns": 1000}, {"columns": 1001}, "columns"),
        ({"chunk_bytes": 4 << 20}, {"chunk_bytes": 8 << 20}, "chunk_bytes"),
        ({"bytes": 65_536 * 262_144}, {"bytes": 65_536 * 262_144 + 1}, "262144 chunks"),
        ({"expires_ms": 1 + 30 * 86_400_000}, {"expires_ms": 2 + 30 * 86_400_000}, "30 days"),
    ],
)
def test_a_manifest_keeps_its_bounds(good: dict[str, int], bad: dict[str, int], why: str) -> None:
    parse_manifest(manifest(**good))
    with pytest.raises(EnvelopeMalformed, match=why):
        parse_manifest(manifest(**bad))


def test_a_manifest_is_refused_by_its_length() -> None:
    Receiver().receive_data(encode_frame(Frame.MANIFEST, bytes(100))[:4])
    with pytest.raises(FrameTooLarge):
        Receiver().receive_data((600 * 1024).to_bytes(4, "big") + bytes([Frame.MANIFEST]))


def test_a_batch_of_rows_has_32_mib() -> None:
    sink = io.BytesIO()
    batch = pa.record_batch({"x": pa.array([bytes(33 << 20)], pa.binary())})
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    reader = StreamReader(io.BytesIO(sink.getvalue()).read, (Column("x", "binary"),), 1)
    with pytest.raises(InvalidRecord):
        list(reader.batches())


@pytest.mark.parametrize(
    ("of_one", "others", "refused"), [(99, 0, ""), (100, 0, "100"), (0, 999, ""), (0, 1000, "1000")]
)
def test_agreements_in_force_are_bounded_for_an_organization_and_in_all(of_one: int, others: int, refused: str) -> None:
    def agreed(number: int, initiator: str) -> Any:
        terms = SimpleNamespace(id=f"{initiator}{number}", initiator=initiator, expires_ms=10)
        return SimpleNamespace(terms=terms, digest=b"%d" % number)

    live = [agreed(number, "evil.example") for number in range(of_one)]
    live += [agreed(number, f"o{number // 50}.example") for number in range(others)]
    here: Any = SimpleNamespace(
        _now_ms=lambda: 1, _known=dict(enumerate(SimpleNamespace(agreed=one) for one in live)),
        all=lambda: live, _organization="own.example",
    )  # fmt: skip
    if refused:
        with pytest.raises(Busy, match=f"has {refused} agreements in force"):
            Agreements.check_room(here, agreed(5000, "evil.example"))
    else:
        Agreements.check_room(here, agreed(5000, "evil.example"))


async def a_reading() -> Reading:
    await trio.lowlevel.checkpoint()
    return Reading()


def test_who_asks_for_metrics_has_8_kib_and_five_seconds() -> None:
    async def main() -> None:
        server = MetricsServer("127.0.0.1", 0, a_reading)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                await stream.send_all(b"GET /metrics HTTP/1.1\r\nA: " + b"x" * 7000)
                began = trio.current_time()
                assert await stream.receive_some() == b""
                assert trio.current_time() - began == pytest.approx(5, abs=0.5)
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                await stream.send_all(b"GET /metrics HTTP/1.1\r\nA: " + b"x" * 9000)
                began = trio.current_time()
                try:
                    assert await stream.receive_some() == b""
                except trio.BrokenResourceError:
                    pass
                assert trio.current_time() - began < 1
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0.2))
