"""Open whatever a user passes as values: a file of a training run, its parts, a nested mapping of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xweights.core.backend import FileLayout
from xweights.core.dtypes import COUNTERS
from xweights.core.names import Names
from xweights.core.openers import HasParts, open_file
from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.core.parts import Part, find_parts, is_run, parts_named, show_parts
from xweights.core.registry import backend_for
from xweights.core.targets import is_path, open_target
from xweights.edit.pairing import Pairing, Source, pair
from xweights.errors import SelectionError, near


def open_name(values: Any) -> str:
    """Return what messages call the source."""
    if is_path(values):
        return repr(str(values))
    return repr(values.path) if isinstance(values, HasParts) else "values"


# A part, and its values by their keys and by neutral name.
Candidate = tuple[Part, Source]
_WHOLE = "*"


@dataclass(frozen=True)
class Opened:
    """What a user passed as values: the parts that may be meant, all others, and the name for messages."""

    candidates: list[Candidate]
    others: list[Part]
    name: str

    def other_parts(self, taken: str) -> dict[str, str]:
        """Return the kinds of the parts beside the one that was taken, by name."""
        parts = [*(part for part, _ in self.candidates), *self.others]
        return {part.name: part.kind for part in parts if part.name not in (taken, _WHOLE)}


def open_sources(values: Any, target: Any, part: str | None) -> Opened | None:
    """Return the parts that may be meant, and all others; None for values that have no parts."""
    if is_path(values):
        values = open_file(values)
    name = open_name(values)
    if isinstance(values, HasParts):
        parts = list(values.__xweights_parts__())
        weights = [p for p in parts if p.kind == "weights"]
        by_names = part is None and values.part is None and len(weights) > 1
        meant = weights if by_names else [values.__xweights_part__(part)]
    elif hasattr(type(values), "__xweights_parameters__"):
        meant = parts = [Part("", "weights", {p.name: p for p in open_target(values)})]
    elif isinstance(values, Mapping) and not isinstance(values, Params) and is_run(values):
        parts = find_parts(values)
        meant = [p for p in parts if p.kind == "weights"] if part is None else parts_named(parts, part)
        if not meant:
            raise SelectionError(f"these values have no part {part or 'that holds weights'!r}\n{show_parts(parts)}")
    else:
        return None
    whole = [_join(meant)] if len(meant) > 1 else []
    candidates = [(p, source_of_part(p, target, values)) for p in (*meant, *whole)]
    return Opened(candidates, [p for p in parts if p not in meant], name)


def _join(parts: Sequence[Part]) -> Part:
    """Return parts as one: separate state dicts of a model's own parts."""
    return Part(_WHOLE, "weights", {f"{p.name}/{key}": array for p in parts for key, array in p.arrays.items()})


def source_of_part(part: Part, target: Any, values: Any) -> Source:
    """Return the values of a part of a file, by every name that the target may use for them."""
    backend = None if isinstance(target, (Mapping, list, tuple, Parameter)) else backend_for(target)
    is_file = is_path(values) or isinstance(values, HasParts)
    homes: dict[str, Any] = {}
    if is_file and isinstance(backend, FileLayout):
        homes = dict(backend.file_layout(target))
    native: dict[str, Any] = {}
    neutral: dict[str, Any] = {}
    if not all(isinstance(value, Parameter) for value in part.arrays.values()):
        return Source(part.arrays, part.arrays, f"values, part {part.name!r}")
    for key, p in part.arrays.items():
        if part.name == _WHOLE:
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
    label = open_name(values) + (f", part {part.name!r}" if part.name not in ("", _WHOLE) else "")
    return Source(native, neutral, label)


def try_parts(
    opened: Opened, target: Any, everything: Sequence[Parameter], names: Names | None
) -> tuple[list[Pairing], str, Source]:
    """Return the pairings of the part whose names fit best, which may be none; raise if two parts fit."""
    wanted = {p.identity() for p in everything if not p.hidden and p.role not in COUNTERS}
    paired = [(part, values, pair(values, target, everything, names, wanted)) for part, values in opened.candidates]
    found = [max((len(p.covered & wanted) for p in pairings), default=0) for _, _, pairings in paired]
    best = [item for item, number in zip(paired, found, strict=True) if number == max(found)]
    if len(best) > 1:
        # Of all parts together no more than one of them alone says nothing new.
        best = [item for item in best if item[0].name != _WHOLE]
    if len(best) > 1 and max(found):
        parts = [part for part, _, _ in best]
        raise SelectionError(
            f"{opened.name} has {len(parts)} parts whose names fit the target\n{show_parts(parts)}\n"
            f"Fix: part={parts[0].name!r}"
        )
    if len(best) > 1:
        every = [part for part, _, _ in paired if part.name != _WHOLE]
        first = best[0][1]
        raise SelectionError(
            f"{opened.name} has {len(every)} parts that hold weights, and the names of none of them fit the target\n"
            f"{show_parts([*every, *opened.others])}\n{near(everything[0].native_name, first.native)}\n"
            'Fix: part=, and names={"glob of the target": "glob in the file"}'
        )
    part, values, pairings = best[0]
    return pairings, part.name, values
