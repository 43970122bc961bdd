"""From a table of this organization to a file that may leave.

1. The policy is asked about the table as it lies there; a no ends it. 2. Batch by batch the table is checked against
its dataset's schema, brought under the obligations of policy and agreement, checked again, and held at its distance
from private rows. 3. What came out is a file with a head of its tree; the policy is asked about exactly that, and the
rows are reserved from the rates of the rules that allow it. 4. The manifest is signed and journaled.

Nothing leaves here. Every yes and no is in the audit log (S1, S8).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.ipc
import trio

from comity.digest import sha256
from comity.envelope import open_document, sign_document
from comity.errors import ConfigError, InvalidName, InvalidRecord, PolicyDenied, StorageFull
from comity.ids import organization_name
from comity_node.admission import Question
from comity_node.admission.questions import Spending, to_units
from comity_node.bulk import shape
from comity_node.bulk.certified import CertifiedTable, Verifier
from comity_node.bulk.common import (
    Progress,
    Report,
    Surroundings,
    agreed_obligations,
    classification_of,
    describe,
    make_request,
    transfer_id_of,
)
from comity_node.bulk.forms import Classes
from comity_node.bulk.spool import Spooled, SpoolWriter
from comity_node.bulk.tables import Table, open_table
from comity_node.policy import obligations as duties
from comity_node.policy.model import Obligations, Request
from comity_node.protocol.bulk_manifest import KINDS, MANIFEST_KIND, MAX_CHUNKS, Manifest, parse_manifest
from comity_node.storage import audit
from comity_node.storage import bulk as journal
from comity_node.storage.bulk import BulkRow

#: Bytes that are prepared before the loop looks whether somebody has given up.
_STEP: Final = 8 * 1024 * 1024
_MAX_TEXT: Final = 128
_NO_QUOTA: Final = "the spool's quota is used up; finish or remove transfers (`comity bulk list`)"
_OPTIONS: Final = pa.ipc.IpcWriteOptions(compression=None, use_threads=False, emit_dictionary_deltas=False)


@dataclass(frozen=True, slots=True)
class Order:
    """What a person wants to be sent.

    Attributes:
        to: the organization that gets it.
        dataset: what the rows belong to, as the policies name it.
        purpose: what they may be used for.
        kind: "raw", "synthetic" or "certified".
        path: the table; None for the certified records of the dataset.
        agreement: digest of the agreement that it happens under, or empty.
    """

    to: str
    dataset: str
    purpose: str
    kind: str
    path: Path | None
    agreement: bytes = b""


class _Refinery:
    """Turns the batches of a table into those that may leave."""

    def __init__(self, parts: Surroundings, order: Order, table: Table, owed: Obligations) -> None:
        dataset = parts.datasets.get(order.dataset)
        self._schema = dataset.schema if dataset is not None else None
        self._private = dataset.private if dataset is not None else None
        self._distance = owed.min_distance_to_private or 0.0
        self._certified = _verifier(parts, owed, order) if order.kind == "certified" else None
        self.rows = 0
        if self._certified is not None:
            self.schema, self.columns = shape.arrow_schema(table.columns), table.columns
            self._classes = Classes(owed, self.columns, table.rows or 0)
            return
        if owed.review is not None:
            raise PolicyDenied("a review is asked for: only certified records have had one (--kind certified)")
        if self._distance and self._private is None:
            raise PolicyDenied(
                "min_distance_to_private is asked for, and node.yaml names no private rows of this dataset"
            )
        pseudonym = parts.gate.pseudonyms.of(order.dataset) if owed.hash else None
        self._shaper = shape.Shaper(owed, table.columns, pseudonym)
        self.schema, self.columns = self._shaper.schema, self._shaper.columns
        self._classes = Classes(owed, self.columns, table.rows or 0)
        if self._schema is not None:
            shape.check_columns(self._schema, table.columns)
            texts = shape.texts(owed)
            self._after = self._schema.without(owed.redact | texts)
            shape.check_columns(self._after, [column for column in self.columns if column.name not in texts])

    def apply(self, batch: Any) -> Any:  # noqa: ANN401  (pyarrow ships no types)
        """Return the batch that may leave.

        Raises:
            InvalidRecord: it does not fit the dataset's schema.
            PolicyDenied: an obligation cannot be met.
        """
        self.rows += batch.num_rows
        if self._certified is not None:
            self._certified.check(batch)
            self._classes.add(batch)
            return batch
        if self._schema is not None:
            shape.check_schema(self._schema, batch)
        shaped = self._shaper.apply(batch)
        if self._schema is not None:
            shape.check_schema(self._after, shaped)
        if self._distance:
            self._keep_distance(shaped)
        self._classes.add(shaped)
        return shaped

    def finish(self) -> None:
        """Check what holds of the table as a whole.

        Raises:
            PolicyDenied: too few rows share their identifying values.
        """
        self._classes.finish()

    @property
    def epsilon(self) -> float:
        """What the noise of all rows costs."""
        return self._certified.epsilon if self._certified is not None else self._shaper.noise.epsilon

    def _keep_distance(self, batch: Any) -> None:  # noqa: ANN401  (pyarrow ships no types)
        assert self._schema is not None  # there are no private rows without one
        assert self._private is not None
        if missing := [name for name in self._schema.features if name not in batch.schema.names]:
            raise PolicyDenied(f"the distance to private rows cannot be measured without {missing[0]!r}")
        closest = float(self._private.distances_of(shape.matrix(batch, self._schema.features)).min())
        if closest < self._distance:
            raise PolicyDenied(f"a row lies {closest:.3f} from a private one; {self._distance:g} is the least")


class Preparer:
    """Prepares tables of one node."""

    def __init__(self, parts: Surroundings) -> None:
        self._parts = parts

    async def prepare(self, order: Order, report: Report) -> BulkRow:
        """Make the file, the manifest and the journal's row of a transfer.

        Raises:
            ConfigError: the order or the file makes no sense.
            PolicyDenied: the policy does not let it leave, or an obligation cannot be met.
            AgreementError: it does not fit the agreement.
            InvalidRecord: a row does not fit the schema, or a column cannot be sent.
            StorageFull: the spool has no room.
        """
        _check(order, self._parts.identity.organization, self._parts.trust.bundle.members)
        report(Progress("", "preparing"))
        await self._check_not_passed_on(order)
        table = await self._parts.in_thread(lambda: self._open(order))
        try:
            owed = await self._first_question(order, table)
            refinery = await self._parts.in_thread(lambda: _Refinery(self._parts, order, table, owed))
            spooled = await self._spool(table, refinery, report)
        finally:
            await self._parts.in_thread(table.close)
        try:
            return await self._release(order, owed, refinery, spooled)
        except BaseException:  # whatever it was, what was spooled goes; raised again
            with trio.CancelScope(shield=True):  # also if a person gave up: one look and one unlink
                await self._drop_unwanted(spooled.root)
            raise

    async def _check_not_passed_on(self, order: Order) -> None:
        """Refuse a table in the inbox that its sender does not let be passed on."""
        parts, path = self._parts, order.path
        if path is None:
            return
        received = await parts.in_thread(lambda: parts.spool.find_received(path))
        row = await parts.database.read(lambda c: journal.get_bulk(c, received)) if received is not None else None
        if row is not None:
            _check_onward([row.manifest])

    def _open(self, order: Order) -> Table:
        if order.path is None:
            table = CertifiedTable(self._parts, order.dataset, order.agreement).open()
        else:
            dataset = self._parts.datasets.get(order.dataset)
            types = {"number": "double", "integer": "int64"}
            known = {name: types[spec.type] for name, spec in dataset.schema.fields.items()} if dataset else {}
            table = open_table(order.path, known)
            if table.rows is None:  # read twice: the policy may ask how many there are
                rows = sum(batch.num_rows for batch in table.batches)
                table.close()
                table = replace(open_table(order.path, known), rows=rows)
        if not table.rows:
            table.close()
            if order.path is None:
                under = " under that agreement" if order.agreement else ""
                raise InvalidRecord(f"this node has no certified records of {order.dataset!r}{under}: nothing to send")
            raise InvalidRecord("the table has no rows: there is nothing to send")
        return table

    async def _first_question(self, order: Order, table: Table) -> Obligations:
        """Return what is owed if the table may leave at all."""
        parts = self._parts
        agreed = agreed_obligations(parts, order.agreement, order.to, order.dataset, order.purpose)
        path = order.path
        await parts.gate.look()
        size = await parts.in_thread(lambda: _size(path)) if path is not None else 0
        request = self._request(order, frozenset(column.name for column in table.columns), table.rows or 0, size)
        decision = parts.gate.consider(request)
        if not decision.allowed:
            await parts.gate.demand(Question(request, b"", order.agreement, max(table.rows or 0, 1)))
            raise PolicyDenied(decision.reason, rules=decision.rules)
        owed = duties.merge(agreed, decision.obligations)
        if order.kind == "certified":
            CertifiedTable.check_obligations(owed, table.columns)
        return owed

    async def _spool(self, table: Table, refinery: _Refinery, report: Report) -> Spooled:
        """Write what the refinery makes of the table into a file."""
        parts, limits = self._parts, self._parts.limits
        used = await parts.database.read(lambda c: journal.usage(c, "out", ""))
        most = min(limits.max_bytes, limits.quota_bytes - used.bytes_of_all, MAX_CHUNKS * limits.chunk_bytes)
        if most <= 0:
            raise StorageFull(_NO_QUOTA)
        sink = await parts.in_thread(lambda: parts.spool.writer(limits.chunk_bytes, most))
        try:
            batches = map(refinery.apply, table.batches)
            writer = await parts.in_thread(lambda: pa.ipc.new_stream(sink, refinery.schema, options=_OPTIONS))
            while await parts.in_thread(lambda: self._step(batches, sink, writer)):
                report(Progress("", "preparing", refinery.rows, 0, sink.length))
            refinery.finish()
            return await parts.in_thread(lambda: _finish(sink, writer))
        except BaseException:  # whatever it was, the half-written file goes; raised again
            sink.discard()  # an unlink: short enough for the loop, and not to be cancelled
            raise

    def _step(self, batches: Iterator[Any], sink: SpoolWriter, writer: Any) -> bool:  # noqa: ANN401  (pyarrow)
        self._parts.spool.check_room(_STEP)
        until = sink.length + _STEP
        for batch in batches:
            writer.write_batch(batch)
            if sink.length >= until:
                return True
        return False

    async def _release(self, order: Order, owed: Obligations, refinery: _Refinery, spooled: Spooled) -> BulkRow:
        parts, now_ms = self._parts, self._parts.gate.now_ms()
        _check_onward(await parts.database.read(lambda c: journal.received_manifests(c, spooled.root)))
        fields = frozenset(column.name for column in refinery.columns)
        request = self._request(order, fields, refinery.rows, spooled.geometry.length)
        if owed.expire_ms is not None and owed.expire_ms <= now_ms:
            raise PolicyDenied("its obligations say that it must be gone by now (expire)")
        if refinery.epsilon and decided_by_hand(parts, request) and not order.agreement:
            raise PolicyDenied(
                "a person would have to approve noise that is drawn anew each time: send it under an agreement"
            )
        cost = to_units(refinery.epsilon, up=True)
        spending = Spending(parts.gate.new_id() + parts.gate.new_id(), cost) if cost else None
        question = Question(request, spooled.root, order.agreement, refinery.rows, spending)
        decision = await parts.gate.demand(question)
        if not duties.covers(owed, decision.obligations):
            raise PolicyDenied(
                "the policy asks more of what came out than of what went in; it may have changed: send it again",
                rules=decision.rules,
            )
        manifest = Manifest(
            id=parts.gate.new_id(),
            organization=parts.identity.organization,
            to_organization=order.to,
            dataset=order.dataset,
            kind=order.kind,
            classification=classification_of(parts, order.dataset),
            purpose=order.purpose,
            agreement_digest=order.agreement,
            columns=refinery.columns,
            rows=refinery.rows,
            geometry=spooled.geometry,
            root=spooled.root,
            obligations=duties.to_terms(owed),
            policy_digest=parts.gate.policy.digest,
            issued_ms=now_ms,
            expires_ms=now_ms + parts.limits.lifetime_ms,
        )
        envelope = sign_document(parts.identity.key, MANIFEST_KIND, manifest.encode())
        row = new_row("out", manifest, envelope, order.to, now_ms)
        entry = audit.AuditEntry(
            kind="effect",
            action="bulk.prepared",
            peer=order.to,
            subject=row.root,
            policy=parts.gate.policy.digest,
            agreement=order.agreement,
            detail=describe(row),
        )

        def write(connection: sqlite3.Connection) -> None:
            if journal.usage(connection, "out", "").bytes_of_all + row.byte_count > parts.limits.quota_bytes:
                raise StorageFull(_NO_QUOTA)  # of tables that were prepared at the same time
            audit.append(connection, entry, now_ms)
            journal.put_bulk(connection, row)

        await parts.database.transact(write)
        return row

    async def _drop_unwanted(self, root: bytes) -> None:
        """Delete a file that has come to nothing, unless another transfer sends the same."""
        if not await self._parts.database.read(lambda c: journal.is_wanted(c, root)):
            self._parts.spool.drop_outgoing(root)

    def _request(self, order: Order, fields: frozenset[str], rows: int, size: int) -> Request:
        return make_request(
            "bulk.send", order.to, purpose=order.purpose, dataset=order.dataset, kind=order.kind,
            fields=fields, labels={"records": rows, "bytes": size},
        )  # fmt: skip


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", file=str(path)) from error


def decided_by_hand(parts: Surroundings, request: Request) -> bool:
    """Whether a rule that allows it asks for a person's approval."""
    return bool(parts.gate.consider(request).obligations.approvals)


