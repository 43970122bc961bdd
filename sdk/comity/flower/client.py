"""The member's side: nothing of an update leaves before the member's own node has released it.

    app = ClientApp()

    @app.train(mods=[comity_mod(server="mercy.example")])
    def train(message, context): ...

The mod must be the first of the list (the outermost): what it signs is what leaves. Mods that change the arrays,
such as local differential privacy, come after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod

from comity.client import Client, ReleasedUpdate
from comity.errors import ComityError, ConfigError, ControlError, EnvelopeMalformed, PolicyDenied
from comity.flower import packing
from comity.flower.manifest import (
    MANIFEST_RECORD,
    array_record,
    manifest_record,
    pack_record,
    packed_bytes,
    packed_record,
    read_terms,
)

PRIVATE_EXAMPLES = "private-examples"
CERTIFIED_EXAMPLES = "certified-examples"
#: The weight that Flower's own strategies look for.
EXAMPLES = "num-examples"
#: Flower's code for a mod that refuses to go on (`flwr.common.constant.ErrorCode.MOD_FAILED_PRECONDITION`).
REFUSED = 6
#: The organization whose server a member trains for; the mod's argument goes before the environment.
SERVER_VARIABLE = "COMITY_FLOWER_SERVER"


class ReleasingNode(Protocol):
    """What the mod needs of the member's node; `comity.client.Client` is one."""

    def release_update(
        self,
        *,
        to_organization: str,
        agreement: str,
        federation: str,
        round_number: int,
        update_digest: bytes,
        private_examples: int,
        certified_examples: int,
    ) -> ReleasedUpdate:
        """Decide by policy, write the audit entry, sign the manifest; raise a ComityError if it may not leave."""


_Record = TypeVar("_Record", ArrayRecord, ConfigRecord, MetricRecord)
Connect = Callable[[], AbstractContextManager[ReleasingNode]]


def comity_mod(connect: Connect = Client, *, server: str | None = None) -> Mod:
    """Return a mod that lets the member's node decide about every update, and sign it.

    It unpacks the arrays for the app, packs those of the app's reply, and asks the node to release them. The reply's
    metrics must hold `private-examples` and `certified-examples`, how many rows of each the app trained on. Nothing
    else of the app's reply leaves: other metrics and records are not what the node decided about.

    Args:
        connect: opens a client of the member's own node; by default the one that COMITY_CONTROL names.
        server: the only organization that updates may go to; by default what COMITY_FLOWER_SERVER says. It is
            the member's word against the server's: a train message that names another one is refused.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        try:
            return _train(message, context, call_next, connect, server)
        except ComityError as error:
            return Message(Error(code=REFUSED, reason=_reason(error)), reply_to=message)

    return mod


def _train(
    message: Message, context: Context, call_next: ClientAppCallable, connect: Connect, server: str | None
) -> Message:
    expected = server or os.environ.get(SERVER_VARIABLE, "")
    if not expected:
        raise ConfigError(f"comity_mod needs `server`, or {SERVER_VARIABLE} in the environment")
    terms, server_round = read_terms(_only(message, ConfigRecord))
    if terms.organization != expected:
        raise PolicyDenied(f"the update was asked for by {terms.organization}, this member trains for {expected}")
    key = _only_key(message, ArrayRecord)
    message.content[key] = array_record(packing.unpack(packed_bytes(message.content.array_records[key])))
    reply = call_next(message, context)
    if not reply.has_content():
        return reply
    metrics, key = _only(reply, MetricRecord), _only_key(reply, ArrayRecord)
    private, certified = _count(metrics, PRIVATE_EXAMPLES), _count(metrics, CERTIFIED_EXAMPLES)
    packed = pack_record(reply.content.array_records[key])
    with connect() as node:
        signed = node.release_update(
            to_organization=terms.organization,
            agreement=terms.agreement_digest,
            federation=terms.federation,
            round_number=server_round,
            update_digest=packing.digest(packed),
            private_examples=private,
            certified_examples=certified,
        )
    counts = {EXAMPLES: private + certified, PRIVATE_EXAMPLES: private, CERTIFIED_EXAMPLES: certified}
    records = {key: packed_record(packed), "metrics": MetricRecord(counts), MANIFEST_RECORD: manifest_record(signed)}
    return Message(RecordDict(records), reply_to=message)


def _reason(error: ComityError) -> str:
    known = error.rules if isinstance(error, PolicyDenied | ControlError) else ()
    rules = f" (rules: {', '.join(known)})" if known else ""
    return f"{error.code}: {error.diagnostics()}{rules}"


def _only_key(message: Message, kind: type) -> str:
    keys = [key for key, record in message.content.items() if isinstance(record, kind)]
    if len(keys) != 1:
        raise EnvelopeMalformed(f"a message of a round holds one {kind.__name__}, this one has {len(keys)}")
    return str(keys[0])


def _only(message: Message, kind: type[_Record]) -> _Record:
    record = message.content[_only_key(message, kind)]
    assert isinstance(record, kind)
    return record


def _count(metrics: MetricRecord, name: str) -> int:
    value = metrics.get(name)
    if type(value) is not int or value < 0:
        raise EnvelopeMalformed(f"the reply's metrics need {name!r}: how many rows of that kind were trained on")
    return value
