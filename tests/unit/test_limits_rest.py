"""Bounds of single parts, by the number: one more is refused, cut off or forgotten."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import combinations, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import ConfigRecord
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node

from comity.digest import canonical_json
from comity.errors import (
    AuditBroken,
    Busy,
    EnvelopeMalformed,
    InvalidRecord,
    PolicyDenied,
    ProtocolError,
    StorageError,
    UnexpectedMessage,
)
from comity.flower import manifest, packing
from comity.signing import PrivateKey, peer_id_to_bytes
from comity.v1.task_pb2 import Receipt
from comity_node.admission.records import RecordGate, Refused, read_fields
from comity_node.discovery import kad
from comity_node.discovery.rendezvous import RENDEZVOUS, RendezvousClient, RendezvousSettings
from comity_node.p2p.v1 import kad_pb2
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Request
from comity_node.policy.obligations import Obligations, apply, merge
from comity_node.protocol import fleet
from comity_node.protocol.kad import Contact
from comity_node.runtime.directory import Directory
from comity_node.storage import bulk, journal, note
from comity_node.storage.connections import connect_writer, create
from comity_node.storage.journal import OutboxRow
from comity_node.transport import dcutr, peer_record
from comity_node.transport.address import parse_address
from comity_node.transport.meeting import Meeting
from comity_node.transport.memory import MemoryNetwork
from comity_node.transport.multiaddr import encode_multiaddr
from comity_node.transport.noise import NoiseHandshake, NoiseIdentity
from comity_node.transport.pace import Pace
from comity_node.transport.upgrade import Upgrader
from comity_node.validators.memory import SeenRows

pytestmark = pytest.mark.invariant("S7")

KEY = PrivateKey(bytes(31) + b"\1")
PEER = PrivateKey(bytes(31) + b"\2")
NOW = 1_700_000_000_000
_POLICY = """version: 1
organization: a.example
datasets:
  d: {classification: internal, schema: d.json}
rules:
  - {id: send, effect: allow, action: record.send, to: {organization: b.example}, data: {dataset: d}}
