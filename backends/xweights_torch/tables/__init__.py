"""Tables of the layers of packages that build on torch, one file for each package; nothing of them is imported.

A table has ``LAYERS``, rows by class name (a glob) for arrays that belong to a layer (and ``SIZES``,
the attributes that have the lengths of parts of packed axes), and ``FREE``, rows by attribute
for arrays that a model holds by itself (class tokens, position tables): these keep their names, and get a role. Each
row was read off the source of the version that constraints.txt or docs/layers.md names. A row whose axes don't fit an
array leaves them unknown.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

from xweights.core.layer_rows import LayerRows
from xweights.core.layer_table import Entry

# Prefix of a class's module -> the module here that has its table.
_PACKAGES = {
    "transformers.": "transformers",
    "timm.": "timm",
    "torchvision.": "torchvision",
    "diffusers.": "diffusers",
    "peft.": "peft",
}


class Row(NamedTuple):
    """What an array is: its neutral name in the layer, its axes, and its role if the name doesn't end in it."""

    name: str
    axes: str
    role: str | None = None
    outputs: tuple[str, ...] | None = None


@lru_cache(maxsize=4096)
def layer_rows_of(cls: type[Any]) -> LayerRows | None:
    """Return the rows of a class (not of its bases), or None where no table has it."""
    table = _table_of(cls.__module__)
    if table is None:
        return None
    for pattern, rows in table.LAYERS.items():
        if any(fnmatchcase(cls.__name__, part) for part in pattern.split()):
            entries = tuple(_entry(attribute, row) for attribute, row in rows.items())
            return LayerRows(cls.__name__, entries, getattr(table, "SIZES", {}).get(pattern, {}))
    return None


@lru_cache(maxsize=65536)
def free_row_of(cls: type[Any], attribute: str) -> Entry | None:
    """Return the row of an array that a class or one of its bases holds by itself, or None."""
    for base in cls.__mro__:
        table = _table_of(base.__module__)
        row = None if table is None else table.FREE.get(attribute)
        if row is not None:
            role, axes = row
            return Entry(attribute, attribute, axes, role=role)
    return None


def _entry(attribute: str, row: Row) -> Entry:
    return Entry(attribute, row.name, row.axes, outputs=row.outputs, role=row.role)


def _table_of(module: str) -> Any:
    for prefix, table in _PACKAGES.items():
        if module.startswith(prefix):
            return import_module(f"xweights_torch.tables.{table}")
    return None
