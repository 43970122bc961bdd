"""Hops: the signed history that travels with a task.

Each hop is signed by the node that let the task pass and commits to the hop before it, so that none can be left out,
reordered or put into another task's history. Whoever holds a prefix of the history can check all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from comity.digest import sha256
from comity.envelope import open_document, sign_document
from comity.errors import CertificateInvalid
from comity.trust import Attested, NodeIdentity
from comity.v1.task_pb2 import Hop

KIND = "hop"
#: The home made the record, or repaired it.
CREATE = "record.create"
SEND = "record.send"
RELEASE = "record.release"
#: The longest history that is read at all.
MAX_HOPS = 512
#: How far a home's clock may have been put back between two hops.
_SKEW_MS = 60_000
_DISTANCE = "min_distance_to_private"


@dataclass(frozen=True, slots=True)
class Passage:
    """What one hop says, but for what follows from its place in the history."""

    task_id: bytes
    revision: int
    record_digest: bytes
    action: str
    purpose: str
    policy_digest: bytes
    at_ms: int
    to_organization: str = ""
    rules: tuple[str, ...] = ()
    attested: Mapping[str, str] = field(default_factory=dict)


def sign_hop(identity: NodeIdentity, passage: Passage, history: Sequence[bytes]) -> bytes:
    """Sign the hop that follows `history` (oldest first; empty for the first hop)."""
    hop = Hop(
        task_id=passage.task_id,
        revision=passage.revision,
        record_digest=passage.record_digest,
        previous=sha256(history[-1]) if history else b"",
        node=str(identity.node),
        action=passage.action,
        to_organization=passage.to_organization,
        purpose=passage.purpose,
        rules=passage.rules,
        policy_digest=passage.policy_digest,
        at_ms=passage.at_ms,
        attested=passage.attested,
    )
    return sign_document(identity.key, KIND, hop.SerializeToString())


def verify_hops(
    history: Iterable[bytes], *, task_id: bytes, record: bytes, home: Attested, most: int = MAX_HOPS
) -> tuple[Hop, ...]:
    """Check the history of a task whose home's node is `home`, and return its hops.

    1. Every hop is signed by the home's node and is about this task.
    2. Every hop commits to the one before it; the first one creates the record, and has none before it.
    3. Revisions and times never go back, and the last revision's record is `record`.

    The last hop commits to all before it, under the same key: so the home's chain, which may have been renewed on the
    way, is verified at the last one's time (`last_moment`).

    Raises:
        CertificateInvalid: one of these does not hold (the message says which).
        TrustError: a signature does not verify.
    """
    hops: list[Hop] = []
    previous = b""
    for number, envelope in enumerate(history):
        if number >= most:
            raise CertificateInvalid(f"the history has over {most} hops")
        signer, hop = _open(envelope)
        if hop.node != str(home.node) or signer != home.public_key:
            raise CertificateInvalid(f"hop {number} was not signed by the home's node {home.node}")
        if hop.task_id != task_id:
            raise CertificateInvalid(f"hop {number} belongs to another task")
        if hop.previous != previous:
            raise CertificateInvalid(f"hop {number} does not follow from the one before it")
        if hops and hop.revision < hops[-1].revision:
            raise CertificateInvalid(f"hop {number} goes back to an earlier revision")
        if hops and hop.at_ms < hops[-1].at_ms - _SKEW_MS:
            raise CertificateInvalid(f"hop {number} is dated before the one that it follows")
        hops.append(hop)
        previous = sha256(envelope)
    if not hops or hops[0].action != CREATE:
        raise CertificateInvalid("the history does not begin with the making of the record")
    if hops[-1].record_digest != sha256(record):
        raise CertificateInvalid("the last hop is about another record")
    return tuple(hops)


def last_moment(history: Sequence[bytes]) -> int:
    """Return when the last hop of a history says it was signed, in milliseconds since the Unix epoch.

    Whose hop it is, is for `verify_hops` to check.

    Raises:
        CertificateInvalid: there is no hop, or it cannot be read.
    """
    if not history:
        raise CertificateInvalid("the history does not begin with the making of the record")
    return _open(history[-1])[1].at_ms


def check_attested(hops: Sequence[Hop], least_distance: float) -> None:
    """Check that the home attests what an agreement asks of it before a record leaves.

    Args:
        hops: a verified history.
        least_distance: the terms' `min_distance_to_private`; 0 asks for nothing.

    Raises:
        CertificateInvalid: the hop that made the present revision does not attest that distance.
    """
    if least_distance <= 0:
        return
    made = [hop for hop in hops if hop.action == CREATE][-1]
    try:
        attested = float(made.attested[_DISTANCE]) if _DISTANCE in made.attested else 0.0
    except ValueError:
        attested = 0.0
    if not attested >= least_distance or made.record_digest != hops[-1].record_digest:
        raise CertificateInvalid(f"{made.node} does not attest a distance of {least_distance:g} to private rows")


def _open(envelope: bytes) -> tuple[bytes, Hop]:
    document = open_document(envelope, KIND)
    try:
        return document.signer, Hop.FromString(document.body)
    except DecodeError as error:
        raise CertificateInvalid("a hop does not parse") from error
