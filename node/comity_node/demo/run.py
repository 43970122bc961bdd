"""`comity demo`: the whole way, from five empty homes to a report."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comity.client import Client, NegotiationStep
from comity_node.demo import federation, report, scenario
from comity_node.demo.ablation_job import load_data, read_results
from comity_node.demo.data import PRIVATE_FILE, SCHEMA_FILE, load_table
from comity_node.demo.display import Display
from comity_node.demo.homes import BAD, Home, make_homes
from comity_node.demo.processes import Processes, wait_until
from comity_node.validators.schema import Schema

ROUNDS = 3
_ABLATION_S = 240.0
_VERIFY_S = 60.0
_OUTPUT_LINES = 12
_SEED = 0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What `comity demo` was asked to do.

    Attributes:
        out: where the homes and the report go.
        data: a CSV or Parquet file of the user's own; None is the Wisconsin breast-cancer data.
        label: its label column.
        seeds: of the ablation.
        keep: leave the organizations running.
        plain: plain lines instead of a live display.
    """

    out: Path
    data: Path | None = None
    label: str = ""
    seeds: int = 5
    keep: bool = False
    plain: bool = False


@dataclass(slots=True)
class _Story:
    """What the demo has seen so far."""

    timings: dict[str, float] = field(default_factory=dict)
    negotiation: Sequence[NegotiationStep] = ()
    organizations: dict[str, dict[str, Any]] = field(default_factory=dict)
    corruption: dict[str, Any] = field(default_factory=dict)
    flower: dict[str, Any] = field(default_factory=dict)
    verify: list[report.Verification] = field(default_factory=list)
    reviews: int = 0


def run(options: DemoOptions) -> int:
    """Run the demo; returns 0 if everything verified and the numbers add up.

    Raises:
        ComityError: a step did not go as it should; the message says which and where its log is.
    """
    began = time.monotonic()
    out = options.out.absolute()
    table = load_data(options.data, options.label)
    size = scenario.Size()
    story = _Story()
    with _terminate_as_interrupt(), _sockets(options) as sockets, Display(plain=options.plain) as display:
        homes, test = make_homes(out / "organizations", sockets, table, seed=_SEED)
        display.line(
            f"five organizations under {options.out / 'organizations'}; {len(table)} rows, a test set held out"
        )
        with Processes(homes) as processes:
            story.timings["start"] = scenario.start(homes, processes, display.line)
            workflow_id = _work(homes, processes, size, story, display)
            ablation = out / "ablation.jsonl"
            _start_ablation(options, processes, size, ablation)
            _train(homes, out, story, display)
            _collect(homes, workflow_id, story)
            display.line(f"ablation over {options.seeds} seeds: waiting for the rest")
            story.timings["ablation (rest)"] = _await_ablation(options, processes, ablation)
            _verify(homes, out, story)
            left = _leave(homes, processes) if options.keep else []
    schema = homes[0].data / SCHEMA_FILE
    made = report.build(
        report.Inputs(
            organizations=story.organizations,
            roles={home.organization: "bad" if home.organization == BAD else "honest" for home in homes},
            private_rows={home.organization: _private_rows(home) for home in homes},
            negotiation=story.negotiation,
            corruption=story.corruption,
            flower=story.flower,
            held_out=report.held_out_score(story.flower, test, schema),
            ablation=read_results(ablation),
            timings=story.timings,
            verify=story.verify,
            machine=report.machine(),
            data="Wisconsin breast cancer (569 patients)" if options.data is None else options.data.name,
            reviews=story.reviews,
            total_s=time.monotonic() - began,
        )
    )
    as_json, as_html = report.write(made, out)
    print("\n".join(report.summary_lines(made)))
    print(f"\nreport: {_shown(as_html)} and {_shown(as_json)}")
    print("\n".join(left))
    report.check(made)
    return 0 if all(one.passed for one in story.verify) else 1


def _work(homes: Sequence[Home], processes: Processes, size: scenario.Size, story: _Story, display: Display) -> str:
    began = time.monotonic()
    workflow_id, agreed = scenario.negotiate(homes, processes, size, display.line)
    story.timings["negotiate"] = time.monotonic() - began
    story.negotiation = agreed.steps
    display.line(f"agreement {agreed.agreement_digest[:16]}: generators fit their own rows, validators build models")
    story.timings["work"] = scenario.work(homes, processes, workflow_id, size, display.counts)
    display.line("every record is decided, and the certified ones are with everybody")
    return workflow_id


