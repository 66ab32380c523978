"""Products in which a layer gives a variable itself to ``keras.ops``: a dense layer, or a stack of them.

Such a call shows its operands and its result, so that nothing has to be found by calling the layer again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from xweights.core.dtypes import Array
from xweights_keras.porting.frames import Frame, InnerCall, ProbeError
from xweights_keras.porting.layers import as_array

PRODUCTS = ("einsum", "matmul", "dot")
# The most matrices of a stack that are told apart.
_MOST_PARTS = 1024
_LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Contraction:
    """A product of an argument with a variable over some axes.

    ``own``, ``kernel`` and ``out`` name the axes of the argument, the variable and the result. ``stack`` are those
    axes of the variable along which it is a stack of matrices.
    """

    argument: int  # its number among the leaves of the call
    shape: tuple[int, ...]
    own: str
    kernel: str
    out: str
    stack: str = ""

    @property
    def summed(self) -> str:
        """The axes that are summed over, in the argument's order."""
        return "".join(letter for letter in self.own if letter in self.kernel and letter not in self.out)

    @property
    def made(self) -> str:
        """The axes of one matrix that are new in the result."""
        new = [letter for letter in self.out if letter in self.kernel and letter not in self.own]
        return "".join(letter for letter in new if letter not in self.stack)

    @property
    def parts(self) -> int:
        """The number of matrices."""
        return self._count(self.stack)

    def _count(self, letters: str) -> int:
        return math.prod(self.shape[self.kernel.index(letter)] for letter in letters)

    def view(self, neutral: Array, part: int) -> Array:
        """Return one of the matrices as a kernel (inputs, outputs)."""
        order = [self.kernel.index(letter) for letter in self.stack + self.summed + self.made]
        shape = (self.parts, self._count(self.summed), self._count(self.made))
        kernel: Array = neutral.reshape(self.shape).transpose(order).reshape(shape)[part]
        return kernel

    def view_bias(self, neutral: Array, part: int) -> Array:
        """Return what is added to the outputs of one matrix."""
        bias: Array = neutral.reshape(self.parts, -1)[part]
        return bias

    def read_input(self, given: Array, part: int) -> Array:
        """Return the argument as the rows that one matrix is multiplied with."""
        shared = [letter for letter in self.stack if letter in self.own]
        free = [letter for letter in self.own if letter not in self.kernel]
        moved = given.transpose([self.own.index(letter) for letter in [*shared, *free, *self.summed]])
        stacked = moved.reshape(math.prod(moved.shape[: len(shared)]), -1, self._count(self.summed))
        rows: Array = stacked[part if shared else 0]
        return rows

    def _order(self) -> list[int]:
        free = [letter for letter in self.out if letter not in self.kernel]
        return [self.out.index(letter) for letter in [*self.stack, *free, *self.made]]

    def read_output(self, result: Array, part: int) -> Array:
        """Return the rows that one matrix makes."""
        rows: Array = result.transpose(self._order()).reshape(self.parts, -1, self._count(self.made))[part]
        return rows

    def write_output(self, result: Array, part: int, rows: Array) -> None:
        """Write the rows of one matrix into a result."""
        places = np.arange(result.size).reshape(result.shape)
        result.reshape(-1)[self.read_output(places, part).reshape(-1)] = rows.reshape(-1)

    def spread_bias(self, bias: Array, result: Array) -> Array:
        """Return a bias of every matrix in the shape of the result."""
        free = [letter for letter in self.out if letter not in self.kernel]
        made = [self.shape[self.kernel.index(letter)] for letter in self.stack + self.made]
        stacked = bias.reshape([*made[: len(self.stack)], *(1 for _ in free), *made[len(self.stack) :]])
        return np.broadcast_to(stacked.transpose(np.argsort(self._order())), result.shape)


def find_contractions(frame: Frame, variables: Sequence[Any]) -> dict[int, tuple[int, Contraction | None]]:
    """Return the calls of products with each variable, by its ``id``: number of the call, and what it computes."""
    found: dict[int, tuple[int, Contraction | None]] = {}
    for number, call in enumerate(frame.calls):
        if getattr(call.key, "__name__", "") not in PRODUCTS:
            continue
        for variable in variables:
            if any(leaf is variable for leaf in call.leaves):
                found.setdefault(id(variable), (number, _describe(call, variable)))
    # Experts: one of the products has the stack on both sides, and the others have as many matrices.
    lengths = {each.shape[each.kernel.index(each.stack)] for _, each in found.values() if each and each.stack}
    for key, (number, each) in found.items():
        if each is not None and not each.stack:
            found[key] = (number, _stack(each, lengths))
    return found


