"""Federated training inside one process: the Flower app of examples/flower-tabular without Flower's processes.

The same strategy, gate, mod, packing and model as in the real run; only the network, the processes and the node's
policy are left out. A run of three rounds takes a fraction of a second, so it is what measurements over many seeds
use.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from comity.client import Admission, ReleasedUpdate
from comity.envelope import open_document, sign_document
from comity.errors import ComityError, ConfigError
from comity.flower.client import CERTIFIED_EXAMPLES, PRIVATE_EXAMPLES, comity_mod
from comity.flower.manifest import FederationTerms, array_record
from comity.flower.scoring import Thresholds, Validation, validate
from comity.flower.server import GateStrategy, RoundReport
from comity.flower.validation import COEFFICIENTS, INTERCEPT, Validator, predict
from comity.signing import PrivateKey
from comity.v1.control_pb2 import UpdateManifest

Arrays = dict[str, npt.NDArray[Any]]
Matrix = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

#: `flwr.common.constant.SUPERLINK_NODE_ID`.
SUPERLINK_NODE_ID = 1
_PACKAGE = "flower_tabular"


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody who trains: standardized rows (n, d), labels (n,), and how many of the rows are certified ones."""

    organization: str
    rows: Matrix
    labels: Labels
    certified: int = 0


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """How a model is trained; the defaults are those of the example app."""

    rounds: int = 3
    iterations: int = 20
    inverse_regularization: float = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The model that came out, and what each round let in."""

    model: Arrays
    history: tuple[RoundReport, ...]


class TabularTask(Protocol):
    """The part of the example app's `task` module that is used here."""

    def initial_model(self, width: int) -> Arrays:
        """Return the model that training starts from."""

    def fit(
        self,
        model: Mapping[str, npt.NDArray[Any]],
        rows: Matrix,
        labels: Labels,
        *,
        iterations: int,
        inverse_regularization: float,
    ) -> Arrays:
        """Train on from a model."""


def app_directory() -> Path:
    """Return the directory of the example Flower app.

    Raises:
        ConfigError: it is not there: neither in a checkout nor beside this module.
    """
    here = Path(__file__).resolve()
    for candidate in (here.parent / "flower-tabular", here.parents[3] / "examples" / "flower-tabular"):
        if (candidate / "pyproject.toml").is_file():
            return candidate
    raise ConfigError("examples/flower-tabular is missing; run from a checkout of the repository")


@cache
def tabular_task() -> TabularTask:
    """Import the example app's `task` module from its directory.

    Raises:
        ConfigError: the app is missing.
    """
    directory = app_directory() / _PACKAGE
    for name, file in ((_PACKAGE, directory / "__init__.py"), (f"{_PACKAGE}.task", directory / "task.py")):
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ConfigError("cannot import the example app", file=str(file))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return cast("TabularTask", sys.modules[f"{_PACKAGE}.task"])


def evaluate(model: Mapping[str, npt.NDArray[Any]], rows: Matrix, labels: Labels) -> Validation:
    """Score a model on rows, by ONNX Runtime."""
    return validate(predict(model[COEFFICIENTS], model[INTERCEPT], rows.astype(np.float32)), labels)


def train_locally(member: Member, parameters: Hyperparameters) -> Arrays:
    """Train one member alone, for as many steps as a federated run gives it in all its rounds."""
    task = tabular_task()
    return task.fit(
        task.initial_model(member.rows.shape[1]),
        member.rows,
        member.labels,
        iterations=parameters.iterations * parameters.rounds,
        inverse_regularization=parameters.inverse_regularization,
    )


def train_federated(
    members: Sequence[Member],
    parameters: Hyperparameters,
    *,
    server: str,
    validator: Validator | None = None,
    thresholds: Thresholds | None = None,
) -> Outcome:
    """Train all members together, in this process.

    Args:
        members: at least two, of different organizations.
        parameters: of the training.
        server: the organization that aggregates.
        validator: scores updates on the server's held-out rows.
        thresholds: of the scoring; None: updates are not scored, as in plain federated averaging.
    """
    _be_server()
    consortium = LocalConsortium()
    task = tabular_task()
    apps = {
        number: _client_app(member, parameters, consortium.node(member.organization), server)
        for number, member in enumerate(members, start=1)
    }
    average = FedAvg(fraction_evaluate=0.0, min_train_nodes=len(members), min_available_nodes=len(members))
    terms = FederationTerms("in-process", server, "0" * 64)
    gate = GateStrategy(average, node=consortium.node(server), terms=terms, validator=validator, thresholds=thresholds)
    start = task.initial_model(members[0].rows.shape[1])
    result = gate.start(grid=LocalGrid(apps), initial_arrays=array_record(start), num_rounds=parameters.rounds)
    model = {name: array.numpy() for name, array in result.arrays.items()}
    return Outcome(model or start, tuple(gate.history))


