"""What messages may hold, by the number: one more is refused, or cut off."""

from __future__ import annotations

import io
import random
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest
import trio
import trio.testing
from zeroconf import ServiceStateChange

from comity.errors import (
    AgentFailed,
    ConfigError,
    EnvelopeMalformed,
    FrameTooLarge,
    InvalidRecord,
    ProtocolError,
    UnexpectedMessage,
)
from comity.v1 import link_pb2
from comity.v1.agreement_pb2 import Obligations, ProposalAnswer
from comity.v1.bulk_pb2 import BulkField, BulkManifest, BulkRefusal
from comity.v1.link_pb2 import PeerHint, PeersReply
from comity.v1.task_pb2 import Receipt, ReviewDelivery, ReviewedTask
from comity_node.bulk.ipc import StreamReader
from comity_node.discovery import mdns
from comity_node.p2p.v1.identify_pb2 import Identify
from comity_node.p2p.v1.pubsub_pb2 import PubSubRpc
from comity_node.protocol.bulk import Frame, Sender
from comity_node.protocol.bulk_events import Declined
from comity_node.protocol.bulk_manifest import Column, Geometry, parse_manifest
from comity_node.protocol.framing import encode_frame
from comity_node.protocol.gossip import GossipRouter, Validate, Verdict
from comity_node.protocol.gossip_params import GossipLimits, GossipParams
from comity_node.protocol.gossip_rpc import Rpc, decode_rpc
from comity_node.protocol.negotiation import Rejected
from comity_node.protocol.session_codec import read_error, read_verdict, write_error
from comity_node.runtime.answers import check_answer
from comity_node.runtime.ballots import BallotBox
from comity_node.runtime.directory import Directory
from comity_node.runtime.messenger import _parse_receipt
from comity_node.runtime.negotiator import Negotiator
from comity_node.runtime.outbox import Outbox
from comity_node.runtime.updates import _check_name
from comity_node.transport.address import Address, parse_address
from comity_node.transport.dial import _resolve
from comity_node.transport.identify import decode_identity
from comity_node.transport.multiaddr import decode_multiaddr
from comity_node.transport.varint import decode_varint
from kit.gossipnet import TOPIC, unsigned

pytestmark = pytest.mark.invariant("S7")


# Addresses and discovery.


def test_eight_addresses_of_a_name_are_dialled() -> None:
    class ManyAddresses(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
            await trio.lowlevel.checkpoint()
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{number}", 1)) for number in range(1, 200)]

        async def getnameinfo(self, *_: Any) -> Any:
            raise NotImplementedError

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(ManyAddresses())
        assert len(await _resolve(Address("dns4", "many.example", 4001))) == 8

    trio.run(main)


def test_64_names_seen_on_the_local_network_wait_to_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Callable[..., None]] = []
    monkeypatch.setattr(mdns, "ServiceBrowser", lambda *_, handlers: seen.extend(handlers))

    async def main() -> None:
        browser = mdns.Mdns("me", list, lambda _: None, random_bytes=bytes)
        names = browser._browse(SimpleNamespace())  # type: ignore[arg-type]
        for number in range(1000):
            seen[0](name=f"x{number}.{mdns.SERVICE}", state_change=ServiceStateChange.Added)
        await trio.testing.wait_all_tasks_blocked()
        assert names.statistics().current_buffer_used == 64

    trio.run(main)


def test_16_senders_of_a_message_pay_for_it_when_it_is_rejected() -> None:
    router = GossipRouter(b"own", random.Random(1), GossipParams(limits=GossipLimits()), verify=lambda _: None)
    router.subscribe(TOPIC, 1)
    peers = [b"p%02d" % number for number in range(40)]
    message = unsigned(b"author", 1)
    for peer in peers:
        router.add_peer(peer, 1, outbound=False)
        router.receive(peer, Rpc(subscriptions=((TOPIC, True),)), 1)
        actions = router.receive(peer, Rpc(messages=(message,)), 1)
        assert any(isinstance(action, Validate) for action in actions) == (peer == peers[0])
    router.judge(message.id, Verdict.REJECT)
    assert [router.score(peer, 1) < 0 for peer in peers] == [True] * 16 + [False] * 24


def test_an_address_has_420_characters_and_512_bytes() -> None:
    def of(length: int) -> str:
        return "/dns4/" + "a" * (length - 14) + "/tcp/443"

    assert len(of(420)) == 420
    for length, longer in ((420, False), (421, True)):
        with pytest.raises(ConfigError) as refused:
            parse_address(of(length))
        assert ("longer than 420" in str(refused.value)) is longer
    with pytest.raises(ProtocolError, match="an address of 513 bytes"):
        decode_multiaddr(bytes(513))
    with pytest.raises(ProtocolError) as fits:
        decode_multiaddr(bytes(512))
    assert "bytes" not in str(fits.value)


def test_a_varint_has_five_bytes() -> None:
    assert decode_varint(b"\xff\xff\xff\xff\x0f", 0) == (2**32 - 1, 5)
    with pytest.raises(ProtocolError, match="longer than 5 bytes"):
        decode_varint(b"\xff\xff\xff\xff\xff\x01", 0)


