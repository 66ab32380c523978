"""Tables of the layers of packages that build on a framework: a backend has one file for each package.

A table has ``LAYERS``, rows by class name (a glob) for arrays that belong to a layer, ``SIZES``, the attributes that
have the lengths of parts of packed axes, and ``FREE``, rows by attribute for arrays that a model holds by itself
(class tokens, position tables): these keep their names, and get a role. The last two are optional. Nothing of a package
is imported: its classes are known by module and name. A row whose axes don't fit an array leaves them unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, NamedTuple

from xweights.core.layer_rows import LayerRows
from xweights.core.layer_table import Entry


class Row(NamedTuple):
    """What an array is: its neutral name in the layer, its axes, and its role if the name doesn't end in it."""

    name: str
    axes: str
    role: str | None = None
    outputs: tuple[str, ...] | None = None
    gates: tuple[str, ...] | None = None


class PackageTables:
    """The tables of one backend.

    Args:
        folder: The package of the backend that has the tables.
        packages: Prefixes of the modules of classes, and the table of each.
    """

    def __init__(self, folder: str, packages: Mapping[str, str]) -> None:
        self._folder = folder
        self._packages = packages
        self._layers: dict[type[Any], LayerRows | None] = {}
        self._free: dict[tuple[type[Any], str], Entry | None] = {}

    def layer_rows_of(self, cls: type[Any]) -> LayerRows | None:
        """Return the rows of a class (not of its bases), or None where no table has it."""
        if cls not in self._layers:
            self._layers[cls] = self._find_rows(cls)
        return self._layers[cls]

    def free_row_of(self, cls: type[Any], attribute: str) -> Entry | None:
        """Return the row of an array that a class or one of its bases holds by itself, or None."""
        key = (cls, attribute)
        if key not in self._free:
            tables = (self._table_of(base.__module__) for base in cls.__mro__)
            found = (getattr(table, "FREE", {}).get(attribute) for table in tables)
            row = next((row for row in found if row is not None), None)
            self._free[key] = None if row is None else Entry(attribute, attribute, row[1], role=row[0])
        return self._free[key]

    def _find_rows(self, cls: type[Any]) -> LayerRows | None:
        table = self._table_of(cls.__module__)
        if table is None:
            return None
        for pattern, rows in table.LAYERS.items():
            if any(fnmatchcase(cls.__name__, part) for part in pattern.split()):
                entries = tuple(_entry(attribute, row) for attribute, row in rows.items())
                return LayerRows(cls.__name__, entries, getattr(table, "SIZES", {}).get(pattern, {}))
        return None

    def _table_of(self, module: str) -> Any:
        for prefix, table in self._packages.items():
            if module.startswith(prefix):
                return import_module(f"{self._folder}.{table}")
        return None


def _entry(attribute: str, row: Row) -> Entry:
    return Entry(attribute, row.name, row.axes, gates=row.gates, outputs=row.outputs, role=row.role)
