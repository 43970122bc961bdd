"""The schema of a dataset, as far as a policy needs it: which fields there are, and which of them are personal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from comity.digest import hex_digest
from comity_node.policy.model import FIELD_TYPES, Field
from comity_node.strictyaml import Node, loads, read_file, shown

FIELD_KEYS = ("type", "personal", "min", "max", "values")


@dataclass(slots=True)
class Schemas:
    """Reads the schemas of one policy.

    Attributes:
        base: where their paths start.
        digests: hex SHA-256 of each file that was read, by its path as written.
        files: its bytes.
        given: the files, if they are not on disk.
    """

    base: Path
    digests: dict[str, str]
    files: dict[str, bytes]
    given: Mapping[str, bytes] | None = None

    def read(self, node: Node) -> Mapping[str, Field]:
        """Read a schema that is written out or named by its file."""
        if node.is_mapping:
            return _fields(node.table())
        path = node.file_path(self.base)
        data = read_file(path) if self.given is None else self.given.get(node.string())
        if data is None:
            node.fail(f"the schema {shown(node.string())} was not kept with the policy")
        self.files[node.string()] = data
        self.digests[node.string()] = hex_digest(data)
        top = loads(data, str(path)).mapping("version", "label", "fields")
        top.required("version").integer(1, 1)
        fields = _fields(top.required("fields").table())
        if (label := top.optional("label")) is not None:
            label.choice(fields.keys(), "field")
        return fields


def _fields(table: tuple[tuple[str, object, Node], ...]) -> dict[str, Field]:
    return {path: _field(node) for path, _, node in table}


def _field(node: Node) -> Field:
    section = node.mapping(*FIELD_KEYS)
    type_ = section.required("type").choice(FIELD_TYPES, "type")
    low, high, values = section.optional("min"), section.optional("max"), section.optional("values")
    if type_ not in ("number", "integer") and (bound := low or high) is not None:
        bound.fail(f"a {type_} has no range")
    if values is not None and type_ != "string":
        values.fail(f"values are for the type string, this is a {type_}")
    minimum = low.number() if low is not None else None
    maximum = high.number() if high is not None else None
    if minimum is not None and maximum is not None and minimum > maximum:
        node.fail("min is above max")
    words = values.strings() if values is not None else ()
    # A string that may hold anything may hold a name; the author has to say that it does not.
    return Field(type_, section.boolean("personal", type_ == "string" and not words), minimum, maximum, words)
