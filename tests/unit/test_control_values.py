"""Messages of the control API as values: each field under its own name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from comity import client
from comity._control.values import read_value
from comity.v1 import control_pb2 as pb

#: Each value with its message, and what is not read from it as it is.
VALUES: list[tuple[Any, type[Message], dict[str, object]]] = [
    (client.Status, pb.GetStatusResponse, {"loads": (), "router": ()}),
    (client.SkillLoad, pb.SkillLoad, {}),
    (client.RouterPeer, pb.RouterPeer, {}),
    (client.Peer, pb.Peer, {}),
    (client.AgentInfo, pb.Agent, {}),
    (client.RevokedCertificate, pb.RevokeCertificateResponse, {}),
    (client.Reloaded, pb.ReloadResponse, {}),
    (client.Workflow, pb.Workflow, {"steps": ()}),
    (client.NegotiationStep, pb.NegotiationStep, {}),
    (client.AgreementInfo, pb.AgreementInfo, {"withdrawals": (), "document": b"whole"}),
    (client.AgreementEnd, pb.AgreementEnd, {}),
    (client.BulkProgress, pb.SendBulkResponse, {}),
    (client.BulkTransfer, pb.BulkTransfer, {}),
    (client.WatchedDecision, pb.WatchedDecision, {}),
    (client.Approval, pb.Approval, {}),
    (client.Notice, pb.Notice, {}),
    (client.ReleasedUpdate, pb.ReleaseUpdateResponse, {}),
    (client.Admission, pb.AdmitUpdateResponse, {}),
]


def _sample(field: Any, number: int) -> object:
    text = f"{field.name} {number}"
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return text
        case FieldDescriptor.TYPE_BYTES:
            return text.encode()
        case FieldDescriptor.TYPE_BOOL:
            return True
        case _:
            return field.number * 100 + number


def _fill(message: Message, others: dict[str, object]) -> dict[str, object]:
    """Give each field another value; returns what the value of the message must have."""
    expected = dict(others)
    for field in message.DESCRIPTOR.fields:
        if field.name in others:
            continue
        held = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            held.update({"one": 1, "two": 2})
            expected[field.name] = {"one": 1, "two": 2}
        elif field.is_repeated:
            held.extend([_sample(field, 1), _sample(field, 2)])
            expected[field.name] = (_sample(field, 1), _sample(field, 2))
        else:
            setattr(message, field.name, _sample(field, 1))
            expected[field.name] = _sample(field, 1)
    return expected


@pytest.mark.parametrize(("kind", "of", "others"), VALUES, ids=[kind.__name__ for kind, _, _ in VALUES])
def test_a_value_has_what_its_message_says(kind: Any, of: type[Message], others: dict[str, object]) -> None:
    message = of()
    expected = _fill(message, others)
    value = read_value(kind, message, **others)
    names = {each.name for each in fields(kind)}
    assert {name: getattr(value, name) for name in names} == {name: expected[name] for name in names}
    assert type(value) is kind


def test_what_a_message_does_not_have_is_no_empty_value() -> None:
    with pytest.raises(AttributeError):
        read_value(client.Approval, pb.Notice())
