"""Records on their way through the gate: drafts, refusals, and what is looked at in one or in a batch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comity.agreement import Agreed
from comity.digest import canonical_json
from comity.errors import InvalidRecord, PolicyDenied
from comity.v1.task_pb2 import Task
from comity_node.policy import obligations as duties
from comity_node.policy.model import Obligations
from comity_node.validators.distance import PrivateReference
from comity_node.validators.schema import Schema

Fields = Mapping[str, Any]
_MAX_RECORD_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a node knows about one of its datasets: the schema, and the private rows to keep away from."""

    schema: Schema
    private: PrivateReference | None


@dataclass(frozen=True, slots=True)
class Draft:
    """A record on its way out: `history` is oldest first and grows with each hop.

    `journey` is SHA-256 of the last hop of the way on which it was made, if its agreement has a flow.
    """

    task_id: bytes
    revision: int
    record: bytes
    history: tuple[bytes, ...] = ()
    journey: bytes = b""


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that may not leave, and the rules that say so.

    `until_ms` is the deadline of an approval that it waits for: until then it is not refused for good.
    """

    task_id: bytes
    reason: str
    rules: tuple[str, ...]
    detail: str = ""
    until_ms: int = 0

    @property
    def label(self) -> str:
        """Who said no, in few words: what refusals are counted by."""
        return f"{', '.join(self.rules)}: {self.reason}" if self.rules else self.reason


def read_fields(record: bytes) -> dict[str, Any]:
    """Parse a record's bytes.

    Raises:
        InvalidRecord: it is not a JSON object in canonical form, or larger than 256 KiB.
    """
    if len(record) > _MAX_RECORD_BYTES:
        raise InvalidRecord(f"a record of {len(record)} bytes; at most {_MAX_RECORD_BYTES}")
    try:
        fields = json.loads(record)
        canonical = canonical_json(fields)
    except (ValueError, RecursionError) as error:
        raise InvalidRecord("a record is not JSON") from error
    if not isinstance(fields, dict) or canonical != record:
        raise InvalidRecord("a record is not a JSON object in RFC 8785 form")
    return fields


def check_flat(schema: Schema, fields: Fields) -> None:
    """Refuse a record with names that the schema does not have, or with values inside values.

    What policy and obligations are asked about it costs names times paths: this comes before them.

    Raises:
        InvalidRecord: it is such a record.
    """
    for name, value in fields.items():
        if name not in schema.fields:
            raise InvalidRecord(f"{name[:80]!r} is no field of the schema")
        if isinstance(value, dict | list):
            raise InvalidRecord(f"{name!r} holds no single value")


def to_task(agreed: Agreed, home: str, draft: Draft) -> Task:
    """Return the message in which a record travels."""
    return Task(
        id=draft.task_id,
        agreement_digest=agreed.digest,
        home=home,
        revision=draft.revision,
        record=draft.record,
        hops=draft.history,
    )


def problem(schema: Schema, owed: Obligations, fields: Fields) -> str:
    """Return why a record in the form that is owed does not fit its schema; "" if it does.

    What was masked or hashed is text; `duties.verify` looks at that.
    """
    texts = owed.hash | owed.mask.keys()
    kept = {name: value for name, value in fields.items() if name not in texts} if texts else fields
    return schema.without(owed.redact | texts).problem(kept)


#: What the other side alone can do, or others later: an agreement has to bind it to that.
OF_OTHERS = ("retain_ms", "expire_ms", "onward", "review")
#: Of these, what somebody who takes a record cannot do by itself.
OF_REVIEWS = ("review",)
_WORDS = {"retain_ms": "retain", "expire_ms": "expire"}


def check_promised(agreed: Agreed, asked: Obligations, names: Sequence[str]) -> None:
    """Check that an agreement binds everybody to what a rule asks of others.

    Raises:
        PolicyDenied: it asks for less than the rule does.
    """
    promised = duties.from_terms(agreed.terms.obligations, agreed.terms.review)
    for name in names:
        if not duties.covers(promised, replace(Obligations(), **{name: getattr(asked, name)})):
            word = _WORDS.get(name, name)
            raise PolicyDenied(
                f"the rule asks for {word}, and agreement {agreed.digest.hex()[:12]} for less: ask for it in the rules"
                " for agreement.offer and agreement.accept too, and negotiate anew"
            )


def of_batches(owed: Obligations) -> Obligations:
    """Return what is owed by a batch as a whole."""
    return Obligations(k_anonymity=owed.k_anonymity)


def together(owed: Obligations, drafts: Sequence[Draft | Refused]) -> list[Draft | Refused]:
    """Refuse the drafts that too few others of the batch are like."""
    anonymity = owed.k_anonymity
    if anonymity is None:
        return list(drafts)
    places = [place for place, one in enumerate(drafts) if isinstance(one, Draft)]
    rows = [read_fields(one.record) for one in drafts if isinstance(one, Draft)]
    rare = {places[row] for row in duties.too_rare(of_batches(owed), rows)}
    why = f"fewer than {anonymity.k} rows of the batch have its values of {', '.join(sorted(anonymity.fields))}"
    return [Refused(one.task_id, "k_anonymity", (), why) if place in rare else one for place, one in enumerate(drafts)]
