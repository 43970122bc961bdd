"""What all tokens of one agreement that pass in one moment have in common, and what is owed for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from comity.agreement import Agreed
from comity.errors import AgreementError, InvalidRecord, PolicyDenied
from comity.v1.flow_pb2 import FlowHop
from comity_node.admission.attested import DISTANCE
from comity_node.admission.drafts import OF_OTHERS, Dataset, check_promised
from comity_node.admission.gate import Gate
from comity_node.admission.labels import terms_labels
from comity_node.policy import obligations as duties
from comity_node.policy.conditions import LabelValue
from comity_node.policy.model import Decision, Obligations, Onward, Request
from comity_node.protocol.flow import Flow
from comity_node.protocol.token import Token

#: Agreements, and decisions under one, of which it is remembered what is owed.
_PROMISES_KEPT: Final = 256


@dataclass(frozen=True, slots=True)
class Owed:
    """What is owed for a token: by the agreement and the rules that let it pass.

    Attributes:
        obligations: merged.
        has_form: whether some of them change or look at its fields.
    """

    obligations: Obligations
    has_form: bool


class Promises:
    """What is owed under agreements, which never changes: remembered, since each batch of tokens asks for it."""

    def __init__(self) -> None:
        """Know of none."""
        self._promised: dict[bytes, Obligations] = {}
        self._owed: dict[tuple[bytes, int, bool], tuple[Obligations, Owed]] = {}

    def promised(self, agreed: Agreed) -> Obligations:
        """Return what an agreement asks for."""
        promised = self._promised.get(agreed.digest)
        if promised is None:
            promised = duties.from_terms(agreed.terms.obligations)
            _make_room(self._promised)
            self._promised[agreed.digest] = promised
        return promised

    def owed(self, agreed: Agreed, asked: Obligations, *, leaves: bool) -> Owed:
        """Return what an agreement and a decision ask for together.

        Raises:
            PolicyDenied: the agreement binds others to less than the decision asks of them.
        """
        key = (agreed.digest, id(asked), leaves)
        if (known := self._owed.get(key)) is not None:  # it is the same object: it is kept, so the id is its own
            return known[1]
        if leaves:
            check_promised(agreed, asked, OF_OTHERS)
        owed = duties.merge(self.promised(agreed), asked)
        both = Owed(owed, bool(owed.redact or owed.generalize or owed.mask or owed.hash))
        _make_room(self._owed)
        self._owed[key] = asked, both
        return both


def _make_room(kept: dict[Any, Any]) -> None:
    if len(kept) >= _PROMISES_KEPT:
        kept.clear()


class Frame:
    """One agreement, as it is at the moment in which tokens pass."""

    def __init__(
        self, gate: Gate, datasets: Mapping[str, Dataset], agreed: Agreed, flow: Flow, promises: Promises
    ) -> None:  # fmt: skip
        """Look at everything that is the same for all of them."""
        self.agreed = agreed
        self.flow = flow
        self.me = gate.identity.organization
        self.promised = promises.promised(agreed)
        self.now_ms = gate.now_ms()
        self._promises = promises
        self._requests: dict[tuple[str, str, str, frozenset[str]], Request] = {}
        self._parties: set[tuple[str, str]] = set()
        self._datasets = datasets
        self._labels: Mapping[str, LabelValue] = terms_labels(agreed, gate.asks)
        self._asks_bytes, self._asks_distance = gate.asks("bytes"), gate.asks("distance")

    @property
    def latest_ms(self) -> int:
        """The latest deadline that a task may have which begins now."""
        return min(self.now_ms + self.flow.limits.seconds * 1000, self.agreed.terms.expires_ms)

    @property
    def onward(self) -> bool:
        """Whether tokens may go from one organization to a third."""
        return self.promised.onward is Onward.ALLOWED

    @property
    def dataset(self) -> Dataset:
        """What is known here about the agreement's dataset.

        Raises:
            PolicyDenied: nothing: what a rule asks about its rows cannot be decided.
        """
        name = self.agreed.terms.dataset
        try:
            return self._datasets[name]
        except KeyError:
            raise PolicyDenied(f"this node has no dataset {name!r}; name it in node.yaml") from None

    def request(
        self, other: str, action: str, role: str, state: Mapping[str, Any], token: Token, hop: FlowHop | None = None
    ) -> Request:
        """Return the question about a token; `hop` is the last one of a token that comes in."""
        fields = paths_of(state)
        if self._asks_bytes or self._asks_distance:
            return self._request(other, action, role, fields, self._more_labels(state, token, hop))
        request = self._requests.get(key := (other, action, role, fields))
        if request is None:
            request = self._requests[key] = self._request(other, action, role, fields, self._labels)
        return request

    def _request(
        self, other: str, action: str, role: str, fields: frozenset[str], labels: Mapping[str, LabelValue]
    ) -> Request:
        terms = self.agreed.terms
        return Request(
            action=action, organization=other, role=role, purpose=terms.purpose, dataset=terms.dataset,
            kind="synthetic", fields=fields, labels=labels,
        )  # fmt: skip

    def check_parties(self, sender: str, home: str) -> None:
        """Check that `sender` may bring a token of `home` here now.

        Raises:
            AgreementError: it may not; says why.
        """
        if (sender, home) in self._parties:
            return
        agreed = self.agreed
        agreed.check_active(self.now_ms)
        if not {self.me, sender, home} <= agreed.participants or home not in agreed.homes:
            raise AgreementError(f"{sender} brought a token of somebody who does not take part")
        if home not in (self.me, sender) and not self.onward:
            raise AgreementError("the agreement does not let it go on from one organization to a third (onward)")
        self._parties.add((sender, home))

    def _more_labels(self, state: Mapping[str, Any], token: Token, hop: FlowHop | None) -> Mapping[str, LabelValue]:
        labels = dict(self._labels)
        if self._asks_bytes:
            labels["bytes"] = len(token.state)
        if self._asks_distance:
            distance = attested_distance(hop) if hop is not None else self._distance(state)
            if distance is not None:
                labels["distance"] = distance
        return labels

    def owed(self, decision: Decision, *, leaves: bool) -> Owed:
        """Return what is owed for tokens that this decision lets pass.

        Raises:
            PolicyDenied: the agreement binds others to less than the rule asks of them; or it asks for what cannot be
                done to a task under way: noise would be drawn at each hop anew, and rows that pass by themselves are no
                batch to be rare in.
        """
        both = self._promises.owed(self.agreed, decision.obligations, leaves=leaves)
        owed = both.obligations
        if owed.noise or owed.k_anonymity:
            what = "noise" if owed.noise else "k_anonymity"
            raise PolicyDenied(f"{what} cannot be done to a task under way: have the rule ask for it of records alone")
        if owed.expire_ms is not None and owed.expire_ms <= self.now_ms:
            raise PolicyDenied("its obligations say that it must be gone by now (expire)")
        return both

    def measure(self, least: float, state: Mapping[str, Any]) -> bool:
        """Return whether a state is a whole row, and then one that is far enough from private ones; else it is none.

        Raises:
            PolicyDenied: it is too near, has a part of a row, or there is nothing to measure to.
        """
        dataset = self.dataset
        fields = dataset.schema.fields
        has = [name for name in fields if name in state]
        if not has:
            return False
        if len(has) < len(fields):
            raise PolicyDenied("it has a part of a row, whose distance to private rows cannot be measured")
        if dataset.private is None:
            raise PolicyDenied("there are no private rows to measure min_distance_to_private to")
        try:
            distance = float(dataset.private.distances([{name: state[name] for name in has}])[0])
        except InvalidRecord as error:
            raise PolicyDenied(f"its distance to private rows cannot be measured: {error}") from error
        if distance < least:
            raise PolicyDenied(f"{distance:.3f} from a private row; {least:g} is the least")
        return True

    def is_row(self, state: Mapping[str, Any]) -> bool:
        """Whether a state has anything of a row of the dataset.

        Raises:
            PolicyDenied: nothing is known here about the dataset.
        """
        return any(name in state for name in self.dataset.schema.fields)

    def _distance(self, state: Mapping[str, Any]) -> float | None:
        """Return how far a whole row is from private ones; None if that cannot be said."""
        dataset = self._datasets.get(self.agreed.terms.dataset)
        if dataset is None or dataset.private is None:
            return None
        fields = dataset.schema.fields
        if not all(name in state for name in fields):
            return None
        try:
            return float(dataset.private.distances([{name: state[name] for name in fields}])[0])
        except InvalidRecord:  # a field was redacted, or is text by now
            return None


def attested_distance(hop: FlowHop) -> float | None:
    """Return the distance to private rows that a hop attests, None if it attests none."""
    try:
        return float(hop.attested[DISTANCE]) if DISTANCE in hop.attested else None
    except ValueError:
        return None


def attests(hop: FlowHop, least: float) -> bool:
    """Whether a hop attests a distance to private rows of at least so much."""
    distance = attested_distance(hop)
    return distance is not None and distance >= least


def paths_of(state: Mapping[str, Any]) -> frozenset[str]:
    """Return the paths of a state's fields: `notes.text` for what is in an object, a list's own for what it holds."""
    if not any(isinstance(value, dict | list) for value in state.values()):
        return frozenset(state)
    paths: set[str] = set()
    todo: list[tuple[str, object]] = list(state.items())
    while todo:
        path, value = todo.pop()
        if isinstance(value, dict) and value:
            todo += [(f"{path}.{name}", inner) for name, inner in value.items()]
        elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
            todo += [(path, item) for item in value]
        else:
            paths.add(path)
    return frozenset(paths)
