"""Values by full name for a target whose plan is kept: plain `set_params`, `get_params(out=)`, and edits by arrays.

Each fact is compared for all arrays at once. Whatever isn't plain is left to the general way, which looks at one array
after the other and finds out what is meant, or what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xweights.core import hold_registry
from xweights.core.blocks import are_surely_finite, copy_into, find_spans
from xweights.core.dtypes import Array
from xweights.core.layout import Axes, LayoutName, Shape
from xweights.core.params import Params
from xweights.core.plan import Plan, Selection
from xweights.core.selection import WhereLike
from xweights.edit.guards import alone, defer_interrupts, keys_of_selection
from xweights.edit.load_report import LoadReport


def write_plainly(
    plan: Plan, values: Any, where: WhereLike, layout: LayoutName | None, *, allow_nonfinite: bool
) -> LoadReport | None:
    """Write arrays that fit the selected parameters one to one; return None, with nothing done, for any others."""
    if type(values) not in (Params, dict) or not values:
        return None
    if plan.outline is None:
        return None
    selection = plan.select(where)
    if hold_registry.are_held(selection):
        return None
    if selection.choice.singles or len(values) != len(selection.choice.likes):
        return None
    choice = selection.choice
    expected = _expect(selection)
    stored = _fit_all(values, selection, layout, expected)
    if stored is None or not (allow_nonfinite or are_surely_finite(stored)):
        return None
    if expected.starts.size and _may_be_aliased(
        values._find_spans() if isinstance(values, Params) else _spans(stored), expected
    ):
        return None
    with alone(keys_of_selection(selection)), defer_interrupts():
        for group in choice.groups:
            group.storage.write_group(
                selection.handles(group.positions), [stored[position] for position in group.positions]
            )
    return LoadReport("values", taken=expected.taken.copy())


def fill_plainly(out: Params, selection: Selection, stored: Sequence[Array], layout: LayoutName) -> bool:
    """Copy values in stored order into Params that fit them one to one; return False, with nothing done, for others."""
    choice = selection.choice
    if out.layout != layout or layout == "native" or choice.singles or list(out) != [p.name for p in choice.likes]:
        return False
    expected = _expect(selection)
    homes = _fit_all(out, selection, layout, expected)
    spans = out._find_spans()
    if homes is None or spans is None or not all(home.flags.writeable for home in homes):
        return False
    # Where an edit gives the parameters other memory, it isn't known where their values are.
    kept = not any(group.storage.replaces for group in choice.groups)
    if _overlap(spans) or (kept and _may_be_aliased(spans, expected)):
        return False
    if not kept:
        others = _spans(stored)
        if others is None or _overlap((np.append(spans[0], others[0]), np.append(spans[1], others[1]))):
            return False
    for home, value in zip(homes, stored, strict=True):
        if home.strides == value.strides:
            home[...] = value  # 0.3 us less than np.copyto
        else:
            copy_into(home, value)
    return True


def fit_operands(values: Any, dtype: np.dtype[Any] | None, selection: Selection) -> list[Array] | None:
    """Return the operands of an edit, arrays by name, in stored order; None for any that don't fit one to one.

    Args:
        values: What was passed: Params or a mapping, or anything else.
        dtype: Which they have; by default that of the weights, with which they then share no memory.
        selection: The parameters to edit.
    """
    if type(values) not in (Params, dict) or not values or selection.choice.singles:
        return None
    expected = _expect(selection)
    dtypes = expected.dtypes if dtype is None else [dtype] * len(expected.dtypes)
    arrays = _fit_all(values, selection, "neutral", expected, dtypes)
    if arrays is None or dtype is not None:
        return arrays
    spans = values._find_spans() if isinstance(values, Params) else _spans(arrays)
    return None if _may_be_aliased(spans, expected) else arrays


class _Expected(NamedTuple):
    """What values in the order of a selection have to be, compared for all of them at once."""

    names: list[str]
    taken: dict[str, tuple[str, ...]]
    axes: list[Axes | None]
    gates: list[tuple[str, ...] | None]
    dtypes: list[np.dtype[Any]]
    neutral: list[Shape]
    native: list[Shape]
    orders: list[tuple[int, ...]] | None
    is_plain: bool
    starts: Array
    reach: Array


def _expect(selection: Selection) -> _Expected:
    """Return what is expected of values for this selection: found out once, and kept with its plan."""
    notes = selection.choice.notes
    if "expected" not in notes:
        notes["expected"] = _find_expected(selection)
    expected: _Expected = notes["expected"]
    return expected


def _find_expected(selection: Selection) -> _Expected:
    likes = selection.choice.likes
    # A storage that replaces buffers never writes into one that others may still read.
    homes = [
        view
        for group in selection.choice.groups
        if not group.storage.replaces
        for view in group.storage.read_group(selection.handles(group.positions))
    ]
    starts, ends = find_spans(homes)
    order = np.argsort(starts)
    return _Expected(
        [p.name for p in likes],
        {p.name: (p.name,) for p in likes},
        [p.layout.axes for p in likes],
        [p.gates for p in likes],
        [p.dtype for p in likes],
        [p.layout.shape for p in likes],
        [p.layout.stored for p in likes],
        [p.layout.inverse for p in likes] if all(p.layout.split == p.layout.stored for p in likes) else None,
        _are_names_unique(selection) and all(home.flags.forc for home in homes),
        starts[order],
        np.maximum.accumulate(ends[order]),
    )


def _fit_all(
    values: Params | dict[str, Any],
    selection: Selection,
    layout: LayoutName | None,
    expected: _Expected,
    dtypes: list[np.dtype[Any]] | None = None,
) -> list[Array] | None:
    """Return the values in stored order, in the order of the selection; None if one of them isn't as it should be."""
    names = expected.names
    order = values.layout if isinstance(values, Params) else layout
    if not expected.is_plain or (order == "native" and isinstance(values, Params)):
        return None
    if list(values) == names:
        arrays = list(values.values())
        if isinstance(values, Params) and not (
            _agree(list(values.axes.values()), expected.axes) and _agree(list(values.gates.values()), expected.gates)
        ):
            return None
    elif isinstance(values, dict) and values.keys() == set(names):
        arrays = [values[name] for name in names]
    else:
        return None
    if set(map(type, arrays)) != {np.ndarray} or [array.dtype for array in arrays] != (dtypes or expected.dtypes):
        return None
    if [array.shape for array in arrays] != (expected.native if order == "native" else expected.neutral):
        return None
    if order == "native":
        return arrays
    if expected.orders is not None:
        return list(map(np.ndarray.transpose, arrays, expected.orders))
    return [p.layout.to_stored(array) for array, p in zip(arrays, selection.choice.likes, strict=True)]


