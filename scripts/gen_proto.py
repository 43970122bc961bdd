"""Generates the protobuf stubs under sdk/ and node/ from proto/, or (--check) fails if they differ."""

import argparse
import filecmp
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
#: The first folder under proto/ is the package whose stubs they are, and this is where it lies.
HOMES = {"comity": ROOT / "sdk", "comity_node": ROOT / "node"}


def generate(package: str, out: Path) -> None:
    """Run protoc over every schema of `package` into `out`."""
    protos = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto" / package).rglob("*.proto"))
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


def drift(package: str, committed: Path) -> list[str]:
    """Return the stubs of `package` that differ from what its schemas give."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        generate(package, out)
        made = {path.relative_to(out) for path in out.rglob("*_pb2*")}
        kept = {
            path.relative_to(committed)
            for path in (committed / package).rglob("*_pb2*")
            if "__pycache__" not in path.parts
        }
        return sorted(
            str(name)
            for name in made | kept
            if name not in kept or name not in made or not filecmp.cmp(out / name, committed / name, shallow=False)
        )


def main() -> None:
    """Write the stubs, or compare them with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on drift")
    if not parser.parse_args().check:
        for package, home in HOMES.items():
            generate(package, home)
        return
    if differing := [name for package, home in HOMES.items() for name in drift(package, home)]:
        sys.exit("stubs differ from proto/; run `make gen`:\n  " + "\n  ".join(differing))


if __name__ == "__main__":
    main()
