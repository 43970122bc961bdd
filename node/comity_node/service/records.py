"""Certified records."""

from __future__ import annotations

from collections.abc import AsyncIterator

from comity.errors import AgreementError, ControlError
from comity.export import Export, sign_export
from comity.trust import NodeIdentity
from comity.v1 import control_pb2 as pb
from comity_node.admission import Gate
from comity_node.storage import audit, records
from comity_node.storage.audit_entry import AuditEntry
from comity_node.storage.database import Database

_PAGE = 100


class RecordService:
    """Answers about certified records."""

    def __init__(self, identity: NodeIdentity, gate: Gate, database: Database) -> None:
        """Show what is in `database`, and sign exports of it as `identity`."""
        self._identity = identity
        self._gate = gate
        self._database = database

    async def list_records(self, request: pb.ListRecordsRequest) -> AsyncIterator[pb.ListRecordsResponse]:
        """Return certified records, a page at a time."""
        left, cursor = request.limit or None, 0
        agreement = _digest(request.agreement_digest)
        while True:
            size = _PAGE if left is None else min(_PAGE, left)
            page = await self._database.read(
                lambda c: records.list_records(
                    c,
                    dataset=request.dataset or None,
                    author=request.author or None,
                    agreement_digest=agreement,
                    cursor=cursor,  # noqa: B023
                    limit=size,  # noqa: B023
                )
            )
            if page.records:
                yield pb.ListRecordsResponse(records=[_record(row) for row in page.records])
            left = None if left is None else left - len(page.records)
            if page.cursor is None or left == 0:
                return
            cursor = page.cursor

    async def get_record(self, request: pb.GetRecordRequest) -> pb.GetRecordResponse:
        """Return one certified record with its provenance."""
        task_id = _digest(request.task_id) or b""
        row = await self._database.read(lambda c: records.get_record(c, task_id, request.author))
        if row is None:
            raise ControlError(f"no certified record of task {request.task_id} here; `comity records list` lists them")
        return pb.GetRecordResponse(record=_record(row), provenance=row.provenance)

    async def sign_export(self, request: pb.SignExportRequest) -> pb.SignExportResponse:
        """State what a file of records holds, once that is in the audit log."""
        now_ms = self._gate.now_ms()
        export = Export(request.name, request.sha256, request.form, request.records, request.root, now_ms)
        export.check()
        entry = AuditEntry(
            "effect",
            action="record.export",
            subject=bytes.fromhex(export.sha256),
            detail={"records": export.records, "root": export.root.hex()},
        )
        await self._database.transact(lambda c: audit.append(c, entry, now_ms))
        return pb.SignExportResponse(statement=sign_export(self._identity, export))


def _digest(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text) or None
    except ValueError as error:
        raise AgreementError(f"{text!r} is not hex") from error


def _record(row: records.StoredRecord) -> pb.Record:
    return pb.Record(
        task_id=row.task_id.hex(),
        author=row.author,
        dataset=row.dataset,
        record=row.record,
        record_digest=row.record_digest.hex(),
        score=row.score,
        agreement_digest=row.agreement_digest.hex(),
        stored_ms=row.stored_ms,
    )
