"""The matrix can fail: each mistake planted here turns a green cell red.

The mistakes are those that look right: a transposed square kernel, gates in another order, a tie that falls the other
way, a lost minus sign, one rounding too few. Planted in what the library runs, judged by what judges a cell.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from harness.columns import DTYPES, Column
from harness.host import HOST_ROWS, run_host
from harness.rows import ROWS
from harness.running import family_of, run, run_steps
from harness.twins import NAMES

import xweights as xw
from xweights.core import numpy_backend, numpy_groups
from xweights.core.layout import plain_layout
from xweights.core.parameter import Parameter
from xweights.core.plan import KeepsPlans, Plan
from xweights.core.registry import backend_for
from xweights.merging import sparsify
from xweights.rules import pruning

pytestmark = pytest.mark.matrix
Plant = Callable[[pytest.MonkeyPatch], None]


def green(name: str, column: Column, dtype: str) -> bool:
    """Judge a cell as test_matrix.py does."""
    if name in ROWS:
        return run(ROWS[name], column, dtype).within(ROWS[name].rtol, DTYPES[dtype])
    return run_host(name, column, dtype).within(HOST_ROWS[name][2], DTYPES[dtype])


def red(name: str, column: Column, dtype: str) -> bool:
    """Return whether a cell fails or raises."""
    try:
        return not green(name, column, dtype)
    except (AssertionError, xw.XweightsError):
        return True


def need(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} not installed")


def copy_parameter(parameter: Parameter, **facts: Any) -> Parameter:
    """Copy a parameter with some facts changed."""
    known = {slot: getattr(parameter, slot) for slot in Parameter.__slots__}
    return Parameter(**{**known, **facts})


def plant_in_adapter(
    patch: pytest.MonkeyPatch, target: Any, name: str, change: Callable[[Parameter], Parameter]
) -> None:
    """Have the adapter of a target's framework hand out a changed parameter."""
    backend = backend_for(target)
    assert backend is not None
    kind = type(backend.adapter(target))
    keeps_plans = issubclass(kind, KeepsPlans)
    parameters, plan = kind.parameters, getattr(kind, "plan", None)

    def changed(self: Any, it: Any) -> list[Parameter]:
        real = plan(self, it).everything if plan is not None else parameters(self, it)
        return [change(p) if p.name == name else p for p in real]

    patch.setattr(kind, "parameters", changed)
    if keeps_plans:
        patch.setattr(kind, "plan", lambda self, it: Plan(lambda: changed(self, it)))


def plant_in_numpy(patch: pytest.MonkeyPatch, name: str, edit: Callable[..., Any]) -> None:
    """Have NumPy's ops edit in another way: those of one array, and those of many."""

    def edit_each(self: Any, xs: list[Any], *operands: Any) -> list[Any]:
        each = [operand if isinstance(operand, list) else [operand] * len(xs) for operand in operands]
        return [edit(self, x, *own) for x, *own in zip(xs, *each, strict=True)]

    patch.setattr(numpy_backend.NumpyOps, name, edit)
    patch.setattr(numpy_groups.NumpyGroupOps, name, edit_each)


TRANSPOSED = ["get_params", "set_params(Params)", "noise(std=)", "set_entries(axis names)", "merge(into=), average"]


