"""What the report says about the machine, and the score of the live run's model on the held-out test set."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "comity", "flwr", "libp2p", "trio", "grpcio", "cryptography", "onnxruntime", "onnxruntime-gpu", "scikit-learn",
    "numpy",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Return processors, platform and versions; no name of the machine and no path."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpus": os.cpu_count() or 1,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": versions,
    }


def held_out_score(flower: Mapping[str, Any], test_file: Path, schema_file: Path) -> dict[str, Any]:
    """Score the model of a live run on the held-out test set, by ONNX Runtime.

    Args:
        flower: what the server app reported: `model` and `standardization`.
        test_file: the rows that nobody trained on.
        schema_file: their schema.

    Returns:
        `auc`, `accuracy`, `loss` and `rows`.

    Raises:
        ConfigError: the file, the schema or the constants do not fit.
        InvalidRecord: the model does not fit the rows.
    """
    import numpy as np

    from comity.flower.data import Scale
    from comity.flower.validation import LogisticValidator
    from comity_node.demo.data import load_table
    from comity_node.validators.schema import Schema

    table = load_table(test_file, Schema.load(schema_file))
    constants = flower["standardization"]
    scale = Scale.from_config(constants["fields"], constants["label"], constants)
    order = [table.schema.features.index(name) for name in scale.fields]
    validator = LogisticValidator(scale.apply(table.rows[:, order]), table.labels)
    scores = validator({name: np.asarray(values, dtype=np.float64) for name, values in flower["model"].items()})
    return {"auc": scores.auc, "accuracy": scores.accuracy, "loss": scores.loss, "rows": len(table)}
