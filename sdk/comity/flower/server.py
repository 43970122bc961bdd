"""The server's side: a strategy around any other one that lets in only what its own node admits.

    strategy = GateStrategy(FedAvg(fraction_evaluate=0.0), node=client, terms=terms, validator=validator)
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)

The gate must be the outermost wrapper: a strategy around it would see replies that nobody has looked at. It looks at
single updates, so it excludes secure aggregation, which hides them.

The order for each reply, stopping at the first failure:
1. it is no error, and carries packed arrays and a manifest;
2. the server organization's node admits it: signature, chain, audience, agreement, round, digest, once;
3. its organization has no other update in this round;
4. it unpacks to the same arrays as the global model, with finite values;
5. its weight is at most what the signed manifest says it was trained on;
6. it stands beside the others' updates and on held-out rows (`comity.flower.scoring`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from comity.client import Admission
from comity.errors import AgentFailed, ComityError, EnvelopeMalformed, InvalidRecord, PolicyDenied, ReplayedMessage
from comity.flower import packing
from comity.flower.client import EXAMPLES
from comity.flower.manifest import (
    MANIFEST_RECORD,
    FederationTerms,
    add_terms,
    array_record,
    pack_record,
    packed_bytes,
    packed_record,
    read_manifest,
)
from comity.flower.scoring import Thresholds, Update, Validation, Verdict, judge
from comity.flower.validation import Validator

Arrays = Mapping[str, npt.NDArray[Any]]


class AdmittingNode(Protocol):
    """What the gate needs of the server organization's node; `comity.client.Client` is one."""

    def admit_update(
        self,
        *,
        manifest: bytes,
        chain: Sequence[bytes],
        federation: str,
        round_number: int,
        update_digest: bytes,
    ) -> Admission:
        """Verify the manifest and decide by policy whether the update may be taken in."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One reply of one round. `trust` 0: refused, with the reasons; 1: full weight."""

    node_id: int
    organization: str
    trust: float
    weight: float
    reasons: tuple[str, ...]
    private_examples: int = 0
    certified_examples: int = 0
    cosine: float | None = None
    distance: float | None = None
    validation: Validation | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry as JSON: node ids as strings, since they do not fit a JSON number."""
        scores = self.validation
        return {
            "node": str(self.node_id),
            "organization": self.organization,
            "admitted": self.trust > 0,
            "trust": round(self.trust, 4),
            "weight": round(self.weight, 4),
            "reasons": list(self.reasons),
            "private_examples": self.private_examples,
            "certified_examples": self.certified_examples,
            "cosine": _rounded(self.cosine),
            "distance": _rounded(self.distance),
            "auc": _rounded(scores.auc if scores else None),
            "loss": _rounded(scores.loss if scores else None),
            "accuracy": _rounded(scores.accuracy if scores else None),
        }


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What one round let in; `aggregated` is how the new global model does on the held-out rows."""

    round: int
    entries: tuple[Entry, ...]
    aggregated: Validation | None

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        entries = [entry.to_json() for entry in self.entries]
        scores = self.aggregated
        return {
            "round": self.round,
            "admitted": [entry for entry in entries if entry["admitted"]],
            "refused": [entry for entry in entries if not entry["admitted"]],
            "auc": _rounded(scores.auc if scores else None),
            "loss": _rounded(scores.loss if scores else None),
            "accuracy": _rounded(scores.accuracy if scores else None),
        }


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A reply that the node has admitted and whose arrays fit."""

    node_id: int
    arrays: Arrays
    update: Update
    private_examples: int
    certified_examples: int


@dataclass(slots=True)
class _Round:
    """The model that a round started from."""

    record_key: str = "arrays"
    arrays: Arrays = field(default_factory=dict)


class GateStrategy(Strategy):  # type: ignore[misc]  # flwr ships no types
    """Wraps a strategy: packs what goes out, and lets in what is admitted and scored.

    Args:
        inner: the strategy that samples and aggregates; it sees plain arrays and capped weights.
        node: the server organization's own node.
        terms: under what the federation runs.
        validator: scores a model on the server organization's held-out rows; None leaves that part out.
        thresholds: limits of the scoring; None for no scoring at all (only for measuring what it is worth).
    """

    def __init__(
        self,
        inner: Strategy,
        *,
        node: AdmittingNode,
        terms: FederationTerms,
        validator: Validator | None = None,
        thresholds: Thresholds | None = Thresholds(),  # noqa: B008  (frozen)
    ) -> None:
        self._inner = inner
        self._node = node
        self._terms = terms
        self._validator = validator
        self._thresholds = thresholds
        self._round = _Round()
        self._origin: Arrays | None = None
        self.history: list[RoundReport] = []

    def summary(self) -> None:
        """Log the inner strategy's configuration."""
        self._inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Pack the arrays and add the terms to what the inner strategy sends."""
        plain = {name: array.numpy() for name, array in arrays.items()}
        if self._origin is None:
            self._origin = plain
        packed = packed_record(pack_record(arrays))
        messages = list(self._inner.configure_train(server_round, arrays, config, grid))
        for message in messages:
            for key in list(message.content.array_records):
                self._round = _Round(key, plain)
                message.content[key] = packed
            for record in message.content.config_records.values():
                add_terms(record, self._terms, server_round)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate what passes the gate; the global model stays as it is if nothing does."""
        candidates, entries = self._candidates(server_round, list(replies))
        verdicts = self._judge(candidates)
        admitted: list[Message] = []
        for (message, candidate), verdict in zip(candidates, verdicts, strict=True):
            entry = _entry(candidate, verdict)
            entries.append(entry)
            if entry.trust > 0 and entry.weight > 0:
                admitted.append(self._plain(message, candidate.arrays, entry.weight))
        arrays, metrics = self._inner.aggregate_train(server_round, admitted) if admitted else (None, None)
        self.history.append(RoundReport(server_round, tuple(entries), self._validate_record(arrays)))
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the inner strategy."""
        messages: Iterable[Message] = self._inner.configure_evaluate(server_round, arrays, config, grid)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Leave it to the inner strategy."""
        return self._inner.aggregate_evaluate(server_round, replies)

    def _candidates(
        self, server_round: int, replies: Sequence[Message]
    ) -> tuple[list[tuple[Message, _Candidate]], list[Entry]]:
        """Steps 1 to 5 for each reply: those that may be scored, and the entries of the others."""
        candidates: list[tuple[Message, _Candidate]] = []
        refused: list[Entry] = []
        seen: set[str] = set()
        for message in replies:
            organization = ""
            try:
                packed, answer = self._identify(message, server_round)
                organization = answer.organization
                candidate = self._fit(message.metadata.src_node_id, packed, answer, seen)
            except ComityError as error:
                reason = f"{error.code}: {error.diagnostics()}"
                refused.append(Entry(message.metadata.src_node_id, organization, 0.0, 0.0, (reason,)))
            else:
                seen.add(organization)
                candidates.append((message, candidate))
        return candidates, refused

    def _identify(self, message: Message, server_round: int) -> tuple[bytes, Admission]:
        """Steps 1 and 2; raises what is wrong with the reply itself."""
        if message.has_error():
            raise AgentFailed(f"the member sent no update: {message.error.reason}")
        signed = read_manifest(message.content.config_records.get(MANIFEST_RECORD))
        if len(message.content.array_records) != 1:
            raise EnvelopeMalformed("a train reply holds one record of arrays")
        packed = packed_bytes(next(iter(message.content.array_records.values())))
        answer = self._node.admit_update(
            manifest=signed.manifest,
            chain=signed.chain,
            federation=self._terms.federation,
            round_number=server_round,
            update_digest=packing.digest(packed),
        )
        return packed, answer

    def _fit(self, node_id: int, packed: bytes, answer: Admission, seen: set[str]) -> _Candidate:
        """Steps 2 to 5; raises why the update is not taken into account."""
        if answer.code:
            raise PolicyDenied(f"{answer.code}: {answer.reason}")
        if answer.organization in seen:
            raise ReplayedMessage(f"{answer.organization} has sent another update in this round")
        arrays = packing.unpack(packed)
        _check_fit(arrays, self._round.arrays)
        weight = float(answer.private_examples + answer.certified_examples)
        validation = self._validator(arrays) if self._validator else None
        update = Update(answer.organization, _flat(arrays), weight, validation)
        return _Candidate(node_id, arrays, update, answer.private_examples, answer.certified_examples)

    def _judge(self, candidates: Sequence[tuple[Message, _Candidate]]) -> Sequence[Verdict]:
        """Step 6."""
        updates = [candidate.update for _, candidate in candidates]
        if self._thresholds is None:
            return [Verdict(update.organization, 1.0, (), None, None, update.validation) for update in updates]
        current = self._validator(self._round.arrays) if self._validator and self._round.arrays else None
        origin = _flat(self._origin or {})
        return judge(updates, origin=origin, current=current, thresholds=self._thresholds)

    def _plain(self, message: Message, arrays: Arrays, weight: float) -> Message:
        """Return the reply as the inner strategy knows replies: plain arrays and a weight, nothing else."""
        content = RecordDict(
            {self._round.record_key: array_record(arrays), "metrics": MetricRecord({EXAMPLES: weight})}
        )
        return Message(content=content, metadata=message.metadata)

    def _validate_record(self, arrays: ArrayRecord | None) -> Validation | None:
        if arrays is None or self._validator is None:
            return None
        return self._validator({name: array.numpy() for name, array in arrays.items()})


def _entry(candidate: _Candidate, verdict: Verdict) -> Entry:
    return Entry(
        node_id=candidate.node_id,
        organization=candidate.update.organization,
        trust=verdict.trust,
        weight=candidate.update.weight * verdict.trust,
        reasons=verdict.reasons,
        private_examples=candidate.private_examples,
        certified_examples=candidate.certified_examples,
        cosine=verdict.cosine,
        distance=verdict.distance,
        validation=verdict.validation,
    )


def _check_fit(arrays: Arrays, expected: Arrays) -> None:
    """Raise InvalidRecord unless names, shapes and types are the global model's and all values are finite."""
    layout = {name: (array.shape, array.dtype.newbyteorder("<")) for name, array in arrays.items()}
    if layout != {name: (array.shape, array.dtype.newbyteorder("<")) for name, array in expected.items()}:
        raise InvalidRecord("the update's arrays have other names, shapes or types than the global model's")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise InvalidRecord("the update holds values that are not finite")


def _flat(arrays: Arrays) -> npt.NDArray[np.float64]:
    parts = [np.asarray(arrays[name], dtype=np.float64).ravel() for name in sorted(arrays)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, 4)
