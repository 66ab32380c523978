"""Result of `merge_lora`: what was merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LISTED = 8


@dataclass(frozen=True)
class LoraReport:
    """What :func:`xweights.merge_lora` merged.

    Attributes:
        adapter: The adapter: its file, or "the model's own factors".
        merged: The rank of the factors that were merged, by the name of the weight.
        replaced: Weights in whose place the adapter had an array of its own (``modules_to_save``, biases).
        left_out: Weights of the adapter that ``where=`` leaves out.
        path: The file that was written; empty for a live model.

    Example:
        >>> import numpy as np, xweights as xw
        >>> model = {"dense/kernel": np.zeros((3, 2))}
        >>> factors = {"dense/lora_kernel_a": np.ones((3, 1)), "dense/lora_kernel_b": np.ones((1, 2))}
        >>> print(xw.merge_lora(model, factors))
        1 weight merged from the adapter, rank 1
    """

    adapter: str
    merged: Mapping[str, int] = field(default_factory=dict)
    replaced: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    path: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {
            "adapter": self.adapter,
            "merged": dict(self.merged),
            "replaced": list(self.replaced),
            "left_out": list(self.left_out),
            "path": self.path,
        }

    def __str__(self) -> str:
        ranks = sorted({rank for rank in self.merged.values() if rank})
        rank = "" if not ranks else f", rank {ranks[0]}" if len(ranks) == 1 else f", ranks {ranks[0]} to {ranks[-1]}"
        into = f" into {self.path!r}" if self.path else ""
        count = len(self.merged)
        lines = [f"{count:,} weight{'s' * (count != 1)} merged from {self.adapter}{into}{rank}"]
        if self.replaced:
            lines.append(f"replaced: {_list(self.replaced)}")
        if self.left_out:
            lines.append(f"left out by where=: {_list(self.left_out)}")
        return "\n".join(lines)

    __repr__ = __str__


def _list(names: tuple[str, ...]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(map(repr, names[:_LISTED]))}{more}"
