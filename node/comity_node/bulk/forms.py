"""Masks, pseudonyms, noise and k-anonymity on record batches: what `policy.shaping` does to one record, by columns.

Text is looked at once for each distinct value of a batch; noise is drawn for each value. The definitions are those of
`policy.shaping`: every value goes through them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from comity.errors import PolicyDenied
from comity_node.policy import obligations as duties
from comity_node.policy.lattice import Obligations
from comity_node.policy.obligations import Drawing, Pseudonym
from comity_node.protocol.bulk_manifest import Column

INTEGERS: Final = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"})
NUMBERS: Final = frozenset(("float", "double", *INTEGERS))
#: Combinations of identifying values of one table that are counted.
_MAX_CLASSES: Final = 200_000
_PSEUDONYMS: Final = f"^{duties.PSEUDONYM}[0-9a-f]{{64}}$"


def forms_of(owed: Obligations, columns: Sequence[Column]) -> dict[str, Obligations]:
    """Return, for each column that has to be masked or hashed or to get noise, what is owed for it alone.

    Raises:
        PolicyDenied: a column holds other values than its form is for, or lies below a path that should hold them.
    """
    forms: dict[str, Obligations] = {}
    for column in columns:
        parts = column.name.split(".")
        for path in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
            if path not in owed.mask and path not in owed.hash and path not in owed.noise:
                continue
            forms[path] = _form(owed, path, column)
    return forms


def _form(owed: Obligations, path: str, column: Column) -> Obligations:
    whole = column.name == path
    if path in owed.hash:
        if not whole or column.type not in {"string", "bool", *NUMBERS}:
            raise PolicyDenied(f"the field {path!r} is to be hashed, but {column.name!r} is no text, number or boolean")
        return Obligations(hash=frozenset({path}))
    if path in owed.mask:
        if not whole or column.type != "string":
            raise PolicyDenied(f"the field {path!r} is to be masked, but {column.name!r} is no text")
        return Obligations(mask={path: owed.mask[path]})
    if not whole or column.type not in NUMBERS:
        raise PolicyDenied(f"the field {path!r} is to get noise, but {column.name!r} is no number")
    grid = owed.generalize.get(path)
    return Obligations(noise={path: owed.noise[path]}, generalize={path: grid} if grid is not None else {})


def type_of(form: Obligations, column: Column) -> str:
    """Return the type in which a column leaves that was brought into `form`."""
    if not form.noise:
        return "string"
    grid = form.generalize.get(column.name)
    return "int64" if column.type in INTEGERS and (grid is None or grid == int(grid)) else "double"


def apply(form: Obligations, name: str, column: Any, kind: Any, pseudonym: Pseudonym | None, noise: Drawing) -> Any:  # noqa: ANN401  (pyarrow ships no types)
    """Return a column in its form, as the Arrow type `kind`.

    Raises:
        PolicyDenied: a value is not of the type that its form is for.
    """

    def shaped(value: object) -> Any:  # noqa: ANN401  (any JSON)
        return duties.apply(form, {name: value}, pseudonym=pseudonym, noise=noise)[name]

    if form.noise:
        return pa.array([shaped(value) for value in column.to_pylist()], kind)
    coded = pc.dictionary_encode(column)
    return pa.array([shaped(value) for value in coded.dictionary.to_pylist()], kind).take(coded.indices)


def verify(forms: Mapping[str, Obligations], batch: Any) -> None:  # noqa: ANN401  (pyarrow ships no types)
    """Check that columns have their forms; of noise only the bounds can be seen.

    Raises:
        PolicyDenied: a value has not.
    """
    for name, form in forms.items():
        column = batch.column(name).drop_null()
        if not len(column):
            continue
        if form.hash and str(column.type) == "string" and pc.all(pc.match_substring_regex(column, _PSEUDONYMS)).as_py():
            continue
        if form.noise:
            limits = pc.min_max(column)
            odd = pc.is_nan(column) if str(column.type) in ("float", "double") else None
            doubtful = [limits["min"].as_py(), limits["max"].as_py(), *_some(column, odd)]
            form = Obligations(noise=form.noise)  # the grid is for `shape.verify`
        else:
            doubtful = pc.unique(column).to_pylist()
        for value in doubtful:
            duties.verify(form, {name: value})


def _some(column: Any, where: Any) -> list[Any]:  # noqa: ANN401  (pyarrow ships no types)
    return [] if where is None else column.filter(where).slice(0, 1).to_pylist()


def check_declared(needed: Obligations, declared: Obligations, columns: Sequence[Column]) -> None:
    """Refuse a manifest that declares less than is needed for the columns that are there.

    Raises:
        PolicyDenied: a form is missing or weaker than it has to be.
    """
    for name, form in forms_of(needed, columns).items():
        if not duties.covers(declared, form):
            raise PolicyDenied(f"the field {name!r} does not come in the form that is asked for here")
    anonymity = needed.k_anonymity
    if anonymity is not None and not duties.covers(declared, Obligations(k_anonymity=anonymity)):
        raise PolicyDenied(f"the sender does not attest that the rows are {anonymity.k}-anonymous")


class Classes:
    """Counts which combinations of identifying values occur in a table, batch by batch.

    Args:
        owed: what is owed.
        columns: of the table, in the form in which it leaves.
        rows: how many it has.
    """

    def __init__(self, owed: Obligations, columns: Sequence[Column], rows: int) -> None:
        self._owed = owed.k_anonymity
        fields = self._owed.fields if self._owed is not None else frozenset()
        self._names = [column.name for column in columns if duties.is_under(column.name, fields)]
        self._counts: Counter[tuple[Any, ...]] = Counter()
        self._most = min(rows // self._owed.k, _MAX_CLASSES) if self._owed is not None else 0

    def add(self, batch: Any) -> None:  # noqa: ANN401  (pyarrow ships no types)
        """Count the rows of a batch.

        Raises:
            PolicyDenied: there are so many combinations that some are too rare, or more than are counted.
        """
        if self._owed is None or not batch.num_rows:
            return
        if not self._names:
            self._counts[()] += batch.num_rows
            return
        counted = pa.Table.from_batches([batch.select(self._names)]).group_by(self._names, use_threads=False)
        for row in counted.aggregate([([], "count_all")]).to_pylist():
            count = row.pop("count_all")
            self._counts[tuple(row[name] for name in self._names)] += count
        if len(self._counts) > self._most:
            raise PolicyDenied(
                f"there are over {self._most} combinations of {', '.join(self._names)}: some occur in fewer than"
                f" {self._owed.k} rows, or they are too many to be counted; generalize or redact more"
            )

    def finish(self) -> None:
        """Check the whole table.

        Raises:
            PolicyDenied: a combination occurs in too few rows.
        """
        if self._owed is None:
            return
        rare = sum(count for count in self._counts.values() if count < self._owed.k)
        if rare:
            raise PolicyDenied(
                f"{rare} rows share their values of {', '.join(self._names) or 'no field'} with fewer than"
                f" {self._owed.k}: generalize or redact more, or leave them out"
            )
