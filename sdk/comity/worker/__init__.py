"""Workers: processes that serve an agent to their organization's node.

    python -m comity.worker my_agents:generator --control unix:/run/comity/mercy/control.sock --processes 4

or, in a program of one's own, `serve(agent)`. A worker grants the node as many credits as it runs skills at a time, so
it never holds more work than that. It reconnects when the node goes away. SIGTERM or SIGINT makes it take no more,
finish what it holds and leave; a second one makes it leave at once. `--processes` (`serve_processes`) keeps several of
them up and replaces one that dies.
"""

from __future__ import annotations

from comity.worker.command import main
from comity.worker.loading import load_agent
from comity.worker.processes import serve_processes
from comity.worker.serving import Report, Stop, serve, serve_async

__all__ = ["Report", "Stop", "load_agent", "main", "serve", "serve_async", "serve_processes"]
