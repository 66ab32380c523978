"""Writing values: all of them, or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, ValuesView
from copy import copy
from typing import Any

import numpy as np

from xweights.core import hold_registry
from xweights.core.casting import cast_exactly, check_finite
from xweights.core.dtypes import COUNTERS, Array
from xweights.core.layout import reorder
from xweights.core.mappings import last_part, leaves
from xweights.core.names import NameIndex, named
from xweights.core.parameter import Parameter
from xweights.core.params import LayoutName, Params
from xweights.core.registry import backend_for
from xweights.core.renaming import Names, renamer
from xweights.core.selection import WhereLike, select
from xweights.core.targets import is_path, open_target
from xweights.core.values import host_array
from xweights.edit.guards import detached, fallible_first, guarded, undone_on_error, uninterrupted
from xweights.edit.stream import StreamedValue
from xweights.errors import (
    ArgumentError,
    LayoutError,
    Problems,
    SelectionError,
    ShapeError,
    WriteError,
    XweightsError,
    got_expected,
    near,
)


def set_params(
    target: Any,
    values: Any,
    *,
    where: WhereLike = ...,
    layout: LayoutName | None = None,
    strict: bool = True,
    cast: bool = False,
    allow_nonfinite: bool = False,
    names: Names | None = None,
) -> None:
    """Write values into a target in place: everything is checked first, and nothing is written unless all of it fits.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        values: Params (transposed by axis name between frameworks), a mapping by name (neutral or native names, in
            ``layout`` order), a list in ``parameters(target)`` order, or a file: its path, or what ``load`` made of it.
            A file is read straight into the parameters' memory where that can be seen.
        where: Which parameters are meant. Default: all.
        layout: The axis order of what doesn't know its axes: "neutral" or "native". Default: neutral; for a file that
            doesn't know its axes there is none where it would matter.
        strict: True wants a value for each selected parameter; False takes a subset. An unknown key is always an error.
        cast: True rounds to the parameter's dtype; False accepts another dtype only if no value changes.
        allow_nonfinite: True accepts NaN and infinity.
        names: ``{"0/*": "dense/0/*"}`` where the names of target and values differ (target glob: values' glob).

    Exact: the very bits. The caller's arrays are never aliased; optimizer state is not touched.
    Raises SelectionError (missing, unknown), ShapeError, DtypeError, NonfiniteError, LayoutError, WriteError: all that
    is wrong at once, as one error that is of each of these kinds.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"b": np.zeros(2)}; xw.set_params(w, {"b": [1.0, 2.0]}); w["b"]
        array([1., 2.])
    """
    if layout not in (None, "neutral", "native"):
        raise ArgumentError(f'layout= is "neutral" or "native"\ngot: {layout!r}')
    everything = open_target(target)
    chosen = select(everything, where)
    hold_registry.check(chosen)
    problems = Problems("set_params can't write these values, and nothing was changed")
    given = _opened(values, target)
    pairs = _matched(given, chosen, everything, strict, renamer(names), problems)
    order = values.layout if isinstance(values, Params) else layout or "neutral"
    writes: list[tuple[Parameter, Array]] = []
    sources: list[StreamedValue] = []
    axes = values.axes if isinstance(values, Params) else {}
    gates = values.gates if isinstance(values, Params) else {}
    for p, key, value in pairs:
        reason = p.refusal(writing=True)
        if reason is not None:
            problems.add(WriteError, f"{p.name!r} can't be written: {reason}")
            continue
        try:
            if isinstance(value, Parameter):
                source = StreamedValue(value, p, layout, fit_value)
                source.check(cast=cast, allow_nonfinite=allow_nonfinite)
                sources.append(source)
                continue
            array = fit_value(value, p, order, axes=axes.get(key or ""), gates=gates.get(key or ""))
            if array.dtype != p.dtype:
                array = cast_exactly(array, p.dtype, what=repr(p.name), cast=cast)
            if not allow_nonfinite:
                check_finite(array, repr(p.name))
            writes.append((p, array))
        except XweightsError as wrong:
            problems.add(type(wrong), str(wrong))
    problems.check()
    written = [p for p, _ in writes]
    arrays = detached(written, [(array,) for _, array in writes])
    # A source that may still fail makes all of them fallible: it is found out in the middle of the writing.
    unsure = any(source.fallible for source in sources)
    risky = [p for p in [*written, *(source.p for source in sources)] if unsure or p.storage.fallible]
    with uninterrupted(), guarded(chosen), undone_on_error(risky):
        for position in fallible_first(written):
            written[position].write(arrays[position][0])
        for source in sorted(sources, key=lambda one: not one.p.storage.fallible):
            source.write(cast)
    hold_registry.reapply(chosen)


def fit_value(
    value: Any, p: Parameter, order: LayoutName, *, axes: tuple[str, ...] | None, gates: tuple[str, ...] | None
) -> Array:
    """Return a value in the stored order and shape of a parameter, transposed by axis name where names are known."""
    array = (
        value
        if type(value) is np.ndarray and value.dtype == p.dtype
        else host_array(value, what=repr(p.name), dtype=p.dtype)
    )
    if gates is not None and p.gates is not None and gates != p.gates:
        raise LayoutError(
            f"{p.name!r} packs its gates in another order\n{got_expected(', '.join(gates), ', '.join(p.gates))}\n"
            "Fix: reorder them by hand, or port the model, which knows the recipes of both layers"
        )
    if order == "native" and (axes is None or p.axes is None):
        if array.shape != p.layout.stored:
            raise ShapeError(f"{p.name!r} (native order)\n{got_expected(array.shape, p.layout.stored)}")
        return array
    if axes is not None and p.axes is not None and axes != p.axes:
        array = reorder(array, axes, p.axes, what=repr(p.name))
    if array.shape != p.shape:
        raise ShapeError(f"{p.name!r}{_axes_text(p)}\n{got_expected(array.shape, p.shape)}{_transposed_hint(array, p)}")
    return p.layout.to_stored(array)


class _Lazy(dict[str, Parameter]):
    """The parameters of a file by name: values that are read when it is their turn."""


def _opened(values: Any, target: Any) -> Any:
    """Return the values of a file as the parameters that they are, by every name that the target may know them by."""
    if not is_path(values) and not hasattr(type(values), "__xweights_parameters__"):
        return values
    found = _Lazy()
    layout = None if isinstance(target, (Mapping, list, tuple, Parameter)) else backend_for(target)
    homes = dict(getattr(layout, "file_layout", lambda target: ())(target))
    for p in open_target(values):
        home = homes.get(p.name)
        if isinstance(home, Parameter):
            # Where the framework itself keeps this very parameter: it is stored as the framework stores it.
            found[home.name] = copy(p)
            if p.layout.stored == home.layout.stored:
                found[home.name].layout = home.layout
            continue
        for name in (p.name, *p.aliases):
            found[name] = p
    return found


def _transposed_hint(array: Array, p: Parameter) -> str:
    if array.shape == p.layout.stored and array.shape != p.shape:
        return '\nFix: these look like native values: pass layout="native"'
    return ""


def _axes_text(p: Parameter) -> str:
    return "" if p.axes is None else f" ({', '.join(p.axes)})"


def _matched(
    values: Any,
    chosen: Sequence[Parameter],
    everything: Sequence[Parameter],
    strict: bool,
    renamed: Any,
    problems: Problems,
) -> list[tuple[Parameter, str | None, Any]]:
    if not isinstance(values, (Mapping, list, tuple, ValuesView, Iterator)):
        raise ArgumentError(f"values= is a mapping by name, Params, a list or a file\ngot: {type(values).__name__}")
    if not isinstance(values, Mapping):
        given = list(values)
        if len(given) != len(chosen):
            problems.add(
                ShapeError,
                "a list of values goes by position\n"
                + got_expected(f"{len(given)} values", f"{len(chosen)} parameters"),
                fix="use names, which can't shift",
            )
            return []
        return [(p, None, value) for p, value in zip(chosen, given, strict=True)]
    flat: Mapping[str, Any] = values if isinstance(values, (Params, _Lazy)) else leaves(values)
    by_key: dict[str, Parameter] = {}
    wanted = {id(p) for p in chosen}
    back: dict[str, list[Parameter]] = {}
    for p in everything:
        for name in (p.name, *p.aliases):
            back.setdefault(renamed(name), []).append(p)
    by_native = {} if isinstance(values, Params) else {p.native_name: p for p in everything}
    index = NameIndex(everything)
    for key in flat:
        found = back.get(key, [])
        try:
            found = found or named(key, index)
        except SelectionError as wrong:
            problems.add(SelectionError, str(wrong))
            continue
        if key in by_native and not any(one is by_native[key] for one in found):
            found = [*found, by_native[key]]
        if len(found) > 1:
            meant = ", ".join(f"{p.name!r} (native {p.native_name!r})" for p in found)
            problems.add(
                SelectionError, f"{key!r} could mean {len(found)} parameters\n{meant}", fix="pass Params, or names="
            )
        elif not found:
            if last_part(key) not in COUNTERS:
                problems.add(
                    SelectionError, f"{key!r} is no parameter of the target\n{near(key, [p.name for p in everything])}"
                )
        elif id(found[0]) not in wanted:
            if strict:
                problems.add(SelectionError, f"{key!r} is not selected by where=", fix="leave it out, or widen where=")
        else:
            by_key[key] = found[0]
    pairs: dict[int, tuple[Parameter, str | None, Any]] = {}
    for key, p in by_key.items():
        if id(p) in pairs:
            first = pairs[id(p)][1]
            if flat[str(first)] is flat[key]:
                continue
            if not np.array_equal(host_array(flat[str(first)]), host_array(flat[key]), equal_nan=True):
                problems.add(SelectionError, f"{first!r} and {key!r} are one tied parameter, and their values differ")
        else:
            pairs[id(p)] = (p, key, flat[key])
    if strict:
        for p in chosen:
            if id(p) not in pairs and p.role not in COUNTERS:
                problems.add(
                    SelectionError,
                    f"there is no value for {p.name!r} {p.shape}\n{near(p.name, flat)}",
                    fix="strict=False to write a subset",
                )
    return [pairs[id(p)] for p in chosen if id(p) in pairs]
