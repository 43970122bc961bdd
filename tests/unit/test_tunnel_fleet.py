"""Which calls of Flower's Fleet API pass, and as whom a peer may make them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from hypothesis import given
from hypothesis import strategies as st

from comity.errors import PolicyDenied, ProtocolError
from comity_node.protocol.fleet import CALLS, PREFIX, FleetCall, Pins, read_call

KEY = b"a public key"
HEADERS = {"flwr-public-key": base64.b64encode(KEY).decode()}
NODE_ID = 2**63 + 5
NODE = Node(node_id=NODE_ID)


def pushed(source: int = NODE_ID, node: int = NODE_ID) -> bytes:
    message = Message(metadata=Metadata(run_id=1, src_node_id=source, dst_node_id=1, message_type="train", ttl=1.5))
    return bytes(
        PushMessagesRequest(
            node=Node(node_id=node),
            messages_list=[message],
            message_object_trees=[ObjectTree(object_id="x", children=[ObjectTree(object_id="y")])],
            clientapp_runtime_list=[0.5],
        ).SerializeToString()
    )


BODIES = {
    "register-node": RegisterNodeFleetRequest(public_key=KEY),
    "activate-node": ActivateNodeRequest(public_key=KEY, heartbeat_interval=30),
    "deactivate-node": DeactivateNodeRequest(node_id=NODE_ID),
    "unregister-node": UnregisterNodeFleetRequest(node_id=NODE_ID),
    "send-node-heartbeat": SendNodeHeartbeatRequest(node=NODE, heartbeat_interval=30),
    "pull-messages": PullMessagesRequest(node=NODE),
    "push-messages": PushMessagesRequest.FromString(pushed()),
    "get-run": GetRunRequest(node=NODE, run_id=1),
    "get-fab": GetFabRequest(node=NODE, hash_str="ab", run_id=1),
    "push-object": PushObjectRequest(node=NODE, run_id=1, object_id="o", object_content=bytes(1000), session_id="s"),
    "pull-object": PullObjectRequest(node=NODE, run_id=1, object_id="o"),
    "confirm-message-received": ConfirmMessageReceivedRequest(node=NODE, run_id=1, message_object_id="o"),
}


def call(name: str, body: bytes, headers: dict[str, str] | None = None) -> FleetCall:
    return read_call(PREFIX + name, HEADERS if headers is None else headers, body)


def test_the_calls_are_those_of_the_installed_flower() -> None:
    installed = {path for method, path in PROTOBUF_REQUEST_TYPES if method == "POST" and path.startswith(PREFIX)}
    assert installed == {PREFIX + name for name in CALLS}
    assert set(BODIES) == CALLS
    for name, body in BODIES.items():
        assert PROTOBUF_REQUEST_TYPES["POST", PREFIX + name] is type(body)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_every_call_of_a_supernode_is_read(name: str) -> None:
    found = call(name, BODIES[name].SerializeToString(deterministic=True))
    by_key = name in ("register-node", "activate-node")
    assert found == FleetCall(name, KEY, None if by_key else NODE_ID, "ab" if name == "get-fab" else "")


@pytest.mark.parametrize("path", sorted(path for _, path in PROTOBUF_REQUEST_TYPES if not path.startswith(PREFIX)))
def test_no_call_of_the_other_apis_is_one(path: str) -> None:
    with pytest.raises(PolicyDenied):
        read_call(path, HEADERS, b"")


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("register-node", RegisterNodeFleetRequest(public_key=b"another").SerializeToString()),
        ("register-node", b""),
        ("register-node", b"\x08\x01"),
        ("register-node", 2 * RegisterNodeFleetRequest(public_key=KEY).SerializeToString()),
        ("deactivate-node", b"\x08\x01\x08\x02"),
        ("pull-messages", b""),
        ("pull-messages", b"\x0a\x00"),
        ("pull-messages", b"\x0a\x02\x08\x01\x0a\x02\x08\x02"),
        ("pull-messages", b"\x0a\x04\x08\x01\x08\x02"),
        ("pull-messages", b"\x0a\x05\x08\x01"),
        ("pull-messages", b"\x0b\x08\x01\x0c"),
        ("pull-messages", b"\x0a\x0b\x08" + b"\xff" * 10),
        ("pull-messages", b"\x0a\x0b\x08" + b"\xff" * 9 + b"\x7f"),
        ("pull-messages", b"\x02\x00"),
        ("pull-messages", b"\x0a\x02\x08\x01\xff\xff\xff\xff\xff\x01\x00"),
        ("push-messages", pushed(source=7)),
        ("push-messages", pushed(node=7)),
        ("push-messages", PushMessagesRequest(node=NODE).SerializeToString()),
        ("push-messages", pushed() + b"\x12\x00"),
        ("push-messages", pushed() + b"\x10\x01"),
        ("get-fab", GetFabRequest(node=NODE, run_id=1).SerializeToString()),
        ("get-fab", b"\x0a\x02\x08\x01\x12\x01\xff"),
    ],
)
def test_a_body_with_two_readings_or_a_false_source_is_refused(name: str, body: bytes) -> None:
    with pytest.raises(ProtocolError):
        call(name, body)


@pytest.mark.parametrize("headers", [{}, {"flwr-public-key": "not base64!"}, {"flwr-public-key": ""}])
def test_a_call_without_a_key_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ProtocolError):
        call("pull-messages", BODIES["pull-messages"].SerializeToString(), headers)


@given(st.sampled_from(sorted(CALLS)), st.binary(max_size=60))
def test_what_passes_means_the_same_to_protobuf(name: str, body: bytes) -> None:
    try:
        found = call(name, body)
    except ProtocolError:
        return
    message: Any = type(BODIES[name]).FromString(body)
    assert found.node_id in (None, getattr(message, "node_id", None) or message.node.node_id)


@given(node=st.integers(0, 2**64 - 1), source=st.integers(0, 2**64 - 1))
def test_a_pushed_message_comes_from_its_node(node: int, source: int) -> None:
    body = pushed(source=source, node=node)
    if node == source and node:
        assert call("push-messages", body).node_id == node
    else:
        with pytest.raises(ProtocolError):
            call("push-messages", body)


def named(name: str, key: bytes) -> FleetCall:
    return FleetCall(name, key, None, "")


REGISTER: Callable[[bytes], FleetCall] = lambda key: named("register-node", key)  # noqa: E731


@pytest.mark.invariant("S5")
def test_a_peer_acts_only_as_the_node_it_registered() -> None:
    pins = Pins()
    assert pins.check("a", REGISTER(b"1"))
    assert not pins.check("a", named("pull-messages", b"1"))
    assert pins.check("b", REGISTER(b"2"))
    for peer, key in (("a", b"2"), ("b", b"1"), ("b", b"3"), ("c", b"1"), ("c", b"9")):
        with pytest.raises(PolicyDenied):
            pins.check(peer, named("pull-messages", key))
    with pytest.raises(PolicyDenied):
        pins.check("b", REGISTER(b"1"))


def test_a_restarted_node_registers_again_and_its_old_key_is_dead() -> None:
    pins = Pins(registrations=2)
    pins.check("a", REGISTER(b"1"))
    assert pins.check("a", REGISTER(b"2"))
    for stale in (REGISTER(b"1"), named("pull-messages", b"1")):
        with pytest.raises(PolicyDenied):
            pins.check("a", stale)
    with pytest.raises(PolicyDenied, match="2 Flower nodes"):
        pins.check("a", REGISTER(b"3"))
    assert not pins.check("a", named("pull-messages", b"2"))


def test_a_node_that_its_organization_registered_by_hand_is_pinned_when_it_is_activated() -> None:
    pins = Pins()
    assert pins.check("a", named("activate-node", b"1"))
    with pytest.raises(PolicyDenied):
        pins.check("a", named("activate-node", b"2"))
