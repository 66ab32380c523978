"""`extract_lora`: the difference of two models as LoRA factors of a given rank."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from xweights.core.casting import round_to
from xweights.core.dtypes import Array
from xweights.core.layout import Axes, Layout, LayoutName
from xweights.core.names import Names
from xweights.core.params import Params
from xweights.core.selection import WhereLike
from xweights.core.targets import tracing
from xweights.errors import ArgumentError, LayoutError, NonfiniteError, Problems, SelectionError, TraceError
from xweights.files.save import save
from xweights.merging.groups import Group, is_counter
from xweights.merging.inputs import list_inputs, settle_names
from xweights.merging.lora.decompose import decompose
from xweights.merging.lora.factors import Adapter, Factors
from xweights.merging.lora.write_peft import PeftPair, make_pair, write_folder
from xweights.merging.pairing import group_parameters
from xweights.merging.prefixes import read_prefixes
from xweights.merging.ties import separate_ties

_LISTED = 12
_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, eq=False)
class _Extracted:
    """The factors of one weight: in neutral order (rest, rank) and (rank, last axis)."""

    name: str
    native_name: str
    layout: Layout
    left: Array
    right: Array
    error: float

    @property
    def rank(self) -> int:
        return len(self.right)

    @property
    def kernel_a(self) -> Array:
        """The first factor as Keras has it."""
        if len(self.layout.shape) > 2 and self.layout.axes is None:
            raise LayoutError(f"the axes of {self.name!r} are unknown, and factors in Keras' order need them")
        return self.left.reshape(*self.layout.shape[:-1], self.rank)


@dataclass(frozen=True, eq=False)
class ExtractedLora:
    """Factors that :func:`xweights.extract_lora` found; an adapter for :func:`xweights.merge_lora`.

    Attributes:
        rank: The rank that was asked for; a smaller matrix has the rank of its shorter side.
        alpha: What PEFT divides by the rank to scale the product. The factors are those for ``alpha == rank``.
        errors: By weight: the norm of what the factors miss, relative to that of the difference.
        left_out: Weights that differ and have no factors, with the reason: their change isn't in the adapter.

    Example:
        >>> import numpy as np, xweights as xw
        >>> before = {"dense/kernel": np.zeros((3, 2), np.float32)}
        >>> after = {"dense/kernel": np.outer([1.0, 2.0, 3.0], [1.0, 1.0]).astype(np.float32)}
        >>> lora = xw.extract_lora(after, before, rank=1)
        >>> list(lora.params), max(lora.errors.values()) < 1e-12
        (['dense/lora_kernel_a', 'dense/lora_kernel_b'], True)
        >>> report = xw.merge_lora(before, lora); xw.equal(before, after, rtol=1e-6)
        True
    """

    rank: int
    errors: Mapping[str, float]
    left_out: Mapping[str, str] = field(default_factory=dict)
    _weights: tuple[_Extracted, ...] = ()
    _transposed: bool = False

    @property
    def alpha(self) -> int:
        """The alpha that goes with the rank: the product counts once."""
        return self.rank

    @property
    def params(self) -> Params:
        """The factors by Keras' names, ``dense/lora_kernel_a`` and ``dense/lora_kernel_b``, in neutral order.

        ``set_params(lora_model, lora.params, strict=False)`` writes them into layers of that rank.
        """
        arrays: dict[str, Array] = {}
        axes: dict[str, Axes | None] = {}
        for weight in self._weights:
            path, _, role = weight.name.rpartition("/")
            stem = f"{path}/lora_{role}" if path else f"lora_{role}"
            arrays[f"{stem}_a"], arrays[f"{stem}_b"] = weight.kernel_a, weight.right
            known = weight.layout.axes
            axes[f"{stem}_a"] = None if known is None else (*known[:-1], "rank")
            axes[f"{stem}_b"] = None if known is None else ("rank", known[-1])
        return Params(arrays, axes=axes)

    def as_adapter(self) -> Adapter:
        """Return the factors as :func:`xweights.merge_lora` takes them."""
        factors = {
            w.name: Factors(
                partial(_get, w.left), partial(_get, w.right), w.layout.shape, "neutral", w.left.dtype, w.rank, 1.0
            )
            for w in self._weights
        }
        return Adapter("the extracted factors", factors, native=False)

    def save(
        self, path: str | os.PathLike[str], *, format: Literal["peft", "keras"] = "peft", durable: bool = True
    ) -> None:
        """Write the factors: PEFT's folder, or a file of factors by Keras' names.

        Args:
            path: The folder, which may exist; or for "keras" a file, whose ending determines the format.
            format: "peft" (linear layers, embeddings, convolutions without groups) or "keras".
            durable: As for :func:`xweights.save`.

        Raises:
            LayoutError: PEFT has no factors for a weight of these axes; nothing is written.
            FileAccessError: the folder or file can't be written.
        """
        if format == "keras":
            save(self.params, path, durable=durable)
            return
        if format != "peft":
            raise ArgumentError(f'format= is "peft" or "keras"\ngot: {format!r}')
        problems = Problems("these can't be written as PEFT's, and nothing was written")
        pairs: list[PeftPair] = []
        for w in self._weights:
            pair = make_pair(w.native_name, w.layout, w.left, w.right, self._transposed, problems)
            if pair is not None:
                pairs.append(pair)
        problems.check()
        write_folder(os.fspath(path), pairs, self.rank, durable)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return {"rank": self.rank, "errors": dict(self.errors), "left_out": dict(self.left_out)}

    def __str__(self) -> str:
        count, worst = len(self.errors), max(self.errors.values(), default=0.0)
        what = f"{count:,} weight{'s' * (count != 1)} as factors of rank {self.rank}"
        lines = [f"{what}, relative error {worst:.1e} at most"]
        ranked = sorted(self.errors.items(), key=lambda item: -item[1])
        if count > 1:
            lines += [f"  {error:.1e}  {name}" for name, error in ranked[:_LISTED]]
            lines += [f"  and {count - _LISTED} more with smaller errors"] * (count > _LISTED)
        if self.left_out:
            listed = list(self.left_out.items())
            lines.append(f"not in the adapter, though {'they differ' if len(listed) > 1 else 'it differs'}:")
            lines += [f"  {name}: {reason}" for name, reason in listed[:_LISTED]]
            lines += [f"  and {len(listed) - _LISTED} more"] * (len(listed) > _LISTED)
        return "\n".join(lines)

    __repr__ = __str__


def _get(array: Array) -> Array:
    return array


def extract_lora(
    after: Any,
    before: Any,
    *,
    rank: int,
    where: WhereLike | None = None,
    names: Names | None = None,
    layout: LayoutName | None = None,
    fan_in_fan_out: bool = False,
) -> ExtractedLora:
    """Return the difference of two models as LoRA factors: the closest of a given rank, with the error of each weight.

    Args:
        after: The model that was trained: live, a file, or a mapping, of any framework.
        before: The model that it was trained from; the factors have its names.
        rank: The rank of all factors; a matrix with a shorter side has that as its rank.
        where: Which weights of ``before``. Default: all with two axes or more that differ.
        names: ``{glob of before: glob of after}`` where their names differ.
        layout: The layout of arrays of unknown axes that meet arrays of known ones, as for :func:`xweights.merge`.
        fan_in_fan_out: True if matrices of unknown axes are stored as (in, out): ``Conv1D`` of transformers in a file.
            Its own layers are known.

    Returns:
        The factors and the errors; ``.save(folder)`` writes PEFT's format, ``.params`` has Keras' names. Whatever else
        differs, as norms and biases do, is listed in ``.left_out``.

    Close: by the singular value decomposition in float64, rounded to float32 once (mergekit's extraction uses the same
    decomposition). A difference of that rank has errors of rounding alone.
    Raises SelectionError (weights that one of them lacks), ShapeError, DtypeError, LayoutError, NonfiniteError,
    ArgumentError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> before = {"dense/kernel": np.eye(3)}; after = {"dense/kernel": np.eye(3) + np.ones((3, 3))}
        >>> lora = xw.extract_lora(after, before, rank=1); lora.errors["dense/kernel"] < 1e-12
        True
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ArgumentError(f"rank= is a whole number >= 1\ngot: {rank!r}")
    inputs = list_inputs([before, after], None, None, names)
    inputs[0].label, inputs[1].label = "before", "after"
    if any(tracing(one.target) for one in inputs):
        raise TraceError("extraction reads values on the host\nFix: call it before or after the compiled step")
    problems = Problems("no factors can be extracted")
    for one in inputs:
        one.open(problems)
    problems.check()
    settle_names(inputs, problems)
    read_prefixes(inputs, problems)
    problems.check()
    separate_ties(inputs)
    groups, _ = group_parameters(inputs, 2, ... if where is None else where, layout, True, problems)
    problems.check()
    weights: list[_Extracted] = []
    left_out: dict[str, str] = {}
    for group in groups:
        if not group.first.floating:
            if not is_counter(group.first) and not _is_equal(group):
                left_out[group.first.name] = f"it holds {group.first.dtype.name}, and factors are for floats"
            continue
        difference, wrong = _subtract(group)
        if wrong:
            problems.add(NonfiniteError, f"{group.first.name!r}: {wrong:,} entries of the difference aren't finite")
        elif not np.any(difference):
            continue
        elif difference.ndim < 2:
            left_out[group.first.name] = "it has less than two axes"
        elif not problems:
            weights.append(_extract(group, difference, rank))
    problems.check()
    if not weights:
        what = "they have the same matrices" if where is None else "the selected matrices are equal"
        raise SelectionError(f"there is nothing to extract: {what}\nFix: compare them: xweights.diff(before, after)")
    return ExtractedLora(rank, {w.name: w.error for w in weights}, left_out, tuple(weights), fan_in_fan_out)


def _is_equal(group: Group) -> bool:
    before, after = (member.read_neutral(group) for member in group.members)
    return np.array_equal(before, after)


def _subtract(group: Group) -> tuple[Array, int]:
    """Return ``after - before`` in float64, and the number of entries that aren't finite."""
    before, after = (member.read_neutral(group).astype(np.float64) for member in group.members)
    with np.errstate(all="ignore"):
        difference = after - before
    return difference, difference.size - int(np.count_nonzero(np.isfinite(difference)))


def _extract(group: Group, difference: Array, rank: int) -> _Extracted:
    p, layout = group.first, group.members[0].layout
    dtype = p.dtype if p.dtype.itemsize > 4 else _FLOAT32
    # Of unknown axes the first numbers the outputs, as torch stores it; of known ones the last does, as in Keras.
    rows = difference.shape[0] if layout.axes is None else -1
    left, right, error = decompose(difference.reshape(rows, -1 if rows > 0 else difference.shape[-1]), rank)
    return _Extracted(p.name, p.native_name, layout, round_to(left, dtype), round_to(right, dtype), error)
