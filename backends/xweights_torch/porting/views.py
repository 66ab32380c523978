"""Tensors that are derived from a parameter, and what of the parameter they show.

A layer's forward seldom computes with a parameter itself: it transposes, slices or expands it first, casts it, or adds
1 to it. Each of these is a step, and the steps are the way from the parameter to the array that the operation used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights_torch.dtypes import from_host, host_view, plain_bits

Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """One change of index. Two steps are equal if they have the same name and settings."""

    name: str
    settings: str
    change: Change = field(compare=False, repr=False)


Steps = tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class StepsView:
    """The view that some steps give of a parameter (``xweights.porting.protocol.View``)."""

    steps: Steps

    def __call__(self, array: Array) -> Array:
        # Indexing is the same for every dtype, and torch doesn't have all of NumPy's.
        bits = plain_bits(array)
        tensor = from_host(bits)
        for step in self.steps:
            tensor = step.change(tensor)
        return host_view(tensor).view(array.dtype)


def reshape(*shape: int) -> Step:
    """Return the step to another shape."""
    return Step("reshape", str(shape), lambda tensor: tensor.reshape(shape))


def permute(*order: int) -> Step:
    """Return the step to another order of the axes."""
    return Step("permute", str(order), lambda tensor: tensor.permute(order))


def cut(start: int, stop: int) -> Step:
    """Return the step to some entries of the first axis."""
    return Step("cut", f"{start}:{stop}", lambda tensor: tensor[start:stop])


def pick(index: int) -> Step:
    """Return the step to one entry of the first axis."""
    return Step("pick", str(index), lambda tensor: tensor[index])


@dataclass(eq=False, slots=True)
class Root:
    """A parameter or buffer of the model, and the modules that have it, each with the name there."""

    parameter: Parameter | None
    tensors: list[torch.Tensor]
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    is_buffer: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as stored."""
        return tuple(self.tensors[0].shape)


@dataclass(eq=False, slots=True)
class Derived:
    """A tensor that was made from one parameter alone.

    ``steps`` lead to its entries, None if they were computed. ``offset`` is the number that was added to them.
    ``made`` is how it was made (function, arguments, keywords, position among several results): if it is a copy, and
    the parameter is written meanwhile, it has to be made again. ``resampled``: to another grid.
    ``members``: what it was made of, if that was several parameters; ``joined``: one after the other.
    """

    root: Root
    tensor: torch.Tensor
    steps: Steps | None = ()
    offset: int = 0
    made: tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any], int | None] | None = None
    copied: bool = False
    members: tuple[Derived, ...] = ()
    joined: bool = False
    resampled: bool = False

    def remake(self) -> torch.Tensor:
        """Return the tensor with the parameter's present values."""
        if self.made is None or not self.copied:
            return self.tensor
        function, args, named, position = self.made
        result = function(*remake(args), **remake(named))
        made: torch.Tensor = result if position is None else result[position]
        return made

    def then(self, *steps: Step) -> Derived:
        """Return what further steps make of it."""
        assert self.steps is not None
        return replace(self, steps=(*self.steps, *steps))


def change_in_place(
    base: Derived, changed: Derived, function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]
) -> Derived:
    """Return a copy of a parameter after a function has changed a view of it."""

    def make() -> torch.Tensor:
        tensor = base.remake()
        function(_remake_on(changed, base, tensor), *remake(args[1:]), **remake(named))
        return tensor

    return Derived(base.root, base.tensor, None, 0, (make, (), {}, None), True, base.members)


def _remake_on(value: Any, base: Derived, tensor: torch.Tensor) -> Any:
    if value is base or not isinstance(value, Derived) or value.made is None:
        return tensor if value is base else remake(value)
    function, args, named, position = value.made
    result = function(*(_remake_on(part, base, tensor) for part in args), **remake(named))
    return result if position is None else result[position]


def remake(value: Any) -> Any:
    """Return arguments with the present values of the tensors that were made from parameters."""
    return _unwrap(value, Derived.remake)


def unwrap(value: Any) -> Any:
    """Return arguments with the tensors that were made from parameters as they are."""
    return _unwrap(value, lambda derived: derived.tensor)


def _unwrap(value: Any, take: Callable[[Derived], torch.Tensor]) -> Any:
    if isinstance(value, Derived):
        return take(value)
    if type(value) in (tuple, list):
        return type(value)(_unwrap(part, take) for part in value)
    if isinstance(value, Mapping):
        return {name: _unwrap(part, take) for name, part in value.items()}
    return value


