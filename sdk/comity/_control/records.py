"""Certified records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comity._control.connection import Call, Stream
from comity._control.defined import call, stream
from comity._control.values import json_object
from comity.v1 import control_pb2 as pb


@dataclass(frozen=True, slots=True)
class Record:
    """A certified record. `score` is from 0 to 10000; `raw` is the bytes that `record_digest` is over."""

    task_id: str
    author: str
    dataset: str
    raw: bytes
    record_digest: str
    score: int
    agreement_digest: str
    stored_ms: int

    @property
    def fields(self) -> dict[str, Any]:
        """The record's fields by name, decoded anew each time.

        Raises:
            ControlError: the node sent what is no JSON object.
        """
        return json_object(self.raw, f"record {self.task_id}")


@dataclass(frozen=True, slots=True)
class CertifiedRecord:
    """A record with its provenance (a DSSE envelope, JSON), which proves it to whoever has the trust bundle."""

    record: Record
    provenance: bytes


class RecordCalls:
    """Calls about certified records."""

    @stream
    def records(self, *, dataset: str = "", author: str = "", agreement: str = "", limit: int = 0) -> Stream[Record]:
        """Yield certified records, page by page as they are used.

        Args:
            dataset: of this data set; empty: of all.
            author: of this organization; empty: of all.
            agreement: under the agreement with this digest; empty: under any.
            limit: at most so many; 0: all.
        """
        request = pb.ListRecordsRequest(dataset=dataset, author=author, agreement_digest=agreement, limit=limit)
        return Stream("ListRecords", request, lambda page: map(_record, page.records))

    @call
    def record(self, task_id: str, author: str = "") -> Call[CertifiedRecord]:
        """One record with its provenance; two organizations may have used one id, and then the author says which."""
        request = pb.GetRecordRequest(task_id=task_id, author=author)
        return Call("GetRecord", request, lambda it: CertifiedRecord(_record(it.record), it.provenance))

    @call
    def sign_export(self, name: str, sha256: str, *, form: str, records: int, root: bytes) -> Call[bytes]:
        """Have the node sign what a file of certified records holds; returns the statement (a DSSE envelope, JSON).

        Args:
            name: the file's name, without a folder.
            sha256: of the file, 64 hex digits.
            form: `jsonl` or `parquet`.
            records: how many it holds.
            root: of the Merkle tree over their provenances, in their order (`comity.export.merkle_root`).
        """
        request = pb.SignExportRequest(name=name, sha256=sha256, form=form, records=records, root=root)
        return Call("SignExport", request, lambda it: bytes(it.statement))


def _record(it: pb.Record) -> Record:
    return Record(
        it.task_id, it.author, it.dataset, it.record, it.record_digest, it.score, it.agreement_digest, it.stored_ms
    )
