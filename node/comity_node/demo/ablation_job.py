"""The ablation as a process of its own, beside the live training: `python -m comity_node.demo.ablation_job`.

Each seed's result becomes one line of JSON as soon as it is there.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from comity.flower.scoring import Validation
from comity_node.demo.ablation import SeedResult, Workload, run_ablation
from comity_node.demo.data import Table, breast_cancer, read_table
from comity_node.demo.homes import ORGANIZATIONS


def read_results(file: Path) -> list[SeedResult]:
    """Return the results that are in `file` so far."""
    results = []
    for line in file.read_text().splitlines() if file.exists() else []:
        fields = json.loads(line)
        arms = {name: Validation(**scores) for name, scores in fields.pop("arms").items()}
        results.append(SeedResult(arms=arms, **fields))
    return results


def load_data(file: Path | None, label: str) -> Table:
    """Return the user's table, or the Wisconsin data if there is none."""
    return read_table(file, label) if file is not None else breast_cancer()


def main() -> None:
    """Run all seeds, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the file that gets one line a seed")
    parser.add_argument("--seeds", type=int, required=True, help="how many")
    parser.add_argument("--records", type=int, required=True, help="rows of each organization")
    parser.add_argument("--batch", type=int, required=True, help="rows of a batch")
    parser.add_argument("--data", type=Path, help="a CSV or Parquet file instead of the Wisconsin data")
    parser.add_argument("--label", default="", help="its label column")
    arguments = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary files go

    def keep(result: SeedResult) -> None:
        with arguments.out.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    run_ablation(
        load_data(arguments.data, arguments.label),
        ORGANIZATIONS,
        range(arguments.seeds),
        workload=Workload(records=arguments.records, batch=arguments.batch),
        on_seed=keep,
    )


if __name__ == "__main__":
    main()
