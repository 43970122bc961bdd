"""Starting Ray so that it keeps to itself."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from comity.errors import MissingExtra

_log = logging.getLogger(__name__)

#: Of Ray's shared memory; workers' inputs and results do not go through it.
_OBJECT_STORE_BYTES = 128 * 1024 * 1024
#: What Ray reads when it is imported or started. The second is what makes it listen on loopback, whatever its name says
#: (ray/_private/ray_constants.py, ENABLE_RAY_CLUSTER).
_ALONE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}


def ray_module() -> Any:  # noqa: ANN401  (Ray ships no types that hold)
    """Return Ray.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtra("ray", "ray") from error
    return ray


@contextmanager
def local_ray(num_cpus: int | None = None) -> Iterator[None]:
    """Use the Ray that this process is connected to; else one of its own for the block.

    One of its own listens on loopback, takes a token that is made for it, has no dashboard, and tells nobody about its
    use. Ray reads some of that when it is imported: a program that has imported it before this is called gets a warning
    if its Ray is open to the network.

    Args:
        num_cpus: of one of its own; None: those of the machine.

    Raises:
        MissingExtra: Ray is not installed.
    """
    if _is_connected():
        yield
        return
    with _environment({**_ALONE, "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
        ray = ray_module()
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            logging_level="warning",
        )
        try:
            address = ray.nodes()[0]["NodeManagerAddress"]
            if not address.startswith("127."):
                _log.warning("Ray listens on %s; start it before ray is imported to keep it on loopback", address)
            yield
        finally:
            ray.shutdown()


def _is_connected() -> bool:
    return "ray" in sys.modules and bool(ray_module().is_initialized())


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