def _check_onward(manifests: Sequence[bytes]) -> None:
    """Refuse what came here under these manifests, unless each sender lets it be passed on."""
    for envelope in manifests:
        manifest = parse_manifest(open_document(envelope, MANIFEST_KIND).body)
        onward = duties.from_terms(manifest.obligations).onward
        if onward is not duties.Onward.ALLOWED:
            raise PolicyDenied(
                f"this table came from {manifest.organization}, whose obligations say onward: {onward.word}; it may"
                " not be passed on"
            )


def new_row(direction: journal.Direction, manifest: Manifest, envelope: bytes, other: str, now_ms: int) -> BulkRow:
    """Return the journal's row of a transfer that begins."""
    return BulkRow(
        transfer_id=transfer_id_of(envelope),
        direction=direction,
        organization=other,
        dataset=manifest.dataset,
        kind=manifest.kind,
        purpose=manifest.purpose,
        agreement_digest=manifest.agreement_digest,
        root=manifest.root,
        row_count=manifest.rows,
        byte_count=manifest.geometry.length,
        manifest=envelope,
        state="open",
        stored_chunks=0,
        receipt=b"",
        reason="",
        created_ms=now_ms,
        updated_ms=now_ms,
        expires_ms=manifest.expires_ms,
        retain_until_ms=None,
    )


