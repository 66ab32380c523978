"""Prune: choose the entries to drop, in exact counts and with the same ties on every backend.

Scores are compared in one flat order: parameters by neutral name (code points), entries by neutral flat index. Of tied
entries the first in that order is dropped first, so the mask is the same on every backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.casting import as_number, is_number
from xweights.core.dtypes import Array
from xweights.core.numpy_backend import NumpyOps
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.core.selection import DEFAULT_KERNELS
from xweights.core.values import need_axes, operand
from xweights.errors import ArgumentError, LayoutError, NonfiniteError, ShapeError
from xweights.rules.base import FLOAT64, Per, Rule, Scope, need_floating
from xweights.rules.norms import per_axes
from xweights.rules.order_statistics import LazyArrays, at_least, drop_ties, has_nan, keep_largest, order_statistic

Score = Callable[[Any], Any] | Mapping[str, Any]
Pattern = tuple[int, int, str]


@dataclass(frozen=True, eq=False, repr=False)
class Prune(Rule):
    """Drop the entries (or whole units, or blocks) with the smallest scores. Exact.

    The score of an entry is its magnitude, of a unit or block its L2 norm in float64, unless ``score`` says otherwise.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([-2.0, 0.5])}; xw.apply(w, xw.Prune(count=1), where="w"); w["w"]
        array([-2.,  0.])
    """

    default_where = DEFAULT_KERNELS
    fraction: float | None = None
    count: int | None = None
    threshold: float | None = None
    scope: Scope = "each"
    per: Per | None = None
    pattern: Pattern | None = None
    block: Mapping[str, int] | None = None
    score: Score | None = None
    joint = True

    def __post_init__(self) -> None:
        passed = [name for name in ("fraction", "count", "threshold", "pattern") if getattr(self, name) is not None]
        if len(passed) != 1:
            raise ArgumentError(
                "prune takes exactly one of fraction=, count=, threshold= and pattern=\n"
                f"got: {', '.join(passed) or 'none'}"
            )
        if self.fraction is not None:
            if isinstance(self.fraction, (int, np.integer)) or not is_number(self.fraction):
                raise ArgumentError(
                    f"fraction= is a float between 0.0 and 1.0\ngot: {self.fraction!r}\n"
                    "Fix: count= for a number of entries, 1.0 for all"
                )
            if not 0.0 <= self.fraction <= 1.0:
                raise ArgumentError(f"fraction= is between 0.0 and 1.0\ngot: {self.fraction!r}")
        if self.count is not None and (
            isinstance(self.count, bool) or not isinstance(self.count, (int, np.integer)) or self.count < 0
        ):
            raise ArgumentError(f"count= is a whole number >= 0\ngot: {self.count!r}")
        if self.threshold is not None and not (is_number(self.threshold) and 0 <= float(self.threshold) < math.inf):
            raise ArgumentError(f"threshold= is a finite number >= 0\ngot: {self.threshold!r}")
        if self.scope not in ("each", "global"):
            raise ArgumentError(f'scope= is "each" or "global"\ngot: {self.scope!r}')
        if self.per is not None and self.block is not None:
            raise ArgumentError("prune takes per= or block=, not both")
        if self.pattern is not None:
            self._check_pattern()

    def _check_pattern(self) -> None:
        pattern = self.pattern
        if not (isinstance(pattern, tuple) and len(pattern) == 3 and isinstance(pattern[2], str)):
            raise ArgumentError(
                f"pattern= is (n, m, axis): keep n of m along an axis\ngot: {pattern!r}\nFix: (2, 4, 'in')"
            )
        n, m, _ = pattern
        if not (isinstance(n, int) and isinstance(m, int) and 0 <= n <= m and m > 0):
            raise ArgumentError(f"pattern= keeps n of m, with 0 <= n <= m\ngot: {pattern!r}")
        if self.per is not None or self.block is not None or self.scope != "each":
            raise ArgumentError("pattern= goes with neither per=, block= nor scope='global'")

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        need_floating(parameter, "prune")
        shape = self.units(parameter)[0]
        if self.count is not None and self.scope == "each" and self.count > math.prod(shape):
            raise ArgumentError(
                f"count={self.count} is more than {parameter.name!r} has\n"
                f"shape: {parameter.shape}, {math.prod(shape)} {'entries' if shape == parameter.shape else 'units'}"
            )
        # Made here, not while a step is traced, where NumPy may be a tracer's stand-in.
        limit = () if self.threshold is None else (self.bound_above(self._score_dtype(parameter)),)
        return limit if self.score is None or callable(self.score) else (*limit, read_score(self.score, parameter))

    @property
    def by_dtype(self) -> bool:
        """True where entries are compared by their magnitudes, so that only the dtype matters to what is checked."""
        chosen = (self.per, self.pattern, self.block, self.score)
        return all(one is None for one in chosen) and (self.count is None or self.scope == "global")

    def _score_dtype(self, parameter: Parameter) -> np.dtype[Any]:
        """Return the dtype in which scores are compared: the weights' own, unless scores are computed."""
        return parameter.dtype if self.per is None and self.block is None and self.score is None else FLOAT64

    def units(self, parameter: Parameter) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Return (shape of the scores, shape to view the weights in, axes of that to sum over)."""
        if self.per is not None:
            _, fine, others = per_axes(self.per, parameter)
            return tuple(1 if i in others else n for i, n in enumerate(fine)), fine, others
        if self.block is not None:
            return _block_units(self.block, parameter)
        if self.pattern is not None:
            n, m, axis = self.pattern
            axes = need_axes(parameter, f"pattern={self.pattern!r}")
            if axis not in axes:
                raise LayoutError(f"{parameter.name!r} has no axis {axis!r}\naxes: ({', '.join(axes)})")
            length = parameter.shape[axes.index(axis)]
            if length % m:
                raise ShapeError(
                    f"{n} of {m} needs an axis whose length {m} divides\n"
                    f"{parameter.name!r}: {axis} has {length}\nFix: narrow the selection with where="
                )
        return parameter.shape, parameter.shape, ()

    def dropped(self, size: int) -> int:
        """Return how many of ``size`` entries to drop: floor(fraction * size + 0.5), or the count."""
        if self.count is not None:
            if self.count > size:
                raise ArgumentError(f"count={self.count} is more than there are\nselected: {size}")
            return int(self.count)
        assert self.fraction is not None
        return math.floor(float(self.fraction) * size + 0.5)

    def bound_above(self, dtype: np.dtype[Any]) -> Array:
        """Return the smallest number above the threshold: ``score < it`` is ``score <= threshold``, False for NaN."""
        exact = abs(float(self.threshold if self.threshold is not None else 0.0))
        dtype = dtype.newbyteorder("=")
        bound = as_number(exact, dtype, what="threshold")
        if float(bound) > exact:
            return bound
        bits = bound.view(f"i{dtype.itemsize}")
        return np.asarray(bits + bits.dtype.type(1), bits.dtype).view(dtype)

    # The traced way: the same selection in ops. (Eager code selects on the host: see order_statistics.py.)

    def measure(
        self, ws: Sequence[Any], ops: Ops, parameters: Sequence[Parameter], operands: Sequence[tuple[Any, ...]]
    ) -> Any:
        """Return the bool mask of each parameter, True = kept."""
        scores = [self._score(w, ops, p, extra) for w, p, extra in zip(ws, parameters, operands, strict=True)]
        if self.threshold is not None:
            kept = [
                self._exceeds(ops.cast(score, self._score_dtype(p)), ops, extra[0])
                for score, p, extra in zip(scores, parameters, operands, strict=True)
            ]
        elif self.scope == "each":
            kept = [self._keep_by_rank(score, ops) for score in scores]
        else:
            order = sorted(range(len(parameters)), key=lambda i: parameters[i].name)
            sizes = [math.prod(self.units(parameters[i])[0]) for i in order]
            joined = self._keep_by_rank(ops.concatenate([ops.cast(scores[i], FLOAT64) for i in order]), ops)
            kept, start = [None] * len(order), 0
            for i, size in zip(order, sizes, strict=True):
                kept[i], start = joined[start : start + size], start + size
        return [self._spread(mask, ops, p) for mask, p in zip(kept, parameters, strict=True)]

    def _score(self, w: Any, ops: Ops, p: Parameter, operands: tuple[Any, ...]) -> Any:
        shape, fine, others = self.units(p)
        if self.score is not None:
            # Scores by name are operands; a function's scores don't exist before the call.
            has_scores = len(operands) > int(self.threshold is not None)
            score = operands[-1] if has_scores else self.score(w)  # type: ignore[operator]
            if shape != fine:
                score = ops.sum(ops.cast(ops.reshape(score, fine), FLOAT64), others)
        elif shape != fine:
            score = ops.sqrt(ops.sum_squares(ops.reshape(w, fine), others))
        else:
            score = ops.abs(w)
        if self.pattern is None:
            return ops.reshape(score, (math.prod(shape),))
        shape, order = self.groups(p)
        return ops.reshape(ops.transpose(score, order), shape)

    def _exceeds(self, score: Any, ops: Ops, limit: Any) -> Any:
        no, yes = ops.constant(np.asarray(False), score), ops.constant(np.asarray(True), score)
        return ops.where(ops.greater(limit, score), no, yes)

    def _keep_by_rank(self, score: Any, ops: Ops) -> Any:
        drop = self.dropped(int(score.shape[-1])) if self.pattern is None else self.pattern[1] - self.pattern[0]
        rank = ops.cast(ops.rank(score), np.dtype(np.int32))
        return ops.greater(rank, ops.constant(np.asarray(drop - 1, np.int32), score))

    def groups(self, p: Parameter) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return (shape of n:m groups, order of axes with the pattern's axis last)."""
        assert self.pattern is not None and p.axes is not None
        at = p.axes.index(self.pattern[2])
        order = (*(i for i in range(len(p.shape)) if i != at), at)
        return (*(p.shape[i] for i in order[:-1]), p.shape[at] // self.pattern[1], self.pattern[1]), order

    def _spread(self, kept: Any, ops: Ops, p: Parameter) -> Any:
        if self.pattern is not None:
            _, order = self.groups(p)
            back = tuple(order.index(i) for i in range(len(order)))
            return ops.transpose(ops.reshape(kept, tuple(p.shape[i] for i in order)), back)
        shape, fine, _ = self.units(p)
        kept = ops.reshape(kept, shape)
        if shape != fine:
            yes = ops.constant(np.ones(fine, np.bool_), kept)
            kept = ops.where(kept, yes, ops.constant(np.asarray(False), kept))
        return ops.reshape(kept, p.shape)

    def measure_on_host(self, parameters: Sequence[Parameter]) -> Any:
        return host_masks(self, parameters)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.keep(w, shared)


def read_score(score: Any, parameter: Parameter) -> Array:
    """Return a mapping's scores for one parameter, in its shape."""
    dtype = np.dtype(np.float64)
    return np.broadcast_to(operand(score, parameter, what="score", dtype=dtype), parameter.shape)


def _block_units(block: Mapping[str, int], p: Parameter) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    axes = need_axes(p, f"block={dict(block)!r}")
    unknown = [axis for axis in block if axis not in axes]
    if unknown or not block:
        raise LayoutError(f"{p.name!r} has no axis {', '.join(map(repr, unknown))}\naxes: ({', '.join(axes)})")
    shape: list[int] = []
    fine: list[int] = []
    others: list[int] = []
    for axis, length in zip(axes, p.shape, strict=True):
        size = block.get(axis, 1)
        if not isinstance(size, int) or size < 1 or length % size:
            raise ShapeError(f"blocks of {size!r} don't divide {axis} of {p.name!r}\nlength: {length}")
        others.append(len(fine) + 1)
        fine += [length // size, size]
        shape += [length // size, 1]
    return tuple(shape), tuple(fine), tuple(others)


def host_masks(rule: Prune, parameters: Sequence[Parameter], arrays: Sequence[Array] | None = None) -> list[Array]:
    """Return the bool mask of each parameter in neutral order, True = kept, selected on the host.

    ``arrays`` are the weights in neutral order, where they were read before.
    """
    if arrays is None:
        arrays = [p.layout.to_neutral(p.read()) for p in parameters]
    scores = (
        list(arrays) if rule.by_dtype else [_host_score(rule, p, w) for p, w in zip(parameters, arrays, strict=True)]
    )
    absolute = rule.score is None and rule.per is None and rule.block is None

    def refuse_any_nan() -> None:
        for score, p in zip(scores, parameters, strict=True):
            _refuse_nan(score, p)

    if rule.pattern is not None or rule.threshold is not None or rule.scope != "global":
        refuse_any_nan()
    if rule.pattern is not None:
        return [_pattern_mask(rule, score, p, absolute) for score, p in zip(scores, parameters, strict=True)]
    if rule.threshold is not None:
        kept = [at_least(score, rule.bound_above(score.dtype), absolute=absolute) for score in scores]
    elif rule.scope == "global":
        order = sorted(range(len(parameters)), key=lambda i: parameters[i].name)
        drop = rule.dropped(sum(score.size for score in scores))
        joined = keep_largest([scores[i] for i in order], drop, absolute=absolute, suspect=refuse_any_nan)
        position = {i: at for at, i in enumerate(order)}
        kept = [joined[position[i]] for i in range(len(order))]
    else:
        kept = [keep_largest([score], rule.dropped(score.size), absolute=absolute)[0] for score in scores]
    return kept if rule.by_dtype else [spread_mask(rule, mask, p) for mask, p in zip(kept, parameters, strict=True)]


def stream_masks(
    rule: Prune, parameters: Sequence[Parameter], load: Callable[[int], Parameter]
) -> Callable[[int, Parameter], Array]:
    """Return a function that computes one parameter's mask, holding one parameter in memory at a time.

    For ``scope="global"`` all parameters are loaded first, one by one and several times; the masks are those of
    :func:`host_masks`, bit by bit.
    """
    if rule.scope != "global" or rule.threshold is not None:
        return lambda position, p: host_masks(rule, [p])[0]
    absolute = rule.score is None and rule.per is None and rule.block is None
    order = sorted(range(len(parameters)), key=lambda i: parameters[i].name)
    sizes = [math.prod(rule.units(parameters[i])[0]) for i in order]

    def score_of(p: Parameter) -> Array:
        score = _host_score(rule, p, p.layout.to_neutral(p.read()))
        _refuse_nan(score, p)
        return score if score.shape else score.reshape(1)

    dtypes = [parameters[i].dtype if absolute else FLOAT64 for i in order]
    scores = LazyArrays(lambda rank: score_of(load(order[rank])), sizes, dtypes)
    drop, total = rule.dropped(sum(sizes)), sum(sizes)
    if drop <= 0 or drop >= total:
        return lambda position, p: np.full(p.shape, drop <= 0)
    edge, below, equal = order_statistic(scores, drop, absolute=absolute)
    ties = drop - below
    # How many ties each parameter drops, in the order of names.
    shares = [0] * len(parameters)
    if ties < equal:
        for rank, i in enumerate(order):
            shares[i] = int(np.count_nonzero(at_least(scores[rank], edge, absolute=absolute)))
            shares[i] -= int(np.count_nonzero(at_least(scores[rank], edge, absolute=absolute, strictly=True)))
            shares[i] = min(shares[i], ties)
            ties -= shares[i]

    def mask_of(position: int, p: Parameter) -> Array:
        score = score_of(p)
        mask = at_least(score, edge, absolute=absolute, strictly=drop - below == equal)
        if drop - below < equal:
            drop_ties(score, mask, edge, shares[position], absolute=absolute)
        return spread_mask(rule, mask.reshape(rule.units(p)[0]), p)

    return mask_of


def spread_mask(rule: Prune, mask: Array, p: Parameter) -> Array:
    """Return a mask of units as a mask of entries."""
    _, fine, _ = rule.units(p)
    has_units = mask.shape != p.shape or rule.per is not None
    # The result is an array that its owner may edit.
    return np.broadcast_to(mask, fine).copy().reshape(p.shape) if has_units else mask


def _refuse_nan(score: Array, p: Parameter) -> None:
    if has_nan(score):
        raise NonfiniteError(
            f"{p.name!r} has NaN, which is neither small nor large\nFix: mend it, or leave it out with where="
        )


def _host_score(rule: Prune, p: Parameter, w: Array) -> Array:
    shape, fine, others = rule.units(p)
    if rule.score is not None:
        if callable(rule.score):
            read_only = w.view()
            read_only.flags.writeable = False
            score = operand(rule.score(read_only), p, what="what score returned", dtype=FLOAT64)
        else:
            score = read_score(rule.score, p)
        score = np.broadcast_to(score, p.shape)
        return score if shape == fine else score.reshape(fine).sum(axis=others, keepdims=True)
    if shape == fine:
        return w
    return np.sqrt(NumpyOps().sum_squares(w.reshape(fine), others))


def _pattern_mask(rule: Prune, score: Array, p: Parameter, absolute: bool) -> Array:
    assert rule.pattern is not None
    n, m, _ = rule.pattern
    shape, order = rule.groups(p)
    grouped = score.transpose(order).reshape(shape)
    rank = NumpyOps().rank(np.abs(grouped) if absolute else grouped)
    return (rank >= m - n).reshape([p.shape[i] for i in order]).transpose([order.index(i) for i in range(len(order))])
