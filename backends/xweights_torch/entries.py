"""Set entries in torch: of activations by a module, of newly initialized weights by a function."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from xweights.core.casting import as_number, cast_exactly, is_number
from xweights.core.dtypes import Array
from xweights.core.selection import DEFAULT_KERNELS, WhereLike, select
from xweights.core.targets import open_target
from xweights.core.values import host_array
from xweights.edit.apply import apply
from xweights.edit.execute import prepare
from xweights.edit.guards import undo_on_error
from xweights.errors import ArgumentError, DtypeError, SelectionError, ShapeError
from xweights.rules.base import Initializer
from xweights.rules.entries import SetEntries as EntriesRule
from xweights.rules.entries import check_index, placeholder_parameter, resolve_entries, resolve_index, value_at
from xweights.rules.initializers import Init
from xweights_torch.dtypes import NUMPY_OF, from_host, host_view
from xweights_torch.ops import without_negative_steps


class SetEntries(nn.Module):
    """Module that sets single entries, rows or blocks of an activation to ``value``, in each example of the batch.

    The index is that of :func:`xweights.set_entries`, for the axes after the batch axis, in the order that the
    activation has here. No gradient reaches an entry that was set; all others pass unchanged. It has no parameters and
    no buffers, so a ``state_dict`` stays as it is; ``torch.compile`` takes it in one graph.

    Args:
        index: A tuple of ints and slices, or a bool array, for the axes after the batch axis.
        value: A number, or an array or tensor that broadcasts to the indexed part.

    Exact. Raises LayoutError (an index by axis names, which activations don't have), and when it is called ShapeError,
    SelectionError, DtypeError.

    Example:
        >>> import torch
        >>> from xweights_torch import SetEntries
        >>> SetEntries((0,), 1.0)(torch.zeros(2, 3))
        tensor([[1., 0., 0.],
                [1., 0., 0.]])
    """

    def __init__(self, index: Any, value: Any) -> None:
        super().__init__()
        check_index(index)
        if hasattr(value, "keys"):
            raise ArgumentError(f"value= is a mapping, and there is one array to set\ngot: {value!r}")
        self.mask: torch.Tensor | None = None
        if not isinstance(index, (tuple, int, slice, type(...), np.integer)):
            mask = host_array(index, what="index").copy()
            resolve_index(mask, placeholder_parameter("an activation", mask.shape, np.dtype(np.float32)))
            self.index: Any = mask
            self.mask = torch.from_numpy(mask)
        else:
            self.index = (
                tuple(_plain_index(part) for part in index) if isinstance(index, tuple) else (_plain_index(index),)
            )
        # In each dtype now, rounded once: a compiled step can't do that, and must not round twice.
        self.values: dict[torch.dtype, torch.Tensor] = {}
        self.refused: dict[torch.dtype, str] = {}
        for dtype in _KNOWN:
            try:
                self.values[dtype] = from_host(self._value(value, NUMPY_OF[dtype]).copy())
            except (DtypeError, ArgumentError) as error:
                self.refused[dtype] = str(error)

    def _value(self, value: Any, dtype: np.dtype[Any]) -> Array:
        if self.mask is not None:
            return resolve_entries(self.index, value, self.mask.shape, dtype, what="an activation")[1]
        if is_number(value):
            return as_number(value, dtype, what="value")
        return cast_exactly(host_array(value, what="value", dtype=dtype), dtype, what="value")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activation with the entries set."""
        if x.dtype not in self.values:
            raise DtypeError(self.refused.get(x.dtype, f"entries can't be set in an activation of {x.dtype}"))
        values = self.values[x.dtype].to(x.device)
        if self.mask is not None:
            if self.mask.shape != x.shape[1:]:
                raise ShapeError(
                    f"the bool index doesn't fit an activation\ngot:      {tuple(self.mask.shape)}\n"
                    f"expected: {tuple(x.shape[1:])}"
                )
            return torch.where(self.mask.to(x.device), values, x)
        if not torch.compiler.is_compiling():
            like = placeholder_parameter("an activation", tuple(x.shape[1:]), NUMPY_OF[x.dtype])
            value_at(self.index, resolve_index(self.index, like), host_view(self.values[x.dtype]), like)
        positive, flipped = without_negative_steps(_expand_index(self.index, x.dim() - 1), x.shape[1:])
        new = x.clone()
        part = new[(slice(None), *positive)]
        if part.numel() == 0 and x.numel() != 0:
            raise SelectionError(f"index={self.index!r} selects no entry of an activation {tuple(x.shape[1:])}")
        values = values.expand(part.shape[1:])
        new[(slice(None), *positive)] = values.flip(flipped) if flipped else values
        return new

    def extra_repr(self) -> str:
        """Return the settings shown by ``print(model)``."""
        index = repr(self.index) if self.mask is None else f"<array {self.index.shape}>"
        value = next(iter(self.values.values()))
        return f"{index}, {f'<array {tuple(value.shape)}>' if value.dim() else value.item()}"


def init_entries_(
    module: nn.Module,
    index: Any,
    value: Any,
    *,
    seed: int,
    base: Initializer = "glorot_uniform",
    where: WhereLike | None = None,
    **options: Any,
) -> nn.Module:
    """Initialize weights by ``base``, with entries, rows or blocks that start at ``value``; return the module.

    Args:
        module: The module that holds the weights.
        index: As for :func:`xweights.set_entries`: in neutral order, (in, out) for a linear layer.
        value: A number, or an array that broadcasts to the indexed part.
        seed: Decides the numbers, with the neutral name: the same as from ``init`` in any framework.
        base: As for :func:`xweights.init`.
        where: Default: kernels and embeddings.
        **options: As for :func:`xweights.init`.

    Exact. Raises the errors of ``init`` and ``set_entries``, before anything is written.

    Example:
        >>> import torch
        >>> from xweights_torch import init_entries_
        >>> init_entries_(torch.nn.Linear(2, 2), (0, 1), 1.0, seed=0, base="zeros").weight.data
        tensor([[0., 0.],
                [1., 0.]])
    """
    selected = select(open_target(module), DEFAULT_KERNELS if where is None else where)
    for rule in (Init(base, seed, options), EntriesRule(index, value)):
        prepare(rule, selected, "init_entries_")
    with undo_on_error(selected):
        apply(selected, Init(base, seed, options), where=...)
        apply(selected, EntriesRule(index, value), where=...)
    return module


# Dtypes of activations; float8 and complex ones are refused.
_KNOWN = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool,
)  # fmt: skip


def _plain_index(part: Any) -> Any:
    return int(part) if isinstance(part, np.integer) else part


def _expand_index(index: tuple[Any, ...], axes: int) -> tuple[Any, ...]:
    """Return an index with a part for each axis. Traceable."""
    parts: list[Any] = []
    for part in index:
        parts.extend([slice(None)] * (axes - len(index) + 1) if part is ... else [part])
    parts.extend([slice(None)] * (axes - len(parts)))
    return tuple(parts)
