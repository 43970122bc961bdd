"""Certified records of one holder, and a file of them with its proof, as `comity records export` writes both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from comity.agreement import Agreed
from comity.certificate import build_certificate
from comity.client import Record
from comity.digest import canonical_json, hex_digest, sha256
from comity.export import Export, sign_export
from comity.hops import CREATE, RELEASE, SEND
from comity.provenance import make_provenance
from comity.trust import NodeIdentity
from comity.v1.task_pb2 import CertifiedRecord, Task
from comity_node.cli import record_files
from comity_node.cli.export_files import write_proof
from kit.consortium import NOW_MS, Consortium, consortium, names
from kit.documents import agree, make_agreement, make_history, make_passage, make_terms, make_vote

AUTHOR, HOLDER, *REST = names(5)
FIELDS = (
    {"label": 1, "x": 2.5, "name": "\u00e4"},
    {"label": 0, "x": -0.25, "name": "b"},
    {"label": 1, "x": 3, "name": "c"},
)


@dataclass(frozen=True)
class Holding:
    """A holder with some certified records in memory."""

    lab: Consortium
    agreed: Agreed
    agreement: bytes

    @classmethod
    def make(cls) -> Holding:
        lab = consortium(*names(5))
        return cls(lab, agree(lab), make_agreement(lab, make_terms(lab)))

    @property
    def holder(self) -> NodeIdentity:
        return self.lab.nodes[HOLDER]

    @cached_property
    def _provenances(self) -> dict[str, bytes]:
        made = [self.certified(number, canonical_json(fields)) for number, fields in enumerate(FIELDS)]
        return {one.task.id.hex(): make_provenance(self.holder, one, self.agreement) for one in made}

    def provenance(self, task_id: str, author: str = AUTHOR) -> bytes:
        return self._provenances[task_id]

    def records(self) -> list[Record]:
        texts = [canonical_json(fields) for fields in FIELDS]
        return [
            Record(task, AUTHOR, self.agreed.terms.dataset, raw, hex_digest(raw), 8000, self.agreed.digest.hex(), 1)
            for task, raw in zip(self._provenances, texts, strict=True)
        ]

    def certified(
        self, number: int, record: bytes, author: str = AUTHOR, rule: str = "send-synthetic"
    ) -> CertifiedRecord:
        task = bytes([number]) * 16
        passage = partial(make_passage, task_id=task, record=record, rules=(rule,))
        votes = {HOLDER: 9000, REST[0]: 8000, REST[1]: 7000}
        about: dict[str, Any] = {"author": author, "task_id": task, "record_digest": sha256(record)}
        checked = [make_vote(self.lab, self.agreed, voter, score, **about) for voter, score in votes.items()]
        history = [passage(CREATE), *(passage(SEND, to=voter) for voter in votes), passage(RELEASE, to=HOLDER)]
        home = self.lab.nodes[author]
        return CertifiedRecord(
            task=Task(
                id=task, agreement_digest=self.agreed.digest, home=author, revision=0, record=record,
                hops=make_history(home, history),
            ),
            certificate=build_certificate(checked, author=author, rule=self.agreed.rule, accept=True),
            home_chain=home.chain,
        )  # fmt: skip

    def export(self, path: Path, form: str = "jsonl", records: Iterable[Record] | None = None) -> Path:
        """Write a file and its proof; returns the file."""
        write = record_files.write_jsonl if form == "jsonl" else record_files.write_parquet

        def sign(sha256: str, count: int, root: bytes) -> bytes:
            return sign_export(self.holder, Export(path.name, sha256, form, count, root, NOW_MS + 2000))

        found = self.records() if records is None else records
        write_proof(path, found, self.provenance, partial(write, path), sign)
        return path
