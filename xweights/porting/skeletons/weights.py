"""How a parameter of the original is stored in its twin."""

from __future__ import annotations

from dataclasses import dataclass

from xweights.core.dtypes import Array
from xweights.porting.skeletons.orders import inverse, plain


@dataclass(frozen=True)
class Stored:
    """The place of a parameter in a twin: ``path`` is its attribute, "head.kernel".

    The twin has the array reshaped to ``split``, its axes in ``order``, and then reshaped to ``shape``.
    """

    path: str
    original: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def convert(self, array: Array) -> Array:
        """Return the array as the twin has it."""
        return array.reshape(self.split).transpose(self.order).reshape(self.shape)

    @property
    def turned(self) -> tuple[int, ...]:
        """The shape after the axes are put in order."""
        return tuple(self.split[axis] for axis in self.order)

    @property
    def back(self) -> tuple[int, ...]:
        """The order of axes that undoes ``order``."""
        return inverse(self.order)


def store(path: str, shape: tuple[int, ...], axes: str = "", wanted: str = "") -> Stored:
    """Return the place of a parameter whose axes are kept in another order; without letters, in the same."""
    order = tuple(axes.index(letter) for letter in wanted) if axes else plain(len(shape))
    return Stored(path, shape, shape, order, tuple(shape[axis] for axis in order))


class Written:
    """Source code of a twin, where its parameters come from, and in which order it keeps its inputs and outputs."""

    def __init__(
        self, code: str, stored: dict[str, list[Stored]], inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]]
    ) -> None:
        self.code = code
        self.stored = stored
        self.inputs = inputs
        self.outputs = outputs
