"""Which arms there are."""

from __future__ import annotations

from functools import partial
from typing import Final

from bench.runtime import central
from bench.runtime.comity_full import ComityFull
from bench.runtime.comity_memory import ComityMemory
from bench.runtime.runner import Central, Maker

#: By name.
MAKERS: Final[dict[str, Maker]] = {
    **{name: partial(Central, name) for name in central.ARMS},
    "comity-memory": partial(ComityMemory, onward=True),
    "comity-memory-home": partial(ComityMemory, onward=False),
    "comity-full": ComityFull,
}
