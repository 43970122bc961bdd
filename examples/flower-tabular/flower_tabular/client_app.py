"""The member's side. Environment: COMITY_CONTROL, COMITY_FLOWER_SERVER, TABULAR_ROWS and TABULAR_SCHEMA.

A member that keeps to its own rows whatever the run says sets TABULAR_CERTIFIED=no.
"""

from __future__ import annotations

import os

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from comity.client import Client
from comity.flower.client import CERTIFIED_EXAMPLES, PRIVATE_EXAMPLES, comity_mod
from comity.flower.data import Scale
from comity.flower.manifest import array_record
from flower_tabular import task

app = ClientApp()


@app.train(mods=[comity_mod()])  # type: ignore[untyped-decorator]  # flwr ships no types
def train(message: Message, context: Context) -> Message:
    """Train on own rows and, if the run says so, on certified rows of others."""
    config = context.run_config
    layout = task.Layout.load(task.environment_path("TABULAR_SCHEMA"))
    rows, labels = task.read_rows(task.environment_path("TABULAR_ROWS"), layout)
    private, certified = len(labels), 0
    if config["certified"] and os.environ.get("TABULAR_CERTIFIED") != "no":
        with Client() as node:
            more = task.certified_rows(node, str(config["dataset"]), str(config["agreement"]), layout)
        rows, labels = np.concatenate([rows, more[0]]), np.concatenate([labels, more[1]])
        certified = len(more[1])
    scale = Scale.from_config(layout.fields, layout.label, message.content["config"])
    model = task.fit(
        {name: array.numpy() for name, array in message.content["arrays"].items()},
        scale.apply(rows),
        labels,
        iterations=int(config["local-iterations"]),
        inverse_regularization=float(config["inverse-regularization"]),
    )
    metrics = MetricRecord({PRIVATE_EXAMPLES: private, CERTIFIED_EXAMPLES: certified})
    return Message(RecordDict({"arrays": array_record(model), "metrics": metrics}), reply_to=message)