"""
ADDRESSES = [parse_address(f"/ip4/192.0.2.{number}/tcp/4001") for number in range(1, 60)]


def run(main: Callable[[], Any], clock: trio.abc.Clock | None = None) -> None:
    trio.run(main, clock=clock)


@pytest.fixture
def connection(tmp_path: Path) -> sqlite3.Connection:
    create(tmp_path / "node.db")
    return connect_writer(tmp_path / "node.db", None)


# What Flower's messages carry.


def reply(size: int, links: int) -> ConfigRecord:
    return ConfigRecord({"manifest": bytes(size), "chain": [b"c"] * links})


def test_a_manifest_has_64_kib_and_four_certificates() -> None:
    assert len(manifest.read_manifest(reply(64 * 1024, 4)).chain) == 4
    for size, links in ((64 * 1024 + 1, 4), (100, 5)):
        with pytest.raises(EnvelopeMalformed):
            manifest.read_manifest(reply(size, links))


def test_a_federation_has_a_name_of_128_letters() -> None:
    assert manifest.FederationTerms("f" * 128, "a.example", "0" * 64).federation
    with pytest.raises(EnvelopeMalformed, match="no name"):
        manifest.FederationTerms("f" * 129, "a.example", "0" * 64)


def test_an_update_has_256_mib() -> None:
    class Long(bytes):
        """Bytes that say they are more than they are: nothing has to be allocated to be refused."""

        def __len__(self) -> int:
            return 256 * 1024 * 1024 + 1

    packed = packing.pack({"w": np.zeros(3)})
    assert list(packing.unpack(packed)) == ["w"]
    with pytest.raises(EnvelopeMalformed, match="no packed update"):
        packing.unpack(Long(packed))


def pushed(count: int, key: bytes = b"key") -> fleet.FleetCall:
    one = Message(metadata=Metadata(run_id=1, src_node_id=5, dst_node_id=1, message_type="train", ttl=1.5))
    body = PushMessagesRequest(node=Node(node_id=5), messages_list=[one] * count).SerializeToString()
    return fleet.read_call(fleet.PREFIX + "push-messages", {"flwr-public-key": base64.b64encode(key).decode()}, body)


def test_a_push_has_64_messages_and_a_key_of_1024_bytes() -> None:
    assert pushed(64, bytes(1024)).name == "push-messages"
    with pytest.raises(ProtocolError, match="too many"):
        pushed(65)
    with pytest.raises(ProtocolError, match="holds no key"):
        pushed(1, bytes(1025))


# Records.


def test_a_record_has_256_kib() -> None:
    room = 256 * 1024 - len(canonical_json({"x": ""}))
    assert read_fields(canonical_json({"x": "x" * room}))
    with pytest.raises(InvalidRecord, match="at most 262144"):
        read_fields(canonical_json({"x": "x" * (room + 1)}))


def test_the_records_of_a_batch_have_2_mib_together() -> None:
    schema = SimpleNamespace(check=lambda _: None)
    guard = RecordGate(SimpleNamespace(identity=SimpleNamespace(organization="a")), {})  # type: ignore[arg-type]
    guard.dataset = lambda _: SimpleNamespace(schema=schema, private=None)  # type: ignore[method-assign,assignment,return-value]
    agreed: Any = SimpleNamespace(
        terms=SimpleNamespace(dataset="d", batch_records=256), reviewers=lambda _: frozenset()
    )
    draft: Any = SimpleNamespace(task_id=bytes(16), record=canonical_json({"x": "x" * (8 * 1024)}))
    (refused,) = guard.prepare(agreed, [draft])
    assert isinstance(refused, Refused)
    assert "a batch of such records fits into no message" in refused.detail


# The policy's memory of what it has decided.


def test_a_policy_remembers_4096_kinds_of_records(tmp_path: Path) -> None:
    fields = [f"f{number:02}" for number in range(14)]
    schema = {"version": 1, "fields": {name: {"type": "number"} for name in fields}}
    (tmp_path / "d.json").write_text(json.dumps(schema))
    policy = loads_policy(_POLICY, base=tmp_path)
    shapes = (frozenset(chosen) for size in range(1, 15) for chosen in combinations(fields, size))
    for shape in islice(shapes, 4100):
        assert policy.decide(Request("record.send", "b.example", "", "p", "d", "synthetic", shape)).allowed
    assert len(policy._clear) == 4096


def test_a_common_grid_over_1e9_is_none_and_numbers_end_at_1e300() -> None:
    both = merge(Obligations(generalize={"x": 999_999_937}), Obligations(generalize={"x": 1e9}))
    assert both.redact == {"x"}
    coarse = Obligations(generalize={"x": 5})
    assert apply(coarse, {"x": 9e299})["x"] == pytest.approx(9e299)
    with pytest.raises(PolicyDenied, match="no finite number"):
        apply(coarse, {"x": 2e300})


# Storage.


def message(number: int) -> OutboxRow:
    return OutboxRow(
        message_id=number.to_bytes(16, "big"), organization="b.example", kind="k", body=b"", dedup_key=str(number),
        created_ms=0, expires_ms=1000,
    )  # fmt: skip


def test_10_000_messages_wait_for_one_organization(connection: sqlite3.Connection) -> None:
    with connection:
        for number in range(10_000):
            assert journal.enqueue(connection, message(number))
        with pytest.raises(Busy):
            journal.enqueue(connection, message(10_000))


def test_the_reason_of_a_transfer_has_500_characters(connection: sqlite3.Connection) -> None:
    bulk.put_bulk(
        connection,
        bulk.BulkRow(
            transfer_id=bytes(32), direction="in", organization="a.example", dataset="d", kind="synthetic", purpose="p",
            agreement_digest=b"", root=bytes(32), row_count=1, byte_count=1, manifest=b"m", state="open",
            stored_chunks=0, receipt=b"", reason="", created_ms=0, updated_ms=0, expires_ms=9, retain_until_ms=None,
        ),
    )  # fmt: skip
    bulk.note_broken(connection, bytes(32), "x" * 501, 1)
    (row,) = bulk.find_bulk(connection, "00")
    assert row.reason == "x" * 500


def test_a_note_has_64_kib() -> None:
    signer = note.NoteSigner("log", KEY.public_key, KEY.sign)
    room = 64 * 1024 - len(note.sign_note("\n", signer))
    assert note.note_text(note.sign_note("x" * room + "\n", signer))
    with pytest.raises(AuditBroken, match="too long"):
        note.note_text(note.sign_note("x" * (room + 1) + "\n", signer))


def test_a_reviewer_remembers_64_authors() -> None:
    seen = SeenRows(1)
    for number in range(64):
        seen.add(np.zeros((1, 1)), f"a{number}", ["t"])
    with pytest.raises(StorageError, match="64 authors"):
        seen.add(np.zeros((1, 1)), "one more", ["t"])
    seen.add(np.ones((1, 1)), "a0", ["t2"])
    seen.close()


# What peers say.


def test_a_peer_of_the_provider_table_has_8_addresses() -> None:
    named = kad_pb2.KadPeer(
        id=peer_id_to_bytes(PEER.peer_id),
        addrs=[encode_multiaddr(each) for each in ADDRESSES[:9]],
    )
    settings = kad.KademliaSettings(allow_private=True)
    (contact,) = kad.read_contacts([named], "", settings)
    assert len(contact.addresses) == 8
    many = Contact(PEER.peer_id, tuple(str(each) for each in ADDRESSES[:9]))
    assert len(kad._encode(many).addrs) == 8


def test_a_signed_record_has_32_addresses() -> None:
    assert len(peer_record.open_record(peer_record.sign_record(KEY, 1, ADDRESSES[:33])).addresses) == 32


def test_an_answer_of_a_meeting_point_has_1_mib() -> None:
    async def main() -> None:
        line = MemoryNetwork()
        ours, theirs = line.transport(KEY.peer_id), line.transport(PEER.peer_id)

        async def answer(stream: Any) -> None:
            await stream.send(b"\x81\x80\x40" + bytes(10))  # a length of 1 MiB and a byte
            await trio.sleep_forever()

        theirs.serve(RENDEZVOUS, answer)
        client = RendezvousClient(
            ours, KEY, "comity/c", [Contact(PEER.peer_id, ())], lambda *_: None, now_ms=lambda: NOW,
            settings=RendezvousSettings(),
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            await nursery.start(ours.run)
            await nursery.start(theirs.run)
            with trio.fail_after(5), pytest.raises(ProtocolError, match="1048577"):
                await client.ask(Contact(PEER.peer_id, ()))
            nursery.cancel_scope.cancel()

    run(main, trio.testing.MockClock(autojump_threshold=0))


def test_the_reason_of_a_peer_that_names_nobody_is_cut_to_200_characters() -> None:
    async def ask(*_: Any, **__: Any) -> Receipt:
        return Receipt(status=Receipt.STATUS_REFUSED, reason="x" * 5000)

    around: Any = SimpleNamespace(_messenger=SimpleNamespace(ask=ask), _addresses=list)
    with pytest.raises(UnexpectedMessage) as caught:
        trio.run(Directory.fetch_hints, around, "a.example")
    assert "x" * 200 in str(caught.value)
    assert "x" * 201 not in str(caught.value)


# Connections.


def test_1024_peers_are_remembered_that_no_hole_led_to() -> None:
    async def main() -> None:
        until: OrderedDict[str, float] = OrderedDict()
        for number in range(1025):
            dcutr._note(until, str(number), trio.current_time() + 60)
        assert len(until) == 1024
        assert not dcutr._waits(until, "0")
        assert dcutr._waits(until, "1024")

    run(main, trio.testing.MockClock())


def test_256_peers_are_remembered_that_refused_a_security_protocol() -> None:
    upgrader = Upgrader(KEY, Pace(1, burst=1, longest_wait_s=1), now=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    upgrader._ask_first.extend(str(number) for number in range(257))
    assert len(upgrader._ask_first) == 256


def test_a_handshake_names_32_multiplexers() -> None:
    def agreed(named: list[str]) -> str:
        ours = NoiseIdentity.of(KEY, X25519PrivateKey.generate(), named)
        theirs = NoiseIdentity.of(PEER, X25519PrivateKey.generate(), ["/yamux/1.0.0"])
        dialler, listener = (
            NoiseHandshake(each, initiator=each is ours, ephemeral=X25519PrivateKey.generate())
            for each in (ours, theirs)
        )
        listener.receive(dialler.receive(listener.receive(dialler.start())))
        assert listener.proved is not None
        return listener.proved.muxer

    others = [f"/m{number}" for number in range(32)]
    assert agreed([*others[:31], "/yamux/1.0.0"]) == "/yamux/1.0.0"
    with pytest.raises(ProtocolError, match="none of the multiplexers"):
        agreed([*others, "/yamux/1.0.0"])


def test_8_sockets_at_once_are_tried_where_two_meet() -> None:
    async def main() -> None:
        tried = 0

        async def secure(_: trio.SocketStream) -> None:
            nonlocal tried
            tried += 1
            await trio.sleep_forever()

        with trio.socket.socket() as probe:
            await probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        far = parse_address("/ip4/127.0.0.1/tcp/1")
        meeting = Meeting(port, [far], secure, one_at_a_time=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(meeting.run)
            came = [await _came(port) for _ in range(9)]
            with trio.fail_after(20):
                assert await came[-1].receive_some(1) == b""
            assert tried == 8
            nursery.cancel_scope.cancel()
        for each in came:
            await each.aclose()

    run(main)


async def _came(port: int) -> trio.SocketStream:
    with trio.fail_after(20):
        while True:
            try:
                return await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.lowlevel.checkpoint()
