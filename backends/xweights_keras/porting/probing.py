"""What a layer computes with a variable of its own, found by calling it with other values.

Everything is decided by at least two random values of the variable, which an expression of another kind doesn't meet by
accident: where the output grows by the variable itself, it is added or joined; where each entry is multiplied with one
of the variable, it is a scale; where it is a product of matrices with it, it is a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights_keras.porting.frames import Frame, Point, ProbeError
from xweights_keras.porting.products import KernelShape, convolve, list_conv_settings, recover_input

# Above this many calls, the input of a product isn't searched for by blocks of the identity.
_BLOCKS = 8
# Beside the number with which a mask is added to scores, such as -1e9, nothing else can be seen.
_LARGEST = 1e7
_EPS_NAMES = (
    *("epsilon", "eps", "layer_norm_epsilon", "layer_norm_eps", "layernorm_epsilon", "rms_norm_epsilon"),
    *("rms_norm_eps", "norm_epsilon", "norm_eps", "variance_epsilon"),
)
# How much coarser than float32 a layer's results are.
_COARSER = {"float16": 500.0, "bfloat16": 5000.0}


@dataclass(eq=False)
class Use:
    """How a variable shows in the calls of its layer.

    ``form``: ``add``, ``scale``, ``rows``, ``dense``, ``embedding``, ``conv``, ``none`` (it has no effect) or
    ``unknown``. ``start`` and ``length`` are the axes of the array at ``point`` that belong to the variable.
    """

    variable: Any
    form: str
    point: Point | None = None
    start: int = 0
    length: int = 0
    factor: Array | None = None
    base: Array | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


def squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without axes of length one."""
    return tuple(length for length in shape if length != 1)


def table_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (rows, features) of a variable that is used as a table: features are its last axis that isn't one."""
    kept = squeeze(shape)
    return (math.prod(kept[:-1]), kept[-1]) if kept else (1, 1)


