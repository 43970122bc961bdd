"""Policies to start from, each with its cases and schemas, brought into the names of who starts from one.

A pack is `NAME.yaml`, `NAME.tests.yaml` and the schemas that the policy names. It is written for an organization and
its partners (those of the group `partners`) with names that nobody has (`.example`). `render` puts other names in their
place, in the policy and in the cases alike, so that the cases hold for the new policy as they did for the old one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from comity.errors import ConfigError
from comity.ids import organization_name
from comity_node.strictyaml import Node, load, loads, read_file, suggest

POLICY: Final = "policy.yaml"
CASES: Final = "policy.tests.yaml"
_CASES_SUFFIX: Final = ".tests.yaml"
_GROUP: Final = "partners"
_TOO_MANY: Final = 64


@dataclass(frozen=True, slots=True)
class Pack:
    """A policy to start from.

    Attributes:
        name: such as `hospital-research`.
        about: the first sentence of its comment.
        path: its policy.
    """

    name: str
    about: str
    path: Path


@dataclass(frozen=True, slots=True)
class Rendered:
    """A pack in somebody's names.

    Attributes:
        files: texts by path, relative to where the policy will be.
        schemas: by dataset, the path of its schema, of those that have a file.
        left: partners of the pack that nobody was named for; their names are still in the files.
        claims: what the policy says about the partners that were named, in words: the pack's guess, to be checked.
    """

    files: Mapping[str, bytes]
    schemas: Mapping[str, str]
    left: tuple[str, ...]
    claims: tuple[str, ...] = ()


def directory() -> Path:
    """Return where the packs are: inside an installed package, or at the top of the source tree."""
    here = Path(__file__).resolve().parent
    installed = here / "policies"
    return installed if installed.is_dir() else here.parents[1] / "policies"


def available() -> tuple[Pack, ...]:
    """Return the packs, by name."""
    names = sorted(path.name.removesuffix(_CASES_SUFFIX) for path in directory().glob(f"*{_CASES_SUFFIX}"))
    return tuple(Pack(name, _about(path), path) for name in names if (path := directory() / f"{name}.yaml").is_file())


def find(name: str) -> Pack:
    """Return the pack of this name.

    Raises:
        ConfigError: there is none.
    """
    packs = {pack.name: pack for pack in available()}
    if name not in packs:
        near = suggest(name, packs) or f"; there are {', '.join(packs) or 'none'}"
        raise ConfigError(f"there is no pack {name[:60]!r}{near}")
    return packs[name]


def render(pack: Pack, organization: str, partners: Sequence[str] = ()) -> Rendered:
    """Write a pack for an organization and its partners.

    The first partner given takes the place of the pack's first, and so on; more are added to the group, and what is
    left of the pack's keeps its name.

    Raises:
        InvalidName: a name is no organization's.
        ConfigError: a partner is named twice or is the organization itself, or the pack's files cannot be read.
    """
    wanted = [organization_name(each) for each in partners]
    if len({organization, *wanted}) != len(wanted) + 1 or len(wanted) > _TOO_MANY:
        raise ConfigError(f"name each partner once, the own organization not, and {_TOO_MANY} at most")
    top = load(pack.path).table()
    own = next(value.string() for key, _, value in top if key == "organization")
    theirs = _partners(top)
    names = {own: organization_name(organization), **dict(zip(theirs, wanted, strict=False))}
    text = _rename(_read(pack.path), names)
    if more := wanted[len(theirs) :]:
        text = _add(text, names[theirs[-1]], more)
    cases = _rename(_read(pack.path.with_name(pack.name + _CASES_SUFFIX)), names)
    cases = cases.replace(f"policies/{pack.name}.yaml", POLICY).replace(
        f"policy: {pack.name}.yaml", f"policy: {POLICY}"
    )
    schemas = dict(_schemas(loads(text, POLICY).table()))
    files = {POLICY: text.encode(), CASES: cases.encode()}
    files |= {path: read_file(pack.path.parent / path) for path in schemas.values()}
    return Rendered(files, schemas, tuple(theirs[len(wanted) :]), tuple(_claims(text, wanted)))


def _about(path: Path) -> str:
    lines = [line.removeprefix("#").strip() for line in _read(path).splitlines()]
    comment = " ".join(lines[: lines.index("version: 1")]) if "version: 1" in lines else ""
    return re.split(r"(?<=[.:])\s", comment, maxsplit=1)[0].rstrip(":.")


def _read(path: Path) -> str:
    return read_file(path).decode("utf-8")


def _partners(top: Sequence[tuple[str, object, Node]]) -> list[str]:
    for key, _, value in top:
        if key == "groups":
            for name, _, group in value.table():
                if name == _GROUP:
                    return list(group.mapping("organization", "group").strings("organization"))
    return []


def _schemas(top: Sequence[tuple[str, object, Node]]) -> Iterator[tuple[str, str]]:
    for key, _, value in top:
        if key != "datasets":
            continue
        for name, _, dataset in value.table():
            for word, _, schema in dataset.table():
                if word == "schema" and not schema.is_mapping:
                    yield name, schema.string()


def _claims(text: str, names: Sequence[str]) -> Iterator[str]:
    for key, _, value in loads(text, POLICY).table():
        if key == "organizations":
            for name, mark, facts in value.table():
                if name in names:
                    yield f"line {mark.line}: {name} has {json.dumps(facts.data())[1:-1]}"


def _rename(text: str, names: Mapping[str, str]) -> str:
    """Put whole names into the place of others, all at once."""
    pattern = "|".join(re.escape(name) for name in names)
    return re.sub(rf"(?<![\w.-])({pattern})(?![\w-]|\.\w)", lambda match: names[match[1]], text)


def _add(text: str, last: str, more: Sequence[str]) -> str:
    """Put names behind the last one of the group of partners."""
    return re.sub(
        rf"(?m)^(\s+{_GROUP}: \{{organization: \[[^\]]*{re.escape(last)})\]",
        lambda match: f"{match[1]}, {', '.join(more)}]",
        text,
        count=1,
    )