# Messages of small protocols.


def test_what_is_kept_of_an_error_or_a_verdict_is_short() -> None:
    error = read_error(write_error(1, "c" * 900, "\u20ac" * 900, 0))
    assert (error.code, error.text) == ("c" * 64, "\u20ac" * 512)
    code, reason = read_verdict(link_pb2.HelloAnswer(code="c" * 900, reason="r" * 900).SerializeToString())
    assert (len(code), len(reason)) == (64, 512)


def test_what_is_kept_of_a_refused_transfer_is_short() -> None:
    sender = Sender(Geometry(100_000, 65_536))
    sender.offer(b"manifest")
    refusal = BulkRefusal(code="c" * 900, reason="r" * 900, rules=["x" * 200] * 20)
    [refused] = sender.receive_data(encode_frame(Frame.REFUSAL, refusal.SerializeToString()))
    assert isinstance(refused, Declined)
    assert (len(refused.code), len(refused.reason)) == (64, 512)
    assert [len(rule) for rule in refused.rules] == [128] * 16


def test_a_refusal_of_a_transfer_has_8_kib() -> None:
    sender = Sender(Geometry(100_000, 65_536))
    sender.offer(b"manifest")
    with pytest.raises(FrameTooLarge):
        sender.receive_data((9 * 1024).to_bytes(4, "big") + bytes([Frame.REFUSAL]))


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"dataset": "d" * 128}, {"dataset": "d" * 129}),
        ({"purpose": "p" * 128}, {"purpose": "p" * 129}),
        ({"rows": 2**48}, {"rows": 2**48 + 1}),
        ({"fields": [BulkField(name="n" * 256, type="int64")]}, {"fields": [BulkField(name="n" * 257, type="int64")]}),
        ({"obligations": Obligations(redact=["a"] * 1000)}, {"obligations": Obligations(redact=["a"] * 1001)}),
        ({"obligations": Obligations(redact=["a" * 256])}, {"obligations": Obligations(redact=["a" * 257])}),
    ],
)
def test_a_manifests_texts_and_paths_are_bounded(good: dict[str, Any], bad: dict[str, Any]) -> None:
    parse_manifest(manifest(**good))
    with pytest.raises(EnvelopeMalformed):
        parse_manifest(manifest(**bad))


def manifest(**values: Any) -> bytes:
    fields: dict[str, Any] = {
        "id": bytes(16),
        "organization": "a.example",
        "to_organization": "b.example",
        "dataset": "d",
        "kind": "synthetic",
        "purpose": "p",
        "fields": [BulkField(name="x", type="int64")],
        "rows": 3,
        "bytes": 100_000,
        "chunk_bytes": 65_536,
        "root": bytes(32),
        "policy_digest": bytes(32),
        "issued_ms": 1,
        "expires_ms": 2,
    }
    return BulkManifest(**{**fields, **values}).SerializeToString()


def test_names_of_what_a_peer_can_do_have_128_characters() -> None:
    message = Identify(agent_version="a" * 900, protocols=["/" + "p" * 900])
    identity = decode_identity(message.SerializeToString())
    assert len(identity.agent) == 128
    assert [len(name) for name in identity.protocols] == [128]


def test_ids_in_gossip_have_128_bytes() -> None:
    wire = PubSubRpc()
    have = wire.control.ihave.add(topic_id=TOPIC)
    have.message_ids.extend([b"i" * 128, b"i" * 129])
    for author in (b"a" * 128, b"a" * 129):
        wire.publish.add(author=author, data=b"d", seqno=bytes(8), topic=TOPIC, signature=bytes(64))
    rpc = decode_rpc(wire.SerializeToString(), GossipLimits())
    assert [len(one) for have in rpc.ihave for one in have.ids] == [128]
    assert [len(message.author) for message in rpc.messages] == [128]


# Work for others.


def test_what_is_kept_of_a_receipt_is_short() -> None:
    receipt = Receipt(code="c" * 2000, reason="r" * 2000, rules=["x" * 2000] * 100)
    kept = _parse_receipt(receipt.SerializeToString())
    assert (len(kept.code), len(kept.reason)) == (64, 512)
    assert [len(rule) for rule in kept.rules] == [128] * 16


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"feedback": ["x"] * 16}, {"feedback": ["x"] * 17}),
        ({"feedback": ["x" * 1024]}, {"feedback": ["x" * 1025]}),
        ({"axes": {f"a{number}": 1 for number in range(64)}}, {"axes": {f"a{number}": 1 for number in range(65)}}),
        ({"axes": {"a" * 128: 1}}, {"axes": {"a" * 129: 1}}),
        ({"validator": "v" * 8192}, {"validator": "v" * 8193}),
    ],
)
def test_a_review_is_of_bounded_size(good: dict[str, Any], bad: dict[str, Any]) -> None:
    def answer(validator: str = "v", **review: Any) -> dict[str, Any]:
        return {"validator": validator, "reviews": [{"score": 1, **review}]}

    check_answer(answer(**good), 1)
    with pytest.raises(AgentFailed):
        check_answer(answer(**bad), 1)


