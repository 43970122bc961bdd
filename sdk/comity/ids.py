"""Names of organizations, nodes and agents.

An organization is named like a DNS name (`mercy.example`), nodes and agents by SPIFFE IDs
(https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md):
`spiffe://mercy.example/node/n1`, `spiffe://mercy.example/agent/generator`.
Lower-case ASCII only, so that no two names look alike.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from comity.errors import InvalidName

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
#: What an organization's name matches; it has at most 255 characters.
ORGANIZATION_PATTERN = rf"{_LABEL}(?:\.{_LABEL})*"
_ORGANIZATION = re.compile(ORGANIZATION_PATTERN)
_SEGMENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_ORGANIZATION = 255

Kind = Literal["node", "agent"]


def organization_name(text: str) -> str:
    """Return `text` if it names an organization.

    Raises:
        InvalidName: it is not a lower-case ASCII DNS name of at most 255 characters.
    """
    if len(text) > _MAX_ORGANIZATION or not _ORGANIZATION.fullmatch(text):
        rule = "lower-case letters, digits and hyphens, joined by dots"
        raise InvalidName(f"{text!r} is no organization name ({rule}){_look_alike(text)}")
    return text


def _look_alike(text: str) -> str:
    """Return which character of a name is none that it may hold, if that may be hard to see."""
    strange = next((character for character in text if not character.isascii()), "")
    if not strange:
        return ""
    name = unicodedata.name(strange, "a character without a name")
    return f": it holds U+{ord(strange):04X}, {name}, which only looks like a letter of it; type the name anew"


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """`spiffe://<organization>/<kind>/<name>`."""

    organization: str
    kind: Kind
    name: str

    def __post_init__(self) -> None:
        organization_name(self.organization)
        if self.kind not in ("node", "agent"):
            raise InvalidName(f"{self.kind!r} is not 'node' or 'agent'")
        if not _SEGMENT.fullmatch(self.name):
            raise InvalidName(f"{self.name!r} is not a name: lower-case letters, digits, '.', '_' and '-', at most 64")

    def __str__(self) -> str:
        return f"spiffe://{self.organization}/{self.kind}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Parse a SPIFFE ID.

        Raises:
            InvalidName: `text` is no SPIFFE ID of a node or an agent.
        """
        scheme, _, rest = text.partition("://")
        parts = rest.split("/")
        if scheme != "spiffe" or len(parts) != 3:
            raise InvalidName(f"{text!r} is not spiffe://<organization>/<node or agent>/<name>")
        organization, kind, name = parts
        if kind not in ("node", "agent"):
            raise InvalidName(f"{text!r} names neither a node nor an agent")
        return cls(organization, "node" if kind == "node" else "agent", name)
