"""Agents by name: `module:agent` or `path/to/file.py:agent`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from comity.agent import Agent
from comity.errors import ConfigError


def load_agent(text: str) -> Agent:
    """Return the agent that `module:name` or `path/to/file.py:name` names.

    Raises:
        ConfigError: there is no such module, file or name, importing it fails, or it is no agent.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(f"{text!r} does not name an agent: write module:agent or path/to/file.py:agent")
    if place.endswith(".py") and not Path(place).is_file():
        raise ConfigError(f"there is no file {place}")
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise ConfigError(f"cannot import {place}: {error}") from error
    except Exception as error:  # a user's module may raise anything; reported with its traceback by the caller
        raise ConfigError(f"cannot import {place}: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not isinstance(found, Agent):
        kind = "has no" if found is None else f"has a {type(found).__name__}, not an Agent, as"
        raise ConfigError(f"{place} {kind} {name}")
    return found


def _import_file(path: Path) -> object:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # as for a script: its neighbours can be imported
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