def _be_server() -> None:
    """Messages name the task that makes them, which Flower sets once in a process of its own; here it is this one."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 0, SUPERLINK_NODE_ID


def _client_app(member: Member, parameters: Hyperparameters, node: LocalNode, server: str) -> ClientApp:
    app = ClientApp()
    mod = comity_mod(lambda: nullcontext(node), server=server)

    @app.train(mods=[mod])  # type: ignore[untyped-decorator]  # flwr ships no types
    def train(message: Message, _: Context) -> Message:
        model = tabular_task().fit(
            {name: array.numpy() for name, array in message.content["arrays"].items()},
            member.rows,
            member.labels,
            iterations=parameters.iterations,
            inverse_regularization=parameters.inverse_regularization,
        )
        counts = {PRIVATE_EXAMPLES: len(member.labels) - member.certified, CERTIFIED_EXAMPLES: member.certified}
        return Message(RecordDict({"arrays": array_record(model), "metrics": MetricRecord(counts)}), reply_to=message)

    return app


class LocalGrid(Grid):  # type: ignore[misc]  # flwr ships no types
    """A grid whose nodes are ClientApps of this process, called one after the other."""

    def __init__(self, apps: Mapping[int, Callable[[Message, Context], Message]]) -> None:
        self._apps = dict(apps)
        self._replies: dict[str, Message] = {}
        self._count = 0

    def set_run(self, run: Any) -> None:  # noqa: ANN401  (flwr's Run)
        """There is one run only."""

    @property
    def run(self) -> Any:  # noqa: ANN401  (flwr's Run)
        """There is one run only, without a description."""
        return None

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes' ids."""
        return list(self._apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Call the apps; their replies wait until they are pulled."""
        ids = []
        for message in messages:
            self._count += 1
            identity = str(self._count)
            message.metadata.__dict__["_message_id"] = identity
            node = message.metadata.dst_node_id
            context = Context(run_id=0, node_id=node, node_config={}, state=RecordDict(), run_config={})
            copy = Message(RecordDict(dict(message.content)), metadata=message.metadata)
            self._replies[identity] = self._apps[node](copy, context)
            ids.append(identity)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand out replies, each once."""
        return [self._replies.pop(identity) for identity in message_ids if identity in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Call the apps and return their replies."""
        return self.pull_messages(list(self.push_messages(messages)))


class LocalConsortium:
    """The keys of organizations that meet in one process."""

    def __init__(self) -> None:
        self._keys: dict[str, PrivateKey] = {}

    def node(self, organization: str) -> LocalNode:
        """Return the node of an organization; it gets a key when it is first asked for."""
        self._keys.setdefault(organization, PrivateKey.generate())
        return LocalNode(organization, self._keys)


class LocalNode:
    """Stands in for a node: it signs and checks manifests as one does, but has neither policy nor certificates."""

    def __init__(self, organization: str, keys: Mapping[str, PrivateKey]) -> None:
        self._organization = organization
        self._keys = keys
        self._seen: set[bytes] = set()

    def release_update(
        self,
        *,
        to_organization: str,
        agreement: str,
        federation: str,
        round_number: int,
        update_digest: bytes,
        private_examples: int,
        certified_examples: int,
    ) -> ReleasedUpdate:
        """Sign a manifest."""
        key = self._keys[self._organization]
        manifest = UpdateManifest(
            organization=self._organization,
            to_organization=to_organization,
            agreement_digest=agreement,
            federation=federation,
            round=round_number,
            update_digest=update_digest,
            private_examples=private_examples,
            certified_examples=certified_examples,
        )
        return ReleasedUpdate(sign_document(key, "update", manifest.SerializeToString()), (key.public_key,))

    def admit_update(
        self, *, manifest: bytes, chain: Sequence[bytes], federation: str, round_number: int, update_digest: bytes
    ) -> Admission:
        """Check a manifest: signature, audience, federation, round, digest, once."""
        try:
            document = open_document(manifest, "update")
        except ComityError as error:
            return Admission(error.code, str(error), "", 0, 0)
        stated = UpdateManifest.FromString(document.body)
        key = self._keys.get(stated.organization)
        expected = (self._organization, federation, round_number, update_digest)
        if key is None or document.signer != key.public_key or tuple(chain) != (key.public_key,):
            return Admission("chain_invalid", "not signed by the organization that it names", "", 0, 0)
        if (stated.to_organization, stated.federation, stated.round, stated.update_digest) != expected:
            return Admission(
                "wrong_audience", "made for another federation, round or update", stated.organization, 0, 0
            )
        if manifest in self._seen:
            return Admission("replayed", "this manifest has been admitted before", stated.organization, 0, 0)
        self._seen.add(manifest)
        return Admission("", "", stated.organization, stated.private_examples, stated.certified_examples)