@pytest.mark.parametrize("row", TRANSPOSED)
def test_a_transposed_square_kernel_turns_red(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need("torch")
    target = Column.TORCH.twin(DTYPES["float32"]).target
    assert green(row, Column.TORCH, "float32")
    plant_in_adapter(
        monkeypatch,
        *(target, "dense/kernel"),
        lambda p: copy_parameter(p, layout=plain_layout(p.layout.stored, p.axes)),
    )
    assert red(row, Column.TORCH, "float32")


@pytest.mark.parametrize("row", ["get_params", "diff, equal"])
def test_swapped_gates_turn_red(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need("torch")
    target = Column.TORCH.twin(DTYPES["float32"]).target
    assert green(row, Column.TORCH, "float32")

    class Swapped:
        """Reads forget, input, candidate, output where torch keeps input, forget, candidate, output."""

        def __init__(self, real: Any) -> None:
            self.real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def read(self, handle: Any) -> Any:
            found = self.real.read(handle)
            return found.reshape(4, -1, found.shape[1])[[1, 0, 2, 3]].reshape(found.shape)

    plant_in_adapter(monkeypatch, target, "cell/kernel", lambda p: copy_parameter(p, storage=Swapped(p.storage)))
    assert red(row, Column.TORCH, "float32")


@pytest.mark.parametrize("row", ["prune(fraction=)", "prune(count=)", "prune(fraction=, scope='global')"])
def test_a_tie_broken_the_other_way_turns_red(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert green(row, Column.NUMPY, "float32")
    real = pruning.keep_largest

    def last_one_first(scores: Any, drop: int, **how: Any) -> Any:
        turned = real([np.flip(array).copy() for array in scores[::-1]], drop, **how)
        return [np.flip(mask) for mask in turned[::-1]]

    monkeypatch.setattr(pruning, "keep_largest", last_one_first)
    assert red(row, Column.NUMPY, "float32")


def test_one_entry_too_many_turns_red(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pruning.Prune.dropped
    monkeypatch.setattr(pruning.Prune, "dropped", lambda self, size: real(self, size) + 1)
    assert red("prune(fraction=)", Column.NUMPY, "float32")


@pytest.mark.parametrize("row", ["clip(low=0.0)", "non_negative"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clip_that_loses_the_sign_of_zero_turns_red(row: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert green(row, Column.NUMPY, dtype)

    def positive(self: Any, x: Any, low: Any, high: Any) -> Any:
        x[...] = np.where(x <= low, low, x)
        return x

    plant_in_numpy(monkeypatch, "clip", positive)
    assert red(row, Column.NUMPY, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_number_that_is_not_rounded_to_the_dtype_first_turns_red(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert green("scale(number)", Column.NUMPY, dtype)

    def in_float32(self: Any, x: Any, y: Any) -> Any:
        x[...] = (x.astype(np.float32) * np.float32(0.9)).astype(x.dtype)
        return x

    plant_in_numpy(monkeypatch, "multiply", in_float32)
    assert red("scale(number)", Column.NUMPY, dtype)


def test_a_factor_in_the_wrong_precision_turns_a_close_row_red(monkeypatch: pytest.MonkeyPatch) -> None:
    assert green("max_norm(per='out')", Column.NUMPY, "float64")
    real = numpy_backend.NumpyOps.sum_squares
    monkeypatch.setattr(
        *(numpy_backend.NumpyOps, "sum_squares"),
        lambda self, x, axes: real(self, x, axes).astype(np.float16).astype(np.float64),
    )
    assert red("max_norm(per='out')", Column.NUMPY, "float64")


def test_a_write_that_aliases_the_callers_array_turns_red(monkeypatch: pytest.MonkeyPatch) -> None:
    need("torch")
    import torch

    row, column = "set_params(Params)", Column.TORCH
    assert green(row, column, "float32")
    storage = xw.parameters(column.twin(DTYPES["float32"]).target)[0].storage

    def alias(self: Any, handle: Any, value: Any) -> None:
        handle.tensor.data = torch.from_numpy(value)

    monkeypatch.setattr(type(storage), "write", alias)
    try:
        assert red(row, column, "float32")
    finally:
        from harness.running import eager_twin

        eager_twin.cache_clear()  # that twin has the test's arrays in it now


def test_an_undo_that_forgets_the_bits_of_nan_turns_red(monkeypatch: pytest.MonkeyPatch) -> None:
    assert green("snapshot, restore", Column.NUMPY, "float32")

    def canonical(self: Any, handle: Any, kept: Any) -> None:
        handle[...] = np.where(np.isnan(kept), np.float32(np.nan), kept)

    monkeypatch.setattr(numpy_backend.NumpyStorage, "restore", canonical)
    assert red("snapshot, restore", Column.NUMPY, "float32")


def test_a_mask_that_multiplies_turns_red(monkeypatch: pytest.MonkeyPatch) -> None:
    def multiplied(self: Any, x: Any, mask: Any) -> Any:
        with np.errstate(all="ignore"):
            x[...] = x * mask.astype(x.dtype)
        return x

    plant_in_numpy(monkeypatch, "keep", multiplied)
    assert red("mask(arrays by name)", Column.NUMPY, "float32")


def test_a_compiled_step_without_fences_turns_red(monkeypatch: pytest.MonkeyPatch) -> None:
    need("tensorflow")
    import tensorflow as tf

    chain = next(row for row in ROWS.values() if row.family == "chain" and not row.rtol)
    backend = backend_for(tf.constant(0.0))
    assert backend is not None
    monkeypatch.setattr(type(backend.ops(tf.constant(0.0))), "fence", lambda self, x: x)
    monkeypatch.setattr("harness.running.family_of", lambda *cell: run_steps([chain], *cell[1:3]))
    assert red(chain.name, Column.TF_MODULE_JIT, "float32")
    family_of.cache_clear()


def test_every_array_of_the_twins_is_judged() -> None:
    """A row that judged only some arrays could hide a mistake in the others."""
    for name in NAMES:
        twin = Column.NUMPY.twin(DTYPES["float32"])
        start = twin.read()
        twin.target[name].reshape(-1)[-1] += 1
        from harness.compare import gap

        assert gap(twin.read(), start, bits=True).entries == 1


def test_a_trimmed_entry_too_many_turns_merge_red(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sparsify._keep_ranks
    assert green("merge('ties')", Column.NUMPY, "float32")
    monkeypatch.setattr(sparsify, "_keep_ranks", lambda vector, size, first, last: real(vector, size, first + 1, last))
    assert red("merge('ties')", Column.NUMPY, "float32")
