"""Edits by arrays that are passed by name: a model whose plan is kept takes them at once, a mapping one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import xweights as xw

torch = pytest.importorskip("torch", reason="PyTorch isn't installed")

EDITS: dict[str, Callable[[Any, Any], None]] = {
    "add": lambda target, values: xw.add(target, values, where=...),
    "scale": lambda target, values: xw.scale(target, values, where=...),
    "fill": lambda target, values: xw.fill(target, values, where=...),
    "mask": lambda target, values: xw.mask(target, {name: value > 0 for name, value in values.items()}, where=...),
}


def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Embedding(5, 2), torch.nn.Conv2d(2, 3, (2, 1)))


def referee(model: Any) -> xw.Params:
    """Return the same weights as a mapping, of which no plan is kept."""
    params = xw.get_params(model)
    return xw.Params({name: array.copy() for name, array in params.items()}, axes=params.axes)


def values_for(model: Any) -> xw.Params:
    rng = np.random.default_rng(0)
    params = xw.get_params(model)
    arrays = {name: rng.standard_normal(array.shape).astype(np.float32) for name, array in params.items()}
    return xw.Params(arrays, axes=params.axes)


def reorder(values: xw.Params) -> Mapping[str, Any]:
    return dict(reversed(values.items()))


def turn(values: xw.Params) -> xw.Params:
    """Return the same values with the axes of kernels the other way round."""
    axes = {name: None if axes is None else axes[::-1] for name, axes in values.axes.items()}
    return xw.Params({name: array.transpose() for name, array in values.items()}, axes=axes)


WAYS: dict[str, Callable[[xw.Params], Any]] = {
    "Params in order": lambda values: values,
    "a mapping in order": dict,
    "another order": reorder,
    "more than there is": lambda values: {**values, "other/kernel": np.ones(3)},
    "axes the other way round": turn,
    "in torch's memory order": lambda values: {name: np.asfortranarray(a) for name, a in values.items()},
    "with gaps": lambda values: {name: np.repeat(a, 2, axis=0)[::2] for name, a in values.items()},
    "exact float64": lambda values: {name: a.astype(np.float64) for name, a in values.items()},
    "numbers and arrays": lambda values: {name: a if a.ndim > 1 else 0.5 for name, a in values.items()},
    "lists": lambda values: {name: a.tolist() for name, a in values.items()},
}


# A mask is made of arrays, by name alone.
NO_MASKS = ("axes the other way round", "numbers and arrays", "lists")


@pytest.mark.parametrize(
    ("edit", "way"), [(edit, way) for edit in EDITS for way in WAYS if edit != "mask" or way not in NO_MASKS]
)
def test_a_model_gets_the_bits_that_a_mapping_gets(edit: str, way: str) -> None:
    model = network()
    expected = referee(model)
    passed = WAYS[way](values_for(model))
    for _ in range(2):  # the second call finds a kept plan
        EDITS[edit](model, passed)
        EDITS[edit](expected, passed)
    assert xw.equal(xw.get_params(model), expected)


@pytest.mark.parametrize("make", [dict, lambda views: xw.Params(views)])
def test_arrays_that_are_other_parameters_are_read_before_any_is_written(make: Callable[..., Any]) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False))
    before = xw.get_params(model)
    first, second = (layer.weight.detach().numpy().T for layer in model)
    for _ in range(2):
        xw.set_params(model, before)
        xw.add(model, make({"0/kernel": second, "1/kernel": first}))
        total = before["0/kernel"] + before["1/kernel"]
        assert all(np.array_equal(array, total) for array in xw.get_params(model).values())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("order", ["C", "F"])
def test_one_value_that_is_not_finite_is_found_among_many_and_nothing_changes(bad: float, order: Any) -> None:
    model = network()
    before = xw.get_params(model)
    values = {name: np.array(array, order=order) for name, array in values_for(model).items()}
    xw.add(model, values)
    xw.set_params(model, before)
    values["2/kernel"][0, 0, 1, 2] = bad
    with pytest.raises(xw.NonfiniteError, match="2/kernel"):
        xw.add(model, values)
    assert xw.equal(xw.get_params(model), before)


def test_an_array_of_another_shape_is_refused_by_name_and_nothing_changes() -> None:
    model = network()
    values = dict(values_for(model))
    xw.add(model, values)
    before = xw.get_params(model)
    values["0/bias"] = np.ones(7, np.float32)
    with pytest.raises(xw.ShapeError, match="0/bias"):
        xw.add(model, values)
    assert xw.equal(xw.get_params(model), before)