def _train(homes: Sequence[Home], out: Path, story: _Story, display: Display) -> None:
    began = time.monotonic()
    flower_home = out / "flower"
    shutil.rmtree(flower_home, ignore_errors=True)
    with Client(homes[0].control) as client:
        (agreement,) = {workflow.agreement_digest for workflow in client.workflows() if workflow.agreement_digest}
    story.flower = federation.train(homes, flower_home, agreement, rounds=ROUNDS, say=display.line, seed=_SEED)
    story.timings["train"] = time.monotonic() - began


def _collect(homes: Sequence[Home], workflow_id: str, story: _Story) -> None:
    story.organizations = {home.organization: scenario.organization_report(home, workflow_id) for home in homes}
    bad = next(home for home in homes if home.organization == BAD)
    story.corruption = scenario.corruption_report(bad, homes[0])
    story.reviews = scenario.count_votes(homes)


def _start_ablation(options: DemoOptions, processes: Processes, size: scenario.Size, file: Path) -> None:
    file.unlink(missing_ok=True)
    arguments = ["-m", "comity_node.demo.ablation_job", "--out", str(file), "--seeds", str(options.seeds)]
    arguments += ["--records", str(size.records), "--batch", str(size.batch)]
    if options.data is not None:
        arguments += ["--data", str(options.data), "--label", options.label]
    processes.start_helper("ablation", arguments, file.with_suffix(".log"))


def _await_ablation(options: DemoOptions, processes: Processes, file: Path) -> float:
    def done() -> bool:
        return len(read_results(file)) >= options.seeds

    return wait_until("the ablation", done, timeout_s=_ABLATION_S, check=processes.check)


def _verify(homes: Sequence[Home], out: Path, story: _Story) -> None:
    """Prove one record's provenance and one audit log with the very commands that the report shows."""
    home = homes[0]
    with Client(home.control) as client:
        other = next(record for record in client.records() if record.author != home.organization)
        proof = out / "provenance.json"
        proof.write_bytes(client.record(other.task_id).provenance)
    bundle = home.path / "consortium.json"
    commands = [
        (
            "where a record came from and who let it pass",
            ["records", "verify", _shown(proof), "--bundle", _shown(bundle)],
        ),
        ("that nobody touched an audit log", ["audit", "verify", "--home", _shown(home.path)]),
    ]
    for what, arguments in commands:
        done = subprocess.run(
            [sys.executable, "-m", "comity_node.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=_VERIFY_S,
            check=False,
        )
        text = "\n".join((done.stdout + done.stderr).splitlines()[:_OUTPUT_LINES])
        command = shlex.join([_program(), *arguments])
        story.verify.append(report.Verification(what, command, done.returncode == 0, text))


def _leave(homes: Sequence[Home], processes: Processes) -> list[str]:
    """Let everything run on; returns how to talk to it."""
    pids = " ".join(map(str, processes.leave()))
    lines = [f"the organizations run on (processes {pids}); talk to them:"]
    lines += [f"  {_program()} node status --home {_shown(home.path)}" for home in homes]
    lines += ["stop them:"]
    lines += [f"  {_program()} node stop --home {_shown(home.path)}" for home in homes]
    return [*lines, f"  kill {pids}   # the workers too"]


def _program() -> str:
    """Return how `comity` is called from here: by its name, or by its place in the environment that runs this."""
    program = Path(sys.executable).parent / "comity"
    return _shown(program) if program.exists() and shutil.which("comity") != str(program) else "comity"


def _shown(path: Path) -> str:
    """Return `path` as it reads from the current directory."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _private_rows(home: Home) -> int:
    return len(load_table(home.data / PRIVATE_FILE, Schema.load(home.data / SCHEMA_FILE)))


@contextmanager
def _sockets(options: DemoOptions) -> Iterator[Path]:
    """Yield a directory with a short name for the control sockets; it stays while the organizations do."""
    directory = Path(tempfile.mkdtemp(prefix="comity-"))
    try:
        yield directory
    finally:
        if not options.keep:
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Clean up after SIGTERM as after Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
