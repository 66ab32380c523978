"""Copies of a held model are free, share nothing with it, and leave what is attached to the model in force."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from learners import learner

import xweights as xw

ATTACH = {
    "hold": lambda side: xw.hold(side.target, xw.Clip(-0.1, 0.1), where=side.first),
    "freeze": lambda side: xw.freeze(side.target, where=side.first),
    "frozen statistics": lambda side: xw.freeze(side.target, where="*/moving_*"),
    "inference mode": lambda side: xw.freeze(side.target, where="*/gamma", inference=True),
    "schedule": lambda side: xw.prune(side.target, fraction=0.5, schedule=xw.Cubic(0, 4), where=side.first),
    "factors": lambda side: xw.multiply_lr(side.target, {side.first: 0.0}, optimizer=side.optimizer),
    "averages": lambda side: xw.average(side.target, decay=0.5),
}
TORCH_COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
}


def keras_clone(model: Any) -> Any:
    import keras

    return keras.models.clone_model(model)


def moved(before: xw.Params, after: xw.Params) -> set[str]:
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.mark.parametrize("how", TORCH_COPIES)
@pytest.mark.parametrize("kind", ATTACH)
def test_a_copy_of_a_module_is_trained_freely_and_the_module_stays_as_it_was(kind: str, how: str) -> None:
    torch = pytest.importorskip("torch")
    side = learner("torch", "sgd", norm=True)
    handle = ATTACH[kind](side)
    side.step()
    twin = TORCH_COPIES[how](side.target)
    if kind == "freeze":
        assert not twin[0].weight.requires_grad  # torch copies its own flag
    for p in twin.parameters():
        p.requires_grad_(True)
    here, there = xw.get_params(side.target), xw.get_params(twin)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)
    twin(torch.ones(8, 4) * torch.arange(8.0)[:, None]).pow(2).mean().backward()
    optimizer.step()
    xw.fill(twin, 5.0, where="0/bias")
    assert set(there) - moved(there, xw.get_params(twin)) == set()
    assert xw.equal(side.target, here)
    hooks = [hook for module in twin.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]
    assert hooks == []
    side.step()
    handle.check()
    handle.release()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in side.target.modules())


@pytest.mark.parametrize("how", [copy.deepcopy, keras_clone], ids=["deepcopy", "clone_model"])
@pytest.mark.parametrize("kind", ATTACH)
def test_a_copy_of_a_keras_model_has_nothing_of_what_is_attached(kind: str, how: Any) -> None:
    pytest.importorskip("keras")
    side = learner("keras", "sgd", norm=True)
    handle = ATTACH[kind](side)
    here = xw.get_params(side.target)
    twin = how(side.target)
    assert all(variable.constraint is None for variable in twin.weights)
    assert not any("call" in vars(layer) for layer in twin.layers)
    assert "make_train_function" not in vars(twin)
    assert twin.optimizer is None or "_backend_apply_gradients" not in vars(twin.optimizer)
    xw.fill(twin, 5.0, where=...)
    assert all((value == 5.0).all() for value in xw.get_params(twin).values())
    assert xw.equal(side.target, here)
    handle.release()
