"""What the home of a record attests about its making, in the hop that created its present revision.

A distance to private rows and noise cannot be seen on a record. So the node that made it says in the signed hop what it
did: `min_distance_to_private` as a number, and `noise` as canonical JSON with the greatest epsilon of each path that
got noise, what all of it cost, and which drawing it was, all epsilons in whole millionths:

    {"cost": 1500000, "paths": {"age": 500000, "income": 1000000}, "release": "<64 hex digits>"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from google.protobuf.message import DecodeError

from comity import hops
from comity.digest import canonical_json
from comity.envelope import open_document
from comity.errors import CertificateInvalid, PolicyDenied
from comity.v1.task_pb2 import Hop
from comity_node.admission.noise import NoiseSource
from comity_node.admission.questions import Spending, to_units
from comity_node.policy.lattice import Noise, Obligations
from comity_node.policy.shaping import reached

DISTANCE: Final = "min_distance_to_private"
NOISE: Final = "noise"
#: SHA-256, in hex, of the last hop of the way on which the record was made: what binds that history to it.
JOURNEY: Final = "journey"
_RELEASE_BYTES: Final = 32
_READ: Final = 1024


def noise_note(source: NoiseSource, release: bytes) -> str:
    """Return what the hop says about the noise of one record; `release` is 32 bytes that no other drawing has."""
    paths = {path: to_units(epsilon, up=True) for path, epsilon in source.paths.items()}
    return canonical_json(
        {"cost": to_units(source.epsilon, up=True), "paths": paths, "release": release.hex()}
    ).decode()


def made_by(history: Sequence[bytes]) -> Hop | None:
    """Return the hop of this node's own history that made the present revision; None if there is none."""
    return next((hop for hop in map(_read, reversed(history)) if hop.action == hops.CREATE), None)


@lru_cache(maxsize=_READ)
def _read(envelope: bytes) -> Hop:
    try:
        return Hop.FromString(open_document(envelope, hops.KIND).body)
    except DecodeError as error:
        raise CertificateInvalid("a hop does not parse") from error


def spending_of(made: Hop | None) -> Spending | None:
    """Return what a record's noise costs; None if it got none.

    Raises:
        CertificateInvalid: what the hop says about noise makes no sense.
    """
    note = _read_noise(made)
    return Spending(bytes.fromhex(note["release"]), note["cost"]) if note else None


def check(owed: Obligations, made: Hop | None, fields: Mapping[str, Any], record_digest: bytes) -> None:
    """Check that a record was made as its obligations ask, by what its home attests.

    Args:
        owed: the obligations.
        made: the hop that made it.
        fields: the record.
        record_digest: its SHA-256.

    Raises:
        PolicyDenied: it was not, or nobody says so.
    """
    if not (owed.min_distance_to_private or owed.noise):
        return
    if made is None or made.record_digest != record_digest:
        raise PolicyDenied("nobody attests how this record was made")
    least = owed.min_distance_to_private or 0.0
    if not distance_of(made) >= least:
        raise PolicyDenied(f"{made.node} does not attest a distance of {least:g} to private rows")
    if owed.noise:
        _check_noise(owed.noise, made, fields)


def distance_of(made: Hop | None) -> float:
    """Return the least distance to private rows that a hop attests; 0 if it attests none."""
    try:
        return float(made.attested[DISTANCE]) if made is not None and DISTANCE in made.attested else 0.0
    except ValueError:
        return 0.0


def _check_noise(noise: Mapping[str, Noise], made: Hop, fields: Mapping[str, Any]) -> None:
    try:
        paths = _read_noise(made).get("paths", {})
    except CertificateInvalid as error:
        raise PolicyDenied(str(error)) from error
    for path, one in noise.items():
        if any(value is not None for value in reached(fields, path)):
            spent = paths.get(path)
            if spent is None or spent > to_units(one.epsilon, up=True):
                raise PolicyDenied(
                    f"{made.node} does not attest noise of epsilon {one.epsilon:g} on the field {path!r}"
                )


def _read_noise(made: Hop | None) -> dict[str, Any]:
    if made is None or NOISE not in made.attested:
        return {}
    try:
        note = json.loads(made.attested[NOISE])
        whole = [note["cost"], *note["paths"].values()]
        sound = all(type(each) is int and each >= 0 for each in whole)
        if not sound or len(bytes.fromhex(note["release"])) != _RELEASE_BYTES:
            raise ValueError("its numbers are none")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CertificateInvalid(f"what {made.node} attests about noise makes no sense") from error
    return dict(note)
