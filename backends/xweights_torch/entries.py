"""Set entries in torch: of activations, by a module, and of weights when they are made, by a function."""

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
from xweights.edit.guards import undone_on_error
from xweights.errors import ArgumentError, DtypeError, SelectionError, ShapeError
from xweights.rules.entries import SetEntries as EntriesRule
from xweights.rules.entries import check_index, entries_index, overwritten, plain_array, value_at
from xweights.rules.initializers import Init, Initializer
from xweights_torch.dtypes import NUMPY_OF, from_host, host_view
from xweights_torch.ops import without_negative_steps


class SetEntries(nn.Module):
    """A module that sets single entries, rows or blocks of an activation to ``value``, for each example of the batch.

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
            entries_index(mask, plain_array("an activation", mask.shape, np.dtype(np.float32)))
            self.index: Any = mask
            self.mask = torch.from_numpy(mask)
        else:
            self.index = tuple(_part(one) for one in index) if isinstance(index, tuple) else (_part(index),)
        # In each dtype now, rounded once: a compiled step can't do it, and must not round twice.
        self.values: dict[torch.dtype, torch.Tensor] = {}
        self.refused: dict[torch.dtype, str] = {}
        for dtype in _KNOWN:
            try:
                self.values[dtype] = from_host(self._value(value, NUMPY_OF[dtype]).copy())
            except (DtypeError, ArgumentError) as wrong:
                self.refused[dtype] = str(wrong)

    def _value(self, value: Any, dtype: np.dtype[Any]) -> Array:
        if self.mask is not None:
            return overwritten(self.index, value, self.mask.shape, dtype, what="an activation")[1]
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
            like = plain_array("an activation", tuple(x.shape[1:]), NUMPY_OF[x.dtype])
            value_at(self.index, entries_index(self.index, like), host_view(self.values[x.dtype]), like)
        plain, turned = without_negative_steps(_whole(self.index, x.dim() - 1), x.shape[1:])
        new = x.clone()
        part = new[(slice(None), *plain)]
        if part.numel() == 0 and x.numel() != 0:
            raise SelectionError(f"index={self.index!r} selects no entry of an activation {tuple(x.shape[1:])}")
        values = values.expand(part.shape[1:])
        new[(slice(None), *plain)] = values.flip(turned) if turned else values
        return new

    def extra_repr(self) -> str:
        """Return what is shown of it in ``print(model)``."""
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
    """Initialise weights by ``base``, with single entries, rows or blocks that start at ``value``; return the module.

    Args:
        module: What holds the weights.
        index: As for :func:`xweights.set_entries`: in neutral order, (in, out) for a linear layer.
        value: A number, or an array that broadcasts to the indexed part.
        seed: With the neutral name it decides the numbers: those that ``init`` gives in any framework.
        base: As for :func:`xweights.init`.
        where: Default: kernels and embeddings.
        **options: As for :func:`xweights.init`.

    Exact. Raises what ``init`` and ``set_entries`` raise; nothing is written then.

    Example:
        >>> import torch
        >>> from xweights_torch import init_entries_
        >>> init_entries_(torch.nn.Linear(2, 2), (0, 1), 1.0, seed=0, base="zeros").weight.data
        tensor([[0., 0.],
                [1., 0.]])
    """
    chosen = select(open_target(module), DEFAULT_KERNELS if where is None else where)
    for rule in (Init(base, seed, options), EntriesRule(index, value)):
        prepare(rule, chosen, "init_entries_")
    with undone_on_error(chosen):
        apply(chosen, Init(base, seed, options), where=...)
        apply(chosen, EntriesRule(index, value), where=...)
    return module


# What is computed with; float8 and complex activations are refused.
_KNOWN = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool,
)  # fmt: skip


def _part(one: Any) -> Any:
    return int(one) if isinstance(one, np.integer) else one


def _whole(index: tuple[Any, ...], axes: int) -> tuple[Any, ...]:
    """Return an index with a part for each axis. Traceable."""
    parts: list[Any] = []
    for one in index:
        parts.extend([slice(None)] * (axes - len(index) + 1) if one is ... else [one])
    parts.extend([slice(None)] * (axes - len(parts)))
    return tuple(parts)
