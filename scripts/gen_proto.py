"""Generates the protobuf stubs under sdk/comity/v1 from proto/, or (--check) fails if they differ."""

import argparse
import filecmp
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def generate(out: Path) -> None:
    """Run protoc over every schema into `out`."""
    protos = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    include = resources.files("grpc_tools") / "_proto"
    bin_dir = Path(sys.executable).parent
    code = protoc.main(
        [
            "protoc",
            f"-I{ROOT / 'proto'}",
            f"-I{include}",
            f"--plugin=protoc-gen-mypy={bin_dir / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={bin_dir / 'protoc-gen-mypy_grpc'}",
            f"--python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--grpc_python_out={out}",
            f"--mypy_grpc_out=quiet:{out}",
            *protos,
        ]
    )
    if code != 0:
        sys.exit(f"protoc failed with {code}")
    for path in out.rglob("*_pb2_grpc.py*"):
        if path.name.split("_pb2")[0] != "control":  # only control.proto has services
            path.unlink()


def main() -> None:
    """Write the stubs, or compare them with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on drift")
    arguments = parser.parse_args()
    committed = ROOT / "sdk"
    if not arguments.check:
        generate(committed)
        return
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        generate(out)
        made = {path.relative_to(out) for path in out.rglob("*_pb2*")}
        kept = {path.relative_to(committed) for path in (committed / "comity" / "v1").glob("*_pb2*")}
        drift = sorted(
            str(name)
            for name in made | kept
            if name not in kept or name not in made or not filecmp.cmp(out / name, committed / name, shallow=False)
        )
    if drift:
        sys.exit("stubs differ from proto/; run `make gen`:\n  " + "\n  ".join(drift))


if __name__ == "__main__":
    main()
