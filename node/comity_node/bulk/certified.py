"""Certified records as a table: a column for each field, and one with each row's proof.

A record's certificate is about the whole record, so nothing can be redacted or rounded on the way: what the
obligations ask for has to have been done before the record was certified. The receiver believes none of it: it
verifies every row's provenance against the trust bundle, as `comity records verify` does.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from comity.agreement import Agreed
from comity.errors import CertificateInvalid, InvalidRecord, PolicyDenied
from comity.provenance import Provenance, verify_provenance
from comity.trust import TrustStore
from comity_node.bulk import shape
from comity_node.bulk.common import PROVENANCE, Surroundings
from comity_node.bulk.ipc import ARROW_ERRORS, columns_of
from comity_node.bulk.tables import Table, slices, travelling
from comity_node.policy import obligations as duties
from comity_node.policy.model import Obligations
from comity_node.policy.shaping import reached
from comity_node.protocol.bulk_manifest import Column
from comity_node.storage import bulk as journal
from comity_node.storage.connections import connect_readonly

_PAGE: Final = 100
_SCORE_UNIT: Final = 10_000
_TYPES: Final = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


class CertifiedTable:
    """The certified records of a dataset in this node's store."""

    def __init__(self, parts: Surroundings, dataset: str, agreement: bytes) -> None:
        """Take those of `dataset`; with `agreement`, those that were made under it."""
        self._parts, self._dataset, self._agreement = parts, dataset, agreement

    def open(self) -> Table:
        """Open it to be read once.

        Raises:
            InvalidRecord: a record is not flat, or differs in its fields from the first one.
            StorageError: the store cannot be read.
        """
        connection = connect_readonly(self._parts.database.path)
        try:
            first = next(self._rows(connection), None)
            count = journal.count_certified(connection, self._dataset, self._agreement)
            schema = travelling(self._schema(first[0] if first is not None else {}))
        except BaseException:  # nobody else has the connection yet; raised again
            connection.close()
            raise
        return Table(columns_of(schema), self._batches(connection, schema), connection.close, count)

    @staticmethod
    def check_obligations(owed: Obligations, columns: Sequence[Column]) -> None:
        """Refuse what would have to be done to records that are certified as they are.

        Raises:
            PolicyDenied: a field would have to be redacted.
        """
        if gone := shape.exposed(owed, columns):
            raise PolicyDenied(
                f"the field {gone[0]!r} has to be redacted, and a certificate is about the whole record; send the rows"
                " as synthetic ones, without their certificates"
            )

    def _schema(self, fields: Mapping[str, Any]) -> Any:  # noqa: ANN401  (pyarrow ships no types)
        dataset = self._parts.datasets.get(self._dataset)
        known = dataset.schema.fields if dataset is not None else {}
        found = []
        for name, value in sorted(fields.items()):
            kind = pa.float64() if name in known and known[name].type == "number" else _TYPES.get(type(value))
            if kind is None or name == PROVENANCE:
                raise InvalidRecord(f"the field {name!r} of a certified record cannot be a column")
            found.append((name, kind))
        return pa.schema([*found, (PROVENANCE, pa.binary())])

    def _rows(self, connection: sqlite3.Connection) -> Iterator[tuple[dict[str, Any], bytes]]:
        cursor = 0
        while page := journal.certified_page(connection, self._dataset, self._agreement, cursor, limit=_PAGE):
            for sequence, record, provenance in page:
                cursor = sequence
                yield json.loads(record), provenance

    def _batches(self, connection: sqlite3.Connection, schema: Any) -> Iterator[Any]:  # noqa: ANN401  (pyarrow)
        names = set(schema.names)
        rows: list[dict[str, Any]] = []
        for fields, provenance in self._rows(connection):
            if set(fields) | {PROVENANCE} != names:
                raise InvalidRecord("certified records of this dataset differ in their fields; name one agreement")
            rows.append({**fields, PROVENANCE: provenance})
            if len(rows) == _PAGE:
                yield from slices(_batch(rows, schema))
                rows = []
        if rows:
            yield from slices(_batch(rows, schema))


