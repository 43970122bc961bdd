"""The server's side. Environment: COMITY_CONTROL, TABULAR_SCHEMA, TABULAR_HELDOUT and TABULAR_RESULT."""

from __future__ import annotations

import json

from flwr.app import ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from comity.client import Client
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
    layout = task.Layout.load(task.environment_path("TABULAR_SCHEMA"))
    heldout, labels = task.read_rows(task.environment_path("TABULAR_HELDOUT"), layout)
    members = int(config["members"])
    average = FedAvg(fraction_evaluate=0.0, min_train_nodes=members, min_available_nodes=members)
    with Client() as node:
        # An organization has one update a round: the run's id keeps the rounds of two runs apart.
        federation = f"{config['federation']}-{context.run_id}"
        terms = FederationTerms(federation, node.status().organization, str(config["agreement"]))
        certified, _ = task.certified_rows(node, str(config["dataset"]), terms.agreement_digest, layout)
        scale = task.shared_scale(certified, layout)
        validator = LogisticValidator(scale.apply(heldout), labels)
        strategy = GateStrategy(average, node=node, terms=terms, validator=validator)
        result = strategy.start(
            grid=PromptGrid(grid),
            initial_arrays=array_record(task.initial_model(len(layout.fields))),
            num_rounds=int(config["num-server-rounds"]),
            train_config=ConfigRecord(scale.to_config()),
            timeout=float(config["round-timeout"]),
        )
    report = {
        "rounds": [one.to_json() for one in strategy.history],
        "model": {name: array.numpy().tolist() for name, array in result.arrays.items()},
        "standardization": {"fields": list(layout.fields), "label": layout.label, **scale.to_config()},
    }
    task.environment_path("TABULAR_RESULT").write_text(json.dumps(report, indent=1), encoding="utf-8")