def _stack(one: Contraction, lengths: set[int]) -> Contraction:
    """Return a product whose result has an axis of the variable ahead of the argument's as a stack."""
    first = one.out[0]
    ahead = first in one.kernel and first not in one.own and len(one.made) > 1
    if ahead and one.out[1] not in one.kernel and one.shape[one.kernel.index(first)] in lengths:
        return Contraction(one.argument, one.shape, one.own, one.kernel, one.out, first)
    return one


def _describe(call: InnerCall, variable: Any) -> Contraction | None:
    name = call.key.__name__
    places = [place for place, leaf in enumerate(call.leaves) if leaf is variable or keras.ops.is_tensor(leaf)]
    if len(places) != 2 or sum(call.leaves[place] is variable for place in places) != 1:
        return None
    at = 0 if call.leaves[places[0]] is variable else 1
    shapes = [tuple(int(length) for length in call.leaves[place].shape) for place in places]
    if name == "einsum":
        letters = _read_equation(str(call.leaves[0]), shapes)
    else:
        letters = _name_axes(shapes) if name == "matmul" or max(map(len, shapes)) < 3 else None
    if letters is None:
        return None
    kernel, own, out = letters[at], letters[1 - at], letters[2]
    if any(len(set(each)) < len(each) for each in letters) or len(kernel) != len(shapes[at]):
        return None
    shared = "".join(letter for letter in kernel if letter in own and letter in out)
    if name == "matmul":
        shared = "".join(letter for letter in kernel[:-2])
    one = Contraction(places[1 - at], shapes[at], own, kernel, out, shared)
    known = {*one.summed, *one.made, *one.stack}
    complete = known == set(kernel) and set(own) | set(kernel) >= set(out) and set(own) - set(kernel) <= set(out)
    if not one.summed or not complete or len(one.stack) > 1 or one.parts > _MOST_PARTS:
        return None
    return one


def _read_equation(equation: str, shapes: list[tuple[int, ...]]) -> tuple[str, str, str] | None:
    left, arrow, out = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if not arrow or len(operands) != 2:
        return None
    for position, shape in enumerate(shapes):
        if "..." in operands[position]:
            count = len(shape) - len(operands[position]) + 3
            operands[position] = operands[position].replace("...", _LETTERS[len(_LETTERS) - count :])
            out = out.replace("...", _LETTERS[len(_LETTERS) - count :])
    return operands[0], operands[1], out


def _name_axes(shapes: list[tuple[int, ...]]) -> tuple[str, str, str] | None:
    """Return the letters of a product of matrices; None if an axis of length one is spread over another."""
    rank = max(len(shape) - 2 for shape in shapes)
    batch = _LETTERS[: max(rank, 0)]
    ends = ["i" if len(shapes[0]) == 1 else "ni", "i" if len(shapes[1]) == 1 else "io"]
    names = [batch[len(batch) - max(len(s) - 2, 0) :] + end for s, end in zip(shapes, ends, strict=True)]
    lengths: dict[str, int] = {}
    for name, shape in zip(names, shapes, strict=True):
        for letter, length in zip(name, shape, strict=True):
            if lengths.setdefault(letter, length) != length:
                return None
    return names[0], names[1], "".join(letter for letter in batch + "no" if letter in names[0] or letter in names[1])


def is_lookup(frame: Frame, number: int, one: Contraction) -> bool:
    """Return True if a product with a variable selects its rows: every row of the argument has one 1 and zeros."""
    given = as_array(frame.calls[number].leaves[one.argument])
    if given is None or one.stack:
        return False
    rows = one.read_input(given, 0)
    return bool(((rows == 0) | (rows == 1)).all() and (rows.sum(axis=-1) == 1).all())


def find_bias(frame: Frame, number: int, one: Contraction, others: Sequence[Any]) -> Any:
    """Return the variable that is added to the result of a product, and to nothing else; None if none is."""
    result = np.asarray(keras.ops.convert_to_numpy(frame.calls[number].output))
    for other in others:
        shape = tuple(int(length) for length in other.shape)
        if math.prod(shape) != one.parts * math.prod(one.shape[one.kernel.index(letter)] for letter in one.made):
            continue
        if len([length for length in shape if length != 1]) > 2:
            continue
        value = np.random.default_rng(0).uniform(0.5, 1.5, shape).astype(np.float32)
        zero = np.zeros(shape, np.float32)
        added = (result + one.spread_bias(value, result)).astype(result.dtype)
        try:
            seen = frame.find_change([(other, value)])
            again = frame.find_change([(other, zero)], {number: keras.ops.convert_to_tensor(added)})
        except ProbeError:
            continue
        if seen is None or again is None or seen[0] != again[0] or seen[1].shape != again[1].shape:
            continue
        scale = float(np.abs(seen[1]).max(initial=0)) or 1.0
        if (np.abs(seen[1] - again[1]) <= 1e-5 * scale).all():
            return other
    return None
