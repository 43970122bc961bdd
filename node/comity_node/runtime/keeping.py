"""Records that were certified elsewhere: checked, through the gate, and kept, each once."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

import trio

from comity.agreement import Agreed
from comity.digest import sha256
from comity.errors import UnexpectedMessage
from comity.hops import RELEASE
from comity.provenance import verify_certified
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1.task_pb2 import CertifiedRecord, Receipt, RecordDelivery
from comity_node.admission import Gate
from comity_node.admission.labels import certificate_labels
from comity_node.admission.records import RecordGate
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.certify import stored_record
from comity_node.runtime.kinds import RECORDS
from comity_node.runtime.messenger import Handler, accepted
from comity_node.storage import audit, records
from comity_node.storage.database import Database


class Keeping:
    """Takes the certified records that other organizations deliver."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, record_gate: RecordGate,
        agreements: Agreements, database: Database, agreed_of: Callable[[bytes], Agreed],
    ) -> None:  # fmt: skip
        """Keep records for `identity`'s organization; `agreed_of` finds an agreement by its digest."""
        self._identity = identity
        self._trust = trust
        self._gate = gate
        self._record_gate = record_gate
        self._agreements = agreements
        self._database = database
        self._agreed = agreed_of
        self.handlers: dict[str, Handler] = {RECORDS: self._on_records}

    async def _on_records(self, sender: Attested, body: bytes) -> Receipt:
        delivery = RecordDelivery.FromString(body)
        if not 0 < len(delivery.records) <= 256:
            raise UnexpectedMessage(f"{len(delivery.records)} records in one message; 1 to 256 are taken")
        task_ids = {one.task.id for one in delivery.records}
        if len(task_ids) != len(delivery.records):
            raise UnexpectedMessage("a task is twice in a delivery")
        agreed = self._agreed(delivery.records[0].task.agreement_digest)
        known = await self._database.read(lambda c: records.stored_digests(c, sender.organization, task_ids))
        fresh = [one for one in delivery.records if known.get(one.task.id) != sha256(one.task.record)]
        if fresh:
            await self._keep_records(agreed, fresh, delivery.records, sender)
        return accepted()

    async def _keep_records(
        self, agreed: Agreed, fresh: Sequence[CertifiedRecord], came: Sequence[CertifiedRecord], sender: Attested
    ) -> None:
        """Keep the records of a delivery that are not here yet; all that came together is judged together."""
        labels = {one.task.id: certificate_labels(one.certificate) for one in came}
        tasks = [one.task for one in came]
        every = await self._record_gate.receive(agreed, tasks, sender, RELEASE, "certified", known=labels)
        owed = {task.id: one for task, one in zip(tasks, every, strict=True)}
        now_ms = self._gate.now_ms()
        raw = self._agreements.raw(agreed.digest)

        def check(certified: CertifiedRecord) -> records.CertifiedRecord:
            verify_certified(certified, agreed, self._trust)
            return stored_record(agreed, certified, self._identity, raw, now_ms, owed[certified.task.id])

        stored = await trio.to_thread.run_sync(lambda: [check(one) for one in fresh])

        def write(connection: sqlite3.Connection) -> None:
            for record in stored:
                if not records.put_record(connection, record):
                    continue
                entry = audit.AuditEntry(
                    kind="effect",
                    action="record.stored",
                    peer=sender.organization,
                    subject=record.record_digest,
                    agreement=agreed.digest,
                )
                audit.append(connection, entry, now_ms)

        await self._database.transact(write)