# Functions that keep the entries and their number in row-major order.
_RESHAPING = frozenset(
    {"reshape", "view", "view_as", "reshape_as", "flatten", "unflatten", "unsqueeze", "squeeze", "ravel"}
)
# Functions that keep entries and shape.
KEEPING = frozenset(
    {"to", "float", "double", "half", "bfloat16", "type", "type_as", "contiguous", "clone", "detach", "get_data"}
    | {"alias", "requires_grad_", "cpu", "cuda", "as_subclass", "positive", "get_real"}
)
# Functions that select, order or repeat entries, according to arguments that are no tensors.
_INDEXING = frozenset(
    {"t", "get_T", "get_mT", "get_H", "get_mH", "transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis"}
    | {"adjoint", "__getitem__", "select", "narrow", "chunk", "split", "unbind", "tensor_split", "split_with_sizes"}
    | {"flip", "roll", "diagonal", "unfold", "expand", "broadcast_to", "repeat", "repeat_interleave", "tile"}
)


def name_of(function: Callable[..., Any]) -> str:
    """Return the plain name of a function that a tensor was given to."""
    name = getattr(function, "__name__", "")
    if name == "__get__":
        return f"get_{getattr(getattr(function, '__self__', None), '__name__', '')}"
    return name


def follow(name: str, function: Callable[..., Any], args: tuple[Any, ...], named: Any, result: Any) -> list[Derived]:
    """Return what a function made of the parameter that is its first argument; nothing if it isn't a view of it."""
    source = args[0] if args else None
    if not isinstance(source, Derived) or source.steps is None:
        return []
    if name == "expand_as" and isinstance(result, torch.Tensor):
        shape = tuple(result.shape)
        return [_derive(source, result, Step("expand", str(shape), lambda t: t.expand(shape)), function, args, named)]
    if name in KEEPING and isinstance(result, torch.Tensor):
        return [_derive(source, result, None, function, args, named)] if result.is_floating_point() else []
    if name in _RESHAPING and isinstance(result, torch.Tensor):
        if name == "view" and result.dtype != source.tensor.dtype:
            return []
        return [_derive(source, result, reshape(*result.shape), function, args, named)]
    if name == "dropout" and isinstance(result, torch.Tensor) and shares_memory(result, source.tensor):
        return [_derive(source, result, None, function, args, named)]
    if name not in _INDEXING:
        return []
    rest, rest_named = _to_plain(args[1:]), {key: _to_plain(value) for key, value in named.items()}
    if _has_tensor(rest) or _has_tensor(tuple(rest_named.values())):
        return []
    settings = f"{rest!r} {rest_named!r}"
    if isinstance(result, torch.Tensor):
        step = Step(name, settings, lambda tensor: function(tensor, *rest, **rest_named))
        if name == "__getitem__" and type(rest[0]) is int:
            step = pick(rest[0] % len(source.tensor))
        return [_derive(source, result, step, function, args, named)]
    if not isinstance(result, (tuple, list)):
        return []
    made = []
    for position, part in enumerate(result):

        def change(tensor: torch.Tensor, position: int = position) -> torch.Tensor:
            part: torch.Tensor = function(tensor, *rest, **rest_named)[position]
            return part

        first = name == "unbind" and (*rest, *rest_named.values(), 0)[0] == 0
        step = pick(position) if first else Step(name, f"{settings} {position}", change)
        made.append(_derive(source, part, step, function, args, named, position))
    return made


def _derive(
    source: Derived,
    tensor: torch.Tensor,
    step: Step | None,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    named: Any,
    position: int | None = None,
) -> Derived:
    assert source.steps is not None
    steps = source.steps if step is None else (*source.steps, step)
    copied = source.copied or not shares_memory(tensor, source.tensor)
    return Derived(source.root, tensor, steps, source.offset, (function, args, named, position), copied)


def shares_memory(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are views of the same memory."""
    try:
        return tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return False


def _to_plain(value: Any) -> Any:
    """Return settings with scalar integer tensors as numbers."""
    if isinstance(value, torch.Tensor) and not value.dim() and not value.is_floating_point():
        return value.item() if value.dtype != torch.bool else value
    if isinstance(value, torch.Size):
        return tuple(value)
    if type(value) in (tuple, list):
        return type(value)(_to_plain(part) for part in value)
    return value


def _has_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_has_tensor(part) for part in value)
    return isinstance(value, (torch.Tensor, Derived))


def list_rows(derived: Derived) -> tuple[Steps, int, int]:
    """Return the steps to a parameter's rows, the first that is used, and how many are."""
    shape = tuple(length for length in derived.root.shape if length != 1) or (1,)
    width = shape[-1]
    count = math.prod(derived.root.shape) // max(width, 1)
    steps = (reshape(count, width),)
    if derived.steps and count > 1:
        # Where the entries come from says which rows are used; a row is the same for each of its columns.
        places = torch.arange(count)[:, None].expand(count, width).reshape(derived.root.shape)
        for step in derived.steps:
            places = step.change(places)
        used = torch.unique(places)
        if len(used) and len(used) == int(used[-1]) - int(used[0]) + 1:
            return steps, int(used[0]), len(used)
    return steps, 0, count
