"""`Rows`: match the rows of two vocabularies by their tokens."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Shape
from xweights.edit.adapt.base import (
    Adapter,
    Axis,
    Wanted,
    check_axis,
    find_axis,
    need_length,
    with_length,
)
from xweights.edit.adapt.new_entries import NewEntries
from xweights.errors import ArgumentError, LayoutError, SelectionError, ShapeError, got_expected
from xweights.rules.base import Initializer

Tokens = Mapping[Any, int] | Sequence[Any]
RowsByIndex = Mapping[int, int] | Sequence[int | None]


@dataclass(frozen=True, init=False, eq=False)
class Rows(Adapter):
    """Match rows of a vocabulary: each token's row goes where the token is in the target's vocabulary.

    Args:
        old: The tokens of the value: a mapping of tokens to rows, as a tokenizer's ``get_vocab()``, or a list, whose
            positions are the rows.
        new: The tokens of the target, likewise. Default of both: rows match by their position, and the target has as
            many or more.
        rows: In the place of tokens, ``{new row: old row}``, or a list with an old row (or None) for each new one.
        axis: The axis of the vocabulary, by name or number. Default: the one named "vocab"; for embeddings of unknown
            axes, the first. The head of a language model has it at "out".
        init: The rows of tokens that the value doesn't have: "mean" (of all rows of the value), "zeros", "keep" (what
            the target has there), or any initializer of :func:`xweights.init`, which draws what it would draw there.
        seed: Of random initializers: the same seed gives the same rows everywhere.
        **options: Those of the initializer, as ``std=0.02``.

    Exact: rows are copied; a mean is summed in float64 in one order and rounded once.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"embeddings": np.zeros((3, 2))}; old = np.array([[1.0, 1.0], [3.0, 3.0]])
        >>> rows = xw.adapt.Rows(old=["a", "b"], new=["b", "new", "a"])
        >>> report = xw.set_params(w, {"embeddings": old}, adapt={"embeddings": rows}); w["embeddings"]
        array([[3., 3.],
               [2., 2.],
               [1., 1.]])
    """

    old: Mapping[Hashable, int] | None
    new: Mapping[Hashable, int] | None
    rows: Mapping[int, int] | None
    listed: int
    axis: Axis | None
    init: NewEntries

    def __init__(
        self,
        old: Tokens | None = None,
        new: Tokens | None = None,
        *,
        rows: RowsByIndex | None = None,
        axis: Axis | None = None,
        init: Initializer = "mean",
        seed: int = 0,
        **options: Any,
    ) -> None:
        if (old is None) != (new is None):
            raise ArgumentError("Rows needs the tokens of both, old= and new=, or of neither")
        if rows is not None and old is not None:
            raise ArgumentError("Rows matches by tokens or by rows=, not by both")
        if axis is not None:
            check_axis(axis)
        of_new = None if new is None else _read_tokens(new, "new", unique=True)
        by_row = None if rows is None else _read_rows(rows)
        ends = [*(of_new or {}).values(), *(by_row or {})]
        listed = max([row + 1 for row in ends] + [len(rows) if isinstance(rows, Sequence) else 0], default=0)
        fields = {
            "old": None if old is None else _read_tokens(old, "old"), "new": of_new, "rows": by_row, "axis": axis,
            "listed": listed, "init": NewEntries(init, seed, options),
        }  # fmt: skip
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        shown = []
        if self.old is not None and self.new is not None:
            shown.append(f"old={len(self.old):,} tokens, new={len(self.new):,} tokens")
        if self.rows is not None:
            shown.append(f"rows={len(self.rows):,} rows")
        shown += [] if self.axis is None else [f"axis={self.axis!r}"]
        return f"Rows({', '.join([*shown, repr(self.init)])})"

    def describe(self, shape: Shape, wanted: Wanted) -> str:
        axis, length = self._find_length(shape, wanted)
        matched = len(self._match(shape[axis], length, wanted)[0])
        return f"{self}: {matched:,} rows matched, {length - matched:,} new"

    def check(self, shape: Shape, wanted: Wanted) -> Shape:
        axis, length = self._find_length(shape, wanted)
        into, _ = self._match(shape[axis], length, wanted)
        after = with_length(shape, axis, length)
        if len(into) < length:
            self.init.check(after, wanted, self)
        return after

    def __call__(self, array: Array, wanted: Wanted) -> Array:
        axis, length = self._find_length(array.shape, wanted)
        into, taken = self._match(array.shape[axis], length, wanted)
        shape = with_length(array.shape, axis, length)
        if len(into) < length:
            result: Array = np.array(self.init.make(shape, array, axis, wanted))
        else:
            result = np.empty(shape, array.dtype)
        result[(slice(None),) * axis + (into,)] = np.take(array, taken, axis)
        return result

    def _find_length(self, shape: Shape, wanted: Wanted) -> tuple[int, int]:
        """Return the axis of the vocabulary, and how long it gets."""
        axis = self._find_vocabulary(shape, wanted)
        if wanted.shape is None and self.listed:
            return axis, self.listed
        option = "the tokens of both, old= and new="
        return axis, need_length(wanted, axis, len(shape), self, option)

    def _find_vocabulary(self, shape: Shape, wanted: Wanted) -> int:
        if self.axis is not None:
            return find_axis(self.axis, shape, wanted, self)
        names = wanted.axes if wanted.axes is not None and len(wanted.axes) == len(shape) else None
        if names is not None and "vocab" in names:
            return names.index("vocab")
        if names is None and shape and wanted.role == "embeddings":
            return 0
        known = "unknown axes" if names is None else f"the axes ({', '.join(names)})"
        raise LayoutError(
            f"{wanted.name!r} has {known}, and none that is a vocabulary's\n"
            f"Fix: Rows(..., axis={0 if names is None else 'out'!r}), if that is the one"
        )

    def _match(self, old_length: int, new_length: int, wanted: Wanted) -> tuple[Array, Array]:
        """Return the new rows that have a counterpart, and their counterparts."""
        if self.old is not None and self.new is not None:
            _check_tokens(self.old, old_length, f"old= has more tokens than {wanted.name!r} has rows in the value")
            _check_tokens(self.new, new_length, f"new= has more tokens than {wanted.name!r} has rows")
            pairs = [(row, self.old[token]) for token, row in self.new.items() if token in self.old]
            if not pairs:
                some_old, some_new = (", ".join(map(repr, list(tokens)[:4])) for tokens in (self.old, self.new))
                raise SelectionError(
                    f"the two vocabularies of {wanted.name!r} have no token in common\n"
                    f"old: {some_old}, ...\nnew: {some_new}, ..."
                )
        elif self.rows is not None:
            outside = [pair for pair in self.rows.items() if pair[0] >= new_length or pair[1] >= old_length]
            if outside:
                raise ShapeError(
                    f"rows= goes beyond {wanted.name!r}\n"
                    f"got:      new row {outside[0][0]} of old row {outside[0][1]}\n"
                    f"expected: new rows below {new_length}, old ones below {old_length}"
                )
            pairs = list(self.rows.items())
        elif new_length < old_length:
            raise ShapeError(
                f"{self} would drop {old_length - new_length} rows of {wanted.name!r}\n"
                f"{got_expected(old_length, f'{new_length} at most')}\n"
                "Fix: the tokens of both, old= and new=, or Take(axis, slice(length))"
            )
        else:
            return np.arange(old_length), np.arange(old_length)
        matched = np.asarray(pairs, np.int64).reshape(-1, 2)
        return matched[:, 0], matched[:, 1]


def _read_tokens(tokens: Any, name: str, *, unique: bool = False) -> dict[Hashable, int]:
    """Return a vocabulary as a mapping of tokens to rows."""
    if isinstance(tokens, Mapping):
        rows = dict(tokens)
        for token, row in rows.items():
            if isinstance(row, (bool, np.bool_)) or not isinstance(row, (int, np.integer)) or row < 0:
                raise ArgumentError(f"{name}= maps each token to its row, a whole number >= 0\ngot: {token!r}: {row!r}")
        twice = _find_twice(list(rows.values())) if unique else None
        if twice is not None:
            both = [token for token, row in rows.items() if row == twice][:2]
            raise ArgumentError(f"{name}= gives the row {twice} to two tokens\ngot: {both[0]!r} and {both[1]!r}")
        return {token: int(row) for token, row in rows.items()}
    if isinstance(tokens, (str, bytes)) or not isinstance(tokens, Sequence):
        raise ArgumentError(f"{name}= is a list of tokens, or a mapping of tokens to rows\ngot: {tokens!r}")
    try:
        listed = {token: row for row, token in enumerate(tokens)}
    except TypeError:
        raise ArgumentError(f"{name}= has a token that can't be compared: tokens are strings, bytes or ints") from None
    if len(listed) != len(tokens):
        raise ArgumentError(f"{name}= has the token {_find_twice(tokens)!r} twice")
    return listed


def _read_rows(rows: Any) -> dict[int, int]:
    """Return ``rows=`` as a mapping of new rows to old ones."""
    pairs: list[tuple[Any, Any]]
    if isinstance(rows, Mapping):
        pairs = list(rows.items())
    elif isinstance(rows, Sequence) and not isinstance(rows, (str, bytes)):
        pairs = [(new, old) for new, old in enumerate(rows) if old is not None]
    else:
        raise ArgumentError(f"rows= is a mapping of new rows to old ones, or a list of old rows\ngot: {rows!r}")
    if not pairs:
        raise ArgumentError("rows= matches no row at all")
    for number in (number for pair in pairs for number in pair):
        if isinstance(number, (bool, np.bool_)) or not isinstance(number, (int, np.integer)) or number < 0:
            raise ArgumentError(f"rows= has whole numbers >= 0\ngot: {number!r}")
    return {int(new): int(old) for new, old in pairs}


def _find_twice(values: Sequence[Any]) -> Any:
    """Return the first value that comes twice, or None."""
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _check_tokens(tokens: Mapping[Hashable, int], length: int, text: str) -> None:
    token = max(tokens, key=lambda token: tokens[token], default=None)
    if token is not None and tokens[token] >= length:
        raise ShapeError(f"{text}\n{got_expected(f'{token!r} in row {tokens[token]}', f'rows below {length}')}")