class Verifier:
    """Verifies the rows of a certified table.

    Args:
        trust: the members.
        owed: what has to have been done to each record before it was certified.
        dataset: what the records belong to.
        giver: the organization that sends them.
        taker: the organization that gets them.
    """

    def __init__(self, trust: TrustStore, owed: Obligations, dataset: str, giver: str, taker: str) -> None:
        self._trust, self._owed, self._dataset = trust, owed, dataset
        self._giver, self._taker = giver, taker
        #: How long the strictest of the agreements under which the rows were certified lets them be kept.
        self.retain_ms: int | None = None
        #: When the rows must be gone at the latest, by the same agreements.
        self.expire_ms: int | None = None
        #: What the noise costs that the agreements ask for, over all numbers that were checked.
        self.epsilon = 0.0

    def check(self, batch: Any) -> None:  # noqa: ANN401  (pyarrow ships no types)
        """Check every row of a batch.

        Raises:
            CertificateInvalid, TrustError, EnvelopeError, AgreementError: a row's provenance does not prove it.
            PolicyDenied: it was certified under terms that ask for less than is owed here, or that keep it among the
                participants.
        """
        if PROVENANCE not in batch.schema.names:
            raise CertificateInvalid(f"the rows have no column {PROVENANCE!r}")
        for field in batch.schema:  # values of other types are no JSON, and some do not even have a form in Python
            if field.type not in ((pa.binary(),) if field.name == PROVENANCE else _TYPES.values()):
                raise CertificateInvalid(f"no certified record has a column {field.name!r} of the type {field.type}")
        for row in batch.to_pylist():
            proof = row.pop(PROVENANCE)
            proven = verify_provenance(proof or b"", self._trust)
            if json.loads(proven.record) != row:
                raise CertificateInvalid(f"the row of task {proven.task_id} is not the record that was certified")
            self._check_terms(proven.agreed)
            self._count_noise(proven.agreed, row)
            self._check_onward(proven)
            duties.verify(self._owed, row)

    def _count_noise(self, agreed: Agreed, row: Mapping[str, Any]) -> None:
        for path, noise in agreed.terms.obligations.noise.items():
            self.epsilon += noise.epsilon * sum(value is not None for value in reached(row, path))

    def _check_onward(self, proven: Provenance) -> None:
        """Whoever made a record gives it to whom it likes; the others keep to what the agreement says about onward."""
        if proven.author == self._giver or self._taker in proven.agreed.participants:
            return
        if duties.Onward.parse(proven.agreed.terms.obligations.onward or "never") is not duties.Onward.ALLOWED:
            raise PolicyDenied(
                f"the record of task {proven.task_id} is of {proven.author}; its agreement does not let"
                f" {self._giver} pass it on to {self._taker}, who takes no part in it"
            )

    def _check_terms(self, agreed: Agreed) -> None:
        terms, owed = agreed.terms, self._owed
        if terms.dataset != self._dataset:
            raise CertificateInvalid(f"a row was certified for the dataset {terms.dataset!r}")
        if seconds := terms.obligations.retain_seconds:
            self.retain_ms = min(self.retain_ms or seconds * 1000, seconds * 1000)
        if expire_ms := terms.obligations.expire_ms:
            self.expire_ms = min(self.expire_ms or expire_ms, expire_ms)
        if owed.noise and not duties.covers(duties.from_terms(terms.obligations), Obligations(noise=owed.noise)):
            raise PolicyDenied("a row was certified with less noise than is asked for")
        if terms.obligations.min_distance_to_private < (owed.min_distance_to_private or 0.0):
            raise PolicyDenied("a row was certified at a smaller distance to private rows than is asked for")
        review = owed.review
        if review is not None and (
            terms.review.quorum < review.quorum or terms.review.min_score < review.min_score * _SCORE_UNIT
        ):
            raise PolicyDenied("a row was certified by a smaller quorum, or for a lower score, than is asked for")


def _batch(rows: list[dict[str, Any]], schema: Any) -> Any:  # noqa: ANN401  (pyarrow ships no types)
    try:
        return pa.RecordBatch.from_pylist(rows, schema=schema)
    except ARROW_ERRORS as error:
        raise InvalidRecord(f"certified records of this dataset do not fit one table: {error}") from error