def _agree(passed: list[Any], expected: list[Any]) -> bool:
    """Return whether axes or gates are the same, where both are known."""
    return passed == expected or all(a is None or b is None or a == b for a, b in zip(passed, expected, strict=True))


def _are_names_unique(selection: Selection) -> bool:
    """Return whether each name of the selection means its parameter and no other, whichever kind of name it is."""
    owners: dict[str, set[int]] = {}
    for p in selection.everything:
        for name in (p.name, *p.aliases, p.native_name, *p.native_aliases):
            owners.setdefault(name, set()).add(id(p))
    return all(len(owners[p.name]) == 1 for p in selection.choice.likes)


_Spans = tuple[Array, Array]


def _may_be_aliased(spans: _Spans | None, expected: _Expected) -> bool:
    """Return whether a value may share memory with a parameter: it would change before it is read."""
    if not expected.starts.size:
        return False
    if spans is None:
        return True
    starts, ends = spans
    # The last home that begins before the end of a value; those before it may reach further.
    at = np.searchsorted(expected.starts, ends) - 1
    return bool(np.any((at >= 0) & (expected.reach[at] > starts)))


def _overlap(spans: _Spans) -> bool:
    """Return whether two of these arrays may share memory."""
    order = np.argsort(spans[0])
    return bool(np.any(spans[1][order][:-1] > spans[0][order][1:]))


def _spans(arrays: Sequence[Array]) -> _Spans | None:
    return find_spans(arrays) if all(array.flags.forc for array in arrays) else None
