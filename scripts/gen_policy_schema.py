"""Writes the JSON Schemas of policies and their cases, or (--check) fails if those in policies/ are not current."""

import argparse
import json
from pathlib import Path

from comity_node.policy.json_schema import cases_schema, policy_schema

POLICIES = Path(__file__).resolve().parent.parent / "policies"
SCHEMAS = {"policy.schema.json": policy_schema, "cases.schema.json": cases_schema}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is not current")
    check = parser.parse_args().check
    wrong = 0
    for name, make in SCHEMAS.items():
        path, text = POLICIES / name, json.dumps(make(), indent=1) + "\n"
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{name} is not current: run scripts/gen_policy_schema.py")
            wrong = 1
    return wrong


if __name__ == "__main__":
    raise SystemExit(main())
