"""What travels beside an update: the terms of a round on the way out, the signed manifest on the way back.

Flower's messages carry records by name. The server puts its terms into the configuration record of a train message;
the member's node signs an `UpdateManifest` (control.proto) for the packed update, and the reply carries that
envelope and the chain of its signer in a configuration record of its own, `comity`.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord

from comity.client import ReleasedUpdate
from comity.errors import EnvelopeMalformed
from comity.flower import packing
from comity.ids import organization_name

#: Record of a reply that holds the manifest, and of both directions that holds the packed arrays.
MANIFEST_RECORD = "comity"
PACKED_ARRAY = "comity-packed"
_PACKED_TYPE = "comity.packed.v1"

_MAX_MANIFEST_BYTES = 64 * 1024
_MAX_CHAIN = 4
_MAX_FEDERATION = 128
_FEDERATION = frozenset(string.ascii_letters + string.digits + "._-/")


@dataclass(frozen=True, slots=True)
class FederationTerms:
    """Under what a federation runs: its name, who aggregates, and the agreement (SHA-256 in hex)."""

    federation: str
    organization: str
    agreement_digest: str

    def __post_init__(self) -> None:
        organization_name(self.organization)
        if not 0 < len(self.federation) <= _MAX_FEDERATION or not set(self.federation) <= _FEDERATION:
            raise EnvelopeMalformed(f"{self.federation!r} is no name for a federation (letters, digits, '.', '_', '-')")
        if len(self.agreement_digest) != 64 or not set(self.agreement_digest) <= set("0123456789abcdef"):
            raise EnvelopeMalformed("an agreement's digest is 64 lower-case hex digits")


def add_terms(config: ConfigRecord, terms: FederationTerms, server_round: int) -> None:
    """Put the terms of a round into the configuration record of its train messages."""
    config["server-round"] = server_round
    config["comity-federation"] = terms.federation
    config["comity-organization"] = terms.organization
    config["comity-agreement"] = terms.agreement_digest


def read_terms(config: ConfigRecord) -> tuple[FederationTerms, int]:
    """Return the terms and the round of a train message.

    Raises:
        EnvelopeMalformed: they are missing or not well formed.
        InvalidName: the server's organization is no name.
    """
    federation, organization, agreement = (
        config.get(f"comity-{key}") for key in ("federation", "organization", "agreement")
    )
    server_round = config.get("server-round")
    if not (isinstance(federation, str) and isinstance(organization, str) and isinstance(agreement, str)):
        raise EnvelopeMalformed("the train message has no Comity terms; the server's strategy must be a GateStrategy")
    if type(server_round) is not int or not 0 < server_round < 2**31:
        raise EnvelopeMalformed("the train message has no round")
    return FederationTerms(federation, organization, agreement), server_round


def manifest_record(signed: ReleasedUpdate) -> ConfigRecord:
    """Return the record of a reply that carries a manifest."""
    return ConfigRecord({"manifest": signed.manifest, "chain": list(signed.chain)})


def read_manifest(record: ConfigRecord | None) -> ReleasedUpdate:
    """Return the manifest of a reply; nothing in it is verified yet.

    Raises:
        EnvelopeMalformed: there is none, or it is larger than one can be.
    """
    if record is None:
        raise EnvelopeMalformed("the reply carries no manifest; the member's ClientApp must use comity_mod")
    manifest, chain = record.get("manifest"), record.get("chain")
    if not isinstance(manifest, bytes) or len(manifest) > _MAX_MANIFEST_BYTES:
        raise EnvelopeMalformed("the manifest is not a run of bytes of a plausible size")
    if not isinstance(chain, list) or not 0 < len(chain) <= _MAX_CHAIN:
        raise EnvelopeMalformed("the manifest comes without the chain of its signer")
    links = tuple(link for link in chain if isinstance(link, bytes) and len(link) <= _MAX_MANIFEST_BYTES)
    if len(links) != len(chain):
        raise EnvelopeMalformed("the chain of a manifest is not a list of certificates")
    return ReleasedUpdate(manifest, links)


def packed_record(packed: bytes) -> ArrayRecord:
    """Return packed arrays as a record of one array, which costs one round trip instead of one for each."""
    return ArrayRecord({PACKED_ARRAY: Array("uint8", (len(packed),), _PACKED_TYPE, packed)})


def packed_bytes(record: ArrayRecord) -> bytes:
    """Return the packed bytes of a record: what the digest is taken over.

    They are looked at as bytes: NumPy's own file format, which allocates what a header asks for, is not read.

    Raises:
        EnvelopeMalformed: the record is not one packed array.
    """
    if set(record) != {PACKED_ARRAY} or record[PACKED_ARRAY].stype != _PACKED_TYPE:
        raise EnvelopeMalformed("the reply's arrays are not packed")
    data: bytes = record[PACKED_ARRAY].data
    return data


def pack_record(record: ArrayRecord) -> bytes:
    """Return the canonical packing of a record of plain arrays."""
    return packing.pack({name: array.numpy() for name, array in record.items()})


def array_record(arrays: Mapping[str, packing.Array]) -> ArrayRecord:
    """Return arrays as a plain record."""
    return ArrayRecord({name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()})
