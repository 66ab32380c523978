"""Open whatever a user passes as values: a file of a training run, its parts, a nested mapping of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xweights.core.backend import FileLayout
from xweights.core.dtypes import COUNTERS
from xweights.core.names import Names
from xweights.core.openers import HasParts, open_file
from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.core.parts import Part, find_parts, is_run, show_parts
from xweights.core.registry import backend_for
from xweights.core.targets import is_path, open_target
from xweights.edit.pairing import Pairing, Source, pair, refuse_foreign
from xweights.errors import SelectionError, near


def open_name(values: Any) -> str:
    """Return what messages call the source."""
    if is_path(values):
        return repr(str(values))
    return repr(values.path) if isinstance(values, HasParts) else "values"


# A part, and its values by their keys and by neutral name.
Candidate = tuple[Part, Source]


def open_sources(values: Any, target: Any, part: str | None) -> tuple[list[Candidate], list[Part]] | None:
    """Return the parts that may be meant, and all others; None for values that have no parts."""
    if is_path(values):
        values = open_file(values, part=part)
    if isinstance(values, HasParts):
        parts = [_as_named(values, part)] if part or values.part else list(values.__xweights_parts__())
        others = [p for p in values.__xweights_parts__() if p not in parts]
        candidates = [p for p in parts if p.kind == "weights"] or parts[: 1 if part or values.part else 0]
        if not candidates:
            values.__xweights_parameters__()  # raises: there is none
        whole = [_whole(parts, values)] if len(candidates) > 1 else []
        return (
            [(p, source_of_part(p, target, values)) for p in (*candidates, *whole)],
            [p for p in [*parts, *others] if p not in candidates],
        )
    if hasattr(type(values), "__xweights_parameters__"):
        only = Part("", "weights", {p.name: p for p in open_target(values)})
        return [(only, source_of_part(only, target, values))], []
    if not isinstance(values, Mapping) or isinstance(values, Params) or not is_run(values):
        return None
    parts = find_parts(values)
    weights = [p for p in parts if (p.name == part if part else p.kind == "weights")]
    if not weights:
        raise SelectionError(f"these values have no part {part or 'that holds weights'!r}\n{show_parts(parts)}")
    return (
        [(p, Source(p.arrays, p.arrays, f"values, part {p.name!r}")) for p in weights],
        [p for p in parts if p not in weights],
    )


def _as_named(values: HasParts, part: str | None) -> Part:
    """Return the part of a file that was asked for, whose parameters the file hands out."""
    opened = values.__xweights_parameters__() if part is None or values.part else None
    if opened is None:
        values = open_file(values.path, part=part)
        opened = values.__xweights_parameters__()
    first = {id(p) for p in opened}
    return next(p for p in values.__xweights_parts__() if {id(q) for q in p.arrays.values()} == first)


def _whole(parts: Sequence[Part], values: HasParts) -> Part:
    """Return all parts of weights as one: separate state dicts of a model's own parts."""
    arrays = {f"{p.name}/{key}": array for p in parts if p.kind == "weights" for key, array in p.arrays.items()}
    return Part("*", "weights", arrays)


def source_of_part(part: Part, target: Any, values: Any) -> Source:
    """Return the values of a part of a file, by every name that the target may use for them."""
    backend = None if isinstance(target, (Mapping, list, tuple, Parameter)) else backend_for(target)
    is_file = is_path(values) or isinstance(values, HasParts)
    homes: dict[str, Any] = {}
    if is_file and isinstance(backend, FileLayout):
        homes = dict(backend.file_layout(target))
    native: dict[str, Any] = {}
    neutral: dict[str, Any] = {}
    for key, p in part.arrays.items():
        if part.name == "*":
            native[key] = neutral[key] = p
            continue
        aliases = getattr(p.handle.metadata, "native_aliases", ()) if hasattr(p.handle, "metadata") else ()
        for name in (p.native_name, *aliases, *(p.aliases if p.name == p.native_name else ())):
            native[name] = p
        home = homes.get(p.name)
        if isinstance(home, Parameter):
            # The framework itself keeps this parameter here, so it is stored in the framework's layout.
            same = p.layout.stored == home.layout.stored
            neutral[home.name] = p.replace(layout=home.layout) if same else p
            continue
        for name in (p.name, *p.aliases):
            neutral[name] = p
    label = open_name(values) + (f", part {part.name!r}" if part.name not in ("", "*") else "")
    return Source(native, neutral, label)


def choose_part(
    weights: Sequence[Candidate],
    others: Sequence[Part],
    target: Any,
    everything: Sequence[Parameter],
    names: Names | None,
    source: str = "the file",
) -> tuple[Pairing, str, Source]:
    """Return the pairing of the part whose names fit the target, the part's name and values.

    Raises SelectionError if none fits, or several do.
    """
    pairings, part, values = try_part(weights, others, target, everything, names, source)
    refuse_foreign(values, everything, pairings)
    return pairings[0], part, values


def try_part(
    weights: Sequence[Candidate],
    others: Sequence[Part],
    target: Any,
    everything: Sequence[Parameter],
    names: Names | None,
    source: str = "the file",
) -> tuple[list[Pairing], str, Source]:
    """Return the pairings of the part whose names fit best, which may be none; raise if two parts fit."""
    wanted = {p.identity() for p in everything if not p.hidden and p.role not in COUNTERS}
    paired = [(part, values, pair(values, target, everything, names, wanted)) for part, values in weights]
    found = [max((len(p.covered & wanted) for p in pairings), default=0) for _, _, pairings in paired]
    best = [item for item, number in zip(paired, found, strict=True) if number == max(found)]
    if len(best) > 1:
        # Of all parts together no more than one of them alone says nothing new.
        best = [item for item in best if item[0].name != "*"]
    if len(best) > 1 and max(found):
        parts = [part for part, _, _ in best]
        raise SelectionError(
            f"{source} has {len(parts)} parts whose names fit the target\n{show_parts(parts)}\n"
            f"Fix: part={parts[0].name!r}"
        )
    if len(best) > 1:
        every = [part for part, _, _ in paired if part.name != "*"]
        first = best[0][1]
        raise SelectionError(
            f"{source} has {len(every)} parts that hold weights, and the names of none of them fit the target\n"
            f"{show_parts([*every, *others])}\n{near(everything[0].native_name, first.native)}\n"
            'Fix: part=, and names={"glob of the target": "glob in the file"}'
        )
    part, values, pairings = best[0]
    return pairings, part.name, values
