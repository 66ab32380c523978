"""Uses of parameters by operations, in the form of the layer that computes the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from xweights_torch.porting.views import Derived, Steps, list_rows, permute, reshape


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The way from an array of an operation to its neutral form and back.

    ``order`` brings the axes into the neutral order. ``rows``: the last ``features`` of them are merged, the first
    ``batch`` as well, and those between.
    """

    order: tuple[int, ...]
    features: int = 1
    batch: int = 0
    rows: bool = True
    unbatched: bool = False

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the neutral form; a view where strides allow."""
        ordered = tensor.permute(self.order)
        if not self.rows:
            return ordered[None] if self.unbatched else ordered
        shape, split = tuple(ordered.shape), len(self.order) - self.features
        heads = (math.prod(shape[: self.batch]),) if self.batch else ()
        return ordered.reshape(*heads, math.prod(shape[self.batch : split]), math.prod(shape[split:]))

    def restore(self, neutral: torch.Tensor, like: torch.Tensor) -> torch.Tensor | None:
        """Return a neutral array in the operation's own form; None if it has another size."""
        if neutral.numel() != like.numel() or like.dim() != len(self.order):
            return None
        inverse = [self.order.index(axis) for axis in range(len(self.order))]
        native = neutral.reshape([like.shape[axis] for axis in self.order]).permute(inverse)
        return native.to(like.dtype).to(like.device)

    @property
    def feature_axes(self) -> tuple[int, ...]:
        """The axes that are merged to the features, with those of a stack before them."""
        return (*self.order[: self.batch], *self.order[len(self.order) - self.features :])

    def apply_alike(self, given: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor | None:
        """Return a tensor as the rows that another is arranged to, if the two have as many entries; else None."""
        if given is None or given.numel() != other.numel():
            return None
        if given.shape == other.shape:
            return self.apply(given)
        width = math.prod(other.shape[axis] for axis in self.feature_axes)
        return given.reshape(-1, width) if given.dim() and given.shape[-1] == width else None


@dataclass(eq=False, slots=True)
class Use:
    """One use of parameters: ``arrays`` by role in canonical form.

    ``given`` is the input. ``parts`` is the number of matrices if the kernel is a stack of them, else 0.
    ``columns`` are those of the output that it computes, if not all.
    """

    kind: str
    arrays: dict[str, Derived]
    attributes: dict[str, Any] = field(default_factory=dict)
    given: torch.Tensor | None = None
    arranged: Arrangement | None = None
    result: Arrangement | None = None
    parts: int = 0
    columns: slice | None = None
    refused: str | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What two calls of the same operation have in common."""
        arrays = tuple((role, id(one.root.tensors[0]), one.steps) for role, one in sorted(self.arrays.items()))
        return (self.kind, arrays, repr(sorted(self.attributes.items())))


def rows_use(derived: Derived, *, resampled: bool = False) -> Use:
    """Return the use of a parameter as it is."""
    steps, first, count = list_rows(derived)
    root = replace(derived, steps=steps, offset=0)
    refused = None
    if resampled or derived.resampled:
        name = derived.root.places[0][1] if derived.root.places else "a parameter"
        refused = f"{name} is resampled to the grid of the input, so that its rows aren't those that are added"
    return Use("rows", {"rows": root}, {"first": first, "count": count}, refused=refused)


# Reading arguments


def bind(args: tuple[Any, ...], named: Mapping[str, Any], names: str) -> dict[str, Any]:
    """Return arguments by name."""
    return {**dict(zip(names.split(), args, strict=False)), **named}


def as_tensor(value: Any) -> torch.Tensor:
    """Return the tensor that an argument is; raise TypeError for anything else."""
    if isinstance(value, Derived):
        return value.tensor
    if isinstance(value, torch.Tensor):
        return value
    raise TypeError(type(value).__name__)


def collect(
    arrays: Mapping[str, Any], steps: Callable[[Derived], Steps], *, offset: bool = False
) -> dict[str, Derived]:
    """Return those arrays that are views of parameters, in canonical form."""
    views = {role: value for role, value in arrays.items() if isinstance(value, Derived) and value.steps is not None}
    return {
        role: value.then(*steps(value))
        for role, value in views.items()
        if value.root.parameter is not None and (offset or not value.offset)
    }


def flat(value: Derived) -> Steps:
    """Return the steps to a vector."""
    return (reshape(value.tensor.numel()),)


def make_use(kind: str, arrays: dict[str, Derived], attributes: Mapping[str, Any], **forms: Any) -> Use | None:
    """Return a use; None if none of its arrays is a parameter's."""
    return Use(kind, arrays, dict(attributes), **forms) if arrays else None


def whole(value: Any) -> Any:
    """Return a weight that is computed from a whole parameter as that parameter, to tell which it is."""
    if is_computed(value) and not value.resampled:
        for member in value.members or (value,):
            if tuple(value.tensor.shape) == member.root.shape and not member.root.is_buffer:
                return replace(value, root=member.root, steps=(), offset=0, members=())
    return value


def is_computed(value: Any) -> bool:
    """Return whether an argument was computed from a parameter, so that it is no view of it."""
    return isinstance(value, Derived) and (value.steps is None or bool(value.offset))


def fit_addend(use: Use, output: torch.Tensor, addend: Any) -> Derived | None:
    """Return a parameter that is added to the features of an operation's output, in canonical form."""
    if not isinstance(addend, Derived) or addend.steps is None or addend.offset or use.result is None:
        return None
    shape = tuple(addend.tensor.shape)
    rank = output.dim()
    if len(shape) > rank or rank != len(use.result.order):
        return None
    shape = (1,) * (rank - len(shape)) + shape
    lengths = [output.shape[axis] for axis in use.result.feature_axes]
    if [shape[axis] for axis in use.result.feature_axes] != lengths or math.prod(lengths) != addend.tensor.numel():
        return None
    aligned = (reshape(*shape), permute(*use.result.feature_axes, *_others(rank, use.result.feature_axes)))
    size = math.prod(lengths)
    return addend.then(*aligned, reshape(use.parts, size // use.parts) if use.parts else reshape(size))


def _others(rank: int, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(axis for axis in range(rank) if axis not in axes)
