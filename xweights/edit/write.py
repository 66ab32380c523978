"""Write values into a target, all of them or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, ValuesView
from typing import Any

import numpy as np

from xweights.core import hold_registry
from xweights.core.backend import FileLayout
from xweights.core.casting import cast_exactly, check_finite
from xweights.core.dtypes import COUNTERS, Array
from xweights.core.layout import LayoutName
from xweights.core.mappings import flatten_mapping, last_part
from xweights.core.names import NameIndex, Names, find_named, renamer
from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.core.registry import backend_for
from xweights.core.selection import WhereLike, select
from xweights.core.targets import is_path, open_target
from xweights.core.values import fit_value, host_array
from xweights.edit.guards import copy_aliased, defer_interrupts, enter_guards, order_fallible_first, undo_on_error
from xweights.edit.stream import StreamedValue
from xweights.errors import (
    ArgumentError,
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
    """Write values into a target in place; everything is checked first, and nothing is written unless all of it fits.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        values: Params (transposed by axis name between frameworks), a mapping by name (neutral or native names, in
            ``layout`` order), a list in ``parameters(target)`` order, or a file: its path, or the result of ``load``.
            A file is read straight into the parameters' memory where that is visible.
        where: Which parameters are meant. Default: all.
        layout: The axis order of values without axis names: "neutral" or "native". Default: neutral; a file without
            axis names has no default where the order matters.
        strict: True wants a value for each selected parameter; False takes a subset. An unknown key is always an error.
        cast: True rounds to the parameter's dtype; False accepts another dtype only if no value changes.
        allow_nonfinite: True accepts NaN and infinity.
        names: ``{"0/*": "dense/0/*"}`` where the names of target and values differ (target glob: values' glob).

    Exact: the same bits. The caller's arrays are never aliased; optimizer state is not touched.
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
    opened = _open_values(values, target)
    pairs = _match(opened, chosen, everything, strict, renamer(names), problems)
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
                source = StreamedValue(value, p, layout)
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
    arrays = copy_aliased(written, [(array,) for _, array in writes])
    # A source that may still fail makes all writes fallible: it would fail between them.
    unsure = any(source.fallible for source in sources)
    risky = [p for p in [*written, *(source.p for source in sources)] if unsure or p.storage.fallible]
    with defer_interrupts(), enter_guards(chosen), undo_on_error(risky):
        for position in order_fallible_first(written):
            written[position].write(arrays[position][0])
        for source in sorted(sources, key=lambda source: not source.p.storage.fallible):
            source.write(cast)
    hold_registry.reapply(chosen)


class _Lazy(dict[str, Parameter]):
    """The parameters of a file by name, to be read one at a time."""


def _open_values(values: Any, target: Any) -> Any:
    """Return the values of a file as its parameters, by every name that the target may use for them."""
    if not is_path(values) and not hasattr(type(values), "__xweights_parameters__"):
        return values
    by_name = _Lazy()
    layout = None if isinstance(target, (Mapping, list, tuple, Parameter)) else backend_for(target)
    homes: dict[str, Any] = dict(layout.file_layout(target)) if isinstance(layout, FileLayout) else {}
    for p in open_target(values):
        home = homes.get(p.name)
        if isinstance(home, Parameter):
            # The framework itself keeps this parameter here, so it is stored in the framework's layout.
            same = p.layout.stored == home.layout.stored
            by_name[home.name] = p.replace(layout=home.layout) if same else p
            continue
        for name in (p.name, *p.aliases):
            by_name[name] = p
    return by_name


def _match(
    values: Any,
    chosen: Sequence[Parameter],
    everything: Sequence[Parameter],
    strict: bool,
    rename: Any,
    problems: Problems,
) -> list[tuple[Parameter, str | None, Any]]:
    if not isinstance(values, (Mapping, list, tuple, ValuesView, Iterator)):
        raise ArgumentError(f"values= is a mapping by name, Params, a list or a file\ngot: {type(values).__name__}")
    if not isinstance(values, Mapping):
        listed = list(values)
        if len(listed) != len(chosen):
            problems.add(
                ShapeError,
                "a list of values goes by position\n"
                + got_expected(f"{len(listed)} values", f"{len(chosen)} parameters"),
                fix="use names, which can't shift",
            )
            return []
        return [(p, None, value) for p, value in zip(chosen, listed, strict=True)]
    flat: Mapping[str, Any] = values if isinstance(values, (Params, _Lazy)) else flatten_mapping(values)
    by_key: dict[str, Parameter] = {}
    chosen_ids = {id(p) for p in chosen}
    by_twin_name: dict[str, list[Parameter]] = {}
    for p in everything:
        for name in (p.name, *p.aliases):
            by_twin_name.setdefault(rename(name), []).append(p)
    by_native = {} if isinstance(values, Params) else {p.native_name: p for p in everything}
    index = NameIndex(everything)
    for key in flat:
        matches = by_twin_name.get(key, [])
        try:
            matches = matches or find_named(key, index)
        except SelectionError as wrong:
            problems.add(SelectionError, str(wrong))
            continue
        if key in by_native and not any(p is by_native[key] for p in matches):
            matches = [*matches, by_native[key]]
        if len(matches) > 1:
            meant = ", ".join(f"{p.name!r} (native {p.native_name!r})" for p in matches)
            problems.add(
                SelectionError, f"{key!r} could mean {len(matches)} parameters\n{meant}", fix="pass Params, or names="
            )
        elif not matches:
            if last_part(key) not in COUNTERS:
                problems.add(
                    SelectionError, f"{key!r} is no parameter of the target\n{near(key, [p.name for p in everything])}"
                )
        elif id(matches[0]) not in chosen_ids:
            if strict:
                problems.add(SelectionError, f"{key!r} is not selected by where=", fix="leave it out, or widen where=")
        else:
            by_key[key] = matches[0]
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
