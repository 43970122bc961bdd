"""`comity policy`: check a policy, compare it, say why it decides as it does, and watch it decide."""

from __future__ import annotations

from comity_node.cli.commands import Command
from comity_node.cli.policy_check import DIFF, LINT, TEST
from comity_node.cli.policy_explain import EXPLAIN
from comity_node.cli.policy_init import INIT
from comity_node.cli.policy_live import WATCH

COMMAND = Command(
    "policy",
    "check a policy, explain its decisions, compare it with another and run its tests",
    commands=(INIT, LINT, TEST, EXPLAIN, DIFF, WATCH),
)