def _verifier(parts: Surroundings, owed: Obligations, order: Order) -> Verifier:
    return Verifier(parts.trust, owed, order.dataset, parts.identity.organization, order.to)


def _finish(sink: SpoolWriter, writer: Any) -> Spooled:  # noqa: ANN401  (pyarrow ships no types)
    writer.close()
    return sink.finish()


def _check(order: Order, own: str, members: Collection[str]) -> None:
    try:
        organization_name(order.to)
    except InvalidName as error:
        raise ConfigError(str(error)) from error
    if order.to == own:
        raise ConfigError("a table is sent to another organization, not to oneself")
    if order.to not in members:
        raise ConfigError(f"{order.to} is no member of the consortium; `comity consortium show` lists them")
    if order.kind not in KINDS:
        raise ConfigError(f"{order.kind!r} is no kind of rows; there are {', '.join(KINDS)}")
    if (order.kind == "certified") != (order.path is None):
        raise ConfigError("certified records come from this node's record store: give no file, and only for them")
    for name, text in (("dataset", order.dataset), ("purpose", order.purpose)):
        if not 0 < len(text) <= _MAX_TEXT:
            raise ConfigError(f"the {name} has 1 to {_MAX_TEXT} characters")
    if order.agreement and len(order.agreement) != len(sha256(b"")):
        raise ConfigError("the agreement is named by its digest, 64 hex digits")
