"""Rows of other people's layers: what users, packages and classes declare, and the tables of packages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from xweights.core.layer_rows import LayerRows, declared_rows, on_change
from xweights.core.layer_table import Entry
from xweights_keras.naming import find_attribute_paths
from xweights_keras.tables import TABLES

_rows: dict[type[Any], tuple[LayerRows, ...]] = {}
on_change(_rows.clear)


def match_rows(layer: Any, own: Sequence[Any], table: Sequence[Entry]) -> list[tuple[Entry, Any]]:
    """Return the rows for a layer's own variables, each with its variable: declared ones before those of ``table``.

    The rows are in the order of the table, then of the declarations, so that a declaration moves no parameter.
    """
    by_name = {variable.name: variable for variable in reversed(own)}
    declared = _declared_of(type(layer))
    if not declared:
        return [(row, by_name[row.native]) for row in table if row.native in by_name]
    # What a user calls the array is the attribute that holds it; the variable may have another name, or none.
    paths = find_attribute_paths(layer, {id(variable) for variable in own})
    by_attribute = {path.replace("/", "."): v for v in own for path in paths.get(id(v), ())}
    found: dict[int, tuple[Entry, Any]] = {}
    for row in _iter_rows(declared, layer):
        variable = by_attribute.get(row.native, by_name.get(row.native))
        if variable is not None:
            found.setdefault(id(variable), (row, variable))
    matched = {id(by_name[row.native]): (row, by_name[row.native]) for row in table if row.native in by_name}
    return [found.get(key, pair) for key, pair in (matched | found).items()]


def _iter_rows(declared: Sequence[LayerRows], layer: Any) -> Iterator[Entry]:
    for rows in declared:
        yield from rows.entries(layer)


def _declared_of(kind: type[Any]) -> tuple[LayerRows, ...]:
    """Return what was declared of a class and its bases, and then what tables have of them."""
    if kind not in _rows:
        sources = (declared_rows, TABLES.layer_rows_of)
        _rows[kind] = tuple(found for find in sources for base in kind.__mro__ if (found := find(base)) is not None)
    return _rows[kind]
