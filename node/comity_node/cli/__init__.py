"""The `comity` command."""

from comity_node.cli.app import main

__all__ = ["main"]
