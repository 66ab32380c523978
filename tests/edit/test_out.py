"""get_params(out=...): values go into the arrays of an earlier call."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import xweights as xw


def mapping() -> xw.Params:
    rng = np.random.default_rng(0)
    arrays = {"a/kernel": rng.normal(size=(3, 4)).astype(np.float32), "a/bias": np.arange(4.0), "n": np.arange(2)}
    return xw.Params(arrays, axes={"a/kernel": ("in", "out")})


def module() -> Any:
    torch = pytest.importorskip("torch", reason="PyTorch isn't installed")
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2).to(torch.bfloat16))


TARGETS = {"a mapping": mapping, "a torch module": module}


@pytest.mark.parametrize("layout", ["neutral", "native"])
@pytest.mark.parametrize("kind", TARGETS)
def test_the_arrays_of_an_earlier_call_are_filled_and_returned(kind: str, layout: Any) -> None:
    target = TARGETS[kind]()
    out = xw.get_params(target, layout=layout)
    homes = dict(out)
    xw.fill(target, 0.5)
    assert xw.get_params(target, layout=layout, out=out) is out
    assert all(out[name] is homes[name] for name in homes)
    assert xw.equal(out, xw.get_params(target, layout=layout))


@pytest.mark.parametrize("kind", TARGETS)
def test_out_may_be_of_a_selection_and_in_another_memory_order(kind: str) -> None:
    target = TARGETS[kind]()
    out = xw.Params(
        {name: np.ascontiguousarray(a) for name, a in xw.get_params(target, where=xw.role("kernel")).items()}
    )
    xw.scale(target, 2.0, where=xw.role("kernel"))
    xw.get_params(target, where=xw.role("kernel"), out=out)
    expected = xw.get_params(target, where=xw.role("kernel"))
    assert all(np.array_equal(out[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", TARGETS)
def test_everything_that_does_not_fit_is_said_at_once_and_nothing_is_copied(kind: str) -> None:
    target = TARGETS[kind]()
    fitting = xw.get_params(target)
    names = list(fitting)
    wrong = {
        names[0]: np.full((9, 9), 7.0, np.float32),
        names[1]: fitting[names[1]].astype(np.complex64),
        "other": np.ones(1),
    }
    out = xw.Params(wrong)
    before = {name: array.copy() for name, array in out.items()}
    with pytest.raises(xw.ShapeError) as caught:
        xw.get_params(target, out=out)
    assert isinstance(caught.value, (xw.DtypeError, xw.SelectionError))
    assert "'other'" in str(caught.value)
    assert all(np.array_equal(out[name], before[name]) for name in before)


def test_views_can_not_be_filled() -> None:
    target = mapping()
    with pytest.raises(xw.WriteError, match="read-only"):
        xw.get_params(target, out=xw.get_params(target, copy=False))
    with pytest.raises(xw.ArgumentError, match="copy=False"):
        xw.get_params(target, copy=False, out=xw.get_params(target))
    with pytest.raises(xw.LayoutError, match="native"):
        xw.get_params(target, out=xw.get_params(target, layout="native"))


def test_out_of_another_order_of_axes_or_gates_is_refused() -> None:
    """It would go on to say so of the new values, and a set_params elsewhere would swap them."""
    arrays = {"gru/kernel": np.ones((4, 4)), "b": np.ones(2)}
    gates = {"gru/kernel": ("r", "z")}
    target = xw.Params(arrays, axes={"gru/kernel": ("in", "gate*unit")}, gates=gates)
    for axes, order in ((("gate*unit", "in"), ("r", "z")), (("in", "gate*unit"), ("z", "r"))):
        copies = {name: np.zeros_like(array) for name, array in arrays.items()}
        out = xw.Params(copies, axes={"gru/kernel": axes}, gates={"gru/kernel": order})
        with pytest.raises(xw.LayoutError, match="out\\['gru/kernel'\\]"):
            xw.get_params(target, out=out)
        assert not copies["b"].any()


def test_out_that_shares_memory_with_itself_or_with_the_target_is_refused() -> None:
    target = {"a": np.arange(4.0), "b": np.ones(4)}
    buffer = np.zeros(8)
    for arrays in ({"a": buffer[:4], "b": buffer[2:6]}, {"a": target["b"], "b": buffer[:4]}):
        with pytest.raises(xw.WriteError, match="shares memory"):
            xw.get_params(target, out=xw.Params(arrays))
    assert not buffer.any()
    assert target["b"].all()
    columns = np.zeros((4, 2))
    xw.get_params(target, out=xw.Params({"a": columns[:, 0], "b": columns[:, 1]}))
    assert np.array_equal(columns.T, [*target.values()])


def test_out_that_shares_memory_with_a_module_is_refused_each_time() -> None:
    target = module()
    out = xw.get_params(target)
    xw.get_params(target, out=out)
    arrays = dict(out)
    weight = target[0].weight.detach().numpy().T
    before = {name: array.copy() for name, array in xw.get_params(target).items()}
    for shared in (weight, weight[::-1][::-1]):
        with pytest.raises(xw.WriteError, match="shares memory"):
            xw.get_params(target, out=xw.Params({**arrays, "0/kernel": shared}))
    twice = {**arrays, "1/gamma": arrays["1/beta"]}
    with pytest.raises(xw.WriteError, match="shares memory"):
        xw.get_params(target, out=xw.Params(twice))
    assert xw.equal(xw.get_params(target), xw.Params(before))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda params: pickle.loads(pickle.dumps(params))])
def test_a_copy_of_filled_params_has_memory_of_its_own(copied: Any) -> None:
    target = module()
    first = xw.get_params(target)
    xw.set_params(target, first)  # finds out where the arrays are
    xw.get_params(target, out=first)
    second = copied(first)
    xw.fill(target, 0.5)
    xw.get_params(target, out=second)
    assert xw.equal(second, xw.get_params(target))
    assert not xw.equal(first, second)


def test_values_whose_memory_has_become_a_parameter_are_written_as_they_were() -> None:
    """Params remember where their arrays are, and a module may take them over between two calls."""
    torch = pytest.importorskip("torch", reason="PyTorch isn't installed")
    target = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False))
    values = xw.get_params(target)
    xw.set_params(target, values)
    expected = {name: array.copy() for name, array in values.items()}
    # The first layer now lives in the memory of the second one's values.
    target[0].weight = torch.nn.Parameter(torch.from_numpy(values["1/kernel"].T))
    xw.set_params(target, values)
    assert np.array_equal(xw.get_params(target)["0/kernel"], expected["0/kernel"])
    assert np.array_equal(xw.get_params(target)["1/kernel"], expected["1/kernel"])
