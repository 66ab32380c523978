"""Find the counterparts of a target's parameters in a file or a state dict, as parameters of the same layout."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xweights.core.dtypes import SAVED_COUNTERS, Array
from xweights.core.mappings import last_part
from xweights.core.numpy_backend import NumpyStorage
from xweights.core.openers import HasParts
from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.core.parts import Part
from xweights.core.targets import is_path, open_target
from xweights.edit.find_values import left_over, missing
from xweights.edit.pairing import Pair, nothing_fits, refuse_foreign
from xweights.edit.sources import Opened, open_sources, source_of_part, try_parts


@dataclass(frozen=True, eq=False)
class Counterparts:
    """The parameters of a target with their counterparts in a source, and what only one side has.

    ``pairs`` are in the target's order; a parametrization's inputs stand for the parameter that is computed from them.
    ``further`` pairs a tied parameter with what the source has under its other names, if these are other arrays.
    """

    pairs: list[tuple[Parameter, Parameter]]
    further: list[tuple[Parameter, Parameter]]
    only_target: list[Parameter]
    only_source: dict[str, Parameter]


def is_source(target: Any) -> bool:
    """Return whether a target is a file or a plain mapping, whose names may be a framework's own."""
    if isinstance(target, Params):
        return False
    return is_path(target) or isinstance(target, (Mapping, HasParts))


def has_native_names(target: Any, source: Any) -> bool:
    """Return whether a file without axes has the names that the target's own framework gives."""
    opened = open_sources(source, target, None)
    if opened is None:
        return False
    pairings = try_parts(opened, target, open_target(target), None)[0]
    return bool(pairings) and any(found.native and found.values[0].axes is None for found in pairings[0].pairs)


def find_counterparts(target: Any, source: Any, everything: Sequence[Parameter]) -> Counterparts | None:
    """Return the counterparts of a target's parameters in a source, by neutral names or a framework's own.

    Returns None for a source that has the names of another model. Raises SelectionError if two parts of the source, or
    two prefixes, fit.
    """
    opened = None if isinstance(source, Mapping) else open_sources(source, target, None)
    if opened is None:
        part = Part("", "weights", {name: p for p in open_target(source) for name in (p.name, *p.aliases)})
        opened = Opened([(part, source_of_part(part, target, source))], [], "the mapping")
    pairings, _, values = try_parts(opened, target, everything, None)
    if is_source(target):
        # Of two files, a prefix that one of them has is a difference: no model says which names are meant.
        pairings = [found for found in pairings if not found.reading.source and not found.reading.target]
    if nothing_fits(values, everything, pairings):
        return None
    refuse_foreign(values, everything, pairings)
    pairing = pairings[0]
    covered = pairing.covered
    only_source = {
        key: values.native.get(key, values.neutral.get(key))
        for key, reason in left_over(pairing, values).items()
        if reason is None and last_part(key) not in SAVED_COUNTERS
    }
    names = missing(pairing, [p for p in everything if not p.hidden])
    return Counterparts(
        [(found.parameter, _as_parameter(found, found.values[0])) for found in pairing.pairs],
        [
            (found.parameter, _as_parameter(found, value))
            for found in pairing.pairs
            for _, value in found.same
            if value is not found.values[0]
        ],
        [p for p in everything if p.identity() not in covered and names.get(p.name, "") is None],
        only_source,
    )


def _as_parameter(pair: Pair, value: Any) -> Parameter:
    """Return a value of a pair as a parameter, in the layout of the target's one if it is stored alike."""
    p = pair.parameter
    if pair.combine is not None:
        return p.replace(storage=_Combined(), handle=pair, dtype=value.dtype, aliases=())
    if pair.native and value.axes is None and value.layout.stored == p.layout.stored:
        same: Parameter = value.replace(layout=p.layout, gates=p.gates)
        return same
    found: Parameter = value
    return found


class _Combined(NumpyStorage):
    """Storage of an array that is computed from several of a file, at each read."""

    fresh = True

    def identity(self, handle: Any) -> Hashable:
        return id(handle)

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        return "it is computed from arrays of a file" if writing else None

    def read(self, handle: Any) -> Array:
        assert handle.combine is not None
        computed: Array = handle.combine([value.read() for value in handle.values])
        return computed
