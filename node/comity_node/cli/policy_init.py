"""`comity policy init`: a policy to start from, with its cases and schemas."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from comity.errors import ComityError
from comity_node.cli.commands import Argument, Command, argument
from comity_node.cli.context import Context, UsageError, extra, table, write_new

if TYPE_CHECKING:
    from comity_node.packs import Rendered

PARTNER: Argument = argument(
    "--partner",
    action="append",
    default=[],
    metavar="NAME",
    help="an organization in the place of the pack's partners; repeat",
)


def _init(context: Context, arguments: argparse.Namespace) -> None:
    with extra("node"):
        from comity_node import packs
    if arguments.name is None:
        known = packs.available()
        rows = [(pack.name, pack.about) for pack in known]
        context.emit([{"name": name, "about": about} for name, about in rows], table(rows, ("PACK", "ABOUT")))
        return
    organization = arguments.organization or _own(context)
    rendered = packs.render(packs.find(arguments.name), organization, arguments.partner)
    directory = arguments.directory or context.home
    written = write_pack(rendered, directory, force=arguments.force)
    policy, cases = directory / packs.POLICY, directory / packs.CASES
    lines = [f"wrote {path}" for path in written]
    lines += left(rendered)
    lines.append(f"next  read {policy}, then: comity policy lint {policy} && comity policy test {cases}")
    context.emit(
        {
            "policy": str(policy),
            "cases": str(cases),
            "files": [str(path) for path in written],
            "left": rendered.left,
            "claims": rendered.claims,
        },
        "\n".join(lines),
    )


def _own(context: Context) -> str:
    if not (context.home / "node.yaml").exists():
        raise UsageError("whose policy is it? Say --organization NAME, or --home DIR of a node")
    return context.config().organization


def left(rendered: Rendered) -> list[str]:
    """Return what is to be said about names that nobody was named for, and about what the pack says of those named."""
    lines = [f"check {claim}, as the pack has it: is that so?" for claim in rendered.claims]
    if rendered.left:
        names = " and ".join(rendered.left)
        lines.append(f"note  {names} stand for partners that were not named (--partner); change them")
    return lines


def write_pack(rendered: Rendered, directory: Path, *, force: bool = False) -> list[Path]:
    """Write a pack's files, all or none, and check that the policy loads and its cases pass; returns their paths.

    Raises:
        ConfigError: a file is there already, cannot be written, or what was written does not hold.
    """
    with extra("node"):
        from comity_node import packs
        from comity_node.policy import cases
    written: list[Path] = []
    try:
        for name, data in rendered.files.items():
            path = directory / name
            if not force and path.exists() and path.read_bytes() == data:
                continue
            write_new(path, data, force=force)
            written.append(path)
        report = cases.run(directory / packs.CASES)
        if not report.passed:
            raise ComityError(f"{report.failures[0]}: the pack does not fit these names")
    except (ComityError, OSError):
        for path in () if force else written:
            path.unlink(missing_ok=True)
        raise
    return written


INIT = Command(
    "init",
    "write a policy to start from, with its cases and schemas; without a name, list them",
    _init,
    (
        argument("name", nargs="?", metavar="PACK", help="such as hospital-research"),
        argument("--organization", default="", metavar="NAME", help="whose policy it is (this node's)"),
        PARTNER,
        argument("--directory", type=Path, metavar="DIR", help="where to (the node's home)"),
        argument("--force", action="store_true", help="replace files that are there"),
    ),
)
