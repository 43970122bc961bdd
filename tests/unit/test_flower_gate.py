"""The gate around a strategy, and the mod around a ClientApp, on a grid in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from comity.client import ReleasedUpdate
from comity.errors import EnvelopeMalformed, PolicyDenied
from comity.flower import packing
from comity.flower.client import REFUSED, SERVER_VARIABLE, comity_mod
from comity.flower.grid import PromptGrid
from comity.flower.manifest import (
    MANIFEST_RECORD,
    FederationTerms,
    array_record,
    manifest_record,
    packed_bytes,
    packed_record,
    read_manifest,
)
from comity.flower.scoring import Validation
from comity.flower.server import GateStrategy
from comity_node.demo.training import LocalConsortium, LocalGrid, LocalNode, _be_server

SERVER = "mercy.example"
TERMS = FederationTerms("tabular-1", SERVER, "ab" * 32)
START = {"w": np.zeros(3), "b": np.zeros(1)}
App = Callable[[Message, Context], Message]


@pytest.fixture(autouse=True)
def _in_a_server_app() -> None:
    _be_server()


@pytest.fixture
def consortium() -> LocalConsortium:
    return LocalConsortium()


def client(node: LocalNode, *, value: float = 1.0, rows: int = 10, server: str = SERVER) -> App:
    """A member whose model is `value` everywhere."""
    app: App = ClientApp()

    @app.train(mods=[comity_mod(lambda: nullcontext(node), server=server)])  # type: ignore[attr-defined, untyped-decorator]
    def train(message: Message, _: Context) -> Message:
        arrays = {name: array.numpy() + value for name, array in message.content["arrays"].items()}
        metrics = MetricRecord({"private-examples": rows, "certified-examples": 5, "secret-loss": 0.5})
        return Message(RecordDict({"arrays": array_record(arrays), "metrics": metrics}), reply_to=message)

    return app


def gate(node: LocalNode, **options: Any) -> GateStrategy:
    average = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    return GateStrategy(average, node=node, terms=TERMS, **options)


def run(strategy: GateStrategy, apps: Mapping[int, App], rounds: int = 1) -> dict[str, Any]:
    """Run a federation; returns the model."""
    grid = PromptGrid(LocalGrid(apps), interval_s=0.0)
    result = strategy.start(grid=grid, initial_arrays=array_record(START), num_rounds=rounds)
    return {name: array.numpy() for name, array in result.arrays.items()}


def altered(app: App, change: Callable[[RecordDict], None]) -> App:
    """A member that changes its reply after its node has signed it."""

    def call(message: Message, context: Context) -> Message:
        reply = app(message, context)
        change(reply.content)
        return reply

    return call


def names(consortium: LocalConsortium, *organizations: str) -> dict[int, App]:
    return {n: client(consortium.node(name)) for n, name in enumerate(organizations, start=1)}


def test_what_is_released_and_admitted_is_aggregated_by_signed_weights(consortium: LocalConsortium) -> None:
    strategy = gate(consortium.node(SERVER))
    apps = {
        1: client(consortium.node("a.example"), value=1.0, rows=5),
        2: client(consortium.node("b.example"), value=4.0, rows=15),
    }
    model = run(strategy, apps)
    np.testing.assert_allclose(model["w"], (1.0 * 10 + 4.0 * 20) / 30)
    (report,) = [one.to_json() for one in strategy.history]
    assert json.loads(json.dumps(report)) == report
    assert {entry["organization"]: entry["weight"] for entry in report["admitted"]} == {
        "a.example": 10,
        "b.example": 20,
    }


def test_only_counts_and_packed_arrays_leave(consortium: LocalConsortium) -> None:
    seen: list[RecordDict] = []
    run(gate(consortium.node(SERVER)), {1: altered(client(consortium.node("a.example")), seen.append)})
    (content,) = seen
    assert dict(content["metrics"]) == {"num-examples": 15, "private-examples": 10, "certified-examples": 5}
    assert set(content) == {"arrays", "metrics", MANIFEST_RECORD}
    assert packing.unpack(packed_bytes(content["arrays"]))["w"].tolist() == [1.0, 1.0, 1.0]


def drop_manifest(content: RecordDict) -> None:
    del content[MANIFEST_RECORD]


def other_arrays(content: RecordDict) -> None:
    content["arrays"] = packed_record(packing.pack({"w": np.full(3, 9.0), "b": np.zeros(1)}))


def plain_arrays(content: RecordDict) -> None:
    content["arrays"] = array_record({"w": np.full(3, 9.0), "b": np.zeros(1)})


def more_arrays(content: RecordDict) -> None:
    content["more"] = array_record({"w": np.zeros(1)})


def bent_manifest(content: RecordDict) -> None:
    signed = read_manifest(content[MANIFEST_RECORD])
    content[MANIFEST_RECORD] = manifest_record(
        replace(signed, manifest=signed.manifest[:-1] + bytes([signed.manifest[-1] ^ 1]))
    )


def no_chain(content: RecordDict) -> None:
    content[MANIFEST_RECORD] = ConfigRecord({"manifest": b"m", "chain": []})


def long_chain(content: RecordDict) -> None:
    content[MANIFEST_RECORD] = ConfigRecord({"manifest": b"m", "chain": [b"c"] * 9})


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(
    "change", [drop_manifest, other_arrays, plain_arrays, more_arrays, bent_manifest, no_chain, long_chain]
)
def test_an_update_that_its_node_did_not_sign_changes_nothing(
    consortium: LocalConsortium, change: Callable[[RecordDict], None]
) -> None:
    strategy = gate(consortium.node(SERVER))
    apps = {**names(consortium, "a.example"), 2: altered(client(consortium.node("bad.example"), value=99.0), change)}
    assert run(strategy, apps)["w"].tolist() == [1.0, 1.0, 1.0]
    refused = [entry for entry in strategy.history[0].entries if entry.trust == 0]
    assert [entry.node_id for entry in refused] == [2]


@pytest.mark.invariant("S5")
def test_a_manifest_is_good_for_one_round_only(consortium: LocalConsortium) -> None:
    kept: list[RecordDict] = []

    def replay(content: RecordDict) -> None:
        kept.append(RecordDict(dict(content)))
        for name, record in kept[0].items():
            content[name] = record

    strategy = gate(consortium.node(SERVER))
    run(strategy, {1: altered(client(consortium.node("a.example")), replay)}, rounds=2)
    assert [entry.trust > 0 for report in strategy.history for entry in report.entries] == [True, False]


@pytest.mark.invariant("S5")
def test_an_organization_counts_once_a_round(consortium: LocalConsortium) -> None:
    node = consortium.node("bad.example")
    strategy = gate(consortium.node(SERVER))
    apps = {1: client(node, value=1.0), 2: client(node, value=2.0), **{3: client(consortium.node("a.example"))}}
    run(strategy, apps)
    (refused,) = [entry for entry in strategy.history[0].entries if entry.trust == 0]
    assert refused.organization == "bad.example"


@pytest.mark.parametrize(
    "arrays",
    [
        {"w": np.zeros(4), "b": np.zeros(1)},
        {"w": np.zeros(3)},
        {"w": np.zeros(3, dtype="f4"), "b": np.zeros(1)},
        {"w": np.array([0.0, np.inf, 0.0]), "b": np.zeros(1)},
    ],
)
def test_arrays_that_do_not_fit_are_refused_though_signed(consortium: LocalConsortium, arrays: dict[str, Any]) -> None:
    app = ClientApp()
    node = consortium.node("bad.example")

    @app.train(mods=[comity_mod(lambda: nullcontext(node), server=SERVER)])  # type: ignore[untyped-decorator]
    def train(message: Message, _: Context) -> Message:
        metrics = MetricRecord({"private-examples": 1, "certified-examples": 0})
        return Message(RecordDict({"arrays": array_record(arrays), "metrics": metrics}), reply_to=message)

    strategy = gate(consortium.node(SERVER))
    assert run(strategy, {1: app}) == {}
    assert strategy.history[0].entries[0].reasons[0].startswith("invalid_record")


def test_scores_decide_and_are_reported(consortium: LocalConsortium) -> None:
    def validator(arrays: Mapping[str, Any]) -> Validation:
        good = float(arrays["w"].mean()) > 0
        return Validation(0.1, 0.99, 0.95) if good else Validation(3.0, 0.02, 0.1)

    honest = ("a.example", "b.example", "c.example")
    apps = {**names(consortium, *honest), 4: client(consortium.node("bad.example"), value=-5.0, rows=500)}
    scored = gate(consortium.node(SERVER), validator=validator)
    assert run(scored, apps)["w"].tolist() == [1.0, 1.0, 1.0]
    (refused,) = [entry for entry in scored.history[0].to_json()["refused"]]
    assert refused["organization"] == "bad.example"
    assert refused["auc"] == 0.02
    unscored = gate(consortium.node(SERVER), validator=validator, thresholds=None)
    assert run(unscored, apps)["w"].mean() < 0


class Denying:
    """A node whose policy says no."""

    def release_update(self, **_: Any) -> ReleasedUpdate:
        raise PolicyDenied("updates may not go there", rules=("no-updates",))


@pytest.mark.invariant("S1")
def test_what_the_policy_refuses_does_not_leave() -> None:
    replies: list[Message] = []
    app = ClientApp()

    @app.train(mods=[comity_mod(lambda: nullcontext(Denying()), server=SERVER)])  # type: ignore[untyped-decorator]
    def train(message: Message, _: Context) -> Message:
        metrics = MetricRecord({"private-examples": 1, "certified-examples": 0})
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)

    def call(message: Message, context: Context) -> Message:
        replies.append(app(message, context))
        return replies[-1]

    strategy = gate(LocalConsortium().node(SERVER))
    assert run(strategy, {1: call}) == {}
    assert replies[0].has_error()
    assert not replies[0].has_content()
    assert replies[0].error.code == REFUSED
    assert "no-updates" in replies[0].error.reason
    assert "no-updates" in strategy.history[0].entries[0].reasons[0]


def test_a_member_trains_only_for_the_server_that_it_chose(consortium: LocalConsortium) -> None:
    strategy = gate(consortium.node(SERVER))
    run(strategy, {1: client(consortium.node("a.example"), server="hope.example")})
    assert "trains for hope.example" in strategy.history[0].entries[0].reasons[0]


def test_a_member_must_say_whom_it_trains_for(consortium: LocalConsortium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVER_VARIABLE, raising=False)
    strategy = gate(consortium.node(SERVER))
    run(strategy, {1: client(consortium.node("a.example"), server="")})
    assert SERVER_VARIABLE in strategy.history[0].entries[0].reasons[0]
    monkeypatch.setenv(SERVER_VARIABLE, SERVER)
    strategy = gate(consortium.node(SERVER))
    assert run(strategy, {1: client(consortium.node("a.example"), server="")})["w"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("metrics", [{}, {"private-examples": 1}, {"private-examples": -1, "certified-examples": 0}])
def test_an_app_must_count_its_rows(consortium: LocalConsortium, metrics: dict[str, int]) -> None:
    app = ClientApp()
    node = consortium.node("a.example")

    @app.train(mods=[comity_mod(lambda: nullcontext(node), server=SERVER)])  # type: ignore[untyped-decorator]
    def train(message: Message, _: Context) -> Message:
        content = {"arrays": message.content["arrays"], "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    strategy = gate(consortium.node(SERVER))
    run(strategy, {1: app})
    assert "examples" in strategy.history[0].entries[0].reasons[0]


@pytest.mark.parametrize(
    "arguments", [("", SERVER, "ab" * 32), ("a b", SERVER, "ab" * 32), ("f", SERVER, "AB" * 32), ("f", SERVER, "ab")]
)
def test_terms_are_well_formed(arguments: tuple[str, str, str]) -> None:
    with pytest.raises(EnvelopeMalformed):
        FederationTerms(*arguments)


def test_a_record_that_is_not_packed_is_never_opened() -> None:
    with pytest.raises(EnvelopeMalformed):
        packed_bytes(array_record({"comity-packed": np.zeros(3, dtype=np.uint8)}))
    with pytest.raises(EnvelopeMalformed):
        packed_bytes(ArrayRecord())
