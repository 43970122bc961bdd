"""The server's side. Environment: COMITY_CONTROL, TABULAR_SCALE, TABULAR_HELDOUT and TABULAR_RESULT."""

from __future__ import annotations

import json

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from comity.client import Client
from comity.flower.data import Scale
from comity.flower.grid import PromptGrid
from comity.flower.manifest import FederationTerms, array_record
from comity.flower.server import GateStrategy
from comity.flower.validation import LogisticValidator
from flower_tabular import task

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]  # flwr ships no types
def main(grid: Grid, context: Context) -> None:
    """Run the rounds, and write the model and what each round let in to TABULAR_RESULT."""
    config = context.run_config
    scale = Scale.load(task.environment_path("TABULAR_SCALE"))
    rows, labels = task.read_rows(task.environment_path("TABULAR_HELDOUT"), scale)
    members = int(config["members"])
    average = FedAvg(fraction_evaluate=0.0, min_train_nodes=members, min_available_nodes=members)
    with Client() as node:
        organization = node.status().organization
        terms = FederationTerms(str(config["federation"]), organization, str(config["agreement"]))
        strategy = GateStrategy(average, node=node, terms=terms, validator=LogisticValidator(rows, labels))
        result = strategy.start(
            grid=PromptGrid(grid),
            initial_arrays=array_record(task.initial_model(len(scale.fields))),
            num_rounds=int(config["num-server-rounds"]),
            timeout=float(config["round-timeout"]),
        )
    model = {name: array.numpy().tolist() for name, array in result.arrays.items()}
    report = {"rounds": [one.to_json() for one in strategy.history], "model": model, "scale": scale.to_json()}
    task.environment_path("TABULAR_RESULT").write_text(json.dumps(report, indent=1), encoding="utf-8")