class Probe:
    """A variable of a layer that is called with other values."""

    def __init__(self, frame: Frame, variable: Any, random: np.random.Generator) -> None:
        self.frame = frame
        self.variable = variable
        self.shape = tuple(int(length) for length in variable.shape)
        self._random = random

    def draw(self) -> Array:
        """Return random values that are far from zero."""
        values = self._random.uniform(0.5, 1.5, self.shape).astype(np.float32)
        return np.where(self._random.random(self.shape) < 0.5, values, -values).astype(np.float32)

    def has_effect(self, others: Sequence[Any]) -> Point | None:
        """Return where the variable shows if the other ones aren't what they are, such as zero; None if nowhere."""
        around = [(other, Probe(self.frame, other, self._random).draw()) for other in others]
        try:
            found = self.frame.find_change([*around, (self.variable, self.draw())])
            if found is None:
                return None
            point, one = found
            other = self.frame.read([*around, (self.variable, self.draw())], point)
        except ProbeError:
            return None
        return None if np.array_equal(one, other, equal_nan=True) else point

    def find_use(self) -> Use:
        """Return how the variable is used."""
        first, second = self.draw(), self.draw()
        try:
            found = self.frame.find_change([(self.variable, first)])
            if found is None:
                return Use(self.variable, "none")
            point, one = found
        except ProbeError:
            return Use(self.variable, "unknown")
        try:
            other = self.read(second, point)
            base = self.read(np.zeros(self.shape, np.float32), point)
            if one.shape == other.shape == base.shape and np.isfinite(one).all() and np.isfinite(base).all():
                changes = [(one - base, first), (other - base, second)]
                scale = max(float(np.abs(array).max(initial=0)) for array in (one, other, base))
                if scale > _LARGEST:
                    return Use(self.variable, "unknown", point)
                scale *= _COARSER.get(str(getattr(self.frame.layer, "compute_dtype", "")), 1.0)
                finders = (
                    self._find_scale,
                    self._find_rows,
                    self._find_product,
                    self._find_convolution,
                    self._find_any,
                )
                for find in finders:
                    use = find(point, changes, scale)
                    if use is not None:
                        use.base = base
                        return use
        except ProbeError:
            pass
        return Use(self.variable, "unknown", point)

    def read(self, value: Array, point: Point) -> Array:
        """Return the array at a point for a value of the variable."""
        return self.frame.read([(self.variable, value)], point)

    def _find_scale(self, point: Point, changes: list[tuple[Array, Array]], scale: float) -> Use | None:
        """Find an array with which each entry of the variable is multiplied; it is one where it is added."""
        kept = squeeze(self.shape)
        shape = changes[0][0].shape
        for start in _alignments(kept, shape):
            factors = [change / _spread(value, kept, start, len(shape)) for change, value in changes]
            if not _are_close(factors[0], factors[1], scale):
                continue
            use = Use(self.variable, "scale", point, start, len(kept), factors[0])
            rounded = np.round(factors[0])
            if _are_close(factors[0], rounded, scale) and not ((rounded != 0) & (rounded != 1)).any():
                use.form = "add" if (rounded == 1).all() else "rows"
                if use.form == "rows":
                    used = move_last(rounded, start, len(kept)).max(axis=0).reshape(table_shape(self.shape))
                    use.attributes = _describe_rows(np.flatnonzero(used.max(axis=1)))
            else:
                by_row = move_last(factors[0], start, len(kept))
                if len(by_row) > 1 and _are_close(by_row, by_row[:1], scale):
                    continue  # the same for every input: it is added, and multiplied afterwards
            return use
        return None

    def _find_rows(self, point: Point, changes: list[tuple[Array, Array]], scale: float) -> Use | None:
        """Find rows of the variable that are added or joined, or looked up by an input."""
        count, features = table_shape(self.shape)
        if features == 1 or count == 1:
            return None
        shape = changes[0][0].shape
        tables = [value.reshape(count, features).astype(np.float64) for _, value in changes]
        for axis in reversed([axis for axis, length in enumerate(shape) if length == features]):
            moved = [np.moveaxis(change, axis, -1).reshape(-1, features) for change, _ in changes]
            looked_up = self._match_ids(point, moved, tables, axis, scale)
            if looked_up is not None:
                return looked_up
            chosen = np.abs(moved[0]).max(axis=1) > 1e-4
            rows = _match_rows(moved[0][chosen], tables[0])
            if not rows.size or not all(
                _are_close(each[chosen], table[rows], scale) for each, table in zip(moved, tables, strict=True)
            ):
                continue
            use = Use(self.variable, "rows", point, axis, 1, attributes=_describe_rows(np.unique(rows)))
            if chosen.all():
                self._find_lookup(use, rows, [*shape[:axis], *shape[axis + 1 :]])
            return use
        return None

    def _find_lookup(self, use: Use, rows: Array, lengths: list[int]) -> None:
        """Name rows that aren't used one after the other a lookup, by an input of the layer or by what it computes."""
        for number, array in self.frame.tensors():
            if array.dtype.kind in "iu" and array.size == rows.size:
                shift = np.unique(rows - array.reshape(-1).astype(np.int64))
                if shift.size == 1:
                    use.form, use.attributes = "embedding", {"argument": number, "shift": int(shift[0])}
                    return
        repeats, left = 0, rows
        while repeats < len(lengths):
            parts = left.reshape(lengths[repeats], -1)
            if (parts != parts[0]).any():
                break
            left, repeats = parts[0], repeats + 1
        if not np.array_equal(left, np.arange(left[0], left[0] + left.size)):
            use.form, use.attributes = "embedding", {"argument": None, "repeats": repeats}

    def _match_ids(self, point: Point, moved: list[Array], tables: list[Array], axis: int, scale: float) -> Use | None:
        """Find a lookup by an input whose rows are multiplied with a number."""
        for number, ids in self.frame.tensors():
            flat = ids.reshape(-1)
            if ids.dtype.kind not in "iu" or flat.size != len(moved[0]) or flat.min(initial=0) < 0:
                continue
            if flat.max(initial=0) >= len(tables[0]):
                continue
            looked_up = [table[flat] for table in tables]
            factor = float((moved[0] * looked_up[0]).sum() / (looked_up[0] ** 2).sum())
            if factor and all(_are_close(m, factor * t, scale) for m, t in zip(moved, looked_up, strict=True)):
                factor = 1.0 if abs(factor - 1) < 1e-4 else factor
                attributes = {"argument": number, "shift": 0, "factor": factor}
                return Use(self.variable, "embedding", point, axis, 1, attributes=attributes)
        return None

    def _find_product(self, point: Point, changes: list[tuple[Array, Array]], scale: float) -> Use | None:
        """Find a product of matrices of an input with the variable."""
        return self._find_matrices(point, changes, scale, [pair for pair in self.frame.tensors() if _is_float(pair[1])])

    def _find_any(self, point: Point, changes: list[tuple[Array, Array]], scale: float) -> Use | None:
        """Find a product of matrices of any array with the variable."""
        return self._find_matrices(point, changes, scale, [(None, None)])

    def _find_matrices(
        self,
        point: Point,
        changes: list[tuple[Array, Array]],
        scale: float,
        inputs: Sequence[tuple[int | None, Array | None]],
    ) -> Use | None:
        """Find a product whose features are the last axes of the result."""
        shape = changes[0][0].shape
        for split in range(1, len(self.shape)):
            lengths = self.shape[:split], self.shape[split:]
            for turned in (False, True):
                ingoing, outgoing = lengths[::-1] if turned else lengths
                axes = len(outgoing)
                if shape[-axes:] != outgoing:
                    continue
                kernel = KernelShape(self.shape, math.prod(ingoing), math.prod(outgoing), turned)
                changed = [change.reshape(-1, kernel.outputs) for change, _ in changes]
                kernels = [kernel.from_variable(value).astype(np.float64) for _, value in changes]
                for number, given in inputs:
                    array = self._recover_input(kernel, point) if given is None else _as_rows(given, ingoing)
                    if array is None or len(array) != len(changed[0]):
                        continue
                    products = [array @ matrix for matrix in kernels]
                    limit = max(scale, *(float(np.abs(p).max(initial=0)) for p in products))
                    if all(_are_close(c, p, 8 * limit) for c, p in zip(changed, products, strict=True)):
                        attributes = {"argument": number, "kernel": kernel}
                        return Use(self.variable, "dense", point, len(shape) - axes, axes, attributes=attributes)
        return None

    def _recover_input(self, kernel: KernelShape, point: Point) -> Array | None:
        """Return the array with which a kernel is multiplied; it comes out through blocks of the identity."""
        if -(-kernel.inputs // kernel.outputs) > _BLOCKS:
            return None
        return recover_input(kernel, lambda value: self.read(value, point))

    def _find_convolution(self, point: Point, changes: list[tuple[Array, Array]], scale: float) -> Use | None:
        """Find a convolution of an input with the variable."""
        rank = len(self.shape) - 2
        change = changes[0][0]
        if not 1 <= rank <= 3 or change.ndim != rank + 2:
            return None
        for number, given in self.frame.tensors():
            if given.ndim != rank + 2 or not _is_float(given):
                continue
            for attributes in list_conv_settings(self.frame.layer, given.shape, change.shape, self.shape):
                results = [convolve(given, value, attributes) for _, value in changes]
                pairs = zip((change for change, _ in changes), results, strict=True)
                if all(r is not None and c.shape == r.shape and _are_close(c, r, 8 * scale) for c, r in pairs):
                    start = 1 if attributes["channels_first"] else change.ndim - 1
                    return Use(self.variable, "conv", point, start, 1, attributes={"argument": number, **attributes})
        return None


def move_last(array: Array, start: int, length: int) -> Array:
    """Return an array as (rows, features), of which the features are these axes."""
    axes = range(start, start + length)
    moved = np.moveaxis(array, tuple(axes), tuple(range(array.ndim - length, array.ndim)))
    return moved.reshape(-1, math.prod(array.shape[start : start + length]))


def move_back(rows: Array, start: int, length: int, shape: tuple[int, ...]) -> Array:
    """Return (rows, features) in the shape that they came from."""
    rest = [axis for axis in range(len(shape)) if not start <= axis < start + length]
    order = [*rest, *range(start, start + length)]
    return rows.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def normalise(array: Array, eps: float, *, centred: bool) -> Array:
    """Return (rows, features) over the root of their mean square, less their mean if ``centred``."""
    array = array.astype(np.float64)
    array = array - array.mean(axis=-1, keepdims=True) if centred else array
    result: Array = array / np.sqrt(np.square(array).mean(axis=-1, keepdims=True) + eps)
    return result


def list_eps(layer: Any) -> dict[str, float]:
    """Return the attributes of a layer that may be its epsilon."""
    names = [*_EPS_NAMES, *(f"_{name}" for name in _EPS_NAMES)]
    return {name: float(getattr(layer, name)) for name in names if type(getattr(layer, name, None)) in (int, float)}


def are_close(one: Array, other: Array) -> bool:
    """Return True if two arrays are equal but for rounding."""
    scale = max(float(np.abs(one).max(initial=0)), float(np.abs(other).max(initial=0)))
    return one.shape == other.shape and bool((np.abs(one - other) <= 1e-4 * scale).all())


def _are_close(one: Array, other: Array, scale: float) -> bool:
    return bool((np.abs(one - other) <= 1e-5 * max(scale, 1.0)).all())


def _alignments(kept: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[int]:
    """Yield where these axes may begin among those of an array, the last place first."""
    for start in range(len(shape) - len(kept), -1, -1):
        if shape[start : start + len(kept)] == kept:
            yield start
            if not kept:
                return


def _spread(value: Array, kept: tuple[int, ...], start: int, rank: int) -> Array:
    spread: Array = value.astype(np.float64).reshape((*kept, *(1,) * (rank - start - len(kept))))
    return spread


def _describe_rows(rows: Array) -> dict[str, int]:
    return {"first": int(rows[0]), "count": int(rows[-1] - rows[0] + 1)}


def _match_rows(rows: Array, table: Array) -> Array:
    """Return the number of the nearest row of a table for each row, judged by the first column."""
    order = np.argsort(table[:, 0])
    column = table[order, 0]
    above = np.searchsorted(column, rows[:, 0]).clip(1, len(column) - 1)
    best: Array = order[above]
    error = np.full(len(rows), np.inf)
    for shift in range(-3, 3):  # neighbours in the first column may be nearer than rounding
        near = order[(above + shift).clip(0, len(column) - 1)]
        distance = np.abs(table[near] - rows).max(axis=1)
        best[distance < error] = near[distance < error]
        error = np.minimum(error, distance)
    return best


def _is_float(array: Array) -> bool:
    return array.dtype.kind not in "iub" and array.size > 0


def _as_rows(array: Array, lengths: tuple[int, ...]) -> Array | None:
    """Return an array whose last axes have these lengths, or their product, as (rows, features)."""
    if array.shape[-len(lengths) :] == lengths or (array.ndim and array.shape[-1] == math.prod(lengths)):
        return array.reshape(-1, math.prod(lengths)).astype(np.float64)
    return None
