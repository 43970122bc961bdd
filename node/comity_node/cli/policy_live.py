"""`comity policy watch`: a running node's decisions, and what another policy would have said."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comity.errors import ControlError
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import HOME_VARIABLE, Context, extra, printable
from comity_node.cli.interrupt import Interrupt
from comity_node.cli.node_client import CONTROL, connected
from comity_node.cli.policy_common import whole

if TYPE_CHECKING:
    from comity.client import WatchedDecision, WatchedDecisions
    from comity_node.policy.diff import Change
    from comity_node.policy.engine import Policy


@dataclass(slots=True)
class _Tally:
    """What was seen: the summary at the end."""

    allowed: int = 0
    denied: int = 0
    dropped: int = 0
    unasked: int = 0
    changes: Counter[str] = field(default_factory=Counter)

    @property
    def seen(self) -> int:
        return self.allowed + self.denied

    def to_json(self, candidate: bool) -> dict[str, Any]:
        values: dict[str, Any] = {"allowed": self.allowed, "denied": self.denied, "dropped": self.dropped}
        return {**values, "changes": dict(self.changes), "not_kept": self.unasked} if candidate else values

    def text(self, candidate: bool) -> str:
        lines = [f"{self.seen} decisions: {self.allowed} allowed, {self.denied} denied"]
        if self.dropped:
            lines.append(f"{self.dropped} entries of the audit log were skipped: this was read too slowly")
        if candidate:
            differ = ", ".join(f"{count} {change}" for change, count in sorted(self.changes.items()))
            lines.append(f"the candidate differs in {sum(self.changes.values())}{': ' + differ if differ else ''}")
        if self.unasked:
            lines.append(f"{self.unasked} could not be asked of the candidate: their requests were not kept")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What the candidate says to a decision: nothing can be said (None), or how it differs and why."""

    change: Change | None
    reason: str = ""


class _Candidate:
    """A policy that is tried beside the active one."""

    def __init__(self, path: Path, active: Policy | None) -> None:
        from comity_node.policy import loader

        self._policy = loader.load(path)
        self._active = active

    def judge(self, decision: WatchedDecision) -> _Verdict:
        from comity_node.admission.archive import read_request
        from comity_node.policy.diff import Change, classify, labels_asked, untold

        if not decision.request:
            return _Verdict(None)
        request = read_request(decision.request, decision.at_ms)
        mine = self._policy.decide(request)
        active = self._active
        if active is not None and active.digest.hex() != decision.policy_digest:
            active = None
        asked = labels_asked(active) if active is not None else frozenset(request.labels)
        if untold(self._policy, mine, request, labels_asked(self._policy) - asked):
            return _Verdict(Change.UNKNOWN, mine.reason)
        if active is not None:
            return _Verdict(classify(active.decide(request), mine), mine.reason)
        if mine.allowed is decision.allowed:
            return _Verdict(Change.SAME)
        return _Verdict(Change.WIDENED if mine.allowed else Change.NARROWED, mine.reason)


def _watch(context: Context, arguments: argparse.Namespace) -> None:
    candidate = None
    if arguments.candidate is not None:
        with extra("node"):
            candidate = _Candidate(arguments.candidate, _active(context))
    tally = _Tally()
    with connected(context, arguments) as node:
        stream = node.watch_decisions(
            action=arguments.action, organization=arguments.organization, denied=arguments.denied
        )
        with closing(stream):
            try:
                told = Interrupt().until(stream)
                for line in _lines(told, tally, candidate, arguments.count, as_json=context.json):
                    context.print(line)
            except ControlError as error:
                if error.code != "node_stopping":
                    raise
                context.print(json.dumps({"stopped": True}) if context.json else "the node is stopping")
    said = {"summary": tally.to_json(candidate is not None)}
    context.print(json.dumps(said) if context.json else tally.text(candidate is not None))


def _active(context: Context) -> Policy | None:
    """Return the policy of the home, to compare obligations with; None where only a control address is known."""
    from comity_node.policy import loader

    return loader.load(context.config().policy) if (context.home / "node.yaml").exists() else None


def _lines(
    stream: Iterator[WatchedDecisions], tally: _Tally, candidate: _Candidate | None, most: int | None, *, as_json: bool
) -> Iterator[str]:
    for told in stream:
        if told.dropped:
            tally.dropped += told.dropped
            yield json.dumps({"dropped": told.dropped}) if as_json else f"({told.dropped} entries of the log skipped)"
        for decision in told.decisions:
            if decision.allowed:
                tally.allowed += 1
            else:
                tally.denied += 1
            verdict = None if candidate is None else _judge(candidate, decision, tally)
            yield json.dumps(_json(decision, verdict)) if as_json else _text(decision, verdict)
            if most is not None and tally.seen >= most:
                return


def _judge(candidate: _Candidate, decision: WatchedDecision, tally: _Tally) -> _Verdict:
    verdict = candidate.judge(decision)
    if verdict.change is None:
        tally.unasked += 1
    elif verdict.change != "same":
        tally.changes[verdict.change.value] += 1
    return verdict


def _json(decision: WatchedDecision, verdict: _Verdict | None) -> dict[str, Any]:
    said = {
        "index": decision.index,
        "at_ms": decision.at_ms,
        "action": decision.action,
        "organization": decision.organization,
        "decision": "allow" if decision.allowed else "deny",
        "rules": list(decision.rules),
        "reason": decision.reason,
        "policy": decision.policy_digest,
        "request": json.loads(decision.request) if decision.request else None,
    }
    if verdict is None:
        return said
    change = None if verdict.change is None else verdict.change.value
    return {**said, "candidate": {"change": change, "reason": verdict.reason}}


def _text(decision: WatchedDecision, verdict: _Verdict | None) -> str:
    at = datetime.fromtimestamp(decision.at_ms / 1000, UTC).strftime("%H:%M:%S")
    word = "allow" if decision.allowed else "deny "
    line = f"{at} {word} {decision.action} {decision.organization}: {decision.reason}"
    if verdict is None or verdict.change == "same":
        return printable(line)
    if verdict.change is None:
        return printable(line) + "\n         candidate: cannot be asked, the request was not kept"
    return printable(line) + "\n" + printable(f"         candidate: {verdict.change.value}: {verdict.reason}")


WATCH = Command(
    "watch",
    "show a running node's decisions as they are made",
    _watch,
    (
        argument("--action", default="", help="only decisions about this action, such as record.send"),
        argument("--organization", default="", metavar="NAME", help="only decisions about this organization"),
        argument("--denied", action="store_true", help="only denials"),
        argument("--candidate", type=Path, metavar="FILE", help="a policy to try beside the active one"),
        argument("--count", type=whole, metavar="N", help="end after N decisions"),
        *CONTROL,
    ),
    description="Show a running node's decisions as they are made, until Ctrl-C or --count; a summary follows. With "
    "--candidate another policy is asked about each of them, here and not in the node, and where it differs is said: "
    "nothing that it says has an effect. Obligations and rules are compared too if the node's home is here (--home or "
    f"{HOME_VARIABLE}). With --json each line is a JSON object. The node does not wait for a watcher: one that is too "
    "slow is told how much it has missed.",
)