def test_a_home_takes_256_reviews_at_a_time_and_keeps_32_short_notes_of_each() -> None:
    kept: list[Any] = []

    async def nothing(*_: object) -> None:
        await trio.lowlevel.checkpoint()

    async def transact(write: Callable[[Any], object]) -> object:
        await trio.lowlevel.checkpoint()
        return write(None)

    def keep(_: object, batch: bytes, checked: object, feedback: list[tuple[str, ...]], *__: object) -> None:
        kept.extend(feedback)

    terms = SimpleNamespace(purpose="p", dataset="d", review=SimpleNamespace(panel=0))
    agreed = SimpleNamespace(terms=terms, digest=b"d", panel=lambda *_: frozenset())
    box: Any = SimpleNamespace(
        _me="me", _sealing=SimpleNamespace(check_shown=nothing),
        _check=lambda *_: [SimpleNamespace(review=SimpleNamespace(agreement_digest=b"d"))],
        _agreements=SimpleNamespace(get=lambda _: agreed), _check_eligible=lambda *_: None, _keep=keep,
        _gate=SimpleNamespace(demand=nothing, now_ms=lambda: 1), _database=SimpleNamespace(transact=transact),
        _news=lambda _: None,
    )  # fmt: skip
    sender: Any = SimpleNamespace(organization="a.example")

    def deliver(reviews: int, feedback: list[str]) -> None:
        delivery = ReviewDelivery(batch_id=b"b", reviews=[ReviewedTask(feedback=feedback)] * reviews)
        trio.run(BallotBox._on_reviews, box, sender, delivery.SerializeToString())

    deliver(256, ["x" * 1000] * 100)
    assert len(kept) == 256
    assert [len(note) for note in kept[0]] == [256] * 32
    with pytest.raises(UnexpectedMessage, match="257 reviews"):
        deliver(257, [])


def test_an_answer_has_1000_hints_and_so_many_are_taken() -> None:
    hints = [PeerHint(peer_id=str(number)) for number in range(3000)]

    async def nothing(*_: object) -> None:
        await trio.lowlevel.checkpoint()

    async def ask(*_: object, **__: object) -> Receipt:
        await trio.lowlevel.checkpoint()
        body = PeersReply(peers=hints).SerializeToString()
        return Receipt(status=Receipt.STATUS_ACCEPTED, body=body)

    here: Any = SimpleNamespace(
        _gate=SimpleNamespace(demand=nothing),
        _hints=lambda: hints,
        _told=lambda *_: None,
        _addresses=list,
        _messenger=SimpleNamespace(ask=ask),
    )
    sender: Any = SimpleNamespace(organization="a.example", peer_id="me")
    said = trio.run(Directory._on_peers, here, sender, b"")
    assert len(PeersReply.FromString(said.body).peers) == 1000
    assert len(trio.run(Directory.fetch_hints, here, "a.example")) == 1000


@pytest.mark.parametrize(("attempts", "told_ms", "waits_ms"), [(50, 0, 15_000), (0, 10**9, 600_000)])
def test_what_is_not_taken_waits_15_s_at_most_or_as_long_as_told_up_to_ten_minutes(
    attempts: int, told_ms: int, waits_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    until: list[int] = []

    async def transact(write: Callable[[Any], None]) -> None:
        await trio.lowlevel.checkpoint()
        write(None)

    monkeypatch.setattr("comity_node.storage.journal.mark_sent", lambda *_, retry_at_ms: until.append(retry_at_ms))
    monkeypatch.setattr("comity_node.storage.journal.defer", lambda *_, until_ms, reason: until.append(until_ms))
    outbox: Any = SimpleNamespace(
        _random=SimpleNamespace(uniform=lambda low, high: high), _database=SimpleNamespace(transact=transact),
        _now_ms=lambda: 7,
    )  # fmt: skip
    item: Any = SimpleNamespace(attempts=attempts, kind="k", organization="a.example", message_id=b"")
    trio.run(Outbox._later, outbox, item, "busy", told_ms)
    assert until == [7 + waits_ms] * 2


def test_a_federations_name_has_128_characters() -> None:
    _check_name("f" * 128)
    with pytest.raises(UnexpectedMessage, match="128 characters"):
        _check_name("f" * 129)


def test_a_batch_of_rows_has_a_million() -> None:
    def read(rows: int) -> int:
        sink = io.BytesIO()
        batch = pa.record_batch({"x": pa.nulls(rows)})
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        reader = StreamReader(io.BytesIO(sink.getvalue()).read, (Column("x", "null"),), rows)
        return sum(each.num_rows for each in reader.batches())

    assert read(1 << 20) == 1 << 20
    with pytest.raises(InvalidRecord, match="more than is taken"):
        read((1 << 20) + 1)


def test_what_is_kept_of_a_refusal_of_terms_is_short() -> None:
    answer = ProposalAnswer()
    answer.reject.reason = "r" * 2000
    answer.reject.rules.extend(["x"] * 100)
    here: Any = SimpleNamespace()
    rejected = Negotiator._read_answer(here, here, answer)
    assert isinstance(rejected, Rejected)
    assert (len(rejected.reason), len(rejected.rules)) == (512, 16)
