"""What all checks against js-libp2p need: `make interop` installs it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Not as the package `interop`: py-libp2p installs one of that name.
sys.path.insert(0, str(Path(__file__).parent))

from bench.links.javascript import is_installed


def pytest_configure() -> None:
    """Say what is missing, instead of failing in every check."""
    if not is_installed():
        raise pytest.UsageError("js-libp2p is not installed: run `make interop`")
