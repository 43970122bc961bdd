"""Exported records and the file beside them that proves where they came from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

from comity.client import Record
from comity.digest import canonical_json, hex_digest
from comity.errors import CertificateInvalid, ConfigError
from comity.export import ProvenExport, open_export, verify_export
from comity.merkle import CompactRange, leaf_hash
from comity.provenance import Provenance
from comity.strictjson import parse_json
from comity.trust import TrustStore
from comity_node.cli.context import extra
from comity_node.cli.record_files import AUTHOR, DATASET, SCORE, TASK, replacing

#: What the name of the file with the proof ends in, after the whole name of the exported one.
SUFFIX: Final = ".provenance.jsonl"
_MAX_LINE = 16 << 20
_PIECE = 1 << 20

#: Has the node sign what a file holds: its SHA-256, how many records, the Merkle root. Returns the statement.
Sign = Callable[[str, int, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Row:
    """One record as it stands in an exported file; what the form does not hold is None."""

    task_id: str
    author: str
    dataset: str
    score: int
    fields: Mapping[str, Any]
    record_digest: str | None = None
    agreement_digest: str | None = None


def proof_of(path: Path) -> Path:
    """Return where the proof of an exported file stands."""
    return path.with_name(path.name + SUFFIX)


class ProofWriter:
    """Collects the records' provenances while the file is written, in a scratch file beside the proof."""

    def __init__(self, file: IO[bytes], provenance: Callable[[str, str], bytes]) -> None:
        """Write lines to `file`; `provenance` returns that of a record, by its task and author."""
        self._file, self._provenance = file, provenance
        self._tree = CompactRange()

    def pass_on(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records; each one's provenance is written before it is handed out."""
        for record in records:
            line = self._provenance(record.task_id, record.author)
            if b"\n" in line or len(line) > _MAX_LINE:
                raise CertificateInvalid(f"the provenance of {record.task_id} does not fit into a line")
            self._tree = self._tree.append(leaf_hash(line))
            self._file.write(line + b"\n")
            yield record

    @property
    def root(self) -> bytes:
        """The Merkle root over what was written."""
        return self._tree.root()


def write_proof(
    path: Path, records: Iterable[Record], provenance: Callable[[str, str], bytes],
    write: Callable[[Iterable[Record]], int], sign: Sign,
) -> int:  # fmt: skip
    """Write an export and its proof; returns how many records there are.

    Args:
        path: the exported file.
        records: what to export, read once.
        provenance: returns a record's provenance, by its task and its author: a task's id is no secret, and another
            member may have used it, too.
        write: writes the file at `path` from the records that it is given, and returns how many.
        sign: has the node sign.

    Raises:
        ConfigError: a file cannot be written. An old proof is gone then: it would be that of another file.
    """
    proof = proof_of(path)
    lines = path.with_name(f".{path.name}.lines")
    try:
        proof.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with lines.open("w+b") as spool:
            writer = ProofWriter(spool, provenance)
            written = write(writer.pass_on(records))
            statement = sign(file_digest(path), written, writer.root)
            spool.seek(0)
            with replacing(proof) as scratch, scratch.open("wb") as file:
                file.write(statement + b"\n")
                while piece := spool.read(_PIECE):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", file=str(path)) from error
    finally:
        lines.unlink(missing_ok=True)
    return written


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from error


def verify_file(path: Path, trust: TrustStore) -> ProvenExport:
    """Verify an exported file by the proof that lies beside it.

    1. The proof's statement is signed by a member's node, and about a file with these bytes.
    2. The proof's other lines are those that the statement commits to, and each proves its record.
    3. The file's rows are these records, in this order, and nothing else.

    Raises:
        CertificateInvalid: one of these does not hold.
        TrustError, EnvelopeError, AgreementError: a document does not verify.
        ConfigError: a file cannot be read.
    """
    proof = proof_of(path)
    try:
        with proof.open("rb") as file:
            lines = _lines(file)
            proven = open_export(next(lines, b""), trust)
            if file_digest(path) != proven.export.sha256:
                raise CertificateInvalid(f"{path} is not the file that {proven.holder} has exported")
            rows = _rows(path, proven.export.form)
            for number, provenance in enumerate(verify_export(proven, lines, trust), start=1):
                _compare(next(rows, None), provenance, number, proven.export.form)
            if next(rows, None) is not None:
                raise CertificateInvalid("the file holds more rows than are proved")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(proof)) from error
    return proven


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(_MAX_LINE + 1):
        if not line.endswith(b"\n"):
            raise CertificateInvalid("a line of the proof is too long, or the last one is cut off")
        yield line[:-1]


def _rows(path: Path, form: str) -> Iterator[Row]:
    try:
        yield from _jsonl(path) if form == "jsonl" else _parquet(path)
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:  # the last: a table of another kind
        raise CertificateInvalid(f"{path} does not hold rows as an export has them: {error}") from error


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for line in _lines(file):
            yield Row(**parse_json(line, limit=_MAX_LINE))


def _parquet(path: Path) -> Iterator[Row]:
    with extra("node"):
        import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                task_id, author, dataset, score = (row.pop(name) for name in (TASK, AUTHOR, DATASET, SCORE))
                yield Row(task_id, author, dataset, score, row)


def _compare(row: Row | None, proven: Provenance, number: int, form: str) -> None:
    """Check that a row is a proven record; in a table every field has a column, and digests have none."""
    digests = (hex_digest(proven.record), proven.agreed.digest.hex()) if form == "jsonl" else (None, None)
    try:
        record = json.loads(proven.record)
        expected = Row(
            proven.task_id, proven.author, proven.agreed.terms.dataset, proven.certificate.score, record, *digests
        )  # fmt: skip
        if row is not None and form == "parquet":
            row = replace(row, fields={name: it for name, it in row.fields.items() if it is not None or name in record})
        alike = row is not None and canonical_json(asdict(row)) == canonical_json(asdict(expected))
    except (ValueError, TypeError, RecursionError):  # what no record can be, or a value that none can have
        alike = False
    if not alike:
        raise CertificateInvalid(f"row {number} of the file is not the record {proven.task_id} that is proved")
